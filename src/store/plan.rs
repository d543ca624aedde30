//! Turns a list of [`Write`]s into the rows that it changes, without changing anything yet.
//!
//! Each write sees what the ones before it in the list did. A list that fails leaves nothing behind, because its plan
//! is thrown away.

use std::collections::BTreeMap;

use super::record::oldest_beyond;
use super::row::{self, AccountRow, Meta};
use super::{
    Account, AccountId, Forgotten, Import, LogEntry, Revocation, SLACK, Session, SessionId, StoreError, Write,
};

/// The rows that a plan starts from.
pub(super) trait View {
    /// The value under a key.
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Every key that starts so.
    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StoreError>;
}

/// Rows to write, and to remove (`None`), by key.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A change as it grows.
pub(super) struct Plan<'view, V> {
    view: &'view V,
    /// Unix seconds.
    now: u64,
    changes: Changes,
    meta: Meta,
    /// `meta` has changed by itself, not only with the rows.
    meta_changed: bool,
    entries: Vec<LogEntry>,
}

/// A change that is ready to be written.
pub(super) struct Planned {
    pub(super) changes: Changes,
    pub(super) meta: Meta,
    pub(super) entries: Vec<LogEntry>,
}

impl<'view, V: View> Plan<'view, V> {
    pub(super) const fn new(view: &'view V, meta: Meta, now: u64) -> Self {
        Self { view, now, changes: Changes::new(), meta, meta_changed: false, entries: Vec::new() }
    }

    /// Adds a list of writes. How long each entry of the log is kept is found out first: the sessions that it covers may
    /// be removed by the same list.
    pub(super) fn write_all(&mut self, mut writes: Vec<Write>) -> Result<(), StoreError> {
        for write in &mut writes {
            if let Write::Revoke { what, at, expires } = write {
                *expires = self.reach(what, *at, *expires)?;
            }
        }
        writes.into_iter().try_for_each(|write| self.write(write))
    }

    /// Until when (Unix seconds) a token that an entry covers could live, whatever the configuration says now and will
    /// say later.
    fn reach(&self, what: &Revocation, at: u64, expires: u64) -> Result<u64, StoreError> {
        let keys = match what {
            Revocation::Session { session } => vec![row::session_key(session)],
            Revocation::All => self.keys(&[row::SESSIONS])?,
            Revocation::Account { account } | Revocation::Changed { account } => {
                let index = self.keys(&row::sessions_of_prefix(account))?;
                index.iter().filter_map(|key| row::session_key_of_index(key)).collect()
            }
            Revocation::AccountWithoutSession { .. } => Vec::new(),
        };
        let mut latest = expires;
        if !matches!(what, Revocation::Session { .. }) {
            latest = latest.max(at.saturating_add(self.meta.longest).saturating_add(SLACK));
        }
        for key in keys {
            let ends = self.session(&key)?.map_or(0, |session| session.expires);
            latest = latest.max(ends.saturating_add(SLACK));
        }
        Ok(latest)
    }

    /// Clears an entry of the log away that had expired at `now`.
    pub(super) fn forget(&mut self, entry: &LogEntry) -> Result<(), StoreError> {
        self.meta.forgotten.add(entry, self.now);
        self.remove(&row::log_key(entry.number))
    }

    /// Notes what time it is, for the next start, also where nothing else changes. Unix seconds.
    pub(super) const fn note_time(&mut self) {
        self.meta_changed = true;
    }

