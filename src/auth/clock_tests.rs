//! Clocks that are set, and lifetimes that are changed, against a real store: what was ended stays ended.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::keys::KeyRing;
use super::revocation::Revocations;
use super::session::Sessions;
use super::testing::{DAY, Fixture, NOW, account, claims, hs256};
use super::{Standing, Verified};
use crate::clock::Clock;
use crate::config;
use crate::store::{Account, Forgotten, LogEntry, LogFollower, Sled, SledOptions, Store, Write};

/// A process that follows the log, as the composition root ties it together.
struct Process {
    store: Arc<Sled>,
    revocations: Arc<Revocations>,
    sessions: Sessions,
    clock: Clock,
}

struct Told(Arc<Revocations>, Clock);

impl LogFollower for Told {
    fn extend(&self, entries: &[LogEntry], head: u64) {
        self.0.extend(entries, head);
    }

    fn forgotten(&self, forgotten: Forgotten) {
        self.0.forget(forgotten, &self.1);
    }
}

impl Process {
    async fn start(folder: &Path, clock: &Clock) -> Self {
        let options = SledOptions { timeout: Duration::from_mins(1), ..SledOptions::default() };
        let store = Sled::open(folder, clock.clone(), options).unwrap();
        let revocations = Arc::new(Revocations::default());
        store.follow(Arc::new(Told(Arc::clone(&revocations), clock.clone()))).await.unwrap();
        let telemetry = Fixture::new().sessions.telemetry.clone();
        let shared: Arc<dyn Store> = Arc::<Sled>::clone(&store);
        let sessions = Sessions::new(shared, Arc::clone(&revocations), clock.clone(), telemetry);
        Self { store, revocations, sessions, clock: clock.clone() }
    }

    async fn minutes(&self, minutes: usize) {
        for _ in 0..minutes {
            self.clock.advance(Duration::from_secs(65));
            // The house is kept after each call; the second one waits for it.
            self.store.health().await.unwrap();
            self.store.health().await.unwrap();
        }
    }

    async fn log_in(&self, token: &config::Token, account: &Account) -> String {
        let (client, head) = ("127.0.0.1".parse().unwrap(), self.store.log_head().await.unwrap());
        let issued = self.sessions.start(&ring(token), token, account, head, client, "", &[]).await.unwrap();
        issued.token.expose().clone()
    }

    /// What a request with this token comes to under a configuration.
    fn is_good(&self, token: &config::Token, text: &str) -> bool {
        match ring(token).verify(text, self.clock.unix_seconds()) {
            Ok(verified) => self.standing(&verified) == Standing::Current,
            Err(_) => false,
        }
    }

    fn standing(&self, verified: &Verified) -> Standing {
        self.revocations.standing(verified)
    }
}

fn ring(token: &config::Token) -> KeyRing {
    KeyRing::load(token, tempfile::tempdir().unwrap().path(), NOW).unwrap()
}

/// The lifetimes of a file that somebody has shortened.
fn short() -> config::Token {
    let minute = Duration::from_mins(1);
    config::Token { lifetime: minute, refresh_below: minute / 2, max_lifetime: minute, ..hs256() }
}

#[tokio::test]
async fn what_was_revoked_stays_so_whatever_the_clock_shows_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOW);
    let token = hs256();
    let mut process = Process::start(folder.path(), &clock).await;
    let (kim, lee) = (account("kim", &[]), account("lee", &[]));
    let (revoked, good) = (process.log_in(&token, &kim).await, process.log_in(&token, &lee).await);
    process.sessions.revoke_account(&token, &kim.id).await.unwrap();
    let check = |process: &Process, when: &str| {
        assert!(!process.is_good(&token, &revoked), "{when}");
        assert!(process.is_good(&token, &good), "{when}: nobody else is logged out by it");
    };
    for wrong in [31 * DAY, 400 * DAY] {
        clock.set_by(wrong.cast_signed());
        process.minutes(2).await;
        clock.set_by(-wrong.cast_signed());
        check(&process, "the clock was wrong for two minutes");
        assert_eq!(process.store.sessions(None).await.unwrap().len(), 1, "lee's session is listed");
        // A start meanwhile.
        clock.set_by(wrong.cast_signed());
        process.store.close().await.unwrap();
        process = Process::start(folder.path(), &clock).await;
        process.minutes(2).await;
        clock.set_by(-wrong.cast_signed());
        check(&process, "it started with a wrong clock");
        process.minutes(1).await;
        check(&process, "and went on");
    }
    // After its time it is gone, and a clock that goes back brings no token back.
    for _ in 0..32 {
        clock.advance(Duration::from_hours(24));
        process.minutes(1).await;
    }
    assert_eq!(process.revocations.len(), 0);
    clock.set_by(-30 * DAY.cast_signed());
    process.minutes(1).await;
    assert!(ring(&token).verify(&revoked, clock.unix_seconds()).is_ok(), "by the clock alone it would be good");
    assert!(!process.is_good(&token, &revoked));
    process.store.close().await.unwrap();
    let process = Process::start(folder.path(), &clock).await;
    assert!(!process.is_good(&token, &revoked), "nor does a start");
    let fresh = process.log_in(&token, &lee).await;
    assert!(process.is_good(&token, &fresh), "whoever logs in by that clock is logged in");
}

