//! Carrying out an operator's commands.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::command::{Command, ImportFormat, Outcome};
use crate::accounts::import::Accept;
use crate::accounts::{AccountError, Accounts, NewAccount, import};
use crate::auth::keys::{self, KeyRing};
use crate::auth::revocation::Revocations;
use crate::auth::session::Sessions;
use crate::auth::{Standing, Verified};
use crate::clock::{Clock, rfc3339};
use crate::config::Config;
use crate::secret::Secret;
use crate::store::{Account, AccountId, RevokeAll, Session, SessionId, Store, StoreError, restore, write_dump};

/// Reads the configuration again; the error says everything that is wrong with it.
pub type Reload = Box<dyn Fn() -> Result<(), String>>;

/// What a command needs: the same rooms that the server uses, with or without a server around them.
pub struct Operations {
    pub accounts: Accounts,
    pub sessions: Arc<Sessions>,
    pub store: Arc<dyn Store>,
    pub revocations: Arc<Revocations>,
    pub clock: Clock,
    /// The configuration and the keys in force. A function, for a reload changes them.
    pub in_force: Box<dyn Fn() -> Arc<dyn InForce>>,
    /// Reads the configuration again; `None` where no server runs.
    pub reload: Option<Reload>,
}

/// What is in force right now.
pub trait InForce {
    /// The configuration.
    fn config(&self) -> &Config;
    /// The keys.
    fn ring(&self) -> Result<&KeyRing, String>;
}

impl Operations {
    /// Carries out one command. Whatever goes wrong is an [`Outcome::Failed`] with words for a person.
    pub async fn carry_out(&self, command: Command) -> Outcome {
        match self.try_to(command).await {
            Ok(outcome) => outcome,
            Err(message) => Outcome::Failed { message },
        }
    }

    async fn try_to(&self, command: Command) -> Result<Outcome, String> {
        match command {
            Command::UserAdd { .. }
            | Command::UserList
            | Command::UserShow { .. }
            | Command::UserSetPassword { .. }
            | Command::UserSetGroups { .. }
            | Command::UserDisable { .. }
            | Command::UserEnable { .. }
            | Command::UserRemove { .. }
            | Command::UserImport { .. }
            | Command::UserExport => self.user(command).await.map_err(|error| explained(&error)),
            Command::SessionList { username } => self.session_list(username).await,
            Command::SessionRevoke { session } => self.session_revoke(&session).await,
            Command::SessionRevokeUser { username } => {
                let in_force = (self.in_force)();
                let account = self.accounts.by_name(&username).await.map_err(|error| explained(&error))?;
                self.sessions.revoke_account(&in_force.config().token, &account.id).await.map_err(chain)?;
                Ok(Outcome::Done)
            }
            Command::SessionRevokeAll => {
                let in_force = (self.in_force)();
                self.sessions.revoke_all(&in_force.config().token).await.map_err(chain)?;
                Ok(Outcome::Done)
            }
            Command::TokenIssue { username, lifetime } => self.token_issue(&username, lifetime).await,
            Command::TokenInspect { token } => self.token_inspect(token.0.expose()).await,
            Command::StoreDump => self.dump().await,
            Command::StoreRestore { dump, keep_sessions } => self.restore(dump.0.expose(), keep_sessions).await,
            Command::KeyList => {
                let in_force = (self.in_force)();
                let config = in_force.config();
                let keys = keys::list(&config.token, &config.data_dir, self.clock.unix_seconds());
                let rows = keys.map_err(chain)?.into_iter().map(serde_json::to_value).collect::<Result<_, _>>();
                Ok(Outcome::Rows { rows: rows.map_err(chain)? })
            }
            Command::Ready => Err(String::from("no server runs")),
            Command::Reload => match &self.reload {
                Some(reload) => reload().map(|()| Outcome::Done),
                None => Err(String::from("no server runs, so there is nothing to reload")),
            },
        }
    }

