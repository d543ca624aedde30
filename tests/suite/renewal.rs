//! The sliding cookie: when a token is renewed, on which answers, after which checks, and how often the store is asked.

use std::collections::BTreeSet;
use std::sync::Barrier;

use serde_json::json;

use crate::support::token::{self, DAY};
use crate::support::upstream::Recorded;
use crate::support::wire::Wire;
use crate::support::{Builder, Gateway, Request, SECRET, Then, Upstream, reply, reply_bytes};

/// `/status/404` answers 404.
fn any_status() -> Upstream {
    Upstream::start(|request: &Recorded, wire: &mut dyn Wire| {
        let status: u16 = request.target.trim_start_matches("/status/").parse().unwrap_or(200);
        if request.method == "HEAD" {
            reply_bytes(wire, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        } else if matches!(status, 204 | 304) {
            let head = format!("HTTP/1.1 {status} X\r\nETag: \"1\"\r\nCache-Control: public, max-age=600\r\n\r\n");
            reply_bytes(wire, head.as_bytes())
        } else {
            reply(wire, status, &[("Cache-Control", "public, max-age=600")], b"body")
        }
    })
}

const THREE_DAYS_AND_14_HOURS: u64 = 3 * DAY + 14 * 3600;
const THREE_DAYS_AND_10_HOURS: u64 = 3 * DAY + 10 * 3600;

#[test]
fn less_than_half_of_the_lifetime_left_renews_on_whatever_answer_comes_and_more_does_not() {
    let upstream = any_status();
    let gateway =
        Builder::guarding(&upstream).route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"").start();
    for (method, target, status) in [
        ("GET", "/", 200),
        ("POST", "/status/201", 201),
        ("GET", "/status/204", 204),
        ("GET", "/status/302", 302),
        ("GET", "/status/304", 304),
        ("GET", "/status/403", 403),
        ("GET", "/status/404", 404),
        ("GET", "/status/500", 500),
        ("GET", "/status/503", 503),
        ("HEAD", "/", 200),
        ("GET", "/open", 200),
        ("GET", "/check", 200),
        ("HEAD", "/check", 200),
    ] {
        let login = gateway.login("kim");
        let above = token::with_left(SECRET, &login, THREE_DAYS_AND_14_HOURS);
        let answer = gateway.send(&Request::new(method, target).cookie(&above)).expect(status);
        assert_eq!(answer.all("set-cookie"), Vec::<String>::new(), "{method} {target}: renewed too early");

        let below = token::with_left(SECRET, &login, THREE_DAYS_AND_10_HOURS);
        let answer = gateway.send(&Request::new(method, target).cookie(&below)).expect(status);
        let renewed = answer.token().unwrap_or_else(|| panic!("{method} {target}: not renewed"));
        let (old, new) = (token::claims(&below), token::claims(&renewed));
        for kept in ["_id", "sub", "sid", "username", "groups", "auth_time", "__v", "iss"] {
            assert_eq!(old[kept], new[kept], "{kept} on {method} {target}");
        }
        assert_eq!(new["exp"].as_u64().unwrap() - new["iat"].as_u64().unwrap(), 7 * DAY);
        let caching = answer.all("cache-control").join(", ");
        assert!(caching.contains("private") || caching.contains("no-store"), "{method} {target}: {caching:?}");
        assert!(!caching.contains("public"), "{method} {target}: {caching:?}");
        // The new one is good, and so is the old one until its own end.
        gateway.get_with("/check", &renewed).expect(200);
        gateway.get_with("/check", &below).expect(200);
    }
}

#[test]
fn a_hundred_requests_at_once_near_the_half_cause_one_reading_of_the_store() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).start();
    let login = gateway.login("kim");
    let token = token::with_left(SECRET, &login, THREE_DAYS_AND_10_HOURS);
    let before = gateway.audit("renewal").len();
    let barrier = Barrier::new(100);
    let tokens: BTreeSet<String> = std::thread::scope(|scope| {
        let requests: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = gateway.connect();
                    barrier.wait();
                    connection.send(&Request::get("/").cookie(&token)).expect(200).token()
                })
            })
            .collect();
        requests.into_iter().filter_map(|request| request.join().unwrap()).collect()
    });
    assert_eq!(tokens.len(), 1, "as many readings as different tokens");
    gateway.get_with("/check", tokens.first().unwrap()).expect(200);
    crate::support::wait::until("the renewal in the audit log", || gateway.audit("renewal").len() > before);
    assert_eq!(gateway.audit("renewal").len(), before + 1);
}

#[test]
fn renewal_ends_at_the_stated_time_after_the_login_however_often_it_is_used() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("token.max_lifetime", "\"10d\"").start();
    let login = gateway.login("kim");
    // Nine days after the login: renewed, but only for one day more.
    let now = token::now();
    let late = json!({"auth_time": now - 9 * DAY, "iat": now - 5 * DAY, "exp": now + DAY / 2});
    let renewed = gateway.get_with("/", &token::altered(SECRET, &login, &late)).expect(200).token().unwrap();
    let left = token::claims(&renewed)["exp"].as_u64().unwrap() - now;
    assert!((DAY - 60..=DAY + 60).contains(&left), "{left}");
    // Eleven days after it: no login any more, whatever `exp` says.
    let over = json!({"auth_time": now - 11 * DAY, "iat": now - DAY, "exp": now + 5 * DAY});
    gateway.get_with("/check", &token::altered(SECRET, &login, &over)).expect(401);
}

