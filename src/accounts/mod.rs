//! Sign-in and account changes. Outcomes, not HTTP.
//!
//! - Nobody outside learns whether a name exists: every refusal is the same answer after the same work, and leaves at a
//!   moment that the account has no part in.
//! - Every place that takes a password counts in the same throttle.
//! - Every change is one atomic list of writes, the revocations that follow from it among them.

mod changes;
pub mod hashing;
pub mod import;
pub mod password;
pub(crate) mod profile;
mod refusal;
mod rules;
mod sign_in;
#[cfg(test)]
mod tests;
pub mod throttle;
mod weak;

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::store::{Account, Store, StoreError, Username};
use crate::telemetry::audit::Audit;

/// What came of a try to sign in.
#[derive(Debug)]
pub enum SignIn {
    /// `log_head` was read before the account, so that a change that raced the login ends the token made from it.
    Granted {
        /// As it was read, with the new hash where the old one was made anew.
        account: Box<Account>,
        /// The number of the newest log entry.
        log_head: u64,
    },
    /// Wrong name, wrong password, or disabled: nobody outside may learn which.
    Refused,
    /// Too many wrong passwords of late. Whole seconds, at least one.
    Throttled {
        /// How long to wait.
        retry_after: Duration,
    },
    /// The hash queue is full.
    Busy,
    /// The store did not answer.
    Unavailable(StoreError),
}

/// Why an account change was refused.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// What was asked for is not allowed; a sentence without its full stop.
    #[error("{0}")]
    Invalid(String),
    /// The name or the id as it was asked for.
    #[error("there is no account named {0:?}")]
    NoSuchAccount(String),
    /// The current password, which a person has to give to change it.
    #[error("the password is wrong")]
    WrongPassword,
    /// Too many wrong passwords of late.
    #[error("too many tries; wait {} s", .retry_after.as_secs())]
    Throttled {
        /// In whole seconds, at least one.
        retry_after: Duration,
    },
    /// The hash queue is full.
    #[error("too many passwords are being checked right now; try again")]
    Busy,
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A new account as somebody asked for it.
#[derive(Clone, Debug, Default)]
pub struct NewAccount {
    /// As typed; it is stored in its canonical form.
    pub username: String,
    /// Each 1 to 64 characters.
    pub groups: Vec<String>,
    /// May be empty.
    pub email: String,
    /// May be empty.
    pub display_name: String,
}

/// All that is done with accounts. Cheap to clone; shared by every thread.
#[derive(Clone)]
pub struct Accounts {
    store: Arc<dyn Store>,
    clock: Clock,
    hashers: hashing::HashPool,
    throttle: Arc<throttle::Throttle>,
    turns: Arc<refusal::Turns>,
    /// What names that no account has are hashed with before they are logged. New with each process.
    mask: Arc<[u8; 32]>,
    audit: Audit,
    #[cfg(test)]
    more_work: Option<MoreWork>,
}

/// What a check of this name's password takes besides, on another processor than this one.
#[cfg(test)]
type MoreWork = Arc<dyn Fn(&str) + Send + Sync>;

impl Accounts {
    /// One for the whole process: its clones share the throttle.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Clock, hashers: hashing::HashPool, audit: Audit) -> Self {
        let throttle = Arc::new(throttle::Throttle::new(clock.clone(), store.wrong_tries()));
        let mut mask = [0; 32];
        // Without random numbers nobody gets a session either, so there is nothing to refuse here.
        let _ = getrandom::fill(&mut mask);
        Self {
            store,
            clock,
            hashers,
            throttle,
            turns: Arc::default(),
            mask: Arc::new(mask),
            audit,
            #[cfg(test)]
            more_work: None,
        }
    }

    /// The account of a name in any of its forms.
    pub async fn by_name(&self, name: &str) -> Result<Account, AccountError> {
        let username = Self::canonical(name)?;
        let account = self.store.account_by_name(&username).await?;
        account.ok_or_else(|| AccountError::NoSuchAccount(username.into()))
    }

    /// All accounts, ordered by name.
    pub async fn list(&self) -> Result<Vec<Account>, AccountError> {
        Ok(self.store.accounts().await?)
    }

    /// The canonical form of a name for a message or a look-up.
    pub fn canonical(name: &str) -> Result<Username, AccountError> {
        Username::canonical(name).map_err(|error| AccountError::Invalid(format!("user name {error}")))
    }
}
