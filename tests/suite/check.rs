//! `GET /check`, and which tokens are a login at all.

use serde_json::{Value, json};

use crate::support::token::{self, DAY};
use crate::support::{Builder, Gateway, Request, SECRET, Upstream};

#[test]
fn check_says_who_is_logged_in_and_carries_every_identity_header() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .set("identity.headers.X-Team", "\"{groups}\"")
        .user_with(
            &json!({"username": "plain", "password_hash": crate::support::gateway::hash(crate::support::PASSWORD)}),
        )
        .start();
    let token = gateway.login("kim");
    let answer = gateway.get_with("/check", &token).expect(200);
    let body = answer.json();
    let mut keys: Vec<&String> = body.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["_id", "expires_at", "groups", "username"]);
    assert_eq!(body["username"], "kim");
    assert_eq!(body["groups"], json!(["staff"]));
    assert_eq!(answer.field("x-auth-request-user").as_deref(), Some("kim"));
    assert_eq!(answer.field("x-auth-request-groups").as_deref(), Some("staff"));
    assert_eq!(answer.field("x-auth-request-email").as_deref(), Some("kim@example.com"));
    assert_eq!(answer.field("x-team").as_deref(), Some("staff"));
    assert!(answer.field("cache-control").unwrap().contains("no-store"));

    let head = gateway.send(&Request::new("HEAD", "/check").cookie(&token)).expect(200);
    assert_eq!(head.field("x-auth-request-user").as_deref(), Some("kim"));
    assert!(head.body.is_empty());

    // Empty, not missing: a proxy that copies them overwrites what its client sent.
    let answer = gateway.get_with("/check", &gateway.login("plain")).expect(200);
    assert_eq!(answer.field("x-auth-request-groups").as_deref(), Some(""));
    assert_eq!(answer.field("x-auth-request-email").as_deref(), Some(""));
    assert_eq!(answer.field("x-team").as_deref(), Some(""));
    assert_eq!(upstream.count(), 0);
}

#[test]
fn check_without_a_login_is_401_for_everybody_and_never_a_redirect() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    for request in [Request::get("/check"), Request::get("/check").navigation(), Request::new("HEAD", "/check")] {
        let answer = gateway.send(&request).expect(401);
        assert!(answer.field("location").is_none());
        assert!(answer.field("cache-control").unwrap().contains("no-store"));
    }
    let answer = gateway.get("/check");
    assert_eq!(answer.field("content-type").as_deref(), Some("application/problem+json"));
    assert!(answer.json()["login_url"].as_str().unwrap().starts_with("/login"), "{}", answer.text());
    // What somebody else may have set under our name is left alone.
    assert!(gateway.get_with("/check", "nonsense").expect(401).all("set-cookie").is_empty());
    let ended = gateway.login("kim");
    gateway.send(&Request::post("/logout").cookie(&ended)).expect(204);
    let answer = gateway.get_with("/check", &ended).expect(401);
    assert!(answer.clears_the_cookie());
    assert!(answer.all("set-cookie").len() == 1);
}

#[test]
fn check_does_not_wait_for_a_body() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    let mut connection = gateway.connect();
    connection.begin(&Request::get("/check").cookie(&token).field("Content-Length", "1000"));
    assert_eq!(connection.read("GET", "/check").status, 200);
}

/// Those of [`bad_tokens`] whose cookie stays: no key of ours signed them, they are another's, or they will be good yet.
const LEFT_ALONE: &[&str] = &[
    "empty",
    "another secret",
    "no signature",
    "alg none",
    "alg None",
    "alg nOnE, signed",
    "no alg",
    "alg HS384",
    "alg hs256",
    "alg RS256",
    "alg as an array",
    "crit",
    "crit b64",
    "unknown kid",
    "another typ",
    "iat tomorrow",
    "nbf in ten minutes",
    "wrong iss",
    "an aud",
    "an aud that is a number",
    "two segments",
    "four segments",
    "a final dot",
    "padding",
    "a cut signature",
    "a changed payload",
];

