//! What a session must not be led into: other people's sessions, other fields, other routes, weaker files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, mpsc};

use serde_json::json;

use crate::support::gateway::{Finished, PROGRAM, run_with_input};
use crate::support::token::{self, DAY};
use crate::support::{Builder, Gateway, PASSWORD, Request, SECRET, Upstream, cases, reply};

#[test]
fn a_renewed_cookie_goes_out_on_every_answer_to_a_person_who_is_known_and_on_no_other() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .route("path = \"/admin\"\ngroups = [\"boss\"]\nupstream = \"app\"")
        .route("path = \"/closed\"\naccess = \"deny\"")
        .start();
    let login = gateway.login("kim");
    let near = token::with_left(SECRET, &login, DAY);
    // The account was read and every check of a login made, whatever the route then says of this person.
    for (target, status, renewed) in [("/admin", 403, true), ("/closed", 403, true), ("/a%00", 400, false)] {
        for request in [Request::get(target).cookie(&near), Request::get(target).cookie(&near).navigation()] {
            let answer = gateway.send(&request).expect(status);
            assert_eq!(answer.all("set-cookie").len(), usize::from(renewed), "{target}");
            if let Some(token) = answer.token() {
                let (before, after) = (token::claims(&login), token::claims(&token));
                for claim in ["sub", "sid", "__v"] {
                    assert_eq!(before[claim], after[claim], "{target}");
                }
            }
        }
    }
    // Whatever its signature, a token that is no login is not renewed.
    for (bad, is_ours) in [
        (token::altered(b"another secret of more than 32 bytes!", &near, &json!({})), false),
        (token::altered(SECRET, &near, &json!({"exp": token::now() - 1})), true),
        (token::altered(SECRET, &near, &json!({"__v": 9})), true),
    ] {
        let answer = gateway.get_with("/", &bad).expect(401);
        assert!(answer.token().is_none());
        assert_eq!(answer.clears_the_cookie(), is_ours, "a cookie that somebody else signed is left alone");
    }
    assert_eq!(upstream.count(), 0);
    // And the same token is renewed where it opens something, too.
    assert!(gateway.get_with("/", &near).expect(200).token().is_some());
}

#[test]
fn a_logout_makes_the_browser_forget_and_no_page_of_ours_is_kept() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    for request in [
        Request::get("/login").navigation(),
        Request::get("/login").navigation().cookie(&token),
        Request::get("/logout").navigation().cookie(&token),
        Request::get("/account").navigation().cookie(&token),
        Request::get("/check").cookie(&token),
        Request::get("/check"),
        Request::get("/").navigation(),
        Request::get("/"),
        Request::get("/a%00").navigation(),
    ] {
        let answer = gateway.send(&request);
        let caching = answer.field("cache-control").unwrap_or_default();
        assert!(caching.contains("no-store"), "{} {}: {caching:?}", request.target, answer.status);
    }
    let form = Request::post("/logout").form(&[("rd", "/bye")]).cookie(&token);
    for (request, status) in [(form, 303), (Request::post("/logout").cookie(&token), 204)] {
        let answer = gateway.send(&request).expect(status);
        assert_eq!(answer.field("clear-site-data").as_deref(), Some("\"cache\""));
        assert!(answer.field("cache-control").unwrap().contains("no-store"));
        assert!(answer.clears_the_cookie());
    }
}

#[test]
fn a_field_that_nobody_asked_for_changes_nothing() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).user("lee", &["boss"]).start();
    let (token, lee) = (gateway.login("kim"), gateway.login("lee"));
    let before = (gateway.account("kim"), gateway.account("lee"));
    let new = "entirely new 9 words";
    let answer = gateway
        .send(
            &Request::post("/account/password")
                .json(&json!({
                    "current": PASSWORD, "new": new, "username": "lee", "user": "lee", "_id": before.1["_id"], "id": before.1["_id"],
                    "groups": ["boss"], "disabled": false, "__v": 77, "email": "evil@example.com", "sid": "x", "admin": true,
                }))
                .cookie(&token),
        )
        .expect(204);
    assert_eq!(token::claims(&answer.token().unwrap())["username"], "kim");
    let after = (gateway.account("kim"), gateway.account("lee"));
    for key in ["_id", "username", "groups", "email", "display_name", "disabled", "created"] {
        assert_eq!(before.0[key], after.0[key], "{key}");
    }
    assert_eq!(after.0["__v"], 1);
    assert_eq!(before.1, after.1, "another account was changed");
    gateway.get_with("/check", &lee).expect(200);
    gateway.login("lee");
    // The login takes no more than a name and a password either.
    let extra = json!({"username": "lee", "password": PASSWORD, "groups": ["root"], "_id": "x", "expires_at": "2099-01-01T00:00:00Z", "lifetime": "9999d"});
    let claims = token::claims(&gateway.send(&Request::post("/login").json(&extra)).expect(200).token().unwrap());
    assert_eq!(claims["groups"], json!(["boss"]));
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 7 * DAY);
}

