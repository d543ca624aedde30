//! Several gateways on one PostgreSQL: one login for all, revoked everywhere, and nothing lost when parts fail.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::gateway::{quoted, ready, write_private};
use crate::support::postgres::{Cluster, Database};
use crate::support::token::{self, DAY};
use crate::support::turn::Turn;
use crate::support::wait::{self, until};
use crate::support::wire::Reader;
use crate::support::{Builder, Gateway, PASSWORD, Request, SECRET, Upstream};

/// A gateway to be, on this database.
fn on(url: &str, upstream: &Upstream) -> Builder {
    Builder::new().upstream("app", &[&upstream.url]).route("path = \"/\"\nupstream = \"app\"").on_postgres(url)
}

/// Gateways on one database, with the users `kim` (`staff`) and `lee`.
fn replicas(count: usize, database: &Database<'_>, upstream: &Upstream) -> Vec<Gateway> {
    let mut replicas = vec![on(&database.url(), upstream).user("kim", &["staff"]).user("lee", &[]).start()];
    replicas.extend((1..count).map(|_| on(&database.url(), upstream).start()));
    replicas
}

/// The codes of the reasons on `/ready`.
fn reasons(gateway: &Gateway) -> Vec<String> {
    let answer = gateway.get_admin("/ready").json();
    answer["reasons"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap().to_owned()).collect()
}

fn says(gateway: &Gateway, code: &str) -> bool {
    reasons(gateway).iter().any(|said| said == code)
}

fn logout(gateway: &Gateway, token: &str) {
    gateway.send(&Request::post("/logout").cookie(token)).expect(204);
}

/// How long a call took, and what came.
fn timed<T>(call: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = call();
    (start.elapsed(), result)
}

#[test]
fn a_login_on_one_is_valid_on_all_and_a_logout_anywhere_ends_it() {
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let replicas = replicas(3, &database, &upstream);
    let token = replicas[0].login("kim");
    for replica in &replicas {
        replica.get_with("/", &token).expect(200);
    }
    assert_eq!(upstream.last().field("x-forwarded-user").as_deref(), Some("kim"));
    logout(&replicas[2], &token);
    replicas[2].get_with("/", &token).expect(401);
    for replica in &replicas[..2] {
        until("the logout to arrive", || replica.get_with("/", &token).status == 401);
    }
    // Groups: read again everywhere, and nobody is logged out.
    let token = replicas[1].login("lee");
    replicas[0].command(&["user", "set-groups", "lee", "wheel"]).expect(0);
    until("the new group to arrive", || {
        replicas[2].get_with("/", &token).expect(200);
        upstream.last().field("x-forwarded-groups").as_deref() == Some("wheel")
    });
}

#[test]
fn sessions_and_accounts_are_managed_from_any_replica_and_without_one() {
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let mut replicas = replicas(2, &database, &upstream);
    let tokens = [replicas[0].login("kim"), replicas[1].login("kim")];
    let list = |gateway: &Gateway| gateway.command(&["session", "list", "kim", "--json"]).expect(0).json();
    let listed = list(&replicas[0]);
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(listed, list(&replicas[1]));
    // One that the first replica made is ended through the second.
    let sid = listed[0]["sid"].as_str().unwrap();
    replicas[1].command(&["session", "revoke", sid]).expect(0);
    replicas[1].get_with("/", &tokens[0]).expect(401);
    until("the end of the session to arrive", || replicas[0].get_with("/", &tokens[0]).status == 401);
    replicas[0].get_with("/", &tokens[1]).expect(200);
    // Without its server a command goes to the database itself, while the other server runs.
    replicas[1].stop();
    replicas[1].command(&["user", "disable", "kim"]).expect(0);
    until("the running one to hear of it", || replicas[0].get_with("/", &tokens[1]).status == 401);
    assert_eq!(replicas[0].account("kim")["disabled"], true);
    replicas[1].command_with_input(&["user", "add", "ann", "--password-stdin"], PASSWORD).expect(0);
    replicas[0].login("ann");
    let inspected = replicas[1].command(&["token", "inspect", &tokens[1], "--json"]).expect(1);
    assert!(inspected.stdout.contains("it was revoked"), "{inspected:?}");
}

#[test]
fn a_second_server_on_the_same_data_folder_is_refused_and_the_first_goes_on() {
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let first = on(&database.url(), &upstream).user("kim", &[]).start();
    let second = on(&database.url(), &upstream).set("data_dir", &quoted(&first.data())).prepare();
    let refused = second.command(&["serve"]).expect(1);
    assert!(refused.stderr.contains("another server runs on this data folder"), "{refused:?}");
    assert_eq!(first.account("kim")["username"], "kim");
    first.login("kim");
}

#[test]
fn the_way_to_the_database_is_encrypted_and_ends_at_nobody_else() {
    let upstream = Upstream::plain();
    let (cluster, roots) = Cluster::start_encrypted();
    let database = cluster.database();
    let url = database.url().replace("127.0.0.1", "localhost");
    let known = format!("{url}?sslmode=verify-full&sslrootcert={}", roots.display());
    let replicas = [on(&known, &upstream).user("kim", &[]).start(), on(&known, &upstream).start()];
    let token = replicas[0].login("kim");
    logout(&replicas[1], &token);
    until("the logout to arrive", || replicas[0].get_with("/", &token).status == 401);
    let ours = "FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE application_name = 'doorward'";
    assert_eq!(database.number(&format!("SELECT count(*) {ours} AND NOT ssl")), 0);
    assert!(database.number(&format!("SELECT count(*) {ours} AND ssl")) >= 2);
    // One whose certificate is of no authority that this system trusts.
    let mut stranger = on(&format!("{url}?sslmode=verify-full"), &upstream).prepare();
    stranger.spawn();
    until("it to say that it can't start", || {
        ready(stranger.admin) == Some(503) && says(&stranger, "store_unreachable")
    });
    stranger.get_with("/", &token).expect(503);
}

