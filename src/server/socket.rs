//! A client's socket as hyper sees it: it gives one message at a time, each head whole and looked at before.
//!
//! Nobody is decided on, then, whose head was not seen here as it came: hyper cuts a `#fragment` off and refuses bytes that
//! backends can read, so a head with such a target is given to it with another one, and a head that is refused with
//! another request in its place. The gate learns both from the [`Pace`].
//!
//! The head of an ordinary request is read into hyper's own buffer and stays there.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::pace::{Pace, Reads};
use crate::message::chunks::Chunks;
use crate::message::head::{self, Line, Unreadable};

/// So much is copied together for one plain write: the kernel takes longer over a list of pieces.
const SMALL_WRITE_BYTES: usize = 4 * 1024;

/// What is read at once where hyper's own buffer is not the place for it.
const PIECE_BYTES: usize = 8 * 1024;

thread_local! {
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Where a socket comes back to when whoever used it is done with it.
pub(super) type Seat<S> = Arc<Mutex<Option<S>>>;

/// What a head may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadLimits {
    pub(super) bytes: usize,
    pub(super) headers: usize,
}

/// A socket that tells its pace.
pub(super) struct Paced<S> {
    /// There until this is dropped.
    socket: Option<S>,
    /// What has come and was not given to hyper.
    first: Vec<u8>,
    /// So much of it hyper may have now: a head.
    due: usize,
    chunks: Chunks,
    /// Who asked for the next head before its time.
    turned_away: Option<Waker>,
    limits: HeadLimits,
    pace: Arc<Pace>,
    seat: Seat<S>,
}

impl<S> Paced<S> {
    /// `first`: what has been read of it already. The socket is put into `seat` at the end.
    pub(super) fn new(socket: S, first: Vec<u8>, limits: HeadLimits, pace: Arc<Pace>, seat: Seat<S>) -> Self {
        let chunks = Chunks::default();
        pace.set_holds(!first.is_empty());
        Self { socket: Some(socket), first, due: 0, chunks, turned_away: None, limits, pace, seat }
    }

    /// The same for a client whose `head`, as far as it is known, is refused: hyper reads another request.
    pub(super) fn refusing(
        socket: S,
        head: &[u8],
        why: Unreadable,
        limits: HeadLimits,
        pace: Arc<Pace>,
        seat: Seat<S>,
    ) -> Self {
        let mut paced = Self::new(socket, substitute(head), limits, pace, seat);
        paced.due = paced.first.len();
        paced.pace.give(head, None, Some(why));
        paced
    }
}

