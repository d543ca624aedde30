//! Bytes that nobody chose to be kind, straight into the socket: THREATS 5.A 1 to 35, one test for each or for a few
//! that belong together, with the numbers in their names.
//!
//! Every test ends with [`Line::agree`]: what reached the backend, read by a strict parser (h11 and the grammar of RFC
//! 9112, `tests/peers/strict_parser.py`), is exactly what the access log says was forwarded. A request that went in by
//! another's body, or was read differently there than here, would be one too many.
//!
//! # Bare line feeds
//!
//! hyper takes a lone LF for a line end in heads, as RFC 9112 section 2.2 allows, and there is no option against it. No
//! guard stands before it, for these reasons. What hyper reads is what is decided on, and it is written anew with CRLF:
//! behind us nobody meets a bare LF, so behind us no two readers can disagree (`framing_08` holds it for every place of
//! it). In front of us, two readers disagree only where a proxy passes on a line feed inside of a value, which RFC 9110
//! section 5.5 forbids; nginx and Apache httpd do not (`framing_08_…_front_proxies`). With a proxy that does, the client
//! would gain fields of its own on our side: its identity headers are taken out like any other's, its cookies are
//! judged like any other's, and a second request that it hides asks for a login of its own. What is left is that the
//! proxy's next client gets the answer of a hidden request, which every backend behind such a proxy suffers.
//! A guard would have to know where heads begin, which is to parse the framing a second time before hyper does: two
//! readers of the same bytes, on every request's path, to close a gap between two readers of the same bytes.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::Value;

use crate::support::file_server::{apache_with, nginx};
use crate::support::gateway::free_port;
use crate::support::peer::{Peer, of_tests, python};
use crate::support::token::{self, DAY};
use crate::support::{
    Builder, Connection, Gateway, Request, Response, SECRET, Then, Upstream, cases, reply, reply_bytes, wait,
};

/// A gateway in front of a backend that answers with the target it was asked for.
struct Line {
    upstream: Upstream,
    gateway: Gateway,
    tried: std::cell::Cell<usize>,
    name: &'static str,
}

impl Line {
    fn new(name: &'static str) -> Self {
        let upstream = Upstream::start(|request, wire| {
            let body = if request.method == "HEAD" { "" } else { &*request.target };
            reply(wire, 200, &[], body.as_bytes())
        });
        let gateway = Builder::guarding(&upstream)
            .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
            // One worker writes its log in order.
            .set("server.workers", "1")
            .start();
        Self { upstream, gateway, tried: std::cell::Cell::new(0), name }
    }

    fn send(&self, bytes: &[u8]) -> Connection {
        self.tried.set(self.tried.get() + 1);
        let mut connection = self.gateway.connect();
        // It may be refused, and the connection closed, before everything is written.
        let _ = connection.stream().write_all(bytes);
        connection
    }

    /// Refused with one of the statuses, nothing else answered, the connection closed, nothing at the backend.
    #[track_caller]
    fn refused(&self, bytes: &[u8], statuses: &[u16]) {
        let shown = shown(bytes);
        let before = self.upstream.streams();
        let mut connection = self.send(bytes);
        let answer = connection.try_read("GET", "raw bytes").unwrap_or_else(|error| panic!("{error}: {shown}"));
        assert!(statuses.contains(&answer.status), "{} to {shown}", answer.status);
        if let Ok(second) = connection.try_read("GET", "raw bytes") {
            panic!("a second answer, {}, to {shown}", second.status);
        }
        assert!(connection.closes_within(Duration::from_secs(30)), "{shown}");
        assert_eq!(self.upstream.streams(), before, "it reached the backend: {shown}");
    }

    /// Refused, but the next request on the connection is served: the head was understood, and the body is over.
    #[track_caller]
    fn denied(&self, bytes: &[u8], status: u16) {
        let before = self.upstream.streams();
        let mut connection = self.send(bytes);
        let method = String::from_utf8_lossy(bytes.split(|byte| *byte == b' ').next().unwrap()).into_owned();
        let answer =
            connection.try_read(&method, "raw bytes").unwrap_or_else(|error| panic!("{error}: {}", shown(bytes)));
        assert_eq!(answer.status, status, "{}", shown(bytes));
        assert_eq!(self.upstream.streams(), before, "it reached the backend: {}", shown(bytes));
        if connection.stream().write_all(b"GET /open/probe HTTP/1.1\r\nHost: a\r\n\r\n").is_ok()
            && let Ok(answer) = connection.try_read("GET", "/open/probe")
        {
            assert_eq!((answer.status, answer.text()), (200, String::from("/open/probe")), "{}", shown(bytes));
        }
    }

    /// Answered by the backend for exactly these targets in this order, and the connection is in step afterwards or
    /// closed.
    #[track_caller]
    fn passed(&self, bytes: &[u8], targets: &[&str]) -> Vec<Response> {
        let shown = shown(bytes);
        let mut connection = self.send(bytes);
        let mut answers = Vec::new();
        for target in targets {
            let answer =
                connection.try_read("GET", target).unwrap_or_else(|error| panic!("{error}: {target} of {shown}"));
            assert_eq!((answer.status, answer.text()), (200, (*target).to_owned()), "{shown}");
            answers.push(answer);
        }
        if connection.stream().write_all(b"GET /open/probe HTTP/1.1\r\nHost: a\r\n\r\n").is_ok()
            && let Ok(answer) = connection.try_read("GET", "/open/probe")
        {
            assert_eq!((answer.status, answer.text()), (200, String::from("/open/probe")), "{shown}");
        }
        answers
    }

    /// The body is broken: no answer of the backend's, the backend never sees its end, and the next client is served.
    #[track_caller]
    fn broken(&self, bytes: &[u8]) {
        let shown = shown(bytes);
        let whole = self.upstream.count();
        let mut connection = self.send(bytes);
        connection.finish_writing();
        if let Ok(answer) = connection.try_read("GET", "raw bytes") {
            assert!(answer.status >= 400, "{} to {shown}", answer.status);
            if let Ok(second) = connection.try_read("GET", "raw bytes") {
                panic!("a second answer, {}, to {shown}", second.status);
            }
        }
        assert_eq!(self.upstream.count(), whole, "it looked whole to the backend: {shown}");
        self.gateway.get("/open/next").expect(200);
    }

