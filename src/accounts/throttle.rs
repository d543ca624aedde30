//! How many wrong passwords a client network may try for one account.
//!
//! - A bucket belongs to one network (an IPv4 address, an IPv6 /64) and one canonical name, so that nobody can lock a
//!   person out from another network. Names that no account can have share a few buckets for each network.
//! - Only wrong passwords count. Tries under way don't, so right ones never get in each other's way.
//! - The wrong tries of the last `window` count one by one. Beyond [`SLOTS`] of them the oldest are taken together as
//!   if they had come with the later one: an error on the strict side, for the sake of bounded memory.
//! - Where several processes share a store, the store counts for all of them, and this count is what is left while the
//!   store is slow or down.
//! - Beside it each network has one bucket for all names together, which a right password does not empty.
//! - At most 2 × [`GENERATION`] buckets are kept; beyond that those go whose last wrong try is oldest.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::clock::Clock;
use crate::store::{StoreFuture, Username, WrongTries};

/// Buckets in each of the two generations.
const GENERATION: usize = 32_768;
/// Moments that one bucket remembers.
const SLOTS: usize = 32;

/// How many wrong passwords in what time.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// 0: as many as anybody likes.
    pub max_attempts: u32,
    /// From each wrong try on.
    pub window: Duration,
}

/// Whose tries are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket([u8; 16]);

/// Every wrong try that still counts. One for the whole process.
pub struct Throttle {
    clock: Clock,
    counted: Mutex<Counted>,
    shared: Option<Arc<dyn WrongTries>>,
}

/// Two generations: a bucket moves into the young one with each wrong try; when that is full, or older than a window,
/// it becomes the old one, and what was old is forgotten.
struct Counted {
    young: HashMap<Bucket, Tries>,
    old: HashMap<Bucket, Tries>,
    since: Instant,
}

#[derive(Default)]
struct Tries {
    /// Oldest first.
    slots: VecDeque<Slot>,
    /// An account has this name: it may be shown.
    is_an_accounts: bool,
}

struct Slot {
    at: Instant,
    wrong: u32,
}

impl Bucket {
    /// `name` is `None` where what was typed can be no account's name; then `typed` chooses one of 256 buckets.
    #[must_use]
    pub fn of(client: IpAddr, name: Option<&Username>, typed: &str) -> Self {
        let mut digest = Sha256::new();
        digest.update(network(client).octets());
        match name {
            Some(name) => digest.update(name.as_str()),
            // No name holds a control character.
            None => digest.update([b'\n', Sha256::digest(typed).first().copied().unwrap_or_default()]),
        }
        let mut key = [0; 16];
        key.iter_mut().zip(digest.finalize()).for_each(|(to, from)| *to = from);
        Self(key)
    }
}

impl Bucket {
    /// All names together that one network tries.
    #[must_use]
    pub fn of_network(client: IpAddr) -> Self {
        let mut digest = Sha256::new_with_prefix(network(client).octets());
        // No name holds a control character, and what stands for those that can be none has two bytes.
        digest.update(b"\n");
        let mut key = [0; 16];
        key.iter_mut().zip(digest.finalize()).for_each(|(to, from)| *to = from);
        Self(key)
    }
}

/// At least one.
fn whole_seconds(left: Duration) -> Duration {
    let second = u64::from(left.subsec_nanos() > 0);
    Duration::from_secs(left.as_secs().saturating_add(second).max(1))
}

/// IPv4 as its mapped IPv6 address, IPv6 as its /64.
#[must_use]
pub fn network(client: IpAddr) -> Ipv6Addr {
    match client.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64),
    }
}

impl Throttle {
    /// Nothing counted yet, here. `shared`: where all processes count together.
    #[must_use]
    pub fn new(clock: Clock, shared: Option<Arc<dyn WrongTries>>) -> Self {
        let since = clock.instant();
        let counted = Mutex::new(Counted { young: HashMap::new(), old: HashMap::new(), since });
        Self { clock, counted, shared }
    }

