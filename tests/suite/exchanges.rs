//! One connection to a backend, one exchange: what one person sent or got is never part of another's request or answer.

use std::fmt::Write as _;

use crate::support::gateway::free_port;
use crate::support::peer::{Peer, of_tests, python};
use crate::support::{Builder, Gateway, Request};

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
