//! Taking a login back: what ends it, at once, and what does not.

use serde_json::json;

use crate::support::gateway::hash;
use crate::support::token::{self, DAY};
use crate::support::{Builder, Gateway, PASSWORD, Request, SECRET, Upstream};

#[test]
fn logout_ends_this_session_at_once_and_no_other() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let (first, second) = (gateway.login("kim"), gateway.login("kim"));
    let answer = gateway.send(&Request::post("/logout").cookie(&first)).expect(204);
    assert!(answer.clears_the_cookie());
    gateway.get_with("/", &first).expect(401);
    gateway.get_with("/", &second).expect(200);
    // A form goes on to `rd`.
    let answer = gateway.send(&Request::post("/logout").form(&[("rd", "/bye")]).cookie(&second)).expect(303);
    assert_eq!(answer.field("location").as_deref(), Some("/bye"));
    gateway.get_with("/", &second).expect(401);
    // Signing out twice, or without a login, is no error.
    gateway.send(&Request::post("/logout").cookie(&second)).expect(204);
    gateway.send(&Request::post("/logout")).expect(204);
}

#[test]
fn a_get_does_not_log_out_and_neither_does_another_site() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    let page = gateway.send(&Request::get("/logout").navigation().cookie(&token)).expect(200);
    assert!(page.text().contains("<button"), "{}", page.text());
    for fields in [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")] {
        gateway.send(&Request::post("/logout").cookie(&token).field(fields.0, fields.1)).expect(403);
    }
    gateway.get_with("/check", &token).expect(200);
}

#[test]
fn the_token_of_a_session_that_is_not_stored_can_be_logged_out_too() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let unknown =
        token::altered(SECRET, &gateway.login("kim"), &json!({"sid": "00000000-0000-7000-8000-000000000001"}));
    gateway.get_with("/check", &unknown).expect(200);
    gateway.send(&Request::post("/logout").cookie(&unknown)).expect(204);
    gateway.get_with("/check", &unknown).expect(401);
}

#[test]
fn logging_out_with_a_foreign_token_ends_all_of_the_accounts_tokens_that_name_no_session() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let id = gateway.account("kim")["_id"].as_str().unwrap().to_owned();
    let now = token::now();
    let ours = gateway.login("kim");
    let tokens = [
        token::foreign(SECRET, &id, "kim", now - 10, now + 7 * DAY),
        token::foreign(SECRET, &id, "kim", now - 9, now + 7 * DAY),
    ];
    for token in &tokens {
        gateway.get_with("/check", token).expect(200);
    }
    gateway.send(&Request::post("/logout").cookie(&tokens[0])).expect(204);
    for token in &tokens {
        gateway.get_with("/check", token).expect(401);
    }
    gateway.get_with("/check", &ours).expect(200);
}