/// Tokens that differ in one point from a good one.
fn bad_tokens(good: &str) -> Vec<(&'static str, String)> {
    let (header, claims) = token::parts(good);
    let now = token::now();
    let with_claims = |changes: Value| token::altered(SECRET, good, &changes);
    let with_header = |changes: Value| {
        let mut header = header.clone();
        token::merge(&mut header, &changes);
        token::sign(SECRET, &header, &claims)
    };
    let segments: Vec<&str> = good.split('.').collect();
    let unsigned = |algorithm: &str| {
        let token = with_header(json!({"alg": algorithm}));
        let mut segments: Vec<&str> = token.split('.').collect();
        segments[2] = "";
        segments.join(".")
    };
    let claims_text = claims.to_string();
    let doubled = format!("{{\"sub\":\"someone\",{}", &claims_text[1..]);
    let deep = format!("{{\"x\":{}1{},{}", "[".repeat(20_000), "]".repeat(20_000), &claims_text[1..]);
    vec![
        ("empty", String::new()),
        ("another secret", token::sign(b"another secret of more than 32 bytes", &header, &claims)),
        ("no signature", unsigned("HS256")),
        ("alg none", unsigned("none")),
        ("alg None", unsigned("None")),
        ("alg nOnE, signed", with_header(json!({"alg": "nOnE"}))),
        ("no alg", with_header(json!({"alg": null}))),
        ("alg HS384", with_header(json!({"alg": "HS384"}))),
        ("alg hs256", with_header(json!({"alg": "hs256"}))),
        ("alg RS256", with_header(json!({"alg": "RS256"}))),
        ("alg as an array", with_header(json!({"alg": ["HS256"]}))),
        ("crit", with_header(json!({"crit": ["x"], "x": 1}))),
        ("crit b64", with_header(json!({"crit": ["b64"], "b64": false}))),
        ("unknown kid", with_header(json!({"kid": "../../dev/null"}))),
        ("another typ", with_header(json!({"typ": "doorward-assertion+jwt"}))),
        ("expired", with_claims(json!({"exp": now - 1, "iat": now - DAY}))),
        ("no exp", with_claims(json!({"exp": null}))),
        ("exp as text", with_claims(json!({"exp": (now + DAY).to_string()}))),
        ("exp negative", with_claims(json!({"exp": -1}))),
        ("exp 2^64-1", with_claims(json!({"exp": u64::MAX, "iat": now}))),
        ("iat tomorrow", with_claims(json!({"iat": now + DAY, "exp": now + 2 * DAY}))),
        ("nbf in ten minutes", with_claims(json!({"nbf": now + 600}))),
        ("wrong iss", with_claims(json!({"iss": "another"}))),
        ("iss as an array", with_claims(json!({"iss": ["doorward"]}))),
        ("an aud", with_claims(json!({"aud": "app"}))),
        ("an aud that is a number", with_claims(json!({"aud": 1}))),
        ("sub is not _id", with_claims(json!({"sub": "someone"}))),
        ("no _id", with_claims(json!({"_id": null, "sub": null}))),
        ("_id as a number", with_claims(json!({"_id": 1, "sub": 1}))),
        ("_id empty", with_claims(json!({"_id": "", "sub": ""}))),
        ("no username", with_claims(json!({"username": null}))),
        ("a line end in username", with_claims(json!({"username": "kim\r\nX-A: b"}))),
        ("a NUL in username", with_claims(json!({"username": "kim\u{0}"}))),
        ("groups as text", with_claims(json!({"groups": "admin"}))),
        ("a claim twice", token::sign_bytes(SECRET, header.to_string().as_bytes(), doubled.as_bytes())),
        ("an array for claims", token::sign_bytes(SECRET, header.to_string().as_bytes(), b"[]")),
        ("no JSON", token::sign_bytes(SECRET, header.to_string().as_bytes(), b"\xff\xfe")),
        ("deep nesting", token::sign_bytes(SECRET, header.to_string().as_bytes(), deep.as_bytes())),
        ("two segments", segments[..2].join(".")),
        ("four segments", format!("{good}.{}", segments[2])),
        ("a final dot", format!("{good}.")),
        ("padding", format!("{good}=")),
        ("a cut signature", good[..good.len() - 2].to_owned()),
        ("a changed payload", format!("{}.{}x.{}", segments[0], segments[1], segments[2])),
    ]
}

