//! What the tests of this room share: a ring, a store that can be held up, accounts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::keys::KeyRing;
use super::revocation::Revocations;
use super::session::Sessions;
use super::token::Claims;
use super::{Identified, Source, Verified};
use crate::clock::Clock;
use crate::config::{self, Algorithm, KeyMaterial};
use crate::policy::Caller;
use crate::secret::Secret;
use crate::store::{
    Account, AccountId, Applied, LogEntry, LogFollower, Session, SessionId, Store, StoreError, StoreFuture, Username,
    Write,
};
use crate::telemetry::{Telemetry, access, audit, metrics};

pub(super) const NOW: u64 = 1_800_000_000;
pub(super) const DAY: u64 = 24 * 3600;
pub(super) const SECRET: &str = "0123456789abcdef0123456789abcdef";

pub(super) fn config(algorithm: Algorithm) -> config::Token {
    config::Token {
        algorithm,
        signing_key: None,
        previous_keys: Vec::new(),
        issuer: String::from("doorward"),
        lifetime: Duration::from_secs(7 * DAY),
        refresh_below: Duration::from_secs(7 * DAY / 2),
        max_lifetime: Duration::from_secs(30 * DAY),
        gateway_secret: None,
    }
}

pub(super) fn secret(text: &str) -> KeyMaterial {
    KeyMaterial {
        origin: String::from("$JWT_SECRET"),
        algorithm: Algorithm::Hs256,
        bytes: Secret::new(text.as_bytes().to_vec()),
    }
}

pub(super) fn hs256() -> config::Token {
    config::Token { signing_key: Some(secret(SECRET)), ..config(Algorithm::Hs256) }
}

pub(super) fn limits() -> config::Store {
    config::Store {
        kind: config::StoreKind::Sled,
        max_staleness: Duration::from_secs(10),
        on_stale: config::OnStale::Serve,
        timeout: Duration::from_mins(1),
    }
}

/// `kim` and `lee`, logged in whenever a test wants.
pub(super) struct Fixture {
    pub(super) token_config: config::Token,
    pub(super) ring: KeyRing,
    pub(super) revocations: Arc<Revocations>,
    pub(super) store: Arc<Double>,
    pub(super) sessions: Sessions,
    pub(super) clock: Clock,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let token_config = hs256();
        let folder = tempfile::tempdir().unwrap();
        let ring = KeyRing::load(&token_config, folder.path(), NOW).unwrap();
        let clock = Clock::manual(NOW);
        let revocations = Arc::new(Revocations::default());
        let store = Arc::new(Double::default());
        store.state.lock().unwrap().follower = Some(Arc::clone(&revocations));
        revocations.extend(&[], 0);
        for name in ["kim", "lee"] {
            store.put(account(name, &["staff"]));
        }
        let metrics = metrics::Metrics::default();
        let log = access::AccessLog::new(clock.clone(), metrics.clone(), config::LogFormat::Json, false);
        let audit = audit::Audit::to_file(clock.clone(), &folder.path().join("audit")).unwrap();
        let telemetry = Telemetry { access: log, audit, metrics };
        let shared: Arc<dyn Store> = Arc::<Double>::clone(&store);
        let sessions = Sessions::new(shared, Arc::clone(&revocations), clock.clone(), telemetry);
        Self { token_config, ring, revocations, store, sessions, clock }
    }

    /// A token of ours, issued then, as of log number 5, with a session named after the account.
    pub(super) fn token(&self, name: &str, issued_at: u64) -> String {
        self.ring.sign(&claims(name, issued_at)).unwrap()
    }

    pub(super) fn verified(&self, name: &str, issued_at: u64) -> Arc<Verified> {
        Arc::new(self.ring.verify(&self.token(name, issued_at), self.clock.unix_seconds()).unwrap())
    }

    pub(super) fn identified(&self, verified: Arc<Verified>, source: Source) -> Identified {
        Identified {
            caller: Caller::Person(Arc::clone(&verified.principal)),
            standing: self.revocations.standing(&verified),
            credential: Some((verified, source)),
            other_cookies: Vec::new(),
            stale_cookie: false,
            own_bearer: source == Source::Bearer,
            unknown_key: false,
        }
    }
}

pub(super) fn claims(name: &str, issued_at: u64) -> Claims {
    Claims {
        iss: String::from("doorward"),
        sub: format!("id-{name}"),
        id: format!("id-{name}"),
        username: name.to_owned(),
        groups: vec![String::from("staff")],
        email: String::new(),
        name: String::new(),
        sid: format!("session-{name}"),
        version: 0,
        auth_time: issued_at,
        seq: 5,
        iat: issued_at,
        exp: issued_at + 7 * DAY,
    }
}

