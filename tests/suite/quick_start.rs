//! `doorward protect` and `doorward demo`: a login with no configuration file.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};

use serde_json::{Value, json};

use crate::support::gateway::{free_port, program, run, run_with_input};
use crate::support::turn::Turn;
use crate::support::{Connection, PASSWORD, Request, Response, Upstream, wait};

/// A running `protect` or `demo`; it is killed when it is dropped.
struct Running {
    child: Child,
    address: SocketAddr,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Starts it on a port and waits until it says how to log in. What it writes goes into `notes`.
    fn start(arguments: &[&str], port: u16, notes: &Path) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let (stdout, stderr) = (notes.join("stdout"), notes.join("stderr"));
        let listen = address.to_string();
        let mut command = program(&[arguments, &["--listen", &listen]].concat());
        command.env("TMPDIR", notes).current_dir(notes);
        command.stdout(File::create(&stdout).unwrap()).stderr(File::create(&stderr).unwrap());
        let mut running = Self { child: command.spawn().unwrap(), address, stdout, stderr };
        wait::until("the words for the person at the terminal", || {
            if let Some(status) = running.child.try_wait().unwrap() {
                panic!("it ended with {status}:\n{}", running.stderr());
            }
            running.stderr().contains("More users:")
        });
        running
    }

    fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap()
    }

    fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    /// The password that was printed, which must be there once and on standard error only.
    fn password(&self) -> Option<String> {
        let text = self.stderr();
        let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix("Password"));
        let password = lines.next()?.split_whitespace().next().unwrap().to_owned();
        assert_eq!(text.matches(&password).count(), 1, "{text}");
        assert!(!self.stdout().contains(&password), "the password is in the log");
        Some(password)
    }

    fn send(&self, request: &Request) -> Response {
        Connection::to(self.address).send(request)
    }

    fn login(&self, name: &str, password: &str) -> Response {
        self.send(&Request::post("/login").json(&json!({"username": name, "password": password})))
    }

    /// SIGTERM, then waits for the end.
    fn stop(mut self) -> ExitStatus {
        let id = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        wait::until_some("the end", || self.child.try_wait().unwrap())
    }

    /// The TCP ports that the process listens on, by what the kernel says. A port can have a socket for each worker.
    fn listening(&self) -> BTreeSet<u16> {
        let sockets: Vec<String> = fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
            .collect();
        ["tcp", "tcp6"]
            .iter()
            .flat_map(|table| {
                let text = fs::read_to_string(format!("/proc/{}/net/{table}", self.child.id())).unwrap_or_default();
                text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
            })
            .filter_map(|line| {
                let columns: Vec<&str> = line.split_whitespace().collect();
                // 0A: it listens (include/net/tcp_states.h); the tenth column is the socket's inode.
                let ours = columns[3] == "0A" && sockets.iter().any(|socket| socket == columns[9]);
                let port = columns[1].rsplit(':').next().unwrap();
                ours.then(|| u16::from_str_radix(port, 16).unwrap())
            })
            .collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let text = self.stdout() + &self.stderr();
        if std::thread::panicking() {
            eprintln!("--- what it wrote\n{text}");
        } else {
            assert!(!text.contains("panicked at"), "it panicked:\n{text}");
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn protect_needs_nothing_but_a_url() {
    let _turn = Turn::shared();
    let upstream = Upstream::plain();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let place = data.to_str().unwrap();
    let port = free_port();
    let protect = ["protect", &upstream.url, "--data", place, "--public", "/open"];
    let running = Running::start(&protect, port, folder.path());

    let password = running.password().expect("no password was printed");
    assert!(password.len() >= 20, "{password}");
    assert!(running.stderr().contains(&upstream.url) && running.stderr().contains("admin"));
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join("secret")), 0o600);
    assert_eq!(mode(&data.join("config.toml")), 0o600);
    let secret = fs::read_to_string(data.join("secret")).unwrap();
    assert!(secret.trim().len() >= 32);
    let config = fs::read_to_string(data.join("config.toml")).unwrap();
    assert!(!config.contains(secret.trim()), "the secret is in the configuration");
    run(&["check-config", "--data", place]).expect(0);

    assert_eq!(running.listening(), BTreeSet::from([port]), "more than the login listens");
    running.send(&Request::get("/")).expect(401);
    running.send(&Request::get("/open")).expect(200);
    running.login("admin", "wrong password").expect(401);
    // Over plain HTTP, as on a machine of one's own.
    let answer = running.login("admin", &password).expect(200);
    assert!(answer.all("set-cookie").iter().all(|cookie| !cookie.contains("Secure")), "{answer:?}");
    let token = answer.token().unwrap();
    running.send(&Request::get("/x").cookie(&token)).expect(200);
    assert_eq!(upstream.last().field("x-forwarded-preferred-username").as_deref(), Some("admin"));

    // Account commands go to the running server.
    run_with_input(&["user", "add", "kim", "--password-stdin", "--data", place], PASSWORD).expect(0);
    let kim = running.login("kim", PASSWORD).expect(200).token().unwrap();
    assert_eq!(running.stop().code(), Some(0));

    // The second run knows everything from the first.
    let running = Running::start(&protect, port, folder.path());
    assert_eq!(running.password(), None);
    assert!(!running.stderr().contains(&password) && !running.stdout().contains(&password));
    for token in [&token, &kim] {
        running.send(&Request::get("/x").cookie(token)).expect(200);
    }
    running.login("admin", &password).expect(200);
    assert_eq!(fs::read_to_string(data.join("secret")).unwrap(), secret);
    let listed = run(&["user", "list", "--json", "--data", place]).expect(0).json();
    let names: Vec<&Value> = listed.as_array().unwrap().iter().map(|account| &account["username"]).collect();
    assert_eq!(names, ["admin", "kim"]);
    assert_eq!(running.stop().code(), Some(0));

    // Another URL, while nobody has changed the file.
    let other = Upstream::plain();
    let running = Running::start(&["protect", &other.url, "--data", place], port, folder.path());
    running.send(&Request::get("/x").cookie(&token)).expect(200);
    assert_eq!(other.count(), 1);
    running.send(&Request::get("/open")).expect(401);
    assert_eq!(running.stop().code(), Some(0));
}

