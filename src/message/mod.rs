//! Pure functions on one HTTP message. No I/O but reading a body, no clock, no state.

pub mod admit;
pub mod body;
pub mod caching;
pub mod chunks;
pub mod cookies;
pub mod forwarded;
pub mod head;
pub mod hop_by_hop;
pub mod identity;
pub mod origin;
pub mod path;
pub mod replies;
pub mod return_to;
pub mod spelling;
pub mod vouched;
