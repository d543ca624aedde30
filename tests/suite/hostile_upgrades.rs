//! Upgrades that are none, or not yet one: nothing is tunnelled but what the backend has agreed to. THREATS 5.J 134 to
//! 139.

use std::io::{Read as _, Write as _};
use std::sync::mpsc;
use std::time::Duration;

use crate::support::wire::Reader;
use crate::support::{Builder, Gateway, Request, Upstream, cases, reply, reply_bytes};

fn handshake(target: &str) -> Request {
    Request::get(target)
        .field("Upgrade", "websocket")
        .field("Connection", "Upgrade")
        .field("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .field("Sec-WebSocket-Version", "13")
}

fn guarded(upstream: &Upstream) -> Gateway {
    Builder::guarding(upstream).route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"").start()
}

const SMUGGLED: &str = "GET /open/smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn upgrade_135_what_a_client_sends_early_reaches_the_backend_only_after_its_101() {
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let upstream = Upstream::raw(move |stream| {
        let mut reader = Reader::new(stream);
        let Ok(Some(_)) = reader.head() else { return };
        let early = std::mem::take(&mut reader.buffered);
        // Time enough for what should not come.
        reader.stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        let mut piece = [0; 64];
        let more = reader.stream.read(&mut piece).is_ok_and(|count| count > 0);
        let _ = tell.lock().unwrap().send(early.is_empty() && !more);
        let _ = reader.stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        );
        reader.stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        if let Ok(bytes) = reader.exactly(SMUGGLED.len()) {
            let _ = reader.stream.write_all(&bytes);
        }
    });
    let gateway = guarded(&upstream);
    let mut connection = gateway.connect();
    connection.begin(&handshake("/open/ws"));
    connection.write(SMUGGLED.as_bytes());
    assert!(told.recv_timeout(Duration::from_secs(30)).unwrap(), "bytes came before the 101");
    connection.read("GET", "/open/ws").expect(101);
    // Then they are the tunnel's, and nobody's request.
    assert_eq!(connection.reader.exactly(SMUGGLED.len()).unwrap(), SMUGGLED.as_bytes());
    assert!(gateway.log_lines("access").iter().all(|line| line["path"] != "/open/smuggled"));
}