#[test]
fn nobody_sees_or_ends_another_persons_session() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).user("lee", &[]).start();
    let (kim, other, lee) = (gateway.login("kim"), gateway.login("kim"), gateway.login("lee"));
    let session = |token: &str| token::claims(token)["sid"].as_str().unwrap().to_owned();
    let page = gateway.send(&Request::get("/account").navigation().cookie(&kim)).expect(200).text();
    assert!(page.contains(&session(&kim)) && page.contains(&session(&other)) && !page.contains(&session(&lee)));
    for id in [session(&lee), session(&lee).to_uppercase(), String::from("x"), String::from("*"), "x".repeat(500)] {
        let as_json = Request::post("/account/sessions").json(&json!({"session": id})).cookie(&kim);
        gateway.send(&as_json).expect(404);
        let as_form = Request::post("/account/sessions").form(&[("session", &id)]).cookie(&kim);
        assert_eq!(gateway.send(&as_form).expect(303).field("location").as_deref(), Some("/account?done=over"));
    }
    for token in [&kim, &other, &lee] {
        gateway.get_with("/check", token).expect(200);
    }
    // One's own other session ends, and only that.
    gateway
        .send(&Request::post("/account/sessions").json(&json!({"session": session(&other)})).cookie(&kim))
        .expect(204);
    gateway.get_with("/check", &other).expect(401);
    // Everywhere means this person's everywhere.
    gateway.send(&Request::post("/account/sessions").json(&json!({"everywhere": "1"})).cookie(&kim)).expect(204);
    gateway.get_with("/check", &kim).expect(401);
    gateway.get_with("/check", &lee).expect(200);
}

