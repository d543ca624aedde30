//! Bodies as streams: both directions, back-pressure, memory, events one by one.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::support::turn::Turn;
use crate::support::wait;
use crate::support::wire::Reader;
use crate::support::{Builder, Connection, Gateway, Request, Upstream, reply_bytes};

const MEGABYTE: usize = 1024 * 1024;
const LIMIT: u64 = 64 * 1024 * 1024;

/// Bytes that repeat only after a long while.
fn piece(number: usize) -> Vec<u8> {
    let mut state = u64::try_from(number).unwrap().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(MEGABYTE);
    while bytes.len() < MEGABYTE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Reads a request body of known length piece by piece; its checksum.
fn digest(reader: &mut Reader<TcpStream>, length: usize) -> String {
    let mut digest = Sha256::new();
    let mut left = length;
    let first = reader.buffered.split_off(0);
    digest.update(&first);
    left -= first.len();
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let count = reader.stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the body ended {left} bytes early");
        digest.update(&buffer[..count]);
        left -= count;
    }
    hexadecimal(&digest.finalize())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn open(upstream: &Upstream) -> Gateway {
    Builder::guarding(upstream).route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"").start()
}

#[test]
fn two_hundred_megabytes_go_up_and_down_unchanged_in_little_memory() {
    const MEGABYTES: usize = 200;
    let upstream = Upstream::raw(|stream| {
        let mut reader = Reader::new(stream);
        reader.keep_taken = false;
        while let Ok(Some(head)) = reader.head() {
            if head.first_line.starts_with("PUT") {
                let length = head.all("content-length")[0].parse().unwrap();
                let text = digest(&mut reader, length);
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                reader.stream.write_all(answer.as_bytes()).unwrap();
            } else {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MEGABYTES * MEGABYTE);
                reader.stream.write_all(head.as_bytes()).unwrap();
                for number in 0..MEGABYTES {
                    if reader.stream.write_all(&piece(number)).is_err() {
                        return;
                    }
                }
            }
        }
    });
    let gateway = open(&upstream);
    let mut expected = Sha256::new();
    for number in 0..MEGABYTES {
        expected.update(piece(number));
    }
    let expected = hexadecimal(&expected.finalize());

    let mut connection = gateway.connect();
    let length = (MEGABYTES * MEGABYTE).to_string();
    connection.begin(&Request::new("PUT", "/open/up").field("Content-Length", &length));
    for number in 0..MEGABYTES {
        connection.write(&piece(number));
    }
    assert_eq!(connection.read("PUT", "/open/up").expect(200).text(), expected);

    connection.reader.keep_taken = false;
    connection.begin(&Request::get("/open/down"));
    let head = connection.head("/open/down").unwrap().expect(200);
    assert_eq!(head.field("content-length"), Some(length));
    assert_eq!(digest(&mut connection.reader, MEGABYTES * MEGABYTE), expected);
    assert!(gateway.peak_memory() < LIMIT, "{} bytes", gateway.peak_memory());
}

#[test]
fn a_client_that_stops_reading_holds_the_backend_back_and_costs_no_memory() {
    const MEGABYTES: usize = 300;
    for chunked in [false, true] {
        let (sent, progress) = mpsc::channel();
        let sent = std::sync::Mutex::new(sent);
        let upstream = Upstream::raw(move |stream| {
            let sent = sent.lock().unwrap().clone();
            let mut reader = Reader::new(stream);
            let Ok(Some(_)) = reader.head() else { return };
            let framing = if chunked {
                String::from("Transfer-Encoding: chunked")
            } else {
                format!("Content-Length: {}", MEGABYTES * MEGABYTE)
            };
            let _ = write!(reader.stream, "HTTP/1.1 200 OK\r\n{framing}\r\n\r\n");
            for number in 0..MEGABYTES {
                let bytes = piece(number);
                if chunked && write!(reader.stream, "{MEGABYTE:x}\r\n").is_err() {
                    return;
                }
                if reader.stream.write_all(&bytes).is_err() {
                    return;
                }
                if chunked && reader.stream.write_all(b"\r\n").is_err() {
                    return;
                }
                let _ = sent.send(number);
            }
            if chunked {
                let _ = reader.stream.write_all(b"0\r\n\r\n");
            }
        });
        let gateway = open(&upstream);
        let mut connection = gateway.connect();
        connection.reader.keep_taken = false;
        connection.begin(&Request::get("/open/down"));
        connection.head("/open/down").unwrap().expect(200);
        // The backend comes to a stop: nothing moves for a whole second.
        let mut last = 0;
        while let Ok(number) = progress.recv_timeout(Duration::from_secs(1)) {
            last = number;
        }
        assert!(last < MEGABYTES - 1, "the gateway took everything in");
        assert!(gateway.peak_memory() < LIMIT, "{} bytes", gateway.peak_memory());
        // Others are served meanwhile.
        gateway.get("/check").expect(401);
        // And it goes on when the client does.
        let mut count = 0;
        if chunked {
            loop {
                let chunk = connection.reader.chunk().unwrap();
                if chunk.is_empty() {
                    break;
                }
                count += chunk.len();
            }
        } else {
            digest(&mut connection.reader, MEGABYTES * MEGABYTE);
            count = MEGABYTES * MEGABYTE;
        }
        assert_eq!(count, MEGABYTES * MEGABYTE);
        assert!(gateway.peak_memory() < LIMIT, "{} bytes", gateway.peak_memory());
    }
}

