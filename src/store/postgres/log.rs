//! Reading the revocation log on, and telling the followers.
//!
//! - The place up to which the log was read is a number and that number's mark. A number is skipped by nobody: they
//!   become visible in their order (see `schema_1.sql`), so everything up to the newest visible one is visible.
//! - Where the mark of our place is not the one that we know, the log is another one than we read: it is read again from
//!   its beginning. What was revoked before stays revoked in memory.
//! - Where its numbers went back as well, they are raised far above those that were seen: tokens carry those numbers, and
//!   a revocation with a lower one would not reach them. What was written meanwhile with such a low one is said again
//!   with a high one.
//! - One reads at a time, so the followers hear every entry once and in order.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Notify, watch};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::connections::Connection;
use super::fault::Fault;
use super::rows::{big, record, small};
use super::{Core, Parameter, within};
use crate::store::{Forgotten, LogEntry, LogFollower, StoreError};

/// Entries that are read in one statement.
const PAGE: usize = 10_000;
/// How far above the highest number that was seen the log goes on when its numbers went back.
const GAP: u64 = 1 << 20;
/// How far the clocks of those who write to the log may be apart, in seconds.
const CLOCKS_APART: u64 = 300;
/// How often the log may turn out to be another one within one reading.
const TRIES: usize = 4;
/// Between two tries to listen, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

const READ: &str = "
    SELECT h.number, h.mark::text, (SELECT mark::text FROM doorward_log WHERE number = $1), e.entry, e.number, e.mark,
        t.settled, t.forgotten_until, t.forgotten_number, t.forgotten_at
    FROM doorward_log_head h CROSS JOIN doorward_time t LEFT JOIN (
        SELECT row_to_json(l)::text AS entry, number, mark::text AS mark
        FROM doorward_log l WHERE number > $1 ORDER BY number LIMIT $2
    ) e ON true
    ORDER BY e.number";
/// A session is revoked by its name, whatever the number.
const RAISE: &str = "
    WITH again AS (
        SELECT what, at, expires, row_number() OVER (ORDER BY number) AS place, count(*) OVER () AS all_of_them
        FROM doorward_log WHERE at >= $3 AND what->>'kind' <> 'session'
    ), head AS (
        UPDATE doorward_log_head SET number = $1 + (SELECT count(*) FROM again), mark = gen_random_uuid()
        WHERE mark = $2::text::uuid AND number < $1 RETURNING mark
    )
    INSERT INTO doorward_log (number, mark, what, at, expires)
    SELECT $1 + place, CASE place WHEN all_of_them THEN head.mark ELSE gen_random_uuid() END, what, at, expires
    FROM head, again";

/// How often the place is written down.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// What this process knows of the log.
#[derive(Default)]
pub(super) struct Log {
    /// Where the place is written down, for the next start: a log that went back while nobody ran is noticed too.
    note: Option<PathBuf>,
    noted: RefCell<Option<(Place, Instant)>>,
    /// When the log was last read to its end, in Unix seconds; 0: nobody knows.
    heard_at: Cell<u64>,
    /// Held while reading.
    place: Mutex<Option<Place>>,
    followers: RefCell<Vec<Follower>>,
    /// Readings that were begun.
    begun: Cell<u64>,
    outcome: watch::Sender<Outcome>,
    /// Wakes whoever listens: by a notification, by the connection's end, or from here.
    woken: Rc<Notify>,
    /// Whether somebody listens right now.
    hearing: Cell<bool>,
    /// Why the log can't be read right now.
    problem: RefCell<Option<String>>,
}

#[derive(Clone, Copy, Default)]
struct Outcome {
    /// The last reading that came to its end.
    done: u64,
    /// How often whoever listens has failed.
    failures: u64,
}

struct Follower {
    follower: Arc<dyn LogFollower>,
    /// The number up to which it was told; `None`: nothing yet.
    told: Option<u64>,
}

/// How far the log was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    number: u64,
    /// `None`: at the beginning, where there is nothing to compare.
    mark: Option<String>,
}

const BEGINNING: Place = Place { number: 0, mark: None };

