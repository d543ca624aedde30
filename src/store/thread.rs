//! What the store's thread does: groups of changes, one fsync for each, followers, clearing away, dumps, healing.
//!
//! Nothing of a group is answered before the group is on the disk. After a failed write nothing is changed until the
//! database was opened anew, and the log's numbers that were in doubt are not given out again.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::embedded::{Answer, Change, Command, RECORD_BYTES, Reply, SledOptions};
use super::folder::{Folder, Mark};
use super::plan::{Plan, Planned, View as _};
use super::record::sort_sessions;
use super::row::{self, Meta};
use super::sled::{Engine, RawRow, guarded};
use super::{Account, AccountId, Applied, Everything, LogEntry, LogFollower, Row, Session, StoreError, dump};
use crate::clock::{Clock, Settled};

/// How many of them share one fsync.
const GROUP: usize = 256;
const TICK: Duration = Duration::from_secs(1);
/// After a failed write the database is opened anew this often.
const REOPEN_EVERY: Duration = Duration::from_secs(2);
const PURGE_EVERY: Duration = Duration::from_mins(1);
/// The time is written down this often where nothing else is.
const NOTE_TIME_EVERY: u64 = 6 * 3600;
/// A clock that is so many seconds behind what it has shown before is worth a word.
const CLOCK_BEHIND: u64 = 300;
/// How many rows are looked at in one go when clearing away.
const PURGE_ROWS: usize = 1000;
/// A dump is written this long after the first change that the last one doesn't have.
const DUMP_AFTER: Duration = Duration::from_secs(20);
const DUMP_RETRY: Duration = Duration::from_secs(10);

/// What the store's thread owns.
pub(super) struct Core {
    pub(super) folder: Folder,
    clock: Clock,
    /// `None` for as long as it can't be opened anew after a failure.
    engine: Option<Engine>,
    mark: Mark,
    pub(super) meta: Meta,
    followers: Vec<Arc<dyn LogFollower>>,
    /// The newest log number that the followers know.
    told: u64,
    /// What failed, where nothing can be changed.
    broken: Option<String>,
    reopen_at: Instant,
    purge_at: Instant,
    /// The time that clearing away goes by.
    settled: Settled,
    /// `settled` as it was last written down, in Unix seconds.
    noted: u64,
    /// The key up to which this round of clearing away has come; empty between rounds.
    purged_to: Vec<u8>,
    dump: DumpState,
}

/// When the next dump is due.
struct DumpState {
    /// The number of changes that the dump on disk knows of.
    written: Option<u64>,
    /// Since when a dump is due, or when to try again.
    due: Option<Instant>,
    running: Option<(u64, JoinHandle<bool>)>,
}

/// An answer that waits for the disk.
enum Pending {
    Answer(Answer),
    Changed(Applied, Reply<Applied>),
}