    /// What the backend's strict reader finds is what was logged as forwarded.
    fn agree(self) {
        self.gateway.get("/open/the-last-one").expect(200);
        let forwarded = |line: &Value| {
            // Where the client has left, nobody was there to note the time.
            line["decision"] == "allow" && (!line["upstream_duration"].is_null() || line["status"] == 499)
        };
        wait::until("the last line of the access log", || {
            self.gateway.log_lines("access").iter().any(|line| line["path"] == "/open/the-last-one")
        });
        let parsed = strictly(&self.upstream.streams());
        let mut at_backend: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for request in parsed.iter().flatten() {
            assert!(request["error"].is_null(), "{}: {request}", self.name);
            let path = request["target"].as_str().unwrap().split('?').next().unwrap();
            let counts = at_backend.entry(format!("{} {path}", request["method"].as_str().unwrap())).or_default();
            if request["complete"] == true { counts.0 += 1 } else { counts.1 += 1 }
        }
        let logged = || {
            let mut logged: BTreeMap<String, (i64, i64)> = BTreeMap::new();
            for line in self.gateway.log_lines("access").iter().filter(|line| forwarded(line)) {
                let key = format!("{} {}", line["method"].as_str().unwrap(), line["path"].as_str().unwrap());
                let counts = logged.entry(key).or_default();
                if line["status"] == 200 { counts.0 += 1 } else { counts.1 += 1 }
            }
            logged
        };
        let whole = |requests: &BTreeMap<String, (i64, i64)>| -> Vec<(String, i64)> {
            requests.iter().filter(|(_, counts)| counts.0 > 0).map(|(key, counts)| (key.clone(), counts.0)).collect()
        };
        // A body that breaks may break before anything has been sent, so those are at most as many as were logged.
        let covers = |logged: &BTreeMap<String, (i64, i64)>| {
            at_backend
                .iter()
                .all(|(key, counts)| counts.1 == 0 || logged.get(key).is_some_and(|logged| counts.1 <= logged.1))
        };
        // One whose client has left is logged when that has been noticed.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let logged = logged();
            if whole(&logged) == whole(&at_backend) && covers(&logged) {
                break;
            }
            assert!(Instant::now() < deadline, "{}: logged {logged:#?}, at the backend {at_backend:#?}", self.name);
            std::thread::sleep(Duration::from_millis(50));
        }
        cases::tried(self.name, self.tried.get());
    }
}

