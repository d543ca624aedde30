//! Time as an argument: the wall clock, the monotonic clock, and a clock for tests that a test moves by hand.
//!
//! Nothing else in the program asks the operating system for the time (a lint holds it), so that every rule that
//! depends on time can be tested without waiting.

use std::future::Future as _;
use std::pin::{Pin, pin};
#[cfg(any(test, fuzzing))]
use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A source of time. Cheap to clone; clones of a manual clock move together.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    #[cfg(any(test, fuzzing))]
    Manual {
        unix_millis: Arc<AtomicU64>,
        /// What somebody has set the wall clock ahead, in milliseconds.
        set_ahead: Arc<AtomicI64>,
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
        let set_ahead = Arc::default();
        Self(Source::Manual { unix_millis: Arc::new(AtomicU64::new(start)), set_ahead, origin, start })
    }

    /// Moves a manual clock forward. The system clock can't be moved, so it does nothing there.
    #[cfg(any(test, fuzzing))]
    pub fn advance(&self, by: Duration) {
        if let Source::Manual { unix_millis, .. } = &self.0 {
            let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            unix_millis.fetch_add(millis, Ordering::SeqCst);
        }
    }

    /// Sets the wall clock of a manual clock by so many seconds, as an operator or a time server does; the monotonic
    /// clock does not move.
    #[cfg(any(test, fuzzing))]
    pub fn set_by(&self, seconds: i64) {
        if let Source::Manual { set_ahead, .. } = &self.0 {
            set_ahead.fetch_add(seconds * 1000, Ordering::SeqCst);
        }
    }

    /// Milliseconds since 1970-01-01T00:00:00Z. A clock set before 1970 reads as 0.
    #[must_use]
    pub fn unix_millis(&self) -> u64 {
        match &self.0 {
            Source::System => wall_millis(),
            #[cfg(any(test, fuzzing))]
            Source::Manual { unix_millis, set_ahead, .. } => {
                unix_millis.load(Ordering::SeqCst).saturating_add_signed(set_ahead.load(Ordering::SeqCst))
            }
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
            Source::Manual { unix_millis, origin, start, .. } => {
                *origin + Duration::from_millis(unix_millis.load(Ordering::SeqCst) - start)
            }
        }
    }
}

/// The time that decisions go by which can't be taken back: the wall clock, as far as the monotonic clock agrees.
///
/// It goes on with the monotonic clock. A wall clock that jumps, in either direction, is believed only after it has kept
/// its new distance for a day of the monotonic clock; the time in which nobody ran counts as such a jump. So it never
/// runs ahead because of one reading of a clock that others can set.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// Unix milliseconds.
    time: u64,
    at: Instant,
    /// How far the wall clock is ahead, in milliseconds, and since when it has been so.
    ahead: i64,
    since: Instant,
    /// The jump has been told.
    told: bool,
}

impl Settled {
    /// How long a wall clock that jumped has to keep its distance.
    pub const PATIENCE: Duration = Duration::from_hours(24);
    /// A distance up to this much, in milliseconds, is no jump.
    const NO_JUMP: i64 = 60_000;

    /// Goes on from `before` (Unix seconds), which was kept from an earlier run; 0: there was none, and the wall clock is
    /// taken as it is.
    #[must_use]
    pub fn since(before: u64, clock: &Clock) -> Self {
        let (wall, at) = (clock.unix_millis(), clock.instant());
        let time = if before == 0 { wall } else { before.saturating_mul(1000) };
        // The time between two runs is no jump that is worth a word.
        Self { time, at, ahead: distance(wall, time), since: at, told: true }
    }

