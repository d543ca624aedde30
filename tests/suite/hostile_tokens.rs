//! Tokens that nobody of ours made, tokens for something else, and cookies that several readers read differently.
//!
//! What is wrong in one point and signed with our own secret stands in `check`; here are the forgeries, the disguises
//! and the places.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::support::gateway::write_private;
use crate::support::token::{self, DAY};
use crate::support::{Builder, Connection, Gateway, PASSWORD, Request, SECRET, Upstream, cases};

/// Runs the jobs of `tests/peers/forge.js`.
fn forge(jobs: &Value) -> Vec<Value> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut command = Command::new("node");
    command.env("NODE_PATH", tests.join(".cache/npm/node_modules")).arg(tests.join("peers/forge.js"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(jobs.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A connection on which tokens are shown, and how many were.
struct Shown<'a> {
    gateway: &'a Gateway,
    connection: Mutex<Connection>,
    count: usize,
}

impl<'a> Shown<'a> {
    fn to(gateway: &'a Gateway) -> Self {
        Self { gateway, connection: Mutex::new(gateway.connect()), count: 0 }
    }

    fn status(&self, request: &Request) -> u16 {
        let mut connection = self.connection.lock().unwrap();
        let answer = connection.try_send(request).unwrap_or_else(|_| {
            *connection = self.gateway.connect();
            connection.send(request)
        });
        let closes = answer.all("connection").iter().any(|line| line.contains("close"));
        if closes {
            *connection = self.gateway.connect();
        }
        answer.status
    }

    /// Fails unless the token is no login, neither as a cookie nor as a bearer token.
    #[track_caller]
    fn refused(&mut self, what: &str, token: &str) {
        self.count += 1;
        for request in [Request::get("/check").cookie(token), Request::get("/page").bearer(token)] {
            let status = self.status(&request);
            let too_large = token.len() > 8 * 1024 && status == 431;
            assert!(status == 401 || too_large, "{what}: {status} for {token:.300}");
        }
    }

    #[track_caller]
    fn accepted(&self, what: &str, token: &str) {
        for request in [Request::get("/check").cookie(token), Request::get("/check").bearer(token)] {
            assert_eq!(self.status(&request), 200, "{what}: {token}");
        }
    }
}

fn with_secret(secret: &[u8], header: &Value, claims: &Value) -> String {
    token::sign(secret, header, claims)
}

/// A gateway that signs with this private key.
fn signing_with(upstream: &Upstream, algorithm: &str, private_key: &str) -> Gateway {
    let builder = Builder::guarding(upstream);
    let file = builder.folder().join("private.pem");
    write_private(&file, private_key.as_bytes());
    builder
        .unset("token.secret_file")
        .set("token.algorithm", &format!("\"{algorithm}\""))
        .set("token.private_key_file", &crate::support::gateway::quoted(&file))
        .start()
}

#[test]
fn another_implementation_signs_what_we_accept_and_accepts_what_we_sign() {
    let keys = forge(&json!([{"do": "key", "type": "ed25519"}, {"do": "key", "type": "p256"}]));
    for (algorithm, key) in [("EdDSA", &keys[0]), ("ES256", &keys[1])] {
        let upstream = Upstream::plain();
        let gateway = signing_with(&upstream, algorithm, key["private"].as_str().unwrap());
        let ours = gateway.login("kim");
        let (header, claims) = token::parts(&ours);
        let jwk = gateway.get("/.well-known/jwks.json").expect(200).json()["keys"][0].clone();
        assert_eq!(jwk["x"], key["jwk"]["x"], "the published key is another one");
        let mut without_kid = header.clone();
        token::merge(&mut without_kid, &json!({"kid": null}));
        let sign = |header: &Value| json!({"do": "sign", "alg": algorithm, "key": key["private"], "header": header, "claims": claims});
        let done = forge(&json!([
            {"do": "verify", "token": ours, "jwk": jwk},
            sign(&header),
            sign(&without_kid),
        ]));
        assert_eq!(done[0]["valid"], true, "{algorithm}: {}", done[0]);
        assert_eq!(done[0]["claims"]["username"], "kim");
        let shown = Shown::to(&gateway);
        shown.accepted(algorithm, done[1]["token"].as_str().unwrap());
        shown.accepted(algorithm, done[2]["token"].as_str().unwrap());
    }
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let ours = gateway.login("kim");
    let (header, claims) = token::parts(&ours);
    let secret = STANDARD.encode(SECRET);
    let done = forge(&json!([
        {"do": "verify", "token": ours, "secret": secret},
        {"do": "sign", "alg": "HS256", "key": secret, "header": header, "claims": claims},
        {"do": "sign", "alg": "HS256", "key": secret, "header": {"alg": "HS256"}, "claims": claims},
    ]));
    assert_eq!(done[0]["valid"], true, "{}", done[0]);
    for signed in &done[1..] {
        Shown::to(&gateway).accepted("HS256", signed["token"].as_str().unwrap());
    }
}

#[test]
fn no_form_of_the_public_key_is_a_secret_and_no_other_key_or_algorithm_signs_for_us() {
    let keys = forge(&json!([
        {"do": "key", "type": "ed25519"},
        {"do": "key", "type": "p256"},
        {"do": "key", "type": "rsa"},
        {"do": "key", "type": "ed25519"},
        {"do": "key", "type": "p256"},
    ]));
    let private = |number: usize| keys[number]["private"].as_str().unwrap();
    let mut count = 0;
    for (algorithm, own) in [("EdDSA", 0), ("ES256", 1)] {
        let upstream = Upstream::plain();
        let gateway = signing_with(&upstream, algorithm, private(own));
        let ours = gateway.login("kim");
        let (header, claims) = token::parts(&ours);
        let mut shown = Shown::to(&gateway);
        shown.accepted(algorithm, &ours);
        // The classic confusion: a verifier that lets the token choose takes the public key for an HMAC secret.
        let mut jobs = Vec::new();
        for number in [0, 1, 2] {
            for form in keys[number]["forms"].as_array().unwrap() {
                for alg in ["HS256", "HS384", "HS512"] {
                    for kid in [header["kid"].clone(), Value::Null, form[0].clone()] {
                        for claimed in [alg, algorithm, "RS256"] {
                            let mut header = json!({"alg": claimed, "typ": "JWT", "kid": kid});
                            token::merge(&mut header, &json!({"kid": kid}));
                            jobs.push(
                                json!({"do": "sign", "alg": alg, "key": form[1], "header": header, "claims": claims}),
                            );
                        }
                    }
                }
            }
        }
        // The right algorithm with another's key, our key's name on another key, another algorithm with our key.
        for (alg, number) in
            [("EdDSA", 0), ("ES256", 1), ("ES256 in DER", 1), ("RS256", 2), ("PS256", 2), ("EdDSA", 3), ("ES256", 4)]
        {
            for claimed in ["EdDSA", "ES256", "HS256", "RS256", "PS256", "ES256K", "Ed25519", "none"] {
                for kid in [header["kid"].clone(), Value::Null] {
                    if number == own && claimed == algorithm && alg == algorithm {
                        continue;
                    }
                    let mut header = json!({"alg": claimed, "typ": "JWT"});
                    token::merge(&mut header, &json!({"kid": kid}));
                    jobs.push(
                        json!({"do": "sign", "alg": alg, "key": private(number), "header": header, "claims": claims}),
                    );
                }
            }
        }
        for (job, forged) in jobs.iter().zip(forge(&Value::from(jobs.clone()))) {
            let what = format!("{} signed as {}, under {algorithm}", job["header"], job["alg"]);
            shown.refused(&what, forged["token"].as_str().unwrap());
        }
        // Our own signature under every other header is no signature.
        let (_, rest) = ours.split_once('.').unwrap();
        for alg in ["none", "HS256", "HS384", "EdDSA", "ES256", "RS256", "ES384", "ES256K", "Ed25519", ""] {
            let header = json!({"alg": alg, "typ": "JWT"}).to_string();
            let moved = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header));
            shown.refused(alg, &moved);
        }
        assert_eq!(upstream.count(), 0);
        count += shown.count;
    }
    cases::tried("tokens signed with what is no key of ours", count);
}

