//! What a trusted proxy says of the way that a request has come: client, scheme, and this host as the browser knows it.
//!
//! Each proxy of a chain adds an entry behind the others, so the entries that can be believed are the last ones, as many
//! as there are trusted hops; of those the first was written by the outermost one, which saw the browser itself.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::admit::{Edge, Host, Scheme, authority_port};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const SCHEME: HeaderName = HeaderName::from_static("x-forwarded-scheme");
const SSL: HeaderName = HeaderName::from_static("x-forwarded-ssl");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// More elements of `Forwarded` than any chain of proxies has.
const MAX_ELEMENTS: usize = 64;

/// What the trusted hops say, taken together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouched {
    /// The right-most address that no trusted proxy vouches for as its own.
    pub client: IpAddr,
    /// What the browser used.
    pub scheme: Scheme,
    /// This host as the browser knows it, with its port, where that is not what `Host` says.
    pub authority: Option<HeaderValue>,
    /// Whether a hop named the host, and not only a port for it.
    pub names_host: bool,
    /// The header that could not be understood, for a warning.
    pub doubt: Option<&'static str>,
    /// `Forwarded` came and says nothing else than its older kin, so that it may go on beside them.
    pub forwarded_agrees: bool,
}

impl Vouched {
    /// Reads the headers that the trusted proxy `peer` sent. `authority`: the request's `Host`.
    #[must_use]
    pub fn read(headers: &HeaderMap, peer: IpAddr, edge: &Edge, authority: &HeaderValue) -> Self {
        if stands_alone(headers) {
            return Self::of_forwarded(headers, peer, edge, authority).unwrap_or(Self {
                client: peer,
                // What can't be read may have said `https`.
                scheme: Scheme::Https,
                authority: None,
                names_host: false,
                doubt: Some("Forwarded"),
                forwarded_agrees: false,
            });
        }
        let (client, hops) = client_of(headers, peer, &edge.trusted_proxies);
        let mut doubt = None;
        let scheme = scheme_of(headers, hops, &mut doubt).unwrap_or(edge.scheme);
        let host = entry(headers, &HOST, hops);
        let port = entry(headers, &PORT, hops).and_then(|port| {
            let number = std::str::from_utf8(port).ok().and_then(|port| port.parse().ok()).filter(|port| *port != 0);
            if number.is_none() {
                doubt = Some("X-Forwarded-Port");
            }
            number
        });
        let named = host.and_then(|host| {
            let named = std::str::from_utf8(host).ok().filter(|host| Host::parse(host).is_some());
            if named.is_none() {
                doubt = Some("X-Forwarded-Host");
            }
            named
        });
        let public = public_authority(named, port, authority);
        let mut vouched =
            Self { client, scheme, authority: public, names_host: named.is_some(), doubt, forwarded_agrees: false };
        vouched.forwarded_agrees = headers.contains_key(FORWARDED) && vouched.agrees(headers, peer, edge, authority);
        vouched
    }

    /// Whether `Forwarded` says nothing else.
    fn agrees(&self, headers: &HeaderMap, peer: IpAddr, edge: &Edge, authority: &HeaderValue) -> bool {
        let edge = Edge { scheme: self.scheme, ..edge.clone() };
        let public = self.authority.as_ref().unwrap_or(authority);
        Self::of_forwarded(headers, peer, &edge, public).is_some_and(|said| {
            said.client == self.client && said.scheme == self.scheme && said.authority.is_none() && said.doubt.is_none()
        })
    }

    /// The same from `Forwarded` (RFC 7239); `None` where it is malformed.
    fn of_forwarded(headers: &HeaderMap, peer: IpAddr, edge: &Edge, authority: &HeaderValue) -> Option<Self> {
        let elements = elements(headers)?;
        let mut client = peer;
        let mut outermost = elements.len();
        while let Some(place) = outermost.checked_sub(1) {
            outermost = place;
            // An obfuscated node (section 6.3) can't be told from a stranger: nothing before it is believed.
            let Some(address) = elements.get(place).and_then(|element| parse_hop(element.node.as_deref()?)) else {
                break;
            };
            client = address;
            if !is_trusted(address, &edge.trusted_proxies) {
                break;
            }
        }
        let believed = elements.get(outermost..).unwrap_or_default();
        let mut doubt = None;
        let said = believed.iter().find_map(|element| element.proto.as_deref());
        let scheme = said.map_or(edge.scheme, |said| understood(said, "Forwarded", &mut doubt));
        let host = believed.iter().find_map(|element| element.host.as_deref());
        let named = host.and_then(|host| std::str::from_utf8(host).ok()).filter(|host| Host::parse(host).is_some());
        if host.is_some() && named.is_none() {
            doubt = Some("Forwarded");
        }
        let authority = public_authority(named, None, authority);
        Some(Self { client, scheme, authority, names_host: named.is_some(), doubt, forwarded_agrees: true })
    }
}

