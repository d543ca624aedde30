//! The first look at a request head: what is malformed ends here.
//!
//! No forwarding header takes part in anything but `client` and `scheme`, and those only from a trusted proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use http::header::{ACCEPT, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use ipnet::IpNet;

use super::head::RawTarget;
use super::path::Readings;
use super::vouched::{self, Vouched};
use crate::vocabulary::method;

const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
/// Whoever sends one of these tells by `Sec-Fetch-Mode` what it wants, and not by `Accept`.
const SEC_FETCH: [HeaderName; 4] = [
    SEC_FETCH_MODE,
    HeaderName::from_static("sec-fetch-site"),
    HeaderName::from_static("sec-fetch-dest"),
    HeaderName::from_static("sec-fetch-user"),
];

/// What admission needs to know of the configuration and the listener.
#[derive(Clone, Debug)]
pub struct Edge {
    /// Whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// How the listener itself is reached.
    pub scheme: Scheme,
}

/// What a URL starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub(super) const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// The canonical form of a host name: lower case, no port, no trailing dot; IPv6 in brackets. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host(Arc<str>);

impl Host {
    /// For comparing with host patterns.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same, to be kept.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// Parses `HOST` or `HOST:PORT` (RFC 9110 section 7.2) and makes the canonical host. Names are ASCII (an
    /// international name in its `xn--` form); percent signs, user information and zone ids are refused.
    #[must_use]
    pub fn parse(authority: &str) -> Option<Self> {
        parse_authority(authority).map(|(host, _)| host)
    }
}

/// The canonical host and the port, where one was given.
fn parse_authority(authority: &str) -> Option<(Host, Option<u16>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        let port = if port.is_empty() { None } else { parse_port(port.strip_prefix(':')?)? };
        return Some((Host(format!("[{address}]").into()), port));
    }
    let (name, port) = match authority.split_once(':') {
        Some((name, port)) => (name, parse_port(port)?),
        None => (authority, None),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > 253 {
        return None;
    }
    // Every request pays for this: each byte is looked at once.
    let (mut label_length, mut has_upper) = (0, false);
    for byte in name.bytes() {
        match byte {
            b'.' if label_length == 0 => return None,
            b'.' => label_length = 0,
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => label_length += 1,
            b'A'..=b'Z' => {
                has_upper = true;
                label_length += 1;
            }
            _ => return None,
        }
        if label_length > 63 {
            return None;
        }
    }
    if label_length == 0 {
        return None;
    }
    let canonical = if has_upper { name.to_ascii_lowercase().into() } else { name.into() };
    Some((Host(canonical), port))
}

/// The port of a valid authority, where it names one.
pub(super) fn authority_port(authority: &str) -> Option<u16> {
    let (_, after) = authority.rsplit_once(':')?;
    // In `[::1]` the last colon belongs to the address.
    if after.ends_with(']') { None } else { after.parse().ok() }
}

/// The outer `None`: no port at all; an empty one counts as not given.
#[expect(clippy::option_option, reason = "refused, absent and given are three things")]
fn parse_port(port: &str) -> Option<Option<u16>> {
    match port.len() {
        0 => Some(None),
        1..=5 if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok().map(Some),
        _ => None,
    }
}

/// A request that may go on to the router.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each named")]
pub struct Admitted {
    /// For routing.
    pub host: Host,
    /// The one valid `Host` as it was sent (with its port).
    pub authority: HeaderValue,
    /// This host and port as the browser knows it, where a trusted proxy says something else than `Host`.
    pub vouched_authority: Option<HeaderValue>,
    /// Whether a trusted proxy has named the host.
    pub host_is_vouched: bool,
    /// The forwarding header of a trusted proxy that could not be understood, for a warning.
    pub doubt: Option<&'static str>,
    /// `Forwarded` came from a trusted proxy and contradicts nothing else that it says.
    pub forwarded_agrees: bool,
    /// What the browser used, as far as a trusted proxy says so.
    pub scheme: Scheme,
    /// The peer, or the right-most address that no trusted proxy vouches for as its own.
    pub client: IpAddr,
    /// Whether the peer is one of `trusted_proxies`. A unix socket counts as 127.0.0.1.
    pub peer_trusted: bool,
    /// All that a backend could take the path for.
    pub readings: Readings,
    /// How a refusal is best answered.
    pub intent: Intent,
    /// A complete WebSocket handshake (RFC 6455 section 4.1): GET, HTTP/1.1, `Upgrade: websocket`, `Connection: upgrade`,
    /// one key, version 13, no body.
    pub websocket: bool,
}