#[test]
fn every_way_to_end_an_accounts_logins_ends_all_of_them_at_once() {
    type Way = (&'static str, fn(&Gateway));
    let ways: &[Way] = &[
        ("disable", |gateway| {
            gateway.command(&["user", "disable", "kim"]).expect(0);
        }),
        ("set-password", |gateway| {
            gateway
                .command_with_input(&["user", "set-password", "kim", "--password-stdin"], "another horse 8 battery\n")
                .expect(0);
        }),
        ("remove", |gateway| {
            gateway.command(&["user", "remove", "kim"]).expect(0);
        }),
        ("session revoke --user", |gateway| {
            gateway.command(&["session", "revoke", "--user", "kim"]).expect(0);
        }),
    ];
    for (what, way) in ways {
        let upstream = Upstream::plain();
        let gateway = Builder::guarding(&upstream).user("lee", &[]).start();
        let id = gateway.account("kim")["_id"].as_str().unwrap().to_owned();
        let lee = gateway.login("lee");
        let now = token::now();
        let mut tokens = vec![gateway.login("kim"), gateway.login("kim")];
        tokens.push(token::foreign(SECRET, &id, "kim", now - 10, now + 7 * DAY));
        tokens.push(token::with_left(SECRET, &tokens[0], DAY));
        for token in &tokens[..3] {
            gateway.get_with("/check", token).expect(200);
        }
        way(&gateway);
        for (number, token) in tokens.iter().enumerate() {
            assert_eq!(gateway.get_with("/check", token).status, 401, "token {number} after {what}");
            assert_eq!(gateway.send(&Request::get("/").bearer(token)).status, 401, "bearer {number} after {what}");
        }
        gateway.get_with("/check", &lee).expect(200);
        let sessions = gateway.command(&["session", "list", "--json"]).expect(0).json();
        let names: Vec<&str> =
            sessions.as_array().unwrap().iter().map(|session| session["username"].as_str().unwrap()).collect();
        assert_eq!(names, ["lee"], "after {what}");
    }
}

#[test]
fn enable_does_not_bring_an_old_token_back() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    gateway.command(&["user", "disable", "kim"]).expect(0);
    gateway.try_login("kim", PASSWORD).expect(401);
    gateway.command(&["user", "enable", "kim"]).expect(0);
    gateway.get_with("/check", &token).expect(401);
    let fresh = gateway.login("kim");
    gateway.get_with("/check", &fresh).expect(200);
}

#[test]
fn a_name_that_is_removed_and_made_again_is_another_person() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    let before = gateway.account("kim")["_id"].clone();
    gateway.command(&["user", "remove", "kim"]).expect(0);
    gateway.command_with_input(&["user", "add", "kim", "--password-stdin"], &format!("{PASSWORD}\n")).expect(0);
    assert_ne!(gateway.account("kim")["_id"], before);
    gateway.get_with("/check", &token).expect(401);
    gateway.login("kim");
}

#[test]
fn a_change_of_groups_is_seen_by_the_next_request_and_logs_nobody_out() {
    let upstream = Upstream::plain();
    let gateway =
        Builder::guarding(&upstream).route("path = \"/admin\"\ngroups = [\"boss\"]\nupstream = \"app\"").start();
    let token = gateway.login("kim");
    gateway.get_with("/admin", &token).expect(403);
    gateway.command(&["user", "set-groups", "kim", "staff", "boss"]).expect(0);
    let answer = gateway.get_with("/admin", &token).expect(200);
    assert_eq!(upstream.last().field("x-forwarded-groups").as_deref(), Some("staff,boss"));
    let renewed = answer.token().expect("the token was not renewed");
    assert_eq!(token::claims(&renewed)["groups"], json!(["staff", "boss"]));
    // Taken away again: refused at once, with the old token and the new one, and logged in all the same.
    gateway.command(&["user", "set-groups", "kim"]).expect(0);
    for token in [&token, &renewed] {
        gateway.get_with("/admin", token).expect(403);
        assert_eq!(gateway.get_with("/check", token).expect(200).json()["groups"], json!([]));
    }
    // A bearer token is not renewed, and its groups are the account's all the same.
    gateway.send(&Request::get("/admin").bearer(&token)).expect(403);
}

#[test]
fn one_session_or_all_can_be_ended_from_the_command_line() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).user("lee", &[]).start();
    let (first, second, lee) = (gateway.login("kim"), gateway.login("kim"), gateway.login("lee"));
    let session = token::claims(&first)["sid"].as_str().unwrap().to_owned();
    let listed = gateway.command(&["session", "list", "kim", "--json"]).expect(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    let mut keys: Vec<&String> = listed[0].as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["_id", "address", "created", "renewed", "sid", "user_agent", "username"]);
    gateway.command(&["session", "revoke", &session]).expect(0);
    gateway.get_with("/check", &first).expect(401);
    gateway.get_with("/check", &second).expect(200);
    gateway.command(&["session", "revoke", "--all"]).expect(0);
    for token in [&second, &lee] {
        gateway.get_with("/check", token).expect(401);
    }
    assert_eq!(gateway.command(&["session", "list", "--json"]).expect(0).json(), json!([]));
    // A login right after it, in the same second, is good.
    gateway.get_with("/check", &gateway.login("kim")).expect(200);
    gateway.command(&["session", "revoke", "no-such-session"]).expect(1);
}

