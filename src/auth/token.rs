//! The token: its claims (RFC 7519), and everything that can be wrong with one.
//!
//! - Nothing of a token is believed before its signature verified, except `alg` and `kid`, which only choose a key.
//! - Sizes and nesting are bounded before anything is parsed, and nothing in a token leads to I/O.
//! - All rules about time are here and take `now`; no library's clock or leeway takes part.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::Verified;
use super::revocation::key_of;
use crate::config::Algorithm;
use crate::policy::Principal;
use crate::store::{AccountId, SessionId, Username};

/// No token longer than this is looked at, in bytes. Browsers send cookies of up to 4,096.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// How far a foreign issuer's clock may be ahead of ours for `iat` and `nbf`, in seconds. `exp` has no tolerance.
pub const CLOCK_SKEW: u64 = 30;

/// Arrays and objects within each other; our own tokens need two.
const MAX_DEPTH: usize = 16;

/// The last second of the year 9999: whatever is later is no date but an attempt to overflow something.
const LAST_DATE: u64 = 253_402_300_799;

/// What one of our tokens says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    #[serde(rename = "_id")]
    pub id: String,
    pub username: String,
    pub groups: Vec<String>,
    /// Left out where the account has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub email: String,
    /// The display name, under the name that OpenID Connect gives it. Left out where the account has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub sid: String,
    #[serde(rename = "__v")]
    pub version: u64,
    pub auth_time: u64,
    pub seq: u64,
    pub iat: u64,
    pub exp: u64,
}

/// Why a token is no login. `token inspect` prints it; a client never sees more than "not logged in".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("it is not a signed JWT: {0}")]
    Malformed(&'static str),
    #[error("no key of ours made it")]
    UnknownKey,
    #[error("the signature is wrong")]
    Signature,
    #[error("its algorithm is not the key's")]
    Algorithm,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYet,
    #[error("a claim is missing or wrong: {0}")]
    Claim(&'static str),
}

impl TokenError {
    /// Whether the token says that it was made by, or for, somebody else, though a key of ours fits.
    #[must_use]
    pub fn is_for_another(&self) -> bool {
        *self == Self::AUDIENCE || *self == Self::ISSUER
    }

    const AUDIENCE: Self = Self::Claim("aud: it is for somebody else");
    const ISSUER: Self = Self::Claim("iss: it names another issuer than token.issuer");

    /// Whether a key of ours signed the token all the same.
    #[must_use]
    pub const fn is_signed_by_us(&self) -> bool {
        matches!(self, Self::Expired | Self::NotYet | Self::Claim(_))
    }
}

/// What verification has to know besides the keys.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) issuer: String,
    /// Zero: no limit.
    pub(super) max_lifetime: Duration,
    /// See [`crate::config::Token::horizon`].
    pub(super) horizon: Duration,
}

/// A token taken apart, its signature not yet checked.
pub(super) struct Unverified<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    /// What was signed: header and payload with the dot between them (RFC 7515 section 5.2).
    pub(super) message: &'a [u8],
    /// Base64url without padding, canonical.
    pub(super) signature: &'a str,
    payload: &'a str,
}

impl<'a> Unverified<'a> {
    /// Reads the outer form and the header of a compact JWS (RFC 7515 section 7.1).
    pub(super) fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed("it is too long"));
        }
        let not_three = TokenError::Malformed("it has not three parts");
        let (message, signature) = token.rsplit_once('.').ok_or_else(|| not_three.clone())?;
        let (header, payload) = message.split_once('.').ok_or_else(|| not_three.clone())?;
        if payload.contains('.') {
            return Err(not_three);
        }
        decode(signature)?;
        let header: Header = parse_json(header).ok_or(TokenError::Malformed("the header is unreadable"))?;
        // RFC 7515 section 4.1.11: what we don't understand but must, we refuse; and we understand no extension.
        if header.has_extension {
            return Err(TokenError::Malformed("the header demands an extension"));
        }
        if header.typ.is_some_and(|typ| !typ.eq_ignore_ascii_case("JWT")) {
            return Err(TokenError::Malformed("it is a token of another type"));
        }
        let algorithm = match header.alg.as_str() {
            "HS256" => Algorithm::Hs256,
            "EdDSA" => Algorithm::EdDsa,
            "ES256" => Algorithm::Es256,
            _ => return Err(TokenError::Algorithm),
        };
        Ok(Self { algorithm, kid: header.kid, message: message.as_bytes(), signature, payload })
    }

    /// Reads the payload and makes every check on it. To be called after the signature verified, and only then.
    pub(super) fn into_verified(self, rules: &Rules, now: u64) -> Result<Verified, TokenError> {
        let claims: Incoming = parse_json(self.payload).ok_or(TokenError::Claim("they can't be read"))?;
        claims.check(rules, now)
    }
}