#[test]
fn none_is_no_algorithm_in_any_spelling() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let ours = gateway.login("kim");
    let (_, claims) = token::parts(&ours);
    let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
    let signature = ours.rsplit('.').next().unwrap();
    let mut shown = Shown::to(&gateway);
    let mut algorithms: Vec<Value> = (0..16_u8)
        .map(|cases| {
            let letter =
                |(at, letter): (usize, char)| if cases >> at & 1 == 1 { letter.to_ascii_uppercase() } else { letter };
            Value::from("none".chars().enumerate().map(letter).collect::<String>())
        })
        .collect();
    algorithms.extend([
        json!(""),
        json!(" none"),
        json!("none "),
        json!("none\u{0}"),
        json!("n\u{f6}ne"),
        json!("ｎｏｎｅ"),
        json!("null"),
        json!(null),
        json!(true),
        json!(0),
        json!([]),
        json!(["none"]),
        json!({"none": 1}),
        json!("HS256\u{0}"),
        json!("HS256 "),
        json!("hs256"),
        json!("HS256none"),
        json!("none,HS256"),
        json!("HS1"),
        json!("MD5"),
        json!("dir"),
        json!("A256KW"),
        json!("RSA-OAEP"),
        json!("HMACSHA256"),
        json!("http://www.w3.org/2001/04/xmldsig-more#hmac-sha256"),
    ]);
    for algorithm in &algorithms {
        for header in [json!({"alg": algorithm}), json!({"alg": algorithm, "typ": "JWT"})] {
            let head = URL_SAFE_NO_PAD.encode(header.to_string());
            let wrongly_signed = token::sign(SECRET, &header, &token::claims(&ours));
            for forged in [
                format!("{head}.{claims}"),
                format!("{head}.{claims}."),
                format!("{head}.{claims}.{signature}"),
                format!("{head}.{claims}.AA"),
                format!("{head}.{claims}.{}", URL_SAFE_NO_PAD.encode("null")),
                wrongly_signed,
            ] {
                shown.refused(&header.to_string(), &forged);
            }
        }
    }
    assert_eq!(upstream.count(), 0);
    cases::tried("spellings of no algorithm", shown.count);
}