/// Whether `Forwarded` came, and none of its older kin.
fn stands_alone(headers: &HeaderMap) -> bool {
    headers.contains_key(FORWARDED)
        && ![FOR, PROTO, SCHEME, SSL, HOST, PORT].iter().any(|name| headers.contains_key(name))
}

/// What `X-Forwarded-For` would say where `Forwarded` stands alone, with a comma behind each; `unknown` for what is no
/// address.
pub(crate) fn nodes(headers: &HeaderMap) -> Vec<u8> {
    let mut nodes = String::new();
    if stands_alone(headers) {
        for element in elements(headers).unwrap_or_default() {
            let address = element.node.as_deref().and_then(parse_hop);
            nodes.push_str(&address.map_or_else(|| String::from("unknown"), |address| address.to_string()));
            nodes.push_str(", ");
        }
    }
    nodes.into_bytes()
}

/// Walks `X-Forwarded-For` from its end past the proxies that are trusted, and counts them. Garbage on the way: the peer
/// itself.
fn client_of(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> (IpAddr, usize) {
    let (mut client, mut hops) = (peer, 1);
    for line in headers.get_all(FOR).iter().rev() {
        for entry in line.as_bytes().rsplit(|byte| *byte == b',') {
            let Some(address) = parse_hop(entry.trim_ascii()) else { return (peer, 1) };
            client = address;
            if !is_trusted(address, trusted) {
                return (client, hops);
            }
            hops += 1;
        }
    }
    (client, hops)
}

pub(super) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// An address, also with a port or in brackets, IPv4-mapped ones as IPv4.
fn parse_hop(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))?;
    Some(address.to_canonical())
}

/// The entry of the outermost of so many trusted hops; the first one where there are fewer. Empty ones don't count.
fn entry<'a>(headers: &'a HeaderMap, name: &HeaderName, hops: usize) -> Option<&'a [u8]> {
    let lines = headers.get_all(name).iter().rev();
    let entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    entries.filter(|entry| !entry.is_empty()).take(hops).last()
}

/// `None`: no header says anything.
fn scheme_of(headers: &HeaderMap, hops: usize, doubt: &mut Option<&'static str>) -> Option<Scheme> {
    if let Some(said) = entry(headers, &PROTO, hops) {
        return Some(understood(said, "X-Forwarded-Proto", doubt));
    }
    if let Some(said) = entry(headers, &SCHEME, hops) {
        return Some(understood(said, "X-Forwarded-Scheme", doubt));
    }
    let said = entry(headers, &SSL, hops)?;
    Some(if said.eq_ignore_ascii_case(b"off") { Scheme::Http } else { Scheme::Https })
}

/// WebSocket's schemes are those that they run over. What is not known counts as the one that gives nothing away.
fn understood(said: &[u8], header: &'static str, doubt: &mut Option<&'static str>) -> Scheme {
    let is_one_of = |names: [&str; 2]| names.iter().any(|name| said.eq_ignore_ascii_case(name.as_bytes()));
    if is_one_of(["http", "ws"]) {
        return Scheme::Http;
    }
    if !is_one_of(["https", "wss"]) {
        *doubt = Some(header);
    }
    Scheme::Https
}

/// `None` where it is the same as `Host`. A port is taken from `port` only where the host has none: it is what the
/// browser wrote. The other scheme's default port is where a proxy in the middle listens, and no browser's.
fn public_authority(named: Option<&str>, port: Option<u16>, authority: &HeaderValue) -> Option<HeaderValue> {
    let host = named.or_else(|| authority.to_str().ok())?;
    let public = match port.filter(|port| ![80, 443].contains(port) && authority_port(host).is_none()) {
        Some(port) => Cow::Owned(format!("{}:{port}", host.trim_end_matches(':'))),
        None => Cow::Borrowed(host),
    };
    if public.as_bytes() == authority.as_bytes() { None } else { HeaderValue::from_str(&public).ok() }
}

/// One hop's element of `Forwarded`.
#[derive(Debug, Default)]
struct Element<'a> {
    node: Option<Cow<'a, [u8]>>,
    proto: Option<Cow<'a, [u8]>>,
    host: Option<Cow<'a, [u8]>>,
}