    async fn user(&self, command: Command) -> Result<Outcome, AccountError> {
        let in_force = (self.in_force)();
        let (login, token) = (&in_force.config().login, &in_force.config().token);
        let accounts = &self.accounts;
        let changed = match command {
            Command::UserAdd { username, groups, email, display_name, password } => {
                accounts.add(login, NewAccount { username, groups, email, display_name }, password.0).await?
            }
            Command::UserShow { username } => accounts.by_name(&username).await?,
            Command::UserSetPassword { username, password } => {
                accounts.set_password(login, token, &username, password.0).await?
            }
            Command::UserSetGroups { username, groups } => accounts.set_groups(token, &username, groups).await?,
            Command::UserDisable { username } => accounts.disable(token, &username).await?,
            Command::UserEnable { username } => accounts.enable(token, &username).await?,
            Command::UserRemove { username } => {
                accounts.remove(token, &username).await?;
                return Ok(Outcome::Done);
            }
            Command::UserImport { format, text, accept_weak } => {
                let accept = if accept_weak { Accept::Weak } else { Accept::Strong };
                let read = match format {
                    ImportFormat::Htpasswd => import::htpasswd_accepting(text.0.expose(), accept),
                    ImportFormat::Json => import::json_accepting(text.0.expose(), accept),
                    ImportFormat::Authelia => import::authelia_accepting(text.0.expose(), accept),
                };
                let imported = read.map_err(|problems| AccountError::Invalid(problems.join("\n")))?;
                let count = accounts.import(imported).await?;
                return Ok(Outcome::Text { text: count.to_string() });
            }
            Command::UserExport => {
                let text = import::to_json(&accounts.list().await?, true);
                return Ok(Outcome::Text { text });
            }
            _ => return Ok(Outcome::Rows { rows: accounts.list().await?.iter().map(account_row).collect() }),
        };
        Ok(Outcome::Rows { rows: vec![account_row(&changed)] })
    }

    async fn session_list(&self, username: Option<String>) -> Result<Outcome, String> {
        let of = match username {
            Some(username) => Some(self.accounts.by_name(&username).await.map_err(|error| explained(&error))?.id),
            None => None,
        };
        let accounts = self.accounts.list().await.map_err(|error| explained(&error))?;
        let sessions = self.sessions.list(of.as_ref()).await.map_err(chain)?;
        let name_of = |id: &AccountId| {
            accounts.iter().find(|account| account.id == *id).map(|account| account.username.to_string())
        };
        let names: std::collections::HashMap<_, _> =
            sessions.iter().map(|session| (session.account.clone(), name_of(&session.account))).collect();
        let rows = sessions
            .iter()
            .map(|session| {
                session_row(session, names.get(&session.account).and_then(|name| name.as_deref()).unwrap_or_default())
            })
            .collect();
        Ok(Outcome::Rows { rows })
    }

    async fn session_revoke(&self, session: &str) -> Result<Outcome, String> {
        let in_force = (self.in_force)();
        let id: SessionId = session.parse().map_err(|error| format!("session id {error}"))?;
        if self.sessions.revoke(&in_force.config().token, &id).await.map_err(chain)? {
            Ok(Outcome::Done)
        } else {
            Err(format!("there is no session {session:?}; see `doorward session list`"))
        }
    }

    async fn token_issue(&self, username: &str, lifetime: Option<u64>) -> Result<Outcome, String> {
        let in_force = (self.in_force)();
        let token = &in_force.config().token;
        // Before the account, so that a change that races this ends the token.
        let head = self.store.log_head().await.map_err(chain)?;
        let account = self.accounts.by_name(username).await.map_err(|error| explained(&error))?;
        if account.disabled {
            return Err(format!("{username} is disabled; `doorward user enable {username}` first"));
        }
        let longest = token.horizon();
        let lifetime = lifetime.map(Duration::from_secs);
        if lifetime.is_some_and(|lifetime| lifetime > longest || lifetime.is_zero()) {
            return Err(format!("--lifetime must be over 0 and at most token.max_lifetime ({} s)", longest.as_secs()));
        }
        let issued =
            self.sessions.issue_for_script(in_force.ring()?, token, &account, head, lifetime).await.map_err(chain)?;
        Ok(Outcome::Text { text: issued.token.expose().clone() })
    }

