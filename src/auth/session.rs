//! Sessions: started at login, renewed in use, ended at once.
//!
//! - A login always makes a new session; what it replaces ends with the same write.
//! - A token that goes out was still good when its session was on disk: what overtook it wins.
//! - An entry of the revocation log lives as long as any token that it has to stop, also one being issued right now.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::centre::{Centre, Unanswered};
use super::keys::KeyRing;
use super::renewal::Memory;
use super::revocation::{Revocations, key_of};
use super::token::Claims;
use super::{Standing, Verified};
use crate::clock::Clock;
use crate::config;
use crate::policy::Principal;
use crate::secret::Secret;
use crate::store::{
    Account, AccountId, Applied, LogEntry, LogFollower as _, Revocation, Session, SessionId, Store, StoreError, Write,
};
use crate::telemetry::Telemetry;
use crate::telemetry::audit::Event;

/// The longest token that browsers keep as a cookie: they take 4,096 bytes with the name and the equals sign
/// (RFC 6265bis section 5.6), of which the name may have 64.
pub const MAX_COOKIE_TOKEN_BYTES: usize = 4096 - 65;

/// How many sessions an account has at most; the oldest ends when there is one more.
pub const MAX_SESSIONS: usize = 200;

/// Added to the end of a revocation, in seconds, for what was being issued while it was written.
const SLACK: u64 = 60;

/// A fresh token on its way to a browser.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The JWT itself. Never logged: `Debug` hides it.
    pub token: Secret<String>,
    /// Seconds until it expires, for `Max-Age`.
    pub max_age: u64,
    /// Unix seconds.
    pub expires: u64,
    pub session: SessionId,
}

/// All that is done with sessions. Shared by every thread.
pub struct Sessions {
    pub(super) store: Arc<dyn Store>,
    pub(super) revocations: Arc<Revocations>,
    pub(super) clock: Clock,
    pub(super) telemetry: Telemetry,
    pub(super) memory: Memory,
    /// Who decides in the store's place, for a verify-only gateway.
    pub(super) centre: Option<Arc<dyn Centre>>,
}

/// Who is at the other end.
#[derive(Clone, Copy)]
pub(super) struct Client<'a> {
    pub(super) address: IpAddr,
    pub(super) user_agent: &'a str,
}

/// What a token says besides its account. Times in Unix seconds.
pub(super) struct Terms {
    pub(super) session: SessionId,
    pub(super) auth_time: u64,
    pub(super) seq: u64,
    pub(super) now: u64,
    pub(super) expires: u64,
}

