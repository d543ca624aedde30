//! Sign-in and changes, on the store in memory.

use std::net::IpAddr;

use super::*;
use crate::config::{self, Algorithm};
use crate::secret::Secret;
use crate::store::{AccountId, LogEntry, Memory, Revocation, Session, SessionId, Write};

const NOW: u64 = 1_795_512_600;
const PASSWORD: &str = "eleven ducks";

struct Room {
    accounts: Accounts,
    store: Arc<Memory>,
    clock: Clock,
    login: config::Login,
    token: config::Token,
    audit: tempfile::NamedTempFile,
}

fn secret(text: &str) -> Secret<String> {
    Secret::new(text.to_owned())
}

fn client() -> IpAddr {
    "192.0.2.7".parse().unwrap()
}

impl Room {
    fn new() -> Self {
        Self::with_pool(2, 64)
    }

    fn with_pool(threads: usize, queue: usize) -> Self {
        let clock = Clock::manual(NOW);
        let store = Arc::new(Memory::new(clock.clone()));
        let audit = tempfile::NamedTempFile::new().unwrap();
        let accounts = Accounts::new(
            Arc::clone(&store) as _,
            clock.clone(),
            hashing::HashPool::start(threads, queue).unwrap(),
            Audit::to_file(clock.clone(), audit.path()).unwrap(),
        );
        let login = config::Login {
            bcrypt_cost: 4,
            max_attempts: 3,
            max_attempts_per_network: 50,
            window: Duration::from_mins(5),
            min_password_length: 8,
            redirect_hosts: Vec::new(),
            title: String::new(),
            help: String::new(),
        };
        let token = config::Token {
            algorithm: Algorithm::Hs256,
            signing_key: None,
            previous_keys: Vec::new(),
            issuer: String::from("doorward"),
            lifetime: Duration::from_hours(1),
            refresh_below: Duration::from_mins(30),
            max_lifetime: Duration::from_hours(2),
            gateway_secret: None,
        };
        Self { accounts, store, clock, login, token, audit }
    }

    async fn add(&self, name: &str) -> Account {
        let new = NewAccount { username: name.to_owned(), groups: vec![String::from("staff")], ..Default::default() };
        self.accounts.add(&self.login, new, secret(PASSWORD)).await.unwrap()
    }

    /// An account with whatever hash.
    async fn import(&self, name: &str, hash: &str) {
        let account = import::Imported {
            id: None,
            username: Username::canonical(name).unwrap(),
            password_hash: secret(hash),
            groups: Vec::new(),
            email: String::new(),
            display_name: String::new(),
            disabled: false,
            version: 7,
        };
        assert_eq!(self.accounts.import(vec![account]).await.unwrap(), 1);
    }

    async fn sign_in(&self, name: &str, password: &str) -> SignIn {
        self.accounts.sign_in(&self.login, name, secret(password), client()).await
    }

    async fn session(&self, account: &Account) {
        let session = Session {
            id: SessionId::random(),
            account: account.id.clone(),
            created: NOW,
            renewed: NOW,
            expires: NOW + 3_600,
            address: String::new(),
            user_agent: String::new(),
        };
        self.store.apply(vec![Write::PutSession(session)]).await.unwrap();
    }

    /// What the log says since `after`, and how many sessions the account still has.
    async fn effects(&self, after: u64, of: &Account) -> (Vec<Revocation>, usize) {
        let log: Vec<LogEntry> = self.store.log().await.unwrap();
        let new = log.into_iter().filter(|entry| entry.number > after);
        let what = new.map(|entry| {
            assert_eq!((entry.at, entry.expires), (NOW, NOW + 7_200));
            entry.what
        });
        (what.collect(), self.store.sessions(Some(&of.id)).await.unwrap().len())
    }

    fn audit(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.audit.path()).unwrap();
        let word = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            format!("{} {}", line["event"].as_str().unwrap(), line["outcome"].as_str().unwrap())
        };
        text.lines().map(word).collect()
    }
}

