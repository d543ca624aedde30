//! The embedded store against kills, damage, foreign files, and a disk that can't be written.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::super::conformance::{account, open, revoke, session};
use super::super::{Counts, Revocation, restore};
use super::*;

const NOW: u64 = 1_795_512_600;

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn closed(store: &Sled) {
    run(store.close()).unwrap();
}

/// Every file below a folder with its bytes.
fn bytes_of(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(bytes_of(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// A closed store with accounts, sessions and log entries, some of them rewritten.
fn filled(folder: &Path, accounts: usize) {
    let store = open(folder, &Clock::manual(NOW)).unwrap();
    run(async {
        for number in 0..accounts {
            let mut one = account(&format!("user{number}"));
            let list = vec![
                Write::InsertAccount(one.clone()),
                Write::PutSession(session(&one.id, NOW)),
                revoke(Revocation::Changed { account: one.id.clone() }),
            ];
            store.apply(list).await.unwrap();
            one.disabled = true;
            store.apply(vec![Write::UpdateAccount(one)]).await.unwrap();
        }
    });
    closed(&store);
}

#[test]
fn what_was_acknowledged_is_there_after_a_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOW);
    filled(folder.path(), 20);
    for path in bytes_of(folder.path()).into_keys() {
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
    }
    let mode = folder.path().join("store").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let store = open(folder.path(), &clock).unwrap();
    run(async {
        assert_eq!(store.accounts().await.unwrap().iter().filter(|one| one.disabled).count(), 20);
        assert_eq!(store.sessions(None).await.unwrap().len(), 20);
        assert_eq!(store.log().await.unwrap().len(), 20);
    });
    // What ran out is cleared away, and the number stays.
    clock.advance(Duration::from_secs(100_000));
    let kept = run(async {
        for _ in 0..100 {
            store.health().await.unwrap();
            if store.export().await.unwrap().counts.entries == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        store.export().await.unwrap()
    });
    assert_eq!((kept.counts.accounts, kept.counts.sessions, kept.counts.entries), (20, 0, 0));
    drop(kept);
    closed(&store);
    let store = open(folder.path(), &clock).unwrap();
    assert_eq!(run(store.log_head()).unwrap(), 20);
    assert!(run(store.apply(vec![revoke(Revocation::All)])).unwrap().log_head > 20);
    closed(&store);
    assert!(matches!(run(store.log_head()), Err(StoreError::Unavailable { .. })));
}

/// Has the store clear away what it would clear away in so many minutes.
fn minutes_pass(store: &Sled, clock: &Clock, minutes: usize) {
    for _ in 0..minutes {
        clock.advance(Duration::from_secs(65));
        // The house is kept after each call; the second one waits for it.
        run(async {
            store.health().await.unwrap();
            store.health().await.unwrap();
        });
    }
}

#[test]
fn a_clock_that_is_wrong_for_a_while_clears_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOW);
    let store = open(folder.path(), &clock).unwrap();
    let kim = account("kim");
    let list = vec![
        Write::InsertAccount(kim.clone()),
        Write::PutSession(session(&kim.id, NOW)),
        Write::Revoke { what: Revocation::Session { session: SessionId::random() }, at: NOW, expires: NOW + 1000 },
        Write::Revoke { what: Revocation::Account { account: kim.id.clone() }, at: NOW, expires: NOW + 1000 },
    ];
    run(store.apply(list)).unwrap();
    let everything = Counts { accounts: 1, sessions: 1, entries: 2 };
    let counts = |store: &Sled| run(store.export()).unwrap().counts;
    for wrong in [31 * 24 * 3600, -400 * 24 * 3600, 31 * 24 * 3600] {
        clock.set_by(wrong);
        minutes_pass(&store, &clock, 1);
        assert_eq!(counts(&store), everything, "{wrong}");
        clock.set_by(-wrong);
        minutes_pass(&store, &clock, 1);
        assert_eq!(counts(&store), everything, "{wrong}, and right again");
        assert_eq!(run(store.sessions(None)).unwrap().len(), 1);
    }
    // Nor at a start, and not by many.
    clock.set_by(31 * 24 * 3600);
    let mut store = store;
    for _ in 0..3 {
        closed(&store);
        store = open(folder.path(), &clock).unwrap();
        minutes_pass(&store, &clock, 1);
        assert_eq!(counts(&store), everything);
    }
    clock.set_by(-31 * 24 * 3600);
    assert_eq!(run(store.log()).unwrap().len(), 2);
    // What time has really taken goes, and is remembered as gone, over a start too.
    minutes_pass(&store, &clock, 16);
    assert_eq!(counts(&store), Counts { accounts: 1, sessions: 0, entries: 0 });
    closed(&store);
    let store = open(folder.path(), &clock).unwrap();
    let gone = run(store.forgotten()).unwrap();
    assert_eq!((gone.number, gone.at), (2, NOW));
    assert!(gone.until >= NOW + 1000 && gone.settled >= gone.until, "{gone:?}");
    closed(&store);
}

