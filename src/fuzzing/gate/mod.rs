//! The whole gate: real connections, a backend that writes down what it sees, people whose rights change on the way.
//!
//! What is held of every request that reached the backend:
//!
//! - All that its path can be read as leads to one route, and that route leads to this backend.
//! - Where the route demands a person, one is named whom the route allows *now*; and whoever is named has sent a token
//!   of his with that very request which is good *now*.
//! - The headers that name a person are exactly ours; the token itself is gone.
//! - It is framed in one way, and says who the client is as we know it.
//!
//! And a WebSocket of a person is closed when what it was opened with is ended.
//!
//! The input is a play in lines; [`script`] reads it.

mod backend;
mod people;
mod script;

use std::cell::RefCell;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use http::{HeaderName, Method};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

use self::backend::{Backend, Seen, Tasks};
use self::people::{People, Token};
use self::script::{Event, Step};
use super::cookies::{names_of, of_php, of_python, of_rfc_6265};
use super::headers::{is_disguise, names_a_person};
use super::path::{Reference, reference};
use super::route::{Expected, both_ways, of_reading};
use crate::accounts::Accounts;
use crate::accounts::hashing::HashPool;
use crate::auth::freshness::Freshness;
use crate::auth::revocation::Revocations;
use crate::auth::session::Sessions;
use crate::clock::Clock;
use crate::config::{Access, Config, LogFormat, TemplatePart, parse};
use crate::feed::Feed;
use crate::gate::{Core, Live, Shared};
use crate::portal::Portal;
use crate::store::{Memory, Store};
use crate::telemetry::Telemetry;
use crate::telemetry::access::AccessLog;
use crate::telemetry::audit::Audit;
use crate::telemetry::metrics::Metrics;

const ROUTES: &str = "
[[route]]
access = 'public'
upstream = 'app'
[[route]]
path = '/staff'
groups = ['staff']
upstream = 'app'
[[route]]
path = '/staff/kim'
users = ['kim']
upstream = 'app'
[[route]]
path = '/staff/open'
exact = true
access = 'public'
upstream = 'app'
[[route]]
path = '/any'
upstream = 'app'
[[route]]
path = '/any'
methods = ['POST']
groups = ['ops']
upstream = 'app'
[[route]]
path = '/maybe'
access = 'optional'
upstream = 'app'
[[route]]
path = '/closed'
access = 'deny'
[[route]]
path = '/api'
strip_prefix = '/api'
groups = ['ops']
upstream = 'api'
[[route]]
path = '/api/free'
strip_prefix = '/api'
access = 'public'
upstream = 'api'
[[route]]
host = 'admin.test'
groups = ['ops']
upstream = 'app'
[[route]]
host = '*.open.test'
access = 'public'
upstream = 'app'
";

/// Who may be at the other end of a connection. The second is a trusted proxy.
const PEERS: [Option<&str>; 4] = [Some("192.0.2.7"), Some("10.1.2.3"), Some("2001:db8::1"), None];

thread_local! {
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
}

/// A play: see [`script`].
pub fn gate(data: &[u8]) {
    let steps = script::read(data);
    if !steps.is_empty() {
        RUNTIME.with(|runtime| LocalSet::new().block_on(runtime, play(steps)));
    }
}

