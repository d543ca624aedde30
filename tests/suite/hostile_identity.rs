//! Identity headers of a client, in every spelling there is, against backends that fold names each in its own way:
//! wsgiref, gunicorn, waitress, PHP and Node. Each says what a program there sees. It is our person, or nobody.
//!
//! THREATS 5.A 11, 14, 28, 29 and 5.B 36 to 45, 48; rows "hop-by-hop", "copy-headers", "aliases", "same header twice".

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::gateway::free_port;
use crate::support::peer::{Peer, node, of_tests, python};
use crate::support::token::{self, DAY};
use crate::support::upstream::Recorded;
use crate::support::{Builder, Connection, Gateway, Request, Response, SECRET, Upstream, cases};

/// Every name that we send or know, ours of the configuration first.
const NAMES: &[&str] = &[
    "X-Team",
    "Person",
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Groups",
    "X-Forwarded-Preferred-Username",
    "X-Forwarded-Access-Token",
    "Remote-User",
    "Remote-Groups",
    "Remote-Email",
    "Remote-Name",
    "X-Remote-User",
    "X-Remote-Group",
    "X-Remote-Extra-Scopes",
    "X-Auth-User",
    "X-Auth-Request-User",
    "X-Auth-Request-Email",
    "X-Auth-Request-Groups",
    "X-Auth-Request-Preferred-Username",
    "X-Doorward-Assertion",
    "X-Doorward-Anything",
    "X-WebAuth-User",
    "X-WebAuth-Role",
    "X-Authenticated-User",
    "X-Authenticated-Groups",
    "X-Original-URL",
    "X-Original-URI",
    "X-Original-Method",
    "X-Original-Host",
    "X-Rewrite-URL",
    "X-Rewrite-Path",
    "X-Envoy-Original-Path",
    "X-HTTP-Method-Override",
    "X-HTTP-Method",
    "X-Method-Override",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Server",
    "X-Forwarded-Uri",
    "X-Forwarded-Method",
    "X-Forwarded-Ssl",
    "X-Forwarded-Scheme",
    "X-Forwarded-Path",
    "X-Forwarded-By",
    "X-Real-IP",
    "X-Request-Id",
    "Forwarded",
    "Proxy",
    "Script-Name",
    "Path-Info",
    "X-Script-Name",
    "X-Sendfile-Type",
    "X-Accel-Mapping",
];

/// Names that an honest client sends; only a disguise of theirs is a spoof.
const DISGUISES: &[&str] = &["Transfer-Encoding", "Content-Length", "Content-Type", "Keep-Alive", "Sec-Fetch-Site"];

/// Every sign that may stand in a header's name (RFC 9110 section 5.6.2).
const SIGNS: &[u8] = b"-_.~!#$%&'*+^`|";

/// What the client sends for one name: every sign for every hyphen, mixtures of them, in several cases.
fn spellings(name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for sign in SIGNS {
        let sign = char::from(*sign).to_string();
        let all = name.replace('-', &sign);
        for spelled in [
            all.to_ascii_lowercase(),
            all.to_ascii_uppercase(),
            all,
            name.replacen('-', &sign, 1),
            name.rsplitn(2, '-').collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(&sign),
        ] {
            found.insert(spelled);
        }
    }
    let mixed: String = name
        .chars()
        .enumerate()
        .map(|(at, sign)| match (sign, at % 2) {
            ('-', 0) => '_',
            ('-', _) => '.',
            (letter, 0) => letter.to_ascii_lowercase(),
            (letter, _) => letter.to_ascii_uppercase(),
        })
        .collect();
    found.insert(mixed);
    found
}

fn every_spelling() -> Vec<String> {
    let spoofs = NAMES.iter().flat_map(|name| spellings(name));
    let disguises = DISGUISES.iter().flat_map(|name| {
        spellings(name).into_iter().filter(|spelled| !spelled.eq_ignore_ascii_case(name)).collect::<Vec<_>>()
    });
    spoofs.chain(disguises).collect()
}