#[test]
fn wrong_passwords_are_counted_for_all_replicas_together() {
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let replicas = replicas(3, &database, &upstream);
    for round in 0..5 {
        replicas[round % 3].try_login("kim", "wrong horse 7 battery").expect(401);
    }
    for replica in &replicas {
        let answer = replica.try_login("kim", PASSWORD).expect(429);
        assert!(answer.field("retry-after").is_some());
        // Another name is another count.
        replica.try_login("lee", PASSWORD).expect(200);
    }
}

#[test]
fn three_replicas_started_at_once_on_an_empty_database_make_one_schema_and_no_error() {
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let mut replicas: Vec<Gateway> = (0..3).map(|_| on(&database.url(), &upstream).prepare()).collect();
    replicas.iter_mut().for_each(Gateway::spawn);
    for replica in &mut replicas {
        replica.wait_until_ready();
        let logs = replica.logs();
        assert!(
            !logs.contains("\"ERROR\"") && logs.matches("\"WARN\"").count() == 1,
            "only bcrypt's cost is warned of: {logs}"
        );
    }
    assert_eq!(database.sql("SELECT version FROM doorward_schema"), [["2"]]);
    // The same name made on two of them at once: one winner, and the other is told so.
    for round in 0..3 {
        let name = format!("person{round}");
        let made: Vec<_> = std::thread::scope(|scope| {
            let adding: Vec<_> = replicas[..2]
                .iter()
                .map(|replica| {
                    let config = replica.config.to_str().unwrap();
                    let name = &name;
                    scope.spawn(move || {
                        let arguments = ["user", "add", name, "--password-stdin", "--config", config];
                        crate::support::gateway::run_with_input(&arguments, PASSWORD)
                    })
                })
                .collect();
            adding.into_iter().map(|adding| adding.join().unwrap()).collect()
        });
        let won = made.iter().filter(|made| made.status == Some(0)).count();
        let lost = made.iter().filter(|made| made.status == Some(1) && made.stderr.contains("exists already")).count();
        assert_eq!((won, lost), (1, 1), "{made:?}");
    }
}

#[test]
fn a_hundred_revocations_are_refused_elsewhere_within_a_quarter_of_a_second() {
    const COUNT: usize = 100;
    let _alone = Turn::alone();
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let replicas = replicas(3, &database, &upstream);
    // Whoever else uses this machine may take a round's time, but not each round's.
    let quick = (0..3).any(|_| {
        let (whole, after) = refused_after(COUNT, &replicas);
        tell("from sending the logout to the refusal elsewhere", &whole);
        tell("from the logout's answer to the refusal elsewhere", &after) < Duration::from_millis(250)
    });
    assert!(quick, "p99 was not under 250 ms");
}

/// Prints a histogram; the 99th percentile.
fn tell(what: &str, delays: &[Duration]) -> Duration {
    let mut delays = delays.to_vec();
    delays.sort();
    let percentile = |share: usize| delays[(delays.len() * share).div_ceil(100) - 1];
    println!("{what}, {} samples:", delays.len());
    for (from, to) in [(0, 5), (5, 10), (10, 20), (20, 50), (50, 100), (100, 250), (250, 60_000)] {
        let within = Duration::from_millis(from)..Duration::from_millis(to);
        let count = delays.iter().filter(|delay| within.contains(delay)).count();
        println!("  {from:>5} to {to:>5} ms: {count:>4} {}", "#".repeat(count.div_ceil(4)));
    }
    let [half, most, nearly_all, all] = [50, 90, 99, 100].map(percentile);
    println!("  p50 {half:?}, p90 {most:?}, p99 {nearly_all:?}, most {all:?}");
    nearly_all
}