#[test]
fn nothing_in_a_header_leads_anywhere() {
    // A server that would serve a key, and a socket that would notice a look-up.
    let canary = Upstream::plain();
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let ours = gateway.login("kim");
    let (header, claims) = token::parts(&ours);
    let attacker = b"the attacker's own secret of more than 32 bytes";
    let jwk = json!({"kty": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(attacker)});
    let mut shown = Shown::to(&gateway);
    let url = |path: &str| format!("{}{path}", canary.url);
    let file = gateway.folder().join("attacker");
    write_private(&file, attacker);
    let points: Vec<(&str, Value)> = vec![
        ("jku", json!({"jku": url("/jwks.json")})),
        ("jku without kid", json!({"jku": url("/jwks.json"), "kid": null})),
        ("x5u", json!({"x5u": url("/cert.pem")})),
        ("jwk", json!({"jwk": jwk})),
        ("jwk as text", json!({"jwk": jwk.to_string(), "kid": null})),
        ("x5c", json!({"x5c": [STANDARD.encode(attacker)]})),
        ("x5t", json!({"x5t": URL_SAFE_NO_PAD.encode(attacker), "x5t#S256": URL_SAFE_NO_PAD.encode(attacker)})),
        ("kid is a URL", json!({"kid": url("/key")})),
        ("kid is a file", json!({"kid": file.to_str().unwrap()})),
        ("kid is a file URL", json!({"kid": format!("file://{}", file.display())})),
        ("kid climbs", json!({"kid": "../../../../../../dev/null"})),
        ("kid is /dev/null", json!({"kid": "/dev/null"})),
        ("kid is SQL", json!({"kid": "x' UNION SELECT 'secret"})),
        ("kid is SQL with OR", json!({"kid": "' or 1=1 --"})),
        ("kid is a command", json!({"kid": "$(id)|`id`"})),
        ("kid is empty", json!({"kid": ""})),
        ("kid with a NUL", json!({"kid": format!("{}\u{0}", header["kid"].as_str().unwrap())})),
        ("kid in capitals", json!({"kid": header["kid"].as_str().unwrap().to_uppercase() + "x"})),
        ("kid is long", json!({"kid": "k".repeat(4_000)})),
        ("kid is an array", json!({"kid": [header["kid"]]})),
        ("kid is a number", json!({"kid": 0})),
        ("kid is an object", json!({"kid": {"kid": header["kid"]}})),
    ];
    for (what, change) in &points {
        let mut with = header.clone();
        token::merge(&mut with, change);
        shown.refused(what, &with_secret(attacker, &with, &claims));
        shown.refused(what, &with_secret(b"", &with, &claims));
        shown.refused(what, &with_secret(&[0], &with, &claims));
        if change.get("kid").is_some_and(|kid| !kid.is_null()) {
            shown.refused(what, &with_secret(SECRET, &with, &claims));
        } else {
            // Beside a right signature such a member means nothing.
            shown.accepted(what, &with_secret(SECRET, &with, &claims));
        }
    }
    // What changes the meaning of the rest is refused even beside a right signature.
    for change in [
        json!({"crit": ["exp"]}),
        json!({"crit": []}),
        json!({"crit": "x"}),
        json!({"crit": {}}),
        json!({"crit": ["b64"], "b64": false}),
        json!({"b64": false}),
        json!({"b64": true}),
        json!({"zip": "DEF"}),
        json!({"zip": ""}),
        json!({"cty": "JWT"}),
        json!({"cty": ""}),
        json!({"enc": "A256GCM", "zip": "DEF"}),
        json!({"typ": "at+jwt"}),
        json!({"typ": "JWS"}),
        json!({"typ": "JOSE+JSON"}),
        json!({"typ": "secevent+jwt"}),
        json!({"typ": "logout+jwt"}),
        json!({"typ": "dpop+jwt"}),
        json!({"typ": "kb+jwt"}),
        json!({"typ": ""}),
        json!({"typ": ["JWT"]}),
        json!({"typ": 1}),
        json!({"typ": "application/JWT"}),
    ] {
        let mut with = header.clone();
        token::merge(&mut with, &change);
        shown.refused(&change.to_string(), &with_secret(SECRET, &with, &claims));
        // Also where it comes as null.
        for name in ["crit", "b64", "zip", "cty"] {
            let mut with = header.clone();
            with[name] = Value::Null;
            shown.refused(name, &with_secret(SECRET, &with, &claims));
        }
    }
    assert_eq!((canary.connections(), canary.count()), (0, 0), "somebody followed a URL in a token");
    assert_eq!(upstream.count(), 0);
    cases::tried("headers that point somewhere", shown.count);
}

