//! Renewal: the account is read again, the checks of a login are made again, and a cookie gets a new token.
//!
//! - A renewal keeps `sid` and `auth_time`, and never lasts beyond `max_lifetime`.
//! - The log's number is read before the account: a change that comes between the two makes the new token read again,
//!   a revocation ends it.
//! - A session is written only where it still is, and the log is looked at once more before the token goes out: what
//!   was ended meanwhile stays ended.
//! - One token is renewed once, however many requests carry it and on however many threads.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::centre::{self, Answered, Asked, Centre};
use super::flight::Flights;
use super::keys::KeyRing;
use super::session::{Client, Issued, Sessions, Terms, end_oldest, issue, latest_end, principal, record, stand_in};
use super::{Identified, Source, Standing, Verified};
use crate::config;
use crate::policy::{Caller, Principal, Unidentified};
use crate::secret::Secret;
use crate::store::{Account, AccountId, SessionId, StoreError, Write};
use crate::telemetry::audit::Event;

/// How long the outcome of a renewal answers requests that still carry the old token, in milliseconds.
const REMEMBER_RENEWAL: u64 = 30_000;
/// The same where the new token could not be written down, or the store could not be reached: until the next try.
const RETRY_RENEWAL: u64 = 5_000;
/// The same for accounts that changed and could not be read, and for those that are not there any more.
const RETRY_ACCOUNT: u64 = 1_000;
/// How long a reading of an account serves bearer tokens, unless the log says that it changed.
const REMEMBER_ACCOUNT: u64 = 600_000;
/// How long an account that could not be read is remembered where room is needed.
const FORGET_OUTAGE: u64 = 3_600_000;
/// Renewals, readings and outages that are remembered at a time.
const REMEMBERED: usize = 8192;
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

/// Who asks for a refresh.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    pub client: IpAddr,
    pub user_agent: &'a str,
    /// The token's text, where a centre has to be shown it.
    pub presented: Option<&'a str>,
}

/// What is known from renewals that were made, by [`Sessions`].
pub(super) struct Memory {
    renewals: Flights<RenewalKey, Renewal>,
    readings: Flights<u128, Reading>,
    /// Changed accounts that can't be read, by their key: the log's number, and when that was first noticed.
    unread: Mutex<HashMap<u128, (u64, u64)>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            renewals: Flights::new(REMEMBERED),
            readings: Flights::new(REMEMBERED),
            unread: Mutex::new(HashMap::new()),
        }
    }
}

impl Memory {
    /// The session into which a foreign token was renewed a moment ago, with its end.
    pub(super) fn made_from(&self, foreign: &Verified) -> Vec<(SessionId, u64)> {
        let same = |key: &RenewalKey| {
            key.account == foreign.account_key && key.session.is_none() && key.issued_at == foreign.issued_at
        };
        let session = |renewal: Renewal| match renewal.outcome {
            Outcome::Fresh { issued: Some(issued), .. } => Some((issued.session, issued.expires)),
            _ => None,
        };
        self.renewals.peek(same).into_iter().filter_map(session).collect()
    }
}

/// What every step of one renewal needs.
#[derive(Clone, Copy)]
struct Request<'a> {
    ring: &'a KeyRing,
    token: &'a config::Token,
    limits: &'a config::Store,
    client: Client<'a>,
    /// The token's text, for a centre.
    presented: Option<&'a str>,
}

/// What makes two tokens the same for a renewal: all of a token that its outcome depends on.
#[derive(Clone, PartialEq, Eq, Hash)]
struct RenewalKey {
    ring: u64,
    account: u128,
    session: Option<u128>,
    seq: Option<u64>,
    version: Option<u64>,
    auth_time: u64,
    issued_at: u64,
    expires: u64,
}

