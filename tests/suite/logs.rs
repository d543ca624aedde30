//! No secret in any log, at the most talkative level, whatever happens.

use std::collections::BTreeSet;
use std::fs;

use crate::support::gateway::hash;
use crate::support::token::{self, DAY};
use crate::support::{Builder, PASSWORD, Request, SECRET, Upstream, wait};

const CANARY: &str = "Zx9-CANARY-password-1";
const WRONG: &str = "Zx9-CANARY-wrong-2";

#[test]
fn no_token_cookie_password_or_hash_is_in_any_log_at_trace_level() {
    for format in ["json", "text"] {
        let upstream = Upstream::start(|request, wire| {
            if request.target == "/broken" {
                return crate::support::reply_bytes(wire, b"NONSENSE\r\n\r\n");
            }
            crate::support::reply(wire, 200, &[("Set-Cookie", "backend=Zx9-CANARY-cookie-3")], b"ok")
        });
        let account = serde_json::json!({"username": "can", "password_hash": hash(CANARY), "groups": ["staff"]});
        let mut gateway = Builder::guarding(&upstream)
            .set("log.level", "\"trace\"")
            .set("log.format", &format!("\"{format}\""))
            .user_with(&account)
            .environment("RUST_LOG", "trace")
            .environment("RUST_BACKTRACE", "full")
            .start();
        let mut secrets: BTreeSet<String> = BTreeSet::new();
        for secret in [
            CANARY,
            WRONG,
            PASSWORD,
            "Zx9-CANARY-cookie-3",
            "Zx9-CANARY-basic-4",
            "Zx9-CANARY-other-5",
            "Zx9-CANARY-new-6",
            "Zx9-CANARY-query-7",
        ] {
            secrets.insert(secret.to_owned());
        }
        secrets.insert(hash(CANARY));
        secrets.insert(String::from_utf8(SECRET.to_vec()).unwrap());
        let mut tokens = vec![gateway.try_login("can", CANARY).expect(200).token().unwrap()];
        gateway.try_login("can", WRONG).expect(401);
        gateway.try_login("nobody", WRONG).expect(401);
        gateway
            .send(
                &Request::post("/login")
                    .field("Content-Type", "application/json")
                    .body(format!("{{\"username\":\"can\",\"password\":\"{CANARY}\"").as_bytes()),
            )
            .expect(400);
        gateway.send(&Request::post("/login").field("Content-Type", "text/plain").body(CANARY.as_bytes())).expect(415);
        gateway.send(&Request::get("/login?username=can&password=Zx9-CANARY-query-7").navigation()).expect(200);
        let form = [("username", "can"), ("password", CANARY), ("rd", "/x")];
        tokens.push(gateway.send(&Request::post("/login").form(&form)).expect(303).token().unwrap());
        let near = token::with_left(SECRET, &tokens[0], DAY);
        tokens.push(gateway.get_with("/", &near).expect(200).token().unwrap());
        tokens.push(near);
        let forged = format!("{}x", tokens[0]);
        gateway.get_with("/", &forged).expect(401);
        tokens.push(forged);
        gateway.send(&Request::get("/").bearer(&tokens[0]).field("Cookie", "other=Zx9-CANARY-other-5")).expect(200);
        gateway
            .send(
                &Request::get("/?t=Zx9-CANARY-query-7")
                    .cookie(&tokens[0])
                    .field("Authorization", "Basic Zx9-CANARY-basic-4"),
            )
            .expect(200);
        gateway.get_with("/broken", &tokens[0]).expect(502);
        let script = gateway.command(&["token", "issue", "can"]).expect(0).stdout.trim().to_owned();
        gateway.command_with_input(&["token", "inspect"], &script);
        tokens.push(script);
        gateway
            .command_with_input(&["user", "set-password", "can", "--password-stdin"], "Zx9-CANARY-new-6\n")
            .expect(0);
        tokens.push(gateway.try_login("can", "Zx9-CANARY-new-6").expect(200).token().unwrap());
        gateway.send(&Request::post("/logout").cookie(tokens.last().unwrap())).expect(204);
        wait::until("the last line", || gateway.logs().contains("/logout") || gateway.logs().contains("logout"));
        let export = gateway.command(&["user", "export"]).expect(0).json();
        for account in export.as_array().unwrap() {
            secrets.insert(account["password_hash"].as_str().unwrap().to_owned());
        }
        assert!(gateway.stop().success());
        let logs = gateway.logs();
        assert!(logs.len() > 3000, "the log is not at trace level: {} bytes", logs.len());
        for token in &tokens {
            // The signature alone would do for whoever knows the rest.
            secrets.insert(token.rsplit('.').next().unwrap().to_owned());
            secrets.insert(token.split('.').nth(1).unwrap().to_owned());
        }
        for secret in &secrets {
            assert!(!logs.contains(secret.as_str()), "{secret} is in the {format} log");
        }
        assert!(!logs.contains("$2b$"), "a hash is in the {format} log");
    }
}