#[test]
fn every_odd_time_is_refused() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let ours = gateway.login("kim");
    let (header, claims) = token::parts(&ours);
    let header = header.to_string();
    let now = token::now();
    let mut shown = Shown::to(&gateway);
    // As text, because a JSON library would not write half of them.
    let raw = |name: &str, value: &str| {
        let mut claims = claims.clone();
        token::merge(&mut claims, &json!({name: null}));
        let rest = claims.to_string();
        let claims = format!("{{\"{name}\":{value},{}", &rest[1..]);
        token::sign_bytes(SECRET, header.as_bytes(), claims.as_bytes())
    };
    let hour = (now + 3600).to_string();
    shown.accepted("the control", &raw("exp", &hour));
    let values = [
        "null",
        "true",
        "\"\"",
        "[]",
        "{}",
        "-1",
        "-0",
        "0",
        "1",
        "1e300",
        "-1e300",
        "1e1000",
        "1e9",
        "0.1",
        "NaN",
        "Infinity",
        "18446744073709551615",
        "18446744073709551616",
        "9223372036854775807",
        "9223372036854775808",
        "253402300800",
        "4294967296000",
        "1e-1",
        "0x7fffffff",
        "01",
        "+1",
    ];
    for name in ["exp", "iat", "nbf", "auth_time", "seq", "__v"] {
        let mut odd: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        odd.extend([
            format!("\"{hour}\""),
            format!("[{hour}]"),
            format!("{hour}.0"),
            format!("{hour}.5"),
            format!("{hour}e0"),
            format!("-{hour}"),
            format!("0{hour}"),
            format!("{hour}000"),
            format!("{{\"$numberLong\":\"{hour}\"}}"),
        ]);
        for value in odd {
            // What is a whole number in range is another matter: the log and the version decide on it.
            let harmless = match name {
                "nbf" | "seq" | "__v" => matches!(value.as_str(), "0" | "1"),
                _ => false,
            };
            if !harmless {
                shown.refused(&format!("{name} = {value}"), &raw(name, &value));
            }
        }
    }
    // A time that another claim of the same name contradicts.
    for (first, second) in [("0", hour.as_str()), (hour.as_str(), "0"), (hour.as_str(), hour.as_str())] {
        let rest = claims.to_string();
        for doubled in [
            format!("{{\"exp\":{first},\"exp\":{second},{}", &rest[1..]),
            format!("{{\"\\u0065xp\":{first},{}", &rest[1..]),
            format!("{},\"exp\":{second}}}", &rest[..rest.len() - 1]),
        ] {
            shown.refused(&doubled, &token::sign_bytes(SECRET, header.as_bytes(), doubled.as_bytes()));
        }
    }
    // No tolerance for `exp`, half a minute for the others.
    for (changes, accepted) in [
        (json!({"exp": now - 1, "iat": now - DAY, "auth_time": now - DAY}), false),
        (json!({"exp": now - 20, "iat": now - DAY, "auth_time": now - DAY}), false),
        (json!({"iat": now + 20}), true),
        (json!({"iat": now + 120, "exp": now + DAY}), false),
        (json!({"nbf": now + 20}), true),
        (json!({"nbf": now + 120}), false),
        (json!({"auth_time": now - 31 * DAY, "iat": now - DAY}), false),
    ] {
        let changed = token::altered(SECRET, &ours, &changes);
        if accepted {
            shown.accepted(&changes.to_string(), &changed);
        } else {
            shown.refused(&changes.to_string(), &changed);
        }
    }
    assert_eq!(upstream.count(), 0);
    cases::tried("odd times", shown.count);
}

