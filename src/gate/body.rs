//! The body of every answer: our own or a backend's, together with the books kept on the request.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::streams::{Place, Streams, Watched, Whose};
use crate::context::Context;
use crate::feed::FeedBody;
use crate::upstream::{BodyError, UpstreamBody};

/// An answer's body. When it ends, or is dropped because the client has left, the access line is written.
///
/// In a box: an answer changes hands often on its way out.
pub struct AnswerBody(Box<Inner>);

struct Inner {
    source: Source,
    context: Option<Context>,
}

enum Source {
    Own(Full<Bytes>),
    Feed(Box<FeedBody>),
    Upstream {
        body: UpstreamBody,
        /// Whose stream it is, until it is entered among the open ones.
        unwatched: Option<(Rc<Streams>, Whose)>,
        watched: Option<Watched>,
    },
}

impl AnswerBody {
    fn of(source: Source) -> Self {
        Self(Box::new(Inner { source, context: None }))
    }

    pub(super) fn own(body: Full<Bytes>) -> Self {
        Self::of(Source::Own(body))
    }

    /// The revocation feed of a centre.
    pub(super) fn feed(body: FeedBody) -> Self {
        Self::of(Source::Feed(Box::new(body)))
    }

    pub(super) fn nothing() -> Self {
        Self::own(Full::default())
    }

    pub(super) fn upstream(body: UpstreamBody, streams: &Rc<Streams>, whose: Whose) -> Self {
        let unwatched = Some((Rc::clone(streams), whose));
        Self::of(Source::Upstream { body, unwatched, watched: None })
    }

    /// `without_body`: the status or the method says that no body follows, so none is missing when it is not read.
    pub(super) fn with_context(mut self, context: Context, without_body: bool) -> Self {
        let is_over = without_body || self.is_end_stream();
        let context = self.0.context.insert(context);
        if is_over {
            context.complete();
        }
        self
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self.0;
        let poll = match &mut this.source {
            Source::Own(body) => match Pin::new(body).poll_frame(task) {
                Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
                Poll::Ready(Some(Err(never))) => match never {},
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            },
            Source::Feed(body) => Pin::new(&mut **body).poll_frame(task).map_err(|error| BodyError(Box::new(error))),
            Source::Upstream { body, unwatched, watched } => {
                // Looked at before the backend's bytes: a fast download never waits, and must end all the same.
                if watched.as_ref().is_some_and(|watched| watched.poll_over(task)) {
                    Poll::Ready(Some(Err(BodyError(Box::from("the right to this stream is over")))))
                } else {
                    let poll = Pin::new(&mut *body).poll_frame(task);
                    let goes_on = poll.is_pending() || !body.is_end_stream();
                    if goes_on
                        && !matches!(poll, Poll::Ready(None | Some(Err(_))))
                        && let Some(context) = &this.context
                        && let Some((streams, whose)) = unwatched.take()
                    {
                        let entered = streams.enter(whose, Place::of(&context.entry));
                        // Registers this task, so that the signal finds it.
                        let _ = entered.poll_over(task);
                        *watched = Some(entered);
                    }
                    poll
                }
            }
        };
        if let Some(context) = &mut this.context {
            match &poll {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        context.entry.bytes += data.len() as u64;
                    }
                    if this.source.is_end_stream() {
                        context.complete();
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(request_id = context.entry.id(), %error, "an answer broke off");
                    context.entry.reason = "answer_broke_off";
                    context.complete();
                }
                Poll::Ready(None) => context.complete(),
                Poll::Pending => {}
            }
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.0.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0.source {
            Source::Own(body) => body.size_hint(),
            Source::Feed(body) => body.size_hint(),
            Source::Upstream { body, .. } => body.size_hint(),
        }
    }
}

impl Source {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Feed(body) => body.is_end_stream(),
            Self::Upstream { body, .. } => body.is_end_stream(),
        }
    }
}