    /// Goes on to now; to be called every few minutes at the latest. Unix seconds, never ahead of the wall clock.
    pub fn now(&mut self, clock: &Clock) -> u64 {
        let (wall, at) = (clock.unix_millis(), clock.instant());
        let passed = at.saturating_duration_since(self.at);
        self.time = self.time.saturating_add(u64::try_from(passed.as_millis()).unwrap_or(0));
        self.at = at;
        let ahead = distance(wall, self.time);
        if (ahead - self.ahead).abs() > Self::NO_JUMP {
            (self.ahead, self.since, self.told) = (ahead, at, false);
        }
        let patient = at.saturating_duration_since(self.since) >= Self::PATIENCE;
        if patient || (-Self::NO_JUMP..=0).contains(&ahead) {
            (self.time, self.ahead) = (wall, 0);
        } else if ahead > 0 && ahead <= Self::NO_JUMP {
            // As fast as a clock may be off, and no faster.
            let step = u64::try_from(passed.as_millis() / 100).unwrap_or(0).min(ahead.unsigned_abs());
            self.time = self.time.saturating_add(step);
        }
        self.time.min(wall) / 1000
    }

    /// Others have come further: their monotonic clocks run as fast as ours. Unix seconds.
    pub fn raise(&mut self, others: u64, clock: &Clock) {
        if others.saturating_mul(1000) > self.time {
            self.time = others.saturating_mul(1000);
            self.ahead = distance(clock.unix_millis(), self.time);
        }
    }

    /// How far the wall clock has jumped, in seconds, once for each jump.
    pub fn new_jump(&mut self) -> Option<i64> {
        (!std::mem::replace(&mut self.told, true)).then_some(self.ahead / 1000)
    }
}

fn distance(wall: u64, settled: u64) -> i64 {
    i64::try_from(wall).unwrap_or(i64::MAX).saturating_sub(i64::try_from(settled).unwrap_or(i64::MAX))
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

    const DAY: u64 = 24 * 3600;

    #[test]
    fn a_jump_of_the_wall_clock_settles_after_a_day_of_the_monotonic_clock() {
        for jump in [31 * 24 * 3600, -31 * 24 * 3600_i64] {
            let clock = Clock::manual(1_800_000_000);
            let mut settled = Settled::since(0, &clock);
            assert_eq!(settled.now(&clock), 1_800_000_000);
            clock.set_by(jump);
            for minute in 1..(60 * 24) {
                clock.advance(Duration::from_mins(1));
                let lived = 1_800_000_000 + minute * 60;
                assert_eq!(settled.now(&clock), lived.min(clock.unix_seconds()), "{jump}, minute {minute}");
            }
            assert_eq!(settled.new_jump(), Some(jump));
            assert_eq!(settled.new_jump(), None, "each is told once");
            clock.advance(Duration::from_mins(2));
            assert_eq!(settled.now(&clock), clock.unix_seconds(), "{jump}");
        }
    }

    #[test]
    fn a_clock_that_goes_back_to_right_has_changed_nothing() {
        let clock = Clock::manual(1_800_000_000);
        let mut settled = Settled::since(0, &clock);
        for _ in 0..200 {
            clock.set_by(31 * 24 * 3600);
            for _ in 0..10 {
                clock.advance(Duration::from_mins(10));
                settled.now(&clock);
            }
            clock.set_by(-31 * 24 * 3600);
            clock.advance(Duration::from_mins(10));
            assert_eq!(settled.now(&clock), clock.unix_seconds(), "a jump was believed, or never forgiven");
        }
    }

    #[test]
    fn small_steps_do_not_add_up() {
        let clock = Clock::manual(1_800_000_000);
        let mut settled = Settled::since(0, &clock);
        for _ in 0..10_000 {
            clock.set_by(30);
            clock.advance(Duration::from_secs(1));
            settled.now(&clock);
        }
        assert!(settled.now(&clock) < 1_800_000_000 + 10_000 + 10_000 / 50, "{}", settled.now(&clock));
    }

    #[test]
    fn a_start_believes_what_was_kept_and_not_the_clock() {
        let clock = Clock::manual(1_800_000_000 + 40 * DAY);
        let mut settled = Settled::since(1_800_000_000, &clock);
        clock.advance(Duration::from_secs(65));
        assert_eq!(settled.now(&clock), 1_800_000_065);
        assert_eq!(settled.new_jump(), None, "nobody ran for forty days");
        clock.advance(Settled::PATIENCE);
        assert_eq!(settled.now(&clock), clock.unix_seconds());
        settled.raise(clock.unix_seconds() + 50, &clock);
        assert_eq!(settled.now(&clock), clock.unix_seconds(), "never ahead of the wall clock");
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
