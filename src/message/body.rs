//! Reading a small request body whole.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

/// Why a body could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// 413.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// Bytes.
        limit: usize,
    },
    /// 408.
    #[error("the body did not come in time")]
    TimedOut,
    /// 400.
    #[error("the body broke off or is malformed")]
    Broken(#[source] hyper::Error),
}

/// Reads a body of at most `limit` bytes within `within` in all. A larger `Content-Length` is refused unread.
pub async fn read(body: Incoming, limit: usize, within: Duration) -> Result<Bytes, BodyError> {
    match tokio::time::timeout(within, collect(body, limit)).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err(BodyError::TooLarge { limit }),
        Ok(Err(error)) => Err(BodyError::Broken(error)),
        Err(_) => Err(BodyError::TimedOut),
    }
}

/// `None`: it is larger than `limit`. Trailers are dropped.
async fn collect<B: Body<Data = Bytes> + Unpin>(mut body: B, limit: usize) -> Result<Option<Bytes>, B::Error> {
    if usize::try_from(body.size_hint().lower()).map_or(true, |length| length > limit) {
        return Ok(None);
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if data.len() > limit.saturating_sub(whole.len()) {
                return Ok(None);
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok(Some(whole.freeze()))
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit() {
        let full = |text: &'static str| Full::new(Bytes::from_static(text.as_bytes()));
        assert_eq!(collect(full("abc"), 3).await.unwrap().unwrap(), "abc");
        assert_eq!(collect(full("abcd"), 3).await.unwrap(), None);
        assert_eq!(collect(full(""), 0).await.unwrap().unwrap(), "");
    }

    #[tokio::test]
    async fn pieces_of_unknown_length_are_counted() {
        #[derive(Debug)]
        struct Pieces(usize);
        impl Body for Pieces {
            type Data = Bytes;
            type Error = std::convert::Infallible;
            fn poll_frame(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
                if self.0 == 0 {
                    return std::task::Poll::Ready(None);
                }
                self.0 -= 1;
                std::task::Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(b"ab")))))
            }
        }
        assert_eq!(collect(Pieces(2), 4).await.unwrap().unwrap(), "abab");
        assert_eq!(collect(Pieces(1_000_000), 5).await.unwrap(), None);
    }
}
