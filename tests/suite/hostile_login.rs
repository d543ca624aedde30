//! Every way to guess, to provoke and to smuggle at the places where a password is presented.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::json;

use super::load::rank_test;
use crate::support::gateway::hash;
use crate::support::token;
use crate::support::turn::Turn;
use crate::support::{Builder, Gateway, PASSWORD, Request, Response, SECRET, Upstream, cases, wait};

const WRONG: &str = "wrong horse 7 battery";

fn login(name: &str, password: &str) -> Request {
    Request::post("/login").json(&json!({"username": name, "password": password}))
}

/// Throttled after three wrong passwords; believes what this machine says of the client's address.
fn behind_a_proxy(upstream: &Upstream) -> Gateway {
    Builder::guarding(upstream)
        .set("login.max_attempts", "3")
        .set("server.trusted_proxies", "[\"127.0.0.1/32\"]")
        .user("lee", &[])
        .start()
}

#[test]
fn nobody_gets_a_fresh_throttle_by_another_address_of_his_network() {
    let upstream = Upstream::plain();
    let gateway = behind_a_proxy(&upstream);
    let from = |addresses: &str, password: &str| {
        gateway.send(&login("kim", password).field("X-Forwarded-For", addresses)).status
    };
    // Three wrong tries under three names for one network, then the right password from a fourth, and from elsewhere.
    let families = [
        (["2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:2:a:b:c:d"], "2001:db8:1:2::4", "2001:db8:1:3::1"),
        (["192.0.2.1", "::ffff:192.0.2.1", "[::ffff:192.0.2.1]:443"], "192.0.2.1:80", "192.0.2.2"),
        // Whatever stands to the left of what the proxy wrote is the client's own invention.
        (["1.1.1.1, 192.0.2.9", "2.2.2.2, 192.0.2.9", "x, y, 192.0.2.9"], "3.3.3.3,192.0.2.9", "192.0.2.9, 192.0.2.10"),
        // What is no address counts for the proxy itself.
        (["unknown", "256.1.1.1", "_hidden, a"], "", "192.0.2.77"),
    ];
    let mut count = 0;
    for (guesses, again, elsewhere) in families {
        for address in guesses {
            assert_eq!(from(address, WRONG), 401, "{address}");
        }
        assert_eq!(from(again, PASSWORD), 429, "{again} got a throttle of its own");
        assert_eq!(from(elsewhere, PASSWORD), 200, "{elsewhere} is locked out by somebody else's guesses");
        count += 5;
    }
    cases::tried("addresses to guess from", count);
}

#[test]
fn no_header_of_a_stranger_and_no_spelling_of_a_name_gives_another_try() {
    let upstream = Upstream::plain();
    let headers =
        ["X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Via"];
    let names = ["kim", "KIM", "Kim", "ｋｉｍ", "ＫＩＭ", "kIM", "\u{212a}im"];
    let mut count = 0;
    for (number, header) in headers.iter().enumerate() {
        let gateway = Builder::guarding(&upstream).set("login.max_attempts", "3").start();
        let token = gateway.login("kim");
        for try_number in 0..6 {
            let address = format!("203.0.113.{try_number}");
            let value = if *header == "Forwarded" { format!("for={address}") } else { address };
            let name = names[(number + try_number) % names.len()];
            let password = if try_number < 3 { WRONG } else { PASSWORD };
            let status = gateway.send(&login(name, password).field(header, &value)).status;
            assert_eq!(status, if try_number < 3 { 401 } else { 429 }, "{header}, {name:?}, try {try_number}");
            count += 1;
        }
        // Whoever is logged in notices nothing.
        gateway.get_with("/", &token).expect(200);
    }
    cases::tried("ways to look like another client or name", count);
}

#[test]
fn every_place_that_takes_a_password_counts_in_the_same_throttle() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("login.max_attempts", "4").start();
    let token = gateway.login("kim");
    let fields = |password: &str| {
        [
            ("current", password.to_owned()),
            ("new", String::from("entirely new 9 words")),
            ("repeat", String::from("entirely new 9 words")),
        ]
    };
    let as_form = |target: &str, pairs: &[(&str, String)]| {
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Request::post(target).form(&pairs)
    };
    let places = |password: &str| {
        let change = fields(password);
        [
            login("kim", password),
            as_form("/login", &[("username", String::from("kim")), ("password", password.to_owned())]),
            as_form("/account/password", &change).cookie(&token),
            Request::post("/account/password")
                .json(&json!({"current": password, "new": "entirely new 9 words"}))
                .cookie(&token),
        ]
    };
    // One wrong try at each place makes four.
    for request in places(WRONG) {
        let status = gateway.send(&request).status;
        assert!(matches!(status, 401 | 422), "{}: {status}", request.target);
    }
    for request in places(PASSWORD) {
        let answer = gateway.send(&request);
        assert_eq!(answer.status, 429, "{} gives another try: {}", request.target, answer.text());
        assert!(answer.field("retry-after").is_some());
    }
    // And nothing was changed on the way.
    gateway.get_with("/check", &token).expect(200);
    cases::tried("places to guess at", 8);
}