#[test]
fn a_token_has_one_spelling_and_three_parts() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let ours = gateway.login("kim");
    let mut shown = Shown::to(&gateway);
    shown.accepted("the control", &ours);
    let parts: Vec<&str> = ours.split('.').collect();
    let with = |at: usize, part: &str| {
        let mut parts = parts.clone();
        parts[at] = part;
        parts.join(".")
    };
    for (at, part) in parts.iter().enumerate() {
        let bytes = URL_SAFE_NO_PAD.decode(part).unwrap();
        let standard = STANDARD.encode(&bytes);
        let mut twins = vec![
            format!("{part}="),
            format!("{part}=="),
            format!("={part}"),
            format!("{part}A"),
            format!("A{part}"),
            part[..part.len() - 1].to_owned(),
            part[1..].to_owned(),
            String::new(),
            format!("{part}%3D"),
            format!("{part}.{part}"),
            format!("{}%2e{}", &part[..2], &part[2..]),
            part.to_uppercase(),
            part.to_lowercase(),
            part.chars().rev().collect(),
            format!("{part}{part}"),
        ];
        if standard.contains(['+', '/', '=']) {
            twins.push(standard);
        }
        // The bits of the last character that stand for nothing.
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let last = alphabet.find(part.chars().last().unwrap()).unwrap();
        for flipped in (1..64).map(|bits| last ^ bits) {
            twins.push(format!("{}{}", &part[..part.len() - 1], &alphabet[flipped..=flipped]));
        }
        for twin in twins.iter().filter(|twin| twin != part) {
            shown.refused(&format!("part {at} as {twin:.40}"), &with(at, twin));
        }
    }
    let [header, claims, signature] = [parts[0], parts[1], parts[2]];
    for other in [
        header.to_owned(),
        format!("{header}.{claims}"),
        format!("{claims}.{signature}"),
        format!("{header}..{signature}"),
        format!(".{claims}.{signature}"),
        format!("{ours}.{signature}"),
        format!("{ours}.{claims}.{signature}"),
        format!("{header}.{claims}.{signature}.{claims}.{signature}"),
        format!(".{ours}"),
        format!("{ours}."),
        format!("{ours}.."),
        format!("..{ours}"),
        ".".repeat(4000),
        ours.replace('.', ".."),
        ours.replace('.', ":"),
        ours.replace('.', "%2E"),
        format!("Bearer {ours}").replace(' ', "+"),
        format!("{ours}{ours}"),
        format!("{signature}.{claims}.{header}"),
        "A".repeat(30_000),
    ] {
        shown.refused(&format!("{other:.60}"), &other);
    }
    assert_eq!(upstream.count(), 0);
    cases::tried("spellings of a good token", shown.count);
}