    /// Adds one write.
    fn write(&mut self, write: Write) -> Result<(), StoreError> {
        match write {
            Write::InsertAccount(account) => self.insert_account(&account),
            Write::UpdateAccount(account) => self.update_account(account),
            Write::RemoveAccount(id) => {
                let account = self.account(&id)?.ok_or(StoreError::NoSuchAccount)?;
                self.remove(&row::name_key(&account.username))?;
                self.remove(&row::account_key(&id))
            }
            Write::PutSession(session) => self.put_session(&session),
            Write::TouchSession(session) => {
                let there = self.session(&row::session_key(&session.id))?;
                // One that ran out is gone, whether it has been cleared away yet or not.
                if there.is_some_and(|there| there.expires > self.now) { self.put_session(&session) } else { Ok(()) }
            }
            Write::RemoveSession(id) => self.remove_session(&row::session_key(&id)),
            Write::RemoveSessionsOf(account) => {
                for key in self.keys(&row::sessions_of_prefix(&account))? {
                    self.remove(&key)?;
                    if let Some(session) = row::session_key_of_index(&key) {
                        self.remove(&session)?;
                    }
                }
                Ok(())
            }
            Write::EndOldestSessions { account, spare, keep, at, expires } => {
                self.end_oldest_sessions(&account, &spare, keep, (at, expires))
            }
            Write::RemoveAllSessions => {
                for prefix in [row::SESSIONS, row::SESSIONS_OF] {
                    for key in self.keys(&[prefix])? {
                        self.remove(&key)?;
                    }
                }
                Ok(())
            }
            Write::Longest(seconds) => {
                if seconds > self.meta.longest {
                    self.meta.longest = seconds;
                    self.meta_changed = true;
                }
                Ok(())
            }
            Write::Revoke { what, at, expires } => self.revoke(what, at, expires),
        }
    }

    /// Adds everything of an import.
    pub(super) fn import(&mut self, import: Import) -> Result<(), StoreError> {
        if self.meta.rows != 0 {
            return Err(StoreError::NotEmpty);
        }
        for account in &import.accounts {
            self.insert_account(account)?;
        }
        for session in &import.sessions {
            self.put_session(session)?;
        }
        for entry in import.log {
            self.put_json(&row::log_key(entry.number), &entry)?;
            self.meta.log_head = self.meta.log_head.max(entry.number);
            self.entries.push(entry);
        }
        self.meta.log_head = self.meta.log_head.max(import.log_head);
        let settled = self.meta.forgotten.settled;
        self.meta.forgotten = Forgotten { settled, ..self.meta.forgotten.and(import.forgotten) };
        self.meta.longest = self.meta.longest.max(import.longest);
        match import.revoke_all {
            Some(times) => self.revoke(Revocation::All, times.at, times.expires),
            None => Ok(()),
        }
    }

    /// Removes a session by its row's key.
    pub(super) fn remove_session(&mut self, key: &[u8]) -> Result<(), StoreError> {
        if let Some(session) = self.session(key)? {
            self.remove(&row::session_of_key(&session.account, &session.id))?;
            self.remove(key)?;
        }
        Ok(())
    }

    /// Removes a row.
    pub(super) fn remove(&mut self, key: &[u8]) -> Result<(), StoreError> {
        if let Some(old) = self.value(key)? {
            self.meta.count(key, &old, false);
            self.changes.insert(key.to_vec(), None);
        }
        Ok(())
    }