#[test]
fn guesses_at_once_are_not_more_than_the_limit_and_one_for_each_hashing_thread() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("login.max_attempts", "3").set("login.bcrypt_cost", "8").start();
    // One core is left to the requests. Each thread looks before its work, so only those at work can be too many.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).saturating_sub(1).max(1);
    let barrier = Barrier::new(50);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let guesses: Vec<_> = (0..50)
            .map(|number| {
                let (gateway, barrier) = (&gateway, &barrier);
                scope.spawn(move || {
                    let mut connection = gateway.connect();
                    let request = if number % 2 == 0 {
                        login("kim", WRONG)
                    } else {
                        Request::post("/login").form(&[("username", "KIM"), ("password", WRONG)])
                    };
                    barrier.wait();
                    connection.send(&request).status
                })
            })
            .collect();
        guesses.into_iter().map(|guess| guess.join().unwrap()).collect()
    });
    let checked = statuses.iter().filter(|status| **status == 401).count();
    assert!(statuses.iter().all(|status| matches!(status, 401 | 429 | 503)), "{statuses:?}");
    assert!((1..=2 + threads).contains(&checked), "{checked} guesses were checked");
    gateway.send(&login("kim", PASSWORD)).expect(429);
    cases::tried("guesses at once", 50);
}

#[test]
fn logins_at_once_never_get_each_others_token() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).user("lee", &[]).user("max", &["staff"]).start();
    let barrier = Barrier::new(12);
    std::thread::scope(|scope| {
        for number in 0..12 {
            let (gateway, barrier) = (&gateway, &barrier);
            scope.spawn(move || {
                let name = ["kim", "lee", "max"][number % 3];
                let mut connection = gateway.connect();
                barrier.wait();
                for _ in 0..8 {
                    let answer = connection.send(&login(name, PASSWORD));
                    if answer.status == 503 {
                        continue;
                    }
                    let token = answer.expect(200).token().unwrap();
                    assert_eq!(token::claims(&token)["username"], name);
                    let check = connection.send(&Request::get("/check").cookie(&token)).expect(200);
                    assert_eq!(check.json()["username"], name);
                }
            });
        }
    });
}

/// What a page of another site can make a browser send, and what no browser sends.
fn foreign_evidence(host: &str) -> Vec<Vec<(&'static str, String)>> {
    let origins = [
        String::from("null"),
        String::new(),
        String::from("https://evil.example"),
        format!("http://{host}.evil.example"),
        format!("http://evil.example?{host}"),
        format!("http://evil.example#{host}"),
        format!("http://evil.example/{host}"),
        format!("http://evil.example\\@{host}"),
        format!("http://evil.example@{host}"),
        format!("http://{host}@evil.example"),
        format!("http://{host}/"),
        format!("http://{host}/login"),
        format!("http://{host},http://evil.example"),
        format!("http://{host} http://evil.example"),
        format!("//{host}"),
        host.to_owned(),
        format!("ftp://{host}"),
        format!("http:{host}"),
        format!("http://{host}0"),
        format!("http://0{host}"),
        format!("http://{}", host.split(':').next().unwrap()),
        String::from("http://127.0.0.1:1"),
        String::from("http://localhost"),
        String::from("file://"),
        String::from("chrome-extension://abcdefgh"),
        String::from("data:"),
        String::from("about:blank"),
    ];
    let mut evidence: Vec<Vec<(&str, String)>> = origins.into_iter().map(|origin| vec![("Origin", origin)]).collect();
    for site in ["cross-site", "same-site", "", "Cross-Site", "same_origin", "none, cross-site", "Same-Origin"] {
        evidence.push(vec![("Sec-Fetch-Site", site.to_owned())]);
        // The better evidence does not help against the worse.
        evidence.push(vec![("Sec-Fetch-Site", site.to_owned()), ("Origin", format!("http://{host}"))]);
    }
    evidence.push(vec![("Origin", format!("http://{host}")), ("Origin", String::from("https://evil.example"))]);
    evidence
        .push(vec![("Sec-Fetch-Site", String::from("same-origin")), ("Sec-Fetch-Site", String::from("cross-site"))]);
    evidence
}

#[test]
fn nothing_is_changed_on_another_sites_behalf() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    let session = token::claims(&token)["sid"].as_str().unwrap().to_owned();
    let new = "entirely new 9 words";
    let changes = [
        login("kim", PASSWORD),
        Request::post("/login").form(&[("username", "kim"), ("password", PASSWORD)]),
        Request::post("/logout").cookie(&token),
        Request::post("/logout").form(&[("rd", "/")]).cookie(&token),
        Request::post("/account/password").form(&[("current", PASSWORD), ("new", new), ("repeat", new)]).cookie(&token),
        Request::post("/account/password").json(&json!({"current": PASSWORD, "new": new})).cookie(&token),
        Request::post("/account/sessions").form(&[("session", &session)]).cookie(&token),
        Request::post("/account/sessions").form(&[("everywhere", "1")]).cookie(&token),
        Request::post("/account/sessions").json(&json!({"everywhere": "1"})).cookie(&token),
    ];
    let mut count = 0;
    let mut connection = gateway.connect();
    for change in &changes {
        for evidence in foreign_evidence(&gateway.address.to_string()) {
            let mut request = change.clone();
            for (name, value) in &evidence {
                request = request.field(name, value);
            }
            let answer = connection.send(&request);
            assert_eq!(answer.status, 403, "{} {evidence:?}: {}", change.target, answer.text());
            assert_eq!(answer.all("set-cookie"), Vec::<String>::new(), "{} {evidence:?}", change.target);
            count += 1;
        }
    }
    // Other methods change nothing, wherever they come from.
    for target in ["/login", "/logout", "/account/password", "/account/sessions"] {
        let query = format!("{target}?username=kim&password=x&everywhere=1&session={session}&rd=/");
        for method in ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let answer = gateway.send(&Request::new(method, &query).cookie(&token));
            assert!(answer.all("set-cookie").is_empty(), "{method} {target}");
            assert!(answer.status < 500, "{method} {target}: {}", answer.status);
            count += 1;
        }
    }
    gateway.get_with("/check", &token).expect(200);
    gateway.login("kim");
    cases::tried("changes sent from elsewhere", count);
}