#[test]
fn every_endpoint_of_ours_knows_who_may_come() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let new = "entirely new 9 words";
    let expired = token::altered(SECRET, &gateway.login("kim"), &json!({"exp": token::now() - 1}));
    for request in [
        Request::get("/account"),
        Request::new("HEAD", "/account"),
        Request::get("/account/password"),
        Request::post("/account/password").json(&json!({"current": PASSWORD, "new": new})),
        Request::post("/account/password").form(&[("current", PASSWORD), ("new", new), ("repeat", new)]),
        Request::post("/account/sessions").json(&json!({"everywhere": "1"})),
        Request::post("/account/sessions").form(&[("everywhere", "1")]),
        Request::get("/check"),
        // None of these is an endpoint, so the routes decide.
        Request::get("/metrics"),
        Request::get("/ready"),
        Request::get("/ping"),
        Request::get("/debug/pprof/"),
        Request::get("/.well-known/openid-configuration"),
        Request::get("/api/users"),
        Request::post("/register").json(&json!({"username": "new", "password": new})),
        Request::post("/setup").json(&json!({"username": "admin", "password": new})),
        Request::post("/account"),
        Request::new("PUT", "/account/password"),
    ] {
        for request in [request.clone(), request.clone().cookie(&expired), request.cookie("nonsense")] {
            let answer = gateway.send(&request);
            assert_eq!(answer.status, 401, "{} {}", request.method, request.target);
            assert!(answer.field("www-authenticate").is_some_and(|challenge| challenge.starts_with("Bearer ")));
        }
    }
    // Also where the password is wrong, for a program and for a person.
    let wrong = [("username", "kim"), ("password", "wrong horse 7 battery")];
    for request in [
        Request::post("/login").form(&wrong),
        Request::post("/login").json(&json!({"username": "kim", "password": "x"})),
    ] {
        assert!(gateway.send(&request).expect(401).field("www-authenticate").is_some());
    }
    gateway.login("kim");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn no_header_opens_a_route_or_names_a_person() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .set("server.trusted_proxies", "[\"127.0.0.1/32\"]")
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .route("path = \"/admin\"\ngroups = [\"boss\"]\nupstream = \"app\"")
        .start();
    let token = gateway.login("kim");
    let paths = [
        "X-Forwarded-Uri",
        "X-Original-URL",
        "X-Original-URI",
        "X-Rewrite-URL",
        "X-Envoy-Original-Path",
        "X-Forwarded-Path",
        "X-Forwarded-Prefix",
    ];
    let methods =
        ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Forwarded-Method", "X-Original-Method"];
    let people = [
        "X-Forwarded-User",
        "Remote-User",
        "X-Remote-User",
        "X-WebAuth-User",
        "X-Auth-Request-User",
        "X-Forwarded-Groups",
        "X-Forwarded-Email",
    ];
    let agents = [
        "GoogleHC/1.0",
        "kube-probe/1.31",
        "ELB-HealthChecker/2.0",
        "Consul Health Check",
        "Prometheus/3.0",
        "Googlebot",
    ];
    let mut fields: Vec<(&str, &str)> = Vec::new();
    fields.extend(paths.iter().flat_map(|name| [(*name, "/open"), (*name, "/login"), (*name, "/check")]));
    fields.extend(methods.iter().flat_map(|name| [(*name, "OPTIONS"), (*name, "POST")]));
    fields.extend(people.iter().flat_map(|name| [(*name, "admin"), (*name, "boss")]));
    fields.extend(agents.iter().map(|agent| ("User-Agent", *agent)));
    fields.extend([
        ("X-Forwarded-Host", "open.example"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Real-IP", "127.0.0.1"),
        ("X-Forwarded-Proto", "evil"),
        ("X-Forwarded-Proto", "javascript"),
        ("Forwarded", "for=127.0.0.1;host=open;proto=https"),
        ("X-Internal", "1"),
        ("X-Middleware-Subrequest", "middleware:middleware:middleware"),
        ("Authorization", "Basic YWRtaW46YWRtaW4="),
        ("Authorization", "Bearer admin"),
        ("Referer", "http://127.0.0.1/open"),
        ("Access-Control-Request-Method", "GET"),
        ("Purpose", "prefetch"),
        ("Max-Forwards", "0"),
        ("Connection", "Cookie, Authorization"),
    ]);
    let mut count = 0;
    for (name, value) in &fields {
        for method in ["GET", "HEAD", "POST", "OPTIONS"] {
            for (target, status) in
                [("/", 401), ("/admin", 401), ("/check", if matches!(method, "GET" | "HEAD") { 401 } else { 405 })]
            {
                let answer = gateway.send(&Request::new(method, target).field(name, value));
                assert_eq!(answer.status, status, "{method} {target} with {name}: {value}");
                assert!(answer.field("location").is_none(), "{name}: {value}");
                count += 1;
            }
            let answer = gateway.send(&Request::new(method, "/admin").cookie(&token).field(name, value));
            // A bearer token that is none beside a good cookie changes nothing.
            assert_eq!(answer.status, 403, "{method} /admin as kim with {name}: {value}");
            count += 1;
        }
    }
    assert_eq!(upstream.count(), 0);
    cases::tried("headers that would open a route", count);
}

#[test]
fn an_answer_that_came_after_the_logout_is_for_nobody() {
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let upstream = Upstream::start(move |_, wire| {
        // The backend is still at it while the session ends.
        let _ = held.lock().unwrap().recv();
        reply(wire, 200, &[], b"for kim only")
    });
    let gateway = Builder::guarding(&upstream).start();
    let token = gateway.login("kim");
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| gateway.get_with("/report", &token));
        upstream.wait_for(1);
        gateway.send(&Request::post("/logout").cookie(&token)).expect(204);
        release.send(()).unwrap();
        asked.join().unwrap()
    });
    assert_eq!(answer.status, 401, "{}", answer.text());
    assert!(!answer.text().contains("for kim only"));
}

#[test]
fn a_new_store_holds_no_account_that_nobody_made() {
    let upstream = Upstream::plain();
    let gateway = Builder::new()
        .upstream("app", &[&upstream.url])
        .route("path = \"/\"\nupstream = \"app\"")
        .set("login.max_attempts", "1000")
        .start();
    assert_eq!(gateway.command(&["user", "list", "--json"]).expect(0).json(), json!([]));
    for (name, password) in [
        ("admin", "admin"),
        ("admin", "password"),
        ("root", "root"),
        ("admin", "changeme"),
        ("doorward", "doorward"),
        ("test", "test"),
        ("admin", ""),
    ] {
        assert!(gateway.try_login(name, password).expect_refusal(), "{name} {password}");
    }
    gateway.get("/").expect(401);
}