    /// Whether nothing would change.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty() && !self.meta_changed
    }

    /// The rows to write, the store's own among them.
    pub(super) fn finish(mut self) -> Result<Planned, StoreError> {
        self.meta.sequence += 1;
        let meta = row::encode_json(row::META, &self.meta)?;
        self.changes.insert(row::META.to_vec(), Some(meta));
        Ok(Planned { changes: self.changes, meta: self.meta, entries: self.entries })
    }

    fn insert_account(&mut self, account: &Account) -> Result<(), StoreError> {
        let (key, name) = (row::account_key(&account.id), row::name_key(&account.username));
        if self.value(&name)?.is_some() {
            return Err(StoreError::NameTaken(account.username.to_string()));
        }
        if self.value(&key)?.is_some() {
            return Err(StoreError::IdTaken(account.id.to_string()));
        }
        self.put_name(&name, &account.id)?;
        self.put_json(&key, &AccountRow::from(account))
    }

    fn update_account(&mut self, mut account: Account) -> Result<(), StoreError> {
        let stored = self.account(&account.id)?.ok_or(StoreError::NoSuchAccount)?;
        if stored.revision != account.revision {
            return Err(StoreError::Conflict);
        }
        if stored.username != account.username {
            let name = row::name_key(&account.username);
            if self.value(&name)?.is_some() {
                return Err(StoreError::NameTaken(account.username.to_string()));
            }
            self.remove(&row::name_key(&stored.username))?;
            self.put_name(&name, &account.id)?;
        }
        account.revision += 1;
        self.put_json(&row::account_key(&account.id), &AccountRow::from(&account))
    }

    fn put_session(&mut self, session: &Session) -> Result<(), StoreError> {
        let key = row::session_key(&session.id);
        let index = row::session_of_key(&session.account, &session.id);
        let mut session = session.clone();
        if let Some(old) = self.session(&key)? {
            session.expires = session.expires.max(old.expires);
            if old.account != session.account {
                self.remove(&row::session_of_key(&old.account, &old.id))?;
            }
        }
        if self.value(&index)?.is_none() {
            self.put(&index, row::encode(&index, &[])?)?;
        }
        self.put_json(&key, &session)
    }

    /// `times`: of the entries, as in [`Write::EndOldestSessions`].
    fn end_oldest_sessions(
        &mut self,
        account: &AccountId,
        spare: &SessionId,
        keep: usize,
        times: (u64, u64),
    ) -> Result<(), StoreError> {
        let index = self.keys(&row::sessions_of_prefix(account))?;
        // The common case reads no record.
        if index.len() <= keep {
            return Ok(());
        }
        let mut others = Vec::with_capacity(index.len());
        for key in index.iter().filter_map(|key| row::session_key_of_index(key)) {
            // What has run out is cleared away in its time, not on this reading of the clock.
            let live = self.session(&key)?.filter(|session| session.expires > self.now && session.id != *spare);
            others.extend(live);
        }
        for session in oldest_beyond(others, keep) {
            self.remove_session(&row::session_key(&session.id))?;
            let expires = times.1.max(session.expires.saturating_add(SLACK));
            self.revoke(Revocation::Session { session: session.id }, times.0, expires)?;
        }
        Ok(())
    }

    fn revoke(&mut self, what: Revocation, at: u64, expires: u64) -> Result<(), StoreError> {
        let number = self.meta.log_head.checked_add(1).ok_or_else(|| StoreError::unavailable("its log is full"))?;
        let entry = LogEntry { number, what, at, expires };
        self.put_json(&row::log_key(number), &entry)?;
        self.meta.log_head = number;
        self.entries.push(entry);
        Ok(())
    }

    fn account(&self, id: &AccountId) -> Result<Option<Account>, StoreError> {
        let key = row::account_key(id);
        Ok(self.value(&key)?.map(|value| row::decode_account(&key, &value)).transpose()?)
    }

    fn session(&self, key: &[u8]) -> Result<Option<Session>, StoreError> {
        Ok(self.value(key)?.map(|value| row::decode_session(key, &value)).transpose()?)
    }

    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.changes.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.view.value(key),
        }
    }

    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut keys = self.view.keys(prefix)?;
        keys.retain(|key| !self.changes.contains_key(key));
        let changed = self.changes.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        keys.extend(changed.filter(|(_, value)| value.is_some()).map(|(key, _)| key.clone()));
        Ok(keys)
    }

    fn put_name(&mut self, key: &[u8], id: &AccountId) -> Result<(), StoreError> {
        self.put(key, row::encode(key, id.as_str().as_bytes())?)
    }

    fn put_json(&mut self, key: &[u8], record: &impl serde::Serialize) -> Result<(), StoreError> {
        self.put(key, row::encode_json(key, record)?)
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
        if let Some(old) = self.value(key)? {
            self.meta.count(key, &old, false);
        }
        self.meta.count(key, &value, true);
        self.changes.insert(key.to_vec(), Some(value));
        Ok(())
    }
}
