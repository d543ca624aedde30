//! Changes of accounts: each one atomic list of writes.

use std::net::IpAddr;

use super::hashing::OPERATOR;
use super::sign_in::{Attempt, Shown, Tried};
use super::throttle::Bucket;
use super::{AccountError, Accounts, NewAccount, import, password, profile, rules};
use crate::config;
use crate::secret::Secret;
use crate::store::{Account, AccountId, Revocation, StoreError, Username, Write};
use crate::telemetry::audit::Event;

/// How often a change starts again because somebody else changed the account at the same time.
const TRIES: usize = 5;

/// Whose account is to be changed.
#[derive(Clone, Copy)]
enum Whose<'a> {
    Name(&'a Username),
    Id(&'a AccountId),
}

/// What a change of an account entails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It is so already: nothing is written.
    Nothing,
    /// Old tokens stay as they were.
    Stored,
    /// Older tokens are read again before they are believed.
    TokensReread,
    /// Every token and session ends.
    TokensEnded,
}

impl Accounts {
    /// A person changes his own password; ends every other session (revokes all tokens of the account).
    ///
    /// [`StoreError::Conflict`] where another change ended the account's tokens at the same time.
    pub async fn change_own_password(
        &self,
        login: &config::Login,
        token: &config::Token,
        id: &AccountId,
        current: Secret<String>,
        new: Secret<String>,
        client: IpAddr,
    ) -> Result<Account, AccountError> {
        let arrived = self.clock.instant();
        let account = self.store.account(id).await?.ok_or_else(|| AccountError::NoSuchAccount(id.to_string()))?;
        let attempt = Attempt {
            arrived,
            bucket: Bucket::of(client, Some(&account.username), account.username.as_str()),
            name: Shown { is_an_accounts: true, ..self.shown(Some(&account.username), "") },
            detail: "the current password, to change it",
            client,
            account: None,
            password: current,
        };
        if let Some(retry_after) = self.throttled(login, &attempt).await {
            return Err(AccountError::Throttled { retry_after });
        }
        rules::check_new_password(login, account.username.as_str(), new.expose()).map_err(AccountError::Invalid)?;
        let (version, cost) = (account.version, login.bcrypt_cost);
        let attempt = Attempt { account: Some(Box::new(account)), ..attempt };
        let tried = self.try_password(login, attempt, move |_, _| password::hash(new.expose(), cost).map(Secret::new));
        let hash = match tried.await {
            Tried::Right(_, hash) => hash.ok_or_else(not_hashed)?,
            Tried::Wrong(_) => return Err(AccountError::WrongPassword),
            Tried::Throttled(retry_after) => return Err(AccountError::Throttled { retry_after }),
            Tried::Busy => return Err(AccountError::Busy),
        };
        let changed = self.change(Whose::Id(id), token, |account| {
            // What was checked must still be so: somebody else may have set another password, or disabled the account.
            if account.version != version || account.disabled {
                return Err(StoreError::Conflict.into());
            }
            account.password_hash = hash.clone();
            account.version = account.version.saturating_add(1);
            Ok(Effect::TokensEnded)
        });
        let account = changed.await?;
        let client = client.to_canonical().to_string();
        self.audit.record(&Event { client: &client, ..event("password_changed", &account) });
        Ok(account)
    }

    /// A new account.
    pub async fn add(
        &self,
        login: &config::Login,
        new: NewAccount,
        password: Secret<String>,
    ) -> Result<Account, AccountError> {
        let username = Self::canonical(&new.username)?;
        let groups = profile::groups(new.groups).map_err(AccountError::Invalid)?;
        let email = profile::email(&new.email).map_err(AccountError::Invalid)?;
        let display_name = profile::display_name(&new.display_name).map_err(AccountError::Invalid)?;
        let password_hash = self.hash_new(login, &username, password).await?;
        let now = self.clock.unix_seconds();
        let account = Account {
            id: AccountId::random(),
            username,
            password_hash,
            groups,
            email,
            display_name,
            disabled: false,
            version: 0,
            created: now,
            changed: now,
            revision: 0,
        };
        self.store.apply(vec![Write::InsertAccount(account.clone())]).await?;
        self.audit.record(&event("account_added", &account));
        Ok(account)
    }

