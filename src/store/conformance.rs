//! What every store must do, as one suite that runs over each of them.

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::dump::RestoreError;
use super::testing::Cluster;
use super::*;
use crate::clock::Clock;
use crate::secret::Secret;

const NOW: u64 = 1_795_512_600;

pub(in crate::store) fn account(name: &str) -> Account {
    Account {
        id: AccountId::random(),
        username: name.parse().unwrap(),
        password_hash: Secret::new(String::from("$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW")),
        groups: vec![String::from("staff"), String::from("editors")],
        email: format!("{name}@example.org"),
        display_name: format!("{name} \"the\" person, 사람"),
        disabled: false,
        version: 0,
        created: NOW,
        changed: NOW,
        revision: 0,
    }
}

pub(in crate::store) fn session(account: &AccountId, created: u64) -> Session {
    Session {
        id: SessionId::random(),
        account: account.clone(),
        created,
        renewed: created,
        expires: NOW + 1000,
        address: String::from("2001:db8::1"),
        user_agent: String::from("Mozilla/5.0 (X11; Linux x86_64)"),
    }
}

pub(in crate::store) fn revoke(what: Revocation) -> Write {
    Write::Revoke { what, at: NOW, expires: NOW + 500 }
}

/// What a follower heard.
#[derive(Default)]
struct Heard(Mutex<(Vec<u64>, u64)>);

impl LogFollower for Heard {
    fn extend(&self, entries: &[LogEntry], head: u64) {
        let mut told = self.0.lock().unwrap();
        told.0.extend(entries.iter().map(|entry| entry.number));
        told.1 = head;
    }
}

fn wait_for<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn on_every_store<F: Future<Output = ()>>(test: impl Fn(Arc<dyn Store>, Clock) -> F) {
    let clock = Clock::manual(NOW);
    wait_for(test(Arc::new(Memory::new(clock.clone())), clock));
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOW);
    let store = open(folder.path(), &clock).unwrap();
    wait_for(test(store.clone(), clock));
    wait_for(store.close()).unwrap();
    let clock = Clock::manual(NOW);
    let store = open_postgres(&Cluster::shared().database().url(), &clock);
    wait_for(test(store.clone(), clock));
    wait_for(store.close()).unwrap();
}

pub(in crate::store) fn open_postgres(url: &str, clock: &Clock) -> Arc<Postgres> {
    open_postgres_with(url, clock, None)
}

pub(in crate::store) fn open_postgres_with(
    url: &str,
    clock: &Clock,
    note: Option<std::path::PathBuf>,
) -> Arc<Postgres> {
    let (timeout, max_staleness) = (Duration::from_secs(20), Duration::from_secs(10));
    let options = PostgresOptions { pool_size: 4, timeout, max_staleness, note };
    Postgres::open(&crate::config::Database::for_tests(url), clock.clone(), &options).unwrap()
}

pub(super) fn open(folder: &Path, clock: &Clock) -> Result<Arc<Sled>, StoreError> {
    let options = SledOptions { timeout: Duration::from_mins(1), ..SledOptions::default() };
    Sled::open(folder, clock.clone(), options)
}

#[test]
fn accounts_are_kept_by_id_and_by_name() {
    on_every_store(|store, _| async move {
        let (kim, ann) = (account("kim"), account("ann"));
        store.apply(vec![Write::InsertAccount(kim.clone()), Write::InsertAccount(ann.clone())]).await.unwrap();
        let found = store.account(&kim.id).await.unwrap().unwrap();
        assert_eq!(found.username, kim.username);
        assert_eq!(found.password_hash.expose(), kim.password_hash.expose());
        assert_eq!(
            (found.groups, found.display_name, found.revision),
            (kim.groups.clone(), kim.display_name.clone(), 0)
        );
        let names: Vec<_> = store.accounts().await.unwrap().into_iter().map(|one| one.username.to_string()).collect();
        assert_eq!(names, ["ann", "kim"]);

        let mut renamed = kim.clone();
        renamed.username = "lee".parse().unwrap();
        renamed.disabled = true;
        store.apply(vec![Write::UpdateAccount(renamed.clone())]).await.unwrap();
        assert!(store.account_by_name(&kim.username).await.unwrap().is_none());
        let lee = store.account_by_name(&renamed.username).await.unwrap().unwrap();
        assert_eq!((lee.id, lee.disabled, lee.revision), (kim.id.clone(), true, 1));

        store.apply(vec![Write::RemoveAccount(kim.id.clone())]).await.unwrap();
        assert!(store.account(&kim.id).await.unwrap().is_none());
        assert!(store.account_by_name(&renamed.username).await.unwrap().is_none());
        store.apply(vec![Write::InsertAccount(renamed)]).await.unwrap();
    });
}

