//! Headers that belong to one connection only (RFC 9110 section 7.6.1).

use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, SET_COOKIE,
};
use http::{HeaderMap, HeaderName};

/// Which headers of one message belong to its connection: the usual ones, and whatever any `Connection` line names.
/// `Trailer` does not count (it announces, see `upstream`). What every recipient needs (`Host`, `Cookie`, the description
/// of the body) goes on also when it is named.
pub struct HopByHop {
    named: Vec<HeaderName>,
}

impl HopByHop {
    /// Reads all `Connection` lines.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut named = Vec::new();
        for line in headers.get_all(CONNECTION) {
            for token in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if is_ordinary(token) {
                    continue;
                }
                // A name that did not come needs not be kept.
                let found = std::str::from_utf8(token).ok().filter(|token| headers.contains_key(*token));
                if let Some(name) = found.and_then(|token| HeaderName::from_bytes(token.as_bytes()).ok())
                    && !is_end_to_end(&name)
                    && !named.contains(&name)
                {
                    named.push(name);
                }
            }
        }
        Self { named }
    }

    /// Whether a header of this name goes no further.
    #[must_use]
    pub fn covers(&self, name: &HeaderName) -> bool {
        is_always(name) || self.named.contains(name)
    }
}

/// A `Connection` option that names no header.
#[must_use]
pub fn is_ordinary(token: &[u8]) -> bool {
    token.is_empty() || token.eq_ignore_ascii_case(b"keep-alive") || token.eq_ignore_ascii_case(b"close")
}

/// Whether a header of this name goes no further in any message.
#[must_use]
pub fn is_always(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "keep-alive"
            | "proxy-connection"
            | "http2-settings"
    )
}

/// Removes all of them.
pub fn strip(headers: &mut HeaderMap) {
    let all = HopByHop::of(headers);
    let found: Vec<HeaderName> = headers.keys().filter(|name| all.covers(name)).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

fn is_end_to_end(name: &HeaderName) -> bool {
    [HOST, COOKIE, SET_COOKIE, CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING, CACHE_CONTROL].contains(name)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn everything_that_belongs_to_the_connection_goes() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-One,\tcookie"),
            ("connection", "x-TWO, bad name, , host"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-two", "3"),
            ("x-three", "4"),
            ("cookie", "a=b"),
            ("host", "h"),
            ("te", "trailers"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "x"),
            ("proxy-authorization", "x"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("transfer-encoding", "chunked"),
            ("trailer", "x-sum"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["cookie", "host", "trailer", "x-three"]);
    }
}