/// What came of one renewal.
#[derive(Clone)]
struct Renewal {
    /// By the monotonic clock, in milliseconds: a wall clock that was wrong for a moment must not make it last.
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
    /// By the monotonic clock, in milliseconds: a wall clock that was wrong for a moment must not make it last.
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

impl Sessions {
    /// Whether [`Sessions::refresh`] has anything to do: a cookie with less than `refresh_below` left that a new one
    /// would outlast, or a changed account. `now`: Unix seconds.
    #[must_use]
    #[expect(clippy::unused_self, reason = "asked of the sessions, whatever they need to answer it")]
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
        asker: Asker<'_>,
    ) -> Refreshed {
        let since = match identified.standing {
            Standing::Changed { since } => Some(since),
            Standing::Current | Standing::Revoked => None,
        };
        let Asker { client, user_agent, presented } = asker;
        let client = Client { address: client, user_agent };
        let request = Request { ring, token, limits: store_limits, client, presented };
        let unchanged = || Refreshed { caller: identified.caller.clone(), issued: None, unavailable: false };
        match (&identified.credential, since) {
            (None, _) | (Some((_, Source::Bearer)), None) => unchanged(),
            (Some((old, Source::Bearer)), Some(since)) => {
                let reading = self.reading(request, old).await;
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
            (Some((old, Source::Cookie)), _) => match self.renewal(request, old, since.is_some()).await.outcome {
                Outcome::Fresh { principal, issued, .. } => {
                    self.read_again(old);
                    Refreshed { caller: Caller::Person(principal), issued, unavailable: false }
                }
                Outcome::Over(why) => {
                    self.read_again(old);
                    Refreshed { caller: Caller::Anonymous(why), issued: None, unavailable: false }
                }
                Outcome::Unreachable => self.unreachable(unchanged(), old, since, store_limits),
            },
        }
    }

    /// The person behind a token as the account is now, for something that has been open for a while: nothing is renewed.
    /// `Ok(None)`: that login is over. `presented`: the token's text, for a centre. `Err`: it could not be read.
    pub async fn person_now(
        &self,
        ring: &KeyRing,
        token: &config::Token,
        limits: &config::Store,
        verified: &Verified,
        presented: Option<&str>,
    ) -> Result<Option<Arc<Principal>>, ()> {
        // Nobody's session is written: it does not matter where he is.
        let client = Client { address: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), user_agent: "" };
        let request = Request { ring, token, limits, client, presented };
        let view = self.reading(request, verified).await.account?;
        let is_good =
            |view: &AccountView| !view.disabled && verified.version.is_none_or(|version| version == view.version);
        Ok(view.filter(is_good).map(|view| view.principal))
    }

    /// The renewal of a token: one that is remembered, or a new one.
    async fn renewal(&self, request: Request<'_>, old: &Verified, changed: bool) -> Renewal {
        let key = RenewalKey {
            ring: request.ring.generation(),
            account: old.account_key,
            session: old.session_key,
            seq: old.seq,
            version: old.version,
            auth_time: old.auth_time,
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
            self.clock.ticks() < renewal.made.saturating_add(lasts)
        };
        let work = || async move {
            let outcome = self.renew(request, old).await;
            self.record_renewal(old, &outcome, request.client.address);
            Renewal { made: self.clock.ticks(), outcome }
        };
        self.memory.renewals.get(key, good, work).await
    }

