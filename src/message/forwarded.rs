//! `X-Forwarded-*`, `X-Real-IP` and `X-Request-Id`: extended when a trusted proxy sent them, replaced otherwise.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::admit::{Admitted, Scheme, authority_port};
use super::vouched;
use crate::address::Address;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is taken over from a proxy, in bytes.
const LONGEST_REQUEST_ID: usize = 128;

/// The request's id: the trusted proxy's, when it is sane (one, visible ASCII, at most 128 bytes), else the fresh one.
/// Visible ASCII in either case.
#[must_use]
pub fn request_id(headers: &HeaderMap, peer_trusted: bool, fresh: impl FnOnce() -> HeaderValue) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        (1..=LONGEST_REQUEST_ID).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    if !peer_trusted {
        return fresh();
    }
    let mut given = headers.get_all(REQUEST_ID).iter();
    let first = given.next().filter(|_| given.next().is_none()).filter(sane);
    first.cloned().unwrap_or_else(fresh)
}

/// The forwarding headers of one request on its way to the upstream.
pub struct Way<'a> {
    admitted: &'a Admitted,
    peer: IpAddr,
    request_id: &'a HeaderValue,
    /// Further words for what is said anyway ([`SAID_TOO`]) that a trusted proxy sent, by their bits: the backend may read
    /// any of them, so each goes on and says the same.
    said_too: Cell<u8>,
    /// Cut from the front of the path.
    prefix: &'a str,
    disbelieved: Cell<bool>,
}

/// Other headers for the scheme and the port: as they are compared, as they are written, and what they say.
const SAID_TOO: [(&str, &str, Word); 6] = [
    ("x-forwarded-port", "X-Forwarded-Port", Word::Port),
    ("x-forwarded-scheme", "X-Forwarded-Scheme", Word::Scheme),
    ("x-forwarded-ssl", "X-Forwarded-Ssl", Word::OnOff),
    ("x-scheme", "X-Scheme", Word::Scheme),
    ("x-url-scheme", "X-Url-Scheme", Word::Scheme),
    ("front-end-https", "Front-End-Https", Word::OnOff),
];

#[derive(Clone, Copy)]
enum Word {
    Port,
    Scheme,
    OnOff,
}

