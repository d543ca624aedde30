//! What a form or a JSON object says: a handful of named texts, each of which may be a password.
//!
//! Every value goes into a [`Secret`] as soon as it is decoded, no error quotes one, and a name that comes twice is an
//! error, so that nobody can make two readers see two different values.

use std::fmt;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};
use zeroize::Zeroize as _;

use crate::secret::Secret;

/// How a body is written, and so also what kind of answer its sender understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `application/x-www-form-urlencoded`: a person's browser.
    Form,
    /// `application/json`: a program.
    Json,
}

impl Kind {
    /// The kind that a request's head announces; `None` where it is one that is not read here.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let encoded =
            headers.get_all(CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
        let mut types = headers.get_all(CONTENT_TYPE).iter();
        let content_type = types.next().map(HeaderValue::to_str)?.ok()?;
        if encoded || types.next().is_some() {
            return None;
        }
        let mut pieces = content_type.split(';');
        let essence = pieces.next()?.trim();
        for parameter in pieces {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if name.trim().eq_ignore_ascii_case("charset") {
                let value = value.trim().trim_matches('"');
                if !value.eq_ignore_ascii_case("utf-8") && !value.eq_ignore_ascii_case("utf8") {
                    return None;
                }
            }
        }
        if essence.eq_ignore_ascii_case("application/json") {
            Some(Self::Json)
        } else if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            Some(Self::Form)
        } else {
            None
        }
    }
}

/// Why a body was not understood. Says nothing about what was in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// The fields that were asked for and came.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<(&'static str, Secret<String>)>);

impl Fields {
    /// Reads a body. `wanted`: the names that mean something; others are passed over, but not when they come twice in
    /// a form.
    pub(super) fn parse(kind: Kind, body: &[u8], wanted: &'static [&'static str]) -> Result<Self, Malformed> {
        match kind {
            Kind::Form => Self::from_form(body, wanted),
            Kind::Json => Self::from_json(body, wanted),
        }
    }

    /// The value of a field, taken out.
    pub(super) fn take(&mut self, name: &str) -> Option<Secret<String>> {
        let place = self.0.iter().position(|(field, _)| *field == name)?;
        Some(self.0.swap_remove(place).1)
    }

    /// The value of a field that is no secret.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| *field == name).map(|(_, value)| value.expose().as_str())
    }

    /// `application/x-www-form-urlencoded` (WHATWG URL section 5.1), but bytes that are no UTF-8 are an error: two
    /// different passwords must not be read as the same one.
    fn from_form(body: &[u8], wanted: &'static [&'static str]) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        let mut seen: Vec<Vec<u8>> = Vec::new();
        for pair in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let (name, value) = split_once(pair, b'=');
            let name = decode(name);
            if seen.contains(&name) {
                return Err(Malformed("a field comes twice"));
            }
            if seen.len() >= MAX_FIELDS {
                return Err(Malformed("there are too many fields"));
            }
            if let Some(known) = wanted.iter().find(|known| known.as_bytes() == name) {
                let value = String::from_utf8(decode(value)).map_err(|error| {
                    error.into_bytes().zeroize();
                    Malformed("a field is not UTF-8")
                })?;
                fields.0.push((known, Secret::new(value)));
            }
            seen.push(name);
        }
        Ok(fields)
    }

    /// A JSON object (RFC 8259) whose wanted members are texts.
    fn from_json(body: &[u8], wanted: &'static [&'static str]) -> Result<Self, Malformed> {
        let mut reader = serde_json::Deserializer::from_slice(body);
        let fields = ObjectOf(wanted).deserialize(&mut reader);
        // The library's own message may quote what it read.
        fields
            .and_then(|fields| reader.end().map(|()| fields))
            .map_err(|_| Malformed("it is not a JSON object of the expected shape"))
    }
}

/// More fields than any form of ours has.
const MAX_FIELDS: usize = 32;

