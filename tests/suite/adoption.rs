//! `adopt_login`: an application with a login of its own by the same secret.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::gateway::{free_port, run};
use crate::support::peer::{Peer, node};
use crate::support::token::{self, DAY};
use crate::support::{Builder, Gateway, Request, Response, SECRET, Upstream, reply};

/// All lines of an answer that say something about our cookie.
fn said(answer: &Response) -> Vec<String> {
    answer.all("set-cookie").iter().filter(|line| line.contains("access_token")).map(ToString::to_string).collect()
}

fn id_of(gateway: &Gateway, name: &str) -> String {
    gateway.account(name)["_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_koa_applications_login_and_logout_are_adopted() {
    let builder = Builder::new();
    let port = free_port();
    let mut command = node("peers/app.js");
    command.arg(port.to_string()).env("JWT_SECRET", std::str::from_utf8(SECRET).unwrap());
    let koa = Peer::start(command, port, &builder.folder().join("koa.log"));
    let gateway = builder
        .upstream("app", &[&koa.url()])
        .set("upstream.app.forward_token", "true")
        .set("upstream.app.adopt_login", "true")
        .route("path = \"/\"\nupstream = \"app\"")
        .route("path = \"/api/auth\"\nupstream = \"app\"\naccess = \"public\"")
        .user("kim", &["staff"])
        .start();
    let login = Request::post("/api/auth/login").json(&json!({ "_id": id_of(&gateway, "kim"), "username": "kim" }));
    let answer = gateway.send(&login).expect(200);
    assert_eq!(said(&answer).len(), 1, "{:?}", said(&answer));
    assert!(answer.all("cache-control").iter().any(|line| line.contains("private")), "it carries a token");
    let ours = answer.token().unwrap();
    let claims = token::claims(&ours);
    assert!(claims["sid"].is_string() && claims["groups"] == json!(["staff"]), "{claims}");
    let seen = gateway.get_with("/page", &ours).expect(200).json();
    assert_eq!((&seen["claims"]["username"], &seen["error"]), (&json!("kim"), &Value::Null), "Koa takes our token");
    let adopted = gateway.audit("login");
    assert!(adopted.iter().any(|line| line["detail"].as_str().is_some_and(|text| text.contains("adopted"))));

    let answer = gateway.send(&Request::post("/api/auth/logout").cookie(&ours)).expect(204);
    let cleared = said(&answer);
    assert!(cleared.len() == 1 && cleared[0].contains("Max-Age=0"), "{cleared:?}");
    gateway.get_with("/check", &ours).expect(401);
    assert_eq!(gateway.audit("logout").len(), 1);
}

/// A gateway before a backend that sends the `Set-Cookie` lines that it is given.
fn saying(adopts: bool) -> (Upstream, Gateway, impl Fn(&[String])) {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let to_say = Arc::clone(&lines);
    let upstream = Upstream::start(move |_, wire| {
        let lines = to_say.lock().unwrap();
        let fields: Vec<(&str, &str)> = lines.iter().map(|line| ("Set-Cookie", line.as_str())).collect();
        reply(wire, 200, &fields, b"done")
    });
    let gateway = Builder::guarding(&upstream)
        .user("lee", &[])
        .user("max", &[])
        .set("upstream.app.forward_token", "true")
        .set("upstream.app.adopt_login", if adopts { "true" } else { "false" })
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .start();
    (upstream, gateway, move |new: &[String]| *lines.lock().unwrap() = new.to_vec())
}

#[test]
fn only_a_verified_token_of_an_enabled_account_is_adopted() {
    let (_upstream, gateway, say) = saying(true);
    let now = token::now();
    let (kim, lee, max) = (id_of(&gateway, "kim"), id_of(&gateway, "lee"), id_of(&gateway, "max"));
    gateway.command(&["user", "disable", "lee"]).expect(0);
    gateway.command(&["session", "revoke", "--user", "max"]).expect(0);
    let good = token::foreign(SECRET, &kim, "kim", now, now + DAY);
    let line = |token: &str| format!("access_token={token}; Path=/; HttpOnly");
    let login = gateway.login("kim");
    for (what, token) in [
        (
            "another secret",
            token::foreign(b"another secret, of which nobody here has heard", &kim, "kim", now, now + DAY),
        ),
        ("expired", token::foreign(SECRET, &kim, "kim", now - DAY, now - 5)),
        ("no account", token::foreign(SECRET, "5f0c1", "kim", now, now + DAY)),
        ("disabled", token::foreign(SECRET, &lee, "lee", now + 20, now + DAY)),
        ("revoked", token::foreign(SECRET, &max, "max", now - 60, now + DAY)),
        ("our own", login.clone()),
        ("no token", String::from("evil")),
    ] {
        for text in [line(&token), format!("=access_token={token}"), format!("Access_Token={token}")] {
            say(&[text]);
            let answer = gateway.get("/open").expect(200);
            assert_eq!((said(&answer), answer.body.as_slice()), (Vec::new(), &b"done"[..]), "{what}");
        }
    }
    // Adopted, in the place of the login that came with it; of several lines the last counts.
    say(&[line("evil"), String::from("other=1"), line(&good)]);
    let answer = gateway.get_with("/open", &login).expect(200);
    let ours = answer.token().unwrap();
    assert_eq!((said(&answer).len(), answer.all("set-cookie").len()), (1, 2));
    gateway.get_with("/check", &login).expect(401);
    assert_eq!(gateway.get_with("/check", &ours).expect(200).json()["username"], "kim");

    for deletion in ["=; Path=/", "=x; Max-Age=0", "=deleted; expires=Thu, 01-Jan-1970 00:00:01 GMT"] {
        let (one, other) = (gateway.login("kim"), gateway.login("kim"));
        say(&[format!("access_token{deletion}")]);
        let both = Request::get("/page").field("Cookie", &format!("access_token={one}; access_token={other}"));
        let cleared = said(&gateway.send(&both).expect(200));
        assert!(!cleared.is_empty() && cleared.iter().all(|line| line.contains("Max-Age=0")), "{cleared:?}");
        for token in [&one, &other] {
            gateway.get_with("/check", token).expect(401);
        }
    }
}

#[test]
fn without_the_key_it_is_dropped_and_one_warning_names_it() {
    let (_upstream, gateway, say) = saying(false);
    let now = token::now();
    let good = token::foreign(SECRET, &id_of(&gateway, "kim"), "kim", now, now + DAY);
    let login = gateway.login("kim");
    for text in [format!("access_token={good}"), String::from("access_token=; Max-Age=0")] {
        say(&[text]);
        assert_eq!(said(&gateway.get_with("/open", &login).expect(200)), Vec::<String>::new());
    }
    gateway.get_with("/check", &login).expect(200);
    let logs = gateway.logs();
    let warnings: Vec<&str> = logs.lines().filter(|line| line.contains("tried to set the cookie")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("adopt_login") && warnings[0].contains("app"), "{warnings:?}");
}

#[test]
fn the_key_needs_the_token_to_be_forwarded() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).prepare();
    gateway.rewrite(|text| text + "\n[upstream.own]\nurls = [\"http://127.0.0.1:9\"]\nadopt_login = true\n");
    let file = gateway.folder().join("config.toml");
    let answer = run(&["check-config", "--config", file.to_str().unwrap()]);
    assert_ne!(answer.status, Some(0));
    assert!(answer.stderr.contains("adopt_login") && answer.stderr.contains("forward_token"), "{}", answer.stderr);
}
