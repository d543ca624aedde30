//! One connection to a backend, one exchange: what one person sent or got is never part of another's request or answer.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::gateway::free_port;
use crate::support::peer::{Peer, node, of_tests, python};
use crate::support::{Builder, Connection, Gateway, Request, Response};

/// Python's own HTTP server, which reads no body that its handlers do not read.
fn reads_nothing(builder: &Builder) -> Peer {
    let port = free_port();
    let mut command = python();
    command.arg(of_tests("peers/reads_nothing.py")).arg(port.to_string());
    Peer::start(command, port, &builder.folder().join("backend.log"))
}

/// One worker, so that every request finds the connections of the ones before it.
fn before(builder: Builder, backend: &Peer, reuse: Option<&str>) -> Gateway {
    let builder = builder.set("server.workers", "1").upstream("app", &[&backend.url()]);
    let builder = match reuse {
        Some(reuse) => builder.set("upstream.app.reuse", &format!("\"{reuse}\"")),
        None => builder,
    };
    builder.route("path = \"/\"\naccess = \"public\"\nupstream = \"app\"").start()
}

/// A request that must never be served.
fn hidden() -> String {
    String::from("GET /admin HTTP/1.1\r\nHost: a\r\nX-Forwarded-User: root\r\n\r\n")
}

/// What of a page can be sent in a query.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        let _ = write!(escaped, "%{byte:02X}");
        escaped
    })
}

#[test]
fn a_request_in_a_body_that_python_leaves_unread_is_served_to_nobody() {
    let builder = Builder::new();
    let backend = reads_nothing(&builder);
    let gateway = before(builder, &backend, None);
    // Both keep their connections, as browsers do.
    let (mut stranger, mut other) = (gateway.connect().with_any_field(), gateway.connect().with_any_field());
    let chunked = format!("{:x}\r\n{}\r\n0\r\n\r\n", hidden().len(), hidden());
    for round in 0..2 {
        for (method, path) in [
            ("GET", "/a"),
            ("POST", "/missing"),
            ("POST", "/moved"),
            ("POST", "/unread"),
            ("PUT", "/a"),
            ("DELETE", "/a"),
            ("OPTIONS", "/a"),
        ] {
            // One that waits for the whole body, and one that has no length.
            let answer = if round % 2 == 0 {
                stranger.send(&Request::new(method, path).body(hidden().as_bytes()))
            } else {
                let head = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
                stranger.write(format!("{head}{chunked}").as_bytes());
                stranger.read(method, path)
            };
            assert!(!answer.text().contains("admin"), "{method} {path}: {}", answer.text());
            for (who, connection) in [("the next", &mut other), ("the same", &mut stranger)] {
                let seen = connection.send(&Request::get("/b")).expect(200).text();
                assert_eq!(seen, "/b for -", "what {who} client got after {method} {path}");
            }
        }
    }
    let served = other.send(&Request::get("/served")).expect(200).text();
    assert!(served.contains("POST /missing") && served.contains("GET /a"), "{served}");
    assert!(!served.contains("/admin") && !served.contains("root"), "{served}");
}

#[test]
fn a_body_that_python_sends_after_head_204_or_304_is_nobodys_answer() {
    let builder = Builder::new();
    let backend = reads_nothing(&builder);
    let gateway = before(builder, &backend, None);
    let (mut stranger, mut other) = (gateway.connect().with_any_field(), gateway.connect().with_any_field());
    let forged = escaped("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged");
    for _ in 0..8 {
        for (method, path) in [("HEAD", "/say"), ("HEAD", "/empty204"), ("GET", "/empty204"), ("GET", "/empty304")] {
            let answer = stranger.send(&Request::new(method, &format!("{path}?{forged}")));
            assert!(answer.body.is_empty(), "{}", answer.text());
            let seen = other.send(&Request::get("/say?mine")).expect(200).text();
            assert_eq!(seen, "mine", "after {method} {path}");
        }
    }
}

#[test]
fn reuse_says_after_which_requests_a_connection_is_used_again() {
    for (reuse, closes) in [
        (None, [false, true, true, false]),
        (Some("without_body"), [false, true, true, false]),
        (Some("always"), [false, false, true, false]),
        (Some("never"), [true, true, true, true]),
    ] {
        let upstream = crate::support::Upstream::plain();
        let mut builder = Builder::guarding(&upstream).set("server.workers", "1");
        if let Some(reuse) = reuse {
            builder = builder.set("upstream.app.reuse", &format!("\"{reuse}\""));
        }
        let gateway = builder.route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"").start();
        let requests = [
            Request::get("/open"),
            Request::post("/open").body(b"x"),
            Request::new("HEAD", "/open"),
            Request::post("/open").body(b""),
        ];
        for (request, closes) in requests.iter().zip(closes) {
            let before = upstream.count();
            gateway.send(request).expect(200);
            gateway.get("/open").expect(200);
            let recorded = &upstream.recorded()[before..];
            assert_eq!(recorded[0].connection != recorded[1].connection, closes, "{reuse:?} {request:?}");
            let told = recorded[0].field("connection");
            assert_eq!(told.as_deref(), closes.then_some("close"), "{reuse:?} {request:?}");
        }
    }
}

/// The first message of an NTLM client.
fn first_message() -> String {
    let mut message = b"NTLMSSP\0\x01\0\0\0\x02\x02\0\0".to_vec();
    message.resize(32, 0);
    STANDARD.encode(message)
}

/// The last one: who the client is. The proof of it is empty, and the backend has nobody who could check it.
fn last_message(name: &str) -> String {
    let mut message = b"NTLMSSP\0\x03\0\0\0".to_vec();
    message.resize(64, 0);
    let length = u16::try_from(name.len()).unwrap().to_le_bytes();
    message[0x24..0x26].copy_from_slice(&length);
    message[0x28] = 64;
    message.extend_from_slice(name.as_bytes());
    STANDARD.encode(message)
}

