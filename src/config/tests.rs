//! The configuration as a whole: the example, the defaults, files full of mistakes, and files of no sense at all.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use toml::de::{DeTable, DeValue};

use super::check::{load, parse};
use super::reader::Problem;
use super::{
    Access, Algorithm, Config, Listen, LogFormat, OnStale, Protection, SameSite, SecureCookie, UpstreamHost,
    protect_toml,
};
use super::{DatabaseTls, StoreKind};

const EXAMPLE: &str = include_str!("../../config.toml.example");
const SMALLEST: &str = "[upstream.app]\nurls = [\"http://127.0.0.1:9000\"]\n[[route]]\nupstream = \"app\"\n";
const CANARY: &str = "canary-4711-do-not-show";

fn read(text: &str) -> Result<Config, Vec<Problem>> {
    parse(text, Path::new("/etc/doorward/config.toml"), &|_| None)
}

fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|problems| panic!("{}", listed(&problems)))
}

fn listed(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// What is wrong with the smallest file and these lines.
fn wrong(lines: &str) -> String {
    read(&format!("{lines}\n{SMALLEST}")).map(|_| ()).map_err(|problems| listed(&problems)).expect_err(lines)
}

/// The smallest file whose one route has these lines too.
fn wrong_route(lines: &str) -> String {
    read(&format!("{SMALLEST}{lines}\n")).map(|_| ()).map_err(|problems| listed(&problems)).expect_err(lines)
}

fn write(folder: &Path, name: &str, mode: u32, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn with_secret(bytes: &[u8], mode: u32) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "secret", mode, bytes);
    let text = format!("[token]\nsecret_file = \"secret\"\n{SMALLEST}");
    parse(&text, &folder.path().join("config.toml"), &|_| None).map_err(|problems| listed(&problems))
}

/// Everything but where it came from.
fn meant(config: &Config) -> String {
    format!("{:?}", Config { source: None, files: Vec::new(), ..config.clone() })
}

#[test]
fn the_example_is_the_defaults() {
    let example = good(EXAMPLE);
    assert_eq!(meant(&example), meant(&good(SMALLEST)));
    assert_eq!(example.warnings, Vec::<String>::new());
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = good(SMALLEST);
    let seconds = Duration::from_secs;
    assert_eq!(config.data_dir, Path::new("/var/lib/doorward"));
    assert_eq!(config.server.listen, [Listen::Tcp(([127, 0, 0, 1], 8080).into())]);
    assert!(config.server.workers > 0 && config.server.trusted_proxies.is_empty());
    assert_eq!(config.server.drain, seconds(30));
    assert_eq!(config.server.drain_delay, seconds(0));
    let limits = &config.server.limits;
    assert_eq!(
        (limits.header_timeout, limits.idle_timeout, limits.body_timeout),
        (seconds(10), seconds(75), seconds(60))
    );
    assert_eq!((limits.max_headers, limits.max_header_bytes, limits.max_connections), (100, 32_768, 10_000));
    assert_eq!(config.admin.listen, Some(([127, 0, 0, 1], 9180).into()));
    let store = &config.store;
    assert_eq!((store.max_staleness, store.on_stale, store.timeout), (seconds(10), OnStale::Serve, seconds(2)));
    let token = &config.token;
    assert_eq!((token.algorithm, token.issuer.as_str()), (Algorithm::Hs256, "doorward"));
    assert!(token.signing_key.is_none() && token.previous_keys.is_empty());
    assert_eq!((token.lifetime, token.refresh_below), (seconds(604_800), seconds(302_400)));
    assert_eq!(token.max_lifetime, seconds(2_592_000));
    let cookie = &config.cookie;
    assert_eq!((cookie.name.as_str(), cookie.domain.as_str(), cookie.path.as_str()), ("access_token", "", "/"));
    assert_eq!((cookie.secure, cookie.same_site), (SecureCookie::Auto, SameSite::Lax));
    let login = &config.login;
    assert_eq!((login.bcrypt_cost, login.max_attempts, login.window), (12, 5, seconds(300)));
    assert_eq!((login.min_password_length, login.title.as_str()), (8, "Sign in"));
    assert_eq!(config.portal_prefix, "");
    let names: Vec<&str> = config.identity.headers.iter().map(|header| header.name.as_str()).collect();
    assert_eq!(
        names,
        ["x-forwarded-user", "x-forwarded-groups", "x-forwarded-email", "x-forwarded-preferred-username"]
    );
    let app = &config.upstreams["app"];
    assert_eq!((app.connect_timeout, app.response_timeout), (seconds(5), seconds(60)));
    assert_eq!((&app.host, app.health_path.as_ref(), app.forward_token), (&UpstreamHost::Preserve, None, false));
    let route = &config.routes[0];
    assert_eq!((route.path.as_str(), route.access, route.exact, route.api), ("/", Access::Required, false, false));
    assert_eq!((config.log.format, config.log.level.as_str(), config.log.access), (LogFormat::Json, "info", true));
}

/// Names every key of the example, also those behind a `#`, with the sections it stands in.
fn keys_of(text: &str) -> BTreeSet<String> {
    fn collect(prefix: &str, value: &DeValue<'_>, keys: &mut BTreeSet<String>) {
        match value {
            DeValue::Table(table) => table.iter().for_each(|(name, value)| {
                collect(&format!("{prefix}.{}", name.get_ref()), value.get_ref(), keys);
            }),
            DeValue::Array(array) if array.iter().any(|item| item.get_ref().is_table()) => {
                array.iter().for_each(|item| collect(prefix, item.get_ref(), keys));
            }
            _ => {
                keys.insert(prefix.trim_start_matches('.').to_owned());
            }
        }
    }
    let open: Vec<&str> = text
        .lines()
        .map(|line| {
            let code = line.strip_prefix("# ").filter(|rest| {
                rest.starts_with(['[', '"']) || rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
            });
            code.unwrap_or(line)
        })
        .collect();
    let open = open.join("\n");
    let table = DeTable::parse(&open).expect("the example with its comments opened is TOML");
    let mut keys = BTreeSet::new();
    collect("", &DeValue::Table(table.into_inner()), &mut keys);
    keys
}