/// Ends sessions on the first replica one after the other; how long each of the others took to refuse each, since the
/// logout was sent and since it was answered.
fn refused_after(count: usize, replicas: &[Gateway]) -> (Vec<Duration>, Vec<Duration>) {
    let tokens: Vec<String> = (0..count).map(|_| replicas[0].login("kim")).collect();
    let (mut whole, mut after) = (Vec::new(), Vec::new());
    for token in &tokens {
        for replica in replicas {
            replica.get_with("/check", token).expect(200);
        }
        let sent = Instant::now();
        std::thread::scope(|scope| {
            let asking: Vec<_> = replicas[1..]
                .iter()
                .map(|replica| {
                    scope.spawn(move || {
                        let mut connection = replica.connect();
                        while connection.send(&Request::get("/check").cookie(token)).status != 401 {
                            assert!(sent.elapsed() < wait::GENEROUS, "a revocation did not arrive");
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        Instant::now()
                    })
                })
                .collect();
            logout(&replicas[0], token);
            let answered = Instant::now();
            for refused in asking.into_iter().map(|asking| asking.join().unwrap()) {
                whole.push(refused - sent);
                after.push(refused.saturating_duration_since(answered));
            }
        });
    }
    (whole, after)
}

#[test]
fn an_open_websocket_on_another_replica_closes_when_its_session_ends() {
    let upstream = Upstream::raw(|stream| {
        let mut reader = Reader::new(stream);
        let Ok(Some(_)) = reader.head() else { return };
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        let _ = reader.stream.write_all(answer.as_bytes());
        let _ = reader.stream.read(&mut [0; 64]);
    });
    let database = Cluster::shared().database();
    let replicas = replicas(2, &database, &upstream);
    let token = replicas[0].login("kim");
    let mut connection = replicas[1].connect();
    let handshake = Request::get("/ws")
        .field("Upgrade", "websocket")
        .field("Connection", "Upgrade")
        .field("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .field("Sec-WebSocket-Version", "13")
        .cookie(&token);
    connection.send(&handshake).expect(101);
    logout(&replicas[0], &token);
    let (took, closed) = timed(|| connection.closes_within(wait::GENEROUS));
    assert!(closed);
    println!("an open WebSocket on another replica closed {took:?} after the logout's answer");
}

#[test]
fn whoever_listens_is_cut_off_and_hears_of_everything_all_the_same() {
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let replicas = replicas(2, &database, &upstream);
    for _ in 0..3 {
        let token = replicas[0].login("kim");
        database.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        );
        logout(&replicas[0], &token);
        until("the logout to arrive", || replicas[1].get_with("/", &token).status == 401);
    }
    for replica in &replicas {
        until("all to be well", || reasons(replica).is_empty());
    }
}

#[test]
fn a_replica_that_was_stopped_has_caught_up_before_it_says_that_it_is_ready() {
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let mut replicas = replicas(1, &database, &upstream);
    replicas.push(on(&database.url(), &upstream).set("store.max_staleness", "\"1s\"").start());
    let token = replicas[0].login("kim");
    replicas[1].get_with("/", &token).expect(200);
    replicas[1].signal(Signal::STOP);
    logout(&replicas[0], &token);
    std::thread::sleep(stopped_for());
    replicas[1].signal(Signal::CONT);
    until("it to be ready", || ready(replicas[1].admin) == Some(200));
    replicas[1].get_with("/", &token).expect(401);
}

/// Long against `max_staleness` of one second; 20 s by `DOORWARD_TEST_STOPPED=20`.
fn stopped_for() -> Duration {
    seconds_from("DOORWARD_TEST_STOPPED", 3)
}

fn seconds_from(name: &str, usual: u64) -> Duration {
    Duration::from_secs(std::env::var(name).map_or(usual, |text| text.parse().unwrap()))
}

/// Requests with a valid token, one after the other, on connections new and old.
struct Load {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(usize, Vec<String>)>,
}

impl Load {
    fn start(gateway: &Gateway, token: &str) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (address, token, stop) = (gateway.address, token.to_owned(), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            let (mut sent, mut failures) = (0, Vec::new());
            while !stop.load(Ordering::SeqCst) {
                let mut connection = crate::support::Connection::to(address);
                for _ in 0..20 {
                    sent += 1;
                    match connection.try_send(&Request::get("/").cookie(&token)) {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => failures.push(answer.status.to_string()),
                        Err(error) => failures.push(error.to_string()),
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            (sent, failures)
        });
        Self { over, thread }
    }

    fn stop(self) {
        self.over.store(true, Ordering::SeqCst);
        let (sent, failures) = self.thread.join().unwrap();
        assert!(failures.is_empty(), "{} of {sent} requests failed: {:?}", failures.len(), failures.first());
        println!("{sent} requests with a valid token, none failed");
    }
}

/// Requests with a valid token as patient clients make them: one on a connection of its own after the other, and many on
/// one connection until an answer says that it is the last.
fn patient_load(gateway: &Gateway, token: &str, over: &Arc<AtomicBool>) -> Vec<std::thread::JoinHandle<[usize; 2]>> {
    let client = |per_connection: usize| {
        let (address, token, over) = (gateway.address, token.to_owned(), Arc::clone(over));
        std::thread::spawn(move || {
            let (mut connections, mut requests) = (0, 0);
            while !over.load(Ordering::SeqCst) {
                connections += 1;
                let mut connection = crate::support::Connection::to(address);
                for _ in 0..per_connection {
                    if over.load(Ordering::SeqCst) {
                        break;
                    }
                    requests += 1;
                    let answer = connection.try_send(&Request::get("/").cookie(&token)).unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    if answer.field("connection").is_some_and(|said| said.eq_ignore_ascii_case("close")) {
                        break;
                    }
                }
            }
            [connections, requests]
        })
    };
    [1, 1, 1, 100_000, 100_000].into_iter().map(client).collect()
}

#[test]
fn a_second_process_takes_the_port_over_and_no_request_fails() {
    // Far more by DOORWARD_TEST_ROUNDS=50.
    let rounds = seconds_from("DOORWARD_TEST_ROUNDS", 3).as_secs();
    let _alone = Turn::alone();
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let mut gateway = on(&database.url(), &upstream).set("server.handover", "true").user("kim", &[]).start();
    let token = gateway.login("kim");
    let over = Arc::default();
    let load = patient_load(&gateway, &token, &over);
    for _ in 0..rounds {
        let first = gateway.process_id();
        gateway.hand_over();
        assert_ne!(gateway.process_id(), first);
        // Port, admin listener and commands are the second one's by now.
        until("the second to be ready", || ready(gateway.admin) == Some(200));
        assert_eq!(gateway.account("kim")["username"], "kim");
    }
    over.store(true, Ordering::SeqCst);
    let made = load.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>();
    let sum = |index: usize| made.iter().map(|numbers| numbers[index]).sum::<usize>();
    println!("{rounds} processes after the first: {} requests on {} connections, none failed", sum(1), sum(0));
    // A logout by the last one; and its end leaves nothing behind that would keep another one away.
    logout(&gateway, &token);
    assert!(gateway.stop().success());
    for name in ["admin.sock", "handover.sock"] {
        assert!(!gateway.data().join(name).exists(), "{name} is still there");
    }
    gateway.serve();
    gateway.get_with("/", &token).expect(401);
}

#[test]
fn a_successor_that_never_gets_ready_leaves_the_first_as_it_was() {
    let upstream = Upstream::plain();
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let mut gateway = on(&database.url(), &upstream).set("server.handover", "true").user("kim", &[]).start();
    let token = gateway.login("kim");
    let load = Load::start(&gateway, &token);
    // It can't read the revocation log, so it has nothing to let people in on.
    cluster.stop();
    let mut second = crate::support::gateway::program(&["serve", "--config", gateway.config.to_str().unwrap()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let connections = || std::fs::read_to_string(format!("/proc/{}/net/unix", second.id())).unwrap_or_default();
    until("it to have asked for the sockets", || connections().matches("handover.sock").count() > 1);
    until("/ready to tell of the database", || says(&gateway, "store_unreachable"));
    second.kill().unwrap();
    second.wait().unwrap();
    cluster.run();
    until("the first to be well", || reasons(&gateway).is_empty());
    assert_eq!(gateway.account("kim")["username"], "kim");
    load.stop();
    // The next one finds everything as before.
    gateway.hand_over();
    gateway.get_with("/", &token).expect(200);
}

/// Every answer that needs the store says 503, in less than three seconds.
fn refuses_in_time(gateway: &Gateway, token: &str) {
    for (what, request) in [
        ("/login", Request::post("/login").json(&serde_json::json!({"username": "kim", "password": PASSWORD}))),
        ("/account", Request::get("/account").cookie(token)),
        ("/logout", Request::post("/logout").cookie(token)),
    ] {
        let (took, answer) = timed(|| gateway.send(&request));
        assert_eq!(answer.status, 503, "{what}: {}", answer.text());
        assert!(took < Duration::from_secs(3), "{what} took {took:?}");
    }
}

#[test]
fn the_database_stops_under_load_and_comes_back() {
    // 60 s by `DOORWARD_TEST_OUTAGE=60`.
    let outage = seconds_from("DOORWARD_TEST_OUTAGE", 4);
    let _alone = Turn::alone();
    let upstream = Upstream::plain();
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let with = || on(&database.url(), &upstream).set("store.max_staleness", "\"2s\"");
    let replicas = [with().user("kim", &[]).start(), with().start()];
    let token = replicas[0].login("kim");
    let load = Load::start(&replicas[1], &token);
    let start = Instant::now();
    cluster.stop();
    for replica in &replicas {
        refuses_in_time(replica, &token);
    }
    for replica in &replicas {
        until("/ready to tell that it is stale", || says(replica, "stale") && says(replica, "store_unreachable"));
    }
    // A start needs nothing but the file; nobody is let in by a process that has never read the log.
    let mut late = with().prepare();
    late.spawn();
    until("the late one to tell why it waits", || ready(late.admin) == Some(503) && says(&late, "starting"));
    late.get_with("/", &token).expect(503);
    late.get_with("/check", &token).expect(503);
    std::thread::sleep(outage.saturating_sub(start.elapsed()));
    refuses_in_time(&replicas[1], &token);
    println!("the database was away for {:?}", start.elapsed());
    cluster.run();
    late.wait_until_ready();
    for replica in &replicas {
        until("it to recover by itself", || reasons(replica).is_empty());
        replica.login("kim");
    }
    load.stop();
    late.get_with("/", &token).expect(200);
    logout(&late, &token);
    until("the logout to arrive", || replicas[0].get_with("/", &token).status == 401);
    for replica in &replicas {
        assert!(!replica.logs().contains("a%20password") && !replica.logs().contains("a password for"));
    }
}

#[test]
fn a_replica_may_refuse_what_it_can_not_be_sure_of() {
    let upstream = Upstream::plain();
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let gateway = on(&database.url(), &upstream)
        .set("store.max_staleness", "\"1s\"")
        .set("store.on_stale", "\"refuse\"")
        .user("kim", &[])
        .start();
    let token = gateway.login("kim");
    cluster.stop();
    until("it to refuse", || gateway.get_with("/", &token).status == 503);
    cluster.run();
    until("it to let people in again", || gateway.get_with("/", &token).status == 200);
}

/// A way to the database that can be disturbed.
struct Link {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Swallows every byte, in both directions, and says nothing.
    swallows: AtomicBool,
    /// Milliseconds by which every piece is late.
    late: AtomicU64,
    connections: AtomicUsize,
    /// In both directions, without what the network adds.
    bytes: AtomicU64,
}

impl Link {
    fn to(database: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(database) else { continue };
                shared.connections.fetch_add(1, Ordering::SeqCst);
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to, state) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(&shared));
                    std::thread::spawn(move || pass(from, to, &state));
                }
            }
        });
        Self { address, state }
    }

    fn swallow(&self, swallow: bool) {
        self.state.swallows.store(swallow, Ordering::SeqCst);
    }

    fn late_by(&self, late: Duration) {
        self.state.late.store(u64::try_from(late.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        state.bytes.fetch_add(u64::try_from(count).unwrap(), Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(state.late.load(Ordering::SeqCst)));
        if !state.swallows.load(Ordering::SeqCst) && to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Half-open: an end is swallowed as well.
    if !state.swallows.load(Ordering::SeqCst) {
        let _ = to.shutdown(Shutdown::Both);
    }
}

#[test]
fn a_half_open_link_is_told_and_what_was_revoked_meanwhile_is_refused_soon_after() {
    const STALENESS: Duration = Duration::from_secs(2);
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let link = Link::to(Cluster::shared().address());
    let near = on(&database.url(), &upstream).user("kim", &[]).start();
    let far = on(&database.url_at(link.address), &upstream)
        .set("store.max_staleness", "\"2s\"")
        .set("store.timeout", "\"1s\"")
        .start();
    let (token, other) = (near.login("kim"), near.login("kim"));
    far.get_with("/", &token).expect(200);
    link.swallow(true);
    logout(&near, &token);
    // It knows nothing of it, and goes on with what it knows.
    let load = Load::start(&far, &other);
    far.get_with("/", &token).expect(200);
    until("/ready to say that it is stale", || says(&far, "stale"));
    refuses_in_time(&far, &other);
    far.get_with("/", &token).expect(200);
    let back = Instant::now();
    link.swallow(false);
    until("the revocation to arrive", || far.get_with("/", &token).status == 401);
    let took = back.elapsed();
    println!("refused {took:?} after the link's return; max_staleness {STALENESS:?}");
    assert!(took < STALENESS + Duration::from_secs(1), "{took:?}");
    until("all to be well", || reasons(&far).is_empty());
    load.stop();
    far.login("kim");
}

#[test]
fn a_slow_database_slows_nobody_who_is_logged_in() {
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let link = Link::to(Cluster::shared().address());
    let gateway = on(&database.url_at(link.address), &upstream).user("kim", &[]).start();
    let token = gateway.login("kim");
    let load = Load::start(&gateway, &token);
    link.late_by(Duration::from_secs(5));
    refuses_in_time(&gateway, &token);
    // A heap of logins at once waits for nobody, and neither does anybody for them.
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let (took, answer) = timed(|| gateway.try_login("kim", PASSWORD));
                assert_eq!(answer.status, 503);
                assert!(took < Duration::from_secs(4), "{took:?}");
            });
        }
    });
    link.late_by(Duration::ZERO);
    until("it to recover by itself", || {
        reasons(&gateway).is_empty() && gateway.try_login("kim", PASSWORD).status == 200
    });
    load.stop();
}

