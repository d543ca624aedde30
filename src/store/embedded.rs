//! The store in a folder of its own: one thread does everything, the rest of the program sends it commands.
//!
//! Changes that wait together are put on the disk together. A change is answered only after it is on the disk and the
//! followers were told; a read that came after it in the same group is answered after it too, so nobody sees what a
//! power cut could still take back. After a failed write nothing is changed until the database was opened anew.

use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::plan::View as _;
use super::row;
use super::sled::{THREAD_NAME, guarded};
use super::thread::Core;
use super::{
    Account, AccountId, Applied, Everything, Import, LogEntry, LogFollower, Session, SessionId, Store, StoreError,
    StoreFuture, Username, Write,
};
use crate::clock::Clock;

/// How many commands may wait.
const QUEUE: usize = 4096;
/// About how many bytes a record takes on the disk, with its indexes.
pub(super) const RECORD_BYTES: u64 = 2048;
/// What a change may take beyond `store.timeout` for each write in it.
const EACH_WRITE: Duration = Duration::from_millis(1);

/// How to open the store.
#[derive(Clone, Copy, Debug)]
pub struct SledOptions {
    /// How long to wait for another process that holds the folder.
    pub wait: Duration,
    /// How long a call may take (`store.timeout`), and a change a millisecond more for each of its writes. A change
    /// that timed out may still come to be. `follow`, `export`, `import` and `close` take as long as they need.
    pub timeout: Duration,
    /// Makes an empty store also where a dump tells that there was one: for a restore.
    pub beside_dump: bool,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self { wait: Duration::ZERO, timeout: Duration::from_secs(2), beside_dump: false }
    }
}

/// The embedded store.
///
/// Calls need a tokio runtime with time enabled. A call that answers [`StoreError::TimedOut`] has not been taken back:
/// its change may happen yet. Dropped without [`Store::close`], it finishes what it was told, writes its dump and lets
/// the folder go on its own thread, which ends with the process at the latest; nothing acknowledged is lost by that.
pub struct Sled {
    commands: SyncSender<Command>,
    timeout: Duration,
    thread: Mutex<Option<JoinHandle<()>>>,
}

pub(super) type Answer = Box<dyn FnOnce() + Send>;
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Command {
    /// Makes an answer now, which is sent when what came before is on the disk.
    Read(Box<dyn FnOnce(&Core) -> Answer + Send>),
    Change(Change, Reply<Applied>),
    Follow(Arc<dyn LogFollower>, Reply<()>),
    Close(Reply<()>),
    #[cfg(test)]
    Faults(oneshot::Sender<Option<Arc<super::sled::Faults>>>),
}

pub(super) enum Change {
    Writes(Vec<Write>),
    Import(Box<Import>),
}

impl Change {
    /// About how many bytes it puts on the disk.
    pub(super) fn size(&self) -> u64 {
        let records = match self {
            Self::Writes(writes) => writes.len(),
            Self::Import(import) => import.accounts.len() + import.sessions.len() + import.log.len(),
        };
        u64::try_from(records).unwrap_or(u64::MAX).saturating_mul(RECORD_BYTES)
    }
}

impl Sled {
    /// Opens the store in `data_dir`, or makes one where there is none. Blocks: it may wait, and it reads everything once.
    ///
    /// [`StoreError::InUse`] where another process has it, [`StoreError::Damaged`] where it is not as it was left, and
    /// also where it is gone but its dump is there.
    #[cfg(test)]
    pub fn open(data_dir: &Path, clock: Clock, options: SledOptions) -> Result<Arc<Self>, StoreError> {
        let (opened, wait) = std::sync::mpsc::channel();
        let opening = Self::start(data_dir, clock, options, move |result| drop(opened.send(result)))?;
        opening.opened(wait.recv().ok())
    }

    /// As [`Sled::open`], without blocking the thread that waits for it.
    pub async fn open_beside(data_dir: &Path, clock: Clock, options: SledOptions) -> Result<Arc<Self>, StoreError> {
        let (opened, wait) = oneshot::channel();
        let opening = Self::start(data_dir, clock, options, move |result| drop(opened.send(result)))?;
        opening.opened(wait.await.ok())
    }

    fn start(
        data_dir: &Path,
        clock: Clock,
        options: SledOptions,
        opened: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) -> Result<Self, StoreError> {
        let (commands, receiver) = sync_channel(QUEUE);
        let data_dir = data_dir.to_path_buf();
        let run = move || match Core::open(&data_dir, clock, options) {
            Ok(core) => {
                opened(Ok(()));
                core.run(&receiver);
            }
            Err(error) => opened(Err(error)),
        };
        let thread = std::thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(run)
            .map_err(|error| StoreError::caused("its thread can't be started", error))?;
        Ok(Self { commands, timeout: options.timeout, thread: Mutex::new(Some(thread)) })
    }

