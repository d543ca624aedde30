//! The body of a login, against the libraries that everybody reads such bodies with.

use std::fmt;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::portal::read_fields;

const WANTED: &[&str] = &["username", "password", "rd"];

/// A `Content-Type` on the first line, then the body.
pub fn login(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (content_type, body) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let Ok(value) = HeaderValue::from_bytes(content_type) else { return };
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, value)]);
    let essence = String::from_utf8_lossy(content_type).to_ascii_lowercase();
    let essence = essence.split(';').next().unwrap_or_default().trim().to_owned();
    let Some((is_form, fields)) = read_fields(&headers, body, WANTED) else {
        let plain = ["application/json", "application/x-www-form-urlencoded"];
        assert!(!plain.iter().any(|plain| plain.as_bytes() == content_type), "{essence} is not read");
        return;
    };
    if is_form {
        assert_eq!(essence, "application/x-www-form-urlencoded");
        form(body, fields);
    } else {
        assert_eq!(essence, "application/json");
        json(body, fields);
    }
}

type Fields = Option<Vec<(&'static str, String)>>;

fn form(body: &[u8], fields: Fields) {
    let theirs: Vec<(String, String)> = form_urlencoded::parse(body).into_owned().collect();
    let count = |name: &str| theirs.iter().filter(|(found, _)| found == name).count();
    if let Some(fields) = fields {
        for name in WANTED {
            let own: Vec<&String> = fields.iter().filter(|(found, _)| found == name).map(|(_, value)| value).collect();
            let other: Vec<&String> =
                theirs.iter().filter(|(found, _)| found == name).map(|(_, value)| value).collect();
            assert_eq!(own, other, "{name} has two readings: {:?}", String::from_utf8_lossy(body));
            assert!(count(name) <= 1, "{name} comes twice");
        }
    } else {
        let is_text = percent_encoding::percent_decode(body).decode_utf8().is_ok();
        let mut names: Vec<&String> = theirs.iter().map(|(name, _)| name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert!(names.len() < all || all > 30 || !is_text, "refused: {:?}", String::from_utf8_lossy(body));
    }
}

fn json(body: &[u8], fields: Fields) {
    let theirs = serde_json::from_slice::<Members>(body).ok().map(|Members(members)| members);
    let wanted = |name: &String| WANTED.contains(&name.as_str());
    let is_right = theirs.as_ref().is_some_and(|members| {
        members
            .iter()
            .filter(|(name, _)| wanted(name))
            .all(|(name, value)| value.is_string() && members.iter().filter(|(other, _)| other == name).count() == 1)
    });
    assert_eq!(fields.is_some(), is_right, "{:?}", String::from_utf8_lossy(body));
    if let (Some(fields), Some(members)) = (fields, theirs) {
        let members: Vec<_> = members.into_iter().filter(|(name, _)| wanted(name)).collect();
        assert_eq!(fields.len(), members.len());
        for (name, value) in fields {
            assert!(members.contains(&(name.to_owned(), Value::String(value))), "{name} has two readings");
        }
    }
}

/// The members of an object, doubled ones too.
struct Members(Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Members;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        source.deserialize_map(Pairs)
    }
}
