//! Tokens: only what we signed is accepted, and only as another library reads it.

use std::cell::OnceCell;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, Validation};
use serde_json::Value;

use crate::auth::keys::KeyRing;
use crate::config::{self, Algorithm, KeyMaterial};
use crate::secret::Secret;

pub(super) const SECRET: &str = "tZ3k8Qm1Vx0bYc7LrW5uNhE2dGs9aJfPo6Ti4KMq";
const NOW: u64 = 1_800_000_000;

thread_local! {
    static RING: OnceCell<KeyRing> = const { OnceCell::new() };
}

/// The first byte says what follows. `t`: a token as it is sent, where `$H`, `$P` and `$S` stand for the parts of a valid
/// one. `s`: a header and, on a second line, a payload, which get a right signature.
pub fn token(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    RING.with(|ring| {
        let ring = ring.get_or_init(ring_of_one_secret);
        match kind {
            b't' => unsigned(ring, text),
            b's' => signed(ring, text),
            _ => {}
        }
    });
}

fn ring_of_one_secret() -> KeyRing {
    let day = 24 * 3600;
    let material = KeyMaterial {
        origin: String::from("the fuzzer"),
        algorithm: Algorithm::Hs256,
        bytes: Secret::new(SECRET.as_bytes().to_vec()),
    };
    let config = config::Token {
        algorithm: Algorithm::Hs256,
        signing_key: Some(material),
        previous_keys: Vec::new(),
        issuer: String::from("doorward"),
        lifetime: Duration::from_secs(7 * day),
        refresh_below: Duration::from_secs(7 * day / 2),
        max_lifetime: Duration::from_secs(30 * day),
        gateway_secret: None,
    };
    KeyRing::load(&config, Path::new("/nonexistent"), NOW).unwrap()
}

/// Whatever comes, in one piece or put together from pieces of a valid token: nothing but that token is accepted.
fn unsigned(ring: &KeyRing, text: &str) {
    let payload = format!(r#"{{"_id":"a1","username":"kim","iat":{NOW},"exp":{}}}"#, NOW + 3600);
    let valid = with_signature(r#"{"alg":"HS256","typ":"JWT"}"#, &payload);
    let parts: Vec<&str> = valid.split('.').collect();
    let sent = text.replace("$H", parts[0]).replace("$P", parts[1]).replace("$S", parts[2]);
    match ring.verify(&sent, NOW) {
        Ok(_) => assert_eq!(sent, valid, "a token that nobody signed was accepted"),
        Err(error) => {
            assert!(sent != valid, "the valid token was refused: {error}");
            assert!(!error.is_signed_by_us(), "{sent:?} is said to be signed by us");
        }
    }
}

/// A right signature over whatever: what is accepted is accepted by the library as well, and says what we make of it.
fn signed(ring: &KeyRing, text: &str) {
    let (header, payload) = text.split_once('\n').unwrap_or((text, ""));
    let sent = with_signature(header, payload);
    let Ok(verified) = ring.verify(&sent, NOW) else {
        assert!(!is_plainly_right(header, payload), "refused: {header} {payload}");
        return;
    };
    let mut validation = Validation::new(jsonwebtoken::Algorithm::HS256);
    // Times are compared below, by the clock of this test.
    (validation.validate_exp, validation.validate_nbf) = (false, false);
    validation.set_required_spec_claims(&["exp"]);
    validation.set_issuer(&["doorward"]);
    let key = DecodingKey::from_secret(SECRET.as_bytes());
    let claims = match jsonwebtoken::decode::<Value>(&sent, &key, &validation) {
        Ok(decoded) => decoded.claims,
        Err(error) => panic!("{error}: {header} {payload}"),
    };
    let header: Value = serde_json::from_str(header).unwrap();
    assert_eq!(header["alg"], "HS256");
    for extension in ["crit", "b64", "zip"] {
        assert!(header.get(extension).is_none(), "{header}");
    }
    let number = |name: &str| claims[name].as_u64().unwrap_or_else(|| panic!("{name} is no number: {payload}"));
    assert!(number("exp") > NOW, "expired: {payload}");
    assert!(number("iat") <= NOW + 30, "from the future: {payload}");
    assert!(claims.get("nbf").is_none_or(|_| number("nbf") <= NOW + 30), "from the future: {payload}");
    assert!(claims.get("aud").is_none(), "somebody else's: {payload}");
    assert!(verified.expires > NOW && verified.expires <= number("exp"), "{payload}");
    assert!(verified.expires <= number("iat") + 30 * 24 * 3600, "lives too long: {payload}");
    let person = &verified.principal;
    for name in ["_id", "sub"] {
        assert!(claims.get(name).is_none_or(|id| *id == *person.id), "another id: {payload}");
    }
    assert!(!person.id.is_empty() && !person.username.is_empty(), "nobody: {payload}");
    let ours = claims.get("iss").is_some_and(|issuer| issuer == "doorward")
        && claims.get("sid").is_some_and(|sid| !sid.is_null());
    assert_eq!(verified.session.is_some(), ours, "{payload}");
    if ours {
        assert_eq!(Value::from(person.groups.clone()), claims["groups"], "{payload}");
        assert_eq!(verified.session.as_ref().map(|session| Value::from(session.as_str())), claims.get("sid").cloned());
    } else {
        assert!(person.groups.is_empty() && person.email.is_empty(), "a foreign token grants groups: {payload}");
    }
    for at in [0, sent.len() / 2, sent.len() - 1] {
        let mut changed = sent.clone();
        changed.replace_range(at..=at, if sent.as_bytes()[at] == b'A' { "B" } else { "A" });
        assert!(ring.verify(&changed, NOW).is_err(), "changed at {at} and accepted: {payload}");
    }
}

/// The plainest foreign token there is, so that not everything may be refused.
fn is_plainly_right(header: &str, payload: &str) -> bool {
    let Ok(Value::Object(claims)) = serde_json::from_str(payload) else { return false };
    let is_word = |value: &Value| {
        value.as_str().is_some_and(|text| {
            (1..=64).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        })
    };
    let within = |name: &str, range: std::ops::Range<u64>| claims[name].as_u64().is_some_and(|at| range.contains(&at));
    header == r#"{"alg":"HS256"}"#
        && claims.len() == 4
        && ["_id", "username", "iat", "exp"].iter().all(|name| claims.contains_key(*name))
        && is_word(&claims["_id"])
        && is_word(&claims["username"])
        && within("iat", NOW - 3600..NOW)
        && within("exp", NOW + 1..NOW + 3600)
        && ["_id", "username", "iat", "exp"].iter().all(|name| payload.matches(&format!("\"{name}\"")).count() == 1)
        && !payload.contains('\\')
}

pub(super) fn with_signature(header: &str, payload: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, message.as_bytes()));
    format!("{message}.{signature}")
}
