//! Trailers: which of them may be passed on.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::message::forwarded;

/// More trailers than this are not announced to the other side. One header has room for thousands of names, and each is
/// compared with all before it.
const MOST_TRAILERS: usize = 64;

/// The trailers that a `Trailer` header announces and that may be passed on: none that frames, routes or identifies.
pub(super) fn announced(headers: &HeaderMap, refuse: impl Fn(&HeaderName) -> bool) -> Vec<HeaderName> {
    const NEVER: [HeaderName; 16] = [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::EXPECT,
        header::HOST,
        header::PROXY_AUTHORIZATION,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    let mut names: Vec<HeaderName> = Vec::new();
    for line in headers.get_all(header::TRAILER) {
        for name in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if names.len() == MOST_TRAILERS {
                return names;
            }
            if let Ok(name) = HeaderName::from_bytes(name)
                && !NEVER.contains(&name)
                && !forwarded::covers(&name)
                && !refuse(&name)
                && !names.contains(&name)
            {
                names.push(name);
            }
        }
    }
    names
}

/// The value of a `Trailer` header; `None`: nothing is announced.
pub(super) fn announcement(names: &[HeaderName]) -> Option<HeaderValue> {
    if names.is_empty() {
        return None;
    }
    let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
    HeaderValue::from_str(&names.join(", ")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_that_frame_or_carry_secrets_are_not_announced() {
        let mut headers = HeaderMap::new();
        headers.insert(header::TRAILER, HeaderValue::from_static("X-Sum, content-length, set-cookie, x-sum, b@d"));
        headers.append(header::TRAILER, HeaderValue::from_static("X-Forwarded-For, x-real-ip, forwarded"));
        assert_eq!(announced(&headers, |_| false), ["x-sum"]);
        assert!(announced(&headers, |name| name == "x-sum").is_empty());
        let many = (0..4_000).map(|number| format!("x-{number}")).collect::<Vec<_>>().join(",");
        headers.append(header::TRAILER, HeaderValue::from_str(&many).unwrap());
        assert_eq!(announced(&headers, |_| false).len(), 64);
    }
}
