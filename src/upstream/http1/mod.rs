//! HTTP/1.1 as its client: one connection to a backend, driven by the request that uses it.
//!
//! What is written is kept in one buffer, what is read is read into one; both are lent by the worker while they hold
//! something, so a connection that idles or waits has none.

pub(super) mod chunked;
#[cfg(test)]
mod reference;
pub(super) mod request;
pub(super) mod response;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, ReadBuf};
use tokio::time::Instant;

use self::request::Framing;
use self::response::{Asked, Head, MOST_HEAD_BYTES, Malformed, Read};
use super::connect::Stream;
use super::upload::{ClientFault, Piece, Upload};
use crate::clock::KeptAlarm;

/// For the first read of an answer, and for reads of pieces of unknown size.
const READ_BYTES: usize = 16 * 1024;
/// The largest read. More than this is not held for a slow client.
const MOST_READ_BYTES: usize = 64 * 1024;
/// A smaller rest of a buffer is not worth a system call of its own.
const LEAST_READ_BYTES: usize = 2 * 1024;
/// Pieces of a body that are copied behind what is to be written already; larger ones are written from where they are.
const SMALL_PIECE_BYTES: usize = 4 * 1024;
/// So much of a body is gathered for one write, if it is there already.
const GATHERED_BYTES: usize = 16 * 1024;
/// 1xx answers before the answer.
const MOST_INTERIM: usize = 64;

/// Buffers that one worker lends to its connections.
#[derive(Default)]
pub(super) struct Buffers {
    /// The one that came back last is at the end. Its bytes may still be on their way to a client.
    reads: RefCell<VecDeque<BytesMut>>,
    writes: RefCell<Vec<Vec<u8>>>,
}

impl Buffers {
    /// A worker rarely writes more than one head at a time.
    const MOST_WRITES: usize = 8;
    /// As many larger answers may be on their way to clients at once before new memory is taken for each piece.
    const MOST_READS: usize = 64;
    /// How many are looked at from either end.
    const NEAR: usize = 4;
    const MOST_WRITE_BYTES: usize = 64 * 1024;

    pub(super) fn for_writing(&self) -> Vec<u8> {
        self.writes.borrow_mut().pop().unwrap_or_default()
    }

    fn written(&self, mut buffer: Vec<u8>) {
        let mut writes = self.writes.borrow_mut();
        if writes.len() < Self::MOST_WRITES && buffer.capacity() <= Self::MOST_WRITE_BYTES {
            buffer.clear();
            writes.push(buffer);
        }
    }

    /// A buffer with room for `wanted` bytes, or at least for `least` in one of which the rest is still on its way to a
    /// client. New memory only where those that are looked at are still in use.
    fn for_reading(&self, wanted: usize, least: usize) -> BytesMut {
        let mut reads = self.reads.borrow_mut();
        let count = reads.len();
        // The last one is the likeliest to be in the processor's cache, the first one to be done with.
        let order = || (0..count).rev().take(Self::NEAR).chain((0..count.saturating_sub(Self::NEAR)).take(Self::NEAR));
        let room = |buffer: &BytesMut| buffer.capacity() - buffer.len();
        let found = order()
            .find(|index| {
                reads.get_mut(*index).is_some_and(|buffer| room(buffer) >= wanted || buffer.try_reclaim(wanted))
            })
            .or_else(|| order().find(|index| reads.get(*index).is_some_and(|buffer| room(buffer) >= least)));
        let found = found.and_then(|index| reads.remove(index));
        found.unwrap_or_else(|| BytesMut::with_capacity(wanted.max(READ_BYTES)))
    }

    fn read(&self, buffer: BytesMut) {
        let mut reads = self.reads.borrow_mut();
        if reads.len() == Self::MOST_READS {
            // The oldest is with a client that takes its time; its memory goes with it.
            reads.pop_front();
        }
        reads.push_back(buffer);
    }
}

/// What is on its way to a backend: the head, and what there is of the body.
#[derive(Default)]
pub(super) struct Message {
    /// The head, and small pieces of the body behind it.
    buffer: Vec<u8>,
    head_length: usize,
    written: usize,
    /// Comes behind the buffer.
    piece: Bytes,
    /// Comes behind the piece.
    tail: &'static [u8],
    upload: Option<Box<Upload>>,
    /// Pieces of the body that have been taken.
    pieces: u64,
}

impl Message {
    /// `buffer` holds the head.
    pub(super) fn new(buffer: Vec<u8>, upload: Option<Box<Upload>>) -> Self {
        Self { head_length: buffer.len(), buffer, upload, ..Self::default() }
    }