#[test]
fn a_name_and_an_id_are_there_once() {
    on_every_store(|store, _| async move {
        let kim = account("kim");
        store.apply(vec![Write::InsertAccount(kim.clone())]).await.unwrap();
        let mut other = account("ann");
        other.id = kim.id.clone();
        assert!(matches!(store.apply(vec![Write::InsertAccount(other)]).await, Err(StoreError::IdTaken(_))));
        assert!(matches!(
            store.apply(vec![Write::InsertAccount(account("kim"))]).await,
            Err(StoreError::NameTaken(name)) if name == "kim"
        ));
        let mut ann = account("ann");
        store.apply(vec![Write::InsertAccount(ann.clone())]).await.unwrap();
        ann.username = kim.username.clone();
        assert!(matches!(store.apply(vec![Write::UpdateAccount(ann)]).await, Err(StoreError::NameTaken(_))));
        let twins = vec![Write::InsertAccount(account("twin")), Write::InsertAccount(account("twin"))];
        assert!(matches!(store.apply(twins).await, Err(StoreError::NameTaken(_))));
        assert_eq!(store.accounts().await.unwrap().len(), 2);
    });
}

#[test]
fn a_list_that_fails_changes_nothing() {
    on_every_store(|store, _| async move {
        let kim = account("kim");
        let kept = session(&kim.id, NOW);
        store.apply(vec![Write::InsertAccount(kim.clone()), Write::PutSession(kept.clone())]).await.unwrap();
        let heard = Arc::new(Heard::default());
        store.follow(heard.clone()).await.unwrap();
        let mut huge = account("huge");
        huge.email = "x".repeat(40_000);
        for last in [
            Write::InsertAccount(account("kim")),
            Write::UpdateAccount(Account { revision: 7, ..kim.clone() }),
            Write::UpdateAccount(account("nobody")),
            Write::RemoveAccount(AccountId::random()),
            Write::InsertAccount(huge),
        ] {
            let list = vec![
                Write::InsertAccount(account("ann")),
                Write::PutSession(session(&kim.id, NOW)),
                Write::RemoveAllSessions,
                revoke(Revocation::All),
                last,
            ];
            assert!(store.apply(list).await.is_err());
            assert_eq!(store.accounts().await.unwrap().len(), 1);
            assert_eq!(store.sessions(None).await.unwrap(), std::slice::from_ref(&kept));
            assert_eq!(store.log_head().await.unwrap(), 0);
        }
        assert!(heard.0.lock().unwrap().0.is_empty());
    });
}

#[test]
fn of_two_that_change_the_same_account_one_is_told() {
    on_every_store(|store, _| async move {
        let kim = account("kim");
        store.apply(vec![Write::InsertAccount(kim.clone())]).await.unwrap();
        store.apply(vec![Write::UpdateAccount(kim.clone())]).await.unwrap();
        assert!(matches!(store.apply(vec![Write::UpdateAccount(kim.clone())]).await, Err(StoreError::Conflict)));
        store.apply(vec![Write::RemoveAccount(kim.id.clone())]).await.unwrap();
        let update = store.apply(vec![Write::UpdateAccount(kim.clone())]).await;
        assert!(matches!(update, Err(StoreError::NoSuchAccount)));
        assert!(matches!(store.apply(vec![Write::RemoveAccount(kim.id)]).await, Err(StoreError::NoSuchAccount)));
    });
}