#[tokio::test]
async fn a_revocation_outlives_lifetimes_that_were_shortened_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOW);
    let process = Process::start(folder.path(), &clock).await;
    let (kim, lee) = (account("kim", &[]), account("lee", &[]));
    let long = hs256();
    process.store.apply(vec![Write::Longest(long.horizon().as_secs())]).await.unwrap();
    let (ended, good) = (process.log_in(&long, &kim).await, process.log_in(&long, &lee).await);
    let foreign = foreign("kim", NOW + 300 * DAY);
    assert!(process.is_good(&long, &foreign));
    // `max_lifetime = "1m"`, reload, `user disable kim`, and a long wait.
    process.sessions.revoke_account(&short(), &kim.id).await.unwrap();
    process.minutes(10).await;
    assert!(!process.is_good(&short(), &good), "for everybody's token is too old now");
    // The lifetimes of before.
    for text in [&ended, &foreign] {
        assert!(!process.is_good(&long, text));
    }
    assert!(process.is_good(&long, &good));
    // A limit that was never in force before: the entry is gone, what it ended is not back.
    for _ in 0..40 {
        clock.advance(Duration::from_hours(24));
        process.minutes(1).await;
    }
    assert_eq!(process.revocations.len(), 0);
    let longer = config::Token { max_lifetime: Duration::ZERO, ..long };
    assert!(ring(&longer).verify(&foreign, clock.unix_seconds()).is_ok());
    assert!(!process.is_good(&longer, &foreign));
}

/// A backend's token, which lives as long as it says.
fn foreign(name: &str, exp: u64) -> String {
    let claims = serde_json::json!({ "_id": format!("id-{name}"), "username": name, "iat": NOW - 60, "exp": exp });
    let key = jsonwebtoken::EncodingKey::from_secret(super::testing::SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

#[tokio::test]
async fn a_session_that_was_renewed_for_less_is_ended_for_as_long_as_its_older_token_lives() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &Clock::manual(NOW)).await;
    let kim = account("kim", &[]);
    let old = process.log_in(&hs256(), &kim).await;
    let session = ring(&hs256()).verify(&old, NOW).unwrap().session.unwrap();
    let stored = process.store.session(&session).await.unwrap().unwrap();
    let renewed = crate::store::Session { expires: NOW + 60, ..stored };
    process.store.apply(vec![Write::TouchSession(renewed)]).await.unwrap();
    assert!(process.sessions.revoke(&short(), &session).await.unwrap());
    process.minutes(10).await;
    assert!(!process.is_good(&hs256(), &old));
}

#[tokio::test]
async fn a_logout_outlives_lifetimes_that_were_shortened_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOW);
    let process = Process::start(folder.path(), &clock).await;
    let kim = account("kim", &[]);
    let old = process.log_in(&hs256(), &kim).await;
    // The second one's session is not stored: its token is all that is known of it.
    let unstored = ring(&hs256()).sign(&claims("kim", NOW)).unwrap();
    for text in [&old, &unstored] {
        let verified = ring(&short()).verify(text, NOW).unwrap();
        process.sessions.end(&short(), &verified, None).await.unwrap();
    }
    process.minutes(10).await;
    assert!(!process.is_good(&hs256(), &old));
    assert!(!process.is_good(&hs256(), &unstored));
}