    /// [`Throttle::wait`] before anything is done for a try. Where this process has counted too many, all processes are
    /// asked: a right password may have come to another one.
    pub async fn wait_at_first(&self, bucket: &Bucket, limit: Limit) -> Option<Duration> {
        let wait = self.wait(bucket, limit)?;
        let Some(shared) = &self.shared else { return Some(wait) };
        match shared.wait(bucket.0, limit.max_attempts, limit.window).await {
            Ok(Some(left)) => Some(whole_seconds(left)),
            Ok(None) => {
                self.right(bucket);
                None
            }
            Err(_) => Some(wait),
        }
    }

    /// [`Throttle::wait`] by what all processes counted, right before the work. Blocks: for a hashing thread.
    pub fn wait_everywhere(&self, bucket: &Bucket, limit: Limit) -> Option<Duration> {
        if limit.max_attempts == 0 {
            return None;
        }
        match self.ask(|shared| shared.wait(bucket.0, limit.max_attempts, limit.window)) {
            Some(left) => left.map(whole_seconds),
            None => self.wait(bucket, limit),
        }
    }

    /// [`Throttle::wrong`], told to all processes. Blocks: for a hashing thread.
    pub fn wrong_everywhere(&self, bucket: Bucket, limit: Limit) {
        if limit.max_attempts == 0 {
            return;
        }
        self.wrong(bucket, limit);
        self.ask(|shared| shared.wrong(bucket.0, limit.window));
    }

    /// [`Throttle::right`], told to all processes. Doesn't wait for them.
    pub fn right_everywhere(&self, bucket: &Bucket) {
        self.right(bucket);
        if let Some(shared) = &self.shared {
            // It has begun; nobody needs to hear how it ends.
            drop(shared.right(bucket.0));
        }
    }

    /// The store's answer. `None` where there is no such store, or it gives none: then the count of this process decides.
    fn ask<'s, T>(&'s self, ask: impl FnOnce(&'s dyn WrongTries) -> StoreFuture<'s, T>) -> Option<T> {
        let answer = ask(&**self.shared.as_ref()?);
        // The store bounds its own calls; nothing here needs more than a thread that waits.
        let runtime = tokio::runtime::Builder::new_current_thread().build().ok()?;
        runtime.block_on(answer).inspect_err(|error| tracing::debug!(%error, "tries are counted here alone")).ok()
    }

    /// How long this bucket has to wait, in whole seconds, at least one; `None` where it may try.
    #[must_use]
    pub fn wait(&self, bucket: &Bucket, limit: Limit) -> Option<Duration> {
        if limit.max_attempts == 0 {
            return None;
        }
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let tries = counted.young.get(bucket).or_else(|| counted.old.get(bucket))?;
        tries.wait(self.clock.instant(), limit).map(whole_seconds)
    }

    /// Counts a wrong password.
    pub fn wrong(&self, bucket: Bucket, limit: Limit) {
        let now = self.clock.instant();
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.young.len() >= GENERATION || now.saturating_duration_since(counted.since) >= limit.window {
            counted.old = std::mem::take(&mut counted.young);
            counted.since = now;
        }
        let earlier = counted.old.remove(&bucket);
        let tries = counted.young.entry(bucket).or_insert_with(|| earlier.unwrap_or_default());
        tries.add(now, limit);
    }

    /// Remembers with the wrong tries of a bucket that its name is an account's.
    pub fn note_account(&self, bucket: &Bucket) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tries) = counted.young.get_mut(bucket) {
            tries.is_an_accounts = true;
        }
    }

    /// Whether the name of a bucket with wrong tries is known to be an account's.
    #[must_use]
    pub fn is_an_accounts(&self, bucket: &Bucket) -> bool {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.young.get(bucket).or_else(|| counted.old.get(bucket)).is_some_and(|tries| tries.is_an_accounts)
    }

    /// Forgets the wrong tries of a bucket: a right password came.
    pub fn right(&self, bucket: &Bucket) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.young.remove(bucket);
        counted.old.remove(bucket);
    }

    /// Buckets kept right now.
    #[cfg(test)]
    fn len(&self) -> usize {
        let counted = self.counted.lock().unwrap();
        counted.young.len() + counted.old.len()
    }
}