/// One look at the log.
struct Page {
    head: Place,
    /// The mark under which our place's number is there, where it is.
    known: Option<String>,
    forgotten: Forgotten,
    entries: Vec<LogEntry>,
    /// Of the last entry.
    last: Option<Place>,
}

impl Log {
    /// Goes on from the place that is written down there, where one is.
    pub(super) fn with_note(note: Option<PathBuf>) -> Self {
        let read = |path: &PathBuf| {
            let text = std::fs::read_to_string(path).ok()?;
            let (number, mark) = text.trim_end().split_once(' ')?;
            Some(Place { number: number.parse().ok()?, mark: Some(mark.to_owned()) })
        };
        let place = note.as_ref().and_then(read);
        // It is written when the place has changed, so it was heard of later still: this errs to the safe side.
        let written = note.as_ref().and_then(|path| std::fs::metadata(path).ok()?.modified().ok());
        let heard_at =
            written.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |at| at.as_secs());
        Self { note, place: Mutex::new(place), heard_at: Cell::new(heard_at), ..Self::default() }
    }

    /// Writes the place down, unless that was done a moment ago. What is lost of it by a crash is a little foresight.
    fn write_down(&self, place: &Place, now: Instant) {
        let Some(path) = &self.note else { return };
        let mut noted = self.noted.borrow_mut();
        let due =
            noted.as_ref().is_none_or(|(known, at)| known != place && now.saturating_duration_since(*at) >= NOTE_EVERY);
        if !due {
            return;
        }
        let text = format!("{} {}\n", place.number, place.mark.as_deref().unwrap_or_default());
        // Of two processes on one folder each writes a file of its own before it takes the place.
        let new = path.with_extension(std::process::id().to_string());
        if let Err(error) = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path)) {
            tracing::debug!(%error, "the log's place could not be written down");
        }
        *noted = Some((place.clone(), now));
    }

    /// Adds a follower. It is told everything with the next reading.
    pub(super) fn add(&self, follower: Arc<dyn LogFollower>) {
        self.followers.borrow_mut().push(Follower { follower, told: None });
    }

    /// The number of the next reading: it sees everything that is committed now.
    pub(super) fn next_reading(&self) -> u64 {
        self.begun.get() + 1
    }

    /// Has everything that is committed now told to the followers.
    pub(super) async fn catch_up(&self, core: &Core) -> Result<(), StoreError> {
        if !self.hearing.get() {
            return core.read_log().await;
        }
        if self.heard_by_listener().await { Ok(()) } else { core.read_log().await }
    }

    /// Waits until whoever listens has read everything that is committed now; he has a connection of his own, before which
    /// nothing waits in line. `false`: he failed.
    pub(super) async fn heard_by_listener(&self) -> bool {
        let (wanted, failures) = (self.next_reading(), self.outcome.borrow().failures);
        self.woken.notify_one();
        let over = |outcome: &Outcome| outcome.done >= wanted || outcome.failures > failures;
        // The sender lives in `self`: it can't be gone.
        self.outcome.subscribe().wait_for(over).await.is_ok_and(|outcome| outcome.done >= wanted)
    }

    /// Reads on to the log's end and tells the followers, unless the reading of this number was done meanwhile.
    pub(super) async fn read_on(&self, core: &Core, client: &Client, wanted: u64) -> Result<(), Fault> {
        let mut place = self.place.lock().await;
        if self.outcome.borrow().done >= wanted {
            return Ok(());
        }
        let (reading, began, now) = (self.next_reading(), core.clock.instant(), core.clock.unix_seconds());
        self.begun.set(reading);
        for _ in 0..TRIES {
            let from = place.clone().unwrap_or(BEGINNING);
            match read(core, client, &from).await? {
                Reading::Whole(mut entries, head, forgotten) => {
                    let newcomer = self.followers.borrow().iter().any(|follower| follower.told.is_none());
                    let mut told = head.number;
                    if newcomer && from != BEGINNING {
                        // The place stays the one that was compared.
                        let Reading::Whole(all, newest, _) = read(core, client, &BEGINNING).await? else { continue };
                        (entries, told) = (all, newest.number);
                    }
                    self.tell(&entries, told);
                    self.write_down(&head, began);
                    *place = Some(head);
                    self.heard_at.set(now);
                    self.outcome.send_modify(|outcome| outcome.done = reading);
                    self.heard(began, forgotten);
                    return Ok(());
                }
                Reading::Broken { at, standing, head } => {
                    if standing == Standing::Other {
                        let since = self.heard_at.get().saturating_sub(CLOCKS_APART);
                        within(core.patience, raise(client, &at, &head, since)).await?;
                    }
                    // What comes now is told to everybody from the beginning. What they know already stays in force.
                    for follower in &mut *self.followers.borrow_mut() {
                        follower.told = follower.told.map(|_| 0);
                    }
                    *place = None;
                }
            }
        }
        Err(StoreError::unavailable("its log changes under our eyes").into())
    }

    /// Tells what this process wrote itself where the log could not be read after it: what was acknowledged is in force.
    /// The next reading tells it once more.
    pub(super) fn tell_own(&self, entries: &[LogEntry]) {
        for follower in &*self.followers.borrow() {
            if let Some(told) = follower.told {
                guarded(|| follower.follower.extend(entries, told));
            }
        }
    }

    fn tell(&self, entries: &[LogEntry], head: u64) {
        for follower in &mut *self.followers.borrow_mut() {
            let after = follower.told.unwrap_or_default();
            let first = entries.partition_point(|entry| entry.number <= after);
            let new = entries.get(first..).unwrap_or_default();
            if follower.told != Some(head) || !new.is_empty() {
                guarded(|| follower.follower.extend(new, head));
            }
            follower.told = Some(head);
        }
    }

    fn heard(&self, began: Instant, forgotten: Forgotten) {
        if self.problem.borrow_mut().take().is_some() {
            tracing::info!("the revocation log can be read again, and was");
        }
        for follower in &*self.followers.borrow() {
            guarded(|| follower.follower.heard(began));
            guarded(|| follower.follower.forgotten(forgotten));
        }
    }

    /// Notes why the log can't be read.
    fn failed(&self, error: &StoreError) {
        let problem = causes(error);
        if self.problem.borrow().as_ref() != Some(&problem) {
            tracing::warn!(%problem, "the revocation log can't be read; what is known of it stays in force");
            *self.problem.borrow_mut() = Some(problem);
        }
        self.outcome.send_modify(|outcome| outcome.failures += 1);
    }
}

