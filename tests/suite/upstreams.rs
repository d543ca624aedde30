//! Backends that are slow, gone, closing, many, or behind a unix socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::gateway::free_port;
use crate::support::{Builder, Gateway, Request, Then, Upstream, reply, wait};

fn public(upstream: &Upstream) -> Builder {
    Builder::new().upstream("app", &[&upstream.url]).route("path = \"/\"\naccess = \"public\"\nupstream = \"app\"")
}

#[test]
fn a_backend_that_closes_right_after_each_answer_fails_no_get_and_gets_no_post_twice() {
    let upstream = Upstream::start(|_, wire| {
        // Without `Connection: close`: the gateway believes that the connection can be used again.
        reply(wire, 200, &[], b"ok");
        Then::Close
    });
    let gateway = public(&upstream).start();
    let mut connection = gateway.connect();
    for number in 0..1000 {
        connection.send(&Request::get(&format!("/get/{number}"))).expect(200);
    }
    let mut failed = 0;
    for number in 0..300 {
        let request = Request::post(&format!("/post/{number}")).body(b"once");
        let Ok(answer) = connection.try_send(&request) else {
            connection = gateway.connect();
            continue;
        };
        assert!(matches!(answer.status, 200 | 502), "{}", answer.status);
        failed += usize::from(answer.status == 502);
        // Something in between, so that a connection is there to be stale.
        connection.send(&Request::get("/between")).expect(200);
    }
    let mut posts: Vec<String> =
        upstream.recorded().into_iter().filter(|seen| seen.method == "POST").map(|seen| seen.target).collect();
    let all = posts.len();
    posts.sort();
    posts.dedup();
    assert_eq!(posts.len(), all, "a POST was sent twice");
    println!("{failed} of 300 POSTs could not be sent safely");
}

#[test]
fn a_post_that_may_have_been_processed_is_not_sent_again() {
    let upstream = Upstream::start(|request, wire| {
        if request.target == "/die" {
            return Then::Close;
        }
        reply(wire, 200, &[], b"ok")
    });
    let gateway = public(&upstream).start();
    for _ in 0..50 {
        gateway.get("/").expect(200);
        gateway.send(&Request::post("/die").body(b"x")).expect(502);
    }
    assert_eq!(upstream.recorded().iter().filter(|seen| seen.target == "/die").count(), 50);
}

#[test]
fn connections_to_the_backend_are_used_again() {
    let upstream = Upstream::plain();
    let gateway = public(&upstream).start();
    let mut connection = gateway.connect();
    for _ in 0..200 {
        connection.send(&Request::get("/")).expect(200);
    }
    assert!(upstream.connections() <= 4, "{}", upstream.connections());
}

#[test]
fn an_absent_backend_is_502_and_one_that_never_answers_is_504() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let gateway = Builder::new()
        .upstream("app", &[&nobody])
        .route("path = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .start();
    let answer = gateway.get("/").expect(502);
    assert_eq!(answer.field("content-type").as_deref(), Some("application/problem+json"));
    assert!(!answer.text().contains("127.0.0.1"), "the backend's address is shown: {}", answer.text());
    assert!(
        gateway
            .send(&Request::get("/").navigation())
            .expect(502)
            .field("content-type")
            .unwrap()
            .starts_with("text/html")
    );

    let upstream = Upstream::raw(|stream| {
        let _ = std::io::copy(&mut &stream, &mut std::io::sink());
    });
    let gateway = public(&upstream).set("upstream.app.response_timeout", "\"1s\"").start();
    gateway.get("/").expect(504);
    // A client that goes takes its request to the backend with it.
    let gateway = public(&upstream).start();
    let before = upstream.connections();
    let mut connection = gateway.connect();
    connection.begin(&Request::get("/"));
    wait::until("the request at the backend", || upstream.connections() > before);
    drop(connection);
    wait::until("the abandoned request in the log", || {
        gateway.log_lines("access").iter().any(|line| line["status"] == 499)
    });
}