impl<S: Unpin> Paced<S> {
    fn socket(&mut self) -> io::Result<Pin<&mut S>> {
        self.socket.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<S> Drop for Paced<S> {
    fn drop(&mut self) {
        if self.pace.is_waiting_for_a_head() && !self.first.is_empty() {
            // What is known of a head that did not come to its end, for the log.
            self.pace.give(&self.first, None, None);
            self.pace.begin_again();
        }
        *self.seat.lock().unwrap_or_else(PoisonError::into_inner) = self.socket.take();
    }
}

/// What has come of a head.
enum Found {
    /// More has to come.
    Part,
    /// All of it, to this byte.
    Whole(usize, Line),
    Bad(Unreadable),
}

impl<S: AsyncRead + Unpin> Paced<S> {
    /// Reads into hyper's buffer. Ready with nothing more in it: the client has ended.
    fn read(&mut self, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = self.socket()?.poll_read(task, buffer);
        if poll.is_ready() && buffer.filled().len() == before {
            self.pace.has_ended();
        }
        poll
    }

    /// Takes back what hyper's buffer has held since `from`.
    fn take_back(&mut self, buffer: &mut ReadBuf<'_>, from: usize) {
        self.first.extend_from_slice(buffer.filled().get(from..).unwrap_or_default());
        buffer.set_filled(from);
        self.pace.set_holds(!self.first.is_empty());
    }

    /// Gives hyper the beginning of what is held.
    fn hand_out(&mut self, buffer: &mut ReadBuf<'_>, most: usize) -> usize {
        let count = most.min(self.first.len()).min(buffer.remaining());
        buffer.put_slice(self.first.get(..count).unwrap_or_default());
        if count == self.first.len() {
            // The next bytes need no room of their own, most of the time.
            self.first = Vec::new();
        } else {
            self.first.drain(..count);
        }
        self.pace.set_holds(!self.first.is_empty());
        count
    }

    fn poll_head(&mut self, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            let before = buffer.filled().len();
            ready!(self.read(task, buffer))?;
            let came = buffer.filled().get(before..).unwrap_or_default();
            if came.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.pace.begins_a_head();
            if came.len() <= self.limits.bytes
                && head::end(came) == Some(came.len())
                && head::empty_lines(came) == 0
                && head::line(came) == Line::Plain
            {
                self.pace.give(came, None, None);
                return Poll::Ready(Ok(()));
            }
            self.take_back(buffer, before);
        } else {
            self.pace.begins_a_head();
        }
        self.poll_gathered(task, buffer)
    }

    /// The long way: a head that came in pieces, with something behind it, or that is not plain.
    fn poll_gathered(&mut self, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut seen = 0;
        loop {
            match self.find(seen) {
                Found::Part => {}
                Found::Whole(end, line) => {
                    self.admit(end, line);
                    break;
                }
                Found::Bad(unreadable) => {
                    self.refuse(unreadable);
                    break;
                }
            }
            seen = self.first.len();
            let mut piece = [MaybeUninit::uninit(); PIECE_BYTES];
            let mut piece = ReadBuf::uninit(&mut piece);
            ready!(self.read(task, &mut piece))?;
            if piece.filled().is_empty() {
                // The client has left in the middle of a head: there is nobody to answer.
                self.first = Vec::new();
                return Poll::Ready(Ok(()));
            }
            // To the byte: many clients may be at this point, for as long as the head's deadline lets them.
            self.first.reserve_exact(piece.filled().len());
            self.first.extend_from_slice(piece.filled());
            self.pace.set_holds(true);
        }
        let given = self.hand_out(buffer, self.due);
        self.due -= given;
        Poll::Ready(Ok(()))
    }

    /// Looks for a head in what is held, of which `seen` bytes were looked at before.
    fn find(&mut self, seen: usize) -> Found {
        let empty = head::empty_lines(&self.first);
        if empty > 0 {
            self.first.drain(..empty);
        }
        if self.first.is_empty() || *self.first == *b"\r" {
            return Found::Part;
        }
        let end = head::end(&self.first);
        if end.unwrap_or(self.first.len()) > self.limits.bytes {
            let has_line = memchr::memchr(b'\n', self.first.get(..self.limits.bytes).unwrap_or_default()).is_some();
            let fault = head::fault(self.first.get(..64).unwrap_or(&self.first), self.limits.headers);
            return Found::Bad(match fault {
                Some(fault) if !has_line => fault,
                _ if has_line => Unreadable::HeadTooLarge,
                _ => Unreadable::TargetTooLong,
            });
        }
        if let Some(end) = end {
            let line = head::line(self.first.get(..end).unwrap_or_default());
            return match line {
                Line::Bad(unreadable) => {
                    let head = self.first.get(..end).unwrap_or_default();
                    Found::Bad(head::fault(head, self.limits.headers).unwrap_or(unreadable))
                }
                line => Found::Whole(end, line),
            };
        }
        // Each line once, and what has no line yet by its beginning.
        let news = self.first.get(seen.saturating_sub(empty)..).unwrap_or_default();
        let worth_a_look = memchr::memchr(b'\n', news).is_some() || seen < 64;
        let fault = if worth_a_look { head::fault(&self.first, self.limits.headers) } else { None };
        fault.map_or(Found::Part, Found::Bad)
    }

    /// A whole head is what hyper gets next.
    fn admit(&mut self, end: usize, line: Line) {
        self.due = end;
        let head = self.first.get(..end).unwrap_or_default();
        let Line::Odd(target) = line else { return self.pace.give(head, None, None) };
        self.pace.give(head, Some(target.clone()), None);
        self.due -= target.len() - 1;
        self.first.splice(target, *b"/");
    }

    /// Another request is what hyper gets in this one's place; nothing behind it is a request.
    fn refuse(&mut self, unreadable: Unreadable) {
        self.pace.give(&self.first, None, Some(unreadable));
        self.first = substitute(&self.first);
        self.due = self.first.len();
    }

    /// The last message is over and its answer is not: nothing is given, and a client that leaves is noticed.
    fn poll_between(&mut self, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            let before = buffer.filled().len();
            ready!(self.read(task, buffer))?;
            if buffer.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            self.take_back(buffer, before);
        }
        self.turned_away = Some(task.waker().clone());
        Poll::Pending
    }

