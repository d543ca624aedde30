//! The `Cookie` header (RFC 6265 section 4.2), read as the strictest and the laxest backends read it.
//!
//! Who is logged in is read strictly; what is taken out is everything that some backend could read as ours.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use crate::config::{Cookie, SameSite};

/// The values of all cookies of exactly that name, in order, over all `Cookie` lines. For identification: strict.
/// What stands inside another cookie's quotes is no cookie.
pub fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
    headers.get_all(COOKIE).iter().flat_map(|line| Crumbs { rest: Some(line.as_bytes()) }).filter_map(|crumb| {
        let value = trim(crumb).strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        std::str::from_utf8(value).ok().filter(|_| is_plain(value))
    })
}

/// Visible ASCII without what RFC 6265 section 4.1.1 leaves out of a cookie's value.
#[expect(
    clippy::needless_bitwise_bool,
    reason = "without a way out in between, the compiler looks at many bytes at once: tokens are long"
)]
fn is_plain(value: &[u8]) -> bool {
    value.iter().fold(true, |plain, byte| {
        plain & byte.is_ascii_graphic() & (*byte != b'"') & (*byte != b',') & (*byte != b'\\')
    })
}

/// The pieces between semicolons, less those inside quotes that another piece opens and a later one closes.
struct Crumbs<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Iterator for Crumbs<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        let (crumb, after) = split_at_semicolon(rest);
        self.rest = after;
        let opens = memchr::memchr(b'=', crumb)
            .and_then(|equals| crumb.get(equals + 1..))
            .is_some_and(|value| matches!(trim(value), [b'"', inner @ ..] if memchr::memchr(b'"', inner).is_none()));
        if opens && let Some(after) = after {
            // An opening quote that nothing closes is an ordinary byte; then no later search can find one either,
            // because such a crumb would itself hold the quote: the work stays linear.
            if let Some(closing) = memchr::memchr(b'"', after) {
                self.rest = after.get(closing..).and_then(|closed| split_at_semicolon(closed).1);
            }
        }
        Some(crumb)
    }
}

fn split_at_semicolon(bytes: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b';', bytes) {
        Some(end) => (bytes.get(..end).unwrap_or_default(), bytes.get(end + 1..)),
        None => (bytes, None),
    }
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// What is left of a `Cookie` line without our cookie.
pub enum Left {
    /// Nothing in it is ours.
    Whole,
    /// This, byte for byte as it came.
    Part(Vec<u8>),
    /// Nothing: the line goes.
    Nothing,
}

/// Takes every cookie that some backend could read as one of that name out of a line; the others stay byte for byte.
#[must_use]
pub fn take_out(line: &[u8], name: &str) -> Left {
    let name = name.as_bytes();
    let Some(mut left) = without(line, name) else { return Left::Whole };
    // What was cut out may have held apart what is ours now. Nobody's browser writes such a line: it goes whole.
    for turn in 0..=MOST_TURNS {
        match without(&left, name) {
            None => break,
            Some(_) if turn == MOST_TURNS => left.clear(),
            Some(less) => left = less,
        }
    }
    if trim(&left).is_empty() { Left::Nothing } else { Left::Part(left) }
}

/// Takes out every cookie that some backend could read as one of that name; the others stay byte for byte.
#[cfg(any(test, fuzzing))]
pub fn remove(headers: &mut HeaderMap, name: &str) {
    let mut lines: Vec<HeaderValue> = Vec::new();
    let mut changed = false;
    for line in headers.get_all(COOKIE) {
        match take_out(line.as_bytes(), name) {
            Left::Whole => lines.push(line.clone()),
            Left::Nothing => changed = true,
            Left::Part(left) => {
                changed = true;
                lines.extend(HeaderValue::from_bytes(&left).ok());
            }
        }
    }
    if changed {
        headers.remove(COOKIE);
        for line in lines {
            headers.append(COOKIE, line);
        }
    }
}

/// How often a line is looked through again.
const MOST_TURNS: usize = 4;