impl Sessions {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, revocations: Arc<Revocations>, clock: Clock, telemetry: Telemetry) -> Self {
        Self { store, revocations, clock, telemetry, memory: Memory::default(), centre: None }
    }

    /// The same for a verify-only gateway: renewals and logouts are the centre's.
    #[must_use]
    pub fn of_centre(self, centre: Arc<dyn Centre>) -> Self {
        Self { centre: Some(centre), ..self }
    }

    /// Unix seconds, by the clock of every check here.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.clock.unix_seconds()
    }

    /// Whether a centre decides: then renewals and logouts need the token's text.
    #[must_use]
    pub fn has_centre(&self) -> bool {
        self.centre.is_some()
    }

    /// A login succeeded: a new session, always. `log_head` was read before the account. `replaces`: every login
    /// whose cookie came with this one; their sessions end.
    ///
    /// [`StoreError::TooLarge`]: the account has so many groups that no browser would keep the cookie.
    /// [`StoreError::Conflict`]: the account was disabled, removed or changed its password meanwhile.
    #[expect(clippy::too_many_arguments, reason = "all that a login knows, for one caller")]
    pub async fn start(
        &self,
        ring: &KeyRing,
        token: &config::Token,
        account: &Account,
        log_head: u64,
        client: IpAddr,
        user_agent: &str,
        replaces: &[&Verified],
    ) -> Result<Issued, StoreError> {
        let now = self.clock.unix_seconds();
        let expires = latest_end(token, now, now);
        let session = SessionId::random();
        let issued = issue(ring, account, Terms { session, auth_time: now, seq: log_head, now, expires })?;
        let mut writes = Vec::with_capacity(3);
        for (old, session) in replaces.iter().filter_map(|old| Some((old, old.session.clone()?))) {
            let expires = self.session_end(token, &session, old.ends, now).await?;
            writes.push(Write::RemoveSession(session.clone()));
            writes.push(Write::Revoke { what: Revocation::Session { session }, at: now, expires });
        }
        let client = Client { address: client, user_agent };
        writes.push(Write::PutSession(record(&issued, &account.id, now, now, client)));
        writes.push(end_oldest(token, &account.id, &issued.session, now));
        let applied = self.store.apply(writes).await?;
        self.record_ended(&applied, &account.id, replaces);
        if self.revocations.is_ready() {
            let as_of = stand_in(&account.id, Some(&issued.session), log_head, now);
            if self.revocations.standing(&as_of) == Standing::Revoked {
                self.store.apply(vec![Write::RemoveSession(issued.session)]).await?;
                return Err(StoreError::Conflict);
            }
        }
        Ok(issued)
    }

    /// Logout: ends the session of this token everywhere, stored or not; a foreign token ends all of the account's
    /// tokens without a session, and the session into which it was renewed a moment ago. `presented`: the token's text,
    /// for a centre.
    pub async fn end(
        &self,
        token: &config::Token,
        verified: &Verified,
        presented: Option<&str>,
    ) -> Result<(), StoreError> {
        let now = self.clock.unix_seconds();
        if let Some(centre) = &self.centre {
            return self.end_there(&**centre, verified, presented, now).await;
        }
        let mut writes = Vec::new();
        if let Some(session) = &verified.session {
            let expires = self.session_end(token, session, verified.ends, now).await?;
            writes.push(Write::RemoveSession(session.clone()));
            writes.push(Write::Revoke { what: Revocation::Session { session: session.clone() }, at: now, expires });
        } else {
            let what = Revocation::AccountWithoutSession { account: verified.account.clone() };
            // A foreign clock may be ahead of ours.
            let at = now.max(verified.issued_at);
            writes.push(Write::Revoke { what, at, expires: horizon_end(token, at) });
            for (session, expires) in self.memory.made_from(verified) {
                writes.push(Write::RemoveSession(session.clone()));
                let expires = session_end(token, expires, now);
                writes.push(Write::Revoke { what: Revocation::Session { session }, at: now, expires });
            }
        }
        self.store.apply(writes).await?;
        self.telemetry.audit.record(&Event {
            event: "logout",
            outcome: "ok",
            username: &verified.principal.username,
            id: verified.account.as_str(),
            sid: verified.session.as_ref().map_or("", SessionId::as_str),
            ..Event::default()
        });
        Ok(())
    }

    /// The centre ends it; here it is over at once, before the feed tells.
    async fn end_there(
        &self,
        centre: &dyn Centre,
        verified: &Verified,
        presented: Option<&str>,
        now: u64,
    ) -> Result<(), StoreError> {
        // Without the text there is nothing to ask for, and nobody is told that he is logged out.
        let ended = match presented {
            Some(presented) => centre.end(presented).await,
            None => Err(Unanswered(String::from("the token could not be shown to it"))),
        };
        ended.map_err(|error| StoreError::Unavailable {
            problem: String::from("the centre did not end the session"),
            source: Some(Box::new(error)),
        })?;
        let what = match &verified.session {
            Some(session) => Revocation::Session { session: session.clone() },
            None => Revocation::AccountWithoutSession { account: verified.account.clone() },
        };
        let at = now.max(verified.issued_at);
        let entry = LogEntry { number: 0, what, at, expires: verified.ends.saturating_add(SLACK) };
        self.revocations.extend(&[entry], self.revocations.head());
        Ok(())
    }

    /// Ends one session by id. `Ok(false)`: there was none.
    pub async fn revoke(&self, token: &config::Token, session: &SessionId) -> Result<bool, StoreError> {
        let Some(stored) = self.store.session(session).await? else { return Ok(false) };
        let now = self.clock.unix_seconds();
        let expires = session_end(token, stored.expires, now);
        let what = Revocation::Session { session: session.clone() };
        self.store.apply(vec![Write::RemoveSession(session.clone()), Write::Revoke { what, at: now, expires }]).await?;
        self.record_revocation(stored.account.as_str(), session.as_str(), "one session");
        Ok(true)
    }

    /// Ends every session and token of one account; its `__v` stays (`accounts` raises it for "sign out everywhere").
    pub async fn revoke_account(&self, token: &config::Token, account: &AccountId) -> Result<(), StoreError> {
        let now = self.clock.unix_seconds();
        let what = Revocation::Account { account: account.clone() };
        let revoke = Write::Revoke { what, at: now, expires: horizon_end(token, now) };
        self.store.apply(vec![Write::RemoveSessionsOf(account.clone()), revoke]).await?;
        self.record_revocation(account.as_str(), "", "every session of the account");
        Ok(())
    }

    /// Ends every session of everybody.
    pub async fn revoke_all(&self, token: &config::Token) -> Result<(), StoreError> {
        let now = self.clock.unix_seconds();
        let revoke = Write::Revoke { what: Revocation::All, at: now, expires: horizon_end(token, now) };
        self.store.apply(vec![Write::RemoveAllSessions, revoke]).await?;
        self.record_revocation("", "", "every session of everybody");
        Ok(())
    }

    /// The sessions that are stored, of one account or all, oldest first.
    pub async fn list(&self, account: Option<&AccountId>) -> Result<Vec<Session>, StoreError> {
        self.store.sessions(account).await
    }

    /// A token for a script (`token issue`), with a session of its own. `lifetime`: `token.lifetime` unless given; never
    /// longer than a token can be accepted.
    pub async fn issue_for_script(
        &self,
        ring: &KeyRing,
        token: &config::Token,
        account: &Account,
        log_head: u64,
        lifetime: Option<Duration>,
    ) -> Result<Issued, StoreError> {
        let now = self.clock.unix_seconds();
        let lifetime = lifetime.unwrap_or(token.lifetime).min(token.horizon());
        let mut expires = now.saturating_add(lifetime.as_secs());
        if !token.max_lifetime.is_zero() {
            expires = expires.min(now.saturating_add(token.max_lifetime.as_secs()));
        }
        let session = SessionId::random();
        let issued = issue(ring, account, Terms { session, auth_time: now, seq: log_head, now, expires })?;
        let session = Session {
            id: issued.session.clone(),
            account: account.id.clone(),
            created: now,
            renewed: now,
            expires,
            address: String::new(),
            user_agent: String::from("doorward token issue"),
        };
        let end_oldest = end_oldest(token, &account.id, &issued.session, now);
        let applied = self.store.apply(vec![Write::PutSession(session), end_oldest]).await?;
        self.record_ended(&applied, &account.id, &[]);
        Ok(issued)
    }

    /// Tells of the sessions that ended because the account had too many. `replaced` ended for another reason.
    pub(super) fn record_ended(&self, applied: &Applied, account: &AccountId, replaced: &[&Verified]) {
        for entry in &applied.entries {
            if let Revocation::Session { session } = &entry.what
                && replaced.iter().all(|old| old.session.as_ref() != Some(session))
            {
                self.record_revocation(account.as_str(), session.as_str(), "the oldest of too many sessions");
            }
        }
    }

    /// Until when the log has to know that a session is over.
    async fn session_end(
        &self,
        token: &config::Token,
        session: &SessionId,
        expires: u64,
        now: u64,
    ) -> Result<u64, StoreError> {
        let stored = self.store.session(session).await?.map_or(0, |stored| stored.expires);
        Ok(session_end(token, expires.max(stored), now))
    }

    fn record_revocation(&self, id: &str, sid: &str, detail: &str) {
        self.telemetry.audit.record(&Event { event: "revocation", outcome: "ok", id, sid, detail, ..Event::default() });
    }
}

