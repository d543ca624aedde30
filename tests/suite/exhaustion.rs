//! Clients and backends that take without end: what they can hold is bounded in memory and in time, and the next user is
//! served. THREATS 5.M 157 to 164, 5.D 73, 5.J 141, and the floods of 5.A 35.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::turn::Turn;
use crate::support::wire::Reader;
use crate::support::{Builder, Connection, Gateway, Request, Upstream, cases, reply, wait};

const MEGABYTE: u64 = 1024 * 1024;

/// What all of the hostile connections of one test may cost together. Far under what they send or ask for.
const BOUND: u64 = 48 * MEGABYTE;

/// Served for far less than this even beside a flood; a worker that is held up for good is not.
const PATIENCE: Duration = Duration::from_secs(40);

/// A second upstream, `other`, below `/other`, for those who must not suffer.
fn beside(upstream: &Upstream, other: &Upstream) -> Builder {
    Builder::guarding(upstream)
        .upstream("other", &[&other.url])
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .route("path = \"/other\"\naccess = \"public\"\nupstream = \"other\"")
        // Whatever holds up one worker holds up everybody.
        .set("server.workers", "1")
}

/// The next user is served, and soon.
#[track_caller]
fn serves_the_next(gateway: &Gateway) {
    let began = Instant::now();
    gateway.get("/other").expect(200);
    assert!(began.elapsed() < PATIENCE, "the next user waited {:?}", began.elapsed());
}

/// Every connection is closed by the gateway, each within the time that is left.
#[track_caller]
fn all_close(connections: &mut [Connection], limit: Duration) {
    let deadline = Instant::now() + limit;
    for connection in connections {
        assert!(connection.closes_within(deadline.saturating_duration_since(Instant::now())), "one stays open");
    }
}

#[test]
fn exhaustion_157_a_thousand_silent_connections_are_closed_and_cost_little() {
    let upstream = Upstream::plain();
    let gateway = beside(&upstream, &upstream).set("server.limits.header_timeout", "\"3s\"").start();
    serves_the_next(&gateway);
    let (files, memory) = (gateway.open_files(), gateway.memory());
    let beginnings: [&[u8]; 5] = [b"", b"PRI * HT", b"GET /open HTTP/1.1\r\nHost: a\r\n", b"\r\n", b"\x16\x03\x01"];
    let mut connections: Vec<Connection> = (0..1000)
        .map(|number| {
            let mut connection = gateway.connect();
            let _ = connection.stream().write_all(beginnings[number % beginnings.len()]);
            connection
        })
        .collect();
    serves_the_next(&gateway);
    let growth = gateway.memory().saturating_sub(memory);
    assert!(growth < BOUND, "a thousand silent connections cost {growth} bytes");
    all_close(&mut connections, Duration::from_secs(30));
    wait::until("the files of the closed connections", || gateway.open_files() <= files + 4);
    serves_the_next(&gateway);
    println!("a thousand silent connections cost {} KiB", growth / 1024);
    cases::tried("silent connections", connections.len());
}

/// What hyper holds for a connection, two buffers of 8 KiB each above all, goes while nothing is asked, and comes back.
#[test]
fn exhaustion_157_connections_that_wait_for_their_next_request_hold_little() {
    const MOST_BYTES_EACH: u64 = 4 * 1024;
    let upstream = Upstream::plain();
    let mut gateway = beside(&upstream, &upstream).start();
    let open = Request::get("/open");
    // What the first requests leave behind is no connection's.
    for _ in 0..200 {
        gateway.send(&open).expect(200);
    }
    let before = gateway.memory();
    let mut connections: Vec<Connection> = (0..2000).map(|_| gateway.connect()).collect();
    let count = u64::try_from(connections.len()).unwrap();
    for connection in &mut connections {
        connection.send(&open).expect(200);
    }
    let peak = gateway.memory().saturating_sub(before);
    wait::until("the memory of connections that are idle", || {
        serves_the_next(&gateway);
        gateway.memory().saturating_sub(before) < count * MOST_BYTES_EACH
    });
    let resting = gateway.memory().saturating_sub(before);
    println!("an idle connection holds {} bytes, at most {} while they were opened", resting / count, peak / count);

    // The next request is served as the first was, however it comes: whole, drop by drop, with another behind it.
    let head = b"GET /open HTTP/1.1\r\nHost: a\r\n\r\n";
    for (number, connection) in connections.iter_mut().enumerate().take(600) {
        match number % 3 {
            0 => drop(connection.send(&open).expect(200)),
            1 => {
                for byte in head {
                    connection.write(&[*byte]);
                }
                connection.read("GET", "/open").expect(200);
            }
            _ => {
                let (some, rest) = head.split_at(3);
                connection.write(&[head, some].concat());
                connection.read("GET", "/open").expect(200);
                connection.write(rest);
                connection.read("GET", "/open").expect(200);
            }
        }
    }
    // A drain ends those that rest at once, and a client that leaves is noticed.
    connections.truncate(1000);
    wait::until("the clients that left to be noticed", || gateway.open_files() < 1200);
    assert!(gateway.stop().success());
    all_close(&mut connections, PATIENCE);
    cases::tried("idle connections", 2000);
}