/// `None`: nothing in this line is ours.
fn without(line: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut left = Vec::new();
    let (mut changed, mut first) = (false, true);
    let mut rest = Some(line);
    while let Some(whole) = rest {
        let crumb;
        (crumb, rest) = split_at_semicolon(whole);
        if is_ours(crumb, name) {
            changed = true;
            continue;
        }
        if first {
            left.reserve(line.len());
        } else {
            left.push(b';');
        }
        let start = left.len();
        left.extend_from_slice(if first && changed { trim(crumb) } else { crumb });
        // Old readers part cookies at white space and commas, too.
        changed |= cut_pieces(&mut left, start, name);
        first = false;
    }
    changed.then_some(left)
}

/// Cuts what looks like our cookie behind white space or a comma, from `start` on.
fn cut_pieces(left: &mut Vec<u8>, start: usize, name: &[u8]) -> bool {
    let Some(tail) = left.get(start..) else { return false };
    // One word, with or without blanks before it: that whole crumb has been looked at already.
    if memchr::memchr3(b' ', b'\t', b',', trim(tail)).is_none() && tail.last().is_none_or(|last| !is_separator(*last)) {
        return false;
    }
    let mut kept = Vec::with_capacity(tail.len());
    let mut changed = false;
    let mut rest = tail;
    while !rest.is_empty() {
        let separators = count(rest, is_separator);
        let (separating, words) = rest.split_at(separators);
        let pair = pair(words);
        let length = if separators > 0 && pair.contains(&b'=') && is_ours(pair, name) {
            changed = true;
            pair.len()
        } else {
            let word = count(words, |byte| !is_separator(byte));
            kept.extend_from_slice(separating);
            kept.extend_from_slice(words.get(..word).unwrap_or_default());
            word
        };
        rest = words.get(length..).unwrap_or_default();
    }
    if changed {
        left.truncate(start);
        left.extend_from_slice(&kept);
    }
    changed
}

/// The word that a text begins with and, where blanks part them from it, the equals sign and the value that follow:
/// Python's `http.cookies` reads `name = value` as one.
fn pair(text: &[u8]) -> &[u8] {
    let from = |at: usize| text.get(at..).unwrap_or_default();
    let blanks = |at: usize| count(from(at), |byte| matches!(byte, b' ' | b'\t'));
    let word = |at: usize| count(from(at), |byte| !is_separator(byte));
    let mut end = word(0);
    let equals = end + blanks(end);
    if text.get(equals) == Some(&b'=') {
        end = equals + word(equals);
    }
    if text.get(..end).is_some_and(|start| start.ends_with(b"=")) {
        let value = end + blanks(end);
        end = value + word(value);
    }
    text.get(..end).unwrap_or(text)
}

fn count(text: &[u8], is_one: impl Fn(u8) -> bool) -> usize {
    text.iter().take_while(|byte| is_one(**byte)).count()
}

const fn is_separator(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b',')
}

/// Whether any reader, also the laxest, finds our name in front of the first equals sign.
fn is_ours(crumb: &[u8], name: &[u8]) -> bool {
    // Nearly every name of a cookie is read in the same way by everybody.
    let key = crumb.strip_prefix(b" ").unwrap_or(crumb);
    let key = memchr::memchr(b'=', key).and_then(|end| key.get(..end)).unwrap_or(key);
    if key.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) && !key.is_empty() {
        return key == name;
    }
    is_ours_to_the_laxest(crumb, name)
}

/// White space (also U+00A0 and U+0085 as Latin-1), quotes and leading equals signs may stand around the name, percent
/// signs and PHP's `.`, ` `, `+` and `[` for `_` inside.
fn is_ours_to_the_laxest(crumb: &[u8], name: &[u8]) -> bool {
    let mut start = crumb;
    while let [byte, rest @ ..] = start
        && (*byte == b'=' || is_lax_blank(*byte))
    {
        start = rest;
    }
    let mut end = start.split(|byte| *byte == b'=').next().unwrap_or_default();
    while let [rest @ .., byte] = end
        && is_lax_blank(*byte)
    {
        end = rest;
    }
    // Old PHP decodes a name, passes over the spaces that it then begins with, and ends it at a NUL.
    let decoded: std::borrow::Cow<'_, [u8]> = percent_encoding::percent_decode(end).into();
    let decoded = decoded.split(|byte| *byte == 0).next().unwrap_or_default();
    let blanks = count(decoded, |byte| byte == b'+' || is_lax_blank(byte));
    let decoded = decoded.get(blanks..).unwrap_or_default();
    decoded.len() == name.len()
        && decoded
            .iter()
            .zip(name)
            .all(|(byte, wanted)| byte == wanted || (*wanted == b'_' && matches!(byte, b'.' | b' ' | b'+' | b'[')))
}

