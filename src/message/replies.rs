//! Answers that Doorward gives itself.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

/// What our own answers are made of.
pub type Reply = Response<Full<Bytes>>;

/// A problem report (RFC 9457) with `Cache-Control: no-store`. `login_url` where a login would help.
#[must_use]
pub fn problem(_status: StatusCode, _code: &str, _detail: &str, _login_url: Option<&str>) -> Reply {
    todo!("helper: message")
}

/// A JSON answer with `Cache-Control: no-store`.
#[must_use]
pub fn json(_status: StatusCode, _value: &serde_json::Value) -> Reply {
    todo!()
}

/// An HTML page with every header that one of ours must have (CSP with a `form-action`, nosniff, no-store, …).
/// `form_action`: further hosts, from `redirect_hosts`.
#[must_use]
pub fn page(_status: StatusCode, _html: String, _form_action: &[String]) -> Reply {
    todo!()
}

/// 303 See Other.
#[must_use]
pub fn see_other(_location: &str) -> Reply {
    todo!()
}

/// No body.
#[must_use]
pub fn empty(_status: StatusCode) -> Reply {
    todo!()
}
