//! Where accounts, sessions and the revocation log live.
//!
//! [`Store`] is what every backend offers; one conformance suite runs over all of them. Every change is one atomic
//! [`Write`] list, durable before it is acknowledged, and followers of the log have been told by then as well.

#[cfg(test)]
mod conformance;
mod dump;
mod embedded;
mod folder;
#[cfg(any(test, fuzzing))]
mod memory;
mod nothing;
mod plan;
mod postgres;
mod record;
mod row;
mod sled;
#[cfg(test)]
#[path = "../../tests/support/postgres.rs"]
#[expect(dead_code, reason = "it serves the tests from outside too, which use all of it")]
mod testing;
mod thread;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use dump::{RestoreError, Restored, collect, fill, read_dump, restore, write_dump};
pub use embedded::{Sled, SledOptions};
#[cfg(any(test, fuzzing))]
pub use memory::Memory;
pub use nothing::Nothing;
pub use postgres::{Postgres, PostgresOptions};
pub use record::{Account, AccountId, LogEntry, Revocation, Session, SessionId, Username};

/// What can be seen of the embedded store in `data_dir` without opening it: whether it is one, and of this version. That
/// there is none is no error. A server may run on it.
pub fn look(data_dir: &std::path::Path) -> Result<(), StoreError> {
    folder::Folder::glance(data_dir)
}

/// What a call to a store returns. It can be awaited on any runtime.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// One part of an atomic change.
#[derive(Clone, Debug)]
pub enum Write {
    /// A new account. [`StoreError::NameTaken`] or [`StoreError::IdTaken`] where one of that name or id exists.
    InsertAccount(Account),
    /// Replaces the account of that id. Its `revision` must be the stored one; the store raises it by one.
    /// [`StoreError::Conflict`] where somebody else was faster, [`StoreError::NoSuchAccount`] where it is gone.
    UpdateAccount(Account),
    /// Removes the account. [`StoreError::NoSuchAccount`] where there is none.
    RemoveAccount(AccountId),
    /// Writes a session, new or renewed. One that is there keeps the later of both ends: its older token may live on.
    PutSession(Session),
    /// Rewrites a session only where it is still there (a renewal that raced a logout brings nothing back).
    TouchSession(Session),
    /// Removes one session; no error where there is none.
    RemoveSession(SessionId),
    /// Removes every session of one account.
    RemoveSessionsOf(AccountId),
    /// Where an account has more than `keep` sessions, ends the oldest ones: each is removed and gets its entry in the
    /// log, up to [`MAX_ENDED`] at once. `spare` stays, whatever the clock said when it began.
    EndOldestSessions {
        /// Whose.
        account: AccountId,
        /// The one that has just begun.
        spare: SessionId,
        /// At least 1.
        keep: usize,
        /// Unix seconds.
        at: u64,
        /// Unix seconds after which no token of them can still be valid; a minute after their own end where that is later.
        expires: u64,
    },
    /// Removes every session.
    RemoveAllSessions,
    /// From now on an entry of the log that ends tokens of unknown end is kept for so many seconds at least: tokens
    /// that live so long have been accepted.
    Longest(u64),
    /// Appends to the revocation log; the store gives it the next number. `expires`: Unix seconds after which no
    /// token that it covers can still be valid as far as the caller knows. The store keeps it longer where a session that
    /// it covers, as stored before this list, ends later, and where longer lifetimes were in force before.
    Revoke {
        /// What is over.
        what: Revocation,
        /// Unix seconds.
        at: u64,
        /// Unix seconds.
        expires: u64,
    },
}

/// How many sessions of one account end at once at most, for having too many.
pub const MAX_ENDED: usize = 1000;

/// What a change did.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// The number of the last entry of the revocation log after the change.
    pub log_head: u64,
    /// The entries that this change appended.
    pub entries: Vec<LogEntry>,
}

/// Told of every log entry, in order, before the change that wrote it is acknowledged.
pub trait LogFollower: Send + Sync {
    /// `entries` are those that are still there in ascending order and `head` is the newest number of the log, which may be higher
    /// than that of the last live entry.
    fn extend(&self, entries: &[LogEntry], head: u64);
    /// Everything that the log held at `at`, of the clock that the store was given, has been told.
    fn heard(&self, at: Instant) {
        let _ = at;
    }
    /// What the store has forgotten meanwhile; told at first and every so often, also where nothing has changed.
    fn forgotten(&self, forgotten: Forgotten) {
        let _ = forgotten;
    }
}

