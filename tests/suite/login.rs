//! `POST /login` and the page in front of it.

use serde_json::json;

use crate::support::token::{self, DAY};
use crate::support::{Builder, Gateway, PASSWORD, Request, Upstream};

#[test]
fn a_right_password_gets_the_cookie_and_the_documented_json() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let before = token::now();
    let answer = gateway.try_login("kim", PASSWORD).expect(200);
    let body = answer.json();
    let mut keys: Vec<&String> = body.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["__v", "_id", "expires_at", "groups", "username"]);
    assert_eq!(body["username"], "kim");
    assert_eq!(body["__v"], 0);
    assert_eq!(body["groups"], json!(["staff"]));
    assert!(body["expires_at"].as_str().unwrap().ends_with('Z'), "{body}");

    let token = answer.token().unwrap();
    let (header, claims) = token::parts(&token);
    assert_eq!(header["alg"], "HS256");
    assert_eq!(header["typ"], "JWT");
    assert!(header["kid"].is_string());
    assert_eq!(claims["iss"], "doorward");
    assert_eq!(claims["sub"], claims["_id"]);
    assert_eq!(claims["_id"], body["_id"]);
    assert_eq!(claims["username"], "kim");
    assert_eq!(claims["groups"], json!(["staff"]));
    assert_eq!(claims["__v"], 0);
    assert!(claims["sid"].is_string());
    assert!(claims["seq"].is_u64());
    assert!(claims.get("aud").is_none());
    let (issued, expires) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
    assert!(issued >= before && issued <= token::now());
    assert_eq!(expires - issued, 7 * DAY);
    assert_eq!(claims["auth_time"].as_u64().unwrap(), issued);

    let line = answer.all("set-cookie").remove(0);
    let attributes: Vec<String> = line.split(';').skip(1).map(|part| part.trim().to_ascii_lowercase()).collect();
    for wanted in ["httponly", "path=/", "samesite=lax"] {
        assert!(attributes.iter().any(|attribute| attribute == wanted), "{line}");
    }
    assert!(!attributes.iter().any(|attribute| attribute.starts_with("domain")), "{line}");
    // The browser came over plain HTTP: a `Secure` cookie would never come back.
    assert!(!attributes.iter().any(|attribute| attribute == "secure"), "{line}");
    assert!(answer.field("cache-control").unwrap().contains("no-store"));
}

#[test]
fn a_form_is_answered_with_a_redirect_to_where_the_person_wanted_to_go() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let form = [("username", "kim"), ("password", PASSWORD), ("rd", "/report?year=2026")];
    let answer = gateway.send(&Request::post("/login").form(&form)).expect(303);
    assert_eq!(answer.field("location").as_deref(), Some("/report?year=2026"));
    assert!(answer.token().is_some());
}

#[test]
fn the_page_works_without_scripts_in_english_and_korean() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let page = |language: &str| {
        gateway.send(&Request::get("/login?rd=/a%3Fb").navigation().field("Accept-Language", language)).expect(200)
    };
    for (language, lang) in [("en", "en"), ("ko-KR,ko;q=0.9,en;q=0.5", "ko"), ("fr", "en"), ("<script>", "en")] {
        let answer = page(language);
        let text = answer.text();
        assert!(answer.field("content-type").unwrap().starts_with("text/html"));
        assert!(text.contains(&format!("lang=\"{lang}\"")), "{language}: {text}");
        assert!(text.contains("name=\"username\"") && text.contains("name=\"password\""), "{text}");
        assert!(text.contains("/a?b"), "the target is lost: {text}");
        assert!(!text.contains("<script"), "{text}");
        assert!(text.contains("prefers-color-scheme") || text.contains("color-scheme"), "{text}");
        let policy = answer.field("content-security-policy").unwrap();
        for wanted in ["default-src 'none'", "frame-ancestors 'none'", "form-action 'self'"] {
            assert!(policy.contains(wanted), "{policy}");
        }
        assert!(!policy.contains("unsafe-inline"), "{policy}");
        assert_eq!(answer.field("x-content-type-options").as_deref(), Some("nosniff"));
        assert!(answer.field("cache-control").unwrap().contains("no-store"));
        assert!(answer.field("referrer-policy").is_some());
    }
    assert_ne!(page("en").text(), page("ko").text());
}

