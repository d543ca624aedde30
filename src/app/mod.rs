//! The composition root: the only file that knows every room.
//!
//! [`serve`] puts a whole gateway together, runs it and takes it down in order; [`Alone`] puts together as much as the account
//! and session commands need when no server runs.

mod backend;
mod centre;
mod control;
mod copy;
mod inspect;
mod reload;
mod succession;

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::accounts::Accounts;
use crate::accounts::hashing::HashPool;
use crate::admin::command::{Command, Outcome};
use crate::admin::operations::{InForce, Operations, Reload};
use crate::auth::freshness::Freshness;
use crate::auth::keys::{self, KeyError, KeyRing};
use crate::auth::revocation::Revocations;
use crate::auth::session::Sessions;
use crate::clock::Clock;
use crate::config::{Config, StoreKind};
use crate::feed::Feed;
use crate::files::{self, Hands};
use crate::gate::{Live, LiveError};
use crate::server::ListenError;
use crate::store::{
    Forgotten, LogEntry, LogFollower, Nothing, Postgres, PostgresOptions, Sled, SledOptions, Store, StoreError,
};
use crate::telemetry::access::AccessLog;
use crate::telemetry::audit::Audit;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{LevelError, Telemetry};

pub use self::backend::has_pages;
use self::centre::Centre;
pub use self::control::{Stopped, serve};
pub use self::copy::{CopyError, Source, Stage, accepts_tokens, copy, is_same_store, is_there};
pub use self::inspect::{Objection, folder_problem, objections, unreachable, whose};