    /// What its thread says; `None`: it ended and said nothing.
    fn opened(self, said: Option<Result<(), StoreError>>) -> Result<Arc<Self>, StoreError> {
        match said {
            Some(Ok(())) => Ok(Arc::new(self)),
            Some(Err(error)) => {
                // The folder's lock goes with the thread.
                if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    let _ = thread.join();
                }
                Err(error)
            }
            None => Err(StoreError::unavailable("its thread ended")),
        }
    }

    fn send<T: Send + 'static>(
        &self,
        limit: Option<Duration>,
        make: impl FnOnce(Reply<T>) -> Command,
    ) -> StoreFuture<'_, T> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.try_send(make(reply)).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::unavailable("too many calls are waiting for it"),
            TrySendError::Disconnected(_) => StoreError::unavailable("it is closed"),
        });
        Box::pin(async move {
            sent?;
            let answered = match limit {
                Some(limit) => tokio::time::timeout(limit, answer).await.map_err(|_| StoreError::TimedOut)?,
                None => answer.await,
            };
            answered.unwrap_or_else(|_| Err(StoreError::unavailable("it is closed")))
        })
    }

    fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        self.send(Some(self.timeout), |reply| {
            Command::Read(Box::new(move |core| {
                let result = guarded(|| work(core)).unwrap_or_else(Err);
                Box::new(move || drop(reply.send(result)))
            }))
        })
    }
}

impl Store for Sled {
    fn account(&self, id: &AccountId) -> StoreFuture<'_, Option<Account>> {
        let id = id.clone();
        self.read(move |core| core.account(&id))
    }

    fn account_by_name(&self, name: &Username) -> StoreFuture<'_, Option<Account>> {
        let key = row::name_key(name);
        self.read(move |core| match core.engine()?.value(&key)? {
            Some(value) => core.account(&row::decode_name(&key, &value)?),
            None => Ok(None),
        })
    }

    fn accounts(&self) -> StoreFuture<'_, Vec<Account>> {
        let rows = self.read(|core| core.engine()?.rows(&[row::ACCOUNTS]));
        Box::pin(async move {
            let rows = rows.await?;
            let mut accounts = Vec::with_capacity(rows.len());
            for some in rows.chunks(256) {
                for (key, value) in some {
                    accounts.push(row::decode_account(key, value)?);
                }
                // The caller's thread has other things to do as well.
                tokio::task::yield_now().await;
            }
            accounts.sort_by(|one, other| one.username.cmp(&other.username));
            Ok(accounts)
        })
    }

    fn session(&self, id: &SessionId) -> StoreFuture<'_, Option<Session>> {
        let key = row::session_key(id);
        self.read(move |core| core.live_session(&key))
    }

    fn sessions(&self, of: Option<&AccountId>) -> StoreFuture<'_, Vec<Session>> {
        let of = of.cloned();
        self.read(move |core| core.sessions(of.as_ref()))
    }

    fn apply(&self, writes: Vec<Write>) -> StoreFuture<'_, Applied> {
        // An import of many accounts is one change, and takes as long as it takes.
        let long = EACH_WRITE.saturating_mul(u32::try_from(writes.len()).unwrap_or(u32::MAX));
        self.send(Some(self.timeout + long), |reply| Command::Change(Change::Writes(writes), reply))
    }

    fn log_head(&self) -> StoreFuture<'_, u64> {
        self.read(|core| Ok(core.meta.log_head))
    }

    #[cfg(test)]
    fn forgotten(&self) -> StoreFuture<'_, super::Forgotten> {
        self.read(|core| Ok(core.meta.forgotten))
    }

    fn follow(&self, follower: Arc<dyn LogFollower>) -> StoreFuture<'_, ()> {
        self.send(None, |reply| Command::Follow(follower, reply))
    }

    fn log(&self) -> StoreFuture<'_, Vec<LogEntry>> {
        self.read(|core| core.log_after(0))
    }

    fn health(&self) -> StoreFuture<'_, ()> {
        self.read(|core| {
            core.unbroken()?;
            core.folder.room(0)
        })
    }

    fn export(&self) -> StoreFuture<'_, Everything> {
        self.send(None, |reply| {
            Command::Read(Box::new(move |core| {
                let result = guarded(|| core.export()).unwrap_or_else(Err);
                Box::new(move || drop(reply.send(result)))
            }))
        })
    }

    fn import(&self, import: Import) -> StoreFuture<'_, Applied> {
        self.send(None, |reply| Command::Change(Change::Import(Box::new(import)), reply))
    }

    /// Also writes the dump where it is behind, which may take a moment; `store.timeout` does not bound it.
    fn close(&self) -> StoreFuture<'_, ()> {
        let closed = self.send(None, Command::Close);
        Box::pin(async move {
            let result = closed.await;
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            // It answers as its last act, so this does not wait.
            if let Some(thread) = thread {
                let _ = thread.join();
            }
            result
        })
    }
}

#[cfg(test)]
#[path = "embedded_tests.rs"]
mod tests;
