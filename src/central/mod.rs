//! A verify-only gateway's side: its centre's keys, its centre's revocation feed, and what it asks its centre.
//!
//! Nothing here decides about a request. What comes from the centre goes to the same places as a store's news: the set
//! of revocations, the key ring, the answer of a renewal.

mod client;
mod follow;
mod keys;

use std::sync::{Mutex, PoisonError};

pub use client::Client;
pub use follow::Follower;
pub use keys::Keys;

/// How it goes, for `/ready` and the log.
#[derive(Default)]
pub struct Status {
    feed: Mutex<Option<String>>,
    keys: Mutex<Option<String>>,
}

impl Status {
    /// What is wrong with the feed right now; `None`: it is being read.
    #[must_use]
    pub fn feed_problem(&self) -> Option<String> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was wrong with the last reading of the keys.
    #[must_use]
    pub fn keys_problem(&self) -> Option<String> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Notes how it goes, and says so where that is news.
fn note(place: &Mutex<Option<String>>, what: &'static str, problem: Option<String>) {
    let mut known = place.lock().unwrap_or_else(PoisonError::into_inner);
    match (&*known, &problem) {
        (known, Some(problem)) if known.as_ref() != Some(problem) => {
            tracing::warn!(%problem, "{what} can't be read from the centre");
        }
        (Some(_), None) => tracing::info!("{what} can be read from the centre again"),
        _ => {}
    }
    *known = problem;
}
