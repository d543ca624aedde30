//! How long a connection may take over what it is doing right now.
//!
//! hyper has one timer for the head and for idling; we promise two. The pace of a connection is kept in a few atomics
//! (its socket has to be `Send` for upgrades), and the connection looks at it only when it has nothing else to do, so
//! that an ordinary request arms no timer.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http_body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use crate::clock::Clock;
use crate::config::Limits;
use crate::message::head::Unreadable;
use crate::message::spelling;

/// What one connection is doing, and since when.
pub(super) struct Pace {
    clock: Clock,
    origin: Instant,
    /// The same moment, as [`Clock::ticks`] counts.
    origin_ticks: u64,
    phase: AtomicU8,
    /// Milliseconds since `origin`.
    since: AtomicU64,
    /// Milliseconds since `origin` plus one; 0: the client takes what is written.
    stalled_since: AtomicU64,
    /// What the socket has to tell about the request whose head was given to hyper last.
    given: Mutex<Given>,
    /// What hyper reads now, see [`Reads`].
    reads: AtomicU8,
    /// Of a body with a length: bytes that hyper has not been given yet.
    left: AtomicU64,
    /// The answer to the last request may not have been handed to the kernel as a whole.
    unflushed: AtomicBool,
    /// Bytes have come that hyper has not been given.
    holds: AtomicBool,
    /// The client may still be sending: its last request had a body, or made no sense.
    may_send_on: AtomicBool,
    /// The client's end of the stream has been read.
    ended: AtomicBool,
    /// Milliseconds since `origin` at which the connection began to be closed.
    closing_since: AtomicU64,
    /// Wakes the connection's task; there once it has begun.
    task: OnceLock<Waker>,
    /// Somebody else needs the place, if the connection is still idle.
    sent_away: AtomicBool,
    /// The connection's place under `max_connections`. Whatever becomes of the socket, a tunnel too, keeps this alive.
    _place: Option<OwnedSemaphorePermit>,
}

/// What the socket has to tell about a request.
#[derive(Default)]
pub(super) struct Given {
    /// Its head as it came.
    pub(super) head: Vec<u8>,
    /// Where in it the target stands that hyper was not given.
    pub(super) odd_target: Option<std::ops::Range<usize>>,
    /// It is refused, and hyper was given another one in its place.
    pub(super) refused: Option<Unreadable>,
}

/// What hyper is to be given next. It gets one message at a time, so that each head is looked at before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reads {
    /// A head: none of it before it is there as a whole.
    Head = 0,
    /// The head was given; what it says of a body is not known yet.
    Given = 1,
    /// So much of a body is left. At 0 the message is over.
    Length = 2,
    /// A body whose end is in its chunks.
    Chunked = 3,
    /// The chunks are over.
    ChunksOver = 4,
    /// Bytes of something else than HTTP.
    Tunnel = 5,
}

/// Of one head, for the spelling of its names.
const MOST_KEPT_BYTES: usize = 32 * 1024;

/// Nothing has come yet, or a head has begun to come, or has just been given to hyper.
const HEAD: u8 = 0;
/// A request is being answered.
const SERVING: u8 = 1;
/// Kept alive, waiting for the next request.
const IDLE: u8 = 2;
/// The last answer is out; what still comes is read and thrown away.
const LINGERING: u8 = 3;

/// How long a client may be silent, and how long it may go on sending, after an answer that ended the connection.
///
/// Closing a socket with unread bytes in it makes the kernel send a reset, and a client that is still writing its body
/// may then never read the answer, a 413 say (RFC 9112 section 9.6).
const LINGER_SILENT: Duration = Duration::from_secs(5);
const LINGER_IN_ALL: Duration = Duration::from_secs(30);

/// How long a connection is idle before its buffers are given back.
const REST_AFTER: Duration = Duration::from_millis(500);

/// Why a connection is closed when its deadline has come: the key that would have given it longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Header,
    Idle,
    Stall,
    Linger,
    /// It was idle, and others need its place.
    Crowded,
}

impl Cut {
    /// The key of the configuration; empty where there is none.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Header => "server.limits.header_timeout",
            Self::Idle => "server.limits.idle_timeout",
            Self::Stall => "server.limits.stall_timeout",
            Self::Linger => "",
            Self::Crowded => "server.limits.max_connections",
        }
    }

    /// The reason code of what is cut off by it.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Header => "header_timeout",
            Self::Idle => "idle_timeout",
            Self::Stall => "stall_timeout",
            Self::Linger => "client_left",
            Self::Crowded => "max_connections",
        }
    }
}

impl Pace {
    pub(super) fn new(clock: &Clock, place: Option<OwnedSemaphorePermit>) -> Arc<Self> {
        Arc::new(Self {
            clock: clock.clone(),
            origin: clock.instant(),
            origin_ticks: clock.ticks(),
            phase: AtomicU8::new(HEAD),
            since: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
            given: Mutex::default(),
            reads: AtomicU8::new(Reads::Head as u8),
            left: AtomicU64::new(0),
            unflushed: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            may_send_on: AtomicBool::new(true),
            ended: AtomicBool::new(false),
            closing_since: AtomicU64::new(0),
            task: OnceLock::new(),
            sent_away: AtomicBool::new(false),
            _place: place,
        })
    }

