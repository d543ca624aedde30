use http::HeaderValue;
use proptest::prelude::*;

use super::super::admit::{Edge, Scheme, admit};
use super::Sender::{AnotherSite, ThisSite, Unknown};
use super::*;

const SITE: &str = "sec-fetch-site";
const ORIGIN: &str = "origin";

fn listed() -> Vec<String> {
    ["listed.test", "port.test:8443", "*.wild.test"].map(str::to_owned).to_vec()
}

/// The headers of a request to `host`, and what admission makes of them. The peer is a trusted proxy.
fn asked(host: &str, lines: &[(&'static str, &[u8])], scheme: Scheme) -> (HeaderMap, Admitted) {
    let request = http::Request::builder().uri("/").header("host", host).body(()).unwrap();
    let edge = Edge { trusted_proxies: vec!["10.0.0.1/32".parse().unwrap()], scheme };
    let mut parts = request.into_parts().0;
    for (name, value) in lines {
        parts.headers.append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    let admitted = admit(&parts, "10.0.0.1".parse().ok(), &edge).unwrap();
    (parts.headers, admitted)
}

fn judged(host: &str, lines: &[(&'static str, &str)], scheme: Scheme) -> Sender {
    let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    let (headers, admitted) = asked(host, &lines, scheme);
    sender(&headers, &admitted, &listed())
}

#[test]
fn fetch_metadata_decides_where_it_came() {
    for (lines, expected) in [
        (&[][..], Unknown),
        // Whatever `Origin` and `Host` became on the way.
        (&[(SITE, "same-origin")], ThisSite),
        (&[(SITE, "none")], ThisSite),
        (&[(SITE, "same-origin"), (ORIGIN, "https://app.test:8443")], ThisSite),
        (&[(SITE, "same-origin"), (ORIGIN, "http://app.test")], ThisSite),
        (&[(SITE, "same-origin"), (ORIGIN, "https://other.test")], ThisSite),
        (&[(SITE, "same-origin"), (ORIGIN, "null")], ThisSite),
        (&[(SITE, "none"), (ORIGIN, "http://app.test")], ThisSite),
        (&[(SITE, "cross-site")], AnotherSite),
        (&[(SITE, "cross-site"), (ORIGIN, "https://app.test")], AnotherSite),
        (&[(SITE, "cross-site"), (ORIGIN, "https://listed.test")], AnotherSite),
        (&[(SITE, "same-site")], AnotherSite),
        (&[(SITE, "same-site"), (ORIGIN, "https://app.test")], AnotherSite),
        (&[(SITE, "same-site"), (ORIGIN, "https://listed.test")], ThisSite),
        (&[(SITE, "same-site"), (ORIGIN, "https://unlisted.test")], AnotherSite),
        (&[(SITE, "")], AnotherSite),
        (&[(SITE, "Same-Origin")], AnotherSite),
        (&[(SITE, "same-origin"), (SITE, "same-origin")], AnotherSite),
        (&[(SITE, "same-origin"), (SITE, "cross-site")], AnotherSite),
        (&[(SITE, "same-origin"), (ORIGIN, "https://app.test"), (ORIGIN, "https://evil.test")], AnotherSite),
    ] {
        assert_eq!(judged("app.test", lines, Scheme::Https), expected, "{lines:?}");
    }
}

#[test]
fn an_origin_is_this_host_or_a_listed_one() {
    for origin in [
        "http://app.test",
        "https://app.test",
        "HTTP://APP.test",
        "http://app.test.",
        "http://app.test:80",
        "https://listed.test",
        "https://listed.test:443",
        "https://port.test:8443",
        "https://one.wild.test",
    ] {
        assert_eq!(judged("app.test", &[(ORIGIN, origin)], Scheme::Http), ThisSite, "{origin}");
    }
    for (host, origin) in [
        ("[::1]:8080", "http://[::1]:8080"),
        ("localhost:8080", "http://localhost:8080"),
        ("app.test:80", "http://app.test"),
    ] {
        assert_eq!(judged(host, &[(ORIGIN, origin)], Scheme::Http), ThisSite, "{host} {origin}");
    }
}

#[test]
fn no_other_origin_is_and_neither_are_two() {
    for origin in [
        "",
        "null",
        "app.test",
        "//app.test",
        "ftp://app.test",
        "file://app.test",
        "http://",
        "http://app.test/",
        "http://app.test@evil.test",
        "http://evil.test?app.test",
        "http://evil.test#app.test",
        "http://evil.test\\app.test",
        "http://app.test:8080",
        "http://app.test:443",
        "http://app.test.evil.test",
        "http://xapp.test",
        "http://sub.app.test",
        "https://sub.listed.test",
        "https://listed.test:8443",
        "https://port.test",
        "https://wild.test",
        "https://one.two.wild.test",
        "https://.wild.test",
        "http://app.test, http://app.test",
        "http://\u{e9}.test",
    ] {
        assert_eq!(judged("app.test", &[(ORIGIN, origin)], Scheme::Http), AnotherSite, "{origin}");
    }
    // The first of two is ours, or the second, or both.
    for (one, two) in [
        ("http://app.test", "http://evil.test"),
        ("http://evil.test", "http://app.test"),
        ("http://app.test", "http://app.test"),
    ] {
        assert_eq!(judged("app.test", &[(ORIGIN, one), (ORIGIN, two)], Scheme::Http), AnotherSite, "{one} {two}");
    }
}

#[test]
fn a_page_that_came_in_the_clear_is_not_this_site_where_tls_is_known() {
    for (scheme, origin, expected) in [
        (Scheme::Https, "http://app.test", AnotherSite),
        (Scheme::Https, "http://app.test:443", AnotherSite),
        (Scheme::Https, "https://app.test", ThisSite),
        // Nobody has told of the TLS in front of us.
        (Scheme::Http, "https://app.test", ThisSite),
        (Scheme::Http, "https://app.test:8443", AnotherSite),
    ] {
        assert_eq!(judged("app.test", &[(ORIGIN, origin)], scheme), expected, "{scheme:?} {origin}");
    }
}

#[test]
fn this_host_is_what_a_trusted_proxy_says() {
    const HTTPS: (&str, &str) = ("x-forwarded-proto", "https");
    for (lines, origin, expected) in [
        (&[HTTPS, ("x-forwarded-host", "app.test:8443")][..], "https://app.test:8443", ThisSite),
        (&[HTTPS, ("x-forwarded-host", "app.test"), ("x-forwarded-port", "8443")], "https://app.test:8443", ThisSite),
        (&[HTTPS, ("x-forwarded-host", "app.test")], "https://app.test", ThisSite),
        (&[HTTPS, ("x-forwarded-host", "app.test")], "https://inner.test:8080", AnotherSite),
        (&[HTTPS, ("x-forwarded-host", "app.test")], "http://app.test", AnotherSite),
        (&[("forwarded", "for=1.1.1.1;proto=https;host=\"app.test:8443\"")], "https://app.test:8443", ThisSite),
        (&[HTTPS], "https://inner.test:8080", ThisSite),
    ] {
        let mut lines = lines.to_vec();
        lines.push((ORIGIN, origin));
        assert_eq!(judged("inner.test:8080", &lines, Scheme::Http), expected, "{lines:?}");
    }
}

#[test]
fn only_a_handshake_that_rides_on_the_cookie_is_judged() {
    const EVIL: (&str, &str) = (ORIGIN, "http://evil.test");
    const COOKIE: (&str, &str) = ("cookie", "theme=dark; access_token=x");
    for (lines, may) in [
        (&[EVIL][..], true),
        (&[EVIL, ("cookie", "theme=dark")], true),
        (&[EVIL, COOKIE], false),
        (&[EVIL, ("cookie", "access_token=")], false),
        (&[EVIL, COOKIE, ("authorization", "Bearer x")], true),
        // A browser sends these by itself.
        (&[EVIL, COOKIE, ("authorization", "Basic x")], false),
        (&[EVIL, COOKIE, ("authorization", "negotiate x")], false),
        (&[EVIL, COOKIE, ("authorization", "")], false),
        (&[(SITE, "cross-site"), COOKIE], false),
        (&[(SITE, "same-origin"), EVIL, COOKIE], true),
        (&[COOKIE], true),
    ] {
        let bytes: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let (headers, admitted) = asked("app.test", &bytes, Scheme::Http);
        assert_eq!(may_connect(&headers, &admitted, &listed(), "access_token"), may, "{lines:?}");
    }
}

#[test]
fn what_met_names_both_sides() {
    let (headers, admitted) = asked("app.test", &[(ORIGIN, b"https://app.test:8443")], Scheme::Http);
    let met = what_met(&headers, &admitted);
    assert_eq!(met, "Origin https://app.test:8443, Sec-Fetch-Site absent, this host http://app.test");
}

proptest! {
    #[test]
    fn an_origin_that_is_not_ours_is_never_ours(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        if HeaderValue::from_bytes(&bytes).is_ok() {
            let ours = ["http://app.test", "http://app.test:80", "https://app.test", "https://app.test:443"];
            let is_ours = ours.iter().any(|ours| bytes.eq_ignore_ascii_case(ours.as_bytes()));
            let (headers, admitted) = asked("app.test", &[(ORIGIN, &bytes)], Scheme::Http);
            prop_assert_eq!(sender(&headers, &admitted, &[]) == ThisSite, is_ours);
        }
    }
}