#[test]
fn one_dead_backend_of_several_is_left_out() {
    let alive: Vec<Upstream> = (0..2).map(|_| Upstream::plain()).collect();
    let dead = format!("http://127.0.0.1:{}", free_port());
    let gateway = Builder::new()
        .upstream("app", &[&alive[0].url, &dead, &alive[1].url])
        .route("path = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .start();
    for number in 0..200 {
        gateway.get("/").expect(200);
        // Nothing was sent to the dead one, so even a POST can go elsewhere.
        let answer = gateway.send(&Request::post("/").body(number.to_string().as_bytes()));
        assert_eq!(answer.status, 200);
    }
    for upstream in &alive {
        assert!(upstream.count() > 50, "badly balanced: {}", upstream.count());
    }
}

#[test]
fn a_health_check_takes_a_failing_backend_out_and_back_in() {
    let sick = Arc::new(AtomicUsize::new(0));
    let state = Arc::clone(&sick);
    let first = Upstream::start(move |request, wire| {
        let status = if request.target == "/health" && state.load(Ordering::SeqCst) == 1 { 503 } else { 200 };
        reply(wire, status, &[], b"first")
    });
    let second = Upstream::start(|_, wire| reply(wire, 200, &[], b"second"));
    let gateway = Builder::new()
        .upstream("app", &[&first.url, &second.url])
        .set("upstream.app.health_path", "\"/health\"")
        .route("path = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .start();
    let answers_of_first =
        |gateway: &Gateway| (0..20).filter(|_| gateway.get("/").expect(200).body == b"first").count();
    assert!(answers_of_first(&gateway) > 0);
    sick.store(1, Ordering::SeqCst);
    wait::until("the sick backend to be left out", || answers_of_first(&gateway) == 0);
    sick.store(0, Ordering::SeqCst);
    wait::until("the healthy backend to be used again", || answers_of_first(&gateway) > 0);
}

#[test]
fn a_unix_socket_is_a_backend_too() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::on_unix_socket(&folder.path().join("app.sock"), |request, wire| {
        reply(wire, 200, &[], request.target.as_bytes())
    });
    let gateway = public(&upstream).user("kim", &[]).start();
    let token = gateway.login("kim");
    assert_eq!(gateway.get_with("/a?b", &token).expect(200).text(), "/a?b");
    assert_eq!(upstream.last().field("x-forwarded-user").as_deref(), Some("kim"));
    assert!(upstream.last().field("host").is_some());
}

#[test]
fn a_start_without_any_backend_succeeds() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut gateway =
        Builder::new().upstream("app", &[&nobody]).route("path = \"/\"\nupstream = \"app\"").user("kim", &[]).prepare();
    gateway.spawn();
    wait::until("the login page", || {
        std::net::TcpStream::connect_timeout(&gateway.address, Duration::from_millis(200)).is_ok()
            && gateway.get("/check").status == 401
    });
    gateway.login("kim");
}

#[test]
fn each_way_in_which_a_backend_fails_has_its_reason_and_says_where_and_which_key() {
    let upstream = Upstream::raw(|mut stream| {
        use std::io::{Read as _, Write as _};
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head);
        match head.split(' ').nth(1).unwrap_or_default() {
            "/slow" => {
                let _ = stream.read(&mut byte);
            }
            "/odd" => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx");
            }
            _ => {}
        }
    });
    let closed = free_port();
    let gateway = Builder::guarding(&upstream)
        .set("upstream.app.response_timeout", "\"200ms\"")
        .upstream("gone", &[&format!("http://127.0.0.1:{closed}"), "unix:/nowhere/socket"])
        .upstream("unknown", &["http://no-such-name.invalid:81"])
        .route("path = \"/gone\"\nupstream = \"gone\"\naccess = \"public\"")
        .route("path = \"/unknown\"\nupstream = \"unknown\"\naccess = \"public\"")
        .route("path = \"/slow\"\nupstream = \"app\"\naccess = \"public\"")
        .route("path = \"/odd\"\nupstream = \"app\"\naccess = \"public\"")
        .route("path = \"/cut\"\nupstream = \"app\"\naccess = \"public\"")
        .start();
    let at = upstream.url.clone();
    for (path, status, code, told) in [
        (
            "/gone",
            502,
            "upstream_unreachable",
            vec![
                format!("http://127.0.0.1:{closed}: Connection refused"),
                String::from("unix:/nowhere/socket: No such file"),
            ],
        ),
        ("/unknown", 502, "upstream_unreachable", vec![String::from("http://no-such-name.invalid:81: ")]),
        ("/slow", 504, "upstream_timed_out", vec![at.clone(), String::from("upstream.app.response_timeout")]),
        ("/odd", 502, "upstream_malformed", vec![at.clone(), String::from("Content-Length contradicts itself")]),
        ("/cut", 502, "upstream_broke_off", vec![at, String::from("closed before an answer")]),
    ] {
        let answer = gateway.get(path).expect(status);
        assert_eq!(answer.json()["code"], code, "{path}");
        for told in told {
            wait::until("the log to say it", || gateway.logs().contains(&told));
        }
        wait::until("the access line", || {
            gateway.log_lines("access").iter().any(|line| line["path"] == path && line["reason"] == code)
        });
    }
}