#[test]
fn a_database_without_a_free_connection_is_no_end() {
    let upstream = Upstream::plain();
    let cluster = Cluster::start(&["max_connections = 10", "superuser_reserved_connections = 0"]);
    let database = cluster.database();
    let gateway = on(&database.url(), &upstream).user("kim", &[]).start();
    let token = gateway.login("kim");
    let load = Load::start(&gateway, &token);
    // Others take every connection, those of the gateway too.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let url = database.url();
    let mut crowd: Vec<tokio_postgres::Client> = Vec::new();
    let mut alone = 0;
    while alone < 20 {
        let more = runtime.block_on(tokio_postgres::connect(&url, tokio_postgres::NoTls));
        let full = more.is_err();
        if let Ok((client, connection)) = more {
            runtime.spawn(connection);
            crowd.push(client);
        }
        // The gateway may have been quicker than we with some of them.
        let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'doorward'";
        let ended = runtime.block_on(crowd[0].query_typed(ended, &[])).unwrap().len();
        alone = if full && ended == 0 { alone + 1 } else { 0 };
    }
    until("/ready to say so", || says(&gateway, "store_unreachable"));
    refuses_in_time(&gateway, &token);
    drop(crowd);
    runtime.shutdown_background();
    until("it to recover by itself", || {
        reasons(&gateway).is_empty() && gateway.try_login("kim", PASSWORD).status == 200
    });
    load.stop();
}

