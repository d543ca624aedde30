//! Bodies on their way: the client's to the backend, the backend's to the client.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::BodyError;
use super::pool::Lease;
use crate::clock::poll_alarm;
use crate::message::forwarded;

/// What went wrong with the client's body, and how far it has come. Shared with whoever waits for the answer.
#[derive(Default)]
pub(super) struct Sent {
    /// Pieces that were handed to the backend's connection.
    pub(super) pieces: Cell<u64>,
    /// It is the client that is waited for, and not the backend.
    pub(super) waiting: Cell<bool>,
    pub(super) fault: RefCell<Option<ClientFault>>,
}

/// The client's side of a failed exchange.
pub(super) enum ClientFault {
    Broken(hyper::Error),
    TimedOut,
}

/// A request's body as the backend's connection takes it.
pub(super) enum RequestBody {
    Empty,
    Client(Box<ClientBody>),
}

pub(super) struct ClientBody {
    incoming: Incoming,
    sent: Rc<Sent>,
    /// Between two pieces.
    limit: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
    /// Announced, and fit to be passed on.
    trailers: Vec<HeaderName>,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, sent: &Rc<Sent>, limit: Duration, trailers: Vec<HeaderName>) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        Self::Client(Box::new(ClientBody { incoming, sent: Rc::clone(sent), limit, alarm: None, trailers }))
    }

    pub(super) const fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

/// The client's body failed; the cause is kept in [`Sent`].
#[derive(Debug, thiserror::Error)]
#[error("the client's body failed")]
pub(super) struct ClientBodyFailed;

impl Body for RequestBody {
    type Data = Bytes;
    type Error = ClientBodyFailed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientBodyFailed>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Client(body) => body.poll(task),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(body) => body.incoming.size_hint(),
        }
    }
}

impl ClientBody {
    fn poll(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ClientBodyFailed>>> {
        let poll = Pin::new(&mut self.incoming).poll_frame(task);
        self.sent.waiting.set(poll.is_pending());
        match poll {
            Poll::Ready(Some(Ok(frame))) => {
                self.alarm = None;
                self.sent.pieces.set(self.sent.pieces.get() + 1);
                Poll::Ready(Some(Ok(keep_trailers(frame, &self.trailers))))
            }
            Poll::Ready(Some(Err(error))) => {
                *self.sent.fault.borrow_mut() = Some(ClientFault::Broken(error));
                Poll::Ready(Some(Err(ClientBodyFailed)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let limit = self.limit;
                let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                if poll_alarm(alarm.as_mut(), task).is_pending() {
                    return Poll::Pending;
                }
                *self.sent.fault.borrow_mut() = Some(ClientFault::TimedOut);
                Poll::Ready(Some(Err(ClientBodyFailed)))
            }
        }
    }
}

/// Drops every trailer that was not announced, or must not be passed on (RFC 9110 section 6.5.1).
fn keep_trailers(frame: Frame<Bytes>, announced: &[HeaderName]) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(trailers) => {
            let mut kept = HeaderMap::new();
            for name in announced {
                for value in trailers.get_all(name) {
                    kept.append(name.clone(), value.clone());
                }
            }
            Frame::trailers(kept)
        }
        Err(frame) => frame,
    }
}

/// More trailers than this are not announced to the other side. One header has room for thousands of names, and each is
/// compared with all before it.
const MOST_TRAILERS: usize = 64;

/// The trailers that a `Trailer` header announces and that may be passed on: none that frames, routes or identifies.
pub(super) fn announced(headers: &HeaderMap, refuse: impl Fn(&HeaderName) -> bool) -> Vec<HeaderName> {
    const NEVER: [HeaderName; 16] = [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::EXPECT,
        header::HOST,
        header::PROXY_AUTHORIZATION,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    let mut names: Vec<HeaderName> = Vec::new();
    for line in headers.get_all(header::TRAILER) {
        for name in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if names.len() == MOST_TRAILERS {
                return names;
            }
            if let Ok(name) = HeaderName::from_bytes(name)
                && !NEVER.contains(&name)
                && !forwarded::covers(&name)
                && !refuse(&name)
                && !names.contains(&name)
            {
                names.push(name);
            }
        }
    }
    names
}

/// The body of a backend's answer. Reading it drives the backend's connection; when it has ended the connection goes
/// back to the pool, when it is dropped before, the connection is closed.
pub struct UpstreamBody {
    incoming: Incoming,
    /// `None` once the connection has been given back, or where a task of its own drives it (upgrades).
    lease: Option<Lease>,
    trailers: Vec<HeaderName>,
    /// It broke off; the client learns it after what came before.
    broken: Option<BodyError>,
}

impl UpstreamBody {
    pub(super) fn new(incoming: Incoming, lease: Option<Lease>, trailers: Vec<HeaderName>) -> Self {
        let mut body = Self { incoming, lease, trailers, broken: None };
        if body.incoming.is_end_stream() {
            body.give_back();
        }
        body
    }

    /// Keeps the error for the next time: an error at once would take the head and the bytes before it along, which the
    /// client's connection still holds.
    fn break_off(&mut self, source: Box<dyn std::error::Error + Send + Sync>, task: &Context<'_>) {
        self.lease = None;
        self.broken = Some(BodyError(source));
        task.waker().wake_by_ref();
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let poll = match &mut this.lease {
            None => Pin::new(&mut this.incoming).poll_frame(task),
            Some(lease) => {
                // What is there already comes first. The body is filled by the connection alone, which is polled right
                // here: a wake-up from one to the other would only run this task twice.
                let mut quiet = Context::from_waker(Waker::noop());
                match Pin::new(&mut this.incoming).poll_frame(&mut quiet) {
                    Poll::Ready(frame) => Poll::Ready(frame),
                    Poll::Pending => {
                        // Its end, good or bad, shows in the body.
                        let over = lease.poll_connection(task).is_ready();
                        match Pin::new(&mut this.incoming).poll_frame(&mut quiet) {
                            // Never a clean end that the codec has not seen.
                            Poll::Pending if over => {
                                this.break_off(Box::from("the connection ended before the answer"), task);
                                return Poll::Pending;
                            }
                            poll => poll,
                        }
                    }
                }
            }
        };
        match poll {
            Poll::Ready(Some(Ok(frame))) => {
                let frame = keep_trailers(frame, &this.trailers);
                if this.incoming.is_end_stream() {
                    this.give_back();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.break_off(Box::new(error), task);
                Poll::Pending
            }
            Poll::Ready(None) => {
                this.give_back();
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