impl Core {
    pub(super) fn open(data_dir: &Path, clock: Clock, options: SledOptions) -> Result<Self, StoreError> {
        let folder = Folder::lock(data_dir, options.wait)?;
        let (engine, mark, meta) = guarded(|| folder.open(options.beside_dump)).unwrap_or_else(Err)?;
        let now = clock.instant();
        let wall = clock.unix_seconds();
        if wall.saturating_add(CLOCK_BEHIND) < meta.seen {
            let behind = meta.seen - wall;
            tracing::warn!(seconds = behind, "the clock is behind the latest time that this store has seen");
        }
        Ok(Self {
            settled: Settled::since(meta.forgotten.settled, &clock),
            noted: meta.forgotten.settled,
            dump: DumpState { written: dump::sequence_of(&folder.dump_path()), due: None, running: None },
            told: meta.log_head,
            folder,
            engine: Some(engine),
            mark,
            meta,
            followers: Vec::new(),
            broken: None,
            reopen_at: now,
            purge_at: now,
            purged_to: Vec::new(),
            clock,
        })
    }

    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let first = match commands.recv_timeout(TICK) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break self.shut(None),
            };
            let mut pending = Vec::new();
            for command in first.into_iter().chain(commands.try_iter().take(GROUP)) {
                if let Command::Close(reply) = command {
                    self.settle(&mut pending);
                    return self.shut(Some(reply));
                }
                self.take(command, &mut pending);
            }
            self.settle(&mut pending);
            self.keep_house();
        }
    }

    fn take(&mut self, command: Command, pending: &mut Vec<Pending>) {
        match command {
            Command::Read(work) => pending.push(Pending::Answer(work(self))),
            Command::Change(change, reply) => {
                let changed = self.folder.room(change.size()).and_then(|()| {
                    let changed = guarded(|| self.change(change)).unwrap_or_else(Err);
                    // The database fails on look-ups as well once a write behind the scenes has failed.
                    if let Err(error @ StoreError::Unavailable { .. }) = &changed {
                        self.fail(error);
                    }
                    changed
                });
                pending.push(match changed {
                    Ok(applied) => Pending::Changed(applied, reply),
                    Err(error) => Pending::Answer(Box::new(move || drop(reply.send(Err(error))))),
                });
            }
            Command::Follow(follower, reply) => {
                self.settle(pending);
                drop(reply.send(guarded(|| self.follow(follower)).unwrap_or_else(Err)));
            }
            // Taken out of the queue before.
            Command::Close(reply) => drop(reply.send(Ok(()))),
            #[cfg(test)]
            Command::Faults(reply) => drop(reply.send(self.engine.as_ref().map(|engine| engine.faults.clone()))),
        }
    }

    /// Puts the group on the disk, tells the followers, and answers.
    fn settle(&mut self, pending: &mut Vec<Pending>) {
        let changed = pending.iter().any(|one| matches!(one, Pending::Changed(..)));
        let flushed = if changed { guarded(|| self.flush()).unwrap_or_else(Err) } else { Ok(()) };
        match &flushed {
            Ok(()) if changed => {
                let entries = pending.iter().filter_map(|one| match one {
                    Pending::Changed(applied, _) => Some(applied.entries.as_slice()),
                    Pending::Answer(_) => None,
                });
                let entries = entries.flatten().cloned().collect::<Vec<_>>();
                self.tell(&entries);
            }
            Ok(()) => {}
            Err(error) => self.fail(error),
        }
        for one in pending.drain(..) {
            match one {
                Pending::Answer(answer) => answer(),
                Pending::Changed(applied, reply) => {
                    let answer = match &flushed {
                        Ok(()) => Ok(applied),
                        Err(error) => Err(StoreError::unavailable(error.to_string())),
                    };
                    drop(reply.send(answer));
                }
            }
        }
    }

    fn tell(&mut self, entries: &[LogEntry]) {
        if !entries.is_empty() {
            for follower in &self.followers {
                if guarded(|| follower.extend(entries, self.meta.log_head)).is_err() {
                    tracing::error!("a follower of the revocation log failed; restart to be sure of every revocation");
                }
            }
        }
        self.told = self.meta.log_head;
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        // Where another write of the same group failed, it is not known what reached the disk before it.
        self.unbroken()?;
        self.engine()?.flush()?;
        self.mark.note(self.meta.sequence).map_err(|error| StoreError::caused("it can't be written", error))
    }

    fn change(&mut self, change: Change) -> Result<Applied, StoreError> {
        self.unbroken()?;
        if matches!(change, Change::Import(_)) {
            // A dump of what was there before may have counted to the same number.
            self.dump.written = None;
        }
        self.tell_the_time();
        let mut plan = Plan::new(self.engine()?, self.meta.clone(), self.clock.unix_seconds());
        match change {
            Change::Writes(writes) => plan.write_all(writes)?,
            Change::Import(import) => plan.import(*import)?,
        }
        if plan.is_empty() {
            return Ok(Applied { log_head: self.meta.log_head, entries: Vec::new() });
        }
        let planned = plan.finish()?;
        self.write(planned)
    }

    fn write(&mut self, planned: Planned) -> Result<Applied, StoreError> {
        let Planned { changes, meta, entries } = planned;
        // Also what failed may have reached the disk in part: its numbers are not given out a second time.
        self.meta = meta;
        let written = guarded(|| self.engine()?.write(changes)).unwrap_or_else(Err);
        if let Err(error) = written {
            self.fail(&error);
            return Err(error);
        }
        self.noted = self.meta.forgotten.settled;
        Ok(Applied { log_head: self.meta.log_head, entries })
    }

    fn fail(&mut self, error: &StoreError) {
        if self.broken.is_none() {
            tracing::error!(error = %causes(error), "the store can't be written; changes are refused until it can");
            self.reopen_at = self.clock.instant() + REOPEN_EVERY;
        }
        self.broken = Some(error.to_string());
    }

    fn follow(&mut self, follower: Arc<dyn LogFollower>) -> Result<(), StoreError> {
        self.unbroken()?;
        follower.extend(&self.log_after(0)?, self.meta.log_head);
        self.tell_the_time();
        follower.forgotten(self.meta.forgotten);
        self.followers.push(follower);
        Ok(())
    }

    /// Brings what is kept of the time up to date; it is written with the next change.
    fn tell_the_time(&mut self) -> u64 {
        let settled = self.settled.now(&self.clock);
        self.meta.forgotten.settled = settled;
        self.meta.seen = self.meta.seen.max(self.clock.unix_seconds());
        settled
    }

    pub(super) fn unbroken(&self) -> Result<(), StoreError> {
        self.broken.as_ref().map_or(Ok(()), |problem| Err(StoreError::unavailable(problem.clone())))
    }

    pub(super) fn engine(&self) -> Result<&Engine, StoreError> {
        self.engine.as_ref().ok_or_else(|| StoreError::unavailable("it is being opened anew"))
    }

    pub(super) fn account(&self, id: &AccountId) -> Result<Option<Account>, StoreError> {
        let key = row::account_key(id);
        Ok(self.engine()?.value(&key)?.map(|value| row::decode_account(&key, &value)).transpose()?)
    }

    pub(super) fn live_session(&self, key: &[u8]) -> Result<Option<Session>, StoreError> {
        let session = self.engine()?.value(key)?.map(|value| row::decode_session(key, &value)).transpose()?;
        Ok(session.filter(|session| session.expires > self.clock.unix_seconds()))
    }

    pub(super) fn sessions(&self, of: Option<&AccountId>) -> Result<Vec<Session>, StoreError> {
        let engine = self.engine()?;
        let keys = match of {
            Some(account) => {
                let index = engine.keys(&row::sessions_of_prefix(account))?;
                index.iter().filter_map(|key| row::session_key_of_index(key)).collect()
            }
            None => engine.keys(&[row::SESSIONS])?,
        };
        let mut sessions = Vec::with_capacity(keys.len());
        for key in keys {
            sessions.extend(self.live_session(&key)?);
        }
        sort_sessions(&mut sessions);
        Ok(sessions)
    }

    /// Expired ones are among them until they have been cleared away: the clock may be wrong.
    pub(super) fn log_after(&self, number: u64) -> Result<Vec<LogEntry>, StoreError> {
        let mut entries = Vec::new();
        for (key, value) in self.engine()?.rows(&[row::LOG])? {
            let entry = row::decode_entry(&key, &value)?;
            if entry.number > number {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    pub(super) fn export(&self) -> Result<Everything, StoreError> {
        // Some of what could be read otherwise may be gone once the database is open again.
        self.unbroken()?;
        let engine = self.engine()?;
        let mut rows: Vec<RawRow> = Vec::new();
        for prefix in [row::ACCOUNTS, row::SESSIONS, row::LOG] {
            rows.extend(engine.rows(&[prefix])?);
        }
        Ok(Everything {
            counts: self.meta.counts(),
            log_head: self.meta.log_head,
            sequence: self.meta.sequence,
            forgotten: self.meta.forgotten,
            longest: self.meta.longest,
            rows: Box::new(rows.into_iter().map(|(key, value)| Ok(decode(&key, &value)?))),
        })
    }

    fn keep_house(&mut self) {
        let now = self.clock.instant();
        if self.broken.is_some() {
            if now >= self.reopen_at {
                self.reopen_at = now + REOPEN_EVERY;
                self.reopen();
            }
            return;
        }
        // There is one writer, this thread: what was acknowledged, the followers have been told.
        self.followers.iter().for_each(|follower| follower.heard(now));
        self.tell_the_time();
        self.followers.iter().for_each(|follower| follower.forgotten(self.meta.forgotten));
        if let Some(seconds) = self.settled.new_jump() {
            tracing::warn!(
                seconds,
                "the clock jumped: nothing is cleared away by the new time before it has stood for a day"
            );
        }
        if now >= self.purge_at && self.folder.room(0).is_ok() {
            self.purge_at = now + PURGE_EVERY;
            match guarded(|| self.purge()).unwrap_or_else(Err) {
                Ok(true) => self.purge_at = now + TICK,
                Ok(false) => {}
                Err(error) => self.fail(&error),
            }
        }
        self.keep_dump(now);
    }

    /// Opens the database anew after a failure. Reads go on with the old one until there is room to do so.
    fn reopen(&mut self) {
        if let Err(error) = self.folder.probe() {
            tracing::warn!(%error, "the store still can't be written");
            return;
        }
        let (told, log_head) = (self.told, self.meta.log_head);
        self.engine = None;
        let opened = guarded(|| {
            let (engine, mark, meta) = self.folder.reopen()?;
            engine.verify().map_err(StoreError::unavailable)?;
            Ok((engine, mark, meta))
        });
        match opened.unwrap_or_else(Err) {
            Ok((engine, mark, meta)) => {
                (self.engine, self.mark, self.meta) = (Some(engine), mark, meta);
                // Entries that did not reach the disk had these numbers, and somebody may have seen them.
                self.meta.log_head = self.meta.log_head.max(log_head).saturating_add(1);
                self.broken = None;
                // What was refused may have reached the disk all the same.
                match self.log_after(told) {
                    Ok(entries) => self.tell(&entries),
                    Err(error) => return self.fail(&error),
                }
                tracing::info!("the store can be written again");
            }
            Err(error) => {
                tracing::error!(error = %causes(&error), "the store can't be opened anew");
                self.broken = Some(error.to_string());
            }
        }
    }

    /// Looks at some more rows and removes the sessions and log entries among them that ran out. Says whether there are
    /// more to look at; the next call goes on from there, so that no call holds the changes up for long.
    fn purge(&mut self) -> Result<bool, StoreError> {
        let now = self.tell_the_time();
        let note = now >= self.noted.saturating_add(NOTE_TIME_EVERY) || now < self.noted;
        let after = std::mem::take(&mut self.purged_to);
        let engine = self.engine()?;
        let mut plan = Plan::new(engine, self.meta.clone(), now);
        // The log's keys come before those of sessions.
        let mut rows = engine.rows_after(&[row::LOG], &after, PURGE_ROWS)?;
        let left = PURGE_ROWS - rows.len();
        rows.extend(engine.rows_after(&[row::SESSIONS], &after, left)?);
        for (key, value) in &rows {
            if key.starts_with(&[row::LOG]) {
                let entry = row::decode_entry(key, value)?;
                if entry.expires <= now {
                    plan.forget(&entry)?;
                }
            } else if row::decode_session(key, value)?.expires <= now {
                plan.remove_session(key)?;
            }
        }
        if note {
            plan.note_time();
        }
        let planned = if plan.is_empty() { None } else { Some(plan.finish()?) };
        if rows.len() == PURGE_ROWS {
            self.purged_to = rows.last().map_or_else(Vec::new, |(key, _)| key.to_vec());
        }
        if let Some(planned) = planned {
            self.write(planned)?;
            self.flush()?;
        }
        Ok(!self.purged_to.is_empty())
    }

    /// Starts a dump when one is due, and hears of one that has ended.
    fn keep_dump(&mut self, now: Instant) {
        if self.dump.running.as_ref().is_some_and(|(_, thread)| !thread.is_finished()) {
            return;
        }
        self.reap_dump(now);
        if self.dump.written == Some(self.meta.sequence) || self.meta.sequence == 0 {
            self.dump.due = None;
            return;
        }
        let due = *self.dump.due.get_or_insert(now + DUMP_AFTER);
        if now < due {
            return;
        }
        self.dump.due = Some(now + DUMP_RETRY);
        let room = self.folder.room(self.meta.rows.saturating_mul(RECORD_BYTES / 2));
        match room.and_then(|()| guarded(|| self.export()).unwrap_or_else(Err)) {
            Ok(everything) => {
                let (sequence, path, seconds) =
                    (self.meta.sequence, self.folder.dump_path(), self.clock.unix_seconds());
                let work = move || write_dump_file(everything, seconds, &path);
                match std::thread::Builder::new().name(String::from("doorward-dump")).spawn(work) {
                    Ok(thread) => self.dump.running = Some((sequence, thread)),
                    Err(error) => tracing::warn!(%error, "no dump of the store: its thread can't be started"),
                }
            }
            Err(error) => tracing::warn!(error = %causes(&error), "no dump of the store; tried again soon"),
        }
    }

    fn reap_dump(&mut self, now: Instant) {
        if let Some((sequence, thread)) = self.dump.running.take() {
            if thread.join().unwrap_or(false) {
                self.dump.written = Some(sequence);
                self.dump.due = None;
            } else {
                self.dump.due = Some(now + DUMP_RETRY);
            }
        }
    }

    /// Writes the time down for the next start, where it has gone on much since it was.
    fn note_time(&mut self) -> Result<(), StoreError> {
        const WORTH_IT: u64 = 60;
        let now = self.tell_the_time();
        if self.meta.sequence == 0 || now.abs_diff(self.noted) < WORTH_IT || self.folder.room(0).is_err() {
            return Ok(());
        }
        let mut plan = Plan::new(self.engine()?, self.meta.clone(), now);
        plan.note_time();
        let planned = plan.finish()?;
        self.write(planned).map(drop)
    }

    fn shut(mut self, reply: Option<Reply<()>>) {
        self.reap_dump(self.clock.instant());
        let mut closed = Ok(());
        if self.broken.is_none() {
            closed = guarded(|| self.note_time().and_then(|()| self.flush()))
                .unwrap_or_else(Err)
                .and_then(|()| self.mark.sync().map_err(|error| StoreError::caused("it can't be written", error)));
            if closed.is_ok() && self.meta.sequence > 0 && self.dump.written != Some(self.meta.sequence) {
                let room = self.folder.room(self.meta.rows.saturating_mul(RECORD_BYTES / 2));
                match room.and_then(|()| guarded(|| self.export()).unwrap_or_else(Err)) {
                    Ok(everything) => {
                        write_dump_file(everything, self.clock.unix_seconds(), &self.folder.dump_path());
                    }
                    Err(error) => tracing::warn!(error = %causes(&error), "no dump of the store"),
                }
            }
        }
        self.engine = None;
        drop(self);
        if let Some(reply) = reply {
            drop(reply.send(closed));
        }
    }
}

fn write_dump_file(everything: Everything, now: u64, path: &Path) -> bool {
    match dump::replace(everything, now, path) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(error = %causes(&error), "no dump of the store; the one before it is still there");
            false
        }
    }
}

fn decode(key: &[u8], value: &[u8]) -> Result<Row, row::RowError> {
    match key.first() {
        Some(&row::ACCOUNTS) => row::decode_account(key, value).map(Row::Account),
        Some(&row::SESSIONS) => row::decode_session(key, value).map(Row::Session),
        _ => row::decode_entry(key, value).map(Row::Entry),
    }
}

/// An error with its causes, for the log.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