    /// Sets a password without knowing the old one; ends every session of the account.
    pub async fn set_password(
        &self,
        login: &config::Login,
        token: &config::Token,
        name: &str,
        password: Secret<String>,
    ) -> Result<Account, AccountError> {
        // Found first, so that a wrong name doesn't cost a hash.
        let found = self.by_name(name).await?;
        let hash = self.hash_new(login, &found.username, password).await?;
        let changed = self.change(Whose::Id(&found.id), token, |account| {
            account.password_hash = hash.clone();
            account.version = account.version.saturating_add(1);
            Ok(Effect::TokensEnded)
        });
        let account = changed.await?;
        self.audit.record(&event("password_changed", &account));
        Ok(account)
    }

    /// Replaces the groups. Nobody is logged out: older tokens are read again at their next request.
    pub async fn set_groups(
        &self,
        token: &config::Token,
        name: &str,
        groups: Vec<String>,
    ) -> Result<Account, AccountError> {
        let username = Self::canonical(name)?;
        let groups = profile::groups(groups).map_err(AccountError::Invalid)?;
        let mut effect = Effect::Nothing;
        let changed = self.change(Whose::Name(&username), token, |account| {
            effect = if account.groups == groups { Effect::Nothing } else { Effect::TokensReread };
            account.groups.clone_from(&groups);
            Ok(effect)
        });
        let account = changed.await?;
        if effect != Effect::Nothing {
            self.audit.record(&Event { detail: &groups.join(","), ..event("groups_changed", &account) });
        }
        Ok(account)
    }

    /// No login and no token of the account is accepted any more. Ends what is left even of a disabled one.
    pub async fn disable(&self, token: &config::Token, name: &str) -> Result<Account, AccountError> {
        let username = Self::canonical(name)?;
        let changed = self.change(Whose::Name(&username), token, |account| {
            account.disabled = true;
            Ok(Effect::TokensEnded)
        });
        let account = changed.await?;
        self.audit.record(&event("account_disabled", &account));
        Ok(account)
    }

    /// Lets a disabled account log in again; brings no old token back.
    pub async fn enable(&self, token: &config::Token, name: &str) -> Result<Account, AccountError> {
        let username = Self::canonical(name)?;
        let mut was_disabled = false;
        let changed = self.change(Whose::Name(&username), token, |account| {
            was_disabled = std::mem::replace(&mut account.disabled, false);
            Ok(if was_disabled { Effect::Stored } else { Effect::Nothing })
        });
        let account = changed.await?;
        if was_disabled {
            self.audit.record(&event("account_enabled", &account));
        }
        Ok(account)
    }

    /// Removes the account and ends every token of it.
    pub async fn remove(&self, token: &config::Token, name: &str) -> Result<(), AccountError> {
        let account = self.by_name(name).await?;
        let mut writes = vec![Write::RemoveAccount(account.id.clone())];
        writes.extend(self.follow_up(&account.id, token, Effect::TokensEnded));
        self.store.apply(writes).await.map_err(|error| whose(Whose::Name(&account.username), error))?;
        self.audit.record(&event("account_removed", &account));
        Ok(())
    }

    /// "Sign out everywhere": raises `__v`, revokes every token, removes every session.
    pub async fn sign_out_everywhere(&self, token: &config::Token, id: &AccountId) -> Result<Account, AccountError> {
        let changed = self.change(Whose::Id(id), token, |account| {
            account.version = account.version.saturating_add(1);
            Ok(Effect::TokensEnded)
        });
        let account = changed.await?;
        self.audit.record(&event("signed_out_everywhere", &account));
        Ok(account)
    }