const fn is_lax_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'"' | 0xa0 | 0x85 | 0xc2 | 0x1c..=0x1f)
}

/// Whether a `Set-Cookie` value of an upstream sets, or would be read back as, a cookie of that name. Case is ignored.
#[must_use]
pub fn sets(set_cookie: &[u8], name: &str) -> bool {
    let pair = split_at_semicolon(set_cookie).0.to_ascii_lowercase();
    is_ours(&pair, name.to_ascii_lowercase().as_bytes())
}

/// What a `Set-Cookie` line of our name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaidOfOurs<'a> {
    Set(&'a str),
    Deleted,
}

/// Reads a `Set-Cookie` line as browsers do (RFC 6265 section 5.2): `None` where it is not exactly of that name, or no
/// text. `now`: Unix seconds.
#[must_use]
pub fn said_of_ours<'a>(set_cookie: &'a HeaderValue, name: &str, now: u64) -> Option<SaidOfOurs<'a>> {
    let mut parts = set_cookie.to_str().ok()?.split(';').map(|part| part.split_once('=').unwrap_or((part, "")));
    let (_, value) = parts.next().filter(|(key, _)| key.trim() == name)?;
    let (mut max_age, mut expires) = (None, None);
    for (key, value) in parts {
        let (key, value) = (key.trim(), value.trim());
        if key.eq_ignore_ascii_case("max-age") {
            let digits = value.strip_prefix('-').unwrap_or(value);
            if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
                max_age = Some(value.starts_with('-') || digits.bytes().all(|byte| byte == b'0'));
            }
        } else if key.eq_ignore_ascii_case("expires") {
            // PHP writes hyphens where others have blanks.
            let date = value.replacen('-', " ", 2);
            let date = httpdate::parse_http_date(value).or_else(|_| httpdate::parse_http_date(&date));
            if let Ok(date) = date {
                let seconds = date.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
                expires = Some(seconds <= now);
            }
        }
    }
    let value = value.trim();
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    // `Max-Age` goes before `Expires`.
    let is_deleted = value.is_empty() || max_age.or(expires).unwrap_or(false);
    Some(if is_deleted { SaidOfOurs::Deleted } else { SaidOfOurs::Set(value) })
}

