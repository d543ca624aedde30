//! `check-config` finds what `serve` would refuse, beyond the file's text; and `serve` makes the key that nobody named.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use crate::support::gateway::{Finished, free_port, program, quoted, run};
use crate::support::{Builder, Gateway, Upstream};

/// Runs the program as a user who owns nothing here, from a copy that this user may run.
fn as_nobody(folder: &Path, arguments: &[&str]) -> Finished {
    const NOBODY: u32 = 65_534;
    let copy = folder.join("doorward");
    if !copy.exists() {
        fs::copy(env!("CARGO_BIN_EXE_doorward"), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = std::process::Command::new(copy);
    command.args(arguments).current_dir(folder).env_remove("DOORWARD_CONFIG").uid(NOBODY).gid(NOBODY);
    Finished::of(command.output().unwrap())
}

/// A configuration without a key.
fn keyless(upstream: &Upstream) -> Builder {
    Builder::guarding(upstream).unset("token.secret_file").set("store.timeout", "\"1m\"")
}

/// A folder that others may look into, with a configuration in it.
fn open_folder(upstream: &Upstream, more: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.path().join("config.toml");
    let text =
        format!("{more}\n[upstream.app]\nurls = [\"{}\"]\n[[route]]\npath = \"/\"\nupstream = \"app\"\n", upstream.url);
    fs::write(&file, text).unwrap();
    (folder, file)
}

#[test]
fn serve_makes_its_first_key_and_says_so_and_keeps_it() {
    let upstream = Upstream::plain();
    let mut gateway = keyless(&upstream).prepare();
    gateway.command(&["check-config"]).expect(0);
    assert!(!gateway.data().join("keys").exists(), "check-config has made a key");
    gateway.serve();
    assert_eq!(gateway.logs().matches("made the first one").count(), 1, "{}", gateway.logs());
    let token = gateway.login("kim");
    let keys = gateway.command(&["key", "list", "--json"]).expect(0).json();
    assert_eq!(keys.as_array().unwrap().len(), 1, "{keys}");
    assert!(gateway.stop().success());
    gateway.serve();
    assert_eq!(gateway.logs().matches("made the first one").count(), 1);
    gateway.get_with("/", &token).expect(200);
    // One of another algorithm is no first key: nothing is made in silence.
    assert!(gateway.stop().success());
    gateway.rewrite(|text| format!("{text}\n[token]\nalgorithm = \"EdDSA\"\n").replace("[token]\n\n", ""));
    let refused = gateway.command(&["check-config"]).expect(2);
    assert!(refused.stderr.contains("key generate --algorithm EdDSA"), "{refused:?}");
    gateway.command(&["serve"]).expect(2);
}

#[test]
fn check_config_beside_the_running_server_finds_nothing() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    gateway.command(&["check-config"]).expect(0);
    let token = gateway.login("kim");
    gateway.get_with("/", &token).expect(200);
}

#[test]
fn a_port_of_somebody_else_and_a_missing_folder_are_found_with_their_place() {
    let upstream = Upstream::plain();
    let held: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let [public, admin] = [0, 1].map(|index| held[index].local_addr().unwrap());
    let gateway = Builder::new()
        .upstream("app", &[&upstream.url])
        .route("path = \"/\"\nupstream = \"app\"")
        .set("server.listen", &format!("[\"127.0.0.1:{}\", \"{public}\"]", free_port()))
        .set("admin.listen", &format!("\"{admin}\""))
        .set("log.audit_file", "\"nowhere/audit.log\"")
        .prepare();
    let found = gateway.command(&["check-config"]).expect(2).stderr;
    let text = fs::read_to_string(&gateway.config).unwrap();
    let line_of = |sign: &str| text.lines().position(|line| line.contains(sign)).unwrap() + 1;
    let file = gateway.config.display();
    for (place, key, word) in [
        (line_of(&public.to_string()), "server.listen: ", "in use"),
        (line_of(&admin.to_string()), "admin.listen: ", "in use"),
        (line_of("audit_file"), "log.audit_file: ", "its folder is not there"),
    ] {
        let line = found.lines().find(|line| line.contains(key)).unwrap_or_else(|| panic!("{key} in {found}"));
        assert!(line.contains(&format!("{file}:{place}:")) && line.contains(word), "{line}");
    }
    gateway.command(&["serve"]).expect(1);
}

#[test]
fn what_this_user_may_not_use_is_found_and_said_with_both_owners() {
    let upstream = Upstream::plain();
    let (folder, file) = open_folder(&upstream, "data_dir = \"data\"\n[server]\nlisten = [\"127.0.0.1:81\"]");
    let config = file.to_str().unwrap();
    let data = folder.path().join("data");
    // Not there, and not ours to make.
    let found = as_nobody(folder.path(), &["check-config", "--config", config]).expect(2).stderr;
    assert!(found.contains("data_dir") && found.contains("can't be made") && found.contains("user 65534"), "{found}");
    // There, and closed.
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    let found = as_nobody(folder.path(), &["check-config", "--config", config]).expect(2).stderr;
    let mine = fs::metadata(&data).map(|found| std::os::unix::fs::MetadataExt::uid(&found)).unwrap();
    assert!(found.contains("0700") && found.contains(&format!("belongs to user {mine} ")), "{found}");
    // A folder that `protect` made, for somebody else: that it is there, and that it is closed.
    fs::write(data.join("config.toml"), "").unwrap();
    for place in [&["--data", data.to_str().unwrap()][..], &["--config", data.join("config.toml").to_str().unwrap()]] {
        let told = as_nobody(folder.path(), &[&["user", "list"], place].concat()).expect(2).stderr;
        assert!(
            !told.contains("is not there") && told.contains("may not be entered") && told.contains("0700"),
            "{told}"
        );
    }
    // A file in an open folder.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let told = as_nobody(folder.path(), &["user", "list", "--config", config]).expect(2).stderr;
    assert!(told.contains("may not be read") && told.contains("0600"), "{told}");
}

#[test]
fn a_failing_policy_test_is_named_with_file_line_and_column() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .route("path = \"/x\"\nupstream = \"app\"\n\n[[test]]\nexpect = \"allow\"\n  request = \"GET http://a.test/x\"")
        .prepare();
    let text = fs::read_to_string(&gateway.config).unwrap();
    let line = text.lines().position(|line| line.contains("request = ")).unwrap() + 1;
    let place = format!("{}:{line}:13: test: ", gateway.config.display());
    for command in ["check-config", "serve"] {
        let found = gateway.command(&[command]).expect(2).stderr;
        assert!(found.contains(&place) && found.contains("expected allow"), "{command}: {found}");
    }
}