/// The error about an unknown key lists those that are known: so no key can be read without being in the example.
#[test]
fn the_example_names_every_key_that_is_read() {
    let shown = keys_of(EXAMPLE);
    for (section, lines) in [
        ("", "zzzzzzzz = 1".to_owned()),
        ("server", "[server]\nzzzzzzzz = 1".to_owned()),
        ("server.limits", "[server.limits]\nzzzzzzzz = 1".to_owned()),
        ("admin", "[admin]\nzzzzzzzz = 1".to_owned()),
        ("store", "[store]\nzzzzzzzz = 1".to_owned()),
        ("token", "[token]\nzzzzzzzz = 1".to_owned()),
        ("cookie", "[cookie]\nzzzzzzzz = 1".to_owned()),
        ("login", "[login]\nzzzzzzzz = 1".to_owned()),
        ("portal", "[portal]\nzzzzzzzz = 1".to_owned()),
        ("identity", "[identity]\nzzzzzzzz = 1".to_owned()),
        ("upstream.app", "[upstream.other]\nurls = [\"http://a\"]\nzzzzzzzz = 1".to_owned()),
        ("route", "[[route]]\npath = \"/x\"\nupstream = \"app\"\nzzzzzzzz = 1".to_owned()),
        ("test", "[[test]]\nrequest = \"GET http://a/\"\nexpect = \"login\"\nzzzzzzzz = 1".to_owned()),
        ("log", "[log]\nzzzzzzzz = 1".to_owned()),
    ] {
        let message = wrong(&lines);
        let (_, known) = message.split_once("known here: ").unwrap_or_else(|| panic!("{message}"));
        for key in known.lines().next().unwrap_or_default().split(", ") {
            let full = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
            let is_there = shown.iter().any(|shown| *shown == full || shown.starts_with(&format!("{full}.")));
            assert!(is_there, "the example lacks {full}");
        }
    }
}

#[test]
fn what_protect_writes_loads() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "secret", 0o600, b"0123456789abcdef0123456789abcdef-only-for-tests\n");
    let public = [String::from("/assets"), String::from("/favicon.ico")];
    let protection = Protection {
        listen: "127.0.0.1:0",
        url: "http://localhost:9000",
        public: &public,
        prefix: "/_auth",
        cookie: Some("access_token_x"),
    };
    let text = protect_toml(&protection);
    let file = write(folder.path(), "config.toml", 0o600, text.as_bytes());
    let config = load(&file, &|_| None).unwrap_or_else(|problems| panic!("{}", listed(&problems)));
    assert_eq!(fs::canonicalize(&config.data_dir).unwrap(), fs::canonicalize(folder.path()).unwrap());
    assert_eq!(config.admin.listen, None);
    assert_eq!(config.routes.len(), 3);
    assert_eq!((config.routes[0].access, config.routes[1].access), (Access::Required, Access::Public));
    assert_eq!(config.cookie.secure, SecureCookie::Auto);
    assert_eq!((config.cookie.name.as_str(), config.portal_prefix.as_str()), ("access_token_x", "/_auth"));
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn a_hostile_argument_of_protect_stays_one_value() {
    let hostile = "http://a\"]\n[admin]\nlisten = \"0.0.0.0:1";
    let text = protect_toml(&Protection { listen: "127.0.0.1:0", url: hostile, public: &[], prefix: "", cookie: None });
    let table = DeTable::parse(&text).unwrap();
    let urls = table.get_ref()["upstream"].get_ref()["app"].get_ref()["urls"].get_ref().as_array().unwrap();
    assert_eq!(urls[0].get_ref().as_str(), Some(hostile));
}

const MISTAKES: &str = r#"data_dirr = "/x"
[server]
listen = ["127.0.0.1:8080", "127.0.0.1:8080", "here"]
workers = "two"
h2c = true
trusted_proxies = ["0.0.0.0/0", "nobody"]
drain = 30
[server.tls]
certificate_file = "x"
[server.limits]
header_timeout = "10 seconds"
max_headers = 0
max_header_bytes = "1TiB"
[admin]
listen = "127.0.0.1:8080"
[store]
kind = "postgres"
on_stale = "maybe"
[token]
secret_file = "/nonexistent/secret"
lifetime = "7d"
refresh_below = "8d"
max_lifetime = "1d"
issuer = ""
[cookie]
name = "a b"
same_site = "none"
[login]
bcrypt_cost = 30
redirect_hosts = ["https://a"]
[portal]
prefix = "auth"
[identity]
assertion = true
[identity.headers]
"Cookie" = "{username}"
"X-User" = "{user}"
[upstream.app]
urls = ["ftp://a", "http://localhost:8080"]
[upstream.empty]
[[route]]
path = "/admin"
acces = "deny"
upstream = "app"
[[route]]
path = "/Admin"
upstream = "nowhere"
[[route]]
path = "/a/../b"
access = "public"
groups = ["staff"]
methods = ["ge t"]
upstream = "app"
[[route]]
path = "/c"
strip_prefix = "/d"
[[test]]
request = "/admin"
groups = ["staff"]
expect = "maybe"
[log]
level = "in=fo=x"
"#;

/// Lines of `MISTAKES` in which something is wrong.
const WRONG_LINES: [usize; 39] = [
    1, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15, 17, 18, 20, 22, 23, 24, 26, 27, 29, 30, 32, 34, 36, 37, 39, 40, 43, 45, 47,
    49, 51, 52, 54, 56, 58, 59, 60, 62,
];

