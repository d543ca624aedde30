//! Open answers and tunnels of people who are logged in, and closing them when their session is over.
//!
//! Only an answer that has to wait for its backend is entered here, so that a short one costs nothing.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use super::core::Shared;
use crate::auth::{Standing, Verified};

/// One worker's open streams.
pub(super) struct Streams {
    open: RefCell<HashMap<u64, Open>>,
    next: Cell<u64>,
}

struct Open {
    verified: Arc<Verified>,
    end: Rc<End>,
}

/// The signal that one stream's session is over.
#[derive(Default)]
struct End {
    over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// One stream's place among the open ones; dropped, it leaves.
pub(super) struct Watched {
    number: u64,
    end: Rc<End>,
    streams: Weak<Streams>,
}

impl Streams {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self { open: RefCell::new(HashMap::new()), next: Cell::new(0) })
    }

    /// Enters a stream.
    pub(super) fn enter(self: &Rc<Self>, verified: Arc<Verified>) -> Watched {
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        let end = Rc::new(End::default());
        self.open.borrow_mut().insert(number, Open { verified, end: Rc::clone(&end) });
        Watched { number, end, streams: Rc::downgrade(self) }
    }

    /// Resolves when the session of `verified` is over; never for a stream of nobody.
    pub(super) fn over(self: &Rc<Self>, verified: Option<Arc<Verified>>) -> impl Future<Output = ()> + 'static {
        let watched = verified.map(|verified| self.enter(verified));
        async move {
            match watched {
                Some(watched) => watched.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Looks at every open stream whenever the log has grown, and once a second for those whose time is up.
    pub(super) async fn watch(&self, shared: &Shared) {
        const LOOK: Duration = Duration::from_millis(500);
        loop {
            let epoch = shared.revocations().epoch();
            self.close_those_that_are_over(shared);
            // A time-out is the once-in-a-while look.
            let _ = tokio::time::timeout(LOOK, shared.revocations().changed(epoch)).await;
        }
    }

    /// Every open stream is looked at each time, not only when the log has grown: one that was entered a moment after its
    /// revocation would be missed for good.
    fn close_those_that_are_over(&self, shared: &Shared) {
        let open = self.open.borrow();
        if open.is_empty() {
            return;
        }
        let now = shared.clock().unix_seconds();
        let limit = shared.live().config.token.max_lifetime.as_secs();
        for stream in open.values() {
            let outlived = limit != 0 && now >= stream.verified.auth_time.saturating_add(limit);
            let revoked = shared.revocations().standing(&stream.verified) == Standing::Revoked;
            if outlived || revoked {
                stream.end.over.set(true);
                if let Some(waker) = stream.end.waker.borrow_mut().take() {
                    waker.wake();
                }
            }
        }
    }
}

impl Watched {
    /// Whether the stream must end now; if not, `task` is woken when it must.
    pub(super) fn poll_over(&self, task: &TaskContext<'_>) -> bool {
        if self.end.over.get() {
            return true;
        }
        let mut waker = self.end.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(task.waker())) {
            *waker = Some(task.waker().clone());
        }
        false
    }
}

impl Future for Watched {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<()> {
        if self.poll_over(task) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(streams) = self.streams.upgrade() {
            streams.open.borrow_mut().remove(&self.number);
        }
    }
}