impl Admitted {
    /// This host and port as the browser knows it, as far as a trusted proxy says so. Only one visible ASCII value is
    /// let through.
    #[must_use]
    pub fn public_authority(&self) -> &str {
        self.vouched_authority.as_ref().unwrap_or(&self.authority).to_str().unwrap_or_default()
    }
}

/// Whether a person looks at the answer, or a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// A browser opens a page: GET or HEAD with `Sec-Fetch-Mode: navigate`, or, without `Sec-Fetch-*`, an `Accept` of
    /// `text/html` and no sign of a script.
    Navigation,
    /// A browser sends a person's form: POST, by the same signs.
    Form,
    /// Everything else.
    Program,
}

/// Why a request went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// 400: not exactly one valid `Host`, or an absolute-form target that contradicts it.
    Host,
    /// 400: neither origin-form nor an absolute form of this listener's scheme. `OPTIONS *` counts here too.
    Target,
    /// 400: a NUL hides in the path, or a control character stands in it.
    Path,
    /// 501: anything but one `chunked`.
    TransferEncoding,
    /// 405: CONNECT or TRACE.
    Method,
    /// 400: not one number below 2^63.
    ContentLength,
    /// 417: anything but `100-continue`.
    Expectation,
    /// 400: a header name that HTTP/2 lets through and HTTP/1 does not.
    Header,
}

impl Malformed {
    /// A stable reason code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Host => "bad_host",
            Self::Target => "bad_target",
            Self::Path => "bad_path",
            Self::TransferEncoding => "unsupported_transfer_encoding",
            Self::Method => "method_not_allowed",
            Self::ContentLength => "bad_content_length",
            Self::Expectation => "unsupported_expectation",
            Self::Header => "bad_header",
        }
    }
}

/// Looks at a request head. `peer` is the address at the other end of the socket (`None`: a unix socket).
pub fn admit(head: &Parts, peer: Option<IpAddr>, edge: &Edge) -> Result<Admitted, Malformed> {
    if !method::is_served(&head.method) {
        return Err(Malformed::Method);
    }
    let headers = &head.headers;
    check_names(head)?;
    let has_body = check_framing(headers)?;
    check_expectation(headers)?;
    let authority = only(headers, &HOST).ok_or(Malformed::Host)?;
    let (host, port) = authority.to_str().ok().and_then(parse_authority).ok_or(Malformed::Host)?;
    check_target(head, &host, port, edge.scheme)?;
    let raw = head.extensions.get::<RawTarget>();
    let readings = Readings::with_raw(head.uri.path(), raw.map(RawTarget::path)).ok_or(Malformed::Path)?;

    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.to_canonical());
    let peer_trusted = vouched::is_trusted(peer, &edge.trusted_proxies);
    let vouched = if peer_trusted {
        Vouched::read(headers, peer, edge, authority)
    } else {
        Vouched {
            client: peer,
            scheme: edge.scheme,
            authority: None,
            names_host: false,
            doubt: None,
            forwarded_agrees: false,
        }
    };
    Ok(Admitted {
        host,
        authority: authority.clone(),
        vouched_authority: vouched.authority,
        host_is_vouched: vouched.names_host,
        doubt: vouched.doubt,
        forwarded_agrees: vouched.forwarded_agrees,
        scheme: vouched.scheme,
        client: vouched.client,
        peer_trusted,
        readings,
        intent: intent_of(head),
        websocket: !has_body && is_websocket(head),
    })
}

