//! The embedded database, behind the few calls that the store needs of it. Nothing else in the program names the crate.
//!
//! What it leaves open is closed here and in the rooms beside it: its flush is no fsync, so [`Engine::flush`] makes one
//! on a file descriptor of its own; it can panic on a damaged file, so [`guarded`] turns a panic into an error; it
//! opens some damaged files with rows missing, so [`Engine::verify`] recounts. It is used from one thread only.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use super::StoreError;
use super::plan::{Changes, View};
use super::row::{self, Meta};

const TREE: &[u8] = b"doorward";
const CACHE_BYTES: u64 = 32 << 20;
const FLUSH_EVERY_MILLISECONDS: u64 = 200;

/// The name of the thread that works on the database; what panics there is reported as an error, not as text.
pub(super) const THREAD_NAME: &str = "doorward-store";

/// An open database.
pub(super) struct Engine {
    tree: ::sled::Tree,
    database: ::sled::Db,
    /// The data file, for the fsync that the database doesn't make.
    file: File,
    #[cfg(test)]
    pub(super) faults: std::sync::Arc<Faults>,
}

/// Makes writes fail, for tests.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) writes_fail: std::sync::atomic::AtomicBool,
}

/// A row as the database lends it: cheap to clone, a part of a page.
pub(super) type RawRow = (::sled::IVec, ::sled::IVec);

/// Why a database did not open.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("it is open in another process")]
    InUse,
    #[error("{0}")]
    Damaged(String),
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// Runs `work` on the database; a panic inside becomes an error and prints nothing.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, StoreError> {
    silence();
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| StoreError::unavailable("the database stopped at something that it did not expect"))
}

/// Panics of the store's and the database's threads are reported as errors where they are caught; their text may show
/// bytes of records, so it goes nowhere. Every other thread's panic is printed as before.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            let ours = thread.name().is_some_and(|name| name == THREAD_NAME || name.starts_with("sled-"));
            if ours {
                tracing::debug!(location = panic.location().map(tracing::field::display), "the database panicked");
            } else {
                before(panic);
            }
        }));
    });
}

impl Engine {
    /// Opens the database in `folder`, which must be locked and either empty or checked.
    pub(super) fn open(folder: &Path) -> Result<Self, OpenError> {
        let opened = guarded(|| -> Result<Self, ::sled::Error> {
            let database = ::sled::Config::new()
                .path(folder)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(Some(FLUSH_EVERY_MILLISECONDS))
                .open()?;
            let tree = database.open_tree(TREE)?;
            let file = File::options().read(true).write(true).open(folder.join("db"))?;
            Ok(Self {
                tree,
                database,
                file,
                #[cfg(test)]
                faults: std::sync::Arc::default(),
            })
        });
        match opened {
            Err(_) => Err(OpenError::Damaged(String::from("its data can't be read"))),
            Ok(Ok(engine)) => Ok(engine),
            Ok(Err(::sled::Error::Io(error))) => {
                // The database reports its lock as an error of the kind `Other`.
                if error.to_string().contains("could not acquire lock") {
                    Err(OpenError::InUse)
                } else if error.kind() == io::ErrorKind::UnexpectedEof || error.kind() == io::ErrorKind::InvalidData {
                    Err(OpenError::Damaged(String::from("its data is cut off")))
                } else {
                    Err(OpenError::Failed(error))
                }
            }
            Ok(Err(_)) => Err(OpenError::Damaged(String::from("its data is damaged"))),
        }
    }

    /// What the store knows about itself; `None` in a new one.
    pub(super) fn meta(&self) -> Result<Option<Meta>, StoreError> {
        Ok(self.value(row::META)?.map(|value| row::decode_meta(&value)).transpose()?)
    }

