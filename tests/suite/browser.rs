//! A person in Chromium, behind the proxies and in front of the backends that people really have.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::file_server::{nginx, open_folder};
use crate::support::gateway::free_port;
use crate::support::peer::{Peer, node, of_tests, python};
use crate::support::upstream::Recorded;
use crate::support::wire::Wire;
use crate::support::{Builder, Gateway, PASSWORD, Upstream, reply};

/// Chromium takes these steps, visit by visit: see `tests/peers/person.js`.
fn visit(visits: &[Value]) {
    let output = node("peers/person.js")
        .arg(Value::from(visits).to_string())
        .stdin(Stdio::null())
        .output()
        .expect("no node: run tests/run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(" steps, 0 failed"), "{text}");
}

fn steps(label: &str, steps: &[Value]) -> Value {
    json!({"label": label, "steps": steps})
}

fn log_in() -> Value {
    json!(["login", "kim", PASSWORD])
}

/// A key and a certificate that signs itself, in a folder.
fn certificate(folder: &Path) {
    let made = Command::new("openssl")
        .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -days 2".split(' '))
        .args(["-keyout", "key.pem", "-out", "certificate.pem"])
        .current_dir(folder)
        .output()
        .expect("no openssl: run tests/run");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// nginx with servers of these lines, each with TLS on a port of its own.
fn fronts(folder: &Path, servers: &[(u16, String)]) -> Peer {
    certificate(folder);
    let mut lines = String::from("return 404;");
    for (port, location) in servers {
        lines.push_str(&format!(
            "}} server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {folder}/certificate.pem; \
             ssl_certificate_key {folder}/key.pem; error_page 497 =301 https://$http_host$request_uri; {location}",
            folder = folder.display()
        ));
    }
    let port = free_port();
    Peer::start(nginx(folder, "fronts", port, &lines), port, &folder.join("fronts.log"))
}

const PAGE: &[(&str, &str)] = &[("Content-Type", "text/html; charset=utf-8")];

#[test]
fn a_login_and_a_websocket_pass_through_nginx_however_it_is_written() {
    let folder = open_folder();
    let port = free_port();
    let mut command = python();
    command.arg(of_tests("peers/echo_socket.py")).arg(port.to_string());
    let echo = Peer::start(command, port, &folder.path().join("echo.log"));
    let upstream = Upstream::start(|_, wire: &mut dyn Wire| reply(wire, 200, PAGE, b"<p>hello from the backend"));
    let gateway = |trusted: &str| -> Gateway {
        Builder::guarding(&upstream)
            .upstream("echo", &[&echo.url()])
            .route("path = \"/socket\"\nupstream = \"echo\"")
            .set("server.trusted_proxies", trusted)
            .start()
    };
    let (plain, trusting) = (gateway("[]"), gateway("[\"127.0.0.1\"]"));
    let upgrade =
        "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;";
    let forwarding = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; \
        proxy_set_header X-Forwarded-Proto $scheme; ";
    let mut servers = Vec::new();
    let mut visits = Vec::new();
    // Chromium says `Sec-Fetch-Site` with the form, and nothing but `Origin` when it opens a socket: there the host, with
    // its port, has to have come through.
    for (what, gateway, socket_opens, lines) in [
        ("a bare proxy_pass", &plain, false, String::new()),
        ("Host $host", &plain, false, String::from("proxy_set_header Host $host;")),
        ("Host $http_host", &plain, true, String::from("proxy_set_header Host $http_host;")),
        ("all of it, not trusted", &plain, false, format!("proxy_set_header Host $host; {forwarding}")),
        ("a bare proxy_pass, trusted", &trusting, false, forwarding.to_owned()),
        (
            "X-Forwarded-Host, trusted",
            &trusting,
            true,
            format!("{forwarding} proxy_set_header X-Forwarded-Host $http_host;"),
        ),
        (
            "X-Forwarded-Port, trusted",
            &trusting,
            true,
            format!("proxy_set_header Host $host; {forwarding} proxy_set_header X-Forwarded-Port $server_port;"),
        ),
        (
            "Forwarded, trusted",
            &trusting,
            true,
            String::from("proxy_set_header Forwarded 'for=$remote_addr;proto=$scheme;host=\"$http_host\"';"),
        ),
    ] {
        let port = free_port();
        // nginx takes headers from one level only.
        let location = format!("location / {{ proxy_pass http://{}; {upgrade} {lines} }}", gateway.address);
        servers.push((port, location));
        // A name that browsers trust by itself and one that they do not, in turn.
        let host = ["localhost", "app.test"][servers.len() % 2];
        let url = format!("https://{host}:{port}");
        visits.push(steps(
            &format!("{what} at {host}"),
            &[
                json!(["goto", format!("{url}/report?year=2026")]),
                log_in(),
                json!(["url", format!("{url}/report?year=2026")]),
                json!(["text", "hello from the backend"]),
                json!(["socket", "/socket", socket_opens]),
                json!(["goto", format!("{url}/account")]),
                json!(["click", "form[action$='/logout'] button"]),
                json!(["text", "You are signed out"]),
            ],
        ));
    }
    let _fronts = fronts(folder.path(), &servers);
    visit(&visits);
    let told = |gateway: &Gateway| gateway.logs().matches("are not believed").count();
    assert_eq!((told(&plain), told(&trusting)), (1, 0), "one warning for one peer");
}

#[test]
fn whatever_the_first_page_after_a_login_answers_the_person_gets_there() {
    let folder = open_folder();
    let canonical = Upstream::start(|request: &Recorded, wire: &mut dyn Wire| {
        reply(wire, 200, PAGE, format!("<p>the canonical host at {}", request.target).as_bytes())
    });
    let canonical_url = format!("http://localhost:{}", canonical.address.unwrap().port());
    let target = canonical_url.clone();
    // As WordPress does it.
    let wordpress = Upstream::start(move |request: &Recorded, wire: &mut dyn Wire| {
        reply(wire, 302, &[("Location", &format!("{target}{}", request.target))], b"")
    });
    // nginx sends a folder's address without its slash to `http://HOST:ITS_OWN_PORT/folder/`, TLS in front or not.
    let files = folder.path().join("files");
    std::fs::create_dir_all(files.join("docs")).unwrap();
    std::fs::write(files.join("docs/index.html"), "the folder's page").unwrap();
    let port = free_port();
    let lines = format!("index index.html; root \"{}\"; types {{ text/html html; }}", files.display());
    let backend = Peer::start(nginx(folder.path(), "files", port, &lines), port, &folder.path().join("nginx.log"));
    let gateway = Builder::new()
        .upstream("wordpress", &[&wordpress.url])
        .upstream("files", &[&backend.url()])
        .route("path = \"/\"\nupstream = \"wordpress\"")
        .route("path = \"/docs\"\nupstream = \"files\"")
        .route("path = \"/open\"\naccess = \"public\"\nupstream = \"wordpress\"")
        .user("kim", &[])
        .start();
    let port = free_port();
    let location = format!("location / {{ proxy_pass http://{}; proxy_set_header Host $http_host; }}", gateway.address);
    let _fronts = fronts(folder.path(), &[(port, location)]);
    let own = format!("http://{}", gateway.address);
    visit(&[
        steps(
            "to the canonical host",
            &[
                json!(["goto", format!("{own}/page")]),
                log_in(),
                json!(["url", format!("{canonical_url}/page")]),
                json!(["text", "the canonical host at /page"]),
            ],
        ),
        steps(
            "a folder behind TLS",
            &[
                json!(["goto", format!("https://localhost:{port}/docs")]),
                log_in(),
                json!(["url", format!("http://localhost:{}/docs/", backend.port)]),
                json!(["text", "the folder's page"]),
            ],
        ),
        steps(
            "a logout that leads on",
            &[
                json!(["goto", format!("{own}/login")]),
                json!(["login", "kim", PASSWORD]),
                json!(["goto", format!("{own}/logout?rd=/open")]),
                json!(["click", "button"]),
                json!(["url", format!("{canonical_url}/open")]),
            ],
        ),
        steps(
            "what only the browser knows",
            &[
                json!(["goto", format!("{own}/app?tab=2#/users/42")]),
                json!(["login", "kim", "a wrong password"]),
                json!(["value", "#username", "kim"]),
                json!(["focus", "password"]),
                log_in(),
                json!(["url", format!("{canonical_url}/app?tab=2#/users/42")]),
            ],
        ),
    ]);
}

#[test]
fn a_form_that_was_typed_while_the_login_ended_is_not_lost() {
    let upstream = Upstream::start(|request: &Recorded, wire: &mut dyn Wire| {
        if request.method == "POST" {
            return reply(wire, 200, PAGE, format!("saved {}", String::from_utf8_lossy(&request.body)).as_bytes());
        }
        let form = b"<form method=post action=/save><textarea id=text name=text></textarea>\
            <button id=save>Save</button></form>";
        // The browser keeps nothing of it by itself.
        reply(wire, 200, &[PAGE[0], ("Cache-Control", "no-store")], form)
    });
    let gateway = Gateway::guarding(&upstream);
    let url = format!("http://{}", gateway.address);
    let typed = "a long letter, 김";
    let mut visits = Vec::new();
    for locale in ["en-US", "ko-KR"] {
        let mut visit = steps(
            locale,
            &[
                json!(["goto", format!("{url}/letter")]),
                log_in(),
                json!(["fill", "#text", typed]),
                json!(["logoutElsewhere", format!("{url}/logout")]),
                json!(["click", "#save"]),
                json!(["text", if locale == "en-US" { "nothing is lost" } else { "그대로 남아 있습니다" }]),
                json!(["loginElsewhere", "a[target=_blank]", "kim", PASSWORD]),
                json!(["reload"]),
                json!(["text", "saved text=a+long+letter%2C+%EA%B9%80"]),
            ],
        );
        visit["options"] = json!({"locale": locale});
        visits.push(visit);
    }
    // A form of ours.
    visits.push(steps(
        "our own form",
        &[
            json!(["goto", format!("{url}/account")]),
            log_in(),
            json!(["fill", "#current", PASSWORD]),
            json!(["fill", "#new", "entirely new 9 words"]),
            json!(["fill", "#repeat", "entirely new 9 words"]),
            json!(["logoutElsewhere", format!("{url}/logout")]),
            json!(["click", "form[action$='/password'] button"]),
            json!(["text", "nothing is lost"]),
            json!(["loginElsewhere", "a[target=_blank]", "kim", PASSWORD]),
            json!(["reload"]),
            json!(["text", "The password was changed."]),
        ],
    ));
    visit(&visits);
}

#[test]
fn every_page_fits_a_telephone_and_axe_finds_nothing() {
    let upstream = Upstream::start(|_, wire: &mut dyn Wire| reply(wire, 200, PAGE, b"<p>hello"));
    let gateway = Builder::guarding(&upstream)
        .set("login.help", "\"Ask the operators: ops@example.com\"")
        .upstream("gone", &["http://127.0.0.1:9"])
        .route("path = \"/closed\"\ngroups = [\"ops\"]\nupstream = \"app\"")
        .route("path = \"/gone\"\nupstream = \"gone\"")
        .start();
    let url = format!("http://{}", gateway.address);
    let (_demo, demo) = demo();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
    std::fs::create_dir_all(&folder).unwrap();
    let mut visits = Vec::new();
    for (locale, scheme) in [("en-US", "light"), ("ko-KR", "dark")] {
        let looked_at = |name: &str| {
            let file = folder.join(format!("telephone-{locale}-{scheme}-{name}.png"));
            [json!(["sound"]), json!(["shoot", file.to_str().unwrap()])]
        };
        let list = [
            &[json!(["goto", format!("{url}/report")])][..],
            &looked_at("login"),
            &[json!(["login", "kim", "a wrong password"])],
            &looked_at("wrong-password"),
            &[log_in(), json!(["goto", format!("{url}/account")])],
            &looked_at("account"),
            &[json!(["goto", format!("{url}/closed")])],
            &looked_at("403"),
            &[json!(["click", "a.button"]), json!(["url", format!("{url}/logout?rd=%2Fclosed")])],
            &looked_at("logout"),
            &[json!(["goto", format!("{url}/gone")])],
            &looked_at("502"),
            &[json!(["goto", format!("{url}/logout")]), json!(["click", "button"])],
            &looked_at("signed-out"),
            &[json!(["goto", demo.url.clone()]), json!(["login", "admin", demo.password.clone()])],
            &looked_at("demo"),
        ]
        .concat();
        let viewport = json!({"width": 390, "height": 800});
        visits.push(json!({
            "label": format!("{locale} {scheme}"), "steps": list,
            "options": {"locale": locale, "colorScheme": scheme, "viewport": viewport, "bypassCSP": true},
        }));
    }
    visit(&visits);
}

struct Demo {
    url: String,
    password: String,
}

/// `doorward demo`, and what it said about itself.
fn demo() -> (Peer, Demo) {
    let port = free_port();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.keep().join("demo.log");
    let mut command = Command::new(crate::support::gateway::PROGRAM);
    command.args(["demo", "--listen", &format!("127.0.0.1:{port}")]);
    let peer = Peer::start(command, port, &log);
    let password = crate::support::wait::until_some("the demo's password", || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.lines().find_map(|line| Some(line.trim().strip_prefix("Password")?.split_whitespace().next()?.to_owned()))
    });
    (peer, Demo { url: format!("http://127.0.0.1:{port}/"), password })
}