/// What a store has let go of for good, and the time that it goes by. What an entry covered that is gone has to be known
/// by other means where a clock goes back, or a lifetime in the configuration grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Forgotten {
    /// See [`crate::clock::Settled`]; 0: not known. Unix seconds.
    #[serde(default)]
    pub settled: u64,
    /// Entries that had expired by then may be gone. Unix seconds.
    #[serde(default)]
    pub until: u64,
    /// None of those that are gone has a higher number.
    #[serde(default)]
    pub number: u64,
    /// None of those that are gone and ended tokens without a number ended one that was issued later. Unix seconds.
    #[serde(default)]
    pub at: u64,
}

impl Forgotten {
    /// Notes one more entry that is to go.
    fn add(&mut self, entry: &LogEntry, until: u64) {
        self.until = self.until.max(until);
        self.number = self.number.max(entry.number);
        if !matches!(entry.what, Revocation::Session { .. } | Revocation::Changed { .. }) {
            self.at = self.at.max(entry.at);
        }
    }

    /// What either has forgotten, by the later time.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            settled: self.settled.max(other.settled),
            until: self.until.max(other.until),
            number: self.number.max(other.number),
            at: self.at.max(other.at),
        }
    }
}

/// How much longer than the longest-lived token that it covers an entry is kept, in seconds: for what was being issued
/// while it was written.
const SLACK: u64 = 60;

/// Wrong passwords, counted for all processes that share a store. A bucket is a hash of whose tries are counted together.
pub trait WrongTries: Send + Sync {
    /// How long until fewer than `max_attempts` wrong tries are within the window; `None` where that is so already.
    fn wait(&self, bucket: [u8; 16], max_attempts: u32, window: Duration) -> StoreFuture<'_, Option<Duration>>;
    /// Counts a wrong try.
    fn wrong(&self, bucket: [u8; 16], window: Duration) -> StoreFuture<'_, ()>;
    /// Forgets the wrong tries of a bucket.
    fn right(&self, bucket: [u8; 16]) -> StoreFuture<'_, ()>;
}

/// One record of a store.
#[derive(Clone, Debug)]
pub enum Row {
    /// An account, with its password hash.
    Account(Account),
    /// A session.
    Session(Session),
    /// An entry of the revocation log.
    Entry(LogEntry),
}

/// How many records there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accounts.
    pub accounts: u64,
    /// Sessions.
    pub sessions: u64,
    /// Entries of the revocation log.
    pub entries: u64,
}

/// A whole store as it was at one moment.
pub struct Everything {
    /// How many rows there are.
    pub counts: Counts,
    /// The number of the newest log entry, live or not.
    pub log_head: u64,
    /// How many changes the store had seen; 0 where it doesn't count them.
    pub sequence: u64,
    /// What it has let go of for good.
    pub forgotten: Forgotten,
    /// See [`Write::Longest`].
    pub longest: u64,
    /// Accounts, then sessions, then log entries by ascending number; as many as `counts` says.
    pub rows: Box<dyn Iterator<Item = Result<Row, StoreError>> + Send>,
}

/// What [`Store::import`] puts into an empty store.
#[derive(Clone, Debug, Default)]
pub struct Import {
    /// No two of the same id or name.
    pub accounts: Vec<Account>,
    /// No two of the same id.
    pub sessions: Vec<Session>,
    /// By ascending number.
    pub log: Vec<LogEntry>,
    /// The number that the log goes on from; at least that of the last entry.
    pub log_head: u64,
    /// What the store that this comes from has let go of for good.
    pub forgotten: Forgotten,
    /// See [`Write::Longest`].
    pub longest: u64,
    /// Appends a [`Revocation::All`] with these times.
    pub revoke_all: Option<RevokeAll>,
}

/// The times of a [`Revocation::All`].
#[derive(Clone, Copy, Debug)]
pub struct RevokeAll {
    /// Unix seconds.
    pub at: u64,
    /// Unix seconds after which no token that it covers can still be valid.
    pub expires: u64,
}