/// A primary and its standby, and a database on both.
struct Pair {
    primary: Cluster,
    standby: Cluster,
    name: String,
}

impl Pair {
    fn start() -> Self {
        let primary = Cluster::start(&[]);
        let name = primary.database().name;
        let standby = primary.standby();
        Self { primary, standby, name }
    }

    /// As the primary has it.
    fn database(&self) -> Database<'_> {
        Database { cluster: &self.primary, name: self.name.clone() }
    }

    /// What an operator writes: both servers, in this order.
    fn url(&self) -> String {
        self.database().url_at_any(&[self.primary.address(), self.standby.address()])
    }

    /// The primary waits with every answer until the standby would show it too.
    fn synchronize(&self) {
        self.primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'standby'");
        self.primary.sql("postgres", "ALTER SYSTEM SET synchronous_commit = 'remote_apply'");
        self.primary.sql("postgres", "SELECT pg_reload_conf()");
        until("the standby to be waited for", || {
            let states = self.primary.sql("postgres", "SELECT sync_state FROM pg_stat_replication");
            states == [["sync"]]
        });
    }

    /// From here on the standby hears of nothing.
    fn separate(&self) {
        self.standby.sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''");
        self.standby.sql("postgres", "SELECT pg_reload_conf()");
        let count = |cluster: &Cluster, table| cluster.sql("postgres", &format!("SELECT count(*) FROM {table}"));
        until("the standby to be alone", || {
            count(&self.standby, "pg_stat_wal_receiver") == [["0"]]
                && count(&self.primary, "pg_stat_replication") == [["0"]]
        });
    }

    /// The standby is the primary now.
    fn promote(&self) -> Database<'_> {
        self.standby.promote();
        Database { cluster: &self.standby, name: self.name.clone() }
    }
}

