//! Trailers: which of them may be passed on.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The trailers that a `Trailer` header announces and that may be passed on: none that frames, routes or identifies.
pub(super) fn announced(headers: &HeaderMap, refuse: impl Fn(&HeaderName) -> bool) -> Vec<HeaderName> {
    const NEVER: [HeaderName; 17] = [
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
        header::FORWARDED,
    ];
    let mut names: Vec<HeaderName> = Vec::new();
    for line in headers.get_all(header::TRAILER) {
        for name in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if let Ok(name) = HeaderName::from_bytes(name)
                && !NEVER.contains(&name)
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
        assert_eq!(announced(&headers, |_| false), ["x-sum"]);
        assert!(announced(&headers, |name| name == "x-sum").is_empty());
    }
}