/// The requests of every stream, as the strict parser reads them.
fn strictly(streams: &[Vec<u8>]) -> Vec<Vec<Value>> {
    let encoded: Vec<String> =
        streams.iter().map(|stream| base64::engine::general_purpose::STANDARD.encode(stream)).collect();
    let mut child = python()
        .arg(of_tests("peers/strict_parser.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("no Python: run tests/run");
    child.stdin.take().unwrap().write_all(Value::from(encoded).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn shown(bytes: &[u8]) -> String {
    let text: String = bytes.iter().take(300).map(|byte| std::ascii::escape_default(*byte).to_string()).collect();
    format!("\"{text}\"")
}

const SMUGGLED: &str = "GET /open/smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn framing_the_strict_parser_sees_what_it_is_there_for() {
    let good =
        b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nPOST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_vec();
    let parsed = strictly(&[good]);
    assert_eq!(parsed[0].len(), 2);
    assert!(parsed[0].iter().all(|request| request["complete"] == true));
    for bad in [
        "GET /a HTTP/1.1\r\nHost: a\nX-A: b\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a\r\n\r\nsomething else",
        "GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /a HTTP/1.1\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 005\r\n\r\nhello",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\nX\r\n\r\n",
        "GET /a HTTP/1.0\r\nHost: a\r\n\r\n",
        "GET http://a/a HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let parsed = strictly(&[bad.as_bytes().to_vec()]);
        assert!(parsed[0].iter().any(|request| !request["error"].is_null()), "{bad:?}: {parsed:?}");
    }
}

#[test]
fn framing_01_a_length_beside_a_coding_is_one_request_framed_by_the_coding() {
    let line = Line::new("framing 1");
    let mut number = 0;
    for length in ["0", "5", "47", "60", "1000"] {
        for coding in ["chunked", "Chunked", " chunked", "chunked ", "CHUNKED\t"] {
            for length_first in [true, false] {
                number += 1;
                let (length, coding) =
                    (format!("Content-Length: {length}\r\n"), format!("Transfer-Encoding: {coding}\r\n"));
                let fields = if length_first { length + &coding } else { coding + &length };
                let target = format!("/open/{number}");
                let request = format!("POST {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n0\r\n\r\n{SMUGGLED}");
                let mut connection = line.send(request.as_bytes());
                let answer = connection.read("POST", &target).expect(200);
                assert_eq!(answer.text(), target);
                assert!(connection.try_read("GET", "smuggled").is_err(), "{request:?}");
                let seen = line.upstream.last();
                assert_eq!((seen.head.all("content-length").len(), seen.body.len()), (0, 0), "{request:?}");
            }
        }
    }
    line.agree();
}

#[test]
fn framing_02_and_03_no_other_coding_than_one_chunked_goes_anywhere() {
    let line = Line::new("framing 2 and 3");
    for coding in [
        "gzip, chunked",
        "identity, chunked",
        "chunked, chunked",
        ",chunked",
        "chunked,",
        "chunked ,",
        "xchunked",
        "chunkedx",
        "\"chunked\"",
        "'chunked'",
        "chunked;q=1",
        "chunked;",
        "chunked, identity",
        "chunked, gzip",
        "identity",
        "gzip",
        "deflate, gzip, chunked",
        "",
        "\t",
        "\x0bchunked",
        "\x0cchunked",
        "chunked\x0b",
        "\u{a0}chunked",
        "chun ked",
        "ch\u{fc}nked",
        "chunked\0",
        "none",
        "cow",
        "chunked\r\nTransfer-Encoding: chunked",
        "gzip\r\nTransfer-Encoding: chunked",
        "chunked\r\nTransfer-Encoding: identity",
        "\r\nTransfer-Encoding: chunked",
        "identity\r\nContent-Length: 5",
    ] {
        for body in ["0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"] {
            let request =
                format!("POST /open/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {coding}\r\n\r\n{body}{SMUGGLED}");
            line.refused(request.as_bytes(), &[400, 501]);
        }
    }
    for coding in ["chunked", "identity", "gzip, chunked"] {
        for version in ["HTTP/1.0", "HTTP/1.0\r\nConnection: keep-alive"] {
            let request =
                format!("POST /open/x {version}\r\nHost: a\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n{SMUGGLED}");
            line.refused(request.as_bytes(), &[400, 501]);
        }
    }
    // In another spelling it is an ordinary header to us, and would frame for a backend that folds names: it goes.
    for name in ["Transfer_Encoding", "Transfer.Encoding", "Content_Length", "transfer~encoding"] {
        let target = format!("/open/{}", name.len());
        line.passed(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{name}: chunked\r\n\r\n").as_bytes(), &[&target]);
        assert!(line.upstream.last().folded(name).is_empty(), "{name}");
    }
    line.refused(b"POST /open/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", &[400]);
    line.agree();
}

#[test]
fn framing_04_to_06_odd_lengths_are_refused_or_written_anew() {
    let line = Line::new("framing 4 to 6");
    for length in [
        "+5",
        "-5",
        "-0",
        "0x5",
        "5,5",
        "5, 5",
        "5,6",
        "5;x",
        "",
        " ",
        "5 5",
        "5.0",
        "5e0",
        "\u{665}",
        "\"5\"",
        "5\0",
        "0b101",
        "five",
        "18446744073709551613",
        "18446744073709551615",
        "18446744073709551616",
        "18446744073709551621",
        "9223372036854775808",
        "99999999999999999999999999",
        "5\r\nContent-Length: 6",
        "6\r\nContent-Length: 5",
        "5\r\nContent-Length: ",
        "5\r\nContent-Length: +5",
        "5\r\nContent-Length: x",
    ] {
        let request = format!("POST /open/x HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\nhello{SMUGGLED}");
        line.refused(request.as_bytes(), &[400, 413, 431]);
    }
    for (number, fields) in
        ["005", "0000000000000000000000005", "5\r\nContent-Length: 5", "5\r\nContent-Length: 005", " 5", "5 ", "\t5\t"]
            .iter()
            .enumerate()
    {
        let target = format!("/open/{number}");
        let request = format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {fields}\r\n\r\nhello");
        line.passed(request.as_bytes(), &[&target]);
        let seen = line.upstream.recorded().into_iter().rfind(|seen| seen.target == target).unwrap();
        assert_eq!((seen.field("content-length").as_deref(), &*seen.body), (Some("5"), &b"hello"[..]), "{fields:?}");
    }
    // The largest that is taken for a length: the backend gets no more than what came.
    line.broken(b"POST /open/large HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n\r\nhello");
    line.agree();
}

#[test]
fn framing_07_a_head_with_a_byte_that_has_no_place_there_is_refused() {
    let line = Line::new("framing 7");
    let tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    for byte in 0..=255_u8 {
        if !tchar(byte) && byte != b':' && byte != b'\n' {
            line.refused(&[b"GET /open/x HTTP/1.1\r\nHost: a\r\nX", &[byte][..], b"A: b\r\n\r\n"].concat(), &[400]);
        }
        if byte < 0x20 && byte != b'\t' && byte != b'\n' || byte == 0x7f {
            line.refused(&[b"GET /open/x HTTP/1.1\r\nHost: a\r\nX-A: b", &[byte][..], b"c\r\n\r\n"].concat(), &[400]);
        }
    }
    for head in [
        "GET /open/x HTTP/1.1\r\nHost: a\r\nX-A: b\r\n folded: c\r\n\r\n",
        "GET /open/x HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\tX-Forwarded-User: admin\r\n\r\n",
        "GET /open/x HTTP/1.1\r\n Host: a\r\n\r\n",
        "GET /open/x HTTP/1.1\r\nHost: a\r\n X-A: b\r\n\r\n",
        "GET /open/x HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        "GET /open/x HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        "GET /open/x HTTP/1.1\r\nHost: a\r\nX-A\r\n\r\n",
        "GET /open/x HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello",
        "GET /open/x HTTP/1.1\r\nHost: a\r\nHost : b\r\n\r\n",
    ] {
        line.refused(head.as_bytes(), &[400]);
    }
    line.agree();
}

#[test]
fn framing_07_bytes_that_are_no_text_in_a_header_that_we_read_break_nothing() {
    let line = Line::new("framing 7, headers that we read");
    let names = [
        "Host",
        "Cookie",
        "Authorization",
        "Accept",
        "Accept-Language",
        "Origin",
        "Referer",
        "User-Agent",
        "Sec-Fetch-Mode",
        "Sec-Fetch-Site",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Real-IP",
        "X-Request-Id",
        "Forwarded",
        "Content-Type",
        "Content-Length",
        "Transfer-Encoding",
        "TE",
        "Trailer",
        "Upgrade",
        "Connection",
        "Expect",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Version",
        "Keep-Alive",
    ];
    let values: [&[u8]; 7] =
        [b"\xff", b"a\xff\xfe", b"\xc3(", b"\xa0", b"access_token=\xff", b"Bearer \xff", b"\xed\xa0\x80"];
    for name in names {
        for value in values {
            for head in [
                &b"GET /open/x HTTP/1.1\r\n"[..],
                b"GET /closed HTTP/1.1\r\n",
                b"POST /login HTTP/1.1\r\nContent-Type: application/json\r\n",
            ] {
                let host: &[u8] = if name == "Host" { b"" } else { b"Host: a\r\n" };
                let field = [name.as_bytes(), b": ", value, b"\r\n\r\n"].concat();
                let mut connection = line.send(&[head, host, &field].concat());
                let status = connection.read("GET", "raw bytes").status;
                assert!(
                    matches!(status, 200 | 303 | 400 | 401 | 403 | 415 | 417 | 501),
                    "{status} to {name}: {}",
                    shown(value)
                );
            }
        }
    }
    line.agree();
}

/// For what hyper sees where a line ends with LF alone, see the head of this file.
#[test]
fn framing_08_a_bare_line_feed_hides_nothing_and_goes_no_further() {
    let line = Line::new("framing 8");
    let mut number = 0;
    let mut taken = 0;
    // Every line of the head in turn, and all of them, end with a bare LF.
    for spoof in [
        "X-Forwarded-User: admin",
        "X_Remote_User: admin",
        "Cookie: access_token=x",
        "Connection: close, X-Team",
        "X-Forwarded-For: 9.9.9.9",
    ] {
        for bare in 0..6 {
            number += 1;
            let target = format!("/open/{number}");
            let request = format!("GET {target} HTTP/1.1");
            let lines = [&*request, "Host: a", "X-A: a", spoof, ""];
            let text: String = lines
                .iter()
                .enumerate()
                .map(|(at, text)| format!("{text}{}", if bare == at || bare == 5 { "\n" } else { "\r\n" }))
                .collect();
            let before = line.upstream.streams();
            let mut connection = line.send(text.as_bytes());
            let answer = connection.read("GET", &target);
            if answer.status == 400 {
                assert_eq!(line.upstream.streams(), before, "{text:?}");
                continue;
            }
            taken += 1;
            assert_eq!((answer.status, answer.text()), (200, target.clone()), "{text:?}");
            let seen = line.upstream.last();
            assert_eq!(seen.field("x-a").as_deref(), Some("a"), "the field does not end where it ends here: {text:?}");
            assert_eq!(seen.folded("x-forwarded-for"), ["127.0.0.1"]);
            for name in ["x-forwarded-user", "x-remote-user", "x-team", "connection"] {
                assert!(seen.folded(name).is_empty(), "{name} of {text:?}");
            }
            let feeds = |pair: &[u8]| pair[1] == b'\n' && pair[0] != b'\r';
            assert!(!seen.raw.windows(2).any(feeds), "a bare line feed went on: {text:?}");
        }
    }
    // A second request in what a strict reader takes for a value asks for a login of its own.
    let hidden = "GET /open/hiding HTTP/1.1\r\nHost: a\r\nX-A: a\n\nGET /secret HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut connection = line.send(hidden.as_bytes());
    let first = connection.read("GET", "/open/hiding").status;
    if first == 200 {
        connection.read("GET", "/secret").expect(401);
    }
    // Nor do framing fields come in unseen.
    for fields in [
        "X-A: a\nContent-Length: 5\nTransfer-Encoding: gzip",
        "X-A: a\nContent-Length: +5",
        "X-A: a\nHost: b",
        "X-A: a\nTransfer-Encoding: x",
    ] {
        line.refused(format!("POST /open/x HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nhello").as_bytes(), &[400, 501]);
    }
    println!("{taken} of {number} heads with a bare line feed were taken, each field by field");
    line.agree();
}

/// Real proxies in front: what reaches us of a head with a bare LF has no bare LF any more, or nothing reaches us.
#[test]
fn framing_08_no_bare_line_feed_comes_through_front_proxies() {
    let inner = Upstream::start(|request, wire| reply(wire, 200, &[], request.target.as_bytes()));
    let folder = tempfile::tempdir().unwrap();
    let location = format!("location / {{ proxy_pass {}; }}", inner.url);
    let port = free_port();
    let nginx = Peer::start(nginx(folder.path(), "nginx", port, &location), port, &folder.path().join("nginx.log"));
    let port = free_port();
    let lines = format!("ProxyPass \"/\" \"{}/\"\n", inner.url);
    let apache =
        Peer::start(apache_with(folder.path(), "apache", port, &lines), port, &folder.path().join("apache.log"));
    for front in [&nginx, &apache] {
        let ask = |text: &str| {
            let mut connection = Connection::to(([127, 0, 0, 1], front.port).into()).with_any_field();
            connection.write(text.as_bytes());
            connection.try_read("GET", "/").map(|answer| answer.status)
        };
        assert_eq!(ask("GET /control HTTP/1.1\r\nHost: a\r\n\r\n").unwrap(), 200);
        for text in [
            "GET /1 HTTP/1.1\r\nHost: a\r\nX-A: a\nX-Forwarded-User: admin\r\n\r\n",
            "GET /2 HTTP/1.1\r\nHost: a\r\nX-A: a\n\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /3 HTTP/1.1\nHost: a\n\n",
            "POST /4 HTTP/1.1\r\nHost: a\r\nX-A: a\nContent-Length: 5\r\n\r\nhello",
        ] {
            let _ = ask(text);
        }
    }
    for stream in inner.streams() {
        let heads = String::from_utf8_lossy(&stream).into_owned();
        assert!(!heads.replace("\r\n", "").contains('\n'), "a proxy passed a bare line feed on: {heads:?}");
    }
    for parsed in strictly(&inner.streams()).iter().flatten() {
        assert_ne!(parsed["target"], "/hidden/");
    }
}

#[test]
fn framing_09_and_10_a_broken_chunk_never_looks_like_the_end() {
    let line = Line::new("framing 9 and 10");
    let long = "a".repeat(17 * 1024);
    let one_long_extension = format!("5;{long}\r\nhello\r\n0\r\n\r\n");
    let many_extensions = format!("{}0\r\n\r\n", format!("1;{}\r\nx\r\n", "a".repeat(1000)).repeat(20));
    let bodies = [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5g\r\nhello\r\n0\r\n\r\n",
        "\u{665}\r\nhello\r\n0\r\n\r\n",
        "5\0\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "00000000000000000000000000000000000000005\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5\r\nhello\r\n",
        "5\r\nhello\r\n0",
        "5\r\nhello\r\n0\r\n",
        "5\r\nhello\r\n0\r\nX-A: b\r\n",
        "5\r\nhello\r\n0\r\nno colon\r\n\r\n",
        "5\r\nhello\r\n0\r\nX A: b\r\n\r\n",
        "5\r\nhello\r\n0\r\n X-A: b\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;a\n\r\nhello\r\n0\r\n\r\n",
        &one_long_extension,
        &many_extensions,
        "5\r\nhello\r\n-1\r\n\r\n",
        "5\r\nhello\r\n0\r\r\n\r\n",
        "",
    ];
    for (number, body) in bodies.iter().enumerate() {
        let head = format!("POST /open/{number} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        line.broken(format!("{head}{body}").as_bytes());
    }
    // Extensions that are well formed stay behind; so does the client's way to cut the body into chunks.
    for (number, body) in [
        "5;a=b\r\nhello\r\n0\r\n\r\n",
        "5;a=\"b;c\"\r\nhello\r\n0;last\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "0005\r\nhello\r\n000\r\n\r\n",
        "5\t;a\r\nhello\r\n0\r\n\r\n",
    ]
    .iter()
    .enumerate()
    {
        let target = format!("/open/fine/{number}");
        let request = format!("POST {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        line.passed(request.as_bytes(), &[&target]);
        let seen = line.upstream.recorded().into_iter().rfind(|seen| seen.target == target).unwrap();
        assert_eq!(seen.body, b"hello");
        assert!(
            String::from_utf8_lossy(&seen.raw).contains("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            "{:?}",
            shown(&seen.raw)
        );
    }
    line.agree();
}

#[test]
fn framing_12_trailers_that_frame_are_dropped_and_too_many_end_the_request() {
    let line = Line::new("framing 12");
    let names = [
        "Content-Length",
        "Host",
        "Transfer-Encoding",
        "Cookie",
        "Set-Cookie",
        "Authorization",
        "Trailer",
        "TE",
        "Connection",
        "Upgrade",
        "Content-Type",
        "Content-Encoding",
        "Content-Range",
        "Cache-Control",
        "Expect",
        "Proxy-Authorization",
        "Forwarded",
        "X-Forwarded-For",
        "X-Real-IP",
        "X-Forwarded-User",
        "Content_Length",
        "Transfer_Encoding",
    ];
    for (number, name) in names.iter().enumerate() {
        let target = format!("/open/{number}");
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: {name}, X-Sum\r\n\r\n1\r\nx\r\n0\r\n{name}: 7\r\nX-Sum: 9\r\n\r\n"
        );
        line.passed(request.as_bytes(), &[&target]);
        let seen = line.upstream.recorded().into_iter().rfind(|seen| seen.target == target).unwrap();
        let trailers: Vec<String> = seen.trailers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        assert_eq!(trailers, ["x-sum"], "{name}");
    }
    let head = "Host: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n1\r\nx\r\n0\r\n";
    let many: String = (0..101).map(|number| format!("X-{number}: 1\r\n")).collect();
    line.broken(format!("POST /open/many HTTP/1.1\r\n{head}{many}\r\n").as_bytes());
    let large = format!("X-Sum: {}\r\n", "a".repeat(20 * 1024));
    line.broken(format!("POST /open/large HTTP/1.1\r\n{head}{large}\r\n").as_bytes());
    line.agree();
}

#[test]
fn framing_13_a_body_that_breaks_off_takes_the_backends_connection_with_it() {
    let line = Line::new("framing 13");
    for (number, request) in [
        "Content-Length: 100\r\n\r\nhello",
        "Content-Length: 100\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
        "Transfer-Encoding: chunked\r\n\r\n",
    ]
    .iter()
    .enumerate()
    {
        // Gone altogether, not only half.
        let connections = line.upstream.connections();
        let head = format!("POST /open/{number} HTTP/1.1\r\nHost: a\r\n{request}");
        let connection = line.send(head.as_bytes());
        wait::until("the head at the backend", || {
            line.upstream.connections() > connections
                || line.upstream.streams().iter().any(|stream| shown_in(stream, &format!("/open/{number} ")))
        });
        drop(connection);
        wait::until("the line of the broken request", || {
            let path = format!("/open/{number}");
            line.gateway.log_lines("access").iter().any(|line| line["path"] == path.as_str())
        });
        assert_eq!(line.gateway.get("/open/after").expect(200).text(), "/open/after");
        assert!(line.upstream.recorded().iter().all(|seen| seen.target == "/open/after"), "it looked whole");
    }
    line.agree();
}

fn shown_in(stream: &[u8], part: &str) -> bool {
    stream.windows(part.len()).any(|window| window == part.as_bytes())
}

#[test]
fn framing_15_what_belongs_to_the_clients_connection_stays_behind() {
    let line = Line::new("framing 15");
    for (number, fields) in [
        "Keep-Alive: timeout=5, max=1000",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic a2ltOng=",
        "TE: deflate",
        "TE: trailers, deflate;q=0.5",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        "Upgrade: TLS/1.0\r\nConnection: Upgrade",
        "Upgrade: websocket",
        "Connection: keep-alive, X-Hop\r\nX-Hop: 1",
        "Connection: X-Hop\r\nConnection: x-hop-two\r\nX-Hop: 1\r\nX-Hop-Two: 1",
        "Connection: Transfer-Encoding, Content-Length, Host",
        "Trailer: X-Sum",
    ]
    .iter()
    .enumerate()
    {
        let target = format!("/open/{number}");
        line.passed(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n").as_bytes(), &[&target]);
        let seen = line.upstream.recorded().into_iter().rfind(|seen| seen.target == target).unwrap();
        for name in
            ["keep-alive", "proxy-connection", "proxy-authorization", "upgrade", "http2-settings", "x-hop", "x-hop-two"]
        {
            assert!(seen.folded(name).is_empty(), "{name} of {fields:?}");
        }
        assert!(seen.head.all("te").iter().all(|value| value == "trailers"), "{fields:?}");
    }
    line.agree();
}

#[test]
fn framing_16_what_belongs_to_the_backends_connection_stays_there_and_our_cookie_comes() {
    let upstream = Upstream::start(|_, wire| {
        reply_bytes(
            wire,
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close, Set-Cookie, Content-Type\r\nKeep-Alive: timeout=5\r\n\
              Proxy-Authenticate: Basic\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Type: text/plain\r\n\r\nok",
        );
        Then::Close
    });
    let gateway = Gateway::guarding(&upstream);
    let near = token::with_left(SECRET, &gateway.login("kim"), DAY);
    let mut connection = gateway.connect();
    let answer = connection.send(&Request::get("/").cookie(&near)).expect(200);
    assert!(answer.token().is_some(), "the renewed token is missing: {:?}", answer.fields);
    let cookies = answer.all("set-cookie");
    assert!(
        cookies.iter().any(|cookie| cookie == "a=b") && cookies.iter().any(|cookie| cookie == "c=d"),
        "{cookies:?}"
    );
    for name in ["keep-alive", "proxy-authenticate"] {
        assert!(answer.all(name).is_empty(), "{name}");
    }
    // The client's connection goes on, and the next one is not renewed by it.
    let answer = connection.send(&Request::get("/").cookie(&gateway.login("kim"))).expect(200);
    assert!(answer.token().is_none());
}

#[test]
fn framing_17_to_23_hosts_and_targets_that_are_not_exactly_one_are_refused() {
    let line = Line::new("framing 17 to 23");
    for fields in [
        "",
        "Host: a\r\nHost: b",
        "Host: a\r\nHost: a",
        "Host: a\r\nhost: a",
        "Host:",
        "Host: a, b",
        "Host: a,a",
        "Host: a@b:80",
        "Host: a b",
        "Host: a b/../c?d#e",
        "Host: a/b",
        "Host: a\\b",
        "Host: a:99999999",
        "Host: a:65536",
        "Host: a:-1",
        "Host: a:b",
        "Host: [::1",
        "Host: ::1",
        "Host: [::1]x",
        "Host: a?b",
        "Host: a#b",
        "Host: a%20b",
        "Host: a\u{e9}",
        "Host: <a>",
        "Host: \"a\"",
        "Host: .",
        "Host: ..",
        "Host: a..b",
        "Host: http://a",
        "Host: a;b",
        "X-Host: a",
        "Host_: a",
    ] {
        let fields = if fields.is_empty() { String::new() } else { format!("{fields}\r\n") };
        line.denied(format!("GET /open/x HTTP/1.1\r\n{fields}\r\n").as_bytes(), 400);
    }
    line.refused(b"GET /open/x HTTP/1.0\r\n\r\n", &[400]);
    for target in [
        "http://other/open/x",
        "http://a.other/open/x",
        "http://a:81/open/x",
        "http://a@other/open/x",
        "http://other@a/open/x",
        "http://u:p@a/open/x",
        "https://a/open/x",
        "ftp://a/open/x",
        "ws://a/open/x",
        "file:///open/x",
        "http:///open/x",
        "http://a?x",
        "http://?x",
        "a:80",
        "a",
        "!",
        "*",
        "open/x",
        "?x",
        "//a",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let before = line.upstream.streams();
        let mut connection = line.send(request.as_bytes());
        let status = connection.read("GET", target).status;
        // `//a` is a path, and not public.
        assert!(status == 400 || (target == "//a" && status == 401), "{target}: {status}");
        assert_eq!(line.upstream.streams(), before, "{target}");
    }
    for method in ["OPTIONS", "GET", "POST", "HEAD", "DELETE"] {
        line.denied(format!("{method} * HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").as_bytes(), 400);
        line.denied(format!("{method} a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 0\r\n\r\n").as_bytes(), 400);
    }
    for (number, (target, host)) in [
        ("http://a/open", "a"),
        ("HTTP://A/open", "a:80"),
        ("http://a:80/open", "a"),
        ("http://[::1]/open", "[::1]:80"),
    ]
    .iter()
    .enumerate()
    {
        let path = format!("/open/{number}");
        line.passed(format!("GET {target}/{number} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(), &[&path]);
        assert_eq!(
            line.upstream.recorded().iter().rfind(|seen| seen.target == path).unwrap().field("host").as_deref(),
            Some(*host)
        );
    }
    line.agree();
}

#[test]
fn framing_24_and_25_methods_that_tunnel_or_echo_are_405_and_any_other_token_passes() {
    let line = Line::new("framing 24 and 25");
    for target in ["a:80", "/open/x", "http://a/open/x", "a", "*"] {
        for method in ["CONNECT", "TRACE"] {
            let before = line.upstream.streams();
            let request = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n{SMUGGLED}");
            let mut connection = line.send(request.as_bytes());
            let status = connection.read("GET", target).status;
            assert!(matches!(status, 400 | 405), "{method} {target}: {status}");
            if target != "a" && target != "*" {
                assert_eq!(status, 405, "{method} {target}");
            }
            // What follows is a request or nothing, never a tunnel.
            if let Ok(answer) = connection.try_read("GET", "/open/smuggled") {
                assert_eq!(answer.text(), "/open/smuggled");
            } else {
                assert_eq!(line.upstream.streams(), before);
            }
        }
    }
    for method in ["PRI", "connect", "Trace", "tRACE"] {
        line.denied(format!("{method} /open/x HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(), 405);
    }
    for method in ["get", "GETS", "G", "-bl~`", "ANNOUNCE", "LIST", "M-SEARCH", "__proto__", &"A".repeat(2000)] {
        line.passed(format!("{method} /open/x HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(), &["/open/x"]);
    }
    for method in ["GE T", "G\u{c9}T", "GET,", "\"GET\"", "(GET)", ""] {
        line.refused(format!("{method} /open/x HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(), &[400]);
    }
    line.agree();
}

#[test]
fn framing_26_versions_and_request_lines_other_than_ours_are_refused() {
    let line = Line::new("framing 26");
    for first in [
        "GET /open/x",
        "GET /open/x HTTP/0.9",
        "GET /open/x HTTP/1.2",
        "GET /open/x HTTP/1.10",
        "GET /open/x HTTP/1",
        "GET /open/x HTTP/2.0",
        "GET /open/x HTTP/3",
        "GET /open/x HTTP/11",
        "GET /open/x HTTP/ 1.1",
        "GET /open/x http/1.1",
        "GET /open/x HTTPS/1.1",
        "GET /open/x HTTP/1.1 ",
        "GET /open/x HTTP/1.1x",
        "GET /open/x  HTTP/1.1",
        "GET  /open/x HTTP/1.1",
        "GET\t/open/x HTTP/1.1",
        "GET /open/x\tHTTP/1.1",
        "GET /open/x\x0bHTTP/1.1",
        " GET /open/x HTTP/1.1",
        "GET /open/a b HTTP/1.1",
        "/open/x HTTP/1.1",
        "PRI * HTTP/2.0",
        "\x16\x03\x01\x02\x00\x01\x00\x01\x01\x03\x03",
        "SSH-2.0-OpenSSH_9.2",
        "EHLO a",
    ] {
        line.refused(format!("{first}\r\nHost: a\r\n\r\n").as_bytes(), &[400, 505]);
    }
    // The preface of HTTP/2 gets no answer in HTTP/1 at all.
    let before = line.upstream.streams();
    let mut connection = line.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00");
    assert!(connection.closes_within(Duration::from_secs(30)));
    assert_eq!(line.upstream.streams(), before);
    line.passed(b"\r\n\r\nGET /open/x HTTP/1.1\r\nHost: a\r\n\r\n", &["/open/x"]);
    line.passed(b"GET /open/y HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", &["/open/y"]);
    line.agree();
}

#[test]
fn framing_27_pipelined_requests_each_by_their_own_credential_also_a_login() {
    let line = Line::new("framing 27");
    let token = line.gateway.login("kim");
    let login = format!("{{\"username\":\"kim\",\"password\":\"{}\"}}", crate::support::PASSWORD);
    let request = format!(
        "GET /a HTTP/1.1\r\nHost: a\r\nCookie: access_token={token}\r\n\r\n\
         GET /b HTTP/1.1\r\nHost: a\r\n\r\n\
         POST /login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{login}\
         GET /c HTTP/1.1\r\nHost: a\r\n\r\n\
         POST /open/d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
         GET /e HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n",
        login.len()
    );
    let mut connection = line.send(request.as_bytes());
    let statuses: Vec<u16> = (0..6).map(|_| connection.read("GET", "/check").status).collect();
    assert_eq!(statuses, [200, 401, 200, 401, 200, 200]);
    let users: Vec<(String, Option<String>)> =
        line.upstream.recorded().iter().map(|seen| (seen.target.clone(), seen.field("x-forwarded-user"))).collect();
    let kim = Some(String::from("kim"));
    assert_eq!(users, [(String::from("/a"), kim.clone()), (String::from("/open/d"), None), (String::from("/e"), kim)]);
    line.agree();
}

#[test]
fn framing_30_to_32_bodies_of_every_method_are_bodies_and_nothing_else() {
    let line = Line::new("framing 30 to 32");
    let embedded = SMUGGLED.repeat(3);
    // Not SEARCH: its body names what it acts on, so it is let in only where all of the backend is open (further targets).
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PUT", "PATCH", "PROPFIND", "REPORT"] {
        for chunked in [false, true] {
            let framed = if chunked {
                format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{embedded}\r\n0\r\n\r\n", embedded.len())
            } else {
                format!("Content-Length: {}\r\n\r\n{embedded}", embedded.len())
            };
            // Let in: one request with that body, then the next one.
            let target = format!("/open/{method}/{chunked}");
            let mut connection = line.send(
                format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{framed}GET /open/next HTTP/1.1\r\nHost: a\r\n\r\n")
                    .as_bytes(),
            );
            connection.read(method, &target).expect(200);
            assert_eq!(connection.read("GET", "/open/next").expect(200).text(), "/open/next");
            let seen = line.upstream.recorded().into_iter().rfind(|seen| seen.target == target).unwrap();
            assert_eq!(seen.body, embedded.as_bytes(), "{target}");
            // Refused: the body is never taken for a request.
            let mut connection = line.send(format!("{method} /closed HTTP/1.1\r\nHost: a\r\n{framed}").as_bytes());
            connection.read(method, "/closed").expect(401);
            assert!(line.upstream.recorded().iter().all(|seen| seen.target != "/open/smuggled"), "{target}");
        }
    }
    for expectation in ["100-continue", "100-Continue"] {
        let request = format!("POST /closed HTTP/1.1\r\nHost: a\r\nExpect: {expectation}\r\nContent-Length: 5\r\n\r\n");
        let mut connection = line.send(request.as_bytes());
        assert!(connection.read("POST", "/closed").expect(401).informational.is_empty());
        connection.closes_within(Duration::from_secs(30));
    }
    for expectation in ["banana", "100-continue, banana", "200-ok", "100-continue;q=1"] {
        let request = format!("POST /open/x HTTP/1.1\r\nHost: a\r\nExpect: {expectation}\r\nContent-Length: 0\r\n\r\n");
        line.denied(request.as_bytes(), 417);
    }
    line.agree();
}

#[test]
fn framing_33_a_backend_that_answers_early_and_resets_leaves_its_client_with_an_answer() {
    let upstream = Upstream::raw(|stream| {
        let mut reader = crate::support::wire::Reader::new(stream);
        reader.keep_taken = false;
        while let Ok(Some(head)) = reader.head() {
            let status = if head.first_line.contains("early") { "413 Too Large" } else { "200 OK" };
            let _ = reader.stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok").as_bytes());
            if head.first_line.contains("reset") {
                // Unread bytes and a linger of none: the other side gets a reset.
                let _ = rustix::net::sockopt::set_socket_linger(&reader.stream, Some(Duration::ZERO));
                std::thread::sleep(Duration::from_millis(20));
                return;
            }
            let length = head.all("content-length").first().map_or(0, |length| length.parse().unwrap());
            if reader.exactly(length).is_err() {
                return;
            }
        }
    });
    let gateway = Builder::guarding(&upstream)
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .set("server.workers", "1")
        .start();
    let megabyte = vec![b'x'; 1 << 20];
    for target in ["/open/early", "/open/early/reset", "/open/plain"] {
        for _ in 0..5 {
            let mut connection = gateway.connect();
            connection.begin(&Request::post(target).field("Content-Length", "10485760"));
            for _ in 0..10 {
                if connection.stream().write_all(&megabyte).is_err() {
                    break;
                }
            }
            // With a reset the answer may be lost on the way to us; then it is 502, and never a hang.
            match connection.try_read("POST", target) {
                Ok(answer) => assert!(matches!(answer.status, 200 | 413 | 502), "{target}: {}", answer.status),
                Err(error) => assert!(target.contains("reset") || target.contains("early"), "{target}: {error}"),
            }
            let next = gateway.get("/open/next").expect(200);
            assert_eq!(next.text(), "ok");
        }
    }
}

/// What a backend may send instead of an answer: (the bytes, whether they are an answer all the same).
fn odd_answers() -> Vec<(Vec<u8>, bool)> {
    let head = |fields: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}").into_bytes();
    let mut answers: Vec<(Vec<u8>, bool)> = Vec::new();
    for bad in [
        "NONSENSE\r\n\r\n",
        "\r\n\r\n\r\n",
        "HTTP/1.1\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 99999 X\r\n\r\n",
        "HTTP/1.1 -200 OK\r\n\r\n",
        "HTTP/1.1 0200 OK\r\n\r\n",
        "HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
        "http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "ICY 200 OK\r\nContent-Length: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX\0: a\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX Y: a\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n X: a\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        "",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "\x16\x03\x01\x02\x00",
    ] {
        answers.push((bad.as_bytes().to_vec(), false));
    }
    let many: String = (0..1000).map(|number| format!("X-{number}: 1\r\n")).collect();
    answers.push((head(&format!("{many}Content-Length: 0"), ""), false));
    answers.push((head(&format!("X-Large: {}\r\nContent-Length: 0", "a".repeat(2 << 20)), ""), false));
    // Odd, and an answer: its body is what every reader takes it for, or it ends visibly broken.
    for good in [
        head("Content-Length: 5\r\nContent-Length: 5", "hello"),
        head("Content-Length: 5\r\nTransfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        head("Transfer-Encoding: chunked\r\nContent-Length: 3", "5\r\nhello\r\n0\r\n\r\n"),
        head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        head("Transfer-Encoding: chunked, Chunked", "5\r\nhello\r\n0\r\n\r\n"),
        head("Transfer-Encoding: identity, chunked", "5\r\nhello\r\n0\r\n\r\n"),
        head("Transfer-Encoding: identity\r\nContent-Length: 5", "hello"),
        head("Content-Length: 5, 5", "hello"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nConnection: close\r\n\r\nhello".to_vec(),
        head("Transfer-Encoding: Chunked", "5;a=b\r\nhello\r\n0\r\n\r\n"),
        head("Content-Length: 5", "helloHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"),
        b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello".to_vec(),
        b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello".to_vec(),
        b"HTTP/1.1 200 \xe9\xff\r\nContent-Length: 5\r\n\r\nhello".to_vec(),
        b"HTTP/1.0 200 OK\r\n\r\nhello".to_vec(),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello".to_vec(),
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello".to_vec(),
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec(),
        [b"HTTP/1.1 100 Continue\r\n\r\n".repeat(50), b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec()]
            .concat(),
    ] {
        answers.push((good, true));
    }
    answers
}

#[test]
fn framing_34_and_35_whatever_the_backend_sends_no_client_is_answered_with_anothers_bytes() {
    let answers = odd_answers();
    let count = answers.len();
    let shared = std::sync::Arc::new(answers);
    let given = std::sync::Arc::clone(&shared);
    let upstream = Upstream::start(move |request, wire| {
        if let Some(number) = request.target.strip_prefix("/open/odd/").and_then(|number| number.parse::<usize>().ok())
        {
            reply_bytes(wire, &given[number].0);
            // Half of them stay open, as if more could come: the gateway must not use them again.
            let ends_with_it = given[number].0.is_empty()
                || !given[number].0.ends_with(b"\n") && !given[number].1
                || shown_in(&given[number].0, "HTTP/1.0")
                || shown_in(&given[number].0, "Connection: close");
            return if ends_with_it { Then::Close } else { Then::KeepOpen };
        }
        reply(wire, 200, &[], request.target.as_bytes())
    });
    let gateway = Builder::guarding(&upstream)
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .set("server.workers", "1")
        .set("upstream.app.response_timeout", "\"1s\"")
        .start();
    let mut tried = 0;
    for (number, (bytes, good)) in shared.iter().enumerate() {
        for method in ["GET", "HEAD"] {
            tried += 1;
            let mut connection = gateway.connect().with_any_field();
            let target = format!("/open/odd/{number}");
            let outcome = connection.try_send(&Request::new(method, &target));
            let shown = shown(bytes);
            match outcome {
                Ok(answer) if *good => {
                    assert_eq!(answer.status, 200, "{shown}");
                    assert_eq!(answer.text(), if method == "GET" { "hello" } else { "" }, "{shown}");
                }
                Ok(answer) => {
                    // A HEAD has no body that a bad coding could concern.
                    assert!(answer.status == 502 || answer.status == 504, "{method}: {} to {shown}", answer.status);
                    assert!(!answer.text().contains("hello"), "{shown}");
                }
                Err(error) => assert!(!*good, "{method} {shown}: {error}"),
            }
            // The same client and another one get their own answers.
            for target in ["/open/own/1", "/open/own/2"] {
                let answer = connection.try_send(&Request::get(target)).unwrap_or_else(|_| gateway.get(target));
                assert_eq!((answer.status, answer.text()), (200, target.to_owned()), "after {method} {shown}");
                assert_eq!(gateway.get("/open/other").expect(200).text(), "/open/other", "after {method} {shown}");
            }
        }
    }
    assert_eq!(tried, count * 2);
    cases::tried("framing 34 and 35", tried);
}

#[test]
fn framing_35_statuses_without_a_body_have_none() {
    let upstream = Upstream::start(|request, wire| {
        let status = request.target.rsplit('/').next().unwrap();
        let fields = match (request.method.as_str(), status) {
            (_, "304") => "Content-Length: 12\r\nETag: \"x\"\r\n",
            ("HEAD", _) | (_, "204l") => "Content-Length: 12\r\n",
            _ => "",
        };
        // The body that must not be there follows all the same.
        let answer = format!("HTTP/1.1 {} X\r\n{fields}\r\nHTTP/1.1 200", &status[..3]);
        reply_bytes(wire, answer.as_bytes());
        if request.method == "HEAD" || status.starts_with('2') || status.starts_with('3') {
            Then::Close
        } else {
            Then::KeepOpen
        }
    });
    let gateway = Builder::guarding(&upstream)
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .set("server.workers", "1")
        .start();
    for (method, status) in [
        ("GET", "204"),
        ("GET", "204l"),
        ("GET", "304"),
        ("POST", "204"),
        ("HEAD", "200"),
        ("HEAD", "404"),
        ("HEAD", "304"),
    ] {
        for _ in 0..10 {
            let mut connection = gateway.connect();
            let target = format!("/open/{status}");
            let answer = connection.send(&Request::new(method, &target));
            assert_eq!((answer.status.to_string().as_str(), answer.body.len()), (&status[..3], 0), "{method} {status}");
            connection.send(&Request::get("/check")).expect(401);
        }
    }
}
