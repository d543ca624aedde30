//! Real programs on both sides: Koa, Radicale, gunicorn and a WebSocket server behind the gateway, curl and Chromium
//! in front of it. `tests/run` installs them.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;

use crate::support::gateway::free_port;
use crate::support::peer::{Peer, node, of_tests, python};
use crate::support::token::{self, DAY};
use crate::support::upstream::Recorded;
use crate::support::wire::Wire;
use crate::support::{Builder, Gateway, PASSWORD, Request, SECRET, Then, Upstream, reply};

/// What came back from a real backend, which may carry fields that no scripted one has.
struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// One request by curl, with these fields in this spelling.
fn ask(base: &str, method: &str, target: &str, fields: &[(&str, &str)]) -> Answer {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let url = format!("{base}{target}");
    let mut arguments = vec!["--request", method, "--write-out", "\n%{http_code}", "--path-as-is", &url];
    for field in &fields {
        arguments.extend(["--header", field]);
    }
    let output = curl(&arguments);
    let (body, status) = output.rsplit_once('\n').unwrap();
    Answer { status: status.parse().unwrap(), body: body.to_owned() }
}

/// The `Cookie` field that carries a token.
fn cookie(token: &str) -> String {
    format!("access_token={token}")
}

#[test]
fn koa_and_the_gateway_accept_each_others_tokens() {
    let builder = Builder::new();
    let port = free_port();
    let mut command = node("peers/app.js");
    command.arg(port.to_string()).env("JWT_SECRET", std::str::from_utf8(SECRET).unwrap());
    let koa = Peer::start(command, port, &builder.folder().join("koa.log"));
    let gateway = builder
        .upstream("trusted", &[&koa.url()])
        .set("upstream.trusted.forward_token", "true")
        .upstream("app", &[&koa.url()])
        .route("path = \"/trusted\"\nupstream = \"trusted\"")
        .route("path = \"/\"\nupstream = \"app\"")
        .user("kim", &["staff"])
        .start();
    let id = gateway.account("kim")["_id"].as_str().unwrap().to_owned();

    let issued = ask(&koa.url(), "GET", &format!("/issue?id={id}&name=kim&seconds={}", 6 * DAY), &[]).expect(200).body;
    let mut names: Vec<String> = token::claims(&issued).as_object().unwrap().keys().cloned().collect();
    names.sort();
    assert_eq!(names, ["_id", "exp", "iat", "username"], "Koa's tokens are not what this test is about");
    let checked = gateway.get_with("/check", &issued).expect(200).json();
    assert_eq!(checked["_id"], id.as_str());
    assert_eq!(checked["username"], "kim");
    let seen = gateway.get_with("/trusted", &issued).expect(200).json();
    assert_eq!(seen["claims"]["username"], "kim");

    let ours = gateway.login("kim");
    let seen = gateway.get_with("/trusted/page", &ours).expect(200).json();
    assert_eq!(seen["error"], Value::Null, "Koa refuses our token");
    let claims = &seen["claims"];
    assert_eq!(claims["_id"], id.as_str());
    assert_eq!(claims["username"], "kim");
    assert_eq!(claims["exp"], token::claims(&ours)["exp"]);

    for token in [&ours, &issued] {
        let seen = gateway.get_with("/page", token).expect(200).json();
        assert_eq!(seen["token"], false, "the token reached a backend that was not to have it");
        assert_eq!(seen["headers"]["x-forwarded-user"], "kim");
        assert!(!seen.to_string().contains(token.as_str()), "{seen}");
    }

    // Signed with another secret, or over: no login here either.
    let other =
        token::foreign(b"another secret, of which nobody here has heard", &id, "kim", token::now(), token::now() + DAY);
    gateway.get_with("/check", &other).expect(401);
    let over = ask(&koa.url(), "GET", &format!("/issue?id={id}&name=kim&seconds=-5"), &[]).expect(200).body;
    gateway.get_with("/check", &over).expect(401);
}

