//! What all workers share, and what one worker owns.

use std::cell::{OnceCell, RefCell};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;

use super::live::Live;
use super::named::Named;
use super::peers::Peers;
use super::request_id::RequestIds;
use super::streams::Streams;
use crate::auth::cache::{DEFAULT_CAPACITY, TokenCache};
use crate::auth::centre::KeysWanted;
use crate::auth::freshness::Freshness;
use crate::auth::revocation::Revocations;
use crate::auth::session::Sessions;
use crate::clock::Clock;
use crate::config;
use crate::policy::Pass;
use crate::portal::Portal;
use crate::router::Route;
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::RouteCounters;
use crate::upstream::Upstreams;

/// What every worker reads and none owns. No lock on the way of a request.
pub struct Shared {
    live: ArcSwap<Live>,
    clock: Clock,
    revocations: Arc<Revocations>,
    sessions: Arc<Sessions>,
    portal: Portal,
    telemetry: Telemetry,
    peers: Peers,
    draining: AtomicBool,
    freshness: Arc<Freshness>,
    tunnels: AtomicUsize,
    /// Asks a centre for its keys; `None` where the keys are our own.
    keys: Option<Arc<KeysWanted>>,
}

impl Shared {
    /// Puts together what the composition root has made.
    #[must_use]
    pub fn new(
        live: Live,
        clock: Clock,
        revocations: Arc<Revocations>,
        freshness: Arc<Freshness>,
        sessions: Arc<Sessions>,
        portal: Portal,
        telemetry: Telemetry,
    ) -> Self {
        Self {
            live: ArcSwap::from_pointee(live),
            clock,
            revocations,
            sessions,
            portal,
            telemetry,
            peers: Peers::default(),
            draining: AtomicBool::new(false),
            freshness,
            tunnels: AtomicUsize::new(0),
            keys: None,
        }
    }

    /// The same for a verify-only gateway, whose keys are its centre's.
    #[must_use]
    pub fn with_keys_of_centre(self, keys: Arc<KeysWanted>) -> Self {
        Self { keys: Some(keys), ..self }
    }

    /// A token named a key that is not known: waits until the centre's keys have been read again, if they will be.
    pub(super) async fn has_new_keys(&self, store: &config::Store) -> bool {
        match &self.keys {
            Some(keys) => keys.read_again(self.clock.ticks(), store.timeout).await,
            None => false,
        }
    }

    /// The configuration in force.
    #[must_use]
    pub fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Puts another configuration in force, for requests that begin from now on.
    pub fn replace(&self, live: Live) {
        self.live.store(Arc::new(live));
    }

    /// The clock.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The live part of the revocation log.
    #[must_use]
    pub const fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// Sessions and renewals.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The portal.
    #[must_use]
    pub const fn portal(&self) -> &Portal {
        &self.portal
    }

    /// Logs and metrics.
    #[must_use]
    pub const fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Who has been warned of.
    pub(super) const fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Every answer from now on ends its connection.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether the process is on its way out.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// How long nothing has been heard of the revocation log.
    #[must_use]
    pub fn staleness(&self) -> Duration {
        self.freshness.age()
    }

    /// Open tunnels.
    #[must_use]
    pub fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::SeqCst)
    }

    /// Whether anybody may be identified at all: not before the log has been read, and not from stale knowledge where
    /// the operator forbids that.
    pub(super) fn may_identify(&self, store: &config::Store) -> bool {
        self.revocations.is_ready()
            && (store.on_stale == config::OnStale::Serve || self.staleness() <= store.max_staleness)
    }
}

/// One worker. Never leaves its thread.
pub struct Core {
    shared: Arc<Shared>,
    tokens: RefCell<TokenCache>,
    own: RefCell<Rc<Own>>,
    streams: Rc<Streams>,
    request_ids: RequestIds,
}