#[test]
fn a_body_that_is_not_plainly_right_changes_nothing_and_gets_a_4xx() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("login.max_attempts", "1000").start();
    let token = gateway.login("kim");
    let json_type = "application/json";
    let form_type = "application/x-www-form-urlencoded";
    let nested = |open: &str, close: &str| format!("{{\"x\":{}1{}}}", open.repeat(3000), close.repeat(3000));
    let many: String = (0..100).map(|number| format!("f{number}=1&")).collect();
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        (json_type, b"".to_vec()),
        (json_type, b"null".to_vec()),
        (json_type, b"[]".to_vec()),
        (json_type, b"\"kim\"".to_vec()),
        (json_type, b"{\"username\":\"kim\",\"password\":\"x\"".to_vec()),
        (json_type, b"{\"username\":\"kim\",\"password\":\"x\"}}".to_vec()),
        (json_type, b"\xef\xbb\xbf{\"username\":\"kim\",\"password\":\"x\"}".to_vec()),
        (json_type, b"{\"username\":\"kim\",\"password\":\"\xff\"}".to_vec()),
        (json_type, b"{\"username\":\"kim\",\"password\":\"\\ud800\"}".to_vec()),
        (json_type, b"{'username':'kim'}".to_vec()),
        (json_type, b"{\"username\":\"kim\",\"password\":NaN}".to_vec()),
        (json_type, b"{\"username\":\"kim\",/* */\"password\":\"x\"}".to_vec()),
        (json_type, b"{\"username\":\"kim\",\"password\":\"x\",}".to_vec()),
        (json_type, b"{\"username\":{\"$ne\":1},\"password\":{\"$gt\":\"\"}}".to_vec()),
        (json_type, b"{\"username\":[\"kim\"],\"password\":[\"x\"]}".to_vec()),
        (json_type, b"{\"username\":\"kim\",\"username\":\"lee\",\"password\":\"x\",\"current\":\"a\",\"current\":\"b\",\"new\":\"c\",\"session\":\"x\",\"session\":\"y\"}".to_vec()),
        (json_type, b"{\"username\":true,\"password\":false,\"current\":true,\"new\":1,\"session\":2}".to_vec()),
        (json_type, nested("[", "]").into_bytes()),
        (json_type, nested("{\"a\":", "}").into_bytes()),
        (json_type, "[".repeat(15_000).into_bytes()),
        (json_type, "{\"a\":".repeat(3_000).into_bytes()),
        (json_type, format!("{{\"username\":\"kim\",\"password\":\"{}\"}}", "a".repeat(16 * 1024)).into_bytes()),
        (form_type, b"".to_vec()),
        (form_type, b"=&=&=".to_vec()),
        (form_type, b"username=kim&username=lee&password=x".to_vec()),
        (form_type, b"username=kim&user%6eame=lee&password=x&current=a&curren%74=b&new=c&session=a&session=b".to_vec()),
        (form_type, b"username=kim&password=%ff&current=%ff&new=%ff&repeat=%ff&session=%ff".to_vec()),
        (form_type, many.into_bytes()),
        (form_type, format!("username=kim&password={}", "a".repeat(16 * 1024)).into_bytes()),
        (form_type, format!("username=kim&password={}&current=x", "%41".repeat(5_461)).into_bytes()),
    ];
    let mut count = 0;
    let targets = ["/login", "/account/password", "/account/sessions"];
    for target in targets {
        for (content_type, body) in &bodies {
            let request = Request::post(target).field("Content-Type", content_type).cookie(&token).body(body);
            let answer = gateway.send(&request);
            let what = format!("{target} {}", String::from_utf8_lossy(&body[..body.len().min(60)]));
            assert!(matches!(answer.status, 400 | 413 | 422), "{what}: {}", answer.status);
            assert!(answer.token().is_none(), "{what}");
            count += 1;
        }
        for (what, request) in [
            ("no type", Request::post(target)),
            ("an empty type", Request::post(target).field("Content-Type", "")),
            ("text", Request::post(target).field("Content-Type", "text/plain")),
            ("JSON in disguise", Request::post(target).field("Content-Type", "text/plain; application/json")),
            ("another charset", Request::post(target).field("Content-Type", "application/json; charset=utf-16")),
            (
                "another charset",
                Request::post(target).field("Content-Type", "application/x-www-form-urlencoded; charset=utf-7"),
            ),
            ("parts", Request::post(target).field("Content-Type", "multipart/form-data; boundary=a")),
            ("XML", Request::post(target).field("Content-Type", "application/xml")),
            ("JSON of another kind", Request::post(target).field("Content-Type", "application/json-patch+json")),
            ("two types", Request::post(target).field("Content-Type", json_type).field("Content-Type", form_type)),
            ("packed", Request::post(target).field("Content-Type", json_type).field("Content-Encoding", "gzip")),
            (
                "packed twice",
                Request::post(target).field("Content-Type", form_type).field("Content-Encoding", "br, zstd"),
            ),
        ] {
            let body = b"{\"username\":\"kim\",\"password\":\"x\"}";
            let answer = gateway.send(&request.cookie(&token).body(body));
            assert_eq!(answer.status, 415, "{target}: {what}: {}", answer.text());
            count += 1;
        }
    }
    gateway.get_with("/check", &token).expect(200);
    gateway.login("kim");
    assert_eq!(upstream.count(), 0);
    cases::tried("bodies", count);
}