#[test]
fn exhaustion_158_a_head_has_one_deadline_however_it_drips() {
    const CONNECTIONS: usize = 60;
    let upstream = Upstream::plain();
    let gateway = beside(&upstream, &upstream).set("server.limits.header_timeout", "\"2s\"").start();
    let mut dripping: Vec<(Connection, Instant)> = (0..CONNECTIONS)
        .map(|number| {
            let mut connection = gateway.connect();
            if number % 2 == 1 {
                // The deadline of a second head begins with its first byte.
                connection.send(&Request::get("/other")).expect(200);
            }
            connection.write(b"GET /open HTTP/1.1\r\nHost: a\r\n");
            (connection, Instant::now())
        })
        .collect();
    // A whole field now and then, each of them progress: as slowhttptest does it.
    let mut ended = Vec::new();
    while !dripping.is_empty() {
        dripping.retain_mut(|(connection, began)| {
            connection.stream().set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            let over = connection.stream().write_all(b"X-A: b\r\n").is_err()
                || matches!(connection.stream().read(&mut [0; 512]), Ok(0) | Err(_)) && !quiet(connection.stream());
            if over {
                ended.push(began.elapsed());
            }
            assert!(began.elapsed() < Duration::from_secs(30), "a head drips for {:?}", began.elapsed());
            !over
        });
        serves_the_next(&gateway);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(upstream.recorded().iter().filter(|seen| seen.target == "/open").count(), 0);
    // Not at once either: whoever is slow has the time that was promised.
    assert!(ended.iter().all(|time| *time > Duration::from_millis(1500)), "{ended:?}");
    cases::tried("dripping heads", CONNECTIONS);
}

/// Whether the socket is still open and has nothing to say.
fn quiet(stream: &TcpStream) -> bool {
    matches!(stream.peek(&mut [0; 1]), Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut))
}

#[test]
fn exhaustion_158_bodies_that_drip_go_on_and_those_that_stop_are_cut() {
    let upstream = Upstream::plain();
    let gateway = beside(&upstream, &upstream).set("server.limits.body_timeout", "\"2s\"").start();
    let (files, memory) = (gateway.open_files(), gateway.memory());
    let mut stopped: Vec<Connection> = (0..100)
        .map(|number| {
            let mut connection = gateway.connect();
            let framing = if number % 2 == 0 { "Content-Length: 100" } else { "Transfer-Encoding: chunked" };
            connection.write(format!("POST /open HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n5\r\nhe").as_bytes());
            connection
        })
        .collect();
    // One that moves within each span is served, over more than one span in all.
    let mut slow = gateway.connect();
    slow.begin(&Request::post("/open/slow").field("Content-Length", "12"));
    for _ in 0..12 {
        slow.write(b"x");
        std::thread::sleep(Duration::from_millis(250));
    }
    slow.read("POST", "/open/slow").expect(200);
    serves_the_next(&gateway);
    assert!(gateway.memory().saturating_sub(memory) < BOUND);
    for connection in &mut stopped {
        if let Ok(answer) = connection.try_read("POST", "/open") {
            assert!(matches!(answer.status, 408 | 400), "{}", answer.status);
        }
    }
    all_close(&mut stopped, Duration::from_secs(30));
    assert_eq!(upstream.recorded().iter().filter(|seen| seen.target == "/open").count(), 0);
    wait::until("the files of the cut bodies", || gateway.open_files() <= files + 6);
    cases::tried("bodies that stop", stopped.len());
}

/// One chunk of 4 KiB.
fn chunk() -> Vec<u8> {
    format!("1000\r\n{}\r\n", "x".repeat(0x1000)).into_bytes()
}