#[test]
fn a_remembered_token_vouches_for_nothing_but_itself() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("server.workers", "1").start();
    let ours = gateway.login("kim");
    let mut shown = Shown::to(&gateway);
    // The one worker remembers it now.
    shown.accepted("the control", &ours);
    let bytes = ours.as_bytes();
    for at in 0..bytes.len() {
        for bit in [0x01, 0x20] {
            let mut changed = bytes.to_vec();
            changed[at] ^= bit;
            if let Ok(changed) = String::from_utf8(changed)
                && changed.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b';' | b',' | b'"' | b'\\'))
            {
                shown.refused(&format!("byte {at}"), &changed);
            }
        }
    }
    // The same last bytes, by which it is looked up, behind other claims.
    let (header, mut claims) = token::parts(&ours);
    claims["username"] = json!("root");
    let signature = ours.rsplit('.').next().unwrap();
    let forged = format!(
        "{}.{}.{signature}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    shown.refused("another payload with a remembered signature", &forged);
    shown.accepted("the control", &ours);
    cases::tried("tokens that differ in one bit from a remembered one", shown.count);
}

#[test]
fn what_was_made_for_another_purpose_is_no_login() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let ours = gateway.login("kim");
    let (header, claims) = token::parts(&ours);
    let mut shown = Shown::to(&gateway);
    // Every value that the gateway itself gives out or keeps and that is no access token.
    let export = gateway.command(&["user", "export"]).expect(0).json();
    let session = gateway.command(&["session", "list", "--json"]).expect(0).json();
    for value in [
        &header["kid"],
        &claims["sid"],
        &claims["_id"],
        &export[0]["password_hash"],
        &session[0]["sid"],
        &claims["username"],
    ] {
        shown.refused("a value of ours", value.as_str().unwrap());
    }
    shown.refused("a password", &PASSWORD.replace(' ', "+"));
    shown.refused("the secret", &URL_SAFE_NO_PAD.encode(SECRET));
    // Tokens of other kinds, signed with the very same secret, as another program that shares it would make them.
    for changes in [
        json!({"aud": "reset-password"}),
        json!({"aud": ["doorward"]}),
        json!({"aud": "doorward"}),
        json!({"aud": null}),
        json!({"iss": "doorward-csrf"}),
        json!({"iss": "Doorward"}),
        json!({"iss": "doorward/"}),
        json!({"iss": ""}),
        json!({"iss": 1}),
        json!({"iss": ["doorward", "x"]}),
        json!({"sub": "x"}),
        json!({"sub": 1}),
        json!({"_id": "x"}),
        json!({"sid": ""}),
        json!({"sid": 1}),
        json!({"sid": ["a"]}),
        json!({"sid": "a b"}),
        json!({"groups": "admin"}),
        json!({"groups": [1]}),
        json!({"groups": {"admin": true}}),
        json!({"groups": [["admin"]]}),
        json!({"username": "k im"}),
        json!({"username": ["kim"]}),
        json!({"username": "kim\u{200b}"}),
        json!({"username": "k".repeat(65)}),
        json!({"email": 1}),
        json!({"name": ["x"]}),
        json!({"__v": "0"}),
        json!({"__v": -1}),
        json!({"seq": -1}),
    ] {
        let mut changed = claims.clone();
        for (name, value) in changes.as_object().unwrap() {
            changed[name] = value.clone();
        }
        shown.refused(&changes.to_string(), &with_secret(SECRET, &header, &changed));
    }
    // And the reverse: an access token is no password and no form field that proves anything.
    gateway.try_login("kim", &ours).expect(401);
    for target in
        [format!("/check?access_token={ours}"), format!("/page?token={ours}"), format!("/check;access_token={ours}")]
    {
        let status = shown.status(&Request::get(&target));
        assert!(matches!(status, 400 | 401), "{target:.40}: {status}");
    }
    for request in [
        Request::post("/page").form(&[("access_token", &ours)]),
        Request::post("/page").json(&json!({"access_token": ours})),
        Request::get("/page").field("X-Access-Token", &ours),
        Request::get("/page").field("X-Auth-Token", &ours),
        Request::get("/page").field("Authorization", &ours),
        Request::get("/page").field("Authorization", &format!("JWT {ours}")),
        Request::get("/page").field("Authorization", &format!("Token {ours}")),
        Request::get("/page").field("Authorization", &format!("Basic {}", STANDARD.encode(format!("kim:{PASSWORD}")))),
        Request::get("/page").field("Authorization", &format!("Basic {}", STANDARD.encode(format!("kim:{ours}")))),
        Request::get("/page").field("Proxy-Authorization", &format!("Bearer {ours}")),
        Request::get("/page").field("Sec-WebSocket-Protocol", &ours),
        Request::get("/page").field("X-Forwarded-Access-Token", &ours),
    ] {
        assert_eq!(gateway.send(&request).status, 401, "{:?}", request.fields.last().map(|(name, _)| name));
    }
    assert_eq!(upstream.count(), 0);
    cases::tried("tokens of other kinds", shown.count);
}

