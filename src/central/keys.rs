//! The centre's public keys: read at the start, on a schedule, and when a token or the feed says that there are others.
//!
//! The set that was read last is what counts: a key that is gone verifies nothing any more. While the centre can't be
//! reached, the set that is known goes on.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::client::ClientError;
use super::{Client, Status, note};
use crate::auth::centre::KeysWanted;
use crate::auth::keys::{KeyRing, from_jwks};
use crate::config::{self, Algorithm};

/// How often they are read where nothing makes it urgent.
const EVERY: Duration = Duration::from_mins(10);
/// The pause after a failure, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// How long one reading may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Puts a ring in force.
type Swap = Box<dyn Fn(KeyRing)>;

/// Reads the keys again and again.
pub struct Keys {
    pub client: Arc<Client>,
    pub wanted: Arc<KeysWanted>,
    pub status: Arc<Status>,
    pub only: Option<Algorithm>,
    /// What was read last: a reload makes its ring of it.
    pub known: Rc<RefCell<Option<Bytes>>>,
    /// The tokens' rules in force: issuer and lifetimes.
    pub rules: Box<dyn Fn() -> config::Token>,
    pub swap: Swap,
}

impl Keys {
    /// Runs as long as the process.
    pub async fn follow(self) {
        let mut pause = RETRY.0;
        loop {
            let read = tokio::time::timeout(LIMIT, self.client.jwks()).await.unwrap_or(Err(ClientError::TimedOut));
            let taken = read.map_err(|error| error.to_string()).and_then(|document| self.take(document));
            let failed = taken.is_err();
            note(&self.status.keys, "the keys", taken.err());
            self.wanted.done();
            let rest = if failed { pause } else { spread(EVERY) };
            pause = if failed { (pause * 2).min(RETRY.1) } else { RETRY.0 };
            // A failed reading is not made more often because many ask.
            if failed {
                tokio::time::sleep(spread(rest)).await;
            } else {
                let _ = tokio::time::timeout(rest, self.wanted.wanted()).await;
            }
        }
    }

    fn take(&self, document: Bytes) -> Result<(), String> {
        if self.known.borrow().as_ref() == Some(&document) {
            return Ok(());
        }
        let ring = from_jwks(&(self.rules)(), self.only, &document).map_err(|error| error.to_string())?;
        tracing::info!("the centre's keys are in force");
        *self.known.borrow_mut() = Some(document);
        (self.swap)(ring);
        Ok(())
    }
}

/// Somewhere between three quarters and five quarters of a pause, so that thousands of gateways don't come at once.
pub(super) fn spread(pause: Duration) -> Duration {
    let mut byte = [128_u8];
    // Without randomness the pause is simply the middle one.
    let _ = getrandom::fill(&mut byte);
    pause * (384 + u32::from(byte[0])) / 512
}