#[test]
fn a_token_with_one_wrong_point_is_no_login_and_its_cookie_is_cleared_where_it_was_ours() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let good = gateway.login("kim");
    gateway.get_with("/check", &good).expect(200);
    gateway.get_with("/check", &token::altered(SECRET, &good, &json!({"iss": null}))).expect(200);
    for (what, bad) in bad_tokens(&good) {
        if bad.len() > 20_000 {
            // Larger than a request head may be.
            assert_eq!(gateway.get_with("/check", &bad).status, 431, "{what}");
            continue;
        }
        let answer = gateway.get_with("/check", &bad);
        assert_eq!(answer.status, 401, "{what}");
        let is_cleared = !LEFT_ALONE.contains(&what);
        assert_eq!(answer.clears_the_cookie(), is_cleared, "{what}");
        assert_eq!(gateway.send(&Request::get("/").bearer(&bad)).status, 401, "{what} as a bearer");
        let answer = gateway.send(&Request::get("/page").navigation().cookie(&bad));
        assert_eq!(answer.status, 303, "{what}");
        assert_eq!(answer.clears_the_cookie(), is_cleared, "{what}: after the redirect");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_token_in_the_url_is_never_looked_at() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    for target in [format!("/check?access_token={token}"), format!("/check?token={token}")] {
        gateway.get(&target).expect(401);
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_navigation_is_sent_to_the_login_and_everything_else_gets_401() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).route("path = \"/api\"\napi = true\nupstream = \"app\"").start();
    let request = |method: &str, fields: &[(&str, &str)]| {
        let mut request = Request::new(method, "/a/b?c=d&e");
        for (name, value) in fields {
            request = request.field(name, value);
        }
        gateway.send(&request)
    };
    let navigation = ("Sec-Fetch-Mode", "navigate");
    let html = ("Accept", "text/html,*/*");
    for (method, fields, status) in [
        ("GET", &[navigation][..], 303),
        ("HEAD", &[navigation], 303),
        ("GET", &[html], 303),
        ("POST", &[navigation, html], 401),
        ("GET", &[("Sec-Fetch-Mode", "cors"), html], 401),
        ("GET", &[("Accept", "application/json")], 401),
        ("GET", &[("Accept", "*/*")], 401),
        ("GET", &[], 401),
    ] {
        let answer = request(method, fields);
        assert_eq!(answer.status, status, "{method} {fields:?}");
        if status == 303 {
            assert_eq!(
                answer.field("location").as_deref(),
                Some("/login?rd=%2Fa%2Fb%3Fc%3Dd%26e"),
                "{method} {fields:?}"
            );
        } else {
            assert!(answer.field("www-authenticate").is_some() || method == "HEAD", "{method} {fields:?}");
        }
    }
    gateway.send(&Request::get("/api/x").navigation()).expect(401);
    assert_eq!(upstream.count(), 0);
}

#[test]
fn the_keys_of_other_algorithms_work_and_are_published() {
    for algorithm in ["EdDSA", "ES256"] {
        let upstream = Upstream::plain();
        let builder = Builder::guarding(&upstream);
        let gateway = builder.unset("token.secret_file").set("token.algorithm", &format!("\"{algorithm}\"")).prepare();
        let mut gateway = gateway;
        gateway.command(&["key", "generate", "--algorithm", algorithm]).expect(0);
        gateway.serve();
        let token = gateway.login("kim");
        assert_eq!(token::parts(&token).0["alg"], algorithm);
        gateway.get_with("/", &token).expect(200);
        let keys = gateway.get("/.well-known/jwks.json").expect(200).json();
        let key = &keys["keys"][0];
        assert_eq!(key["kid"], token::parts(&token).0["kid"]);
        assert!(key.get("d").is_none(), "a private key is published");
        // The public key's text is no HS256 secret.
        let (header, claims) = token::parts(&token);
        let mut header = header;
        header["alg"] = json!("HS256");
        let forged = token::sign(key["x"].as_str().unwrap().as_bytes(), &header, &claims);
        gateway.get_with("/check", &forged).expect(401);
        gateway.get_with("/check", &token::sign(key.to_string().as_bytes(), &header, &claims)).expect(401);
    }
}

#[test]
fn an_hs256_secret_is_never_published() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let answer = gateway.get("/.well-known/jwks.json");
    assert!(answer.status == 404 || answer.json()["keys"] == json!([]), "{answer:?}");
}