const LOG_HEAD: &str = "SELECT number FROM doorward_log_head";

#[test]
fn the_primary_is_killed_its_standby_promoted_and_the_replicas_go_on_there_by_themselves() {
    let _alone = Turn::alone();
    let upstream = Upstream::plain();
    let pair = Pair::start();
    pair.synchronize();
    let replicas = [on(&pair.url(), &upstream).user("kim", &[]).start(), on(&pair.url(), &upstream).start()];
    let [token, ended] = [replicas[0].login("kim"), replicas[1].login("kim")];
    let loads = replicas.each_ref().map(|replica| Load::start(replica, &token));
    logout(&replicas[0], &ended);
    let before = pair.database().number(LOG_HEAD);
    pair.primary.kill();
    let killed = Instant::now();
    for replica in &replicas {
        refuses_in_time(replica, &token);
        until("/ready to say so", || says(replica, "store_unreachable"));
    }
    let database = pair.promote();
    let promoted = Instant::now();
    for replica in &replicas {
        until("it to recover by itself", || reasons(replica).is_empty());
    }
    println!(
        "ready again {:?} after the promotion, {:?} after the end of the primary",
        promoted.elapsed(),
        killed.elapsed()
    );
    for (one, other) in [(&replicas[0], &replicas[1]), (&replicas[1], &replicas[0])] {
        let new = one.login("kim");
        other.get_with("/", &new).expect(200);
        logout(one, &new);
        until("the logout to arrive", || other.get_with("/", &new).status == 401);
        one.get_with("/", &ended).expect(401);
    }
    // Nothing was lost, so the log is the same, and its numbers go on by one.
    assert_eq!(database.number(LOG_HEAD), before + 2);
    // One that starts now knows from the new primary alone.
    let late = on(&pair.url(), &upstream).start();
    late.get_with("/", &token).expect(200);
    late.get_with("/", &ended).expect(401);
    for load in loads {
        load.stop();
    }
    for replica in &replicas {
        assert_eq!(ready(replica.admin), Some(200));
        assert!(!replica.logs().contains("is not the one that was read"), "{}", replica.logs());
    }
}

#[test]
fn a_logout_that_the_standby_never_heard_of_stays_refused_by_those_who_did() {
    let _alone = Turn::alone();
    let upstream = Upstream::plain();
    let pair = Pair::start();
    let mut replicas = vec![on(&pair.url(), &upstream).user("kim", &[]).user("lee", &[]).start()];
    replicas.extend((0..2).map(|_| on(&pair.url(), &upstream).start()));
    let [token, lost] = [replicas[0].login("kim"), replicas[1].login("kim")];
    let replayed = "SELECT bool_and(replay_lsn = pg_current_wal_lsn()) FROM pg_stat_replication";
    until("the standby to have all of it", || pair.primary.sql("postgres", replayed) == [["t"]]);
    pair.separate();
    // Two hear of it, and a login knows its number; the third is stopped.
    replicas[2].signal(Signal::STOP);
    logout(&replicas[0], &lost);
    until("the logout to arrive", || replicas[1].get_with("/", &lost).status == 401);
    let late_login = replicas[1].login("lee");
    let seen = pair.database().number(LOG_HEAD);
    let loads = [0, 1].map(|index| Load::start(&replicas[index], &token));
    pair.primary.kill();
    let database = pair.promote();
    for replica in &replicas[..2] {
        until("it to recover by itself", || reasons(replica).is_empty());
        replica.get_with("/", &lost).expect(401);
    }
    until("the log to go on above all that was seen", || database.number(LOG_HEAD) > seen);
    assert!(replicas.iter().any(|replica| replica.logs().contains("is not the one that was read")));
    // What is revoked from here on has a number above all that any token names.
    replicas[0].command(&["user", "disable", "lee"]).expect(0);
    until("the end of that account to arrive", || replicas[1].get_with("/", &late_login).status == 401);
    replicas[2].signal(Signal::CONT);
    until("the third to have caught up", || replicas[2].get_with("/", &late_login).status == 401);
    until("it to be well", || reasons(&replicas[2]).is_empty());
    for load in loads {
        load.stop();
    }
    // What is lost with the primary is known to those who heard of it, as long as they live, and to nobody else.
    for replica in &replicas[..2] {
        replica.get_with("/", &lost).expect(401);
    }
    replicas[2].get_with("/", &lost).expect(200);
    // So the log says what to do.
    replicas[2].command(&["session", "revoke", "--all"]).expect(0);
    for replica in &replicas {
        until("everybody to be logged out", || replica.get_with("/", &token).status == 401);
        replica.get_with("/", &lost).expect(401);
    }
}