/// As the laxest reader reads a name.
fn folded(name: &str) -> String {
    name.chars().map(|sign| if sign.is_ascii_alphanumeric() { sign.to_ascii_lowercase() } else { '-' }).collect()
}

/// Routes of the three kinds to one backend, under a host of its own.
fn routes(builder: Builder, name: &str, url: &str) -> Builder {
    let route =
        |path: &str, more: &str| format!("host = \"{name}.test\"\npath = \"{path}\"\nupstream = \"{name}\"\n{more}");
    builder
        .upstream(name, &[url])
        .route(&route("/", ""))
        .route(&route("/open", "access = \"public\""))
        .route(&route("/maybe", "access = \"optional\""))
        // That routes differ by method takes the method-override headers out.
        .route(&route("/open/by-method", "methods = [\"PUT\"]"))
}

fn builder() -> Builder {
    Builder::new()
        .set("identity.headers.X-Team", "\"{groups}\"")
        .set("identity.headers.Person", "\"{username}\"")
        .user("kim", &["staff"])
        .user("lee", &[])
}

/// What a backend may see under the names that are guarded, given who calls.
fn expected(host: &str, person: bool) -> BTreeMap<String, String> {
    let mut expected = BTreeMap::from(
        [
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", host),
            ("x-real-ip", "127.0.0.1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    if person {
        for (name, value) in [
            ("x-forwarded-user", "kim"),
            ("x-forwarded-groups", "staff"),
            ("x-forwarded-email", "kim@example.com"),
            ("x-forwarded-preferred-username", "kim"),
            ("x-team", "staff"),
            ("person", "kim"),
        ] {
            expected.insert(name.to_owned(), value.to_owned());
        }
    }
    expected
}

/// Whom a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Kim,
    Nobody,
    Expired,
}

const WAYS: &[(&str, Who)] = &[
    ("/", Who::Kim),
    ("/open", Who::Kim),
    ("/maybe", Who::Kim),
    ("/open", Who::Nobody),
    ("/maybe", Who::Nobody),
    ("/open", Who::Expired),
    ("/maybe", Who::Expired),
];

struct Tokens {
    good: String,
    expired: String,
}

impl Tokens {
    fn of(gateway: &Gateway) -> Self {
        let good = gateway.login("kim");
        let hour_ago = token::now() - 3600;
        let expired = token::altered(SECRET, &good, &json!({"exp": hour_ago, "iat": hour_ago - DAY}));
        Self { good, expired }
    }

    fn put(&self, request: Request, who: Who) -> Request {
        match who {
            Who::Kim => request.cookie(&self.good),
            Who::Nobody => request,
            Who::Expired => request.cookie(&self.expired),
        }
    }
}

/// The names and values that a program in the backend finds, as the backend's report holds them.
fn seen(report: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut take = |object: &Value, prefix: &str| {
        for (name, value) in object.as_object().into_iter().flatten() {
            if let Some(name) = name.strip_prefix(prefix) {
                all.push((folded(name), value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
            }
        }
    };
    if report.get("raw").is_some() {
        take(&report["headers"], "");
        take(&report["trailers"], "");
    } else if report.get("server").is_some() {
        take(&report["server"], "HTTP_");
        take(&report["headers"], "");
    } else {
        take(report, "HTTP_");
    }
    all
}

/// Fails unless the guarded names hold exactly what we put there.
#[track_caller]
fn look(what: &str, report: &Value, expected: &BTreeMap<String, String>) {
    let text = report.to_string();
    assert!(!text.contains("spoof-"), "{what}: {text}");
    let guarded: BTreeSet<String> = NAMES.iter().map(|name| folded(name)).collect();
    let mut found = BTreeMap::new();
    for (name, value) in seen(report) {
        // Fresh for every request.
        if guarded.contains(&name) && name != "x-request-id" {
            let earlier = found.insert(name.clone(), value.clone());
            assert!(earlier.is_none_or(|earlier| earlier == value), "{what}: two values for {name}: {text}");
        }
    }
    assert_eq!(&found, expected, "{what}");
}

/// Tries every spelling on every kind of route, several at a time, each twice: before the cookie and after it.
fn try_them_all(gateway: &Gateway, host: &str, tokens: &Tokens) -> usize {
    let mut tried = 0;
    let mut connection = gateway.connect().with_any_field();
    let spellings = every_spelling();
    for (path, who) in WAYS {
        let expected = expected(host, *who == Who::Kim);
        for (number, group) in spellings.chunks(40).enumerate() {
            let spoofed = |mut request: Request, copy: usize| {
                for (index, spelling) in group.iter().enumerate() {
                    request = request.field(spelling, &format!("spoof-{number}-{index}-{copy}"));
                }
                request
            };
            let mark = format!("mark-{number}");
            let request = spoofed(Request::get(path).field("Host", host), 1);
            let request = spoofed(tokens.put(request, *who), 2).field("X-Harmless", &mark);
            let answer = connection.send(&request).expect(200);
            let report = answer.json();
            look(&format!("{host}{path} as {who:?}, group {number}: {group:?}"), &report, &expected);
            assert!(report.to_string().contains(&mark), "nothing arrives at all: {report}");
            tried += group.len() * 2;
        }
    }
    tried
}

/// A backend of its own kind and whether a program there sees `X_Forwarded_User` as `X-Forwarded-User`.
fn backend(kind: &str, builder: &Builder) -> (Peer, bool) {
    let port = free_port();
    let (command, folds) = match kind {
        "wsgiref" | "waitress" => {
            let mut command = python();
            command.arg(of_tests("peers/environ_app.py")).args([kind, &port.to_string()]);
            (command, kind == "wsgiref")
        }
        "gunicorn" => {
            let mut command = python();
            // Folded as CGI says, without the server's own filter: it is the gateway that must keep them out.
            command.args([
                "-m",
                "gunicorn",
                "--workers",
                "1",
                "--header-map",
                "dangerous",
                "--limit-request-fields",
                "200",
            ]);
            command.args(["--keep-alive", "60", "--bind", &format!("127.0.0.1:{port}"), "--chdir"]);
            command.arg(of_tests("peers")).arg("environ_app:application");
            command.env("HOME", builder.folder());
            (command, true)
        }
        "php" => {
            let mut command = Command::new("php");
            command.args(["-n", "-S", &format!("127.0.0.1:{port}")]).arg(of_tests("peers/seen.php"));
            (command, true)
        }
        _ => {
            let mut command = node("peers/seen.js");
            command.arg(port.to_string());
            (command, false)
        }
    };
    (Peer::start(command, port, &builder.folder().join(format!("{kind}.log"))), folds)
}

fn against(kind: &str) {
    let builder = builder();
    let (peer, folds) = backend(kind, &builder);
    // Whoever reaches the backend itself is whom they say: there is something to keep out.
    let direct = |name: &str| {
        let mut connection = Connection::to(([127, 0, 0, 1], peer.port).into()).with_any_field();
        let report = connection.send(&Request::get("/").field(name, "spoof-direct")).expect(200).json();
        seen(&report)
            .into_iter()
            .filter(|(name, _)| name == "x-forwarded-user")
            .any(|(_, value)| value == "spoof-direct")
    };
    assert!(direct("X-Forwarded-User"), "{kind} shows nothing of what it gets");
    if folds {
        assert!(direct("X_Forwarded_User"), "{kind} does not fold: it tests nothing");
    }
    let gateway = routes(builder, kind, &peer.url()).start();
    let tokens = Tokens::of(&gateway);
    let tried = try_them_all(&gateway, &format!("{kind}.test"), &tokens);
    cases::tried(&format!("identity against {kind}"), tried);
}

#[test]
fn identity_36_to_41_no_spelling_is_believed_by_wsgiref() {
    against("wsgiref");
}

#[test]
fn identity_36_to_41_no_spelling_is_believed_by_gunicorn() {
    against("gunicorn");
}

#[test]
fn identity_36_to_41_no_spelling_is_believed_by_waitress() {
    against("waitress");
}

#[test]
fn identity_36_to_41_no_spelling_is_believed_by_php() {
    against("php");
}

#[test]
fn identity_36_to_41_no_spelling_is_believed_by_node() {
    against("node");
}

/// gunicorn takes `SCRIPT_NAME` from whoever connects from its own machine, and cuts it from the path.
#[test]
fn identity_44_a_header_does_not_move_the_path_behind_the_route() {
    let builder = builder();
    let port = free_port();
    let mut command = python();
    // As it is by default.
    command.args(["-m", "gunicorn", "--workers", "1", "--bind", &format!("127.0.0.1:{port}"), "--chdir"]);
    command.arg(of_tests("peers")).arg("environ_app:application").env("HOME", builder.folder());
    let peer = Peer::start(command, port, &builder.folder().join("gunicorn.log"));
    let path_of = |connection: Connection, name: &str| {
        let request = Request::get("/open/admin").field("Host", "gunicorn.test").field(name, "/open");
        let report = connection.with_any_field().send(&request).expect(200).json();
        report["PATH_INFO"].as_str().unwrap().to_owned()
    };
    assert_eq!(path_of(Connection::to(([127, 0, 0, 1], port).into()), "SCRIPT_NAME"), "/admin", "nothing to keep out");
    let gateway = routes(builder, "gunicorn", &peer.url()).start();
    for name in ["SCRIPT_NAME", "script_name", "Script_Name", "PATH_INFO", "X-Script-Name", "X_Script_Name"] {
        assert_eq!(path_of(gateway.connect(), name), "/open/admin", "{name}");
    }
}

/// A backend that records, with the three kinds of route.
fn recording(
    answer: impl Fn(&Recorded, &mut dyn crate::support::wire::Wire) -> crate::support::Then + Send + Sync + 'static,
) -> (Upstream, Gateway) {
    let upstream = Upstream::start(answer);
    let gateway = routes(builder(), "app", &upstream.url).start();
    (upstream, gateway)
}

/// What reached a recording backend, in the shape of the others' reports.
fn report_of(request: &Recorded) -> Value {
    let mut headers = serde_json::Map::new();
    for (name, value) in request.head.fields.iter().chain(&request.trailers) {
        let value = String::from_utf8_lossy(value).into_owned();
        // A second copy is a failure that `look` must see.
        let name = if headers.contains_key(name) { format!("{name} ") } else { name.clone() };
        headers.insert(name.trim_end().to_owned(), Value::from(value));
    }
    json!({"raw": String::from_utf8_lossy(&request.raw), "headers": headers})
}

#[test]
fn identity_14_one_spelling_at_a_time_named_in_connection_in_any_place() {
    let (upstream, gateway) = recording(|_, wire| crate::support::reply(wire, 200, &[], b"ok"));
    let tokens = Tokens::of(&gateway);
    let with = expected("app.test", true);
    let without = expected("app.test", false);
    let mut connection = gateway.connect();
    let mut tried = 0;
    for (index, spelling) in every_spelling().iter().enumerate() {
        let spoof = format!("spoof-{index}");
        let (path, who) = WAYS[index % WAYS.len()];
        let mut request = Request::get(path).field("Host", "app.test");
        let list = match index % 4 {
            0 => format!("keep-alive, {spelling}"),
            1 => format!("{spelling}\t,X-Team, person , Cookie,Host, x-forwarded-user"),
            2 => String::from("keep-alive"),
            _ => format!(",,{},, X-Forwarded-For, X-Real-IP", spelling.to_ascii_uppercase()),
        };
        if index % 2 == 0 {
            request = request.field(spelling, &spoof);
        }
        request = tokens.put(request.field("Connection", &list).field("Connection", "x-forwarded-groups"), who);
        if index % 3 == 0 {
            // Both at once: the proper name and its disguise, and one that is empty.
            request = request.field(&spelling.replace(['_', '.'], "-"), &spoof);
            request = request.field(spelling, "");
        }
        if index % 2 == 1 {
            request = request.field(spelling, &spoof);
        }
        // Replacing a sign can make it the proper name of a framing header, which is no spoof.
        let framing = |(name, _): &(String, String)| DISGUISES.iter().any(|proper| proper.eq_ignore_ascii_case(name));
        request.fields.retain(|field| !framing(field));
        connection.send(&request).expect(200);
        let report = report_of(&upstream.last());
        look(&format!("{spelling} on {path} as {who:?}"), &report, if who == Who::Kim { &with } else { &without });
        tried += 1;
    }
    cases::tried("identity, one at a time", tried);
}

#[test]
fn identity_37_long_empty_and_odd_values_leave_nothing_behind() {
    let (upstream, gateway) = recording(|_, wire| crate::support::reply(wire, 200, &[], b"ok"));
    let tokens = Tokens::of(&gateway);
    let with = expected("app.test", true);
    let long = format!("spoof-{}", "a".repeat(8 * 1024));
    for name in ["X-Forwarded-User", "X_Forwarded_User", "X-Team", "Remote-User", "X-Auth-Request-Groups"] {
        for value in ["", " ", "spoof-\u{e9}", "spoof-1,spoof-2", "\"spoof-\"", "=?utf-8?q?spoof-?=", &long] {
            for copies in [1, 3] {
                let mut request = tokens.put(Request::get("/").field("Host", "app.test"), Who::Kim);
                for _ in 0..copies {
                    request = request.field(name, value);
                }
                gateway.send(&request).expect(200);
                look(&format!("{copies} times {name}: {value:.20}"), &report_of(&upstream.last()), &with);
            }
        }
    }
    // What no field can hold does not come so far (RFC 9110 section 5.5).
    let before = upstream.count();
    for field in [
        "X-Forwarded-User : spoof-1",
        "X-Forwarded-User\t: spoof-1",
        " X-Forwarded-User: spoof-1",
        "X-A: b\r\n X-Forwarded-User: spoof-1",
        "X-Forwarded-User: a\0spoof-1",
        "X-Forwarded-User: a\rspoof-1",
        "X-Forwarded-\u{dc}ser: spoof-1",
        "X-Forwarded-User\u{a0}: spoof-1",
        "X-Forwarded(User: spoof-1",
        "\"X-Forwarded-User\": spoof-1",
    ] {
        let mut connection = gateway.connect();
        connection.write(format!("GET /open HTTP/1.1\r\nHost: app.test\r\n{field}\r\n\r\n").as_bytes());
        connection.read("GET", field).expect(400);
    }
    assert_eq!(upstream.count(), before);
}

#[test]
fn identity_11_trailers_in_every_spelling_are_not_passed_on() {
    let builder = builder();
    let (peer, _) = backend("node", &builder);
    let upstream = Upstream::plain();
    let gateway = routes(routes(builder, "node", &peer.url()), "app", &upstream.url).start();
    let tokens = Tokens::of(&gateway);
    let mut tried = 0;
    for host in ["app.test", "node.test"] {
        let expected = expected(host, true);
        for (number, group) in every_spelling().chunks(60).enumerate() {
            let mut connection = gateway.connect().with_any_field();
            let announced = group.join(", ");
            let mut text = format!(
                "POST /open HTTP/1.1\r\nHost: {host}\r\nCookie: access_token={}\r\nTransfer-Encoding: chunked\r\n\
                 TE: trailers\r\nConnection: te\r\nTrailer: X-Sum\r\nTrailer: {announced}\r\n\r\n3\r\nabc\r\n0\r\n",
                tokens.good
            );
            for (index, spelling) in group.iter().enumerate() {
                text.push_str(&format!("{spelling}: spoof-{number}-{index}\r\n"));
            }
            text.push_str("X-Sum: 7\r\n\r\n");
            connection.write(text.as_bytes());
            let answer = connection.read("POST", "/open").expect(200);
            let report = if host == "app.test" {
                let seen = upstream.last();
                assert_eq!(seen.body, b"abc");
                report_of(&seen)
            } else {
                answer.json()
            };
            look(&format!("trailers of group {number} at {host}"), &report, &expected);
            assert!(report.to_string().to_ascii_lowercase().contains("x-sum"), "no trailer arrives at all: {report}");
            tried += group.len();
        }
    }
    cases::tried("identity in trailers", tried);
}

fn handshake(path: &str, host: &str) -> Request {
    Request::get(path)
        .field("Host", host)
        .field("Upgrade", "websocket")
        .field("Connection", "Upgrade, X-Team, x-forwarded-user")
        .field("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .field("Sec-WebSocket-Version", "13")
}

#[test]
fn identity_38_a_websocket_handshake_carries_no_spoof() {
    let builder = builder();
    let (peer, _) = backend("node", &builder);
    let gateway = routes(builder, "node", &peer.url()).start();
    let tokens = Tokens::of(&gateway);
    let mut tried = 0;
    for (path, who) in WAYS {
        let expected = expected("node.test", *who == Who::Kim);
        for (number, group) in every_spelling().chunks(75).enumerate() {
            let mut request = handshake(path, "node.test");
            for (index, spelling) in group.iter().enumerate() {
                request = request.field(spelling, &format!("spoof-{number}-{index}"));
            }
            let mut connection = gateway.connect().with_any_field();
            connection.send(&tokens.put(request, *who)).expect(101);
            let report = connection.reader.rest().unwrap();
            let report: Value = serde_json::from_slice(&report)
                .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&report)));
            look(&format!("handshake on {path} as {who:?}, group {number}"), &report, &expected);
            tried += group.len();
        }
    }
    cases::tried("identity in handshakes", tried);
}

#[test]
fn identity_38_refusals_repeat_nothing_and_reach_no_backend() {
    let upstream = Upstream::plain();
    let absent = format!("http://127.0.0.1:{}", free_port());
    let gateway = routes(routes(builder(), "app", &upstream.url), "absent", &absent)
        .route("host = \"app.test\"\npath = \"/staff-only\"\ngroups = [\"others\"]\nupstream = \"app\"")
        .route("host = \"app.test\"\npath = \"/closed\"\naccess = \"deny\"")
        .start();
    let tokens = Tokens::of(&gateway);
    let spellings = every_spelling();
    let mut tried = 0;
    let nothing_of_it = |answer: &Response, what: &str| {
        let fields: String =
            answer.fields.iter().map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value))).collect();
        assert!(!fields.contains("spoof-") && !answer.text().contains("spoof-"), "{what}: {fields}{}", answer.text());
        for (name, _) in &answer.fields {
            assert!(
                !NAMES.iter().any(|guarded| folded(guarded) == folded(name) && *guarded != "X-Request-Id"),
                "{what}: {name}"
            );
        }
    };
    for (host, path, who, status) in [
        ("app.test", "/", Who::Nobody, 401),
        ("app.test", "/", Who::Expired, 401),
        ("app.test", "/staff-only", Who::Kim, 403),
        ("app.test", "/closed", Who::Kim, 403),
        ("app.test", "/open/..%2fstaff-only", Who::Kim, 400),
        ("other.test", "/", Who::Kim, 404),
        ("absent.test", "/open", Who::Kim, 502),
    ] {
        for (number, group) in spellings.chunks(85).enumerate() {
            for navigation in [false, true] {
                let mut request = tokens.put(Request::get(path).field("Host", host), who);
                if navigation {
                    request = request.field("Accept", "text/html");
                }
                for (index, spelling) in group.iter().enumerate() {
                    request = request.field(spelling, &format!("spoof-{number}-{index}"));
                }
                let answer = gateway.send(&request);
                let login = navigation && status == 401;
                assert_eq!(answer.status, if login { 303 } else { status }, "{host}{path}: {}", answer.text());
                nothing_of_it(&answer, path);
                tried += group.len();
            }
        }
    }
    assert_eq!(upstream.count(), 0);
    // Where a proxy in front copies the headers of `/check`, they are all there and all ours.
    for (who, user, status) in [(Who::Kim, "kim", 200), (Who::Nobody, "", 401), (Who::Expired, "", 401)] {
        for group in spellings.chunks(85) {
            let mut request = tokens.put(Request::get("/check"), who);
            for spelling in group {
                request = request.field(spelling, "spoof-1");
            }
            let mut connection = gateway.connect().with_any_field();
            let answer = connection.send(&request).expect(status);
            assert_eq!(answer.field("x-auth-request-user").as_deref(), Some(user));
            assert_eq!(answer.field("person").as_deref(), Some(user));
            assert!(answer.field("x-auth-request-groups").is_some() && answer.field("x-auth-request-email").is_some());
            assert!(!format!("{:?}", answer.fields).contains("spoof-") && !answer.text().contains("spoof-"));
            tried += group.len();
        }
    }
    cases::tried("identity in refused requests", tried);
}