/// Both steps of the handshake; what the second one was answered with.
fn handshake(connection: &mut Connection, request: &Request, name: &str) -> Response {
    let challenge = connection.send(&request.clone().field("Authorization", &format!("NTLM {}", first_message())));
    let challenge = challenge.expect(401).field("www-authenticate").unwrap();
    assert!(challenge.starts_with("NTLM TlRMTVNTUAAC"), "{challenge}");
    connection.send(&request.clone().field("Authorization", &format!("NTLM {}", last_message(name))))
}

fn ntlm_backend(builder: &Builder) -> Peer {
    let port = free_port();
    let mut command = node("peers/ntlm.js");
    command.arg(port.to_string());
    Peer::start(command, port, &builder.folder().join("ntlm.log"))
}

#[test]
fn a_connection_that_ntlm_logged_in_belongs_to_one_person_on_one_client_connection() {
    let builder = Builder::new();
    let backend = ntlm_backend(&builder);
    let gateway = builder
        .set("server.workers", "1")
        .upstream("app", &[&backend.url()])
        .route("path = \"/\"\nupstream = \"app\"")
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .user("kim", &[])
        .user("lee", &[])
        .start();
    let connect = || gateway.connect().with_any_field();
    let page = |name: &str| Request::get("/page").cookie(&gateway.login(name));
    let (kim, lee) = (page("kim"), page("lee"));

    let mut of_kim = connect();
    assert_eq!(of_kim.send(&kim).expect(401).field("www-authenticate").unwrap(), "NTLM");
    let seen = handshake(&mut of_kim, &kim, "KIM-NT").expect(200).json();
    assert_eq!((seen["ntlm"].as_str(), seen["person"].as_str()), (Some("KIM-NT"), Some("kim")));
    // From then on the connection is logged in, and says nothing of it.
    for _ in 0..3 {
        assert_eq!(of_kim.send(&kim).expect(200).json()["ntlm"], "KIM-NT");
    }
    // Not for another person, not for the same one elsewhere, not for nobody.
    let mut of_lee = connect();
    of_lee.send(&lee).expect(401);
    connect().send(&kim).expect(401);
    connect().send(&Request::get("/open")).expect(401);
    assert_eq!(handshake(&mut of_lee, &lee, "LEE-NT").expect(200).json()["ntlm"], "LEE-NT");
    for _ in 0..3 {
        assert_eq!(of_kim.send(&kim).expect(200).json()["ntlm"], "KIM-NT");
        assert_eq!(of_lee.send(&lee).expect(200).json()["ntlm"], "LEE-NT");
    }
    // The person on the client's connection changes, and changes back: nothing is left.
    of_kim.send(&lee).expect(401);
    of_kim.send(&kim).expect(401);
    handshake(&mut of_kim, &kim, "KIM-NT").expect(200);
    of_kim.send(&Request::get("/open")).expect(401);
    of_kim.send(&kim).expect(401);
    // A body ends the connection, whoever it belongs to: a request may hide in it.
    handshake(&mut of_kim, &kim, "KIM-NT").expect(200);
    let upload = Request::post("/page").cookie(&gateway.login("kim")).body(hidden().as_bytes());
    assert_eq!(of_kim.send(&upload).expect(200).json()["ntlm"], "KIM-NT");
    of_kim.send(&kim).expect(401);
    // Nor does it outlive the client's connection.
    handshake(&mut of_kim, &kim, "KIM-NT").expect(200);
    drop(of_kim);
    connect().send(&kim).expect(401);
    // Nobody on a public route is one client as well.
    let mut nobody = connect();
    assert_eq!(handshake(&mut nobody, &Request::get("/open"), "X").expect(200).json()["ntlm"], "X");
    assert_eq!(nobody.send(&Request::get("/open")).expect(200).json()["ntlm"], "X");
    connect().send(&Request::get("/open")).expect(401);
}

#[test]
fn behind_a_proxy_that_brings_many_people_on_one_connection_nobody_gets_anothers_login() {
    let builder = Builder::new();
    let backend = ntlm_backend(&builder);
    let gateway = builder
        .set("server.workers", "1")
        .set("server.trusted_proxies", "[\"127.0.0.1\"]")
        .upstream("app", &[&backend.url()])
        .route("path = \"/\"\nupstream = \"app\"")
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .user("kim", &[])
        .user("lee", &[])
        .start();
    let mut proxy = gateway.connect().with_any_field();
    let from = |client: &str, name: Option<&str>| {
        let request = Request::get(if name.is_some() { "/page" } else { "/open" }).field("X-Forwarded-For", client);
        name.map_or(request.clone(), |name| request.cookie(&gateway.login(name)))
    };
    let (kim, lee) = (from("192.0.2.1", Some("kim")), from("192.0.2.2", Some("lee")));
    assert_eq!(handshake(&mut proxy, &kim, "KIM-NT").expect(200).json()["ntlm"], "KIM-NT");
    assert_eq!(proxy.send(&kim).expect(200).json()["ntlm"], "KIM-NT");
    proxy.send(&lee).expect(401);
    proxy.send(&kim).expect(401);
    handshake(&mut proxy, &kim, "KIM-NT").expect(200);
    // The same account at another place.
    proxy.send(&from("192.0.2.3", Some("kim"))).expect(401);
    // Nobody can't be told from the next nobody: the handshake finds no connection that waits for it.
    assert!(handshake(&mut proxy, &from("192.0.2.4", None), "X").status >= 400);
    proxy.send(&from("192.0.2.4", None)).expect(401);
}