#[test]
fn the_time_is_kept_where_nothing_else_changes() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOW);
    let store = open(folder.path(), &clock).unwrap();
    run(store.apply(vec![revoke(Revocation::All)])).unwrap();
    clock.advance(Duration::from_secs(400));
    closed(&store);
    // A wall clock that is ahead by a year says nothing against it.
    clock.set_by(365 * 24 * 3600);
    let store = open(folder.path(), &clock).unwrap();
    assert_eq!(run(store.forgotten()).unwrap().settled, NOW + 400);
    clock.advance(Duration::from_hours(7));
    minutes_pass(&store, &clock, 1);
    drop(store);
    let settled = |path: &Path| {
        let dump = fs::read(path.join("dump.jsonl")).unwrap();
        let header: serde_json::Value =
            serde_json::from_slice(dump.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
        header["forgotten"]["settled"].as_u64().unwrap()
    };
    let store = open_when_let_go(folder.path(), &clock);
    closed(&store);
    assert!(settled(folder.path()) >= NOW + 400 + 7 * 3600);
}

/// Opens a store whose thread may still be letting the folder go.
fn open_when_let_go(folder: &Path, clock: &Clock) -> Arc<Sled> {
    let options = SledOptions { wait: Duration::from_mins(1), ..SledOptions::default() };
    Sled::open(folder, clock.clone(), options).unwrap()
}

#[test]
fn a_folder_is_open_once() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOW);
    let first = open(folder.path(), &clock).unwrap();
    assert!(matches!(open(folder.path(), &clock), Err(StoreError::InUse { .. })));
    run(first.apply(vec![Write::InsertAccount(account("kim"))])).unwrap();
    let waiting = {
        let (path, clock) = (folder.path().to_path_buf(), clock.clone());
        let options = SledOptions { wait: Duration::from_mins(1), ..SledOptions::default() };
        std::thread::spawn(move || Sled::open(&path, clock, options))
    };
    closed(&first);
    let second = waiting.join().unwrap().unwrap();
    assert_eq!(run(second.accounts()).unwrap().len(), 1);
    // Dropped, not closed: the folder is free again soon after.
    drop(second);
    let options = SledOptions { wait: Duration::from_mins(1), ..SledOptions::default() };
    closed(&Sled::open(folder.path(), clock, options).unwrap());
}

#[test]
fn a_store_that_is_not_as_it_was_left_is_refused_and_left_alone() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 9] = [
        ("no marker", |store| fs::remove_file(store.join("doorward")).unwrap()),
        ("another version", |store| {
            let text = fs::read_to_string(store.join("doorward")).unwrap();
            fs::write(store.join("doorward"), text.replace("layout 1", "layout 9")).unwrap();
        }),
        ("no data", |store| fs::remove_file(store.join("db")).unwrap()),
        ("empty data", |store| fs::write(store.join("db"), "").unwrap()),
        ("half the data", |store| {
            let bytes = fs::read(store.join("db")).unwrap();
            // The file is longer than what is in it.
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
            fs::write(store.join("db"), &bytes[..used / 2]).unwrap();
        }),
        ("no conf", |store| fs::remove_file(store.join("conf")).unwrap()),
        ("text", |store| fs::write(store.join("db"), "this is no database\n".repeat(1000)).unwrap()),
        ("foreign files", |store| {
            fs::remove_dir_all(store).unwrap();
            fs::create_dir(store).unwrap();
            fs::write(store.join("photo.jpg"), "JFIF").unwrap();
        }),
        ("a file in its place", |store| {
            fs::remove_dir_all(store).unwrap();
            fs::write(store, "hello").unwrap();
        }),
    ];
    for (name, harm) in harms {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 5);
        harm(&folder.path().join("store"));
        let before = bytes_of(folder.path());
        let Err(StoreError::Damaged { way_back, .. }) = open(folder.path(), &Clock::manual(NOW)) else {
            panic!("{name}: opened");
        };
        assert!(way_back.contains("store restore"), "{name}: {way_back}");
        assert_eq!(before, bytes_of(folder.path()), "{name}");
    }
}