#[test]
fn an_upload_to_a_backend_that_stops_reading_is_held_back() {
    const MEGABYTES: usize = 300;
    let upstream = Upstream::raw(|stream| {
        // Reads the head and then nothing, until the other side goes.
        let mut reader = Reader::new(stream);
        let _ = reader.head();
        std::thread::park_timeout(Duration::from_mins(1));
    });
    let gateway = open(&upstream);
    let mut connection = gateway.connect();
    connection.begin(&Request::post("/open").field("Content-Length", &(MEGABYTES * MEGABYTE).to_string()));
    connection.stream().set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let bytes = piece(1);
    let stuck = (0..MEGABYTES).any(|_| connection.stream().write_all(&bytes).is_err());
    assert!(stuck, "the gateway took everything in");
    assert!(gateway.peak_memory() < LIMIT, "{} bytes", gateway.peak_memory());
}

#[test]
fn events_pass_one_by_one() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let upstream = Upstream::start(move |_, wire| {
        let gone = gone.lock().unwrap();
        reply_bytes(wire, b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        for number in 0..5 {
            let event = format!("data: {number}\n\n");
            reply_bytes(wire, format!("{:x}\r\n{event}\r\n", event.len()).as_bytes());
            // The next one is sent only when this one has arrived.
            if gone.recv().is_err() {
                break;
            }
        }
        reply_bytes(wire, b"0\r\n\r\n")
    });
    let gateway = open(&upstream);
    let mut connection = gateway.connect();
    connection.begin(&Request::get("/open/events").field("Accept", "text/event-stream"));
    let head = connection.head("/open/events").unwrap().expect(200);
    assert_eq!(head.field("content-type").as_deref(), Some("text/event-stream"));
    for number in 0..5 {
        assert_eq!(connection.reader.chunk().unwrap(), format!("data: {number}\n\n").as_bytes());
        go.send(()).unwrap();
    }
    assert!(connection.reader.chunk().unwrap().is_empty());
}

#[test]
fn an_answer_that_breaks_off_looks_broken_off() {
    let upstream = Upstream::raw(|stream| {
        let mut reader = Reader::new(stream);
        let Ok(Some(head)) = reader.head() else { return };
        let answer: &[u8] = if head.first_line.contains("chunked") {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello"
        };
        let _ = reader.stream.write_all(answer);
    });
    let gateway = open(&upstream);
    for target in ["/open/chunked", "/open/length"] {
        let mut connection = gateway.connect();
        connection.begin(&Request::get(target));
        let answer = connection.try_read("GET", target);
        assert!(answer.is_err(), "{target}: a cut answer looks whole: {answer:?}");
    }
}