/// All elements in order (RFC 7239 section 4); `None` where something is not one.
fn elements(headers: &HeaderMap) -> Option<Vec<Element<'_>>> {
    let mut elements = Vec::new();
    for line in headers.get_all(FORWARDED) {
        for text in split_unquoted(line.as_bytes(), b',')? {
            if text.trim_ascii().is_empty() {
                continue;
            }
            if elements.len() == MAX_ELEMENTS {
                return None;
            }
            elements.push(element(text)?);
        }
    }
    Some(elements)
}

fn element(text: &[u8]) -> Option<Element<'_>> {
    let mut element = Element::default();
    for pair in split_unquoted(text, b';')? {
        let pair = pair.trim_ascii();
        if pair.is_empty() {
            continue;
        }
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (pair.get(..equals)?, pair.get(equals + 1..)?);
        let place = match name.to_ascii_lowercase().as_slice() {
            b"for" => &mut element.node,
            b"proto" => &mut element.proto,
            b"host" => &mut element.host,
            _ => continue,
        };
        // Twice in one element is an error (section 4).
        if place.replace(unquoted(value)?).is_some() {
            return None;
        }
    }
    Some(element)
}

/// The pieces between separators that stand outside quotes; `None` where a quote is not closed.
fn split_unquoted(text: &[u8], separator: u8) -> Option<Vec<&[u8]>> {
    let (mut pieces, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (place, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            byte if *byte == separator && !quoted => {
                pieces.push(text.get(start..place)?);
                start = place + 1;
            }
            _ => {}
        }
    }
    pieces.push(text.get(start..)?);
    (!quoted).then_some(pieces)
}