#[test]
fn the_signing_key_signs_access_tokens_and_nothing_else() {
    // As long as only one kind of token is signed, none can be taken for another. A second use of the key would need
    // another `typ`, and its cases here.
    let signs = |source: &str| source.matches("ring.sign(").count() + source.matches("self.signing").count();
    let mut found = Vec::new();
    for (path, source) in super::security_table::sources() {
        let code = super::security_table::without_tests(&source);
        // The benches' own line signs a token for itself; it is no part of the program.
        let is_test = path.ends_with("_tests.rs") || path.ends_with("testing.rs") || path == "src/measure.rs";
        if path.starts_with("src/") && !is_test && signs(code) > 0 {
            found.push(path);
        }
    }
    found.sort();
    assert_eq!(found, ["src/auth/keys.rs", "src/auth/session.rs"], "who else signs?");
}

#[test]
fn of_several_cookies_only_one_person_counts_in_every_order_and_place() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).user("lee", &[]).start();
    let (kim, lee) = (gateway.login("kim"), gateway.login("lee"));
    let forged = with_secret(b"another secret of more than 32 bytes!", &json!({"alg": "HS256"}), &token::claims(&kim));
    let expired = token::altered(
        SECRET,
        &lee,
        &json!({"exp": token::now() - 1, "iat": token::now() - DAY, "auth_time": token::now() - DAY}),
    );
    let values = [kim.as_str(), lee.as_str(), &forged, &expired, "", "deleted"];
    let shown = Shown::to(&gateway);
    let mut count = 0;
    // Every three of them, in one line, in three, and on both sides of other cookies.
    for first in 0..values.len() {
        for second in 0..values.len() {
            for third in 0..values.len() {
                let picked = [first, second, third];
                let people = [0, 1].iter().filter(|person| picked.contains(person)).count();
                let expected = if people == 1 { 200 } else { 401 };
                let crumbs: Vec<String> = picked.iter().map(|at| format!("access_token={}", values[*at])).collect();
                for request in [
                    Request::get("/check").field("Cookie", &crumbs.join("; ")),
                    Request::get("/check").field("Cookie", &format!("a=1; {}; b=2", crumbs.join(";c=3;"))),
                    crumbs.iter().fold(Request::get("/check"), |request, crumb| request.field("Cookie", crumb)),
                    crumbs.iter().fold(Request::get("/check"), |request, crumb| {
                        request.field("cookie", &format!("x=1; {crumb}; y=2"))
                    }),
                ] {
                    count += 1;
                    assert_eq!(shown.status(&request), expected, "{picked:?} {} lines", request.fields.len());
                }
            }
        }
    }
    // A cookie and a bearer token too.
    for (cookie, bearer, expected) in
        [(&kim, &kim, 200), (&kim, &lee, 401), (&lee, &kim, 401), (&forged, &kim, 200), (&kim, &forged, 200)]
    {
        count += 1;
        assert_eq!(shown.status(&Request::get("/check").cookie(cookie).bearer(bearer)), expected);
    }
    // A heap of cookies is nobody, wherever the good one stands: a flood tossed over a sibling host logs out at worst.
    for at in [0, 1, 40] {
        let mut crumbs = vec![String::from("access_token=x"); 40];
        crumbs.insert(at, format!("access_token={kim}"));
        count += 1;
        assert_eq!(shown.status(&Request::get("/check").field("Cookie", &crumbs.join("; "))), 401);
    }
    cases::tried("arrangements of several cookies", count);
}