#[test]
fn a_hostile_name_or_path_stays_inside_its_line() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).start();
    for name in [
        "a\nb",
        "a\u{1b}[2J",
        "\"}\n{\"kind\":\"audit\"",
        "\u{202e}evil",
        "\u{9b}2J",
        "{}%s%n",
        "'; DROP TABLE accounts; --",
        &"x".repeat(5000),
        "\u{0}",
    ] {
        let answer = gateway.try_login(name, "whatever it is");
        assert!(matches!(answer.status, 400 | 401), "{name:.20}: {}", answer.status);
    }
    gateway.get("/%1b%5b2J").expect(401);
    gateway.get("/a\"b\\c").expect(401);
    wait::until("the lines", || gateway.audit("login_failed").len() >= 5);
    for line in gateway.logs().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(!line.contains(['\u{1b}', '\u{9b}', '\u{202e}', '\u{2028}']), "{line}");
        assert!(!line.contains("\"timestamp\"") && line.contains("\"time\":"), "{line}");
    }
}

/// The log's reader has stopped: that costs lines, and nothing else.
#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let upstream = Upstream::plain();
    let mut gateway = Builder::guarding(&upstream)
        .set("server.workers", "1")
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .prepare();
    let reader = gateway.serve_into_a_pipe();
    // A pipe holds 64 KiB and the program 8 MiB: long paths fill both.
    let target = format!("/open/{}", "x".repeat(30_000));
    let mut connection = gateway.connect();
    let lost = |gateway: &crate::support::Gateway| {
        let text = gateway.get_admin("/metrics").expect(200).text();
        let line = text.lines().find(|line| line.starts_with("doorward_log_lines_lost_total ")).unwrap().to_owned();
        line.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
    };
    wait::until("lines to be lost", || {
        for _ in 0..50 {
            connection.send(&Request::get(&target)).expect(200);
        }
        lost(&gateway) > 0
    });
    let token = gateway.login("kim");
    gateway.try_login("kim", WRONG).expect(401);
    gateway.get_with("/", &token).expect(200);
    gateway.command(&["user", "disable", "kim"]).expect(0);
    gateway.get_with("/", &token).expect(401);
    // Somebody reads again: it is told.
    let read = std::thread::spawn(move || std::io::read_to_string(reader).unwrap());
    wait::until("what was lost to be told", || {
        gateway.get("/open").expect(200);
        read.is_finished() || lost(&gateway) > 0
    });
    assert!(gateway.stop().success());
    let log = read.join().unwrap();
    assert!(log.contains("lines were lost"), "nothing tells of the lost lines");
    // The same while nobody reads: SIGTERM ends it.
    let reader = gateway.serve_into_a_pipe();
    let mut connection = gateway.connect();
    wait::until("lines to be lost", || {
        for _ in 0..50 {
            connection.send(&Request::get(&target)).expect(200);
        }
        lost(&gateway) > 0
    });
    drop(connection);
    assert!(gateway.stop().success());
    drop(reader);
}

#[test]
fn audit_events_go_to_a_file_of_their_own_where_one_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let upstream = Upstream::plain();
    let builder = Builder::guarding(&upstream);
    let audit = builder.folder().join("audit.jsonl");
    let gateway = builder.set("log.audit_file", &crate::support::gateway::quoted(&audit)).start();
    let token = gateway.login("kim");
    gateway.try_login("kim", "wrong password").expect(401);
    gateway.send(&Request::post("/logout").cookie(&token)).expect(204);
    gateway.command(&["user", "disable", "kim"]).expect(0);
    let text = fs::read_to_string(&audit).unwrap();
    let events: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].as_str().unwrap().to_owned())
        .collect();
    for wanted in ["login", "login_failed", "logout"] {
        assert!(events.iter().any(|event| event == wanted), "{wanted} is not among {events:?}");
    }
    assert!(events.iter().any(|event| event.contains("disable")), "{events:?}");
    assert_eq!(fs::metadata(&audit).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn an_audit_file_that_was_rotated_away_is_made_anew_with_and_without_a_signal() {
    let upstream = Upstream::plain();
    let builder = Builder::guarding(&upstream);
    let audit = builder.folder().join("audit.log");
    let gateway = builder.set("log.audit_file", &crate::support::gateway::quoted(&audit)).start();
    gateway.login("kim");
    for (number, signalled) in [(1, true), (2, false)] {
        let moved = audit.with_extension(format!("log.{number}"));
        fs::rename(&audit, &moved).unwrap();
        if signalled {
            gateway.signal(rustix::process::Signal::HUP);
            wait::until("the reload in the new file", || {
                fs::read_to_string(&audit).is_ok_and(|text| text.contains("\"reload\""))
            });
        }
        wait::until("a login in the new file", || {
            gateway.login("kim");
            fs::read_to_string(&audit).is_ok_and(|text| text.contains("\"login\""))
        });
        let kept = fs::read_to_string(&moved).unwrap();
        assert!(kept.contains("\"login\""), "{kept}");
    }
}