/// A store of accounts, sessions and the revocation log.
pub trait Store: Send + Sync {
    /// The account of that id.
    fn account(&self, id: &AccountId) -> StoreFuture<'_, Option<Account>>;
    /// The account of that canonical name.
    fn account_by_name(&self, name: &Username) -> StoreFuture<'_, Option<Account>>;
    /// All accounts, ordered by name.
    fn accounts(&self) -> StoreFuture<'_, Vec<Account>>;
    /// One session.
    fn session(&self, id: &SessionId) -> StoreFuture<'_, Option<Session>>;
    /// The sessions of one account, or all, oldest first. Expired ones are not among them.
    fn sessions(&self, of: Option<&AccountId>) -> StoreFuture<'_, Vec<Session>>;
    /// What it has let go of for good, which followers are told.
    #[cfg(test)]
    fn forgotten(&self) -> StoreFuture<'_, Forgotten> {
        Box::pin(std::future::ready(Ok(Forgotten::default())))
    }
    /// Applies all writes or none. Durable, and told to the followers, when it answers.
    fn apply(&self, writes: Vec<Write>) -> StoreFuture<'_, Applied>;
    /// The number of the newest log entry; 0 where there is none.
    fn log_head(&self) -> StoreFuture<'_, u64>;
    /// Tells `follower` every entry that has not been cleared away at once, then each new one.
    fn follow(&self, follower: Arc<dyn LogFollower>) -> StoreFuture<'_, ()>;
    /// Every log entry that has not been cleared away, expired or not: whoever reads it may have another clock.
    fn log(&self) -> StoreFuture<'_, Vec<LogEntry>>;
    /// Whether the store takes changes right now.
    fn health(&self) -> StoreFuture<'_, ()>;
    /// Everything in it at one moment.
    ///
    /// The default puts it together from several calls, so it is one moment only where nothing changes meanwhile.
    fn export(&self) -> StoreFuture<'_, Everything> {
        Box::pin(async move {
            let (accounts, sessions) = (self.accounts().await?, self.sessions(None).await?);
            let (log, log_head) = (self.log().await?, self.log_head().await?);
            Ok(Everything::from_parts(accounts, sessions, log, log_head))
        })
    }
    /// Fills an empty store, all or nothing. [`StoreError::NotEmpty`] where it holds anything.
    fn import(&self, import: Import) -> StoreFuture<'_, Applied> {
        drop(import);
        Box::pin(async { Err(StoreError::Unavailable { problem: "it can't be filled at once".into(), source: None }) })
    }
    /// Where wrong passwords are counted for all processes that share the store; `None` where this is the only one.
    fn wrong_tries(&self) -> Option<Arc<dyn WrongTries>> {
        None
    }
    /// Waits for everything acknowledged to be on disk and lets the store go; later calls fail.
    fn close(&self) -> StoreFuture<'_, ()>;
}

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An account of that name exists.
    #[error("an account named {0:?} exists already")]
    NameTaken(String),
    /// An account of that id exists.
    #[error("an account with the id {0:?} exists already")]
    IdTaken(String),
    /// The account changed in the meantime; read it again.
    #[error("the account was changed by somebody else at the same time; try again")]
    Conflict,
    /// It is to be filled, and holds something already.
    #[error("the store is not empty")]
    NotEmpty,
    /// There is no such account.
    #[error("there is no such account")]
    NoSuchAccount,
    /// A record is larger than the store takes.
    #[error("the record is too large: {size} bytes, at most {limit}")]
    TooLarge {
        /// In bytes.
        size: usize,
        /// In bytes.
        limit: usize,
    },
    /// Another process has the folder open.
    #[error("{folder} is open in another process; stop it, or use the commands while it runs")]
    InUse {
        /// Its path.
        folder: String,
    },
    /// The store is damaged, foreign or of another version. Left untouched.
    #[error("{folder}: {problem}. It was left untouched. {way_back}")]
    Damaged {
        /// Its path.
        folder: String,
        /// What is wrong with it.
        problem: String,
        /// What to do, in whole sentences.
        way_back: String,
    },
    /// The tables were made by a newer program. Left untouched.
    #[error(
        "the database's schema is of version {found}, this program knows version {known}: run the newer program. The \
         database was left untouched"
    )]
    NewerSchema {
        /// The database's.
        found: u32,
        /// This program's.
        known: u32,
    },
    /// It can't be reached, or can't write.
    #[error("the store is not available: {problem}")]
    Unavailable {
        /// What happened.
        problem: String,
        /// The cause, where there is one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// It did not answer in `store.timeout`.
    #[error("the store did not answer in time")]
    TimedOut,
}

impl StoreError {
    fn unavailable(problem: impl Into<String>) -> Self {
        Self::Unavailable { problem: problem.into(), source: None }
    }

    fn caused(problem: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Unavailable { problem: problem.into(), source: Some(Box::new(source)) }
    }
}

impl Everything {
    fn from_parts(accounts: Vec<Account>, sessions: Vec<Session>, log: Vec<LogEntry>, log_head: u64) -> Self {
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        Self {
            counts: Counts {
                accounts: count(accounts.len()),
                sessions: count(sessions.len()),
                entries: count(log.len()),
            },
            log_head,
            sequence: 0,
            forgotten: Forgotten::default(),
            longest: 0,
            rows: Box::new(
                accounts
                    .into_iter()
                    .map(Row::Account)
                    .chain(sessions.into_iter().map(Row::Session))
                    .chain(log.into_iter().map(Row::Entry))
                    .map(Ok),
            ),
        }
    }
}