#[test]
fn a_quoted_or_enclosed_token_is_no_login_and_reaches_no_backend() {
    let upstream = Upstream::plain();
    let gateway =
        Builder::guarding(&upstream).route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"").start();
    let token = gateway.login("kim");
    let shown = Shown::to(&gateway);
    let mut count = 0;
    for cookie in [
        format!("access_token=\"{token}\""),
        format!("access_token= {token}x"),
        format!("access_token={token}\""),
        format!("access_token=\"{token}"),
        format!("a=\"x; access_token={token}; y\"; b=1"),
        format!("$Version=1; a=\"x; access_token={token}; y\""),
        format!("a=\"; access_token={token}; b=\"\""),
        format!("access_token=\\{token}"),
        format!("access_token={}", token.replace('.', "%2e")),
        format!("access_token={token},x"),
        format!("access_token[]={token}"),
        format!("access_token[0]={token}"),
        format!("access.token={token}"),
        format!("access token={token}"),
        format!("access+token={token}"),
        format!("access%5Ftoken={token}"),
        format!("ACCESS_TOKEN={token}"),
        format!("__Host-access_token={token}"),
        format!("__Secure-access_token={token}"),
        format!(" =access_token={token}"),
        format!("==access_token={token}"),
        format!("a,access_token={token}"),
        format!("a:access_token={token}"),
        format!("a&access_token={token}"),
        format!("access_token:{token}"),
        format!("access_token;={token}"),
        format!("access_token=;{token}"),
        format!("\u{a0}access_token={token}"),
        format!("access_token\u{a0}={token}"),
        format!("\u{2003}access_token={token}"),
    ] {
        count += 1;
        let status = shown.status(&Request::get("/check").field("Cookie", &cookie));
        assert!(matches!(status, 400 | 401), "{cookie:.60}: {status}");
    }
    // Whoever reads those cookies in his own way must not find the token either.
    let readers_see_it = |cookie: &str| cookie.contains(&token);
    for cookie in [
        format!("access_token=\"{token}\""),
        format!("a=\"x; access_token={token}; y\"; b=1"),
        format!("$Version=1; a=\"x; access_token={token}; y\""),
        format!("access.token={token}"),
        format!("access token={token}"),
        format!("access%5Ftoken={token}"),
        format!("==access_token={token}"),
        format!("a=1,access_token={token}"),
        format!("\u{a0}access_token={token}"),
    ] {
        count += 1;
        gateway.send(&Request::get("/open").field("Cookie", &cookie)).expect(200);
        let seen = upstream.last().head.all("cookie").join("; ");
        assert!(!readers_see_it(&seen), "{cookie:.60} became {seen:.60}");
    }
    cases::tried("cookies that some reader reads otherwise", count);
}

#[test]
fn a_token_that_no_browser_would_keep_is_an_error_that_says_so_and_no_cookie() {
    let upstream = Upstream::plain();
    let letters = || "abcdefghijklmnopqrstuvwxyz".chars();
    let many: Vec<String> =
        letters().flat_map(|one| letters().map(move |other| format!("{one}{other}"))).take(660).collect();
    let account = json!({"username": "busy", "password_hash": crate::support::gateway::hash(PASSWORD), "groups": many});
    let gateway = Builder::guarding(&upstream).user_with(&account).start();
    let answer = gateway.try_login("busy", PASSWORD).expect(500);
    assert_eq!(
        answer.all("set-cookie"),
        Vec::<String>::new(),
        "a browser would drop it silently, and ask for a login again"
    );
    assert_eq!(answer.json()["code"], "token_too_large");
    let form = [("username", "busy"), ("password", PASSWORD)];
    let answer = gateway.send(&Request::post("/login").form(&form)).expect(500);
    assert_eq!(answer.all("set-cookie"), Vec::<String>::new());
    assert_eq!(gateway.command(&["session", "list", "busy", "--json"]).expect(0).json(), json!([]));
    gateway.command(&["user", "set-groups", "busy", "staff"]).expect(0);
    let token = gateway.login("busy");
    assert!("access_token=".len() + token.len() <= 4096);
}
