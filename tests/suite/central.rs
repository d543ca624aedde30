//! One centre and its verify-only gateways: a login counts everywhere, its end too, and each goes on alone for a while.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::gateway::{free_port, quoted, write_private};
use crate::support::link::{Link, Tls};
use crate::support::postgres::Cluster;
use crate::support::token;
use crate::support::wait;
use crate::support::wire::Reader;
use crate::support::{Builder, Connection, Gateway, PASSWORD, Request, Upstream};

/// What the gateways show to the centre. Made up for these tests.
const SHOWN: &str = "a token that only these tests show 0123456789";

/// The file that holds it.
fn shown(builder: Builder) -> Builder {
    let file = builder.folder().join("gateways");
    // White space can't stand in a header's token.
    write_private(&file, SHOWN.replace(' ', "-").as_bytes());
    let file = quoted(&file);
    builder.set("token.revocation_token_file", &file)
}

fn bearer() -> String {
    SHOWN.replace(' ', "-")
}

/// A centre that is not serving yet. `kim` is in `staff`, `lee` in nothing.
fn centre(upstream: &Upstream) -> Builder {
    shown(Builder::guarding(upstream)).unset("token.secret_file").set("token.algorithm", "\"EdDSA\"").user("lee", &[])
}

fn with_a_key(gateway: Gateway) -> Gateway {
    gateway.command(&["key", "generate"]).expect(0);
    gateway
}

fn serving(builder: Builder) -> Gateway {
    let mut gateway = with_a_key(builder.prepare());
    gateway.serve();
    gateway
}

/// A verify-only gateway of the centre at `origin`, with a route for `boss` beside the open one.
fn gateway_of(origin: &str, upstream: &Upstream) -> Builder {
    shown(Builder::new())
        .unset("token.secret_file")
        .set("store.kind", "\"none\"")
        .set("store.max_staleness", "\"5s\"")
        .set("token.jwks_url", &format!("\"{origin}/.well-known/jwks.json\""))
        .set("token.revocation_url", &format!("\"{origin}/gateways/revocations\""))
        .set("login.url", &format!("\"{origin}/login\""))
        .upstream("app", &[&upstream.url])
        .route("path = \"/\"\nupstream = \"app\"")
        .route("path = \"/boss\"\ngroups = [\"boss\"]\nupstream = \"app\"")
}

fn origin(gateway: &Gateway) -> String {
    format!("http://{}", gateway.address)
}

fn of(centre: &Gateway, upstream: &Upstream) -> Builder {
    gateway_of(&origin(centre), upstream)
}

fn reasons(gateway: &Gateway) -> Vec<String> {
    let ready = gateway.get_admin("/ready").json();
    ready["reasons"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap().to_owned()).collect()
}

fn session_of(token: &str) -> String {
    token::claims(token)["sid"].as_str().unwrap().to_owned()
}

/// How long it takes until a token is refused there.
fn refused_after(gateway: &Gateway, token: &str, since: Instant) -> Duration {
    let mut connection = gateway.connect();
    loop {
        if connection.send(&Request::get("/check").cookie(token)).status == 401 {
            return since.elapsed();
        }
        assert!(since.elapsed() < wait::GENEROUS, "a revoked token is still accepted");
    }
}

#[test]
fn a_login_at_the_centre_counts_at_every_gateway_and_so_does_its_end() {
    let upstream = Upstream::plain();
    let centre = serving(centre(&upstream));
    let gateways = [of(&centre, &upstream).start(), of(&centre, &upstream).start()];
    let kim = centre.login("kim");
    for gateway in &gateways {
        gateway.get_with("/", &kim).expect(200);
        assert_eq!(upstream.last().field("x-forwarded-user").as_deref(), Some("kim"));
        let check = gateway.get_with("/check", &kim).expect(200);
        assert_eq!(check.json()["groups"], json!(["staff"]));
        gateway.get_with("/boss", &kim).expect(403);
        gateway.get("/").expect(401);
    }
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..50 {
        let token = centre.login("lee");
        for gateway in &gateways {
            gateway.get_with("/check", &token).expect(200);
        }
        let mut connection = centre.connect();
        connection.begin(&Request::post("/logout").cookie(&token));
        let since = Instant::now();
        took.extend(gateways.iter().map(|gateway| refused_after(gateway, &token, since)));
        connection.read("POST", "/logout").expect(204);
    }
    took.sort();
    println!("refused at two gateways after a logout at the centre, {} samples:", took.len());
    println!("  p50 {:?}  p90 {:?}  p99 {:?}  max {:?}", took[49], took[89], took[98], took[99]);
    assert!(took[98] < Duration::from_secs(2), "p99 {:?}", took[98]);
    for gateway in &gateways {
        gateway.get_with("/check", &kim).expect(200);
    }
    // Everything else that ends logins.
    centre.command(&["session", "revoke", "--user", "kim"]).expect(0);
    let disabled = centre.login("lee");
    for gateway in &gateways {
        refused_after(gateway, &kim, Instant::now());
        gateway.get_with("/check", &disabled).expect(200);
    }
    centre.command(&["user", "disable", "lee"]).expect(0);
    for gateway in &gateways {
        refused_after(gateway, &disabled, Instant::now());
    }
    let all = centre.login("kim");
    gateways[0].get_with("/check", &all).expect(200);
    centre.command(&["session", "revoke", "--all"]).expect(0);
    refused_after(&gateways[0], &all, Instant::now());
    gateways[0].get_with("/check", &centre.login("kim")).expect(200);
    wait::until("the readers to be counted", || {
        centre.get_admin("/metrics").text().contains("doorward_feed_readers 2")
    });
}

