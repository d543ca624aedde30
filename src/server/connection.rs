//! One client connection: hyper with every limit set, and the deadlines that it leaves to us.

use std::convert::Infallible;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};

use http::header::UPGRADE;
use http::{Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Stage;
use super::pace::{Pace, Paced, PacedBody, Seat};
use crate::clock::KeptAlarm;
use crate::config::Limits;
use crate::gate::{self, AnswerBody, Core};

/// hyper's buffer for one direction; it also bounds what a slow client can make us hold.
const BUFFER_BYTES: usize = 64 * 1024;

/// How many headers hyper takes unless told otherwise; more are answered with 431. A test holds it.
const DEFAULT_MAX_HEADERS: usize = 100;

/// Serves one connection to its end.
pub(super) async fn serve<S>(socket: S, peer: Option<IpAddr>, core: Rc<Core>, stage: watch::Receiver<Stage>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = core.shared().live().config.server.limits.clone();
    let pace = Pace::new(core.shared().clock());
    let seat: Seat<S> = Seat::default();
    let protocol = protocol(&limits);
    let http_on = |socket: S, first: Vec<u8>| {
        let io = TokioIo::new(Paced::new(socket, first, Arc::clone(&pace), Arc::clone(&seat)));
        let service = service(Arc::clone(&pace), Rc::clone(&core), peer);
        Box::pin(protocol.serve_connection(io, service).with_upgrades())
    };

    let mut turn = Turn::Resting(socket);
    let mut alarm = KeptAlarm::default();
    let mut leaving = false;
    let mut listens = false;
    let mut stage_changes = pin!(stage_reached(stage));
    let over = std::future::poll_fn(|task: &mut Context<'_>| {
        loop {
            match std::mem::replace(&mut turn, Turn::Over) {
                Turn::Resting(mut socket) => match poll_first(&mut socket, task) {
                    Poll::Ready(first) if first.is_empty() => return Poll::Ready(Ok(())),
                    Poll::Ready(first) => {
                        let mut http = http_on(socket, first);
                        if leaving {
                            http.as_mut().graceful_shutdown();
                        }
                        turn = Turn::Serving(http);
                        continue;
                    }
                    Poll::Pending => turn = Turn::Resting(socket),
                },
                Turn::Serving(mut http) => {
                    if let Poll::Ready(result) = http.as_mut().poll(task) {
                        return Poll::Ready(result);
                    }
                    turn = Turn::Serving(http);
                }
                Turn::Over => return Poll::Ready(Ok(())),
            }
            // The end of the grace for idle connections, or of the whole drain.
            // This task listens for it since its first turn, so only a drain is worth another look.
            let look = !leaving && (!listens || core.shared().is_draining());
            listens = true;
            if look && stage_changes.as_mut().poll(task).is_ready() {
                leaving = true;
                if let Turn::Serving(http) = &mut turn {
                    http.as_mut().graceful_shutdown();
                    continue;
                }
            }
            // A connection that rests is idle, unless its first request is still to come.
            let rests = matches!(turn, Turn::Resting(_));
            if leaving && (pace.is_lingering() || (rests && pace.is_idle())) {
                return Poll::Ready(Ok(()));
            }
            let closes = pace.deadline(&limits);
            let due = if rests { closes } else { closes.into_iter().chain(pace.rests_at()).min() };
            let Some(due) = due else { return Poll::Pending };
            ready!(alarm.poll_due(task, Instant::from_std(due)));
            if closes == Some(due) {
                return Poll::Ready(Ok(()));
            }
            // What hyper holds for a connection, two buffers above all, is given back; the socket stays.
            turn = Turn::Over;
            if let Some(socket) = seat.lock().unwrap_or_else(PoisonError::into_inner).take() {
                turn = Turn::Resting(socket);
            }
        }
    });
    if let Err(error) = over.await {
        tracing::debug!(%error, "a client connection ended in an error");
    }
}

/// HTTP/1.1 with every limit set but the deadlines.
fn protocol(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .header_read_timeout(None)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(BUFFER_BYTES.max(limits.max_header_bytes + 1024))
        .title_case_headers(true);
    // hyper's own limit is on the stack; one that is set is a vector, cleared for every request.
    if limits.max_headers != DEFAULT_MAX_HEADERS {
        builder.max_headers(limits.max_headers);
    }
    builder
}

/// Hands each request to the gate, and keeps the pace.
fn service(
    pace: Arc<Pace>,
    core: Rc<Core>,
    peer: Option<IpAddr>,
) -> impl Service<Request<Incoming>, Response = Response<PacedBody<AnswerBody>>, Error = Infallible> {
    service_fn(move |request: Request<Incoming>| {
        pace.serving(request.body().is_end_stream());
        if request.headers().contains_key(UPGRADE) {
            pace.forget_heads();
        }
        // In a box: hyper would move it about, and it is large. Made in its place, for the same reason.
        let answer = Box::write(Box::new_uninit(), gate::handle(Rc::clone(&core), peer, request, pace.spelling()));
        let answer = Box::into_pin(answer);
        let pace = Arc::clone(&pace);
        async move { Ok(answer.await.map(|body| PacedBody::new(body, pace))) }
    })
}

/// What a connection consists of at the moment.
enum Turn<S, H> {
    /// Its socket only: no byte of a request has come, the first or the next one.
    Resting(S),
    Serving(H),
    Over,
}

/// What a client sends after a silence, up to a few kilobytes; empty when it sends no more.
fn poll_first<S: AsyncRead + Unpin>(socket: &mut S, task: &mut Context<'_>) -> Poll<Vec<u8>> {
    const MOST_BYTES: usize = 8 * 1024;
    let mut room = [MaybeUninit::uninit(); MOST_BYTES];
    let mut buffer = ReadBuf::uninit(&mut room);
    // A connection that failed while nothing was asked of it is over as well as one that was closed.
    let _ = ready!(Pin::new(socket).poll_read(task, &mut buffer));
    Poll::Ready(buffer.filled().to_vec())
}

/// Resolves when idle connections have had their grace.
async fn stage_reached(mut stage: watch::Receiver<Stage>) {
    // The sender lives as long as the process serves; should it be gone, it is time to leave too.
    let _ = stage.wait_for(|stage| *stage >= Stage::Leave).await;
}