#[test]
fn a_malformed_login_gets_its_own_clear_answer() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let json_body =
        |body: &str| Request::post("/login").field("Content-Type", "application/json").body(body.as_bytes());
    let form_body = |body: &str| {
        Request::post("/login").field("Content-Type", "application/x-www-form-urlencoded").body(body.as_bytes())
    };
    let nested = "[".repeat(10_000);
    for (what, request, status) in [
        ("no body", json_body(""), 400),
        ("half a body", json_body("{\"username\":\"kim\""), 400),
        ("no password", json_body("{\"username\":\"kim\"}"), 400),
        ("a number for a name", json_body("{\"username\":1,\"password\":\"x\"}"), 400),
        ("a name twice", json_body("{\"username\":\"a\",\"username\":\"b\",\"password\":\"x\"}"), 400),
        ("an array", json_body("[]"), 400),
        ("deep nesting", json_body(&nested), 400),
        (
            "no UTF-8",
            Request::post("/login").field("Content-Type", "application/json").body(b"{\"username\":\"\xff\"}"),
            400,
        ),
        ("an empty form", form_body(""), 400),
        ("a form without a password", form_body("username=kim"), 400),
        ("a form with a name twice", form_body("username=a&username=b&password=x"), 400),
        ("text", Request::post("/login").field("Content-Type", "text/plain").body(b"kim"), 415),
        ("no type", Request::post("/login").body(b"username=kim&password=x"), 415),
        (
            "several parts",
            Request::post("/login").field("Content-Type", "multipart/form-data; boundary=x").body(b"--x--"),
            415,
        ),
        ("17 KiB", json_body(&format!("{{\"username\":\"kim\",\"password\":\"{}\"}}", "a".repeat(17 * 1024))), 413),
    ] {
        let answer = gateway.send(&request);
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        assert!(answer.token().is_none(), "{what}");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_body_that_is_too_large_is_refused_by_its_length_alone() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let request = Request::post("/login").field("Content-Type", "application/json").field("Content-Length", "1000000");
    gateway.send(&request).expect(413);
    // Without a length it is cut off while it comes.
    let mut connection = gateway.connect();
    connection.begin(
        &Request::post("/login").field("Content-Type", "application/json").field("Transfer-Encoding", "chunked"),
    );
    for _ in 0..5 {
        let chunk = format!("1000\r\n{}\r\n", "a".repeat(0x1000));
        if std::io::Write::write_all(connection.stream(), chunk.as_bytes()).is_err() {
            break;
        }
    }
    assert_eq!(connection.read("POST", "/login").status, 413);
}

#[test]
fn a_login_sent_from_another_site_is_refused() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let host = gateway.address.to_string();
    let login = |fields: &[(&str, &str)]| {
        let mut request = Request::post("/login").json(&json!({"username": "kim", "password": PASSWORD}));
        for (name, value) in fields {
            request = request.field(name, value);
        }
        gateway.send(&request)
    };
    for fields in [
        &[("Origin", "https://evil.example")][..],
        &[("Origin", "null")],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-site")],
        &[("Origin", "https://evil.example"), ("Sec-Fetch-Site", "same-site")],
    ] {
        let answer = login(fields);
        assert_eq!(answer.status, 403, "{fields:?}");
        assert!(answer.token().is_none());
    }
    let same = format!("http://{host}");
    for fields in [
        &[][..],
        &[("Origin", same.as_str())],
        &[("Sec-Fetch-Site", "same-origin")],
        // What a proxy that changes `Host` leaves of a page of our own.
        &[("Origin", "https://public.example:8443"), ("Sec-Fetch-Site", "same-origin")],
    ] {
        assert_eq!(login(fields).status, 200, "{fields:?}");
    }
    // The refusal says what met what, in the answer and in the log.
    let answer = login(&[("Origin", "https://evil.example")]).expect(403);
    let met = format!("Origin https://evil.example, Sec-Fetch-Site absent, this host http://{host}");
    assert!(answer.json()["detail"].as_str().unwrap().ends_with(&met), "{}", answer.text());
    let line = crate::support::wait::until_some("the refusal in the log", || {
        let lines = gateway.log_lines("access").into_iter();
        lines.filter(|line| line["reason"] == "cross_site").find(|line| line["detail"] == met.as_str())
    });
    assert_eq!((&line["decision"], &line["status"]), (&json!("deny"), &json!(403)));
}

