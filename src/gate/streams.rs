//! Open answers and tunnels, and closing them when the right to them is over: the session has ended, the account has
//! changed and may no longer use the route, or a reload has changed the routes.
//!
//! Only an answer that has to wait for its backend is entered here, so that a short one costs nothing. Each is judged
//! again at the first look after it was entered, because its account or the routes may have changed while its backend was
//! thinking.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use super::core::{Core, Shared};
use super::live::Live;
use crate::auth::{Standing, Verified};
use crate::message::admit::Host;
use crate::message::path::Readings;
use crate::policy::{Caller, Principal, Unidentified, decide};
use crate::router::Target;
use crate::telemetry::access::Entry;

/// One worker's open streams.
pub(super) struct Streams {
    open: RefCell<HashMap<u64, Open>>,
    next: Cell<u64>,
}

/// Whose stream it is.
pub(super) struct Whose {
    /// The token that came with the request.
    pub(super) verified: Option<Arc<Verified>>,
    /// The route is open to everybody: the stream stays whoever logs out.
    pub(super) is_public: bool,
}

/// What was asked for, as the access line tells it.
pub(super) struct Place {
    host: Option<Arc<str>>,
    path: Option<Arc<str>>,
    method: http::Method,
    user: Option<Arc<Principal>>,
}

impl Place {
    pub(super) fn of(entry: &Entry) -> Self {
        let Entry { host, path, method, user, .. } = entry;
        Self { host: host.clone(), path: path.clone(), method: method.clone(), user: user.clone() }
    }
}

struct Open {
    whose: Whose,
    place: Place,
    end: Rc<End>,
    /// The configuration under which it was last judged.
    judged: std::sync::Weak<Live>,
    /// The log's number of the account's change that was last looked at.
    account_as_of: u64,
    /// Since when the account could not be read, by the monotonic clock in milliseconds.
    unread_since: Option<u64>,
    /// The token's text, where a centre has to be shown it. In memory as long as the stream, and nowhere else.
    presented: Option<crate::secret::Secret<String>>,
}

impl Open {
    /// The account was read again: it is judged anew. `None`: the login is over.
    fn account_is(&mut self, person: Option<Arc<Principal>>) {
        self.judged = std::sync::Weak::new();
        // A foreign token grants no groups until it is renewed.
        let is_foreign = self.whose.verified.as_ref().is_some_and(|verified| verified.session.is_none());
        let grants_nothing = is_foreign && self.place.user.as_ref().is_some_and(|user| user.groups.is_empty());
        if person.is_none() || !grants_nothing {
            self.place.user = person;
        }
        if self.place.user.is_none() && !self.whose.is_public {
            self.end.signal();
        }
    }
}