/// The header members that mean something to us; `jku`, `jwk`, `x5u` and `x5c` do not.
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default, deserialize_with = "not_null")]
    kid: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    typ: Option<String>,
    /// Whether one of those came that change what the rest means. Two of them are a doubled member, so refused as well.
    #[serde(default, rename = "crit", alias = "zip", alias = "b64", alias = "cty", deserialize_with = "is_there")]
    has_extension: bool,
}

/// The claims as they come, ours or a foreign issuer's. What only our own tokens may say is typed later: a foreign
/// token may use the same names for something else.
#[derive(Deserialize)]
struct Incoming {
    #[serde(default, deserialize_with = "not_null")]
    iss: Option<String>,
    #[serde(default, deserialize_with = "is_there")]
    aud: bool,
    #[serde(default, deserialize_with = "not_null")]
    sub: Option<String>,
    #[serde(default, rename = "_id", deserialize_with = "not_null")]
    id: Option<String>,
    username: String,
    iat: u64,
    exp: u64,
    #[serde(default, deserialize_with = "not_null")]
    nbf: Option<u64>,
    #[serde(default)]
    sid: serde_json::Value,
    #[serde(default)]
    groups: serde_json::Value,
    #[serde(default)]
    email: serde_json::Value,
    #[serde(default)]
    name: serde_json::Value,
    #[serde(default, rename = "__v")]
    version: serde_json::Value,
    #[serde(default)]
    auth_time: serde_json::Value,
    #[serde(default)]
    seq: serde_json::Value,
}

/// What only our own tokens are believed.
struct Own {
    session: SessionId,
    groups: Vec<String>,
    email: String,
    display_name: String,
    version: u64,
    auth_time: u64,
    seq: u64,
}

impl Incoming {
    fn check(self, rules: &Rules, now: u64) -> Result<Verified, TokenError> {
        if self.aud {
            return Err(TokenError::AUDIENCE);
        }
        if self.iss.as_ref().is_some_and(|issuer| *issuer != rules.issuer) {
            return Err(TokenError::ISSUER);
        }
        for (date, name) in [(self.iat, "iat"), (self.exp, "exp"), (self.nbf.unwrap_or(0), "nbf")] {
            if date > LAST_DATE {
                return Err(TokenError::Claim(name));
            }
        }
        let latest = now.saturating_add(CLOCK_SKEW);
        if self.iat > latest || self.nbf.is_some_and(|from| from > latest) {
            return Err(TokenError::NotYet);
        }
        let id = match (&self.id, &self.sub) {
            (Some(id), Some(subject)) if id != subject => return Err(TokenError::Claim("_id and sub differ")),
            (Some(id), _) | (None, Some(id)) => id.clone(),
            (None, None) => return Err(TokenError::Claim("_id")),
        };
        let account = AccountId::try_from(id).map_err(|_| TokenError::Claim("_id"))?;
        let username = Username::canonical(&self.username).map_err(|_| TokenError::Claim("username"))?;
        let (iat, exp) = (self.iat, self.exp);
        let own = self.own()?;

        let auth_time = own.as_ref().map_or(iat, |own| own.auth_time);
        let mut expires = exp.min(iat.saturating_add(rules.horizon.as_secs()));
        if !rules.max_lifetime.is_zero() {
            expires = expires.min(auth_time.saturating_add(rules.max_lifetime.as_secs()));
        }
        if expires <= now {
            return Err(TokenError::Expired);
        }
        let account_key = key_of(account.as_str());
        let mut principal = Principal {
            id: account.as_str().to_owned(),
            username: username.into(),
            groups: Vec::new(),
            email: String::new(),
            display_name: String::new(),
        };
        let mut verified = Verified {
            principal: Arc::new(principal.clone()),
            account,
            session: None,
            account_key,
            session_key: None,
            seq: None,
            version: None,
            auth_time,
            issued_at: iat,
            ends: exp,
            expires,
        };
        if let Some(own) = own {
            principal.groups = own.groups;
            principal.email = own.email;
            principal.display_name = own.display_name;
            verified.principal = Arc::new(principal);
            verified.session_key = Some(key_of(own.session.as_str()));
            verified.session = Some(own.session);
            verified.seq = Some(own.seq);
            verified.version = Some(own.version);
        }
        Ok(verified)
    }