    /// All of them or none. Returns how many.
    pub async fn import(&self, accounts: Vec<import::Imported>) -> Result<usize, AccountError> {
        let (count, now) = (accounts.len(), self.clock.unix_seconds());
        if count == 0 {
            return Ok(0);
        }
        let insert = |new: import::Imported| {
            Write::InsertAccount(Account {
                id: new.id.unwrap_or_else(AccountId::random),
                username: new.username,
                password_hash: new.password_hash,
                groups: new.groups,
                email: new.email,
                display_name: new.display_name,
                disabled: new.disabled,
                version: new.version,
                created: now,
                changed: now,
                revision: 0,
            })
        };
        self.store.apply(accounts.into_iter().map(insert).collect()).await?;
        let detail = format!("{count} accounts");
        self.audit.record(&Event { event: "accounts_imported", outcome: "ok", detail: &detail, ..Event::default() });
        Ok(count)
    }

    async fn hash_new(
        &self,
        login: &config::Login,
        username: &Username,
        password: Secret<String>,
    ) -> Result<Secret<String>, AccountError> {
        rules::check_new_password(login, username.as_str(), password.expose()).map_err(AccountError::Invalid)?;
        let cost = login.bcrypt_cost;
        let hashed = self.hashers.run(OPERATOR, move || password::hash(password.expose(), cost).map(Secret::new)).await;
        hashed.map_err(|_| AccountError::Busy)?.ok_or_else(not_hashed)
    }

    /// Reads the account, edits it and writes it with what follows from the edit; again from the start where somebody
    /// else was faster.
    async fn change(
        &self,
        of: Whose<'_>,
        token: &config::Token,
        mut edit: impl FnMut(&mut Account) -> Result<Effect, AccountError>,
    ) -> Result<Account, AccountError> {
        for _ in 0..TRIES {
            let found = match of {
                Whose::Name(name) => self.store.account_by_name(name).await?,
                Whose::Id(id) => self.store.account(id).await?,
            };
            let mut account = found.ok_or_else(|| whose(of, StoreError::NoSuchAccount))?;
            let effect = edit(&mut account)?;
            if effect == Effect::Nothing {
                return Ok(account);
            }
            account.changed = self.clock.unix_seconds();
            let mut writes = vec![Write::UpdateAccount(account.clone())];
            writes.extend(self.follow_up(&account.id, token, effect));
            match self.store.apply(writes).await {
                Ok(_) => {
                    account.revision += 1;
                    return Ok(account);
                }
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(whose(of, error)),
            }
        }
        Err(StoreError::Conflict.into())
    }

    fn follow_up(&self, id: &AccountId, token: &config::Token, effect: Effect) -> Vec<Write> {
        let at = self.clock.unix_seconds();
        let expires = at.saturating_add(token.horizon().as_secs());
        let account = id.clone();
        match effect {
            Effect::Nothing | Effect::Stored => Vec::new(),
            Effect::TokensReread => vec![Write::Revoke { what: Revocation::Changed { account }, at, expires }],
            Effect::TokensEnded => vec![
                Write::Revoke { what: Revocation::Account { account: account.clone() }, at, expires },
                Write::RemoveSessionsOf(account),
            ],
        }
    }
}

fn whose(of: Whose<'_>, error: StoreError) -> AccountError {
    match (error, of) {
        (StoreError::NoSuchAccount, Whose::Name(name)) => AccountError::NoSuchAccount(name.to_string()),
        (StoreError::NoSuchAccount, Whose::Id(id)) => AccountError::NoSuchAccount(id.to_string()),
        (error, _) => error.into(),
    }
}

/// After the rules have let it through, only for want of random numbers.
fn not_hashed() -> AccountError {
    AccountError::Invalid(String::from("the password can't be hashed"))
}

fn event<'a>(event: &'static str, account: &'a Account) -> Event<'a> {
    let (username, id) = (account.username.as_str(), account.id.as_str());
    Event { event, outcome: "ok", username, id, ..Event::default() }
}