#[test]
fn sessions_come_oldest_first_and_expire() {
    on_every_store(|store, clock| async move {
        // One id is the start of the other: their sessions must not mix.
        let (one, other): (AccountId, AccountId) = ("a".parse().unwrap(), "ab".parse().unwrap());
        let (young, old) = (session(&one, NOW), session(&one, NOW - 50));
        let foreign = session(&other, NOW - 20);
        let list = [&young, &old, &foreign].map(|session| Write::PutSession(session.clone()));
        store.apply(list.into()).await.unwrap();
        assert_eq!(store.sessions(Some(&one)).await.unwrap(), [old.clone(), young.clone()]);
        assert_eq!(store.sessions(None).await.unwrap(), [old.clone(), foreign.clone(), young.clone()]);

        let longer = Session { expires: NOW + 5000, renewed: NOW + 1, ..old.clone() };
        store.apply(vec![Write::TouchSession(longer.clone())]).await.unwrap();
        store.apply(vec![Write::TouchSession(session(&one, NOW))]).await.unwrap();
        assert_eq!(store.sessions(Some(&one)).await.unwrap(), [longer.clone(), young.clone()]);

        clock.advance(Duration::from_secs(1000));
        assert_eq!(store.session(&young.id).await.unwrap(), None);
        assert_eq!(store.session(&old.id).await.unwrap(), Some(longer.clone()));
        assert_eq!(store.sessions(None).await.unwrap(), std::slice::from_ref(&longer));
        store.apply(vec![Write::TouchSession(Session { expires: NOW + 9000, ..young.clone() })]).await.unwrap();
        assert_eq!(store.session(&young.id).await.unwrap(), None);

        let moved = Session { account: other.clone(), ..longer.clone() };
        store.apply(vec![Write::PutSession(moved.clone())]).await.unwrap();
        assert_eq!(store.sessions(Some(&one)).await.unwrap(), []);
        assert_eq!(store.sessions(Some(&other)).await.unwrap(), std::slice::from_ref(&moved));
        store
            .apply(vec![Write::RemoveSession(moved.id.clone()), Write::RemoveSession(moved.id.clone())])
            .await
            .unwrap();
        assert_eq!(store.sessions(None).await.unwrap(), []);
    });
}

#[test]
fn the_oldest_of_too_many_sessions_end() {
    on_every_store(|store, clock| async move {
        let (kim, lee) = (account("kim"), account("lee"));
        store.apply(vec![Write::InsertAccount(kim.clone()), Write::InsertAccount(lee.clone())]).await.unwrap();
        let begin = async |id: &AccountId, created: u64, expires: u64| {
            let session = Session { expires, ..session(id, created) };
            let end = Write::EndOldestSessions {
                account: id.clone(),
                spare: session.id.clone(),
                keep: 3,
                at: NOW,
                expires: NOW + 500,
            };
            let applied = store.apply(vec![Write::PutSession(session.clone()), end]).await.unwrap();
            (session.id, applied.entries)
        };
        let (other, _) = begin(&lee.id, NOW - 900, NOW + 1000).await;
        let mut ids = Vec::new();
        for age in [30, 20, 10] {
            let (id, entries) = begin(&kim.id, NOW - age, NOW + 1000).await;
            assert!(entries.is_empty());
            ids.push(id);
        }
        let (newest, entries) = begin(&kim.id, NOW, NOW + 1000).await;
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].what, Revocation::Session { session: ids[0].clone() });
        assert_eq!((entries[0].at, entries[0].expires), (NOW, NOW + 1060));
        assert_eq!(store.log_head().await.unwrap(), entries[0].number);
        let left: Vec<SessionId> = store.sessions(Some(&kim.id)).await.unwrap().into_iter().map(|one| one.id).collect();
        assert_eq!(left, [ids[1].clone(), ids[2].clone(), newest.clone()]);
        // One that began by a clock that was slow stays all the same: somebody has just logged in with it.
        let (slow, entries) = begin(&kim.id, NOW - 5_000, NOW + 300).await;
        assert_eq!(entries[0].what, Revocation::Session { session: ids[1].clone() });
        assert!(store.session(&slow).await.unwrap().is_some());
        // What ran out makes place without an entry.
        clock.advance(Duration::from_secs(400));
        let (_, entries) = begin(&kim.id, NOW + 400, NOW + 1000).await;
        assert!(entries.is_empty(), "{entries:?}");
        assert!(store.session(&other).await.unwrap().is_some());
    });
}