/// A backend that answers without end, and knows how many of its answers are still being written.
fn endless(head: &'static [u8], piece: &[u8]) -> (Upstream, Arc<AtomicUsize>) {
    let running = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&running);
    let many = piece.repeat((64 * 1024_usize).div_ceil(piece.len()));
    let upstream = Upstream::raw(move |stream| {
        let mut reader = Reader::new(stream);
        let Ok(Some(_)) = reader.head() else { return };
        counter.fetch_add(1, Ordering::SeqCst);
        if reader.stream.write_all(head).is_ok() {
            while reader.stream.write_all(&many).is_ok() {}
        }
        counter.fetch_sub(1, Ordering::SeqCst);
    });
    (upstream, running)
}

#[test]
fn exhaustion_158_and_163_clients_that_do_not_read_are_cut_and_so_is_their_backend() {
    const CLIENTS: usize = 20;
    for head in [
        &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    ] {
        let (upstream, running) = endless(head, &chunk());
        let other = Upstream::plain();
        let gateway = beside(&upstream, &other).set("server.limits.stall_timeout", "\"2s\"").start();
        serves_the_next(&gateway);
        let (files, memory) = (gateway.open_files(), gateway.memory());
        let stuck: Vec<Connection> = (0..CLIENTS)
            .map(|_| {
                let mut connection = gateway.connect();
                connection.begin(&Request::get("/open"));
                connection
            })
            .collect();
        wait::until("all answers to have begun", || running.load(Ordering::SeqCst) == CLIENTS);
        serves_the_next(&gateway);
        let growth = gateway.memory().saturating_sub(memory);
        assert!(growth < BOUND, "{CLIENTS} clients that do not read cost {growth} bytes");
        // Nobody reads, so the gateway ends it: the backend's side ends, while ours is still open.
        let deadline = Instant::now() + PATIENCE;
        while running.load(Ordering::SeqCst) > 0 {
            let shown = String::from_utf8_lossy(head);
            assert!(Instant::now() < deadline, "{} are not let go: {shown:?}", running.load(Ordering::SeqCst));
            std::thread::sleep(Duration::from_millis(20));
        }
        wait::until("the files of the cut clients", || gateway.open_files() <= files + 4);
        serves_the_next(&gateway);
        drop(stuck);
    }
    cases::tried("clients that do not read", CLIENTS * 3);
}

#[test]
fn exhaustion_162_and_163_an_answer_for_ever_ends_with_its_client() {
    let (upstream, running) = endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &chunk());
    let other = Upstream::plain();
    let gateway = beside(&upstream, &other).start();
    let memory = gateway.memory();
    let mut clients: Vec<Connection> = (0..20)
        .map(|_| {
            let mut connection = gateway.connect();
            connection.reader.keep_taken = false;
            connection.begin(&Request::get("/open"));
            connection
        })
        .collect();
    for client in &mut clients {
        client.head("/open").unwrap().expect(200);
        for _ in 0..1000 {
            assert!(!client.reader.chunk().unwrap().is_empty());
        }
    }
    serves_the_next(&gateway);
    drop(clients);
    wait::until("the backend to be let go", || running.load(Ordering::SeqCst) == 0);
    let growth = gateway.memory().saturating_sub(memory);
    assert!(growth < BOUND, "endless answers cost {growth} bytes");
    cases::tried("endless answers", 20);
}

#[test]
fn exhaustion_35_and_162_heads_that_never_end_hold_up_nobody() {
    let floods: [(&[u8], &[u8]); 5] = [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"aaaaaaaa"),
        (b"", b"\r\n"),
    ];
    for (head, piece) in floods {
        let shown = String::from_utf8_lossy(piece).into_owned();
        let (upstream, running) = endless(head, piece);
        let other = Upstream::plain();
        let gateway = beside(&upstream, &other).set("upstream.app.response_timeout", "\"2s\"").start();
        let memory = gateway.memory();
        let mut connections: Vec<Connection> = (0..4)
            .map(|_| {
                let mut connection = gateway.connect();
                connection.begin(&Request::get("/open"));
                connection
            })
            .collect();
        wait::until("a flood", || upstream.connections() >= 4);
        let began = Instant::now();
        serves_the_next(&gateway);
        println!("{shown:?}: the next user waited {:?}", began.elapsed());
        for connection in &mut connections {
            let answer = connection.read("GET", "/open");
            assert!(matches!(answer.status, 502 | 504), "{} after {shown:?}", answer.status);
        }
        println!("{shown:?}: refused after {:?}", began.elapsed());
        wait::until("the backend to be let go", || running.load(Ordering::SeqCst) == 0);
        let growth = gateway.memory().saturating_sub(memory);
        assert!(growth < BOUND, "{shown:?} without end costs {growth} bytes");
    }
    cases::tried("endless heads of backends", floods.len() * 4);
}

