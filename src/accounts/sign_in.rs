//! Trying a password, on a hashing thread, within the throttle.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::hashing::HashError;
use super::refusal::{Turns, leaves_at};
use super::throttle::{Bucket, Limit, Throttle, network};
use super::{Accounts, SignIn, password};
use crate::clock::Clock;
use crate::config;
use crate::secret::Secret;
use crate::store::{Account, StoreError, Username, Write};
use crate::telemetry::audit::{Audit, Event};

/// One password to try, and whose.
pub(super) struct Attempt {
    /// Before anything was done that could depend on the account.
    pub(super) arrived: Instant,
    pub(super) bucket: Bucket,
    pub(super) name: Shown,
    /// For the audit log: what the password was for.
    pub(super) detail: &'static str,
    pub(super) client: IpAddr,
    /// `None`: there is no such account.
    pub(super) account: Option<Box<Account>>,
    pub(super) password: Secret<String>,
}

/// A name on its way into the audit log. What is no account's name may be a password that was typed into the wrong field.
pub(super) struct Shown {
    /// As it is shown where an account has it.
    pub(super) plain: String,
    /// As it is shown otherwise; no name can look like it, for the blank in it.
    pub(super) masked: String,
    pub(super) is_an_accounts: bool,
}

/// What came of an [`Attempt`].
pub(super) enum Tried<T> {
    /// The password is right; with what was made of it on the same thread.
    Right(Box<Account>, T),
    /// With the moment at which this may be told.
    Wrong(Instant),
    Throttled(Duration),
    Busy,
}

/// What a hashing thread needs besides the attempt.
#[derive(Clone)]
struct Judge {
    clock: Clock,
    throttle: Arc<Throttle>,
    turns: Arc<Turns>,
    audit: Audit,
    limit: Limit,
    network_limit: Limit,
    cost: u32,
    #[cfg(test)]
    more_work: Option<super::MoreWork>,
}

impl Accounts {
    /// Tries a name and a password. The same work whatever is wrong.
    ///
    /// Dropping the future doesn't take a wrong try back: what a hashing thread has begun is counted.
    pub async fn sign_in(&self, login: &config::Login, name: &str, password: Secret<String>, client: IpAddr) -> SignIn {
        let arrived = self.clock.instant();
        let username = Username::typed(name).ok();
        let bucket = Bucket::of(client, username.as_ref(), name);
        let name = self.shown(username.as_ref(), name);
        let attempt = Attempt { arrived, bucket, name, detail: "", client, account: None, password };
        if let Some(retry_after) = self.throttled(login, &attempt).await {
            return SignIn::Throttled { retry_after };
        }
        let (log_head, account) = match self.read(username.as_ref()).await {
            Ok(read) => read,
            Err(error) => return SignIn::Unavailable(error),
        };
        let cost = login.bcrypt_cost;
        let tried = self.try_password(login, Attempt { account, ..attempt }, move |account, password| {
            let outdated = password::needs_rehash(account.password_hash.expose(), password, cost);
            outdated.then(|| password::hash(password, cost)).flatten().map(Secret::new)
        });
        match tried.await {
            Tried::Right(mut account, rehashed) => {
                if let Some(hash) = rehashed {
                    self.store_rehashed(&mut account, hash).await;
                }
                self.audit.record(&Event {
                    event: "login",
                    outcome: "ok",
                    username: account.username.as_str(),
                    id: account.id.as_str(),
                    client: &client.to_canonical().to_string(),
                    ..Event::default()
                });
                SignIn::Granted { account, log_head }
            }
            Tried::Wrong(_) => SignIn::Refused,
            Tried::Throttled(retry_after) => SignIn::Throttled { retry_after },
            Tried::Busy => SignIn::Busy,
        }
    }