trait Refusal {
    fn expect_refusal(self) -> bool;
}

impl Refusal for crate::support::Response {
    fn expect_refusal(self) -> bool {
        matches!(self.status, 400 | 401) && self.token().is_none()
    }
}

/// Every file and folder from here on, with what others may do with it.
fn open_to_others(place: &Path, found: &mut Vec<String>) {
    let metadata = fs::symlink_metadata(place).unwrap();
    let mode = metadata.permissions().mode();
    if mode & 0o077 != 0 {
        found.push(format!("{} {:o}", place.display(), mode & 0o7777));
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(place).unwrap() {
            open_to_others(&entry.unwrap().path(), found);
        }
    }
}

#[test]
fn files_are_the_owners_alone_whatever_the_umask_says() {
    let upstream = Upstream::plain();
    let builder = Builder::guarding(&upstream);
    let audit = builder.folder().join("audit.jsonl");
    let gateway = builder.set("log.audit_file", &crate::support::gateway::quoted(&audit)).prepare();
    let dump = gateway.folder().join("dump.jsonl");
    let wide_open = |arguments: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", "umask 000; exec \"$0\" \"$@\"", PROGRAM]).args(arguments);
        command.args(["--config", gateway.config.to_str().unwrap()]).env_remove("JWT_SECRET");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    wide_open(&["key", "generate", "--algorithm", "EdDSA"]);
    wide_open(&["user", "add", "new", "--generate"]);
    wide_open(&["store", "dump", dump.to_str().unwrap()]);
    let mut found = Vec::new();
    for place in [gateway.data(), dump, audit] {
        open_to_others(&place, &mut found);
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_password_is_taken_from_an_argument() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).prepare();
    let config = gateway.config.to_str().unwrap();
    for arguments in [
        &["user", "add", "new", "--password", "entirely new 9 words"][..],
        &["user", "add", "new", "--password=entirely new 9 words"],
        &["user", "add", "new", "entirely new 9 words"],
        &["user", "set-password", "kim", "entirely new 9 words"],
        &["user", "set-password", "kim", "--password", "entirely new 9 words"],
        &["serve", "--secret", "entirely new 9 words and some more of them"],
    ] {
        let finished = run_with_input(&[arguments, &["--config", config]].concat(), "").expect(2);
        assert!(finished.stdout.is_empty(), "{}", finished.stdout);
    }
    assert_eq!(gateway.command(&["user", "list", "--json"]).expect(0).json().as_array().unwrap().len(), 1);
}

#[test]
fn a_password_that_is_typed_is_asked_twice_and_never_shown() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).start();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let typed = |first: &str, second: &str, arguments: &[&str]| {
        let mut command = Command::new("python3");
        command.arg(tests.join("peers/terminal.py"));
        command.args([format!("Password: ={first}"), format!("Again: ={second}")]).args(["--", PROGRAM]);
        command.args(arguments).args(["--config", gateway.config.to_str().unwrap()]).env_remove("JWT_SECRET");
        Finished::of(command.output().unwrap())
    };
    let (right, other) = ("entirely new 9 words", "entirely new 8 words");
    let added = typed(right, right, &["user", "add", "typist"]).expect(0);
    let refused = typed(right, other, &["user", "set-password", "typist"]).expect(1);
    for finished in [&added, &refused] {
        let shown = format!("{}{}", finished.stdout, finished.stderr);
        assert!(shown.contains("Password: ") && shown.contains("Again: "), "{shown:?}");
        assert!(!shown.contains("9 words") && !shown.contains("8 words"), "{shown:?}");
    }
    gateway.try_login("typist", right).expect(200);
    gateway.try_login("typist", other).expect(401);
}

#[test]
fn an_account_has_at_most_two_hundred_sessions() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).start();
    let first = gateway.login("kim");
    let tokens: Vec<String> = (0..199).map(|_| gateway.login("kim")).collect();
    gateway.get_with("/check", &first).expect(200);
    let newest = gateway.login("kim");
    gateway.get_with("/check", &first).expect(401);
    for token in [&tokens[0], &tokens[198], &newest] {
        gateway.get_with("/check", token).expect(200);
    }
    let listed = gateway.command(&["session", "list", "kim", "--json"]).expect(0).stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 200);
    let page = gateway.get_with("/account", &newest).expect(200);
    assert!(page.body.len() < 200_000, "{}", page.body.len());
}
