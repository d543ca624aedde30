//! What only a shared database can show. The rest is the conformance suite's.

use std::sync::Mutex;
use std::time::Instant;

use super::super::conformance::{account, open_postgres, open_postgres_with, revoke, session};
use super::super::testing::{Cluster, Database as TestDatabase};
use super::*;
use crate::store::Revocation;

const NOW: u64 = 1_795_512_600;

/// What a follower heard.
#[derive(Default)]
struct Heard(Mutex<(Vec<u64>, u64, Option<Instant>)>);

impl LogFollower for Heard {
    fn extend(&self, entries: &[LogEntry], head: u64) {
        let mut told = self.0.lock().unwrap();
        told.0.extend(entries.iter().map(|entry| entry.number));
        told.1 = head;
    }

    fn heard(&self, at: Instant) {
        self.0.lock().unwrap().2 = Some(at);
    }
}

impl Heard {
    fn numbers(&self) -> Vec<u64> {
        self.0.lock().unwrap().0.clone()
    }

    async fn wait(&self, what: &str, holds: impl Fn(&(Vec<u64>, u64, Option<Instant>)) -> bool) {
        for _ in 0..6000 {
            if holds(&self.0.lock().unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited a minute for {what}: {:?}", self.0.lock().unwrap());
    }
}

fn wait_for<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn clock() -> Clock {
    Clock::manual(NOW)
}

async fn follower(store: &Postgres) -> Arc<Heard> {
    let heard = Arc::new(Heard::default());
    store.follow(Arc::clone(&heard) as _).await.unwrap();
    heard
}

#[test]
fn three_that_start_at_once_on_an_empty_database_make_one_schema() {
    for _ in 0..5 {
        three_at_once();
    }
}

fn three_at_once() {
    let database = Cluster::shared().database();
    let stores: Vec<_> = (0..3).map(|_| open_postgres(&database.url(), &clock())).collect();
    wait_for(async {
        let started: Vec<_> = stores
            .iter()
            .map(|store| {
                let store = Arc::clone(store);
                tokio::spawn(async move { follower(&store).await })
            })
            .collect();
        for one in started {
            one.await.unwrap();
        }
        stores[0].apply(vec![Write::InsertAccount(account("kim"))]).await.unwrap();
        assert_eq!(stores[2].accounts().await.unwrap().len(), 1);
    });
    assert_eq!(database.sql("SELECT version FROM doorward_schema"), [["2"]]);
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let database = Cluster::shared().database();
    let store = open_postgres(&database.url(), &clock());
    wait_for(store.health()).unwrap();
    database.sql("UPDATE doorward_schema SET version = 3");
    let store = open_postgres(&database.url(), &clock());
    let refused = wait_for(store.follow(Arc::new(Heard::default()))).unwrap_err();
    assert!(matches!(refused, StoreError::NewerSchema { found: 3, known: 2 }), "{refused}");
    assert_eq!(database.sql("SELECT version FROM doorward_schema"), [["3"]]);
}

#[test]
fn of_two_replicas_that_make_the_same_name_one_wins() {
    let database = Cluster::shared().database();
    let stores = [open_postgres(&database.url(), &clock()), open_postgres(&database.url(), &clock())];
    wait_for(async {
        for round in 0..30 {
            let name = format!("user{round}");
            let tries = stores.each_ref().map(|store| {
                let (store, one) = (Arc::clone(store), account(&name));
                tokio::spawn(async move { store.apply(vec![Write::InsertAccount(one)]).await })
            });
            let mut won = 0;
            for one in tries {
                match one.await.unwrap() {
                    Ok(_) => won += 1,
                    Err(StoreError::NameTaken(taken)) => assert_eq!(taken, name),
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(won, 1);
        }
        // The same for a rename.
        let tries = stores.each_ref().map(|store| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let own = account(&uuid::Uuid::now_v7().to_string());
                store.apply(vec![Write::InsertAccount(own.clone())]).await.unwrap();
                let renamed = Account { username: "same".parse().unwrap(), ..own };
                store.apply(vec![Write::UpdateAccount(renamed)]).await
            })
        });
        let mut won = 0;
        for one in tries {
            let done = one.await.unwrap();
            won += u32::from(done.is_ok());
            assert!(matches!(done, Ok(_) | Err(StoreError::NameTaken(_))), "{done:?}");
        }
        assert_eq!(won, 1);
    });
}

#[test]
fn a_number_that_becomes_visible_late_is_not_skipped() {
    let database = Cluster::shared().database();
    let store = open_postgres(&database.url(), &clock());
    wait_for(async {
        let heard = follower(&store).await;
        // Somebody who has taken a number and is in no hurry to commit.
        let slow = Slow::begin(&database).await;
        slow.run(&format!(
            "UPDATE doorward_log_head SET number = number + 1, mark = gen_random_uuid();
             INSERT INTO doorward_log SELECT number, mark, '{{\"kind\":\"all\"}}', {NOW}, {} FROM doorward_log_head",
            NOW + 100
        ))
        .await;
        let other = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.apply(vec![revoke(Revocation::All)]).await }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!other.is_finished(), "a higher number was given out before the lower one was visible");
        assert!(heard.numbers().is_empty());
        slow.run("COMMIT").await;
        assert_eq!(other.await.unwrap().unwrap().entries[0].number, 2);
        assert_eq!(heard.numbers(), [1, 2]);
        // One that takes its number back leaves no hole.
        let slow = Slow::begin(&database).await;
        slow.run("UPDATE doorward_log_head SET number = number + 1").await;
        slow.run("ROLLBACK").await;
        assert_eq!(store.apply(vec![revoke(Revocation::All)]).await.unwrap().log_head, 3);
    });
}