    fn now(&self) -> u64 {
        self.clock.ticks().saturating_sub(self.origin_ticks)
    }

    fn enter(&self, phase: u8) {
        self.since.store(self.now(), Ordering::Relaxed);
        self.phase.store(phase, Ordering::Relaxed);
    }

    fn is_in(&self, phase: u8) -> bool {
        self.phase.load(Ordering::Relaxed) == phase
    }

    /// A request's head is complete, and its body is so long (`None`: chunked). False: hyper has made it of bytes that no
    /// head was seen in.
    pub(super) fn serving(&self, length: Option<u64>) -> bool {
        let in_step = self.reads() == Reads::Given;
        self.phase.store(SERVING, Ordering::Relaxed);
        self.unflushed.store(true, Ordering::Relaxed);
        self.may_send_on.store(length != Some(0) || !in_step, Ordering::Relaxed);
        self.left.store(length.unwrap_or(0), Ordering::Relaxed);
        self.set_reads(if length.is_some() { Reads::Length } else { Reads::Chunked });
        in_step
    }

    /// From now on no HTTP comes on this connection: its upgrade was agreed to.
    pub(super) fn becomes_a_tunnel(&self) {
        // Of a tunnel one direction may end before the other: what comes there is for somebody else.
        self.may_send_on.store(false, Ordering::Relaxed);
        self.set_reads(Reads::Tunnel);
    }

    /// What is known of the request whose head was given to hyper last.
    pub(super) fn take_given(&self) -> Given {
        std::mem::take(&mut self.given.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells about the head that hyper is given now. `head`: as it came.
    pub(super) fn give(&self, head: &[u8], odd_target: Option<std::ops::Range<usize>>, refused: Option<Unreadable>) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = std::mem::take(&mut given.head);
        kept.clear();
        if kept.capacity() == 0 {
            kept = spelling::buffer();
        }
        // The target has to be there as a whole.
        let most = MOST_KEPT_BYTES.max(odd_target.as_ref().map_or(0, |range| range.end));
        kept.extend_from_slice(head.get(..most).unwrap_or(head));
        *given = Given { head: kept, odd_target, refused };
        self.set_reads(Reads::Given);
    }

    /// hyper has refused the head that it was given.
    pub(super) fn was_refused_by_hyper(&self) -> bool {
        self.is_in(HEAD) && self.reads() == Reads::Given
    }

    /// A head is waited for anew on this connection, though the last one was no request.
    pub(super) fn begin_again(&self) {
        self.set_reads(Reads::Head);
    }

    pub(super) fn reads(&self) -> Reads {
        match self.reads.load(Ordering::Relaxed) {
            0 => Reads::Head,
            1 => Reads::Given,
            2 => Reads::Length,
            3 => Reads::Chunked,
            4 => Reads::ChunksOver,
            _ => Reads::Tunnel,
        }
    }

    pub(super) fn set_reads(&self, reads: Reads) {
        self.reads.store(reads as u8, Ordering::Relaxed);
    }

    /// Of a body with a length: how much of it hyper has not been given yet.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    pub(super) fn gave(&self, bytes: usize) {
        let left = self.left.load(Ordering::Relaxed).saturating_sub(bytes as u64);
        self.left.store(left, Ordering::Relaxed);
    }

    /// Whether the last message was read to its end.
    fn message_is_over(&self) -> bool {
        match self.reads() {
            Reads::Length => self.left() == 0,
            Reads::ChunksOver => true,
            Reads::Head | Reads::Given | Reads::Chunked | Reads::Tunnel => false,
        }
    }

    /// Whether the next head may be given to hyper: the last request was read, and its answer is with the kernel.
    pub(super) fn next_may_begin(&self) -> bool {
        self.is_in(IDLE) && !self.unflushed.load(Ordering::Relaxed) && self.message_is_over()
    }

    /// The first bytes of a head have come.
    pub(super) fn begins_a_head(&self) {
        if self.is_in(IDLE) {
            self.enter(HEAD);
            self.may_send_on.store(true, Ordering::Relaxed);
        }
    }

    /// What was written is with the kernel. True: that was the end of an answer.
    pub(super) fn flushed(&self) -> bool {
        let ends = self.is_in(IDLE) && self.unflushed.load(Ordering::Relaxed);
        if ends {
            self.unflushed.store(false, Ordering::Relaxed);
        }
        ends
    }

    /// The client does not take what is written, or takes it again.
    pub(super) fn wrote(&self, stalls: bool) {
        if !stalls {
            self.stalled_since.store(0, Ordering::Relaxed);
        } else if self.stalled_since.load(Ordering::Relaxed) == 0 {
            self.stalled_since.store(self.now() + 1, Ordering::Relaxed);
        }
    }

