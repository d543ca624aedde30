//! Reload, drain, a second server, the admin listener.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::file_server::program;
use crate::support::gateway::{free_port, ready};
use crate::support::peer::Peer;
use crate::support::{Builder, Connection, Gateway, Request, Upstream, reply, wait};

/// The lines that a file gets at its end.
fn add_public_route(text: String, path: &str) -> String {
    text + &format!("\n[[route]]\npath = \"{path}\"\naccess = \"public\"\nupstream = \"app\"\n")
}

#[test]
fn a_changed_file_is_taken_over_at_once_and_by_a_signal() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    gateway.get("/one").expect(401);
    gateway.rewrite(|text| add_public_route(text, "/one"));
    wait::until("the changed file to be noticed", || gateway.get("/one").status == 200);
    gateway.rewrite(|text| add_public_route(text, "/two"));
    gateway.signal(Signal::HUP);
    wait::until("the reload", || gateway.get("/two").status == 200);
    gateway.get_with("/check", &token).expect(200);
    assert!(!gateway.audit("reload").is_empty());
}

#[test]
fn a_bad_file_is_reported_and_the_old_one_stays() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    let good = std::fs::read_to_string(&gateway.config).unwrap();
    for bad in [
        String::from("nonsense = ["),
        good.clone() + "\n[logg]\nlevel = \"info\"\n",
        good.clone() + "\n[[route]]\npath = \"/x\"\nupstream = \"absent\"\n",
        add_public_route(good.clone(), "/open") + "\n[[test]]\nrequest = \"GET http://a/open\"\nexpect = \"deny\"\n",
        String::new(),
    ] {
        let before = gateway.logs().len();
        gateway.rewrite(|_| bad.clone());
        gateway.signal(Signal::HUP);
        wait::until("the bad file in the log", || gateway.logs()[before..].contains("config.toml"));
        gateway.get("/open").expect(401);
        gateway.get_with("/", &token).expect(200);
        assert_eq!(ready(gateway.admin), Some(200));
    }
    gateway.rewrite(|_| add_public_route(good.clone(), "/open"));
    wait::until("the good file", || gateway.get("/open").status == 200);
}

#[test]
fn what_needs_a_restart_is_named_in_the_log() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    gateway.rewrite(|text| text.replace("workers = 2", "workers = 1"));
    gateway.signal(Signal::HUP);
    wait::until("the note", || {
        let logs = gateway.logs();
        logs.contains("workers") && logs.contains("restart")
    });
}

#[test]
fn a_stop_under_load_fails_no_request_and_ends_with_0() {
    let upstream = Upstream::start(|_, wire| {
        std::thread::sleep(Duration::from_millis(20));
        reply(wire, 200, &[], b"slow")
    });
    let mut gateway = Builder::guarding(&upstream).start();
    let token = gateway.login("kim");
    let (address, stopping, done) = (gateway.address, AtomicBool::new(false), AtomicUsize::new(0));
    let status = std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    // A connection that is refused was never accepted; one that is accepted gets an answer.
                    let Ok(mut connection) = Connection::try_to(address) else {
                        assert!(stopping.load(Ordering::SeqCst), "refused before the signal");
                        return;
                    };
                    let answer = match connection.try_send(&Request::get("/").cookie(&token)) {
                        Ok(answer) => answer,
                        Err(error) => panic!("a request failed: {error}"),
                    };
                    answer.expect(200);
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        wait::until("some load", || done.load(Ordering::SeqCst) > 100);
        stopping.store(true, Ordering::SeqCst);
        gateway.stop()
    });
    assert_eq!(status.code(), Some(0));
}

#[test]
fn running_requests_finish_while_ready_says_no_and_a_second_signal_ends_at_once() {
    for twice in [false, true] {
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let gone = std::sync::Mutex::new(gone);
        let upstream = Upstream::start(move |_, wire| {
            let _ = gone.lock().unwrap().recv_timeout(Duration::from_mins(1));
            reply(wire, 200, &[], b"late")
        });
        let mut gateway = Gateway::guarding(&upstream);
        let token = gateway.login("kim");
        let mut connection = gateway.connect();
        connection.begin(&Request::get("/").cookie(&token));
        upstream.wait_for(1);
        gateway.signal(Signal::TERM);
        wait::until("/ready to say no", || ready(gateway.admin) == Some(503));
        let reasons = gateway.get_admin("/ready").expect(503).json();
        assert_eq!(reasons["ready"], false);
        assert!(reasons["reasons"][0]["code"].is_string(), "{reasons}");
        wait::until("the listener to close", || Connection::try_to(gateway.address).is_err());
        if twice {
            gateway.signal(Signal::TERM);
            let status = gateway.wait_for_exit();
            assert_ne!(status.code(), Some(0));
        } else {
            go.send(()).unwrap();
            assert_eq!(connection.read("GET", "/").expect(200).body, b"late");
            assert_eq!(gateway.wait_for_exit().code(), Some(0));
        }
    }
}