/// When a token issued now ends at the latest, Unix seconds.
pub(super) fn latest_end(token: &config::Token, auth_time: u64, now: u64) -> u64 {
    let end = now.saturating_add(token.lifetime.as_secs());
    if token.max_lifetime.is_zero() { end } else { end.min(auth_time.saturating_add(token.max_lifetime.as_secs())) }
}

/// What goes with every new session, so that an account has [`MAX_SESSIONS`] at most.
pub(super) fn end_oldest(token: &config::Token, account: &AccountId, new: &SessionId, now: u64) -> Write {
    Write::EndOldestSessions {
        account: account.clone(),
        spare: new.clone(),
        keep: MAX_SESSIONS,
        at: now,
        expires: session_end(token, 0, now),
    }
}

/// Until when an entry is needed that ends tokens of unknown end.
fn horizon_end(token: &config::Token, at: u64) -> u64 {
    at.saturating_add(token.horizon().as_secs()).saturating_add(SLACK)
}

/// Until when an entry is needed that ends a session: its last known token, or one that is being issued right now.
fn session_end(token: &config::Token, expires: u64, now: u64) -> u64 {
    expires.max(now.saturating_add(token.lifetime.as_secs())).saturating_add(SLACK)
}

/// What the log would be asked about a token issued at that number. A reading of an account that is nobody's token has
/// no session; a foreign token's time does not matter to it.
pub(super) fn stand_in(account: &AccountId, session: Option<&SessionId>, seq: u64, issued_at: u64) -> Verified {
    Verified {
        principal: Arc::new(Principal {
            id: String::new(),
            username: String::new(),
            groups: Vec::new(),
            email: String::new(),
            display_name: String::new(),
        }),
        account: account.clone(),
        session: session.cloned(),
        account_key: key_of(account.as_str()),
        session_key: session.map(|session| key_of(session.as_str())),
        seq: Some(seq),
        version: None,
        auth_time: issued_at,
        issued_at,
        ends: u64::MAX,
        expires: u64::MAX,
    }
}

