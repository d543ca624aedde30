//! Bytes on the wire: what is refused, what is forwarded, and that nothing is ever smuggled.

use std::time::Duration;

use crate::support::wire::exchange;
use crate::support::{Builder, Connection, Gateway, Request, Upstream, reply_bytes};

fn open() -> (Upstream, Gateway) {
    let upstream = Upstream::plain();
    let gateway =
        Builder::guarding(&upstream).route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"").start();
    (upstream, gateway)
}

/// One raw request; its status, and whether the connection was closed after it with nothing in between.
fn refused(upstream: &Upstream, gateway: &Gateway, bytes: &[u8], statuses: &[u16]) {
    let before = upstream.count();
    let answers = exchange(gateway.address, bytes, 3);
    let shown = String::from_utf8_lossy(bytes).into_owned();
    assert!(!answers.is_empty(), "no answer to {shown:?}");
    assert!(statuses.contains(&answers[0].status), "{} to {shown:?}", answers[0].status);
    assert_eq!(answers.len(), 1, "a second answer to {shown:?}: {answers:?}");
    assert_eq!(upstream.count(), before, "it reached the backend: {shown:?}");
}

#[test]
fn odd_transfer_codings_are_refused() {
    let (upstream, gateway) = open();
    for coding in [
        "gzip, chunked",
        "identity, chunked",
        "chunked, chunked",
        ",chunked",
        "xchunked",
        "\"chunked\"",
        "chunked;q=1",
        "chunked, identity",
        "identity",
        "gzip",
        "",
        "\x0bchunked",
        "chunked\r\nTransfer-Encoding: chunked",
        "gzip\r\nTransfer-Encoding: chunked",
    ] {
        let request = format!(
            "POST /open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\nGET /open/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        refused(&upstream, &gateway, request.as_bytes(), &[400, 501]);
    }
    refused(
        &upstream,
        &gateway,
        b"POST /open HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[400, 501],
    );
}

#[test]
fn a_length_beside_a_coding_never_makes_a_second_request() {
    let (upstream, gateway) = open();
    for framing in
        ["Content-Length: 60\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 60"]
    {
        let request = format!(
            "POST /open HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n0\r\n\r\nGET /open/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        let answers = exchange(gateway.address, request.as_bytes(), 3);
        assert_eq!(answers.len(), 1, "{answers:?}");
        for seen in upstream.recorded() {
            assert_ne!(seen.target, "/open/smuggled");
            assert!(seen.head.all("content-length").is_empty() || seen.head.all("transfer-encoding").is_empty());
        }
    }
}

#[test]
fn odd_lengths_are_refused_or_written_anew() {
    let (upstream, gateway) = open();
    for length in ["+5", "-5", "0x5", "5,5", "5, 6", "5;x", "", "18446744073709551616", "99999999999999999999", "5 5"] {
        let request = format!("POST /open HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\nhello");
        refused(&upstream, &gateway, request.as_bytes(), &[400, 413, 431]);
    }
    refused(
        &upstream,
        &gateway,
        b"POST /open HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        &[400],
    );
    for fields in ["Content-Length: 005", "Content-Length: 5\r\nContent-Length: 5"] {
        let before = upstream.count();
        let request = format!("POST /open HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nhello");
        let answers = exchange(gateway.address, request.as_bytes(), 1);
        assert!(matches!(answers[0].status, 200 | 400), "{fields}");
        if answers[0].status == 200 {
            let seen = upstream.last();
            assert_eq!(seen.field("content-length").as_deref(), Some("5"), "{fields}");
            assert_eq!(seen.body, b"hello");
        } else {
            assert_eq!(upstream.count(), before);
        }
    }
}

#[test]
fn a_broken_head_is_refused() {
    let (upstream, gateway) = open();
    for head in [
        "GET /open HTTP/1.1\r\nHost: a\r\nX-A: b\r\n folded: c\r\n\r\n",
        "GET /open HTTP/1.1\r\nHost: a\r\nX-A : b\r\n\r\n",
        "GET /open HTTP/1.1\r\nHost: a\r\n X-A: b\r\n\r\n",
        "GET /open HTTP/1.1\r\nHost: a\r\nX-A: b\0c\r\n\r\n",
        "GET /open HTTP/1.1\r\nHost: a\r\nX-A: b\rc\r\n\r\n",
        "GET /open HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        "GET /open HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        "GET  /open HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET\t/open HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /open HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET /open HTTP/1.2\r\nHost: a\r\n\r\n",
        "GET /open HTTP/2.0\r\nHost: a\r\n\r\n",
        "GET /open http/1.1\r\nHost: a\r\n\r\n",
        "GET /open\r\n\r\n",
        "GET /open#a HTTP/1.1\r\nHost: a\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
    ] {
        refused(&upstream, &gateway, head.as_bytes(), &[400, 501, 505]);
    }
}

#[test]
fn a_bare_line_feed_hides_no_field() {
    let (upstream, gateway) = open();
    let answers =
        exchange(gateway.address, b"GET /open HTTP/1.1\r\nHost: a\r\nX-A: a\nX-Forwarded-User: admin\r\n\r\n", 1);
    if answers[0].status == 200 {
        let seen = upstream.last();
        assert!(seen.folded("x-forwarded-user").is_empty());
        assert!(!seen.raw.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r'), "a bare line feed went on");
    } else {
        assert_eq!(answers[0].status, 400);
    }
}

#[test]
fn exactly_one_valid_host_is_wanted() {
    let (upstream, gateway) = open();
    for fields in [
        "",
        "Host: a\r\nHost: b\r\n",
        "Host: a\r\nHost: a\r\n",
        "Host:\r\n",
        "Host: a, b\r\n",
        "Host: a@b:80\r\n",
        "Host: a b\r\n",
        "Host: a/b\r\n",
        "Host: a:99999999\r\n",
        "Host: a:b\r\n",
        "Host: [::1\r\n",
        "Host: a?b\r\n",
        "Host: a#b\r\n",
        "Host: a%20b\r\n",
    ] {
        let request = format!("GET /open HTTP/1.1\r\n{fields}\r\n");
        let before = upstream.count();
        let answers = exchange(gateway.address, request.as_bytes(), 1);
        assert_eq!(answers[0].status, 400, "{fields:?}");
        assert_eq!(upstream.count(), before, "{fields:?}");
    }
    gateway.send(&Request::get("/open").field("Host", "[::1]:80")).expect(200);
}

#[test]
fn an_absolute_target_must_agree_with_the_host() {
    let (upstream, gateway) = open();
    let get = |target: &str, host: &str| {
        let answers = exchange(gateway.address, format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(), 1);
        answers[0].status
    };
    assert_eq!(get("http://app.test/open?x", "app.test"), 200);
    assert_eq!(upstream.last().target, "/open?x");
    assert_eq!(upstream.last().field("host").as_deref(), Some("app.test"));
    for (target, host) in [
        ("http://other/open", "app.test"),
        ("ftp://app.test/open", "app.test"),
        ("http://u:p@app.test/open", "app.test"),
        ("app.test:80", "app.test"),
        ("*", "app.test"),
        ("open", "app.test"),
    ] {
        let before = upstream.count();
        assert_eq!(get(target, host), 400, "{target}");
        assert_eq!(upstream.count(), before);
    }
}

#[test]
fn connect_and_trace_are_not_allowed() {
    let (upstream, gateway) = open();
    let answers = exchange(
        gateway.address,
        b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\nGET /open HTTP/1.1\r\nHost: a\r\n\r\n",
        1,
    );
    assert_eq!(answers[0].status, 405);
    for target in ["/open", "/"] {
        let request = format!("TRACE {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(exchange(gateway.address, request.as_bytes(), 1)[0].status, 405);
    }
    assert!(upstream.recorded().iter().all(|seen| seen.method == "GET"));
}

#[test]
fn too_large_a_head_is_431() {
    let (upstream, gateway) = open();
    let mut many = Request::get("/open");
    for number in 0..101 {
        many = many.field(&format!("X-{number}"), "1");
    }
    gateway.send(&many).expect(431);
    gateway.send(&Request::get("/open").field("X-Large", &"a".repeat(33 * 1024))).expect(431);
    let long = format!("/open?{}", "a".repeat(33 * 1024));
    assert!(matches!(gateway.get(&long).status, 414 | 431));
    gateway.send(&Request::get("/open").field("X-Large", &"a".repeat(20 * 1024))).expect(200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order_and_each_by_its_own_credential() {
    let (upstream, gateway) = open();
    let token = gateway.login("kim");
    let bytes = format!(
        "GET /a HTTP/1.1\r\nHost: a\r\nCookie: access_token={token}\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\nGET /open HTTP/1.1\r\nHost: a\r\n\r\n"
    );
    let answers = exchange(gateway.address, bytes.as_bytes(), 3);
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 401, 200]);
    let users: Vec<Option<String>> = upstream.recorded().iter().map(|seen| seen.field("x-forwarded-user")).collect();
    assert_eq!(users, [Some(String::from("kim")), None]);
}

#[test]
fn the_body_of_a_refused_request_is_never_taken_for_a_request() {
    let (upstream, gateway) = open();
    let embedded = "GET /open/smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for body in [embedded.to_owned(), embedded.repeat(300_000 / embedded.len())] {
        // The last request ends the connection, where the body before it was short enough to be read past.
        let request = format!(
            "POST /closed HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}\
             GET /closed HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let answers = exchange(gateway.address, request.as_bytes(), 3);
        assert!(answers.len() <= 2 && answers.iter().all(|answer| answer.status == 401), "{answers:?}");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_request_that_will_be_refused_gets_no_100_continue() {
    let (upstream, gateway) = open();
    let expecting = |target: &str| Request::post(target).field("Content-Length", "5").field("Expect", "100-continue");
    let mut connection = gateway.connect();
    connection.begin(&expecting("/closed"));
    let answer = connection.read("POST", "/closed").expect(401);
    assert!(answer.informational.is_empty());
    let mut connection = gateway.connect();
    let login = Request::post("/login")
        .field("Content-Type", "application/json")
        .field("Content-Length", "100000")
        .field("Expect", "100-continue");
    connection.begin(&login);
    let answer = connection.read("POST", "/login").expect(413);
    assert!(answer.informational.is_empty());
    // One that is let in gets it, once the backend wants the body.
    let mut connection = gateway.connect();
    connection.begin(&expecting("/open"));
    let first = connection.reader.head().unwrap().unwrap();
    assert!(first.first_line.starts_with("HTTP/1.1 100"), "{}", first.first_line);
    connection.write(b"hello");
    connection.read("POST", "/open").expect(200);
    assert_eq!(upstream.last().body, b"hello");
    let answers =
        exchange(gateway.address, b"POST /open HTTP/1.1\r\nHost: a\r\nExpect: banana\r\nContent-Length: 0\r\n\r\n", 1);
    assert!(matches!(answers[0].status, 200 | 400 | 417), "{}", answers[0].status);
}

#[test]
fn a_broken_chunked_body_never_looks_complete_to_the_backend() {
    for body in [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello",
    ] {
        let (upstream, gateway) = open();
        let mut connection = gateway.connect();
        connection
            .write(format!("POST /open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}").as_bytes());
        connection.finish_writing();
        if let Ok(answer) = connection.try_read("POST", "/open") {
            assert!(answer.status >= 400, "{body:?}: {}", answer.status);
        }
        // What the backend records is complete; it never gets that far.
        gateway.get("/open/after").expect(200);
        let targets: Vec<String> = upstream.recorded().into_iter().map(|seen| seen.target).collect();
        assert_eq!(targets, ["/open/after"], "{body:?}");
    }
}

#[test]
fn a_body_with_a_get_stays_a_body() {
    let (upstream, gateway) = open();
    for method in ["GET", "DELETE"] {
        let request = Request::new(method, "/open").body(b"GET /open/smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut connection = gateway.connect();
        connection.send(&request).expect(200);
        assert_eq!(upstream.last().body, request.body);
        connection.send(&Request::get("/open/next")).expect(200);
        assert_eq!(upstream.last().target, "/open/next");
    }
}

#[test]
fn an_http_1_0_client_is_served_and_the_backend_sees_1_1() {
    let (upstream, gateway) = open();
    let answers = exchange(gateway.address, b"GET /open HTTP/1.0\r\nHost: a\r\n\r\n", 2);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].status, 200);
    assert!(upstream.last().head.first_line.ends_with("HTTP/1.1"));
}

#[test]
fn a_malformed_answer_of_the_backend_is_502_and_its_connection_is_not_used_again() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"[..],
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"HTTP/1.1 99999 X\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ] {
        let answer = answer.to_vec();
        let upstream = Upstream::start(move |_, wire| reply_bytes(wire, &answer));
        let gateway =
            Builder::guarding(&upstream).route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"").start();
        gateway.get("/open").expect(502);
        gateway.get("/open").expect(502);
        let connections: Vec<usize> = upstream.recorded().iter().map(|seen| seen.connection).collect();
        assert!(connections.windows(2).all(|pair| pair[0] != pair[1]), "{connections:?}");
    }
}

#[test]
fn an_answer_with_both_framings_and_one_with_extra_bytes_do_not_spill_over() {
    let upstream = Upstream::start(|request, wire| {
        if request.target.ends_with("both") {
            reply_bytes(
                wire,
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            )
        } else if request.target.ends_with("extra") {
            reply_bytes(
                wire,
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
            )
        } else if request.target.ends_with("204") {
            reply_bytes(wire, b"HTTP/1.1 204 No Content\r\n\r\nforged body")
        } else {
            crate::support::reply(wire, 200, &[], b"honest")
        }
    });
    let gateway =
        Builder::guarding(&upstream).route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"").start();
    let mut connection = gateway.connect();
    for _ in 0..20 {
        for (target, body) in
            [("/open/both", "hello"), ("/open/extra", "hello"), ("/open/204", ""), ("/open/next", "honest")]
        {
            let answer = if let Ok(answer) = connection.try_send(&Request::get(target)) {
                answer
            } else {
                connection = gateway.connect();
                connection.send(&Request::get(target))
            };
            if answer.status < 300 {
                assert_eq!(answer.text(), body, "{target}");
            } else {
                assert_eq!(answer.status, 502, "{target}");
            }
        }
    }
}

#[test]
fn silent_and_half_open_connections_are_closed_after_the_header_timeout() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .set("server.limits.header_timeout", "\"1s\"")
        .set("server.limits.idle_timeout", "\"2s\"")
        .start();
    for bytes in [&b""[..], b"PRI * HT", b"GET / HTTP/1.1\r\nHost: a\r\n", b"\r\n\r\n"] {
        let mut connection = Connection::to(gateway.address);
        connection.write(bytes);
        assert!(connection.closes_within(Duration::from_secs(30)), "{bytes:?} stays open");
    }
    // One byte now and then does not keep it open.
    let mut connection = Connection::to(gateway.address);
    let mut drip = connection.stream().try_clone().unwrap();
    let dripper = std::thread::spawn(move || {
        use std::io::Write as _;
        while drip.write_all(b"X").is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    assert!(connection.closes_within(Duration::from_secs(30)));
    drop(connection);
    dripper.join().unwrap();
    // An idle one after an answer, too.
    let mut connection = Connection::to(gateway.address);
    connection.send(&Request::get("/check"));
    assert!(connection.closes_within(Duration::from_secs(30)));
}

#[test]
fn a_request_body_that_stops_is_given_up() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .set("server.limits.body_timeout", "\"1s\"")
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .start();
    let mut connection = gateway.connect();
    connection.begin(&Request::post("/open").field("Content-Length", "100"));
    connection.write(b"half");
    if let Ok(answer) = connection.try_read("POST", "/open") {
        assert!(matches!(answer.status, 400 | 408 | 502 | 504), "{}", answer.status);
    }
    assert!(connection.closes_within(Duration::from_secs(30)));
    assert_eq!(upstream.count(), 0);
}