#[test]
fn new_connections_are_served_for_drain_delay_while_ready_says_no() {
    let upstream = Upstream::plain();
    for twice in [false, true] {
        let delay = if twice { "\"1h\"" } else { "\"2s\"" };
        let mut gateway = Builder::guarding(&upstream).set("server.drain_delay", delay).start();
        let token = gateway.login("kim");
        let signalled = std::time::Instant::now();
        gateway.signal(Signal::TERM);
        wait::until("/ready to say no", || ready(gateway.admin) == Some(503));
        let reasons = gateway.get_admin("/ready").expect(503).json();
        assert_eq!(reasons["reasons"][0]["code"], "draining", "{reasons}");
        if twice {
            gateway.get_with("/", &token).expect(200);
            gateway.signal(Signal::TERM);
            assert_ne!(gateway.wait_for_exit().code(), Some(0));
            continue;
        }
        let mut served = 0;
        while let Ok(mut connection) = Connection::try_to(gateway.address) {
            // The last one may be accepted by the kernel alone.
            match connection.try_send(&Request::get("/").cookie(&token)) {
                Ok(answer) => drop(answer.expect(200)),
                Err(_) => break,
            }
            served += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(served > 0, "no new connection was served");
        assert!(signalled.elapsed() >= Duration::from_secs(2), "closed after {:?}", signalled.elapsed());
        assert_eq!(gateway.wait_for_exit().code(), Some(0));
    }
}

#[test]
fn a_drain_that_runs_out_ends_with_1() {
    let upstream = Upstream::raw(|stream| {
        let _ = std::io::copy(&mut &stream, &mut std::io::sink());
    });
    let mut gateway = Builder::guarding(&upstream).set("server.drain", "\"1s\"").start();
    let token = gateway.login("kim");
    let mut connection = gateway.connect();
    connection.begin(&Request::get("/").cookie(&token));
    wait::until("the request at the backend", || upstream.connections() > 0);
    assert_eq!(gateway.stop().code(), Some(1));
}

/// `option httpchk` without more, as it stands in configurations that worked before.
#[test]
fn haproxys_own_check_is_answered_for_a_trusted_proxy_and_asks_no_backend() {
    use std::io::{Read as _, Write as _};
    let upstream = Upstream::plain();
    let route = "path = \"/\"\naccess = \"public\"\nupstream = \"app\"";
    let start = |trusted: &str| {
        let builder = Builder::new().upstream("app", &[&upstream.url]).route(route);
        builder.set("server.trusted_proxies", trusted).start()
    };
    let (trusting, other) = (start("[\"127.0.0.1\"]"), start("[\"192.0.2.1\"]"));
    let folder = tempfile::tempdir().unwrap();
    let (port, socket) = (free_port(), folder.path().join("stats"));
    let text = format!(
        "global\n stats socket {socket} mode 600 level user\ndefaults\n mode http\n timeout connect 5s\n \
         timeout client 60s\n timeout server 60s\n timeout check 10s\n option httpchk\n\
         frontend f\n bind 127.0.0.1:{port}\n default_backend trusting\n\
         backend trusting\n server s {} check inter 100ms\nbackend other\n server s {} check inter 100ms\n",
        trusting.address,
        other.address,
        socket = socket.display(),
    );
    let file = folder.path().join("haproxy.cfg");
    std::fs::write(&file, text).unwrap();
    let mut command = std::process::Command::new(program("haproxy"));
    command.arg("-db").arg("-f").arg(&file);
    let front = Peer::start(command, port, &folder.path().join("haproxy.log"));
    let finds = |line: &str, status: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.write_all(b"show stat\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.lines().any(|found| found.starts_with(line) && found.contains(status))
    };
    wait::until("both to be checked", || finds("trusting,s,", ",L7OK,200,") && finds("other,s,", ",L7STS,400,"));
    assert!(finds("trusting,s,", ",UP,"));
    assert_eq!(upstream.count(), 0, "a check went on to the backend");
    let mut connection = Connection::to(([127, 0, 0, 1], front.port).into());
    connection.try_send(&Request::get("/")).unwrap().expect(200);
    wait::until("the line of a check", || {
        trusting.log_lines("access").iter().any(|line| line["reason"] == "proxy_check" && line["status"] == 200)
    });
}

#[test]
fn a_second_server_on_the_folder_or_the_port_fails_and_does_not_disturb_the_first() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    let config = std::fs::read_to_string(&gateway.config).unwrap();
    // The same folder on other ports.
    let other = gateway.folder().join("other.toml");
    let moved = config
        .replace(&gateway.address.port().to_string(), &free_port().to_string())
        .replace(&gateway.admin.port().to_string(), &free_port().to_string());
    std::fs::write(&other, moved).unwrap();
    let second = crate::support::gateway::run(&["serve", "--config", other.to_str().unwrap()]).expect(1);
    assert!(second.stderr.contains("data"), "{}", second.stderr);
    gateway.get_with("/", &token).expect(200);
    // The same port with another folder.
    let data = gateway.folder().join("data2");
    std::fs::write(&other, config.replace(gateway.data().to_str().unwrap(), data.to_str().unwrap())).unwrap();
    let second = crate::support::gateway::run(&["serve", "--config", other.to_str().unwrap()]).expect(1);
    assert!(
        second.stderr.contains(&gateway.address.port().to_string())
            || second.stderr.contains(&gateway.admin.port().to_string()),
        "{}",
        second.stderr
    );
    for _ in 0..20 {
        gateway.get_with("/", &token).expect(200);
    }
    gateway.command(&["user", "list"]).expect(0);
}

