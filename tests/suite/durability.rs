//! What was acknowledged is on disk; what is damaged or foreign is left alone and named.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::support::gateway::ready;
use crate::support::{Builder, Gateway, PASSWORD, Request, Upstream, wait};

#[test]
fn kill_9_right_after_an_acknowledged_change_loses_nothing() {
    let upstream = Upstream::plain();
    let mut builder = Builder::guarding(&upstream);
    for number in 0..30 {
        builder = builder.user(&format!("user{number}"), &[]);
    }
    let mut gateway = builder.start();
    let mut revoked = Vec::new();
    let mut kept = Vec::new();
    for number in 0..30 {
        let name = format!("user{number}");
        let token = gateway.login(&name);
        // Each round another kind of change; the kill follows its answer at once.
        match number % 5 {
            0 => {
                gateway.send(&Request::post("/logout").cookie(&token)).expect(204);
                gateway.kill();
                revoked.push(token);
            }
            1 => {
                gateway.command(&["user", "disable", &name]).expect(0);
                gateway.kill();
                revoked.push(token);
            }
            2 => {
                gateway.command(&["user", "set-groups", &name, "late"]).expect(0);
                gateway.kill();
                kept.push(token);
            }
            3 => {
                gateway.command(&["session", "revoke", "--user", &name]).expect(0);
                gateway.kill();
                revoked.push(token);
            }
            _ => {
                let fresh = gateway.login(&name);
                gateway.kill();
                kept.extend([token, fresh]);
            }
        }
        gateway.serve();
        match number % 5 {
            1 => assert_eq!(gateway.account(&name)["disabled"], true, "round {number}"),
            2 => assert_eq!(gateway.account(&name)["groups"], serde_json::json!(["late"]), "round {number}"),
            _ => {}
        }
        for token in &revoked {
            assert_eq!(gateway.get_with("/check", token).status, 401, "round {number}: a revocation is lost");
        }
        for token in &kept {
            assert_eq!(gateway.get_with("/check", token).status, 200, "round {number}: a login is lost");
        }
    }
    let sessions = gateway.command(&["session", "list", "--json"]).expect(0).json();
    assert_eq!(sessions.as_array().unwrap().len(), kept.len());
}

/// Every file of a folder and its checksum.
fn snapshot(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                files.insert(path.display().to_string(), Sha256::digest(fs::read(&path).unwrap()).to_vec());
            }
        }
    }
    files
}

/// The sled folder below the data folder: the one with a file named `db`.
fn sled_folder(data: &Path) -> std::path::PathBuf {
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        if folder.join("db").is_file() {
            return folder;
        }
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    panic!("there is no sled folder below {}", data.display());
}

/// The files of the store and the dump: what a refused start must leave as it is.
fn store_files(gateway: &Gateway) -> BTreeMap<String, Vec<u8>> {
    let mut files = snapshot(&sled_folder(&gateway.data()));
    let dump = gateway.data().join("dump.jsonl");
    files.insert(String::from("dump"), fs::read(dump).unwrap_or_default());
    files
}

#[test]
fn a_damaged_store_is_a_clear_error_and_stays_untouched() {
    // Where in the file the damage is: at the start, in the middle, cut off.
    for damage in 0..6_usize {
        let upstream = Upstream::plain();
        let mut builder = Builder::guarding(&upstream);
        for number in 0..200 {
            builder = builder.user(&format!("user{number}"), &["a group with a rather long name to fill the file"]);
        }
        let mut gateway = builder.start();
        gateway.login("kim");
        assert_eq!(gateway.stop().code(), Some(0));
        let dump = gateway.data().join("dump.jsonl");
        assert!(fs::read_to_string(&dump).unwrap().contains("user199"), "the dump is not current at exit");
        let file = sled_folder(&gateway.data()).join("db");
        let mut bytes = fs::read(&file).unwrap();
        let length = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        match damage {
            0 => bytes[..4096.min(length)].fill(0xaa),
            1 => bytes[..length].fill(0),
            2 => bytes.truncate(length / 2),
            3 => bytes[length / 2..length].fill(0x55),
            4 => bytes[..length].iter_mut().step_by(97).for_each(|byte| *byte ^= 0x10),
            _ => bytes.clear(),
        }
        fs::write(&file, bytes).unwrap();
        let before = store_files(&gateway);
        let mark = gateway.logs().len();
        gateway.spawn();
        let status = gateway.wait_for_exit();
        let logs = gateway.logs()[mark..].to_owned();
        assert_eq!(status.code(), Some(1), "damage {damage}: {logs}");
        assert!(!logs.contains("panicked"), "damage {damage}: {logs}");
        assert!(logs.contains("restore"), "damage {damage}: the way back is not named: {logs}");
        assert_eq!(store_files(&gateway), before, "damage {damage}: the folder was changed");
        // A command refuses as well, and the way back works.
        gateway.command(&["user", "list"]).expect(1);
        assert_eq!(store_files(&gateway), before, "damage {damage}: a command changed the folder");
        fs::rename(sled_folder(&gateway.data()), gateway.folder().join("damaged")).unwrap();
        gateway.command(&["store", "restore", dump.to_str().unwrap()]).expect(0);
        gateway.serve();
        gateway.login("user199");
    }
}