#[test]
fn a_store_that_went_back_to_an_older_state_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), 3);
    let marker = folder.path().join("store/doorward");
    let store = open(folder.path(), &Clock::manual(NOW)).unwrap();
    run(store.apply(vec![revoke(Revocation::All)])).unwrap();
    let newer = fs::read(&marker).unwrap();
    closed(&store);
    let other = tempfile::tempdir().unwrap();
    filled(other.path(), 3);
    fs::write(other.path().join("store/doorward"), newer).unwrap();
    let refused = open(other.path(), &Clock::manual(NOW));
    assert!(
        matches!(refused, Err(StoreError::Damaged { problem, .. }) if problem.contains("last changes are missing"))
    );
}

#[test]
fn a_store_that_is_gone_while_its_dump_is_there_is_not_made_anew() {
    for empty_folder in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(NOW);
        filled(folder.path(), 3);
        let dump = folder.path().join("dump.jsonl");
        assert_eq!(dump.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(folder.path().join("store")).unwrap();
        if empty_folder {
            fs::create_dir(folder.path().join("store")).unwrap();
        }
        assert!(matches!(open(folder.path(), &clock), Err(StoreError::Damaged { .. })));

        let before = fs::read(&dump).unwrap();
        let options = SledOptions { beside_dump: true, ..SledOptions::default() };
        let store = Sled::open(folder.path(), clock.clone(), options).unwrap();
        closed(&store);
        // A restore that was killed before it did anything: still not taken for an empty store.
        assert!(matches!(open(folder.path(), &clock), Err(StoreError::Damaged { .. })));
        assert_eq!(before, fs::read(&dump).unwrap());
        let store = Sled::open(folder.path(), clock.clone(), options).unwrap();
        run(restore(before.as_slice(), &*store, None)).unwrap();
        closed(&store);
        let store = open(folder.path(), &clock).unwrap();
        assert_eq!(run(store.accounts()).unwrap().len(), 3);
        closed(&store);
    }
}

#[test]
fn a_half_written_snapshot_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), 5);
    fs::write(folder.path().join("store/snap.00000000000012AB.generating"), "half").unwrap();
    let store = open(folder.path(), &Clock::manual(NOW)).unwrap();
    assert_eq!(run(store.accounts()).unwrap().len(), 5);
    closed(&store);
}

#[test]
fn a_flipped_bit_costs_nothing_or_is_told() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), 12);
    fs::remove_file(folder.path().join("dump.jsonl")).unwrap();
    let pristine = bytes_of(&folder.path().join("store"));
    let paths: Vec<_> = pristine.keys().collect();
    let data = folder.path().join("store/db");
    let seed = uuid::Uuid::new_v7(uuid::Timestamp::now(uuid::NoContext)).as_u128();
    let mut refused = 0;
    for round in 0..60_u128 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).wrapping_add(round << 64 | round);
        random ^= random >> 61;
        random = random.wrapping_mul(0xda94_2042_e4dd_58b5_2545_f491_4f6c_dd1d);
        // Each file in turn, the data three times as often as all others.
        let chosen = if round % 4 == 0 { paths[usize::try_from(round / 4).unwrap() % paths.len()] } else { &data };
        let used = pristine[chosen].iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let at = usize::try_from((random >> 40) % used as u128).unwrap();
        fs::remove_dir_all(folder.path().join("store")).unwrap();
        fs::create_dir_all(folder.path().join("store/blobs")).unwrap();
        for (path, bytes) in &pristine {
            let mut bytes = bytes.clone();
            if path == chosen {
                bytes[at] ^= 1 << (random >> 120 & 7);
            }
            fs::write(path, bytes).unwrap();
        }
        let before = bytes_of(&folder.path().join("store"));
        match open(folder.path(), &Clock::manual(NOW)) {
            Ok(store) => {
                let accounts = run(store.accounts()).unwrap();
                assert_eq!(accounts.iter().filter(|one| one.disabled).count(), 12, "seed {seed} round {round}");
                closed(&store);
                fs::remove_file(folder.path().join("dump.jsonl")).unwrap();
            }
            Err(StoreError::Damaged { .. }) => {
                refused += 1;
                assert!(before == bytes_of(&folder.path().join("store")), "seed {seed} round {round}: touched");
            }
            Err(other) => panic!("seed {seed} round {round}, {chosen:?} at {at}: {other:?}"),
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_disk_that_can_not_be_written_is_told_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOW);
    let store = open(folder.path(), &clock).unwrap();
    run(async {
        let kim = account("kim");
        store.apply(vec![Write::InsertAccount(kim.clone()), revoke(Revocation::All)]).await.unwrap();
        let (reply, faults) = oneshot::channel();
        store.commands.send(Command::Faults(reply)).unwrap();
        faults.await.unwrap().unwrap().writes_fail.store(true, Ordering::SeqCst);
        let refused = store.apply(vec![revoke(Revocation::All)]).await;
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })));
        assert!(store.health().await.is_err());
        assert!(store.apply(vec![revoke(Revocation::All)]).await.is_err());
        assert_eq!(store.account(&kim.id).await.unwrap().unwrap().username, kim.username);
        // It opens anew, without the fault.
        clock.advance(Duration::from_secs(10));
        while store.health().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The number that was refused is not given out again.
        assert!(store.apply(vec![revoke(Revocation::All)]).await.unwrap().log_head > 2);
        assert_eq!(store.accounts().await.unwrap().len(), 1);
    });
    closed(&store);
}