#[test]
fn sessions_go_one_by_one_by_account_and_all_at_once() {
    on_every_store(|store, _| async move {
        let (one, other) = (AccountId::random(), AccountId::random());
        let kept = session(&other, NOW);
        let put = || Write::PutSession(session(&one, NOW));
        store.apply(vec![put(), put(), Write::PutSession(kept.clone())]).await.unwrap();
        // One that the same list has just made goes too.
        store.apply(vec![put(), Write::RemoveSessionsOf(one.clone())]).await.unwrap();
        assert_eq!(store.sessions(None).await.unwrap(), [kept]);
        assert_eq!(store.sessions(Some(&one)).await.unwrap(), []);
        store.apply(vec![put(), Write::RemoveAllSessions]).await.unwrap();
        assert_eq!(store.sessions(None).await.unwrap(), []);
    });
}

#[test]
fn the_log_is_numbered_and_told_before_it_is_answered() {
    on_every_store(|store, clock| async move {
        let first = Arc::new(Heard::default());
        store.follow(first.clone()).await.unwrap();
        let account = AccountId::random();
        let list = vec![
            revoke(Revocation::Session { session: SessionId::random() }),
            revoke(Revocation::Account { account: account.clone() }),
        ];
        let applied = store.apply(list).await.unwrap();
        assert_eq!(*first.0.lock().unwrap(), (vec![1, 2], 2));
        assert_eq!(applied.log_head, 2);
        assert_eq!(applied.entries, store.log().await.unwrap());

        clock.advance(Duration::from_secs(400));
        let late = Write::Revoke { what: Revocation::All, at: NOW + 400, expires: NOW + 900 };
        assert_eq!(store.apply(vec![late]).await.unwrap().log_head, 3);
        clock.advance(Duration::from_secs(100));
        let second = Arc::new(Heard::default());
        store.follow(second.clone()).await.unwrap();
        // The first two have expired, and may have been cleared away or not.
        assert!(second.0.lock().unwrap().0.ends_with(&[3]));
        assert_eq!(*first.0.lock().unwrap(), (vec![1, 2, 3], 3));
        assert_eq!(store.log_head().await.unwrap(), 3);
        assert_eq!(store.apply(vec![revoke(Revocation::Changed { account })]).await.unwrap().log_head, 4);
    });
}

#[test]
fn a_wrong_clock_hides_no_entry_and_ends_no_session() {
    on_every_store(|store, clock| async move {
        let kim = AccountId::random();
        let kept = session(&kim, NOW);
        store.apply(vec![Write::PutSession(kept.clone()), revoke(Revocation::All)]).await.unwrap();
        for wrong in [31 * 24 * 3600, -31 * 24 * 3600] {
            clock.set_by(wrong);
            let heard = Arc::new(Heard::default());
            store.follow(heard.clone()).await.unwrap();
            assert_eq!(heard.0.lock().unwrap().0, [1], "{wrong}: whoever starts now must know it");
            assert_eq!(store.log().await.unwrap().len(), 1);
            assert_eq!(store.export().await.unwrap().counts.entries, 1, "{wrong}: a dump has it");
            clock.set_by(-wrong);
        }
        assert_eq!(store.sessions(None).await.unwrap(), [kept]);
    });
}