#[test]
fn every_mistake_is_named_with_its_line() {
    let problems = parse(MISTAKES, Path::new("config.toml"), &|_| None).expect_err("full of mistakes");
    let named: BTreeSet<usize> = problems.iter().map(|problem| problem.line).collect();
    let missing: Vec<&usize> = WRONG_LINES.iter().filter(|line| !named.contains(line)).collect();
    let innocent: Vec<&usize> = named.iter().filter(|line| !WRONG_LINES.contains(line)).collect();
    assert!(
        missing.is_empty() && innocent.is_empty(),
        "missing {missing:?}, innocent {innocent:?}\n{}",
        listed(&problems)
    );
    insta::assert_snapshot!(listed(&problems), @r#"
    config.toml:1:1: data_dirr: is not known; did you mean "data_dir"?
    config.toml:3:29: server.listen: "127.0.0.1:8080" is named twice
    config.toml:3:47: server.listen: "here" is no address to listen on; write for example "127.0.0.1:8080", "[::1]:8080" or "0.0.0.0:80"
    config.toml:4:11: server.workers: is a string; write a whole number from 0 to 1024
    config.toml:5:7: server.h2c: HTTP/2 without TLS is not built yet; remove this key
    config.toml:6:20: server.trusted_proxies: "0.0.0.0/0" is everybody; name the networks of your own proxies, for example "10.1.0.0/16"
    config.toml:6:33: server.trusted_proxies: "nobody" is no network; write for example "10.1.0.0/16" or "127.0.0.1"
    config.toml:7:9: server.drain: is an integer; write a text in quotes
    config.toml:8:1: server.tls: TLS on the listener is not built yet; remove this key
    config.toml:11:18: server.limits.header_timeout: "10 seconds" is no duration; write for example "90s", "30m" or "3d12h"
    config.toml:12:15: server.limits.max_headers: 0 is out of range; write a whole number from 16 to 1000
    config.toml:13:20: server.limits.max_header_bytes: "1TiB" is no size; write for example "512B", "16KiB" or "1MiB"
    config.toml:15:10: admin.listen: is one of server.listen; the admin listener needs its own
    config.toml:17:8: store.kind: "postgres" needs a URL: name a file that holds it as store.url_file, or set $DOORWARD_STORE_URL
    config.toml:18:12: store.on_stale: "maybe" is not known; write one of "serve", "refuse"
    config.toml:20:15: token.secret_file: the file that is named here can't be read: No such file or directory (os error 2); write the path of a file
    config.toml:22:17: token.refresh_below: must be shorter than token.lifetime; half of it is the default
    config.toml:23:16: token.max_lifetime: must be at least token.lifetime, or "0s" for no limit
    config.toml:24:10: token.issuer: must be 1 to 255 characters without control characters
    config.toml:26:8: cookie.name: must be 1 to 64 letters, digits, "-" or "_"
    config.toml:27:13: cookie.same_site: "none" needs secure = true: browsers drop the cookie otherwise
    config.toml:29:15: login.bcrypt_cost: 30 is out of range; write a whole number from 4 to 16
    config.toml:30:19: login.redirect_hosts: "https://a" is no host; write for example "app.example.com" or "app.example.com:8443", without https://
    config.toml:32:10: portal.prefix: "auth" must begin with "/"
    config.toml:34:13: identity.assertion: the signed assertion is not built yet; remove this key
    config.toml:36:1: identity.headers.Cookie: must not be set: it means something else; choose a name of your own such as "X-Auth-User"
    config.toml:37:12: identity.headers.X-User: {user} is not known; known are {id} {username} {email} {groups} {display_name}
    config.toml:39:9: upstream.app.urls: has a scheme that is not served; write for example "http://127.0.0.1:9000", "https://app.internal" or "unix:/run/app.sock"
    config.toml:39:20: upstream.app.urls: is one of server.listen: Doorward would forward to itself
    config.toml:40:1: upstream.empty.urls: is missing; write for example urls = ["http://127.0.0.1:9000"]
    config.toml:43:1: route.acces: is not known; did you mean "access"?
    config.toml:45:1: route: has the same path in other letter case or another Unicode form as the route of line 41; remove or change one
    config.toml:47:12: route.upstream: there is no [upstream.nowhere]; known: app, empty
    config.toml:49:8: route.path: "/a/../b" holds an empty segment or one that ends with a dot or a blank
    config.toml:51:11: route.access: must be "required" where groups or users are listed
    config.toml:52:12: route.methods: "ge t" is not a method; write a token, for example "POST"
    config.toml:54:1: route.upstream: is missing; only a route with access = "deny" needs none
    config.toml:56:16: route.strip_prefix: /d is no beginning of the route's path /c
    config.toml:58:11: test.request: must be a method and a URL, for example "GET https://app.example.com/admin"
    config.toml:59:10: test.groups: needs a user: nobody has no groups
    config.toml:60:10: test.expect: "maybe" is not known; write one of "allow", "deny", "login"
    config.toml:62:9: log.level: "in=fo=x" is not known; write one of "error", "warn", "info", "debug", "trace"
    "#);
}

#[test]
fn a_mistake_in_the_toml_itself_has_its_place() {
    let problems = read("data_dir = \"/x\"\n[server\nlisten = 1\n").expect_err("no TOML");
    assert_eq!((problems.len(), problems[0].line), (1, 2), "{}", listed(&problems));
    let duplicate = read("[log]\nlevel = \"info\"\nlevel = \"info\"\n").expect_err("twice");
    assert_eq!(duplicate[0].line, 3, "{}", listed(&duplicate));
}

#[test]
fn secrets_are_read_as_they_stand_and_bad_ones_refused() {
    let body = b"0123456789abcdefghijklmnopqrstuv";
    for (end, rest) in [(&b""[..], &b""[..]), (b"\n", b""), (b"\r\n", b""), (b"\n\n", b"\n"), (b" ", b" ")] {
        let config = with_secret(&[body, end].concat(), 0o600).unwrap();
        let key = config.token.signing_key.unwrap();
        assert!(key.bytes.matches(&[body, rest].concat()), "{end:?}");
    }
    let pem = b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
    for (name, bytes, mode) in [
        ("31 bytes", &body[..31], 0o600),
        ("31 bytes and a newline", &[&body[..31], b"\n"].concat(), 0o600),
        ("empty", b"", 0o600),
        ("one newline", b"\n", 0o600),
        ("one byte again and again", &[b'a'; 64], 0o600),
        ("secret again and again", b"secretsecretsecretsecretsecretsecret", 0o600),
        ("a placeholder", b"changeme-changeme-changeme-changeme", 0o600),
        ("a public key", pem, 0o600),
        ("everybody reads", body, 0o604),
        ("everybody writes", body, 0o602),
    ] {
        let message = with_secret(bytes, mode).map(|_| ()).expect_err(name);
        assert!(message.contains(":2:15: token.secret_file: "), "{name}: {message}");
        let shown = bytes.len() > 8 && message.contains(&*String::from_utf8_lossy(&bytes[..8]));
        assert!(!shown || name.contains("public key"), "{name}: the message shows the secret: {message}");
    }
}

#[test]
fn no_problem_shows_what_may_be_a_secret() {
    let mut shown: Vec<String> = Vec::new();
    for lines in [
        format!("[upstream.x]\nurls = [\"http://user:{CANARY}@host:1\"]"),
        format!("[upstream.x]\nurls = [\"http://host:1/?key={CANARY}\"]"),
        format!("[token]\nsecret_file = \"{CANARY}\""),
        format!("[token]\nsecret = \"{CANARY}\""),
        format!("[token]\nprevious_files = [\"{CANARY}\"]"),
        format!("[store]\nurl_file = \"postgres://u:{CANARY}@host/db\""),
        format!("[token]\nsecret_file = \"{CANARY}\" x"),
    ] {
        let message = wrong(&lines);
        shown.extend(message.contains(CANARY).then_some(message));
    }
    assert!(shown.is_empty(), "{}", shown.join("\n"));
}

#[test]
fn the_environment_gives_the_secret_where_no_file_does() {
    let environment = |name: &str| (name == "JWT_SECRET").then(|| String::from("0123456789abcdefghijklmnopqrstuv"));
    let config = parse(SMALLEST, Path::new("config.toml"), &environment).unwrap();
    assert_eq!(config.token.signing_key.unwrap().origin, "$JWT_SECRET");
    let short = parse(SMALLEST, Path::new("config.toml"), &|_| Some(CANARY.into())).map(|_| ()).unwrap_err();
    assert!(!listed(&short).contains(CANARY) && listed(&short).contains("JWT_SECRET"), "{}", listed(&short));
}

#[test]
fn a_handover_is_for_stores_of_many_processes() {
    let environment = |name: &str| (name == "DOORWARD_STORE_URL").then(|| String::from("postgres://u@localhost/d"));
    let server = "[server]\nhandover = true\n";
    let text = format!("{server}[store]\nkind = \"postgres\"\n{SMALLEST}");
    assert!(parse(&text, Path::new("config.toml"), &environment).unwrap().server.handover);
    let message = wrong(server);
    assert!(message.contains(":2:12: server.handover: needs store.kind = \"postgres\""), "{message}");
}

#[test]
fn the_database_is_named_by_a_file_or_the_environment() {
    let url = format!("postgres://u:{CANARY}@db.example.com/d");
    let environment = |name: &str| (name == "DOORWARD_STORE_URL").then(|| url.clone());
    let text = format!("[store]\nkind = \"postgres\"\npool_size = 3\n{SMALLEST}");
    let store = parse(&text, Path::new("config.toml"), &environment).unwrap().store;
    let StoreKind::Postgres { database, pool_size } = &store.kind else { panic!("{store:?}") };
    assert_eq!((*pool_size, database.tls), (3, DatabaseTls::VerifyFull));
    assert!(!format!("{store:?}").contains(CANARY));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let text = format!("[store]\nkind = \"postgres\"\nurl_file = \"url\"\n{SMALLEST}");
    for (mode, contents, expected) in [
        (0o600, format!("{url}?sslmode=disable\n"), None),
        (0o600, format!("{url}?sslmode=require\n"), Some("warning")),
        (0o644, url.clone(), Some("can be read by others")),
        (0o600, format!("{url}?sslmode=prefer"), Some("sslmode")),
        (0o600, String::from(CANARY), Some("no URL")),
    ] {
        write(folder.path(), "url", mode, contents.as_bytes());
        match (parse(&text, &path, &|_| None), expected) {
            (Ok(config), None) => assert_eq!(config.warnings, Vec::<String>::new()),
            (Ok(config), Some("warning")) => {
                assert!(config.warnings[0].contains(":3:12: store.url_file"), "{config:?}");
            }
            (Err(problems), Some(part)) => {
                let listed = listed(&problems);
                assert!(listed.contains(":3:12: store.url_file: ") && listed.contains(part), "{listed}");
                assert!(!listed.contains(CANARY), "{listed}");
            }
            (result, expected) => panic!("{expected:?}: {}", result.is_ok()),
        }
    }
}

#[test]
fn an_elliptic_key_of_another_curve_is_refused() {
    use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
    use base64::Engine as _;
    let random = aws_lc_rs::rand::SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random).unwrap();
    let encoded = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{encoded}\n-----END PRIVATE KEY-----\n");
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "key.pem", 0o600, pem.as_bytes());
    let text = format!("[token]\nalgorithm = \"ES256\"\nprivate_key_file = \"key.pem\"\n{SMALLEST}");
    let problems = parse(&text, &folder.path().join("config.toml"), &|_| None).map(|_| ());
    assert!(problems.is_err(), "a P-384 key was taken for ES256");
}

