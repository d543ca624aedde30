//! Sessions: started at login, renewed in use, ended at once.
//!
//! - A renewal makes every check of a login again, keeps `sid` and `auth_time`, and never lasts beyond `max_lifetime`.
//! - The log's number is read before the account: a change that comes between the two makes the new token read again,
//!   a revocation ends it.
//! - A renewal writes a session only where it still is, and looks at the log once more before the token goes out: what
//!   was ended meanwhile stays ended.
//! - One token is renewed once, however many requests carry it and on however many threads.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::flight::Flights;
use super::keys::KeyRing;
use super::revocation::{Revocations, key_of};
use super::token::Claims;
use super::{Identified, Source, Standing, Verified};
use crate::clock::Clock;
use crate::config;
use crate::policy::{Caller, Principal, Unidentified};
use crate::secret::Secret;
use crate::store::{Account, AccountId, Revocation, Session, SessionId, Store, StoreError, Write};
use crate::telemetry::Telemetry;
use crate::telemetry::audit::Event;

/// The longest token that browsers keep as a cookie: they take 4,096 bytes with the name and the equals sign
/// (RFC 6265bis section 5.6), of which the name may have 64.
pub const MAX_COOKIE_TOKEN_BYTES: usize = 4096 - 65;

/// How long the outcome of a renewal answers requests that still carry the old token, in milliseconds.
const REMEMBER_RENEWAL: u64 = 30_000;
/// The same where the new token could not be written down, or the store could not be reached: until the next try.
const RETRY_RENEWAL: u64 = 5_000;
/// The same for accounts that changed and could not be read, and for those that are not there any more.
const RETRY_ACCOUNT: u64 = 1_000;
/// How long a reading of an account serves bearer tokens, unless the log says that it changed.
const REMEMBER_ACCOUNT: u64 = 600_000;
/// Renewals, readings and outages that are remembered at a time.
const REMEMBERED: usize = 8192;
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
pub struct Sessions {
    store: Arc<dyn Store>,
    revocations: Arc<Revocations>,
    clock: Clock,
    telemetry: Telemetry,
    renewals: Flights<RenewalKey, Renewal>,
    readings: Flights<u128, Reading>,
    /// Changed accounts that can't be read, by their key: the log's number, and when that was first noticed.
    unread: Mutex<HashMap<u128, (u64, u64)>>,
}

/// What makes two tokens the same for a renewal.
#[derive(Clone, PartialEq, Eq, Hash)]
struct RenewalKey {
    ring: u64,
    account: u128,
    session: Option<u128>,
    seq: Option<u64>,
    issued_at: u64,
    expires: u64,
}

/// What came of one renewal.
#[derive(Clone)]
struct Renewal {
    /// Unix milliseconds.
    made: u64,
    outcome: Outcome,
}

#[derive(Clone)]
enum Outcome {
    /// The account was read and may go on. `as_of` stands for the new token before the log.
    Fresh {
        principal: Arc<Principal>,
        issued: Option<Issued>,
        as_of: Arc<Verified>,
    },
    Over(Unidentified),
    Unreachable,
}

/// An account as it was read for a bearer token.
#[derive(Clone)]
struct Reading {
    /// Unix milliseconds.
    made: u64,
    /// `Err`: the store could not be reached.
    account: Result<Option<AccountView>, ()>,
    /// Stands for a token issued when this was read.
    as_of: Arc<Verified>,
}

#[derive(Clone)]
struct AccountView {
    principal: Arc<Principal>,
    disabled: bool,
    version: u64,
}

/// Who is at the other end.
#[derive(Clone, Copy)]
struct Client<'a> {
    address: IpAddr,
    user_agent: &'a str,
}

