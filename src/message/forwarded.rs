//! `X-Forwarded-*`, `X-Real-IP` and `X-Request-Id`: extended when a trusted proxy sent them, replaced otherwise.

use std::net::{IpAddr, Ipv4Addr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::admit::{Admitted, Host};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
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

/// Sets the forwarding headers for the upstream. `peer`: the socket's other end. Comes before `identity::set`, because
/// what an untrusted peer sent under `X-Forwarded-` is removed here whatever it says.
pub fn set(headers: &mut HeaderMap, admitted: &Admitted, peer: Option<IpAddr>, request_id: &HeaderValue) {
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.to_canonical());
    if admitted.peer_trusted {
        extend(headers, &FOR, &peer.to_string());
        if headers.contains_key(FORWARDED) {
            let node = if peer.is_ipv6() { format!("for=\"[{peer}]\"") } else { format!("for={peer}") };
            extend(headers, &FORWARDED, &node);
        }
        if !has_valid_host(headers) {
            headers.insert(HOST, admitted.authority.clone());
        }
    } else {
        remove_all_about_the_way(headers);
        insert(headers, FOR, &peer.to_string());
        headers.insert(HOST, admitted.authority.clone());
    }
    headers.insert(PROTO, HeaderValue::from_static(admitted.scheme.as_str()));
    insert(headers, REAL_IP, &admitted.client.to_string());
    headers.insert(REQUEST_ID, request_id.clone());
}

/// Whether a field is one of those that are set or judged here; none of them has a place among trailers.
#[must_use]
pub fn covers(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-forwarded-") || [FORWARDED, REAL_IP, REQUEST_ID].contains(name)
}

/// One trusted `X-Forwarded-Host` that names a host, so that the backend can build links to it.
fn has_valid_host(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(HOST).iter();
    let first = values.next().and_then(|value| value.to_str().ok());
    first.is_some_and(|value| Host::parse(value).is_some()) && values.next().is_none()
}

fn remove_all_about_the_way(headers: &mut HeaderMap) {
    headers.remove(FORWARDED);
    let found: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

fn extend(headers: &mut HeaderMap, name: &HeaderName, last: &str) {
    let mut value: Vec<u8> = Vec::new();
    for line in headers.get_all(name) {
        let line = line.as_bytes().trim_ascii();
        if !line.is_empty() {
            value.extend_from_slice(line);
            value.extend_from_slice(b", ");
        }
    }
    value.extend_from_slice(last.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&value) {
        headers.insert(name, value);
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => headers.insert(name, value),
        Err(_) => headers.remove(name),
    };
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
        let mut parts = request.body(()).unwrap().into_parts().0;
        let peer = peer.parse().ok();
        let admitted = admit(&parts, peer, &edge).unwrap();
        set(&mut parts.headers, &admitted, peer, &HeaderValue::from_static("id-1"));
        parts.headers
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
