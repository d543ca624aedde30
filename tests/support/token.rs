//! Tokens made by hand, without the library that the gateway uses.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// One day in seconds.
pub(crate) const DAY: u64 = 24 * 3600;

/// Signs a header and claims with HS256 (RFC 7515 section 3.1).
pub(crate) fn sign(secret: &[u8], header: &Value, claims: &Value) -> String {
    sign_bytes(secret, header.to_string().as_bytes(), claims.to_string().as_bytes())
}

/// The same for bytes that need not be JSON.
pub(crate) fn sign_bytes(secret: &[u8], header: &[u8], claims: &[u8]) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

/// A token as `jsonwebtoken` in a Koa backend makes it.
pub(crate) fn foreign(secret: &[u8], id: &str, username: &str, issued: u64, expires: u64) -> String {
    sign(
        secret,
        &json!({"alg": "HS256", "typ": "JWT"}),
        &json!({"_id": id, "username": username, "iat": issued, "exp": expires}),
    )
}

/// Header and claims of a token, unverified.
pub(crate) fn parts(token: &str) -> (Value, Value) {
    let mut segments = token.split('.');
    let mut next = || {
        let segment = segments.next().unwrap_or_else(|| panic!("not a token: {token:?}"));
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(segment).unwrap()).unwrap()
    };
    (next(), next())
}

/// The claims of a token, unverified.
pub(crate) fn claims(token: &str) -> Value {
    parts(token).1
}

/// The same token with some claims changed, signed again. `null` takes a claim out.
pub(crate) fn altered(secret: &[u8], token: &str, changes: &Value) -> String {
    let (header, mut claims) = parts(token);
    merge(&mut claims, changes);
    sign(secret, &header, &claims)
}

/// The same session's token with `left` seconds left of a week.
pub(crate) fn with_left(secret: &[u8], token: &str, left: u64) -> String {
    let expires = now() + left;
    altered(secret, token, &json!({"exp": expires, "iat": expires - 7 * DAY, "auth_time": expires - 7 * DAY}))
}

/// Lays `changes` over an object; `null` takes a key out.
pub(crate) fn merge(object: &mut Value, changes: &Value) {
    let object = object.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            object.remove(key);
        } else {
            object.insert(key.clone(), value.clone());
        }
    }
}
