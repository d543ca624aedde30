//! The live part of the revocation log in memory: read on every request without a lock, without I/O.
//!
//! - Until the log has been read once, every token counts as revoked.
//! - Of several entries that cover the same thing one is kept that covers what all of them cover; reading an entry
//!   twice, or entries in another order, changes nothing.
//! - Nothing is forgotten here by a clock: the store tells what it has let go of. A token that such an entry could have
//!   covered stays revoked, should a clock that goes back or a longer lifetime let it live again.
//! - A reader sees the state before or after a call of `extend`, nothing in between.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::{Standing, Verified};
use crate::clock::Clock;
use crate::store::{Forgotten, LogEntry, LogFollower, Revocation};

/// A power of two. A change copies one shard of what it touches: with 200,000 entries some 800 of them.
const SHARDS: usize = 256;

/// How far the clocks of two replicas may be apart, in seconds, without anybody being taken for older than he is. Their
/// tokens would be refused long before: `iat` may be 30 s ahead.
const CLOCKS_APART: u64 = 300;

/// What is revoked. Shared by every worker.
pub struct Revocations {
    live: ArcSwap<Live>,
    ready: AtomicBool,
    head: AtomicU64,
    /// Unix seconds; see [`Forgotten`]. Written before the entries go.
    gone_until: AtomicU64,
    gone_number: AtomicU64,
    gone_at: AtomicU64,
    /// The settled time less the monotonic clock's reading, in seconds; `i64::MIN`: nobody has told it.
    settled: AtomicI64,
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
            gone_until: AtomicU64::new(0),
            gone_number: AtomicU64::new(0),
            gone_at: AtomicU64::new(0),
            settled: AtomicI64::new(i64::MIN),
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
        if self.may_have_been_covered(token) {
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

    /// Whether an entry that is gone could have covered the token. Where clocks and lifetimes stay as they are, such a
    /// token has expired long ago.
    fn may_have_been_covered(&self, token: &Verified) -> bool {
        if let Some(seq) = token.seq {
            token.expires <= self.gone_until.load(Ordering::Acquire) && seq < self.gone_number.load(Ordering::Acquire)
        } else {
            let at = self.gone_at.load(Ordering::Acquire);
            at != 0 && token.issued_at <= at
        }
    }

    /// What this process knows to be gone, with the settled time as of now; for those who read the log here.
    #[must_use]
    pub fn forgotten_here(&self, clock: &Clock) -> Forgotten {
        Forgotten {
            settled: self.settled_time(clock).unwrap_or(0),
            until: self.gone_until.load(Ordering::Acquire),
            number: self.gone_number.load(Ordering::Acquire),
            at: self.gone_at.load(Ordering::Acquire),
        }
    }

    /// The time that decisions go by which can't be taken back (see [`crate::clock::Settled`]), in Unix seconds. `None`:
    /// nobody has told it yet.
    #[must_use]
    pub fn settled_time(&self, clock: &Clock) -> Option<u64> {
        let offset = self.settled.load(Ordering::Acquire);
        let lived = i64::try_from(clock.ticks() / 1000).unwrap_or(i64::MAX).checked_add(offset)?;
        (offset != i64::MIN).then(|| u64::try_from(lived).unwrap_or(0).min(clock.unix_seconds()))
    }

    /// What was to end by then is over for good, however the wall clock may have been set (Unix seconds). A few minutes
    /// are given to a store that tells the time once a minute. `None`: nobody has told it.
    #[must_use]
    pub fn time_that_is_over(&self, clock: &Clock) -> Option<u64> {
        let settled = self.settled_time(clock)?;
        Some(settled.saturating_add(CLOCKS_APART).min(clock.unix_seconds()))
    }

    /// Takes over what the store has let go of.
    pub fn forget(&self, forgotten: Forgotten, clock: &Clock) {
        if forgotten.settled != 0 {
            let ticks = i64::try_from(clock.ticks() / 1000).unwrap_or(i64::MAX);
            let told = i64::try_from(forgotten.settled).unwrap_or(i64::MAX).saturating_sub(ticks);
            let known = self.settled.load(Ordering::Acquire);
            // What is told may be some minutes old; only a clock that was put right takes time back.
            if told > known || told < known.saturating_sub_unsigned(CLOCKS_APART) {
                self.settled.store(told, Ordering::Release);
            }
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.gone_at.fetch_max(forgotten.at, Ordering::AcqRel);
        self.gone_number.fetch_max(forgotten.number, Ordering::AcqRel);
        if forgotten.until <= self.gone_until.load(Ordering::Acquire) {
            return;
        }
        let mut live = Live::clone(&self.live.load());
        let is_over = |mark: &Mark| mark.expires <= forgotten.until;
        let (before, over) = (live.len(), live.all.filter(is_over));
        let accounts = live.accounts.rows().filter(|entry| entry.kind != AccountKind::Changed).map(|entry| entry.mark);
        let latest = accounts.filter(is_over).chain(over).map(|mark| mark.at).max().unwrap_or(0);
        live.sessions.retain(|mark| mark.expires > forgotten.until);
        live.accounts.retain(|entry| !is_over(&entry.mark));
        live.all = live.all.filter(|mark| !is_over(mark));
        self.gone_at.fetch_max(latest, Ordering::AcqRel);
        if live.len() != before {
            // The store may hold on to some of them for a while; here they are gone.
            self.gone_number.fetch_max(self.head(), Ordering::AcqRel);
        }
        self.gone_until.store(forgotten.until, Ordering::Release);
        self.publish(live);
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

    /// Forgets everything and knows only this: the log has another history than before. What a reader sees is the one
    /// or the other, never neither.
    pub fn start_over(&self, entries: &[LogEntry], head: u64) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut live = Live { sessions: Table::empty(), accounts: Table::empty(), all: None };
        live.extend(entries);
        self.publish(live);
        self.head.store(head, Ordering::Release);
        self.ready.store(true, Ordering::Release);
        let epoch = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake.send_replace(epoch);
    }

    fn publish(&self, live: Live) {
        let entries = live.len();
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
    fn len(&self) -> usize {
        self.sessions.len() + self.accounts.len() + usize::from(self.all.is_some())
    }

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
    ///
    /// A token that says to know of an entry that is far younger than the token was issued while the log had other
    /// numbers: an older copy of the store has been restored since.
    const fn covers(&self, token: &Verified) -> bool {
        match token.seq {
            Some(seq) => self.number > seq || token.issued_at.saturating_add(CLOCKS_APART) < self.at,
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

    fn rows(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|shard| shard.iter())
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::{AccountId, SessionId};

    const AT: u64 = 1_000;

    fn token(account: &str, session: Option<&str>, seq: Option<u64>, issued_at: u64) -> Verified {
        let session: Option<SessionId> = session.map(|session| session.parse().unwrap());
        Verified {
            principal: Arc::new(crate::policy::Principal {
                id: account.to_owned(),
                username: String::from("kim"),
                groups: Vec::new(),
                email: String::new(),
                display_name: String::new(),
            }),
            account: account.parse().unwrap(),
            account_key: key_of(account),
            session_key: session.as_ref().map(|session| key_of(session.as_str())),
            session,
            seq,
            version: None,
            auth_time: issued_at,
            issued_at,
            ends: u64::MAX,
            expires: u64::MAX,
        }
    }

    fn entry(number: u64, what: Revocation) -> LogEntry {
        LogEntry { number, what, at: AT, expires: AT + 100 }
    }

    fn of(account: &str) -> AccountId {
        account.parse().unwrap()
    }

    #[test]
    fn another_history_takes_the_place_of_the_known_one() {
        let revocations = Revocations::default();
        let session = |name: &str| Revocation::Session { session: name.parse().unwrap() };
        revocations.start_over(&[entry(500, session("s1")), entry(501, Revocation::All)], 501);
        assert!(revocations.is_ready());
        let (old, new) = (token("kim", Some("s1"), Some(400), AT), token("kim", Some("s2"), Some(400), AT));
        for token in [&old, &new] {
            assert_eq!(revocations.standing(token), Standing::Revoked);
        }
        let epoch = revocations.epoch();
        revocations.start_over(&[entry(300, session("s1"))], 300);
        assert_eq!(revocations.standing(&old), Standing::Revoked);
        assert_eq!(revocations.standing(&new), Standing::Current);
        assert_eq!((revocations.head(), revocations.len()), (300, 1));
        assert_ne!(revocations.epoch(), epoch);
    }

    #[test]
    fn what_each_entry_covers() {
        let kim = || of("kim");
        let entries = [
            Revocation::Session { session: "s1".parse().unwrap() },
            Revocation::Account { account: kim() },
            Revocation::AccountWithoutSession { account: kim() },
            Revocation::Changed { account: kim() },
            Revocation::All,
        ];
        // One column for each entry above, written with number 7 at `AT`: . is current, R revoked, C changed.
        for (token, expected) in [
            (token("kim", Some("s1"), Some(6), AT), "RR.CR"),
            (token("kim", Some("s1"), Some(6), AT + 9), "RR.CR"), // the number decides, not the clock
            (token("kim", Some("s1"), Some(7), AT - 9), "R...."),
            (token("kim", Some("s2"), Some(99), AT - 300), "....."),
            (token("kim", Some("s2"), Some(99), AT - 301), ".R.CR"), // of a log that has been replaced by an older copy
            (token("kim", Some("s2"), Some(6), AT), ".R.CR"),
            (token("lee", Some("s2"), Some(6), AT), "....R"),
            (token("kim", None, None, AT - 1), ".RRCR"),
            (token("kim", None, None, AT), ".RRCR"), // within the same second: before
            (token("kim", None, None, AT + 1), "....."),
            (token("lee", None, None, AT), "....R"),
        ] {
            for (what, expected) in entries.iter().zip(expected.chars()) {
                let revocations = Revocations::default();
                revocations.extend(&[entry(7, what.clone())], 7);
                let standing = match revocations.standing(&token) {
                    Standing::Current => '.',
                    Standing::Revoked => 'R',
                    Standing::Changed { since: 7 } => 'C',
                    Standing::Changed { .. } => '?',
                };
                assert_eq!(standing, expected, "{what:?} for {token:?}");
            }
        }
    }

    #[test]
    fn an_account_that_changed_and_was_revoked_is_revoked() {
        let revocations = Revocations::default();
        revocations.extend(
            &[
                entry(7, Revocation::Account { account: of("kim") }),
                entry(9, Revocation::Changed { account: of("kim") }),
            ],
            9,
        );
        assert_eq!(revocations.standing(&token("kim", None, Some(6), AT)), Standing::Revoked);
        assert_eq!(revocations.standing(&token("kim", None, Some(8), AT)), Standing::Changed { since: 9 });
        assert_eq!(revocations.standing(&token("kim", None, Some(9), AT)), Standing::Current);
    }

    #[test]
    fn what_has_expired_is_forgotten_and_nothing_else() {
        let session: SessionId = "s1".parse().unwrap();
        let account = |id: &str| -> AccountId { id.parse().unwrap() };
        for what in [
            Revocation::Session { session: session.clone() },
            Revocation::Account { account: account("a") },
            Revocation::AccountWithoutSession { account: account("a") },
            Revocation::All,
        ] {
            let revocations = Revocations::default();
            revocations.extend(&[entry(7, what.clone())], 7);
            let tokens = match what {
                Revocation::AccountWithoutSession { .. } => [token("a", None, None, AT - 5)],
                _ => [token("a", Some("s1"), Some(3), AT - 5)],
            };
            let standing = || tokens.each_ref().map(|token| revocations.standing(token));
            assert_eq!(standing(), [Standing::Revoked], "{what:?}");
            let clock = Clock::manual(AT + 500);
            let until = |until| Forgotten { until, number: 7, ..Forgotten::default() };
            revocations.forget(until(AT + 99), &clock);
            assert_eq!((standing(), revocations.len()), ([Standing::Revoked], 1), "{what:?} was forgotten too early");
            revocations.forget(until(AT + 100), &clock);
            assert_eq!(revocations.len(), 0, "{what:?} is kept for ever");
            // A token that lives longer than any that it covered.
            let later = [token("a", Some("s1"), Some(3), AT + 5)];
            assert_eq!(later.map(|token| revocations.standing(&token)), [Standing::Current], "{what:?}");
        }
    }

    #[test]
    fn a_token_whose_revocation_is_gone_stays_revoked_whatever_the_clock_says() {
        let account = |id: &str| -> AccountId { id.parse().unwrap() };
        let revocations = Revocations::default();
        revocations.extend(&[entry(7, Revocation::Account { account: account("a") })], 8);
        let clock = Clock::manual(AT + 100);
        revocations.forget(Forgotten { until: AT + 100, number: 7, ..Forgotten::default() }, &clock);
        assert!(revocations.is_empty());
        let ended = |seq, issued_at, expires| Verified { expires, ..token("a", Some("s"), seq, issued_at) };
        // It would be good again by a clock that went back ten days.
        assert_eq!(revocations.standing(&ended(Some(6), AT, AT + 90)), Standing::Revoked);
        // Issued after it, by such a clock.
        assert_eq!(revocations.standing(&ended(Some(8), AT, AT + 90)), Standing::Current);
        assert_eq!(revocations.standing(&ended(Some(6), AT, AT + 101)), Standing::Current, "it outlived the entry");
        // A foreign token lives as long as the configuration lets it, now or later.
        assert_eq!(revocations.standing(&ended(None, AT, AT + 99_000)), Standing::Revoked);
        assert_eq!(revocations.standing(&ended(None, AT + 1, AT + 99_000)), Standing::Current);
    }

    #[test]
    fn the_settled_time_follows_what_the_store_tells() {
        let clock = Clock::manual(1_800_000_000);
        let revocations = Revocations::default();
        assert_eq!(revocations.settled_time(&clock), None);
        assert_eq!(revocations.time_that_is_over(&clock), None, "nobody has told the time");
        let tell = |settled| revocations.forget(Forgotten { settled, ..Forgotten::default() }, &clock);
        tell(1_800_000_000);
        clock.advance(std::time::Duration::from_secs(50));
        assert_eq!(revocations.settled_time(&clock), Some(1_800_000_050));
        tell(1_800_000_000);
        assert_eq!(revocations.settled_time(&clock), Some(1_800_000_050), "told late");
        clock.set_by(31 * 24 * 3600);
        assert_eq!(revocations.settled_time(&clock), Some(1_800_000_050));
        assert_eq!(revocations.time_that_is_over(&clock), Some(1_800_000_350), "by the wall clock alone it is more");
        clock.set_by(-32 * 24 * 3600);
        assert_eq!(revocations.settled_time(&clock), Some(clock.unix_seconds()));
        tell(1_799_000_000);
        clock.set_by(24 * 3600);
        assert_eq!(revocations.settled_time(&clock), Some(1_799_000_000), "a clock was put right");
    }

    #[test]
    fn entries_may_come_twice_and_in_any_order() {
        let revocations = Revocations::default();
        let old = LogEntry { at: 2_000, expires: 9_000, ..entry(3, Revocation::All) };
        revocations.extend(&[entry(8, Revocation::All)], 8);
        revocations.extend(std::slice::from_ref(&old), 8);
        revocations.extend(&[old], 8);
        assert_eq!(revocations.len(), 1);
        assert_eq!(revocations.standing(&token("kim", None, Some(7), 0)), Standing::Revoked);
        assert_eq!(revocations.standing(&token("kim", None, None, 2_000)), Standing::Revoked);
        let clock = Clock::manual(9_000);
        revocations.forget(Forgotten { until: 8_999, ..Forgotten::default() }, &clock);
        assert_eq!(revocations.len(), 1);
        revocations.forget(Forgotten { until: 9_000, ..Forgotten::default() }, &clock);
        assert!(revocations.is_empty() && revocations.is_ready());
    }

    #[test]
    fn nothing_is_known_before_the_first_reading_even_an_empty_one() {
        let revocations = Revocations::default();
        let token = token("kim", None, Some(1), 0);
        assert!(!revocations.is_ready());
        assert_eq!(revocations.standing(&token), Standing::Revoked);
        revocations.extend(&[], 12);
        assert_eq!((revocations.is_ready(), revocations.head(), revocations.epoch()), (true, 12, 1));
        assert_eq!(revocations.standing(&token), Standing::Current);
        revocations.extend(&[], 13);
        assert_eq!((revocations.head(), revocations.epoch()), (13, 1), "nothing changed for an open stream");
    }

    #[tokio::test]
    async fn who_waits_on_another_runtime_is_woken() {
        let revocations = Arc::new(Revocations::default());
        let seen = revocations.epoch();
        let waiting = {
            let revocations = Arc::clone(&revocations);
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(revocations.changed(seen));
                revocations.epoch()
            })
        };
        revocations.extend(&[entry(1, Revocation::All)], 1);
        assert_eq!(waiting.join().unwrap(), seen + 1);
        revocations.changed(seen).await; // has happened already: at once
    }

    #[test]
    fn two_hundred_thousand_entries_take_less_than_64_bytes_each_and_one_more_copies_one_shard() {
        assert!(size_of::<SessionMark>() <= 24 && size_of::<AccountMark>() <= 48);
        let entries: Vec<_> = (1..=200_000_u64)
            .map(|number| entry(number, Revocation::Session { session: SessionId::random() }))
            .collect();
        let revocations = Revocations::default();
        revocations.extend(&entries, 200_000);
        assert_eq!(revocations.len(), 200_000);
        let before = revocations.live.load_full();
        revocations.extend(&[entry(200_001, Revocation::Session { session: SessionId::random() })], 200_001);
        let after = revocations.live.load_full();
        let copied =
            before.sessions.0.iter().zip(&after.sessions.0).filter(|(old, new)| !Arc::ptr_eq(old, new)).count();
        assert_eq!(copied, 1);
        let largest = after.sessions.0.iter().map(|shard| shard.len()).max().unwrap();
        assert!(largest < 1_200, "the shards are even: {largest}");
        assert!(entries.iter().all(|entry| match &entry.what {
            Revocation::Session { session } => {
                revocations.standing(&token("kim", Some(session.as_str()), Some(0), 0)) == Standing::Revoked
            }
            _ => false,
        }));
    }

    #[test]
    fn each_spelling_of_a_uuid_is_an_id_of_its_own() {
        let id = "018f4b1e-7f00-7abc-8def-0123456789ab";
        assert_eq!(key_of(id), uuid::Uuid::parse_str(id).unwrap().as_u128());
        for other in
            [id.to_uppercase(), id.replace('-', ""), format!("{{{id}}}"), format!("urn:uuid:{id}"), String::new()]
        {
            assert_ne!(key_of(&other), key_of(id), "{other}");
        }
    }

    proptest! {
        #[test]
        fn the_table_finds_what_a_plain_list_finds(
            entries in proptest::collection::vec((0_u64..20, 0_u8..4, 0_u8..5, 0_u64..20), 0..60),
            splits in 1_usize..8,
            seq in proptest::option::of(0_u64..20),
            issued_at in 0_u64..20,
            account in 0_u8..4,
            session in proptest::option::of(0_u8..4),
        ) {
            let entries: Vec<_> = entries
                .into_iter()
                .map(|(number, of, kind, at)| {
                    let account: AccountId = format!("a{of}").parse().unwrap();
                    let what = match kind {
                        0 => Revocation::Session { session: format!("s{of}").parse().unwrap() },
                        1 => Revocation::Account { account },
                        2 => Revocation::AccountWithoutSession { account },
                        3 => Revocation::Changed { account },
                        _ => Revocation::All,
                    };
                    LogEntry { number, what, at, expires: 99 }
                })
                .collect();
            let token = token(&format!("a{account}"), session.map(|of| format!("s{of}")).as_deref(), seq, issued_at);
            let before = |entry: &LogEntry| seq.map_or(issued_at <= entry.at, |seq| entry.number > seq);
            let mut expected = Standing::Current;
            for entry in &entries {
                let (revoked, changed) = match &entry.what {
                    Revocation::Session { session } => (token.session.as_ref() == Some(session), false),
                    Revocation::Account { account } => (token.account == *account && before(entry), false),
                    Revocation::AccountWithoutSession { account } => {
                        (token.account == *account && token.session.is_none() && issued_at <= entry.at, false)
                    }
                    Revocation::Changed { account } => (false, token.account == *account && before(entry)),
                    Revocation::All => (before(entry), false),
                };
                if revoked {
                    expected = Standing::Revoked;
                } else if changed && expected == Standing::Current {
                    expected = Standing::Changed { since: 0 };
                }
            }
            let revocations = Revocations::default();
            revocations.extend(&[], 0);
            for part in entries.chunks(entries.len().div_ceil(splits).max(1)) {
                revocations.extend(part, 20);
            }
            let standing = match revocations.standing(&token) {
                Standing::Changed { .. } => Standing::Changed { since: 0 },
                other => other,
            };
            prop_assert_eq!(standing, expected);
        }
    }
}
