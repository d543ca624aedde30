//! One client connection: hyper with every limit set, and the deadlines that it leaves to us.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Request;
use http::header::UPGRADE;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Sleep;

use super::Stage;
use super::pace::{Pace, Paced, PacedBody};
use crate::clock::poll_alarm;
use crate::gate::{self, Core};

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
    let service = {
        let (pace, core) = (Arc::clone(&pace), Rc::clone(&core));
        service_fn(move |request: Request<Incoming>| {
            pace.serving(request.body().is_end_stream());
            if request.headers().contains_key(UPGRADE) {
                pace.forget_heads();
            }
            // In a box: hyper would move it about, and it is large.
            let answer = Box::pin(gate::handle(Rc::clone(&core), peer, request, pace.spelling()));
            let pace = Arc::clone(&pace);
            async move { Ok::<_, Infallible>(answer.await.map(|body| PacedBody::new(body, pace))) }
        })
    };
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
    let io = TokioIo::new(Paced::new(socket, Arc::clone(&pace)));
    let mut connection = pin!(builder.serve_connection(io, service).with_upgrades());

    let mut alarm: Option<Pin<Box<Sleep>>> = None;
    let mut leaving = false;
    let mut listens = false;
    let mut stage_changes = pin!(stage_reached(stage));
    let over = std::future::poll_fn(|task: &mut Context<'_>| {
        if let Poll::Ready(result) = connection.as_mut().poll(task) {
            return Poll::Ready(result);
        }
        // The end of the grace for idle connections, or of the whole drain.
        // This task listens for it since its first turn, so only a drain is worth another look.
        let look = !leaving && (!listens || core.shared().is_draining());
        listens = true;
        if look && stage_changes.as_mut().poll(task).is_ready() {
            leaving = true;
            connection.as_mut().graceful_shutdown();
            if let Poll::Ready(result) = connection.as_mut().poll(task) {
                return Poll::Ready(result);
            }
        }
        if leaving && pace.is_lingering() {
            return Poll::Ready(Ok(()));
        }
        while let Some(deadline) = pace.deadline(&limits) {
            let deadline = tokio::time::Instant::from_std(deadline);
            let sleep = alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            // An alarm that is set too early only means one look too many; one set too late must be moved.
            if sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            if poll_alarm(sleep.as_mut(), task).is_pending() {
                break;
            }
            if sleep.deadline() >= deadline {
                return Poll::Ready(Ok(()));
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    });
    if let Err(error) = over.await {
        tracing::debug!(%error, "a client connection ended in an error");
    }
}

/// Resolves when idle connections have had their grace.
async fn stage_reached(mut stage: watch::Receiver<Stage>) {
    // The sender lives as long as the process serves; should it be gone, it is time to leave too.
    let _ = stage.wait_for(|stage| *stage >= Stage::Leave).await;
}