impl<'a> Way<'a> {
    /// `peer`: the socket's other end. `prefix`: what is cut from the front of the path; `""`: nothing.
    #[must_use]
    pub fn new(admitted: &'a Admitted, peer: Option<IpAddr>, request_id: &'a HeaderValue, prefix: &'a str) -> Self {
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.to_canonical());
        Self { admitted, peer, request_id, prefix, said_too: Cell::new(0), disbelieved: Cell::new(false) }
    }

    /// Whether [`Way::each`] says what takes the place of the header of this name that came, if anything does. From an
    /// untrusted peer that is everything about the way, whatever it says. To be asked of every header that goes on.
    #[must_use]
    pub fn replaces(&self, name: &HeaderName) -> bool {
        if !covers(name) {
            return false;
        }
        if !self.admitted.peer_trusted {
            self.disbelieved.set(self.disbelieved.get() || tells_of_another(name));
            return true;
        }
        let name = name.as_str();
        if let Some(place) = SAID_TOO.iter().position(|(said_too, ..)| *said_too == name) {
            self.said_too.set(self.said_too.get() | 1 << place);
            return true;
        }
        // A trusted proxy may say more about the way than we do.
        name.strip_prefix("x-forwarded-").is_none_or(|about| {
            matches!(about, "for" | "proto" | "host") || (about == "prefix" && !self.prefix.is_empty())
        })
    }

    /// Whether a forwarding header came from a peer that is not believed, of those that [`Way::replaces`] was asked about.
    #[must_use]
    pub fn disbelieved(&self) -> bool {
        self.disbelieved.get()
    }

    /// Hands over the headers that describe the way, their names as they are to be written and their values in pieces.
    /// `came`: the request's headers, of which those that `goes_on` denies are not there any more. No two of them
    /// contradict each other.
    pub fn each(
        &self,
        came: &HeaderMap,
        goes_on: impl Fn(&HeaderName) -> bool,
        mut hand_over: impl FnMut(&'static str, &[&[u8]]),
    ) {
        let Admitted { peer_trusted, scheme, client, .. } = self.admitted;
        let peer = Address::of(self.peer);
        if *peer_trusted {
            let earlier = |name: &HeaderName| if goes_on(name) { joined(came, name) } else { Vec::new() };
            let had_forwarded = self.admitted.forwarded_agrees && goes_on(&FORWARDED);
            let before = if had_forwarded && !came.contains_key(FOR) { vouched::nodes(came) } else { earlier(&FOR) };
            hand_over("X-Forwarded-For", &[&before, peer.text()]);
            if had_forwarded {
                let (before, after): (&[u8], &[u8]) =
                    if self.peer.is_ipv6() { (b"for=\"[", b"]\"") } else { (b"for=", b"") };
                hand_over("Forwarded", &[&earlier(&FORWARDED), before, peer.text(), after]);
            }
            self.each_said_too(&mut hand_over);
        } else {
            hand_over("X-Forwarded-For", &[peer.text()]);
        }
        if !self.prefix.is_empty() {
            // What a proxy in front has cut comes before what is cut here.
            let earlier = if *peer_trusted && goes_on(&PREFIX) { only_path(came) } else { b"" };
            hand_over("X-Forwarded-Prefix", &[earlier, self.prefix.as_bytes()]);
        }
        hand_over("X-Forwarded-Host", &[self.admitted.public_authority().as_bytes()]);
        hand_over("X-Forwarded-Proto", &[scheme.as_str().as_bytes()]);
        if *client == self.peer {
            hand_over("X-Real-IP", &[peer.text()]);
        } else {
            hand_over("X-Real-IP", &[Address::of(*client).text()]);
        }
        hand_over("X-Request-Id", &[self.request_id.as_bytes()]);
    }

    fn each_said_too(&self, mut hand_over: impl FnMut(&'static str, &[&[u8]])) {
        if self.said_too.get() == 0 {
            return;
        }
        let scheme = self.admitted.scheme;
        for (place, (_, name, word)) in SAID_TOO.iter().enumerate() {
            if self.said_too.get() & 1 << place == 0 {
                continue;
            }
            match word {
                Word::Port => {
                    let port = authority_port(self.admitted.public_authority()).unwrap_or(scheme.default_port());
                    hand_over(name, &[itoa::Buffer::new().format(port).as_bytes()]);
                }
                Word::Scheme => hand_over(name, &[scheme.as_str().as_bytes()]),
                Word::OnOff => hand_over(name, &[if scheme == Scheme::Https { b"on" } else { b"off" }]),
            }
        }
    }
}

/// Whether a header says something about the way that only a proxy can know; every client may name its request.
fn tells_of_another(name: &HeaderName) -> bool {
    matches!(name.as_str(), "forwarded" | "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" | "x-real-ip")
}

/// Whether one of those came, from a peer that is not believed.
#[must_use]
pub fn comes_disbelieved(headers: &HeaderMap, admitted: &Admitted) -> bool {
    !admitted.peer_trusted && headers.keys().any(tells_of_another)
}

/// Whether a field is one of those that are set or judged here; none of them has a place among trailers.
#[must_use]
pub fn covers(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("x-forwarded-")
        || matches!(name, "forwarded" | "x-real-ip" | "x-request-id" | "x-scheme" | "x-url-scheme" | "front-end-https")
}

/// One `X-Forwarded-Prefix` that is a path, less its last slash.
fn only_path(came: &HeaderMap) -> &[u8] {
    let mut lines = came.get_all(PREFIX).iter();
    let first = lines.next().map(HeaderValue::as_bytes).filter(|_| lines.next().is_none()).unwrap_or_default();
    let is_path = first.starts_with(b"/") && !first.starts_with(b"//") && first.iter().all(u8::is_ascii_graphic);
    if is_path { first.strip_suffix(b"/").unwrap_or(first) } else { b"" }
}

/// What the proxies before have said, with a comma behind each.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let mut value = Vec::new();
    for line in headers.get_all(name) {
        let line = line.as_bytes().trim_ascii();
        if !line.is_empty() {
            value.extend_from_slice(line);
            value.extend_from_slice(b", ");
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::super::admit::{Edge, Scheme, admit};
    use super::*;

    fn after(peer: &str, given: &[(&'static str, &'static str)]) -> HeaderMap {
        after_cutting("", peer, given)
    }

    fn after_cutting(prefix: &str, peer: &str, given: &[(&'static str, &'static str)]) -> HeaderMap {
        let edge = Edge { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], scheme: Scheme::Http };
        let mut request = http::Request::builder().uri("/").header("host", "gw.test:8080");
        for (name, value) in given {
            request = request.header(*name, *value);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        let peer = peer.parse().ok();
        let admitted = admit(&parts, peer, &edge).unwrap();
        let id = HeaderValue::from_static("id-1");
        let way = Way::new(&admitted, peer, &id, prefix);
        let mut headers = parts.headers.clone();
        for name in parts.headers.keys().filter(|name| way.replaces(name)) {
            headers.remove(name);
        }
        way.each(
            &parts.headers,
            |_| true,
            |name, value| {
                assert!(headers.insert(name, HeaderValue::from_bytes(&value.concat()).unwrap()).is_none());
            },
        );
        headers
    }

    const SENT: [(&str, &str); 9] = [
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-for", "2.2.2.2"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "public.test"),
        ("x-forwarded-prefix", "/p"),
        ("x-forwarded-port", "1"),
        ("x-real-ip", "7.7.7.7"),
        ("forwarded", "for=1.1.1.1"),
        ("x-request-id", "evil"),
    ];

    #[test]
    fn an_untrusted_peer_is_replaced() {
        let headers = after("9.9.9.9", &SENT);
        for (name, value) in [
            ("x-forwarded-for", "9.9.9.9"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "gw.test:8080"),
            ("x-real-ip", "9.9.9.9"),
            ("x-request-id", "id-1"),
        ] {
            assert_eq!(headers.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
        }
        assert_eq!(headers.len(), 6, "{headers:?}");
    }

    #[test]
    fn a_trusted_proxy_is_extended() {
        let headers = after("10.0.0.1", &SENT);
        for (name, value) in [
            ("x-forwarded-for", "1.1.1.1, 2.2.2.2, 10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "public.test:1"),
            ("x-forwarded-prefix", "/p"),
            ("x-real-ip", "2.2.2.2"),
            ("x-forwarded-port", "1"),
        ] {
            assert_eq!(headers.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
        }
        // It names another client than the rest.
        assert!(!headers.contains_key("forwarded"), "{headers:?}");
    }

    #[test]
    fn no_two_headers_contradict_each_other() {
        for (sent, expected) in [
            (
                &[("forwarded", "for=1.1.1.1;proto=https;host=public.test")][..],
                &[
                    ("x-forwarded-for", "1.1.1.1, 10.0.0.1"),
                    ("x-forwarded-proto", "https"),
                    ("x-forwarded-host", "public.test"),
                    ("x-real-ip", "1.1.1.1"),
                    ("forwarded", "for=1.1.1.1;proto=https;host=public.test, for=10.0.0.1"),
                ][..],
            ),
            (
                &[
                    ("forwarded", "for=1.1.1.1;proto=https"),
                    ("x-forwarded-for", "1.1.1.1"),
                    ("x-forwarded-proto", "https"),
                ],
                &[("forwarded", "for=1.1.1.1;proto=https, for=10.0.0.1"), ("x-forwarded-for", "1.1.1.1, 10.0.0.1")],
            ),
            (
                &[
                    ("x-forwarded-proto", "wss"),
                    ("x-forwarded-ssl", "off"),
                    ("x-forwarded-scheme", "http"),
                    ("x-scheme", "http"),
                ],
                &[
                    ("x-forwarded-proto", "https"),
                    ("x-forwarded-ssl", "on"),
                    ("x-forwarded-scheme", "https"),
                    ("x-scheme", "https"),
                ],
            ),
            (
                &[
                    ("x-forwarded-proto", "https"),
                    ("x-forwarded-host", "a.test, b.test:8443"),
                    ("x-forwarded-port", "1"),
                ],
                &[("x-forwarded-host", "b.test:8443"), ("x-forwarded-port", "8443")],
            ),
        ] {
            let headers = after("10.0.0.1", sent);
            for (name, value) in expected {
                assert_eq!(headers.get_all(*name).iter().collect::<Vec<_>>(), [*value], "{name} {sent:?}");
            }
        }
        for contradicting in ["for=1.1.1.1;proto=http", "for=2.2.2.2", "for=1.1.1.1;host=evil.test", "for=\"1.1.1.1"] {
            let headers = after(
                "10.0.0.1",
                &[("forwarded", contradicting), ("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https")],
            );
            assert!(!headers.contains_key("forwarded"), "{contradicting}");
        }
        let headers = after("9.9.9.9", &[("x-scheme", "https"), ("front-end-https", "on"), ("x-url-scheme", "https")]);
        assert_eq!(headers.len(), 6, "{headers:?}");
    }

    #[test]
    fn a_prefix_that_is_cut_off_is_told() {
        for (prefix, peer, came, expected) in [
            ("", "9.9.9.9", "/evil", None),
            ("", "10.0.0.1", "/p", Some("/p")),
            ("/app", "9.9.9.9", "/evil", Some("/app")),
            ("/app", "10.0.0.1", "/p", Some("/p/app")),
            ("/app", "10.0.0.1", "/p/", Some("/p/app")),
            ("/app", "10.0.0.1", "//evil.test", Some("/app")),
            ("/app", "10.0.0.1", "evil", Some("/app")),
        ] {
            let headers = after_cutting(prefix, peer, &[("x-forwarded-prefix", came)]);
            let seen: Vec<_> = headers.get_all("x-forwarded-prefix").iter().collect();
            assert_eq!(seen, expected.into_iter().collect::<Vec<_>>(), "{prefix} {peer} {came}");
        }
    }

    #[test]
    fn request_ids_are_taken_over_when_they_are_sane() {
        let long = "x".repeat(129);
        for (value, trusted, taken) in [
            ("abc", true, true),
            ("abc", false, false),
            ("a b", true, false),
            (long.as_str(), true, false),
            ("", true, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", HeaderValue::from_str(value).unwrap());
            let id = request_id(&headers, trusted, || HeaderValue::from_static("fresh"));
            assert_eq!(id, if taken { value } else { "fresh" });
        }
    }
}