#[test]
fn single_mistakes() {
    let mut passed: Vec<String> = Vec::new();
    for lines in [
        "[server]\nlisten = []",
        "[server]\nlisten = [\"unix:relative.sock\"]",
        "[server]\nlisten = [\"localhost:8080\", \"127.0.0.1:8080\"]",
        "[server]\ntrusted_proxies = [\"::/0\"]",
        "[store]\npool_size = 0",
        "[store]\nurl_file = \"x\"",
        "[token]\nlifetime = \"59s\"",
        "[token]\nrefresh_below = \"7d\"",
        "[token]\nprivate_key_file = \"/x\"",
        "[cookie]\nsame_site = \"none\"\nsecure = false",
        "[cookie]\nname = \"__Host-token\"\ndomain = \"example.com\"",
        "[cookie]\nname = \"__Host-token\"\npath = \"/x\"\nsecure = true",
        "[cookie]\nname = \"__host-token\"\nsecure = false",
        "[cookie]\ndomain = \"a..b\"",
        "[cookie]\ndomain = \"-a.example\"",
        "[cookie]\nsecure = \"yes\"",
        "[login]\nbcrypt_cost = 3",
        "[login]\nmax_attempts = 0",
        "[portal]\nprefix = \"/a b\"",
        "[identity.headers]\n\"Set-Cookie\" = \"{id}\"",
        "[identity.headers]\n\"X-Forwarded-For\" = \"{id}\"",
        "[identity.headers]\n\"X-User\" = \"{id}\"\n\"x_user\" = \"{id}\"",
        "[identity.headers]\n\"X-User\" = \"{id\"",
        "[identity.headers]\n\"X User\" = \"{id}\"",
        "[identity.headers]\n\"X-Forwarded-Ssl\" = \"{id}\"",
        "[identity.headers]\n\"X-Original-URL\" = \"{id}\"",
        "[identity]\npass = [\"X-Forwarded-User\"]",
        "[identity]\npass = [\"X_Forwarded_User\"]",
        "[identity]\npreset = \"none\"\npass = [\"x-team\"]\n[identity.headers]\n\"X-Team\" = \"{groups}\"",
        "[identity]\npass = [\"X-Original-URL\"]",
        "[identity]\npass = [\"X-Forwarded-Proto\"]",
        "[identity]\npass = [\"X-Doorward-Assertion\"]",
        "[identity]\npass = [\"Transfer-Encoding\"]",
        "[identity]\npass = [\"a b\"]",
        "[identity]\nbasic_password = \"a\\nb\"",
        "[identity]\nbasic_password = \"a\"\nbasic_password_file = \"b\"",
        "[upstream.b]\nurls = [\"http://127.0.0.1:8080\"]\nbasic = true",
        "[login]\nhelp = \"a\\nb\"",
        "[upstream.b]\nurls = []",
        "[upstream.b]\nurls = [\"http://127.0.0.1:8080\"]",
        "[upstream.b]\nurls = [\"http://a\"]\nhost = \"a b\"",
        "[upstream.b]\nurls = [\"http://a:0\"]",
        "upstream = 1",
        "route = 1",
    ] {
        passed.extend(read(&format!("{lines}\n{SMALLEST}")).is_ok().then(|| lines.to_owned()));
    }
    for lines in [
        "path = \"admin\"",
        "path = \"/a//b\"",
        "path = \"/a/./b\"",
        "path = \"/%61\"",
        "path = \"/a;b\"",
        "path = \"/a\\\\b\"",
        "host = \"a:80\"",
        "host = \"bücher.example\"",
        "host = \"a.*.example\"",
        "methods = [\"GET\", \"GET\"]",
        "methods = [\"GE T\"]",
        "methods = [\"GET\"]\n[[route]]\nmethods = [\"HEAD\"]\nupstream = \"app\"",
        "users = [\"\"]",
        "users = [\"a\\u200Bb\"]",
        "access = \"optional\"\nusers = [\"kim\"]",
        "access = \"none\"",
        "strip_prefix = \"/x\"",
        "path = \"/admin\"\nstrip_prefix = \"/adm\"",
        "[[route]]\nupstream = \"app\"",
        "[[route]]\nmethods = [\"GET\"]\nupstream = \"app\"\n[[route]]\nmethods = [\"HEAD\", \"GET\"]\nupstream = \"app\"",
        "[[route]]\npath = \"/x\"\nmethods = [\"POST\"]\nupstream = \"app\"\n[[route]]\npath = \"/X\"\nupstream = \"app\"",
        "[[test]]\nrequest = \"GET http://a/\"\nexpect = \"login\"\ngroups = [\"a\"]",
        "[[test]]\nrequest = \"GET ftp://a/\"\nexpect = \"login\"",
        "[[test]]\nrequest = \"GET http:///x\"\nexpect = \"login\"",
    ] {
        passed.extend(read(&format!("{SMALLEST}{lines}\n")).is_ok().then(|| lines.to_owned()));
    }
    assert!(passed.is_empty(), "accepted though wrong:\n{}", passed.join("\n\n"));
    assert!(wrong_route("path = \"/\"\n[[route]]\nupstream = \"app\"").contains("line 3"));
}