pub(super) fn principal(account: &Account) -> Principal {
    Principal {
        id: account.id.to_string(),
        username: account.username.to_string(),
        groups: account.groups.clone(),
        email: account.email.clone(),
        display_name: account.display_name.clone(),
    }
}

pub(super) fn record(issued: &Issued, account: &AccountId, created: u64, renewed: u64, client: Client<'_>) -> Session {
    Session {
        id: issued.session.clone(),
        account: account.clone(),
        created,
        renewed,
        expires: issued.expires,
        address: client.address.to_string(),
        user_agent: client.user_agent.chars().take(256).collect(),
    }
}

pub(super) fn issue(ring: &KeyRing, account: &Account, terms: Terms) -> Result<Issued, StoreError> {
    let Terms { session, auth_time, seq, now, expires } = terms;
    let claims = Claims {
        iss: ring.issuer().to_owned(),
        sub: account.id.to_string(),
        id: account.id.to_string(),
        username: account.username.to_string(),
        groups: account.groups.clone(),
        email: account.email.clone(),
        name: account.display_name.clone(),
        sid: session.to_string(),
        version: account.version,
        auth_time,
        seq,
        iat: now,
        exp: expires,
    };
    let token = ring.sign(&claims).map_err(|error| StoreError::Unavailable {
        problem: String::from("no token can be signed"),
        source: Some(error.into()),
    })?;
    if token.len() > MAX_COOKIE_TOKEN_BYTES {
        return Err(StoreError::TooLarge { size: token.len(), limit: MAX_COOKIE_TOKEN_BYTES });
    }
    Ok(Issued { token: Secret::new(token), max_age: expires.saturating_sub(now), expires, session })
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