#[test]
fn identity_28_and_29_people_who_share_connections_are_not_mixed_up() {
    const ROUNDS: usize = 600;
    let (upstream, gateway) = {
        let upstream =
            Upstream::start(|request, wire| crate::support::reply(wire, 200, &[], request.target.as_bytes()));
        let gateway = routes(builder(), "app", &upstream.url);
        // One worker has one pool, so that all of them come over the same few connections.
        (upstream, gateway.set("server.workers", "1").start())
    };
    let people = [("kim", gateway.login("kim")), ("lee", gateway.login("lee")), ("", String::new())];
    std::thread::scope(|scope| {
        for client in 0..3 {
            let (gateway, people) = (&gateway, &people);
            scope.spawn(move || {
                let mut connection = gateway.connect();
                for round in 0..ROUNDS {
                    let (name, token) = &people[(client + round) % 3];
                    let target = format!("/open/{client}/{round}/as-{name}");
                    let mut request = Request::get(&target).field("Host", "app.test");
                    if !token.is_empty() {
                        request = request.cookie(token);
                    }
                    assert_eq!(connection.send(&request).expect(200).text(), target);
                }
            });
        }
    });
    let recorded = upstream.recorded();
    assert_eq!(recorded.len(), 3 * ROUNDS);
    for request in &recorded {
        let name = request.target.rsplit("/as-").next().unwrap();
        let seen = request.folded("x-forwarded-user");
        assert_eq!(seen.concat(), name, "{}", request.target);
        assert_eq!(request.folded("person"), seen);
    }
    assert!(upstream.connections() <= 6, "{} connections: nothing was shared", upstream.connections());
    cases::tried("people on shared connections", 3 * ROUNDS);
}

