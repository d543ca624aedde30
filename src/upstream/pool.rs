//! One worker's connections to one URL: those in use and those that idle.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{Connection, SendRequest};
use hyper_util::rt::TokioIo;

use super::body::RequestBody;
use super::connect::Stream;
use super::health::InFlight;
use crate::clock::Clock;

/// Idle connections are closed after this: common backends give theirs up after two to five seconds, and a connection
/// that both sides still want is the only safe one.
const IDLE_LIMIT: Duration = Duration::from_millis(1500);
/// Idle connections that one worker keeps to one URL.
const MOST_IDLE: usize = 256;
/// How long a backend that closed an idle connection under our hands is taken to do so again.
const SUSPICION: Duration = Duration::from_mins(1);

/// One worker's connections to one URL.
pub(super) struct Pool {
    idle: RefCell<VecDeque<Idle>>,
    clock: Clock,
    /// Until when this backend counts as one that closes connections of its own accord.
    suspect_until: Cell<Option<Instant>>,
}

struct Idle {
    channel: Channel,
    since: Instant,
}

/// A connection and its sending half. The connection is driven by whoever uses it.
pub(super) struct Channel {
    pub(super) sender: SendRequest<RequestBody>,
    pub(super) connection: Pin<Box<Connection<TokioIo<Stream>, RequestBody>>>,
}

/// A channel in use. Dropped, its connection is closed.
pub(super) struct Lease {
    channel: Channel,
    pool: Weak<Pool>,
    /// Counts as a request in flight until it goes.
    _in_flight: InFlight,
}

impl Pool {
    pub(super) fn new(clock: Clock) -> Rc<Self> {
        Rc::new(Self { idle: RefCell::default(), clock, suspect_until: Cell::new(None) })
    }

    /// The connection that idled least and is still open. `once`: the request must not be sent twice, so a backend that
    /// is known to close idle connections gets a fresh one.
    pub(super) fn take(self: &Rc<Self>, once: bool) -> Option<Channel> {
        let now = self.clock.instant();
        if once && self.suspect_until.get().is_some_and(|until| now < until) {
            return None;
        }
        loop {
            let mut idle = self.idle.borrow_mut().pop_back()?;
            let idled = now.saturating_duration_since(idle.since);
            // Sees a close, or bytes that nobody asked for, as soon as the reactor has seen them. The waker of the
            // task that had it before is replaced as well.
            let mut quiet = Context::from_waker(Waker::noop());
            let open = idle.channel.connection.as_mut().poll(&mut quiet).is_pending() && idle.channel.sender.is_ready();
            if open && idled < IDLE_LIMIT {
                return Some(idle.channel);
            }
            if !open && idled < IDLE_LIMIT {
                self.suspect();
            }
        }
    }

    /// A reused connection turned out to be closed.
    pub(super) fn suspect(&self) {
        self.suspect_until.set(Some(self.clock.instant() + SUSPICION));
    }

    /// Closes what has idled too long.
    pub(super) fn close_idle(&self) {
        let now = self.clock.instant();
        let mut idle = self.idle.borrow_mut();
        idle.retain_mut(|idle| {
            let mut quiet = Context::from_waker(Waker::noop());
            now.saturating_duration_since(idle.since) < IDLE_LIMIT
                && idle.channel.connection.as_mut().poll(&mut quiet).is_pending()
        });
    }

    fn put(&self, channel: Channel) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() == MOST_IDLE {
            idle.pop_front();
        }
        idle.push_back(Idle { channel, since: self.clock.instant() });
    }
}

impl Lease {
    pub(super) fn new(channel: Channel, pool: &Rc<Pool>, in_flight: InFlight) -> Self {
        Self { channel, pool: Rc::downgrade(pool), _in_flight: in_flight }
    }

    pub(super) fn poll_connection(&mut self, task: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.channel.connection.as_mut().poll(task)
    }

    /// Back to the pool, if the exchange is complete in both directions; closed otherwise.
    pub(super) fn give_back(mut self) {
        // Lets the connection see that the exchange is over, and forget the waker of this task.
        let mut quiet = Context::from_waker(Waker::noop());
        let open = self.poll_connection(&mut quiet).is_pending();
        if open
            && self.channel.sender.is_ready()
            && let Some(pool) = self.pool.upgrade()
        {
            pool.put(self.channel);
        }
    }
}