#[test]
fn where_no_cookie_can_work_a_page_and_one_warning_say_so_and_none_is_set() {
    let upstream = Upstream::plain();
    let form = [("username", "kim"), ("password", PASSWORD), ("rd", "/")];
    let gateway = Builder::guarding(&upstream).set("cookie.domain", "\"example.com\"").start();
    for host in ["app.other.org", "example.com.evil.test", "notexample.com", "127.0.0.1", "com"] {
        for _ in 0..2 {
            let answer = gateway.send(&Request::post("/login").field("Host", host).form(&form)).expect(500);
            assert!(answer.token().is_none() && answer.text().contains("set up for another one"), "{host}");
        }
        let json = Request::post("/login").field("Host", host).json(&json!({"username": "kim", "password": PASSWORD}));
        let answer = gateway.send(&json);
        if host == "127.0.0.1" {
            assert_eq!(answer.status, 200, "a program by the address");
        } else {
            assert_eq!(answer.expect(500).json()["code"], "cookie_cannot_work", "{host}");
        }
        let told = format!("cookie.domain = \\\"example.com\\\" does not cover the host \\\"{host}\\\"");
        assert_eq!(gateway.logs().matches(&told).count(), 1, "{host}: {}", gateway.logs());
    }
    for host in ["example.com", "app.example.com", "a.b.EXAMPLE.com:8443"] {
        let answer = gateway.send(&Request::post("/login").field("Host", host).form(&form)).expect(303);
        assert!(answer.token().is_some(), "{host}");
    }

    let gateway = Builder::guarding(&upstream).set("cookie.secure", "true").start();
    let from = |fields: &[(&str, &str)]| {
        let mut request = Request::post("/login").field("Host", "app.test").form(&form);
        for (name, value) in fields {
            request = request.field(name, value);
        }
        gateway.send(&request).status
    };
    assert_eq!(from(&[("Origin", "http://app.test")]), 500);
    assert_eq!(from(&[]), 500);
    // TLS ends in front of us, or the browser is on this machine.
    assert_eq!(from(&[("Origin", "https://app.test")]), 303);
    assert_eq!(from(&[("Origin", "http://app.test"), ("Sec-Fetch-Site", "same-origin")]), 303);
    assert_eq!(gateway.logs().matches("nobody can sign in here").count(), 1);
}

#[test]
fn a_password_manager_finds_the_page_where_a_password_is_changed() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let answer = gateway.get("/.well-known/change-password").expect(303);
    assert_eq!(answer.field("location").as_deref(), Some("/account"));
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_korean_page_says_in_korean_what_is_wrong_with_a_password() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    let long = "long ".repeat(300);
    for (new, korean) in [("short", "짧습니다"), (long.as_str(), "깁니다"), ("password123", "흔한")] {
        let form = [("current", PASSWORD), ("new", new), ("repeat", new)];
        let request = Request::post("/account/password").form(&form).cookie(&token).field("Accept-Language", "ko");
        let text = gateway.send(&request).expect(422).text();
        let problem = text.split("role=\"alert\"").nth(1).unwrap().split('<').next().unwrap();
        let problem = problem.split('>').nth(1).unwrap();
        assert!(problem.contains(korean) && !problem.contains(|sign: char| sign.is_ascii_alphabetic()), "{problem}");
    }
}

#[test]
fn a_long_address_is_come_back_to() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    for length in [5_000, 15_000] {
        let target = format!("/find?q={}", "a".repeat(length));
        let login = gateway.send(&Request::get(&target).navigation()).expect(303).field("location").unwrap();
        assert!(gateway.send(&Request::get(&login).navigation()).expect(200).text().contains("<form method=\"post\">"));
        let form = [("username", "kim"), ("password", PASSWORD)];
        let answer = gateway.send(&Request::post(&login).form(&form)).expect(303);
        assert!(answer.field("location").as_deref() == Some(&*target), "{length}");
    }
}