/// THREATS 5.B 45: a name in a token that somebody with the secret made goes through no store of ours.
#[test]
fn identity_45_a_signed_name_never_becomes_a_second_header() {
    let (upstream, gateway) = recording(|_, wire| crate::support::reply(wire, 200, &[], b"ok"));
    let id = gateway.account("kim")["_id"].as_str().unwrap().to_owned();
    // What is shown where the token is believed at all; a name is brought into its one form (NFKC, lower case) first,
    // so that no backend meets two names that look alike.
    let names = [
        "kim\r\nX-Forwarded-Groups: admin",
        "kim\nX-Forwarded-Groups: admin",
        "kim\rX-Forwarded-Groups: admin",
        "kim\0",
        "kim\u{7f}",
        "kim\u{85}x",
        "kim,lee",
        "kim; lee",
        " kim",
        "",
        "\u{430}dmin",
        "\u{ff41}dmin",
        &"k".repeat(300),
        &"k".repeat(6000),
    ];
    for name in names {
        let token = token::foreign(SECRET, &id, name, token::now() - 5, token::now() + 6 * DAY);
        let before = upstream.count();
        let answer = gateway.send(&Request::get("/").field("Host", "app.test").cookie(&token));
        assert!(matches!(answer.status, 200 | 401 | 431), "{name:?}: {}", answer.status);
        if answer.status == 200 {
            let seen = upstream.last();
            assert!(seen.folded("x-forwarded-groups").is_empty(), "{name:?}");
            let users = seen.folded("x-forwarded-user");
            assert!(users.len() <= 1, "{users:?}");
            let shown = if name == "\u{ff41}dmin" { "admin" } else { name.trim() };
            assert!(users.iter().all(|user| user == shown && !user.chars().any(char::is_control)), "{users:?}");
        } else {
            assert_eq!(upstream.count(), before);
        }
    }
}