#[test]
fn no_identity_header_takes_the_place_of_one_that_means_something_else() {
    for name in [
        "Host",
        "HOST",
        "Cookie",
        "Set-Cookie",
        "Content-Length",
        "Content-Type",
        "Transfer-Encoding",
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Upgrade",
        "Expect",
        "Authorization",
        "Proxy-Authorization",
        "Range",
        "Date",
        "Via",
        "Origin",
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Uri",
        "X-Forwarded-Method",
        "X-Real-IP",
        "X-Request-Id",
        "X-Original-URI",
        "X-Rewrite-URL",
        "Content_Length",
        "Transfer.Encoding",
        "x_forwarded_for",
        "",
        ":path",
        "X-A\\u000d\\u000aX-B",
        "X-\u{e9}",
    ] {
        assert!(read(&format!("[identity.headers]\n\"{name}\" = \"{{id}}\"\n{SMALLEST}")).is_err(), "{name}");
    }
    for (one, other) in [("X-User", "x_user"), ("X-User", "X.USER"), ("X-User", "X~User")] {
        let both = format!("[identity.headers]\n\"{one}\" = \"{{id}}\"\n\"{other}\" = \"{{email}}\"\n{SMALLEST}");
        assert!(read(&both).is_err(), "{one} {other}");
    }
    assert!(read(&format!("[identity.headers]\n\"X-User\" = \"{{id}}\"\n{SMALLEST}")).is_ok());
}