/// Names that have broken some program somewhere.
const NAUGHTY: &[&str] = &[
    "undefined",
    "null",
    "NULL",
    "nil",
    "None",
    "true",
    "0",
    "-1",
    "1/0",
    "NaN",
    "1e1000",
    "0x0",
    "__proto__",
    "constructor",
    "hasOwnProperty",
    "../../etc/passwd",
    "..\\..\\boot.ini",
    "C:\\",
    "file:///etc/passwd",
    "CON",
    "NUL",
    "'; DROP TABLE accounts; --",
    "' OR '1'='1",
    "admin'--",
    "\" OR \"\"=\"",
    "1;SELECT pg_sleep(10)",
    "%27",
    "%00",
    "%s%s%s%n",
    "%x%x",
    "{0}",
    "${jndi:ldap://127.0.0.1/a}",
    "$(id)",
    "`id`",
    "|id",
    "; id",
    "&& id",
    "{{7*7}}",
    "${7*7}",
    "<%= 7*7 %>",
    "#{7*7}",
    "<script>alert(1)</script>",
    "\"><img src=x>",
    "javascript:alert(1)",
    "<!--",
    "]]>",
    "<?xml?>",
    "*",
    "(uid=*)",
    "*)(uid=*))(|(uid=*",
    "kim)(|(a=",
    "\u{feff}kim",
    "kim\u{200b}",
    "k\u{ad}im",
    "\u{202e}mik",
    "ki\u{301}m",
    "\u{212a}im\u{0}",
    "k\u{0456}m",
    "𝓴𝓲𝓶 x",
    "\u{1d165}",
    "\u{fdfa}\u{fdfa}",
    "ﷺﷺﷺﷺﷺﷺﷺﷺ",
    "🏳0🌈️",
    "👩‍👩‍👧‍👦",
    "田中さん",
    "사용자",
    "Ω≈ç√∫˜µ≤≥÷",
    "ЁЂЃЄ",
    "ด้้้้้็็็็็",
    "ﬀ",
    "ß",
    "İ",
    "ı",
    "ŉ",
    "ǰ",
    "ΐ",
    "\u{7f}",
    "\u{85}",
    "\u{2028}",
    "\t",
    "\n",
    "\r\n",
    " ",
    "kim ",
    " kim",
    "kim\t",
    "kim\n",
    "kim\u{a0}",
    "kim\u{3000}",
    "a\u{0}b",
    "\u{1b}[31m",
    "\u{1b}]0;x\u{7}",
    "\u{8}\u{8}",
    "{\"$ne\":null}",
    "[]",
    "{}",
    "\\",
    "\\\\",
    "\"",
    "'",
    "\\u0000",
    "\\n",
    "kim,root",
    "kim;root",
    "kim=root",
    "kim:root",
    "kim@example.com",
    "a@evil@example.com",
    "http://kim",
    "root\u{0}kim",
    "Kim\r\nX-Forwarded-User: root",
];

#[test]
fn no_name_however_odd_gets_more_than_a_refusal_or_leaves_its_line_of_the_log() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("login.max_attempts", "1000000").start();
    let mut connection = gateway.connect();
    let long: Vec<String> = vec!["x".repeat(64), "x".repeat(65), "ﷺ".repeat(64), "é".repeat(5000)];
    let names = NAUGHTY.iter().map(|name| (*name).to_owned()).chain(long);
    let mut count = 0;
    for name in names {
        for request in [login(&name, WRONG), Request::post("/login").form(&[("username", &name), ("password", WRONG)])]
        {
            let answer = connection.send(&request);
            assert!(matches!(answer.status, 400 | 401 | 413), "{name:.40?}: {}", answer.status);
            assert!(answer.token().is_none());
            count += 1;
        }
    }
    wait::until("the lines", || gateway.audit("login_failed").len() > 150);
    for line in gateway.logs().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(!line.chars().any(|sign| sign.is_control() || ('\u{202a}'..='\u{202e}').contains(&sign)), "{line:?}");
    }
    cases::tried("names", count);
}

