//! The body of a backend's answer on its way to the client.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame, SizeHint};

use super::BodyError;
use super::health::InFlight;
use super::http1::Connection;
use super::http1::chunked::{Chunked, Step};
use super::http1::response::Framing;
use super::pool::Pool;
use super::ties::Knot;

/// The body of a backend's answer. Reading it drives the backend's connection; when it has ended the connection goes
/// back to the pool, when it is dropped before, the connection is closed.
pub struct UpstreamBody {
    /// Taken from the connection, and next to be handed on.
    ready: Bytes,
    trailers: Option<Box<HeaderMap>>,
    /// `None`: it is over, or broken.
    rest: Option<Rest>,
    broken: Broken,
}

/// An answer that broke off. An error at once would take the head and the bytes before it along, which the client's
/// connection still holds: so first that gets its turn.
enum Broken {
    No,
    Next(BodyError),
    Now(BodyError),
}

/// What is still to come.
struct Rest {
    connection: Box<Connection>,
    delimited: Delimited,
    /// Where the connection goes at the end.
    home: Home,
    /// Counts as a request in flight until it goes.
    _in_flight: InFlight,
}

/// Where a connection goes when its exchange is complete in both directions.
pub(super) enum Home {
    /// It is closed.
    Nowhere,
    /// To those that anybody may use.
    Pool(Rc<Pool>),
    /// To its client's connection.
    Tied(Box<Knot>),
}

enum Delimited {
    /// So many bytes are to come.
    Length(u64),
    Chunked(Chunked, Vec<HeaderName>),
    Close,
}

impl UpstreamBody {
    pub(super) fn new(
        connection: Box<Connection>,
        framing: Framing,
        trailers: Vec<HeaderName>,
        home: Home,
        in_flight: InFlight,
    ) -> Self {
        let delimited = match framing {
            Framing::None => Delimited::Length(0),
            Framing::Length(length) => Delimited::Length(length),
            Framing::Chunked => Delimited::Chunked(Chunked::new(), trailers),
            Framing::Close => Delimited::Close,
        };
        let rest = Rest { connection, delimited, home, _in_flight: in_flight };
        let mut body = Self { ready: Bytes::new(), trailers: None, rest: Some(rest), broken: Broken::No };
        // Most answers are all there with their head, and their connection is free at once.
        if !matches!(framing, Framing::Chunked | Framing::Close) {
            body.take();
        }
        body
    }

    /// Takes what there is of the body out of the connection.
    fn take(&mut self) {
        let Some(rest) = &mut self.rest else { return };
        let bytes = rest.connection.bytes();
        let over = match &mut rest.delimited {
            Delimited::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                if count > 0 {
                    self.ready = bytes.split_to(count).freeze();
                    *left -= count as u64;
                }
                Ok(*left == 0)
            }
            Delimited::Chunked(chunked, announced) => {
                let mut step = chunked.step(bytes, announced);
                if let Ok(Step::Data(data)) = &mut step {
                    self.ready = std::mem::take(data);
                    // The end may be there as well.
                    step = chunked.pass_by(bytes, announced);
                }
                step.map(|step| match step {
                    Step::Over(trailers) => {
                        self.trailers = (!trailers.is_empty()).then(|| Box::new(trailers));
                        true
                    }
                    Step::Data(_) | Step::Hungry => false,
                })
            }
            Delimited::Close => {
                self.ready = bytes.split().freeze();
                Ok(false)
            }
        };
        rest.connection.release();
        match over {
            Ok(true) => self.give_back(),
            Ok(false) => {}
            Err(error) => self.break_off(error),
        }
    }

    /// The connection goes back to its pool, if the exchange is complete in both directions; closed otherwise.
    fn give_back(&mut self) {
        if let Some(rest) = self.rest.take()
            && rest.connection.is_clean()
        {
            match rest.home {
                Home::Nowhere => {}
                Home::Pool(pool) => pool.put(rest.connection),
                Home::Tied(knot) => knot.tie(rest.connection),
            }
        }
    }

    fn break_off(&mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) {
        self.rest = None;
        self.broken = Broken::Next(BodyError(source.into()));
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if !this.ready.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.ready)))));
            }
            if let Some(trailers) = this.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(*trailers))));
            }
            let Some(rest) = &mut this.rest else {
                return match std::mem::replace(&mut this.broken, Broken::No) {
                    Broken::No => Poll::Ready(None),
                    Broken::Now(error) => Poll::Ready(Some(Err(error))),
                    Broken::Next(error) => {
                        this.broken = Broken::Now(error);
                        task.waker().wake_by_ref();
                        Poll::Pending
                    }
                };
            };
            // An upload may go on beside its answer.
            if let Err(fault) = rest.connection.send(task) {
                this.break_off(fault);
                continue;
            }
            if !rest.connection.bytes().is_empty() {
                this.take();
                // Something came of it, or it takes more.
                if this.rest.is_none() || !this.ready.is_empty() {
                    continue;
                }
            }
            let Some(rest) = &mut this.rest else { continue };
            let left = match rest.delimited {
                Delimited::Length(left) => Some(left),
                Delimited::Chunked(..) | Delimited::Close => None,
            };
            match rest.connection.poll_more(task, left) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) if matches!(rest.delimited, Delimited::Close) => this.rest = None,
                Poll::Ready(Ok(0)) => this.break_off("the connection ended before the answer"),
                Poll::Ready(Err(error)) => this.break_off(error),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.broken, Broken::No) && self.rest.is_none() && self.ready.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.rest {
            None if matches!(self.broken, Broken::No) => SizeHint::with_exact(self.ready.len() as u64),
            Some(Rest { delimited: Delimited::Length(left), .. }) => {
                SizeHint::with_exact(*left + self.ready.len() as u64)
            }
            _ => SizeHint::default(),
        }
    }
}