/// Why a gateway did not start. Each names what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder.
    #[error("{folder}: the data folder can't be used")]
    DataDir {
        /// `data_dir`.
        folder: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The log level.
    #[error(transparent)]
    Level(#[from] LevelError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A listening address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Keys or policy tests.
    #[error(transparent)]
    Live(#[from] LiveError),
    /// The admin listener.
    #[error("admin.listen {address} can't be opened")]
    Admin {
        /// `admin.listen`.
        address: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// TLS towards the centre of a verify-only gateway.
    #[error("the centre: {0}")]
    Centre(#[source] io::Error),
    /// Threads, sockets, the audit file.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// Accounts, sessions and what they stand on.
struct Rooms {
    clock: Clock,
    store: Arc<dyn Store>,
    revocations: Arc<Revocations>,
    freshness: Arc<Freshness>,
    accounts: Accounts,
    sessions: Arc<Sessions>,
    hashers: HashPool,
    feed: Arc<Feed>,
    /// Of a verify-only gateway.
    centre: Option<Rc<Centre>>,
}

/// What the rooms, or a store alone, are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Serve,
    Command,
    /// A command that fills an empty store: one beside a dump is what is wanted.
    Restore,
    /// One side of a copy: nothing but the store is touched.
    Copy,
}

/// Counts what the revocation log brings, and passes it on to verify-only gateways.
struct Counted {
    revocations: Arc<Revocations>,
    freshness: Arc<Freshness>,
    metrics: Metrics,
    feed: Arc<Feed>,
    clock: Clock,
}

impl LogFollower for Counted {
    fn extend(&self, entries: &[LogEntry], head: u64) {
        self.metrics.revocations(entries.len());
        // The feed is open to gateways as soon as the log has been read here, so it is told first.
        self.feed.extend(entries, head);
        self.revocations.extend(entries, head);
    }

    fn heard(&self, at: Instant) {
        self.freshness.heard(at);
    }

    fn forgotten(&self, forgotten: Forgotten) {
        self.revocations.forget(forgotten, &self.clock);
    }
}

/// How long a starting server waits for a command that holds the folder.
const PATIENCE: Duration = Duration::from_secs(5);
/// Logins that may wait for a free hashing thread; at bcrypt cost 12 about fifteen seconds' worth for each thread. Networks
/// are served in turns, so that one that fills the queue waits for itself.
const HASH_QUEUE_PER_THREAD: usize = 64;

impl Rooms {
    /// Reads the revocation log of an open store.
    async fn furnish(
        config: &Config,
        clock: Clock,
        telemetry: Telemetry,
        store: Arc<dyn Store>,
        purpose: Purpose,
    ) -> Result<Self, StartError> {
        // A start needs nothing but the file; a command needs its store.
        let database_may_come = purpose == Purpose::Serve && matches!(config.store.kind, StoreKind::Postgres { .. });
        let revocations = Arc::new(Revocations::default());
        let freshness = Arc::new(Freshness::new(clock.clone()));
        let feed = Feed::new(clock.clone(), config.token.gateway_secret.is_some());
        if config.central.is_none() {
            let counted = Counted {
                revocations: Arc::clone(&revocations),
                freshness: Arc::clone(&freshness),
                metrics: telemetry.metrics.clone(),
                feed: Arc::clone(&feed),
                clock: clock.clone(),
            };
            match store.follow(Arc::new(counted)).await {
                // It is told as soon as the database can be reached; until then nobody is let in, and `/ready` says why.
                Err(error @ (StoreError::Unavailable { .. } | StoreError::TimedOut)) if database_may_come => {
                    tracing::warn!(%error, "the database can't be reached; nobody is let in until it can");
                }
                followed => followed?,
            }
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = cores.saturating_sub(1).max(1);
        let hashers = HashPool::start(threads, threads * HASH_QUEUE_PER_THREAD)
            .map_err(system("the threads that hash passwords can't be started"))?;
        let accounts = Accounts::new(Arc::clone(&store), clock.clone(), hashers.clone(), telemetry.audit.clone());
        let sessions = Sessions::new(Arc::clone(&store), Arc::clone(&revocations), clock.clone(), telemetry.clone());
        let centre = Centre::of(config)?;
        let sessions = Arc::new(match &centre {
            Some(centre) => sessions.of_centre(centre.client()),
            None => sessions,
        });
        Ok(Self { clock, store, revocations, freshness, accounts, sessions, hashers, feed, centre })
    }

    fn operations(&self, in_force: Box<dyn Fn() -> Arc<dyn InForce>>, reload: Option<Reload>) -> Operations {
        Operations {
            accounts: self.accounts.clone(),
            sessions: Arc::clone(&self.sessions),
            store: Arc::clone(&self.store),
            revocations: Arc::clone(&self.revocations),
            clock: self.clock.clone(),
            in_force,
            reload,
        }
    }
}

/// The store that a configuration names. `wait`: for another process that holds its folder.
async fn open_store(
    config: &Config,
    clock: &Clock,
    purpose: Purpose,
    wait: Duration,
) -> Result<Arc<dyn Store>, StartError> {
    match &config.store.kind {
        StoreKind::Sled => {
            make_data_dir(config)?;
            let beside_dump = purpose == Purpose::Restore;
            let options = SledOptions { wait, timeout: config.store.timeout, beside_dump };
            let store: Arc<dyn Store> = Sled::open_beside(&config.data_dir, clock.clone(), options).await?;
            Ok(store)
        }
        StoreKind::Postgres { database, pool_size } => {
            let lives_here = purpose != Purpose::Copy;
            if lives_here {
                make_data_dir(config)?;
            }
            let options = PostgresOptions {
                pool_size: *pool_size,
                timeout: config.store.timeout,
                max_staleness: config.store.max_staleness,
                note: lives_here.then(|| config.data_dir.join("log-place")),
            };
            let store: Arc<dyn Store> = Postgres::open(database, clock.clone(), &options)?;
            Ok(store)
        }
        StoreKind::None => Ok(Arc::new(Nothing)),
    }
}

fn make_data_dir(config: &Config) -> Result<(), StartError> {
    make_data_folder(&config.data_dir)
        .map_err(|source| StartError::DataDir { folder: config.data_dir.display().to_string(), source })
}

/// Whether a server makes its first key by itself. Replicas on one database need a key that they share, and a
/// verify-only gateway has none.
fn may_make_first_key(config: &Config) -> bool {
    matches!(config.store.kind, StoreKind::Sled)
        && config.central.is_none()
        && keys::is_first(&config.token, &config.data_dir).unwrap_or(false)
}

/// The data folder, as private as it can be made.
fn make_data_folder(folder: &Path) -> io::Result<()> {
    if files::private_folder(folder)? == Hands::Everybody {
        tracing::warn!(
            folder = %folder.display(),
            "everybody may put files into the data folder and take them away, and it can't be closed from here; what is in \
             it stays private by its own modes. In Kubernetes set securityContext.fsGroup, elsewhere chown it to this user"
        );
    }
    Ok(())
}

/// Sees to it, whatever comes in between, that what root made in the data folder is its owner's in the end.
struct Owners(Option<PathBuf>);

impl Owners {
    fn of(config: &Config) -> Self {
        Self((!matches!(config.store.kind, StoreKind::None)).then(|| config.data_dir.clone()))
    }
}

impl Drop for Owners {
    fn drop(&mut self) {
        let Some(folder) = self.0.as_deref() else { return };
        match files::give_to_folder_owner(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, folder = %folder.display(), "not everything in it could be given to its owner");
            }
            _ => {}
        }
    }
}

fn telemetry(config: &Config, clock: &Clock, access: bool) -> Result<Telemetry, StartError> {
    let metrics = Metrics::default();
    let audit = match &config.log.audit_file {
        Some(path) => Audit::to_file(clock.clone(), path).map_err(system("log.audit_file can't be opened"))?,
        None if access => Audit::with_log(clock.clone()),
        // A command's output is its own; what it changes is in the server's log only when a server runs.
        None => Audit::silent(clock.clone()),
    };
    let access = AccessLog::new(clock.clone(), metrics.clone(), config.log.format, access && config.log.access);
    Ok(Telemetry { access, audit, metrics })
}

impl InForce for Live {
    fn config(&self) -> &Config {
        &self.config
    }

    fn ring(&self) -> Result<&KeyRing, String> {
        Ok(&self.ring)
    }
}

/// A configuration without a server. Commands that need no key work without one.
struct Unserved {
    config: Config,
    ring: Result<KeyRing, KeyError>,
}

impl InForce for Unserved {
    fn config(&self) -> &Config {
        &self.config
    }

    fn ring(&self) -> Result<&KeyRing, String> {
        self.ring.as_ref().map_err(ToString::to_string)
    }
}

/// A store that this process holds for one command.
pub struct Alone {
    runtime: tokio::runtime::Runtime,
    clock: Clock,
    store: Arc<dyn Store>,
    purpose: Purpose,
    // Last, so that everything is written when it looks.
    owners: Owners,
}

impl Alone {
    /// Opens the store; does not wait for another process that holds it. `restores`: for a restore.
    pub fn open(config: &Config, restores: bool) -> Result<Self, StartError> {
        let clock = Clock::system();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("the runtime can't be started"))?;
        let purpose = if restores { Purpose::Restore } else { Purpose::Command };
        let owners = Owners::of(config);
        let store = runtime.block_on(open_store(config, &clock, purpose, Duration::ZERO))?;
        Ok(Self { runtime, clock, store, purpose, owners })
    }

    /// Carries out one command in this process, and closes the store.
    pub fn carry_out(self, config: Config, command: Command) -> Result<Outcome, StartError> {
        let Self { runtime, clock, store, purpose, owners } = self;
        let outcome = runtime.block_on(async {
            let telemetry = telemetry(&config, &clock, false)?;
            let rooms = Rooms::furnish(&config, clock.clone(), telemetry, store, purpose).await?;
            let ring = KeyRing::load(&config.token, &config.data_dir, clock.unix_seconds());
            let unserved: Arc<dyn InForce> = Arc::new(Unserved { config, ring });
            let operations = rooms.operations(Box::new(move || Arc::clone(&unserved)), None);
            let outcome = operations.carry_out(command).await;
            rooms.store.close().await?;
            Ok(outcome)
        });
        drop(owners);
        outcome
    }
}