#[test]
fn upgrade_136_any_other_answer_than_101_leaves_the_connection_to_http() {
    let answers = [
        ("200 OK", "", 200),
        ("204 No Content", "", 204),
        ("301 Moved Permanently", "Location: /elsewhere\r\n", 301),
        ("400 Bad Request", "", 400),
        ("404 Not Found", "", 404),
        ("426 Upgrade Required", "Upgrade: websocket\r\nConnection: upgrade\r\n", 426),
        (
            "200 OK",
            "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
            200,
        ),
        ("500 Internal Server Error", "", 500),
        // A switch to something that nobody asked for is no answer.
        ("101 Switching Protocols", "Upgrade: h2c\r\nConnection: Upgrade\r\n", 502),
        ("101 Switching Protocols", "Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n", 502),
        ("101 Switching Protocols", "Connection: Upgrade\r\n", 502),
        ("101 Switching Protocols", "", 502),
    ];
    let upstream = Upstream::start(move |request, wire| {
        let Some(number) = request.target.strip_prefix("/open/ws/").and_then(|number| number.parse::<usize>().ok())
        else {
            return reply(wire, 200, &[], request.target.as_bytes());
        };
        let (status, fields, _) = answers[number];
        let length = if status.starts_with("204") || status.starts_with("101") { "" } else { "Content-Length: 0\r\n" };
        reply_bytes(wire, format!("HTTP/1.1 {status}\r\n{length}{fields}\r\n").as_bytes())
    });
    let gateway = guarded(&upstream);
    for (number, (status, fields, expected)) in answers.iter().enumerate() {
        let mut connection = gateway.connect().with_any_field();
        let target = format!("/open/ws/{number}");
        connection.begin(&handshake(&target));
        // The client believes in its tunnel already: this asks for a login of its own.
        connection.write(b"GET /closed HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = connection.read("GET", &target).expect(*expected);
        assert!(answer.all("upgrade").is_empty(), "{status} {fields:?}");
        connection.read("GET", "/closed").expect(401);
        connection.send(&Request::get("/open/next")).expect(200);
    }
    assert!(upstream.recorded().iter().all(|seen| seen.target != "/closed"));
    cases::tried("answers to handshakes", answers.len());
}

#[test]
fn upgrade_137_and_139_what_is_no_whole_handshake_is_an_ordinary_request() {
    const REST: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13";
    const WHOLE: &str = "Upgrade: websocket\r\nConnection: Upgrade";
    let upstream = Upstream::start(|request, wire| reply(wire, 200, &[], request.target.as_bytes()));
    let gateway = guarded(&upstream);
    let requests = [
        format!(
            "GET TARGET HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n{REST}\r\n\r\n"
        ),
        format!("GET TARGET HTTP/1.1\r\nHost: a\r\nUpgrade: websocket, h2c\r\nConnection: Upgrade\r\n{REST}\r\n\r\n"),
        format!("GET TARGET HTTP/1.1\r\nHost: a\r\nUpgrade: h2c, websocket\r\nConnection: Upgrade\r\n{REST}\r\n\r\n"),
        format!(
            "GET TARGET HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n{REST}\r\n\r\n"
        ),
        format!("GET TARGET HTTP/1.1\r\nHost: a\r\nUpgrade: websocket/13\r\nConnection: Upgrade\r\n{REST}\r\n\r\n"),
        format!("GET TARGET HTTP/1.1\r\nHost: a\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n{REST}\r\n\r\n"),
        format!("GET TARGET HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n{REST}\r\n\r\n"),
        format!("GET TARGET HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive\r\n{REST}\r\n\r\n"),
        format!("GET TARGET HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n{REST}\r\n\r\n"),
        format!("GET TARGET HTTP/1.1\r\nHost: a\r\n{WHOLE}\r\nSec-WebSocket-Version: 13\r\n\r\n"),
        format!(
            "GET TARGET HTTP/1.1\r\nHost: a\r\n{WHOLE}\r\nSec-WebSocket-Key: short\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ),
        format!(
            "GET TARGET HTTP/1.1\r\nHost: a\r\n{WHOLE}\r\n{REST}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ),
        format!(
            "GET TARGET HTTP/1.1\r\nHost: a\r\n{WHOLE}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 777\r\n\r\n"
        ),
        format!("GET TARGET HTTP/1.1\r\nHost: a\r\n{WHOLE}\r\n{REST}\r\nContent-Length: 5\r\n\r\nhello"),
        format!(
            "GET TARGET HTTP/1.1\r\nHost: a\r\n{WHOLE}\r\n{REST}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        ),
        format!("POST TARGET HTTP/1.1\r\nHost: a\r\n{WHOLE}\r\n{REST}\r\nContent-Length: 5\r\n\r\nhello"),
        format!("PUT TARGET HTTP/1.1\r\nHost: a\r\n{WHOLE}\r\n{REST}\r\nContent-Length: 0\r\n\r\n"),
        format!("OPTIONS TARGET HTTP/1.1\r\nHost: a\r\n{WHOLE}\r\n{REST}\r\n\r\n"),
        format!("GET TARGET HTTP/1.0\r\nHost: a\r\n{WHOLE}, keep-alive\r\n{REST}\r\n\r\n"),
    ];
    for (number, request) in requests.iter().enumerate() {
        let target = format!("/open/{number}");
        let mut connection = gateway.connect();
        connection.write(request.replace("TARGET", &target).as_bytes());
        let answer = connection.read("GET", &target);
        assert!(matches!(answer.status, 200 | 400), "{}: {request:?}", answer.status);
        if answer.status == 200 {
            let seen = upstream.recorded().into_iter().rfind(|seen| seen.target == target).unwrap();
            for name in ["upgrade", "http2-settings"] {
                assert!(seen.folded(name).is_empty(), "{name} of {request:?}");
            }
            assert!(seen.folded("connection").iter().all(|value| !value.to_ascii_lowercase().contains("upgrade")));
        }
        // What follows is a request of its own, without a login.
        if connection.stream().write_all(b"GET /closed HTTP/1.1\r\nHost: a\r\n\r\n").is_ok()
            && let Ok(next) = connection.try_read("GET", "/closed")
        {
            next.expect(401);
        }
    }
    assert!(upstream.recorded().iter().all(|seen| seen.target.starts_with("/open/")));
    cases::tried("handshakes that are none", requests.len());
}

#[test]
fn upgrade_134_and_138_no_login_and_no_foreign_origin_opens_a_tunnel() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .set("login.redirect_hosts", "[\"friend.test\"]")
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .start();
    let token = gateway.login("kim");
    for credential in [None, Some("nonsense"), Some("")] {
        let request = handshake("/ws").field("Host", "app.test");
        let request = credential.map_or(request.clone(), |token| request.cookie(token));
        gateway.send(&request).expect(401);
    }
    let origins = [
        "https://evil.test",
        "http://evil.test",
        "null",
        "",
        "http://app.test.evil.test",
        "http://evilapp.test",
        "http://other.app.test",
        "http://test",
        "http://app.test@evil.test",
        "http://app.test:80@evil.test",
        "http://evil.test/app.test",
        "http://evil.test#app.test",
        "http://app.test, http://evil.test",
        "app.test",
        "//app.test",
        "javascript://app.test",
        "file://app.test",
        "http://notfriend.test",
        "http://friend.test.evil.test",
        "chrome-extension://abcdefgh",
    ];
    for target in ["/ws", "/open"] {
        for origin in origins {
            let request = handshake(target).field("Host", "app.test").cookie(&token).field("Origin", origin);
            let answer = gateway.send(&request);
            assert_eq!(answer.status, 403, "{origin:?} on {target}");
        }
        let request = handshake(target).field("Host", "app.test").cookie(&token);
        gateway
            .send(&request.clone().field("Origin", "http://app.test").field("Origin", "http://evil.test"))
            .expect(403);
    }
    assert_eq!(upstream.count(), 0);
    for origin in ["http://app.test", "https://friend.test"] {
        let request = handshake("/ws").field("Host", "app.test").cookie(&token).field("Origin", origin);
        gateway.send(&request).expect(200);
    }
    cases::tried("foreign origins", origins.len() * 2 + 5);
}
