//! Whose turn it is: most tests run side by side, a few that measure need the machine to themselves.
//!
//! A test that measures waits until every running test has ended, and holds new ones back meanwhile. One thread may
//! take as many turns as it likes: only its first one waits.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

struct State {
    side_by_side: usize,
    alone: bool,
    waiting_to_be_alone: usize,
}

static STATE: Mutex<State> = Mutex::new(State { side_by_side: 0, alone: false, waiting_to_be_alone: 0 });
static CHANGED: Condvar = Condvar::new();

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// Held for as long as a test runs; not to be sent to another thread.
pub(crate) struct Turn {
    alone: bool,
    outermost: bool,
    // As a guard is: it can be looked at from other threads, but not go to one.
    _stays_on_its_thread: PhantomData<MutexGuard<'static, ()>>,
}

impl Turn {
    /// A turn beside others.
    pub(crate) fn shared() -> Self {
        Self::take(false)
    }

    /// A turn alone. Take it before anything else in a test.
    pub(crate) fn alone() -> Self {
        assert_eq!(HELD.get(), 0, "take the turn alone before the first gateway of the test");
        Self::take(true)
    }

    fn take(alone: bool) -> Self {
        let outermost = HELD.get() == 0;
        HELD.set(HELD.get() + 1);
        if outermost {
            let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
            if alone {
                state.waiting_to_be_alone += 1;
                while state.alone || state.side_by_side > 0 {
                    state = CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.waiting_to_be_alone -= 1;
                state.alone = true;
            } else {
                while state.alone || state.waiting_to_be_alone > 0 {
                    state = CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.side_by_side += 1;
            }
        }
        Self { alone, outermost, _stays_on_its_thread: PhantomData }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
        if self.outermost {
            let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
            if self.alone {
                state.alone = false;
            } else {
                state.side_by_side -= 1;
            }
            drop(state);
            CHANGED.notify_all();
        }
    }
}