#[test]
fn too_many_wrong_passwords_are_throttled_by_name_in_every_spelling_and_touch_nobody_else() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).user("lee", &[]).set("login.max_attempts", "3").start();
    let token = gateway.login("kim");
    for name in ["kim", "KIM", "ｋｉｍ"] {
        assert_eq!(gateway.try_login(name, "wrong password").status, 401, "{name}");
    }
    for name in ["kim", "Kim"] {
        let answer = gateway.try_login(name, PASSWORD).expect(429);
        let wait: u64 = answer.field("retry-after").unwrap().parse().unwrap();
        assert!((1..=300).contains(&wait), "{wait}");
    }
    gateway.get_with("/", &token).expect(200);
    gateway.login("lee");
    assert!(!gateway.audit("login_throttled").is_empty());
}

#[test]
fn an_imported_hash_of_another_kind_or_cost_is_written_anew_at_the_next_login() {
    let upstream = Upstream::plain();
    let hash = bcrypt::hash(PASSWORD, 5).unwrap();
    let old = hash.replace("$2b$", "$2y$");
    let account = json!({"username": "ann", "password_hash": old, "groups": []});
    let gateway = Builder::guarding(&upstream).user_with(&account).start();
    let stored = || {
        let all = gateway.command(&["user", "export"]).expect(0).json();
        let accounts = all.as_array().unwrap().clone();
        let ann = accounts.iter().find(|account| account["username"] == "ann").unwrap().clone();
        ann["password_hash"].as_str().unwrap().to_owned()
    };
    assert_eq!(stored(), old);
    gateway.login("ann");
    assert!(stored().starts_with("$2b$04$"), "{}", stored());
    gateway.login("ann");
}

#[test]
fn long_passwords_are_never_cut_off() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let long = "pässwörd ".repeat(20);
    for (name, password) in [("a71", "x7".repeat(35) + "z"), ("a72", "x7".repeat(36)), ("long", long)] {
        gateway.command_with_input(&["user", "add", name, "--password-stdin"], &format!("{password}\n")).expect(0);
        gateway.try_login(name, &password).expect(200);
        gateway.try_login(name, &format!("{password}x")).expect(401);
        let mut shorter = password.clone();
        shorter.pop();
        gateway.try_login(name, &shorter).expect(401);
    }
    let too_long = "x7 ".repeat(400);
    gateway.command_with_input(&["user", "add", "huge", "--password-stdin"], &too_long).expect(1);
}

#[test]
fn a_second_login_makes_a_new_session_and_ends_the_one_whose_cookie_came_with_it() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).user("lee", &[]).start();
    let first = gateway.login("kim");
    let request = Request::post("/login").json(&json!({"username": "lee", "password": PASSWORD})).cookie(&first);
    let second = gateway.send(&request).expect(200).token().unwrap();
    assert_ne!(token::claims(&first)["sid"], token::claims(&second)["sid"]);
    gateway.get_with("/check", &first).expect(401);
    assert_eq!(gateway.get_with("/check", &second).expect(200).json()["username"], "lee");
}

#[test]
fn the_portal_can_live_under_a_prefix() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("portal.prefix", "\"/_auth\"").start();
    let login = Request::post("/_auth/login").json(&json!({"username": "kim", "password": PASSWORD}));
    let token = gateway.send(&login).expect(200).token().unwrap();
    gateway.get_with("/_auth/check", &token).expect(200);
    // The backend keeps its own /login and /check.
    gateway.get_with("/login", &token).expect(200);
    gateway.get_with("/check", &token).expect(200);
    let targets: Vec<String> = upstream.recorded().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/login", "/check"]);
    let answer = gateway.send(&Request::get("/page").navigation()).expect(303);
    assert!(answer.field("location").unwrap().starts_with("/_auth/login?rd="));
}
