//! Time as an argument: the wall clock, the monotonic clock, and a clock for tests that a test moves by hand.
//!
//! Nothing else in the program asks the operating system for the time (a lint holds it), so that every rule that
//! depends on time can be tested without waiting.

use std::future::Future as _;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Instant;
#[cfg(any(test, fuzzing))]
use std::{
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A source of time. Cheap to clone; clones of a manual clock move together.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    #[cfg(any(test, fuzzing))]
    Manual {
        unix_millis: Arc<AtomicU64>,
        origin: Instant,
        start: u64,
    },
}

impl Clock {
    /// The operating system's clocks.
    #[must_use]
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still at `unix_seconds` until [`Clock::advance`] moves it.
    #[cfg(any(test, fuzzing))]
    #[must_use]
    pub fn manual(unix_seconds: u64) -> Self {
        let start = unix_seconds * 1000;
        #[expect(clippy::disallowed_methods, reason = "this module is where the time comes from")]
        let origin = Instant::now();
        Self(Source::Manual { unix_millis: Arc::new(AtomicU64::new(start)), origin, start })
    }

    /// Moves a manual clock forward. The system clock can't be moved, so it does nothing there.
    #[cfg(any(test, fuzzing))]
    pub fn advance(&self, by: Duration) {
        if let Source::Manual { unix_millis, .. } = &self.0 {
            let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            unix_millis.fetch_add(millis, Ordering::SeqCst);
        }
    }

    /// Milliseconds since 1970-01-01T00:00:00Z. A clock set before 1970 reads as 0.
    #[must_use]
    pub fn unix_millis(&self) -> u64 {
        match &self.0 {
            Source::System => wall_millis(),
            #[cfg(any(test, fuzzing))]
            Source::Manual { unix_millis, .. } => unix_millis.load(Ordering::SeqCst),
        }
    }

    /// Milliseconds of the monotonic clock since some beginning, a few of them late: for time limits of seconds, which
    /// are looked at often.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        match &self.0 {
            Source::System => monotonic_millis(),
            #[cfg(any(test, fuzzing))]
            Source::Manual { unix_millis, .. } => unix_millis.load(Ordering::SeqCst),
        }
    }

    /// Whole seconds since 1970-01-01T00:00:00Z, as `NumericDate` of RFC 7519 section 2 counts them.
    #[must_use]
    pub fn unix_seconds(&self) -> u64 {
        self.unix_millis() / 1000
    }

    /// A reading of the monotonic clock, for measuring spans.
    #[must_use]
    pub fn instant(&self) -> Instant {
        match &self.0 {
            #[expect(clippy::disallowed_methods, reason = "this module is where the time comes from")]
            Source::System => Instant::now(),
            #[cfg(any(test, fuzzing))]
            Source::Manual { unix_millis, origin, start } => {
                *origin + Duration::from_millis(unix_millis.load(Ordering::SeqCst) - start)
            }
        }
    }
}

/// The kernel notes the time at each of its ticks (every one to ten milliseconds); reading that note costs a tenth of
/// asking the hardware.
#[cfg(target_os = "linux")]
fn wall_millis() -> u64 {
    millis(rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse))
}

#[cfg(target_os = "linux")]
fn monotonic_millis() -> u64 {
    millis(rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse))
}

#[cfg(target_os = "linux")]
fn millis(time: rustix::time::Timespec) -> u64 {
    let millis = time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000);
    u64::try_from(millis).unwrap_or(0)
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::disallowed_methods, reason = "this module is where the time comes from")]
fn wall_millis() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::disallowed_methods, reason = "this module is where the time comes from")]
fn monotonic_millis() -> u64 {
    static BEGINNING: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    u64::try_from(BEGINNING.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Whether an alarm rings, asked last in a poll. The runtime puts a timer off, as it does a socket, once a task has used
/// up its turn: whoever floods us would use it up every time, and never be timed out.
pub fn poll_alarm(alarm: Pin<&mut tokio::time::Sleep>, task: &mut Context<'_>) -> Poll<()> {
    pin!(tokio::task::coop::unconstrained(alarm)).poll(task)
}

/// An alarm that is kept for whatever is due next. Later and later moments cost next to nothing: it stays where it is,
/// and is moved only when it rings too early.
#[derive(Default)]
pub struct KeptAlarm(Option<Pin<Box<tokio::time::Sleep>>>);

impl KeptAlarm {
    /// Whether `due` is over; otherwise the task is woken then. Asked last in a poll, as [`poll_alarm`].
    pub fn poll_due(&mut self, task: &mut Context<'_>, due: tokio::time::Instant) -> Poll<()> {
        let alarm = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if alarm.deadline() > due {
            alarm.as_mut().reset(due);
        }
        while poll_alarm(alarm.as_mut(), task).is_ready() {
            if alarm.deadline() >= due {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(due);
        }
        Poll::Pending
    }
}

/// Writes a time as RFC 3339 in UTC with whole seconds, for example `2026-11-24T09:30:00Z`.
///
/// A time after the year 9999 is written as the last second of that year.
#[must_use]
pub fn rfc3339(unix_seconds: u64) -> String {
    const LAST: i64 = 253_402_207_200;
    let seconds = i64::try_from(unix_seconds).unwrap_or(LAST).min(LAST);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::from("9999-12-30T22:00:00Z"), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual(1_000);
        let before = clock.instant();
        assert_eq!(clock.unix_seconds(), 1_000);
        clock.advance(Duration::from_millis(1_500));
        assert_eq!(clock.unix_millis(), 1_001_500);
        assert_eq!(clock.instant() - before, Duration::from_millis(1_500));
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_rings_also_where_the_turn_is_used_up() {
        let mut alarm = pin!(tokio::time::sleep(Duration::from_secs(1)));
        let rings_at_once = std::future::poll_fn(|task| Poll::Ready(poll_alarm(alarm.as_mut(), task).is_ready())).await;
        assert!(!rings_at_once);
        tokio::time::advance(Duration::from_secs(2)).await;
        let rings = std::future::poll_fn(|task| {
            // Takes all that one turn allows, as a flooded socket does.
            while let Poll::Ready(turn) = tokio::task::coop::poll_proceed(task) {
                turn.made_progress();
            }
            assert!(alarm.as_mut().poll(task).is_pending(), "the runtime does not put timers off any more");
            Poll::Ready(poll_alarm(alarm.as_mut(), task).is_ready())
        })
        .await;
        assert!(rings);
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_795_512_600), "2026-11-24T09:30:00Z");
        assert!(rfc3339(u64::MAX).starts_with("9999-"));
    }
}
