//! A store that lives in memory: what a store has to do, written as plainly as can be.
//!
//! Every change works on a copy, which replaces the original only when all writes of the list went through.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::{oldest_beyond, sort_sessions};
use super::{
    Account, AccountId, Applied, Everything, Forgotten, Import, LogEntry, LogFollower, Revocation, SLACK, Session,
    SessionId, Store, StoreError, StoreFuture, Username, Write, row,
};
use crate::clock::Clock;

/// A store without a disk: for tests, and the reference for every other one.
pub struct Memory {
    clock: Clock,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    state: State,
    followers: Vec<Arc<dyn LogFollower>>,
    closed: bool,
}

#[derive(Clone, Default)]
struct State {
    accounts: HashMap<AccountId, Account>,
    names: BTreeMap<Username, AccountId>,
    sessions: HashMap<SessionId, Session>,
    log: BTreeMap<u64, LogEntry>,
    log_head: u64,
    longest: u64,
}

impl Memory {
    /// An empty store.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, inner: Mutex::new(Inner::default()) }
    }

    fn with<T>(&self, work: impl FnOnce(&mut MutexGuard<'_, Inner>, u64) -> Result<T, StoreError>) -> StoreFuture<'_, T>
    where
        T: Send + 'static,
    {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let result = if inner.closed {
            Err(StoreError::unavailable("it is closed"))
        } else {
            work(&mut inner, self.clock.unix_seconds())
        };
        drop(inner);
        Box::pin(std::future::ready(result))
    }

    fn change(
        &self,
        work: impl FnOnce(&mut State, u64) -> Result<Vec<LogEntry>, StoreError>,
    ) -> StoreFuture<'_, Applied> {
        self.with(|inner, now| {
            let mut state = inner.state.clone();
            let entries = work(&mut state, now)?;
            inner.state = state;
            let head = inner.state.log_head;
            if !entries.is_empty() {
                for follower in &inner.followers {
                    follower.extend(&entries, head);
                }
            }
            Ok(Applied { log_head: head, entries })
        })
    }
}

impl Store for Memory {
    fn account(&self, id: &AccountId) -> StoreFuture<'_, Option<Account>> {
        self.with(|inner, _| Ok(inner.state.accounts.get(id).cloned()))
    }

    fn account_by_name(&self, name: &Username) -> StoreFuture<'_, Option<Account>> {
        self.with(|inner, _| {
            let state = &inner.state;
            Ok(state.names.get(name).and_then(|id| state.accounts.get(id)).cloned())
        })
    }

    fn accounts(&self) -> StoreFuture<'_, Vec<Account>> {
        self.with(|inner, _| Ok(inner.state.sorted_accounts()))
    }

    fn session(&self, id: &SessionId) -> StoreFuture<'_, Option<Session>> {
        self.with(|inner, now| Ok(inner.state.sessions.get(id).filter(|session| session.expires > now).cloned()))
    }

    fn sessions(&self, of: Option<&AccountId>) -> StoreFuture<'_, Vec<Session>> {
        self.with(|inner, now| Ok(inner.state.live_sessions(of, now)))
    }

    fn apply(&self, writes: Vec<Write>) -> StoreFuture<'_, Applied> {
        self.change(|state, now| {
            let mut entries = Vec::new();
            let writes = writes.into_iter().map(|write| match write {
                Write::Revoke { what, at, expires } => {
                    let expires = state.reach(&what, at, expires);
                    Write::Revoke { what, at, expires }
                }
                other => other,
            });
            for write in writes.collect::<Vec<_>>() {
                state.write(write, now, &mut entries)?;
            }
            Ok(entries)
        })
    }

    fn log_head(&self) -> StoreFuture<'_, u64> {
        self.with(|inner, _| Ok(inner.state.log_head))
    }

    fn follow(&self, follower: Arc<dyn LogFollower>) -> StoreFuture<'_, ()> {
        self.with(|inner, now| {
            follower.extend(&inner.state.log(), inner.state.log_head);
            follower.forgotten(Forgotten { settled: now, ..Forgotten::default() });
            inner.followers.push(follower);
            Ok(())
        })
    }

    fn log(&self) -> StoreFuture<'_, Vec<LogEntry>> {
        self.with(|inner, _| Ok(inner.state.log()))
    }

    fn health(&self) -> StoreFuture<'_, ()> {
        self.with(|_, _| Ok(()))
    }

    fn export(&self) -> StoreFuture<'_, Everything> {
        self.with(|inner, now| {
            let state = &inner.state;
            let (accounts, sessions) = (state.sorted_accounts(), state.live_sessions(None, now));
            Ok(Everything {
                longest: state.longest,
                ..Everything::from_parts(accounts, sessions, state.log(), state.log_head)
            })
        })
    }

    fn import(&self, import: Import) -> StoreFuture<'_, Applied> {
        self.change(|state, now| {
            if !(state.accounts.is_empty() && state.sessions.is_empty() && state.log.is_empty()) {
                return Err(StoreError::NotEmpty);
            }
            let mut entries = import.log;
            state.longest = state.longest.max(import.longest);
            for account in import.accounts {
                state.insert(account)?;
            }
            state.sessions.extend(import.sessions.into_iter().map(|session| (session.id.clone(), session)));
            state.log.extend(entries.iter().map(|entry| (entry.number, entry.clone())));
            let last = entries.last().map_or(0, |entry| entry.number);
            state.log_head = state.log_head.max(import.log_head).max(last);
            if let Some(times) = import.revoke_all {
                let write = Write::Revoke { what: Revocation::All, at: times.at, expires: times.expires };
                state.write(write, now, &mut entries)?;
            }
            Ok(entries)
        })
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        self.with(|inner, _| {
            inner.closed = true;
            Ok(())
        })
    }
}

