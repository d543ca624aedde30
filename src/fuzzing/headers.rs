//! The head of a request on its way to a backend: whose headers are left, who is said to be the client.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use http::header::{AUTHORIZATION, CONNECTION, COOKIE, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use ipnet::IpNet;

use crate::config::{Access, IdentityHeader, TemplatePart};
use crate::message::admit::{Edge, Scheme, admit};
use crate::message::identity::Guarded;
use crate::message::spelling::Spelling;
use crate::policy::{Caller, Policy, Principal, Unidentified, decide};
use crate::upstream::{Outgoing, rewritten};

const TRUSTED: &str = "10.0.0.0/8";
const PEERS: [Option<&str>; 5] =
    [Some("192.0.2.7"), Some("10.1.2.3"), Some("::ffff:10.1.2.3"), Some("2001:db8::1"), None];

/// `PEER PERSON` as two digits, then the head's lines, `Name: value`, each on its own line.
#[expect(clippy::too_many_lines, reason = "one promise after the other")]
pub fn headers(data: &[u8]) {
    let (choice, rest) = data.split_at(data.len().min(2));
    let [peer, person] = choice else { return };
    let peer: Option<IpAddr> = PEERS[usize::from(*peer) % PEERS.len()].map(|peer| peer.parse().unwrap());
    let mut request = Request::builder().uri("/x?y").header("host", "gw.test:8080").body(()).unwrap();
    for line in rest.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value)
            && request.headers().len() < 100
        {
            request.headers_mut().append(name, value);
        }
    }
    let head = request.into_parts().0;
    let networks: Vec<IpNet> = vec![TRUSTED.parse().unwrap()];
    let edge = Edge { trusted_proxies: networks.clone(), scheme: Scheme::Http };
    let Ok(admitted) = admit(&head, peer, &edge) else { return };
    let sent = head.headers.clone();

    let real_peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.to_canonical());
    let is_trusted = |address: &IpAddr| networks.iter().any(|network| network.contains(address));
    assert_eq!(admitted.peer_trusted, is_trusted(&real_peer));
    let older_kin = sent.keys().any(|name| {
        let name = name.as_str().strip_prefix("x-forwarded-").unwrap_or_default();
        ["for", "proto", "scheme", "ssl", "host", "port"].contains(&name)
    });
    if admitted.peer_trusted && sent.contains_key("forwarded") && !older_kin {
        // `Forwarded` is read where it stands alone: the client is the peer, or an address that it names.
        let text: Vec<_> =
            sent.get_all("forwarded").iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
        let text = text.join(",").to_ascii_lowercase();
        assert!(admitted.client == real_peer || text.contains("for="), "another client: {sent:?}");
    } else {
        let client = if admitted.peer_trusted { client_of(&sent, real_peer, &is_trusted) } else { real_peer };
        assert_eq!(admitted.client, client, "another client: {sent:?}");
    }

    let client = admitted.client;
    let caller = if person % 2 == 0 {
        Caller::Anonymous(Unidentified::NoCredential)
    } else {
        Caller::Person(std::sync::Arc::new(kim()))
    };
    let policy = Policy { access: Access::Public, groups: Vec::new(), users: Vec::new() };
    let pass = decide(&policy, &caller).unwrap();
    let identity = identity();
    let own_bearer = person % 4 >= 2;
    let fresh_id = HeaderValue::from_static("fresh-id");
    let spelling = Spelling::default();
    let outgoing = Outgoing {
        pass: &pass,
        admitted: &admitted,
        peer,
        request_id: &fresh_id,
        spelling: &spelling,
        ties: &std::rc::Rc::default(),
        strip_prefix: "",
        destination: None,
        guarded: &Guarded::new(&identity, true),
        identity: &pass.person().map(|person| crate::message::identity::lines(&identity, person)).unwrap_or_default(),
        cookie_name: "access_token",
        said_of_cookie: std::cell::RefCell::default(),
        own_bearer,
        body_timeout: Duration::from_secs(1),
        disbelieved: std::cell::Cell::new(false),
        basic_password: None,
    };
    let left = &rewritten(&head, &outgoing, false).expect("there is nothing to strip");
    let copies = |name: &str| left.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();

    // Ours, and nobody else's.
    let expected: &[(&str, &[u8])] = if pass.person().is_some() {
        &[("x-forwarded-user", "김".as_bytes()), ("x-forwarded-groups", b"staff,ops"), ("my-mail", b"kim@example.com")]
    } else {
        &[]
    };
    for (name, value) in expected {
        assert_eq!(copies(name), [*value], "{name}: {sent:?}");
    }
    for name in left.keys() {
        let own = expected.iter().any(|(own, _)| name == own);
        assert!(own || !names_a_person(name), "{name} went through: {sent:?}");
        assert!(!is_disguise(name), "{name} went through: {sent:?}");
    }
    // What describes the way.
    assert_eq!(copies("x-real-ip"), [client.to_string().as_bytes()]);
    assert_eq!(copies("host"), [&b"gw.test:8080"[..]]);
    for name in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id"] {
        assert_eq!(copies(name).len(), 1, "{name}: {left:?}");
    }
    if admitted.peer_trusted {
        let hops = left["x-forwarded-for"].as_bytes().to_vec();
        assert!(hops.ends_with(real_peer.to_string().as_bytes()), "{left:?}");
    } else {
        assert_eq!(copies("x-forwarded-for"), [real_peer.to_string().as_bytes()]);
        assert_eq!(copies("x-forwarded-host"), [&b"gw.test:8080"[..]]);
        assert_eq!(copies("x-forwarded-proto"), [&b"http"[..]]);
        assert_eq!(copies("x-request-id"), [&b"fresh-id"[..]]);
        for name in left.keys().filter(|name| name.as_str().starts_with("x-forwarded-")) {
            let known = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"].contains(&name.as_str());
            assert!(known || expected.iter().any(|(own, _)| name == own), "{name} went through: {sent:?}");
        }
        assert!(!left.contains_key("forwarded"));
    }
    // What belongs to one connection.
    for name in
        ["keep-alive", "proxy-connection", "proxy-authorization", "http2-settings", "transfer-encoding", "expect"]
    {
        assert!(!left.contains_key(name), "{name} went through: {sent:?}");
    }
    let own_connection: &[&[u8]] = if admitted.websocket {
        &[b"upgrade"]
    } else if left.contains_key(TE) {
        &[b"te"]
    } else {
        &[]
    };
    assert_eq!(copies("connection"), own_connection, "{sent:?}");
    assert!(copies("te").iter().all(|value| *value == b"trailers"));
    if own_bearer {
        assert!(!left.contains_key(AUTHORIZATION));
    }
    // All the rest arrives as it was sent.
    for name in sent.keys().filter(|name| is_ordinary(name) && !is_named_in_connection(&sent, name)) {
        let as_sent: Vec<_> = sent.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(copies(name.as_str()), as_sent, "{name} was changed");
    }
}