#[test]
fn only_the_very_password_is_right() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("login.max_attempts", "1000000").start();
    let mut connection = gateway.connect();
    let mut count = 0;
    // 64 characters of many bytes are allowed; what lies beyond bcrypt's 72 bytes counts as well.
    let wide = "비밀번호".repeat(16);
    let decomposed: String = "caf\u{e9} caf\u{e9} caf\u{e9}".replace('\u{e9}', "e\u{301}");
    for (name, password) in [
        ("narrow", "x7".repeat(36)),
        ("wide", wide),
        ("spaced", String::from(" leading and trailing ")),
        ("composed", String::from("caf\u{e9} caf\u{e9} caf\u{e9}")),
        ("longest", "q8 ".repeat(341)),
    ] {
        gateway.command_with_input(&["user", "add", name, "--password-stdin"], &format!("{password}\n")).expect(0);
        connection.send(&login(name, &password)).expect(200);
        let mut twins = vec![
            format!("{password}x"),
            format!("{password} "),
            format!(" {password}"),
            format!("{password}\n"),
            format!("{password}\0"),
            format!("{password}\0x"),
            password.trim().to_owned(),
            password.to_uppercase(),
            password.chars().rev().collect(),
            password.chars().skip(1).collect(),
            password.chars().take(password.chars().count() - 1).collect(),
            password.chars().take(71).collect(),
            password.chars().take(72).collect(),
            hash(&password.chars().take(20).collect::<String>()),
        ];
        if name == "composed" {
            twins.push(decomposed.clone());
        }
        for twin in twins.iter().filter(|twin| **twin != password) {
            assert_eq!(connection.send(&login(name, twin)).status, 401, "{name}: {twin:.80?}");
            count += 1;
        }
    }
    for huge in [1025, 4096, 15_000] {
        assert_eq!(connection.send(&login("narrow", &"x7".repeat(huge / 2 + 1))).status, 401);
        count += 1;
    }
    cases::tried("passwords that are nearly right", count);
}

/// What turns text into something else in some language or other.
const PAYLOADS: &[&str] = &[
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "\"><script>alert(1)</script>",
    "'><b>",
    "\"><img src=x onerror=alert(1)>",
    "<img/src=x/onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg/onload=alert(1)//",
    "<iframe srcdoc='<b>'>",
    "<a href=javascript:alert(1)>x</a>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh>",
    "\" onfocus=alert(1) autofocus=\"",
    "' onfocus=alert(1) autofocus='",
    "\" style=\"x",
    "x\" onmouseover=\"x",
    "`onload=x`",
    "</title><script>x</script>",
    "</style><style>*{color:red}</style>",
    "</textarea><script>",
    "</form><form action=//e>",
    "<input name=password>",
    "<!--",
    "-->",
    "--!>",
    "<![CDATA[x]]>",
    "]]>",
    "<?xml version=\"1.0\"?>",
    "&lt;b&gt;",
    "&#60;b&#62;",
    "&quot;&#34;",
    "&amp;lt;",
    "{{7*7}}",
    "{{ config }}",
    "{% raw %}",
    "{%include 'style.css'%}",
    "{# x #}",
    "${7*7}",
    "#{7*7}",
    "<%= 7*7 %>",
    "\\u003cb\\u003e",
    "\\x3cb\\x3e",
    "%3Cb%3E",
    "\u{ff1c}b\u{ff1e}",
    "<\u{0}b>",
    "javascript:alert(1)",
    "data:text/html,x",
];

