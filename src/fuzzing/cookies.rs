//! Cookies: after removal nobody finds ours, and the others are untouched.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use crate::message::cookies::{remove, sets, values};

const NAME: &str = "access_token";

/// `Cookie` lines, one a line.
pub fn cookies(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(8) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(COOKIE, value);
        }
    }
    let before = lines(&headers);
    for credential in values(&headers, NAME) {
        let known = before.iter().flat_map(|line| of_rfc_6265(line));
        assert!(
            known.into_iter().any(|(name, value)| name == NAME.as_bytes() && value == credential.as_bytes()),
            "{credential:?} is no cookie of {:?}",
            shown(&before)
        );
    }
    remove(&mut headers, NAME);
    let after = lines(&headers);
    assert_eq!(values(&headers, NAME).count(), 0, "{:?}", shown(&before));
    for line in &after {
        for (reader, names) in
            [("RFC 6265", names_of(of_rfc_6265(line))), ("PHP", of_php(line)), ("Python", of_python(line))]
        {
            assert!(
                !names.iter().any(|name| name == NAME.as_bytes()),
                "{reader} still finds it in {:?}, which was {:?}",
                String::from_utf8_lossy(line),
                shown(&before)
            );
        }
    }
    // Lines without a trace of it are as they were, and so is every crumb without one.
    let untouched: Vec<_> = before.iter().filter(|line| !has_trace(line)).collect();
    let still: Vec<_> = after.iter().filter(|line| !has_trace(line)).collect();
    for line in &untouched {
        assert!(still.contains(line), "{:?} was changed", String::from_utf8_lossy(line));
    }
    let crumbs = |lines: &[Vec<u8>]| -> Vec<Vec<u8>> {
        let all = lines.iter().flat_map(|line| line.split(|byte| *byte == b';'));
        all.map(|crumb| trim(crumb).to_vec()).filter(|crumb| !crumb.is_empty() && !has_trace(crumb)).collect()
    };
    let mut left = crumbs(&after).into_iter();
    for crumb in crumbs(&before) {
        assert!(
            left.any(|other| other == crumb),
            "{:?} got lost from {:?}, which is now {:?}",
            String::from_utf8_lossy(&crumb),
            shown(&before),
            shown(&after)
        );
    }
    for line in &before {
        // RFC 6265 section 5.2, whose names are compared without regard to case here.
        let pair = line.split(|byte| *byte == b';').next().unwrap_or_default();
        let name = trim(pair.split(|byte| *byte == b'=').next().unwrap_or_default());
        if name.eq_ignore_ascii_case(NAME.as_bytes()) {
            assert!(sets(line, NAME), "{:?} sets our cookie", String::from_utf8_lossy(line));
        }
    }
}

fn lines(headers: &HeaderMap) -> Vec<Vec<u8>> {
    headers.get_all(COOKIE).iter().map(|line| line.as_bytes().to_vec()).collect()
}

fn shown(lines: &[Vec<u8>]) -> Vec<String> {
    lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect()
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

pub(super) fn names_of(cookies: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<Vec<u8>> {
    cookies.into_iter().map(|(name, _)| name).collect()
}

/// Semicolons part, the first equals sign ends the name, white space around both goes.
pub(super) fn of_rfc_6265(line: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    line.split(|byte| *byte == b';')
        .filter_map(|crumb| {
            let at = crumb.iter().position(|byte| *byte == b'=')?;
            Some((trim(&crumb[..at]).to_vec(), trim(&crumb[at + 1..]).to_vec()))
        })
        .collect()
}

/// PHP decodes names (up to 7.2), ends them at a NUL and writes `_` for what can't stand in a variable's name.
pub(super) fn of_php(line: &[u8]) -> Vec<Vec<u8>> {
    let crumbs = line.split(|byte| *byte == b';').filter(|crumb| !crumb.is_empty());
    crumbs
        .map(|crumb| {
            let blank = crumb.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let name = crumb[blank..].split(|byte| *byte == b'=').next().unwrap_or_default();
            let plus: Vec<u8> = name.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
            let decoded: Vec<u8> = percent_encoding::percent_decode(&plus).take_while(|byte| *byte != 0).collect();
            let start = decoded.iter().take_while(|byte| **byte == b' ').count();
            decoded[start..].iter().map(|byte| if matches!(byte, b' ' | b'.' | b'[') { b'_' } else { *byte }).collect()
        })
        .collect()
}

/// `http.cookies.SimpleCookie` of Python parts at white space as well, and allows it around the equals sign.
pub(super) fn of_python(line: &[u8]) -> Vec<Vec<u8>> {
    let is_key = |byte: u8| byte.is_ascii_alphanumeric() || b"!#%&'~_`><@,:/$*+-.^|)(?}{".contains(&byte);
    let is_value = |byte: u8| is_key(byte) || b"=[]".contains(&byte);
    let mut names = Vec::new();
    let mut rest = line;
    loop {
        rest = trim_start(rest);
        let key = rest.iter().take_while(|byte| is_key(**byte)).count();
        if key == 0 {
            return names;
        }
        let name = rest[..key].to_vec();
        let mut after = trim_start(&rest[key..]);
        if let Some(value) = after.strip_prefix(b"=") {
            let value = trim_start(value);
            let quoted = value.strip_prefix(b"\"").and_then(|inner| {
                let end = inner.iter().position(|byte| *byte == b'"')?;
                (!inner[..end].contains(&b'\\')).then(|| &inner[end + 1..])
            });
            after = quoted.unwrap_or_else(|| &value[value.iter().take_while(|byte| is_value(**byte)).count()..]);
            names.push(name);
        }
        let blank = after.len() - trim_start(after).len();
        rest = match &after[blank..] {
            [b';', next @ ..] => next,
            next if blank > 0 || next.is_empty() => next,
            // Whatever can't be read ends the reading.
            _ => return names,
        };
        if rest.is_empty() {
            return names;
        }
    }
}

fn trim_start(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()..]
}

/// Whether the name is in there at all, decoded and with every sign that somebody takes for an underscore.
fn has_trace(text: &[u8]) -> bool {
    let decoded: Vec<u8> = percent_encoding::percent_decode(text)
        .map(|byte| if matches!(byte, b'.' | b' ' | b'+' | b'[') { b'_' } else { byte })
        .collect();
    decoded.windows(NAME.len()).any(|part| part == NAME.as_bytes())
}
