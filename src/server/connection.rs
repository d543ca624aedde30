//! One client connection: hyper with every limit set, and the deadlines that it leaves to us.

use std::convert::Infallible;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::UPGRADE;
use http::{Request, Response, StatusCode, Uri};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::Stage;
use super::pace::{Cut, Pace, PacedBody};
use super::roster::Roster;
use super::socket::{HeadLimits, Paced, Seat};
use crate::clock::KeptAlarm;
use crate::config::Limits;
use crate::gate::{self, AnswerBody, Client, Core};
use crate::message::head::{self, RawTarget, Unreadable};
use crate::message::spelling::Spelling;

/// hyper's buffer for one direction; it also bounds what a slow client can make us hold.
const BUFFER_BYTES: usize = 64 * 1024;

/// How many headers hyper takes unless told otherwise; more are answered with 431. A test holds it.
const DEFAULT_MAX_HEADERS: usize = 100;

/// Serves one connection to its end. `admission`: its place under
/// `max_connections`, which a tunnel that comes of it keeps.
pub(super) async fn serve<S>(
    socket: S,
    peer: Option<IpAddr>,
    admission: Option<(OwnedSemaphorePermit, Arc<Roster>)>,
    core: Rc<Core>,
    stage: watch::Receiver<Stage>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = core.shared().live().config.server.limits.clone();
    let (permit, roster) = admission.unzip();
    let pace = Pace::new(core.shared().clock(), permit);
    let _entry = roster.map(|roster| roster.enter(&pace));
    let seat: Seat<S> = Seat::default();
    let protocol = protocol(&limits);
    let client = Client { peer, ties: Rc::default() };
    let heads = HeadLimits { bytes: limits.max_header_bytes, headers: limits.max_headers };
    let turns = Turns { heads, pace: Arc::clone(&pace), seat: Arc::clone(&seat) };
    let http_on = |socket: Paced<S>| {
        let service = service(Arc::clone(&pace), Rc::clone(&core), client.clone());
        Box::pin(protocol.serve_connection(TokioIo::new(socket), service).with_upgrades())
    };

    let mut turn = Turn::Resting(socket);
    let mut alarm = KeptAlarm::default();
    let (mut leaving, mut listens) = (false, false);
    let mut stage_changes = pin!(stage_reached(stage));
    let over = std::future::poll_fn(|task: &mut Context<'_>| {
        pace.is_driven_by(task);
        loop {
            match std::mem::replace(&mut turn, Turn::Over) {
                Turn::Resting(mut socket) => match poll_first(&mut socket, task) {
                    Poll::Ready(first) if first.is_empty() => return Poll::Ready(Ok(())),
                    Poll::Ready(first) => {
                        let mut http = http_on(turns.paced(socket, first));
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
                        drop(http);
                        let Some(socket) = turns.refused_by_hyper() else { return Poll::Ready(result) };
                        turn = Turn::Serving(http_on(socket));
                        continue;
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
            match ready!(poll_due(&pace, &limits, rests, &mut alarm, task)) {
                Due::Rest => {}
                Due::Close(cut) => {
                    tell(cut, peer);
                    let unfinished = cut == Cut::Header && pace.is_waiting_for_a_head() && pace.holds();
                    gate::cutting(cut.reason(), || drop(std::mem::replace(&mut turn, Turn::Over)));
                    if unfinished && let Some(socket) = turns.refusing(Some(Unreadable::HeaderTimeout)) {
                        turn = Turn::Serving(http_on(socket));
                    }
                    continue;
                }
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

/// Where a connection's socket goes to hyper and comes back from it.
struct Turns<S> {
    heads: HeadLimits,
    pace: Arc<Pace>,
    seat: Seat<S>,
}

impl<S: AsyncRead + Unpin> Turns<S> {
    /// For hyper, with what was read already.
    fn paced(&self, socket: S, first: Vec<u8>) -> Paced<S> {
        Paced::new(socket, first, self.heads, Arc::clone(&self.pace), Arc::clone(&self.seat))
    }

    /// Call it when hyper has been dropped: the socket, for an answer of ours, where hyper has refused its head.
    fn refused_by_hyper(&self) -> Option<Paced<S>> {
        if self.pace.was_refused_by_hyper() { self.refusing(None) } else { None }
    }

    /// The same for a head that is refused for another reason.
    fn refusing(&self, why: Option<Unreadable>) -> Option<Paced<S>> {
        // `None`: it has become a tunnel's.
        let socket = self.seat.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let head = self.pace.take_given().head;
        let why = why.unwrap_or_else(|| head::refusal(&head, self.heads.headers));
        Some(Paced::refusing(socket, &head, why, self.heads, Arc::clone(&self.pace), Arc::clone(&self.seat)))
    }
}

/// What it is time for.
enum Due {
    /// The connection gives up what it holds.
    Rest,
    Close(Cut),
}

/// Ready when it is time for something. `rests`: there is nothing to give up.
fn poll_due(pace: &Pace, limits: &Limits, rests: bool, alarm: &mut KeptAlarm, task: &mut Context<'_>) -> Poll<Due> {
    if pace.has_to_leave() {
        return Poll::Ready(Due::Close(Cut::Crowded));
    }
    let closes = pace.deadline(limits);
    let rests_at = if rests { None } else { pace.rests_at() };
    let due = match (closes, rests_at) {
        (Some((at, cut)), Some(rests_at)) if at <= rests_at => (at, Due::Close(cut)),
        (_, Some(rests_at)) => (rests_at, Due::Rest),
        (Some((at, cut)), None) => (at, Due::Close(cut)),
        (None, None) => return Poll::Pending,
    };
    ready!(alarm.poll_due(task, Instant::from_std(due.0)));
    Poll::Ready(due.1)
}

/// Says which key would have given a connection longer.
fn tell(cut: Cut, peer: Option<IpAddr>) {
    let client = peer.map(tracing::field::display);
    match cut {
        Cut::Stall => tracing::info!(client, key = cut.key(), "a client did not take its answer and is cut off"),
        Cut::Header | Cut::Idle | Cut::Crowded => {
            tracing::debug!(client, key = cut.key(), "a client was silent and is cut off");
        }
        Cut::Linger => {}
    }
}

/// HTTP/1.1 with every limit set but the deadlines. How large a head may be is known before hyper gets it.
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
    client: Client,
) -> impl Service<Request<Incoming>, Response = Response<PacedBody<AnswerBody>>, Error = Infallible> {
    service_fn(move |mut request: Request<Incoming>| {
        let in_step = pace.serving(request.body().size_hint().exact());
        let mut given = pace.take_given();
        let mut refused = given.refused.or_else(|| (!in_step).then_some(Unreadable::OutOfStep));
        if refused.is_none()
            && let Some(range) = given.odd_target.take()
        {
            refused = put_target(&mut request, given.head.get(range).unwrap_or_default()).err();
        }
        let may_switch = request.headers().contains_key(UPGRADE);
        let pace = Arc::clone(&pace);
        let answer = if let Some(why) = refused {
            if why != Unreadable::HeaderTimeout {
                pace.may_send_on();
            }
            Err(gate::refuse(&core, client.peer, &given.head, why))
        } else {
            let spelling = Spelling::new(given.head);
            // In a box: hyper would move it about, and it is large. Made in its place, for the same reason.
            let answer =
                Box::write(Box::new_uninit(), gate::handle(Rc::clone(&core), client.clone(), request, spelling));
            Ok(Box::into_pin(answer))
        };
        async move {
            let answer = match answer {
                Ok(answer) => answer.await,
                Err(refusal) => refusal,
            };
            if may_switch && answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                pace.becomes_a_tunnel();
            }
            Ok(answer.map(|body| PacedBody::new(body, pace)))
        }
    })
}

/// Gives a request the target that it came with and that hyper has not seen: encoded for all that decides, and as it came
/// for the backend.
fn put_target(request: &mut Request<Incoming>, target: &[u8]) -> Result<(), Unreadable> {
    let encoded = head::encoded(target);
    let too_long = encoded.len() > usize::from(u16::MAX - 1);
    *request.uri_mut() = Uri::from_maybe_shared(Bytes::from(encoded))
        .map_err(|_| if too_long { Unreadable::TargetTooLong } else { Unreadable::Target })?;
    request.extensions_mut().insert(RawTarget(Bytes::copy_from_slice(head::path_and_query(target))));
    Ok(())
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