struct ObjectOf(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for ObjectOf {
    type Value = Fields;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Fields, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ObjectOf {
    type Value = Fields;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        while let Some(name) = map.next_key::<String>()? {
            let Some(known) = self.0.iter().find(|known| **known == name) else {
                // Read as a value and not skipped, so that the reader's limit of depth holds here too.
                map.next_value::<serde_json::Value>()?;
                continue;
            };
            if fields.text(known).is_some() {
                return Err(A::Error::custom("a member comes twice"));
            }
            fields.0.push((known, Secret::new(map.next_value()?)));
        }
        Ok(fields)
    }
}

/// The one value of a query's parameter, decoded; `None` where there is none or more than one.
pub(super) fn query_value(query: Option<&str>, name: &str) -> Option<Vec<u8>> {
    let pairs = query?.as_bytes().split(|byte| *byte == b'&').map(|pair| split_once(pair, b'='));
    let mut values = pairs.filter(|(found, _)| decode(found) == name.as_bytes());
    let (_, value) = values.next()?;
    if values.next().is_some() { None } else { Some(decode(value)) }
}

fn split_once(pair: &[u8], separator: u8) -> (&[u8], &[u8]) {
    match pair.iter().position(|byte| *byte == separator) {
        Some(place) => {
            let (name, rest) = pair.split_at(place);
            (name, rest.get(1..).unwrap_or_default())
        }
        None => (pair, &[]),
    }
}

/// `+` and `%XX`; a `%` that begins no such triple stands for itself. One buffer, so that no copy of a password stays.
fn decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let triple = match (byte, after) {
            (b'%', [high, low, beyond @ ..]) => hexadecimal(*high).zip(hexadecimal(*low)).map(|pair| (pair, beyond)),
            _ => None,
        };
        if let Some(((high, low), beyond)) = triple {
            decoded.push(high << 4 | low);
            rest = beyond;
        } else {
            decoded.push(if *byte == b'+' { b' ' } else { *byte });
        }
    }
    decoded
}

