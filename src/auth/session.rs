//! Sessions: started at login, renewed in use, ended at once.

use std::net::IpAddr;
use std::sync::Arc;

use super::keys::KeyRing;
use super::revocation::Revocations;
use super::{Identified, Verified};
use crate::clock::Clock;
use crate::config;
use crate::policy::Caller;
use crate::store::{Account, AccountId, Session, SessionId, Store, StoreError};
use crate::telemetry::Telemetry;

/// A fresh token on its way to a browser.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The JWT itself. Never logged: `Debug` hides it.
    pub token: crate::secret::Secret<String>,
    /// Seconds until it expires, for `Max-Age`.
    pub max_age: u64,
    /// Unix seconds.
    pub expires: u64,
    pub session: SessionId,
}

/// What a refresh came to.
#[derive(Debug)]
pub struct Refreshed {
    /// The caller to decide on: with the account's present groups, or nobody any more.
    pub caller: Caller,
    /// To be sent as `Set-Cookie` on this response.
    pub issued: Option<Issued>,
    /// The account could not be read and `max_staleness` is over: 503.
    pub unavailable: bool,
}

/// All that is done with sessions. Shared by every thread.
pub struct Sessions {}

impl Sessions {
    #[must_use]
    pub fn new(_store: Arc<dyn Store>, _revocations: Arc<Revocations>, _clock: Clock, _telemetry: Telemetry) -> Self {
        todo!("helper: auth")
    }

    /// A login succeeded: a new session, always. `replaces`: the session whose cookie came with the login; it ends.
    pub async fn start(
        &self,
        _ring: &KeyRing,
        _token: &config::Token,
        _account: &Account,
        _log_head: u64,
        _client: IpAddr,
        _user_agent: &str,
        _replaces: Option<&Verified>,
    ) -> Result<Issued, StoreError> {
        todo!()
    }

    /// Whether [`Sessions::refresh`] has anything to do: a cookie with less than `refresh_below` left, or a changed account.
    #[must_use]
    pub fn needs_refresh(&self, _token: &config::Token, _identified: &Identified, _now: u64) -> bool {
        todo!()
    }

    /// Reads the account again (once for many requests at a time, on all threads), makes every check of a login and,
    /// where the token came as a cookie, issues a new one for the same session.
    pub async fn refresh(
        &self,
        _ring: &KeyRing,
        _token: &config::Token,
        _store_limits: &config::Store,
        _identified: &Identified,
        _client: IpAddr,
        _user_agent: &str,
    ) -> Refreshed {
        todo!()
    }

    /// Logout: ends the session of this token everywhere, stored or not; a foreign token ends all of the account's tokens without a session.
    pub async fn end(&self, _token: &config::Token, _verified: &Verified) -> Result<(), StoreError> {
        todo!()
    }

    /// Ends one session by id. `Ok(false)`: there was none.
    pub async fn revoke(&self, _token: &config::Token, _session: &SessionId) -> Result<bool, StoreError> {
        todo!()
    }

    /// Ends every session and token of one account; its `__v` stays (`accounts` raises it for "sign out everywhere").
    pub async fn revoke_account(&self, _token: &config::Token, _account: &AccountId) -> Result<(), StoreError> {
        todo!()
    }

    /// Ends every session of everybody.
    pub async fn revoke_all(&self, _token: &config::Token) -> Result<(), StoreError> {
        todo!()
    }

    pub async fn list(&self, _account: Option<&AccountId>) -> Result<Vec<Session>, StoreError> {
        todo!()
    }

    /// A token for a script (`token issue`), with a session of its own.
    pub async fn issue_for_script(
        &self,
        _ring: &KeyRing,
        _token: &config::Token,
        _account: &Account,
        _log_head: u64,
        _lifetime: Option<std::time::Duration>,
    ) -> Result<Issued, StoreError> {
        todo!()
    }
}