impl Sessions {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, revocations: Arc<Revocations>, clock: Clock, telemetry: Telemetry) -> Self {
        Self {
            store,
            revocations,
            clock,
            telemetry,
            renewals: Flights::new(REMEMBERED),
            readings: Flights::new(REMEMBERED),
            unread: Mutex::new(HashMap::new()),
        }
    }

    /// A login succeeded: a new session, always. `log_head` was read before the account. `replaces`: the session whose
    /// cookie came with the login; it ends.
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
        replaces: Option<&Verified>,
    ) -> Result<Issued, StoreError> {
        let now = self.clock.unix_seconds();
        let expires = latest_end(token, now, now);
        let issued = issue(ring, account, SessionId::random(), now, log_head, now, expires)?;
        let mut writes = Vec::with_capacity(3);
        if let Some((old, session)) = replaces.and_then(|old| Some((old, old.session.clone()?))) {
            let expires = self.session_end(token, &session, old.expires, now).await?;
            writes.push(Write::RemoveSession(session.clone()));
            writes.push(Write::Revoke { what: Revocation::Session { session }, at: now, expires });
        }
        let client = Client { address: client, user_agent };
        writes.push(Write::PutSession(record(&issued, &account.id, now, now, client)));
        self.store.apply(writes).await?;
        if self.revocations.is_ready() {
            let as_of = stand_in(&account.id, Some(&issued.session), log_head, now);
            if self.revocations.standing(&as_of) == Standing::Revoked {
                self.store.apply(vec![Write::RemoveSession(issued.session)]).await?;
                return Err(StoreError::Conflict);
            }
        }
        Ok(issued)
    }

    /// Whether [`Sessions::refresh`] has anything to do: a cookie with less than `refresh_below` left that a new one
    /// would outlast, or a changed account. `now`: Unix seconds.
    #[must_use]
    pub fn needs_refresh(&self, token: &config::Token, identified: &Identified, now: u64) -> bool {
        let Some((verified, source)) = &identified.credential else { return false };
        if matches!(identified.standing, Standing::Changed { .. }) {
            return true;
        }
        // Near `max_lifetime` a new token would end when this one does, and where `refresh_below` is not shorter than
        // `lifetime` every request would renew: neither is worth a store read for each request.
        let least_gain = (token.lifetime.as_secs() / 20).clamp(1, 60);
        *source == Source::Cookie
            && verified.expires.saturating_sub(now) < token.refresh_below.as_secs()
            && latest_end(token, verified.auth_time, now) >= verified.expires.saturating_add(least_gain)
    }

    /// Reads the account again (once for many requests at a time, on all threads), makes every check of a login and,
    /// where the token came as a cookie, issues a new one for the same session.
    pub async fn refresh(
        &self,
        ring: &KeyRing,
        token: &config::Token,
        store_limits: &config::Store,
        identified: &Identified,
        client: IpAddr,
        user_agent: &str,
    ) -> Refreshed {
        let since = match identified.standing {
            Standing::Changed { since } => Some(since),
            Standing::Current | Standing::Revoked => None,
        };
        let unchanged = || Refreshed { caller: identified.caller.clone(), issued: None, unavailable: false };
        match (&identified.credential, since) {
            (None, _) | (Some((_, Source::Bearer)), None) => unchanged(),
            (Some((old, Source::Bearer)), Some(since)) => {
                let reading = self.reading(old, store_limits).await;
                let Ok(account) = &reading.account else {
                    return self.unreachable(unchanged(), old, Some(since), store_limits);
                };
                self.read_again(old);
                let caller = match account {
                    None => Caller::Anonymous(Unidentified::UnknownAccount),
                    Some(view) if view.disabled => Caller::Anonymous(Unidentified::DisabledAccount),
                    Some(view) if old.version.is_some_and(|version| version != view.version) => {
                        Caller::Anonymous(Unidentified::RevokedToken)
                    }
                    // A foreign token grants what it says, and bearer tokens are not renewed.
                    Some(_) if old.session.is_none() => identified.caller.clone(),
                    Some(view) => Caller::Person(Arc::clone(&view.principal)),
                };
                Refreshed { caller, issued: None, unavailable: false }
            }
            (Some((old, Source::Cookie)), _) => {
                let client = Client { address: client, user_agent };
                match self.renewal(ring, token, store_limits, old, since.is_some(), client).await.outcome {
                    Outcome::Fresh { principal, issued, .. } => {
                        self.read_again(old);
                        Refreshed { caller: Caller::Person(principal), issued, unavailable: false }
                    }
                    Outcome::Over(why) => {
                        self.read_again(old);
                        Refreshed { caller: Caller::Anonymous(why), issued: None, unavailable: false }
                    }
                    Outcome::Unreachable => self.unreachable(unchanged(), old, since, store_limits),
                }
            }
        }
    }

    /// Logout: ends the session of this token everywhere, stored or not; a foreign token ends all of the account's
    /// tokens without a session, and the session into which it was renewed a moment ago.
    pub async fn end(&self, token: &config::Token, verified: &Verified) -> Result<(), StoreError> {
        let now = self.clock.unix_seconds();
        let mut writes = Vec::new();
        if let Some(session) = &verified.session {
            let expires = self.session_end(token, session, verified.expires, now).await?;
            writes.push(Write::RemoveSession(session.clone()));
            writes.push(Write::Revoke { what: Revocation::Session { session: session.clone() }, at: now, expires });
        } else {
            let what = Revocation::AccountWithoutSession { account: verified.account.clone() };
            // A foreign clock may be ahead of ours.
            let at = now.max(verified.issued_at);
            writes.push(Write::Revoke { what, at, expires: horizon_end(token, at) });
            for renewal in self.renewals.peek(|key| {
                key.account == verified.account_key && key.session.is_none() && key.issued_at == verified.issued_at
            }) {
                if let Outcome::Fresh { issued: Some(Issued { session, expires, .. }), .. } = renewal.outcome {
                    writes.push(Write::RemoveSession(session.clone()));
                    let expires = expires.saturating_add(SLACK);
                    writes.push(Write::Revoke { what: Revocation::Session { session }, at: now, expires });
                }
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
        let issued = issue(ring, account, SessionId::random(), now, log_head, now, expires)?;
        let session = Session {
            id: issued.session.clone(),
            account: account.id.clone(),
            created: now,
            renewed: now,
            expires,
            address: String::new(),
            user_agent: String::from("doorward token issue"),
        };
        self.store.apply(vec![Write::PutSession(session)]).await?;
        Ok(issued)
    }

    /// The renewal of a token: one that is remembered, or a new one.
    async fn renewal(
        &self,
        ring: &KeyRing,
        token: &config::Token,
        limits: &config::Store,
        old: &Verified,
        changed: bool,
        client: Client<'_>,
    ) -> Renewal {
        let key = RenewalKey {
            ring: ring.generation(),
            account: old.account_key,
            session: old.session_key,
            seq: old.seq,
            issued_at: old.issued_at,
            expires: old.expires,
        };
        let good = |renewal: &Renewal| {
            let lasts = match &renewal.outcome {
                Outcome::Fresh { as_of, .. } if self.revocations.standing(as_of) != Standing::Current => return false,
                Outcome::Fresh { issued: Some(_), .. } => REMEMBER_RENEWAL,
                Outcome::Unreachable if !changed => RETRY_RENEWAL,
                Outcome::Fresh { issued: None, .. } => RETRY_RENEWAL,
                Outcome::Over(_) | Outcome::Unreachable => RETRY_ACCOUNT,
            };
            self.clock.unix_millis() < renewal.made.saturating_add(lasts)
        };
        let work = async || {
            let outcome = self.renew(ring, token, limits, old, client).await;
            self.record_renewal(old, &outcome, client.address);
            Renewal { made: self.clock.unix_millis(), outcome }
        };
        self.renewals.get(key, good, work).await
    }

    /// Every check of a login, then a new token for the same session.
    async fn renew(
        &self,
        ring: &KeyRing,
        token: &config::Token,
        limits: &config::Store,
        old: &Verified,
        client: Client<'_>,
    ) -> Outcome {
        let (log_head, account) = match tokio::time::timeout(limits.timeout, self.read(&old.account)).await {
            Ok(Ok((log_head, Some(account)))) => (log_head, account),
            Ok(Ok((_, None))) => return Outcome::Over(Unidentified::UnknownAccount),
            Ok(Err(_)) | Err(_) => return Outcome::Unreachable,
        };
        let now = self.clock.unix_seconds();
        let expires = latest_end(token, old.auth_time, now);
        if account.disabled {
            return Outcome::Over(Unidentified::DisabledAccount);
        } else if old.version.is_some_and(|version| version != account.version) {
            return Outcome::Over(Unidentified::RevokedToken);
        } else if expires <= now {
            return Outcome::Over(Unidentified::ExpiredToken);
        }
        let is_new = old.session.is_none();
        let session = old.session.clone().unwrap_or_else(SessionId::random);
        let as_of = Arc::new(stand_in(&account.id, Some(&session), log_head, now));
        let principal = Arc::new(principal(&account));
        let fresh = |issued| Outcome::Fresh { principal, issued, as_of: Arc::clone(&as_of) };

        let issued = match issue(ring, &account, session.clone(), old.auth_time, log_head, now, expires) {
            Ok(issued) => issued,
            Err(error) => {
                tracing::warn!(target: "doorward::auth", id = %account.id, %error, "a token can't be renewed");
                return fresh(None);
            }
        };
        let record = record(&issued, &account.id, old.auth_time, now, client);
        // What a renewal touches must be there; only a foreign token's session is a new one.
        let write = if is_new { Write::PutSession(record) } else { Write::TouchSession(record) };
        let written = tokio::time::timeout(limits.timeout, self.store.apply(vec![write])).await;
        if self.revocations.standing(old) == Standing::Revoked || self.revocations.standing(&as_of) == Standing::Revoked
        {
            if is_new {
                // Nobody has seen that session: it needs no entry in the log.
                let _ =
                    tokio::time::timeout(limits.timeout, self.store.apply(vec![Write::RemoveSession(session)])).await;
            }
            return Outcome::Over(Unidentified::RevokedToken);
        }
        fresh(matches!(written, Ok(Ok(_))).then_some(issued))
    }

    /// The account as it is now, and the log's number from just before.
    async fn read(&self, id: &AccountId) -> Result<(u64, Option<Account>), StoreError> {
        let log_head = self.store.log_head().await?;
        Ok((log_head, self.store.account(id).await?))
    }

    /// The account behind a bearer token, read again only after the log said that it changed.
    async fn reading(&self, old: &Verified, limits: &config::Store) -> Reading {
        let good = |reading: &Reading| {
            let lasts = match &reading.account {
                Ok(Some(_)) => REMEMBER_ACCOUNT,
                Ok(None) | Err(()) => RETRY_ACCOUNT,
            };
            self.clock.unix_millis() < reading.made.saturating_add(lasts)
                && (reading.account.is_err() || self.revocations.standing(&reading.as_of) == Standing::Current)
        };
        let work = async || {
            let read = tokio::time::timeout(limits.timeout, self.read(&old.account)).await;
            let (log_head, account) = match read {
                Ok(Ok((log_head, account))) => (log_head, Ok(account)),
                Ok(Err(_)) | Err(_) => (0, Err(())),
            };
            let view = |account: Account| AccountView {
                principal: Arc::new(principal(&account)),
                disabled: account.disabled,
                version: account.version,
            };
            Reading {
                made: self.clock.unix_millis(),
                account: account.map(|account| account.map(view)),
                as_of: Arc::new(stand_in(&old.account, None, log_head, u64::MAX)),
            }
        };
        self.readings.get(old.account_key, good, work).await
    }

    /// The old token serves on, with old groups for as long as `max_staleness` allows.
    fn unreachable(
        &self,
        unchanged: Refreshed,
        old: &Verified,
        since: Option<u64>,
        limits: &config::Store,
    ) -> Refreshed {
        let Some(since) = since else { return unchanged };
        let now = self.clock.unix_millis();
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        let first = match unread.get(&old.account_key) {
            Some((number, first)) if *number == since => Some(*first),
            // More accounts changed than can be remembered: then nothing is known of how old this one's groups are.
            None if unread.len() >= REMEMBERED => None,
            _ => {
                unread.insert(old.account_key, (since, now));
                Some(now)
            }
        };
        let staleness = u64::try_from(limits.max_staleness.as_millis()).unwrap_or(u64::MAX);
        let unavailable = first.is_none_or(|first| now.saturating_sub(first) >= staleness);
        Refreshed { unavailable, ..unchanged }
    }

    fn read_again(&self, old: &Verified) {
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        if !unread.is_empty() {
            unread.remove(&old.account_key);
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

    fn record_renewal(&self, old: &Verified, outcome: &Outcome, client: IpAddr) {
        let (word, sid) = match outcome {
            Outcome::Fresh { issued: Some(issued), .. } => ("ok", issued.session.as_str()),
            Outcome::Fresh { issued: None, .. } => ("not_written", ""),
            Outcome::Over(why) => (why.code(), ""),
            Outcome::Unreachable => ("unavailable", ""),
        };
        self.telemetry.metrics.renewal(word);
        if matches!(outcome, Outcome::Unreachable) {
            return; // nothing was decided
        }
        let sid = if sid.is_empty() { old.session.as_ref().map_or("", SessionId::as_str) } else { sid };
        self.telemetry.audit.record(&Event {
            event: "renewal",
            outcome: word,
            username: &old.principal.username,
            id: old.account.as_str(),
            sid,
            client: &client.to_string(),
            ..Event::default()
        });
    }

    fn record_revocation(&self, id: &str, sid: &str, detail: &str) {
        self.telemetry.audit.record(&Event { event: "revocation", outcome: "ok", id, sid, detail, ..Event::default() });
    }
}

/// When a token issued now ends at the latest, Unix seconds.
fn latest_end(token: &config::Token, auth_time: u64, now: u64) -> u64 {
    let end = now.saturating_add(token.lifetime.as_secs());
    if token.max_lifetime.is_zero() { end } else { end.min(auth_time.saturating_add(token.max_lifetime.as_secs())) }
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
fn stand_in(account: &AccountId, session: Option<&SessionId>, seq: u64, issued_at: u64) -> Verified {
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
        expires: u64::MAX,
    }
}

fn principal(account: &Account) -> Principal {
    Principal {
        id: account.id.to_string(),
        username: account.username.to_string(),
        groups: account.groups.clone(),
        email: account.email.clone(),
        display_name: account.display_name.clone(),
    }
}

fn record(issued: &Issued, account: &AccountId, created: u64, renewed: u64, client: Client<'_>) -> Session {
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

fn issue(
    ring: &KeyRing,
    account: &Account,
    session: SessionId,
    auth_time: u64,
    seq: u64,
    now: u64,
    expires: u64,
) -> Result<Issued, StoreError> {
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
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::auth::testing::{DAY, Fixture, NOW, SECRET, account, limits};
    use crate::store::LogFollower as _;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    async fn refresh(fixture: &Fixture, identified: &Identified) -> Refreshed {
        let Fixture { ring, token_config, sessions, .. } = fixture;
        sessions.refresh(ring, token_config, &limits(), identified, CLIENT, "browser").await
    }

    async fn start(fixture: &Fixture, name: &str, replaces: Option<&Verified>) -> (Issued, Arc<Verified>) {
        let Fixture { ring, token_config, sessions, clock, store, .. } = fixture;
        let head = store.log_head().await.unwrap();
        let account = account(name, &["staff"]);
        let issued = sessions.start(ring, token_config, &account, head, CLIENT, "browser", replaces).await.unwrap();
        let verified = ring.verify(issued.token.expose(), clock.unix_seconds()).unwrap();
        (issued, Arc::new(verified))
    }

    fn cookie(fixture: &Fixture, verified: &Arc<Verified>) -> Identified {
        fixture.identified(Arc::clone(verified), Source::Cookie)
    }

    fn groups(refreshed: &Refreshed) -> Vec<String> {
        match &refreshed.caller {
            Caller::Person(person) => person.groups.clone(),
            Caller::Anonymous(why) => vec![why.code().to_owned()],
        }
    }

    /// A token such as a backend that shares the secret makes.
    fn foreign(fixture: &Fixture, name: &str) -> Arc<Verified> {
        let claims = serde_json::json!({ "_id": format!("id-{name}"), "username": name, "iat": NOW - 5 * DAY, "exp": NOW + DAY });
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
        Arc::new(fixture.ring.verify(&token, NOW).unwrap())
    }

    async fn change(fixture: &Fixture, name: &str, groups: &[&str]) {
        fixture.store.put(account(name, groups));
        let what = Revocation::Changed { account: format!("id-{name}").parse().unwrap() };
        let revoke = Write::Revoke { what, at: fixture.clock.unix_seconds(), expires: NOW + 99 * DAY };
        fixture.store.apply(vec![revoke]).await.unwrap();
    }

    /// Lets other tasks of this thread run until the store was read that often.
    async fn until_read(fixture: &Fixture, times: usize) {
        while fixture.store.reads() < times {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_cookie_is_renewed_below_half_of_its_life_and_a_bearer_token_never() {
        let fixture = Fixture::new();
        let needs = |issued_at, source| {
            let identified = fixture.identified(fixture.verified("kim", issued_at), source);
            fixture.sessions.needs_refresh(&fixture.token_config, &identified, NOW)
        };
        assert!(!needs(NOW - 34 * DAY / 10, Source::Cookie), "3.6 days are left");
        assert!(!needs(NOW - 35 * DAY / 10, Source::Cookie), "exactly half is left");
        assert!(needs(NOW - 36 * DAY / 10, Source::Cookie), "3.4 days are left");
        assert!(!needs(NOW - 36 * DAY / 10, Source::Bearer));
        let nobody = Identified {
            caller: Caller::Anonymous(Unidentified::NoCredential),
            credential: None,
            standing: Standing::Current,
            stale_cookie: false,
            own_bearer: false,
        };
        assert!(!fixture.sessions.needs_refresh(&fixture.token_config, &nobody, NOW));
    }

    #[test]
    fn where_nothing_is_gained_nothing_is_renewed() {
        let mut fixture = Fixture::new();
        let mut claims = crate::auth::testing::claims("kim", NOW - 2 * DAY);
        claims.auth_time = NOW - 29 * DAY;
        let verified = Arc::new(fixture.ring.verify(&fixture.ring.sign(&claims).unwrap(), NOW).unwrap());
        assert_eq!(verified.expires, NOW + DAY, "the end of `max_lifetime`");
        let identified = cookie(&fixture, &verified);
        assert!(!fixture.sessions.needs_refresh(&fixture.token_config, &identified, NOW));
        fixture.token_config.refresh_below = Duration::from_secs(90 * DAY);
        let fresh = fixture.verified("kim", NOW - 1);
        let identified = cookie(&fixture, &fresh);
        assert!(!fixture.sessions.needs_refresh(&fixture.token_config, &identified, NOW), "not at every request");
    }

    #[tokio::test]
    async fn a_renewal_is_the_same_session_with_the_present_groups() {
        let fixture = Fixture::new();
        let (first, old) = start(&fixture, "kim", None).await;
        fixture.clock.advance(Duration::from_secs(4 * DAY));
        fixture.store.put(account("kim", &["admin"]));
        let refreshed = refresh(&fixture, &cookie(&fixture, &old)).await;
        assert_eq!(groups(&refreshed), ["admin"]);
        let issued = refreshed.issued.unwrap();
        let new = fixture.ring.verify(issued.token.expose(), NOW + 4 * DAY).unwrap();
        assert_eq!((new.session.as_ref(), new.auth_time), (Some(&first.session), NOW));
        assert_eq!((new.issued_at, new.expires, issued.max_age), (NOW + 4 * DAY, NOW + 11 * DAY, 7 * DAY));
        assert_eq!(new.principal.email, "kim@example.com");
        let [session] = &fixture.store.stored()[..] else { panic!("one session") };
        assert_eq!((session.created, session.renewed, session.expires), (NOW, NOW + 4 * DAY, NOW + 11 * DAY));
        assert_eq!((&*session.address, &*session.user_agent), ("127.0.0.1", "browser"));
    }

    #[tokio::test]
    async fn daily_use_ends_at_max_lifetime() {
        let fixture = Fixture::new();
        let (_, mut verified) = start(&fixture, "kim", None).await;
        for _ in 0..40 {
            fixture.clock.advance(Duration::from_secs(DAY));
            let now = fixture.clock.unix_seconds();
            if now >= verified.expires {
                break;
            }
            let identified = cookie(&fixture, &verified);
            if fixture.sessions.needs_refresh(&fixture.token_config, &identified, now) {
                let issued = refresh(&fixture, &identified).await.issued.unwrap();
                verified = Arc::new(fixture.ring.verify(issued.token.expose(), now).unwrap());
            }
        }
        assert_eq!(verified.expires, NOW + 30 * DAY);
        assert_eq!(fixture.clock.unix_seconds(), NOW + 30 * DAY);
    }

    #[tokio::test]
    async fn every_check_of_a_login_is_made_again() {
        for (change, why) in [
            (0, Unidentified::UnknownAccount),
            (1, Unidentified::DisabledAccount),
            (2, Unidentified::RevokedToken),
            (3, Unidentified::ExpiredToken),
        ] {
            let fixture = Fixture::new();
            let (_, old) = start(&fixture, "kim", None).await;
            let mut kim = account("kim", &["staff"]);
            match change {
                0 => fixture.store.remove(&kim.id),
                1 => kim.disabled = true,
                2 => kim.version += 1,
                _ => fixture.clock.advance(Duration::from_secs(30 * DAY)),
            }
            if change != 0 {
                fixture.store.put(kim);
            }
            for source in [Source::Cookie, Source::Bearer] {
                let mut identified = fixture.identified(Arc::clone(&old), source);
                identified.standing = Standing::Changed { since: 9 };
                let refreshed = refresh(&fixture, &identified).await;
                if source == Source::Cookie || change != 3 {
                    assert_eq!(groups(&refreshed), [why.code()]);
                }
                assert!(refreshed.issued.is_none());
            }
        }
    }

    #[test]
    fn a_hundred_requests_on_four_threads_read_the_account_once() {
        let fixture = Arc::new(Fixture::new());
        let old = fixture.verified("kim", NOW - 4 * DAY);
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let held = runtime().block_on(fixture.store.hold.write());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (fixture, old) = (Arc::clone(&fixture), Arc::clone(&old));
                std::thread::spawn(move || {
                    let local = tokio::task::LocalSet::new();
                    local.block_on(&runtime(), async {
                        let tasks: Vec<_> = (0..25)
                            .map(|_| {
                                let (fixture, old) = (Arc::clone(&fixture), Arc::clone(&old));
                                tokio::task::spawn_local(async move {
                                    refresh(&fixture, &cookie(&fixture, &old)).await.issued.unwrap()
                                })
                            })
                            .collect();
                        let mut tokens = Vec::new();
                        for task in tasks {
                            tokens.push(task.await.unwrap().token.expose().clone());
                        }
                        tokens
                    })
                })
            })
            .collect();
        while fixture.store.reads() == 0 {
            std::thread::yield_now();
        }
        drop(held);
        let mut tokens: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(tokens.len(), 100);
        tokens.dedup();
        assert_eq!(tokens.len(), 1, "all get the same token");
        assert_eq!(fixture.store.reads(), 1);
    }

    #[tokio::test]
    async fn a_straggler_gets_the_same_token_for_a_while() {
        let fixture = Fixture::new();
        let (_, old) = start(&fixture, "kim", None).await;
        fixture.clock.advance(Duration::from_secs(4 * DAY));
        let first = refresh(&fixture, &cookie(&fixture, &old)).await.issued.unwrap();
        fixture.clock.advance(Duration::from_secs(29));
        let second = refresh(&fixture, &cookie(&fixture, &old)).await.issued.unwrap();
        assert_eq!(first.token.expose(), second.token.expose());
        assert_eq!(fixture.store.reads(), 1);
        fixture.clock.advance(Duration::from_secs(1));
        let third = refresh(&fixture, &cookie(&fixture, &old)).await.issued.unwrap();
        assert_ne!(first.token.expose(), third.token.expose());
        // And none at all once the groups have changed, or the session has ended.
        change(&fixture, "kim", &["admin"]).await;
        assert_eq!(groups(&refresh(&fixture, &cookie(&fixture, &old)).await), ["admin"]);
        fixture.sessions.end(&fixture.token_config, &old).await.unwrap();
        let late = refresh(&fixture, &cookie(&fixture, &old)).await;
        assert_eq!((groups(&late), late.issued.is_none()), (vec![String::from("revoked_token")], true));
    }

    #[tokio::test]
    async fn what_is_ended_during_a_renewal_stays_ended() {
        for way in 0..4 {
            let fixture = Fixture::new();
            let token = &fixture.token_config;
            let (_, old) = start(&fixture, "kim", None).await;
            fixture.clock.advance(Duration::from_secs(4 * DAY));
            let identified = cookie(&fixture, &old);
            let held = fixture.store.hold.write().await;
            let end = async {
                until_read(&fixture, 1).await;
                match way {
                    0 => fixture.sessions.end(token, &old).await.unwrap(),
                    1 => assert!(fixture.sessions.revoke(token, old.session.as_ref().unwrap()).await.unwrap()),
                    2 => fixture.sessions.revoke_account(token, &old.account).await.unwrap(),
                    _ => fixture.sessions.revoke_all(token).await.unwrap(),
                }
                drop(held);
            };
            let (refreshed, ()) = tokio::join!(refresh(&fixture, &identified), end);
            assert_eq!(groups(&refreshed), ["revoked_token"]);
            assert!(refreshed.issued.is_none());
            assert!(fixture.store.stored().is_empty(), "nothing brings a session back");
        }
    }

    #[tokio::test]
    async fn a_change_during_a_renewal_is_seen_by_the_next_request_even_while_the_first_still_runs() {
        let fixture = Fixture::new();
        let (_, old) = start(&fixture, "kim", None).await;
        fixture.clock.advance(Duration::from_secs(4 * DAY));
        let first = cookie(&fixture, &old);
        let held = fixture.store.hold.write().await;
        let second = async {
            until_read(&fixture, 1).await;
            change(&fixture, "kim", &["admin"]).await;
            let second = cookie(&fixture, &old);
            assert!(matches!(second.standing, Standing::Changed { .. }));
            let ((), refreshed) = tokio::join!(async { drop(held) }, refresh(&fixture, &second));
            refreshed
        };
        let (_, second) = tokio::join!(refresh(&fixture, &first), second);
        assert_eq!(groups(&second), ["admin"]);
    }

    #[tokio::test]
    async fn who_leaves_in_the_middle_takes_nobody_with_him() {
        let fixture = Fixture::new();
        let old = fixture.verified("kim", NOW - 4 * DAY);
        let identified = cookie(&fixture, &old);
        let held = fixture.store.hold.write().await;
        let mut leader = Box::pin(refresh(&fixture, &identified));
        assert!(futures_poll(&mut leader).await);
        until_read(&fixture, 1).await;
        let mut follower = Box::pin(refresh(&fixture, &identified));
        assert!(futures_poll(&mut follower).await);
        drop(leader);
        drop(held);
        assert!(follower.await.issued.is_some());
    }

    /// Polls once; true where it is not ready.
    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> bool {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
        })
        .await
    }

    #[tokio::test]
    async fn with_the_store_down_the_old_token_serves_on() {
        let fixture = Fixture::new();
        let (_, old) = start(&fixture, "kim", None).await;
        fixture.clock.advance(Duration::from_secs(4 * DAY));
        fixture.store.is_down.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            let refreshed = refresh(&fixture, &cookie(&fixture, &old)).await;
            assert_eq!(groups(&refreshed), ["staff"]);
            assert!(refreshed.issued.is_none() && !refreshed.unavailable);
            fixture.clock.advance(Duration::from_secs(3_600));
        }
        fixture.store.is_down.store(false, Ordering::SeqCst);
        assert!(refresh(&fixture, &cookie(&fixture, &old)).await.issued.is_some(), "it recovers by itself");
    }

    #[tokio::test]
    async fn a_changed_account_that_can_not_be_read_keeps_its_groups_until_max_staleness() {
        for source in [Source::Cookie, Source::Bearer] {
            let fixture = Fixture::new();
            let (_, old) = start(&fixture, "kim", None).await;
            change(&fixture, "kim", &["admin"]).await;
            fixture.store.is_down.store(true, Ordering::SeqCst);
            let try_once = async || {
                let refreshed = refresh(&fixture, &fixture.identified(Arc::clone(&old), source)).await;
                assert!(refreshed.issued.is_none());
                (groups(&refreshed), refreshed.unavailable)
            };
            assert_eq!(try_once().await, (vec![String::from("staff")], false));
            fixture.clock.advance(Duration::from_millis(9_999));
            assert_eq!(try_once().await, (vec![String::from("staff")], false));
            fixture.clock.advance(Duration::from_millis(1));
            assert!(try_once().await.1);
            fixture.store.is_down.store(false, Ordering::SeqCst);
            fixture.clock.advance(Duration::from_secs(1));
            let refreshed = refresh(&fixture, &fixture.identified(Arc::clone(&old), source)).await;
            assert_eq!((groups(&refreshed), refreshed.unavailable), (vec![String::from("admin")], false));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_holds_nobody_up_for_longer_than_its_timeout() {
        let fixture = Fixture::new();
        let (_, old) = start(&fixture, "kim", None).await;
        fixture.clock.advance(Duration::from_secs(4 * DAY));
        let _held = fixture.store.hold.write().await;
        let before = tokio::time::Instant::now();
        let refreshed = refresh(&fixture, &cookie(&fixture, &old)).await;
        assert!(before.elapsed() < limits().timeout + Duration::from_secs(1));
        assert_eq!((groups(&refreshed), refreshed.unavailable), (vec![String::from("staff")], false));
    }

    #[tokio::test]
    async fn a_changed_bearer_token_is_read_once_until_it_changes_again() {
        let fixture = Fixture::new();
        let (_, old) = start(&fixture, "kim", None).await;
        for (groups_now, reads) in [("admin", 1), ("guests", 2)] {
            change(&fixture, "kim", &[groups_now]).await;
            for _ in 0..3 {
                let identified = fixture.identified(Arc::clone(&old), Source::Bearer);
                assert!(fixture.sessions.needs_refresh(&fixture.token_config, &identified, NOW));
                let refreshed = refresh(&fixture, &identified).await;
                assert_eq!(groups(&refreshed), [groups_now]);
                assert!(refreshed.issued.is_none());
            }
            assert_eq!(fixture.store.reads(), reads);
        }
    }

    #[tokio::test]
    async fn a_foreign_token_becomes_one_of_ours() {
        let fixture = Fixture::new();
        let old = foreign(&fixture, "kim");
        let identified = cookie(&fixture, &old);
        assert!(fixture.sessions.needs_refresh(&fixture.token_config, &identified, NOW));
        let refreshed = refresh(&fixture, &identified).await;
        assert_eq!(groups(&refreshed), ["staff"]);
        let issued = refreshed.issued.unwrap();
        let new = fixture.ring.verify(issued.token.expose(), NOW).unwrap();
        assert_eq!((new.auth_time, new.version, new.seq), (NOW - 5 * DAY, Some(0), Some(5)));
        assert_eq!(fixture.store.stored()[0].id, issued.session);
        // Logging out with the old one ends the session that was just made of it, too.
        fixture.sessions.end(&fixture.token_config, &old).await.unwrap();
        assert_eq!(fixture.revocations.standing(&old), Standing::Revoked);
        assert_eq!(fixture.revocations.standing(&new), Standing::Revoked);
        assert!(fixture.store.stored().is_empty());
        let stranger = foreign(&fixture, "nobody");
        let refreshed = refresh(&fixture, &cookie(&fixture, &stranger)).await;
        assert_eq!(groups(&refreshed), ["unknown_account"]);
    }

    #[tokio::test]
    async fn a_foreign_token_that_is_ended_during_its_renewal_leaves_no_session() {
        let fixture = Fixture::new();
        let old = foreign(&fixture, "kim");
        let identified = cookie(&fixture, &old);
        let held = fixture.store.hold.write().await;
        let end = async {
            until_read(&fixture, 1).await;
            fixture.sessions.end(&fixture.token_config, &old).await.unwrap();
            drop(held);
        };
        let (refreshed, ()) = tokio::join!(refresh(&fixture, &identified), end);
        assert_eq!(groups(&refreshed), ["revoked_token"]);
        assert!(fixture.store.stored().is_empty());
    }

    #[tokio::test]
    async fn a_login_ends_the_session_whose_cookie_came_with_it() {
        let fixture = Fixture::new();
        let (_, old) = start(&fixture, "kim", None).await;
        let (second, new) = start(&fixture, "kim", Some(&old)).await;
        assert_eq!(fixture.revocations.standing(&old), Standing::Revoked);
        assert_eq!(fixture.revocations.standing(&new), Standing::Current);
        assert_eq!(fixture.store.stored().iter().map(|session| &session.id).collect::<Vec<_>>(), [&second.session]);
    }

    #[tokio::test]
    async fn a_login_that_a_revocation_overtook_is_none() {
        let fixture = Fixture::new();
        let Fixture { ring, token_config, sessions, store, .. } = &fixture;
        let kim = account("kim", &[]);
        let head = store.log_head().await.unwrap();
        sessions.revoke_account(token_config, &kim.id).await.unwrap();
        let result = sessions.start(ring, token_config, &kim, head, CLIENT, "", None).await;
        assert!(matches!(result, Err(StoreError::Conflict)));
        assert!(store.stored().is_empty());
    }

    #[tokio::test]
    async fn a_logout_is_remembered_as_long_as_any_token_of_the_session_can_live() {
        let fixture = Fixture::new();
        let (_, old) = start(&fixture, "kim", None).await;
        fixture.clock.advance(Duration::from_secs(4 * DAY));
        let issued = refresh(&fixture, &cookie(&fixture, &old)).await.issued.unwrap();
        fixture.sessions.end(&fixture.token_config, &old).await.unwrap();
        assert!(fixture.store.log_entries()[0].expires >= issued.expires, "the renewed one lives longer than the old");
        // One that was never stored is ended all the same, and ending twice is no error.
        let lost = fixture.verified("lee", NOW);
        for _ in 0..2 {
            fixture.sessions.end(&fixture.token_config, &lost).await.unwrap();
        }
        fixture.revocations.forget_expired(lost.expires - 1);
        assert_eq!(fixture.revocations.standing(&lost), Standing::Revoked);
    }

    #[tokio::test]
    async fn only_a_stored_session_can_be_revoked_by_id() {
        let fixture = Fixture::new();
        let (issued, verified) = start(&fixture, "kim", None).await;
        let Fixture { token_config, sessions, .. } = &fixture;
        assert!(!sessions.revoke(token_config, &SessionId::random()).await.unwrap());
        assert_eq!(sessions.list(None).await.unwrap().len(), 1);
        assert!(sessions.revoke(token_config, &issued.session).await.unwrap());
        assert!(!sessions.revoke(token_config, &issued.session).await.unwrap());
        assert_eq!(fixture.revocations.standing(&verified), Standing::Revoked);
        assert!(sessions.list(None).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn nothing_is_promised_when_the_store_takes_nothing() {
        let fixture = Fixture::new();
        let (_, verified) = start(&fixture, "kim", None).await;
        fixture.store.is_down.store(true, Ordering::SeqCst);
        let Fixture { ring, token_config, sessions, .. } = &fixture;
        assert!(sessions.end(token_config, &verified).await.is_err());
        assert!(sessions.revoke_account(token_config, &verified.account).await.is_err());
        assert!(sessions.revoke_all(token_config).await.is_err());
        assert!(sessions.start(ring, token_config, &account("kim", &[]), 5, CLIENT, "", None).await.is_err());
        assert_eq!(fixture.revocations.standing(&verified), Standing::Current);
    }

    #[tokio::test]
    async fn a_token_that_no_browser_would_keep_is_not_issued() {
        let fixture = Fixture::new();
        let Fixture { ring, token_config, sessions, store, .. } = &fixture;
        let names: Vec<_> = (0..100).map(|number| format!("a-group-with-a-rather-long-name-{number}")).collect();
        let crowd: Vec<&str> = names.iter().map(String::as_str).collect();
        let result = sessions.start(ring, token_config, &account("kim", &crowd), 5, CLIENT, "", None).await;
        assert!(matches!(result, Err(StoreError::TooLarge { .. })));
        assert!(store.stored().is_empty());
        // A renewal goes on with the old cookie, and the new groups count.
        let (_, old) = start(&fixture, "lee", None).await;
        change(&fixture, "lee", &crowd).await;
        let refreshed = refresh(&fixture, &cookie(&fixture, &old)).await;
        assert_eq!((groups(&refreshed).len(), refreshed.issued.is_none()), (100, true));
    }

    #[tokio::test]
    async fn a_token_for_a_script_has_a_session_and_no_longer_life_than_can_be_accepted() {
        let fixture = Fixture::new();
        let Fixture { ring, token_config, sessions, .. } = &fixture;
        for (asked, days) in [(None, 7), (Some(90 * DAY), 30), (Some(DAY), 1)] {
            let lifetime = asked.map(Duration::from_secs);
            let issued =
                sessions.issue_for_script(ring, token_config, &account("kim", &[]), 5, lifetime).await.unwrap();
            let verified = ring.verify(issued.token.expose(), NOW).unwrap();
            assert_eq!((verified.expires, issued.max_age), (NOW + days * DAY, days * DAY));
        }
        assert_eq!(sessions.list(None).await.unwrap().len(), 3);
    }

    #[test]
    fn a_fresh_token_does_not_show_itself() {
        let fixture = Fixture::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (issued, _) = runtime.block_on(start(&fixture, "kim", None));
        assert!(!format!("{issued:?}").contains(issued.token.expose()));
        fixture.revocations.extend(&[], 6);
        assert_eq!(fixture.revocations.head(), 6);
    }
}