#[test]
fn what_is_unwise_but_allowed_is_a_warning() {
    let config = good(&format!("[login]\nbcrypt_cost = 4\n{SMALLEST}"));
    assert!(config.warnings[0].contains(":2:15: login.bcrypt_cost: "), "{:?}", config.warnings);
    let shadowed = good(&format!("{SMALLEST}[[route]]\npath = \"/login\"\nexact = true\nupstream = \"app\"\n"));
    assert_eq!(shadowed.warnings.len(), 1);
    let moved = format!("[portal]\nprefix = \"/_auth\"\n{SMALLEST}[[route]]\npath = \"/login\"\nupstream = \"app\"\n");
    assert_eq!(good(&moved).warnings, Vec::<String>::new());
}

/// What a backend knows other names for can't be guessed: the operator is told where that would open something.
#[test]
fn a_guarded_route_inside_a_laxer_one_of_the_same_backend_is_a_warning() {
    let two = "[upstream.other]\nurls = ['http://127.0.0.1:9001']\n[upstream.same]\nurls = ['http://127.0.0.1:9000']\n";
    let open = "[[route]]\npath = '/'\naccess = 'public'\nupstream = 'app'\n";
    for (routes, expected) in [
        ("[[route]]\npath = '/admin'\nupstream = 'app'", Some("inside")),
        ("[[route]]\npath = '/admin'\nupstream = 'same'", Some("inside")),
        ("[[route]]\npath = '/admin'\nhost = 'a.example'\nupstream = 'app'", Some("inside")),
        ("[[route]]\npath = '/admin'\naccess = 'deny'", Some("inside")),
        ("[[route]]\npath = '/x/admin'\nstrip_prefix = '/x'\nupstream = 'app'", Some("inside")),
        ("[[route]]\npath = '/admin'\nupstream = 'other'", None),
        ("[[route]]\npath = '/admin'\naccess = 'optional'\nupstream = 'app'", None),
        ("[[route]]\npath = '/'\nmethods = ['POST']\nupstream = 'app'", None),
    ] {
        let config = good(&format!("[upstream.app]\nurls = ['http://127.0.0.1:9000']\n{two}{open}{routes}\n"));
        assert_eq!(config.warnings.len(), usize::from(expected.is_some()), "{routes}: {:?}", config.warnings);
        for warning in &config.warnings {
            assert!(warning.contains(":11:1: route: ") && warning.contains("line 7"), "{warning}");
            assert!(warning.contains(expected.unwrap()) && warning.contains("everybody"), "{warning}");
        }
    }
    let routes = "[[route]]\npath = '/pub'\nstrip_prefix = '/pub'\naccess = 'public'\nupstream = 'app'\n\
                  [[route]]\npath = '/admin'\nupstream = 'app'\n";
    let config = good(&format!("[upstream.app]\nurls = ['http://127.0.0.1:9000']\n{routes}"));
    assert!(config.warnings[0].contains("as /pub/admin"), "{:?}", config.warnings);
    let lists = "[[route]]\npath = '/'\nupstream = 'app'\n[[route]]\npath = '/admin'\ngroups = ['a']\nupstream = 'app'\n\
                 [[route]]\npath = '/admin/x'\ngroups = ['a', 'b']\nupstream = 'app'\n";
    let config = good(&format!("[upstream.app]\nurls = ['http://127.0.0.1:9000']\n{lists}"));
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(config.warnings[0].contains("more people"), "{:?}", config.warnings);
}