    fn poll_length(&mut self, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let left = usize::try_from(self.pace.left()).unwrap_or(usize::MAX);
        let before = buffer.filled().len();
        if self.first.is_empty() {
            ready!(self.read(task, buffer))?;
            if buffer.filled().len() - before > left {
                self.take_back(buffer, before + left);
            }
        } else {
            self.hand_out(buffer, left);
        }
        self.pace.gave(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }

    fn poll_chunks(&mut self, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.first.is_empty() {
            ready!(self.read(task, buffer))?;
        } else {
            self.hand_out(buffer, usize::MAX);
        }
        let of_body = self.chunks.follow(buffer.filled().get(before..).unwrap_or_default());
        if before + of_body < buffer.filled().len() {
            let behind = std::mem::take(&mut self.first);
            self.take_back(buffer, before + of_body);
            self.first.extend_from_slice(&behind);
        }
        if self.chunks.is_over() {
            self.chunks = Chunks::default();
            self.pace.set_reads(Reads::ChunksOver);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and throws away what the client still sends, until it has read the answer and closes, or fails.
    fn linger(&mut self, task: &mut Context<'_>) -> Poll<()> {
        const PIECE_BYTES: usize = 16 * 1024;
        /// Then the others have their turn.
        const MOST_PIECES: usize = 16;
        if !self.pace.begins_to_linger() {
            return Poll::Ready(());
        }
        let mut piece = [MaybeUninit::uninit(); PIECE_BYTES];
        for _ in 0..MOST_PIECES {
            let mut buffer = ReadBuf::uninit(&mut piece);
            let Ok(socket) = self.socket() else { return Poll::Ready(()) };
            match socket.poll_read(task, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.pace.lingers_on(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        task.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What hyper gets in the place of a head that is refused; the gate answers it without a look. HEAD has to stay HEAD.
fn substitute(head: &[u8]) -> Vec<u8> {
    let method = if head.starts_with(b"HEAD ") { "HEAD" } else { "GET" };
    format!("{method} / HTTP/1.1\r\nHost: refused.invalid\r\nConnection: close\r\n\r\n").into_bytes()
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match this.pace.reads() {
            Reads::Head => this.poll_head(task, buffer),
            Reads::Given if this.due > 0 => {
                let given = this.hand_out(buffer, this.due);
                this.due -= given;
                Poll::Ready(Ok(()))
            }
            // It wants more of a head that is over: who disagrees on that disagrees on everything behind it.
            Reads::Given => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            Reads::Length if this.pace.left() > 0 => this.poll_length(task, buffer),
            Reads::Chunked => this.poll_chunks(task, buffer),
            Reads::Tunnel if this.first.is_empty() => this.read(task, buffer),
            Reads::Tunnel => {
                this.hand_out(buffer, usize::MAX);
                Poll::Ready(Ok(()))
            }
            Reads::Length | Reads::ChunksOver if this.pace.next_may_begin() => {
                this.pace.begin_again();
                this.poll_head(task, buffer)
            }
            Reads::Length | Reads::ChunksOver => this.poll_between(task, buffer),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.pace.was_refused_by_hyper() {
            // Its own answer says nothing: the connection has another one made.
            return Poll::Ready(Ok(bytes.len()));
        }
        let poll = self.socket()?.poll_write(task, bytes);
        self.pace.wrote(poll.is_pending());
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pace.flushed()
            && let Some(waiting) = self.turned_away.take()
        {
            waiting.wake();
        }
        self.socket()?.poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pace.was_refused_by_hyper() {
            return Poll::Ready(Ok(()));
        }
        if !self.pace.is_lingering() {
            ready!(self.socket()?.poll_shutdown(task))?;
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
        if self.pace.was_refused_by_hyper() {
            return Poll::Ready(Ok(length));
        }
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
        self.pace.wrote(poll.is_pending());
        poll
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::super::pace::{Cut, PacedBody};
    use super::*;
    use crate::clock::Clock;
    use crate::config::Limits;
    use crate::message::spelling::Spelling;

    const HEADS: HeadLimits = HeadLimits { bytes: 1024, headers: 16 };

    fn limits() -> Limits {
        let [header_timeout, idle_timeout, body_timeout, stall_timeout] = [10, 75, 60, 600].map(Duration::from_secs);
        Limits {
            header_timeout,
            idle_timeout,
            body_timeout,
            stall_timeout,
            max_headers: 16,
            max_header_bytes: 1024,
            max_connections: 10,
        }
    }

    /// A connection that has just come, and its client's end.
    fn connection(clock: &Clock) -> (Paced<DuplexStream>, DuplexStream, Arc<Pace>) {
        let (ours, theirs) = tokio::io::duplex(4096);
        let pace = Pace::new(clock, None);
        (Paced::new(ours, Vec::new(), HEADS, Arc::clone(&pace), Seat::default()), theirs, pace)
    }

    fn at(pace: &Pace, clock: &Clock) -> Option<(Duration, Cut)> {
        pace.deadline(&limits()).map(|(at, cut)| (at.saturating_duration_since(clock.instant()), cut))
    }

    /// What hyper would get now; `None`: nothing yet.
    fn given(paced: &mut Paced<DuplexStream>) -> Option<Vec<u8>> {
        let mut room = [0; 4096];
        let mut buffer = ReadBuf::new(&mut room);
        let mut task = Context::from_waker(Waker::noop());
        match Pin::new(paced).poll_read(&mut task, &mut buffer) {
            Poll::Ready(Ok(())) => Some(buffer.filled().to_vec()),
            Poll::Ready(Err(error)) => panic!("{error}"),
            Poll::Pending => None,
        }
    }

    /// Answers what was asked, as hyper does.
    fn answer(paced: &mut Paced<DuplexStream>, pace: &Arc<Pace>) {
        drop(PacedBody::new((), Arc::clone(pace)));
        let mut task = Context::from_waker(Waker::noop());
        assert!(Pin::new(paced).poll_flush(&mut task).is_ready());
    }

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";

    #[tokio::test]
    async fn hyper_gets_one_message_at_a_time_however_they_come() {
        let clock = Clock::manual(1_000);
        let post = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n";
        let chunked = b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunks = b"3\r\nabc\r\n0\r\n\r\n";
        let all = [HEAD, post, b"hello", chunked, chunks, HEAD].concat();
        for piece in [all.len(), 7, 1] {
            let (mut paced, mut theirs, pace) = connection(&clock);
            let mut parts = Vec::new();
            let mut expected =
                [(HEAD, Some(0)), (post, Some(5)), (b"hello", None), (chunked, None), (chunks, None), (HEAD, None)]
                    .into_iter();
            let mut sent = all.chunks(piece);
            let mut part = Vec::new();
            let mut now = expected.next();
            while let Some((message, length)) = now {
                match given(&mut paced) {
                    Some(bytes) => part.extend(bytes),
                    None => theirs.write_all(sent.next().expect("it waits for more than there is")).await.unwrap(),
                }
                if part.len() < message.len() {
                    continue;
                }
                assert_eq!(part, message, "in pieces of {piece}");
                parts.push(std::mem::take(&mut part));
                match message {
                    b"hello" => answer(&mut paced, &pace),
                    _ if *message == chunks[..] => answer(&mut paced, &pace),
                    _ if *message == chunked[..] => assert!(pace.serving(None)),
                    _ => {
                        assert!(pace.serving(length.or(Some(0))));
                        if length != Some(5) {
                            assert_eq!(given(&mut paced), None, "nothing of the next message before the answer");
                            answer(&mut paced, &pace);
                        }
                    }
                }
                now = expected.next();
            }
            assert_eq!(parts.concat(), all);
        }
    }

    #[tokio::test]
    async fn a_request_of_bytes_in_which_no_head_was_seen_is_out_of_step() {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        theirs.write_all(&[HEAD, HEAD].concat()).await.unwrap();
        let _ = given(&mut paced);
        assert!(pace.serving(Some(100)));
        let _ = given(&mut paced);
        assert!(!pace.serving(Some(0)), "the second head was given as a part of a body");
    }

    #[tokio::test]
    async fn an_answer_that_is_still_to_be_written_holds_the_next_head_back() {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        theirs.write_all(&[HEAD, HEAD].concat()).await.unwrap();
        assert_eq!(given(&mut paced).as_deref(), Some(HEAD));
        assert!(pace.serving(Some(0)));
        drop(PacedBody::new((), Arc::clone(&pace)));
        // Its end may be in hyper's buffer, and what hyper writes at a bad head would follow it.
        assert_eq!(given(&mut paced), None);
        answer(&mut paced, &pace);
        assert_eq!(given(&mut paced).as_deref(), Some(HEAD));
    }

    #[tokio::test]
    async fn a_target_that_the_parser_refuses_goes_beside_the_head() {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        let head = b"GET /q?a=\"\xe9 HTTP/1.1\r\nHost: h\r\n\r\n";
        theirs.write_all(head).await.unwrap();
        assert_eq!(given(&mut paced).as_deref(), Some(HEAD));
        let told = pace.take_given();
        assert_eq!(told.head, head);
        assert_eq!(told.head.get(told.odd_target.unwrap()), Some(&b"/q?a=\"\xe9"[..]));
    }

    #[tokio::test]
    async fn a_bad_head_is_told_and_another_is_given_in_its_place_also_behind_a_good_one() {
        let clock = Clock::manual(1_000);
        let large = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(1024));
        let long = format!("GET /{}", "a".repeat(2000));
        for (bad, why) in [
            (&b"DELETE /C#notes HTTP/1.1\r\n\r\n"[..], Unreadable::Fragment),
            (b"\x16\x03\x01", Unreadable::Tls),
            (b"HEAD /\x01 HTTP/1.1\r\n\r\n", Unreadable::Target),
            (b"GET / HTTP/1.1\r\nA b\r\n", Unreadable::HeaderName),
            (large.as_bytes(), Unreadable::HeadTooLarge),
            (long.as_bytes(), Unreadable::TargetTooLong),
        ] {
            for before in [&b""[..], HEAD] {
                let (mut paced, mut theirs, pace) = connection(&clock);
                theirs.write_all(&[before, bad].concat()).await.unwrap();
                if !before.is_empty() {
                    assert_eq!(given(&mut paced).as_deref(), Some(HEAD));
                    assert!(pace.serving(Some(0)));
                    assert_eq!(pace.take_given().refused, None);
                    answer(&mut paced, &pace);
                }
                let substitute = given(&mut paced).unwrap();
                assert!(substitute.ends_with(b"Connection: close\r\n\r\n"));
                assert_eq!(substitute.starts_with(b"HEAD"), bad.starts_with(b"HEAD"));
                assert_eq!(pace.take_given().refused, Some(why), "{}", bad.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn a_head_that_begins_behind_a_request_has_the_time_of_a_head() {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        theirs.write_all(&[HEAD, b"GET /half"].concat()).await.unwrap();
        assert_eq!(given(&mut paced).as_deref(), Some(HEAD));
        assert!(pace.serving(Some(0)));
        assert_eq!(at(&pace, &clock), None);
        clock.advance(Duration::from_secs(3));
        answer(&mut paced, &pace);
        assert_eq!(given(&mut paced), None);
        assert_eq!(at(&pace, &clock), Some((limits().header_timeout, Cut::Header)));
        assert!(pace.holds());
    }

    #[tokio::test]
    async fn an_answer_that_is_not_taken_has_a_time_of_its_own() {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        theirs.write_all(HEAD).await.unwrap();
        let _ = given(&mut paced);
        pace.serving(Some(0));
        let mut task = Context::from_waker(Waker::noop());
        assert!(pin!(paced.write_all(&[0; 5000])).poll(&mut task).is_pending());
        drop(PacedBody::new((), Arc::clone(&pace)));
        clock.advance(Duration::from_secs(90));
        assert_eq!(at(&pace, &clock), Some((Duration::from_secs(510), Cut::Stall)));
        assert_eq!(pace.rests_at(), None);
        let _ = theirs.read(&mut [0; 4096]).await.unwrap();
        paced.write_all(&[0]).await.unwrap();
        assert_eq!(at(&pace, &clock), Some((Duration::ZERO, Cut::Idle)));
    }

    #[tokio::test]
    async fn a_client_whose_request_was_whole_is_not_waited_for() {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        theirs.write_all(HEAD).await.unwrap();
        let _ = given(&mut paced);
        pace.serving(Some(0));
        paced.shutdown().await.unwrap();
        assert!(!pace.is_lingering());
    }

    #[tokio::test]
    async fn a_client_that_may_send_on_is_read_until_it_ends_but_not_for_ever() {
        const SILENT: Duration = Duration::from_secs(5);
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        theirs.write_all(HEAD).await.unwrap();
        let _ = given(&mut paced);
        pace.serving(Some(100));
        let mut task = Context::from_waker(Waker::noop());
        {
            let mut closing = pin!(paced.shutdown());
            assert!(closing.as_mut().poll(&mut task).is_pending());
            assert_eq!(at(&pace, &clock), Some((SILENT, Cut::Linger)), "silence ends it");
            assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0, "the client has the end of our side already");

            // A client that goes on and on moves the end of the silence, and not the end of it all.
            for _ in 0..8 {
                clock.advance(Duration::from_secs(3));
                theirs.write_all(b"more").await.unwrap();
                assert!(closing.as_mut().poll(&mut task).is_pending());
            }
            assert_eq!(at(&pace, &clock), Some((SILENT, Cut::Linger)));
            clock.advance(Duration::from_secs(3));
            theirs.write_all(b"more").await.unwrap();
            assert!(closing.as_mut().poll(&mut task).is_pending());
            assert_eq!(at(&pace, &clock), Some((Duration::from_secs(3), Cut::Linger)), "30 s in all");

            drop(theirs);
            assert!(closing.as_mut().poll(&mut task).is_ready(), "the client has closed: nothing is left to wait for");
        }
        assert!(pace.is_lingering());
    }

    #[tokio::test]
    async fn a_tunnel_gets_what_came_early_and_nothing_is_thrown_away() {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        theirs.write_all(&[HEAD, b"early"].concat()).await.unwrap();
        assert_eq!(given(&mut paced).as_deref(), Some(HEAD));
        pace.serving(Some(0));
        assert_eq!(given(&mut paced), None, "not before the upgrade is agreed to");
        pace.becomes_a_tunnel();
        answer(&mut paced, &pace);
        assert_eq!(given(&mut paced).as_deref(), Some(&b"early"[..]));
        theirs.write_all(b"after").await.unwrap();
        let mut task = Context::from_waker(Waker::noop());
        assert!(pin!(paced.shutdown()).poll(&mut task).is_ready());
        assert_eq!(given(&mut paced).as_deref(), Some(&b"after"[..]));
        assert_eq!(pace.rests_at(), None);
    }

    #[tokio::test]
    async fn only_a_head_is_kept_for_the_spelling_of_its_names() {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        let spelled = |pace: &Pace| {
            let spelling = Spelling::new(pace.take_given().head);
            spelling.lines().find("x-a", b"b").map(|line| String::from_utf8(line.name.to_vec()).unwrap())
        };
        theirs.write_all(b"POST / HTTP/1.1\r\nX-a: b\r\n\r\n").await.unwrap();
        let _ = given(&mut paced);
        pace.serving(Some(26));
        assert_eq!(spelled(&pace).as_deref(), Some("X-a"));
        // The body may look like a head.
        theirs.write_all(b"GET / HTTP/1.1\r\nX-A: b\r\n\r\n").await.unwrap();
        let _ = given(&mut paced);
        answer(&mut paced, &pace);
        assert_eq!(spelled(&pace), None);
        theirs.write_all(b"GET / HTTP/1.1\r\nX-A: b\r\n\r\n").await.unwrap();
        let _ = given(&mut paced);
        assert_eq!(spelled(&pace).as_deref(), Some("X-A"));
    }

    /// Whether a connection may rest on which `sent` came, and then one request with so long a body was answered.
    async fn rests(sent: &[u8], length: u64) -> bool {
        let clock = Clock::manual(1_000);
        let (mut paced, mut theirs, pace) = connection(&clock);
        assert_eq!(pace.rests_at(), None, "nothing was answered yet");
        theirs.write_all(sent).await.unwrap();
        let _ = given(&mut paced);
        pace.serving(Some(length));
        assert_eq!(pace.rests_at(), None, "it is being answered");
        let _ = given(&mut paced);
        answer(&mut paced, &pace);
        pace.rests_at().is_some()
    }

    #[tokio::test]
    async fn only_a_connection_of_which_nothing_is_left_rests() {
        assert!(rests(HEAD, 0).await);
        assert!(!rests(&[HEAD, b"GET"].concat(), 0).await, "a part of the next head");
        assert!(!rests(HEAD, 5).await, "its body may not have been read");
    }

    #[tokio::test]
    async fn what_was_read_before_comes_first_and_the_socket_comes_back() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (pace, seat) = (Pace::new(&Clock::manual(1_000), None), Seat::default());
        let mut paced = Paced::new(ours, HEAD[..5].to_vec(), HEADS, Arc::clone(&pace), Arc::clone(&seat));
        theirs.write_all(&HEAD[5..]).await.unwrap();
        assert_eq!(given(&mut paced).as_deref(), Some(HEAD));
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
        assert_eq!(given(&mut paced).as_deref(), Some(&b""[..]));
        paced.shutdown().await.unwrap();
        assert!(!pace.is_lingering());
    }
}