#[test]
fn exhaustion_162_a_backend_that_never_answers_costs_its_clients_the_time_limit_and_nobody_else() {
    const CLIENTS: usize = 200;
    let upstream = Upstream::raw(|stream| {
        let _ = std::io::copy(&mut &stream, &mut std::io::sink());
    });
    let other = Upstream::plain();
    let gateway = beside(&upstream, &other).set("upstream.app.response_timeout", "\"3s\"").start();
    serves_the_next(&gateway);
    let (files, memory) = (gateway.open_files(), gateway.memory());
    let mut clients: Vec<Connection> = (0..CLIENTS)
        .map(|number| {
            let mut connection = gateway.connect();
            let request =
                Request::new(if number % 2 == 0 { "GET" } else { "POST" }, "/open").field("Connection", "close");
            connection.begin(&if number % 3 == 0 { handshake("/open") } else { request });
            connection
        })
        .collect();
    serves_the_next(&gateway);
    assert!(gateway.memory().saturating_sub(memory) < BOUND);
    // Every fifth leaves; the others are told.
    let mut number = 0;
    clients.retain(|_| {
        number += 1;
        number % 5 != 0
    });
    for client in &mut clients {
        client.read("GET", "/open").expect(504);
    }
    drop(clients);
    wait::until("the files of all of them", || gateway.open_files() <= files + 4);
    serves_the_next(&gateway);
    cases::tried("requests without an answer", CLIENTS);
}

fn handshake(target: &str) -> Request {
    Request::get(target)
        .field("Upgrade", "websocket")
        .field("Connection", "Upgrade")
        .field("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .field("Sec-WebSocket-Version", "13")
}

#[test]
fn exhaustion_141_and_159_half_open_upgrades_end_and_tunnels_hold_little() {
    const TUNNELS: usize = 40;
    let open = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&open);
    let upstream = Upstream::raw(move |stream| {
        let mut reader = Reader::new(stream);
        let Ok(Some(head)) = reader.head() else { return };
        let _ = reader.stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        );
        counter.fetch_add(1, Ordering::SeqCst);
        if head.first_line.contains("flood") {
            let bytes = vec![b'x'; 64 * 1024];
            while reader.stream.write_all(&bytes).is_ok() {}
        } else {
            let _ = std::io::copy(&mut reader.stream, &mut std::io::sink());
        }
        counter.fetch_sub(1, Ordering::SeqCst);
    });
    let other = Upstream::plain();
    let gateway = beside(&upstream, &other).start();
    serves_the_next(&gateway);
    let (files, memory) = (gateway.open_files(), gateway.memory());
    let tunnels: Vec<Connection> = (0..TUNNELS)
        .map(|number| {
            let mut connection = gateway.connect();
            // Half of the backends write without end, and no client reads.
            connection.begin(&handshake(if number % 2 == 0 { "/open/flood" } else { "/open/silent" }));
            connection
        })
        .collect();
    wait::until("all tunnels", || open.load(Ordering::SeqCst) == TUNNELS);
    serves_the_next(&gateway);
    let growth = gateway.memory().saturating_sub(memory);
    assert!(growth < BOUND, "{TUNNELS} tunnels cost {growth} bytes");
    // A client that vanishes without a word is asked whether it is there: the kernel keeps a timer for each.
    let port = format!(":{:04X}", gateway.address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let of_tunnels: Vec<&str> = table
        .lines()
        .map(str::trim_start)
        .filter(|line| {
            let mut fields = line.split_whitespace().skip(1);
            // The gateway's side of established connections (proc(5): state 01).
            fields.next().is_some_and(|local| local.ends_with(&port)) && fields.nth(1) == Some("01")
        })
        .collect();
    assert!(of_tunnels.len() >= TUNNELS, "{} of {TUNNELS} connections found", of_tunnels.len());
    // The timer's kind: 1 retransmission, 2 keep-alive, 4 zero-window probe; 0 is none.
    let without: Vec<&&str> = of_tunnels
        .iter()
        .filter(|line| line.split_whitespace().nth(5).is_none_or(|timer| timer.starts_with("00")))
        .collect();
    assert!(without.is_empty(), "nobody would notice that these clients are gone: {without:#?}");
    drop(tunnels);
    wait::until("the backends of the tunnels to be let go", || open.load(Ordering::SeqCst) == 0);
    wait::until("the files of the tunnels", || gateway.open_files() <= files + 4);
    cases::tried("tunnels", TUNNELS);
}