#[test]
fn an_open_tunnel_at_a_gateway_closes_when_the_centre_ends_its_session() {
    let app = Upstream::plain();
    let tunnel = Upstream::raw(|stream| {
        let mut reader = Reader::new(stream);
        let Ok(Some(_)) = reader.head() else { return };
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        let _ = reader.stream.write_all(head.as_bytes());
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = reader.stream.read(&mut buffer) {
            if reader.stream.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
    });
    let centre = serving(centre(&app));
    let gateway = of(&centre, &tunnel).start();
    let open = |token: &str| {
        let request = Request::get("/ws")
            .field("Upgrade", "websocket")
            .field("Connection", "Upgrade")
            .field("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .field("Sec-WebSocket-Version", "13");
        let mut connection = gateway.connect();
        connection.send(&request.cookie(token)).expect(101);
        connection.write(b"hello");
        assert_eq!(connection.reader.exactly(5).unwrap(), b"hello");
        connection
    };
    let (kim, lee) = (centre.login("kim"), centre.login("lee"));
    let (mut ended, mut other) = (open(&kim), open(&lee));
    centre.command(&["session", "revoke", &session_of(&kim)]).expect(0);
    let since = Instant::now();
    assert!(ended.closes_within(Duration::from_secs(20)), "still open");
    println!("a tunnel at a gateway closed {:?} after its session was ended at the centre", since.elapsed());
    // One second is the promise; the rest is for a busy machine.
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    other.write(b"still");
    assert_eq!(other.reader.exactly(5).unwrap(), b"still");
}

#[test]
fn a_token_is_renewed_by_the_centre_once_for_many_requests() {
    let upstream = Upstream::plain();
    let short = |builder: Builder| {
        builder
            .set("token.lifetime", "\"1m\"")
            .set("token.refresh_below", "\"59s\"")
            .set("token.max_lifetime", "\"1h\"")
    };
    let mut centre = serving(short(centre(&upstream)));
    let gateway = short(of(&centre, &upstream)).start();
    let old = centre.login("kim");
    // Three seconds later a new token gains enough to be worth a question.
    let first = wait::until_some("the token to be renewed", || gateway.get_with("/", &old).token());
    let answers: Vec<Option<String>> = std::thread::scope(|scope| {
        let requests: Vec<_> =
            (0..20).map(|_| scope.spawn(|| gateway.get_with("/", &old).expect(200).token())).collect();
        requests.into_iter().map(|request| request.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|token| token.as_ref() == Some(&first)), "another token than the first");
    assert_eq!(centre.audit("renewal").len(), 1, "the centre was asked more than once");
    let (before, after) = (token::claims(&old), token::claims(&first));
    assert_eq!((&before["sid"], &before["auth_time"]), (&after["sid"], &after["auth_time"]));
    assert!(after["exp"].as_u64() > before["exp"].as_u64());
    for place in [&centre, &gateway] {
        place.get_with("/check", &first).expect(200);
    }
    // The session's record names the browser, not the gateway.
    let sessions = centre.command(&["session", "list", "--json"]).expect(0).json();
    assert_eq!(sessions[0]["address"], "127.0.0.1");
    // The answer to a program that brought the token itself sets nothing.
    assert_eq!(gateway.send(&Request::get("/").bearer(&old)).expect(200).token(), None);

    // While the centre is away the old token serves on, and is renewed by itself afterwards.
    let waiting = centre.login("lee");
    centre.kill();
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(4) {
        assert_eq!(gateway.get_with("/", &waiting).expect(200).token(), None);
        std::thread::sleep(Duration::from_millis(50));
    }
    centre.serve();
    wait::until("the token to be renewed after all", || gateway.get_with("/", &waiting).expect(200).token().is_some());
}

#[test]
fn a_change_of_groups_at_the_centre_is_seen_by_the_next_request_at_a_gateway() {
    let upstream = Upstream::plain();
    let centre = serving(centre(&upstream));
    let gateway = of(&centre, &upstream).start();
    let token = centre.login("kim");
    gateway.get_with("/boss", &token).expect(403);
    let bearer = |target: &str| gateway.send(&Request::get(target).bearer(&token));
    bearer("/boss").expect(403);
    centre.command(&["user", "set-groups", "kim", "boss"]).expect(0);
    let since = Instant::now();
    let renewed = wait::until_some("the new groups to count", || {
        let answer = gateway.get_with("/boss", &token);
        (answer.status == 200).then_some(answer)
    });
    println!("changed groups counted at a gateway after {:?}", since.elapsed());
    let renewed = renewed.token().expect("the token was not renewed");
    assert_eq!(token::claims(&renewed)["groups"], json!(["boss"]));
    assert_eq!(upstream.last().field("x-forwarded-groups").as_deref(), Some("boss"));
    // A bearer token is not renewed, and its groups are the account's all the same.
    assert_eq!(bearer("/boss").expect(200).token(), None);
    centre.command(&["user", "set-groups", "kim"]).expect(0);
    for token in [&token, &renewed] {
        wait::until("the groups to be taken away", || gateway.get_with("/boss", token).status == 403);
        gateway.get_with("/check", token).expect(200);
    }
    wait::until("the bearer's groups to be taken away", || bearer("/boss").status == 403);
    // An account that is gone is nobody.
    centre.command(&["user", "remove", "kim"]).expect(0);
    refused_after(&gateway, &renewed, Instant::now());
}

#[test]
fn a_gateway_goes_on_without_its_centre_and_misses_nothing() {
    let upstream = Upstream::plain();
    let mut centre = serving(centre(&upstream));
    let gateway = of(&centre, &upstream).start();
    let strict = of(&centre, &upstream).set("store.on_stale", "\"refuse\"").start();
    let (kim, lee, gone) = (centre.login("kim"), centre.login("lee"), centre.login("kim"));
    centre.send(&Request::post("/logout").cookie(&gone)).expect(204);
    for place in [&gateway, &strict] {
        place.get_with("/", &kim).expect(200);
        refused_after(place, &gone, Instant::now());
    }
    centre.kill();
    let since = Instant::now();
    while reasons(&gateway).is_empty() {
        // Good tokens go on, and what is over stays over.
        gateway.get_with("/", &kim).expect(200);
        gateway.get_with("/check", &gone).expect(401);
        assert!(since.elapsed() < wait::GENEROUS);
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("without its centre a gateway says that it is stale after {:?}", since.elapsed());
    assert!(since.elapsed() >= Duration::from_secs(3), "a moment's silence is no staleness: {:?}", since.elapsed());
    assert_eq!(reasons(&gateway), ["stale"]);
    let detail = gateway.get_admin("/ready").text();
    assert!(detail.contains("can't connect"), "{detail}");
    gateway.get_with("/", &kim).expect(200);
    // A logout that nobody takes down is none, and says so.
    let answer = gateway.send(&Request::post("/logout").cookie(&lee)).expect(503);
    assert_eq!(answer.token(), None);
    gateway.get_with("/check", &lee).expect(200);
    wait::until("the strict one to let nobody in", || strict.get_with("/", &kim).status == 503);

    // Ended while no gateway can hear of it.
    centre.command(&["session", "revoke", &session_of(&lee)]).expect(0);
    centre.serve();
    for place in [&gateway, &strict] {
        wait::until("the gateway to catch up", || {
            let ready = reasons(place).is_empty();
            let status = place.get_with("/check", &lee).status;
            assert!(!ready || status == 401, "it says that it is ready and has missed a revocation");
            ready
        });
        place.get_with("/check", &lee).expect(401);
        place.get_with("/check", &gone).expect(401);
        place.get_with("/", &kim).expect(200);
    }
    assert!(gateway.logs().contains("can be read from the centre again"));
}

#[test]
fn a_half_open_link_and_a_stopped_gateway_catch_up_before_they_are_ready() {
    let upstream = Upstream::plain();
    let centre = serving(centre(&upstream));
    let link = Link::to(centre.address);
    let cut_off = gateway_of(&format!("http://{}", link.address), &upstream).start();
    let stopped = of(&centre, &upstream).start();
    let (kim, lee) = (centre.login("kim"), centre.login("lee"));
    for gateway in [&cut_off, &stopped] {
        gateway.get_with("/check", &kim).expect(200);
    }
    link.cut(true);
    stopped.signal(Signal::STOP);
    centre.command(&["session", "revoke", &session_of(&kim)]).expect(0);
    wait::until("the gateway to notice that its link is dead", || !reasons(&cut_off).is_empty());
    assert_eq!(reasons(&cut_off), ["stale"]);
    cut_off.get_with("/check", &lee).expect(200);
    link.cut(false);
    let since = Instant::now();
    stopped.signal(Signal::CONT);
    for gateway in [&stopped, &cut_off] {
        wait::until("the gateway to be ready again", || {
            let ready = reasons(gateway).is_empty();
            let status = gateway.get_with("/check", &kim).status;
            assert!(!ready || status == 401, "it says that it is ready and has missed a revocation");
            ready
        });
        gateway.get_with("/check", &kim).expect(401);
        gateway.get_with("/check", &lee).expect(200);
    }
    println!("a gateway on a half-open link had caught up {:?} after the link's return", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
}

#[test]
fn a_centre_on_postgres_tells_what_others_wrote_and_how_old_what_it_knows_is() {
    let upstream = Upstream::plain();
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let centre = serving(centre(&upstream).on_postgres(&database.url()));
    let gateway = of(&centre, &upstream).start();
    let (kim, lee, gone) = (centre.login("kim"), centre.login("lee"), centre.login("kim"));
    for token in [&kim, &lee, &gone] {
        gateway.get_with("/check", token).expect(200);
    }
    // Written by a process that the centre knows nothing of.
    let other = Builder::new().upstream("app", &[&upstream.url]).route("path = \"/\"\nupstream = \"app\"");
    let other = other.on_postgres(&database.url()).prepare();
    other.command(&["session", "revoke", &session_of(&gone)]).expect(0);
    refused_after(&gateway, &gone, Instant::now());
    gateway.get_with("/check", &kim).expect(200);
    assert!(reasons(&gateway).is_empty() && reasons(&centre).is_empty());
    // The feed goes on, and says that the centre has heard of nothing: that counts as if nothing had come.
    cluster.stop();
    wait::until("the gateway to be as stale as its centre", || reasons(&gateway) == ["stale"]);
    assert!(!reasons(&centre).contains(&String::from("stale")), "the centre's own max_staleness is longer");
    assert!(!gateway.get_admin("/ready").text().contains("centre"), "the feed itself was cut");
    gateway.get_with("/check", &kim).expect(200);
    cluster.run();
    wait::until("the gateway to be ready again", || reasons(&gateway).is_empty());
    other.command(&["session", "revoke", &session_of(&lee)]).expect(0);
    refused_after(&gateway, &lee, Instant::now());
    // One that reads everything anew is told by the database what came from the other process.
    let late = of(&centre, &upstream).start();
    for token in [&lee, &gone] {
        late.get_with("/check", token).expect(401);
    }
    late.get_with("/check", &kim).expect(200);
}

#[test]
fn a_gateway_that_comes_before_its_centre_lets_nobody_in_until_it_has_read_everything() {
    let upstream = Upstream::plain();
    let mut centre = with_a_key(centre(&upstream).prepare());
    let mut gateway =
        of(&centre, &upstream).route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"").prepare();
    gateway.spawn();
    wait::until("the gateway to answer", || Connection::try_to(gateway.admin).is_ok());
    assert_eq!(reasons(&gateway), ["starting", "starting"]);
    gateway.get_admin("/ping").expect(200);
    for target in ["/", "/check"] {
        gateway.get(target).expect(503);
    }
    centre.serve();
    gateway.wait_until_ready();
    gateway.get_with("/", &centre.login("kim")).expect(200);
}

#[test]
fn the_feed_and_renewals_are_for_those_who_show_the_token() {
    let upstream = Upstream::plain();
    let centre = serving(centre(&upstream));
    let kim = centre.login("kim");
    let question = json!({"token": kim, "bearer": false, "client": "127.0.0.1", "user_agent": ""});
    let wrong = [None, Some(String::from("x")), Some(bearer() + "x"), Some(kim.clone()), Some(String::new())];
    for shown in &wrong {
        for request in [
            Request::get("/gateways/revocations"),
            Request::post("/gateways/renew").json(&question),
            Request::post("/gateways/logout").json(&question),
        ] {
            let request = match shown {
                None => request,
                Some(token) => request.bearer(token),
            };
            let answer = centre.send(&request).expect(401);
            assert_eq!(answer.token(), None);
            assert!(answer.field("www-authenticate").is_some());
        }
    }
    // Twice, as a cookie, with another scheme: no.
    let twice = Request::get("/gateways/revocations").bearer(&bearer()).bearer(&bearer());
    centre.send(&twice).expect(401);
    centre.send(&Request::get("/gateways/revocations").cookie(&bearer())).expect(401);
    centre.get_with("/check", &kim).expect(200);
    // With it, what is asked has to be a question about a good token.
    let ask = |body: &Value| centre.send(&Request::post("/gateways/renew").bearer(&bearer()).json(body));
    let other = |name: &str, value: Value| {
        let mut question = question.clone();
        question[name] = value;
        question
    };
    ask(&question).expect(200);
    ask(&other("token", json!("a.b.c"))).expect(403);
    ask(&other("token", json!(token::altered(b"another key", &kim, &json!({}))))).expect(403);
    ask(&other("client", json!("nowhere"))).expect(400);
    ask(&json!([])).expect(400);
    ask(&other("user_agent", json!("x".repeat(20_000)))).expect(413);
    centre.send(&Request::get("/gateways/renew").bearer(&bearer())).expect(405);

    // A gateway that shows another one is told so, and lets nobody in.
    let builder = of(&centre, &upstream);
    write_private(&builder.folder().join("gateways"), b"0123456789-another-token-of-these-tests");
    let mut gateway = builder.prepare();
    gateway.spawn();
    wait::until("the gateway to say why it is not ready", || {
        Connection::try_to(gateway.admin).is_ok() && gateway.get_admin("/ready").text().contains("another token here")
    });
    gateway.get_with("/", &kim).expect(503);
    let logs = gateway.logs() + &centre.logs();
    for secret in [bearer().as_str(), kim.as_str(), "another-token-of-these-tests"] {
        assert!(!logs.contains(secret), "a secret is in the log");
    }
    // The right one comes into force by a reload.
    write_private(&gateway.folder().join("gateways"), bearer().as_bytes());
    gateway.signal(Signal::HUP);
    gateway.wait_until_ready();
    gateway.get_with("/", &kim).expect(200);
}

/// Reads the feed's lines by hand.
struct Lines {
    connection: Connection,
    text: String,
}

impl Lines {
    fn after(centre: &Gateway, query: &str) -> Self {
        let mut connection = centre.connect();
        connection.begin(&Request::get(&format!("/gateways/revocations{query}")).bearer(&bearer()));
        let head = connection.head("/gateways/revocations").unwrap();
        assert_eq!(head.status, 200);
        Self { connection, text: String::new() }
    }

    fn next(&mut self) -> Value {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let value = serde_json::from_str(line).unwrap();
                self.text = rest.to_owned();
                return value;
            }
            let chunk = self.connection.reader.chunk().unwrap();
            assert!(!chunk.is_empty(), "the feed ended");
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The numbers of the entries up to the next beat, and that beat.
    fn up_to_the_beat(&mut self) -> (Vec<u64>, Value) {
        let mut numbers = Vec::new();
        loop {
            let line = self.next();
            if let Some(beat) = line.get("beat") {
                return (numbers, beat.clone());
            }
            numbers.push(line["entry"]["number"].as_u64().unwrap_or_else(|| panic!("{line}")));
        }
    }
}

#[test]
fn the_feed_is_resumed_by_number_and_told_from_the_beginning_to_one_who_was_elsewhere() {
    use sha2::Digest as _;
    let upstream = Upstream::plain();
    let mut centre = serving(centre(&upstream));
    let mut feed = Lines::after(&centre, "");
    assert_eq!(feed.next(), json!({"hello": {"version": 1, "from": 0}}));
    let (none, beat) = feed.up_to_the_beat();
    assert_eq!(none.len(), 0);
    // Milliseconds: how old they are is no matter of this test.
    assert!(beat["behind"].is_u64(), "{beat}");
    let end = |count: usize| {
        for _ in 0..count {
            centre.send(&Request::post("/logout").cookie(&centre.login("lee"))).expect(204);
        }
    };
    end(3);
    let lines: Vec<Value> = (0..).map(|_| feed.next()).filter(|line| line.get("entry").is_some()).take(3).collect();
    let numbers: Vec<u64> = lines.iter().map(|line| line["entry"]["number"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted());
    // An idle reader hears a sign of life all the same.
    let (_, first) = feed.up_to_the_beat();
    let (_, second) = feed.up_to_the_beat();
    assert_eq!(first["head"], numbers[2]);
    assert!(second["at"].as_u64() > first["at"].as_u64());

    // The print is over the line as it came.
    let text = serde_json::to_string(&lines[0]).unwrap();
    let mut raw = Lines::after(&centre, "");
    raw.next();
    raw.up_to_the_beat();
    let _ = text;
    let whole = {
        let mut raw = Lines::after(&centre, "");
        raw.next();
        while !raw.text.contains("\"beat\"") {
            let chunk = raw.connection.reader.chunk().unwrap();
            raw.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        raw.text.split_inclusive('\n').next().unwrap().to_owned()
    };
    let print: String =
        sha2::Sha256::digest(whole.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let resume = format!("?after={}&print={print}", numbers[0]);
    for restarted in [false, true] {
        if restarted {
            assert!(centre.stop().success());
            centre.serve();
        }
        let mut resumed = Lines::after(&centre, &resume);
        assert_eq!(resumed.next(), json!({"hello": {"version": 1, "from": numbers[0]}}));
        let (told, beat) = resumed.up_to_the_beat();
        assert!(told.contains(&numbers[1]) && told.contains(&numbers[2]), "{told:?}");
        assert_eq!(beat["head"], numbers[2]);
        // The same number in another history, or one that is not known.
        for elsewhere in [
            format!("?after={}&print=0000000000000000", numbers[0]),
            format!("?after=999999&print={print}"),
            String::from("?after=x&print=y"),
            String::from("?after=1"),
        ] {
            let mut whole = Lines::after(&centre, &elsewhere);
            assert_eq!(whole.next(), json!({"hello": {"version": 1, "from": 0}}), "{elsewhere}");
            assert_eq!(whole.up_to_the_beat().0, numbers, "{elsewhere}");
        }
    }
    // A drain does not wait for readers of what has no end.
    let mut last = Lines::after(&centre, "");
    last.next();
    let since = Instant::now();
    assert!(centre.stop().success());
    assert!(since.elapsed() < Duration::from_secs(20), "the drain waited for the feed: {:?}", since.elapsed());
}

#[test]
fn a_centre_that_was_put_back_to_an_older_state_is_read_again_from_the_beginning() {
    let upstream = Upstream::plain();
    let mut centre = serving(centre(&upstream));
    let gateway = of(&centre, &upstream).start();
    let ended = centre.login("lee");
    centre.send(&Request::post("/logout").cookie(&ended)).expect(204);
    assert!(centre.stop().success());
    let backup = centre.folder().join("backup");
    let copied = std::process::Command::new("cp").arg("-a").arg(centre.data()).arg(&backup).status().unwrap();
    assert!(copied.success());
    centre.serve();
    let before = centre.login("kim");
    for _ in 0..3 {
        centre.command(&["session", "revoke", "--all"]).expect(0);
    }
    let lost = centre.login("kim");
    // By this it is seen that it has connected again and read on.
    refused_after(&gateway, &before, Instant::now());
    gateway.get_with("/check", &lost).expect(200);
    assert!(centre.stop().success());
    std::fs::remove_dir_all(centre.data()).unwrap();
    std::fs::rename(&backup, centre.data()).unwrap();
    centre.serve();
    // Its tokens carry lower numbers than what the gateway knows of the lost history, and count all the same.
    let fresh = centre.login("kim");
    assert!(token::claims(&fresh)["seq"].as_u64() < token::claims(&lost)["seq"].as_u64());
    wait::until("the gateway to believe the other history", || gateway.get_with("/check", &fresh).status == 200);
    wait::until("the gateway to be ready", || reasons(&gateway).is_empty());
    gateway.get_with("/check", &ended).expect(401);
    assert!(gateway.logs().contains("went back"), "{}", gateway.logs());
}

#[test]
fn keys_that_only_a_secret_can_check_are_refused_on_both_sides() {
    let upstream = Upstream::plain();
    let centre = centre(&upstream).prepare();
    let algorithm = "algorithm = \"EdDSA\"";
    centre.rewrite(|text| text.replace(algorithm, "algorithm = \"HS256\""));
    let refused = centre.command(&["check-config"]).expect(2);
    assert!(refused.stderr.contains("token.revocation_token_file: is for verify-only gateways"), "{}", refused.stderr);
    for (key, value, word) in [
        ("token.algorithm", "\"HS256\"", "HS256 has no public key"),
        ("token.secret_file", "\"/etc/hostname\"", "holds no key"),
        ("token.previous_files", "[\"/etc/hostname\"]", "holds no key"),
        ("token.revocation_url", "\"http://127.0.0.1/feed\"", "must end with"),
        ("token.jwks_url", "\"http://user:pass@127.0.0.1/jwks\"", "must not hold a user name"),
        ("login.url", "\"http://127.0.0.1/signin\"", "must end with"),
        ("store.max_staleness", "\"2s\"", "out of range"),
    ] {
        let gateway = of(&centre, &upstream).set(key, value).prepare();
        let refused = gateway.command(&["check-config"]).expect(2);
        assert!(refused.stderr.contains(&format!(": {key}: ")) && refused.stderr.contains(word), "{}", refused.stderr);
    }
    for key in ["token.jwks_url", "token.revocation_url", "token.revocation_token_file", "login.url"] {
        let refused = of(&centre, &upstream).unset(key).prepare().command(&["check-config"]).expect(2);
        assert!(refused.stderr.contains(&format!("{key}: is missing")), "{}", refused.stderr);
        if key != "token.revocation_token_file" {
            let alone = Builder::new().upstream("app", &[&upstream.url]).route("path = \"/\"\nupstream = \"app\"");
            let refused = alone.set(key, "\"http://127.0.0.1/x\"").prepare().command(&["check-config"]).expect(2);
            assert!(refused.stderr.contains(&format!(": {key}: is for store.kind")), "{}", refused.stderr);
        }
    }
    of(&centre, &upstream).set("token.algorithm", "\"EdDSA\"").prepare().command(&["check-config"]).expect(0);
    // The token's file is a secret like any other.
    let builder = of(&centre, &upstream);
    let file = builder.folder().join("gateways");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let refused = builder.prepare().command(&["check-config"]).expect(2);
    assert!(refused.stderr.contains("can be read by others"), "{}", refused.stderr);
}

#[test]
fn a_token_that_another_key_signed_is_nobody_and_costs_the_centre_little() {
    let upstream = Upstream::plain();
    let centre = serving(centre(&upstream));
    let stranger = serving(self::centre(&upstream));
    let link = Link::to(centre.address);
    let gateway = gateway_of(&format!("http://{}", link.address), &upstream).start();
    let (good, foreign) = (centre.login("kim"), stranger.login("kim"));
    let hs256 =
        token::foreign(b"0123456789 any secret of 32 bytes and more", "a1", "kim", token::now(), token::now() + 99);
    let before = link.connections();
    let since = Instant::now();
    for _ in 0..20 {
        for bad in [&foreign, &hs256] {
            gateway.get_with("/", bad).expect(401);
            gateway.send(&Request::get("/").bearer(bad)).expect(401);
        }
        gateway.get_with("/", &good).expect(200);
    }
    // An unknown key makes the gateway look for new keys, and not at every request.
    let allowed = 2 + usize::try_from(since.elapsed().as_secs() / 5).unwrap();
    assert!(link.connections() - before <= allowed, "{} connections", link.connections() - before);
}

#[test]
fn new_keys_reach_a_gateway_and_keys_that_are_gone_leave_it() {
    let upstream = Upstream::plain();
    let centre = serving(centre(&upstream));
    let gateway = of(&centre, &upstream).start();
    let old = centre.login("kim");
    gateway.get_with("/", &old).expect(200);
    for _ in 0..3 {
        centre.command(&["key", "rotate"]).expect(0);
        // The very first request with a token of the new key.
        gateway.get_with("/", &centre.login("kim")).expect(200);
        gateway.get_with("/", &old).expect(200);
    }
    // The old keys are taken away: what they signed is nobody, there and here.
    let keys = centre.data().join("keys");
    let mut files: Vec<_> = std::fs::read_dir(&keys).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort_by_key(|file| std::fs::metadata(file).unwrap().modified().unwrap());
    let fresh = centre.login("kim");
    let kid = token::parts(&fresh).0["kid"].as_str().unwrap().to_owned();
    let listed = centre.command(&["key", "list", "--json"]).expect(0).json();
    for key in listed.as_array().unwrap() {
        if key["kid"] != *kid {
            std::fs::remove_file(key["origin"].as_str().unwrap()).unwrap();
        }
    }
    centre.signal(Signal::HUP);
    wait::until("the centre to drop the old keys", || centre.get_with("/check", &old).status == 401);
    wait::until("the gateway to drop the old keys", || gateway.get_with("/check", &old).status == 401);
    gateway.get_with("/check", &fresh).expect(200);
    // A reload keeps the keys.
    gateway.signal(Signal::HUP);
    wait::until("the gateway to reload", || !gateway.audit("reload").is_empty());
    gateway.get_with("/check", &fresh).expect(200);
}

#[test]
fn a_person_goes_from_a_gateway_to_the_centre_and_back() {
    let upstream = Upstream::plain();
    let port = free_port();
    let listen = format!("[\"127.0.0.1:{port}\"]");
    let hosts = format!("[\"127.0.0.1:{port}\"]");
    let centre = serving(centre(&upstream).set("login.redirect_hosts", &hosts));
    let mut gateway = of(&centre, &upstream).set("server.listen", &listen).prepare();
    gateway.address = ([127, 0, 0, 1], port).into();
    gateway.serve();
    let answer = gateway.send(&Request::get("/deep/page?x=1&y=%2F").navigation()).expect(303);
    let location = answer.field("location").unwrap();
    let back = format!("http://127.0.0.1:{port}/deep/page?x=1&y=%2F");
    let query: String = form_urlencoded::Serializer::new(String::new()).append_pair("rd", &back).finish();
    assert_eq!(location, format!("{}/login?{query}", origin(&centre)));
    // What the browser does next: the page, the form, and back with the cookie.
    let page = centre.send(&Request::get(&format!("/login?{query}")).navigation()).expect(200);
    assert!(page.text().contains("<form"));
    let form = [("username", "kim"), ("password", PASSWORD), ("rd", back.as_str())];
    let entered = centre.send(&Request::post("/login").form(&form)).expect(303);
    assert_eq!(entered.field("location").as_deref(), Some(back.as_str()));
    let token = entered.token().unwrap();
    gateway.send(&Request::get("/deep/page?x=1&y=%2F").navigation().cookie(&token)).expect(200);
    // A program is told where to log in.
    let told = gateway.get("/deep").expect(401).json();
    assert!(told["login_url"].as_str().unwrap().starts_with(&format!("{}/login?rd=http", origin(&centre))), "{told}");
    assert_eq!(gateway.get("/check").expect(401).json()["login_url"], format!("{}/login", origin(&centre)));

    // The portal's pages are the centre's.
    let login = gateway.send(&Request::get("/login?rd=/deep").navigation()).expect(303).field("location").unwrap();
    assert!(
        login.starts_with(&format!("{}/login?rd=http%3A%2F%2F127.0.0.1%3A{port}%2Fdeep", origin(&centre))),
        "{login}"
    );
    let evil = gateway.send(&Request::get("/login?rd=https://evil.example/").navigation()).expect(303);
    assert!(!evil.field("location").unwrap().contains("evil"));
    let account = gateway.send(&Request::get("/account").navigation().cookie(&token)).expect(303);
    assert_eq!(account.field("location"), Some(format!("{}/account", origin(&centre))));
    gateway.try_login("kim", PASSWORD).expect(405);
    gateway.send(&Request::post("/account/password").cookie(&token).form(&[("current", PASSWORD)])).expect(405);
    // It is nobody's centre itself.
    gateway.send(&Request::get("/gateways/revocations").bearer(&bearer())).expect(401);
    assert_eq!(upstream.last().field("x-forwarded-user"), Some(String::from("kim")));

    // Signing out here is signing out everywhere, at once.
    let page = gateway.send(&Request::get("/logout").navigation().cookie(&token)).expect(200);
    assert!(page.text().contains("<button"));
    gateway.send(&Request::post("/logout").cookie(&token).field("Origin", "https://evil.example")).expect(403);
    gateway.get_with("/check", &token).expect(200);
    assert!(gateway.send(&Request::post("/logout").cookie(&token)).expect(204).clears_the_cookie());
    gateway.get_with("/check", &token).expect(401);
    centre.get_with("/check", &token).expect(401);
    assert_eq!(centre.command(&["session", "list", "--json"]).expect(0).json(), json!([]));
}

#[test]
fn without_the_token_file_there_is_no_feed_and_its_paths_are_the_backends() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    for path in ["/gateways/revocations", "/gateways/renew"] {
        gateway.get(path).expect(401);
        gateway.get_with(path, &token).expect(200);
        assert_eq!(upstream.last().head.first_line, format!("GET {path} HTTP/1.1"));
    }
}

#[test]
fn commands_on_a_verify_only_configuration_say_where_to_go() {
    let upstream = Upstream::plain();
    let centre = centre(&upstream).prepare();
    let gateway = of(&centre, &upstream).prepare();
    for arguments in [
        &["user", "list"][..],
        &["session", "revoke", "--all"],
        &["token", "issue", "kim"],
        &["key", "rotate"],
        &["store", "dump"],
        &["explain", "GET", "http://127.0.0.1/", "--as", "kim"],
    ] {
        let refused = gateway.command(arguments);
        assert!(matches!(refused.status, Some(1 | 2)), "{arguments:?}: {refused:?}");
        assert!(
            refused.stderr.contains(&format!("its centre, {}", origin(&centre))),
            "{arguments:?}: {}",
            refused.stderr
        );
    }
    assert!(!gateway.data().exists(), "a verify-only gateway needs no folder");
    gateway.command(&["explain", "GET", "http://127.0.0.1/boss"]).expect(0);
}

#[test]
fn the_centre_is_reached_over_tls_by_its_authority_alone() {
    let upstream = Upstream::plain();
    // With the other algorithm that has public keys, and nothing but that.
    let centre = serving(centre(&upstream).set("token.algorithm", "\"ES256\""));
    let folder = tempfile::tempdir().unwrap();
    let tls = Tls::in_front_of(centre.address, folder.path());
    let https = format!("https://localhost:{}", tls.port);
    let gateway = gateway_of(&https, &upstream)
        .set("token.ca_file", &quoted(&tls.ca_file))
        .set("token.algorithm", "\"ES256\"")
        .start();
    let kim = centre.login("kim");
    gateway.get_with("/", &kim).expect(200);
    centre.command(&["user", "set-groups", "kim", "boss"]).expect(0);
    wait::until("the new groups to count", || gateway.get_with("/boss", &kim).status == 200);
    gateway.send(&Request::post("/logout").cookie(&kim)).expect(204);
    centre.get_with("/check", &kim).expect(401);
    // The system's authorities know nothing of this one.
    let mut doubtful = gateway_of(&https, &upstream).prepare();
    doubtful.spawn();
    wait::until("the gateway to say what is wrong", || {
        Connection::try_to(doubtful.admin).is_ok() && doubtful.get_admin("/ready").text().contains("certificate")
    });
    doubtful.get("/").expect(503);
}
