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
        if header.crit || header.zip || header.b64 || header.cty {
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
    #[serde(default, deserialize_with = "is_there")]
    crit: bool,
    #[serde(default, deserialize_with = "is_there")]
    zip: bool,
    #[serde(default, deserialize_with = "is_there")]
    b64: bool,
    #[serde(default, deserialize_with = "is_there")]
    cty: bool,
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
            return Err(TokenError::Claim("aud: it is for somebody else"));
        }
        if self.iss.as_ref().is_some_and(|issuer| *issuer != rules.issuer) {
            return Err(TokenError::Claim("iss"));
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

/// Deserialises from any object that names each member once: of two, some readers take the first and some the last.
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
                while let Some((name, IgnoredAny)) = map.next_entry::<Cow<'de, str>, IgnoredAny>()? {
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