    /// The claims that we alone make. `None` for a foreign token: one that does not name us, or names no session.
    fn own(self) -> Result<Option<Own>, TokenError> {
        if self.iss.is_none() || self.sid.is_null() {
            return Ok(None);
        }
        let text = |value, name| match value {
            serde_json::Value::String(text) => Ok(text),
            serde_json::Value::Null => Ok(String::new()),
            _ => Err(TokenError::Claim(name)),
        };
        let number = |value: &serde_json::Value, name| {
            value.as_u64().filter(|number| *number <= LAST_DATE).ok_or(TokenError::Claim(name))
        };
        let auth_time = number(&self.auth_time, "auth_time")?;
        if auth_time > self.iat {
            return Err(TokenError::Claim("auth_time"));
        }
        Ok(Some(Own {
            session: SessionId::try_from(text(self.sid, "sid")?).map_err(|_| TokenError::Claim("sid"))?,
            groups: Vec::deserialize(self.groups).map_err(|_| TokenError::Claim("groups"))?,
            email: text(self.email, "email")?,
            display_name: text(self.name, "name")?,
            version: number(&self.version, "__v")?,
            auth_time,
            seq: number(&self.seq, "seq")?,
        }))
    }
}

/// Base64url without padding (RFC 7515 section 2), in its one canonical spelling: no unused bit may be set, or the
/// same token could be written in several ways.
fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    if part.is_empty() {
        return Err(TokenError::Malformed("a part is empty"));
    }
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed("a part is not base64url"))
}

/// One part of a token as JSON; `None` where it is anything but an object of that form without doubled members.
fn parse_json<T: for<'de> Deserialize<'de>>(part: &str) -> Option<T> {
    let bytes = decode(part).ok()?;
    let text = std::str::from_utf8(&bytes).ok()?;
    if depth(&bytes) > MAX_DEPTH {
        return None;
    }
    serde_json::from_str::<UniqueMembers>(text).ok()?;
    serde_json::from_str(text).ok()
}

/// How deep arrays and objects are nested, counted without recursion.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Deserialises from any object that names each member once (of two, some readers take the first and some the last) and
/// holds nothing that another reader of JSON would refuse (RFC 8259 sections 6 and 8.2).
struct UniqueMembers;

