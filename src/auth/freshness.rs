//! How old this process's knowledge of the revocation log is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::clock::Clock;

/// When the log was last heard of. Read on every request without a lock.
///
/// Both clocks count: the monotonic one can't be set back, but stands still while a machine sleeps; the other one is right
/// after that. What is older by either is old.
#[derive(Debug)]
pub struct Freshness {
    clock: Clock,
    origin: Instant,
    /// Milliseconds since `origin`.
    heard: AtomicU64,
    /// Unix milliseconds.
    heard_unix: AtomicU64,
}

impl Freshness {
    /// As old as this call.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let (origin, unix) = (clock.instant(), clock.unix_millis());
        Self { clock, origin, heard: AtomicU64::new(0), heard_unix: AtomicU64::new(unix) }
    }

    /// Everything that was in the log at `at` is known.
    pub fn heard(&self, at: Instant) {
        let ago = millis(self.clock.instant().saturating_duration_since(at));
        self.heard.fetch_max(millis(at.saturating_duration_since(self.origin)), Ordering::Relaxed);
        self.heard_unix.store(self.clock.unix_millis().saturating_sub(ago), Ordering::Relaxed);
    }

    /// For how long nothing was heard.
    #[must_use]
    pub fn age(&self) -> Duration {
        let now = millis(self.clock.instant().saturating_duration_since(self.origin));
        let age = now.saturating_sub(self.heard.load(Ordering::Relaxed));
        let age_unix = self.clock.unix_millis().saturating_sub(self.heard_unix.load(Ordering::Relaxed));
        Duration::from_millis(age.max(age_unix))
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_is_as_old_as_the_asking_not_as_the_answer() {
        let clock = Clock::manual(1_000);
        let freshness = Freshness::new(clock.clone());
        clock.advance(Duration::from_secs(7));
        assert_eq!(freshness.age(), Duration::from_secs(7));
        let asked = clock.instant();
        clock.advance(Duration::from_secs(2));
        freshness.heard(asked);
        assert_eq!(freshness.age(), Duration::from_secs(2));
        freshness.heard(clock.instant());
        assert_eq!(freshness.age(), Duration::ZERO);
    }
}