/// What stands for structure in HTML. Text that was escaped adds nothing to it.
fn structure(page: &str) -> [usize; 4] {
    ["<", ">", "\"", "'"].map(|sign| page.matches(sign).count())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[test]
fn no_text_becomes_structure_on_any_page() {
    let upstream = Upstream::plain();
    let usable: Vec<&&str> = PAYLOADS.iter().filter(|payload| !payload.contains('\u{0}')).collect();
    let account = |name: &str, text: &str| {
        json!({"username": name, "password_hash": hash(PASSWORD), "groups": [text.replace(',', ".")], "display_name": text,
               "email": text.replace(' ', "_").replace('@', "a")})
    };
    let mut builder = Builder::guarding(&upstream)
        .set("server.trusted_proxies", "[\"127.0.0.1/32\"]")
        .set("login.max_attempts", "1000000")
        .route("path = \"/closed\"\naccess = \"deny\"")
        .user_with(&account("control", "harmless"));
    for (number, payload) in usable.iter().enumerate() {
        builder = builder.user_with(&account(&format!("u{number}"), payload));
    }
    let gateway = builder.start();
    let page = |request: Request| -> Response { gateway.send(&request.navigation()) };
    let guarded = |answer: &Response| {
        let policy = answer.field("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; base-uri 'none'; frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("script-src"), "{policy}");
        assert_eq!(answer.field("x-content-type-options").as_deref(), Some("nosniff"));
        assert!(answer.field("cache-control").unwrap().contains("no-store"));
        answer.text()
    };
    let mut count = 0;

    // The account page shows names, groups, an address and what the browser calls itself.
    let account_page = |name: &str, agent: &str| {
        let token = gateway.send(&login(name, PASSWORD).field("User-Agent", agent)).expect(200).token().unwrap();
        guarded(&page(Request::get("/account").cookie(&token)).expect(200))
    };
    let control = structure(&account_page("control", "harmless"));
    for (number, payload) in usable.iter().enumerate() {
        let html = account_page(&format!("u{number}"), payload);
        assert_eq!(structure(&html), control, "{payload}");
        assert!(html.contains(&escaped(payload)), "{payload} is not shown as it is");
        count += 4;
    }

    // The pages that a stranger can make somebody open.
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    for target in ["/login", "/logout"] {
        let control = structure(&guarded(&page(Request::get(&format!("{target}?rd=%2Fx%3Fy"))).expect(200)));
        for payload in PAYLOADS {
            for (rd, more) in [(format!("/x?{payload}"), ""), (format!("/{payload}"), ""), ((*payload).to_owned(), "")]
            {
                let query =
                    format!("{target}?rd={}&error={}&lang={}{more}", encode(&rd), encode(payload), encode(payload));
                let mut request = Request::get(&query);
                if !payload.contains('\u{0}') && payload.is_ascii() {
                    for name in
                        ["Referer", "Accept-Language", "User-Agent", "X-Forwarded-Host", "X-Forwarded-Proto", "Cookie"]
                    {
                        request = request.field(name, payload);
                    }
                }
                let html = guarded(&page(request).expect(200));
                assert_eq!(structure(&html), control, "{target}: {rd}");
                assert!(!html.contains("javascript:alert") || !html.contains("href=\"javascript"), "{target}: {rd}");
                count += 1;
            }
        }
    }

    // A refused login shows nothing of what was typed but the name, as text in its field.
    let refused = |name: &str| {
        let form = [("username", name), ("password", WRONG), ("rd", "/x")];
        let html = guarded(&gateway.send(&Request::post("/login").form(&form)).expect(401));
        let field = format!("name=\"username\" type=\"text\" value=\"{}\"", escaped(name));
        assert_eq!(html.matches(&field).count(), 1, "{name} is not shown as it is: {html}");
        html.replace(&field, "")
    };
    let expected = refused("harmless");
    for payload in PAYLOADS {
        assert_eq!(refused(payload), expected, "{payload}");
        count += 1;
    }

    // An error's page names the request's id, which a trusted proxy may choose.
    let error = |id: &str, target: &str| guarded(&page(Request::get(target).field("X-Request-Id", id)).expect(403));
    let control = structure(&error("harmless", "/closed"));
    for payload in PAYLOADS.iter().filter(|payload| payload.bytes().all(|byte| byte.is_ascii_graphic())) {
        let html = error(payload, &format!("/closed?{}", encode(payload)));
        assert_eq!(structure(&html), control, "{payload}");
        assert!(html.contains(&escaped(payload)), "{payload} is not shown as it is");
        count += 1;
    }
    cases::tried("texts on pages", count);
}

#[test]
fn the_title_of_the_login_page_is_text_too() {
    let upstream = Upstream::plain();
    for payload in ["</title><script>alert(1)</script>", "\"'><b>{{7919*7907}}"] {
        let title = serde_json::to_string(payload).unwrap();
        let gateway = Builder::guarding(&upstream).set("login.title", &title).start();
        let html = gateway.send(&Request::get("/login").navigation()).expect(200).text();
        assert!(!html.contains(payload) && html.contains(&escaped(payload)), "{html}");
        assert!(!html.contains("62615533"), "{html}");
    }
}

#[test]
fn no_redirect_leads_to_another_host_however_it_is_spelt() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("login.redirect_hosts", "[\"good.example\"]").start();
    let token = gateway.login("kim");
    let here = gateway.address.to_string();
    let base = url::Url::parse(&format!("http://{here}/login")).unwrap();
    let starts: Vec<String> = [
        "//",
        "///",
        "////",
        "//////",
        "/\\",
        "\\\\",
        "\\/",
        "\\",
        "/\\/",
        "/\\\\",
        "/\t/",
        "/\n/",
        "/\r/",
        "/\r\n/",
        "/ /",
        "/\u{b}/",
        "/\u{c}/",
        " //",
        "\t//",
        "\n//",
        "\r//",
        "\u{0}//",
        "\u{1}//",
        "\u{a0}//",
        "\u{feff}//",
        "\u{2028}//",
        "/\u{0}/",
        "/\u{85}/",
        "/\u{200b}/",
        "/.//",
        "/..//",
        "/./\\",
        "/../\\",
        "/x/..//",
        "/x/../\\",
        "/./..//",
        "/%2e//",
        "/%2e%2e//",
        "/.%2e/\\",
        "/;//",
        "/%09/",
        "/%0a/",
        "/%0d/",
        "/%20/",
        "/%5c",
        "/%5C%5C",
        "/%2f",
        "/%2F%2f",
        "/%252f",
        "/%255c",
        "/%00/",
        "/\u{3002}/",
        "/\u{ff0f}",
        "\u{ff0f}\u{ff0f}",
        "\u{2215}\u{2215}",
        "https:",
        "https:/",
        "https://",
        "https:///",
        "https:\\",
        "https:\\\\",
        "HTTPS://",
        "hTtP://",
        "http:/\\",
        "http:\\/",
        "http:////",
        "https:\t//",
        "h\nttps://",
        "https\n://",
        "://",
        ":",
        "ftp://",
        "ws://",
        "wss://",
        "blob:https://",
        "view-source:https://",
        "javascript://",
        "data://",
        "//@",
        "//:@",
        "//x:y@",
        "https://good.example@",
        "https://good.example:443@",
        "https://good.example%40",
        "https://good.example%2f@",
        "https://good.example.",
        "https://good.example%2e",
        "https://good.example\\.",
        "https://good.example\\@",
        "https://good.example#@",
        "https://good.example?@",
        "https://good.example%23@",
        "https://good.example%00.",
        "https://good.example%0a.",
        "https://good.example\u{3002}",
        "https://xgood.example.",
        "https://good-example.",
        "https://g\u{43e}od.example.",
        "https://%67ood.example.",
        "https://[good.example].",
        "//good.example@",
        "//good.example.",
        "//good.example\\",
        "/\\good.example@",
    ]
    .iter()
    .map(|start| (*start).to_owned())
    .chain([
        format!("http://{here}@"),
        format!("http://{here}."),
        format!("http://{here}\\@"),
        format!("//{here}@"),
        format!("http://{here}#@"),
        format!("http://{here}%2e"),
    ])
    .collect();
    let tails = [
        "evil.example",
        "evil.example/",
        "evil.example/%2e%2e",
        "evil.example?x",
        "evil.example#x",
        "evil.example:443/",
        "evil%2eexample",
        "evil\u{3002}example",
        "good.example.evil.example",
        "good.example@evil.example",
        "[::1]/",
        "0x7f.1/",
        "3232235777/",
    ];
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let mut connection = gateway.connect();
    let mut count = 0;
    for start in &starts {
        for tail in tails {
            let payload = format!("{start}{tail}");
            for rd in [
                encode(&payload),
                encode(&encode(&payload)),
                encode(&format!("/x/../{payload}")),
                encode(&format!("/login?rd={payload}")),
            ] {
                let answer = connection.send(&Request::get(&format!("/login?rd={rd}")).cookie(&token));
                // A target on a listed host is offered as a link instead: the cookie would not reach it.
                let targets = match answer.status {
                    303 => answer.all("location"),
                    200 => answer
                        .text()
                        .split("href=\"")
                        .skip(1)
                        .map(|rest| rest.split('"').next().unwrap().replace("&amp;", "&"))
                        .collect(),
                    other => panic!("{payload:?}: {other}"),
                };
                for target in targets {
                    assert!(!target.contains(['\r', '\n', '\t', '\\']), "{payload:?} became {target:?}");
                    let url =
                        base.join(&target).unwrap_or_else(|error| panic!("{payload:?} became {target:?}: {error}"));
                    let host = url.host_str().unwrap_or_default();
                    let stays = url.origin() == base.origin() || host == "good.example";
                    assert!(stays && matches!(url.scheme(), "http" | "https"), "{payload:?} leads to {url}");
                    assert!(url.username().is_empty() && url.password().is_none(), "{payload:?} leads to {url}");
                }
                count += 1;
            }
        }
    }
    // The same by a form, for a sample: the whole login is behind it.
    for (number, start) in starts.iter().enumerate() {
        let payload = format!("{start}{}", tails[number % tails.len()]);
        let form = [("username", "kim"), ("password", PASSWORD), ("rd", payload.as_str())];
        let answer = connection.send(&Request::post("/login").form(&form)).expect(303);
        let url = base.join(&answer.field("location").unwrap()).unwrap();
        assert!(url.origin() == base.origin() || url.host_str() == Some("good.example"), "{payload:?} leads to {url}");
        count += 1;
    }
    // Twice, no UTF-8, and too long: home.
    for query in [
        "rd=%2Fa&rd=%2Fb",
        "rd=%2Fa&r%64=%2Fb",
        "rd=%ff",
        "rd=/%ff%fe",
        &format!("rd=/{}", "a".repeat(17_000)),
        "RD=%2Fa",
        "rd[]=%2Fa",
    ] {
        let answer = connection.send(&Request::get(&format!("/login?{query}")).cookie(&token));
        let location = answer.field("location");
        assert!(location.is_none_or(|location| location == "/"), "{query:.40}");
        count += 1;
    }
    cases::tried("redirect targets", count);
}

/// How likely two samples whose medians are so far apart come from the same source: the share of random regroupings
/// of all measurements that set the medians at least as far apart.
fn permutation_test(first: &[Duration], second: &[Duration]) -> f64 {
    const REGROUPINGS: u32 = 5_000;
    let median = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    let observed = (median(first) - median(second)).abs();
    let mut all: Vec<Duration> = first.iter().chain(second).copied().collect();
    // A generator of Marsaglia's: the same regroupings in every run.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below).unwrap()).unwrap()
    };
    let mut as_far = 0;
    for _ in 0..REGROUPINGS {
        for at in (1..all.len()).rev() {
            all.swap(at, random(at + 1));
        }
        let (one, other) = all.split_at(first.len());
        as_far += u32::from((median(one) - median(other)).abs() >= observed);
    }
    f64::from(as_far) / f64::from(REGROUPINGS)
}