#[test]
fn a_person_can_change_the_password_and_end_sessions_on_the_account_page() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let (here, elsewhere) = (gateway.login("kim"), gateway.login("kim"));
    let page = gateway.send(&Request::get("/account").navigation().cookie(&here)).expect(200);
    assert!(page.text().contains("kim"));
    assert!(page.text().contains("type=\"password\""));
    let change = |current: &str, new: &str| {
        let form = [
            ("current", current),
            ("current_password", current),
            ("new", new),
            ("new_password", new),
            ("repeat", new),
            ("repeat_password", new),
        ];
        gateway.send(&Request::post("/account/password").form(&form).cookie(&here))
    };
    assert!(change("wrong password", "entirely new 9 words").status >= 400);
    gateway.get_with("/check", &elsewhere).expect(200);
    let answer = change(PASSWORD, "entirely new 9 words");
    assert!(matches!(answer.status, 200 | 204 | 303), "{} {}", answer.status, answer.text());
    gateway.get_with("/check", &elsewhere).expect(401);
    gateway.get_with("/check", &here).expect(401);
    // This browser stays logged in with a new token.
    let fresh = answer.token().expect("the browser that changed the password is logged out");
    gateway.get_with("/check", &fresh).expect(200);
    gateway.try_login("kim", PASSWORD).expect(401);
    gateway.try_login("kim", "entirely new 9 words").expect(200);
}

#[test]
fn what_is_revoked_stays_revoked_over_a_restart() {
    let upstream = Upstream::plain();
    let mut gateway = Builder::guarding(&upstream).user("lee", &[]).start();
    let (gone, kept, lee) = (gateway.login("kim"), gateway.login("kim"), gateway.login("lee"));
    gateway.send(&Request::post("/logout").cookie(&gone)).expect(204);
    gateway.command(&["user", "disable", "lee"]).expect(0);
    assert!(gateway.stop().success());
    gateway.serve();
    gateway.get_with("/check", &gone).expect(401);
    gateway.get_with("/check", &lee).expect(401);
    gateway.get_with("/check", &kept).expect(200);
}

#[test]
fn a_logout_that_races_renewals_wins() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    for _ in 0..10 {
        let login = gateway.login("kim");
        let token = token::with_left(SECRET, &login, DAY);
        let tokens = std::thread::scope(|scope| {
            let requests: Vec<_> = (0..10).map(|_| scope.spawn(|| gateway.get_with("/", &token).token())).collect();
            gateway.send(&Request::post("/logout").cookie(&token)).expect(204);
            requests.into_iter().filter_map(|request| request.join().unwrap()).collect::<Vec<_>>()
        });
        for token in tokens.iter().chain([&login, &token]) {
            gateway.get_with("/check", token).expect(401);
        }
    }
    assert_eq!(gateway.command(&["session", "list", "--json"]).expect(0).json(), json!([]));
}

#[test]
fn an_account_that_was_imported_with_its_id_is_reached_by_revocation() {
    let upstream = Upstream::plain();
    let account =
        json!({"_id": "65f1a0c2e4b0a1b2c3d4e5f6", "username": "old", "password_hash": hash(PASSWORD), "__v": 3});
    let gateway = Builder::guarding(&upstream).user_with(&account).start();
    assert_eq!(gateway.account("old")["_id"], "65f1a0c2e4b0a1b2c3d4e5f6");
    assert_eq!(gateway.account("old")["__v"], 3);
    let now = token::now();
    let foreign = token::foreign(SECRET, "65f1a0c2e4b0a1b2c3d4e5f6", "old", now - 5, now + DAY * 6);
    gateway.get_with("/check", &foreign).expect(200);
    gateway.command(&["session", "revoke", "--user", "old"]).expect(0);
    gateway.get_with("/check", &foreign).expect(401);
}