/// The folder of the backends' sockets; gone with the play.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let thread = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "-");
        let folder = std::env::temp_dir().join(format!("doorward-fuzz-{}-{thread}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One request as it was sent.
struct Sent {
    peer: Option<IpAddr>,
    bytes: Vec<u8>,
}

/// The stage.
struct World {
    config: Config,
    core: Rc<Core>,
    people: People,
    seen: Rc<RefCell<Vec<Seen>>>,
    tasks: Tasks,
    sent: Vec<Sent>,
    tunnels: Vec<Tunnel>,
}

/// A connection that has become a WebSocket, and the number of the token that came with it.
struct Tunnel {
    socket: DuplexStream,
    token: usize,
}

/// A connection that stays open between requests.
struct Connection {
    socket: DuplexStream,
    peer: Option<IpAddr>,
    /// All that went over it.
    bytes: Vec<u8>,
}

async fn play(steps: Vec<Step>) {
    let folder = Folder::new();
    let mut world = World::new(&folder).await;
    let mut connection: Option<Connection> = None;
    let mut peer = None;
    for step in steps {
        match step {
            Step::Peer(number) => {
                peer = PEERS[number % PEERS.len()].map(|peer| peer.parse().unwrap());
                connection = None;
            }
            Step::Event(event) => world.happen(&event).await,
            Step::Request(request) => {
                let bytes = request.written(world.sent.len(), &world.people);
                let open = connection.get_or_insert_with(|| world.connect(peer));
                open.bytes.extend_from_slice(&bytes);
                let is_logout = request.is_logout();
                let tokens = world.people.tokens_in(&bytes);
                world.sent.push(Sent { peer, bytes: bytes.clone() });
                let answer = open.ask(&bytes, &world.seen).await;
                // Looked up before a logout makes it void.
                let plainly_sent = world.people.plainly_sent(&tokens, &bytes);
                let over = world.check(open, &answer, is_logout, &tokens);
                if over && let Some(Connection { socket, .. }) = connection.take() {
                    // A public route stays open whoever logs out.
                    if let Some(token) = plainly_sent
                        && answer.get(9..12) == Some(b"101")
                        && request.demands_a_person()
                    {
                        world.tunnels.push(Tunnel { socket, token });
                    }
                }
                world.check_tasks().await;
            }
        }
    }
}

impl World {
    async fn new(folder: &Folder) -> Self {
        static HASHERS: OnceLock<HashPool> = OnceLock::new();
        let seen = Rc::new(RefCell::new(Vec::new()));
        let tasks = Tasks::default();
        let mut text = String::from("[server]\ntrusted_proxies = ['10.0.0.0/8']\n[login]\nbcrypt_cost = 4\n");
        for name in ["app", "api"] {
            let path = folder.0.join(name);
            Backend::start(&path, name, Rc::clone(&seen), Rc::clone(&tasks));
            text.extend([&*format!("[upstream.{name}]\nurls = ['unix:{}']\n", path.display())]);
        }
        text.push_str(ROUTES);
        let secret = |name: &str| (name == "JWT_SECRET").then(|| super::token::SECRET.to_owned());
        let origin = folder.0.join("config.toml");
        let config = parse(&text, &origin, &secret).unwrap_or_else(|problems| panic!("{problems:?}"));
        let clock = Clock::manual(people::BEGIN);
        let metrics = Metrics::default();
        let access = AccessLog::new(clock.clone(), metrics.clone(), LogFormat::Json, false);
        let audit = Audit::silent(clock.clone());
        let telemetry = Telemetry { access, audit: audit.clone(), metrics: metrics.clone() };
        let store: Arc<dyn Store> = Arc::new(Memory::new(clock.clone()));
        let revocations = Arc::new(Revocations::default());
        store.follow(Arc::clone(&revocations) as _).await.unwrap();
        let hashers = HASHERS.get_or_init(|| HashPool::start(1, 4).unwrap()).clone();
        let accounts = Accounts::new(Arc::clone(&store), clock.clone(), hashers, audit);
        let sessions =
            Arc::new(Sessions::new(Arc::clone(&store), Arc::clone(&revocations), clock.clone(), telemetry.clone()));
        let live = Live::new(config.clone(), &clock, &metrics).unwrap();
        let feed = Feed::new(clock.clone(), false);
        let portal = Portal::new(accounts.clone(), Arc::clone(&sessions), telemetry.clone(), feed, Arc::clone(&store));
        let freshness = Arc::new(Freshness::new(clock.clone()));
        let sessions_of_gate = Arc::clone(&sessions);
        let shared = Shared::new(live, clock.clone(), revocations, freshness, sessions_of_gate, portal, telemetry);
        let shared = Arc::new(shared);
        let core = Core::new(Arc::clone(&shared));
        tokio::task::spawn_local(Rc::clone(&core).watch_streams());
        let people = People::new(clock, store, accounts, sessions, shared).await;
        Self { config, core, people, seen, tasks, sent: Vec::new(), tunnels: Vec::new() }
    }

    fn connect(&self, peer: Option<IpAddr>) -> Connection {
        let (socket, other) = tokio::io::duplex(64 * 1024);
        let task = tokio::task::spawn_local(crate::server::serve_socket(other, peer, Rc::clone(&self.core)));
        self.tasks.borrow_mut().push(task);
        Connection { socket, peer, bytes: Vec::new() }
    }

    async fn happen(&mut self, event: &Event) {
        self.people.happen(event).await;
        for mut tunnel in std::mem::take(&mut self.tunnels) {
            if self.people.is_ended(tunnel.token) {
                let mut rest = Vec::new();
                // Comes to an end, or the fuzzer says that it hangs.
                let _ = tunnel.socket.read_to_end(&mut rest).await;
            } else {
                self.tunnels.push(tunnel);
            }
        }
    }

    /// A failure in a task is one of the target.
    async fn check_tasks(&self) {
        let tasks: Vec<_> = self.tasks.borrow_mut().drain(..).collect();
        for task in tasks {
            if !task.is_finished() {
                self.tasks.borrow_mut().push(task);
            } else if let Err(error) = task.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    /// Holds all promises about what the backends saw and what the client got. True: nothing more goes over this
    /// connection as HTTP.
    fn check(&mut self, connection: &Connection, answer: &[u8], is_logout: bool, tokens: &[usize]) -> bool {
        let seen: Vec<Seen> = self.seen.borrow_mut().drain(..).collect();
        for request in &seen {
            self.check_request(connection, request);
        }
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(answer, |end| &answer[..end]);
        let evil = b"set-cookie: access_token=evil";
        let is_set = head.windows(evil.len()).any(|start| start.eq_ignore_ascii_case(evil));
        assert!(!is_set, "a backend set our cookie: {}", shown(answer));
        if let Some(at) = head.windows(25).position(|start| start.eq_ignore_ascii_case(b"set-cookie: access_token=")) {
            let value = head[at + 25..].split(|byte| *byte == b';').next().unwrap_or_default();
            if !value.is_empty() {
                self.people.renewed(std::str::from_utf8(value).unwrap(), tokens, &connection.bytes);
            }
        }
        let status = answer.get(9..12).unwrap_or_default();
        assert!(status != b"500", "a defect of the program: {}", shown(&connection.bytes));
        if is_logout && (status == b"204" || status == b"303") {
            self.people.logged_out(tokens, bytes_of(&self.sent));
        }
        // A connection on which something is unfinished, broken or upgraded is left alone.
        !answer.starts_with(b"HTTP/1.1 ")
            || status == b"101"
            || contains(head, b"onnection: close")
            || answer.len() == head.len()
    }

    #[expect(clippy::too_many_lines, reason = "one promise after the other")]
    fn check_request(&self, connection: &Connection, request: &Seen) {
        let all = || format!("{request}\nwhile this was sent:\n{}", shown(&connection.bytes));
        let values = |name: &str| {
            request
                .headers
                .iter()
                .filter(|(found, _)| found == name)
                .map(|(_, value)| value.as_slice())
                .collect::<Vec<_>>()
        };

        // Framed in one way.
        assert_eq!(values("host").len(), 1, "{}", all());
        let framings = values("content-length").len() + values("transfer-encoding").len();
        assert!(framings <= 1, "framed twice: {}", all());
        let connection_says = values("connection");
        // Nothing follows what another request may hide in.
        let has_body =
            !values("transfer-encoding").is_empty() || values("content-length").iter().any(|text| *text != b"0");
        let allowed: [&[&[u8]]; 3] = if has_body || request.method.as_str().eq_ignore_ascii_case("HEAD") {
            [&[b"close"], &[b"te, close"], &[b"close"]]
        } else {
            [&[], &[b"te"], &[b"upgrade"]]
        };
        assert!(allowed.contains(&connection_says.as_slice()), "hop by hop: {}", all());

        // One route.
        let (path, _) = request.target.split_once('?').unwrap_or((&request.target, ""));
        assert!(path.starts_with('/'), "{}", all());
        let prefix = if request.upstream == "api" { "/api" } else { "" };
        let whole = format!("{prefix}{path}");
        let host = String::from_utf8_lossy(values("host")[0]).to_ascii_lowercase();
        let host = if host.starts_with('[') { &*host } else { host.split(':').next().unwrap_or_default() };
        let host = host.strip_suffix('.').unwrap_or(host);
        let route = self.route_of(host, &request.method, &whole, &all);
        if !prefix.is_empty() {
            let Reference::Whole(readings) = reference(path.as_bytes()) else { panic!("unreadable: {}", all()) };
            for reading in readings {
                let whole = [prefix.as_bytes(), &reading].concat();
                let other = of_reading(&self.config, host, &request.method, &whole, false);
                assert_eq!(other, Expected::Route(route), "another route without its prefix: {}", all());
            }
        }
        let route = &self.config.routes[route];
        assert_eq!(route.upstream.as_deref(), Some(request.upstream), "another backend: {}", all());
        assert!(route.access != Access::Deny, "a closed route: {}", all());
        assert!(!["/login", "/check", "/logout", "/account"].contains(&whole.as_str()), "the portal's: {}", all());

        // Which request it was: by a header that no play can name.
        let sent = match values("x-step").as_slice() {
            [number] => {
                let number: usize = std::str::from_utf8(number).unwrap().parse().unwrap();
                Some(&self.sent[number])
            }
            // A second request within the bytes of the first.
            [] => None,
            _ => panic!("two requests in one: {}", all()),
        };
        let bytes = sent.map_or(&connection.bytes, |sent| &sent.bytes);
        let peer = sent.map_or(connection.peer, |sent| sent.peer);

        // Exactly our identity headers.
        let person = match values("x-forwarded-user").as_slice() {
            [] => None,
            [name] => Some(
                self.people
                    .named(std::str::from_utf8(name).unwrap())
                    .unwrap_or_else(|| panic!("nobody's name: {}", all())),
            ),
            _ => panic!("two people: {}", all()),
        };
        for (name, value) in &request.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            assert!(!is_disguise(&name), "{name}: {}", all());
            if names_a_person(&name) {
                let header = self.config.identity.headers.iter().find(|header| header.name == name);
                let (Some(header), Some(person)) = (header, person) else { panic!("{name} is not ours: {}", all()) };
                let expected = match header.template.as_slice() {
                    [TemplatePart::Username] => person.name.to_owned(),
                    [TemplatePart::Groups] => person.groups.join(","),
                    [TemplatePart::Email] => format!("{}@example.com", person.name),
                    _ => panic!("this configuration has no such header"),
                };
                assert_eq!(*value, expected.as_bytes(), "{name}: {}", all());
                assert_eq!(values(name.as_str()).len(), 1, "{name}: {}", all());
            }
        }

        // The person's right.
        if let Some(person) = person {
            assert!(
                self.people.has_sent_a_good_token(person, bytes),
                "{} has no right to that name: {}",
                person.name,
                all()
            );
            let groups_are_there = values("x-forwarded-groups").len() == usize::from(!person.groups.is_empty());
            assert!(groups_are_there || self.people.has_sent_a_foreign_token(person, bytes), "{}", all());
        }
        if route.access == Access::Required {
            let Some(person) = person else { panic!("nobody may do that: {}", all()) };
            let open = route.groups.is_empty() && route.users.is_empty();
            let listed = route.users.iter().any(|user| user == person.name)
                || route.groups.iter().any(|group| person.groups.contains(group));
            assert!(open || listed, "{} may not do that: {}", person.name, all());
        }

        // The token is for us alone.
        for line in values("cookie") {
            let names = [names_of(of_rfc_6265(line)), of_php(line), of_python(line)].concat();
            assert!(!names.iter().any(|name| name == b"access_token"), "our cookie went through: {}", all());
        }
        for line in values("authorization") {
            let bearer = line.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
            let ours = |token: &Token| token.is_signed && line[7..].trim_ascii() == token.text.as_bytes();
            assert!(!bearer || !self.people.tokens.iter().any(ours), "our token went through: {}", all());
        }

        // The way it came.
        let is_proxy = peer == PEERS[1].map(|peer| peer.parse().unwrap());
        let own = peer.map_or(String::from("127.0.0.1"), |peer: IpAddr| peer.to_string());
        for name in ["x-forwarded-for", "x-real-ip", "x-forwarded-proto", "x-forwarded-host", "x-request-id"] {
            assert_eq!(values(name).len(), 1, "{name}: {}", all());
        }
        if is_proxy {
            assert!(values("x-forwarded-for")[0].ends_with(own.as_bytes()), "{}", all());
        } else {
            assert_eq!(
                (values("x-forwarded-for")[0], values("x-real-ip")[0]),
                (own.as_bytes(), own.as_bytes()),
                "{}",
                all()
            );
            assert_eq!(values("x-forwarded-proto")[0], b"http", "{}", all());
        }
    }

    /// The one route to which every reading leads.
    fn route_of(&self, host: &str, method: &Method, path: &str, all: &dyn Fn() -> String) -> usize {
        let Reference::Whole(readings) = reference(path.as_bytes()) else { panic!("unreadable: {}", all()) };
        let first = of_reading(&self.config, host, method, path.as_bytes(), false);
        for reading in &readings {
            for (reading, folded) in both_ways(reading).flat_map(|reading| [(reading, false), (reading, true)]) {
                let other = of_reading(&self.config, host, method, reading, folded);
                assert_eq!(other, first, "a way around: {}", all());
            }
        }
        match first {
            Expected::Route(index) => index,
            _ => panic!("no route: {}", all()),
        }
    }
}

impl Connection {
    /// Sends bytes and takes what comes until nothing more does.
    async fn ask(&mut self, bytes: &[u8], seen: &Rc<RefCell<Vec<Seen>>>) -> Vec<u8> {
        /// How often everybody else gets a turn without anything to show for it.
        const PATIENCE: usize = 40;
        if self.socket.write_all(bytes).await.is_err() {
            return Vec::new();
        }
        let mut answer = Vec::new();
        let mut quiet = 0;
        let mut before = 0;
        let mut buffer = [0; 4096];
        // Once the answer is whole a few turns are enough to see whether there is another one.
        while quiet < if is_whole(&answer) { 6 } else { PATIENCE } {
            tokio::select! {
                biased;
                read = self.socket.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(count) => {
                        answer.extend_from_slice(&buffer[..count]);
                        quiet = 0;
                    }
                },
                () = tokio::task::yield_now() => quiet += 1,
            }
            if seen.borrow().len() > before {
                before = seen.borrow().len();
                quiet = 0;
            }
        }
        answer
    }
}

/// Whether a head and as much of a body as it announces are there.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|end| end == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    answer.len() >= end + 4 + length.unwrap_or(0) && !head.contains("chunked")
}

/// The last request.
fn bytes_of(sent: &[Sent]) -> &[u8] {
    sent.last().map_or(b"", |sent| &sent.bytes)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests;