/// A session that ends then.
fn ends(account: &AccountId, expires: u64) -> Session {
    Session { expires, ..session(account, NOW) }
}

#[test]
fn an_entry_lives_as_long_as_any_session_that_it_covers() {
    on_every_store(|store, _| async move {
        let (kim, lee) = (AccountId::random(), AccountId::random());
        let (long, short, other) = (ends(&kim, NOW + 9000), ends(&kim, NOW + 700), ends(&lee, NOW + 20_000));
        let put = || [&long, &short, &other].map(|one| Write::PutSession(one.clone())).to_vec();
        let of = |account: &AccountId| account.clone();
        for (what, removes, expected) in [
            // The caller says NOW + 500 each time: the lifetimes in force are short ones.
            (Revocation::Session { session: short.id.clone() }, Write::RemoveSession(short.id.clone()), 700),
            (Revocation::Session { session: long.id.clone() }, Write::RemoveSession(long.id.clone()), 9000),
            (Revocation::Account { account: of(&kim) }, Write::RemoveSessionsOf(of(&kim)), 9000),
            (Revocation::Changed { account: of(&lee) }, Write::RemoveSessionsOf(of(&kim)), 20_000),
            (Revocation::All, Write::RemoveAllSessions, 20_000),
        ] {
            store.apply(put()).await.unwrap();
            // The removal comes first, as a logout writes it.
            let entries = store.apply(vec![removes, revoke(what.clone())]).await.unwrap().entries;
            assert_eq!(entries[0].expires, NOW + expected + 60, "{what:?}");
            assert_eq!(store.log().await.unwrap().last(), entries.last());
        }
        let nobody = Revocation::Account { account: AccountId::random() };
        let entries = store.apply(vec![revoke(nobody)]).await.unwrap().entries;
        assert_eq!(entries[0].expires, NOW + 500);
    });
}

#[test]
fn an_entry_lives_as_long_as_the_longest_lifetime_that_was_in_force() {
    on_every_store(|store, _| async move {
        store.apply(vec![Write::Longest(5000)]).await.unwrap();
        store.apply(vec![Write::Longest(80)]).await.unwrap();
        let kim = AccountId::random();
        for what in [
            Revocation::Account { account: kim.clone() },
            Revocation::AccountWithoutSession { account: kim.clone() },
            Revocation::All,
        ] {
            let entries = store.apply(vec![revoke(what.clone())]).await.unwrap().entries;
            assert_eq!(entries[0].expires, NOW + 5060, "{what:?}");
        }
        let known = Write::Revoke { what: Revocation::All, at: NOW, expires: u64::MAX / 4 };
        assert_eq!(store.apply(vec![known]).await.unwrap().entries[0].expires, u64::MAX / 4);
        // It goes with a dump, into whichever store.
        let mut dump = Vec::new();
        write_dump(&*store, NOW, &mut dump).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let copies: [Arc<dyn Store>; 3] = [
            Arc::new(Memory::new(Clock::manual(NOW))),
            open(folder.path(), &Clock::manual(NOW)).unwrap(),
            open_postgres(&Cluster::shared().database().url(), &Clock::manual(NOW)),
        ];
        for copy in copies {
            restore(dump.as_slice(), &*copy, Some(RevokeAll { at: NOW, expires: NOW + 10 })).await.unwrap();
            assert_eq!(copy.log().await.unwrap().last().unwrap().expires, NOW + 5060);
            let entries = copy.apply(vec![revoke(Revocation::All)]).await.unwrap().entries;
            assert_eq!(entries[0].expires, NOW + 5060);
            copy.close().await.unwrap();
        }
    });
}

#[test]
fn a_session_ends_with_its_longest_token() {
    on_every_store(|store, _| async move {
        let kim = AccountId::random();
        let long = ends(&kim, NOW + 9000);
        store.apply(vec![Write::PutSession(long.clone())]).await.unwrap();
        // Renewed under a shorter lifetime; the older token is still about.
        let renewed = Session { renewed: NOW + 5, expires: NOW + 60, ..long.clone() };
        for write in [Write::TouchSession(renewed.clone()), Write::PutSession(renewed.clone())] {
            store.apply(vec![write]).await.unwrap();
            assert_eq!(store.session(&long.id).await.unwrap(), Some(Session { renewed: NOW + 5, ..long.clone() }));
        }
    });
}