#[test]
fn a_dump_follows_a_change_within_a_minute() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOW);
    let store = open(folder.path(), &clock).unwrap();
    let dump = folder.path().join("dump.jsonl");
    run(async {
        store.apply(vec![Write::InsertAccount(account("kim"))]).await.unwrap();
        store.health().await.unwrap();
        assert!(!dump.exists());
        clock.advance(Duration::from_secs(30));
        while !dump.exists() {
            clock.advance(Duration::from_secs(5));
            store.health().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(fs::read_to_string(&dump).unwrap().contains("\"kim\""));
    });
    closed(&store);
}

#[test]
fn a_call_without_an_answer_times_out() {
    let folder = tempfile::tempdir().unwrap();
    let options = SledOptions { timeout: Duration::from_millis(20), ..SledOptions::default() };
    let store = Sled::open(folder.path(), Clock::manual(NOW), options).unwrap();
    let (release, stuck_until) = std::sync::mpsc::channel::<()>();
    let stuck = Command::Read(Box::new(move |_| {
        let _ = stuck_until.recv();
        Box::new(|| ())
    }));
    store.commands.send(stuck).unwrap();
    assert!(matches!(run(store.log_head()), Err(StoreError::TimedOut)));
    release.send(()).unwrap();
    closed(&store);
}

/// Not a test by itself: what the one below kills.
#[test]
fn writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os("DOORWARD_TEST_STORE_TO_KILL") else { return };
    let store = open(Path::new(&folder), &Clock::manual(NOW)).unwrap();
    run(async {
        // Bounded, in case nobody kills it.
        for _ in 0..20_000 {
            let mut one = account(&format!("user{}", uuid::Uuid::now_v7()));
            store.apply(vec![Write::InsertAccount(one.clone())]).await.unwrap();
            let list = vec![
                Write::UpdateAccount({
                    one.disabled = true;
                    one.clone()
                }),
                revoke(Revocation::Account { account: one.id.clone() }),
            ];
            let number = store.apply(list).await.unwrap().log_head;
            writeln!(std::io::stderr(), "acknowledged {} {number}", one.id).unwrap();
        }
    });
}

