//! The `Cookie` header (RFC 6265 section 4.2), read as the strictest and the laxest backends read it.

use http::HeaderMap;

/// The values of all cookies of exactly that name, in order, over all `Cookie` lines. For identification: strict.
pub fn values<'a>(_headers: &'a HeaderMap, _name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
    std::iter::empty()
}

/// Takes out every cookie that some backend could read as one of that name; the others stay byte for byte.
pub fn remove(_headers: &mut HeaderMap, _name: &str) {
    todo!("helper: message")
}

/// Whether a `Set-Cookie` value of an upstream sets, or would be read back as, a cookie of that name.
#[must_use]
pub fn sets(_set_cookie: &[u8], _name: &str) -> bool {
    todo!()
}

/// Writes our `Set-Cookie`; `max_age` in seconds, 0 clears it.
#[must_use]
pub fn set_cookie(_config: &crate::config::Cookie, _secure: bool, _value: &str, _max_age: u64) -> http::HeaderValue {
    todo!()
}
