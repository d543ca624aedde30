//! The rules for a request's head once more, as plain editing of a map, one after the other: what the writer puts on the
//! wire is held against it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use proptest::prelude::*;

use super::request::{Framing, Head};
use crate::config::{Access, IdentityHeader, TemplatePart};
use crate::message::admit::{Admitted, Edge, Scheme, admit};
use crate::message::cookies;
use crate::message::identity::{self, Guarded};
use crate::message::spelling::Spelling;
use crate::message::vouched;
use crate::policy::{Caller, Pass, Policy, Principal, Unidentified, decide};
use crate::upstream::{Outgoing, trailers};

fn edited(
    parts: &Parts,
    outgoing: &Outgoing<'_>,
    ours: &[IdentityHeader],
    host: &HeaderValue,
    head: &Head<'_>,
) -> HeaderMap {
    let mut headers = parts.headers.clone();
    let wants_trailers = headers.get_all(header::TE).iter().any(|line| {
        line.as_bytes().split(|byte| *byte == b',').any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    let had_length = headers.contains_key(header::CONTENT_LENGTH);
    outgoing.guarded.strip(&mut headers);
    strip_hop_by_hop(&mut headers);
    for name in [header::EXPECT, header::TRANSFER_ENCODING, header::TRAILER, header::CONTENT_LENGTH] {
        headers.remove(name);
    }
    if !head.forward_token {
        cookies::remove(&mut headers, outgoing.cookie_name);
        if outgoing.own_bearer {
            headers.remove(header::AUTHORIZATION);
        }
    }
    let had_for = parts.headers.contains_key("x-forwarded-for");
    forwarded(&mut headers, outgoing.admitted, outgoing.peer, outgoing.request_id, had_for);
    if let Some(person) = outgoing.pass.person() {
        identity::set(&mut headers, ours, person);
    }
    headers.insert(header::HOST, host.clone());
    if outgoing.admitted.websocket {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    } else {
        let mut about = Vec::new();
        if wants_trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            about.push("te");
        }
        if head.alone {
            about.push("close");
        }
        if !about.is_empty() {
            headers.insert(header::CONNECTION, HeaderValue::from_str(&about.join(", ")).unwrap());
        }
    }
    if let Some(value) = trailers::announcement(head.trailers) {
        headers.insert(header::TRAILER, value);
    }
    match head.framing {
        Framing::Chunked => {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        Framing::Length(0) if !had_length => {}
        Framing::Length(length) => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
    }
    headers
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let stays = [
        header::HOST,
        header::COOKIE,
        header::SET_COOKIE,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CACHE_CONTROL,
    ];
    let lines = headers.get_all(header::CONNECTION).iter();
    let named: Vec<HeaderName> = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| !stays.contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        "connection",
        "te",
        "transfer-encoding",
        "upgrade",
        "proxy-authenticate",
        "proxy-authorization",
        "keep-alive",
        "proxy-connection",
        "http2-settings",
    ] {
        headers.remove(name);
    }
}

fn forwarded(
    headers: &mut HeaderMap,
    admitted: &Admitted,
    peer: Option<IpAddr>,
    request_id: &HeaderValue,
    had_for: bool,
) {
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.to_canonical());
    let text = |value: String| HeaderValue::try_from(value).unwrap();
    let public = admitted.vouched_authority.as_ref().unwrap_or(&admitted.authority);
    if admitted.peer_trusted {
        if !admitted.forwarded_agrees {
            headers.remove(header::FORWARDED);
        }
        if headers.contains_key(header::FORWARDED) && !had_for {
            let nodes = vouched::nodes(headers);
            if !nodes.is_empty() {
                headers.insert("x-forwarded-for", HeaderValue::from_bytes(&nodes[..nodes.len() - 2]).unwrap());
            }
        }
        extend(headers, "x-forwarded-for", &peer.to_string());
        if headers.contains_key(header::FORWARDED) {
            let node = if peer.is_ipv6() { format!("for=\"[{peer}]\"") } else { format!("for={peer}") };
            extend(headers, "forwarded", &node);
        }
        let scheme = admitted.scheme.as_str();
        let port = public.to_str().unwrap().rsplit_once(':').map(|(_, port)| port.to_owned());
        let port = port.filter(|port| port.parse::<u16>().is_ok());
        let port = port.unwrap_or_else(|| String::from(if scheme == "https" { "443" } else { "80" }));
        let switch = if scheme == "https" { "on" } else { "off" };
        for (name, value) in [
            ("x-forwarded-port", port.as_str()),
            ("x-forwarded-scheme", scheme),
            ("x-scheme", scheme),
            ("x-url-scheme", scheme),
            ("x-forwarded-ssl", switch),
            ("front-end-https", switch),
        ] {
            if headers.contains_key(name) {
                headers.insert(name, text(value.to_owned()));
            }
        }
    } else {
        headers.remove(header::FORWARDED);
        let found: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).cloned().collect();
        for name in found {
            headers.remove(name);
        }
        for name in ["x-scheme", "x-url-scheme", "front-end-https"] {
            headers.remove(name);
        }
        headers.insert("x-forwarded-for", text(peer.to_string()));
    }
    headers.insert("x-forwarded-host", public.clone());
    headers.insert("x-forwarded-proto", HeaderValue::from_static(admitted.scheme.as_str()));
    headers.insert("x-real-ip", text(admitted.client.to_string()));
    headers.insert("x-request-id", request_id.clone());
}

