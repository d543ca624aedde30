//! Sign-in and account changes. Outcomes, not HTTP.

pub mod hashing;
pub mod import;
pub mod password;
pub mod throttle;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config;
use crate::secret::Secret;
use crate::store::{Account, AccountId, Store, StoreError, Username};
use crate::telemetry::audit::Audit;

/// What came of a try to sign in.
#[derive(Debug)]
pub enum SignIn {
    /// `log_head` was read before the account, so that a change that raced the login ends the token made from it.
    Granted {
        account: Box<Account>,
        log_head: u64,
    },
    /// Wrong name, wrong password, or disabled: nobody outside may learn which.
    Refused,
    Throttled {
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
    #[error("{0}")]
    Invalid(String),
    #[error("there is no account named {0:?}")]
    NoSuchAccount(String),
    #[error("the password is wrong")]
    WrongPassword,
    #[error("too many tries; wait {} s", .retry_after.as_secs())]
    Throttled { retry_after: Duration },
    #[error("too many passwords are being checked right now; try again")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A new account as somebody asked for it.
#[derive(Clone, Debug, Default)]
pub struct NewAccount {
    pub username: String,
    pub groups: Vec<String>,
    pub email: String,
    pub display_name: String,
}

/// All that is done with accounts. Cheap to clone; shared by every thread.
#[derive(Clone)]
pub struct Accounts {
    _store: Arc<dyn Store>,
}

impl Accounts {
    #[must_use]
    pub fn new(_store: Arc<dyn Store>, _clock: Clock, _hashers: hashing::HashPool, _audit: Audit) -> Self {
        todo!("helper: accounts")
    }

    /// Tries a name and a password. The same work whatever is wrong.
    pub async fn sign_in(
        &self,
        _login: &config::Login,
        _name: &str,
        _password: Secret<String>,
        _client: IpAddr,
    ) -> SignIn {
        todo!()
    }

    /// A person changes his own password; ends every other session (revokes all tokens of the account).
    pub async fn change_own_password(
        &self,
        _login: &config::Login,
        _token: &config::Token,
        _id: &AccountId,
        _current: Secret<String>,
        _new: Secret<String>,
        _client: IpAddr,
    ) -> Result<Account, AccountError> {
        todo!()
    }

    pub async fn add(
        &self,
        _login: &config::Login,
        _new: NewAccount,
        _password: Secret<String>,
    ) -> Result<Account, AccountError> {
        todo!()
    }

    pub async fn set_password(
        &self,
        _login: &config::Login,
        _token: &config::Token,
        _name: &str,
        _password: Secret<String>,
    ) -> Result<Account, AccountError> {
        todo!()
    }

    pub async fn set_groups(
        &self,
        _token: &config::Token,
        _name: &str,
        _groups: Vec<String>,
    ) -> Result<Account, AccountError> {
        todo!()
    }

    pub async fn disable(&self, _token: &config::Token, _name: &str) -> Result<Account, AccountError> {
        todo!()
    }

    pub async fn enable(&self, _token: &config::Token, _name: &str) -> Result<Account, AccountError> {
        todo!()
    }

    pub async fn remove(&self, _token: &config::Token, _name: &str) -> Result<(), AccountError> {
        todo!()
    }

    /// "Sign out everywhere": raises `__v`, revokes every token, removes every session.
    pub async fn sign_out_everywhere(&self, _token: &config::Token, _id: &AccountId) -> Result<Account, AccountError> {
        todo!()
    }

    pub async fn by_name(&self, _name: &str) -> Result<Account, AccountError> {
        todo!()
    }

    pub async fn list(&self) -> Result<Vec<Account>, AccountError> {
        todo!()
    }

    /// All of them or none. Returns how many.
    pub async fn import(&self, _accounts: Vec<import::Imported>) -> Result<usize, AccountError> {
        todo!()
    }

    /// The canonical form of a name for a message or a look-up.
    pub fn canonical(name: &str) -> Result<Username, AccountError> {
        Username::canonical(name).map_err(|error| AccountError::Invalid(format!("user name {error}")))
    }
}