/// A client that holds a transaction open.
struct Slow(Client);

impl Slow {
    async fn begin(database: &TestDatabase<'_>) -> Self {
        let (client, connection) = tokio_postgres::connect(&database.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("BEGIN").await.unwrap();
        Self(client)
    }

    async fn run(&self, sql: &str) {
        self.0.batch_execute(sql).await.unwrap();
    }
}

#[test]
fn numbers_that_go_back_are_noticed_and_raised_above_all_that_were_seen() {
    let database = Cluster::shared().database();
    let stores = [open_postgres(&database.url(), &clock()), open_postgres(&database.url(), &clock())];
    wait_for(async {
        let heard = [follower(&stores[0]).await, follower(&stores[1]).await];
        // Long ago, so that nobody takes them for entries that came after the failure.
        let old = || Write::Revoke { what: Revocation::All, at: NOW - 1000, expires: NOW + 100 };
        for _ in 0..4 {
            stores[0].apply(vec![old()]).await.unwrap();
        }
        for heard in &heard {
            heard.wait("four entries", |(numbers, ..)| *numbers == [1, 2, 3, 4]).await;
        }
        // As an older copy would have it: two entries less, and then others under the same numbers, with the same maximum.
        database.sql(&format!(
            "BEGIN; DELETE FROM doorward_log WHERE number > 2;
             INSERT INTO doorward_log SELECT number, gen_random_uuid(), '{{\"kind\":\"all\"}}', {start}, {end}
                 FROM generate_series(3, 4) AS number;
             UPDATE doorward_log_head SET mark = (SELECT mark FROM doorward_log WHERE number = 4); COMMIT",
            start = NOW - 1000,
            end = NOW + 100
        ));
        for heard in &heard {
            heard
                .wait("the log to be read again", |(numbers, ..)| {
                    numbers.ends_with(&[1, 2, 3, 4]) && numbers.len() == 8
                })
                .await;
        }
        let raised = stores[1].log_head().await.unwrap();
        assert!(raised > 1_000_000, "{raised}");
        let next = stores[1].apply(vec![revoke(Revocation::All)]).await.unwrap().log_head;
        assert!(next > raised, "{next}");
        for heard in &heard {
            heard.wait("what came after", |(numbers, head, _)| numbers.last() == Some(&next) && *head == next).await;
        }
        // Raised once, not by each replica that notices.
        assert!(next < raised + 1_000_000, "{next}");
    });
}

#[test]
fn what_others_revoked_under_numbers_of_the_lost_log_is_said_again_above_all_that_tokens_name() {
    let database = Cluster::shared().database();
    let store = open_postgres(&database.url(), &clock());
    wait_for(async {
        let heard = follower(&store).await;
        for _ in 0..4 {
            store
                .apply(vec![Write::Revoke { what: Revocation::All, at: NOW - 1000, expires: NOW + 100 }])
                .await
                .unwrap();
        }
        // A failover loses two of them, and a replica that had not heard of those writes before we can notice.
        database.sql(&format!(
            "BEGIN; DELETE FROM doorward_log WHERE number > 2;
             INSERT INTO doorward_log VALUES
                (3, gen_random_uuid(), '{{\"kind\":\"account\",\"account\":\"kim\"}}', {NOW}, {end}),
                (4, gen_random_uuid(), '{{\"kind\":\"session\",\"session\":\"s\"}}', {NOW}, {end});
             UPDATE doorward_log_head SET mark = (SELECT mark FROM doorward_log WHERE number = 4); COMMIT",
            end = NOW + 100
        ));
        heard.wait("the log to be read again", |(numbers, head, _)| numbers.len() == 9 && *head > 1_000_000).await;
        let last = store.log().await.unwrap().pop().unwrap();
        assert_eq!(last.what, Revocation::Account { account: "kim".parse().unwrap() });
        assert_eq!((last.at, last.expires), (NOW, NOW + 100));
        assert_eq!(store.log_head().await.unwrap(), last.number);
        // The log goes on from there, and is the one that was read.
        let next = store.apply(vec![revoke(Revocation::All)]).await.unwrap().log_head;
        assert_eq!((next, heard.numbers().len()), (last.number + 1, 10));
    });
}

#[test]
fn a_log_that_was_imported_goes_on_from_its_last_number() {
    let store = open_postgres(&Cluster::shared().database().url(), &clock());
    wait_for(async {
        let heard = follower(&store).await;
        let entry = |number| LogEntry { number, what: Revocation::All, at: NOW, expires: NOW + 100 };
        let import = Import { log: vec![entry(3), entry(4)], log_head: 4, ..Import::default() };
        assert_eq!(store.import(import).await.unwrap().log_head, 4);
        assert_eq!(heard.numbers(), [3, 4]);
        assert_eq!(store.apply(vec![revoke(Revocation::All)]).await.unwrap().log_head, 5);
        assert_eq!(store.log_head().await.unwrap(), 5, "taken for another log");
        assert_eq!(heard.numbers(), [3, 4, 5]);
    });
}

#[test]
fn numbers_that_went_back_while_nobody_ran_are_noticed_at_the_next_start() {
    let database = Cluster::shared().database();
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("log-place");
    let start = || {
        let store = open_postgres_with(&database.url(), &clock(), Some(note.clone()));
        wait_for(follower(&store));
        store
    };
    let store = start();
    wait_for(store.apply(vec![revoke(Revocation::All), revoke(Revocation::All)])).unwrap();
    drop(store);
    // The last place is written down at the next start at the latest.
    let store = start();
    assert!(std::fs::read_to_string(&note).unwrap().starts_with("2 "));
    assert_eq!(wait_for(store.log_head()).unwrap(), 2, "nothing went back");
    drop(store);
    database.sql(
        "BEGIN; DELETE FROM doorward_log WHERE number > 1;
         UPDATE doorward_log_head SET number = 1, mark = (SELECT mark FROM doorward_log WHERE number = 1); COMMIT",
    );
    let store = start();
    assert!(wait_for(store.log_head()).unwrap() > 1_000_000);
}

#[test]
fn a_change_is_in_force_here_when_it_is_answered_and_soon_everywhere() {
    let database = Cluster::shared().database();
    let stores = [open_postgres(&database.url(), &clock()), open_postgres(&database.url(), &clock())];
    wait_for(async {
        let heard = [follower(&stores[0]).await, follower(&stores[1]).await];
        for round in 1..=50 {
            let writer = round % 2;
            let applied = stores[writer].apply(vec![revoke(Revocation::All)]).await.unwrap();
            assert_eq!(heard[writer].numbers().last(), Some(&applied.log_head), "told before it is answered");
        }
        for heard in heard {
            heard.wait("all of them", |(numbers, ..)| *numbers == (1..=50).collect::<Vec<_>>()).await;
        }
    });
}

#[test]
fn whoever_listens_is_cut_off_and_catches_up() {
    let database = Cluster::shared().database();
    let stores = [open_postgres(&database.url(), &clock()), open_postgres(&database.url(), &clock())];
    wait_for(async {
        let heard = follower(&stores[1]).await;
        for round in 1..=5 {
            database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()");
            stores[0].apply(vec![revoke(Revocation::All)]).await.unwrap();
            heard.wait("what came meanwhile", |(numbers, ..)| numbers.last() == Some(&round)).await;
        }
        assert_eq!(heard.numbers(), [1, 2, 3, 4, 5]);
        // Dead idle connections are nobody's error.
        stores[1].health().await.unwrap();
    });
}

#[test]
fn a_server_that_takes_no_changes_is_left_for_one_that_does() {
    let database = Cluster::shared().database();
    let store = open_postgres(&database.url(), &clock());
    // As after a failover: the old primary answers, and takes nothing.
    let only_read = |on: &str| {
        let name = &database.name;
        database.cluster.sql("postgres", &format!("ALTER DATABASE {name} SET default_transaction_read_only = {on}"));
        database.cluster.sql(
            "postgres",
            &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
        );
    };
    wait_for(async {
        let heard = follower(&store).await;
        only_read("on");
        assert!(matches!(store.health().await, Err(StoreError::Unavailable { .. })));
        assert!(store.apply(vec![revoke(Revocation::All)]).await.is_err());
        only_read("off");
        store.health().await.unwrap();
        store.apply(vec![revoke(Revocation::All)]).await.unwrap();
        heard.wait("what came after it", |(numbers, ..)| numbers.contains(&1)).await;
    });
}

#[test]
fn a_long_log_is_read_whole_and_told_once() {
    let database = Cluster::shared().database();
    let store = open_postgres(&database.url(), &clock());
    wait_for(async {
        store.health().await.unwrap();
        database.sql(&format!(
            "INSERT INTO doorward_log SELECT number, gen_random_uuid(), jsonb_build_object('kind', 'session', 'session', \
             gen_random_uuid()), {NOW}, {} FROM generate_series(1, 25000) AS number;
             UPDATE doorward_log_head SET number = 25000, mark = (SELECT mark FROM doorward_log WHERE number = 25000)",
            NOW + 100
        ));
        let heard = follower(&store).await;
        assert_eq!(heard.numbers(), (1..=25_000).collect::<Vec<_>>());
        assert!(heard.0.lock().unwrap().2.is_some());
    });
}

#[test]
fn what_ran_out_is_cleared_away_and_readers_go_on() {
    let database = Cluster::shared().database();
    let (clock, real) = real_clock();
    let store = open_postgres(&database.url(), &clock);
    wait_for(async {
        let heard = follower(&store).await;
        let over = real - 3 * 3600;
        store.apply(what_ended(over)).await.unwrap();
        store.wrong_tries().unwrap().wrong([1; 16], Duration::from_millis(1)).await.unwrap();
        database.sql("UPDATE doorward_wrong_try SET expires = expires - interval '1 hour'");
        clear(&store).await;
        assert_eq!(rows(&database), ["0", "1", "0"], "the newest entry stays");
        let late = Write::Revoke { what: Revocation::All, at: NOW, expires: NOW + 20_000 };
        store.apply(vec![late]).await.unwrap();
        assert_eq!(heard.numbers(), [1, 2, 3]);
    });
}

/// A clock that shows what the database's shows, for all three have to agree; and the time.
fn real_clock() -> (Clock, u64) {
    let real = Clock::system().unix_seconds();
    (Clock::manual(real), real)
}

/// A session and two log entries that ended then.
fn what_ended(expires: u64) -> Vec<Write> {
    let entry = || Write::Revoke { what: Revocation::All, at: expires - 60, expires };
    let session = Session { expires, ..session(&account("kim").id, NOW) };
    // The session comes after, or the entries would live as long as it does and a little longer.
    vec![entry(), entry(), Write::PutSession(session)]
}

async fn clear(store: &Postgres) {
    store.long_call(async |core| clear::clear_away(&core).await).await.unwrap();
}

/// How many sessions, log entries and wrong tries are left.
fn rows(database: &TestDatabase) -> Vec<String> {
    let sql = "SELECT (SELECT count(*) FROM doorward_session), (SELECT count(*) FROM doorward_log), \
               (SELECT count(*) FROM doorward_wrong_try)";
    database.sql(sql).remove(0)
}

#[test]
fn one_replica_with_a_wrong_clock_clears_nothing_away() {
    let database = Cluster::shared().database();
    let (right, real) = real_clock();
    let wrong = Clock::manual(real);
    let stores = [&right, &wrong].map(|clock| open_postgres(&database.url(), clock));
    wait_for(async {
        let day = 24 * 3600;
        let list = [what_ended(real + day), what_ended(real + 7 * day), what_ended(real + 30 * day)];
        stores[0].apply(list.concat()).await.unwrap();
        for store in &stores {
            clear(store).await;
        }
        wrong.set_by(31 * 86_400);
        // Long enough for it to believe its own clock; the database's does not agree.
        for _ in 0..50 {
            wrong.advance(Duration::from_mins(31));
            right.advance(Duration::from_secs(65));
            for store in &stores {
                clear(store).await;
            }
        }
        assert_eq!(rows(&database), ["3", "6", "0"]);
        // One that starts with such a clock.
        let late = Clock::manual(real + 31 * 86_400);
        let third = open_postgres(&database.url(), &late);
        for _ in 0..3 {
            clear(&third).await;
            late.advance(Duration::from_secs(65));
        }
        assert_eq!(rows(&database), ["3", "6", "0"]);
        let heard = follower(&third).await;
        assert_eq!(heard.numbers(), [1, 2, 3, 4, 5, 6], "and it knows all of it");
    });
}

#[test]
fn a_wrong_clock_of_the_database_clears_nothing_away() {
    let database = Cluster::shared().database();
    // The database is ahead by two days of what this machine has lived through.
    let clock = Clock::manual(Clock::system().unix_seconds() - 2 * 86_400);
    let store = open_postgres(&database.url(), &clock);
    wait_for(async {
        store.apply(what_ended(clock.unix_seconds() + 3600)).await.unwrap();
        store.wrong_tries().unwrap().wrong([1; 16], Duration::from_millis(1)).await.unwrap();
        for _ in 0..5 {
            clear(&store).await;
            clock.advance(Duration::from_secs(65));
        }
        assert_eq!(rows(&database), ["1", "2", "1"]);
        // Wherever time has really passed, it goes.
        clock.advance(Duration::from_hours(3));
        clear(&store).await;
        assert_eq!(rows(&database), ["0", "1", "1"]);
        let gone = store.forgotten().await.unwrap();
        assert!(gone.number == 1 && gone.until >= clock.unix_seconds() - 3600 - 60, "{gone:?}");
    });
}

#[test]
fn tries_are_counted_together() {
    let database = Cluster::shared().database();
    let stores = [open_postgres(&database.url(), &clock()), open_postgres(&database.url(), &clock())];
    let tries = stores.each_ref().map(|store| store.wrong_tries().unwrap());
    let (kim, window) = ([7; 16], Duration::from_mins(1));
    wait_for(async {
        for round in 0..3 {
            assert_eq!(tries[0].wait(kim, 3, window).await.unwrap(), None);
            tries[round % 2].wrong(kim, window).await.unwrap();
        }
        for tries in &tries {
            let left = tries.wait(kim, 3, window).await.unwrap().unwrap();
            assert!(left <= window && left > Duration::from_secs(1), "{left:?}");
            assert_eq!(tries.wait(kim, 4, window).await.unwrap(), None);
            assert_eq!(tries.wait([8; 16], 3, window).await.unwrap(), None);
        }
        tries[1].right(kim).await.unwrap();
        assert_eq!(tries[0].wait(kim, 1, window).await.unwrap(), None);
        tries[0].wrong(kim, Duration::from_millis(5)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(tries[1].wait(kim, 1, Duration::from_millis(5)).await.unwrap(), None);
    });
}

#[test]
fn rows_that_can_not_be_read_are_an_error_without_the_row() {
    let database = Cluster::shared().database();
    let store = open_postgres(&database.url(), &clock());
    wait_for(async {
        let kim = account("kim");
        store.apply(vec![Write::InsertAccount(kim.clone())]).await.unwrap();
        database.sql("ALTER TABLE doorward_account ADD COLUMN more text DEFAULT 'x'");
        assert!(store.account(&kim.id).await.unwrap().is_some(), "a column more is nobody's trouble");
        database.sql("UPDATE doorward_account SET username = repeat('x', 100000)");
        let error = store.account(&kim.id).await.unwrap_err();
        assert!(log::causes(&error).len() < 200, "{error}");
        database.sql("ALTER TABLE doorward_account ALTER email DROP NOT NULL; UPDATE doorward_account SET username = 'kim', email = NULL");
        let error = store.account_by_name(&kim.username).await.unwrap_err();
        assert!(!log::causes(&error).contains("$2b$"), "{error}");
    });
}

#[test]
fn a_password_is_in_no_error() {
    let database = Cluster::shared().database();
    let wrong = database.url().replace("a%20password", "a%20wrong%20canary");
    for url in [
        wrong,
        String::from("postgres://u:canary@127.0.0.1:1/d"),
        String::from("postgres://u:canary@nowhere.invalid/d?sslmode=disable"),
    ] {
        let store = open_postgres(&url, &clock());
        let error = wait_for(store.health()).unwrap_err();
        let told = format!("{} {error:?}", log::causes(&error));
        assert!(!told.contains("canary"), "{told}");
        assert!(matches!(error, StoreError::Unavailable { .. }), "{told}");
    }
}

#[test]
fn the_database_is_known_by_its_certificate() {
    let (cluster, roots) = Cluster::start_encrypted();
    let database = cluster.database();
    let roots = roots.display();
    let open = |host: &str, parameters: &str| {
        let url = format!("{}?{parameters}", database.url().replace("127.0.0.1", host));
        let store = open_postgres(&url, &clock());
        let health = wait_for(store.health());
        wait_for(store.close()).unwrap();
        health
    };
    for (host, parameters, good) in [
        ("127.0.0.1", String::from("sslmode=disable"), true),
        ("127.0.0.1", String::from("sslmode=require"), true),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={roots}"), true),
        ("localhost", format!("sslmode=verify-full&sslrootcert={roots}"), true),
        // Not its name; and not an authority that this system trusts.
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={roots}"), false),
        ("localhost", String::from("sslmode=verify-full"), false),
        ("localhost", String::from("sslmode=verify-ca"), false),
    ] {
        match open(host, &parameters) {
            Ok(()) => assert!(good, "{host} {parameters}"),
            Err(error) => {
                assert!(!good, "{host} {parameters}: {}", log::causes(&error));
                assert!(log::causes(&error).contains("certificate"), "{}", log::causes(&error));
            }
        }
    }
    let url = format!("{}?sslmode=verify-full&sslrootcert={roots}", database.url().replace("127.0.0.1", "localhost"));
    let store = open_postgres(&url, &clock());
    wait_for(async {
        follower(&store).await;
        store.apply(vec![revoke(Revocation::All)]).await.unwrap();
    });
    let plain = "SELECT count(*) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)
        WHERE application_name = 'doorward' AND NOT ssl";
    assert_eq!(database.number(plain), 0);
    // A server that can't encrypt is not spoken to in plain text.
    let store = open_postgres(&format!("{}?sslmode=require", Cluster::shared().database().url()), &clock());
    assert!(log::causes(&wait_for(store.health()).unwrap_err()).contains("TLS"));
}