fn extend(headers: &mut HeaderMap, name: &'static str, last: &str) {
    let mut value: Vec<u8> = Vec::new();
    for line in headers.get_all(name) {
        let line = line.as_bytes().trim_ascii();
        if !line.is_empty() {
            value.extend_from_slice(line);
            value.extend_from_slice(b", ");
        }
    }
    value.extend_from_slice(last.as_bytes());
    headers.insert(name, HeaderValue::from_bytes(&value).unwrap());
}

/// The head that was written: its first line and its fields, read by another parser.
fn parsed(bytes: &[u8]) -> (String, HeaderMap) {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut fields);
    assert_eq!(request.parse(bytes).unwrap(), httparse::Status::Complete(bytes.len()), "something follows the head");
    assert_eq!(request.version, Some(1));
    let mut headers = HeaderMap::new();
    for field in &*request.headers {
        headers.append(
            HeaderName::from_bytes(field.name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(field.value).unwrap(),
        );
    }
    (format!("{} {}", request.method.unwrap(), request.path.unwrap()), headers)
}

/// Every name with its values in their order.
fn sorted(headers: &HeaderMap) -> Vec<(String, Vec<HeaderValue>)> {
    let mut all: Vec<_> =
        headers.keys().map(|name| (name.to_string(), headers.get_all(name).iter().cloned().collect())).collect();
    all.sort_by(|one: &(String, Vec<HeaderValue>), other| one.0.cmp(&other.0));
    all
}

#[expect(clippy::struct_excessive_bools, reason = "switches, each thrown at random")]
struct Setting {
    trusted: bool,
    person: bool,
    own_bearer: bool,
    forward_token: bool,
    websocket: bool,
    alone: bool,
    framing: Framing,
    peer: Option<IpAddr>,
}

fn pass(person: bool) -> Pass {
    let policy = Policy { access: Access::Public, groups: Vec::new(), users: Vec::new() };
    let person = person.then(|| {
        Arc::new(Principal {
            id: String::from("1"),
            username: String::from("kim"),
            groups: vec![String::from("staff"), String::from("a,b")],
            email: String::new(),
            display_name: String::from(" \u{d55c}\u{ae00} "),
        })
    });
    let caller = person.map_or(Caller::Anonymous(Unidentified::NoCredential), Caller::Person);
    decide(&policy, &caller).unwrap()
}

fn identity_lines(ours: &[IdentityHeader], person: bool) -> Vec<u8> {
    pass(person).person().map(|person| identity::lines(ours, person)).unwrap_or_default()
}

