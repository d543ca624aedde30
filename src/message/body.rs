//! Reading a small request body whole.

use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;

/// Why a body could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the body is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the body did not come in time")]
    TimedOut,
    #[error("the body broke off or is malformed")]
    Broken(#[source] hyper::Error),
}

/// Reads a body of at most `limit` bytes within `within` in all. A larger `Content-Length` is refused unread.
pub async fn read(_body: Incoming, _limit: usize, _within: Duration) -> Result<Bytes, BodyError> {
    todo!("helper: message")
}
