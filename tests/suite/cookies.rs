//! Cookies as odd clients and odder backends read them.

use serde_json::json;

use crate::support::{Builder, Gateway, PASSWORD, Request, Upstream};

#[test]
fn two_tokens_of_two_people_are_no_login_and_a_forged_one_beside_a_good_one_does_not_harm() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).user("lee", &[]).start();
    let (kim, lee) = (gateway.login("kim"), gateway.login("lee"));
    let with = |cookie: &str| gateway.send(&Request::get("/check").field("Cookie", cookie)).status;
    assert_eq!(with(&format!("access_token={kim}; access_token={lee}")), 401);
    assert_eq!(with(&format!("access_token={lee}; access_token={kim}")), 401);
    assert_eq!(with(&format!("access_token={kim}; access_token={kim}")), 200);
    assert_eq!(with(&format!("access_token=forged; access_token={kim}")), 200);
    assert_eq!(with(&format!("access_token={kim}; access_token=forged")), 200);
    let lines = Request::get("/check")
        .field("Cookie", &format!("access_token={kim}"))
        .field("Cookie", &format!("access_token={lee}"));
    assert_eq!(gateway.send(&lines).status, 401);
}

/// Several cookies of our name in one request, as a browser sends a host-only one of yesterday and a domain's of today.
#[test]
fn of_several_valid_cookies_every_one_counts() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .user("lee", &[])
        .set("cookie.domain", "\"example.com\"")
        .set("cookie.path", "\"/app\"")
        .start();
    let is_good = |token: &str| gateway.get_with("/check", token).status == 200;
    let both = |request: Request, one: &str, other: &str| {
        request.field("Cookie", &format!("access_token={one}; access_token={other}"))
    };
    let logins = [("kim", "kim"), ("kim", "lee")];
    for (one, other) in logins {
        let tokens = [gateway.login(one), gateway.login(other)];
        let [first, second] = tokens.each_ref();
        assert!(is_good(first) && is_good(second), "each is a login of its own");
        let reply = gateway.send(&both(Request::post("/logout"), first, second)).expect(204);
        assert!(!is_good(first) && !is_good(second), "{one} and {other}: a logout ends both");
        let cleared = reply.all("set-cookie");
        for place in ["Path=/app; Domain=example.com;", "Path=/app; Max", "Path=/; Domain=example.com;", "Path=/; Max"]
        {
            assert!(cleared.iter().any(|line| line.contains(place)), "{place} in {cleared:?}");
        }
        // A login in the same browser takes the place of both.
        let tokens = [gateway.login(one), gateway.login(other)];
        let [first, second] = tokens.each_ref();
        let body = json!({ "username": "kim", "password": PASSWORD });
        let reply = gateway.send(&both(Request::post("/login").json(&body), first, second)).expect(200);
        assert!(!is_good(first) && !is_good(second), "{one} and {other}: a login replaces both");
        assert_eq!(reply.all("set-cookie").iter().filter(|line| !line.contains("Max-Age=0")).count(), 1);
        // What is over is cleared wherever it may be, but other proxies get one line.
        let refused = gateway.send(&both(Request::get("/page"), first, second)).expect(401);
        assert_eq!(refused.all("set-cookie").len(), 4);
        assert_eq!(gateway.send(&both(Request::get("/check"), first, second)).expect(401).all("set-cookie").len(), 1);
    }
    // "Sign out everywhere" ends both of one person too.
    let tokens = [gateway.login("kim"), gateway.login("kim")];
    let [first, second] = tokens.each_ref();
    gateway.send(&both(Request::post("/account/sessions").json(&json!({ "everywhere": "1" })), first, second));
    assert!(!is_good(first) && !is_good(second));
}

#[test]
fn only_the_exact_name_is_a_login() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    for cookie in [
        format!("=access_token={token}"),
        String::from("access_token"),
        format!("Access_Token={token}"),
        format!("access%5ftoken={token}"),
        format!("a=b access_token={token}"),
        format!("a=1,access_token={token}"),
        format!("xaccess_token={token}"),
        format!("access_tokenx={token}"),
        format!("a=\"x; access_token2={token}; y\""),
    ] {
        assert_eq!(gateway.send(&Request::get("/check").field("Cookie", &cookie)).status, 401, "{cookie:.40}");
    }
}