    /// The client has closed its side.
    pub(super) fn has_ended(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Where the request ends is not known: its client may go on sending what was to be its body.
    pub(super) fn may_send_on(&self) {
        self.may_send_on.store(true, Ordering::Relaxed);
    }

    /// The connection is being closed. False: there is nothing to wait for.
    pub(super) fn begins_to_linger(&self) -> bool {
        if !self.may_send_on.load(Ordering::Relaxed) || self.ended.load(Ordering::Relaxed) {
            return false;
        }
        if !self.is_lingering() {
            self.lingers_on();
            self.closing_since.store(self.since.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        true
    }

    /// The client has sent something that is thrown away.
    pub(super) fn lingers_on(&self) {
        self.enter(LINGERING);
    }

    /// Whether the connection is only kept so that its client can read the last answer.
    pub(super) fn is_lingering(&self) -> bool {
        self.is_in(LINGERING)
    }

    /// Whether bytes have come that hyper was not given.
    pub(super) fn holds(&self) -> bool {
        self.holds.load(Ordering::Relaxed)
    }

    pub(super) fn set_holds(&self, holds: bool) {
        self.holds.store(holds, Ordering::Relaxed);
    }

    /// Whether no request is under way: a head is waited for, or a part of one has come.
    pub(super) fn is_waiting_for_a_head(&self) -> bool {
        self.is_in(HEAD) && self.reads() == Reads::Head
    }

    /// Whether the connection waits for its next request.
    pub(super) fn is_idle(&self) -> bool {
        self.is_in(IDLE)
    }

    /// Since when, as [`Clock::ticks`] counts, the connection is idle: it waits for its next request, has been silent since it
    /// came, or is only kept so that the last answer is read. `None`: a request is under way, or has begun to come.
    pub(super) fn idle_since(&self) -> Option<u64> {
        /// The first request of a connection may be on its way.
        const NEW: u64 = 100;
        let since = self.since.load(Ordering::Relaxed);
        let silent = self.is_waiting_for_a_head() && !self.holds() && self.now().saturating_sub(since) >= NEW;
        let is_taken = self.stalled_since.load(Ordering::Relaxed) == 0;
        let idle = (self.is_idle() && is_taken && !self.holds()) || self.is_lingering() || silent;
        idle.then_some(self.origin_ticks + since)
    }

    /// This task is to be woken when the connection is sent away.
    pub(super) fn is_driven_by(&self, task: &Context<'_>) {
        let _ = self.task.get_or_init(|| task.waker().clone());
    }

    /// Another connection needs the place.
    pub(super) fn send_away(&self) {
        self.sent_away.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }

    /// Whether the connection has to leave: it was sent away, and is still idle.
    pub(super) fn has_to_leave(&self) -> bool {
        self.sent_away.load(Ordering::Relaxed)
            && self.sent_away.swap(false, Ordering::Relaxed)
            && self.idle_since().is_some()
    }

    /// When nothing of this connection is worth keeping but its socket, if nothing happens until then: it is idle, and hyper
    /// holds no byte of it. `None` where that is not sure.
    ///
    /// The last request had no body and its answer is out, and hyper was given no byte behind its head.
    pub(super) fn rests_at(&self) -> Option<Instant> {
        let rests = (self.next_may_begin() || self.is_idle() && self.reads() == Reads::Head)
            && !self.holds.load(Ordering::Relaxed)
            && !self.may_send_on.load(Ordering::Relaxed);
        rests.then(|| self.origin + Duration::from_millis(self.since.load(Ordering::Relaxed)) + REST_AFTER)
    }

    /// When the connection is to be closed if nothing happens, and why; `None` while a request is being answered and taken.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<(Instant, Cut)> {
        let phase = match self.phase.load(Ordering::Relaxed) {
            HEAD => Some((limits.header_timeout, Cut::Header)),
            IDLE => Some((limits.idle_timeout, Cut::Idle)),
            LINGERING => Some((LINGER_SILENT, Cut::Linger)),
            _ => None,
        };
        let at = |millis: u64, limit: Duration| self.origin + Duration::from_millis(millis) + limit;
        let waiting = phase.map(|(limit, cut)| (at(self.since.load(Ordering::Relaxed), limit), cut));
        let stalled = match self.stalled_since.load(Ordering::Relaxed) {
            0 => None,
            since => Some((at(since - 1, limits.stall_timeout), Cut::Stall)),
        };
        // An answer that is not taken is no idleness.
        let waiting = waiting.filter(|(_, cut)| stalled.is_none() || *cut != Cut::Idle);
        let lingered =
            self.is_lingering().then(|| (at(self.closing_since.load(Ordering::Relaxed), LINGER_IN_ALL), Cut::Linger));
        waiting.into_iter().chain(stalled).chain(lingered).min_by_key(|(at, _)| *at)
    }
}

/// An answer's body that tells when it is done with.
pub(super) struct PacedBody<B> {
    body: B,
    pace: Arc<Pace>,
}

impl<B> PacedBody<B> {
    pub(super) const fn new(body: B, pace: Arc<Pace>) -> Self {
        Self { body, pace }
    }
}

impl<B> Drop for PacedBody<B> {
    fn drop(&mut self) {
        self.pace.enter(IDLE);
    }
}

impl<B: Body + Unpin> Body for PacedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(task)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
