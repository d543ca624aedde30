//! Waiting for a condition instead of for a time.

use std::time::{Duration, Instant};

/// Far longer than anything here takes on a busy machine; reaching it is a failure, never a pass.
pub(crate) const GENEROUS: Duration = Duration::from_mins(3);

/// Asks again and again until there is an answer. Panics with `what` when none came in three minutes.
pub(crate) fn until_some<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + GENEROUS;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited three minutes for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a condition holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    until_some(what, || holds().then_some(()));
}
