//! Every command: what it prints, how it exits, with a server and without.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::support::gateway::{Finished, run, write_private};
use crate::support::token::{altered, now, parts};
use crate::support::turn::Turn;
use crate::support::{Builder, Gateway, PASSWORD, Request, SECRET, Upstream};

/// The keys of an object, sorted.
#[track_caller]
fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> =
        object.as_object().unwrap_or_else(|| panic!("{object}")).keys().map(|key| &**key).collect();
    keys.sort_unstable();
    keys
}

const ACCOUNT_KEYS: [&str; 9] =
    ["__v", "_id", "changed", "created", "disabled", "display_name", "email", "groups", "username"];

/// A configuration whose store may take as long as a busy disk needs: no test here is about its timeout.
fn builder() -> Builder {
    Builder::new().set("store.timeout", "\"1m\"")
}

/// One route that asks for a login, and the user `kim`.
fn guarding(upstream: &Upstream) -> Builder {
    Builder::guarding(upstream).set("store.timeout", "\"1m\"")
}

/// `YYYY-MM-DDTHH:MM:SSZ`.
#[track_caller]
fn assert_time(value: &Value) {
    let text = value.as_str().unwrap();
    let shape: String = text.chars().map(|sign| if sign.is_ascii_digit() { '0' } else { sign }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00Z", "{text}");
}

fn names(gateway: &Gateway) -> Vec<String> {
    let listed = gateway.command(&["user", "list", "--json"]).expect(0).json();
    listed.as_array().unwrap().iter().map(|account| account["username"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn check_config_names_every_mistake_with_its_line() {
    let _turn = Turn::shared();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let open_secret = folder.path().join("open-secret");
    fs::write(&open_secret, SECRET).unwrap();
    fs::set_permissions(&open_secret, fs::Permissions::from_mode(0o644)).unwrap();
    // A line of the file, and the key that is wrong in it.
    let lines = [
        ("data_dir = \"data\"", None),
        ("colour = \"red\"", Some("colour")),
        ("[server]", None),
        ("listen = [\"127.0.0.1:99999\"]", Some("server.listen")),
        ("workers = \"two\"", Some("server.workers")),
        ("trusted_proxies = [\"10.0.0.0/99\"]", Some("server.trusted_proxies")),
        ("drain = \"30 parsecs\"", Some("server.drain")),
        ("[server.limits]", None),
        ("header_timout = \"10s\"", Some("server.limits.header_timout")),
        ("max_headers = 3", Some("server.limits.max_headers")),
        ("max_header_bytes = \"32 elephants\"", Some("server.limits.max_header_bytes")),
        ("[admin]", None),
        ("listen = \"somewhere\"", Some("admin.listen")),
        ("[token]", None),
        ("secret_file = \"open-secret\"", Some("token.secret_file")),
        ("lifetime = \"1h\"", None),
        ("refresh_below = \"2h\"", Some("token.refresh_below")),
        ("[cookie]", None),
        ("name = \"two words\"", Some("cookie.name")),
        ("path = \"relative\"", Some("cookie.path")),
        ("same_site = \"sometimes\"", Some("cookie.same_site")),
        ("[login]", None),
        ("bcrypt_cost = 99", Some("login.bcrypt_cost")),
        ("max_attempts = 0", Some("login.max_attempts")),
        ("title = \"\"", Some("login.title")),
        ("[upstream.app]", None),
        ("urls = [\"ftp://127.0.0.1\"]", Some("upstream.app.urls")),
        ("[[route]]", None),
        ("path = \"/one\"", None),
        ("upstream = \"absent\"", Some("upstream")),
        ("[[route]]", None),
        ("path = \"/two\"", None),
        ("access = \"perhaps\"", Some("access")),
        ("upstream = \"app\"", None),
        ("[log]", None),
        ("format = \"poem\"", Some("log.format")),
    ];
    let text: String = lines.iter().map(|(line, _)| format!("{line}\n")).collect();
    write_private(&file, text.as_bytes());
    let checked = run(&["check-config", "--config", file.to_str().unwrap()]).expect(2);
    let wrong: Vec<(usize, &str)> =
        lines.iter().enumerate().filter_map(|(index, (_, key))| key.map(|key| (index + 1, key))).collect();
    assert!(wrong.len() >= 15, "{}", wrong.len());
    for (line, key) in &wrong {
        let place = format!("{}:{line}:", file.display());
        assert!(
            checked.stderr.lines().any(|told| told.starts_with(&place) && told.contains(key)),
            "line {line} ({key}) is not in\n{}",
            checked.stderr
        );
    }
    // And nothing that is right.
    for told in checked.stderr.lines().filter(|told| told.starts_with(file.to_str().unwrap())) {
        let line: usize = told[file.to_str().unwrap().len() + 1..].split(':').next().unwrap().parse().unwrap();
        assert!(wrong.iter().any(|(wrong, _)| *wrong == line), "{told}");
    }
    assert!(!checked.stderr.contains(std::str::from_utf8(SECRET).unwrap()), "the secret is shown");
}

#[test]
fn check_config_runs_the_policy_tests() {
    let upstream = Upstream::plain();
    let with_test = |expect: &str| {
        let lines = "path = \"/\"\nupstream = \"app\"\n\n[[test]]\nrequest = \"GET http://a/x\"\nexpect = ";
        builder().upstream("app", &[&upstream.url]).route(&format!("{lines}\"{expect}\"")).prepare()
    };
    let good = with_test("login").command(&["check-config"]).expect(0);
    assert!(good.stdout.contains("1 policy test"), "{}", good.stdout);
    let bad = with_test("allow").command(&["check-config"]).expect(2);
    assert!(bad.stderr.contains("GET http://a/x") && bad.stderr.contains("login"), "{}", bad.stderr);
}

#[test]
fn a_missing_configuration_ends_with_2() {
    let _turn = Turn::shared();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("absent.toml");
    let missing = missing.to_str().unwrap();
    for command in [
        &["check-config"][..],
        &["serve"],
        &["explain", "GET", "http://a/"],
        &["user", "list"],
        &["session", "list"],
        &["token", "inspect", "x"],
        &["key", "list"],
        &["store", "dump"],
    ] {
        for place in [["--config", missing], ["--data", folder.path().to_str().unwrap()]] {
            let ended = run(&[command, &place].concat()).expect(2);
            assert_eq!(ended.stdout, "", "{command:?}");
            assert!(ended.stderr.contains(folder.path().to_str().unwrap()), "{command:?}: {}", ended.stderr);
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was made");
}

#[test]
fn help_and_version_are_at_every_level_and_an_unknown_word_ends_with_2() {
    let _turn = Turn::shared();
    let levels: &[&[&str]] = &[
        &[],
        &["protect"],
        &["demo"],
        &["serve"],
        &["check-config"],
        &["explain"],
        &["user"],
        &["user", "add"],
        &["user", "list"],
        &["user", "show"],
        &["user", "set-password"],
        &["user", "set-groups"],
        &["user", "disable"],
        &["user", "enable"],
        &["user", "remove"],
        &["user", "import"],
        &["user", "export"],
        &["session"],
        &["session", "list"],
        &["session", "revoke"],
        &["token"],
        &["token", "issue"],
        &["token", "inspect"],
        &["key"],
        &["key", "generate"],
        &["key", "list"],
        &["key", "rotate"],
        &["store"],
        &["store", "dump"],
        &["store", "restore"],
        &["completions"],
        &["man"],
    ];
    for level in levels {
        let help = run(&[level, &["--help"][..]].concat()).expect(0);
        assert!(help.stdout.contains("Usage:") && help.stderr.is_empty(), "{level:?}: {help:?}");
        let unknown = run(&[level, &["--no-such-flag"][..]].concat()).expect(2);
        assert!(unknown.stdout.is_empty() && !unknown.stderr.is_empty(), "{level:?}: {unknown:?}");
    }
    let version = run(&["--version"]).expect(0);
    assert_eq!(version.stdout.trim(), format!("doorward {}", env!("CARGO_PKG_VERSION")));
    for wrong in [
        &["nonsense"][..],
        &["user", "nonsense"],
        &["user", "add"],
        &["session", "revoke"],
        &["user", "import", "file"],
        &["completions", "nonsense"],
        &["serve", "--config", "a", "--data", "b"],
    ] {
        run(wrong).expect(2);
    }
}

#[test]
fn completions_and_the_manual_name_the_commands() {
    let _turn = Turn::shared();
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).expect(0).stdout;
        for word in ["protect", "check-config", "explain", "set-groups", "revoke", "rotate", "restore"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let page = run(&["man"]).expect(0).stdout.replace("\\-", "-");
    for word in [".TH", "protect", "check-config", "explain", "user", "session", "token", "key", "store"] {
        assert!(page.contains(word), "{word}");
    }
}

#[test]
fn explain_agrees_with_what_the_gateway_does() {
    let upstream = Upstream::plain();
    let gateway = builder()
        .upstream("app", &[&upstream.url])
        .route("host = \"app.test\"\npath = \"/\"\nupstream = \"app\"")
        .route("host = \"app.test\"\npath = \"/admin\"\ngroups = [\"admin\"]\nupstream = \"app\"")
        .route("host = \"app.test\"\npath = \"/only-kim\"\nusers = [\"kim\"]\nupstream = \"app\"")
        .route("host = \"app.test\"\npath = \"/public\"\naccess = \"public\"\nupstream = \"app\"")
        .route("host = \"app.test\"\npath = \"/maybe\"\naccess = \"optional\"\nupstream = \"app\"")
        .route("host = \"app.test\"\npath = \"/closed\"\naccess = \"deny\"")
        .route("host = \"app.test\"\npath = \"/api\"\napi = true\nupstream = \"app\"")
        .route("host = \"app.test\"\npath = \"/public/exact\"\nexact = true\nupstream = \"app\"")
        .route(
            "host = \"app.test\"\npath = \"/public\"\nmethods = [\"DELETE\"]\ngroups = [\"admin\"]\nupstream = \"app\"",
        )
        .route("host = \"*.wild.test\"\npath = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .user("kim", &["staff"])
        .user("root", &["admin"])
        .start();
    let tokens = [("kim", gateway.login("kim")), ("root", gateway.login("root"))];
    // The method, the URL, who asks, and what a program gets.
    let rows = [
        ("GET", "http://app.test/", None, 401),
        ("GET", "http://app.test/", Some("kim"), 200),
        ("POST", "http://app.test/deep/path?query=1", Some("kim"), 200),
        ("GET", "http://app.test/admin", None, 401),
        ("GET", "http://app.test/admin", Some("kim"), 403),
        ("GET", "http://app.test/admin/deeper", Some("root"), 200),
        ("GET", "http://app.test/administrator", Some("kim"), 200),
        ("GET", "http://app.test/%61dmin", Some("kim"), 400),
        ("GET", "http://app.test/only-kim", Some("kim"), 200),
        ("GET", "http://app.test/only-kim", Some("root"), 403),
        ("GET", "http://app.test/public", None, 200),
        ("HEAD", "http://app.test/public", None, 200),
        ("GET", "http://app.test/public/exact", None, 401),
        ("GET", "http://app.test/public/exact/more", None, 200),
        ("DELETE", "http://app.test/public", None, 401),
        ("DELETE", "http://app.test/public", Some("kim"), 403),
        ("DELETE", "http://app.test/public", Some("root"), 200),
        ("GET", "http://app.test/maybe", None, 200),
        ("GET", "http://app.test/maybe", Some("kim"), 200),
        ("GET", "http://app.test/closed", None, 403),
        ("GET", "http://app.test/closed", Some("root"), 403),
        ("GET", "http://app.test/api/x", None, 401),
        ("GET", "http://app.test/api/x", Some("kim"), 200),
        ("GET", "http://app.test/public/..%2fadmin", None, 400),
        ("GET", "http://app.test/a%00b", Some("kim"), 400),
        ("GET", "http://app.test/a\"b", Some("kim"), 200),
        // What the gate does not serve at all, and what it serves under any name.
        ("TRACE", "http://app.test/public", None, 405),
        ("TRACE", "http://app.test/", Some("root"), 405),
        ("PURGE", "http://app.test/public/x", None, 200),
        ("LIST", "http://app.test/admin", Some("kim"), 403),
        // What takes along all that is below.
        ("DELETE", "http://app.test/", Some("kim"), 403),
        ("PROPFIND", "http://app.test/", Some("root"), 403),
        ("MKCOL", "http://app.test/", Some("kim"), 200),
        ("GET", "http://app.test/public/..%2fadmin", Some("root"), 400),
        ("GET", "http://app.test/public/%00", None, 400),
        ("GET", "http://one.wild.test/x", None, 200),
        ("GET", "http://one.two.wild.test/x", None, 404),
        ("GET", "http://wild.test/x", Some("kim"), 404),
        ("GET", "http://other.test/", Some("kim"), 404),
        ("GET", "http://app.test/login", None, 200),
        ("GET", "http://other.test/login", None, 200),
    ];
    for (method, url, user, status) in rows {
        let mut arguments = vec!["explain", method, url, "--json"];
        arguments.extend(user.iter().flat_map(|user| ["--as", user]));
        let explained = gateway.command(&arguments).expect(0).json();
        let (decision, reason) = (explained["decision"].as_str().unwrap(), explained["reason"].as_str().unwrap());
        let (host, path) = url.strip_prefix("http://").unwrap().split_at(url[7..].find('/').unwrap());
        let mut request = Request::new(method, path).field("Host", host);
        if let Some((_, token)) = tokens.iter().find(|(name, _)| Some(*name) == user) {
            request = request.cookie(token);
        }
        let row = format!("{method} {url} as {user:?}: {explained}");
        assert_eq!(gateway.send(&request).status, status, "{row}");
        let told = match (decision, reason) {
            ("allow", _) => 200,
            ("login", _) => 401,
            ("deny", "no_route") => 404,
            ("deny", "bad_path" | "ambiguous_path") => 400,
            ("deny", "method_not_allowed") => 405,
            ("deny", _) => 403,
            _ => panic!("{row}"),
        };
        assert_eq!(told, status, "{row}");
        assert_eq!(explained["user"], json!(user), "{row}");
        if method == "GET" {
            // A browser is sent to the login where a login would help, except on a route for programs.
            let wanted = if told == 401 && !path.starts_with("/api") { 303 } else { status };
            assert_eq!(gateway.send(&request.navigation()).status, wanted, "{row}");
        }
        // The same in words.
        arguments.retain(|argument| *argument != "--json");
        assert!(gateway.command(&arguments).expect(0).stdout.contains(decision), "{row}");
    }
    gateway.command(&["explain", "GET", "http://app.test/", "--as", "nobody-here"]).expect(1);
    for wrong in [["explain", "GET", "app.test/"], ["explain", "G T", "http://app.test/"]] {
        gateway.command(&wrong).expect(2);
    }
}

#[test]
fn explain_shows_the_headers_that_the_backend_gets() {
    let upstream = Upstream::plain();
    let gateway = guarding(&upstream).start();
    let token = gateway.login("kim");
    let explained = gateway.command(&["explain", "GET", "http://app.test/x", "--as", "kim", "--json"]).expect(0).json();
    gateway.send(&Request::get("/x").field("Host", "app.test").cookie(&token)).expect(200);
    let reached = upstream.last();
    let headers = explained["headers"].as_object().unwrap();
    assert!(headers.len() > 6, "{headers:?}");
    for (name, value) in headers {
        let came = reached.field(name).unwrap_or_else(|| panic!("{name} did not reach the backend"));
        if !value.as_str().unwrap().starts_with('(') {
            assert_eq!(json!(came), *value, "{name}");
        }
    }
}

#[test]
fn listings_have_exactly_these_keys() {
    let upstream = Upstream::plain();
    let mut gateway = guarding(&upstream).user("root", &["admin"]).start();
    let token = gateway.login("kim");
    for running in [true, false] {
        if !running {
            gateway.stop();
        }
        let listed = gateway.command(&["user", "list", "--json"]).expect(0);
        assert!(!listed.stdout.contains("$2"), "a hash is shown");
        let accounts = listed.json();
        assert_eq!(accounts.as_array().unwrap().len(), 2);
        for account in accounts.as_array().unwrap() {
            assert_eq!(keys(account), ACCOUNT_KEYS);
            assert_time(&account["created"]);
            assert_time(&account["changed"]);
        }
        let shown = gateway.command(&["user", "show", "kim", "--json"]).expect(0).json();
        assert_eq!(shown.as_array().unwrap().len(), 1);
        assert_eq!(keys(&shown[0]), ACCOUNT_KEYS);
        assert_eq!(
            (&shown[0]["username"], &shown[0]["groups"], &shown[0]["email"], &shown[0]["disabled"], &shown[0]["__v"]),
            (&json!("kim"), &json!(["staff"]), &json!("kim@example.com"), &json!(false), &json!(0))
        );
        let (_, claims) = parts(&token);
        for name in [&["kim"][..], &[]] {
            let sessions = gateway.command(&[&["session", "list", "--json"], name].concat()).expect(0).json();
            assert_eq!(sessions.as_array().unwrap().len(), 1);
            let session = &sessions[0];
            assert_eq!(keys(session), ["_id", "address", "created", "renewed", "sid", "user_agent", "username"]);
            assert_eq!((&session["sid"], &session["_id"]), (&claims["sid"], &claims["_id"]));
            assert_eq!((&session["username"], &session["address"]), (&json!("kim"), &json!("127.0.0.1")));
            assert_time(&session["created"]);
            assert_time(&session["renewed"]);
        }
        let none = gateway.command(&["session", "list", "root", "--json"]).expect(0).json();
        assert_eq!(none, json!([]));
        gateway.command(&["user", "show", "absent", "--json"]).expect(1);
        gateway.command(&["session", "list", "absent"]).expect(1);
        // For people there is a heading.
        assert!(gateway.command(&["user", "list"]).expect(0).stdout.contains("USERNAME"));
        assert!(gateway.command(&["session", "list"]).expect(0).stdout.contains("127.0.0.1"));
    }
}

#[test]
fn accounts_are_changed_with_a_server_and_without() {
    let upstream = Upstream::plain();
    let mut gateway = guarding(&upstream).prepare();
    for running in [false, true] {
        if running {
            gateway.serve();
        }
        let name = if running { "later" } else { "early" };
        let add =
            ["user", "add", name, "--password-stdin", "--group", "staff", "--group", "ops", "--email", "a@b.example"];
        let added = gateway.command_with_input(&[&add[..], &["--display-name", "A B"]].concat(), PASSWORD).expect(0);
        assert!(!added.stdout.contains(PASSWORD), "the password is shown");
        let account = gateway.account(name);
        assert_eq!((&account["email"], &account["display_name"]), (&json!("a@b.example"), &json!("A B")), "{account}");
        let mut groups: Vec<&str> = account["groups"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        groups.sort_unstable();
        assert_eq!(groups, ["ops", "staff"]);
        // A line feed at the end is the pipe's.
        gateway.command_with_input(&["user", "set-password", name, "--password-stdin"], "plough-7-violets\n").expect(0);
        let generated = gateway.command(&["user", "add", &format!("{name}2"), "--generate"]).expect(0);
        let password = generated.stdout.lines().find_map(|line| line.strip_prefix("password: ")).unwrap().to_owned();
        assert!(password.len() >= 20, "{password}");
        gateway.command(&["user", "set-groups", name, "one", "two"]).expect(0);
        assert_eq!(gateway.account(name)["groups"], json!(["one", "two"]));
        gateway.command(&["user", "set-groups", name]).expect(0);
        assert_eq!(gateway.account(name)["groups"], json!([]));
        gateway.command(&["user", "add", &format!("{name}3"), "--generate"]).expect(0);
        gateway.command(&["user", "remove", &format!("{name}3")]).expect(0);
        gateway.command(&["user", "remove", &format!("{name}3")]).expect(1);
        gateway.command(&["user", "disable", &format!("{name}2")]).expect(0);
        assert_eq!(gateway.account(&format!("{name}2"))["disabled"], true);
        if running {
            gateway.try_login(&format!("{name}2"), &password).expect(401);
        }
        gateway.command(&["user", "enable", &format!("{name}2")]).expect(0);
        if running {
            for name in ["early", "later"] {
                gateway.try_login(name, "plough-7-violets").expect(200);
                gateway.try_login(name, PASSWORD).expect(401);
            }
            gateway.try_login(&format!("{name}2"), &password).expect(200);
        }
    }
}

#[test]
fn refused_names_and_passwords_end_with_1_and_change_nothing() {
    let upstream = Upstream::plain();
    let mut gateway = guarding(&upstream).prepare();
    for running in [false, true] {
        if running {
            gateway.serve();
        }
        let long = "x".repeat(300);
        for name in ["", "two words", "new\nline", "tab\t", "\u{202e}kim", &long, "kim", "KIM"] {
            let refused = gateway.command_with_input(&["user", "add", "--password-stdin", name], PASSWORD).expect(1);

            assert!(!refused.stderr.contains(PASSWORD), "{}", refused.stderr);
            assert_eq!(names(&gateway), ["kim"], "{name:?}");
        }
        for password in ["", "short", "password1", "Password1", "12345678", "newcomer", &"x".repeat(2000)] {
            let refused =
                gateway.command_with_input(&["user", "add", "newcomer", "--password-stdin"], password).expect(1);
            assert!(refused.stderr.contains("password"), "{}", refused.stderr);
            gateway.command_with_input(&["user", "set-password", "kim", "--password-stdin"], "short").expect(1);
            assert_eq!(names(&gateway), ["kim"], "{password:?}");
        }
    }
    gateway.login("kim");
    // No terminal to ask at.
    gateway.command(&["user", "add", "newcomer"]).expect(2);
    for verb in ["set-password", "disable", "enable", "remove", "set-groups", "show"] {
        let extra: &[&str] = if verb == "set-password" { &["--generate"] } else { &[] };
        gateway.command(&[&["user", verb, "absent"], extra].concat()).expect(1);
    }
}

#[test]
fn an_import_is_all_or_nothing_and_an_export_can_be_imported() {
    let upstream = Upstream::plain();
    let mut gateway = guarding(&upstream).prepare();
    let hash = crate::support::gateway::hash(PASSWORD);
    for running in [false, true] {
        if running {
            gateway.serve();
        }
        let good = json!({"username": "fine", "password_hash": hash});
        for (format, text) in [
            ("json", json!([good, {"username": "bad", "password_hash": "no hash"}]).to_string()),
            ("json", json!([good, {"username": "two words", "password_hash": hash}]).to_string()),
            ("json", json!([good, {"username": "fine", "password_hash": hash}]).to_string()),
            ("json", json!([good, {"username": "kim", "password_hash": hash}]).to_string()),
            ("json", json!([good, {"username": "half"}]).to_string()),
            ("json", String::from("[{")),
            ("htpasswd", format!("fine:{hash}\nbad line\n")),
            ("htpasswd", format!("fine:{hash}\nbad:plain-text\n")),
            ("authelia", format!("users:\n  fine:\n    password: '{hash}'\n  bad:\n    password: 'plain'\n")),
        ] {
            let file = gateway.folder().join("import");
            write_private(&file, text.as_bytes());
            let refused = gateway.command(&["user", "import", file.to_str().unwrap(), "--format", format]).expect(1);
            assert!(!refused.stderr.contains(&hash), "{}", refused.stderr);
            assert_eq!(names(&gateway), ["kim"], "{text}");
        }
    }
    let file = gateway.folder().join("import");
    write_private(&file, format!("# staff\nann:{hash}\n").as_bytes());
    gateway.command(&["user", "import", file.to_str().unwrap(), "--format", "htpasswd"]).expect(0);
    write_private(
        &file,
        format!("users:\n  bo:\n    password: '{hash}'\n    displayname: 'Bo'\n    groups: [ops]\n").as_bytes(),
    );
    gateway.command(&["user", "import", file.to_str().unwrap(), "--format", "authelia"]).expect(0);
    gateway.login("ann");
    gateway.login("bo");
    gateway.command(&["user", "set-groups", "kim", "staff", "ops"]).expect(0);
    gateway.command(&["user", "disable", "ann"]).expect(0);
    let exported = gateway.command(&["user", "export"]).expect(0);
    assert!(exported.json()[0]["password_hash"].is_string());
    let before = gateway.command(&["user", "list", "--json"]).expect(0).json();

    let other = builder().upstream("app", &[&upstream.url]).route("path = \"/\"\nupstream = \"app\"").start();
    let file = other.folder().join("exported.json");
    write_private(&file, exported.stdout.as_bytes());
    other.command(&["user", "import", file.to_str().unwrap(), "--format", "json"]).expect(0);
    other.login("kim");
    other.login("bo");
    other.try_login("ann", PASSWORD).expect(401);
    let after = other.command(&["user", "list", "--json"]).expect(0).json();
    assert_eq!(before.as_array().unwrap().len(), after.as_array().unwrap().len());
    for (before, after) in before.as_array().unwrap().iter().zip(after.as_array().unwrap()) {
        for key in ["_id", "username", "groups", "email", "display_name", "disabled", "__v"] {
            assert_eq!(before[key], after[key], "{key}");
        }
    }
}

/// Fails where a refusal shows what it must not.
#[track_caller]
fn refused_token(finished: Finished, token: &str, word: &str) {
    let finished = finished.expect(1);
    let signature = token.rsplit('.').next().unwrap();
    assert!(finished.stderr.contains(word), "{word}: {}", finished.stderr);
    assert!(!finished.stderr.contains(token), "the token is on stderr");
    assert!(signature.is_empty() || !finished.stderr.contains(signature), "the signature is on stderr");
    let secret = std::str::from_utf8(SECRET).unwrap();
    assert!(!finished.stderr.contains(secret) && !finished.stdout.contains(secret), "the secret is shown");
}

#[test]
fn tokens_are_issued_and_inspected() {
    let upstream = Upstream::plain();
    let mut gateway = guarding(&upstream).prepare();
    for running in [false, true] {
        if running {
            gateway.serve();
        }
        let token = gateway.command(&["token", "issue", "kim", "--lifetime", "2h"]).expect(0).stdout.trim().to_owned();
        let (_, claims) = parts(&token);
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 2 * 3600);
        assert_eq!(claims["username"], "kim");
        for finished in [
            gateway.command(&["token", "inspect", "--json", &token]),
            gateway.command_with_input(&["token", "inspect", "--json"], &format!("{token}\n")),
        ] {
            let inspected = finished.expect(0).json();
            assert_eq!(keys(&inspected), ["accepted", "claims", "header", "reason"]);
            assert_eq!((&inspected["accepted"], &inspected["claims"]), (&json!(true), &claims));
        }
        gateway.command(&["token", "inspect", &token]).expect(0);
        if running {
            gateway.get_with("/", &token).expect(200);
            gateway.send(&Request::get("/").bearer(&token)).expect(200);
        }
        let inspect = |token: &str| gateway.command(&["token", "inspect", token]);
        let broken = token.clone() + "x";
        refused_token(inspect(&broken), &broken, "refused");
        let forged = altered(b"another secret that is as long as it must be", &token, &json!({"username": "root"}));
        refused_token(inspect(&forged), &forged, "signature");
        let expired =
            altered(SECRET, &token, &json!({"iat": now() - 7200, "auth_time": now() - 7200, "exp": now() - 3600}));
        refused_token(inspect(&expired), &expired, "expired");
        for nonsense in ["nonsense", "a.b.c", "..", ""] {
            inspect(nonsense).expect(1);
        }
        gateway.command(&["session", "revoke", claims["sid"].as_str().unwrap()]).expect(0);
        refused_token(inspect(&token), &token, "revoked");
        let again = gateway.command(&["token", "inspect", "--json", &token]).expect(1).json();
        assert_eq!(again["accepted"], false);
        assert!(again["reason"].as_str().unwrap().contains("revoked"));
        if running {
            gateway.get_with("/", &token).expect(401);
        }
    }
    gateway.command(&["user", "add", "brief", "--generate"]).expect(0);
    let token = gateway.command(&["token", "issue", "brief"]).expect(0).stdout.trim().to_owned();
    gateway.command(&["token", "inspect", &token]).expect(0);
    gateway.command(&["user", "remove", "brief"]).expect(0);
    refused_token(gateway.command(&["token", "inspect", &token]), &token, "refused");
    gateway.command(&["token", "issue", "absent"]).expect(1);
    gateway.command(&["token", "issue", "kim", "--lifetime", "0s"]).expect(1);
    gateway.command(&["token", "issue", "kim", "--lifetime", "9999d"]).expect(1);
    gateway.command(&["token", "issue", "kim", "--lifetime", "soon"]).expect(2);
    gateway.command(&["user", "disable", "kim"]).expect(0);
    gateway.command(&["token", "issue", "kim"]).expect(1);
}

#[test]
fn sessions_are_ended_one_by_one_by_user_and_all() {
    let upstream = Upstream::plain();
    let gateway = guarding(&upstream).user("lee", &[]).start();
    let logins = || [gateway.login("kim"), gateway.login("kim"), gateway.login("lee")];
    let standing = |tokens: &[String; 3]| tokens.each_ref().map(|token| gateway.get_with("/check", token).status);
    let tokens = logins();
    let (_, claims) = parts(&tokens[0]);
    gateway.command(&["session", "revoke", claims["sid"].as_str().unwrap()]).expect(0);
    assert_eq!(standing(&tokens), [401, 200, 200]);
    gateway.command(&["session", "revoke", "--user", "kim"]).expect(0);
    assert_eq!(standing(&tokens), [401, 401, 200]);
    let tokens = logins();
    gateway.command(&["session", "revoke", "--all"]).expect(0);
    assert_eq!(standing(&tokens), [401, 401, 401]);
    gateway.command(&["session", "revoke", "no-such-session"]).expect(1);
    gateway.command(&["session", "revoke", "--user", "absent"]).expect(1);
}

fn current_kid(gateway: &Gateway) -> String {
    let listed = gateway.command(&["key", "list", "--json"]).expect(0).json();
    let current: Vec<&Value> = listed.as_array().unwrap().iter().filter(|key| key["role"] == "current").collect();
    assert_eq!(current.len(), 1, "{listed}");
    current[0]["kid"].as_str().unwrap().to_owned()
}

#[test]
fn keys_rotate_while_the_server_runs() {
    let upstream = Upstream::plain();
    for algorithm in ["HS256", "EdDSA", "ES256"] {
        let mut builder = guarding(&upstream).set("token.algorithm", &format!("\"{algorithm}\""));
        if algorithm != "HS256" {
            builder = builder.unset("token.secret_file");
        }
        let mut gateway = builder.prepare();
        if algorithm != "HS256" {
            gateway.command(&["key", "generate"]).expect(0);
        }
        gateway.serve();
        let old = gateway.login("kim");
        assert_eq!(parts(&old).0["kid"], current_kid(&gateway).as_str());
        gateway.command(&["key", "rotate"]).expect(0);
        let new = gateway.login("kim");
        let (old_kid, new_kid) = (&parts(&old).0["kid"], &parts(&new).0["kid"]);
        assert_ne!(old_kid, new_kid, "{algorithm}");
        assert_eq!(*new_kid, current_kid(&gateway).as_str());
        for token in [&old, &new] {
            gateway.get_with("/check", token).expect(200);
        }
        let listed = gateway.command(&["key", "list", "--json"]).expect(0);
        let previous = listed.json().as_array().unwrap().iter().find(|key| key["kid"] == *old_kid).cloned().unwrap();
        assert_eq!((&previous["role"], &previous["algorithm"]), (&json!("previous"), &json!(algorithm)));
        assert!(!listed.stdout.contains(std::str::from_utf8(SECRET).unwrap()), "the secret is shown");
        let text = gateway.command(&["key", "list"]).expect(0).stdout;
        assert!(text.contains(old_kid.as_str().unwrap()) && text.contains(new_kid.as_str().unwrap()), "{text}");
        // And still after a restart.
        gateway.stop();
        gateway.serve();
        for token in [&old, &new] {
            gateway.get_with("/check", token).expect(200);
        }
    }
}

#[test]
fn a_generated_key_is_the_owners_alone() {
    let upstream = Upstream::plain();
    let gateway = guarding(&upstream).start();
    let token = gateway.login("kim");
    for algorithm in ["HS256", "EdDSA", "ES256"] {
        let made = gateway.command(&["key", "generate", "--algorithm", algorithm]).expect(0);
        assert!(made.stdout.contains(algorithm), "{}", made.stdout);
    }
    gateway.command(&["key", "generate", "--algorithm", "none"]).expect(2);
    let mut found = 0;
    for entry in fs::read_dir(gateway.data().join("keys")).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        found += 1;
    }
    assert!(found >= 3, "{found}");
    gateway.get_with("/check", &token).expect(200);
    gateway.get_with("/check", &gateway.login("kim")).expect(200);
}

#[test]
fn a_dump_goes_into_an_empty_folder_and_nowhere_else() {
    let upstream = Upstream::plain();
    let mut gateway = guarding(&upstream).user("lee", &["ops"]).start();
    let token = gateway.login("kim");
    let file = gateway.folder().join("dump.jsonl");
    let path = file.to_str().unwrap();
    for running in [true, false] {
        if !running {
            gateway.stop();
        }
        gateway.command(&["store", "dump", path]).expect(0);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let printed = gateway.command(&["store", "dump"]).expect(0).stdout;
        let written = fs::read_to_string(&file).unwrap();
        // The first line has the time in it.
        let records = |dump: &str| dump.lines().filter(|line| line.starts_with("{\"account\"")).count();
        assert_eq!((records(&printed), records(&written)), (2, 2));
        assert!(printed.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    }
    let dump = fs::read_to_string(&file).unwrap();
    let before = gateway.command(&["user", "list", "--json"]).expect(0).json();
    gateway.serve();
    let empty = || builder().upstream("app", &[&upstream.url]).route("path = \"/\"\nupstream = \"app\"");

    // Not into a store with something in it, with a server or without.
    gateway.command(&["store", "restore", path]).expect(1);
    gateway.get_with("/check", &token).expect(200);
    gateway.stop();
    gateway.command(&["store", "restore", path]).expect(1);
    assert_eq!(gateway.command(&["user", "list", "--json"]).expect(0).json(), before);

    // Not where a byte is missing or another.
    let target = empty().prepare();
    let lines: Vec<&str> = dump.lines().collect();
    for bad in [
        String::new(),
        lines[..lines.len() - 1].join("\n") + "\n",
        dump[..dump.len() / 2].to_owned(),
        [&lines[..1], &lines[2..]].concat().join("\n") + "\n",
        dump.replace("\"lee\"", "\"leo\""),
    ] {
        let partial = target.folder().join("bad.jsonl");
        write_private(&partial, bad.as_bytes());
        let refused = target.command(&["store", "restore", partial.to_str().unwrap()]).expect(1);
        assert!(!refused.stderr.contains("$2"), "a hash is shown: {}", refused.stderr);
        assert_eq!(target.command(&["user", "list", "--json"]).expect(0).json(), json!([]), "{bad}");
    }
    target.command(&["store", "restore", "/no/such/file"]).expect(1);

    for (keep, running) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut target = empty().prepare();
        if running {
            target.serve();
        }
        let flag: &[&str] = if keep { &["--keep-sessions"] } else { &[] };
        target.command(&[&["store", "restore", path], flag].concat()).expect(0);
        if !running {
            target.serve();
        }
        assert_eq!(target.command(&["user", "list", "--json"]).expect(0).json(), before);
        let wanted = if keep { 200 } else { 401 };
        assert_eq!(target.get_with("/check", &token).status, wanted, "keep {keep}, running {running}");
        target.get_with("/check", &target.login("kim")).expect(200);
        let sessions = target.command(&["session", "list", "--json"]).expect(0).json();
        let sid = &parts(&token).1["sid"];
        assert_eq!(sessions.as_array().unwrap().iter().any(|session| session["sid"] == *sid), keep);
    }
}