impl State {
    fn sorted_accounts(&self) -> Vec<Account> {
        self.names.values().filter_map(|id| self.accounts.get(id)).cloned().collect()
    }

    fn live_sessions(&self, of: Option<&AccountId>, now: u64) -> Vec<Session> {
        let live = self.sessions.values().filter(|session| session.expires > now);
        let mut sessions: Vec<Session> =
            live.filter(|session| of.is_none_or(|account| session.account == *account)).cloned().collect();
        sort_sessions(&mut sessions);
        sessions
    }

    fn log(&self) -> Vec<LogEntry> {
        self.log.values().cloned().collect()
    }

    fn reach(&self, what: &Revocation, at: u64, expires: u64) -> u64 {
        let ends = self.sessions.values().filter(|session| match what {
            Revocation::Session { session: id } => session.id == *id,
            Revocation::Account { account } | Revocation::Changed { account } => session.account == *account,
            Revocation::AccountWithoutSession { .. } => false,
            Revocation::All => true,
        });
        let latest = ends.map(|session| session.expires + SLACK).max().unwrap_or(0).max(expires);
        if matches!(what, Revocation::Session { .. }) { latest } else { latest.max(at + self.longest + SLACK) }
    }

    fn write(&mut self, write: Write, now: u64, entries: &mut Vec<LogEntry>) -> Result<(), StoreError> {
        match write {
            Write::InsertAccount(account) => return self.insert(account),
            Write::UpdateAccount(account) => return self.update(account),
            Write::RemoveAccount(id) => {
                let account = self.accounts.remove(&id).ok_or(StoreError::NoSuchAccount)?;
                self.names.remove(&account.username);
            }
            Write::PutSession(session) => {
                let _ = row::encode_json(&[], &session)?;
                let there = self.sessions.get(&session.id).map_or(0, |there| there.expires);
                self.sessions.insert(session.id.clone(), Session { expires: session.expires.max(there), ..session });
            }
            Write::TouchSession(session) => {
                if let Some(there) = self.sessions.get_mut(&session.id).filter(|there| there.expires > now) {
                    *there = Session { expires: session.expires.max(there.expires), ..session };
                }
            }
            Write::RemoveSession(id) => {
                self.sessions.remove(&id);
            }
            Write::RemoveSessionsOf(account) => self.sessions.retain(|_, session| session.account != account),
            Write::EndOldestSessions { account, spare, keep, at, expires } => {
                let others = self.live_sessions(Some(&account), now).into_iter().filter(|session| session.id != spare);
                for session in oldest_beyond(others.collect(), keep) {
                    self.sessions.remove(&session.id);
                    let expires = expires.max(session.expires.saturating_add(SLACK));
                    let what = Revocation::Session { session: session.id };
                    self.write(Write::Revoke { what, at, expires }, now, entries)?;
                }
            }
            Write::RemoveAllSessions => self.sessions.clear(),
            Write::Longest(seconds) => self.longest = self.longest.max(seconds),
            Write::Revoke { what, at, expires } => {
                self.log_head += 1;
                let entry = LogEntry { number: self.log_head, what, at, expires };
                self.log.insert(entry.number, entry.clone());
                entries.push(entry);
            }
        }
        Ok(())
    }

    fn insert(&mut self, account: Account) -> Result<(), StoreError> {
        if self.names.contains_key(&account.username) {
            return Err(StoreError::NameTaken(account.username.to_string()));
        }
        if self.accounts.contains_key(&account.id) {
            return Err(StoreError::IdTaken(account.id.to_string()));
        }
        let _ = row::encode_json(&[], &row::AccountRow::from(&account))?;
        self.names.insert(account.username.clone(), account.id.clone());
        self.accounts.insert(account.id.clone(), account);
        Ok(())
    }

    fn update(&mut self, mut account: Account) -> Result<(), StoreError> {
        let stored = self.accounts.get(&account.id).ok_or(StoreError::NoSuchAccount)?;
        if stored.revision != account.revision {
            return Err(StoreError::Conflict);
        }
        if stored.username != account.username {
            if self.names.contains_key(&account.username) {
                return Err(StoreError::NameTaken(account.username.to_string()));
            }
            self.names.remove(&stored.username);
            self.names.insert(account.username.clone(), account.id.clone());
        }
        account.revision += 1;
        let _ = row::encode_json(&[], &row::AccountRow::from(&account))?;
        self.accounts.insert(account.id.clone(), account);
        Ok(())
    }
}