#[test]
fn radicale_takes_the_person_from_our_header_and_from_nobody_elses() {
    let builder = Builder::new();
    let port = free_port();
    let folder = builder.folder().to_owned();
    let file = folder.join("radicale.ini");
    let text = format!(
        "[server]\nhosts = 127.0.0.1:{port}\n[auth]\ntype = http_x_remote_user\n[rights]\ntype = owner_only\n\
         [storage]\nfilesystem_folder = {}\n[web]\ntype = none\n",
        folder.join("collections").display()
    );
    fs::write(&file, text).unwrap();
    let mut command = python();
    command.args(["-m", "radicale", "--config"]).arg(&file);
    let radicale = Peer::start(command, port, &folder.join("radicale.log"));
    let gateway = builder
        .upstream("app", &[&radicale.url()])
        .set("identity.headers.X-Remote-User", "\"{username}\"")
        .route("path = \"/\"\nupstream = \"app\"")
        .user("kim", &[])
        .user("lee", &[])
        .start();
    let through = format!("http://{}", gateway.address);
    let find = |base: &str, path: &str, more: &[(&str, &str)]| {
        ask(base, "PROPFIND", path, &[&[("Depth", "0")], more].concat())
    };

    // Whoever reaches Radicale's port is whom they say: the header is worth forging.
    find(&radicale.url(), "/lee/", &[("X-Remote-User", "lee")]).expect(207);

    let kim = cookie(&gateway.login("kim"));
    find(&through, "/kim/", &[]).expect(401);
    let found = find(&through, "/kim/", &[("Cookie", &kim)]).expect(207).body;
    assert!(found.contains("/kim/"), "{found}");
    ask(&through, "MKCALENDAR", "/kim/calendar/", &[("Cookie", &kim)]).expect(201);
    find(&through, "/kim/calendar/", &[("Cookie", &kim)]).expect(207);
    for name in ["X-Remote-User", "x-remote-user", "X_Remote_User", "X-Remote_User", "Remote-User"] {
        let answer = find(&through, "/lee/", &[("Cookie", &kim), (name, "lee")]);
        assert!(matches!(answer.status, 401 | 403), "{name}: {}: {}", answer.status, answer.body);
        find(&through, "/kim/calendar/", &[("Cookie", &kim), (name, "lee")]).expect(207);
        find(&through, "/lee/", &[(name, "lee")]).expect(401);
    }
    let lee = cookie(&gateway.login("lee"));
    find(&through, "/lee/", &[("Cookie", &lee)]).expect(207);
}

#[test]
fn a_wsgi_application_finds_only_our_identity_in_its_environ() {
    let builder = Builder::new();
    let port = free_port();
    let mut command = python();
    // Folded as CGI says, without the server's own filter: it is the gateway that must keep them out.
    command.args(["-m", "gunicorn", "--workers", "1", "--header-map", "dangerous", "--bind"]);
    command.arg(format!("127.0.0.1:{port}")).arg("--chdir").arg(of_tests("peers")).arg("environ_app:application");
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("HOME", builder.folder());
    let gunicorn = Peer::start(command, port, &builder.folder().join("gunicorn.log"));
    let gateway = builder
        .upstream("app", &[&gunicorn.url()])
        .route("path = \"/\"\nupstream = \"app\"")
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
        .user("kim", &["staff"])
        .start();
    let spoofs = [
        "X-Forwarded-User",
        "x-forwarded-user",
        "X_Forwarded_User",
        "X-Forwarded_User",
        "X_FORWARDED-USER",
        "X-Forwarded-Groups",
        "X_Forwarded_Groups",
        "X_Forwarded_Email",
        "X-Forwarded-Preferred_Username",
        "Remote-User",
        "Remote_User",
        "X-Remote-User",
        "X_Remote_User",
        "X-Auth-Request-User",
        "X_Auth_Request_User",
        "X_WebAuth_User",
        "X_Doorward_Assertion",
    ];
    let through = format!("http://{}", gateway.address);
    let forged = |base: &str, target: &str, more: &[(&str, &str)]| {
        // Twice: a first copy that is taken out must not leave a second.
        let mut fields: Vec<(&str, &str)> = spoofs.iter().flat_map(|name| [(*name, "mallory"); 2]).collect();
        fields.extend(more);
        ask(base, "GET", target, &fields).expect(200).json()
    };
    let seen = forged(&gunicorn.url(), "/", &[]);
    assert_eq!(seen["HTTP_X_FORWARDED_USER"].as_str().unwrap().matches("mallory").count(), 10, "not folded: {seen}");

    let token = gateway.login("kim");
    for target in ["/", "/open"] {
        let seen = forged(&through, target, &[("Cookie", &cookie(&token))]);
        assert_eq!(seen["HTTP_X_FORWARDED_USER"], "kim", "{target}");
        assert_eq!(seen["HTTP_X_FORWARDED_GROUPS"], "staff", "{target}");
        assert_eq!(seen["HTTP_X_FORWARDED_EMAIL"], "kim@example.com", "{target}");
        assert!(!seen.to_string().contains("mallory"), "{target}: {seen}");
        assert!(!seen.to_string().contains(&token), "{target}: {seen}");
    }
    let seen = forged(&through, "/open", &[]);
    assert!(!seen.to_string().contains("mallory"), "{seen}");
    for name in seen.as_object().unwrap().keys() {
        assert!(
            !["USER", "GROUPS", "EMAIL"].iter().any(|end| name.starts_with("HTTP_") && name.ends_with(end)),
            "{name}"
        );
    }
}

#[test]
fn a_websocket_echoes_through_the_gateway_and_is_closed_by_logging_out() {
    let builder = Builder::new();
    let port = free_port();
    let mut command = python();
    command.arg(of_tests("peers/echo_socket.py")).arg(port.to_string());
    let echo = Peer::start(command, port, &builder.folder().join("echo.log"));
    let gateway =
        builder.upstream("app", &[&echo.url()]).route("path = \"/\"\nupstream = \"app\"").user("kim", &[]).start();
    let token = gateway.login("kim");
    let mut command = python();
    command.arg(of_tests("peers/socket_client.py")).arg(format!("ws://{}/echo", gateway.address)).arg(&token);
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let first = lines.next();
    assert_eq!(first.expect("the client ended").unwrap(), "echoed");

    client.stdin.take().unwrap().write_all(b"now\n").unwrap();
    gateway.send(&Request::post("/logout").cookie(&token)).expect(204);
    let line = lines.next().expect("the client ended").unwrap();
    let seconds: f64 = line.strip_prefix("closed after ").unwrap_or_else(|| panic!("{line}")).parse().unwrap();
    assert!(client.wait().unwrap().success());
    // A second is promised; another is for a busy machine.
    assert!(seconds < 2.0, "closed {seconds} s after logging out");
}