#[test]
fn a_file_that_somebody_changed_is_left_alone() {
    let _turn = Turn::shared();
    let upstream = Upstream::plain();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let place = data.to_str().unwrap();
    let port = free_port();
    let protect = ["protect", &upstream.url, "--data", place];
    let running = Running::start(&protect, port, folder.path());
    let token = running.login("admin", &running.password().unwrap()).expect(200).token().unwrap();
    assert_eq!(running.stop().code(), Some(0));

    let file = data.join("config.toml");
    let changed = fs::read_to_string(&file).unwrap() + "\n[[route]]\npath = \"/mine\"\nupstream = \"app\"\n";
    fs::write(&file, &changed).unwrap();
    let listen = format!("127.0.0.1:{port}");
    for url in [&upstream.url[..], "http://127.0.0.1:1"] {
        let refused = run(&["protect", url, "--data", place, "--listen", &listen]).expect(2);
        assert!(refused.stderr.contains("config.toml") && refused.stderr.contains("serve --data"), "{refused:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), changed);
    }
    // As it says, `serve` goes on from there.
    let serve = program(&["serve", "--data", place]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut running = Running {
        child: serve,
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        stdout: folder.path().join("stdout"),
        stderr: folder.path().join("stderr"),
    };
    wait::until("the server", || {
        assert!(running.child.try_wait().unwrap().is_none(), "it ended");
        Connection::try_to(running.address).is_ok()
    });
    running.send(&Request::get("/mine").cookie(&token)).expect(200);
    assert_eq!(running.stop().code(), Some(0));
}

#[test]
fn protect_without_a_folder_makes_one_here() {
    let _turn = Turn::shared();
    let upstream = Upstream::plain();
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(&["protect", &upstream.url], free_port(), folder.path());
    assert_eq!(mode(&folder.path().join("doorward-data")), 0o700);
    running.login("admin", &running.password().unwrap()).expect(200);
    assert_eq!(running.stop().code(), Some(0));
}

#[test]
fn protect_refuses_what_it_can_not_use() {
    let _turn = Turn::shared();
    let folder = tempfile::tempdir().unwrap();
    let listen = format!("127.0.0.1:{}", free_port());
    for url in ["ftp://127.0.0.1/", "not a url", "", "http://"] {
        let data = folder.path().join("data");
        let refused = run(&["protect", url, "--data", data.to_str().unwrap(), "--listen", &listen]).expect(2);
        assert!(!refused.stderr.contains("Password"), "{url:?}: {}", refused.stderr);
    }
    run(&["protect", "http://127.0.0.1:1", "--listen", "nowhere", "--data", folder.path().to_str().unwrap()]).expect(2);
    run(&["protect", "http://127.0.0.1:1", "--config", "config.toml"]).expect(2);
    run(&["protect"]).expect(2);
}

#[test]
fn the_demo_greets_by_name_and_leaves_nothing_behind() {
    let _turn = Turn::shared();
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(&["demo"], free_port(), folder.path());
    let left = || -> Vec<String> {
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap());
        names.filter(|name| name != "stdout" && name != "stderr").collect()
    };
    let made = left();
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(mode(&folder.path().join(&made[0])), 0o700);
    let password = running.password().expect("no password was printed");
    assert_eq!(running.send(&Request::get("/").navigation()).expect(303).field("location").unwrap(), "/login?rd=%2F");
    let token = running.login("admin", &password).expect(200).token().unwrap();
    let page = running.send(&Request::get("/").cookie(&token).navigation()).expect(200).text();
    assert!(page.contains("Hello, admin"), "{page}");
    assert!(page.contains("x-forwarded-preferred-username"), "{page}");
    assert!(!page.contains(&token), "the token reached the backend");
    assert_eq!(running.stop().code(), Some(0));
    assert_eq!(left(), Vec::<String>::new());
}
