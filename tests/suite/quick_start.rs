//! `doorward protect` and `doorward demo`: a login with no configuration file.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};

use serde_json::{Value, json};

use crate::support::gateway::{Finished, free_port, program, run, run_with_input};
use crate::support::peer::{Peer, node, of_tests};
use crate::support::turn::Turn;
use crate::support::{Connection, Gateway, PASSWORD, Request, Response, Upstream, reply, wait};

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
        Self::start_at(arguments, &SocketAddr::from(([127, 0, 0, 1], port)).to_string(), port, notes)
    }

    /// The same, with the listener as a person types it.
    fn start_at(arguments: &[&str], listen: &str, port: u16, notes: &Path) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let (stdout, stderr) = (notes.join("stdout"), notes.join("stderr"));
        let mut command = program(&[arguments, &["--listen", listen]].concat());
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

    /// Where the login's own pages stand, by what it said.
    fn prefix(&self) -> String {
        let text = self.stderr();
        let said = text.split_once("pages are below ").map(|(_, rest)| rest.split(',').next().unwrap().to_owned());
        said.unwrap_or_default()
    }

    fn login(&self, name: &str, password: &str) -> Response {
        let login = format!("{}/login", self.prefix());
        self.send(&Request::post(&login).json(&json!({"username": name, "password": password})))
    }

    fn get(&self, target: &str, token: &str) -> Response {
        // Real applications send fields of their own.
        Connection::to(self.address).with_any_field().send(&Request::get(target).field("Cookie", token))
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

/// The cookie that a login gave, as a browser sends it back.
fn token(answer: &Response) -> Option<String> {
    let cookies = answer.all("set-cookie");
    let mut pairs = cookies.iter().filter_map(|cookie| cookie.split(';').next());
    pairs.rfind(|pair| pair.starts_with("access_token") && !pair.ends_with('=')).map(str::to_owned)
}

/// A command as it was printed, in a shell that finds the program by its name.
fn shell(folder: &Path, command: &str) -> Finished {
    let program = Path::new(env!("CARGO_BIN_EXE_doorward")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", command]).current_dir(folder).env("PATH", path).env_remove("DOORWARD_CONFIG");
    Finished::of(shell.output().unwrap())
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
    let admin = token(&answer).unwrap();
    running.get("/x", &admin).expect(200);
    assert_eq!(upstream.last().field("x-forwarded-preferred-username").as_deref(), Some("admin"));

    // Account commands go to the running server.
    run_with_input(&["user", "add", "kim", "--password-stdin", "--data", place], PASSWORD).expect(0);
    let kim = token(&running.login("kim", PASSWORD).expect(200)).unwrap();
    assert_eq!(running.stop().code(), Some(0));

    // The second run knows everything from the first.
    let running = Running::start(&protect, port, folder.path());
    assert_eq!(running.password(), None);
    assert!(!running.stderr().contains(&password) && !running.stdout().contains(&password));
    for token in [&admin, &kim] {
        running.get("/x", token).expect(200);
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
    running.get("/x", &admin).expect(200);
    assert_eq!(other.last().target, "/x");
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
    let token = token(&running.login("admin", &running.password().unwrap()).expect(200)).unwrap();
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
    running.get("/mine", &token).expect(200);
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
fn protect_refuses_what_it_can_not_use_in_words_about_its_arguments_and_leaves_nothing() {
    let _turn = Turn::shared();
    let folder = tempfile::tempdir().unwrap();
    let listen = format!("127.0.0.1:{}", free_port());
    let data = folder.path().join("deep/data");
    let place = data.to_str().unwrap();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = held.local_addr().unwrap().to_string();
    let app = "http://127.0.0.1:1";
    // What was typed, the status, and what it must speak of.
    let refused: &[(&[&str], i32, &str)] = &[
        (&["ftp://127.0.0.1/"], 2, "URL: "),
        (&["not a url"], 2, "URL: "),
        (&[""], 2, "URL: "),
        (&["http://"], 2, "URL: "),
        (&["http://127.0.0.1:9000/app"], 2, "leave it out: http://127.0.0.1:9000"),
        (&["localhost:99999"], 2, "\"99999\" is no port"),
        (&[app, "--listen", "nowhere"], 2, "--listen nowhere"),
        (&[app, "--listen", "99999"], 2, "--listen 99999"),
        (&[app, "--listen", &in_use], 1, "another process listens there"),
        (&[app, "--listen", "203.0.113.77:8080"], 1, "no address of this machine"),
        (&[app, "--public", "open"], 2, "--public /open"),
        (&[app, "--public", "/"], 2, "--public /"),
        (&[app, "--public", "/a/*"], 2, "write --public /a"),
        (&[app, "--prefix", "/a b"], 2, "--prefix /a b"),
        (&[app, "--config", "config.toml"], 2, "--config"),
        (&[], 2, "URL"),
    ];
    for (arguments, status, words) in refused {
        let mut all = vec!["protect"];
        all.extend(*arguments);
        if !arguments.contains(&"--listen") {
            all.extend(["--listen", &listen]);
        }
        if !arguments.contains(&"--config") {
            all.extend(["--data", place]);
        }
        let told = run(&all).expect(*status);
        assert!(told.stderr.contains(words), "{arguments:?}: {}", told.stderr);
        for foreign in ["config.toml:", "upstream.app", "server.listen", "route.path", "Password"] {
            assert!(!told.stderr.contains(foreign), "{arguments:?} speaks of {foreign}: {}", told.stderr);
        }
        assert!(!folder.path().join("deep").exists(), "{arguments:?} has left something");
    }
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    let told = run(&["protect", app, "--listen", &listen, "--data", file.to_str().unwrap()]).expect(2);
    assert!(told.stderr.contains("--data: ") && told.stderr.contains("is a file"), "{told:?}");
}

#[test]
fn protect_takes_what_a_person_types_and_says_what_it_found() {
    let _turn = Turn::shared();
    let upstream = Upstream::plain();
    let app = upstream.url.strip_prefix("http://").unwrap();
    let app_port = app.rsplit_once(':').unwrap().1.to_owned();
    for typed in [app.to_owned(), format!(":{app_port}"), app_port.clone(), format!("localhost:{app_port}/")] {
        let folder = tempfile::tempdir().unwrap();
        let running = Running::start(&["protect", &typed], free_port(), folder.path());
        let cookie = token(&running.login("admin", &running.password().unwrap()).expect(200)).unwrap();
        running.get("/x", &cookie).expect(200);
        // It answers everything, so it may have a login of its own.
        assert_eq!(running.prefix(), "/_auth", "{}", running.stderr());
        assert!(!running.stderr().contains("Nothing answers") && !running.stderr().contains("Warning"));
        running.get("/login", &cookie).expect(200);
        assert_eq!(upstream.last().target, "/login");
        // The commands that it names work as they stand.
        let hint =
            running.stderr().lines().find_map(|line| line.trim().strip_prefix("More users: ").map(str::to_owned));
        let hint = hint.unwrap().replace("user add kim", "user add kim --generate");
        shell(folder.path(), &hint).expect(0);
        shell(folder.path(), "doorward user list").expect(0);
        assert_eq!(running.stop().code(), Some(0));
    }
    // A port alone is this machine; a colon before it is the network, which is said, with the addresses.
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut running = Running::start_at(&["protect", "127.0.0.1:1"], &format!(":{port}"), port, folder.path());
    let told = running.stderr();
    assert!(told.contains("Nothing answers at http://127.0.0.1:1") && told.contains("without TLS"), "{told}");
    assert!(told.contains(&format!("http://localhost:{port}/")), "{told}");
    assert_eq!(running.prefix(), "/_auth");
    running.child.kill().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let running = Running::start_at(&["protect", "127.0.0.1:1"], &port.to_string(), port, folder.path());
    assert!(!running.stderr().contains("without TLS"), "{}", running.stderr());
}

#[test]
fn an_application_without_pages_of_those_names_has_the_login_at_its_root_and_a_folder_keeps_its_ways() {
    let _turn = Turn::shared();
    let files = tempfile::tempdir().unwrap();
    fs::write(files.path().join("notes.txt"), "hello").unwrap();
    let app_port = free_port();
    let mut listing = std::process::Command::new("python3")
        .args(["-m", "http.server", &app_port.to_string(), "--bind", "127.0.0.1"])
        .current_dir(files.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait::until("the directory listing", || Connection::try_to(([127, 0, 0, 1], app_port).into()).is_ok());
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(&["protect", &app_port.to_string()], free_port(), folder.path());
    assert_eq!(running.prefix(), "", "{}", running.stderr());
    let password = running.password().unwrap();
    let cookie = token(&running.login("admin", &password).expect(200)).unwrap();
    assert!(running.get("/", &cookie).expect(200).text().contains("notes.txt"));
    assert_eq!(running.get("/notes.txt", &cookie).expect(200).text(), "hello");
    running.send(&Request::get("/notes.txt")).expect(401);
    let config = fs::read_to_string(folder.path().join("doorward-data/config.toml")).unwrap();
    assert_eq!(running.stop().code(), Some(0));
    listing.kill().unwrap();
    listing.wait().unwrap();
    // Nothing answers by now, but the folder's people know where the login is, and hold its cookie.
    let running = Running::start(&["protect", &app_port.to_string(), "--public", "/x"], free_port(), folder.path());
    assert_eq!(running.prefix(), "");
    let again = fs::read_to_string(folder.path().join("doorward-data/config.toml")).unwrap();
    let name = |text: &str| text.lines().find(|line| line.starts_with("name = ")).map(str::to_owned).unwrap();
    assert_eq!(name(&again), name(&config));
    running.get("/account", &cookie).expect(200);
    assert_eq!(running.stop().code(), Some(0));
    // Asked for, it moves.
    let running = Running::start(&["protect", "1", "--prefix", "_auth"], free_port(), folder.path());
    assert_eq!(running.prefix(), "/_auth");
    running.get("/_auth/account", &cookie).expect(200);
}

#[test]
fn two_of_them_on_one_host_do_not_disturb_each_other() {
    let _turn = Turn::shared();
    let upstreams = [Upstream::plain(), Upstream::plain()];
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let both: Vec<Running> = (0..2)
        .map(|index| Running::start(&["protect", &upstreams[index].url], free_port(), folders[index].path()))
        .collect();
    // One jar, for browsers keep cookies by host and not by port.
    let mut jar: Vec<(String, String)> = Vec::new();
    let keep = |answer: &Response, jar: &mut Vec<(String, String)>| {
        for line in answer.all("set-cookie") {
            let (name, value) = line.split(';').next().unwrap().split_once('=').unwrap();
            jar.retain(|(known, _)| known != name);
            if !value.is_empty() {
                jar.push((name.to_owned(), value.to_owned()));
            }
        }
    };
    let shown = |jar: &[(String, String)]| {
        jar.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
    };
    for running in &both {
        keep(&running.send(&Request::get("/").navigation().field("Cookie", &shown(&jar))), &mut jar);
        let login = Request::post(&format!("{}/login", running.prefix())).field("Cookie", &shown(&jar));
        let account = json!({"username": "admin", "password": running.password().unwrap()});
        keep(&running.send(&login.json(&account)).expect(200), &mut jar);
    }
    for _ in 0..2 {
        for running in &both {
            let answer = running.send(&Request::get("/x").field("Cookie", &shown(&jar))).expect(200);
            keep(&answer, &mut jar);
        }
    }
    assert_eq!(jar.len(), 2, "{jar:?}");
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
    let token = token(&running.login("admin", &password).expect(200)).unwrap();
    let page = running.send(&Request::get("/").field("Cookie", &token).navigation()).expect(200).text();
    assert!(page.contains("Hello, admin"), "{page}");
    assert!(page.contains("x-forwarded-preferred-username"), "{page}");
    assert!(!page.contains(&token), "the token reached the backend");
    assert_eq!(running.stop().code(), Some(0));
    assert_eq!(left(), Vec::<String>::new());
}

/// A browser's jar, by curl: follows nothing, keeps cookies.
struct Jar {
    file: PathBuf,
    base: String,
}

impl Jar {
    /// The status, where it leads to, and the body.
    fn ask(&self, target: &str, form: &[(&str, &str)]) -> (u16, String, String) {
        let url = format!("{}{target}", self.base);
        let mut command = std::process::Command::new("curl");
        command.args(["--silent", "--max-time", "60", "--cookie"]).arg(&self.file).arg("--cookie-jar").arg(&self.file);
        command.args(["--header", "Sec-Fetch-Mode: navigate", "--header", "Accept: text/html"]);
        command.args(["--header", "Sec-Fetch-Site: same-origin", "--header", &format!("Origin: {}", self.base)]);
        for (name, value) in form {
            command.args(["--data-urlencode", &format!("{name}={value}")]);
        }
        let output = command.args(["--write-out", "\n%{http_code} %{redirect_url}", &url]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, end) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{url}: {output:?}"));
        let (status, to) = end.split_once(' ').unwrap();
        (status.parse().unwrap(), to.strip_prefix(&self.base).unwrap_or(to).to_owned(), body.to_owned())
    }

    /// Goes on until something is no redirect.
    fn open(&self, target: &str) -> (u16, String, String) {
        let mut at = target.to_owned();
        for _ in 0..10 {
            let (status, to, body) = self.ask(&at, &[]);
            if !(300..400).contains(&status) {
                return (status, at, body);
            }
            at = to;
        }
        panic!("{target} leads in a circle");
    }
}

/// `protect` as it comes in front of an application, and a browser that has logged in there.
fn signed_in(app: u16, folder: &Path) -> (Running, Jar) {
    let running = Running::start(&["protect", &app.to_string()], free_port(), folder);
    let jar = Jar { file: folder.join("jar"), base: format!("http://{}", running.address) };
    let (_, form, _) = jar.ask("/deep/page?x=1", &[]);
    assert!(form.starts_with(&format!("{}/login?rd=", running.prefix())), "{form}");
    let password = running.password().unwrap();
    let (status, to, body) = jar.ask(&form, &[("username", "admin"), ("password", &password)]);
    assert_eq!((status, &*to), (303, "/deep/page?x=1"), "{body}");
    (running, jar)
}

#[test]
fn jupyterlab_with_a_token_and_a_login_of_its_own_is_reached_behind_it() {
    let _turn = Turn::shared();
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = std::process::Command::new(of_tests(".cache/venv/bin/jupyter-lab"));
    command.args(["--no-browser", "--allow-root", "--ip", "127.0.0.1", "--IdentityProvider.token=a-token-of-its-own"]);
    command.args(["--port", &port.to_string(), "--ServerApp.port_retries=0"]).current_dir(folder.path());
    for variable in ["HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"] {
        command.env(variable, folder.path());
    }
    let jupyter = Peer::start(command, port, &folder.path().join("jupyter.log"));
    let (running, jar) = signed_in(jupyter.port, folder.path());
    assert_eq!(running.prefix(), "/_auth");
    let (status, at, page) = jar.open("/lab");
    assert_eq!((status, &*at), (200, "/login?next=%2Flab"), "{page}");
    let (_, rest) = page.split_once("name=\"_xsrf\" value=\"").unwrap_or_else(|| panic!("{page}"));
    let xsrf = rest.split('"').next().unwrap();
    let (status, to, page) = jar.ask(&at, &[("_xsrf", xsrf), ("password", "a-token-of-its-own")]);
    assert_eq!((status, &*to), (302, "/lab"), "{page}");
    let (status, _, page) = jar.open("/lab");
    assert!(status == 200 && page.contains("<title>JupyterLab"), "{page}");
    assert!(jar.open("/_auth/account").2.contains("admin"));
}

#[test]
fn php_with_a_session_and_koa_are_reached_behind_it() {
    let _turn = Turn::shared();
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("index.php"),
        "<?php session_start(); $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1; \
         echo $_SERVER['HTTP_X_FORWARDED_PREFERRED_USERNAME'], ' ', $_SESSION['n'];",
    )
    .unwrap();
    let port = free_port();
    let mut command = std::process::Command::new("php");
    command.args(["-d", &format!("session.save_path={}", folder.path().display())]);
    command.args(["-S", &format!("127.0.0.1:{port}"), "index.php"]).current_dir(folder.path());
    let php = Peer::start(command, port, &folder.path().join("php.log"));
    let (running, jar) = signed_in(php.port, folder.path());
    let shown: Vec<String> = (0..2).map(|_| jar.open("/count").2).collect();
    assert_eq!(shown, ["admin 1", "admin 2"], "{}", running.stderr());
    drop(running);

    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = node("peers/app.js");
    command.arg(port.to_string()).env("JWT_SECRET", "0123456789abcdef0123456789abcdef");
    let koa = Peer::start(command, port, &folder.path().join("koa.log"));
    let (running, jar) = signed_in(koa.port, folder.path());
    let (status, _, page) = jar.open("/any");
    let seen: Value = serde_json::from_str(&page).unwrap_or_else(|error| panic!("{error}: {page}"));
    assert_eq!((status, &seen["headers"]["x-forwarded-preferred-username"]), (200, &json!("admin")));
    assert_eq!(seen["token"], false);
    assert!(!page.contains("access_token"), "{page}");
    drop(running);
}

#[test]
fn a_backend_that_redirects_to_a_page_of_ours_is_told_of_once() {
    let upstream = Upstream::start(|request, wire| {
        let to = if request.target == "/elsewhere" { "https://other.test/login" } else { "login?next=/x" };
        reply(wire, 302, &[("Location", to)], b"")
    });
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    gateway.get_with("/elsewhere", &token).expect(302);
    assert!(!gateway.logs().contains("in a circle"), "{}", gateway.logs());
    for _ in 0..3 {
        gateway.get_with("/x", &token).expect(302);
    }
    wait::until("the warning", || gateway.logs().contains("portal.prefix"));
    assert_eq!(gateway.logs().matches("led in a circle").count(), 1, "{}", gateway.logs());
}
