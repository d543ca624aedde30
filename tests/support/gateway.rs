//! A whole gateway: the built program with a folder, ports and users of its own.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::turn::Turn;
use super::upstream::Upstream;
use super::wait;
use super::wire::{Connection, Request, Response};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_doorward");

/// The HS256 secret of every gateway here. Made up for these tests.
pub(crate) const SECRET: &[u8] = b"a secret that only these tests use, 0123456789";

/// The password of every user here that is given no other.
pub(crate) const PASSWORD: &str = "correct horse 7 battery";

/// A port that nothing listens on. Below the range from which the system takes ports for outgoing connections.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 1000).unwrap() * 20;
    loop {
        let port = 11_000 + (start + NEXT.fetch_add(1, Ordering::SeqCst)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A bcrypt hash of the lowest cost, made once for each password.
pub(crate) fn hash(password: &str) -> String {
    static MADE: OnceLock<Mutex<HashMap<String, String>>> = OnceLock::new();
    let mut made = MADE.get_or_init(Mutex::default).lock().unwrap();
    made.entry(password.to_owned()).or_insert_with(|| bcrypt::hash(password, 4).unwrap()).clone()
}

/// Writes a file that only its owner can read.
pub(crate) fn write_private(path: &Path, contents: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(contents).unwrap();
}

/// The program with arguments, without any of this process's settings for it.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    command.env_remove("DOORWARD_CONFIG").env_remove("JWT_SECRET").env_remove("DOORWARD_STORE_URL");
    command.env("NO_COLOR", "1").env("LANG", "C.UTF-8");
    command.stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn run(arguments: &[&str]) -> Finished {
    Finished::of(program(arguments).output().unwrap())
}

/// Runs the program to its end with something on its standard input.
pub(crate) fn run_with_input(arguments: &[&str], input: &str) -> Finished {
    let mut child =
        program(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that refuses early does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Finished::of(child.wait_with_output().unwrap())
}

/// What a command came to.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program wrote something that is no UTF-8");
        Self { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Fails unless the exit status is this one.
    #[track_caller]
    pub(crate) fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A configuration in the making, and the users to begin with.
pub(crate) struct Builder {
    turn: Turn,
    folder: TempDir,
    top: BTreeMap<String, String>,
    sections: BTreeMap<String, BTreeMap<String, String>>,
    routes: String,
    users: Vec<Value>,
    environment: Vec<(String, String)>,
    port: u16,
    admin_port: u16,
}

impl Builder {
    /// With ports, a secret and a folder, and neither upstream nor route.
    pub(crate) fn new() -> Self {
        let turn = Turn::shared();
        let folder = tempfile::Builder::new().prefix("doorward-test-").tempdir().unwrap();
        let (port, admin_port) = (free_port(), free_port());
        let builder = Self {
            turn,
            top: BTreeMap::new(),
            sections: BTreeMap::new(),
            routes: String::new(),
            users: Vec::new(),
            environment: Vec::new(),
            port,
            admin_port,
            folder,
        };
        let secret = builder.folder.path().join("secret");
        write_private(&secret, SECRET);
        let data = builder.folder.path().join("data");
        builder
            .set("data_dir", &quoted(&data))
            .set("server.listen", &format!("[\"127.0.0.1:{port}\"]"))
            .set("server.workers", "2")
            .set("admin.listen", &format!("\"127.0.0.1:{admin_port}\""))
            .set("token.secret_file", &quoted(&secret))
            .set("login.bcrypt_cost", "4")
    }

    /// One upstream named `app` and one route to it that asks for a login; the user `kim` in the group `staff`.
    pub(crate) fn guarding(upstream: &Upstream) -> Self {
        Self::new().upstream("app", &[&upstream.url]).route("path = \"/\"\nupstream = \"app\"").user("kim", &["staff"])
    }

    /// Sets a key, such as `login.max_attempts`, to a TOML value.
    #[must_use]
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        if let Some((section, key)) = key.rsplit_once('.') {
            self.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
        } else {
            self.top.insert(key.to_owned(), value.to_owned());
        }
        self
    }

    /// Takes a key out again.
    #[must_use]
    pub(crate) fn unset(mut self, key: &str) -> Self {
        let (section, key) = key.rsplit_once('.').unwrap();
        self.sections.entry(section.to_owned()).or_default().remove(key);
        self
    }

    #[must_use]
    pub(crate) fn upstream(self, name: &str, urls: &[&str]) -> Self {
        let urls = serde_json::to_string(urls).unwrap();
        self.set(&format!("upstream.{name}.urls"), &urls)
    }

    /// Adds a `[[route]]` with these lines.
    #[must_use]
    pub(crate) fn route(mut self, lines: &str) -> Self {
        self.routes.push_str(&format!("\n[[route]]\n{lines}\n"));
        self
    }

    /// Adds a user with the usual password; the e-mail is `NAME@example.com`.
    #[must_use]
    pub(crate) fn user(self, name: &str, groups: &[&str]) -> Self {
        let email = format!("{name}@example.com");
        self.user_with(&json!({
            "username": name, "password_hash": hash(PASSWORD), "groups": groups, "email": email,
        }))
    }

    /// Adds a user as `user import --format json` reads one.
    #[must_use]
    pub(crate) fn user_with(mut self, account: &Value) -> Self {
        self.users.push(account.clone());
        self
    }

    /// Keeps everything in the PostgreSQL database at this URL.
    pub(crate) fn on_postgres(self, url: &str) -> Self {
        let file = self.folder().join("database");
        write_private(&file, url.as_bytes());
        self.set("store.kind", "\"postgres\"").set("store.url_file", &quoted(&file))
    }

    #[must_use]
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file's text.
    pub(crate) fn config(&self) -> String {
        let mut text = String::new();
        for (key, value) in &self.top {
            text.push_str(&format!("{key} = {value}\n"));
        }
        for (section, keys) in &self.sections {
            text.push_str(&format!("\n[{section}]\n"));
            for (key, value) in keys {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        text.push_str(&self.routes);
        text
    }

    /// Writes the file, brings the users in, and does not serve yet.
    pub(crate) fn prepare(self) -> Gateway {
        let path = self.folder.path().join("config.toml");
        write_private(&path, self.config().as_bytes());
        let gateway = Gateway {
            address: SocketAddr::from(([127, 0, 0, 1], self.port)),
            admin: SocketAddr::from(([127, 0, 0, 1], self.admin_port)),
            config: path,
            child: None,
            starts: 0,
            environment: self.environment,
            folder: self.folder,
            _turn: self.turn,
        };
        if !self.users.is_empty() {
            let users = gateway.folder.path().join("users.json");
            write_private(&users, Value::from(self.users).to_string().as_bytes());
            gateway.command(&["user", "import", users.to_str().unwrap(), "--format", "json"]).expect(0);
        }
        gateway
    }

    /// Serves, and waits until it says that it is ready.
    pub(crate) fn start(self) -> Gateway {
        let mut gateway = self.prepare();
        gateway.serve();
        gateway
    }
}

/// A TOML string of a path.
pub(crate) fn quoted(path: &Path) -> String {
    serde_json::to_string(path.to_str().unwrap()).unwrap()
}

/// A gateway, running or not; it is killed when it is dropped.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) config: PathBuf,
    child: Option<Child>,
    starts: usize,
    environment: Vec<(String, String)>,
    folder: TempDir,
    // Last, so that the next test begins when everything here has ended.
    _turn: Turn,
}

impl Gateway {
    pub(crate) fn guarding(upstream: &Upstream) -> Self {
        Builder::guarding(upstream).start()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts the program and does not wait for it.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.starts += 1;
        let file = |name: &str| File::options().create(true).append(true).open(self.folder.path().join(name)).unwrap();
        let mut command = program(&["serve", "--config", self.config.to_str().unwrap()]);
        command.stdout(file("stdout")).stderr(file("stderr"));
        command.envs(self.environment.iter().cloned());
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts the program with a pipe as its standard output that nobody reads unless the test does, and waits until it is
    /// ready.
    pub(crate) fn serve_into_a_pipe(&mut self) -> std::io::PipeReader {
        let (reader, writer) = std::io::pipe().unwrap();
        self.starts += 1;
        let errors = File::options().create(true).append(true).open(self.folder.path().join("stderr")).unwrap();
        let mut command = program(&["serve", "--config", self.config.to_str().unwrap()]);
        command.stdout(writer).stderr(errors).envs(self.environment.iter().cloned());
        self.child = Some(command.spawn().unwrap());
        self.wait_until_ready();
        reader
    }

    /// Starts the program and waits until `/ready` says yes.
    pub(crate) fn serve(&mut self) {
        self.spawn();
        self.wait_until_ready();
    }

    pub(crate) fn wait_until_ready(&mut self) {
        let admin = self.admin;
        wait::until("the gateway to be ready", || {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the gateway ended with {status}:\n{}", self.logs());
            }
            ready(admin) == Some(200)
        });
    }

    /// Starts a second process on the same configuration, waits until it serves, and ends the first.
    pub(crate) fn hand_over(&mut self) {
        const SERVES: &str = "\"message\":\"serving\"";
        let first = self.child.take().expect("it does not run");
        let before = self.logs().matches(SERVES).count();
        self.spawn();
        wait::until("the second process to serve", || {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the second process ended with {status}:\n{}", self.logs());
            }
            self.logs().matches(SERVES).count() > before
        });
        let second = self.child.replace(first);
        let ended = self.stop();
        assert!(ended.success(), "{ended}:\n{}", self.logs());
        self.child = second;
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.child.as_ref().expect("it does not run").id()
    }

    /// Sends a signal, such as `HUP`.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_raw(i32::try_from(self.process_id()).unwrap()).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it does not run");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, then waits for the end.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait_for_exit()
    }

    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it does not run");
        let status = wait::until_some("the gateway to end", || child.try_wait().unwrap());
        self.child = None;
        status
    }

    /// Both output files together.
    pub(crate) fn logs(&self) -> String {
        let read = |name: &str| {
            String::from_utf8_lossy(&fs::read(self.folder.path().join(name)).unwrap_or_default()).into_owned()
        };
        read("stdout") + &read("stderr")
    }

    /// The lines of the log that are objects of this `kind`: `access` or `audit`.
    pub(crate) fn log_lines(&self, kind: &str) -> Vec<Value> {
        self.logs()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["kind"] == kind)
            .collect()
    }

    /// The last access line of this path, once it is there.
    pub(crate) fn access_line(&self, path: &str) -> Value {
        let found = || self.log_lines("access").into_iter().rfind(|line| line["path"] == path);
        wait::until("the line of the access log", || found().is_some());
        found().unwrap()
    }

    /// The audit lines of one event.
    pub(crate) fn audit(&self, event: &str) -> Vec<Value> {
        self.log_lines("audit").into_iter().filter(|line| line["event"] == event).collect()
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::to(self.address)
    }

    /// One request on a connection of its own.
    pub(crate) fn send(&self, request: &Request) -> Response {
        self.connect().send(request)
    }

    pub(crate) fn get(&self, target: &str) -> Response {
        self.send(&Request::get(target))
    }

    pub(crate) fn get_with(&self, target: &str, token: &str) -> Response {
        self.send(&Request::get(target).cookie(token))
    }

    /// A request to the admin listener.
    pub(crate) fn get_admin(&self, target: &str) -> Response {
        Connection::to(self.admin).send(&Request::get(target))
    }

    pub(crate) fn try_login(&self, name: &str, password: &str) -> Response {
        self.send(&Request::post("/login").json(&json!({"username": name, "password": password})))
    }

    /// Logs in and gives back the token.
    #[track_caller]
    pub(crate) fn login(&self, name: &str) -> String {
        self.try_login(name, PASSWORD).expect(200).token().expect("no cookie came with the login")
    }

    /// Runs a command of the program on this configuration.
    pub(crate) fn command(&self, arguments: &[&str]) -> Finished {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--config", self.config.to_str().unwrap()]);
        Finished::of(program(&arguments).envs(self.environment.iter().cloned()).output().unwrap())
    }

    pub(crate) fn command_with_input(&self, arguments: &[&str], input: &str) -> Finished {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--config", self.config.to_str().unwrap()]);
        run_with_input(&arguments, input)
    }

    /// The account as `user show --json` gives it.
    pub(crate) fn account(&self, name: &str) -> Value {
        let shown = self.command(&["user", "show", name, "--json"]).expect(0).json();
        shown.as_array().map_or_else(|| shown.clone(), |accounts| accounts[0].clone())
    }

    /// The most memory that the process has ever held, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        status_line(self.process_id(), "VmHWM:") * 1024
    }

    /// The memory that the process holds now, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        status_line(self.process_id(), "VmRSS:") * 1024
    }

    /// The processor time that the process has used so far.
    pub(crate) fn processor_time(&self) -> Duration {
        // proc_pid_stat(5): the 14th and 15th fields, in hundredths of a second; the second one may hold spaces.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process_id())).unwrap();
        let mut fields = stat.rsplit(") ").next().unwrap().split(' ').skip(11);
        let mut next = || fields.next().unwrap().parse::<u64>().unwrap();
        Duration::from_millis((next() + next()) * 10)
    }

    /// How many files and sockets the process has open.
    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process_id())).unwrap().count()
    }

    /// Lets the running process open no more than so many files (prlimit(2)).
    pub(crate) fn limit_open_files(&self, count: u64) {
        let id = rustix::process::Pid::from_raw(i32::try_from(self.process_id()).unwrap()).unwrap();
        let limit = rustix::process::Rlimit { current: Some(count), maximum: Some(count) };
        rustix::process::prlimit(Some(id), rustix::process::Resource::Nofile, limit).unwrap();
    }

    /// Replaces the file's text.
    pub(crate) fn rewrite(&self, change: impl FnOnce(String) -> String) {
        let text = change(fs::read_to_string(&self.config).unwrap());
        // As an editor does it: a new file in the old one's place.
        let fresh = self.config.with_extension("new");
        write_private(&fresh, text.as_bytes());
        fs::rename(fresh, &self.config).unwrap();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let logs = self.logs();
        if std::thread::panicking() {
            let tail: Vec<&str> = logs.lines().rev().take(40).collect();
            eprintln!("--- the end of the gateway's log");
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        } else {
            // No test makes the program panic, whatever it sends.
            assert!(!logs.contains("panicked at"), "the gateway panicked:\n{logs}");
        }
    }
}

/// The status of `/ready`, where something answers.
pub(crate) fn ready(admin: SocketAddr) -> Option<u16> {
    let mut connection = Connection::try_to(admin).ok()?;
    connection.try_send(&Request::get("/ready").field("Connection", "close")).ok().map(|answer| answer.status)
}

/// A number from `/proc/ID/status`.
fn status_line(process: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