    /// Every check of a login, then a new token for the same session.
    async fn renew(&self, request: Request<'_>, old: &Verified) -> Outcome {
        if let Some(centre) = &self.centre {
            return self.renew_there(&**centre, request, old).await;
        }
        let Request { ring, token, limits, client, .. } = request;
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

        let terms = Terms { session: session.clone(), auth_time: old.auth_time, seq: log_head, now, expires };
        let issued = match issue(ring, &account, terms) {
            Ok(issued) => issued,
            Err(error) => {
                tracing::warn!(target: "doorward::auth", id = %account.id, %error, "a token can't be renewed");
                return fresh(None);
            }
        };
        let record = record(&issued, &account.id, old.auth_time, now, client);
        // What a renewal touches must be there; only a foreign token's session is a new one.
        let writes = if is_new {
            vec![Write::PutSession(record), end_oldest(token, &account.id, &session, now)]
        } else {
            vec![Write::TouchSession(record)]
        };
        let written = tokio::time::timeout(limits.timeout, self.store.apply(writes)).await;
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

    /// The same, made by the centre.
    async fn renew_there(&self, centre: &dyn Centre, request: Request<'_>, old: &Verified) -> Outcome {
        let (person, token, seq) = match self.ask(centre, request, false).await {
            Some(Answered::Renewed { person, token, seq }) => (person, token, seq),
            Some(Answered::Over { reason }) => return Outcome::Over(centre::reason(&reason)),
            Some(Answered::Account { .. }) | None => return Outcome::Unreachable,
        };
        let now = self.clock.unix_seconds();
        let Some(token) = token else {
            let as_of = Arc::new(stand_in(&old.account, old.session.as_ref(), seq, now));
            return Outcome::Fresh { principal: Arc::new(person.into()), issued: None, as_of };
        };
        // What goes out has to be good here, and the same person's.
        let new = match request.ring.verify(&token, now) {
            Ok(new) if new.account == old.account && (old.session.is_none() || new.session == old.session) => new,
            Ok(_) => {
                tracing::error!(target: "doorward::auth", id = %old.account, "the centre renewed another login than was asked");
                return Outcome::Unreachable;
            }
            Err(error) => {
                tracing::warn!(target: "doorward::auth", id = %old.account, %error, "the centre's new token is not accepted here");
                return Outcome::Unreachable;
            }
        };
        if self.revocations.standing(old) == Standing::Revoked || self.revocations.standing(&new) == Standing::Revoked {
            return Outcome::Over(Unidentified::RevokedToken);
        }
        let (principal, expires) = (Arc::clone(&new.principal), new.expires);
        let issued = new.session.clone().map(|session| Issued {
            token: Secret::new(token),
            max_age: expires.saturating_sub(now),
            expires,
            session,
        });
        Outcome::Fresh { principal, issued, as_of: Arc::new(new) }
    }

    /// One question to the centre; `None`: it was not answered.
    async fn ask(&self, centre: &dyn Centre, request: Request<'_>, bearer: bool) -> Option<Answered> {
        let asked = Asked {
            token: request.presented?.to_owned(),
            bearer,
            client: request.client.address,
            user_agent: request.client.user_agent.chars().take(256).collect(),
        };
        match tokio::time::timeout(request.limits.timeout, centre.renew(asked)).await {
            Ok(Ok(answered)) => Some(answered),
            Ok(Err(error)) => {
                tracing::warn!(target: "doorward::auth", %error, "a token can't be renewed");
                None
            }
            Err(_) => {
                tracing::warn!(target: "doorward::auth", "a token can't be renewed: the centre did not answer in time");
                None
            }
        }
    }

    /// Answers a verify-only gateway: the same reading and the same checks as for a request of our own, and the same
    /// memory, so that one token that many gateways ask for is renewed once. `None`: the store can't be read.
    pub async fn answer_gateway(
        &self,
        ring: &KeyRing,
        token: &config::Token,
        limits: &config::Store,
        old: &Arc<Verified>,
        asked: &Asked,
    ) -> Option<Answered> {
        if self.revocations.standing(old) == Standing::Revoked {
            return Some(Answered::Over { reason: Unidentified::RevokedToken.code().to_owned() });
        }
        let client = Client { address: asked.client, user_agent: &asked.user_agent };
        let request = Request { ring, token, limits, client, presented: None };
        if asked.bearer {
            let reading = self.reading(request, old).await;
            let account = reading.account.ok()?.map(|view| centre::Standing {
                person: view.principal.as_ref().into(),
                disabled: view.disabled,
                version: view.version,
            });
            return Some(Answered::Account { account, seq: reading.as_of.seq.unwrap_or(0) });
        }
        let changed = matches!(self.revocations.standing(old), Standing::Changed { .. });
        match self.renewal(request, old, changed).await.outcome {
            Outcome::Fresh { principal, issued, as_of } => Some(Answered::Renewed {
                person: principal.as_ref().into(),
                token: issued.map(|issued| issued.token.expose().clone()),
                seq: as_of.seq.unwrap_or(0),
            }),
            Outcome::Over(why) => Some(Answered::Over { reason: why.code().to_owned() }),
            Outcome::Unreachable => None,
        }
    }

    /// The account as it is now, and the log's number from just before.
    async fn read(&self, id: &AccountId) -> Result<(u64, Option<Account>), StoreError> {
        let log_head = self.store.log_head().await?;
        Ok((log_head, self.store.account(id).await?))
    }

    /// The account behind a bearer token, read again only after the log said that it changed.
    async fn reading(&self, request: Request<'_>, old: &Verified) -> Reading {
        let good = |reading: &Reading| {
            let lasts = match &reading.account {
                Ok(Some(_)) => REMEMBER_ACCOUNT,
                Ok(None) | Err(()) => RETRY_ACCOUNT,
            };
            self.clock.ticks() < reading.made.saturating_add(lasts)
                && (reading.account.is_err() || self.revocations.standing(&reading.as_of) == Standing::Current)
        };
        let work = || async move {
            if let Some(centre) = &self.centre {
                return self.reading_there(&**centre, request, old).await;
            }
            let read = tokio::time::timeout(request.limits.timeout, self.read(&old.account)).await;
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
                made: self.clock.ticks(),
                account: account.map(|account| account.map(view)),
                as_of: Arc::new(stand_in(&old.account, None, log_head, u64::MAX)),
            }
        };
        self.memory.readings.get(old.account_key, good, work).await
    }

    /// The same, read by the centre.
    async fn reading_there(&self, centre: &dyn Centre, request: Request<'_>, old: &Verified) -> Reading {
        let (seq, account) = match self.ask(centre, request, true).await {
            Some(Answered::Account { account, seq }) => {
                let view = account.map(|centre::Standing { person, disabled, version }| AccountView {
                    principal: Arc::new(person.into()),
                    disabled,
                    version,
                });
                (seq, Ok(view))
            }
            // A bearer token that is over: nobody's account.
            Some(Answered::Over { .. }) => (0, Ok(None)),
            Some(Answered::Renewed { .. }) | None => (0, Err(())),
        };
        Reading { made: self.clock.ticks(), account, as_of: Arc::new(stand_in(&old.account, None, seq, u64::MAX)) }
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
        let now = self.clock.ticks();
        let mut unread = self.memory.unread.lock().unwrap_or_else(PoisonError::into_inner);
        if unread.len() >= REMEMBERED {
            // What is left of outages that are long over.
            unread.retain(|_, (_, first)| now.saturating_sub(*first) < FORGET_OUTAGE);
        }
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
        let mut unread = self.memory.unread.lock().unwrap_or_else(PoisonError::into_inner);
        if !unread.is_empty() {
            unread.remove(&old.account_key);
        }
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
}