#[test]
fn exhaustion_159_floods_of_headers_are_refused_in_little_memory() {
    let upstream = Upstream::plain();
    let gateway = beside(&upstream, &upstream).set("server.limits.header_timeout", "\"5s\"").start();
    serves_the_next(&gateway);
    let memory = gateway.memory();
    let floods: [(&str, &[u8]); 8] = [
        ("many fields", b"X-A: b\r\n"),
        ("many cookies", b"Cookie: a=b\r\n"),
        ("many hosts", b"Host: a\r\n"),
        ("one long value", b"aaaaaaaaaaaaaaaa"),
        ("empty lines before the request", b"\r\n"),
        ("a request line without end", b"/aaaaaaaaaaaaaaa"),
        ("a method without end", b"GGGGGGGGGGGGGGGG"),
        ("names without a colon", b"X-A-B-C-D-E-F-G-"),
    ];
    let ended = &AtomicBool::new(false);
    let clients_of = &gateway;
    std::thread::scope(|scope| {
        let gateway = clients_of;
        let clients: Vec<_> = floods
            .iter()
            .flat_map(|flood| [flood; 3])
            .map(|(what, piece)| {
                scope.spawn(move || {
                    let mut connection = gateway.connect();
                    let beginning: &[u8] = match *what {
                        "empty lines before the request" | "a method without end" => b"",
                        "a request line without end" => b"GET ",
                        "one long value" => b"GET /open HTTP/1.1\r\nHost: a\r\nX-Long: ",
                        _ => b"GET /open HTTP/1.1\r\nHost: a\r\n",
                    };
                    connection.write(beginning);
                    let many = piece.repeat(64 * 1024 / piece.len());
                    let deadline = Instant::now() + Duration::from_secs(40);
                    while Instant::now() < deadline {
                        if connection.stream().write_all(&many).is_err() {
                            return;
                        }
                    }
                    panic!("the gateway takes {what} without end");
                })
            })
            .collect();
        scope.spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                serves_the_next(gateway);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        for client in clients {
            client.join().unwrap();
        }
        ended.store(true, Ordering::SeqCst);
    });
    let growth = gateway.memory().saturating_sub(memory);
    assert!(growth < BOUND, "floods cost {growth} bytes");
    for (size, statuses) in [(17 * 1024, &[200][..]), (33 * 1024, &[431]), (400 * 1024, &[431]), (1024 * 1024, &[431])]
    {
        let mut connection = gateway.connect();
        let head = format!("GET /open HTTP/1.1\r\nHost: a\r\nX-Large: {}\r\n\r\n", "a".repeat(size));
        let _ = connection.stream().write_all(head.as_bytes());
        match connection.try_read("GET", "/open") {
            Ok(answer) => assert!(statuses.contains(&answer.status), "{size}: {}", answer.status),
            // The refusal may be lost to the reset that unread bytes cause.
            Err(error) => assert!(size > 64 * 1024, "{size}: {error}"),
        }
    }
    assert!(upstream.recorded().iter().filter(|seen| seen.target == "/open").count() == 1);
    cases::tried("floods of headers", floods.len() * 3 + 4);
}

#[test]
fn exhaustion_161_without_file_descriptors_it_waits_and_goes_on() {
    let _turn = Turn::alone();
    let upstream = Upstream::plain();
    let gateway = beside(&upstream, &upstream)
        .set("server.workers", "2")
        .set("server.limits.header_timeout", "\"10m\"")
        .set("server.limits.idle_timeout", "\"10m\"")
        .start();
    let token = gateway.login("kim");
    serves_the_next(&gateway);
    let limit = u64::try_from(gateway.open_files()).unwrap() + 60;
    gateway.limit_open_files(limit);
    // The kernel holds those ready that can't be accepted.
    let connections: Vec<Connection> = (0..500).map(|_| gateway.connect()).collect();
    wait::until("no descriptor to be left", || gateway.open_files() as u64 >= limit);
    wait::until("the log to say so", || gateway.logs().contains("connections can't be accepted"));
    let before = gateway.processor_time();
    std::thread::sleep(Duration::from_secs(2));
    let used = gateway.processor_time().saturating_sub(before);
    assert!(used < Duration::from_millis(800), "{used:?} of processor time in two seconds of waiting");
    let complaints = gateway.logs().matches("connections can't be accepted").count();
    assert!(complaints < 20, "{complaints} lines about one trouble");
    drop(connections);
    // Those who come now wait behind the dead ones, and are served.
    serves_the_next(&gateway);
    gateway.get_with("/", &token).expect(200);
    gateway.login("kim");
    assert!(!gateway.logs().contains("panicked"));
    println!("{used:?} of processor time in two seconds without descriptors, {complaints} lines in the log");
    cases::tried("connections without a descriptor", 500);
}