    /// For another try elsewhere, of a message of which nothing has been written.
    pub(super) fn replace_head(&mut self, head: Vec<u8>) {
        let old = std::mem::replace(&mut self.buffer, head);
        let length = self.buffer.len();
        self.buffer.extend_from_slice(old.get(self.head_length..).unwrap_or_default());
        self.head_length = length;
    }

    fn is_written(&self) -> bool {
        self.written == self.buffer.len() && self.piece.is_empty() && self.tail.is_empty()
    }

    /// Takes what there is of the body, up to what one write should hold.
    fn gather(&mut self, task: &mut Context<'_>) -> Result<(), ClientFault> {
        while let Some(upload) = &mut self.upload {
            if !self.piece.is_empty() || self.buffer.len() >= GATHERED_BYTES {
                break;
            }
            match upload.poll(task) {
                Poll::Pending => break,
                Poll::Ready(Err(fault)) => return Err(fault),
                Poll::Ready(Ok(Piece::Data(data))) => {
                    self.pieces += 1;
                    let chunked = upload.framing == Framing::Chunked;
                    let over = upload.is_over();
                    self.push(data, chunked);
                    if over && !chunked {
                        self.upload = None;
                    }
                }
                Poll::Ready(Ok(Piece::End(trailers))) => {
                    if upload.framing == Framing::Chunked {
                        push_last_chunk(&mut self.buffer, &trailers);
                    }
                    self.upload = None;
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, data: Bytes, chunked: bool) {
        use std::io::Write as _;
        if chunked {
            // Writing into memory can't fail.
            let _ = write!(self.buffer, "{:X}\r\n", data.len());
        }
        let tail: &[u8] = if chunked { b"\r\n" } else { b"" };
        if data.len() <= SMALL_PIECE_BYTES {
            self.buffer.extend_from_slice(&data);
            self.buffer.extend_from_slice(tail);
        } else {
            self.piece = data;
            self.tail = tail;
        }
    }

    fn wrote(&mut self, mut count: usize) {
        let from_buffer = count.min(self.buffer.len() - self.written);
        self.written += from_buffer;
        count -= from_buffer;
        let from_piece = count.min(self.piece.len());
        self.piece.advance(from_piece);
        count -= from_piece;
        self.tail = self.tail.get(count..).unwrap_or_default();
    }
}

fn push_last_chunk(into: &mut Vec<u8>, trailers: &HeaderMap) {
    into.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        crate::message::spelling::push_title_case(into, name.as_str());
        into.extend_from_slice(b": ");
        into.extend_from_slice(value.as_bytes());
        into.extend_from_slice(b"\r\n");
    }
    into.extend_from_slice(b"\r\n");
}

/// Why no answer came over a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Silence {
    #[error("the connection was closed before an answer")]
    Closed,
    #[error("the connection was closed within the answer's head")]
    Cut,
    #[error("the connection broke")]
    Broke(#[source] io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// A connection to a backend.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the two directions")]
pub(super) struct Connection {
    stream: Stream,
    buffers: Rc<Buffers>,
    /// Came and has not been taken.
    read: BytesMut,
    /// For the next read where nobody knows how much is to come.
    next_read: usize,
    message: Message,
    /// The backend has taken something of this request.
    began: bool,
    /// Something of the answer has come.
    heard: bool,
    /// What was written last may still be in TLS' hands.
    unflushed: bool,
    /// The backend takes no more. It may all the same have answered before (413), so the reading goes on.
    write_error: Option<io::Error>,
    /// Nothing was taken of the message, and nothing will be.
    unsent: bool,
    /// So much of what came has been looked at for a head.
    looked_at: usize,
    interim: usize,
    /// An interim answer announced a body, which interim answers don't have, or the end of the connection.
    interim_hides: bool,
    /// Of whichever request uses it; one that is set already is only looked at.
    alarm: KeptAlarm,
}

impl Connection {
    pub(super) fn new(stream: Stream, buffers: &Rc<Buffers>) -> Box<Self> {
        Box::new(Self {
            stream,
            buffers: Rc::clone(buffers),
            read: BytesMut::new(),
            next_read: READ_BYTES,
            message: Message::default(),
            began: false,
            heard: false,
            unflushed: false,
            write_error: None,
            unsent: false,
            looked_at: 0,
            interim: 0,
            interim_hides: false,
            alarm: KeptAlarm::default(),
        })
    }

    /// Whether it still idles: the backend has neither closed it nor said anything unasked, as far as the reactor has
    /// seen. The waker of the task that had it before is replaced as well.
    pub(super) fn is_open(&mut self) -> bool {
        let mut byte = [0];
        let mut quiet = Context::from_waker(Waker::noop());
        Pin::new(&mut self.stream).poll_read(&mut quiet, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// Puts a message on its way.
    pub(super) fn begin(&mut self, message: Message) {
        self.message = message;
        self.began = false;
        self.heard = false;
        self.looked_at = 0;
        self.interim = 0;
        self.interim_hides = false;
        self.next_read = READ_BYTES;
    }

    /// The message back, when the backend has taken nothing of it.
    pub(super) fn take_unsent(&mut self) -> Option<Message> {
        self.unsent.then(|| std::mem::take(&mut self.message))
    }

    /// Whether `due` is over; otherwise the task is woken then.
    pub(super) fn poll_due(&mut self, task: &mut Context<'_>, due: Instant) -> Poll<()> {
        self.alarm.poll_due(task, due)
    }

    /// Whether something of an answer came.
    pub(super) const fn heard(&self) -> bool {
        self.heard
    }

    /// How many pieces of the request's body have been taken.
    pub(super) const fn pieces(&self) -> u64 {
        self.message.pieces
    }

    /// Whether it is the client that is waited for, and not the backend.
    pub(super) fn waits_for_client(&self) -> bool {
        self.message.upload.as_ref().is_some_and(|upload| upload.waiting)
    }

    /// Whether an answer that ends here leaves the connection fit for another request.
    pub(super) fn is_clean(&self) -> bool {
        self.read.is_empty()
            && self.message.upload.is_none()
            && self.message.is_written()
            && !self.unflushed
            && self.write_error.is_none()
            && !self.interim_hides
    }

    /// Writes what there is of the message. What the backend does not take any more is kept quiet about: the answer, or
    /// the lack of one, tells more.
    pub(super) fn send(&mut self, task: &mut Context<'_>) -> Result<(), ClientFault> {
        while self.write_error.is_none() {
            self.message.gather(task)?;
            if self.message.is_written() {
                if self.message.buffer.capacity() > 0 {
                    self.message.written = 0;
                    self.buffers.written(std::mem::take(&mut self.message.buffer));
                }
                break;
            }
            match self.poll_write(task) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(count)) => {
                    self.began = true;
                    self.unflushed = self.stream.holds_back();
                    self.message.wrote(count);
                    if self.message.upload.is_some() && self.message.is_written() {
                        self.message.buffer.clear();
                        self.message.written = 0;
                    }
                }
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a backend takes no more of a request");
                    self.write_error = Some(error);
                }
            }
        }
        if self.unflushed && Pin::new(&mut self.stream).poll_flush(task).is_ready() {
            self.unflushed = false;
        }
        Ok(())
    }

    fn poll_write(&mut self, task: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        let message = &self.message;
        let buffer = message.buffer.get(message.written..).unwrap_or_default();
        let count = if message.piece.is_empty() && message.tail.is_empty() {
            ready!(stream.poll_write(task, buffer))?
        } else {
            let slices = [IoSlice::new(buffer), IoSlice::new(&message.piece), IoSlice::new(message.tail)];
            ready!(stream.poll_write_vectored(task, &slices))?
        };
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        Poll::Ready(Ok(count))
    }

    /// Waits for the answer's head.
    pub(super) fn poll_head(&mut self, task: &mut Context<'_>, asked: &Asked<'_>) -> Poll<Result<Head, Silence>> {
        // Whatever comes is no answer to a request that was not sent.
        if !self.began {
            return match self.write_error.take() {
                None => Poll::Pending,
                Some(error) => {
                    self.unsent = true;
                    Poll::Ready(Err(Silence::Broke(error)))
                }
            };
        }
        loop {
            if self.is_worth_a_look() {
                match response::read(&mut self.read, asked)? {
                    Read::Head(head) => return Poll::Ready(Ok(head)),
                    Read::Interim { keeps } => {
                        self.looked_at = 0;
                        self.interim_hides |= !keeps;
                        self.interim += 1;
                        if self.interim > MOST_INTERIM {
                            return Poll::Ready(Err(Malformed::Told("it sends interim answers only").into()));
                        }
                        continue;
                    }
                    Read::Hungry => self.looked_at = self.read.len(),
                }
            }
            match ready!(self.poll_read(task, READ_BYTES, LEAST_READ_BYTES)) {
                Ok(0) if self.heard => return Poll::Ready(Err(Silence::Cut)),
                Ok(0) => return Poll::Ready(Err(self.write_error.take().map_or(Silence::Closed, Silence::Broke))),
                Ok(_) => self.heard = true,
                Err(error) => return Poll::Ready(Err(Silence::Broke(error))),
            }
        }
    }

    /// What comes in single bytes is not read from the start for each of them: after its first line, which tells whether
    /// this is HTTP at all, only the end of a head is worth it.
    fn is_worth_a_look(&self) -> bool {
        let (seen, new) = self.read.split_at_checked(self.looked_at).unwrap_or_default();
        if memchr::memchr(b'\n', seen).is_none() || self.read.len() >= MOST_HEAD_BYTES {
            return !new.is_empty();
        }
        let from = self.looked_at.saturating_sub(2);
        let lines = memchr::memchr_iter(b'\n', self.read.get(from..).unwrap_or_default());
        lines
            .map(|at| self.read.get(from + at + 1..).unwrap_or_default())
            .any(|after| after.starts_with(b"\n") || after.starts_with(b"\r\n"))
    }

    /// Reads once, up to `wanted` bytes, or into what is left of the buffer if that is at least `least`. 0: the backend
    /// has said all.
    fn poll_read(&mut self, task: &mut Context<'_>, wanted: usize, least: usize) -> Poll<io::Result<usize>> {
        if self.read.capacity() == 0 {
            self.read = self.buffers.for_reading(wanted, least);
        }
        let room = self.read.capacity() - self.read.len();
        // First the place of what has been handed on and done with; new memory only if that is still in use.
        if room < wanted && !self.read.try_reclaim(wanted) && room < least {
            self.read.reserve(wanted);
        }
        let poll = pin!(self.stream.read_buf(&mut self.read)).poll(task);
        self.release();
        poll
    }

    /// The next piece of an answer's body, of which `left` bytes are to come; `None`: nobody knows.
    pub(super) fn poll_more(&mut self, task: &mut Context<'_>, left: Option<u64>) -> Poll<io::Result<usize>> {
        let wanted = match left {
            Some(left) => usize::try_from(left).unwrap_or(MOST_READ_BYTES).min(MOST_READ_BYTES),
            None => self.next_read,
        };
        let poll = self.poll_read(task, wanted, wanted.min(READ_BYTES));
        if self.read.len() == self.read.capacity() && left.is_none() {
            // There was more than there was room for.
            self.next_read = (self.next_read * 2).min(MOST_READ_BYTES);
        }
        poll
    }

    /// What came and has not been taken.
    pub(super) const fn bytes(&mut self) -> &mut BytesMut {
        &mut self.read
    }

    /// No memory is held while nothing is there.
    pub(super) fn release(&mut self) {
        if self.read.is_empty() && self.read.capacity() > 0 {
            self.buffers.read(std::mem::take(&mut self.read));
        }
    }

    /// For a tunnel: the stream, and what came behind the head.
    pub(super) fn into_parts(self: Box<Self>) -> (Stream, Bytes) {
        (self.stream, self.read.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_lent_again_when_its_bytes_are_done_with_and_not_before() {
        let buffers = Buffers::default();
        let lend = |wanted| {
            let mut buffer = buffers.for_reading(wanted, wanted);
            buffer.resize(wanted, b'x');
            let bytes = buffer.split().freeze();
            buffers.read(buffer);
            bytes
        };
        let first = lend(READ_BYTES);
        let place = first.as_ptr();
        let second = lend(READ_BYTES);
        assert_ne!(second.as_ptr(), place, "the first one is still on its way");
        drop(first);
        assert_eq!(lend(READ_BYTES).as_ptr(), place);
        assert_eq!(&second[..], [b'x'; READ_BYTES]);
        assert_eq!(buffers.reads.borrow().len(), 2);
    }

    #[test]
    fn the_rest_of_a_buffer_that_is_on_its_way_is_used_before_new_memory() {
        let buffers = Buffers::default();
        let mut buffer = buffers.for_reading(READ_BYTES, LEAST_READ_BYTES);
        buffer.extend_from_slice(b"short");
        let bytes = buffer.split().freeze();
        let rest = buffer.as_ptr();
        buffers.read(buffer);
        assert_eq!(buffers.for_reading(READ_BYTES, LEAST_READ_BYTES).as_ptr(), rest);
        assert_eq!(&bytes[..], b"short");
    }

    #[test]
    fn clients_that_take_their_time_keep_no_more_than_so_many_buffers() {
        let buffers = Buffers::default();
        let held: Vec<Bytes> = (0..3 * Buffers::MOST_READS)
            .map(|_| {
                let mut buffer = buffers.for_reading(READ_BYTES, READ_BYTES);
                buffer.resize(READ_BYTES, 0);
                let bytes = buffer.split().freeze();
                buffers.read(buffer);
                bytes
            })
            .collect();
        assert_eq!(buffers.reads.borrow().len(), Buffers::MOST_READS);
        let places: std::collections::HashSet<_> = held.iter().map(|bytes| bytes.as_ptr()).collect();
        assert_eq!(places.len(), held.len());
    }
}
