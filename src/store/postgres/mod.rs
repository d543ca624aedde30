//! The store in PostgreSQL, for any number of replicas.
//!
//! - One thread has a runtime of its own for everything that has to do with the database; the rest of the program sends
//!   it calls and waits for their answers. So a worker never does I/O for it, and a full queue is an answer too.
//! - Every call ends within its time. What it left half way in the database is taken back there.
//! - A change is answered when it is committed and this process's followers know its log entries; the other replicas hear
//!   of them by `NOTIFY`, which only wakes: what counts is the log's table (see [`log`]).

mod change;
mod clear;
mod connections;
mod fault;
mod log;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod tls;
mod tries;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, IsolationLevel};

use self::connections::{Connections, Lease};
use self::fault::Fault;
use self::log::Log;
use self::rows::{big, record, small};
use self::tls::Encryption;
use super::row::AccountRow;
use super::{
    Account, AccountId, Applied, Counts, Everything, Forgotten, Import, LogEntry, LogFollower, Row, Session, SessionId,
    Store, StoreError, StoreFuture, Username, Write, WrongTries,
};
use crate::clock::{Clock, Settled};
use crate::config::Database;

/// How many calls may be under way or wait for a connection.
const QUEUE: usize = 1024;
/// What a change may take beyond `store.timeout` for each write in it.
const EACH_WRITE: Duration = Duration::from_millis(2);
/// Rows that are fetched in one go, and how long that may take.
const PAGE: i32 = 5000;
const PAGE_LIMIT: Duration = Duration::from_secs(30);
/// How often what ran out is cleared away.
const CLEAR_EVERY: Duration = Duration::from_mins(1);

/// How to use a database.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Connections, the one that listens not counted (`store.pool_size`).
    pub pool_size: usize,
    /// How long a call may take (`store.timeout`), and a change a little more for each of its writes. A change that timed
    /// out may still come to be. `accounts`, `sessions`, `follow`, `export` and `import` take as long as their rows need;
    /// each portion of them has a limit.
    pub timeout: Duration,
    /// How old the knowledge of the log may get (`store.max_staleness`): it is read on several times within it.
    pub max_staleness: Duration,
    /// A file in which the log's place is written down from one start to the next; `None`: nowhere.
    pub note: Option<PathBuf>,
}

/// A PostgreSQL database.
pub struct Postgres {
    calls: Arc<Calls>,
    timeout: Duration,
    tries: Arc<tries::Tries>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The way to the thread.
struct Calls {
    jobs: mpsc::UnboundedSender<Job>,
    /// Bounds what waits in `jobs` and what is under way.
    places: Arc<Semaphore>,
}

/// A value in a statement.
type Parameter<'p> = (&'p (dyn ToSql + Sync), Type);

/// Begins one call, on the thread.
type Job = Box<dyn FnOnce(&Rc<Core>) + Send>;

/// What the thread owns.
struct Core {
    clock: Clock,
    connections: Rc<Connections>,
    log: Log,
    limit: Duration,
    /// How long the one that listens waits for an answer.
    patience: Duration,
    heartbeat: Duration,
    /// The time that clearing away goes by, as far as this process has lived through it.
    settled: RefCell<Option<Settled>>,
    /// Whether there are followers, and somebody who keeps them told.
    listening: Cell<bool>,
    closed: Notify,
}