const fn hexadecimal(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOGIN: &[&str] = &["username", "password", "rd"];

    fn read(kind: Kind, body: &[u8]) -> Result<(Option<String>, Option<String>), Malformed> {
        let fields = Fields::parse(kind, body, LOGIN)?;
        let own = |name| fields.text(name).map(str::to_owned);
        Ok((own("username"), own("password")))
    }

    fn both(username: &str, password: &str) -> (Option<String>, Option<String>) {
        (Some(username.to_owned()), Some(password.to_owned()))
    }

    #[test]
    fn the_content_type_decides() {
        for (content_type, expected) in [
            ("application/json", Some(Kind::Json)),
            ("Application/JSON; charset=UTF-8", Some(Kind::Json)),
            ("application/json;charset=\"utf-8\"", Some(Kind::Json)),
            ("application/json; charset=utf-16", None),
            ("application/x-www-form-urlencoded", Some(Kind::Form)),
            ("application/x-www-form-urlencoded; charset=euc-kr", None),
            ("application/jsonx", None),
            ("text/plain", None),
            ("multipart/form-data; boundary=x", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
            assert_eq!(Kind::of(&headers), expected, "{content_type}");
        }
        assert_eq!(Kind::of(&HeaderMap::new()), None);
        let mut twice = HeaderMap::new();
        twice.append(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        twice.append(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        assert_eq!(Kind::of(&twice), None);
        let mut packed = HeaderMap::new();
        packed.append(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        packed.append(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(Kind::of(&packed), None);
    }

    #[test]
    fn forms_are_read_as_browsers_write_them() {
        for (body, expected) in [
            (&b"username=kim&password=pw"[..], Ok(both("kim", "pw"))),
            (b"username=k%69m&password=a+b%2Bc%26%3D", Ok(both("kim", "a b+c&="))),
            (b"password=%ED%95%9C&username=kim&more=1", Ok(both("kim", "\u{d55c}"))),
            (b"username=kim&password=50%", Ok(both("kim", "50%"))),
            (b"username=kim&password=%4", Ok(both("kim", "%4"))),
            (b"username=kim&password=%zz%", Ok(both("kim", "%zz%"))),
            (b"username=kim&password=a=b", Ok(both("kim", "a=b"))),
            (b"username=kim&password=", Ok(both("kim", ""))),
            (b"&&username=kim&password", Ok(both("kim", ""))),
            (b"", Ok((None, None))),
            (b"username=kim&username=lee&password=pw", Err(Malformed("a field comes twice"))),
            (b"username=kim&user%6eame=kim&password=pw", Err(Malformed("a field comes twice"))),
            (b"a=1&a=2", Err(Malformed("a field comes twice"))),
            (b"username=kim&password=%ff", Err(Malformed("a field is not UTF-8"))),
            (b"username=kim&password=\xff", Err(Malformed("a field is not UTF-8"))),
        ] {
            assert_eq!(read(Kind::Form, body), expected, "{:?}", String::from_utf8_lossy(body));
        }
        let many = (0..100).map(|number| format!("a{number}=1")).collect::<Vec<_>>().join("&");
        assert_eq!(read(Kind::Form, many.as_bytes()), Err(Malformed("there are too many fields")));
    }

    #[test]
    fn objects_are_read_strictly() {
        for (body, expected) in [
            (r#"{"username":"kim","password":"pw"}"#, Some(both("kim", "pw"))),
            (r#" {"password":"\ud55c\n","more":{"a":[1]},"username":"kim"} "#, Some(both("kim", "\u{d55c}\n"))),
            ("{}", Some((None, None))),
            (r#"{"username":"kim","username":"kim","password":"pw"}"#, None),
            (r#"{"username":1,"password":"pw"}"#, None),
            (r#"{"username":null,"password":"pw"}"#, None),
            (r#"{"username":["kim"],"password":"pw"}"#, None),
            (r#"{"username":true,"password":"pw"}"#, None),
            (r#"{"username":"\ud800","password":"pw"}"#, None),
            (r#"{"username":"kim","password":"pw"}x"#, None),
            (r#"{"username":"kim","password":"pw""#, None),
            (r#"["kim","pw"]"#, None),
            (r#""kim""#, None),
            ("", None),
            ("null", None),
        ] {
            assert_eq!(read(Kind::Json, body.as_bytes()).ok(), expected, "{body}");
        }
        assert!(read(Kind::Json, b"{\"username\":\"\xff\",\"password\":\"\"}").is_err());
        for deep in [format!("{{\"more\":{}", "[".repeat(16_000)), "[".repeat(16_000), "{\"a\":".repeat(3_000)] {
            assert!(read(Kind::Json, deep.as_bytes()).is_err());
        }
        let closed = format!("{{\"more\":{}{}}}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(read(Kind::Json, closed.as_bytes()).is_err());
    }

    #[test]
    fn nothing_shows_a_value() {
        let fields = Fields::parse(Kind::Form, b"username=kim&password=canary", LOGIN).unwrap();
        assert!(!format!("{fields:?}").contains("canary"));
        for body in [&b"{\"password\":canary}"[..], b"{\"password\":\"canary\",\"password\":\"canary\"}"] {
            let error = Fields::parse(Kind::Json, body, LOGIN).unwrap_err();
            assert!(!format!("{error:?} {error}").contains("canary"));
        }
    }

    #[test]
    fn a_query_has_one_value_or_none() {
        assert_eq!(query_value(Some("rd=%2Fa%3Fb%3D1&x=2"), "rd"), Some(b"/a?b=1".to_vec()));
        assert_eq!(query_value(Some("x=1&rd"), "rd"), Some(Vec::new()));
        assert_eq!(query_value(Some("rd=%2Fa&rd=%2Fb"), "rd"), None);
        assert_eq!(query_value(Some("rd=/a&%72d=/b"), "rd"), None);
        assert_eq!(query_value(Some("rdx=/a"), "rd"), None);
        assert_eq!(query_value(None, "rd"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(body in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Fields::parse(Kind::Form, &body, LOGIN);
            let _ = Fields::parse(Kind::Json, &body, LOGIN);
            if let Ok(text) = std::str::from_utf8(&body) {
                let _ = query_value(Some(text), "rd");
            }
        }

        #[test]
        fn what_was_encoded_comes_back(username in any::<String>(), password in any::<String>()) {
            let form = form_urlencoded::Serializer::new(String::new())
                .append_pair("username", &username).append_pair("password", &password).finish();
            prop_assert_eq!(read(Kind::Form, form.as_bytes()), Ok(both(&username, &password)));
            let object = serde_json::json!({"username": &username, "password": &password}).to_string();
            prop_assert_eq!(read(Kind::Json, object.as_bytes()), Ok(both(&username, &password)));
        }

        #[test]
        fn forms_agree_with_the_standard_reader(body in "[a-z=&%+0-9A-F]{0,60}") {
            if let Ok(fields) = Fields::parse(Kind::Form, body.as_bytes(), &["a", "b", "c"]) {
                for (name, value) in form_urlencoded::parse(body.as_bytes()) {
                    if ["a", "b", "c"].contains(&&*name) {
                        prop_assert_eq!(fields.text(&name), Some(&*value));
                    }
                }
            }
        }
    }
}