#[test]
fn a_slip_in_a_method_is_a_warning_and_any_token_is_a_method() {
    let config = good(
        "[upstream.app]\nurls = ['http://127.0.0.1:9000']\n[[route]]\nmethods = ['GTE', 'LIST', 'm-search']\nupstream = 'app'\n",
    );
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(config.warnings[0].contains(":4:12: route.methods: GTE is not a registered method; if GET is meant"));
    let methods: Vec<&str> = config.routes[0].methods.iter().map(http::Method::as_str).collect();
    assert_eq!(methods, ["GTE", "LIST", "M-SEARCH"]);
    for lines in [
        "methods = [\"get\", \"GET\"]",
        "methods = [\"trace\"]",
        "path = \"/a b\"\nstrip_prefix = \"/a b\"",
        "path = \"/caf\u{e9}\"\n[[route]]\npath = \"/cafe\u{301}\"\nupstream = \"app\"",
    ] {
        assert!(read(&format!("{SMALLEST}{lines}\n")).is_err(), "{lines}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_text_panics(text in "[\\[\\]a-z=\"'\\.#,{}0-9\n \\-\u{e9}]{0,200}") {
        let _ = read(&text);
    }

    #[test]
    fn no_damaged_example_panics(at in 0..EXAMPLE.len(), length in 0_usize..40, with in "[\\[\\]a-z=\"0-9\n{}\\-\u{e9}]{0,12}") {
        let chars: Vec<char> = EXAMPLE.chars().collect();
        let at = at.min(chars.len());
        let end = (at + length).min(chars.len());
        let text: String = chars[..at].iter().copied().chain(with.chars()).chain(chars[end..].iter().copied()).collect();
        if let Err(problems) = read(&text) {
            prop_assert!(!problems.is_empty());
            let lines = text.split('\n').count();
            prop_assert!(problems.iter().all(|problem| (1..=lines).contains(&problem.line) && problem.column > 0));
        }
    }
}

#[test]
fn a_level_is_one_of_five_words() {
    for level in ["error", "warn", "info", "debug", "trace"] {
        assert_eq!(good(&format!("[log]\nlevel = \"{level}\"\n{SMALLEST}")).log.level, level);
    }
    for level in [
        "warning",
        "WARN",
        "Info",
        "off",
        "3",
        "",
        " info",
        "info ",
        "doorward=debug",
        "info,doorward=debug",
        "verbose",
    ] {
        let message = wrong(&format!("[log]\nlevel = \"{level}\""));
        assert!(message.contains(":2:9: log.level: ") && message.contains("\"warn\""), "{level}: {message}");
    }
}

#[test]
fn nothing_is_expanded_in_a_path() {
    for path in ["~/x", "~", "$HOME/x", "/run/${NAME}/x", "%d/x"] {
        for (key, lines) in [
            ("data_dir", format!("data_dir = \"{path}\"")),
            ("token.secret_file", format!("[token]\nsecret_file = \"{path}\"")),
            ("token.private_key_file", format!("[token]\nalgorithm = \"EdDSA\"\nprivate_key_file = \"{path}\"")),
            ("token.previous_files", format!("[token]\nprevious_files = [\"{path}\"]")),
            ("token.revocation_token_file", format!("[token]\nrevocation_token_file = \"{path}\"")),
            ("store.url_file", format!("[store]\nkind = \"postgres\"\nurl_file = \"{path}\"")),
            ("log.audit_file", format!("[log]\naudit_file = \"{path}\"")),
            ("server.listen", format!("[server]\nlisten = [\"unix:{path}\"]")),
            ("upstream.x.urls", format!("[upstream.x]\nurls = [\"unix:{path}\"]")),
            ("upstream.x.ca_file", format!("[upstream.x]\nurls = [\"https://a\"]\nca_file = \"{path}\"")),
        ] {
            let message = wrong(&lines);
            assert!(message.contains(&format!(" {key}: ")), "{path}: {message}");
            assert!(message.contains("expand") || message.contains("whole path"), "{path} {key}: {message}");
        }
    }
}

#[test]
fn addresses_and_networks_have_one_form() {
    for text in ["10.1.0.0/16", "127.0.0.1", "::1", "2001:db8::/32", "10.1.2.3/16"] {
        good(&format!("[server]\ntrusted_proxies = [\"{text}\"]\n{SMALLEST}"));
    }
    for text in [
        "010.0.0.0/8",
        "10.0.0/8",
        "10.0.0.0/+8",
        "10.0.0.0/08",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0.0/8/8",
        "0xa.0.0.0/8",
        "::ffff:10.0.0.0/104",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
        " 10.0.0.0/8",
        "10.0.0.0/8 ",
        "::/0",
        "localhost",
    ] {
        let message = wrong(&format!("[server]\ntrusted_proxies = [\"{text}\"]"));
        assert!(message.contains("server.trusted_proxies"), "{text}: {message}");
    }
    for text in ["127.0.0.1:80", "[::1]:80", "localhost:80", "fd:http", "unix:/run/x.sock", "127.0.0.1:0"] {
        good(&format!("[server]\nlisten = [\"{text}\"]\n{SMALLEST}"));
    }
    let long = format!("unix:/{}", "x".repeat(107));
    for text in [
        "127.0.0.1:+80",
        "localhost:+80",
        "localhost:080",
        "127.0.0.1:080",
        "127.1:80",
        "127.0.0.01:80",
        ":80",
        "80",
        "http://127.0.0.1:80",
        "127.0.0.1",
        "localhost",
        "::1:80",
        "fd:",
        "fd:a b",
        "fd:a:b",
        "unix:",
        "unix:x",
        "unix:/run/",
        &long,
    ] {
        let message = wrong(&format!("[server]\nlisten = [\"{text}\"]"));
        assert!(message.contains("server.listen"), "{text}: {message}");
    }
    for text in ["app.example.com:+1", "app.example.com:080", "app.example.com:"] {
        assert!(wrong(&format!("[login]\nredirect_hosts = [\"{text}\"]")).contains("login.redirect_hosts"), "{text}");
        assert!(wrong(&format!("[upstream.x]\nurls = [\"http://a\"]\nhost = \"{text}\"")).contains("upstream.x.host"));
    }
    for text in ["http:app:9000", "http://127.1", "http://ap\\tp", "http://app:+80", "http:app"] {
        let message = wrong(&format!("[upstream.x]\nurls = [\"{text}\"]"));
        assert!(message.contains("upstream.x.urls"), "{text}: {message}");
    }
    // One server twice, however it is written.
    assert!(wrong("[upstream.x]\nurls = [\"http://[::1]:80\", \"http://[0::1]\"]").contains("named twice"));
}

#[test]
fn a_secret_with_something_around_it_is_refused() {
    let body = "0123456789abcdefghijklmnopqrstuv";
    for text in [
        format!("\"{body}\""),
        format!("'{body}'\n"),
        format!("JWT_SECRET={body}"),
        format!("export JWT_SECRET={body}\r\n"),
        format!("secret={body}"),
        format!("JWT_SECRET=\"{body}\""),
    ] {
        let message = with_secret(text.as_bytes(), 0o600).map(|_| ()).expect_err(&text);
        assert!(message.contains("would be part of") && !message.contains(&body[..8]), "{message}");
        let set = |name: &str| (name == "JWT_SECRET").then(|| text.clone());
        let problems = parse(SMALLEST, Path::new("config.toml"), &set).map(|_| ()).expect_err(&text);
        assert!(listed(&problems).contains("$JWT_SECRET"), "{}", listed(&problems));
    }
    // What base64 looks like, and what has such a sign within, is none of it.
    for text in [format!("{body}="), format!("{body}=="), format!("a=b{body}"), format!("{body}\"")] {
        with_secret(text.as_bytes(), 0o600).unwrap_or_else(|message| panic!("{text}: {message}"));
    }
}

#[test]
fn a_file_beside_the_variable_is_said() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "secret", 0o600, b"0123456789abcdefghijklmnopqrstuv");
    write(folder.path(), "url", 0o600, b"postgres://u:p@localhost/d");
    let path = folder.path().join("config.toml");
    let set = |name: &str| ["JWT_SECRET", "DOORWARD_STORE_URL"].contains(&name).then(|| String::from("left over"));
    let text =
        format!("[store]\nkind = \"postgres\"\nurl_file = \"url\"\n[token]\nsecret_file = \"secret\"\n{SMALLEST}");
    let warnings = parse(&text, &path, &set).unwrap().warnings.join("\n");
    assert!(warnings.contains(":3:12: store.url_file: ") && warnings.contains("$DOORWARD_STORE_URL"), "{warnings}");
    assert!(warnings.contains(":5:15: token.secret_file: ") && warnings.contains("$JWT_SECRET"), "{warnings}");
    assert!(!warnings.contains("left over"), "{warnings}");
    assert_eq!(parse(&text, &path, &|_| None).unwrap().warnings, Vec::<String>::new());
}

