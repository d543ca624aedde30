//! A real PostgreSQL: one private cluster for each test process, a database of its own for each test.
//!
//! The server runs on a random loopback port, as another user where this one is root (it refuses root), with its data in
//! a temporary folder. A shell stands between: it holds the other end of our pipe, so the server ends and its folder goes
//! with this process, however that ends.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tokio_postgres::{NoTls, SimpleQueryMessage};

/// The password of the superuser. Nothing but these tests knows this cluster.
pub(crate) const PASSWORD: &str = "a password for tests only";

/// A running server.
pub(crate) struct Cluster {
    folder: PathBuf,
    address: SocketAddr,
    programs: PathBuf,
    owner: Option<(u32, u32)>,
    /// The shell that ends the server; its standard input is what keeps it waiting.
    guard: Mutex<Option<(Child, ChildStdin)>>,
    settings: Vec<String>,
}

/// A database in a cluster.
pub(crate) struct Database<'c> {
    pub(crate) cluster: &'c Cluster,
    pub(crate) name: String,
}

impl Cluster {
    /// The one that this process's tests share.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&["max_connections = 100"]))
    }

    /// A new one, with these lines in its configuration. For tests that stop it or change what others would notice.
    pub(crate) fn start(settings: &[&str]) -> Self {
        let cluster = Self::prepare(settings);
        cluster.run();
        cluster
    }

    /// A new one that can encrypt, as `localhost`; with the certificate of its authority.
    pub(crate) fn start_encrypted() -> (Self, PathBuf) {
        let mut cluster = Self::prepare(&["ssl = on"]);
        let folder = cluster.folder.clone();
        let openssl = |arguments: &[&str]| {
            let made = Command::new("openssl").args(arguments).current_dir(&folder).output().unwrap();
            assert!(made.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&made.stderr));
        };
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let authority = ["req", "-x509", "-subj", "/CN=Authority", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt"];
        openssl(&[&authority[..], &key].concat());
        openssl(
            &[&["req", "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr"][..], &key].concat(),
        );
        fs::write(folder.join("extensions"), "subjectAltName=DNS:localhost\n").unwrap();
        let signed = ["x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
        openssl(&[&signed[..], &["-days", "2", "-extfile", "extensions", "-out", "server.crt"]].concat());
        for name in ["server.key", "server.crt"] {
            let path = folder.join(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            if let Some((user, group)) = cluster.owner {
                std::os::unix::fs::chown(&path, Some(user), Some(group)).unwrap();
            }
            let setting = if name.ends_with("key") { "ssl_key_file" } else { "ssl_cert_file" };
            cluster.settings.push(format!("{setting} = '{}'", path.display()));
        }
        cluster.run();
        (cluster, folder.join("ca.crt"))
    }

    /// A standby of this one, which streams all that happens here, and takes changes only when it is promoted.
    pub(crate) fn standby(&self) -> Self {
        let mut standby = Self::empty(&self.settings);
        let copied = as_owner(self.owner, &self.programs.join("pg_basebackup"))
            .env("PGPASSWORD", PASSWORD)
            .args(["--host", "127.0.0.1", "--port", &self.address.port().to_string(), "--username", "doorward"])
            .args(["--checkpoint", "fast", "--wal-method", "stream", "--no-sync", "--write-recovery-conf", "--pgdata"])
            .arg(standby.folder.join("data"))
            .output()
            .unwrap();
        assert!(copied.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&copied.stderr));
        // What --write-recovery-conf has written goes with our own configuration.
        standby.settings.push(format!(
            "primary_conninfo = 'host=127.0.0.1 port={} user=doorward password=''{PASSWORD}'' application_name=standby'",
            self.address.port()
        ));
        standby.run();
        standby
    }

    /// Makes a standby a primary, and waits until it is one.
    pub(crate) fn promote(&self) {
        assert_eq!(self.sql("postgres", "SELECT pg_promote(true, 60)"), [["t"]]);
    }

    /// A folder, a port and the programs.
    fn empty(settings: &[String]) -> Self {
        let owner = other_user();
        let folder = tempfile::Builder::new().prefix("doorward-postgres-").tempdir().unwrap().keep();
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(&folder, Some(user), Some(group)).unwrap();
        }
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        Self {
            programs: programs(&folder),
            folder,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            owner,
            guard: Mutex::new(None),
            settings: settings.to_vec(),
        }
    }

    fn prepare(settings: &[&str]) -> Self {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let cluster = Self::empty(&settings);
        let Self { folder, programs, owner, .. } = &cluster;
        let owner = *owner;
        let secret = folder.join("password");
        fs::write(&secret, PASSWORD).unwrap();
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(&secret, Some(user), Some(group)).unwrap();
        }
        let initdb = as_owner(owner, &programs.join("initdb"))
            .args(["--no-sync", "-A", "scram-sha-256", "-U", "doorward", "-E", "UTF8", "--locale=C"])
            .arg("--pwfile")
            .arg(&secret)
            .arg("-D")
            .arg(folder.join("data"))
            .output()
            .unwrap();
        assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        if let Ok(wanted) = std::env::var("DOORWARD_TEST_POSTGRES") {
            let made = fs::read_to_string(folder.join("data/PG_VERSION")).unwrap();
            assert_eq!(made.trim(), wanted, "another version than the one that is to be tested");
        }
        cluster
    }

    /// Starts the server and waits until it answers.
    pub(crate) fn run(&self) {
        let mut configuration = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nlogging_collector = off\n\
             shared_buffers = 32MB\nlog_min_messages = warning\n",
            self.address.port()
        );
        for line in &self.settings {
            configuration.push_str(line);
            configuration.push('\n');
        }
        fs::write(self.folder.join("data/postgresql.auto.conf"), configuration).unwrap();
        // The server in the background of a shell that waits for our end of the pipe.
        let script = r#""$1" -D "$2/data" >> "$2/log" 2>&1 < /dev/null & server=$!
            echo started; read -r word
            case $word in kill) kill -KILL $server;; *) kill -INT $server;; esac
            wait $server; case $word in keep | kill) ;; *) rm -rf "$2";; esac"#;
        let mut guard = as_owner(self.owner, Path::new("/bin/sh"))
            .args(["-c", script, "sh"])
            .arg(self.programs.join("postgres"))
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(guard.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pipe = guard.stdin.take().unwrap();
        *self.guard.lock().unwrap() = Some((guard, pipe));
        let mut tries = 0;
        while self.try_sql("postgres", "SELECT 1").is_err() {
            tries += 1;
            assert!(tries < 3000, "the database did not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops the server, as an operator in a hurry does: running statements are ended.
    pub(crate) fn stop(&self) {
        self.end("keep");
    }

    /// `kill -9`: it ends in the middle of whatever it does. What is left of it ends when it notices.
    pub(crate) fn kill(&self) {
        self.end("kill");
    }

    fn end(&self, how: &str) {
        if let Some((mut guard, mut pipe)) = self.guard.lock().unwrap().take() {
            writeln!(pipe, "{how}").unwrap();
            drop(pipe);
            guard.wait().unwrap();
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the server wrote to its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// An empty database.
    pub(crate) fn database(&self) -> Database<'_> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::SeqCst));
        self.sql("postgres", &format!("CREATE DATABASE {name} TEMPLATE template0"));
        Database { cluster: self, name }
    }

    /// Runs statements; the values of all rows, as text.
    #[track_caller]
    pub(crate) fn sql(&self, database: &str, sql: &str) -> Vec<Vec<String>> {
        self.try_sql(database, sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    fn try_sql(&self, database: &str, sql: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
        // On a thread of its own: a caller may be inside a runtime.
        std::thread::scope(|scope| scope.spawn(|| self.run_sql(database, sql)).join().unwrap())
    }

    fn run_sql(&self, database: &str, sql: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut config = tokio_postgres::Config::new();
            config.host("127.0.0.1").port(self.address.port()).user("doorward").password(PASSWORD).dbname(database);
            config.connect_timeout(Duration::from_secs(5));
            let (client, connection) = config.connect(NoTls).await?;
            let connection = tokio::spawn(connection);
            let messages = client.simple_query(sql).await;
            drop(client);
            let _ = connection.await;
            let rows = messages?.into_iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
                }
                _ => None,
            });
            Ok(rows.collect())
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Database<'_> {
    pub(crate) fn url(&self) -> String {
        self.url_at(self.cluster.address)
    }

    /// The same database by another way, such as a proxy.
    pub(crate) fn url_at(&self, address: SocketAddr) -> String {
        self.url_at_any(&[address])
    }

    /// The same database at whichever of several servers takes changes, as an operator writes it.
    pub(crate) fn url_at_any(&self, addresses: &[SocketAddr]) -> String {
        let password = PASSWORD.replace(' ', "%20");
        let places: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let attributes = if addresses.len() > 1 { "?target_session_attrs=read-write" } else { "" };
        format!("postgresql://doorward:{password}@{}/{}{attributes}", places.join(","), self.name)
    }

    #[track_caller]
    pub(crate) fn sql(&self, sql: &str) -> Vec<Vec<String>> {
        self.cluster.sql(&self.name, sql)
    }

    /// The one number that a statement comes to.
    #[track_caller]
    pub(crate) fn number(&self, sql: &str) -> i64 {
        self.sql(sql)[0][0].parse().unwrap()
    }
}

/// The newest version that Debian's packages have installed; or the one that `DOORWARD_TEST_POSTGRES` names (`13`, `18`),
/// which `tests/run` installs. That one is copied to the cluster's folder, for its user may not reach ours.
fn programs(folder: &Path) -> PathBuf {
    if let Ok(version) = std::env::var("DOORWARD_TEST_POSTGRES") {
        let npm = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.cache/npm/node_modules");
        let native = npm.join(format!("postgres-{version}/native"));
        assert!(
            native.join("bin/postgres").exists(),
            "{} is not there: run tests/run, which installs it",
            native.display()
        );
        let copied = Command::new("cp").arg("-R").arg(&native).arg(folder.join("programs")).status().unwrap();
        assert!(copied.success());
        let opened = Command::new("chmod").args(["-R", "a+rX"]).arg(folder.join("programs")).status().unwrap();
        assert!(opened.success());
        // The shell that removes the folder at the end is that user's.
        if let Some((user, group)) = other_user() {
            let owner = format!("{user}:{group}");
            let given = Command::new("chown").arg("-R").arg(owner).arg(folder.join("programs")).status().unwrap();
            assert!(given.success());
        }
        return folder.join("programs/bin");
    }
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let bin = entry.path().join("bin");
            let version = entry.file_name().to_str()?.parse().ok()?;
            bin.join("postgres").exists().then_some((version, bin))
        })
        .collect();
    found.sort();
    found.pop().expect("these tests need a PostgreSQL: apt-get install postgresql").1
}

/// Whom to become where this process is root: the owner that the package made.
fn other_user() -> Option<(u32, u32)> {
    let myself = fs::metadata("/proc/self").unwrap().uid();
    if myself != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let of = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2).map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    Some(of("postgres").or_else(|| of("nobody")).expect("no user to run the database as"))
}

fn as_owner(owner: Option<(u32, u32)>, program: &Path) -> Command {
    let mut command = match owner {
        None => Command::new(program),
        Some((user, group)) => {
            let mut command = Command::new("setpriv");
            command
                .args([&format!("--reuid={user}"), &format!("--regid={group}"), "--clear-groups", "--"])
                .arg(program);
            command
        }
    };
    // It must not stand in a folder that the other user can't enter.
    command.current_dir("/").env("LC_ALL", "C");
    command
}