pub(super) fn account(name: &str, groups: &[&str]) -> Account {
    Account {
        id: format!("id-{name}").parse().unwrap(),
        username: Username::canonical(name).unwrap(),
        password_hash: Secret::new(String::new()),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        email: format!("{name}@example.com"),
        display_name: String::new(),
        disabled: false,
        version: 0,
        created: 0,
        changed: 0,
        revision: 0,
    }
}

/// A store in memory that counts, fails and waits as a test wants.
#[derive(Default)]
pub(super) struct Double {
    state: Mutex<State>,
    pub(super) reads: AtomicUsize,
    pub(super) is_down: AtomicBool,
    /// While a test holds it for writing, accounts are read but the reading is not handed over.
    pub(super) hold: tokio::sync::RwLock<()>,
}

#[derive(Default)]
struct State {
    accounts: BTreeMap<String, Account>,
    sessions: BTreeMap<String, Session>,
    log: Vec<LogEntry>,
    follower: Option<Arc<Revocations>>,
}

impl Double {
    pub(super) fn put(&self, account: Account) {
        self.state.lock().unwrap().accounts.insert(account.id.to_string(), account);
    }

    pub(super) fn remove(&self, id: &AccountId) {
        self.state.lock().unwrap().accounts.remove(id.as_str());
    }

    pub(super) fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    pub(super) fn stored(&self) -> Vec<Session> {
        self.state.lock().unwrap().sessions.values().cloned().collect()
    }

    pub(super) fn log_entries(&self) -> Vec<LogEntry> {
        self.state.lock().unwrap().log.clone()
    }

    fn up(&self) -> Result<(), StoreError> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable { problem: String::from("down"), source: None });
        }
        Ok(())
    }
}

fn head(state: &State) -> u64 {
    state.log.last().map_or(5, |entry| entry.number)
}

impl Store for Double {
    fn account(&self, id: &AccountId) -> StoreFuture<'_, Option<Account>> {
        let id = id.to_string();
        Box::pin(async move {
            self.up()?;
            let account = self.state.lock().unwrap().accounts.get(&id).cloned();
            self.reads.fetch_add(1, Ordering::SeqCst);
            let _held = self.hold.read().await;
            Ok(account)
        })
    }

    fn account_by_name(&self, _name: &Username) -> StoreFuture<'_, Option<Account>> {
        unimplemented!()
    }

    fn accounts(&self) -> StoreFuture<'_, Vec<Account>> {
        unimplemented!()
    }

    fn session(&self, id: &SessionId) -> StoreFuture<'_, Option<Session>> {
        let session = self.state.lock().unwrap().sessions.get(id.as_str()).cloned();
        Box::pin(async move { self.up().map(|()| session) })
    }

    fn sessions(&self, _of: Option<&AccountId>) -> StoreFuture<'_, Vec<Session>> {
        let sessions = self.stored();
        Box::pin(async move { Ok(sessions) })
    }

    fn apply(&self, writes: Vec<Write>) -> StoreFuture<'_, Applied> {
        Box::pin(async move {
            self.up()?;
            let mut state = self.state.lock().unwrap();
            let mut entries = Vec::new();
            for write in writes {
                match write {
                    Write::PutSession(session) => {
                        state.sessions.insert(session.id.to_string(), session);
                    }
                    Write::TouchSession(session) => {
                        if let Some(stored) = state.sessions.get_mut(session.id.as_str()) {
                            *stored = session;
                        }
                    }
                    Write::RemoveSession(session) => {
                        state.sessions.remove(session.as_str());
                    }
                    Write::RemoveSessionsOf(account) => state.sessions.retain(|_, session| session.account != account),
                    Write::RemoveAllSessions => state.sessions.clear(),
                    Write::Revoke { what, at, expires } => {
                        let entry = LogEntry { number: head(&state) + 1, what, at, expires };
                        state.log.push(entry.clone());
                        entries.push(entry);
                    }
                    Write::EndOldestSessions { .. } | Write::Longest(_) => {}
                    Write::InsertAccount(_) | Write::UpdateAccount(_) | Write::RemoveAccount(_) => unimplemented!(),
                }
            }
            let log_head = head(&state);
            if let Some(follower) = &state.follower {
                follower.extend(&entries, log_head);
            }
            Ok(Applied { log_head, entries })
        })
    }

    fn log_head(&self) -> StoreFuture<'_, u64> {
        Box::pin(async move { self.up().map(|()| head(&self.state.lock().unwrap())) })
    }

    fn follow(&self, _follower: Arc<dyn LogFollower>) -> StoreFuture<'_, ()> {
        unimplemented!()
    }

    fn log(&self) -> StoreFuture<'_, Vec<LogEntry>> {
        unimplemented!()
    }

    fn health(&self) -> StoreFuture<'_, ()> {
        unimplemented!()
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        unimplemented!()
    }
}