#[test]
fn the_admin_listener_answers_there_and_not_on_the_public_port() {
    let upstream = Upstream::plain();
    let gateway =
        Builder::guarding(&upstream).route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"").start();
    gateway.get_admin("/ping").expect(200);
    assert_eq!(gateway.get_admin("/ready").expect(200).json()["ready"], true);
    gateway.get("/open").expect(200);
    gateway.try_login("kim", "wrong password").expect(401);
    gateway.login("kim");
    wait::until("the metrics of what was done", || {
        let metrics = gateway.get_admin("/metrics").text();
        [
            "doorward_requests_total",
            "doorward_request_duration_seconds",
            "doorward_requests_in_flight",
            "doorward_logins_total{outcome=\"ok\"} 1",
            "doorward_logins_total{outcome=\"refused\"} 1",
            "doorward_store_up 1",
            "doorward_hash_queue",
        ]
        .iter()
        .all(|wanted| metrics.contains(wanted))
    });
    for target in ["/ping", "/ready", "/metrics"] {
        // On the public port they are the backend's.
        gateway.get(target).expect(401);
        gateway.get_admin("/nothing").expect(404);
    }
    for name in ["kim", "open?secret"] {
        assert!(!gateway.get_admin("/metrics").text().contains(name), "a label that a client chose");
    }
}

#[test]
fn every_request_has_one_line_in_the_log() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    gateway.send(&Request::get("/seen?secret=1").cookie(&token).field("User-Agent", "x\"<[31m")).expect(200);
    gateway.get("/unseen").expect(401);
    let line = |path: &str| gateway.log_lines("access").into_iter().find(|line| line["path"] == path);
    let seen = wait::until_some("the line", || line("/seen"));
    assert_eq!(
        (&seen["method"], &seen["status"], &seen["user"], &seen["decision"]),
        (&"GET".into(), &200.into(), &"kim".into(), &"allow".into())
    );
    assert_eq!(seen["bytes"], "hello from the backend".len());
    for key in ["time", "id", "client", "host", "route", "reason", "duration", "upstream_duration"] {
        assert!(!seen[key].is_null(), "{key}: {seen}");
    }
    let unseen = wait::until_some("the line", || line("/unseen"));
    assert_eq!((&unseen["decision"], &unseen["reason"]), (&"deny".into(), &"no_credential".into()));
}