#[test]
fn a_foreign_folder_is_a_clear_error_and_stays_untouched() {
    let upstream = Upstream::plain();
    let mut gateway = Builder::guarding(&upstream).start();
    assert!(gateway.stop().success());
    let folder = sled_folder(&gateway.data());
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    // Somebody else's sled database.
    let other = sled::open(&folder).unwrap();
    other.insert("somebody", "else's row").unwrap();
    other.flush().unwrap();
    drop(other);
    let before = store_files(&gateway);
    let mark = gateway.logs().len();
    gateway.spawn();
    let status = gateway.wait_for_exit();
    let logs = gateway.logs()[mark..].to_owned();
    assert_eq!(status.code(), Some(1), "{logs}");
    assert!(!logs.contains("panicked"), "{logs}");
    assert_eq!(store_files(&gateway).keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    // Its rows are all there.
    let other = sled::open(&folder).unwrap();
    assert_eq!(other.get("somebody").unwrap().unwrap(), b"else's row");
    assert_eq!(other.len(), 1);
}

#[test]
fn a_left_over_of_an_interrupted_start_does_not_lock_the_store() {
    let upstream = Upstream::plain();
    let mut gateway = Builder::guarding(&upstream).start();
    assert!(gateway.stop().success());
    fs::write(sled_folder(&gateway.data()).join("snap.0000000000000001.generating"), b"half").unwrap();
    gateway.serve();
    gateway.login("kim");
}

#[test]
fn secrets_and_data_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let upstream = Upstream::plain();
    let mut gateway = Builder::guarding(&upstream).start();
    gateway.login("kim");
    let socket_mode = || {
        let mut modes = Vec::new();
        let mut folders = vec![gateway.data()];
        while let Some(folder) = folders.pop() {
            let mode = fs::metadata(&folder).unwrap().permissions().mode() & 0o777;
            modes.push((folder.display().to_string(), mode, true));
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                    modes.push((path.display().to_string(), mode, false));
                }
            }
        }
        modes
    };
    let top = gateway.data().display().to_string();
    for (path, mode, _) in socket_mode() {
        if path == top {
            assert_eq!(mode, 0o700, "{path}");
        } else if path.ends_with(".jsonl") || path.ends_with(".sock") || path.contains("keys") {
            assert_eq!(mode & 0o077, 0, "{path}: {mode:o}");
        }
    }
    assert!(gateway.stop().success());
    let dump = gateway.data().join("dump.jsonl");
    assert_eq!(fs::metadata(dump).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_full_disk_answers_503_to_changes_and_valid_tokens_go_on() {
    use rustix::process::{Pid, Resource, Rlimit};
    let upstream = Upstream::plain();
    let mut gateway = Builder::guarding(&upstream).start();
    let token = gateway.login("kim");
    // Files may not grow any more: the same as a full disk, for this process alone.
    let process = Pid::from_raw(i32::try_from(gateway.process_id()).unwrap());
    let before =
        rustix::process::prlimit(process, Resource::Fsize, Rlimit { current: Some(0), maximum: None }).unwrap();
    let refused = wait::until_some("a change to be refused", || {
        let answer = gateway.try_login("kim", PASSWORD);
        (answer.status != 200).then_some(answer.status)
    });
    assert_eq!(refused, 503);
    gateway.get_with("/", &token).expect(200);
    wait::until("/ready to say so", || ready(gateway.admin) == Some(503));
    rustix::process::prlimit(process, Resource::Fsize, before).unwrap();
    if gateway.try_login("kim", PASSWORD).status != 200 {
        // It heals by itself or after a restart.
        let healed = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            gateway.try_login("kim", PASSWORD).status == 200
        });
        if !healed {
            gateway.signal(rustix::process::Signal::TERM);
            gateway.wait_for_exit();
            gateway.serve();
        }
    }
    gateway.login("kim");
    gateway.get_with("/check", &token).expect(200);
}