fn agree(lines: &[(String, String)], setting: &Setting) -> Result<(), TestCaseError> {
    let mut request = Request::builder().uri("/a%2f?b").header("host", "gw.test:81");
    if setting.websocket {
        for (name, value) in [
            ("upgrade", "websocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            request = request.header(name, value);
        }
    }
    let mut raw = Vec::from("GET /a%2f?b HTTP/1.1\r\nhOST: gw.test:81\r\n");
    for (name, value) in lines {
        request = request.header(name.as_str(), value.as_str());
        raw.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    raw.extend_from_slice(b"\r\n");
    let parts = request.body(()).unwrap().into_parts().0;
    let trusted_proxies =
        if setting.trusted { vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()] } else { Vec::new() };
    let Ok(admitted) = admit(&parts, setting.peer, &Edge { trusted_proxies, scheme: Scheme::Http }) else {
        return Ok(());
    };
    let ours = [
        IdentityHeader { name: HeaderName::from_static("x-forwarded-user"), template: vec![TemplatePart::Username] },
        IdentityHeader { name: HeaderName::from_static("x-forwarded-groups"), template: vec![TemplatePart::Groups] },
        IdentityHeader { name: HeaderName::from_static("x-forwarded-email"), template: vec![TemplatePart::Email] },
        IdentityHeader { name: HeaderName::from_static("my-name"), template: vec![TemplatePart::DisplayName] },
    ];
    let guarded = Guarded::new(&ours, true);
    let outgoing = Outgoing {
        pass: &pass(setting.person),
        admitted: &admitted,
        peer: setting.peer,
        request_id: &HeaderValue::from_static("id-1"),
        strip_prefix: "",
        destination: None,
        guarded: &guarded,
        identity: &identity_lines(&ours, setting.person),
        cookie_name: "access_token",
        said_of_cookie: std::cell::RefCell::default(),
        own_bearer: setting.own_bearer,
        body_timeout: Duration::ZERO,
        disbelieved: std::cell::Cell::new(false),
        basic_password: None,
        spelling: &Spelling::new(raw),
        ties: &std::rc::Rc::default(),
    };
    let announced = trailers::announced(&parts.headers, |name| guarded.covers(name));
    let head = Head {
        parts: &parts,
        outgoing: &outgoing,
        forward_token: setting.forward_token,
        scheme: "http",
        basic: false,
        framing: setting.framing,
        trailers: &announced,
        alone: setting.alone,
    };
    let host = HeaderValue::from_static("backend.test");
    let mut written = Vec::new();
    head.write(&mut written, &host).unwrap();
    let (first_line, headers) = parsed(&written);
    prop_assert_eq!(first_line, "GET /a%2f?b");
    prop_assert_eq!(sorted(&headers), sorted(&edited(&parts, &outgoing, &ours, &host, &head)));
    // Everything that came and went on unchanged went on in its own spelling.
    let written = String::from_utf8_lossy(&written).into_owned();
    for (name, value) in lines.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-one")) {
        if headers.contains_key(name.as_str()) {
            prop_assert!(written.contains(&format!("\r\n{name}: {}\r\n", value.trim())), "{}", written);
        }
    }
    Ok(())
}

const NAMES: &[&str] = &[
    "Accept",
    "X-One",
    "x-oNE",
    "X-Two",
    "Cookie",
    "COOKIE",
    "Authorization",
    "Connection",
    "Connection",
    "connection",
    "TE",
    "Trailer",
    "Expect",
    "Content-Length",
    "Transfer-Encoding",
    "Keep-Alive",
    "Proxy-Connection",
    "Proxy-Authorization",
    "HTTP2-Settings",
    "Upgrade",
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Forwarded-User",
    "X_Forwarded_User",
    "x.forwarded.for",
    "X-Forwarded-Anything",
    "X-Real-IP",
    "X-Request-Id",
    "My-Name",
    "my_name",
    "Remote-User",
    "X-Auth-User",
    "Content_Length",
    "X-HTTP-Method-Override",
    "Content-Type",
    "Host",
];

