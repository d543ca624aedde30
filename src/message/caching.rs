//! Keeping an answer that carries a cookie out of shared caches (RFC 9111 section 7.3).

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Headers by which content networks are told to store what `Cache-Control` forbids.
const SHARED_CACHE_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("cdn-cache-control"),
    HeaderName::from_static("surrogate-control"),
    HeaderName::from_static("x-accel-expires"),
];

/// Marks an answer private. A browser's own cache keeps whatever life the backend gave it.
pub fn make_private(headers: &mut HeaderMap) {
    for name in &SHARED_CACHE_HEADERS {
        headers.remove(name);
    }
    let mut directives = Vec::new();
    let mut closed = false;
    for line in headers.get_all(header::CACHE_CONTROL) {
        // A line that is not text can't be trusted to say anything.
        for directive in line.to_str().unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let name = directive.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
            match name.as_str() {
                "public" | "s-maxage" | "private" => {}
                "no-store" => {
                    closed = true;
                    directives.push(directive);
                }
                _ => directives.push(directive),
            }
        }
    }
    if !closed {
        directives.push("private");
    }
    let value = HeaderValue::from_str(&directives.join(", ")).unwrap_or(HeaderValue::from_static("private"));
    headers.insert(header::CACHE_CONTROL, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_shared_cache_may_keep_it() {
        for (before, after) in [
            (&[][..], "private"),
            (&["public, max-age=600"], "max-age=600, private"),
            (&["PUBLIC", "s-maxage=9, immutable"], "immutable, private"),
            (&["no-store"], "no-store"),
            (&["private=\"x-a\", max-age=1"], "max-age=1, private"),
        ] {
            let mut headers = HeaderMap::new();
            for line in before {
                headers.append(header::CACHE_CONTROL, HeaderValue::from_static(line));
            }
            headers.insert("cdn-cache-control", HeaderValue::from_static("max-age=9"));
            make_private(&mut headers);
            assert_eq!(headers.get(header::CACHE_CONTROL).unwrap(), after, "{before:?}");
            assert_eq!(headers.get_all(header::CACHE_CONTROL).iter().count(), 1);
            assert!(!headers.contains_key("cdn-cache-control"));
        }
    }
}