#[test]
fn a_primary_that_is_cut_off_and_says_nothing_hides_the_new_one_from_nobody() {
    let _alone = Turn::alone();
    let upstream = Upstream::plain();
    let pair = Pair::start();
    let link = Link::to(pair.primary.address());
    let url = pair.database().url_at_any(&[link.address, pair.standby.address()]);
    let replicas = [on(&url, &upstream).user("kim", &[]).start(), on(&url, &upstream).start()];
    let token = replicas[0].login("kim");
    let loads = replicas.each_ref().map(|replica| Load::start(replica, &token));
    // It accepts connections, and swallows all that is sent on them.
    link.swallow(true);
    for replica in &replicas {
        until("/ready to say so", || says(replica, "store_unreachable"));
    }
    pair.promote();
    let promoted = Instant::now();
    for replica in &replicas {
        until("it to recover by itself", || reasons(replica).is_empty());
    }
    println!("ready again {:?} after the promotion", promoted.elapsed());
    let new = replicas[0].login("kim");
    logout(&replicas[1], &new);
    until("the logout to arrive", || replicas[0].get_with("/", &new).status == 401);
    for load in loads {
        load.stop();
    }
}

#[test]
fn a_request_makes_no_database_call() {
    const REQUESTS: usize = 3000;
    let upstream = Upstream::plain();
    let cluster = Cluster::start(&["shared_preload_libraries = 'pg_stat_statements'"]);
    let database = cluster.database();
    database.sql("CREATE EXTENSION pg_stat_statements");
    let gateway = on(&database.url(), &upstream).user("kim", &["staff"]).start();
    let token = gateway.login("kim");
    database.sql("SELECT pg_stat_statements_reset()");
    let mut connection = gateway.connect();
    for _ in 0..REQUESTS {
        connection.send(&Request::get("/").cookie(&token)).expect(200);
    }
    // What goes on beside requests, once a second each: a look at the log, and one at the database's health.
    let beside = "query NOT LIKE '%FROM doorward_log_head h CROSS JOIN doorward_time t LEFT JOIN%' AND query NOT LIKE '%pg_is_in_recovery%' \
                  AND query NOT LIKE '%pg_stat_statements%'";
    let others = database.sql(&format!("SELECT calls, query FROM pg_stat_statements WHERE {beside}"));
    assert!(others.is_empty(), "{others:?}");
    let all = database.number("SELECT coalesce(sum(calls), 0) FROM pg_stat_statements");
    println!("{REQUESTS} requests: 0 database calls of theirs ({all} beside them)");
    assert!(all < i64::try_from(REQUESTS / 10).unwrap(), "{all}");
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_hundred_thousand_accounts_are_not_read_at_the_start() {
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let mut gateway = on(&database.url(), &upstream).user("kim", &[]).start();
    gateway.stop();
    let accounts = |from: u32, to: u32| {
        database.sql(&format!(
            "INSERT INTO doorward_account SELECT 'id' || n, 'user' || n, '$2b$12$' || repeat('x', 53), '{{staff}}', \
             'user' || n || '@example.com', 'User ' || n, false, 0, 1, 1, 0 FROM generate_series({from}, {to}) n"
        ));
        // What the insertion leaves behind to be written is none of a login's work.
        for statement in ["VACUUM ANALYZE doorward_account", "CHECKPOINT", "SELECT pg_stat_reset()"] {
            database.sql(statement);
        }
    };
    accounts(1, 1_000);
    database.sql(
        "INSERT INTO doorward_log SELECT n, gen_random_uuid(), jsonb_build_object('kind', 'session', 'session', \
         gen_random_uuid()), 1795512600, 4000000000 FROM generate_series(1, 200000) n;
         UPDATE doorward_log_head SET number = 200000, mark = (SELECT mark FROM doorward_log WHERE number = 200000)",
    );
    let mut figures = Vec::new();
    for count in ["1,000", "100,000"] {
        if count == "100,000" {
            accounts(1_001, 100_000);
        }
        let starts = (0..3).map(|number| {
            if number > 0 {
                gateway.stop();
            }
            timed(|| gateway.serve()).0
        });
        let start = middle(starts.collect());
        let logins = (0..9).map(|_| {
            let (took, token) = timed(|| gateway.login("kim"));
            gateway.get_with("/", &token).expect(200);
            took
        });
        let login = middle(logins.collect());
        println!("{count} accounts, 200,000 live revocations: start {start:?}, login {login:?} (medians)");
        figures.push((start, login));
        let metrics = gateway.get_admin("/metrics").text();
        assert!(metrics.lines().any(|line| line.contains("revocations") && line.ends_with(" 200000")), "{metrics}");
        if count == "1,000" {
            gateway.stop();
        }
    }
    println!("at most {} MiB; ratios {:.2?}", gateway.peak_memory() >> 20, {
        let [few, many] = figures[..] else { panic!("{figures:?}") };
        [many.0.as_secs_f64() / few.0.as_secs_f64(), many.1.as_secs_f64() / few.1.as_secs_f64()]
    });
    // By their index only: the work does not grow with the number of accounts.
    until("the database to have counted the reads", || {
        database.number("SELECT coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'doorward_account'") > 0
    });
    let read = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'doorward_account'";
    assert_eq!(database.number(read), 0);
}

#[test]
fn a_wrong_url_and_a_newer_schema_are_told_without_the_password() {
    let (upstream, database) = (Upstream::plain(), Cluster::shared().database());
    let gateway = on(&database.url(), &upstream).user("kim", &[]).prepare();
    database.sql("UPDATE doorward_schema SET version = 99");
    let config = gateway.config.to_str().unwrap();
    for arguments in [&["serve"][..], &["user", "list"]] {
        let refused = gateway.command(arguments).expect(1);
        assert!(refused.stderr.contains("version 99") && refused.stderr.contains("newer"), "{refused:?}");
    }
    let wrong = database.url().replace("a%20password", "a%20canary");
    write_private(&gateway.folder().join("database"), wrong.as_bytes());
    let refused = gateway.command(&["user", "list"]).expect(1);
    assert!(refused.stderr.contains("authentication failed") && !refused.stderr.contains("canary"), "{refused:?}");
    write_private(&gateway.folder().join("database"), b"postgres://u:canary@db/d?sslmode=prefer");
    let refused = crate::support::gateway::run(&["check-config", "--config", config]).expect(2);
    let told: Value = Value::from(refused.stdout.clone() + &refused.stderr);
    assert!(told.as_str().unwrap().contains("sslmode") && !told.as_str().unwrap().contains("canary"), "{refused:?}");
}

/// The calls of all statements since the last look, or those of one kind; and from here on they are counted anew.
fn calls(database: &Database<'_>, which: &str) -> i64 {
    database.number(&format!(
        "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid \
         WHERE datname = current_database() AND query NOT LIKE '%pg_stat_%' AND {which}"
    ))
}

/// The figures of docs/scaling.md. Fails only where nothing works.
#[test]
#[ignore = "prints figures; run it by name on a machine that has time"]
fn what_replicas_cost() {
    const SOME: usize = 40;
    const A_WHILE: Duration = Duration::from_secs(20);
    const LOOK: &str = "query LIKE '%FROM doorward_log_head h LEFT JOIN%'";
    const HEALTH: &str = "query LIKE '%pg_is_in_recovery%'";
    const OTHERS: &str = "query NOT LIKE '%FROM doorward_log_head h CROSS JOIN doorward_time t LEFT JOIN%' AND query NOT LIKE '%pg_is_in_recovery%'";
    let _alone = Turn::alone();
    let upstream = Upstream::plain();
    let cluster = Cluster::start(&["shared_preload_libraries = 'pg_stat_statements'", "max_connections = 200"]);
    for count in [1, 10] {
        let database = cluster.database();
        database.sql("CREATE EXTENSION pg_stat_statements");
        let link = Link::to(cluster.address());
        let bytes = || link.state.bytes.load(Ordering::SeqCst);
        let with = |url: &str| on(url, &upstream);
        // Of the last one every byte is counted.
        let mut replicas = vec![with(&database.url()).user("kim", &[]).start()];
        replicas.extend((2..count).map(|_| with(&database.url()).start()));
        if count > 1 {
            replicas.push(with(&database.url_at(link.address)).start());
        }
        let reset = || drop(database.sql("SELECT pg_stat_statements_reset()"));
        let connections = || {
            database.number(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'doorward' AND datname = current_database()",
            )
        };
        println!("== {count} replicas");
        println!("connections after the start: {}", connections());
        reset();
        let (before, began) = (bytes(), Instant::now());
        // A measurement takes its time: nothing is waited for here.
        std::thread::sleep(A_WHILE);
        let seconds = began.elapsed().as_secs_f64() * f64::from(count);
        let per_second = |number: i64| f64::from(i32::try_from(number).unwrap()) / seconds;
        println!(
            "idle, for each replica and second: {:.2} looks at the log, {:.2} at the health, {:.2} others; {:.0} bytes of one",
            per_second(calls(&database, LOOK)),
            per_second(calls(&database, HEALTH)),
            per_second(calls(&database, OTHERS)),
            f64::from(u32::try_from(bytes() - before).unwrap()) / began.elapsed().as_secs_f64()
        );
        reset();
        let tokens: Vec<String> = (0..SOME).map(|_| replicas[0].login("kim")).collect();
        let each = |number: i64| f64::from(i32::try_from(number).unwrap()) / f64::from(u32::try_from(SOME).unwrap());
        println!("statements of a login: {:.2}", each(calls(&database, OTHERS)));
        reset();
        for token in &tokens {
            let old = token::with_left(SECRET, token, 3 * DAY);
            assert!(replicas[0].get_with("/", &old).expect(200).token().is_some(), "no renewal");
        }
        println!("statements of a renewal: {:.2}", each(calls(&database, OTHERS)));
        reset();
        let (before, began) = (bytes(), Instant::now());
        for token in &tokens {
            logout(&replicas[0], token);
        }
        let took = began.elapsed().as_secs_f64();
        let looks = calls(&database, LOOK);
        println!(
            "statements of a logout: {:.2}, and {:.2} looks at the log by all replicas; {} bytes of another one ({took:.2} s)",
            each(calls(&database, OTHERS)),
            each(looks),
            (bytes() - before) / u64::try_from(SOME).unwrap()
        );
        for replica in &replicas {
            std::thread::scope(|scope| {
                for _ in 0..30 {
                    scope.spawn(|| replica.try_login("kim", PASSWORD).expect(200));
                }
            });
        }
        println!("connections after 30 logins at once on each: {}", connections());
        if count > 1 {
            let (whole, after) = refused_after(SOME, &replicas);
            tell("from sending the logout to the refusal elsewhere", &whole);
            tell("from the logout's answer to the refusal elsewhere", &after);
        }
    }
}