#[test]
fn authorities_are_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let pem = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
    for (name, content, part) in [
        ("nothing", String::new(), "no certificate"),
        ("text", String::from("hello\n"), "no certificate"),
        ("a public key", pem("PUBLIC KEY", "MCowBQYDK2VwAyEA"), "no certificate"),
        ("rubbish in the right place", pem("CERTIFICATE", "AAAA"), "certificate (the 1.)"),
        ("no base64", pem("CERTIFICATE", "!!!!"), "certificate"),
        ("a key", pem("PRIVATE KEY", "AAAA"), "private key"),
    ] {
        write(folder.path(), "ca.pem", 0o644, content.as_bytes());
        let text = format!("[upstream.x]\nurls = [\"https://a\"]\nca_file = \"ca.pem\"\n{SMALLEST}");
        let problems = parse(&text, &folder.path().join("config.toml"), &|_| None).map(|_| ()).expect_err(name);
        let listed = listed(&problems);
        assert!(listed.contains("upstream.x.ca_file: ") && listed.contains(part), "{name}: {listed}");
    }
}

#[test]
fn a_cookie_that_does_not_reach_where_it_is_needed_is_said() {
    let warned = |text: &str| good(text).warnings.join("\n");
    let with = |lines: &str, route: &str| {
        warned(&format!(
            "{lines}\n[upstream.app]\nurls = [\"http://127.0.0.1:9000\"]\n[[route]]\nupstream = \"app\"\n{route}\n"
        ))
    };
    let domain = "[cookie]\ndomain = \"example.com\"";
    for (lines, route, parts) in [
        (domain, "host = \"app.other.org\"", &["route.host", "app.other.org", "example.com"][..]),
        (domain, "host = \"*.other.org\"", &["route.host", "*.other.org"]),
        (domain, "host = \"badexample.com\"", &["route.host"]),
        ("[cookie]\ndomain = \"app.example.com\"", "host = \"example.com\"", &["route.host"]),
        (
            "[cookie]\ndomain = \"example.com\"\n[login]\nredirect_hosts = [\"a.example.org:8443\"]",
            "",
            &["login.redirect_hosts", "a.example.org:8443"],
        ),
        ("[cookie]\npath = \"/app\"", "path = \"/app\"", &["cookie.path", "/account"]),
        ("[cookie]\npath = \"/_auth\"\n[portal]\nprefix = \"/_auth\"", "path = \"/other\"", &["route.path", "/other"]),
        ("[cookie]\nsecure = true", "", &["cookie.secure", "trusted_proxies"]),
    ] {
        let said = with(lines, route);
        assert!(parts.iter().all(|part| said.contains(part)), "{lines} {route}: {said}");
    }
    for (lines, route) in [
        (domain, "host = \"a.b.example.com\""),
        (domain, "host = \"example.com\""),
        (domain, "host = \"*.example.com\""),
        (domain, ""),
        (domain, "host = \"app.other.org\"\naccess = \"public\""),
        (domain, "host = \"app.other.org\"\napi = true"),
        ("", "host = \"app.other.org\""),
        ("[cookie]\npath = \"/a\"\n[portal]\nprefix = \"/a/_auth\"", "path = \"/a/b\""),
        ("[cookie]\nsecure = true\n[server]\ntrusted_proxies = [\"127.0.0.1\"]", ""),
        ("[cookie]\nsecure = true\n[server]\nlisten = [\"unix:/run/x.sock\"]", ""),
    ] {
        assert_eq!(with(lines, route), "", "{lines} {route}");
    }
}
