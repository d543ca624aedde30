//! What the backend sees: our identity headers, and never the client's.

use serde_json::json;

use crate::support::gateway::hash;
use crate::support::upstream::Recorded;
use crate::support::{Builder, Gateway, PASSWORD, Request, Upstream};

const EVERY_FAMILY: &[&str] = &[
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Groups",
    "X-Forwarded-Preferred-Username",
    "Remote-User",
    "Remote-Groups",
    "Remote-Email",
    "Remote-Name",
    "X-Remote-User",
    "X-Remote-Group",
    "X-Auth-User",
    "X-Auth-Request-User",
    "X-Auth-Request-Groups",
    "X-Doorward-Assertion",
    "X-Doorward-Anything",
    "X-WebAuth-User",
    "X-Team",
    "X-Original-URL",
    "X-Original-URI",
    "X-Rewrite-URL",
];

fn spellings(name: &str) -> Vec<String> {
    vec![
        name.to_owned(),
        name.to_ascii_lowercase(),
        name.to_ascii_uppercase(),
        name.replace('-', "_"),
        name.replacen('-', "_", 1),
        name.replace('-', "."),
        name.replace('-', "~"),
        name.replace('-', "!"),
        name.to_ascii_lowercase().replace('-', "_"),
    ]
}

fn setup() -> (Upstream, Builder) {
    let upstream = Upstream::plain();
    let builder = Builder::guarding(&upstream)
        .set("identity.headers.X-Team", "\"{groups}\"")
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .route("path = \"/maybe\"\naccess = \"optional\"\nupstream = \"app\"");
    (upstream, builder)
}

/// What a person `kim` is to be announced with, whatever the client sent.
#[track_caller]
fn names_kim(request: &Recorded) {
    for (name, value) in [
        ("X-Forwarded-User", "kim"),
        ("X-Forwarded-Groups", "staff"),
        ("X-Forwarded-Email", "kim@example.com"),
        ("X-Forwarded-Preferred-Username", "kim"),
        ("X-Team", "staff"),
    ] {
        assert_eq!(request.folded(name), [value], "{name}");
    }
}

