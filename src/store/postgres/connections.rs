//! Connections to the database: a few that are lent out, and how each is made.
//!
//! - A connection comes back only when its last statement has ended and no transaction is open; one that a call left
//!   half way, because it failed or ran out of time, is closed.
//! - The server ends by itself what a lost client began: statements and idle transactions have a limit there too.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client};

use super::fault::Fault;
use super::tls::Encryption;
use super::{schema, within};
use crate::store::StoreError;

/// While the database has no connection left for us, one is asked for this often.
const CROWD_PAUSE: Duration = Duration::from_millis(100);

/// All connections of one process.
pub(super) struct Connections {
    driver: tokio_postgres::Config,
    encryption: Encryption,
    settings: String,
    places: Arc<Semaphore>,
    idle: RefCell<Vec<Connection>>,
    /// Rises when the idle ones are not to be trusted any more; those that are lent out don't come back then.
    era: Cell<u64>,
    /// Held while the schema is brought up to date.
    migrating: Arc<Mutex<()>>,
}

/// One connection. Dropped, it is closed.
pub(super) struct Connection {
    pub(super) client: Client,
    /// Reads and writes the socket.
    driver: JoinHandle<()>,
    era: u64,
}

/// A connection that is lent out. Dropped without [`Lease::give_back`], it is closed.
pub(super) struct Lease {
    connection: Connection,
    /// Whether it has been used before: then it may have died since without anybody having noticed.
    pub(super) used: bool,
    connections: Rc<Connections>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connections {
    /// `limit`: how long a call may take.
    pub(super) fn new(
        mut driver: tokio_postgres::Config,
        encryption: Encryption,
        size: usize,
        limit: Duration,
    ) -> Rc<Self> {
        // A dead link is noticed by the calls' own limits; this is for connections that lie idle.
        driver.keepalives_idle(Duration::from_secs(30)).keepalives_interval(Duration::from_secs(10));
        driver.keepalives_retries(3).tcp_user_timeout(limit.max(Duration::from_secs(5)));
        // With several hosts, one that swallows everything must leave time for the next.
        if driver.get_connect_timeout().is_none() && driver.get_hosts().len() > 1 {
            let hosts = u32::try_from(driver.get_hosts().len()).unwrap_or(u32::MAX);
            driver.connect_timeout(limit / hosts);
        }
        // The numbers of the log need READ COMMITTED: whoever waited for the head's row goes on from what was committed.
        // What is acknowledged must be on the disk.
        let millis = limit.as_millis().max(1);
        let settings = format!(
            "SET statement_timeout = {millis}; SET idle_in_transaction_session_timeout = {idle}; \
             SET default_transaction_isolation = 'read committed'; SET client_min_messages = 'error'; \
             SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
            idle = millis.saturating_mul(2),
        );
        Rc::new(Self {
            driver,
            encryption,
            settings,
            places: Arc::new(Semaphore::new(size)),
            idle: RefCell::default(),
            era: Cell::new(0),
            migrating: Arc::default(),
        })
    }

    /// Lends a connection: an idle one, or a new one. Waits while all are lent out.
    pub(super) async fn take(self: &Rc<Self>) -> Result<Lease, Fault> {
        let place =
            Arc::clone(&self.places).acquire_owned().await.map_err(|_| StoreError::unavailable("it is closed"))?;
        loop {
            let idle = self.idle.borrow_mut().pop();
            if let Some(connection) = idle {
                if connection.client.is_closed() {
                    continue;
                }
                return Ok(Lease { connection, used: true, connections: Rc::clone(self), _place: place });
            }
            match self.connect(None).await {
                Ok(connection) => {
                    return Ok(Lease { connection, used: false, connections: Rc::clone(self), _place: place });
                }
                // Whoever else uses the database may leave; and so may one of ours.
                Err(fault) if fault.is_crowd() => tokio::time::sleep(CROWD_PAUSE).await,
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Makes a connection. `woken` is told of every notification, and of the connection's end.
    pub(super) async fn connect(&self, woken: Option<Rc<Notify>>) -> Result<Connection, Fault> {
        let (client, mut connection) = self.driver.connect(self.encryption.clone()).await?;
        let driver = tokio::task::spawn_local(async move {
            loop {
                let message = std::future::poll_fn(|task| connection.poll_message(task)).await;
                if let Some(Ok(AsyncMessage::Notice(notice))) = &message {
                    tracing::debug!(notice = notice.message(), "the database gave notice");
                    continue;
                }
                if let Some(woken) = &woken {
                    woken.notify_one();
                }
                if !matches!(message, Some(Ok(_))) {
                    break;
                }
            }
        });
        let connection = Connection { client, driver, era: self.era.get() };
        connection.client.batch_execute(&self.settings).await?;
        if schema::is_current(&connection.client).await? {
            return Ok(connection);
        }
        // One of us at a time: the others wait here and not at the database.
        let migrating = Arc::clone(&self.migrating).lock_owned().await;
        if schema::is_current(&connection.client).await? {
            return Ok(connection);
        }
        // Goes on by itself when the caller's time runs out: half a migration is of use to nobody.
        let migrated = tokio::task::spawn_local(async move {
            // Not for ever: whoever waits for a link that swallows everything holds the others up.
            let migrated = within(schema::LIMIT, schema::migrate(&connection.client)).await;
            drop(migrating);
            migrated.map(|()| connection)
        });
        migrated.await.map_err(|_| StoreError::unavailable("its tables were not made"))?
    }

    /// Closes the idle ones: the database was not there a moment ago, so they may lead nowhere.
    pub(super) fn distrust(&self) {
        self.era.set(self.era.get() + 1);
        self.idle.borrow_mut().clear();
    }

    /// Lends nothing any more.
    pub(super) fn close(&self) {
        self.places.close();
        self.distrust();
    }
}

impl Lease {
    pub(super) fn client(&self) -> &Client {
        &self.connection.client
    }

    pub(super) fn client_mut(&mut self) -> &mut Client {
        &mut self.connection.client
    }

    /// Back to the idle ones. Only with nothing under way.
    pub(super) fn give_back(self) {
        let Self { connection, connections, .. } = self;
        if connection.era == connections.era.get() && !connection.client.is_closed() {
            connections.idle.borrow_mut().push(connection);
        }
    }
}