    async fn token_inspect(&self, token: &str) -> Result<Outcome, String> {
        let in_force = (self.in_force)();
        let ring = in_force.ring()?;
        let (header, claims) = unverified(token);
        let refused = match ring.verify(token, self.clock.unix_seconds()) {
            Err(error) => Some(error.to_string()),
            Ok(verified) => self.why_not(&verified).await?,
        };
        let row = json!({ "header": header, "claims": claims, "accepted": refused.is_none(), "reason": refused });
        Ok(Outcome::Rows { rows: vec![row] })
    }

    /// Why a token whose signature and dates are right is refused all the same.
    async fn why_not(&self, verified: &Verified) -> Result<Option<String>, String> {
        if self.revocations.standing(verified) == Standing::Revoked {
            return Ok(Some(String::from("it was revoked")));
        }
        let account = self.store.account(&verified.account).await.map_err(chain)?;
        Ok(match account {
            Some(account) if account.disabled => Some(String::from("its account is disabled")),
            _ => None,
        })
    }

    async fn dump(&self) -> Result<Outcome, String> {
        let mut bytes = Vec::new();
        write_dump(&*self.store, self.clock.unix_seconds(), &mut bytes).await.map_err(chain)?;
        let text = String::from_utf8(bytes).map_err(|_| String::from("the dump is not text"))?;
        Ok(Outcome::Text { text })
    }

    async fn restore(&self, text: &str, keep_sessions: bool) -> Result<Outcome, String> {
        let in_force = (self.in_force)();
        let now = self.clock.unix_seconds();
        let expires = now + in_force.config().token.horizon().as_secs();
        let revoke_all = (!keep_sessions).then_some(RevokeAll { at: now, expires });
        let restored = restore(text.as_bytes(), &*self.store, revoke_all).await.map_err(chain)?;
        let counts = restored.counts;
        tracing::info!(log_head = restored.log_head, "a dump was restored");
        Ok(Outcome::Text {
            text: format!("{} accounts, {} sessions, {} revocations", counts.accounts, counts.sessions, counts.entries),
        })
    }
}

/// One account as every listing shows it: never the hash.
fn account_row(account: &Account) -> Value {
    json!({
        "_id": account.id.as_str(),
        "username": account.username.as_str(),
        "groups": account.groups,
        "email": account.email,
        "display_name": account.display_name,
        "disabled": account.disabled,
        "__v": account.version,
        "created": rfc3339(account.created),
        "changed": rfc3339(account.changed),
    })
}

fn session_row(session: &Session, username: &str) -> Value {
    json!({
        "sid": session.id.as_str(),
        "_id": session.account.as_str(),
        "username": username,
        "created": rfc3339(session.created),
        "renewed": rfc3339(session.renewed),
        "address": session.address,
        "user_agent": session.user_agent,
    })
}

fn explained(error: &AccountError) -> String {
    match error {
        AccountError::Store(StoreError::NameTaken(name)) => {
            format!(
                "an account named {name:?} exists already; `doorward user set-password {name}` changes its password"
            )
        }
        AccountError::NoSuchAccount(name) => format!("there is no account named {name:?}; see `doorward user list`"),
        error => chain(error),
    }
}

/// An error with its causes.
fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Transparent errors repeat what they wrap.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

/// The secret part of a text for [`Command`].
#[must_use]
pub fn hidden(text: String) -> super::command::Password {
    super::command::Password(Secret::new(text))
}

/// What a token says, believed or not: for a person to look at. `null` where it can't be read.
fn unverified(token: &str) -> (Value, Value) {
    use base64::Engine as _;
    let mut parts = token.split('.').map(|part| {
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(part)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or(Value::Null)
    });
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}