    /// Tries the password on a hashing thread; with a right one, `then` runs on that thread as well. A wrong one is told
    /// when [`leaves_at`] says; the thread does not wait for that.
    pub(super) async fn try_password<T: Send + 'static>(
        &self,
        login: &config::Login,
        attempt: Attempt,
        then: impl FnOnce(&Account, &str) -> T + Send + 'static,
    ) -> Tried<T> {
        let (judge, network) = (self.judge(login), network(attempt.client));
        match self.hashers.run(network, move || judge.try_now(attempt, then)).await {
            Ok(Tried::Wrong(leaves)) => {
                tokio::time::sleep(leaves.saturating_duration_since(self.clock.instant())).await;
                Tried::Wrong(leaves)
            }
            Ok(tried) => tried,
            Err(HashError::Busy | HashError::Failed) => Tried::Busy,
        }
    }

    /// How long the attempt has to wait, where it has to; told to the audit log.
    pub(super) async fn throttled(&self, login: &config::Login, attempt: &Attempt) -> Option<Duration> {
        let judge = self.judge(login);
        let network = Bucket::of_network(attempt.client);
        let by_name = judge.throttle.wait_at_first(&attempt.bucket, judge.limit).await;
        let by_network = judge.throttle.wait_at_first(&network, judge.network_limit).await;
        judge.told(by_name, by_network, attempt)
    }

    fn judge(&self, login: &config::Login) -> Judge {
        Judge {
            clock: self.clock.clone(),
            throttle: Arc::clone(&self.throttle),
            turns: Arc::clone(&self.turns),
            audit: self.audit.clone(),
            limit: Limit { max_attempts: login.max_attempts, window: login.window },
            network_limit: Limit { max_attempts: login.max_attempts_per_network, window: login.window },
            cost: login.bcrypt_cost,
            #[cfg(test)]
            more_work: self.more_work.clone(),
        }
    }

    /// `name`: `None` where what was typed can be no account's.
    pub(super) fn shown(&self, name: Option<&Username>, typed: &str) -> Shown {
        let plain = name.map_or_else(String::new, ToString::to_string);
        let mut digest = Sha256::new_with_prefix(*self.mask);
        digest.update(name.map_or(typed, Username::as_str));
        let print = digest.finalize().iter().take(5).fold(0_u64, |print, byte| print << 8 | u64::from(*byte));
        let masked = format!("(unknown {print:010x})");
        Shown { plain, masked, is_an_accounts: false }
    }

    /// The log's number first: a change of the account that comes between the two is newer than the number, so it ends
    /// the token that is made from them.
    async fn read(&self, username: Option<&Username>) -> Result<(u64, Option<Box<Account>>), StoreError> {
        let log_head = self.store.log_head().await?;
        let account = match username {
            Some(username) => self.store.account_by_name(username).await?,
            None => None,
        };
        Ok((log_head, account.map(Box::new)))
    }

    /// Replaces an outdated hash unless somebody changed the account meanwhile. Never in the way of the login.
    pub(super) async fn store_rehashed(&self, account: &mut Account, hash: Secret<String>) {
        let renewed = Account { password_hash: hash.clone(), ..account.clone() };
        match self.store.apply(vec![Write::UpdateAccount(renewed)]).await {
            Ok(_) => {
                account.password_hash = hash;
                account.revision += 1;
            }
            Err(StoreError::Conflict | StoreError::NoSuchAccount) => {}
            Err(error) => {
                let id = account.id.as_str();
                tracing::warn!(%error, id, "an outdated password hash could not be replaced; the next login tries again");
            }
        }
    }
}

impl Judge {
    /// The longer of the two; the network's rule is named where it alone says wait.
    fn told(&self, by_name: Option<Duration>, by_network: Option<Duration>, attempt: &Attempt) -> Option<Duration> {
        let rule = if by_name.is_some() { "too_many_tries" } else { "too_many_tries_from_network" };
        by_name.max(by_network).inspect(|_| self.record("login_throttled", rule, attempt))
    }

    /// The throttle is asked again right before the work: whatever is waiting in the queue when the limit is reached
    /// stays out, so that no more guesses than the limit and one for each hashing thread are ever checked.
    fn try_now<T>(&self, mut attempt: Attempt, then: impl FnOnce(&Account, &str) -> T) -> Tried<T> {
        let began = self.clock.instant();
        // Here all replicas are asked: a round trip more is nothing beside a hash.
        attempt.name.is_an_accounts |= attempt.account.is_some();
        let network = Bucket::of_network(attempt.client);
        let by_name = self.throttle.wait_everywhere(&attempt.bucket, self.limit);
        let by_network = self.throttle.wait_everywhere(&network, self.network_limit);
        if let Some(wait) = self.told(by_name, by_network, &attempt) {
            return Tried::Throttled(wait);
        }
        let account = attempt.account.take();
        let password = attempt.password.expose();
        let stored = account.as_ref().map(|account| account.password_hash.expose().as_str());
        let enabled = account.as_ref().is_none_or(|account| !account.disabled);
        let checked = password::check(&self.clock, stored, enabled, password, self.cost);
        #[cfg(test)]
        if let Some(more) = &self.more_work {
            more(&attempt.name.plain);
        }
        if checked.malformed
            && let Some(account) = &account
        {
            tracing::error!(
                id = account.id.as_str(),
                username = account.username.as_str(),
                "the stored password hash of this account can't be read: set a new password"
            );
        }
        match account {
            Some(account) if checked.right => {
                self.throttle.right_everywhere(&attempt.bucket);
                let made = then(&account, password);
                Tried::Right(account, made)
            }
            account => {
                self.turns.measured(checked.rounds, checked.took);
                self.throttle.wrong_everywhere(attempt.bucket, self.limit);
                self.throttle.wrong_everywhere(network, self.network_limit);
                if account.is_some() {
                    self.throttle.note_account(&attempt.bucket);
                }
                let reason = match &account {
                    None => "unknown_name",
                    Some(_) if checked.malformed => "unreadable_hash",
                    Some(account) if account.disabled => "disabled",
                    Some(_) => "wrong_password",
                };
                self.record("login_failed", reason, &attempt);
                Tried::Wrong(leaves_at(attempt.arrived, began, self.clock.instant(), self.turns.turn(self.cost)))
            }
        }
    }

    fn record(&self, event: &'static str, outcome: &str, attempt: &Attempt) {
        // A throttled name is not looked up again; that it is an account's is known from its wrong tries.
        let known = attempt.name.is_an_accounts || self.throttle.is_an_accounts(&attempt.bucket);
        self.audit.record(&Event {
            event,
            outcome,
            username: if known { &attempt.name.plain } else { &attempt.name.masked },
            client: &attempt.client.to_canonical().to_string(),
            detail: attempt.detail,
            ..Event::default()
        });
    }
}