impl Postgres {
    /// Starts the thread. Connects to nothing yet: a database that is down is found out by the calls.
    pub fn open(database: &Database, clock: Clock, options: &PostgresOptions) -> Result<Arc<Self>, StoreError> {
        let drivers = database.drivers();
        let encryption = Encryption::new(database)
            .map_err(|error| StoreError::caused("the certificates to trust can't be read", error))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| StoreError::caused("its runtime can't be started", error))?;
        let (jobs, mut waiting) = mpsc::unbounded_channel::<Job>();
        let PostgresOptions { pool_size, timeout, max_staleness, note } = options.clone();
        let run = move || {
            let patience = timeout.min(max_staleness);
            let core = Rc::new(Core {
                clock,
                connections: Connections::new(drivers, encryption, pool_size, timeout, patience),
                log: Log::with_note(note),
                limit: timeout,
                patience,
                heartbeat: (max_staleness / 4).min(Duration::from_secs(1)),
                settled: RefCell::new(None),
                listening: Cell::new(false),
                closed: Notify::new(),
            });
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                // Ends when the store is closed or dropped.
                loop {
                    tokio::select! {
                        job = waiting.recv() => match job {
                            Some(job) => job(&core),
                            None => break,
                        },
                        () = core.closed.notified() => break,
                    }
                }
            });
            // Connections end with it; what was under way is taken back by the server.
            drop(local);
            // A look-up of the database's name may still be waiting for an answer; nobody else does.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new()
            .name(String::from("doorward-store"))
            .spawn(run)
            .map_err(|error| StoreError::caused("its thread can't be started", error))?;
        let calls = Arc::new(Calls { jobs, places: Arc::new(Semaphore::new(QUEUE)) });
        let tries = Arc::new(tries::Tries(Arc::clone(&calls)));
        Ok(Arc::new(Self { calls, timeout, tries, thread: Mutex::new(Some(thread)) }))
    }

    fn call<T: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(Rc<Core>) -> Result<T, Fault> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        self.calls.call(Some(self.timeout), work)
    }

    /// A call that takes as long as its rows need.
    fn long_call<T: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(Rc<Core>) -> Result<T, Fault> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        self.calls.call(None, work)
    }

    /// One account by a column that no two share.
    fn one_account(&self, column: &'static str, value: &str) -> StoreFuture<'_, Option<Account>> {
        let value = value.to_owned();
        self.call(async move |core| {
            let sql = format!("SELECT row_to_json(a)::text FROM doorward_account a WHERE {column} = $1");
            let rows = core.rows(&sql, &[(&value, Type::TEXT)]).await?;
            rows.first().map(|row| account(row)).transpose().map_err(Fault::from)
        })
    }
}

impl Calls {
    /// Sends a call to the thread. It begins at once; dropping the future doesn't take it back.
    fn call<T: Send + 'static>(
        &self,
        limit: Option<Duration>,
        work: impl AsyncFnOnce(Rc<Core>) -> Result<T, Fault> + Send + 'static,
    ) -> StoreFuture<'static, T> {
        let (reply, answer) = oneshot::channel();
        let place = Arc::clone(&self.places).try_acquire_owned();
        let sent = place.map_err(|_| StoreError::unavailable("too many calls are waiting for it")).and_then(|place| {
            let job: Job = Box::new(move |core| {
                let core = Rc::clone(core);
                tokio::task::spawn_local(async move {
                    let done = async { work(Rc::clone(&core)).await.map_err(StoreError::from) };
                    let result = match limit {
                        None => done.await,
                        Some(limit) => tokio::time::timeout(limit, done).await.unwrap_or(Err(StoreError::TimedOut)),
                    };
                    if matches!(result, Err(StoreError::TimedOut)) {
                        // Whatever lies idle may lead nowhere too.
                        core.connections.distrust();
                    }
                    drop(reply.send(result));
                    drop(place);
                });
            });
            self.jobs.send(job).map_err(|_| StoreError::unavailable("it is closed"))
        });
        Box::pin(async move {
            sent?;
            answer.await.unwrap_or_else(|_| Err(StoreError::unavailable("it is closed")))
        })
    }
}

impl Core {
    /// Reads over a lent connection. Where that had died unnoticed, once more over another one.
    async fn read<T>(&self, work: impl AsyncFn(&Client) -> Result<T, Fault>) -> Result<T, Fault> {
        loop {
            let lease = self.connections.take().await?;
            match work(lease.client()).await {
                Ok(done) => {
                    lease.give_back();
                    return Ok(done);
                }
                Err(fault) if fault.is_end() => {
                    let used = lease.used;
                    drop(lease);
                    self.connections.distrust();
                    // A connection that is made after this is a new one, so this ends.
                    if !used {
                        return Err(fault);
                    }
                }
                Err(fault) => {
                    lease.give_back();
                    return Err(fault);
                }
            }
        }
    }