#[test]
fn a_store_that_serve_would_refuse_is_found() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).prepare();
    gateway.command(&["check-config"]).expect(0);
    fs::write(gateway.data().join("store/doorward"), "doorward store, layout 9").unwrap();
    let found = gateway.command(&["check-config"]).expect(2).stderr;
    assert!(found.contains("data_dir") && found.contains("damaged"), "{found}");
}

#[test]
fn account_commands_find_the_folder_that_protect_makes() {
    let folder = tempfile::tempdir().unwrap();
    let there = |arguments: &[&str]| {
        Finished::of(program(arguments).env_remove("DOORWARD_CONFIG").current_dir(folder.path()).output().unwrap())
    };
    let told = there(&["user", "list"]).expect(2).stderr;
    assert!(told.contains("./doorward-data"), "{told}");
    let data = folder.path().join("doorward-data");
    fs::create_dir(&data).unwrap();
    let text = "data_dir = \".\"\n[admin]\nlisten = \"\"\n[upstream.app]\nurls = [\"http://127.0.0.1:1\"]\n\
                [[route]]\npath = \"/\"\nupstream = \"app\"\n";
    fs::write(data.join("config.toml"), text).unwrap();
    there(&["user", "list"]).expect(0);
    assert!(data.join("store").exists());
    // A file of one's own comes first.
    let own = format!("data_dir = {}\n{}", quoted(&folder.path().join("own")), text.split_once('\n').unwrap().1);
    fs::write(folder.path().join("config.toml"), own).unwrap();
    there(&["user", "list"]).expect(0);
    assert!(folder.path().join("own/store").exists());
    run(&["user", "list", "--data", folder.path().join("none").to_str().unwrap()]).expect(2);
}

#[test]
fn an_explained_denial_names_who_would_pass() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream)
        .route("path = \"/admin\"\nupstream = \"app\"\ngroups = [\"admins\", \"ops\"]\nusers = [\"ann\"]")
        .prepare();
    let told = gateway.command(&["explain", "GET", "http://a.test/admin", "--as", "kim"]).expect(0).stdout;
    assert!(told.contains("would pass groups admins, ops; users ann"), "{told}");
    let told = gateway.command(&["explain", "GET", "http://a.test/admin", "--json"]).expect(0).json();
    assert_eq!(told["would_pass"], serde_json::json!({"groups": ["admins", "ops"], "users": ["ann"]}));
    let told = gateway.command(&["explain", "GET", "http://a.test/", "--as", "kim"]).expect(0).stdout;
    assert!(!told.contains("would pass"), "{told}");
}