fn ended(account: &Account) -> Vec<Revocation> {
    vec![Revocation::Account { account: account.id.clone() }]
}

#[tokio::test]
async fn every_wrong_login_gets_the_same_answer() {
    let room = Room::new();
    room.add("kim").await;
    room.add("lee").await;
    room.accounts.disable(&room.token, "lee").await.unwrap();
    room.import("max", "$2b$31$nonsense").await;
    for (name, password) in [
        ("kim", "wrong"),
        ("nobody", PASSWORD),
        ("lee", PASSWORD),
        ("max", PASSWORD),
        ("no name\u{1b}[2J", PASSWORD),
        ("", PASSWORD),
        ("kim", "eleven ducks\0"),
        ("kim", "eleven ducks "),
    ] {
        assert!(matches!(room.sign_in(name, password).await, SignIn::Refused), "{name:?} {password:?}");
    }
    let reasons: Vec<String> = room.audit().into_iter().filter(|word| word.starts_with("login")).collect();
    let wrong = "login_failed wrong_password";
    let unknown = "login_failed unknown_name";
    let disabled = "login_failed disabled";
    assert_eq!(reasons, [wrong, unknown, disabled, "login_failed unreadable_hash", unknown, unknown, wrong, wrong]);
    let log = std::fs::read_to_string(room.audit.path()).unwrap();
    assert!(!log.contains("ducks") && !log.contains('\u{1b}') && !log.contains("\\u001b") && !log.contains("$2b$"));
}

#[tokio::test]
async fn a_right_login_names_the_log_as_it_was_before_the_account_was_read() {
    let room = Room::new();
    let kim = room.add("kim").await;
    room.accounts.disable(&room.token, "kim").await.unwrap();
    room.accounts.enable(&room.token, "kim").await.unwrap();
    let SignIn::Granted { account, log_head } = room.sign_in("ＫＩＭ", PASSWORD).await else { panic!("refused") };
    assert_eq!((account.id, log_head), (kim.id.clone(), 1));
    // Whoever disables the account from now on, a token with this number is older.
    room.accounts.disable(&room.token, "kim").await.unwrap();
    assert!(room.store.log_head().await.unwrap() > log_head);
    assert!(matches!(room.sign_in("kim", PASSWORD).await, SignIn::Refused));
}