#[test]
fn a_secret_that_names_nobody_and_what_the_file_lists_pass() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .set("identity.pass", "[\"X-Auth-Signature\"]")
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .start();
    let mut request = Request::get("/open");
    let passing = ["X-Auth-Token", "X-Auth-Key", "X-Auth-Signature"];
    for name in passing {
        for spelling in spellings(name) {
            request = request.field(&spelling, if spelling.eq_ignore_ascii_case(name) { "real" } else { "disguise" });
        }
    }
    gateway.send(&request.field("X-Auth-Email", "root").field("X-Auth-Signature-User", "root")).expect(200);
    let seen = upstream.last();
    for name in passing {
        // In each letter case that came.
        assert_eq!(seen.folded(name), ["real"; 3], "{name}");
    }
    for name in ["X-Auth-Email", "X-Auth-Signature-User"] {
        assert_eq!(seen.folded(name), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn what_other_gateways_send_does_not_come_from_strangers() {
    let (upstream, builder) = setup();
    let gateway = builder.start();
    let mut connection = gateway.connect();
    for name in [
        "X-authentik-username",
        "X-Pomerium-Claim-Email",
        "Cf-Access-Authenticated-User-Email",
        "X-Amzn-Oidc-Identity",
        "X-Goog-Authenticated-User-Email",
        "X-MS-CLIENT-PRINCIPAL-NAME",
        "X-SSL-Client-S-Dn",
        "Ssl-Client-Verify",
        "Client-IP",
        "True-Client-IP",
    ] {
        let mut request = Request::get("/open");
        for spelling in spellings(name) {
            request = request.field(&spelling, "root");
        }
        connection.send(&request).expect(200);
        assert_eq!(upstream.last().folded(name), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn a_shared_password_is_handed_over_with_the_name_to_upstreams_that_ask_for_it() {
    let upstream = Upstream::plain();
    let builder = Builder::guarding(&upstream)
        .upstream("php", &[&upstream.url])
        .set("upstream.php.basic", "true")
        .route("path = \"/php\"\nupstream = \"php\"")
        .route("path = \"/php/open\"\naccess = \"public\"\nupstream = \"php\"");
    let file = builder.folder().join("password");
    crate::support::gateway::write_private(&file, b"sesame\n");
    let gateway = builder.set("identity.basic_password_file", &crate::support::gateway::quoted(&file)).start();
    let token = gateway.login("kim");
    let mine = "Basic cm9vdDpndWVzcw==";
    for (target, token, sent, expected) in [
        ("/php", Some(&token), None, Some("Basic a2ltOnNlc2FtZQ==")),
        ("/php", Some(&token), Some(mine), Some("Basic a2ltOnNlc2FtZQ==")),
        ("/php/open", Some(&token), Some(mine), Some("Basic a2ltOnNlc2FtZQ==")),
        // Nobody is named, and a stranger names nobody either.
        ("/php/open", None, Some(mine), None),
        ("/", Some(&token), None, None),
        ("/", Some(&token), Some(mine), Some(mine)),
    ] {
        let mut request = Request::get(target);
        if let Some(token) = token {
            request = request.cookie(token);
        }
        if let Some(sent) = sent {
            request = request.field("Authorization", sent);
        }
        gateway.send(&request).expect(200);
        assert_eq!(upstream.last().field("Authorization").as_deref(), expected, "{target} {sent:?}");
    }
    assert!(!gateway.logs().contains("sesame"));
}

#[test]
fn the_backend_is_told_who_calls_on_every_kind_of_route() {
    let (upstream, builder) = setup();
    let gateway = builder.start();
    let token = gateway.login("kim");
    for target in ["/", "/open", "/maybe"] {
        gateway.get_with(target, &token).expect(200);
        names_kim(&upstream.last());
    }
    for target in ["/open", "/maybe"] {
        gateway.get(target).expect(200);
        for name in EVERY_FAMILY {
            assert_eq!(upstream.last().folded(name), Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn no_spelling_of_an_identity_header_reaches_the_backend_on_any_route() {
    let (upstream, builder) = setup();
    let gateway = builder.start();
    let token = gateway.login("kim");
    let mut person = gateway.connect();
    let mut nobody = gateway.connect();
    for name in EVERY_FAMILY {
        for spelling in spellings(name) {
            for target in ["/", "/open"] {
                let request =
                    Request::get(target).field(&spelling, "admin").field(&spelling, "root").field(&spelling, "");
                person.send(&request.clone().cookie(&token)).expect(200);
                names_kim(&upstream.last());
                let raw = String::from_utf8_lossy(&upstream.last().raw).into_owned();
                assert!(!raw.contains("admin") && !raw.contains("root"), "{spelling} on {target}: {raw}");
                if target == "/open" {
                    nobody.send(&request).expect(200);
                    assert_eq!(upstream.last().folded(name), Vec::<String>::new(), "{spelling}");
                }
            }
        }
    }
}

#[test]
fn naming_our_header_in_connection_does_not_take_it_out() {
    let (upstream, builder) = setup();
    let gateway = builder.start();
    let token = gateway.login("kim");
    for list in [
        "X-Forwarded-User",
        "keep-alive, x-forwarded-user, X-Forwarded-Groups, X-Team, Host, Cookie",
        "close, x_forwarded_user",
    ] {
        let request = Request::get("/").cookie(&token).field("Connection", list).field("X-Forwarded-User", "admin");
        gateway.send(&request).expect(200);
        let seen = upstream.last();
        names_kim(&seen);
        assert_eq!(seen.folded("connection").iter().filter(|value| value.contains("orward")).count(), 0);
        assert_eq!(seen.field("host").as_deref(), Some(gateway.address.to_string().as_str()));
    }
    // Several lines count together.
    let request = Request::get("/")
        .cookie(&token)
        .field("Connection", "keep-alive")
        .field("Connection", "X-Secret-Hop")
        .field("X-Secret-Hop", "1");
    gateway.send(&request).expect(200);
    assert!(upstream.last().folded("x-secret-hop").is_empty());
}

#[test]
fn trailers_carry_no_identity_no_framing_and_no_cookies() {
    let (upstream, builder) = setup();
    let gateway = builder.start();
    let token = gateway.login("kim");
    let mut connection = gateway.connect();
    let head = format!(
        "POST /open HTTP/1.1\r\nHost: a\r\nCookie: access_token={token}\r\nTransfer-Encoding: chunked\r\n\
         Trailer: X-Checksum, X-Forwarded-User, X_Forwarded_User, Cookie, Content-Length, Host, Authorization, X-Team\r\n\r\n"
    );
    let body = "3\r\nabc\r\n0\r\nX-Checksum: 7\r\nX-Forwarded-User: admin\r\nX_Forwarded_User: admin\r\nCookie: a=b\r\n\
                Content-Length: 9\r\nHost: b\r\nX-Team: admin\r\nX-Unannounced: admin\r\n\r\n";
    connection.write(head.as_bytes());
    connection.write(body.as_bytes());
    let answer = connection.read("POST", "/open");
    if answer.status == 400 {
        // Refusing such a request whole is as good.
        assert_eq!(upstream.count(), 0);
        return;
    }
    let seen = upstream.last();
    names_kim(&seen);
    assert_eq!(seen.body, b"abc");
    let trailers: Vec<String> = seen.trailers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    assert_eq!(trailers, ["x-checksum"]);
}

#[test]
fn hop_by_hop_headers_stay_behind_in_both_directions() {
    let upstream = Upstream::start(|_, wire| {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive, X-Upstream-Hop\r\nKeep-Alive: timeout=5\r\n\
                      X-Upstream-Hop: 1\r\nProxy-Authenticate: Basic\r\nProxy-Connection: keep-alive\r\nX-Upstream-Stays: 1\r\n\r\n";
        crate::support::reply_bytes(wire, answer.as_bytes())
    });
    let gateway = Gateway::guarding(&upstream);
    let request = Request::get("/")
        .cookie(&gateway.login("kim"))
        .field("Keep-Alive", "timeout=5")
        .field("Proxy-Connection", "keep-alive")
        .field("Proxy-Authorization", "Basic a2ltOng=")
        .field("TE", "trailers, deflate")
        .field("Upgrade", "h2c")
        .field("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA")
        .field("Connection", "Upgrade, HTTP2-Settings, TE")
        .field("Proxy", "http://evil.example");
    let mut connection = gateway.connect();
    let answer = connection.send(&request).expect(200);
    let seen = upstream.last();
    for name in ["keep-alive", "proxy-connection", "proxy-authorization", "upgrade", "http2-settings", "proxy"] {
        assert!(seen.folded(name).is_empty(), "{name}: {:?}", seen.folded(name));
    }
    for name in ["keep-alive", "proxy-authenticate", "proxy-connection", "x-upstream-hop"] {
        assert!(answer.all(name).is_empty(), "{name}");
    }
    assert_eq!(answer.field("x-upstream-stays").as_deref(), Some("1"));
    // The connection goes on.
    connection.send(&Request::get("/check")).expect(401);
}

#[test]
fn forwarding_headers_of_strangers_are_replaced_and_those_of_a_trusted_proxy_extended() {
    let forged = |target: &str| {
        Request::get(target)
            .field("X-Forwarded-For", "198.51.100.7")
            .field("X-Real-IP", "198.51.100.7")
            .field("X-Forwarded-Proto", "https")
            .field("X-Forwarded-Host", "evil.example")
            .field("X-Request-Id", "given-id-1")
    };
    let (upstream, builder) = setup();
    let gateway = builder.start();
    gateway
        .send(&forged("/open").field("X_Forwarded_For", "198.51.100.8").field("Forwarded", "for=198.51.100.9"))
        .expect(200);
    let seen = upstream.last();
    assert_eq!(seen.folded("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.folded("x-real-ip"), ["127.0.0.1"]);
    assert_eq!(seen.folded("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.folded("x-forwarded-host"), [gateway.address.to_string()]);
    assert_ne!(seen.field("x-request-id").unwrap(), "given-id-1");
    assert!(!String::from_utf8_lossy(&seen.raw).contains("198.51.100"), "{:?}", seen.head);
    assert_eq!(gateway.log_lines("access").iter().filter(|line| line["client"] == "198.51.100.7").count(), 0);

    let (upstream, builder) = setup();
    let gateway = builder.set("server.trusted_proxies", "[\"127.0.0.0/8\"]").start();
    gateway.send(&forged("/open")).expect(200);
    let seen = upstream.last();
    assert_eq!(seen.folded("x-forwarded-for"), ["198.51.100.7, 127.0.0.1"]);
    assert_eq!(seen.folded("x-real-ip"), ["198.51.100.7"]);
    assert_eq!(seen.folded("x-forwarded-proto"), ["https"]);
    assert_eq!(seen.folded("x-forwarded-host"), ["evil.example"]);
    assert_eq!(seen.field("x-request-id").as_deref(), Some("given-id-1"));
    // Only what the trusted proxy wrote counts: the client's own addresses are to the left of it.
    gateway.send(&Request::get("/open").field("X-Forwarded-For", "203.0.113.1, 198.51.100.7, 127.0.0.9")).expect(200);
    assert_eq!(upstream.last().folded("x-real-ip"), ["198.51.100.7"]);
    for garbage in ["a", "", "1.2.3.4.5", "unknown, x", "fe80::1%eth0", &"1.1.1.1, ".repeat(1000)] {
        let answer = gateway.send(&Request::get("/open").field("X-Forwarded-For", garbage));
        assert!(matches!(answer.status, 200 | 400), "{garbage:.40}: {}", answer.status);
    }
}

#[test]
fn the_remote_preset_and_none_send_what_they_say() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .set("identity.preset", "\"remote\"")
        .user_with(&json!({"username": "zoë", "password_hash": hash(PASSWORD), "display_name": "Zoë 김", "groups": []}))
        .start();
    gateway.get_with("/", &gateway.login("zoë")).expect(200);
    let seen = upstream.last();
    assert_eq!(seen.folded("remote-user"), ["zoë"]);
    assert_eq!(seen.folded("remote-name"), ["Zoë 김"]);
    assert!(seen.folded("remote-groups").is_empty(), "a header without a value is not sent");
    assert!(seen.folded("x-forwarded-user").is_empty());

    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("identity.preset", "\"none\"").start();
    gateway.get_with("/", &gateway.login("kim")).expect(200);
    for name in EVERY_FAMILY {
        assert!(upstream.last().folded(name).is_empty(), "{name}");
    }
}

#[test]
fn a_cookie_and_a_bearer_token_of_two_people_count_as_no_login() {
    let (upstream, builder) = setup();
    let gateway = builder.user("lee", &[]).start();
    let (kim, lee) = (gateway.login("kim"), gateway.login("lee"));
    gateway.send(&Request::get("/").cookie(&kim).bearer(&lee)).expect(401);
    gateway.send(&Request::get("/").cookie(&kim).bearer(&kim)).expect(200);
    gateway.send(&Request::get("/open").cookie(&kim).bearer(&lee)).expect(200);
    assert!(upstream.last().folded("x-forwarded-user").is_empty());
}

#[test]
fn the_backend_gets_the_token_only_where_the_file_says_so() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("upstream.app.forward_token", "true").start();
    let token = gateway.login("kim");
    gateway.send(&Request::get("/").field("Cookie", &format!("a=1; access_token={token}; b=2"))).expect(200);
    assert_eq!(upstream.last().field("cookie"), Some(format!("a=1; access_token={token}; b=2")));
    gateway.send(&Request::get("/").bearer(&token)).expect(200);
    assert_eq!(upstream.last().field("authorization"), Some(format!("Bearer {token}")));
}

#[test]
fn method_override_headers_are_taken_out_where_routes_differ_by_method() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .route("path = \"/read\"\nmethods = [\"GET\"]\naccess = \"public\"\nupstream = \"app\"")
        .start();
    for name in ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X_HTTP_Method_Override"] {
        gateway.send(&Request::get("/read").field(name, "DELETE")).expect(200);
        assert!(upstream.last().folded(name).is_empty(), "{name}");
    }
    gateway.send(&Request::new("HEAD", "/read")).expect(200);
    gateway.send(&Request::new("DELETE", "/read")).expect(401);
    gateway.send(&Request::new("OPTIONS", "/read")).expect(401);
}

#[test]
fn ours_come_even_when_the_client_sends_as_many_headers_as_it_may() {
    let (upstream, builder) = setup();
    let gateway = builder.start();
    let mut request = Request::get("/").cookie(&gateway.login("kim"));
    for number in 0..95 {
        request = request.field(&format!("X-Filler-{number}"), "1");
    }
    gateway.send(&request).expect(200);
    names_kim(&upstream.last());
}

#[test]
fn other_headers_keep_their_spelling_and_bytes() {
    let (upstream, builder) = setup();
    let gateway = builder.start();
    let mut connection = gateway.connect();
    connection.write(b"GET /open?a=%zz&b={} HTTP/1.1\r\nHost: h\r\nX-Custom-ID: caf\xe9\r\nSOAPAction: \"x\"\r\n\r\n");
    connection.read("GET", "/open").expect(200);
    let seen = upstream.last();
    assert_eq!(seen.target, "/open?a=%zz&b={}");
    let raw = seen.raw;
    let contains = |part: &[u8]| raw.windows(part.len()).any(|window| window == part);
    assert!(contains(b"X-Custom-ID: caf\xe9\r\n"), "{:?}", String::from_utf8_lossy(&raw));
    assert!(contains(b"SOAPAction: \"x\"\r\n"), "{:?}", String::from_utf8_lossy(&raw));
}

#[test]
fn every_request_on_a_connection_keeps_its_own_spelling() {
    let (upstream, builder) = setup();
    let gateway = builder.start();
    let mut connection = gateway.connect();
    let contains = |raw: &[u8], part: &[u8]| raw.windows(part.len()).any(|window| window == part);
    // A body that looks like a head, and then a head.
    let body = "GET / HTTP/1.1\r\nX-WORD: b\r\n\r\n";
    let length = body.len();
    connection.write(
        format!("POST /open HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\nx-woRD: a\r\n\r\n{body}").as_bytes(),
    );
    connection.read("POST", "/open").expect(200);
    assert!(contains(&upstream.last().raw, b"\r\nx-woRD: a\r\n"));
    connection.write(b"GET /open HTTP/1.1\r\nhOST: h\r\nx-Word: b\r\n\r\n");
    connection.read("GET", "/open").expect(200);
    assert!(contains(&upstream.last().raw, b"\r\nx-Word: b\r\n"));
    // In pieces.
    for piece in ["GET /open HTTP/1.1\r\nHo", "st: h\r\nX-wo", "rd: c\r\n", "\r\n"] {
        connection.write(piece.as_bytes());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    connection.read("GET", "/open").expect(200);
    assert!(contains(&upstream.last().raw, b"\r\nX-word: c\r\n"));
    // Sent ahead: another request's is never taken.
    connection
        .write(b"GET /open HTTP/1.1\r\nHost: h\r\nX-WORD: d\r\n\r\nGET /open HTTP/1.1\r\nHost: h\r\nx-word: d\r\n\r\n");
    for _ in 0..2 {
        connection.read("GET", "/open").expect(200);
    }
    let seen = upstream.recorded();
    let [first, second] = &seen[seen.len() - 2..] else { unreachable!() };
    assert!(contains(&first.raw, b"\r\nX-WORD: d\r\n"), "{:?}", String::from_utf8_lossy(&first.raw));
    assert!(contains(&second.raw, b"\r\nx-word: d\r\n"), "{:?}", String::from_utf8_lossy(&second.raw));
}
