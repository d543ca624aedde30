//! Headers that belong to one connection only (RFC 9110 section 7.6.1).

use http::HeaderMap;

/// Removes hop-by-hop headers and whatever any `Connection` line names. `Trailer` stays (it announces, see `upstream`).
pub fn strip(_headers: &mut HeaderMap) {
    todo!("helper: message")
}