    /// Does something that must not happen twice.
    async fn once<T>(&self, work: impl AsyncFn(&Client) -> Result<T, Fault>) -> Result<T, Fault> {
        let lease = self.begin("BEGIN").await?;
        let done = work(lease.client()).await?;
        lease.client().batch_execute("COMMIT").await?;
        lease.give_back();
        Ok(done)
    }

    /// Lends a connection and begins a transaction on it, which shows whether the connection is alive.
    async fn begin(&self, sql: &str) -> Result<Lease, Fault> {
        loop {
            let lease = self.connections.take().await?;
            match lease.client().batch_execute(sql).await.map_err(Fault::from) {
                Ok(()) => return Ok(lease),
                Err(fault) if fault.is_end() && lease.used => {
                    drop(lease);
                    self.connections.distrust();
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// The first column of every row: a record's JSON.
    async fn rows(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<String>, Fault> {
        self.read(async |client| texts(&client.query_typed(sql, parameters).await?)).await
    }

    /// The same for so many rows that they come in portions; each statement sees the same moment.
    async fn portions(&self, queries: &[(&str, &[Parameter<'_>])]) -> Result<Vec<Vec<String>>, Fault> {
        let mut lease = within(self.limit, self.begin("SELECT 1")).await?;
        let transaction = within(PAGE_LIMIT, async {
            let client = lease.client_mut().build_transaction();
            let transaction = client.isolation_level(IsolationLevel::RepeatableRead).read_only(true).start().await?;
            let limits = "SET LOCAL statement_timeout = '30s'; SET LOCAL idle_in_transaction_session_timeout = '1min'";
            transaction.batch_execute(limits).await?;
            Ok(transaction)
        })
        .await?;
        let mut all = Vec::with_capacity(queries.len());
        for (sql, parameters) in queries {
            let types: Vec<Type> = parameters.iter().map(|(_, kind)| kind.clone()).collect();
            let values: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|(value, _)| *value).collect();
            let portal = within(PAGE_LIMIT, async {
                let statement = transaction.prepare_typed(sql, &types).await?;
                Ok(transaction.bind(&statement, &values).await?)
            });
            let portal = portal.await?;
            let mut found = Vec::new();
            loop {
                let portion = async { Ok(transaction.query_portal(&portal, PAGE).await?) };
                let rows = within(PAGE_LIMIT, portion).await?;
                found.extend(texts(&rows)?);
                if rows.len() < usize::try_from(PAGE).unwrap_or(usize::MAX) {
                    break;
                }
            }
            all.push(found);
        }
        within(PAGE_LIMIT, async { Ok(transaction.commit().await?) }).await?;
        lease.give_back();
        Ok(all)
    }

    /// Reads the log on over a lent connection.
    async fn read_log(&self) -> Result<(), StoreError> {
        let wanted = self.log.next_reading();
        let lease = within(self.limit, self.begin("SELECT 1")).await?;
        self.log.read_on(self, lease.client(), wanted).await?;
        lease.give_back();
        Ok(())
    }

    /// Applies a change, and has this process's followers told.
    async fn change(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<Applied, Fault>>,
    ) -> Result<Applied, Fault> {
        let applied = within(limit, work).await?;
        if !applied.entries.is_empty() && self.listening.get() {
            // By reading on, so that they hear of it in its place among the entries of other replicas.
            let read = tokio::time::timeout(self.limit / 2, Box::pin(self.log.catch_up(self))).await;
            if !matches!(read, Ok(Ok(()))) {
                self.log.tell_own(&applied.entries);
            }
        }
        Ok(applied)
    }

    /// Clears away what ran out, every so often.
    async fn keep_house(self: Rc<Self>) {
        loop {
            tokio::time::sleep(CLEAR_EVERY).await;
            let cleared = clear::clear_away(&self);
            if let Ok(Err(fault)) = tokio::time::timeout(self.limit, cleared).await {
                let error = StoreError::from(fault);
                tracing::debug!(error = %log::causes(&error), "what ran out could not be cleared away; tried again soon");
            }
        }
    }

    async fn log_head(&self) -> Result<u64, Fault> {
        let sql = "SELECT number FROM doorward_log_head";
        let row = self.read(async |client| Ok(client.query_typed_one(sql, &[]).await?)).await?;
        Ok(small(row.try_get(0)?))
    }

    async fn everything(&self) -> Result<Everything, Fault> {
        let time = "SELECT json_build_object('longest', longest, 'forgotten', json_build_object('settled', settled,
            'until', forgotten_until, 'number', forgotten_number, 'at', forgotten_at))::text FROM doorward_time";
        let queries: [(&str, &[Parameter<'_>]); 5] = [
            (time, &[]),
            ("SELECT number::text FROM doorward_log_head", &[]),
            ("SELECT row_to_json(a)::text FROM doorward_account a ORDER BY id", &[]),
            ("SELECT row_to_json(s)::text FROM doorward_session s ORDER BY id", &[]),
            ("SELECT row_to_json(l)::text FROM doorward_log l ORDER BY number", &[]),
        ];
        let mut found = self.portions(&queries).await?.into_iter();
        let mut next = || found.next().unwrap_or_default();
        let (time, head, accounts, sessions, entries) = (next(), next(), next(), next(), next());
        let time: Time = time.first().map(|time| record(time)).transpose()?.unwrap_or_default();
        let count = |rows: &[String]| u64::try_from(rows.len()).unwrap_or(u64::MAX);
        Ok(Everything {
            counts: Counts { accounts: count(&accounts), sessions: count(&sessions), entries: count(&entries) },
            log_head: head.first().and_then(|head| head.parse().ok()).unwrap_or_default(),
            sequence: 0,
            forgotten: time.forgotten,
            longest: time.longest,
            rows: Box::new(
                accounts
                    .into_iter()
                    .map(|row| account(&row).map(Row::Account))
                    .chain(sessions.into_iter().map(|row| record(&row).map(Row::Session)))
                    .chain(entries.into_iter().map(|row| record(&row).map(Row::Entry))),
            ),
        })
    }
}

/// What `doorward_time` says.
#[derive(Default, serde::Deserialize)]
struct Time {
    longest: u64,
    forgotten: Forgotten,
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(StoreError::TimedOut.into()))
}

fn texts(rows: &[tokio_postgres::Row]) -> Result<Vec<String>, Fault> {
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

fn account(row: &str) -> Result<Account, StoreError> {
    record::<AccountRow<'static>>(row).map(Account::from)
}

/// Many records from their rows, on the caller's thread, which has other things to do as well.
async fn records<T>(rows: Vec<String>, read: impl Fn(&str) -> Result<T, StoreError>) -> Result<Vec<T>, StoreError> {
    let mut records = Vec::with_capacity(rows.len());
    for some in rows.chunks(256) {
        for row in some {
            records.push(read(row)?);
        }
        tokio::task::yield_now().await;
    }
    Ok(records)
}

impl Store for Postgres {
    fn account(&self, id: &AccountId) -> StoreFuture<'_, Option<Account>> {
        self.one_account("id", id.as_str())
    }

    fn account_by_name(&self, name: &Username) -> StoreFuture<'_, Option<Account>> {
        self.one_account("username", name.as_str())
    }

    fn accounts(&self) -> StoreFuture<'_, Vec<Account>> {
        let rows = self.long_call(async |core| {
            let sql = "SELECT row_to_json(a)::text FROM doorward_account a ORDER BY username";
            Ok(core.portions(&[(sql, &[])]).await?.into_iter().flatten().collect::<Vec<_>>())
        });
        Box::pin(async move { records(rows.await?, account).await })
    }

    fn session(&self, id: &SessionId) -> StoreFuture<'_, Option<Session>> {
        let id = id.to_string();
        self.call(async move |core| {
            let sql = "SELECT row_to_json(s)::text FROM doorward_session s WHERE id = $1 AND expires > $2";
            let now = big(core.clock.unix_seconds());
            let rows = core.rows(sql, &[(&id, Type::TEXT), (&now, Type::INT8)]).await?;
            rows.first().map(|row| record(row)).transpose().map_err(Fault::from)
        })
    }

    fn sessions(&self, of: Option<&AccountId>) -> StoreFuture<'_, Vec<Session>> {
        let rows = match of.map(ToString::to_string) {
            Some(of) => self.call(async move |core| {
                let sql = "SELECT row_to_json(s)::text FROM doorward_session s
                    WHERE expires > $1 AND account = $2 ORDER BY created, id";
                let now = big(core.clock.unix_seconds());
                core.rows(sql, &[(&now, Type::INT8), (&of, Type::TEXT)]).await
            }),
            None => self.long_call(async |core| {
                let sql = "SELECT row_to_json(s)::text FROM doorward_session s WHERE expires > $1 ORDER BY created, id";
                let now = big(core.clock.unix_seconds());
                let query: (&str, &[Parameter<'_>]) = (sql, &[(&now, Type::INT8)]);
                Ok(core.portions(&[query]).await?.into_iter().flatten().collect::<Vec<_>>())
            }),
        };
        Box::pin(async move { records(rows.await?, record).await })
    }

    fn apply(&self, writes: Vec<Write>) -> StoreFuture<'_, Applied> {
        // An import of many accounts is one change, and takes as long as it takes.
        let long = EACH_WRITE.saturating_mul(u32::try_from(writes.len()).unwrap_or(u32::MAX));
        let limit = self.timeout + long;
        self.long_call(async move |core| core.change(limit, Box::pin(change::apply(&core, &writes))).await)
    }

    fn log_head(&self) -> StoreFuture<'_, u64> {
        self.call(async |core| core.log_head().await)
    }

    /// Where the log can't be read now this is an error, and the follower is told as soon as it can be read all the same.
    fn follow(&self, follower: Arc<dyn LogFollower>) -> StoreFuture<'_, ()> {
        self.long_call(async move |core| {
            core.log.add(follower);
            if !core.listening.replace(true) {
                tokio::task::spawn_local(log::listen(Rc::clone(&core)));
                tokio::task::spawn_local(Rc::clone(&core).keep_house());
            }
            if core.log.heard_by_listener().await { Ok(()) } else { Ok(core.read_log().await?) }
        })
    }

    fn log(&self) -> StoreFuture<'_, Vec<LogEntry>> {
        let rows = self.long_call(async |core| {
            let query: (&str, &[Parameter<'_>]) =
                ("SELECT row_to_json(l)::text FROM doorward_log l ORDER BY number", &[]);
            Ok(core.portions(&[query]).await?.into_iter().flatten().collect::<Vec<_>>())
        });
        Box::pin(async move { records(rows.await?, record).await })
    }

    #[cfg(test)]
    fn forgotten(&self) -> StoreFuture<'_, Forgotten> {
        self.call(async |core| {
            let sql = "SELECT settled, forgotten_until, forgotten_number, forgotten_at FROM doorward_time";
            let row = core.read(async |client| Ok(client.query_typed_one(sql, &[]).await?)).await?;
            let number = |column: usize| Ok::<_, Fault>(small(row.try_get(column)?));
            Ok(Forgotten { settled: number(0)?, until: number(1)?, number: number(2)?, at: number(3)? })
        })
    }

    fn health(&self) -> StoreFuture<'_, ()> {
        self.call(async |core| {
            let sql = "SELECT current_setting('transaction_read_only') = 'on' OR pg_is_in_recovery()";
            let row = core.read(async |client| Ok(client.query_typed_one(sql, &[]).await?)).await?;
            if row.try_get::<_, bool>(0)? {
                core.connections.distrust();
                return Err(StoreError::unavailable("the database takes no changes").into());
            }
            Ok(())
        })
    }

    fn export(&self) -> StoreFuture<'_, Everything> {
        self.long_call(async |core| core.everything().await)
    }

    fn import(&self, import: Import) -> StoreFuture<'_, Applied> {
        let records = import.accounts.len() + import.sessions.len() + import.log.len();
        let limit = PAGE_LIMIT + EACH_WRITE.saturating_mul(u32::try_from(records).unwrap_or(u32::MAX));
        self.long_call(async move |core| core.change(limit, Box::pin(change::import(&core, &import))).await)
    }

    fn wrong_tries(&self) -> Option<Arc<dyn WrongTries>> {
        Some(Arc::clone(&self.tries) as _)
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        let closed = self.call(async |core| {
            core.connections.close();
            core.closed.notify_one();
            Ok(())
        });
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