impl Tries {
    fn add(&mut self, now: Instant, limit: Limit) {
        self.slots.retain(|slot| now.saturating_duration_since(slot.at) < limit.window);
        self.slots.push_back(Slot { at: now, wrong: 1 });
        if self.slots.len() > SLOTS
            && let Some(oldest) = self.slots.pop_front()
            && let Some(next) = self.slots.front_mut()
        {
            next.wrong = next.wrong.saturating_add(oldest.wrong);
        }
    }

    /// Until fewer than `max_attempts` are within the window.
    fn wait(&self, now: Instant, limit: Limit) -> Option<Duration> {
        let mut wrong: u32 = 0;
        let decisive = self.slots.iter().rev().find(|slot| {
            wrong = wrong.saturating_add(slot.wrong);
            wrong >= limit.max_attempts
        })?;
        limit.window.checked_sub(now.saturating_duration_since(decisive.at)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Limit = Limit { max_attempts: 3, window: Duration::from_mins(1) };

    fn bucket(client: &str, name: &str) -> Bucket {
        Bucket::of(client.parse().unwrap(), Username::canonical(name).ok().as_ref(), name)
    }

    #[test]
    fn a_bucket_is_one_network_and_one_canonical_name() {
        let same = [
            (("192.0.2.1", "kim"), ("::ffff:192.0.2.1", "KIM")),
            (("2001:db8:1:2::1", "kim"), ("2001:db8:1:2:ffff::9", "ｋｉｍ")),
        ];
        for ((client, name), (other, twin)) in same {
            assert_eq!(bucket(client, name), bucket(other, twin));
        }
        let all = [
            bucket("192.0.2.1", "kim"),
            bucket("192.0.2.2", "kim"),
            bucket("192.0.2.1", "lee"),
            bucket("2001:db8:1:2::1", "kim"),
            bucket("2001:db8:1:3::1", "kim"),
            bucket("192.0.2.1", "kim "),
            bucket("192.0.2.2", "kim "),
        ];
        let distinct: std::collections::HashSet<Bucket> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn names_that_can_be_none_share_256_buckets() {
        let names: std::collections::HashSet<Bucket> =
            (0..10_000).map(|number| bucket("192.0.2.1", &format!("no name {number}"))).collect();
        assert!(names.len() <= 256, "{}", names.len());
    }

    #[test]
    fn the_limit_holds_for_the_window_and_a_right_password_clears_it() {
        let clock = Clock::manual(1_000);
        let throttle = Throttle::new(clock.clone(), None);
        let kim = bucket("192.0.2.1", "kim");
        for _ in 0..3 {
            assert_eq!(throttle.wait(&kim, LIMIT), None);
            throttle.wrong(kim, LIMIT);
            clock.advance(Duration::from_millis(10_500));
        }
        // The first was 31.5 s ago.
        assert_eq!(throttle.wait(&kim, LIMIT), Some(Duration::from_secs(29)));
        assert_eq!(throttle.wait(&bucket("192.0.2.2", "kim"), LIMIT), None);
        clock.advance(Duration::from_millis(28_499));
        assert_eq!(throttle.wait(&kim, LIMIT), Some(Duration::from_secs(1)));
        clock.advance(Duration::from_millis(1));
        assert_eq!(throttle.wait(&kim, LIMIT), None);
        throttle.wrong(kim, LIMIT);
        assert!(throttle.wait(&kim, LIMIT).is_some());
        throttle.right(&kim);
        assert_eq!(throttle.wait(&kim, LIMIT), None);
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let throttle = Throttle::new(Clock::manual(1_000), None);
        let one = Limit { max_attempts: 1, ..LIMIT };
        let all: Vec<Bucket> = (0..100_000).map(|number| bucket("192.0.2.1", &format!("n{number}"))).collect();
        for bucket in &all {
            throttle.wrong(*bucket, one);
        }
        assert!(throttle.len() <= 2 * GENERATION);
        assert!(all[all.len() - GENERATION..].iter().all(|bucket| throttle.wait(bucket, one).is_some()));
    }

    #[test]
    fn a_million_random_names_from_as_many_networks_take_no_more_memory_than_a_few() {
        let throttle = Throttle::new(Clock::manual(1_000), None);
        let mut key: u128 = 0x9e37_79b9_7f4a_7c15;
        let mut most = 0;
        for number in 0..1_000_000_u32 {
            // What a flood would make; hashed names would only take longer.
            key = key.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645).wrapping_add(1);
            throttle.wrong(Bucket(key.to_be_bytes()), LIMIT);
            if number % 10_000 == 0 {
                most = most.max(throttle.len());
            }
        }
        assert!(most <= 2 * GENERATION && throttle.len() <= 2 * GENERATION, "{most}");
        let counted = throttle.counted.lock().unwrap();
        // Nor did a table that was emptied keep its room.
        assert!(counted.young.capacity() + counted.old.capacity() <= 8 * GENERATION);
        assert!(counted.young.values().chain(counted.old.values()).all(|tries| tries.slots.capacity() <= 2 * SLOTS));
    }

    #[test]
    fn a_great_limit_takes_little_memory_and_errs_on_the_strict_side() {
        let clock = Clock::manual(1_000);
        let throttle = Throttle::new(clock.clone(), None);
        let (kim, great) = (bucket("192.0.2.1", "kim"), Limit { max_attempts: 1000, ..LIMIT });
        for _ in 0..1000 {
            assert_eq!(throttle.wait(&kim, great), None);
            throttle.wrong(kim, great);
            clock.advance(Duration::from_millis(1));
        }
        assert_eq!(throttle.wait(&kim, great), Some(LIMIT.window));
        assert_eq!(throttle.counted.lock().unwrap().young[&kim].slots.len(), SLOTS);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Try(usize),
        Right(usize),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..4usize).prop_map(Step::Try),
            1 => (0..4usize).prop_map(Step::Right),
            2 => (0..40_000u64).prop_map(Step::Pass),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Against a list of every wrong try ever.
        #[test]
        fn it_counts_as_a_plain_list_does(steps in steps(), max_attempts in 1..6u32) {
            let limit = Limit { max_attempts, ..LIMIT };
            let clock = Clock::manual(1_000);
            let throttle = Throttle::new(clock.clone(), None);
            let buckets: Vec<Bucket> = (0..4).map(|number| bucket("192.0.2.1", &format!("n{number}"))).collect();
            let (mut now, mut model) = (0u64, vec![Vec::<u64>::new(); 4]);
            for step in steps {
                match step {
                    Step::Pass(millis) => {
                        clock.advance(Duration::from_millis(millis));
                        now += millis;
                    }
                    Step::Right(who) => {
                        throttle.right(&buckets[who]);
                        model[who].clear();
                    }
                    Step::Try(who) => {
                        let recent: Vec<u64> = model[who].iter().copied().filter(|at| now - at < 60_000).collect();
                        let free = recent.len() < max_attempts as usize;
                        let wait = throttle.wait(&buckets[who], limit);
                        prop_assert_eq!(wait.is_none(), free);
                        if free {
                            throttle.wrong(buckets[who], limit);
                            model[who].push(now);
                        } else {
                            let decisive = recent[recent.len() - max_attempts as usize];
                            let left = (decisive + 60_000 - now).div_ceil(1000);
                            prop_assert_eq!(wait, Some(Duration::from_secs(left)));
                        }
                    }
                }
            }
        }
    }
}
