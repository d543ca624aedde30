//! `X-Forwarded-*`, `X-Real-IP` and `X-Request-Id`: extended when a trusted proxy sent them, replaced otherwise.

use http::HeaderMap;

use super::admit::Admitted;

/// The request's id: the trusted proxy's, when it is sane, else the fresh one.
#[must_use]
pub fn request_id(_headers: &HeaderMap, _peer_trusted: bool, _fresh: impl FnOnce() -> String) -> String {
    todo!("helper: message")
}

/// Sets the forwarding headers for the upstream. `peer`: the socket's other end.
pub fn set(_headers: &mut HeaderMap, _admitted: &Admitted, _peer: Option<std::net::IpAddr>, _request_id: &str) {
    todo!()
}
