//! The live part of the revocation log in memory: read on every request without a lock, without I/O.
//!
//! - Until the log has been read once, every token counts as revoked.
//! - Of several entries that cover the same thing one is kept that covers what all of them cover; reading an entry
//!   twice, or entries in another order, changes nothing.
//! - A reader sees the state before or after a call of `extend`, nothing in between.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::{Standing, Verified};
use crate::store::{LogEntry, LogFollower, Revocation};

/// A power of two. A change copies one shard of what it touches: with 200,000 entries some 800 of them.
const SHARDS: usize = 256;

/// What is revoked. Shared by every worker.
pub struct Revocations {
    live: ArcSwap<Live>,
    ready: AtomicBool,
    head: AtomicU64,
    epoch: AtomicU64,
    entries: AtomicUsize,
    /// Wakes those who wait for the epoch, on whichever runtime they are.
    wake: watch::Sender<u64>,
    /// One writer at a time.
    writing: Mutex<()>,
}

/// One immutable state.
#[derive(Clone)]
struct Live {
    sessions: Table<SessionMark>,
    accounts: Table<AccountMark>,
    all: Option<Mark>,
}

/// What an entry covers.
#[derive(Clone, Copy)]
struct Mark {
    number: u64,
    /// Unix seconds.
    at: u64,
    /// Unix seconds.
    expires: u64,
}

#[derive(Clone, Copy)]
struct SessionMark {
    /// In two halves: a `u128` would be aligned to 16 bytes and waste 8 of 32.
    key: [u64; 2],
    expires: u64,
}

#[derive(Clone, Copy)]
struct AccountMark {
    key: [u64; 2],
    kind: AccountKind,
    mark: Mark,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum AccountKind {
    Tokens,
    TokensWithoutSession,
    Changed,
}

impl Default for Revocations {
    fn default() -> Self {
        Self {
            live: ArcSwap::from_pointee(Live { sessions: Table::empty(), accounts: Table::empty(), all: None }),
            ready: AtomicBool::new(false),
            head: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            entries: AtomicUsize::new(0),
            wake: watch::Sender::new(0),
            writing: Mutex::new(()),
        }
    }
}

impl std::fmt::Debug for Revocations {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Revocations({} entries, head {}, ready: {})", self.len(), self.head(), self.is_ready())
    }
}

impl Revocations {
    /// False until the log has been read once: until then nobody is let in.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Whether a token is still good.
    #[must_use]
    pub fn standing(&self, token: &Verified) -> Standing {
        if !self.is_ready() {
            return Standing::Revoked;
        }
        if self.is_empty() {
            return Standing::Current;
        }
        let live = self.live.load();
        if live.all.is_some_and(|mark| mark.covers(token)) {
            return Standing::Revoked;
        }
        if token.session_key.is_some_and(|key| live.sessions.of(halves(key)).next().is_some()) {
            return Standing::Revoked;
        }
        let mut standing = Standing::Current;
        for entry in live.accounts.of(halves(token.account_key)) {
            let covers = match entry.kind {
                AccountKind::Tokens | AccountKind::Changed => entry.mark.covers(token),
                // `seq` says nothing here: only foreign tokens name no session.
                AccountKind::TokensWithoutSession => token.session.is_none() && token.issued_at <= entry.mark.at,
            };
            match entry.kind {
                _ if !covers => {}
                AccountKind::Tokens | AccountKind::TokensWithoutSession => return Standing::Revoked,
                AccountKind::Changed => standing = Standing::Changed { since: entry.mark.number },
            }
        }
        standing
    }

    /// The newest number that was read.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Rises with every change; open streams look again when it does. Cheap: one atomic load.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Waits until [`Revocations::epoch`] is no longer `seen`.
    pub async fn changed(&self, seen: u64) {
        // The sender lives in `self`: it can't be gone.
        let _ = self.wake.subscribe().wait_for(|epoch| *epoch != seen).await;
    }

    /// Live entries (a metric).
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.load(Ordering::Acquire)
    }

    /// Whether nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets what has expired; called now and then by the control thread. `now`: Unix seconds.
    pub fn forget_expired(&self, now: u64) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut live = Live::clone(&self.live.load());
        live.sessions.retain(|mark| mark.expires > now);
        live.accounts.retain(|entry| entry.mark.expires > now);
        live.all = live.all.filter(|mark| mark.expires > now);
        self.publish(live);
    }

    fn publish(&self, live: Live) {
        let entries = live.sessions.len() + live.accounts.len() + usize::from(live.all.is_some());
        self.live.store(Arc::new(live));
        // After the state: whoever sees the count finds the entries.
        self.entries.store(entries, Ordering::Release);
    }
}

impl LogFollower for Revocations {
    fn extend(&self, entries: &[LogEntry], head: u64) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if !entries.is_empty() {
            let mut live = Live::clone(&self.live.load());
            live.extend(entries);
            self.publish(live);
        }
        self.head.store(head, Ordering::Release);
        let was_ready = self.ready.swap(true, Ordering::AcqRel);
        if !entries.is_empty() || !was_ready {
            let epoch = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
            self.wake.send_replace(epoch);
        }
    }
}