/// What came of reading to the end.
enum Reading {
    /// The entries after the place, the log's head, and what is gone.
    Whole(Vec<LogEntry>, Place, Forgotten),
    /// The place is not there as it was.
    Broken { at: Place, standing: Standing, head: Place },
}

async fn read(core: &Core, client: &Client, from: &Place) -> Result<Reading, Fault> {
    let mut from = from.clone();
    let mut entries = Vec::new();
    loop {
        // Each look has its time, for a long log takes many.
        let page = within(core.patience, look(client, &from)).await?;
        let standing = page.standing(&from);
        if standing != Standing::Same {
            return Ok(Reading::Broken { at: from, standing, head: page.head });
        }
        let full = page.entries.len() == PAGE;
        entries.extend(page.entries);
        match page.last {
            Some(last) if full => from = last,
            _ => return Ok(Reading::Whole(entries, page.head, page.forgotten)),
        }
    }
}

/// What a look says about the place that we had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Same,
    /// What stood there was cleared away, or its number raised: nothing is known.
    Gone,
    /// Another log, or the same with numbers that went back.
    Other,
}

impl Page {
    fn standing(&self, place: &Place) -> Standing {
        let Some(mark) = &place.mark else { return Standing::Same };
        if self.head.number > place.number {
            return match &self.known {
                Some(known) if known == mark => Standing::Same,
                Some(_) => Standing::Other,
                None => Standing::Gone,
            };
        }
        if self.head == *place { Standing::Same } else { Standing::Other }
    }
}

