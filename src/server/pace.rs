//! How long a connection may take over what it is doing right now.
//!
//! hyper has one timer for the head and for idling; we promise two. The pace of a connection is kept in a few atomics
//! (its socket has to be `Send` for upgrades), and the connection looks at it only when it has nothing else to do, so
//! that an ordinary request arms no timer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::Clock;
use crate::config::Limits;
use crate::message::spelling::{self, Spelling};

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
    /// What has come of the next head, for the spelling of its names. Only what comes while one is waited for: bytes that
    /// came before may belong to the last message, so where requests are sent ahead the spelling is not known.
    head: Mutex<Vec<u8>>,
    /// No head is kept: something else than HTTP will follow.
    forgets: AtomicBool,
    /// The client may still be sending: its last request had a body, or made no sense.
    may_send_on: AtomicBool,
    /// The client's end of the stream has been read.
    ended: AtomicBool,
    /// What was read last ended as a head does, so that behind the heads that were served nothing more has come.
    ends_as_head: AtomicBool,
    /// Milliseconds since `origin` at which the connection began to be closed.
    closing_since: AtomicU64,
}

/// Of one head.
const MOST_KEPT_BYTES: usize = 16 * 1024;

/// Nothing has come yet, or a head has begun to come.
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

impl Pace {
    pub(super) fn new(clock: &Clock) -> Arc<Self> {
        Arc::new(Self {
            clock: clock.clone(),
            origin: clock.instant(),
            origin_ticks: clock.ticks(),
            phase: AtomicU8::new(HEAD),
            since: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
            head: Mutex::default(),
            forgets: AtomicBool::new(false),
            may_send_on: AtomicBool::new(true),
            ended: AtomicBool::new(false),
            ends_as_head: AtomicBool::new(false),
            closing_since: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        self.clock.ticks().saturating_sub(self.origin_ticks)
    }

    fn enter(&self, phase: u8) {
        self.since.store(self.now(), Ordering::Relaxed);
        self.phase.store(phase, Ordering::Relaxed);
    }

    /// A request's head is complete. `whole`: it has no body.
    pub(super) fn serving(&self, whole: bool) {
        self.phase.store(SERVING, Ordering::Relaxed);
        self.may_send_on.store(!whole, Ordering::Relaxed);
    }

    /// Whether the connection is only kept so that its client can read the last answer.
    pub(super) fn is_lingering(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == LINGERING
    }

    /// How the head that is complete now was spelled.
    pub(super) fn spelling(&self) -> Spelling {
        Spelling::new(std::mem::take(&mut self.head.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// From now on no head is kept on this connection: it becomes a tunnel.
    pub(super) fn forget_heads(&self) {
        self.forgets.store(true, Ordering::Relaxed);
    }

    /// Keeps what came of a head.
    fn keep(&self, bytes: &[u8]) {
        if self.phase.load(Ordering::Relaxed) == SERVING || self.forgets.load(Ordering::Relaxed) {
            return;
        }
        let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        if head.capacity() == 0 {
            *head = spelling::buffer();
        }
        let room = MOST_KEPT_BYTES.saturating_sub(head.len());
        head.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    /// Whether the connection waits for its next request.
    pub(super) fn is_idle(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == IDLE
    }

    /// When nothing of this connection is worth keeping but its socket, if nothing happens until then: it is idle, and hyper
    /// holds no byte of it. `None` where that is not sure.
    ///
    /// The last request had no body and its answer is out. What the client sent last ended in an empty line, so if anything
    /// stood behind that request's head, it would end in one, too: another head, which would be served by now, or empty
    /// lines, which mean nothing (RFC 9112 section 2.2).
    pub(super) fn rests_at(&self) -> Option<Instant> {
        let rests = self.is_idle()
            && self.ends_as_head.load(Ordering::Relaxed)
            && !self.may_send_on.load(Ordering::Relaxed)
            && !self.forgets.load(Ordering::Relaxed)
            && self.stalled_since.load(Ordering::Relaxed) == 0;
        rests.then(|| self.origin + Duration::from_millis(self.since.load(Ordering::Relaxed)) + REST_AFTER)
    }

    /// When the connection is to be closed if nothing happens; `None` while a request is being answered and taken.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let phase = match self.phase.load(Ordering::Relaxed) {
            HEAD => Some(limits.header_timeout),
            IDLE => Some(limits.idle_timeout),
            LINGERING => Some(LINGER_SILENT),
            _ => None,
        };
        let at = |millis: u64, limit: Duration| self.origin + Duration::from_millis(millis) + limit;
        let waiting = phase.map(|limit| at(self.since.load(Ordering::Relaxed), limit));
        let stalled = match self.stalled_since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(at(since - 1, limits.idle_timeout)),
        };
        let lingered = self.is_lingering().then(|| at(self.closing_since.load(Ordering::Relaxed), LINGER_IN_ALL));
        waiting.into_iter().chain(stalled).chain(lingered).min()
    }
}

/// So much is copied together for one plain write: the kernel takes longer over a list of pieces.
const SMALL_WRITE_BYTES: usize = 4 * 1024;

thread_local! {
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Where a socket comes back to when whoever used it is done with it.
pub(super) type Seat<S> = Arc<Mutex<Option<S>>>;

/// A socket that tells its pace.
pub(super) struct Paced<S> {
    /// There until this is dropped.
    socket: Option<S>,
    /// What has been read of it already.
    first: Vec<u8>,
    pace: Arc<Pace>,
    seat: Seat<S>,
}

impl<S> Paced<S> {
    /// `first`: what has been read of it already. The socket is put into `seat` at the end.
    pub(super) const fn new(socket: S, first: Vec<u8>, pace: Arc<Pace>, seat: Seat<S>) -> Self {
        Self { socket: Some(socket), first, pace, seat }
    }

    fn wrote<T>(&self, poll: Poll<T>) -> Poll<T> {
        if poll.is_pending() {
            if self.pace.stalled_since.load(Ordering::Relaxed) == 0 {
                self.pace.stalled_since.store(self.pace.now() + 1, Ordering::Relaxed);
            }
        } else {
            self.pace.stalled_since.store(0, Ordering::Relaxed);
        }
        poll
    }
}

impl<S: Unpin> Paced<S> {
    fn socket(&mut self) -> io::Result<Pin<&mut S>> {
        self.socket.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<S> Drop for Paced<S> {
    fn drop(&mut self) {
        *self.seat.lock().unwrap_or_else(PoisonError::into_inner) = self.socket.take();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = if self.first.is_empty() {
            self.socket()?.poll_read(task, buffer)
        } else {
            let mut first = std::mem::take(&mut self.first);
            let length = first.len().min(buffer.remaining());
            buffer.put_slice(first.get(..length).unwrap_or_default());
            if length < first.len() {
                first.drain(..length);
                self.first = first;
            }
            Poll::Ready(Ok(()))
        };
        if let Some(came @ [_, ..]) = buffer.filled().get(before..) {
            self.pace.ends_as_head.store(came.ends_with(b"\r\n\r\n"), Ordering::Relaxed);
            if self.pace.is_idle() {
                self.pace.enter(HEAD);
                self.pace.may_send_on.store(true, Ordering::Relaxed);
            }
            self.pace.keep(came);
        } else if poll.is_ready() {
            self.pace.ended.store(true, Ordering::Relaxed);
        }
        poll
    }
}

impl<S: AsyncRead + Unpin> Paced<S> {
    /// Reads and throws away what the client still sends, until it has read the answer and closes, or fails.
    fn linger(&mut self, task: &mut Context<'_>) -> Poll<()> {
        const PIECE_BYTES: usize = 16 * 1024;
        /// Then the others have their turn.
        const MOST_PIECES: usize = 16;
        // Of a tunnel one direction may end before the other: what comes there is for somebody else.
        let tunnel = self.pace.forgets.load(Ordering::Relaxed);
        if tunnel || !self.pace.may_send_on.load(Ordering::Relaxed) || self.pace.ended.load(Ordering::Relaxed) {
            return Poll::Ready(());
        }
        if !self.pace.is_lingering() {
            self.pace.enter(LINGERING);
            self.pace.closing_since.store(self.pace.since.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let mut piece = [std::mem::MaybeUninit::uninit(); PIECE_BYTES];
        for _ in 0..MOST_PIECES {
            let mut buffer = ReadBuf::uninit(&mut piece);
            let Ok(socket) = self.socket() else { return Poll::Ready(()) };
            match socket.poll_read(task, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.pace.enter(LINGERING),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        task.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = self.socket()?.poll_write(task, bytes);
        self.wrote(poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket()?.poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.pace.is_lingering() {
            std::task::ready!(self.socket()?.poll_shutdown(task))?;
        }
        self.linger(task).map(Ok)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        let poll = if length <= SMALL_WRITE_BYTES {
            GATHERED.with_borrow_mut(|gathered| {
                gathered.clear();
                for slice in slices {
                    gathered.extend_from_slice(slice);
                }
                self.socket()?.poll_write(task, gathered)
            })
        } else {
            self.socket()?.poll_write_vectored(task, slices)
        };
        self.wrote(poll)
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    fn limits() -> Limits {
        let [header_timeout, idle_timeout, body_timeout] = [10, 75, 60].map(Duration::from_secs);
        Limits {
            header_timeout,
            idle_timeout,
            body_timeout,
            max_headers: 100,
            max_header_bytes: 32_768,
            max_connections: 10,
        }
    }

    /// A connection that has just come, and its client's end.
    fn connection(clock: &Clock) -> (Paced<DuplexStream>, DuplexStream, Arc<Pace>) {
        let (ours, theirs) = tokio::io::duplex(64);
        let pace = Pace::new(clock);
        (Paced::new(ours, Vec::new(), Arc::clone(&pace), Seat::default()), theirs, pace)
    }

    fn at(pace: &Pace, clock: &Clock) -> Option<Duration> {
        pace.deadline(&limits()).map(|deadline| deadline.saturating_duration_since(clock.instant()))
    }

    #[tokio::test]
    async fn a_client_whose_request_was_whole_is_not_waited_for() {
        let clock = Clock::manual(1_000);
        let (mut paced, _theirs, pace) = connection(&clock);
        pace.serving(true);
        paced.shutdown().await.unwrap();
        assert!(!pace.is_lingering());
    }

    #[tokio::test]
    async fn a_client_that_may_send_on_is_read_until_it_ends_but_not_for_ever() {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        pace.serving(false);
        let mut task = Context::from_waker(Waker::noop());
        {
            let mut closing = pin!(paced.shutdown());
            assert!(closing.as_mut().poll(&mut task).is_pending());
            assert_eq!(at(&pace, &clock), Some(LINGER_SILENT), "silence ends it");
            assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0, "the client has the end of our side already");

            // A client that goes on and on moves the end of the silence, and not the end of it all.
            for _ in 0..8 {
                clock.advance(Duration::from_secs(3));
                theirs.write_all(b"more").await.unwrap();
                assert!(closing.as_mut().poll(&mut task).is_pending());
            }
            assert_eq!(at(&pace, &clock), Some(LINGER_SILENT));
            clock.advance(Duration::from_secs(3));
            theirs.write_all(b"more").await.unwrap();
            assert!(closing.as_mut().poll(&mut task).is_pending());
            assert_eq!(at(&pace, &clock), Some(LINGER_IN_ALL.saturating_sub(Duration::from_secs(27))));

            drop(theirs);
            assert!(closing.as_mut().poll(&mut task).is_ready(), "the client has closed: nothing is left to wait for");
        }
        assert!(pace.is_lingering());
    }

    #[tokio::test]
    async fn nothing_is_read_from_a_tunnel_whose_other_direction_has_ended() {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        pace.serving(true);
        pace.forget_heads();
        drop(PacedBody::new((), Arc::clone(&pace)));
        let mut said = [0; 8];
        theirs.write_all(b"before").await.unwrap();
        assert_eq!(paced.read(&mut said).await.unwrap(), 6);
        theirs.write_all(b"after").await.unwrap();
        let mut task = Context::from_waker(Waker::noop());
        assert!(pin!(paced.shutdown()).poll(&mut task).is_ready());
        assert_eq!(paced.read(&mut said).await.unwrap(), 5);
    }

    #[tokio::test]
    async fn only_what_comes_while_a_head_is_waited_for_is_kept() {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        let spelled = |pace: &Pace| {
            let spelling = pace.spelling();
            spelling.lines().find("x-a", b"b").map(|line| String::from_utf8(line.name.to_vec()).unwrap())
        };
        let mut said = [0; 64];
        theirs.write_all(b"GET / HTTP/1.1\r\nX-a: b\r\n\r\n").await.unwrap();
        let _ = paced.read(&mut said).await.unwrap();
        assert_eq!(spelled(&pace).as_deref(), Some("X-a"));
        // What comes while the request is served may be its body, and may look like a head.
        pace.serving(false);
        theirs.write_all(b"GET / HTTP/1.1\r\nX-A: b\r\n\r\n").await.unwrap();
        let _ = paced.read(&mut said).await.unwrap();
        drop(PacedBody::new((), Arc::clone(&pace)));
        assert_eq!(spelled(&pace), None);
    }

    /// Whether a connection may rest on which `sent` came, and then one request with or without a body was answered.
    async fn rests(sent: &[&[u8]], whole: bool) -> bool {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        assert_eq!(pace.rests_at(), None, "nothing was answered yet");
        for piece in sent {
            theirs.write_all(piece).await.unwrap();
            let _ = paced.read(&mut [0; 64]).await.unwrap();
        }
        pace.serving(whole);
        assert_eq!(pace.rests_at(), None, "it is being answered");
        drop(PacedBody::new((), Arc::clone(&pace)));
        pace.rests_at().inspect(|at| assert_eq!(*at, clock.instant() + REST_AFTER)).is_some()
    }

    #[tokio::test]
    async fn only_a_connection_of_which_nothing_is_left_rests() {
        assert!(rests(&[b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"], true).await);
        assert!(rests(&[b"GET / HTTP/1.1\r\n", b"Host: h\r\n\r\n"], true).await);
        assert!(!rests(&[b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET"], true).await, "a part of the next head");
        assert!(!rests(&[b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /"], true).await, "the same, a little later");
        assert!(!rests(&[b"POST / HTTP/1.1\r\nHost: h\r\n\r\n"], false).await, "its body may not have been read");
    }

    #[tokio::test]
    async fn a_connection_whose_answer_is_not_taken_and_one_that_may_be_a_tunnel_do_not_rest() {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let _ = paced.read(&mut [0; 64]).await.unwrap();
        pace.serving(true);
        drop(PacedBody::new((), Arc::clone(&pace)));
        let mut task = Context::from_waker(Waker::noop());
        assert!(pin!(paced.write_all(&[0; 65])).poll(&mut task).is_pending());
        assert_eq!(pace.rests_at(), None);
        let _ = theirs.read(&mut [0; 64]).await.unwrap();
        paced.write_all(&[0]).await.unwrap();
        assert!(pace.rests_at().is_some());
        pace.forget_heads();
        assert_eq!(pace.rests_at(), None);
    }

    #[tokio::test]
    async fn what_was_read_before_comes_first_and_the_socket_comes_back() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (pace, seat) = (Pace::new(&Clock::manual(1_000)), Seat::default());
        let mut paced = Paced::new(ours, b"first".to_vec(), Arc::clone(&pace), Arc::clone(&seat));
        theirs.write_all(b"then").await.unwrap();
        let mut said = [0; 3];
        for expected in ["fir", "st", "the", "n"] {
            let length = paced.read(&mut said).await.unwrap();
            assert_eq!(said.get(..length), Some(expected.as_bytes()));
        }
        drop(paced);
        theirs.write_all(b"last").await.unwrap();
        let mut socket = seat.lock().unwrap().take().unwrap();
        assert_eq!(socket.read(&mut [0; 8]).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn a_client_that_has_closed_its_side_is_not_waited_for() {
        let clock = Clock::manual(1_000);
        let (mut paced, theirs, pace) = connection(&clock);
        drop(theirs);
        assert_eq!(paced.read(&mut [0]).await.unwrap(), 0);
        paced.shutdown().await.unwrap();
        assert!(!pace.is_lingering());
    }
}