fn kim() -> Principal {
    Principal {
        id: String::from("1"),
        username: String::from("김"),
        groups: vec![String::from("staff"), String::from("ops")],
        email: String::from("kim@example.com"),
        display_name: String::new(),
    }
}

fn identity() -> Vec<IdentityHeader> {
    let header = |name, part| IdentityHeader { name: HeaderName::from_static(name), template: vec![part] };
    vec![
        header("x-forwarded-user", TemplatePart::Username),
        header("x-forwarded-groups", TemplatePart::Groups),
        header("my-mail", TemplatePart::Email),
        header("my-name", TemplatePart::DisplayName),
    ]
}

/// From the end, past every proxy that is trusted; what is no address ends it at the peer.
fn client_of(sent: &HeaderMap, peer: IpAddr, is_trusted: &dyn Fn(&IpAddr) -> bool) -> IpAddr {
    let lines: Vec<_> = sent.get_all("x-forwarded-for").iter().map(HeaderValue::as_bytes).collect();
    if lines.is_empty() {
        return peer;
    }
    let mut hops = Vec::new();
    for entry in lines.join(&b","[..]).split(|byte| *byte == b',') {
        let text = String::from_utf8_lossy(entry.trim_ascii()).into_owned();
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(&text).to_owned();
        let address = bare.parse::<IpAddr>().or_else(|_| text.parse().map(|socket: std::net::SocketAddr| socket.ip()));
        hops.push(address.ok().map(|address| address.to_canonical()));
    }
    let mut client = peer;
    for hop in hops.into_iter().rev() {
        let Some(address) = hop else { return peer };
        client = address;
        if !is_trusted(&address) {
            break;
        }
    }
    client
}

/// A header's name as CGI programs see it.
pub(super) fn folded(name: &HeaderName) -> String {
    let sign = |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte.to_ascii_uppercase()) } else { '_' };
    name.as_str().bytes().map(sign).collect()
}

/// The families of the specification, and the names that this configuration sends.
pub(super) fn names_a_person(name: &HeaderName) -> bool {
    let folded = folded(name);
    let families = ["REMOTE_", "X_REMOTE_", "X_AUTH_", "X_DOORWARD_", "X_WEBAUTH_"];
    let names = [
        "X_FORWARDED_USER",
        "X_FORWARDED_EMAIL",
        "X_FORWARDED_GROUPS",
        "X_FORWARDED_PREFERRED_USERNAME",
        "X_ORIGINAL_URL",
        "X_ORIGINAL_URI",
        "X_REWRITE_URL",
        "X_HTTP_METHOD_OVERRIDE",
        "PROXY",
        "MY_MAIL",
        "MY_NAME",
    ];
    families.iter().any(|family| folded.starts_with(family)) || names.contains(&folded.as_str())
}

/// Another spelling of a name that frames the message or describes the way.
pub(super) fn is_disguise(name: &HeaderName) -> bool {
    let proper = [
        "transfer-encoding",
        "content-length",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-real-ip",
        "x-request-id",
    ];
    proper.iter().any(|proper| name != proper && folded(name) == proper.to_ascii_uppercase().replace('-', "_"))
}

fn is_named_in_connection(sent: &HeaderMap, name: &HeaderName) -> bool {
    let mut tokens = sent.get_all(CONNECTION).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
}

/// Nothing that anybody here has an interest in.
fn is_ordinary(name: &HeaderName) -> bool {
    let ours = [
        COOKIE.as_str(),
        AUTHORIZATION.as_str(),
        "connection",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "transfer-encoding",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "proxy-authenticate",
        "http2-settings",
        "host",
        "content-length",
    ];
    let letters = name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let special = ["x-", "remote-", "proxy", "forwarded", "my-"].iter().any(|start| name.as_str().starts_with(start));
    letters && !special && !ours.contains(&name.as_str())
}
