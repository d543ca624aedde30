//! The start and the end of a server, and commands that come meanwhile: nobody meets a folder that is "open elsewhere".

use std::fs::File;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::support::gateway::{Finished, hash, program, quoted, ready, run, write_private};
use crate::support::{Builder, Connection, Gateway, PASSWORD, Request, Upstream, wait};

/// A command that runs beside the test.
fn begin(gateway: &Gateway, arguments: &[&str]) -> Child {
    let mut command = program(&[arguments, &["--config", gateway.config.to_str().unwrap()]].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(command: Child) -> Finished {
    Finished::of(command.wait_with_output().unwrap())
}

fn count(listed: &Finished) -> usize {
    listed.json().as_array().unwrap().len()
}

/// Holds the store's folder as another process does.
fn hold(gateway: &Gateway) -> File {
    let lock = File::options().create(true).truncate(false).write(true).open(gateway.data().join("store.lock"));
    let lock = lock.unwrap();
    lock.try_lock().unwrap();
    lock
}

#[test]
fn a_command_right_after_the_start_or_the_end_of_a_server_is_carried_out() {
    let upstream = Upstream::plain();
    let mut gateway = Builder::guarding(&upstream).set("store.timeout", "\"1m\"").prepare();
    for _ in 0..6 {
        gateway.spawn();
        let early: Vec<Child> = (0..2).map(|_| begin(&gateway, &["user", "list", "--json"])).collect();
        // A script that waits for the port.
        wait::until("the port to open", || Connection::try_to(gateway.address).is_ok());
        assert_eq!(count(&gateway.command(&["user", "list", "--json"]).expect(0)), 1);
        for command in early {
            assert_eq!(count(&finish(command).expect(0)), 1);
        }
        gateway.wait_until_ready();
        gateway.signal(rustix::process::Signal::TERM);
        let late: Vec<Child> = (0..2).map(|_| begin(&gateway, &["user", "list", "--json"])).collect();
        for command in late {
            assert_eq!(count(&finish(command).expect(0)), 1);
        }
        assert!(gateway.wait_for_exit().success());
    }
    assert!(!gateway.data().join("admin.sock").exists());
}

#[test]
fn a_command_at_the_start_of_a_server_with_20_000_accounts_is_carried_out() {
    let upstream = Upstream::plain();
    let mut gateway = Builder::guarding(&upstream).set("store.timeout", "\"1m\"").prepare();
    let hash = hash(PASSWORD);
    let accounts: Vec<Value> =
        (0..20_000).map(|number| json!({"username": format!("u{number}"), "password_hash": hash})).collect();
    let file = gateway.folder().join("many.json");
    write_private(&file, Value::from(accounts).to_string().as_bytes());
    gateway.command(&["user", "import", file.to_str().unwrap(), "--format", "json"]).expect(0);
    for _ in 0..3 {
        gateway.spawn();
        let shown = begin(&gateway, &["user", "show", "u7", "--json"]);
        wait::until("the port to open", || Connection::try_to(gateway.address).is_ok());
        gateway.command(&["user", "show", "u19999", "--json"]).expect(0);
        finish(shown).expect(0);
        gateway.wait_until_ready();
        assert!(gateway.stop().success());
    }
}

#[test]
fn a_server_that_waits_for_its_store_says_so_and_commands_wait_for_it() {
    let upstream = Upstream::plain();
    let mut gateway = Builder::guarding(&upstream).set("store.timeout", "\"1m\"").prepare();
    let lock = hold(&gateway);
    gateway.spawn();
    let admin = gateway.admin;
    wait::until("the admin listener", || ready(admin).is_some());
    gateway.get_admin("/ping").expect(200);
    let told = gateway.get_admin("/ready").expect(503).json();
    assert_eq!(told["reasons"][0]["code"], "starting", "{told}");
    assert!(gateway.get_admin("/metrics").expect(200).text().contains("doorward_"));
    wait::until("the admin socket", || gateway.data().join("admin.sock").exists());
    let mut listed = begin(&gateway, &["user", "list", "--json"]);
    assert!(listed.try_wait().unwrap().is_none(), "it did not wait");
    drop(lock);
    assert_eq!(count(&finish(listed).expect(0)), 1);
    gateway.wait_until_ready();
    gateway.login("kim");
}

#[test]
fn a_command_that_waits_for_a_start_which_fails_does_its_work_itself() {
    let upstream = Upstream::plain();
    let mut gateway = Builder::guarding(&upstream).set("store.timeout", "\"1m\"").prepare();
    // Its port is somebody else's.
    let port = std::net::TcpListener::bind(gateway.address).unwrap();
    gateway.spawn();
    wait::until("the admin socket", || gateway.data().join("admin.sock").exists());
    let added = program(&["user", "set-groups", "kim", "staff", "--config", gateway.config.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(gateway.wait_for_exit().code(), Some(1));
    finish(added).expect(0);
    assert!(!gateway.data().join("admin.sock").exists());
    drop(port);
    gateway.serve();
    assert_eq!(gateway.account("kim")["groups"], json!(["staff"]));
    gateway.send(&Request::get("/")).expect(401);
}

#[test]
fn health_says_whether_the_server_is_ready_and_why_not() {
    let upstream = Upstream::plain();
    let mut gateway = Builder::guarding(&upstream).set("store.timeout", "\"1m\"").prepare();
    let admin = format!("http://{}", gateway.admin);
    let none = gateway.command(&["health"]).expect(1);
    assert!(none.stderr.contains("no server runs here"), "{none:?}");
    run(&["health", "--url", &admin]).expect(1);
    let lock = hold(&gateway);
    gateway.spawn();
    let listening = gateway.admin;
    wait::until("the admin listener", || ready(listening).is_some());
    // At once, although other commands wait.
    for told in [gateway.command(&["health"]), run(&["health", "--url", &admin])] {
        assert!(told.expect(1).stderr.contains("not ready: starting (the store"));
    }
    drop(lock);
    gateway.wait_until_ready();
    for told in [gateway.command(&["health"]), run(&["health", "--url", &format!("{admin}/ready")])] {
        assert_eq!(told.expect(0).stdout, "ready\n");
    }
    // What has become of the file since is no illness of the server that runs.
    gateway.rewrite(|text| format!("{text}\n[nonsense]\n"));
    gateway.command(&["check-config"]).expect(2);
    gateway.command(&["health"]).expect(0);
    run(&["health", "--url", &format!("{admin}/ping")]).expect(1);
    run(&["health", "--url", "https://127.0.0.1"]).expect(2);
    assert!(gateway.stop().success());
    gateway.command(&["health"]).expect(1);
}

#[test]
fn a_data_folder_of_a_long_name_has_its_socket() {
    let upstream = Upstream::plain();
    for length in [95, 107, 125, 240] {
        let builder = Builder::guarding(&upstream).set("store.timeout", "\"1m\"");
        let folder = builder.folder().to_owned();
        let rest = length - folder.as_os_str().len() - 1;
        // One name has at most 255 bytes, and may have that many.
        let data = folder.join("d".repeat(rest));
        let mut gateway = builder.set("data_dir", &quoted(&data)).start();
        assert_eq!(data.as_os_str().len(), length);
        assert!(data.join("admin.sock").exists());
        gateway.command(&["user", "set-groups", "kim", "staff"]).expect(0);
        gateway.command(&["check-config"]).expect(0);
        gateway.command(&["health"]).expect(0);
        assert!(gateway.stop().success());
        assert!(!data.join("admin.sock").exists());
    }
}

#[test]
fn listings_fit_a_terminal_and_the_short_names_of_commands_work() {
    let upstream = Upstream::plain();
    let name = "a".repeat(64);
    let gateway = Builder::guarding(&upstream).user(&name, &[]).set("store.timeout", "\"1m\"").start();
    let agent = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/148.0.0.0 Safari/537.36";
    let account = json!({"username": name, "password": PASSWORD});
    gateway.send(&Request::post("/login").field("User-Agent", agent).json(&account)).expect(200);
    let whole = gateway.command(&["session", "list", "--json"]).expect(0).json();
    assert_eq!((&whole[0]["user_agent"], &whole[0]["username"]), (&json!(agent), &json!(name)));
    let listed = gateway.command(&["session", "ls"]).expect(0).stdout;
    assert!(listed.lines().all(|line| line.chars().count() <= 100), "{listed}");
    let sid = listed.lines().nth(1).unwrap().split_whitespace().next().unwrap();
    assert_eq!(sid, whole[0]["sid"].as_str().unwrap());
    gateway.command(&["session", "revoke", sid]).expect(0);
    gateway.command(&["user", "ls"]).expect(0);
    gateway.command(&["user", "passwd", "kim", "--generate"]).expect(0);
    gateway.command(&["user", "rm", "kim"]).expect(0);
    gateway.command(&["user", "delete", &name]).expect(0);
    assert_eq!(gateway.command(&["key", "ls", "--json"]).expect(0).json()[0]["role"], "current");
    let pages = gateway.folder().join("pages");
    run(&["man", "--out", pages.to_str().unwrap()]).expect(0);
    for page in ["doorward", "doorward-protect", "doorward-health", "doorward-user-add", "doorward-store-copy"] {
        let text =
            std::fs::read_to_string(pages.join(format!("{page}.1"))).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".TH"), "{page}");
    }
}