/// Writes our `Set-Cookie`; `max_age` in seconds, 0 clears it. A value that can't stand in a header clears it, too.
#[must_use]
pub fn set_cookie(config: &Cookie, secure: bool, value: &str, max_age: u64) -> HeaderValue {
    let same_site = match config.same_site {
        SameSite::Lax => "Lax",
        SameSite::Strict => "Strict",
        SameSite::None => "None",
    };
    let domain = if config.domain.is_empty() { String::new() } else { format!("; Domain={}", config.domain) };
    let secure = if secure { "; Secure" } else { "" };
    let (name, path) = (&config.name, &config.path);
    let write = |value: &str, max_age: u64| {
        HeaderValue::try_from(format!(
            "{name}={value}; Path={path}{domain}; Max-Age={max_age}; HttpOnly; SameSite={same_site}{secure}"
        ))
    };
    write(value, max_age).or_else(|_| write("", 0)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// What clears our cookie's twins: cookies of its name that another configuration has set, for this host only or for
/// every path. A browser sends them along, and takes each of them for a cookie of its own (RFC 6265 section 5.3).
#[must_use]
pub fn clear_twins(config: &Cookie, secure: bool) -> Vec<HeaderValue> {
    let (domain, path) = (config.domain.as_str(), config.path.as_str());
    let mut known = vec![(domain, path)];
    let mut lines = Vec::new();
    for twin in [("", path), (domain, "/"), ("", "/")] {
        if !known.contains(&twin) {
            known.push(twin);
            let twin = Cookie { domain: twin.0.to_owned(), path: twin.1.to_owned(), ..config.clone() };
            lines.push(set_cookie(&twin, secure, "", 0));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(COOKIE, HeaderValue::from_bytes(line).unwrap());
        }
        headers
    }

    fn after(line: &[u8]) -> Option<Vec<u8>> {
        let mut headers = headers(&[line]);
        remove(&mut headers, "access_token");
        headers.get(COOKIE).map(|value| value.as_bytes().to_vec())
    }

    #[test]
    fn identification_is_strict() {
        for (line, found) in [
            ("access_token=A", &["A"][..]),
            ("a=1; access_token=A; access_token=B", &["A", "B"]),
            ("access_token =A", &[]),
            ("Access_Token=A", &[]),
            ("=access_token=A", &[]),
            ("access_token", &[]),
            ("access%5ftoken=A", &[]),
            ("a=b access_token=A", &[]),
            ("a=1,access_token=A", &[]),
            ("access_token=\"A\"", &[]),
            ("xaccess_token=A", &[]),
            ("a=\"x; access_token=T; y\"; access_token=A", &["A"]),
            ("a=\"x; access_token=A", &["A"]),
            ("é=1;access_token=A", &["A"]),
            ("access_token=", &[""]),
        ] {
            assert_eq!(values(&headers(&[line.as_bytes()]), "access_token").collect::<Vec<_>>(), found, "{line}");
        }
        let two = headers(&[b"access_token=A", b"access_token=B"]);
        assert_eq!(values(&two, "access_token").count(), 2);
    }

    #[test]
    fn removal_is_lax_and_leaves_the_others() {
        for (line, left) in [
            (&b"access_token=A"[..], None),
            (b"a=1; access_token=A; b=2", Some(&b"a=1; b=2"[..])),
            (b"access_token=A; b=2", Some(b"b=2")),
            (b"a=1;access_token=A;b=2", Some(b"a=1;b=2")),
            (b"access_token =A", None),
            (b"access_token\t=A", None),
            (b"\xa0access_token=A", None),
            (b"\"access_token\"=A", None),
            (b"=access_token=A", None),
            (b"access_token", None),
            (b"access%5ftoken=A", None),
            (b"+access_token=A", None),
            (b"%20+access_token%00x=A; b=1", Some(b"b=1")),
            (b"access.token=A", None),
            (b"a=b access_token=A", Some(b"a=b")),
            (b"a=1,access_token=A", Some(b"a=1")),
            (b"access_token=A; a=b access_token=B", Some(b"a=b")),
            (b"a=1; access+token,access_token=A; b=2", Some(b"a=1; b=2")),
            (b"a=b access_token =A", Some(b"a=b")),
            (b"a=b access_token \t = A c=d; e=f", Some(b"a=b c=d; e=f")),
            (b"a=b access_token= A, c=d", Some(b"a=b, c=d")),
            (b"a= access_token=A", Some(b"a=")),
            (b"a=b access_token c=d", Some(b"a=b access_token c=d")),
            (b"a=\"x; access_token=T; y\"; b=1", Some(b"a=\"x; y\"; b=1")),
            (b"a=1;  b=2;;c", Some(b"a=1;  b=2;;c")),
            (b"access_tokens=A", Some(b"access_tokens=A")),
            (b"x=access_token", Some(b"x=access_token")),
            (b"access_token=A; access_token=B; c=\xff", Some(b"c=\xff")),
        ] {
            assert_eq!(after(line).as_deref(), left, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn upstream_cookies_of_that_name_are_seen() {
        for (value, ours) in [
            ("access_token=x; Path=/", true),
            (" access_token = x", true),
            ("Access_Token=x", true),
            ("=access_token=x", true),
            ("access_token", true),
            ("session=access_token=x", false),
            ("access_token2=x", false),
            ("", false),
        ] {
            assert_eq!(sets(value.as_bytes(), "access_token"), ours, "{value}");
        }
    }

    #[test]
    fn a_line_of_our_name_sets_or_deletes() {
        use SaidOfOurs::{Deleted, Set};
        for (line, said) in [
            ("access_token=a.b.c; path=/; httponly", Some(Set("a.b.c"))),
            (" access_token = \"a.b.c\"", Some(Set("a.b.c"))),
            ("access_token=x; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT", Some(Set("x"))),
            ("access_token=x; Max-Age=soon", Some(Set("x"))),
            ("access_token=x; Expires=Thu, 01 Jan 2037 00:00:00 GMT", Some(Set("x"))),
            ("access_token=; path=/", Some(Deleted)),
            ("access_token=\"\"", Some(Deleted)),
            ("access_token=x; max-age=0", Some(Deleted)),
            ("access_token=x; Max-Age=-1", Some(Deleted)),
            ("access_token=x; expires=Thu, 01 Jan 1970 00:00:00 GMT", Some(Deleted)),
            ("access_token=deleted; expires=Thu, 01-Jan-1970 00:00:01 GMT; Max-Age=0", Some(Deleted)),
            ("access_token=deleted; expires=Thu, 01-Jan-1970 00:00:01 GMT", Some(Deleted)),
            ("Access_Token=x", None),
            ("=access_token=x", None),
            ("access%5ftoken=x", None),
            ("other=x", None),
        ] {
            let value = HeaderValue::from_static(line);
            assert_eq!(said_of_ours(&value, "access_token", 1_800_000_000), said, "{line}");
        }
    }

    #[test]
    fn our_cookie_has_its_attributes() {
        let mut config = Cookie {
            name: "access_token".into(),
            domain: String::new(),
            path: "/".into(),
            secure: crate::config::SecureCookie::Auto,
            same_site: SameSite::Lax,
        };
        assert_eq!(set_cookie(&config, false, "T", 60), "access_token=T; Path=/; Max-Age=60; HttpOnly; SameSite=Lax");
        config.domain = "example.com".into();
        assert_eq!(
            set_cookie(&config, true, "a\nb", 60),
            "access_token=; Path=/; Domain=example.com; Max-Age=0; HttpOnly; SameSite=Lax; Secure"
        );
    }

    #[test]
    fn twins_are_what_other_configurations_would_have_set() {
        let twins = |domain: &str, path: &str| {
            let config = Cookie {
                name: "t".into(),
                domain: domain.into(),
                path: path.into(),
                secure: crate::config::SecureCookie::Auto,
                same_site: SameSite::Lax,
            };
            let lines = clear_twins(&config, false);
            lines.iter().map(|line| line.to_str().unwrap().replace("; Max-Age=0; HttpOnly; SameSite=Lax", "")).collect()
        };
        let none: Vec<String> = twins("", "/");
        assert!(none.is_empty());
        let host_only: Vec<String> = twins("example.com", "/");
        assert_eq!(host_only, ["t=; Path=/"]);
        let other_path: Vec<String> = twins("", "/app");
        assert_eq!(other_path, ["t=; Path=/"]);
        let all: Vec<String> = twins("example.com", "/app");
        assert_eq!(all, ["t=; Path=/app", "t=; Path=/; Domain=example.com", "t=; Path=/"]);
    }

    proptest! {
        #[test]
        fn others_stay_byte_for_byte(
            others in prop::collection::vec("[ ]?[b-z]{1,5}=[b-z0-9=%\"]{0,6}", 1..20), at in 0_usize..20,
        ) {
            let mut all = others.clone();
            all.insert(at.min(others.len()), String::from("access_token=T"));
            let left = after(all.join(";").as_bytes()).unwrap();
            let wanted = others.join(";");
            let wanted = if at == 0 { wanted.trim_start() } else { &wanted };
            prop_assert_eq!(String::from_utf8(left).unwrap(), wanted);
        }

        #[test]
        fn nothing_panics(line in prop::collection::vec(0x20_u8..=0xff, 0..60)) {
            if let Ok(value) = HeaderValue::from_bytes(&line) {
                let mut headers = HeaderMap::new();
                headers.append(COOKIE, value);
                let _ = values(&headers, "a").count();
                remove(&mut headers, "a");
                prop_assert_eq!(values(&headers, "a").count(), 0);
                let _ = sets(&line, "a");
            }
        }
    }
}