#[test]
fn the_token_never_reaches_the_backend_and_other_cookies_stay_byte_for_byte() {
    let upstream = Upstream::plain();
    let gateway =
        Builder::guarding(&upstream).route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"").start();
    let token = gateway.login("kim");
    for (sent, kept) in [
        (format!("access_token={token}"), None),
        (format!("a=1; access_token={token}"), Some("a=1")),
        (format!("access_token={token}; a=1"), Some("a=1")),
        (format!("a=1; access_token={token}; b=\"q; r\""), Some("a=1; b=\"q; r\"")),
        (format!("a=1;access_token={token};b=2"), None),
        (format!("a = 1; access_token ={token}; b==2"), None),
        (format!("a=1; access_token=\"{token}\""), Some("a=1")),
        (format!("a=1; =access_token={token}"), None),
        (format!("a=1; ACCESS_TOKEN={token}; b=2"), None),
        (String::from("a=%zz; b; c=; =d"), Some("a=%zz; b; c=; =d")),
    ] {
        gateway.send(&Request::get("/open").field("Cookie", &sent)).expect(200);
        let seen = upstream.last();
        let raw = String::from_utf8_lossy(&seen.raw).into_owned();
        if !sent.contains("ACCESS_TOKEN") {
            assert!(!raw.contains(&token), "{sent:.60} let the token through");
        }
        if let Some(kept) = kept {
            assert_eq!(seen.field("cookie").as_deref(), Some(kept), "{sent:.60}");
        }
    }
    let lines = Request::get("/open")
        .field("Cookie", "a=1")
        .field("Cookie", &format!("access_token={token}"))
        .field("Cookie", "b=2");
    gateway.send(&lines).expect(200);
    let cookies = upstream.last().head.all("cookie").join("; ");
    assert_eq!(cookies, "a=1; b=2");
}

#[test]
fn a_cookie_header_of_any_size_gets_an_answer() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let large = format!("a={}", "x".repeat(60 * 1024));
    gateway.send(&Request::get("/check").field("Cookie", &large)).expect(431);
    let crumbs = "access_token=x; ".repeat(1_500);
    gateway.send(&Request::get("/check").field("Cookie", &crumbs)).expect(401);
    let nul = Request::get("/check").field("Cookie", "access_token=\"a\\\"; b\x7f");
    assert!(matches!(gateway.send(&nul).status, 400 | 401));
}

#[test]
fn the_cookies_name_and_attributes_follow_the_file_at_login_and_at_logout() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .set("cookie.name", "\"__Secure-door\"")
        .set("cookie.domain", "\"example.com\"")
        .set("cookie.secure", "true")
        .set("cookie.same_site", "\"strict\"")
        .start();
    let login = gateway.try_login("kim", PASSWORD).expect(200);
    let token = login.cookie("__Secure-door").unwrap();
    let attributes = |line: &str| -> Vec<String> {
        let mut attributes: Vec<String> = line
            .split(';')
            .skip(1)
            .map(|part| part.trim().to_ascii_lowercase())
            .filter(|part| !part.starts_with("max-age") && !part.starts_with("expires"))
            .collect();
        attributes.sort();
        attributes
    };
    let set = login.all("set-cookie").remove(0);
    assert_eq!(attributes(&set), ["domain=example.com", "httponly", "path=/", "samesite=strict", "secure"]);
    let logout = gateway.send(&Request::post("/logout").field("Cookie", &format!("__Secure-door={token}"))).expect(204);
    let cleared = logout.all("set-cookie").remove(0);
    assert_eq!(attributes(&cleared), attributes(&set), "a browser would keep the cookie");
    assert!(cleared.to_ascii_lowercase().contains("max-age=0"), "{cleared}");
}

#[test]
fn the_cookie_is_secure_where_a_trusted_proxy_says_https_and_only_there() {
    let upstream = Upstream::plain();
    let login = Request::post("/login")
        .json(&json!({"username": "kim", "password": PASSWORD}))
        .field("X-Forwarded-Proto", "https");
    let secure = |gateway: &Gateway| {
        let line = gateway.send(&login).expect(200).all("set-cookie").remove(0);
        line.split(';').any(|part| part.trim().eq_ignore_ascii_case("secure"))
    };
    assert!(!secure(&Gateway::guarding(&upstream)));
    assert!(secure(&Builder::guarding(&upstream).set("server.trusted_proxies", "[\"127.0.0.1/32\"]").start()));
}