/// A token, or what a quoted string says (RFC 9110 section 5.6.4).
fn unquoted(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(inner) = value.strip_prefix(b"\"") else {
        return (!value.is_empty() && !value.contains(&b'"')).then_some(Cow::Borrowed(value));
    };
    let inner = inner.strip_suffix(b"\"")?;
    if !inner.contains(&b'\\') {
        return Some(Cow::Borrowed(inner));
    }
    let (mut plain, mut escaped) = (Vec::with_capacity(inner.len()), false);
    for byte in inner {
        if *byte == b'\\' && !escaped {
            escaped = true;
        } else {
            plain.push(*byte);
            escaped = false;
        }
    }
    Some(Cow::Owned(plain))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(lines: &[(&'static str, &str)], host: &'static str) -> Vouched {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let edge = Edge { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], scheme: Scheme::Http };
        Vouched::read(&headers, "10.0.0.1".parse().unwrap(), &edge, &HeaderValue::from_static(host))
    }

    fn authority(vouched: &Vouched, host: &str) -> String {
        vouched.authority.as_ref().map_or(host, |authority| authority.to_str().unwrap()).to_owned()
    }

    #[test]
    fn schemes_are_read_as_they_are_written_in_the_wild() {
        use Scheme::{Http, Https};
        const PROTO: &str = "x-forwarded-proto";
        for (lines, scheme, doubt) in [
            (&[][..], Http, None),
            (&[(PROTO, "https")], Https, None),
            (&[(PROTO, "HTTPS")], Https, None),
            (&[(PROTO, "wss")], Https, None),
            (&[(PROTO, "ws")], Http, None),
            (&[(PROTO, "")], Http, None),
            (&[(PROTO, "evil")], Https, Some("X-Forwarded-Proto")),
            // One trusted hop: only its own entry counts.
            (&[(PROTO, "https, http")], Http, None),
            (&[(PROTO, "http, https")], Https, None),
            // Two: the outer one's.
            (&[(PROTO, "https, http"), ("x-forwarded-for", "1.1.1.1, 10.0.0.9")], Https, None),
            (&[(PROTO, "https"), (PROTO, "http"), ("x-forwarded-for", "1.1.1.1, 10.0.0.9")], Https, None),
            (&[(PROTO, "https, http, http"), ("x-forwarded-for", "1.1.1.1, 10.0.0.9")], Http, None),
            (&[(PROTO, "https"), ("x-forwarded-for", "1.1.1.1, 10.0.0.9")], Https, None),
            (&[("x-forwarded-ssl", "on")], Https, None),
            (&[("x-forwarded-ssl", "off")], Http, None),
            (&[("x-forwarded-scheme", "https")], Https, None),
            (&[("forwarded", "proto=https")], Https, None),
            (&[("forwarded", "for=1.1.1.1;Proto=\"HTTPS\";by=x")], Https, None),
            (&[("forwarded", "for=1.1.1.1;proto=https, for=10.0.0.9;proto=http")], Https, None),
            (&[("forwarded", "for=1.1.1.1;proto=https, for=2.2.2.2;proto=http")], Http, None),
            (&[("forwarded", "for=1.1.1.1;proto=https, for=_hidden;proto=http")], Http, None),
            (&[("forwarded", "proto=https"), (PROTO, "http")], Http, None),
            (&[("forwarded", "proto=\"https")], Https, Some("Forwarded")),
            (&[("forwarded", "https")], Https, Some("Forwarded")),
            (&[("forwarded", "proto=http;proto=https")], Https, Some("Forwarded")),
            (&[("forwarded", "proto=gopher")], Https, Some("Forwarded")),
        ] {
            let vouched = read(lines, "app.test");
            assert_eq!((vouched.scheme, vouched.doubt), (scheme, doubt), "{lines:?}");
        }
    }

    #[test]
    fn this_host_is_what_the_browser_wrote() {
        const HOST: &str = "x-forwarded-host";
        const PORT: &str = "x-forwarded-port";
        const HTTPS: (&str, &str) = ("x-forwarded-proto", "https");
        for (lines, host, expected) in [
            (&[][..], "app.test", "app.test"),
            (&[(HOST, "public.test")], "127.0.0.1:8080", "public.test"),
            (&[(HOST, "public.test:8443")], "127.0.0.1:8080", "public.test:8443"),
            (&[(HOST, "public.test"), (PORT, "8443"), HTTPS], "127.0.0.1:8080", "public.test:8443"),
            (&[(HOST, "public.test:8443"), (PORT, "443"), HTTPS], "127.0.0.1:8080", "public.test:8443"),
            (&[(HOST, "public.test"), (PORT, "443"), HTTPS], "127.0.0.1:8080", "public.test"),
            (&[(HOST, "public.test"), (PORT, "80"), HTTPS], "127.0.0.1:8080", "public.test"),
            (&[(PORT, "8443"), HTTPS], "app.test", "app.test:8443"),
            (&[(PORT, "8443"), HTTPS], "app.test:9000", "app.test:9000"),
            (&[(PORT, "x")], "app.test", "app.test"),
            (&[(HOST, "evil.test, public.test")], "app.test", "public.test"),
            (&[(HOST, "public.test, inner.test"), ("x-forwarded-for", "1.1.1.1, 10.0.0.9")], "app.test", "public.test"),
            (&[(HOST, "a b")], "app.test", "app.test"),
            (&[(HOST, "public.test/x")], "app.test", "app.test"),
            (&[("forwarded", "host=public.test;proto=https")], "app.test", "public.test"),
            (&[("forwarded", "host=\"public.test:8443\"")], "app.test", "public.test:8443"),
            (&[("forwarded", "host=\"[::1]:8443\"")], "app.test", "[::1]:8443"),
            (&[("forwarded", "host=public.test"), (HOST, "other.test")], "app.test", "other.test"),
        ] {
            assert_eq!(authority(&read(lines, host), host), expected, "{lines:?}");
        }
    }

    #[test]
    fn the_client_of_forwarded_is_the_first_that_nobody_trusted_vouches_for() {
        for (value, client) in [
            ("for=1.1.1.1", "1.1.1.1"),
            ("for=1.1.1.1, for=2.2.2.2", "2.2.2.2"),
            ("for=1.1.1.1, for=10.0.0.9", "1.1.1.1"),
            ("For=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=\"1.1.1.1:80\"", "1.1.1.1"),
            ("for=unknown", "10.0.0.1"),
            ("for=1.1.1.1, for=unknown", "10.0.0.1"),
            ("for=\"1.1.1.1, for=2.2.2.2", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
        ] {
            assert_eq!(read(&[("forwarded", value)], "a").client.to_string(), client, "{value}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_headers_do_not_panic_and_name_a_host(
            values in prop::collection::vec((0_usize..6, "[ -~]{0,40}"), 0..8),
        ) {
            let names = ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-forwarded-ssl"];
            let lines: Vec<_> = values.iter().map(|(name, value)| (names[*name], value.as_str())).collect();
            let vouched = read(&lines, "app.test");
            prop_assert!(Host::parse(&authority(&vouched, "app.test")).is_some(), "{vouched:?}");
        }
    }
}
