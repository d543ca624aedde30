//! When a refused login leaves: a moment that the account has no part in.
//!
//! Equal rounds are not equal time: what fills a cheap hash up, and what an argon2id leaves to be filled, takes a little
//! more or less on one processor than on another. So a refusal doesn't leave when its work ends. It leaves a whole number
//! of *turns* after the work began, and a turn is made of what 2^`bcrypt_cost` rounds take on this machine at present,
//! half as much again, whatever the account. All work that is shorter than a turn leaves at the same moment.
//!
//! What comes before the work (the account is read, a place in the queue is waited for) is rounded up as well, so that
//! the store's quicker answer for a name that nobody has is not seen either.
//!
//! Nothing waits on a hashing thread: the thread goes on with the next password, and the answer waits on a timer.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest turn: far above what a timer or a scheduler is late by.
const SHORTEST_TURN: Duration = Duration::from_millis(4);
/// What comes before the work is rounded up to this part of a turn.
const STEPS_OF_A_TURN: u32 = 8;

/// How long rounds take here, measured with every password that is checked. One for the whole process.
#[derive(Default)]
pub(super) struct Turns(Mutex<Pace>);

/// In picoseconds for each bcrypt round.
#[derive(Clone, Copy, Default)]
struct Pace {
    /// What was measured of late.
    measured: u64,
    /// What a turn is made of. Stays as it is while the measured one stays well between its half and itself, so that
    /// turns don't change from one login to the next.
    allowed: u64,
}

impl Turns {
    /// Notes that `rounds` bcrypt rounds just took so long.
    pub(super) fn measured(&self, rounds: u64, took: Duration) {
        let picoseconds = took.as_nanos().saturating_mul(1000).checked_div(u128::from(rounds)).unwrap_or(0);
        let sample = u64::try_from(picoseconds).unwrap_or(u64::MAX);
        // A clock that stands still, or nothing to measure.
        if sample > 0 {
            let mut pace = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *pace = pace.after(sample);
        }
    }

    /// One turn at this bcrypt cost.
    pub(super) fn turn(&self, cost: u32) -> Duration {
        let pace = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let nanoseconds = pace.allowed.checked_shl(cost).unwrap_or(u64::MAX) / 1000;
        Duration::from_nanos(nanoseconds).max(SHORTEST_TURN)
    }
}

impl Pace {
    /// Follows a machine that has become slower within a few logins, and one that has become quicker within some dozen.
    fn after(self, sample: u64) -> Self {
        let measured = match self.measured {
            0 => sample,
            before if sample > before => before.saturating_add((sample - before) / 4),
            before => before - (before - sample) / 16,
        };
        let fits = measured.saturating_add(measured / 8) <= self.allowed && self.allowed <= measured.saturating_mul(2);
        let allowed = if fits { self.allowed } else { measured.saturating_add(measured / 2) };
        Self { measured, allowed }
    }
}

/// When a refusal leaves that was asked for at `arrived`, and whose work was done from `began` to `ended`. Never before
/// `ended`, and the same for all work that is no longer than a turn.
pub(super) fn leaves_at(arrived: Instant, began: Instant, ended: Instant, turn: Duration) -> Instant {
    let step = turn / STEPS_OF_A_TURN;
    let before = whole(began.saturating_duration_since(arrived), step).saturating_add(1);
    let work = ended.saturating_duration_since(began);
    let turns = whole(work.saturating_sub(Duration::from_nanos(1)), turn).saturating_add(1);
    arrived + step.saturating_mul(before) + turn.saturating_mul(turns)
}

/// How many whole `parts` there are in a span.
fn whole(span: Duration, part: Duration) -> u32 {
    u32::try_from(span.as_nanos().checked_div(part.as_nanos()).unwrap_or(0)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Clock;

    const TURN: Duration = Duration::from_millis(80);

    proptest! {
        /// The whole rule: neither the work below a turn nor what the store needed for the name moves the answer.
        #[test]
        fn all_work_below_a_turn_leaves_at_one_moment(
            reads in prop::collection::vec(0_u64..10_000, 2),
            works in prop::collection::vec(0_u64..=80_000, 2),
        ) {
            let arrived = Clock::manual(1_000).instant();
            let leaves = |read: u64, work: u64| {
                let began = arrived + Duration::from_micros(read.min(9_999));
                leaves_at(arrived, began, began + Duration::from_micros(work), TURN)
            };
            prop_assert_eq!(leaves(reads[0], works[0]), leaves(reads[1], works[1]));
            prop_assert_eq!(leaves(reads[0], works[0]), arrived + Duration::from_millis(90));
        }

        #[test]
        fn nothing_leaves_before_its_work_ends(queue in 0_u64..5_000_000, work in 0_u64..5_000_000) {
            let arrived = Clock::manual(1_000).instant();
            let began = arrived + Duration::from_micros(queue);
            let ended = began + Duration::from_micros(work);
            let leaves = leaves_at(arrived, began, ended, TURN);
            prop_assert!(leaves >= ended);
            prop_assert!(leaves - ended <= TURN + TURN / STEPS_OF_A_TURN);
        }

        #[test]
        fn a_turn_is_well_above_what_is_measured_and_not_far(samples in prop::collection::vec(500_u64..80_000, 1..200)) {
            let turns = Turns::default();
            for sample in &samples {
                turns.measured(1 << 12, Duration::from_micros(*sample));
                let pace = *turns.0.lock().unwrap();
                prop_assert!(pace.allowed >= pace.measured + pace.measured / 8);
                prop_assert!(pace.allowed <= pace.measured * 2);
            }
        }
    }

    #[test]
    fn a_steady_machine_has_one_turn() {
        let turns = Turns::default();
        assert_eq!(turns.turn(12), SHORTEST_TURN);
        turns.measured(1 << 10, Duration::from_millis(60));
        let turn = turns.turn(10);
        assert!((Duration::from_millis(89)..=Duration::from_millis(90)).contains(&turn), "{turn:?}");
        for wobble in [59, 63, 61, 66, 57, 60, 64, 58] {
            turns.measured(1 << 10, Duration::from_millis(wobble));
            assert_eq!(turns.turn(10), turn);
        }
        // By the cost, also where it was changed meanwhile.
        assert_eq!(turns.turn(12).as_millis() / turn.as_millis(), 4);
        // A clock that stands still says nothing.
        turns.measured(1 << 10, Duration::ZERO);
        turns.measured(0, Duration::from_secs(9));
        assert_eq!(turns.turn(10), turn);
    }

    #[test]
    fn a_machine_that_changes_is_followed() {
        let turns = Turns::default();
        turns.measured(1 << 10, Duration::from_millis(10));
        (0..12).for_each(|_| turns.measured(1 << 10, Duration::from_millis(100)));
        assert!(turns.turn(10) > Duration::from_millis(100));
        (0..80).for_each(|_| turns.measured(1 << 10, Duration::from_millis(10)));
        assert!(turns.turn(10) < Duration::from_millis(21), "{:?}", turns.turn(10));
    }
}
