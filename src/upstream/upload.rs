//! A request's body on its way from the client.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::http1::request::Framing;
use crate::clock::poll_alarm;

/// The client's side of a failed exchange.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientFault {
    #[error("the request's body broke off or is malformed")]
    Broken(#[source] hyper::Error),
    #[error("the request's body did not come in time")]
    TimedOut,
    /// Its codec did not mind.
    #[error("the request's body is not as long as it was said to be")]
    Length,
    #[error("the request's trailers are too large")]
    Trailers,
}

/// Of all trailers of one body. The codec of the client's side allows as much as a whole head may have.
const MOST_TRAILER_BYTES: usize = 16 * 1024;

/// What there is of a body.
pub(super) enum Piece {
    Data(Bytes),
    /// The end, with the trailers that may be passed on.
    End(HeaderMap),
}

/// The client's body. Polled only when the backend's connection takes more of it.
pub(super) struct Upload {
    incoming: Incoming,
    pub(super) framing: Framing,
    /// Announced, and fit to be passed on.
    announced: Vec<HeaderName>,
    trailers: HeaderMap,
    /// Between two pieces.
    limit: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
    /// Of a known length.
    left: u64,
    /// It is the client that is waited for, and not the backend.
    pub(super) waiting: bool,
}

/// How a body is to be delimited, and the body itself if there is any.
pub(super) fn upload(incoming: Incoming, announced: &[HeaderName], limit: Duration) -> (Framing, Option<Box<Upload>>) {
    if incoming.is_end_stream() {
        return (Framing::Length(0), None);
    }
    let length = incoming.size_hint().exact();
    let framing = length.map_or(Framing::Chunked, Framing::Length);
    let upload = Upload {
        incoming,
        framing,
        announced: announced.to_vec(),
        trailers: HeaderMap::new(),
        limit,
        alarm: None,
        left: length.unwrap_or(0),
        waiting: false,
    };
    (framing, Some(Box::new(upload)))
}

impl Upload {
    pub(super) fn poll(&mut self, task: &mut Context<'_>) -> Poll<Result<Piece, ClientFault>> {
        loop {
            let poll = Pin::new(&mut self.incoming).poll_frame(task);
            self.waiting = poll.is_pending();
            match poll {
                Poll::Ready(Some(Ok(frame))) => {
                    self.alarm = None;
                    match frame.into_data() {
                        Ok(data) if data.is_empty() => {}
                        Ok(data) => return Poll::Ready(self.count(data).map(Piece::Data)),
                        Err(frame) => {
                            if let Ok(trailers) = frame.into_trailers() {
                                let bytes = trailers.iter().map(|(name, value)| name.as_str().len() + value.len());
                                if bytes.sum::<usize>() > MOST_TRAILER_BYTES {
                                    return Poll::Ready(Err(ClientFault::Trailers));
                                }
                                self.keep(&trailers);
                            }
                        }
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(ClientFault::Broken(error))),
                Poll::Ready(None) => {
                    let whole = self.framing == Framing::Chunked || self.left == 0;
                    let end = Piece::End(std::mem::take(&mut self.trailers));
                    return Poll::Ready(if whole { Ok(end) } else { Err(ClientFault::Length) });
                }
                Poll::Pending => {
                    let limit = self.limit;
                    let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                    return match poll_alarm(alarm.as_mut(), task) {
                        Poll::Ready(()) => Poll::Ready(Err(ClientFault::TimedOut)),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
    }

    /// Whether nothing is to come any more.
    pub(super) fn is_over(&self) -> bool {
        self.incoming.is_end_stream() && self.trailers.is_empty()
    }

    /// Never more than was said, whatever the codec of the client's side would do.
    fn count(&mut self, data: Bytes) -> Result<Bytes, ClientFault> {
        if self.framing != Framing::Chunked {
            self.left = self.left.checked_sub(data.len() as u64).ok_or(ClientFault::Length)?;
        }
        Ok(data)
    }

    /// Drops every trailer that was not announced, or must not be passed on (RFC 9110 section 6.5.1).
    fn keep(&mut self, trailers: &HeaderMap) {
        for name in &self.announced {
            for value in trailers.get_all(name) {
                self.trailers.append(name.clone(), value.clone());
            }
        }
    }
}
