//! What a verify-only gateway and its centre say to each other about one token.
//!
//! The gateway shows the person's own token each time: what it holds itself reads the feed and asks, and makes nobody
//! anybody.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use zeroize::Zeroize as _;

use crate::policy::{Principal, Unidentified};

/// A gateway asks about a token that it has verified.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The token itself. Never logged: there is no `Debug`.
    pub token: String,
    /// It came in `Authorization`: the account is wanted, and no new token.
    pub bearer: bool,
    /// Whose browser it is, for the session's record.
    pub client: IpAddr,
    pub user_agent: String,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

/// The centre's answer. Its tokens are credentials: there is no `Debug`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answered {
    /// The account was read and may go on; `token` takes the old one's place. `seq`: the log's number of that reading.
    Renewed { person: Person, token: Option<String>, seq: u64 },
    /// It is no login any more; the reason's code.
    Over { reason: String },
    /// The account as it is; `None`: there is none.
    Account { account: Option<Standing>, seq: u64 },
}

/// A person, as the centre names him.
#[derive(Serialize, Deserialize)]
pub struct Person {
    pub id: String,
    pub username: String,
    pub groups: Vec<String>,
    pub email: String,
    pub display_name: String,
}

/// An account, for one who holds a bearer token.
#[derive(Serialize, Deserialize)]
pub struct Standing {
    pub person: Person,
    pub disabled: bool,
    /// `__v`
    pub version: u64,
}

/// Why the centre did not say: it was not reached, or could not read its store.
#[derive(Debug, thiserror::Error)]
#[error("the centre did not answer: {0}")]
pub struct Unanswered(pub String);

/// What a call to the centre returns.
pub type CentreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Unanswered>> + Send + 'a>>;

/// The centre, as a gateway without a store needs it.
pub trait Centre: Send + Sync {
    /// Every check of a login again, and a new token.
    fn renew(&self, asked: Asked) -> CentreFuture<'_, Answered>;
    /// Ends the session of a token everywhere.
    fn end(&self, token: &str) -> CentreFuture<'_, ()>;
}

impl From<&Principal> for Person {
    fn from(principal: &Principal) -> Self {
        let Principal { id, username, groups, email, display_name } = principal.clone();
        Self { id, username, groups, email, display_name }
    }
}

impl From<Person> for Principal {
    fn from(person: Person) -> Self {
        let Person { id, username, groups, email, display_name } = person;
        Self { id, username, groups, email, display_name }
    }
}

/// The reason of an [`Answered::Over`]; one that is not known is as good as a revocation.
pub(super) fn reason(code: &str) -> Unidentified {
    const KNOWN: [Unidentified; 3] =
        [Unidentified::ExpiredToken, Unidentified::UnknownAccount, Unidentified::DisabledAccount];
    KNOWN.into_iter().find(|known| known.code() == code).unwrap_or(Unidentified::RevokedToken)
}

/// Having the centre's keys read again because a token names one that is not known: at most every five seconds, so that
/// made-up tokens cost the centre nothing.
#[derive(Default)]
pub struct KeysWanted {
    wanted: Notify,
    round: watch::Sender<u64>,
    /// Milliseconds of the monotonic clock.
    next: AtomicU64,
    under_way: AtomicBool,
}

/// Milliseconds between two readings that unknown keys cause.
const QUIET: u64 = 5_000;

impl KeysWanted {
    /// Waits until the keys have been read again; false: they will not be, so soon after the last time, or it takes
    /// longer than `limit`. `now`: milliseconds of the monotonic clock.
    pub async fn read_again(&self, now: u64, limit: Duration) -> bool {
        let mut round = self.round.subscribe();
        let next = self.next.load(Ordering::SeqCst);
        let first =
            now >= next && self.next.compare_exchange(next, now + QUIET, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if first {
            self.under_way.store(true, Ordering::SeqCst);
            self.want();
        } else if !self.under_way.load(Ordering::SeqCst) {
            return false;
        }
        matches!(tokio::time::timeout(limit, round.changed()).await, Ok(Ok(())))
    }

    /// Has them read without waiting for it.
    pub fn want(&self) {
        self.wanted.notify_one();
    }

    /// Resolves when somebody wants them read.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// They were read, or could not be.
    pub fn done(&self) {
        self.under_way.store(false, Ordering::SeqCst);
        self.round.send_modify(|round| *round += 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn made_up_keys_are_asked_for_once_in_five_seconds() {
        let keys = Arc::new(KeysWanted::default());
        let readings = Arc::new(AtomicU64::new(0));
        let reader = {
            let (keys, readings) = (Arc::clone(&keys), Arc::clone(&readings));
            tokio::spawn(async move {
                loop {
                    keys.wanted().await;
                    readings.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    keys.done();
                }
            })
        };
        let limit = Duration::from_secs(2);
        let many: Vec<_> = (0..50)
            .map(|_| {
                let keys = Arc::clone(&keys);
                tokio::spawn(async move { keys.read_again(1_000_000, limit).await })
            })
            .collect();
        for one in many {
            assert!(one.await.unwrap());
        }
        assert_eq!(readings.load(Ordering::SeqCst), 1);
        assert!(!keys.read_again(1_000_000 + QUIET - 1, limit).await);
        assert!(keys.read_again(1_000_000 + QUIET, limit).await);
        assert_eq!(readings.load(Ordering::SeqCst), 2);
        reader.abort();
        // A centre that does not answer holds nobody up for longer than the limit.
        assert!(!keys.read_again(2_000_000, limit).await);
    }

    #[test]
    fn an_unknown_reason_is_no_login() {
        assert_eq!(reason("disabled_account"), Unidentified::DisabledAccount);
        assert_eq!(reason(""), Unidentified::RevokedToken);
        assert_eq!(reason("no_credential"), Unidentified::RevokedToken);
    }
}
