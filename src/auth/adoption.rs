//! Adoption: a login that a backend made by the same secret becomes a session here.

use super::Verified;
use super::keys::KeyRing;
use super::renewal::Asker;
use super::session::{Issued, Sessions};
use super::token::TokenError;
use crate::auth::Standing;
use crate::config::Config;
use crate::store::StoreError;
use crate::telemetry::audit::Event;

/// Why a backend's token became no session.
#[derive(Debug, thiserror::Error)]
pub enum NotAdopted {
    #[error("the token is not valid")]
    Token(#[source] TokenError),
    #[error("it is a token of Doorward's own, which has its session already")]
    Own,
    #[error("the token has been revoked")]
    Revoked,
    #[error("there is no such account")]
    UnknownAccount,
    #[error("the account is disabled")]
    DisabledAccount,
    #[error("the store did not answer in time")]
    TimedOut,
    #[error("the session could not be stored")]
    Store(#[from] StoreError),
}

impl Sessions {
    /// Every check of a login on the account that a backend's token names, then a session as at a login. `replaces`:
    /// every login whose cookie came with the request; their sessions end.
    pub async fn adopt(
        &self,
        ring: &KeyRing,
        config: &Config,
        token: &str,
        asker: Asker<'_>,
        replaces: &[&Verified],
    ) -> Result<Issued, NotAdopted> {
        let work = self.adopt_now(ring, config, token, asker, replaces);
        tokio::time::timeout(config.store.timeout, work).await.map_err(|_| NotAdopted::TimedOut)?
    }

    async fn adopt_now(
        &self,
        ring: &KeyRing,
        config: &Config,
        token: &str,
        asker: Asker<'_>,
        replaces: &[&Verified],
    ) -> Result<Issued, NotAdopted> {
        let verified = ring.verify(token, self.now()).map_err(NotAdopted::Token)?;
        if verified.session.is_some() {
            return Err(NotAdopted::Own);
        }
        // Before the account: a change that comes between ends the new token.
        let log_head = self.store.log_head().await?;
        let account = self.store.account(&verified.account).await?.ok_or(NotAdopted::UnknownAccount)?;
        if account.disabled {
            return Err(NotAdopted::DisabledAccount);
        }
        let is_revoked = || self.revocations.standing(&verified) == Standing::Revoked;
        if is_revoked() || verified.version.is_some_and(|version| version != account.version) {
            return Err(NotAdopted::Revoked);
        }
        let Asker { client, user_agent, .. } = asker;
        let issued = self.start(ring, &config.token, &account, log_head, client, user_agent, replaces).await?;
        if is_revoked() {
            self.revoke(&config.token, &issued.session).await?;
            return Err(NotAdopted::Revoked);
        }
        self.telemetry.metrics.login("ok");
        self.telemetry.audit.record(&Event {
            event: "login",
            outcome: "ok",
            username: account.username.as_str(),
            id: account.id.as_str(),
            sid: issued.session.as_str(),
            client: &client.to_canonical().to_string(),
            detail: "adopted from an upstream's own login",
        });
        Ok(issued)
    }
}