impl<'de> Deserialize<'de> for UniqueMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = UniqueMembers;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMembers, A::Error> {
                let mut seen = HashSet::new();
                // Values are read whole, also those that we don't use: skipped, half of a surrogate pair or a number beyond
                // all bounds would pass here and nowhere else.
                while let Some((name, _)) = map.next_entry::<Cow<'de, str>, serde_json::Value>()? {
                    if !seen.insert(name) {
                        return Err(A::Error::custom("a member is there twice"));
                    }
                }
                Ok(UniqueMembers)
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// `null` is a value of the wrong type, not an absent one.
fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::auth::keys::KeyRing;
    use crate::auth::testing::{DAY, NOW, SECRET, hs256};

    fn ring() -> KeyRing {
        KeyRing::load(&hs256(), tempfile::tempdir().unwrap().path(), NOW).unwrap()
    }

    fn hmac(message: &str, secret: &[u8]) -> String {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, message.as_bytes()))
    }

    /// Signs any two texts with our secret.
    fn signed(header: &str, payload: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature = hmac(&message, SECRET.as_bytes());
        format!("{message}.{signature}")
    }

    const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

    fn foreign() -> serde_json::Value {
        json!({ "_id": "507f1f77bcf86cd799439011", "username": "Kim", "iat": NOW - 60, "exp": NOW + DAY })
    }

    fn with(name: &str, value: serde_json::Value) -> Result<Verified, TokenError> {
        let mut claims = foreign();
        claims[name] = value;
        ring().verify(&signed(HEADER, &claims.to_string()), NOW)
    }

    #[test]
    fn a_token_as_jsonwebtoken_for_node_writes_it_is_that_person_without_groups() {
        let mut claims = foreign();
        claims["groups"] = json!(["admin"]);
        claims["__v"] = json!("x");
        claims["sid"] = json!(7);
        let verified = ring().verify(&signed(HEADER, &claims.to_string()), NOW).unwrap();
        assert_eq!(verified.principal.username, "kim");
        assert_eq!(verified.principal.groups, Vec::<String>::new());
        assert_eq!((verified.session, verified.seq, verified.version), (None, None, None));
        assert_eq!((verified.auth_time, verified.issued_at, verified.expires), (NOW - 60, NOW - 60, NOW + DAY));
        // One that a library made in a test of its own, not by our code.
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        assert!(ring().verify(&jsonwebtoken::encode(&header, &foreign(), &key).unwrap(), NOW).is_ok());
    }

    #[test]
    fn what_a_token_of_ours_says_comes_back() {
        let mut claims = crate::auth::testing::claims("kim", NOW);
        claims.email = String::from("kim@example.com");
        let verified = ring().verify(&ring().sign(&claims).unwrap(), NOW).unwrap();
        assert_eq!(verified.principal.groups, ["staff"]);
        assert_eq!(verified.principal.email, "kim@example.com");
        assert_eq!(verified.session.unwrap().as_str(), "session-kim");
        assert_eq!((verified.seq, verified.version, verified.expires), (Some(5), Some(0), NOW + 7 * DAY));
    }

    #[test]
    fn a_header_that_is_not_ours_is_refused() {
        for header in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"None"}"#,
            r#"{"alg":""}"#,
            r#"{"typ":"JWT"}"#,
            r#"{"alg":["HS256"]}"#,
            r#"{"alg":"hs256"}"#,
            r#"{"alg":"HS384"}"#,
            r#"{"alg":"HS512"}"#,
            r#"{"alg":"ES256"}"#,
            r#"{"alg":"EdDSA"}"#,
            r#"{"alg":"HS256","crit":["x"]}"#,
            r#"{"alg":"HS256","crit":null}"#,
            r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
            r#"{"alg":"HS256","b64":true}"#,
            r#"{"alg":"HS256","zip":"DEF"}"#,
            r#"{"alg":"HS256","cty":"JWT"}"#,
            r#"{"alg":"HS256","typ":"at+jwt"}"#,
            r#"{"alg":"HS256","typ":null}"#,
            r#"{"alg":"HS256","kid":null}"#,
            r#"{"alg":"HS256","kid":7}"#,
            r#"{"alg":"HS256","kid":"../../dev/null"}"#,
            r#"{"alg":"HS256","kid":""}"#,
            r#"{"alg":"HS256","alg":"HS256"}"#,
            r#"{"alg":"HS256","x":1,"x":2}"#,
            r#"{"alg":"HS256","\u0061lg":"HS256"}"#,
            r#"["HS256"]"#,
            r#""HS256""#,
            "",
            "{}",
            "\u{feff}{\"alg\":\"HS256\"}",
            r#"{"alg":"HS256"} x"#,
        ] {
            let result = ring().verify(&signed(header, &foreign().to_string()), NOW);
            assert!(result.is_err(), "{header}");
            assert!(!result.unwrap_err().is_signed_by_us(), "{header}");
        }
        for header in [
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"HS256","typ":"jwt"}"#,
            r#"{"alg":"HS256","jku":"http://127.0.0.1/","x5u":"http://127.0.0.1/","x5c":[],"jwk":{"kty":"oct","k":"AA"}}"#,
        ] {
            assert!(ring().verify(&signed(header, &foreign().to_string()), NOW).is_ok(), "{header}");
        }
    }

    #[test]
    fn a_claim_that_is_wrong_is_refused() {
        let forbidden = "k\u{202e}im";
        for (name, value) in [
            ("exp", json!(null)),
            ("exp", json!((NOW + DAY).to_string())),
            ("exp", json!(-1)),
            ("exp", json!(1e300)),
            ("exp", json!(1_900_000_000.5)),
            ("exp", json!(u64::MAX)),
            ("exp", json!(NOW)),
            ("exp", json!(NOW - 30)),
            ("iat", json!(NOW + 31)),
            ("iat", json!("1")),
            ("iat", json!(null)),
            ("iat", json!(0)), // further back than any token may be
            ("nbf", json!(NOW + 600)),
            ("nbf", json!(null)),
            ("nbf", json!(1.5)),
            ("iss", json!("somebody")),
            ("iss", json!(["doorward"])),
            ("iss", json!(null)),
            ("aud", json!("doorward")),
            ("aud", json!(null)),
            ("sub", json!("another")),
            ("sub", json!(7)),
            ("_id", json!("")),
            ("_id", json!("a b")),
            ("_id", json!("a\r\nb")),
            ("_id", json!("a\0")),
            ("_id", json!("x".repeat(65))),
            ("_id", json!(["507f1f77bcf86cd799439011"])),
            ("username", json!("")),
            ("username", json!("k im")),
            ("username", json!(forbidden)),
            ("username", json!("x".repeat(65))),
            ("username", json!(null)),
        ] {
            let error = with(name, value.clone()).expect_err(&format!("{name}: {value}"));
            assert!(error.is_signed_by_us(), "{name}: {value}: {error}");
        }
        for (name, value) in [
            ("exp", json!(NOW + 1)),
            ("iat", json!(NOW + 30)),
            ("nbf", json!(NOW + 30)),
            ("iss", json!("doorward")),
            ("sub", json!("507f1f77bcf86cd799439011")),
            ("role", json!({ "deep": [[[[1]]]] })),
        ] {
            assert!(with(name, value.clone()).is_ok(), "{name}: {value}");
        }
    }

    #[test]
    fn times_end_where_the_configuration_says() {
        assert_eq!(with("exp", json!(NOW + 900 * DAY)).unwrap().expires, NOW - 60 + 30 * DAY);
        let unlimited = crate::config::Token { max_lifetime: Duration::ZERO, ..hs256() };
        let endless = KeyRing::load(&unlimited, tempfile::tempdir().unwrap().path(), NOW).unwrap();
        let mut claims = foreign();
        claims["exp"] = json!(NOW + 9_000 * DAY);
        let verified = endless.verify(&signed(HEADER, &claims.to_string()), NOW).unwrap();
        assert_eq!(verified.expires, NOW - 60 + unlimited.horizon().as_secs(), "no longer than the log remembers");
        let mut claims = crate::auth::testing::claims("kim", NOW);
        claims.auth_time = NOW - 29 * DAY;
        let ring = ring();
        assert_eq!(ring.verify(&ring.sign(&claims).unwrap(), NOW).unwrap().expires, NOW + DAY);
        claims.auth_time = NOW - 30 * DAY;
        assert_eq!(ring.verify(&ring.sign(&claims).unwrap(), NOW).unwrap_err(), TokenError::Expired);
        claims.auth_time = NOW + 1;
        assert_eq!(ring.verify(&ring.sign(&claims).unwrap(), NOW).unwrap_err(), TokenError::Claim("auth_time"));
    }

    #[test]
    fn doubled_claims_are_refused() {
        for payload in [
            format!(r#"{{"_id":"a","username":"kim","iat":{NOW},"exp":1,"exp":{}}}"#, NOW + DAY),
            format!(r#"{{"_id":"a","username":"kim","iat":{NOW},"exp":{},"role":1,"role":2}}"#, NOW + DAY),
            format!(r#"{{"_id":"a","username":"kim","iat":{NOW},"exp":{0},"\u0065xp":{0}}}"#, NOW + DAY),
        ] {
            assert!(ring().verify(&signed(HEADER, &payload), NOW).is_err(), "{payload}");
        }
    }

    /// Skipping over a value, serde_json does not see these; reading the whole token, it and others refuse it.
    #[test]
    fn what_no_other_reader_takes_is_refused_also_where_we_do_not_look() {
        let with = |odd: &str| {
            let payload = format!(r#"{{"_id":"a","username":"kim","iat":{NOW},"exp":{},{odd}}}"#, NOW + DAY);
            ring().verify(&signed(HEADER, &payload), NOW)
        };
        for odd in
            [r#""x":"\udE29""#, r#""x":["\ud83d\u0041"]"#, r#""x":{"\udE29":1}"#, r#""x":1E999"#, r#""x":[-1e999]"#]
        {
            assert_eq!(with(odd).unwrap_err(), TokenError::Claim("they can't be read"), "{odd}");
        }
        for plain in [r#""x":"\ud83d\ude00""#, r#""x":{"y":[1e300,-0.5,null]}"#] {
            assert!(with(plain).is_ok(), "{plain}");
        }
        assert!(ring().verify(&signed(r#"{"alg":"HS256","x":"\udE29"}"#, &foreign().to_string()), NOW).is_err());
    }

    #[test]
    fn the_form_has_one_spelling() {
        let good = signed(HEADER, &foreign().to_string());
        let (message, signature) = good.rsplit_once('.').unwrap();
        let (header, payload) = message.split_once('.').unwrap();
        // The last character of 32 bytes has two unused bits.
        let mut unused = good.clone();
        let last = unused.pop().unwrap();
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let index = alphabet.find(last).unwrap();
        unused.push(alphabet.chars().nth(index + 1).unwrap());
        for bad in [
            String::new(),
            String::from(".."),
            message.to_owned(),
            format!("{message}."),
            format!("{good}."),
            format!("{good}="),
            format!("{good}.{signature}"),
            format!("{good}.{signature}.{signature}"),
            format!(" {good}"),
            format!("{good}\n"),
            format!("{header}=.{payload}.{signature}"),
            format!("{header}.{payload}=.{signature}"),
            good.replace('.', ","),
            unused,
            "x".repeat(MAX_TOKEN_BYTES + 1),
            format!(r#"{{"protected":"{header}","payload":"{payload}","signature":"{signature}"}}"#),
        ] {
            assert!(ring().verify(&bad, NOW).is_err(), "{bad}");
        }
        assert!(ring().verify(&good, NOW).is_ok());
    }

    #[test]
    fn deep_nesting_is_counted_and_not_descended() {
        let deep = "[".repeat(100_000);
        assert!(parse_json::<serde_json::Value>(&URL_SAFE_NO_PAD.encode(&deep)).is_none());
        assert_eq!(depth(deep.as_bytes()), 100_000);
        assert_eq!(depth(br#"{"a":"[[[[\"[["}"#), 1);
        let payload = format!("{}{}", r#"{"x":"#.repeat(1_000), "}".repeat(1_000));
        assert!(ring().verify(&signed(HEADER, &payload), NOW).is_err());
    }

    #[test]
    fn a_huge_token_is_refused_by_its_length_and_a_broad_one_by_its_members() {
        let payload = format!(r#"{{"x":"{}"}}"#, "a".repeat(2 * 1024 * 1024));
        let huge = signed(HEADER, &payload);
        assert_eq!(ring().verify(&huge, NOW).unwrap_err(), TokenError::Malformed("it is too long"));
        assert_eq!(ring().verify(&".".repeat(1_000_000), NOW).unwrap_err(), TokenError::Malformed("it is too long"));
        assert!(ring().verify(&".".repeat(MAX_TOKEN_BYTES), NOW).is_err());
        // As many members as fit, all different, and then one of them twice.
        let mut claims = foreign().to_string();
        claims.pop();
        let many = (0..500).fold(String::new(), |many, number| many + &format!(",\"m{number}\":1"));
        assert!(ring().verify(&signed(HEADER, &format!("{claims}{many}}}")), NOW).is_ok());
        let doubled = signed(HEADER, &format!("{claims}{many},\"m0\":1}}"));
        assert_eq!(ring().verify(&doubled, NOW).unwrap_err(), TokenError::Claim("they can't be read"));
        // Right behind the deepest nesting that is read.
        for (depth, read) in [(MAX_DEPTH - 1, true), (MAX_DEPTH, false), (1_000, false)] {
            let nested = format!("{claims},\"x\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
            assert_eq!(ring().verify(&signed(HEADER, &nested), NOW).is_ok(), read, "{depth}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_without_a_panic(text in "\\PC{0,200}") {
            prop_assert!(ring().verify(&text, NOW).is_err());
        }

        #[test]
        fn any_signed_header_and_payload_are_read_without_a_panic(
            header in "[\\{\\}\\[\\]\",:a-z0-9\\\\ ]{0,60}",
            payload in "[\\{\\}\\[\\]\",:a-z0-9\\\\ ]{0,60}",
            now in any::<u64>(),
        ) {
            let ring = ring();
            prop_assert!(ring.verify(&signed(&header, &payload), now).is_err());
            prop_assert!(ring.verify(&signed(HEADER, &payload), now).is_err());
        }

        #[test]
        fn no_time_overflows(iat in any::<u64>(), exp in any::<u64>(), now in any::<u64>()) {
            let claims = json!({ "_id": "a", "username": "kim", "iat": iat, "exp": exp });
            if let Ok(verified) = ring().verify(&signed(HEADER, &claims.to_string()), now) {
                prop_assert!(verified.expires > now && verified.expires <= exp && iat <= now + CLOCK_SKEW);
            }
        }

        #[test]
        fn one_changed_character_is_noticed(at in 0_usize..1000, to in "[A-Za-z0-9_-]") {
            let good = signed(HEADER, &foreign().to_string());
            let at = at % good.len();
            let mut changed = good.clone();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != good);
            prop_assert!(ring().verify(&changed, NOW).is_err());
        }
    }
}