/// Whether this is what HAProxy's `option httpchk` asks by default, `OPTIONS / HTTP/1.0` without `Host`, and a trusted
/// proxy asks it. `peer`: see [`admit`].
#[must_use]
pub fn is_check_of_proxy(head: &Parts, peer: Option<IpAddr>, edge: &Edge) -> bool {
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.to_canonical());
    head.version == Version::HTTP_10
        && head.method == Method::OPTIONS
        && head.uri == "/"
        && [HOST, CONTENT_LENGTH, TRANSFER_ENCODING].iter().all(|name| !head.headers.contains_key(name))
        && vouched::is_trusted(peer, &edge.trusted_proxies)
}

/// The value of a header that came exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// hyper's HTTP/1 parser takes tokens only; its HTTP/2 one also takes `"`, which would go out raw.
fn check_names(head: &Parts) -> Result<(), Malformed> {
    if head.version >= Version::HTTP_2 && head.headers.keys().any(|name| name.as_str().contains('"')) {
        return Err(Malformed::Header);
    }
    Ok(())
}

/// Whether a body is announced. hyper takes `Content-Length` away where `Transfer-Encoding` is present.
fn check_framing(headers: &HeaderMap) -> Result<bool, Malformed> {
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    if chunked {
        let coding = only(headers, &TRANSFER_ENCODING).ok_or(Malformed::TransferEncoding)?;
        if !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(Malformed::TransferEncoding);
        }
    }
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = digits.and_then(|text| text.parse::<i64>().ok()).ok_or(Malformed::ContentLength)?;
        if length.is_some_and(|earlier| earlier != number) {
            return Err(Malformed::ContentLength);
        }
        length = Some(number);
    }
    Ok(chunked || length.is_some_and(|number| number > 0))
}

fn check_expectation(headers: &HeaderMap) -> Result<(), Malformed> {
    if headers.get_all(EXPECT).iter().all(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"100-continue")) {
        Ok(())
    } else {
        Err(Malformed::Expectation)
    }
}

/// Origin-form, or an absolute form that agrees with `Host` (RFC 9112 section 3.2).
fn check_target(head: &Parts, host: &Host, port: Option<u16>, scheme: Scheme) -> Result<(), Malformed> {
    let path = head.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    if !path.starts_with('/') {
        return Err(Malformed::Target);
    }
    let Some(authority) = head.uri.authority() else {
        return if head.uri.scheme().is_none() { Ok(()) } else { Err(Malformed::Target) };
    };
    if head.uri.scheme_str().is_none_or(|given| !given.eq_ignore_ascii_case(scheme.as_str())) {
        return Err(Malformed::Target);
    }
    let (target_host, target_port) = parse_authority(authority.as_str()).ok_or(Malformed::Target)?;
    let or_default = |port: Option<u16>| port.unwrap_or(scheme.default_port());
    if target_host == *host && or_default(target_port) == or_default(port) { Ok(()) } else { Err(Malformed::Host) }
}

fn intent_of(head: &Parts) -> Intent {
    let headers = &head.headers;
    let intent = if head.method == Method::GET || head.method == Method::HEAD {
        Intent::Navigation
    } else if head.method == Method::POST {
        Intent::Form
    } else {
        return Intent::Program;
    };
    let is_person = if let Some(mode) = only(headers, &SEC_FETCH_MODE) {
        mode.as_bytes() == b"navigate"
    } else {
        accepts_html(headers) && !SEC_FETCH.iter().any(|name| headers.contains_key(name)) && !is_sent_by_script(headers)
    };
    if is_person { intent } else { Intent::Program }
}

/// Scripts that ask for pieces of pages say `text/html` too; these are the signs by which they are known.
fn is_sent_by_script(headers: &HeaderMap) -> bool {
    let named = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"XMLHttpRequest");
    headers.get_all("x-requested-with").iter().any(named)
        || headers.contains_key("hx-request")
        || headers.contains_key("turbo-frame")
}

fn accepts_html(headers: &HeaderMap) -> bool {
    let is_html = |range: &[u8]| {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let refused = |part: &[u8]| matches!(part, [b'q' | b'Q', b'=', b'0', rest @ ..] if rest.iter().all(|byte| matches!(byte, b'.' | b'0')));
        parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/html")) && !parts.any(refused)
    };
    headers.get_all(ACCEPT).iter().any(|line| line.as_bytes().split(|byte| *byte == b',').any(is_html))
}

