//! Keeping an answer that carries a cookie out of shared caches (RFC 9111 section 7.3).

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Whether some cache on the way takes this header's word before that of `Cache-Control`: RFC 9213's targeted fields
/// (`CDN-Cache-Control`) and their kin, of which every network has one of its own. By pattern, for a list is never whole.
fn is_for_shared_caches(name: &HeaderName) -> bool {
    let name = name.as_str();
    // `Expires` is all that an old cache reads; it has no word for `private`.
    name == "expires"
        || name.ends_with("-expires")
        || (name != "cache-control" && name.contains("cache-control"))
        || ["surrogate", "edge", "cdn"].iter().any(|network| name.contains(network)) && name.ends_with("control")
        || (name.contains("cache") && name.ends_with("-ttl"))
}

/// Marks an answer private. A browser's own cache keeps whatever life `Cache-Control` gave it.
pub fn make_private(headers: &mut HeaderMap) {
    let shared: Vec<HeaderName> = headers.keys().filter(|name| is_for_shared_caches(name)).cloned().collect();
    for name in shared {
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
    fn no_network_is_told_otherwise_whatever_its_header_is_called() {
        let mut headers = HeaderMap::new();
        for name in [
            "CDN-Cache-Control",
            "Cloudflare-CDN-Cache-Control",
            "Vercel-CDN-Cache-Control",
            "Netlify-CDN-Cache-Control",
            "Fastly-Cache-Control",
            "Some-New-Network-Cache-Control",
            "X-LiteSpeed-Cache-Control",
            "Surrogate-Control",
            "X-Surrogate-Control",
            "Edge-Control",
            "Akamai-Edge-Control",
            "X-Accel-Expires",
            "Expires",
            "X-Cache-TTL",
        ] {
            headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("max-age=9"));
        }
        for name in ["cache-status", "x-cache", "vary", "etag", "access-control-allow-origin", "x-dns-prefetch-control"]
        {
            headers.insert(name, HeaderValue::from_static("x"));
        }
        make_private(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        let expected = [
            "access-control-allow-origin",
            "cache-control",
            "cache-status",
            "etag",
            "vary",
            "x-cache",
            "x-dns-prefetch-control",
        ];
        assert_eq!(left, expected);
    }

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
