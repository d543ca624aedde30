//! Whether a request that changes something was sent by our own pages, by the evidence that browsers give.
//!
//! A page can neither leave out nor forge `Sec-Fetch-Site` (W3C Fetch Metadata) and `Origin` (RFC 6454), so they need no
//! token in the form. Where the two disagree the worse one counts.

use http::header::ORIGIN;
use http::{HeaderMap, HeaderValue};

use crate::message::admit::Scheme;

/// What a request tells about the page that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// One of our own pages, or the person himself.
    SameOrigin,
    /// Nothing at all: not a browser, or a very old one.
    Absent,
    /// Another site, a sibling host, a sandboxed frame, or nonsense.
    CrossSite,
}

/// Weighs the evidence. `authority` and `scheme`: this host as the browser knows it.
///
/// `Origin` must name this very origin. Only where the browser itself says `same-origin` may the scheme differ: that is
/// how a login looks behind a TLS proxy which is not among `trusted_proxies`.
pub(super) fn evidence(headers: &HeaderMap, authority: &HeaderValue, scheme: Scheme) -> Evidence {
    let site = match only(headers, "sec-fetch-site") {
        Ok(site) => site,
        Err(Repeated) => return Evidence::CrossSite,
    };
    let browser_says_same = match site {
        None => None,
        Some(b"same-origin") => Some(true),
        // `none`: the person typed the address or reloaded; no page had a part in it.
        Some(b"none") => Some(false),
        Some(_) => return Evidence::CrossSite,
    };
    let origin = match only(headers, ORIGIN.as_str()) {
        Ok(Some(origin)) => origin,
        Ok(None) if browser_says_same.is_some() => return Evidence::SameOrigin,
        Ok(None) => return Evidence::Absent,
        Err(Repeated) => return Evidence::CrossSite,
    };
    let Some((origin_scheme, origin_authority)) = parse_origin(origin) else { return Evidence::CrossSite };
    let scheme_agrees = origin_scheme == scheme || browser_says_same == Some(true);
    // The authority is compared under the origin's own scheme, for that is the one whose default port it leaves out.
    let host_agrees = same_authority(origin_authority, authority.as_bytes(), origin_scheme);
    if scheme_agrees && host_agrees { Evidence::SameOrigin } else { Evidence::CrossSite }
}

/// More than one line of a header that may come once.
struct Repeated;

fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a [u8]>, Repeated> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next();
    if lines.next().is_some() { Err(Repeated) } else { Ok(first.map(HeaderValue::as_bytes)) }
}

/// `None` for `null`, other schemes, and anything with a path or user.
fn parse_origin(origin: &[u8]) -> Option<(Scheme, &[u8])> {
    let (scheme, authority) = if let Some(rest) = strip_prefix_ignoring_case(origin, b"https://") {
        (Scheme::Https, rest)
    } else {
        (Scheme::Http, strip_prefix_ignoring_case(origin, b"http://")?)
    };
    let plain =
        !authority.is_empty() && authority.iter().all(|byte| byte.is_ascii_graphic() && !b"/@?#\\,".contains(byte));
    plain.then_some((scheme, authority))
}

fn strip_prefix_ignoring_case<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn same_authority(one: &[u8], other: &[u8], scheme: Scheme) -> bool {
    let default_port: &[u8] = match scheme {
        Scheme::Http => b":80",
        Scheme::Https => b":443",
    };
    let bare = |authority: &[u8]| authority.strip_suffix(default_port).unwrap_or(authority).to_ascii_lowercase();
    bare(one) == bare(other)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weigh(lines: &[(&'static str, &'static str)], authority: &'static str, scheme: Scheme) -> Evidence {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        evidence(&headers, &HeaderValue::from_static(authority), scheme)
    }

    #[test]
    fn every_kind_of_sender_is_known() {
        use Evidence::{Absent, CrossSite, SameOrigin};
        const SITE: &str = "sec-fetch-site";
        for (lines, expected) in [
            (&[][..], Absent),
            (&[("origin", "https://app.test")], SameOrigin),
            (&[("origin", "HTTPS://APP.test")], SameOrigin),
            (&[("origin", "https://app.test:443")], SameOrigin),
            (&[(SITE, "same-origin")], SameOrigin),
            (&[(SITE, "none")], SameOrigin),
            (&[("origin", "https://app.test"), (SITE, "same-origin")], SameOrigin),
            (&[("origin", "http://app.test"), (SITE, "same-origin")], SameOrigin),
            (&[("origin", "http://app.test"), (SITE, "none")], CrossSite),
            (&[("origin", "http://app.test")], CrossSite),
            (&[("origin", "https://app.test:8443")], CrossSite),
            (&[("origin", "https://evil")], CrossSite),
            (&[("origin", "https://evil"), (SITE, "same-origin")], CrossSite),
            (&[("origin", "https://app.test"), (SITE, "cross-site")], CrossSite),
            (&[("origin", "https://app.test"), (SITE, "same-site")], CrossSite),
            (&[(SITE, "cross-site")], CrossSite),
            (&[(SITE, "same-site")], CrossSite),
            (&[(SITE, "")], CrossSite),
            (&[(SITE, "Same-Origin")], CrossSite),
            (&[(SITE, "same-origin"), (SITE, "cross-site")], CrossSite),
            (&[("origin", "null")], CrossSite),
            (&[("origin", "null"), (SITE, "same-origin")], CrossSite),
            (&[("origin", "")], CrossSite),
            (&[("origin", "https://")], CrossSite),
            (&[("origin", "https://app.test/")], CrossSite),
            (&[("origin", "https://app.test@evil")], CrossSite),
            (&[("origin", "https://app.test.evil")], CrossSite),
            (&[("origin", "https://evil.app.test")], CrossSite),
            (&[("origin", "app.test")], CrossSite),
            (&[("origin", "file://app.test")], CrossSite),
            (&[("origin", "https://app.test"), ("origin", "https://evil")], CrossSite),
        ] {
            assert_eq!(weigh(lines, "app.test", Scheme::Https), expected, "{lines:?}");
        }
    }

    #[test]
    fn ports_are_part_of_the_origin() {
        let weigh = |origin, authority, scheme| weigh(&[("origin", origin)], authority, scheme);
        assert_eq!(weigh("http://localhost:8080", "localhost:8080", Scheme::Http), Evidence::SameOrigin);
        assert_eq!(weigh("http://localhost:8081", "localhost:8080", Scheme::Http), Evidence::CrossSite);
        assert_eq!(weigh("http://[::1]:8080", "[::1]:8080", Scheme::Http), Evidence::SameOrigin);
        assert_eq!(weigh("http://app.test", "app.test:80", Scheme::Http), Evidence::SameOrigin);
        assert_eq!(weigh("http://app.test", "app.test:443", Scheme::Http), Evidence::CrossSite);
        assert_eq!(weigh("http://app.test:443", "app.test", Scheme::Http), Evidence::CrossSite);
    }

    proptest! {
        #[test]
        fn an_origin_that_is_not_ours_is_never_ours(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let ours = ["http://app.test", "http://app.test:80"].iter().any(|ours| value.as_bytes().eq_ignore_ascii_case(ours.as_bytes()));
                let headers = HeaderMap::from_iter([(ORIGIN, value)]);
                let verdict = evidence(&headers, &HeaderValue::from_static("app.test"), Scheme::Http);
                prop_assert_eq!(verdict == Evidence::SameOrigin, ours);
            }
        }
    }
}