#[test]
fn exhaustion_161_at_the_limit_of_connections_the_next_one_waits_for_a_place() {
    let upstream = Upstream::plain();
    let gateway = beside(&upstream, &upstream)
        .set("server.limits.max_connections", "20")
        .set("server.limits.header_timeout", "\"3s\"")
        .start();
    let silent: Vec<Connection> = (0..60).map(|_| gateway.connect()).collect();
    // Three times as many as there is room for, and each has its deadline from when it was let in.
    serves_the_next(&gateway);
    assert!(gateway.open_files() < 80, "{} files", gateway.open_files());
    drop(silent);
    serves_the_next(&gateway);
    cases::tried("connections over the limit", 60);
}

/// At the limit the connection that has idled longest makes room, and never one with a request under way; a tunnel is one.
#[test]
fn exhaustion_161_at_the_limit_the_one_that_idled_longest_makes_room() {
    let upstream = Upstream::raw(|stream| {
        let mut reader = Reader::new(stream);
        while let Ok(Some(head)) = reader.head() {
            if !head.all("upgrade").is_empty() {
                let _ = reader.stream.write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
                );
                let _ = reader.rest();
                return;
            }
            let _ = reader.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let gateway = beside(&upstream, &upstream)
        .set("server.limits.max_connections", "8")
        .set("server.limits.header_timeout", "\"10m\"")
        .set("server.limits.idle_timeout", "\"1h\"")
        .start();
    let open = Request::get("/open");
    let mut idle: Vec<Connection> = (0..8).map(|_| gateway.connect()).collect();
    for connection in &mut idle {
        connection.send(&open).expect(200);
    }
    let mut ninth = gateway.connect();
    ninth.send(&open).expect(200);
    assert!(idle.remove(0).closes_within(PATIENCE), "the first has idled longest");
    for connection in &mut idle {
        connection.send(&open).expect(200);
    }
    ninth.send(&open).expect(200);
    // Silent from the beginning is idle as well.
    let silent: Vec<Connection> = (0..8).map(|_| gateway.connect()).collect();
    gateway.send(&open).expect(200);
    drop((silent, idle, ninth));

    // Tunnels count, and stay.
    let handshake = Request::get("/open")
        .field("Upgrade", "websocket")
        .field("Connection", "Upgrade")
        .field("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .field("Sec-WebSocket-Version", "13");
    let mut tunnels: Vec<Connection> = (0..8).map(|_| gateway.connect()).collect();
    for tunnel in &mut tunnels {
        tunnel.begin(&handshake);
        tunnel.head("/open").unwrap().expect(101);
    }
    let mut next = gateway.connect();
    next.begin(&open);
    assert!(!next.closes_within(Duration::from_millis(500)) && next.reader.buffered.is_empty(), "a ninth was let in");
    for tunnel in &mut tunnels {
        tunnel.stream().set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert!(quiet(tunnel.stream()), "a tunnel was closed for another connection");
    }
    drop(tunnels.pop());
    next.stream().set_read_timeout(Some(PATIENCE)).unwrap();
    next.read("GET", "/open").expect(200);
    cases::tried("connections at the limit", 25);
}

/// The shortest of several tries, which is the least disturbed one.
fn shortest(connection: &mut Connection, request: &Request, status: u16) -> Duration {
    let once = |connection: &mut Connection| {
        let began = Instant::now();
        connection.send(request).expect(status);
        began.elapsed()
    };
    (0..15).map(|_| once(connection)).min().unwrap()
}

#[test]
fn exhaustion_73_cookies_are_bounded_and_their_cost_is_linear() {
    let upstream = Upstream::plain();
    let gateway = beside(&upstream, &upstream).start();
    let token = gateway.login("kim");
    let with = |cookies: &str| Request::get("/open").field("Cookie", cookies);
    gateway.send(&with(&format!("a={}", "x".repeat(60 * 1024)))).expect(431);
    gateway.send(&with(&"a=0123456789012345678901234; ".repeat(2_000))).expect(431);
    // 2,000 short ones are within the limit, and pass as they came.
    let short = "a=1;".repeat(2_000);
    gateway.send(&with(&short)).expect(200);
    assert_eq!(upstream.last().field("cookie").as_deref(), Some(&*short));
    let mut connection = gateway.connect();
    for crumb in [
        "a=1234;",
        "a=\"123;",
        "a=\"1\";x",
        "a 1,23 ;",
        "=======;",
        "access_token=x;",
        "access_token=a.b.c;",
        "\"access_token\"=x;",
        "access_token=\";",
        "b=,access_token=x ",
        ";;;;;;;;",
        "        ",
    ] {
        // Eight times as many: eight times as long, or a little more; sixty-four times as long where each looks at all.
        let few = crumb.repeat(3_500 / crumb.len());
        let many = crumb.repeat(28_000 / crumb.len());
        let short = shortest(&mut connection, &with(&few), 200);
        let long = shortest(&mut connection, &with(&many), 200);
        println!("{crumb:?}: {short:?} for {} bytes, {long:?} for {}", few.len(), many.len());
        assert!(long < short * 30 || long < Duration::from_millis(40), "{crumb:?}: {short:?} becomes {long:?}");
        if crumb.contains("access_token") {
            assert!(!String::from_utf8_lossy(&upstream.last().raw).contains("access_token"), "{crumb:?}");
        }
    }
    // A valid one is found behind 500 others. Behind 500 that claim to be it nobody looks any more: that is no login.
    for (crumb, status) in [("a=1; ", 200), ("access_token=nonsense; ", 401), ("access_token=a.b.c; ", 401)] {
        let cookies = format!("{}access_token={token}", crumb.repeat(500));
        gateway.send(&Request::get("/").field("Cookie", &cookies)).expect(status);
    }
    cases::tried("cookies in great numbers", 12 * 2 + 6);
}

/// A request whose head is about so many bytes long.
type Head = Box<dyn Fn(usize) -> Request>;

fn full(piece: &str, size: usize) -> String {
    piece.repeat(size / piece.len())
}

#[test]
fn exhaustion_159_no_single_head_takes_long_to_judge() {
    let upstream = Upstream::plain();
    let gateway = beside(&upstream, &upstream).set("server.trusted_proxies", "[\"127.0.0.1/32\"]").start();
    let field = |name: &'static str, piece: &'static str| -> Head {
        Box::new(move |size| Request::get("/open").field(name, &full(piece, size)))
    };
    let mut heads: Vec<(&str, Head)> = vec![
        ("Connection tokens", field("Connection", "x,")),
        ("Connection names of ours", field("Connection", "x-forwarded-user,")),
        ("forwarded addresses", field("X-Forwarded-For", "127.0.0.1,")),
        ("forwarded nonsense", field("X-Forwarded-For", ",")),
        ("Forwarded", field("Forwarded", "for=1;by=2,")),
        ("Accept", field("Accept", "text/html;q=0,")),
        ("Accept-Language", field("Accept-Language", "ko;q=0.1,")),
        ("TE", field("TE", "trailers,")),
        ("Trailer", field("Trailer", "x-sum,")),
        ("Authorization", field("Authorization", "Bearer ")),
        ("Host", field("Host", "a.")),
        ("Upgrade", field("Upgrade", "websocket,")),
        (
            "different names in Trailer",
            Box::new(|size| {
                let names: String = (0..size / 6).map(|number| format!("x{number},")).collect();
                Request::get("/open").field("Trailer", &names)
            }),
        ),
        (
            "different names in Connection",
            Box::new(|size| {
                let names: String = (0..size / 6).map(|number| format!("x{number},")).collect();
                Request::get("/open").field("Connection", &names)
            }),
        ),
        ("dots in a token", Box::new(|size| Request::get("/").bearer(&full(".", size)))),
        ("dots in a cookie", Box::new(|size| Request::get("/").cookie(&full(".", size)))),
        (
            "a large token",
            Box::new(|size| Request::get("/").bearer(&format!("eyJhbGciOiJIUzI1NiJ9.{}.x", full("e30", size)))),
        ),
        ("Origin", Box::new(|size| handshake("/open").field("Origin", &full("http://", size)))),
    ];
    for piece in [
        "/a",
        "//",
        "/.",
        "/..",
        "/%2e",
        "/%252e",
        ";",
        "/;a",
        "\\",
        "%5c",
        "%25",
        "%2525",
        "%u002e",
        "%c0%ae",
        "/%20.",
        "%3f",
        "a./",
        "/%25%32%65%2e;a\\..;//%20.%2f%5c%3f",
    ] {
        heads.push((piece, Box::new(move |size| Request::get(&format!("/open/{}", full(piece, size))))));
        heads.push((piece, Box::new(move |size| Request::get(&format!("/{}", full(piece, size))))));
    }
    let count = heads.len();
    let mut slowest = (Duration::ZERO, "");
    for (what, head) in heads {
        // The least disturbed of five. A refused one may close its connection.
        let time = |size: usize| {
            let request = head(size);
            let once = || {
                let mut connection = gateway.connect();
                let began = Instant::now();
                let answer = connection.send(&request);
                assert!(answer.status < 500, "{what}: {}", answer.status);
                began.elapsed()
            };
            (0..5).map(|_| once()).min().unwrap()
        };
        let (short, long) = (time(3_600), time(28_800));
        // Eight times as long a head: eight times as long, or a little more, and never sixty-four times.
        assert!(long < short * 30 || long < Duration::from_millis(80), "{what}: {short:?} becomes {long:?}");
        assert!(long < Duration::from_secs(2), "{what} took {long:?}");
        if long > slowest.0 {
            slowest = (long, what);
        }
    }
    println!("the slowest head took {:?}: {}", slowest.0, slowest.1);
    cases::tried("heads that are slow to judge", count * 10);
}

#[test]
fn exhaustion_164_after_thousands_of_mixed_requests_nothing_has_grown() {
    let upstream = Upstream::start(|request, wire| {
        if request.target.ends_with("break") {
            let _ = wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbroken");
            return crate::support::Then::Close;
        }
        reply(wire, 200, &[], b"ok")
    });
    let gateway = beside(&upstream, &upstream).start();
    let token = gateway.login("kim");
    let raw: [&[u8]; 8] = [
        b"GET /open HTTP/1.1\r\nHost: a\r\nX-A : b\r\n\r\n",
        b"POST /open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /open HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf",
        b"POST /open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /open HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00",
        b"",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    let statuses = Mutex::new(std::collections::BTreeMap::<u16, usize>::new());
    let round = |count: usize| {
        let mut connection = gateway.connect();
        for number in 0..count {
            let request = match number % 10 {
                0 => Request::get("/").cookie(&token),
                1 => Request::get("/"),
                2 => Request::get("/open/..%2fx"),
                3 => Request::post("/open").body(b"hello"),
                4 => Request::get("/open").field("Host", "a b"),
                5 => Request::get("/check").cookie("nonsense"),
                6 => Request::post("/login").json(&serde_json::json!({"username": 1})),
                7 => Request::get("/open/break"),
                8 => Request::get(&format!("/open/{}", "%2e".repeat(200))),
                _ => Request::get("/").navigation(),
            };
            match connection.try_send(&request) {
                Ok(answer) => *statuses.lock().unwrap().entry(answer.status).or_default() += 1,
                Err(_) => connection = gateway.connect(),
            }
            if number % 5 == 0 {
                let mut other = gateway.connect();
                let _ = other.stream().write_all(raw[(number / 5) % raw.len()]);
            }
        }
    };
    round(2_000);
    round(2_000);
    wait::until("the connections of the first rounds to be over", || gateway.open_files() < 60);
    let (files, memory) = (gateway.open_files(), gateway.memory());
    round(6_000);
    wait::until("the connections of the last round to be over", || gateway.open_files() <= files + 2);
    let growth = gateway.memory().saturating_sub(memory);
    assert!(growth < 6 * MEGABYTE, "6,000 more requests left {growth} bytes");
    let statuses = statuses.into_inner().unwrap();
    let documented = [200, 303, 400, 401, 405, 408, 413, 429, 431, 501, 502];
    assert!(statuses.keys().all(|status| documented.contains(status)), "{statuses:?}");
    println!("{statuses:?}; {} KiB more after 6,000 requests", growth / 1024);
    cases::tried("mixed requests", 12_000);
}