#[test]
fn trailers_head_ranges_and_informational_answers_pass() {
    let upstream = Upstream::start(|request, wire| {
        match request.target.as_str() {
        "/open/trailers" => reply_bytes(
            wire,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Upstream-Sum, X-Forwarded-User, Set-Cookie\r\n\r\n\
              2\r\nhi\r\n0\r\nX-Upstream-Sum: 7\r\nX-Forwarded-User: admin\r\nSet-Cookie: access_token=evil\r\nX-Upstream-Unannounced: 1\r\n\r\n",
        ),
        "/open/hints" => reply_bytes(
            wire,
            b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        "/open/range" => reply_bytes(
            wire,
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/10\r\nAccept-Ranges: bytes\r\nContent-Length: 3\r\n\r\nllo",
        ),
        _ => reply_bytes(wire, b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nETag: \"x\"\r\n\r\n"),
    }
    });
    let gateway = open(&upstream);
    let mut connection = gateway.connect();
    let answer = connection.send(&Request::get("/open/trailers").field("TE", "trailers")).expect(200);
    assert_eq!(answer.body, b"hi");
    let names: Vec<String> = answer.trailers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    assert_eq!(names, ["x-upstream-sum"]);
    assert_eq!(connection.send(&Request::get("/open/hints")).expect(200).body, b"ok");
    let answer = connection.send(&Request::get("/open/range").field("Range", "bytes=2-4")).expect(206);
    assert_eq!(upstream.last().field("range").as_deref(), Some("bytes=2-4"));
    assert_eq!((answer.body.as_slice(), answer.field("content-range").as_deref()), (&b"llo"[..], Some("bytes 2-4/10")));
    let answer = connection.send(&Request::new("HEAD", "/open/head")).expect(200);
    assert_eq!(answer.field("content-length").as_deref(), Some("12345"));
    connection.send(&Request::get("/check")).expect(401);
    // Request trailers that were announced go up.
    connection.write(b"POST /open/hints HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 9\r\n\r\n");
    connection.read("POST", "/open/hints").expect(200);
    let seen = upstream.last();
    assert_eq!(seen.body, b"hi");
    assert_eq!(
        seen.trailers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect::<Vec<_>>(),
        [(String::from("x-sum"), b"9".to_vec())]
    );
}

#[test]
fn an_answer_before_the_end_of_the_upload_reaches_the_client() {
    let upstream = Upstream::raw(|stream| {
        let mut reader = Reader::new(stream);
        let Ok(Some(_)) = reader.head() else { return };
        let _ = reader.stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
        // Reads on, so that the answer is not lost to a reset.
        let _ = std::io::copy(&mut reader.stream, &mut std::io::sink());
    });
    let gateway = open(&upstream);
    let mut connection = gateway.connect();
    connection.begin(&Request::post("/open").field("Content-Length", "100000000"));
    connection.write(&piece(1));
    assert_eq!(connection.read("POST", "/open").expect(413).body, b"big");
}

#[test]
fn a_client_that_sends_on_after_the_last_answer_is_not_reset_and_still_reads_it() {
    let upstream = Upstream::plain();
    let gateway = open(&upstream);
    let refused = Request::post("/login").field("Content-Type", "application/json").field("Content-Length", "20000000");
    let malformed = Request::post("/open").field("Transfer-Encoding", "gzip").field("Content-Length", "20000000");
    for (request, status) in [(refused, 413), (malformed, 400)] {
        let mut connection = gateway.connect();
        connection.begin(&request);
        // More than all buffers between the two hold: unread, it would be answered with a reset.
        for number in 0..20_000_000 / piece(0).len() {
            connection.write(&piece(number));
        }
        connection.read("POST", &request.target).expect(status);
        let after = connection.stream().read(&mut [0]).unwrap();
        assert_eq!(after, 0, "the connection ends after that answer, and not by a reset");
    }
}

#[test]
fn ten_thousand_idle_connections_are_held_and_others_are_served() {
    const COUNT: usize = 10_000;
    let _turn = Turn::alone();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    assert!(
        maximum >= 12_000,
        "this needs 12,000 open files in one process and the hard limit is {maximum}: raise it (ulimit -Hn)"
    );
    let wanted = rustix::process::Rlimit { current: Some(maximum.min(65_536)), maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).unwrap();
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .set("server.limits.max_connections", "10500")
        .set("server.limits.idle_timeout", "\"10m\"")
        .set("server.limits.header_timeout", "\"10m\"")
        .start();
    let token = gateway.login("kim");
    let mut connections: Vec<Connection> = Vec::with_capacity(COUNT);
    for number in 0..COUNT {
        let mut connection = gateway.connect();
        // Every tenth has had an answer and is idle after it; the others are idle from the start.
        if number % 10 == 0 {
            connection.send(&Request::get("/check").cookie(&token)).expect(200);
        }
        connections.push(connection);
    }
    gateway.get_with("/", &token).expect(200);
    wait::until("the count of connections", || {
        let metrics = gateway.get_admin("/metrics").text();
        let line =
            metrics.lines().find(|line| line.starts_with("doorward_connections ")).unwrap_or_default().to_owned();
        line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok()).is_some_and(|count| count >= 10_000.0)
    });
    for connection in connections.iter_mut().step_by(97) {
        connection.send(&Request::get("/check").cookie(&token)).expect(200);
    }
    println!("peak memory with {COUNT} connections: {} MiB", gateway.peak_memory() / 1024 / 1024);
}