const VALUES: &[&str] = &[
    "",
    "a",
    " a b ",
    "close",
    "keep-alive, x-one",
    "X-ONE, x-two, cookie, host, content-length",
    "x-forwarded-for, x-real-ip, x-request-id, x-forwarded-host, forwarded, my-name, x-forwarded-user",
    "trailers",
    "x-one, x-two, content-length, x-forwarded-user",
    "access_token=T",
    "a=1; access_token=T; b=2",
    "a=\"x; access_token=T\"",
    "1.2.3.4",
    "10.0.0.9, 1.2.3.4",
    "public.test:8080",
    "for=1.2.3.4",
    "https",
    "5",
    "chunked",
    "websocket",
];

fn some_framing() -> impl Strategy<Value = Framing> {
    prop_oneof![Just(Framing::Length(0)), (0..u64::MAX).prop_map(Framing::Length), Just(Framing::Chunked)]
}

fn some_peer() -> impl Strategy<Value = Option<IpAddr>> {
    prop::sample::select(vec![
        None,
        Some("9.9.9.9".parse().unwrap()),
        Some("10.0.0.1".parse().unwrap()),
        Some("fd00::1".parse().unwrap()),
        Some("::ffff:10.0.0.1".parse().unwrap()),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn what_is_written_is_what_editing_would_make(
        lines in prop::collection::vec((prop::sample::select(NAMES), prop::sample::select(VALUES)), 0..14),
        switches in any::<[bool; 6]>(),
        framing in some_framing(),
        peer in some_peer(),
    ) {
        let [trusted, person, own_bearer, forward_token, websocket, alone] = switches;
        let lines: Vec<_> = lines.into_iter().map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        agree(&lines, &Setting { trusted, person, own_bearer, forward_token, websocket, alone, framing, peer })?;
    }
}

#[test]
fn the_bytes_of_an_ordinary_request() {
    let lines =
        [("accept", "*/*"), ("SOAPAction", "x"), ("X-Forwarded-User", "admin"), ("Cookie", "access_token=T; a=b")];
    let raw: Vec<u8> = [
        "GET /a HTTP/1.1\r\nHost: gw.test\r\n",
        &lines.map(|(name, value)| format!("{name}: {value}\r\n")).concat(),
        "\r\n",
    ]
    .concat()
    .into_bytes();
    let mut request = Request::builder().uri("/a").header("host", "gw.test");
    for (name, value) in lines {
        request = request.header(name, value);
    }
    let parts = request.body(()).unwrap().into_parts().0;
    let edge = Edge { trusted_proxies: Vec::new(), scheme: Scheme::Https };
    let peer = Some("9.9.9.9".parse().unwrap());
    let admitted = admit(&parts, peer, &edge).unwrap();
    let ours =
        [IdentityHeader { name: HeaderName::from_static("x-forwarded-user"), template: vec![TemplatePart::Username] }];
    let guarded = Guarded::new(&ours, false);
    let outgoing = Outgoing {
        pass: &pass(true),
        admitted: &admitted,
        peer,
        request_id: &HeaderValue::from_static("id-1"),
        strip_prefix: "",
        destination: None,
        guarded: &guarded,
        identity: &identity_lines(&ours, true),
        cookie_name: "access_token",
        said_of_cookie: std::cell::RefCell::default(),
        own_bearer: false,
        body_timeout: Duration::ZERO,
        disbelieved: std::cell::Cell::new(false),
        basic_password: None,
        spelling: &Spelling::new(raw),
        ties: &std::rc::Rc::default(),
    };
    let head = Head {
        parts: &parts,
        outgoing: &outgoing,
        forward_token: false,
        scheme: "http",
        basic: false,
        framing: Framing::Length(0),
        trailers: &[],
        alone: false,
    };
    let mut written = Vec::new();
    head.write(&mut written, &admitted.authority).unwrap();
    assert_eq!(
        String::from_utf8(written).unwrap(),
        "GET /a HTTP/1.1\r\nHost: gw.test\r\naccept: */*\r\nSOAPAction: x\r\nCookie: a=b\r\n\
         X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Host: gw.test\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 9.9.9.9\r\n\
         X-Request-Id: id-1\r\nX-Forwarded-User: kim\r\n\r\n"
    );
}
