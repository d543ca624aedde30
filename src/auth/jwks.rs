//! Reading a centre's public keys (RFC 7517).
//!
//! Only what Doorward signs with counts: Ed25519 (RFC 8037) and P-256. A symmetric key in a public document is nobody's
//! key, and what has no `kid` can't be told from another.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::keys::{Key, KeyRing, name};
use crate::config::{self, Algorithm};

/// More keys than any centre rotates through.
const MAX_KEYS: usize = 64;

/// Why a document gives no keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    #[error("the centre's answer is no set of keys")]
    Unreadable,
    #[error("the centre has no public key of an algorithm that is accepted here")]
    NoKeys,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: String,
    kid: String,
    x: String,
    #[serde(default)]
    y: String,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
}

/// The ring of a verify-only gateway. `only`: the one algorithm that counts; `None`: both that have public keys.
pub fn from_jwks(token: &config::Token, only: Option<Algorithm>, document: &[u8]) -> Result<KeyRing, JwksError> {
    let document: Document = serde_json::from_slice(document).map_err(|_| JwksError::Unreadable)?;
    let mut seen = HashSet::new();
    let keys: Vec<Key> = document
        .keys
        .into_iter()
        .take(MAX_KEYS)
        // A kind of key that is not known here is passed over, as RFC 7517 section 5 wants.
        .filter_map(|value| serde_json::from_value(value).ok())
        .filter_map(key)
        .filter(|key| only.is_none_or(|only| key.algorithm == only) && seen.insert(key.kid.clone()))
        .collect();
    if keys.is_empty() { Err(JwksError::NoKeys) } else { Ok(KeyRing::of_centre(token, keys)) }
}

fn key(jwk: Jwk) -> Option<Key> {
    let coordinate = |text: &str| URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == 32);
    let (algorithm, public) = match (jwk.kty.as_str(), jwk.crv.as_str()) {
        ("OKP", "Ed25519") => (Algorithm::EdDsa, coordinate(&jwk.x)?),
        // An uncompressed point: 4, then 32 bytes each (SEC 1 section 2.3.3).
        ("EC", "P-256") => (Algorithm::Es256, [&[4_u8][..], &coordinate(&jwk.x)?, &coordinate(&jwk.y)?].concat()),
        _ => return None,
    };
    let is_meant = jwk.usage.is_none_or(|usage| usage == "sig") && jwk.alg.is_none_or(|alg| alg == name(algorithm));
    if !is_meant || jwk.kid.is_empty() || jwk.kid.len() > 255 {
        return None;
    }
    Key::public(jwk.kid, algorithm, public)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::auth::keys;
    use crate::auth::testing::{NOW, claims, config, hs256};
    use crate::auth::token::TokenError;
    use crate::clock::Clock;

    /// A centre's ring with a key of each algorithm, and what it publishes.
    fn centre(signs: Algorithm) -> (tempfile::TempDir, KeyRing, Value) {
        let folder = tempfile::tempdir().unwrap();
        for algorithm in [Algorithm::Hs256, Algorithm::EdDsa, Algorithm::Es256] {
            keys::generate(folder.path(), algorithm, &Clock::manual(NOW)).unwrap();
        }
        let ring = KeyRing::load(&config(signs), folder.path(), NOW).unwrap();
        let published = ring.jwks().unwrap();
        (folder, ring, published)
    }

    fn read(document: &Value) -> Result<KeyRing, JwksError> {
        from_jwks(&hs256(), None, document.to_string().as_bytes())
    }

    #[test]
    fn a_gateway_verifies_what_its_centre_signed_and_signs_nothing() {
        for algorithm in [Algorithm::EdDsa, Algorithm::Es256] {
            let (_folder, ring, published) = centre(algorithm);
            let gateway = read(&published).unwrap();
            let token = ring.sign(&claims("kim", NOW)).unwrap();
            assert_eq!(gateway.verify(&token, NOW).unwrap().principal.username, "kim");
            assert!(gateway.sign(&claims("kim", NOW)).is_err());
            let other = if algorithm == Algorithm::EdDsa { Algorithm::Es256 } else { Algorithm::EdDsa };
            let pinned = from_jwks(&hs256(), Some(other), published.to_string().as_bytes()).unwrap();
            assert_eq!(pinned.verify(&token, NOW).unwrap_err(), TokenError::UnknownKey);
        }
    }

    #[test]
    fn a_secret_in_the_document_is_nobodys_key() {
        let (_folder, _, published) = centre(Algorithm::EdDsa);
        let secret = "0123456789abcdef0123456789abcdef";
        let mut document = published.clone();
        let planted = json!({"kty": "oct", "crv": "", "kid": "planted", "alg": "HS256", "x": "",
            "k": URL_SAFE_NO_PAD.encode(secret)});
        document["keys"].as_array_mut().unwrap().push(planted.clone());
        let folder = tempfile::tempdir().unwrap();
        let forger = KeyRing::load(&hs256(), folder.path(), NOW).unwrap();
        let token = forger.sign(&claims("kim", NOW)).unwrap();
        assert!(read(&document).unwrap().verify(&token, NOW).is_err());
        assert_eq!(read(&json!({ "keys": [planted] })).unwrap_err(), JwksError::NoKeys);
    }

    #[test]
    fn what_is_wrong_with_a_key_leaves_only_that_key_out() {
        let (_folder, ring, published) = centre(Algorithm::Es256);
        let token = ring.sign(&claims("kim", NOW)).unwrap();
        let keys = published["keys"].as_array().unwrap();
        let signs = keys.iter().position(|key| key["kty"] == "EC").unwrap();
        for (member, value) in [
            ("kid", Value::Null),
            ("kid", json!("")),
            ("use", json!("enc")),
            ("alg", json!("EdDSA")),
            ("crv", json!("P-384")),
            ("x", json!("AAAA")),
            // Not on the curve.
            ("x", json!(URL_SAFE_NO_PAD.encode([7_u8; 32]))),
            ("y", Value::Null),
        ] {
            let mut document = published.clone();
            document["keys"][signs][member] = value.clone();
            let gateway = read(&document).unwrap();
            assert!(gateway.verify(&token, NOW).is_err(), "{member} = {value}");
        }
        for nothing in [json!({}), json!([]), json!({"keys": {}}), json!("keys")] {
            assert_eq!(read(&nothing).unwrap_err(), JwksError::Unreadable, "{nothing}");
        }
        assert_eq!(read(&json!({"keys": []})).unwrap_err(), JwksError::NoKeys);
    }

    proptest! {
        #[test]
        fn hostile_documents_give_no_key(bytes in any::<Vec<u8>>()) {
            prop_assert!(from_jwks(&hs256(), None, &bytes).is_err());
        }
    }
}
