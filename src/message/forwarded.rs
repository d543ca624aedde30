//! `X-Forwarded-*`, `X-Real-IP` and `X-Request-Id`: extended when a trusted proxy sent them, replaced otherwise.

use std::net::{IpAddr, Ipv4Addr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::admit::{Admitted, Host};
use crate::address::Address;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
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
}

impl<'a> Way<'a> {
    /// `peer`: the socket's other end.
    #[must_use]
    pub fn new(admitted: &'a Admitted, peer: Option<IpAddr>, request_id: &'a HeaderValue) -> Self {
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.to_canonical());
        Self { admitted, peer, request_id }
    }

    /// Whether [`Way::each`] says what takes the place of the header of this name that came, if anything does. From an
    /// untrusted peer that is everything about the way, whatever it says.
    #[must_use]
    pub fn replaces(&self, name: &HeaderName) -> bool {
        // A trusted proxy may say more about the way than we do.
        let about = name.as_str().strip_prefix("x-forwarded-").filter(|_| self.admitted.peer_trusted);
        about.map_or_else(|| covers(name), |about| matches!(about, "for" | "proto" | "host"))
    }

    /// Hands over the headers that describe the way, their names as they are to be written and their values in pieces.
    /// `came`: the request's headers, of which those that `goes_on` denies are not there any more.
    pub fn each(
        &self,
        came: &HeaderMap,
        goes_on: impl Fn(&HeaderName) -> bool,
        mut hand_over: impl FnMut(&'static str, &[&[u8]]),
    ) {
        let Admitted { peer_trusted, authority, scheme, client, .. } = self.admitted;
        let peer = Address::of(self.peer);
        if *peer_trusted {
            let earlier = |name: &HeaderName| if goes_on(name) { joined(came, name) } else { Vec::new() };
            hand_over("X-Forwarded-For", &[&earlier(&FOR), peer.text()]);
            if came.contains_key(FORWARDED) && goes_on(&FORWARDED) {
                let (before, after): (&[u8], &[u8]) =
                    if self.peer.is_ipv6() { (b"for=\"[", b"]\"") } else { (b"for=", b"") };
                hand_over("Forwarded", &[&earlier(&FORWARDED), before, peer.text(), after]);
            }
            match valid_host(came).filter(|_| goes_on(&HOST)) {
                Some(host) => hand_over("X-Forwarded-Host", &[host.as_bytes()]),
                None => hand_over("X-Forwarded-Host", &[authority.as_bytes()]),
            }
        } else {
            hand_over("X-Forwarded-For", &[peer.text()]);
            hand_over("X-Forwarded-Host", &[authority.as_bytes()]);
        }
        hand_over("X-Forwarded-Proto", &[scheme.as_str().as_bytes()]);
        if *client == self.peer {
            hand_over("X-Real-IP", &[peer.text()]);
        } else {
            hand_over("X-Real-IP", &[Address::of(*client).text()]);
        }
        hand_over("X-Request-Id", &[self.request_id.as_bytes()]);
    }
}

/// Whether a field is one of those that are set or judged here; none of them has a place among trailers.
#[must_use]
pub fn covers(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "x-real-ip" | "x-request-id")
}

/// One trusted `X-Forwarded-Host` that names a host, so that the backend can build links to it.
fn valid_host(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut values = headers.get_all(HOST).iter();
    let first = values.next().filter(|value| value.to_str().is_ok_and(|value| Host::parse(value).is_some()))?;
    values.next().is_none().then_some(first)
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
        let edge = Edge { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], scheme: Scheme::Http };
        let mut request = http::Request::builder().uri("/").header("host", "gw.test:8080");
        for (name, value) in given {
            request = request.header(*name, *value);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        let peer = peer.parse().ok();
        let admitted = admit(&parts, peer, &edge).unwrap();
        let id = HeaderValue::from_static("id-1");
        let way = Way::new(&admitted, peer, &id);
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
            ("x-forwarded-host", "public.test"),
            ("x-forwarded-prefix", "/p"),
            ("x-real-ip", "2.2.2.2"),
            ("forwarded", "for=1.1.1.1, for=10.0.0.1"),
        ] {
            assert_eq!(headers.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
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