#[test]
fn many_writers_at_once_get_a_number_each() {
    on_every_store(|store, _| async move {
        let heard = Arc::new(Heard::default());
        store.follow(heard.clone()).await.unwrap();
        let writers: Vec<_> = (0..200)
            .map(|number| {
                let store = store.clone();
                tokio::spawn(async move {
                    let list = vec![Write::InsertAccount(account(&format!("user{number}"))), revoke(Revocation::All)];
                    store.apply(list).await.unwrap().entries[0].number
                })
            })
            .collect();
        let mut numbers = Vec::new();
        for writer in writers {
            numbers.push(writer.await.unwrap());
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=200).collect::<Vec<_>>());
        assert_eq!(heard.0.lock().unwrap().0, numbers);
        assert_eq!(store.accounts().await.unwrap().len(), 200);
    });
}

#[test]
fn too_large_a_record_is_refused() {
    on_every_store(|store, _| async move {
        let mut huge = account("huge");
        huge.groups = vec!["g".repeat(64); 1000];
        let refused = store.apply(vec![Write::InsertAccount(huge)]).await;
        assert!(matches!(refused, Err(StoreError::TooLarge { size, limit: 32_768 }) if size > 64_000));
        let huge = Session { user_agent: "x".repeat(40_000), ..session(&AccountId::random(), NOW) };
        let refused = store.apply(vec![Write::PutSession(huge)]).await;
        assert!(matches!(refused, Err(StoreError::TooLarge { .. })));
    });
}

#[test]
fn a_dump_brings_everything_back_into_an_empty_store_only() {
    on_every_store(|store, _| async move {
        let kim = account("kim");
        let list = vec![
            Write::InsertAccount(account("ann")),
            Write::InsertAccount(kim.clone()),
            Write::PutSession(session(&kim.id, NOW)),
            revoke(Revocation::Account { account: kim.id.clone() }),
        ];
        store.apply(list).await.unwrap();
        let mut dump = Vec::new();
        let counts = write_dump(&*store, NOW, &mut dump).await.unwrap();
        assert_eq!(counts, Counts { accounts: 2, sessions: 1, entries: 1 });
        let full = restore(dump.as_slice(), &*store, None).await;
        assert!(matches!(full, Err(RestoreError::Store(StoreError::NotEmpty))));

        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(NOW);
        let copies: [Arc<dyn Store>; 3] = [
            Arc::new(Memory::new(clock.clone())),
            open(folder.path(), &clock).unwrap(),
            open_postgres(&Cluster::shared().database().url(), &clock),
        ];
        for copy in copies {
            restore(dump.as_slice(), &*copy, None).await.unwrap();
            assert_eq!(copy.sessions(None).await.unwrap(), store.sessions(None).await.unwrap());
            assert_eq!(copy.log().await.unwrap(), store.log().await.unwrap());
            assert!(copy.log_head().await.unwrap() > 1_000_000);
            let found = copy.account_by_name(&kim.username).await.unwrap().unwrap();
            assert_eq!(found.password_hash.expose(), kim.password_hash.expose());
            copy.close().await.unwrap();
        }
        let fresh = Memory::new(clock);
        let heard = Arc::new(Heard::default());
        fresh.follow(heard.clone()).await.unwrap();
        restore(dump.as_slice(), &fresh, Some(RevokeAll { at: NOW, expires: NOW + 10 })).await.unwrap();
        assert_eq!(fresh.sessions(None).await.unwrap(), []);
        assert!(fresh.log().await.unwrap().last().is_some_and(|entry| entry.what == Revocation::All));
        assert_eq!(heard.0.lock().unwrap().0.len(), 2);
    });
}