/// The signal that one stream is over.
#[derive(Default)]
struct End {
    over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl End {
    fn signal(&self) {
        self.over.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// One stream's place among the open ones; dropped, it leaves.
pub(super) struct Watched {
    number: u64,
    end: Rc<End>,
    streams: Weak<Streams>,
}

/// An account that has changed since its stream was judged.
struct Changed {
    number: u64,
    verified: Arc<Verified>,
    since: u64,
}

impl Streams {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self { open: RefCell::new(HashMap::new()), next: Cell::new(0) })
    }

    /// Enters a stream.
    pub(super) fn enter(self: &Rc<Self>, whose: Whose, place: Place) -> Watched {
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        let end = Rc::new(End::default());
        let open = Open {
            whose,
            place,
            end: Rc::clone(&end),
            judged: std::sync::Weak::new(),
            account_as_of: 0,
            unread_since: None,
            presented: None,
        };
        self.open.borrow_mut().insert(number, open);
        Watched { number, end, streams: Rc::downgrade(self) }
    }

    /// Looks at every open stream whenever the log has grown, and twice a second for those whose time is up, and for
    /// routes that a reload has changed.
    pub(super) async fn watch(&self, core: &Core) {
        const LOOK: Duration = Duration::from_millis(500);
        let shared = core.shared();
        loop {
            let epoch = shared.revocations().epoch();
            self.close_those_that_are_over(shared);
            self.read_changed_accounts(core).await;
            self.judge_again(shared);
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
        for stream in open.values().filter(|stream| !stream.whose.is_public) {
            let Some(verified) = &stream.whose.verified else { continue };
            let outlived = limit != 0 && now >= verified.auth_time.saturating_add(limit);
            let revoked = shared.revocations().standing(verified) == Standing::Revoked;
            if outlived || revoked {
                stream.end.signal();
            }
        }
    }

    /// Reads every account again that the log says has changed, once for all its streams.
    async fn read_changed_accounts(&self, core: &Core) {
        let shared = core.shared();
        let changed = self.changed(core);
        if changed.is_empty() {
            return;
        }
        let live = shared.live();
        let (config, now) = (&live.config, shared.clock().ticks());
        let staleness = u64::try_from(config.store.max_staleness.as_millis()).unwrap_or(u64::MAX);
        for Changed { number, verified, since } in changed {
            let presented = self.open.borrow().get(&number).and_then(|open| open.presented.clone());
            let presented = presented.as_ref().map(|text| text.expose().as_str());
            let reading = shared.sessions().person_now(&live.ring, &config.token, &config.store, &verified, presented);
            let read = reading.await;
            let mut open = self.open.borrow_mut();
            let Some(stream) = open.get_mut(&number) else { continue };
            if let Ok(person) = read {
                (stream.account_as_of, stream.unread_since) = (since, None);
                stream.account_is(person);
            } else {
                // As a request would, it goes on with old groups for as long as that is allowed.
                let first = *stream.unread_since.get_or_insert(now);
                if now.saturating_sub(first) >= staleness && !stream.whose.is_public {
                    stream.end.signal();
                }
            }
        }
    }

    /// Streams whose account has changed since they were judged.
    fn changed(&self, core: &Core) -> Vec<Changed> {
        let shared = core.shared();
        let mut open = self.open.borrow_mut();
        let mut changed = Vec::new();
        for (number, stream) in &mut *open {
            let Some(verified) = &stream.whose.verified else { continue };
            if stream.presented.is_none() && shared.sessions().has_centre() {
                let text = core.with_tokens(|tokens| tokens.text_of(verified).map(str::to_owned));
                stream.presented = text.map(crate::secret::Secret::new);
            }
            if stream.end.over.get() {
                continue;
            }
            if let Standing::Changed { since } = shared.revocations().standing(verified)
                && since != stream.account_as_of
            {
                changed.push(Changed { number: *number, verified: Arc::clone(verified), since });
            }
        }
        changed
    }

    /// Decides anew on every stream that was judged by another configuration, or whose account is another one now.
    fn judge_again(&self, shared: &Shared) {
        let mut open = self.open.borrow_mut();
        if open.is_empty() {
            return;
        }
        let live = shared.live();
        for stream in open.values_mut() {
            if std::ptr::eq(stream.judged.as_ptr(), Arc::as_ptr(&live)) {
                continue;
            }
            stream.judged = Arc::downgrade(&live);
            if !stream.place.is_allowed(&live) {
                tracing::debug!(path = stream.place.path.as_deref(), "a stream is closed: it would be refused by now");
                stream.end.signal();
            }
        }
    }
}

impl Place {
    /// Whether the same request would reach an upstream now.
    fn is_allowed(&self, live: &Live) -> bool {
        let (Some(host), Some(path)) = (&self.host, &self.path) else { return false };
        let (Some(host), Some(readings)) = (Host::parse(host), Readings::of(path)) else { return false };
        let Ok(route) = live.router.resolve(&host, &readings, &self.method) else { return false };
        let caller = match &self.user {
            Some(person) => Caller::Person(Arc::clone(person)),
            None => Caller::Anonymous(Unidentified::NoCredential),
        };
        matches!(route.target, Target::Upstream(Some(_))) && decide(&route.policy, &caller).is_ok()
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