#[test]
fn a_kill_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..30_usize {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::embedded::tests::writes_until_it_is_killed", "--nocapture", "--test-threads=1"])
            .env("DOORWARD_TEST_STORE_TO_KILL", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let before = acknowledged.len();
        let mut read = |line: std::io::Result<String>| {
            if let Some(told) = line.unwrap().strip_prefix("acknowledged ") {
                let (id, number) = told.split_once(' ').unwrap();
                acknowledged.push((id.parse::<AccountId>().unwrap(), number.parse::<u64>().unwrap()));
            }
        };
        // After some answers, at whatever it is just doing.
        lines.by_ref().take(1 + round * 7 % 40).for_each(&mut read);
        child.kill().unwrap();
        lines.for_each(&mut read);
        child.wait().unwrap();
        assert!(acknowledged.len() > before, "round {round}: it never got to write");
    }
    let store = open(folder.path(), &Clock::manual(NOW)).unwrap();
    run(async {
        let log = store.log().await.unwrap();
        for (id, number) in &acknowledged {
            let found = store.account(id).await.unwrap().unwrap();
            assert!(found.disabled);
            let entry = log.iter().find(|entry| entry.number == *number).unwrap();
            assert_eq!(entry.what, Revocation::Account { account: id.clone() });
        }
        assert!(log.windows(2).all(|pair| pair[0].number < pair[1].number));
    });
    closed(&store);
}

/// Bytes on disk below a folder.
fn size_of(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { size_of(&path) } else { path.metadata().unwrap().blocks() * 512 })
        .sum()
}

#[test]
#[ignore = "writes hundreds of megabytes; says how large the store gets and how fast it starts"]
fn growth_and_start() {
    let clock = Clock::manual(NOW);
    let report = |name: &str, folder: &Path, rows: u64, started: Instant| {
        let took = Clock::system().instant() - started;
        let each = size_of(&folder.join("store")) / rows;
        writeln!(std::io::stderr(), "{name}: {each} bytes each, {took:?}").unwrap();
        each
    };
    for (name, count, list, kind) in [
        ("accounts one by one", 20_000, 1, 0),
        ("accounts at once", 100_000, 100_000, 0),
        ("revocations one by one", 20_000, 1, 1),
        ("revocations by 1000", 200_000, 1000, 1),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), &clock).unwrap();
        let started = Clock::system().instant();
        run(async {
            for start in (0..count).step_by(list) {
                let writes = (start..start + list).map(|number| match kind {
                    0 => Write::InsertAccount(account(&format!("user{number}"))),
                    _ => revoke(Revocation::Session { session: SessionId::random() }),
                });
                store.apply(writes.collect()).await.unwrap();
            }
        });
        let rows = u64::try_from(count).unwrap();
        report(name, folder.path(), rows, started);
        closed(&store);
        let each = report("  closed, with a dump", folder.path(), rows, started);
        let started = Clock::system().instant();
        let store = open(folder.path(), &clock).unwrap();
        report("  opened", folder.path(), rows, started);
        closed(&store);
        assert!(each <= if kind == 0 { 2048 } else { 1024 }, "{name}: {each}");
    }
}

#[test]
#[ignore = "needs a file system of some 24 MB, named in DOORWARD_TEST_SMALL_DISK"]
fn a_full_disk_is_told_and_heals() {
    let Some(disk) = std::env::var_os("DOORWARD_TEST_SMALL_DISK") else { return };
    let folder = tempfile::tempdir_in(disk).unwrap();
    let clock = Clock::system();
    let store = open(folder.path(), &clock).unwrap();
    run(async {
        let kim = account("kim");
        store.apply(vec![Write::InsertAccount(kim.clone())]).await.unwrap();
        let mut ballast = fs::File::create(folder.path().join("ballast")).unwrap();
        while ballast.write_all(&[7; 4096]).is_ok() {}
        let mut acknowledged = Vec::new();
        let problem = loop {
            let mut one = account(&format!("user{}", acknowledged.len()));
            one.email = "x".repeat(20_000);
            match store.apply(vec![Write::InsertAccount(one.clone())]).await {
                Ok(_) => acknowledged.push(one.id),
                Err(problem) => break problem,
            }
        };
        assert!(matches!(problem, StoreError::Unavailable { .. }), "{problem}");
        writeln!(std::io::stderr(), "full after {}: {problem}", acknowledged.len()).unwrap();
        for _ in 0..40 {
            assert!(store.health().await.is_err());
            assert!(store.account(&kim.id).await.unwrap().is_some());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(ballast);
        fs::remove_file(folder.path().join("ballast")).unwrap();
        while store.health().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        store.apply(vec![Write::InsertAccount(account("ann"))]).await.unwrap();
        for id in &acknowledged {
            assert!(store.account(id).await.unwrap().is_some());
        }
    });
    closed(&store);
    let store = open(folder.path(), &clock).unwrap();
    assert!(run(store.accounts()).unwrap().len() >= 2);
    closed(&store);
}
