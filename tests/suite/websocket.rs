//! WebSocket: tunnelled only after the backend's 101, closed when the session ends.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::token::{self, DAY};
use crate::support::wait;
use crate::support::wire::{Connection, Reader};
use crate::support::{Builder, Gateway, Request, SECRET, Upstream};

/// Accepts the handshake (RFC 6455 section 4.2.2, the key of its example) and sends every byte back.
fn echo() -> Upstream {
    Upstream::raw(|stream| {
        let mut reader = Reader::new(stream);
        let Ok(Some(head)) = reader.head() else { return };
        if head.all("upgrade").is_empty() {
            let _ = reader.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain");
            return;
        }
        let user = head.all("x-forwarded-user").join(",");
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX-Upstream-User: {user}\r\n\r\n"
        );
        let _ = reader.stream.write_all(answer.as_bytes());
        let _ = reader.stream.write_all(&std::mem::take(&mut reader.buffered));
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = reader.stream.read(&mut buffer) {
            if reader.stream.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
    })
}

fn handshake(target: &str) -> Request {
    Request::get(target)
        .field("Upgrade", "websocket")
        .field("Connection", "Upgrade")
        .field("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .field("Sec-WebSocket-Version", "13")
}

fn guarded(upstream: &Upstream) -> Gateway {
    Builder::guarding(upstream)
        .user("lee", &[])
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .route("path = \"/maybe\"\naccess = \"optional\"\nupstream = \"app\"")
        .start()
}

#[test]
fn bytes_go_both_ways_after_the_backends_101() {
    let upstream = echo();
    let gateway = guarded(&upstream);
    let token = gateway.login("kim");
    let mut connection = gateway.connect();
    let answer = connection.send(&handshake("/ws").cookie(&token)).expect(101);
    assert_eq!(answer.field("upgrade").unwrap().to_ascii_lowercase(), "websocket");
    assert_eq!(answer.field("sec-websocket-accept").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(answer.field("x-upstream-user").as_deref(), Some("kim"));
    for size in [1, 125, 70_000] {
        let bytes = vec![b'x'; size];
        connection.write(&bytes);
        assert_eq!(connection.reader.exactly(size).unwrap(), bytes);
    }
    connection.finish_writing();
    assert!(connection.closes_within(Duration::from_secs(30)));
}

#[test]
fn a_backend_that_has_said_all_still_hears_what_the_client_says() {
    let (sender, heard) = std::sync::mpsc::channel();
    let upstream = Upstream::raw(move |stream| {
        let mut reader = Reader::new(stream);
        let Ok(Some(_)) = reader.head() else { return };
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        let _ = reader.stream.write_all(answer.as_bytes());
        // The tunnel is in use in this direction before it is closed in the other.
        let first = reader.exactly(5).unwrap_or_default();
        let _ = reader.stream.write_all(b"bye");
        let _ = reader.stream.shutdown(std::net::Shutdown::Write);
        let rest = reader.rest().unwrap_or_default();
        let _ = sender.send([first, rest].concat());
    });
    let gateway = guarded(&upstream);
    let token = gateway.login("kim");
    let mut connection = gateway.connect();
    connection.send(&handshake("/ws").cookie(&token)).expect(101);
    connection.write(b"first");
    assert_eq!(connection.reader.rest().unwrap(), b"bye");
    connection.write(b" and the rest");
    connection.finish_writing();
    assert_eq!(heard.recv_timeout(wait::GENEROUS).unwrap(), b"first and the rest");
}

#[test]
fn a_handshake_without_a_login_or_from_another_site_reaches_no_backend() {
    let upstream = echo();
    let gateway = guarded(&upstream);
    let token = gateway.login("kim");
    gateway.send(&handshake("/ws")).expect(401);
    gateway.send(&handshake("/ws").cookie("nonsense")).expect(401);
    for origin in ["https://evil.example", "null", "http://127.0.0.1.evil.example"] {
        gateway.send(&handshake("/ws").cookie(&token).field("Origin", origin)).expect(403);
    }
    assert_eq!(upstream.connections(), 0);
    let own = format!("http://{}", gateway.address);
    gateway.send(&handshake("/ws").cookie(&token).field("Origin", &own)).expect(101);
}

#[test]
fn bytes_sent_before_the_101_wait_for_it() {
    let upstream = Upstream::start(|request, wire| {
        crate::support::reply(wire, 426, &[("X-Upstream-Seen", &request.target)], b"no");
        crate::support::Then::KeepOpen
    });
    let gateway = guarded(&upstream);
    let token = gateway.login("kim");
    let mut connection = gateway.connect();
    connection.begin(&handshake("/ws").cookie(&token));
    connection.write(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    connection.read("GET", "/ws").expect(426);
    // What follows is HTTP again, and asks for a login of its own.
    connection.read("GET", "/smuggled").expect(401);
    assert_eq!(upstream.recorded().iter().map(|seen| seen.target.as_str()).collect::<Vec<_>>(), ["/ws"]);
}

#[test]
fn any_other_upgrade_is_dropped() {
    let upstream = echo();
    let gateway = guarded(&upstream);
    for upgrade in ["h2c", "TLS/1.0", "websocket, h2c", "h2c, websocket"] {
        let request = Request::get("/open")
            .field("Upgrade", upgrade)
            .field("Connection", "Upgrade, HTTP2-Settings")
            .field("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA");
        assert_eq!(gateway.send(&request).expect(200).body, b"plain", "{upgrade}");
    }
    let request = Request::post("/open").field("Upgrade", "websocket").field("Connection", "Upgrade").body(b"x");
    assert!(matches!(gateway.send(&request).status, 200 | 400));
    let no_connection = Request::get("/open").field("Upgrade", "websocket");
    assert!(matches!(gateway.send(&no_connection).status, 200 | 400));
}

#[test]
fn the_streams_of_a_revoked_session_close_within_a_second_and_others_stay() {
    type Way = fn(&Gateway, &str);
    let ways: &[(&str, Way)] = &[
        ("logout", |gateway, token| {
            gateway.send(&Request::post("/logout").cookie(token)).expect(204);
        }),
        ("session revoke", |gateway, token| {
            let session = token::claims(token)["sid"].as_str().unwrap().to_owned();
            gateway.command(&["session", "revoke", &session]).expect(0);
        }),
        ("disable", |gateway, _| {
            gateway.command(&["user", "disable", "kim"]).expect(0);
        }),
        ("remove", |gateway, _| {
            gateway.command(&["user", "remove", "kim"]).expect(0);
        }),
    ];
    for (what, way) in ways {
        let upstream = echo();
        let gateway = guarded(&upstream);
        let (kim, lee) = (gateway.login("kim"), gateway.login("lee"));
        let open = |target: &str, token: &str| {
            let mut connection = gateway.connect();
            connection.send(&handshake(target).cookie(token)).expect(101);
            connection.write(b"hello");
            assert_eq!(connection.reader.exactly(5).unwrap(), b"hello");
            connection
        };
        let (mut required, mut optional, mut other) = (open("/ws", &kim), open("/maybe", &kim), open("/ws", &lee));
        way(&gateway, &kim);
        let began = Instant::now();
        for connection in [&mut required, &mut optional] {
            assert!(connection.closes_within(Duration::from_secs(20)), "still open after {what}");
        }
        // One second is the promise; the rest is for a busy machine.
        assert!(began.elapsed() < Duration::from_secs(3), "{what}: closed after {:?}", began.elapsed());
        other.write(b"still");
        assert_eq!(other.reader.exactly(5).unwrap(), b"still", "another person's stream after {what}");
    }
}

/// Opens a tunnel and sees that it works.
fn open_tunnel(gateway: &Gateway, target: &str, token: Option<&str>) -> Connection {
    let mut connection = gateway.connect();
    let request = handshake(target);
    let request = match token {
        Some(token) => request.cookie(token),
        None => request,
    };
    connection.send(&request).expect(101);
    is_open(&mut connection, target);
    connection
}

fn is_open(connection: &mut Connection, what: &str) {
    connection.write(b"hello");
    assert_eq!(connection.reader.exactly(5).unwrap(), b"hello", "{what}");
}

fn is_closed(connection: &mut Connection, what: &str) {
    let began = Instant::now();
    assert!(connection.closes_within(Duration::from_secs(20)), "still open: {what}");
    // One second is the promise; the rest is for a busy machine, and for the reload.
    assert!(began.elapsed() < Duration::from_secs(6), "{what}: closed after {:?}", began.elapsed());
}

#[test]
fn a_stream_ends_with_the_right_to_its_route_and_others_stay() {
    let upstream = echo();
    let gateway = Builder::guarding(&upstream)
        .user("lee", &["staff"])
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .route("path = \"/staff\"\ngroups = [\"staff\"]\nupstream = \"app\"")
        .start();
    gateway.command(&["user", "set-groups", "kim", "staff"]).expect(0);
    let (kim, lee) = (gateway.login("kim"), gateway.login("lee"));
    let mut staff = open_tunnel(&gateway, "/staff", Some(&kim));
    let mut any = open_tunnel(&gateway, "/ws", Some(&kim));
    let mut open = open_tunnel(&gateway, "/open", Some(&kim));
    let mut nobody = open_tunnel(&gateway, "/open", None);
    let mut other = open_tunnel(&gateway, "/staff", Some(&lee));
    // Another group beside it takes nothing away.
    gateway.command(&["user", "set-groups", "kim", "staff", "ops"]).expect(0);
    gateway.send(&Request::get("/staff").cookie(&kim)).expect(200);
    is_open(&mut staff, "a group was added");
    gateway.command(&["user", "set-groups", "kim"]).expect(0);
    is_closed(&mut staff, "the group was taken away");
    for (connection, what) in
        [(&mut any, "no group is needed"), (&mut open, "public"), (&mut nobody, "nobody's"), (&mut other, "lee's")]
    {
        is_open(connection, what);
    }
    // The routes of a reload count too, also for a route that was public, and for nobody.
    gateway.rewrite(|file| file.replace("access = \"public\"", "groups = [\"ops\"]"));
    gateway.signal(rustix::process::Signal::HUP);
    is_closed(&mut open, "the route is for ops now");
    is_closed(&mut nobody, "the route is for ops now");
    is_open(&mut any, "nothing changed for it");
    is_open(&mut other, "nothing changed for lee");
    gateway.rewrite(|file| file.replace("groups = [\"staff\"]", "access = \"deny\""));
    is_closed(&mut other, "the route was closed");
    is_open(&mut any, "nothing changed for it");
}

#[test]
fn a_long_download_of_a_revoked_session_is_cut_so_that_it_looks_cut() {
    let upstream = Upstream::raw(|stream| {
        let mut reader = Reader::new(stream);
        let Ok(Some(_)) = reader.head() else { return };
        let _ = reader
            .stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        while reader.stream.write_all(b"8\r\ndata: 1\n\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let gateway = guarded(&upstream);
    let token = gateway.login("kim");
    let mut connection = gateway.connect();
    connection.begin(&Request::get("/events").cookie(&token));
    connection.head("/events").unwrap().expect(200);
    connection.reader.chunk().unwrap();
    gateway.send(&Request::post("/logout").cookie(&token)).expect(204);
    let ended = loop {
        match connection.reader.chunk() {
            Ok(chunk) if chunk.is_empty() => break "cleanly",
            Ok(_) => {}
            Err(_) => break "cut off",
        }
    };
    assert_eq!(ended, "cut off");
}

#[test]
fn a_token_near_its_half_opens_a_tunnel_and_a_foreign_logout_closes_it() {
    let upstream = echo();
    let gateway = guarded(&upstream);
    let id = gateway.account("kim")["_id"].as_str().unwrap().to_owned();
    let now = token::now();
    let foreign = token::foreign(SECRET, &id, "kim", now - 10, now + 7 * DAY);
    let mut connection = gateway.connect();
    connection.send(&handshake("/ws").cookie(&foreign)).expect(101);
    gateway.send(&Request::post("/logout").cookie(&foreign)).expect(204);
    assert!(connection.closes_within(Duration::from_secs(20)));

    let near = token::with_left(SECRET, &gateway.login("kim"), DAY);
    let mut connection = gateway.connect();
    connection.send(&handshake("/ws").cookie(&near)).expect(101);
    connection.write(b"hello");
    assert_eq!(connection.reader.exactly(5).unwrap(), b"hello");
    // One that says nothing about an account that exists is let in only until it must be read again.
    let stranger = token::altered(SECRET, &near, &json!({"sub": "nobody", "_id": "nobody"}));
    gateway.send(&handshake("/ws").cookie(&stranger)).expect(401);
}
