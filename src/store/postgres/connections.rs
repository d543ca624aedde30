//! Connections to the database: a few that are lent out, and how each is made.
//!
//! - A connection comes back only when its last statement has ended and no transaction is open; one that a call left
//!   half way, because it failed or ran out of time, is closed.
//! - Of several hosts the one that answered last is asked first. Each has a share of the time only, for one that accepts
//!   and then says nothing must leave some for the next.
//! - The server ends by itself what a lost client began: statements and idle transactions have a limit there too.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client, Socket};

use super::fault::Fault;
use super::tls::{Encrypted, Encryption};
use super::{schema, within};
use crate::store::StoreError;

/// While the database has no connection left for us, one is asked for this often.
const CROWD_PAUSE: Duration = Duration::from_millis(100);

/// All connections of one process.
pub(super) struct Connections {
    /// One for each host.
    drivers: Vec<tokio_postgres::Config>,
    /// The host that is asked first: an index into `drivers`.
    first: Cell<usize>,
    /// How long each of several hosts may take.
    share: Option<Duration>,
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

/// One host's turn. Whoever's turn ends says who is asked first from then on.
struct Turn<'c> {
    first: &'c Cell<usize>,
    next: usize,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.first.set(self.next);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connections {
    /// `limit`: how long a call may take; `patience`: how long whoever is in the greatest hurry waits.
    pub(super) fn new(
        mut drivers: Vec<tokio_postgres::Config>,
        encryption: Encryption,
        size: usize,
        limit: Duration,
        patience: Duration,
    ) -> Rc<Self> {
        for driver in &mut drivers {
            // A dead link is noticed by the calls' own limits; this is for connections that lie idle.
            driver.keepalives_idle(Duration::from_secs(30)).keepalives_interval(Duration::from_secs(10));
            driver.keepalives_retries(3).tcp_user_timeout(limit.max(Duration::from_secs(5)));
        }
        // One share is left for what the connection is wanted for.
        let shares = u32::try_from(drivers.len()).unwrap_or(u32::MAX).saturating_add(1);
        let share = (drivers.len() > 1).then(|| patience / shares);
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
            drivers,
            first: Cell::new(0),
            share,
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
        let (client, mut connection) = self.dial().await?;
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

    /// Asks one host after the other for one that takes changes.
    async fn dial(&self) -> Result<(Client, tokio_postgres::Connection<Socket, Encrypted>), Fault> {
        let (first, count) = (self.first.get(), self.drivers.len());
        let mut why = Fault::from(StoreError::unavailable("its URL names no host"));
        let turns = self.drivers.iter().enumerate().cycle().skip(first).take(count);
        for (index, driver) in turns {
            // Whoever gives up while this host keeps him waiting leaves the next one to those who come after him.
            let mut turn = Turn { first: &self.first, next: (index + 1) % count };
            // In a box, for every call would carry it.
            let asked = Box::pin(driver.connect(self.encryption.clone()));
            let answer = match self.share {
                None => asked.await.map_err(Fault::from),
                Some(share) => {
                    let share = driver.get_connect_timeout().copied().unwrap_or(share);
                    within(share, async { Ok(asked.await?) }).await
                }
            };
            match answer {
                Ok(connected) => {
                    turn.next = index;
                    return Ok(connected);
                }
                // The one that takes changes has no place left: that is what the caller can wait for.
                Err(fault) => why = if why.is_crowd() { why } else { fault },
            }
        }
        Err(why)
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