#[test]
fn a_token_in_authorization_is_not_renewed_and_does_not_reach_the_backend() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = token::with_left(SECRET, &gateway.login("kim"), DAY);
    let answer = gateway.send(&Request::get("/").bearer(&token)).expect(200);
    assert!(answer.token().is_none());
    assert_eq!(upstream.last().folded("authorization"), Vec::<String>::new());
    assert_eq!(upstream.last().field("x-forwarded-user").as_deref(), Some("kim"));
    // Another `Authorization` is the backend's.
    let request = Request::get("/").cookie(&gateway.login("kim")).field("Authorization", "Basic a2ltOng=");
    gateway.send(&request).expect(200);
    assert_eq!(upstream.last().field("authorization").as_deref(), Some("Basic a2ltOng="));
}

#[test]
fn renewal_keeps_every_cookie_of_the_backend_and_drops_its_own_name_only() {
    let upstream = Upstream::start(|_, wire| {
        let mut answer = String::from("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n");
        for number in 0..20 {
            answer.push_str(&format!("Set-Cookie: c{number}={number}; Path=/\r\n"));
        }
        answer.push_str("Set-Cookie: access_token=evil; Path=/\r\nSet-Cookie: =access_token=evil\r\n");
        answer.push_str("set-cookie:  access_token =evil\r\n\r\n");
        reply_bytes(wire, answer.as_bytes())
    });
    let gateway = Gateway::guarding(&upstream);
    let login = gateway.login("kim");
    let answer = gateway.get_with("/", &token::with_left(SECRET, &login, DAY)).expect(200);
    let lines = answer.all("set-cookie");
    assert_eq!(lines.len(), 21, "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("evil")), "{lines:?}");
    assert!(answer.token().is_some());
    let answer = gateway.get_with("/", &login).expect(200);
    assert_eq!(answer.all("set-cookie").len(), 20);
}

#[test]
fn a_foreign_token_is_accepted_and_becomes_ours_at_its_renewal() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let id = gateway.account("kim")["_id"].as_str().unwrap().to_owned();
    let now = token::now();
    let fresh = token::foreign(SECRET, &id, "kim", now, now + 7 * DAY);
    let answer = gateway.get_with("/", &fresh).expect(200);
    assert!(answer.token().is_none());
    // It grants what it says: that person, and no groups.
    assert_eq!(upstream.last().field("x-forwarded-user").as_deref(), Some("kim"));
    assert_eq!(upstream.last().folded("x-forwarded-groups"), Vec::<String>::new());
    let old = token::foreign(SECRET, &id, "kim", now - 5 * DAY, now + 2 * DAY);
    let renewed = gateway.get_with("/", &old).expect(200).token().unwrap();
    let claims = token::claims(&renewed);
    assert_eq!(claims["groups"], json!(["staff"]));
    assert!(claims["sid"].is_string());
    // Nobody whom the store does not know is renewed.
    let stranger = token::foreign(SECRET, "5f0c1", "stranger", now - 5 * DAY, now + 2 * DAY);
    gateway.get_with("/check", &stranger).expect(401);
    let stranger = token::foreign(SECRET, "5f0c1", "stranger", now, now + 7 * DAY);
    assert_eq!(gateway.get_with("/check", &stranger).expect(200).json()["username"], "stranger");
}

#[test]
fn a_disabled_account_or_a_raised_version_is_not_renewed() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let login = gateway.login("kim");
    let wrong_version = token::altered(SECRET, &token::with_left(SECRET, &login, DAY), &json!({"__v": 7}));
    let answer = gateway.get_with("/check", &wrong_version).expect(401);
    assert!(answer.clears_the_cookie());
    gateway.command(&["user", "disable", "kim"]).expect(0);
    let seven = token::claims(&login)["seq"].as_u64().unwrap() + 1000;
    // Even one that says it was made after the change.
    let late = token::altered(SECRET, &token::with_left(SECRET, &login, DAY), &json!({"seq": seven}));
    gateway.get_with("/check", &late).expect(401);
}

#[test]
fn many_answers_share_one_connection_without_mixing_up_who_asked() {
    let upstream = Upstream::start(|request, wire| {
        let user = request.field("x-forwarded-user").unwrap_or_default();
        let body = format!("{} {user}", request.target);
        reply(wire, 200, &[], body.as_bytes());
        Then::KeepOpen
    });
    let gateway = Builder::guarding(&upstream)
        .user("lee", &[])
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .start();
    let (kim, lee) = (gateway.login("kim"), gateway.login("lee"));
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (gateway, kim, lee) = (&gateway, &kim, &lee);
            scope.spawn(move || {
                let mut connection = gateway.connect();
                for number in 0..500 {
                    let target = format!("/open/{worker}/{number}");
                    let (request, user) = match number % 3 {
                        0 => (Request::get(&target).cookie(kim), "kim"),
                        1 => (Request::get(&target).cookie(lee), "lee"),
                        _ => (Request::get(&target), ""),
                    };
                    let answer = connection.send(&request).expect(200);
                    assert_eq!(answer.text(), format!("{target} {user}"));
                }
            });
        }
    });
    assert!(upstream.connections() < 50, "no connection was used twice: {}", upstream.connections());
}