async fn look(client: &Client, from: &Place) -> Result<Page, Fault> {
    let parameters: [Parameter<'_>; 2] = [(&big(from.number), Type::INT8), (&big(PAGE as u64), Type::INT8)];
    let rows = client.query_typed(READ, &parameters).await?;
    let first = rows.first().ok_or_else(|| StoreError::unavailable("its log has no head"))?;
    let head = Place { number: small(first.try_get(0)?), mark: Some(first.try_get(1)?) };
    let known = first.try_get(2)?;
    let number = |column: usize| Ok::<_, Fault>(small(first.try_get(column)?));
    let forgotten = Forgotten { settled: number(6)?, until: number(7)?, number: number(8)?, at: number(9)? };
    let mut entries = Vec::with_capacity(rows.len());
    let mut last = None;
    for row in &rows {
        // A log without new entries has one row, with nothing in it.
        let Some(text) = row.try_get::<_, Option<&str>>(3)? else { continue };
        entries.push(record::<LogEntry>(text)?);
        last = Some((row.try_get::<_, i64>(4)?, row.try_get::<_, String>(5)?));
    }
    let last = last.map(|(number, mark)| Place { number: small(number), mark: Some(mark) });
    Ok(Page { head, known, forgotten, entries, last })
}

/// Raises the log's numbers above all that were `seen`, and says again what others have revoked since the log that we
/// knew was last heard of (`since`): they may have written it under numbers that tokens of the lost log name already.
/// All in one statement, which does nothing where the head has moved meanwhile. Times are Unix seconds.
async fn raise(client: &Client, seen: &Place, head: &Place, since: u64) -> Result<(), Fault> {
    tracing::error!(
        seen = seen.number,
        now = head.number,
        "the database's revocation log is not the one that was read: it was restored, or failed over with losses. What was \
         revoked since may be valid again; `doorward session revoke --all` ends every login"
    );
    // Another replica may have done it already.
    if head.number < seen.number.saturating_add(GAP / 2) {
        let raised = big(seen.number.max(head.number).saturating_add(GAP));
        let parameters: [Parameter<'_>; 3] =
            [(&raised, Type::INT8), (&head.mark, Type::TEXT), (&big(since), Type::INT8)];
        client.execute_typed(RAISE, &parameters).await?;
        client.batch_execute("NOTIFY doorward_log").await?;
    }
    Ok(())
}

/// Listens for as long as the store is open: wakes with every notification, and by itself every so often.
pub(super) async fn listen(core: Rc<Core>) {
    let [shortest, longest] = PAUSES;
    let mut pause = shortest;
    loop {
        let connected = tokio::time::timeout(core.patience, async {
            let connection = core.connections.connect(Some(Rc::clone(&core.log.woken))).await?;
            connection.client.batch_execute("LISTEN doorward_log").await?;
            Ok(connection)
        });
        let fault = match connected.await {
            Ok(Ok(connection)) => {
                pause = shortest;
                core.log.hearing.set(true);
                let fault = hear(&core, &connection).await;
                core.log.hearing.set(false);
                fault
            }
            Ok(Err(fault)) => fault,
            Err(_) => StoreError::TimedOut.into(),
        };
        let mut error = StoreError::from(fault);
        if !matches!(error, StoreError::TimedOut) {
            // It may be only that nobody can listen: then the log is read all the same, every so often.
            match core.read_log().await {
                Ok(()) => {
                    tracing::debug!(problem = %causes(&error), "nobody listens at the database; the log was read without");
                    tokio::time::sleep(pause.min(core.heartbeat)).await;
                    pause = pause.saturating_mul(2).min(longest);
                    continue;
                }
                Err(problem) => error = problem,
            }
        }
        core.log.failed(&error);
        core.connections.distrust();
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(longest);
    }
}

/// Reads on whenever it is woken, until the connection fails.
async fn hear(core: &Core, connection: &Connection) -> Fault {
    loop {
        // First of all: what came before it listened woke nobody.
        if let Err(fault) = core.log.read_on(core, &connection.client, core.log.next_reading()).await {
            return fault;
        }
        // A time-out is the heartbeat.
        let _ = tokio::time::timeout(core.heartbeat, core.log.woken.notified()).await;
    }
}

/// A follower's mistake must not end the reading.
fn guarded(tell: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(tell)).is_err() {
        tracing::error!("a follower of the revocation log failed; restart to be sure of every revocation");
    }
}

/// An error with its causes.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