#[test]
fn the_permutation_test_sees_a_difference_and_sees_none_where_there_is_none() {
    let times = |offset: u64| {
        (0..60_u64).map(|number| Duration::from_micros(10_000 + number * 7919 % 1000 + offset)).collect::<Vec<_>>()
    };
    assert!(permutation_test(&times(0), &times(1000)) < 0.001);
    assert!(permutation_test(&times(0), &times(20)) > 0.05);
}

/// A small one, of "pässword".
const ARGON2ID: &str = "$argon2id$v=19$m=64,t=2,p=1$x1vpcgYVQWtcL6FBZIxInA$HETAzL2WQXzbjRdjZwe3Xhza0ugovjk8piOuiWmjNsc";

#[test]
fn the_time_of_a_refusal_says_neither_that_an_account_is_disabled_nor_how_its_password_is_kept() {
    // A comparison fails a round when both tests say so: the rank test at four deviations (by chance once in 15,000) and
    // the medians at 1 in 1,000. It counts only when it fails in three rounds that are independent of each other: for
    // all five comparisons together less than one in 10^10, however noisy the machine, for noise meets all kinds alike.
    const ROUNDS: usize = 3;
    const SAMPLES: usize = 40;
    let _turn = Turn::alone();
    let upstream = Upstream::plain();
    let cost = 8;
    let of_cost = |cost| bcrypt::hash(PASSWORD, cost).unwrap();
    let gateway = Builder::guarding(&upstream)
        .set("login.bcrypt_cost", &cost.to_string())
        .set("login.max_attempts", "1000000")
        .user_with(&json!({"username": "active", "password_hash": of_cost(cost), "groups": []}))
        .user_with(&json!({"username": "closed", "password_hash": of_cost(cost), "groups": [], "disabled": true}))
        .user_with(&json!({"username": "cheap5", "password_hash": of_cost(5), "groups": []}))
        .user_with(&json!({"username": "argon", "password_hash": ARGON2ID, "groups": []}))
        .start();
    // One whose long password is kept in the other form.
    let long = format!("{}\n", "x7 ".repeat(30));
    gateway.command_with_input(&["user", "add", "longer", "--password-stdin"], &long).expect(0);
    let mut connection = gateway.connect();
    let mut time = |name: &str, password: &str| {
        let request = login(name, password);
        let began = Instant::now();
        connection.send(&request).expect(401);
        began.elapsed()
    };
    let kinds = [
        ("active", WRONG),
        ("nobody", WRONG),
        ("closed", PASSWORD),
        ("longer", WRONG),
        ("cheap5", WRONG),
        ("argon", WRONG),
    ];
    for (name, password) in kinds {
        time(name, password);
    }
    let mut failures = [0; 6];
    for _ in 0..ROUNDS {
        let mut times: [Vec<Duration>; 6] = Default::default();
        for _ in 0..SAMPLES {
            for (kind, (name, password)) in kinds.iter().enumerate() {
                times[kind].push(time(name, password));
            }
        }
        for kind in 1..kinds.len() {
            let (apart, chance) = (rank_test(&times[0], &times[kind]), permutation_test(&times[0], &times[kind]));
            println!("{} and active: {apart:.2} standard deviations, medians by chance {chance:.4}", kinds[kind].0);
            failures[kind] += usize::from(apart.abs() > 4.0 && chance < 0.001);
        }
        if failures.iter().all(|failed| *failed == 0) {
            break;
        }
    }
    for (kind, failed) in failures.iter().enumerate() {
        assert!(*failed < ROUNDS, "the time tells {:?} from a wrong password", kinds[kind].0);
    }
}