/// Runs curl to its end and gives back what it wrote to its standard output.
fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "120"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("no curl: run tests/run");
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Keeps what is PUT and gives it back, whole or in part.
fn file_server() -> Upstream {
    let stored = Mutex::new(Vec::new());
    Upstream::start(move |request: &Recorded, wire: &mut dyn Wire| {
        let mut stored = stored.lock().unwrap();
        if request.method == "PUT" {
            stored.clone_from(&request.body);
            return reply(wire, 201, &[], b"");
        }
        if request.method == "HEAD" {
            let head = format!("HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: {}\r\n\r\n", stored.len());
            return crate::support::reply_bytes(wire, head.as_bytes());
        }
        let Some(range) = request.field("range") else { return reply(wire, 200, &[], &stored) };
        let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
        let what = format!("bytes {from}-{to}/{}", stored.len());
        reply(wire, 206, &[("Content-Range", &what)], &stored[from..=to])
    })
}

#[test]
fn curl_logs_in_by_form_and_moves_twenty_megabytes_both_ways() {
    let upstream = file_server();
    let gateway = Gateway::guarding(&upstream);
    let url = |path: &str| format!("http://{}{path}", gateway.address);
    let name = |name: &str| gateway.folder().join(name).to_str().unwrap().to_owned();
    let (jar, sent, got) = (name("jar"), name("sent"), name("got"));
    let status = ["--output", "/dev/null", "--write-out", "%{http_code} %{redirect_url}"];
    let with = |more: &[&str]| -> String { curl(&[&status[..], &["--cookie", &jar], more].concat()) };

    let password = format!("password={PASSWORD}");
    let form = ["--data-urlencode", "username=kim", "--data-urlencode", &password, "--data-urlencode", "rd=/file"];
    let answer = curl(&[&status[..], &["--cookie-jar", &jar], &form, &[&url("/login")]].concat());
    assert_eq!(answer, format!("303 {}", url("/file")));
    assert_eq!(curl(&[&status[..], &[&url("/file")]].concat()).trim(), "401");

    // Bytes that a mistaken piece, order or repetition would change.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(20 << 20);
    while bytes.len() < 20 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    fs::write(&sent, &bytes).unwrap();
    assert_eq!(with(&["--upload-file", &sent, &url("/file")]).trim(), "201");
    let download = |more: &[&str]| -> Vec<u8> {
        curl(&[&["--cookie", &jar, "--output", &got], more, &[&url("/file")]].concat());
        fs::read(&got).unwrap()
    };
    // Not `assert_eq`: forty megabytes are no message.
    assert!(download(&[]) == bytes, "what came back is not what was sent");
    assert!(download(&["--range", "1000000-1000999"]) == bytes[1_000_000..1_001_000], "another part came");
    assert!(download(&["--http1.0"]) == bytes, "HTTP/1.0 got something else");
    let head = curl(&["--cookie", &jar, "--head", &url("/file")]).to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains(&format!("content-length: {}\r\n", 20 << 20)), "{head}");
    // Chunked, with a body of unknown length.
    assert_eq!(with(&["--header", "Transfer-Encoding: chunked", "--upload-file", &sent, &url("/file")]).trim(), "201");
    assert!(upstream.last().body == bytes, "the chunked body is another");

    let answer =
        curl(&[&status[..], &["--cookie", &jar, "--cookie-jar", &jar, "--request", "POST", &url("/logout")]].concat());
    assert_eq!(answer.trim(), "204");
    assert_eq!(with(&[&url("/file")]).trim(), "401");
}

#[test]
fn a_person_in_chromium_logs_in_is_renewed_and_logs_out() {
    let upstream = Upstream::start(|_, wire: &mut dyn Wire| -> Then {
        let page = b"<!doctype html><html lang=\"en\"><title>Backend</title><link rel=\"icon\" href=\"data:,\">\
            <p>hello from the backend";
        reply(wire, 200, &[("Content-Type", "text/html; charset=utf-8")], page)
    });
    let gateway = Builder::guarding(&upstream).set("login.max_attempts", "50").start();
    let near_half = token::with_left(SECRET, &gateway.login("kim"), 3 * DAY + 10 * 3600);
    let screenshots = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
    fs::create_dir_all(&screenshots).unwrap();
    let output = node("peers/browser.js")
        .arg(format!("http://{}", gateway.address))
        .args(["kim", PASSWORD, &near_half])
        .arg(&screenshots)
        .stdin(Stdio::null())
        .output()
        .expect("no node: run tests/run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(" passed, 0 failed"), "{text}");
}