#[tokio::test]
async fn the_throttle_holds_one_name_from_one_network() {
    let room = Room::new();
    room.add("kim").await;
    for name in ["kim", "KIM", "ｋｉｍ"] {
        assert!(matches!(room.sign_in(name, "wrong").await, SignIn::Refused));
    }
    let SignIn::Throttled { retry_after } = room.sign_in("Kim", PASSWORD).await else { panic!("not throttled") };
    assert_eq!(retry_after, Duration::from_mins(5));
    let elsewhere = "2001:db8::1".parse().unwrap();
    let other = room.accounts.sign_in(&room.login, "kim", secret(PASSWORD), elsewhere).await;
    assert!(matches!(other, SignIn::Granted { .. }));
    room.clock.advance(retry_after);
    assert!(matches!(room.sign_in("kim", PASSWORD).await, SignIn::Granted { .. }));
    assert!(room.audit().contains(&String::from("login_throttled too_many_tries")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_wrong_logins_is_answered_and_bounded() {
    for queue in [2, 256] {
        let room = Arc::new(Room::with_pool(2, queue));
        room.add("kim").await;
        let mut tries = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let room = Arc::clone(&room);
            tries.spawn(async move { room.sign_in("kim", "wrong").await });
        }
        let mut refused = 0;
        while let Some(outcome) = tries.join_next().await {
            match outcome.unwrap() {
                SignIn::Refused => refused += 1,
                SignIn::Busy | SignIn::Throttled { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        // Each refusal was one guess that was checked: the limit, and one under way on the other thread.
        assert!((1..=4).contains(&refused), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn right_logins_at_once_are_all_let_in() {
    let room = Arc::new(Room::with_pool(2, 64));
    room.add("kim").await;
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let room = Arc::clone(&room);
        tries.spawn(async move { room.sign_in("kim", PASSWORD).await });
    }
    while let Some(outcome) = tries.join_next().await {
        assert!(matches!(outcome.unwrap(), SignIn::Granted { .. }));
    }
}

#[tokio::test]
async fn an_outdated_hash_is_made_anew_at_the_next_login() {
    let room = Room::new();
    let long = "x".repeat(80);
    for (name, password, hash) in [
        ("five", PASSWORD, password::hash(PASSWORD, 5).unwrap()),
        ("long", long.as_str(), bcrypt::hash(&long, 4).unwrap()),
        ("apache", PASSWORD, String::from("$apr1$abcdefgh$YYG8ccoBt6Cpi6dSXDp1u0")),
        (
            "shadow",
            PASSWORD,
            String::from(
                "$6$saltstring$e5PJil2/DYcevOo/hXpjrWrFaIIZK9L4IaSxCjPmXg6.sY/ymr1x1jA/nCMfafpgP01zEvrKXezv3qcDbi4Mm/",
            ),
        ),
        (
            "argon",
            "pässword",
            String::from(
                "$argon2id$v=19$m=64,t=2,p=1$x1vpcgYVQWtcL6FBZIxInA$HETAzL2WQXzbjRdjZwe3Xhza0ugovjk8piOuiWmjNsc",
            ),
        ),
    ] {
        room.import(name, &hash).await;
        let before = room.accounts.by_name(name).await.unwrap();
        assert!(matches!(room.sign_in(name, "wrong").await, SignIn::Refused));
        assert_eq!(room.accounts.by_name(name).await.unwrap().password_hash.expose(), &hash);
        let SignIn::Granted { account, .. } = room.sign_in(name, password).await else { panic!("{name}") };
        let after = room.accounts.by_name(name).await.unwrap();
        assert!(!password::needs_rehash(after.password_hash.expose(), password, 4), "{name}");
        assert_eq!((after.version, after.revision), (before.version, before.revision + 1));
        assert_eq!(account.revision, after.revision);
        assert!(matches!(room.sign_in(name, password).await, SignIn::Granted { .. }));
        assert_eq!(room.accounts.by_name(name).await.unwrap().revision, after.revision);
    }
    assert_eq!(room.store.log_head().await.unwrap(), 0);
}

/// A processor on which each kind takes its own time, as one was found on which bcrypt's rounds, summed up from several
/// hashes, took longer than in one. Whatever the work is, below a turn, every refusal takes as long.
#[tokio::test(start_paused = true)]
async fn refusals_leave_at_one_moment_whatever_their_work_took() {
    let mut room = Room::new();
    let login = config::Login { max_attempts: 1_000, ..room.login.clone() };
    let turn = Duration::from_millis(90);
    room.accounts.turns.measured(1 << 4, turn * 2 / 3);
    assert_eq!(room.accounts.turns.turn(4), turn);
    let kim = room.add("kim").await;
    room.add("closed").await;
    room.accounts.disable(&room.token, "closed").await.unwrap();
    room.import(
        "argon",
        "$argon2id$v=19$m=64,t=2,p=1$x1vpcgYVQWtcL6FBZIxInA$HETAzL2WQXzbjRdjZwe3Xhza0ugovjk8piOuiWmjNsc",
    )
    .await;
    room.import("dear", &password::hash("another one", 6).unwrap()).await;
    room.import("broken", "$2b$31$nonsense").await;
    let clock = room.clock.clone();
    room.accounts.more_work = Some(Arc::new(move |name| {
        let milliseconds = match name {
            "kim" => 59,
            "closed" => 88,
            "argon" => 3,
            "broken" => 60,
            "dear" => 200,
            _ => 0,
        };
        clock.advance(Duration::from_millis(milliseconds));
    }));
    // What the work moved the clock by, and what was waited for afterwards.
    let both = |began: (std::time::Instant, tokio::time::Instant)| {
        room.clock.instant().duration_since(began.0) + began.1.elapsed()
    };
    let (long, nul) = ("x".repeat(2_000), "eleven\0ducks");
    let mut taken = Vec::new();
    for (name, password) in [
        ("kim", "wrong"),
        ("nobody", "wrong"),
        ("no name", "wrong"),
        ("closed", PASSWORD),
        ("argon", "wrong"),
        ("broken", "wrong"),
        ("kim", long.as_str()),
        ("kim", nul),
    ] {
        let began = (room.clock.instant(), tokio::time::Instant::now());
        let outcome = room.accounts.sign_in(&login, name, secret(password), client()).await;
        assert!(matches!(outcome, SignIn::Refused), "{name}");
        taken.push(both(began));
    }
    let began = (room.clock.instant(), tokio::time::Instant::now());
    let (current, new) = (secret("wrong"), secret("twelve geese"));
    let changed = room.accounts.change_own_password(&login, &room.token, &kim.id, current, new, client()).await;
    assert!(matches!(changed, Err(AccountError::WrongPassword)));
    taken.push(both(began));
    // A timer rings at a whole millisecond.
    let expected = Duration::from_millis(102);
    assert!(taken.iter().all(|taken| *taken == expected), "{taken:?}");

    // Dearer than the configured cost: as few as possible can be told apart, by whole turns only.
    let began = (room.clock.instant(), tokio::time::Instant::now());
    assert!(matches!(room.accounts.sign_in(&login, "dear", secret("wrong"), client()).await, SignIn::Refused));
    assert_eq!(both(began), Duration::from_millis(282));
    // A right one goes as soon as it can.
    let began = tokio::time::Instant::now();
    assert!(matches!(room.accounts.sign_in(&login, "kim", secret(PASSWORD), client()).await, SignIn::Granted { .. }));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn one_network_has_so_many_wrong_tries_under_any_names() {
    let room = Room::new();
    let kim = room.add("kim").await;
    let login = config::Login { max_attempts_per_network: 4, ..room.login.clone() };
    let try_from = async |client: &str, name: &str, password: &str| {
        room.accounts.sign_in(&login, name, secret(password), client.parse().unwrap()).await
    };
    for number in 0..3 {
        let name = format!("nobody{number}");
        assert!(matches!(try_from("2001:db8:1:2::1", &name, "wrong").await, SignIn::Refused));
    }
    // A right password does not make the network's earlier tries undone: or one own account would buy any number of them.
    assert!(matches!(try_from("2001:db8:1:2::2", "kim", PASSWORD).await, SignIn::Granted { .. }));
    assert!(matches!(try_from("2001:db8:1:2::3", "no name", "wrong").await, SignIn::Refused));
    for (name, password) in [("kim", PASSWORD), ("never tried", "wrong"), ("lee", "wrong")] {
        let outcome = try_from("2001:db8:1:2:ffff::4", name, password).await;
        assert!(
            matches!(outcome, SignIn::Throttled { retry_after } if retry_after == Duration::from_mins(5)),
            "{name}"
        );
    }
    let (current, new) = (secret(PASSWORD), secret("twelve geese"));
    let client = "2001:db8:1:2::9".parse().unwrap();
    let changed = room.accounts.change_own_password(&login, &room.token, &kim.id, current, new, client).await;
    assert!(matches!(changed, Err(AccountError::Throttled { .. })));
    assert!(room.audit().iter().any(|line| line.contains("too_many_tries_from_network")), "{:?}", room.audit());
    // Nobody else waits, and after the window nobody does.
    assert!(matches!(try_from("2001:db8:1:3::1", "kim", PASSWORD).await, SignIn::Granted { .. }));
    room.clock.advance(login.window);
    assert!(matches!(try_from("2001:db8:1:2::1", "kim", PASSWORD).await, SignIn::Granted { .. }));
    let unlimited = config::Login { max_attempts_per_network: 0, ..login.clone() };
    for number in 0..40 {
        let (name, client) = (format!("nobody{number}"), "192.0.2.9".parse().unwrap());
        let outcome = room.accounts.sign_in(&unlimited, &name, secret("wrong"), client).await;
        assert!(matches!(outcome, SignIn::Refused));
    }
}

#[tokio::test]
async fn what_is_no_accounts_name_is_not_written_to_the_audit_log() {
    let room = Room::new();
    room.add("kim").await;
    for name in [PASSWORD, PASSWORD, "correct-horse-7", "  Correct-Horse-7 ", "kim", " KIM "] {
        assert!(matches!(room.sign_in(name, "wrong").await, SignIn::Refused), "{name}");
    }
    // Throttled, without a look at the store: what is known from the wrong tries is known still.
    assert!(matches!(room.sign_in("kim", "wrong").await, SignIn::Refused));
    for name in ["kim", "correct-horse-7", PASSWORD] {
        room.sign_in(name, "wrong").await;
        assert!(matches!(room.sign_in(name, "wrong").await, SignIn::Throttled { .. }), "{name}");
    }
    let text = std::fs::read_to_string(room.audit.path()).unwrap();
    let lowered = text.to_lowercase();
    for hidden in ["ducks", "horse"] {
        assert!(!lowered.contains(hidden), "{text}");
    }
    let names = text.lines().filter(|line| line.contains("login_")).map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["username"].as_str().unwrap().to_owned()
    });
    let names: std::collections::BTreeSet<String> = names.collect();
    // Who tries the same again can still be seen.
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.contains("kim"));
    assert!(names.iter().filter(|name| *name != "kim").all(|name| name.starts_with("(unknown ") && name.len() == 20));
}

#[tokio::test]
async fn a_new_hash_overwrites_no_change_of_somebody_else() {
    let room = Room::new();
    room.import("kim", &password::hash(PASSWORD, 5).unwrap()).await;
    let mut read = room.accounts.by_name("kim").await.unwrap();
    room.accounts.disable(&room.token, "kim").await.unwrap();
    room.accounts.store_rehashed(&mut read, secret("another hash")).await;
    let kept = room.accounts.by_name("kim").await.unwrap();
    assert!(kept.disabled);
    assert_ne!(kept.password_hash.expose(), "another hash");
    assert_ne!(read.password_hash.expose(), "another hash");
}

#[tokio::test]
async fn each_change_writes_what_follows_from_it() {
    let room = Room::new();
    let kim = room.add("kim").await;
    let (accounts, token) = (&room.accounts, &room.token);
    assert_eq!((kim.version, kim.created, kim.changed), (0, NOW, NOW));

    room.session(&kim).await;
    let changed = accounts.set_groups(token, "KIM", vec!["b".into(), "a".into(), "b".into()]).await.unwrap();
    assert_eq!(changed.groups, ["b", "a"]);
    assert_eq!(changed.version, 0);
    assert_eq!(room.effects(0, &kim).await, (vec![Revocation::Changed { account: kim.id.clone() }], 1));
    let same = accounts.set_groups(token, "kim", vec!["b".into(), "a".into()]).await.unwrap();
    assert_eq!((same.revision, room.store.log_head().await.unwrap()), (changed.revision, 1));

    let changed = accounts.set_password(&room.login, token, "kim", secret("twelve geese")).await.unwrap();
    assert_eq!(changed.version, 1);
    assert_eq!(room.effects(1, &kim).await, (ended(&kim), 0));

    room.session(&kim).await;
    let (current, new) = (secret("twelve geese"), secret("thirteen swans"));
    let changed = accounts.change_own_password(&room.login, token, &kim.id, current, new, client()).await.unwrap();
    assert_eq!(changed.version, 2);
    assert_eq!(room.effects(2, &kim).await, (ended(&kim), 0));
    assert!(matches!(room.sign_in("kim", "thirteen swans").await, SignIn::Granted { .. }));

    room.session(&kim).await;
    assert_eq!(accounts.sign_out_everywhere(token, &kim.id).await.unwrap().version, 3);
    assert_eq!(room.effects(3, &kim).await, (ended(&kim), 0));

    room.session(&kim).await;
    assert!(accounts.disable(token, "kim").await.unwrap().disabled);
    assert_eq!(room.effects(4, &kim).await, (ended(&kim), 0));
    let enabled = accounts.enable(token, "kim").await.unwrap();
    assert!(!enabled.disabled);
    assert_eq!(accounts.enable(token, "kim").await.unwrap().revision, enabled.revision);
    assert_eq!(room.effects(5, &kim).await, (Vec::new(), 0));
    assert_eq!(enabled.version, 3);

    room.session(&kim).await;
    accounts.remove(token, "kim").await.unwrap();
    assert_eq!(room.effects(5, &kim).await, (ended(&kim), 0));
    assert!(matches!(accounts.remove(token, "kim").await, Err(AccountError::NoSuchAccount(name)) if name == "kim"));
    let gone = accounts.sign_out_everywhere(token, &kim.id).await;
    assert!(matches!(gone, Err(AccountError::NoSuchAccount(id)) if id == kim.id.as_str()));
}

#[tokio::test]
async fn what_is_not_allowed_changes_nothing() {
    let room = Room::new();
    let kim = room.add("kim").await;
    let (accounts, login, token) = (&room.accounts, &room.login, &room.token);
    let again = NewAccount { username: "KIM".into(), ..NewAccount::default() };
    let outcome = accounts.add(login, again.clone(), secret(PASSWORD)).await;
    assert!(matches!(outcome, Err(AccountError::Store(StoreError::NameTaken(_)))));
    let lee = NewAccount { username: "lee".into(), ..again };
    for (new, password) in [
        (NewAccount { username: "l ee".into(), ..lee.clone() }, PASSWORD),
        (NewAccount { groups: vec!["a,b".into()], ..lee.clone() }, PASSWORD),
        (NewAccount { email: "a b".into(), ..lee.clone() }, PASSWORD),
        (NewAccount { display_name: "a\nb".into(), ..lee.clone() }, PASSWORD),
        (lee.clone(), "short"),
        (lee.clone(), &"x".repeat(1025)),
        (lee.clone(), "eleven\0ducks"),
    ] {
        assert!(matches!(accounts.add(login, new, secret(password)).await, Err(AccountError::Invalid(_))));
    }
    assert!(matches!(accounts.set_groups(token, "kim", vec![" a".into()]).await, Err(AccountError::Invalid(_))));
    let short = accounts.set_password(login, token, "kim", secret("short")).await;
    assert!(matches!(short, Err(AccountError::Invalid(_))));
    assert!(matches!(accounts.disable(token, "nobody").await, Err(AccountError::NoSuchAccount(_))));
    assert_eq!(accounts.list().await.unwrap().len(), 1);
    assert_eq!(
        (accounts.by_name("kim").await.unwrap().revision, room.store.log_head().await.unwrap()),
        (kim.revision, 0)
    );
}

#[tokio::test]
async fn changing_a_password_counts_in_the_same_throttle() {
    let room = Room::new();
    let kim = room.add("kim").await;
    let change = |current: &str| {
        let (current, new) = (secret(current), secret("twelve geese"));
        room.accounts.change_own_password(&room.login, &room.token, &kim.id, current, new, client())
    };
    assert!(matches!(room.sign_in("kim", "wrong").await, SignIn::Refused));
    assert!(matches!(change("wrong").await, Err(AccountError::WrongPassword)));
    assert!(matches!(change("wrong").await, Err(AccountError::WrongPassword)));
    assert!(matches!(change(PASSWORD).await, Err(AccountError::Throttled { .. })));
    assert!(matches!(room.sign_in("kim", PASSWORD).await, SignIn::Throttled { .. }));
    let nobody = AccountId::random();
    let gone = room.accounts.change_own_password(
        &room.login,
        &room.token,
        &nobody,
        secret(PASSWORD),
        secret("twelve geese"),
        client(),
    );
    assert!(matches!(gone.await, Err(AccountError::NoSuchAccount(_))));
    room.clock.advance(Duration::from_mins(5));
    room.accounts.disable(&room.token, "kim").await.unwrap();
    assert!(matches!(change(PASSWORD).await, Err(AccountError::WrongPassword)));
}

#[tokio::test]
async fn an_import_is_all_or_nothing() {
    let room = Room::new();
    room.add("kim").await;
    let one = |name: &str| import::Imported {
        id: None,
        username: Username::canonical(name).unwrap(),
        password_hash: secret("$2b$04$nSLjNLjWG32GT.5e.UZwQ.1XnuJNqaHuBFAzhLHAR7AWIptdvsFX."),
        groups: Vec::new(),
        email: String::new(),
        display_name: String::new(),
        disabled: false,
        version: 7,
    };
    for names in [["lee", "kim"], ["lee", "lee"]] {
        let outcome = room.accounts.import(names.iter().map(|name| one(name)).collect()).await;
        assert!(matches!(outcome, Err(AccountError::Store(StoreError::NameTaken(_)))));
        assert_eq!(room.accounts.list().await.unwrap().len(), 1);
    }
    assert_eq!(room.accounts.import(vec![one("lee"), one("max")]).await.unwrap(), 2);
    let SignIn::Granted { account, .. } = room.sign_in("lee", "pässword").await else { panic!("refused") };
    assert_eq!((account.version, account.created), (7, NOW));
    assert_eq!(room.accounts.import(Vec::new()).await.unwrap(), 0);
}

#[tokio::test]
async fn a_store_that_is_gone_is_said_whatever_the_name() {
    let room = Room::new();
    room.add("kim").await;
    room.store.close().await.unwrap();
    for name in ["kim", "nobody", "no name"] {
        assert!(matches!(room.sign_in(name, PASSWORD).await, SignIn::Unavailable(_)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_change_that_something_overtook_changes_nothing() {
    let room = Arc::new(Room::with_pool(1, 8));
    let kim = room.add("kim").await;
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let (began, running) = tokio::sync::oneshot::channel();
    let hashers = room.accounts.hashers.clone();
    let holding = tokio::spawn(async move {
        let job = move || {
            let _ = began.send(());
            let _ = gate.recv();
        };
        hashers.run(hashing::OPERATOR, job).await
    });
    running.await.unwrap();
    // The current password was right and the account enabled when they were read, but the hash has to wait.
    let changing = tokio::spawn({
        let (room, id) = (Arc::clone(&room), kim.id.clone());
        async move {
            let (current, new) = (secret(PASSWORD), secret("twelve geese"));
            room.accounts.change_own_password(&room.login, &room.token, &id, current, new, client()).await
        }
    });
    while room.accounts.hashers.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    room.accounts.disable(&room.token, "kim").await.unwrap();
    release.send(()).unwrap();
    holding.await.unwrap().unwrap();
    assert!(matches!(changing.await.unwrap(), Err(AccountError::Store(StoreError::Conflict))));
    let now = room.accounts.by_name("kim").await.unwrap();
    assert!(now.disabled && now.version == kim.version, "the change went through");
    assert_eq!(now.password_hash.expose(), kim.password_hash.expose());
}
