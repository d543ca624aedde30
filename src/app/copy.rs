//! Everything from one store into another one, of whatever kind, with nobody logged out.

use std::path::Path;
use std::time::Duration;

use super::{Owners, PATIENCE, Purpose, StartError, open_store, system};
use crate::auth::keys::KeyRing;
use crate::clock::Clock;
use crate::config::{Config, StoreKind};
use crate::store::{Import, RestoreError, Restored, StoreError, collect, fill, read_dump};

/// Where the records come from.
pub enum Source {
    /// A store that no server holds.
    Idle(Box<Config>),
    /// A dump that a running server made of its own.
    Dump(String),
}

/// How far it has got.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// So many records are read.
    Reading(u64),
    /// One of them was.
    Read,
    /// All of them are written at once.
    Writing,
}

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Nothing was read.
    #[error("the source can't be opened")]
    Source(#[source] StartError),
    /// What was read is not whole.
    #[error("the source can't be read")]
    Read(#[source] RestoreError),
    /// There is nothing to copy.
    #[error("the source is empty: there is nothing to copy")]
    Empty,
    /// Nothing was written.
    #[error("the target can't be opened")]
    Target(#[source] StartError),
    /// The target was left as it was.
    #[error("nothing was copied: the target did not take it")]
    Write(#[source] StoreError),
    /// The runtime.
    #[error(transparent)]
    System(StartError),
}

/// Copies everything, or nothing. It does not wait for a process that holds the source, which may be a server on its way
/// up and then wants to be asked. An idle source stays open until the target has it on disk, so that no server changes it
/// meanwhile.
pub fn copy(source: Source, target: &Config, progress: &dyn Fn(Stage)) -> Result<Restored, CopyError> {
    let clock = Clock::system();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CopyError::System(system("the runtime can't be started")(error)))?;
    let _owners = Owners::of(target);
    runtime.block_on(async {
        let (everything, held) = match source {
            Source::Dump(text) => (read_dump(text.as_bytes()).map_err(CopyError::Read)?, None),
            Source::Idle(config) => {
                let store =
                    open_store(&config, &clock, Purpose::Copy, Duration::ZERO).await.map_err(CopyError::Source)?;
                let exported = store.export().await.map_err(|error| CopyError::Read(error.into()))?;
                let counts = exported.counts;
                progress(Stage::Reading(counts.accounts + counts.sessions + counts.entries));
                let everything = collect(exported, || progress(Stage::Read)).map_err(CopyError::Read)?;
                (everything, Some(store))
            }
        };
        let Import { accounts, sessions, log, log_head, .. } = &everything;
        if accounts.is_empty() && sessions.is_empty() && log.is_empty() && *log_head == 0 {
            return Err(CopyError::Empty);
        }
        let store = open_store(target, &clock, Purpose::Copy, PATIENCE).await.map_err(CopyError::Target)?;
        progress(Stage::Writing);
        let filled = fill(&*store, everything).await;
        // The first error is the one to tell.
        let closed = store.close().await;
        let filled = filled.and_then(|filled| closed.map(|()| filled)).map_err(CopyError::Write)?;
        if let Some(held) = held
            && let Err(error) = held.close().await
        {
            tracing::warn!(%error, "the source could not be closed in order");
        }
        Ok(filled)
    })
}

/// Whether two configurations name one store.
#[must_use]
pub fn is_same_store(one: &Config, other: &Config) -> bool {
    let same_folder = || match (one.data_dir.canonicalize(), other.data_dir.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one.data_dir == other.data_dir,
    };
    match (&one.store.kind, &other.store.kind) {
        (StoreKind::Sled, StoreKind::Sled) => same_folder(),
        (StoreKind::Postgres { database: one, .. }, StoreKind::Postgres { database: other, .. }) => one.is_same(other),
        // Kinds that differ; and one that holds nothing is no store.
        (StoreKind::Sled | StoreKind::Postgres { .. } | StoreKind::None, _) => false,
    }
}

/// Whether there is anything to open: opening a store that is not there would make one.
#[must_use]
pub fn is_there(config: &Config) -> bool {
    let holds = |name: &str| Path::exists(&config.data_dir.join(name));
    match &config.store.kind {
        // With a dump and without a store the opening says what to do.
        StoreKind::Sled => holds("store") || holds("dump.jsonl"),
        // Whoever can't reach it, or finds nothing in it, is told by the copy itself.
        StoreKind::Postgres { .. } => true,
        StoreKind::None => false,
    }
}

/// Whether tokens that the one configuration signs are accepted under the other one: the same key and the same issuer.
#[must_use]
pub fn accepts_tokens(source: &Config, target: &Config) -> bool {
    let now = Clock::system().unix_seconds();
    let ring = |config: &Config| KeyRing::load(&config.token, &config.data_dir, now).ok();
    match (ring(source), ring(target)) {
        (Some(source), Some(target)) => target.accepts_tokens_of(&source),
        // Without a key nobody holds a token.
        (None, _) => true,
        (Some(_), None) => false,
    }
}