impl Live {
    fn extend(&mut self, entries: &[LogEntry]) {
        let mut sessions = Vec::new();
        let mut accounts = Vec::new();
        for entry in entries {
            let mark = Mark { number: entry.number, at: entry.at, expires: entry.expires };
            let (account, kind) = match &entry.what {
                Revocation::Session { session } => {
                    let key = halves(key_of(session.as_str()));
                    sessions.push(SessionMark { key, expires: entry.expires });
                    continue;
                }
                Revocation::All => {
                    self.all = Some(self.all.map_or(mark, |known| known.and(mark)));
                    continue;
                }
                Revocation::Account { account } => (account, AccountKind::Tokens),
                Revocation::AccountWithoutSession { account } => (account, AccountKind::TokensWithoutSession),
                Revocation::Changed { account } => (account, AccountKind::Changed),
            };
            accounts.push(AccountMark { key: halves(key_of(account.as_str())), kind, mark });
        }
        self.sessions.insert(sessions);
        self.accounts.insert(accounts);
    }
}

impl Mark {
    /// Whether the token was issued before the entry: by the log's numbers, or by the clock where it has none.
    const fn covers(&self, token: &Verified) -> bool {
        match token.seq {
            Some(seq) => self.number > seq,
            None => token.issued_at <= self.at,
        }
    }

    /// Covers what either covers.
    fn and(self, other: Self) -> Self {
        Self {
            number: self.number.max(other.number),
            at: self.at.max(other.at),
            expires: self.expires.max(other.expires),
        }
    }
}

/// What a [`Table`] holds.
trait Keyed: Copy {
    type Order: Ord;
    fn key(&self) -> [u64; 2];
    /// Two of equal order are merged.
    fn order(&self) -> Self::Order;
    fn merge(&mut self, other: Self);
}

impl Keyed for SessionMark {
    type Order = [u64; 2];

    fn key(&self) -> [u64; 2] {
        self.key
    }

    fn order(&self) -> [u64; 2] {
        self.key
    }

    fn merge(&mut self, other: Self) {
        self.expires = self.expires.max(other.expires);
    }
}

impl Keyed for AccountMark {
    type Order = ([u64; 2], AccountKind);

    fn key(&self) -> [u64; 2] {
        self.key
    }

    fn order(&self) -> Self::Order {
        (self.key, self.kind)
    }

    fn merge(&mut self, other: Self) {
        self.mark = self.mark.and(other.mark);
    }
}

/// Sorted rows in shards that states share: no byte more than the rows, and a change copies only its shard.
#[derive(Clone)]
struct Table<T>(Vec<Arc<[T]>>);

impl<T: Keyed> Table<T> {
    fn empty() -> Self {
        let nothing: Arc<[T]> = Arc::from(Vec::new());
        Self(vec![nothing; SHARDS])
    }

    fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.len()).sum()
    }

    /// The rows of one key.
    fn of(&self, key: [u64; 2]) -> impl Iterator<Item = &T> {
        let shard: &[T] = self.0.get(shard_of(key)).map_or(&[], |shard| shard);
        let start = shard.partition_point(|row| row.key() < key);
        shard.get(start..).unwrap_or_default().iter().take_while(move |row| row.key() == key)
    }

    fn insert(&mut self, rows: Vec<T>) {
        let mut by_shard: Vec<Vec<T>> = Vec::new();
        by_shard.resize_with(SHARDS, Vec::new);
        for row in rows {
            if let Some(shard) = by_shard.get_mut(shard_of(row.key())) {
                shard.push(row);
            }
        }
        for (shard, new) in self.0.iter_mut().zip(by_shard) {
            if new.is_empty() {
                continue;
            }
            let mut rows = Vec::with_capacity(shard.len() + new.len());
            rows.extend_from_slice(shard);
            rows.extend(new);
            rows.sort_by_key(T::order);
            rows.dedup_by(|later, kept| {
                let same = later.order() == kept.order();
                if same {
                    kept.merge(*later);
                }
                same
            });
            *shard = Arc::from(rows);
        }
    }

    fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        for shard in &mut self.0 {
            if !shard.iter().all(&keep) {
                *shard = shard.iter().copied().filter(&keep).collect();
            }
        }
    }
}

fn shard_of(key: [u64; 2]) -> usize {
    // The low half of a UUID version 7 is random, that of a hash as well.
    let [_, low] = key;
    usize::try_from(low % SHARDS as u64).unwrap_or(0)
}

#[expect(clippy::cast_possible_truncation, reason = "each half is what is meant")]
const fn halves(key: u128) -> [u64; 2] {
    [(key >> 64) as u64, key as u64]
}

/// 128 bits that stand for an id: a UUID's own value, or the beginning of the SHA-256 of anything else.
#[must_use]
pub fn key_of(id: &str) -> u128 {
    let mut spelling = uuid::Uuid::encode_buffer();
    match uuid::Uuid::try_parse(id) {
        // A UUID can be spelled in several ways, and each spelling is an id of its own.
        Ok(uuid) if *uuid.hyphenated().encode_lower(&mut spelling) == *id => uuid.as_u128(),
        _ => {
            let digest: [u8; 32] = Sha256::digest(id).into();
            digest.iter().take(16).fold(0, |key, byte| key << 8 | u128::from(*byte))
        }
    }
}