#[test]
fn the_cookie_that_came_with_a_login_is_never_promoted() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).user("lee", &[]).start();
    // What an attacker may have planted: his own session, one that is no token, one of a session that is not stored.
    let planted = [
        gateway.login("lee"),
        String::from("planted"),
        token::altered(SECRET, &gateway.login("lee"), &json!({"sid": "00000000-0000-7000-8000-00000000000a"})),
    ];
    for cookie in &planted {
        let answer = gateway.send(&login("kim", PASSWORD).cookie(cookie)).expect(200);
        let fresh = answer.token().unwrap();
        assert_eq!(token::claims(&fresh)["username"], "kim");
        if cookie.contains('.') {
            assert_ne!(token::claims(&fresh)["sid"], token::claims(cookie)["sid"]);
            gateway.get_with("/check", cookie).expect(401);
        }
        gateway.get_with("/check", &fresh).expect(200);
    }
}

#[test]
fn a_scripts_token_beside_a_login_stays() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).user("lee", &[]).start();
    let script = gateway.command(&["token", "issue", "kim"]).expect(0).stdout.trim().to_owned();
    for name in ["kim", "lee"] {
        gateway.send(&login(name, PASSWORD).bearer(&script)).expect(200);
        gateway.send(&Request::get("/check").bearer(&script)).expect(200);
    }
}