/// One configuration as one worker serves it. Every request holds the one that it began with; holding it touches no
/// memory that another worker writes.
pub(super) struct Own {
    pub(super) live: Arc<Live>,
    upstreams: OnceCell<Rc<Upstreams>>,
    /// In the order of [`crate::router::Route::index`].
    routes: Vec<Rc<RouteCounters>>,
    named: Named,
}

impl Own {
    fn new(live: Arc<Live>, shared: &Shared) -> Rc<Self> {
        let metrics = &shared.telemetry.metrics;
        let routes = live.router.routes().iter().map(|route| Rc::new(metrics.route(&route.name))).collect();
        Rc::new(Self { live, upstreams: OnceCell::new(), routes, named: Named::default() })
    }

    /// The next one, with the connections of this one where only the keys are others.
    fn followed_by(&self, live: Arc<Live>, shared: &Shared) -> Rc<Self> {
        let has_same_upstreams = live.has_upstreams_of(&self.live);
        let next = Self::new(live, shared);
        if has_same_upstreams && let Some(upstreams) = self.upstreams.get() {
            // It was made just now: there is nothing in its place.
            let _ = next.upstreams.set(Rc::clone(upstreams));
        }
        next
    }

    /// The upstreams, made when the first request needs them.
    pub(super) fn upstreams(&self, clock: &Clock) -> io::Result<Rc<Upstreams>> {
        if let Some(upstreams) = self.upstreams.get() {
            return Ok(Rc::clone(upstreams));
        }
        let upstreams = Rc::new(self.live.connect_upstreams(clock)?);
        Ok(Rc::clone(self.upstreams.get_or_init(|| upstreams)))
    }

    /// The lines of a head that name the person of a permission.
    pub(super) fn identity_lines(&self, pass: &Pass) -> Rc<[u8]> {
        self.named.lines(&self.live.config.identity.headers, pass)
    }

    pub(super) fn counters(&self, route: &Route) -> Option<Rc<RouteCounters>> {
        self.routes.get(route.index).cloned()
    }
}

impl Core {
    /// A worker's own state. Call it on the worker's thread, inside its runtime.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Rc<Self> {
        let own = RefCell::new(Own::new(shared.live(), &shared));
        Rc::new(Self {
            shared,
            tokens: RefCell::new(TokenCache::new(DEFAULT_CAPACITY)),
            own,
            streams: Streams::new(),
            request_ids: RequestIds::default(),
        })
    }

    /// What all workers share.
    #[must_use]
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Closes streams to which the right is over, as soon as the log says so or the routes are others. Runs as long as the worker.
    pub async fn watch_streams(self: Rc<Self>) {
        self.streams.watch(&self).await;
    }

    /// What a worker does once a second.
    pub fn tidy(&self) {
        if let Some(upstreams) = self.own().upstreams.get() {
            upstreams.close_idle();
        }
        self.shared.telemetry.access.flush();
    }

    /// The configuration in force, as this worker serves it.
    pub(super) fn own(&self) -> Rc<Own> {
        let in_force = self.shared.live.load();
        let mut own = self.own.borrow_mut();
        if !Arc::ptr_eq(&own.live, &in_force) {
            let next = own.followed_by(Arc::clone(&in_force), &self.shared);
            *own = next;
        }
        Rc::clone(&own)
    }

    /// A new request id.
    pub(super) fn request_id(&self) -> HeaderValue {
        self.request_ids.next(&self.shared.clock)
    }

    pub(super) const fn streams(&self) -> &Rc<Streams> {
        &self.streams
    }

    pub(super) fn with_tokens<T>(&self, with: impl FnOnce(&mut TokenCache) -> T) -> T {
        with(&mut self.tokens.borrow_mut())
    }

    /// Runs a tunnel beside the requests, counted so that a drain knows of it.
    pub(super) fn spawn_tunnel(self: &Rc<Self>, tunnel: impl Future<Output = ()> + 'static) {
        struct Counted(Arc<Shared>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.tunnels.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.shared.tunnels.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(Arc::clone(&self.shared));
        tokio::task::spawn_local(async move {
            tunnel.await;
            drop(counted);
        });
    }
}
