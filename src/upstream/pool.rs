//! One worker's connections to one URL: those in use and those that idle.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::http1::Connection;
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
    suspect_until: Cell<Option<Ticks>>,
}

struct Idle {
    connection: Box<Connection>,
    since: Ticks,
}

/// As [`Clock::ticks`] counts.
type Ticks = u64;

impl Pool {
    pub(super) fn new(clock: Clock) -> Rc<Self> {
        Rc::new(Self { idle: RefCell::default(), clock, suspect_until: Cell::new(None) })
    }

    /// The connection that idled least and is still open. `once`: the request must not be sent twice, so a backend that
    /// is known to close idle connections gets a fresh one.
    pub(super) fn take(&self, once: bool) -> Option<Box<Connection>> {
        let now = self.clock.ticks();
        if once && self.suspect_until.get().is_some_and(|until| now < until) {
            return None;
        }
        loop {
            let mut idle = self.idle.borrow_mut().pop_back()?;
            let idled = idled(now, idle.since);
            let open = idle.connection.is_open();
            if open && idled < IDLE_LIMIT {
                return Some(idle.connection);
            }
            if !open && idled < IDLE_LIMIT {
                self.suspect();
            }
        }
    }

    /// A reused connection turned out to be closed.
    pub(super) fn suspect(&self) {
        self.suspect_until.set(Some(self.clock.ticks().saturating_add(SUSPICION.as_secs() * 1000)));
    }

    /// Closes what has idled too long.
    pub(super) fn close_idle(&self) {
        let now = self.clock.ticks();
        let mut idle = self.idle.borrow_mut();
        idle.retain_mut(|idle| idled(now, idle.since) < IDLE_LIMIT && idle.connection.is_open());
    }

    /// Keeps a connection on which nothing is under way.
    pub(super) fn put(&self, connection: Box<Connection>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() == MOST_IDLE {
            idle.pop_front();
        }
        idle.push_back(Idle { connection, since: self.clock.ticks() });
    }
}

fn idled(now: Ticks, since: Ticks) -> Duration {
    Duration::from_millis(now.saturating_sub(since))
}