fn is_websocket(head: &Parts) -> bool {
    let headers = &head.headers;
    let Some(upgrade) = only(headers, &UPGRADE) else { return false };
    let has_upgrade_token = || {
        let mut tokens =
            headers.get_all(CONNECTION).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    };
    let value_of = |name| only(headers, &HeaderName::from_static(name)).map(|value| value.as_bytes().trim_ascii());
    let key_is_valid = |key: &[u8]| {
        let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        matches!(key, [digits @ .., b'=', b'='] if digits.len() == 22 && digits.iter().all(base64))
    };
    head.method == Method::GET
        && head.version == Version::HTTP_11
        && upgrade.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket")
        && has_upgrade_token()
        && value_of("sec-websocket-key").is_some_and(key_is_valid)
        && value_of("sec-websocket-version") == Some(b"13")
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn edge() -> Edge {
        Edge { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], scheme: Scheme::Http }
    }

    fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            builder = builder.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn get(target: &str, headers: &[(&str, &str)]) -> Result<Admitted, Malformed> {
        admit(&head("GET", target, headers), "10.0.0.1".parse().ok(), &edge())
    }

    #[test]
    fn hosts_have_one_form() {
        for (given, canonical) in [
            ("App.Example.COM", Some("app.example.com")),
            ("app.example.com.", Some("app.example.com")),
            ("app.example.com:443", Some("app.example.com")),
            ("a:", Some("a")),
            ("[::0:1]:80", Some("[::1]")),
            ("127.0.0.1:8080", Some("127.0.0.1")),
            ("xn--p1ai", Some("xn--p1ai")),
            ("my_app", Some("my_app")),
            ("", None),
            (".", None),
            ("a..b", None),
            ("a, b", None),
            ("a@b:80", None),
            ("a b", None),
            ("a:99999999", None),
            ("a:99999", None),
            ("a:+5", None),
            ("a:b", None),
            ("a%2eb", None),
            ("é.test", None),
            ("[fe80::1%25eth0]", None),
            ("[::1", None),
            ("[::1]x", None),
            ("::1", None),
            ("a/b", None),
            ("a#b", None),
            ("a.b..", None),
        ] {
            assert_eq!(Host::parse(given).as_ref().map(Host::as_str), canonical, "{given}");
        }
    }

    #[test]
    fn exactly_one_host() {
        assert_eq!(get("/", &[]).unwrap_err(), Malformed::Host);
        assert_eq!(get("/", &[("host", "a"), ("host", "a")]).unwrap_err(), Malformed::Host);
        assert_eq!(get("/", &[("host", "a b/../c?d")]).unwrap_err(), Malformed::Host);
        let admitted = get("/", &[("host", "A:80")]).unwrap();
        assert_eq!((admitted.host.as_str(), admitted.authority.as_bytes()), ("a", &b"A:80"[..]));
    }

    #[test]
    fn targets_agree_with_the_host() {
        let at = |target| get(target, &[("host", "gw.test")]).map(|_| ());
        assert_eq!(at("http://GW.test:80/x"), Ok(()));
        assert_eq!(at("http://other/admin"), Err(Malformed::Host));
        assert_eq!(at("http://gw.test:81/"), Err(Malformed::Host));
        for target in
            ["https://gw.test/", "ftp://gw.test/", "http://u:p@gw.test/", "gw.test:80", "*", "http://gw.test?x"]
        {
            assert_eq!(at(target), Err(Malformed::Target), "{target}");
        }
        assert_eq!(at("/a%00"), Err(Malformed::Path));
    }

    #[test]
    fn any_method_is_served_but_connect_and_trace() {
        for (method, served) in [
            ("GET", true),
            ("PROPFIND", true),
            ("LIST", true),
            ("M-SEARCH", true),
            ("get", true),
            ("-bl~`", true),
            ("TRACE", false),
            ("trace", false),
        ] {
            let admitted = admit(&head(method, "/", &[("host", "a")]), None, &edge());
            assert_eq!(admitted.is_ok(), served, "{method}");
        }
    }

    #[test]
    fn framing_is_plain() {
        for value in ["gzip, chunked", "identity", "chunked, chunked", ",chunked", "xchunked", "", "\"chunked\""] {
            let refused = get("/", &[("host", "a"), ("transfer-encoding", value)]).unwrap_err();
            assert_eq!(refused, Malformed::TransferEncoding, "{value}");
        }
        assert!(get("/", &[("host", "a"), ("transfer-encoding", "Chunked")]).is_ok());
        let twice = [("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(get("/", &twice).unwrap_err(), Malformed::TransferEncoding);
        for value in ["9223372036854775808", "18446744073709551613", "+5", "-5", "", "5,5"] {
            let refused = get("/", &[("host", "a"), ("content-length", value)]).unwrap_err();
            assert_eq!(refused, Malformed::ContentLength, "{value}");
        }
        assert_eq!(get("/", &[("host", "a"), ("expect", "banana")]).unwrap_err(), Malformed::Expectation);
        assert!(get("/", &[("host", "a"), ("expect", "100-Continue")]).is_ok());
    }

    #[test]
    fn a_check_of_a_proxy_is_that_very_request_from_a_trusted_peer() {
        let (trusted, other) = (Some(IpAddr::from([10, 0, 0, 1])), Some(IpAddr::from([192, 0, 2, 1])));
        let is_check = |method: &str, target: &str, version: Version, headers: &[(&str, &str)], peer| {
            let mut head = head(method, target, headers);
            head.version = version;
            is_check_of_proxy(&head, peer, &edge())
        };
        assert!(is_check("OPTIONS", "/", Version::HTTP_10, &[], trusted));
        assert!(is_check("OPTIONS", "/", Version::HTTP_10, &[("connection", "close")], trusted));
        assert!(!is_check("OPTIONS", "/", Version::HTTP_10, &[], other));
        // A unix socket counts as 127.0.0.1, which is not trusted here.
        assert!(!is_check("OPTIONS", "/", Version::HTTP_10, &[], None));
        assert!(!is_check("OPTIONS", "/", Version::HTTP_11, &[], trusted));
        assert!(!is_check("GET", "/", Version::HTTP_10, &[], trusted));
        for target in ["/a", "/?a", "http://a/"] {
            assert!(!is_check("OPTIONS", target, Version::HTTP_10, &[], trusted), "{target}");
        }
        for name in ["host", "content-length", "transfer-encoding"] {
            assert!(!is_check("OPTIONS", "/", Version::HTTP_10, &[(name, "1")], trusted), "{name}");
        }
    }

    #[test]
    fn the_client_is_the_first_that_nobody_trusted_vouches_for() {
        for (peer, lines, client) in [
            (Some("10.0.0.1"), &["1.1.1.1, 2.2.2.2"][..], "2.2.2.2"),
            (Some("10.0.0.1"), &["1.1.1.1", "2.2.2.2, 10.0.0.9"], "2.2.2.2"),
            (Some("10.0.0.1"), &["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
            (Some("::ffff:10.0.0.1"), &["::ffff:1.2.3.4"], "1.2.3.4"),
            (Some("10.0.0.1"), &["[2001:db8::1]:443"], "2001:db8::1"),
            (Some("10.0.0.1"), &["1.1.1.1:5"], "1.1.1.1"),
            (Some("10.0.0.1"), &["1.1.1.1, unknown"], "10.0.0.1"),
            (Some("10.0.0.1"), &[""], "10.0.0.1"),
            (Some("10.0.0.1"), &[], "10.0.0.1"),
            (Some("9.9.9.9"), &["1.1.1.1"], "9.9.9.9"),
            (None, &["1.1.1.1"], "127.0.0.1"),
        ] {
            let mut headers = vec![("host", "a")];
            headers.extend(lines.iter().map(|line| ("x-forwarded-for", *line)));
            let peer = peer.map(|peer| peer.parse().unwrap());
            let admitted = admit(&head("GET", "/", &headers), peer, &edge()).unwrap();
            assert_eq!(admitted.client, client.parse::<IpAddr>().unwrap(), "{peer:?} {lines:?}");
        }
    }

    #[test]
    fn only_two_schemes_and_only_from_a_trusted_proxy() {
        for (peer, value, scheme) in [
            ("10.0.0.1", "https", Scheme::Https),
            ("10.0.0.1", "HTTPS", Scheme::Https),
            // It may have been meant to say `https`.
            ("10.0.0.1", "evil", Scheme::Https),
            ("9.9.9.9", "https", Scheme::Http),
        ] {
            let request = head("GET", "/", &[("host", "a"), ("x-forwarded-proto", value)]);
            assert_eq!(admit(&request, peer.parse().ok(), &edge()).unwrap().scheme, scheme, "{peer} {value}");
        }
    }

    #[test]
    fn navigations_are_told_from_programs() {
        for (method, headers, intent) in [
            ("GET", &[("sec-fetch-mode", "navigate")][..], Intent::Navigation),
            ("POST", &[("sec-fetch-mode", "navigate")], Intent::Form),
            ("POST", &[("sec-fetch-mode", "cors"), ("accept", "text/html")], Intent::Program),
            ("POST", &[("accept", "text/html")], Intent::Form),
            ("POST", &[("accept", "text/html"), ("x-requested-with", "XMLHttpRequest")], Intent::Program),
            ("POST", &[("accept", "*/*")], Intent::Program),
            ("PUT", &[("sec-fetch-mode", "navigate")], Intent::Program),
            ("GET", &[("accept", "text/html"), ("x-requested-with", "xmlhttprequest")], Intent::Program),
            ("GET", &[("accept", "text/html"), ("x-requested-with", "org.example.app")], Intent::Navigation),
            ("GET", &[("accept", "text/html"), ("hx-request", "true")], Intent::Program),
            ("GET", &[("accept", "text/html"), ("turbo-frame", "list")], Intent::Program),
            ("GET", &[("sec-fetch-mode", "cors"), ("accept", "text/html")], Intent::Program),
            ("GET", &[("sec-fetch-site", "none"), ("accept", "text/html")], Intent::Program),
            ("HEAD", &[("accept", "a/b, Text/HTML;q=0.9")], Intent::Navigation),
            ("GET", &[("accept", "text/html;q=0.0")], Intent::Program),
            ("GET", &[("accept", "*/*")], Intent::Program),
            ("GET", &[], Intent::Program),
        ] {
            let mut all = vec![("host", "a")];
            all.extend_from_slice(headers);
            assert_eq!(admit(&head(method, "/", &all), None, &edge()).unwrap().intent, intent, "{method} {headers:?}");
        }
    }

    #[test]
    fn a_websocket_handshake_is_whole() {
        let whole = [
            ("host", "a"),
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
        ];
        assert!(get("/", &whole).unwrap().websocket);
        for missing in 1..whole.len() {
            let mut part = whole.to_vec();
            part.remove(missing);
            assert!(!get("/", &part).unwrap().websocket, "{missing}");
        }
        let mut with_body = whole.to_vec();
        with_body.push(("content-length", "5"));
        assert!(!get("/", &with_body).unwrap().websocket);
    }

    proptest! {
        #[test]
        fn arbitrary_heads_do_not_panic(
            target in "(/|http://|\\*|a:)[ -~]{0,30}",
            values in prop::collection::vec((0_usize..9, prop::collection::vec(any::<u8>(), 0..30)), 0..8),
        ) {
            let names = ["host", "transfer-encoding", "content-length", "expect", "x-forwarded-for", "x-forwarded-proto",
                "accept", "upgrade", "connection"];
            let Ok(uri) = target.parse::<http::Uri>() else { return Ok(()) };
            let mut request = Request::new(());
            *request.uri_mut() = uri;
            request.headers_mut().insert(HOST, HeaderValue::from_static("a"));
            for (name, value) in values {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    request.headers_mut().append(names[name], value);
                }
            }
            let _ = admit(&request.into_parts().0, "10.0.0.1".parse().ok(), &edge());
        }
    }
}
