//! All that a reload swaps: one configuration and what is made from it.

use std::io;
use std::sync::Arc;

use crate::auth::keys::{KeyError, KeyRing};
use crate::clock::Clock;
use crate::config::{Config, SecureCookie};
use crate::message::admit::{Edge, Scheme};
use crate::message::identity::Guarded;
use crate::router::Router;
use crate::telemetry::metrics::Metrics;
use crate::upstream::{Health, Upstreams};

/// One configuration, ready to be served. Immutable; every request holds the one that it began with.
pub struct Live {
    /// What the operator meant.
    pub config: Config,
    pub(super) edge: Edge,
    pub(super) router: Router,
    /// The keys.
    pub ring: KeyRing,
    pub(super) guarded: Guarded,
    /// The upstreams' state, shared by all workers.
    pub health: Arc<Health>,
}

/// Why a checked configuration can't be served all the same.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// A `[[test]]` failed; each line is one of them.
    #[error("{}", .0.join("\n"))]
    Tests(Vec<String>),
    /// What TLS towards an upstream needs.
    #[error("upstream: {0}")]
    Upstreams(#[source] io::Error),
}

impl Live {
    /// Runs the policy tests of a configuration.
    pub fn test(config: &Config) -> Result<(), LiveError> {
        let failed = crate::router::explain::run_tests(config);
        if failed.is_empty() { Ok(()) } else { Err(LiveError::Tests(failed)) }
    }

    /// Makes everything that a configuration needs, and runs its policy tests.
    pub fn new(config: Config, clock: &Clock, metrics: &Metrics) -> Result<Self, LiveError> {
        Self::test(&config)?;
        let ring = match &config.central {
            // Read from the centre later on: until then nobody is let in.
            Some(_) => KeyRing::empty(&config.token),
            None => KeyRing::load(&config.token, &config.data_dir, clock.unix_seconds())?,
        };
        let router = Router::new(&config);
        let guarded = Guarded::new(&config.identity.headers, router.methods_matter()).passing(&config.identity.pass);
        let health = Arc::new(Health::new(&config.upstreams, clock, metrics));
        let edge = Edge { trusted_proxies: config.server.trusted_proxies.clone(), scheme: Scheme::Http };
        let live = Self { config, edge, router, ring, guarded, health };
        // Each worker makes its own; made once here, what is wrong with them is a refused start and not a failed request.
        live.connect_upstreams(clock).map_err(LiveError::Upstreams)?;
        Ok(live)
    }

    /// Makes the upstreams' part alone, to see whether it can be made.
    pub fn try_upstreams(config: &Config, clock: &Clock, metrics: &Metrics) -> Result<(), LiveError> {
        let router = Router::new(config);
        let health = Arc::new(Health::new(&config.upstreams, clock, metrics));
        let made = Upstreams::new(router.upstreams(), &config.upstreams, health, clock.clone());
        made.map(drop).map_err(LiveError::Upstreams)
    }

    /// The same with other keys: those of a verify-only gateway's centre.
    #[must_use]
    pub fn with_ring(self, ring: KeyRing) -> Self {
        Self { ring, ..self }
    }

    /// A copy of this with other keys. Upstreams and their connections stay as they are.
    #[must_use]
    pub fn rekeyed(&self, ring: KeyRing) -> Self {
        let router = Router::new(&self.config);
        Self {
            guarded: Guarded::new(&self.config.identity.headers, router.methods_matter())
                .passing(&self.config.identity.pass),
            config: self.config.clone(),
            edge: self.edge.clone(),
            router,
            ring,
            health: Arc::clone(&self.health),
        }
    }

    /// Whether one was made of the other by [`Live::rekeyed`]: nothing else shares the upstreams' state.
    pub(super) fn has_upstreams_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.health, &other.health)
    }

    /// What the file says of an upstream, by its place among the router's.
    pub(super) fn upstream(&self, index: usize) -> Option<&crate::config::Upstream> {
        self.config.upstreams.get(self.router.upstreams().get(index)?)
    }

    /// One worker's upstreams. Fails where a `ca_file` or the system's certificates can't be read.
    pub(super) fn connect_upstreams(&self, clock: &Clock) -> io::Result<Upstreams> {
        Upstreams::new(self.router.upstreams(), &self.config.upstreams, Arc::clone(&self.health), clock.clone())
    }

    /// Whether our cookie gets `Secure` for a browser that came over `scheme`.
    pub(super) fn secure_cookie(&self, scheme: Scheme) -> bool {
        match self.config.cookie.secure {
            SecureCookie::Always => true,
            SecureCookie::Never => false,
            SecureCookie::Auto => scheme == Scheme::Https,
        }
    }
}