    /// Reads every record and compares with what the store knows about itself. The error says what is wrong.
    pub(super) fn verify(&self) -> Result<Meta, String> {
        guarded(|| {
            let known = self.meta().map_err(told)?.ok_or("nothing in it says what it holds")?;
            let Meta { sequence, log_head, forgotten, seen, longest, .. } = known;
            let mut found = Meta { sequence, log_head, forgotten, seen, longest, ..Meta::default() };
            for pair in &self.tree {
                let (key, value) = pair.map_err(|_| "a record can't be read")?;
                if key == row::META {
                    continue;
                }
                check(&key, &value, known.log_head).map_err(|error| error.to_string())?;
                found.count(&key, &value, true);
            }
            if found == known {
                Ok(known)
            } else {
                Err(format!(
                    "it holds {} records where {} were written, or not the newest of each",
                    found.rows, known.rows
                ))
            }
        })
        .unwrap_or_else(|_| Err(String::from("its data can't be read")))
    }

    /// The rows whose keys start so, ordered by key.
    pub(super) fn rows(&self, prefix: &[u8]) -> Result<Vec<RawRow>, StoreError> {
        self.tree.scan_prefix(prefix).collect::<Result<_, _>>().map_err(failed)
    }

    /// The first rows whose keys start so and come after `after`, at most `limit`.
    pub(super) fn rows_after(&self, prefix: &[u8], after: &[u8], limit: usize) -> Result<Vec<RawRow>, StoreError> {
        let from = if after > prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        let rows = self.tree.range::<&[u8], _>((from, Bound::Unbounded)).take(limit);
        let rows = rows.take_while(|row| row.as_ref().map_or(true, |(key, _)| key.starts_with(prefix)));
        rows.collect::<Result<_, _>>().map_err(failed)
    }

    /// Writes all changes or none. On disk only after [`Engine::flush`].
    pub(super) fn write(&self, changes: Changes) -> Result<(), StoreError> {
        let mut batch = ::sled::Batch::default();
        let mut keys = Vec::with_capacity(changes.len());
        for (key, change) in changes {
            match change {
                Some(value) => batch.insert(key.as_slice(), value),
                None => batch.remove(key.as_slice()),
            }
            keys.push(key);
        }
        self.tree.apply_batch(batch).map_err(failed)?;
        // A look-up splits a page that has grown too large, and fails where it can't write. Done now, while it can, it
        // leaves the pages readable when the disk is full later on.
        keys.iter().try_for_each(|key| self.tree.get(key).map(drop)).map_err(failed)
    }

    /// Puts everything written so far on the disk.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        #[cfg(test)]
        if self.faults.writes_fail.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(StoreError::unavailable("a test says that the disk is full"));
        }
        self.database.flush().map_err(failed)?;
        self.file.sync_data().map_err(|error| StoreError::caused("it can't be written", error))
    }
}

impl View for Engine {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.tree.get(key).map_err(failed)?.map(|value| value.to_vec()))
    }

    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StoreError> {
        self.tree.scan_prefix(prefix).keys().map(|key| key.map(|key| key.to_vec()).map_err(failed)).collect()
    }
}

fn check(key: &[u8], value: &[u8], log_head: u64) -> Result<(), row::RowError> {
    match key.first() {
        Some(&row::ACCOUNTS) => row::decode_account(key, value).map(drop),
        Some(&row::NAMES) => row::decode_name(key, value).map(drop),
        Some(&row::SESSIONS) => row::decode_session(key, value).map(drop),
        Some(&row::LOG) => match row::decode_entry(key, value)? {
            entry if entry.number <= log_head && row::log_key(entry.number) == key => Ok(()),
            _ => Err(row::RowError::Unreadable),
        },
        _ => row::decode(key, value).map(drop),
    }
}

fn told(error: StoreError) -> String {
    match error {
        StoreError::Unavailable { source: Some(source), .. } => source.to_string(),
        other => other.to_string(),
    }
}

fn failed(error: ::sled::Error) -> StoreError {
    match error {
        ::sled::Error::Io(error) => StoreError::caused("it can't be read or written", error),
        // The other kinds print bytes of records.
        _ => StoreError::unavailable("the database reports damage"),
    }
}
