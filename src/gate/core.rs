//! What all workers share, and what one worker owns.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use super::live::Live;
use super::streams::Streams;
use crate::auth::cache::{DEFAULT_CAPACITY, TokenCache};
use crate::auth::centre::KeysWanted;
use crate::auth::revocation::Revocations;
use crate::auth::session::Sessions;
use crate::clock::Clock;
use crate::config;
use crate::portal::Portal;
use crate::telemetry::Telemetry;
use crate::upstream::Upstreams;

/// What every worker reads and none owns. No lock on the way of a request.
pub struct Shared {
    live: ArcSwap<Live>,
    clock: Clock,
    revocations: Arc<Revocations>,
    sessions: Arc<Sessions>,
    portal: Portal,
    telemetry: Telemetry,
    draining: AtomicBool,
    /// Unix seconds of the last sign of life from the revocation log.
    heard: AtomicU64,
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
        sessions: Arc<Sessions>,
        portal: Portal,
        telemetry: Telemetry,
    ) -> Self {
        let heard = AtomicU64::new(clock.unix_seconds());
        Self {
            live: ArcSwap::from_pointee(live),
            clock,
            revocations,
            sessions,
            portal,
            telemetry,
            draining: AtomicBool::new(false),
            heard,
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
            Some(keys) => keys.read_again(self.clock.unix_millis(), store.timeout).await,
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

    /// Every answer from now on ends its connection.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether the process is on its way out.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The revocation log has been heard of at `now` (Unix seconds).
    pub fn heard(&self, now: u64) {
        self.heard.store(now, Ordering::Relaxed);
    }

    /// Seconds since the revocation log was last heard of.
    #[must_use]
    pub fn staleness(&self) -> u64 {
        self.clock.unix_seconds().saturating_sub(self.heard.load(Ordering::Relaxed))
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
            && (store.on_stale == config::OnStale::Serve || self.staleness() <= store.max_staleness.as_secs())
    }
}

/// One worker. Never leaves its thread.
pub struct Core {
    shared: Arc<Shared>,
    tokens: RefCell<TokenCache>,
    upstreams: RefCell<Option<(u64, Rc<Upstreams>)>>,
    streams: Rc<Streams>,
}

impl Core {
    /// A worker's own state. Call it on the worker's thread, inside its `LocalSet`.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Rc<Self> {
        let streams = Streams::new();
        Rc::new(Self {
            shared,
            tokens: RefCell::new(TokenCache::new(DEFAULT_CAPACITY)),
            upstreams: RefCell::new(None),
            streams,
        })
    }

    /// What all workers share.
    #[must_use]
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Closes streams whose session is over, as soon as the log says so. Runs as long as the worker.
    pub async fn watch_streams(self: Rc<Self>) {
        self.streams.watch(&self.shared).await;
    }

    /// What a worker does once a second.
    pub fn tidy(&self) {
        if let Some((_, upstreams)) = &*self.upstreams.borrow() {
            upstreams.close_idle();
        }
        self.shared.telemetry.access.flush();
    }

    pub(super) fn live(&self) -> Arc<Live> {
        self.shared.live()
    }

    pub(super) const fn streams(&self) -> &Rc<Streams> {
        &self.streams
    }

    pub(super) fn with_tokens<T>(&self, with: impl FnOnce(&mut TokenCache) -> T) -> T {
        with(&mut self.tokens.borrow_mut())
    }

    /// The upstreams of the configuration that a request began with; made anew after a reload.
    pub(super) fn upstreams(&self, live: &Arc<Live>) -> io::Result<Rc<Upstreams>> {
        let mut own = self.upstreams.borrow_mut();
        match &*own {
            Some((generation, upstreams)) if *generation == live.generation => Ok(Rc::clone(upstreams)),
            current => {
                let upstreams = Rc::new(live.connect_upstreams(&self.shared.clock)?);
                // A request that began before the reload must not undo it for those after.
                if current.as_ref().is_none_or(|(generation, _)| *generation < live.generation) {
                    *own = Some((live.generation, Rc::clone(&upstreams)));
                }
                Ok(upstreams)
            }
        }
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
