//! Over real sockets: a client that writes bytes, a small gateway around `forward`, a backend that writes bytes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::{Access, Reuse, UpstreamUrl};
use crate::message::admit::{Edge, Scheme, admit};
use crate::policy::{Caller, Policy, Unidentified, decide};
use crate::telemetry::metrics::Metrics;

/// Runs a test on one thread, as a worker does, and never for ever.
fn on_a_worker(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(Duration::from_mins(1), test).await.expect("the test hangs") };
    tokio::task::LocalSet::new().block_on(&runtime, limited);
}

fn config(urls: Vec<UpstreamUrl>) -> config::Upstream {
    config::Upstream {
        name: String::from("app"),
        urls,
        host: UpstreamHost::Preserve,
        connect_timeout: Duration::from_secs(5),
        response_timeout: Duration::from_secs(30),
        health_path: None,
        ca_file: None,
        server_name: None,
        reuse: Reuse::WithoutBody,
        forward_token: false,
        adopt_login: false,
        basic: false,
    }
}

struct Gateway {
    port: u16,
    health: Arc<Health>,
    clock: Clock,
    metrics: Metrics,
}

impl Gateway {
    async fn start(config: config::Upstream, body_timeout: Duration) -> Self {
        let (clock, metrics) = (Clock::manual(1_000), Metrics::default());
        let all = BTreeMap::from([(String::from("app"), config)]);
        let health = Arc::new(Health::new(&all, &clock, &metrics));
        let names = [String::from("app")];
        let upstreams = Rc::new(Upstreams::new(&names, &all, Arc::clone(&health), clock.clone()).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::task::spawn_local(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let upstreams = Rc::clone(&upstreams);
                let ties = Rc::<Ties>::default();
                let service =
                    service_fn(move |request| answer(Rc::clone(&upstreams), Rc::clone(&ties), request, body_timeout));
                let io = TokioIo::new(socket);
                let mut builder = hyper::server::conn::http1::Builder::new();
                builder.max_buf_size(64 * 1024).max_header_size(32 * 1024);
                tokio::task::spawn_local(builder.serve_connection(io, service).with_upgrades());
            }
        });
        Self { port, health, clock, metrics }
    }

    async fn to(port: u16) -> Self {
        Self::start(config(vec![url(port)]), Duration::from_secs(30)).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    /// The whole answer to one request on a connection of its own.
    async fn ask(&self, request: &str) -> String {
        let mut client = self.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    fn in_use(&self) -> bool {
        self.health.unreachable(self.clock.instant()).is_empty()
    }
}

type TestBody = UnsyncBoxBody<Bytes, BodyError>;

async fn answer(
    upstreams: Rc<Upstreams>,
    ties: Rc<Ties>,
    mut request: Request<Incoming>,
    body_timeout: Duration,
) -> Result<Response<LocalBody>, std::convert::Infallible> {
    let client = hyper::upgrade::on(&mut request);
    let edge = Edge { trusted_proxies: Vec::new(), scheme: Scheme::Http };
    let (parts, body) = request.into_parts();
    let admitted = admit(&parts, None, &edge).unwrap();
    let policy = Policy { access: Access::Public, groups: Vec::new(), users: Vec::new() };
    let pass = decide(&policy, &Caller::Anonymous(Unidentified::NoCredential)).unwrap();
    let outgoing = Outgoing {
        pass: &pass,
        admitted: &admitted,
        peer: None,
        request_id: &HeaderValue::from_static("id"),
        strip_prefix: "",
        destination: None,
        guarded: &Guarded::new(&[], false),
        identity: b"",
        cookie_name: "access_token",
        said_of_cookie: std::cell::RefCell::default(),
        own_bearer: false,
        body_timeout,
        disbelieved: std::cell::Cell::new(false),
        basic_password: None,
        spelling: &Spelling::default(),
        ties: &ties,
    };
    let own = |status: StatusCode, text: String| {
        let mut response = Response::new(LocalBody::Own(TestBody::new(
            http_body_util::Full::from(text).map_err(|never| match never {}),
        )));
        *response.status_mut() = status;
        response
    };
    Ok(match upstreams.forward(0, &parts, body, &outgoing).await {
        Ok(Answer::Response(response)) => response.map(LocalBody::Upstream),
        Ok(Answer::Tunnel { head, upstream }) => {
            tokio::task::spawn_local(upstream.join(client, std::future::pending()));
            head.map(|()| LocalBody::Own(TestBody::new(http_body_util::Empty::new().map_err(|never| match never {}))))
        }
        Err(error) => {
            let status = match &error {
                Error::Unreachable { .. } | Error::Broken { .. } | Error::Malformed { .. } => StatusCode::BAD_GATEWAY,
                Error::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
                Error::ClientBody(_) => StatusCode::BAD_REQUEST,
                Error::ClientBodyTimedOut => StatusCode::REQUEST_TIMEOUT,
            };
            own(status, error.to_string())
        }
    })
}

enum LocalBody {
    Own(TestBody),
    Upstream(UpstreamBody),
}

impl http_body::Body for LocalBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Own(body) => std::pin::Pin::new(body).poll_frame(task),
            Self::Upstream(body) => std::pin::Pin::new(body).poll_frame(task),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Upstream(body) => body.size_hint(),
        }
    }
}

fn url(port: u16) -> UpstreamUrl {
    UpstreamUrl::Http { host: String::from("127.0.0.1"), port }
}

/// What a scripted backend saw.
#[derive(Default)]
struct Seen {
    connections: Cell<usize>,
    heads: RefCell<Vec<String>>,
}

/// A backend that runs `script` on each connection.
async fn backend<F: Future<Output = ()> + 'static>(script: impl Fn(Wire, Rc<Seen>) -> F + 'static) -> (u16, Rc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Rc::new(Seen::default());
    let all = Rc::clone(&seen);
    tokio::task::spawn_local(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            all.connections.set(all.connections.get() + 1);
            tokio::task::spawn_local(script(Wire { socket, buffer: Vec::new() }, Rc::clone(&all)));
        }
    });
    (port, seen)
}

struct Wire {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    /// Reads up to and with `end`; `None` when the other side is gone.
    async fn until(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end.as_bytes()) {
                let taken = self.buffer.drain(..at + end.len()).collect();
                return Some(String::from_utf8(taken).unwrap());
            }
            let mut piece = [0; 4096];
            match self.socket.read(&mut piece).await {
                Ok(count @ 1..) => self.buffer.extend_from_slice(&piece[..count]),
                _ => return None,
            }
        }
    }

    async fn head(&mut self, seen: &Seen) -> Option<String> {
        let head = self.until("\r\n\r\n").await?;
        seen.heads.borrow_mut().push(head.clone());
        Some(head)
    }

    async fn say(&mut self, text: &str) {
        let _ = self.socket.write_all(text.as_bytes()).await;
    }
}

/// A backend that gives the same bytes for every request on a connection that it keeps open.
async fn saying(text: &'static str) -> (u16, Rc<Seen>) {
    backend(move |mut wire, seen| async move {
        while wire.head(&seen).await.is_some() {
            wire.say(text).await;
        }
    })
    .await
}

const GET: &str = "GET /a HTTP/1.1\r\nHost: gw.test\r\nConnection: close\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn a_connection_serves_one_request_after_the_other() {
    on_a_worker(async {
        let (port, seen) = saying(OK).await;
        let gateway = Gateway::to(port).await;
        for _ in 0..50 {
            assert!(gateway.ask(GET).await.ends_with("ok"));
        }
        assert_eq!((seen.heads.borrow().len(), seen.connections.get()), (50, 1));
        // What has idled too long is not used again.
        gateway.clock.advance(Duration::from_secs(2));
        gateway.ask(GET).await;
        assert_eq!(seen.connections.get(), 2);
    });
}

#[test]
fn a_backend_that_closes_after_each_answer_fails_no_get_and_gets_no_post_twice() {
    on_a_worker(async {
        let (port, seen) = backend(|mut wire, seen| async move {
            wire.head(&seen).await;
            wire.say(OK).await;
            // Once at once, once after a moment: both ends of the race.
            if seen.heads.borrow().len() % 2 == 0 {
                tokio::time::sleep(Duration::from_micros(300)).await;
            }
        })
        .await;
        let gateway = Gateway::to(port).await;
        let mut client = Wire { socket: gateway.connect().await, buffer: Vec::new() };
        for number in 0..1000 {
            client.say("GET /a HTTP/1.1\r\nHost: gw.test\r\n\r\n").await;
            let head = client.until("\r\n\r\n").await.unwrap();
            assert!(head.starts_with("HTTP/1.1 200"), "request {number}: {head}");
            client.until("ok").await.unwrap();
        }
        for number in 0..100 {
            gateway.ask(GET).await;
            let once =
                format!("POST /p{number} HTTP/1.1\r\nHost: gw.test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            gateway.ask(&once).await;
        }
        let heads = seen.heads.borrow();
        let mut uploads: Vec<_> = heads.iter().filter(|head| head.starts_with("POST")).collect();
        let all = uploads.len();
        uploads.sort();
        uploads.dedup();
        assert_eq!(uploads.len(), all);
    });
}

#[test]
fn a_post_that_met_a_closed_connection_is_not_sent_again() {
    on_a_worker(async {
        let (port, seen) = backend(|mut wire, seen| async move {
            while let Some(head) = wire.head(&seen).await {
                if head.starts_with("POST") {
                    return;
                }
                wire.say(OK).await;
            }
        })
        .await;
        let gateway = Gateway::to(port).await;
        gateway.ask(GET).await;
        let answer =
            gateway.ask("POST /p HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx").await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        assert_eq!(seen.heads.borrow().iter().filter(|head| head.starts_with("POST")).count(), 1);
    });
}

#[test]
fn a_get_keeps_its_body_and_a_length_is_written_anew() {
    on_a_worker(async {
        let (port, seen) = backend(|mut wire, seen| async move {
            let head = wire.head(&seen).await.unwrap();
            let body = wire.until(if head.contains("chunked") { "0\r\n\r\n" } else { "hello" }).await.unwrap();
            seen.heads.borrow_mut().push(body);
            wire.say(OK).await;
        })
        .await;
        let gateway = Gateway::to(port).await;
        let close = "Host: gw.test\r\nConnection: close\r\n";
        for method in ["GET", "DELETE", "POST"] {
            let request =
                format!("{method} /a HTTP/1.1\r\n{close}Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n");
            assert!(gateway.ask(&request).await.ends_with("ok"));
            let recorded = seen.heads.take();
            let (head, body) = (recorded[0].to_lowercase(), &recorded[1]);
            assert_eq!(head.matches("transfer-encoding: chunked\r\n").count(), 1, "{head}");
            assert!(!head.contains("content-length"), "{head}");
            assert_eq!(body, "5\r\nhello\r\n0\r\n\r\n");
            let request = format!("{method} /a HTTP/1.1\r\n{close}Content-Length: 005\r\n\r\nhello");
            assert!(gateway.ask(&request).await.ends_with("ok"));
            let head = seen.heads.take().remove(0);
            assert!(head.contains("Content-Length: 5\r\n") && !head.contains("chunked"), "{head}");
        }
    });
}

#[test]
fn answers_that_can_be_read_two_ways_are_no_answers() {
    on_a_worker(async {
        for bad in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: a\r\n b\r\n\r\nok",
            "HTTP/1.1 OK\r\n\r\n",
            "SSH-2.0-something\r\n",
        ] {
            let (port, _) = saying(bad).await;
            let answer = Gateway::to(port).await.ask(GET).await;
            assert!(answer.starts_with("HTTP/1.1 502"), "{bad:?}: {answer}");
        }
        // For HEAD the codec doesn't look at the length.
        let head = GET.replace("GET", "HEAD");
        let (port, _) = saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n").await;
        assert!(Gateway::to(port).await.ask(&head).await.starts_with("HTTP/1.1 502"));
        let (port, _) = saying("HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 7\r\n\r\n").await;
        let answer = Gateway::to(port).await.ask(&head).await;
        assert!(answer.matches("ontent-").count() == 1 && answer.contains("ength: 7"), "{answer}");
    });
}

#[test]
fn each_framing_of_an_answer_arrives_whole_and_a_cut_one_looks_cut() {
    on_a_worker(async {
        let both = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        let (port, _) = saying(both).await;
        let answer = Gateway::to(port).await.ask(GET).await;
        assert!(!answer.to_lowercase().contains("content-length"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "{answer}");

        for (text, end) in [
            ("HTTP/1.0 200 OK\r\n\r\nuntil the end", "\r\nD\r\nuntil the end\r\n0\r\n\r\n"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", "\r\n\r\nok"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "\r\n2\r\nok\r\n"),
        ] {
            let (port, _) = backend(move |mut wire, seen| async move {
                wire.head(&seen).await;
                wire.say(text).await;
            })
            .await;
            let answer = Gateway::to(port).await.ask(GET).await;
            assert!(answer.ends_with(end), "{text:?}: {answer:?}");
        }
    });
}

#[test]
fn an_answer_before_the_end_of_an_upload_arrives_though_the_backend_hangs_up() {
    on_a_worker(async {
        // Closes with most of the upload unread, so that the kernel resets the connection.
        let (port, _) = backend(|mut wire, seen| async move {
            wire.head(&seen).await;
            wire.say("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
        })
        .await;
        let gateway = Gateway::to(port).await;
        for _ in 0..100 {
            let mut client = Wire { socket: gateway.connect().await, buffer: Vec::new() };
            client.say("POST /a HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 100000000\r\n\r\n").await;
            let (mut reads, mut writes) = client.socket.split();
            let upload = async {
                let piece = vec![0; 64 * 1024];
                while writes.write_all(&piece).await.is_ok() {}
                std::future::pending::<()>().await;
            };
            let mut head = [0; 12];
            tokio::select! {
                read = reads.read_exact(&mut head) => { read.unwrap(); }
                () = upload => {}
            }
            assert_eq!(std::str::from_utf8(&head).unwrap(), "HTTP/1.1 413");
        }
        assert!(gateway.in_use());
    });
}

#[test]
fn a_client_that_stalls_is_told_so_and_is_not_the_backends_failure() {
    on_a_worker(async {
        let (port, _) = backend(|mut wire, seen| async move {
            wire.head(&seen).await;
            wire.until("never").await;
        })
        .await;
        let patient = config::Upstream { response_timeout: Duration::from_millis(20), ..config(vec![url(port)]) };
        let gateway = Gateway::start(patient, Duration::from_millis(200)).await;
        for _ in 0..4 {
            let request = "POST /a HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 10\r\n\r\n12";
            let answer = gateway.ask(request).await;
            assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
            let request = "POST /a HTTP/1.1\r\nHost: gw.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
            assert!(gateway.ask(request).await.starts_with("HTTP/1.1 400"));
        }
        assert!(gateway.in_use(), "clients put a backend out of use");
        // A whole request that gets no answer is.
        for _ in 0..3 {
            assert!(gateway.ask(GET).await.starts_with("HTTP/1.1 504"));
        }
        assert!(!gateway.in_use());
    });
}

#[test]
fn after_its_rest_one_request_alone_tries_a_url() {
    let clock = Clock::manual(1_000);
    let all = BTreeMap::from([(String::from("app"), config(vec![url(1), url(2)]))]);
    let health = Health::new(&all, &clock, &Metrics::default());
    let state = &health.urls("app")[0];
    let limit = Duration::from_secs(5);
    let now = || health.millis(clock.instant());
    assert!(!state.begin_trial(now, limit), "in use");
    for _ in 0..3 {
        state.failed(now());
    }
    assert!(!state.is_in_use(now()) && !state.begin_trial(now, limit), "resting");
    clock.advance(Duration::from_secs(1));
    assert!(state.begin_trial(now, limit));
    assert!(!state.is_in_use(now()) && !state.begin_trial(now, limit), "another is trying");
    // One failure is enough now, and the rest is longer.
    state.failed(now());
    clock.advance(Duration::from_millis(1_999));
    assert!(!state.begin_trial(now, limit));
    clock.advance(Duration::from_millis(1));
    assert!(state.begin_trial(now, limit));
    // The client left: somebody else may.
    clock.advance(Duration::from_secs(6));
    assert!(state.begin_trial(now, limit));
    state.succeeded();
    assert!(state.is_in_use(now()) && !state.begin_trial(now, limit));
}

#[test]
fn a_url_is_left_out_when_it_fails_and_nothing_is_lost_by_it() {
    on_a_worker(async {
        let (alive, seen) = saying(OK).await;
        // Bound and never accepted from is not refused; a closed port is.
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let gateway = Gateway::start(config(vec![url(dead), url(alive)]), Duration::from_secs(30)).await;
        for _ in 0..10 {
            let once = "POST /p HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
            assert!(gateway.ask(once).await.ends_with("ok"));
        }
        assert_eq!(seen.heads.borrow().len(), 10);
        let line = format!("doorward_upstream_errors_total{{upstream=\"app\",url=\"http://127.0.0.1:{dead}\"}} 3");
        assert!(gateway.metrics.text().contains(&line), "{}", gateway.metrics.text());
    });
}

#[test]
fn bytes_right_behind_the_101_are_part_of_the_tunnel() {
    on_a_worker(async {
        let (port, _) = backend(|mut wire, seen| async move {
            let head = wire.head(&seen).await.unwrap().to_lowercase();
            assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
            wire.say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nSet-Cookie: access_token=x\r\n\r\nfirst").await;
            if let Some(line) = wire.until("\n").await {
                wire.say(&line.to_uppercase()).await;
            }
        })
        .await;
        let gateway = Gateway::to(port).await;
        let mut client = Wire { socket: gateway.connect().await, buffer: Vec::new() };
        // The client's own first bytes come before the backend has agreed, too.
        client
            .say("GET /ws HTTP/1.1\r\nHost: gw.test\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nhello\n")
            .await;
        let head = client.until("\r\n\r\n").await.unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: websocket"), "{head}");
        assert!(!head.contains("set-cookie"), "{head}");
        assert_eq!(client.until("HELLO\n").await.unwrap(), "firstHELLO\n");
        // The backend has hung up; so does the gateway, once the client has.
        client.socket.shutdown().await.unwrap();
        assert_eq!(client.until("more").await, None);
    });
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    on_a_worker(async {
        let (port, seen) = backend(|mut wire, seen| async move {
            wire.head(&seen).await;
            let _ = wire.until("never").await;
            seen.heads.borrow_mut().push(String::from("gone"));
        })
        .await;
        let gateway = Gateway::to(port).await;
        let mut client = Wire { socket: gateway.connect().await, buffer: Vec::new() };
        client.say("GET /a HTTP/1.1\r\nHost: gw.test\r\n\r\n").await;
        while seen.heads.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(client);
        while seen.heads.borrow().len() < 2 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn https_is_trusted_by_its_authority_and_name_alone() {
    on_a_worker(async {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        self_signed(folder.path(), "right", "localhost");
        self_signed(folder.path(), "other", "other.test");
        issued(folder.path(), "leaf", "authority", "app.internal");
        for (served, trusted, name, status) in [
            ("right", "right", None, "200"),
            ("right", "other", None, "502"),
            // The backend's own certificate is pinned, whatever it is called.
            ("other", "other", None, "200"),
            ("leaf", "leaf", None, "200"),
            ("leaf", "leaf", Some("whatever.test"), "200"),
            // One that an authority issued is for its name alone.
            ("leaf", "authority", None, "502"),
            ("leaf", "authority", Some("app.internal"), "200"),
            ("leaf", "authority", Some("other.test"), "502"),
            ("right", "authority", None, "502"),
            ("right", "leaf", None, "502"),
        ] {
            let port = tls_backend(&file(&format!("{served}.crt")), &file(&format!("{served}.key"))).await;
            let urls = vec![UpstreamUrl::Https { host: String::from("localhost"), port }];
            let ca_file = Some(file(&format!("{trusted}.crt")).into());
            let server_name = name.map(str::to_owned);
            let one = config::Upstream { ca_file, server_name, ..config(urls) };
            let gateway = Gateway::start(one, Duration::from_secs(30)).await;
            for _ in 0..2 {
                let answer = gateway.ask(GET).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{served} {trusted} {name:?}: {answer}");
            }
        }
        // A backend that speaks no TLS is not spoken to without it.
        let (port, seen) = saying(OK).await;
        let urls = vec![UpstreamUrl::Https { host: String::from("localhost"), port }];
        let ca_file = Some(file("right.crt").into());
        let gateway = Gateway::start(
            config::Upstream { ca_file, connect_timeout: Duration::from_millis(200), ..config(urls) },
            Duration::from_secs(30),
        )
        .await;
        assert!(gateway.ask(GET).await.starts_with("HTTP/1.1 502"));
        assert!(seen.heads.borrow().is_empty());
    });
}

/// A self-signed certificate, which is its own authority: `NAME.crt` and `NAME.key`.
fn self_signed(folder: &std::path::Path, name: &str, host: &str) {
    let file = |name: String| folder.join(name).to_str().unwrap().to_owned();
    let settings = format!(
        "[req]\ndistinguished_name = dn\nx509_extensions = ext\nprompt = no\n[dn]\nCN = {name}\n\
         [ext]\nsubjectAltName = DNS:{host}\nbasicConstraints = critical, CA:FALSE\n"
    );
    std::fs::write(folder.join("settings"), settings).unwrap();
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-config", &file(String::from("settings")), "-keyout", &file(format!("{name}.key"))])
        .args(["-out", &file(format!("{name}.crt"))])
        .output()
        .expect("the openssl command is needed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// `NAME.crt` and `NAME.key` for a host, issued by `AUTHORITY.crt`, which is made as well.
fn issued(folder: &std::path::Path, name: &str, authority: &str, host: &str) {
    let file = |name: String| folder.join(name).to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| {
        let made =
            std::process::Command::new("openssl").args(arguments).output().expect("the openssl command is needed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    std::fs::write(folder.join("extensions"), format!("subjectAltName = DNS:{host}\n")).unwrap();
    let (ca, ca_key) = (file(format!("{authority}.crt")), file(format!("{authority}.key")));
    let (key, request) = (file(format!("{name}.key")), file(format!("{name}.csr")));
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let made =
        [&["req", "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", &ca_key, "-out", &ca], &new_key[..]];
    run(&made.concat());
    run(&[&["req", "-subj", "/CN=leaf", "-keyout", &key, "-out", &request], &new_key[..]].concat());
    let extensions = file(String::from("extensions"));
    let signed = file(format!("{name}.crt"));
    run(&[
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        &extensions,
        "-out",
        &signed,
    ]);
}

#[test]
fn a_pinned_certificate_is_taken_after_its_time_and_no_other_is() {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    let folder = tempfile::tempdir().unwrap();
    self_signed(folder.path(), "own", "own.test");
    issued(folder.path(), "leaf", "authority", "own.test");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let certificate = |name: &str| CertificateDer::from_pem_file(folder.path().join(format!("{name}.crt"))).unwrap();
    let name = ServerName::try_from("own.test").unwrap();
    let later = UnixTime::since_unix_epoch(Duration::from_secs(4_000_000_000));
    for (trusted, shown, now, taken) in [
        ("own", "own", later, true),
        ("leaf", "leaf", later, true),
        ("authority", "leaf", UnixTime::now(), true),
        ("authority", "leaf", later, false),
        ("own", "leaf", later, false),
    ] {
        let verifier = tls::verifier(Some(&folder.path().join(format!("{trusted}.crt"))), &provider).unwrap();
        let outcome = verifier.verify_server_cert(&certificate(shown), &[], &name, &[], now);
        assert_eq!(outcome.is_ok(), taken, "{trusted} {shown}: {outcome:?}");
    }
}

#[test]
fn who_shows_a_pinned_certificate_without_its_key_is_nobody() {
    on_a_worker(async {
        use rustls::pki_types::pem::PemObject as _;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        #[derive(Debug)]
        struct Impostor(Arc<rustls::sign::CertifiedKey>);
        impl rustls::server::ResolvesServerCert for Impostor {
            fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
                Some(Arc::clone(&self.0))
            }
        }
        let folder = tempfile::tempdir().unwrap();
        self_signed(folder.path(), "own", "localhost");
        self_signed(folder.path(), "thief", "localhost");
        let file = |name: &str| folder.path().join(name);
        for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
            for (key, status) in [("own.key", "200"), ("thief.key", "502")] {
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let key = PrivateKeyDer::from_pem_file(file(key)).unwrap();
                let key = provider.key_provider.load_private_key(key).unwrap();
                let shown = vec![CertificateDer::from_pem_file(file("own.crt")).unwrap()];
                let shown = Arc::new(rustls::sign::CertifiedKey::new(shown, key));
                let server = rustls::ServerConfig::builder_with_provider(provider)
                    .with_protocol_versions(versions)
                    .unwrap()
                    .with_no_client_auth()
                    .with_cert_resolver(Arc::new(Impostor(shown)));
                let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
                let listener = TcpListener::bind("localhost:0").await.unwrap();
                let port = listener.local_addr().unwrap().port();
                tokio::task::spawn_local(async move {
                    let (socket, _) = listener.accept().await.unwrap();
                    let Ok(mut stream) = acceptor.accept(socket).await else { return };
                    let mut piece = [0; 4096];
                    while let Ok(1..) = stream.read(&mut piece).await {
                        let _ = stream.write_all(OK.as_bytes()).await;
                    }
                });
                let urls = vec![UpstreamUrl::Https { host: String::from("localhost"), port }];
                let one = config::Upstream { ca_file: Some(file("own.crt")), ..config(urls) };
                let answer = Gateway::start(one, Duration::from_secs(30)).await.ask(GET).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            }
        }
    });
}

fn acceptor(certificate: &str, key: &str) -> tokio_rustls::TlsAcceptor {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(certificate).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

/// Speaks TLS on `localhost`, with ALPN, and answers every request with `ok`.
async fn tls_backend(certificate: &str, key: &str) -> u16 {
    let acceptor = acceptor(certificate, key);
    let listener = TcpListener::bind("localhost:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(socket).await else { continue };
            tokio::task::spawn_local(async move {
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
                assert!(stream.get_ref().1.server_name().is_some());
                let mut piece = [0; 4096];
                while let Ok(1..) = stream.read(&mut piece).await {
                    let _ = stream.write_all(OK.as_bytes()).await;
                }
            });
        }
    });
    port
}

/// A backend that gives `text` byte by byte.
async fn dribbling(text: &'static str) -> (u16, Rc<Seen>) {
    backend(move |mut wire, seen| async move {
        while wire.head(&seen).await.is_some() {
            for byte in text.as_bytes() {
                wire.say(std::str::from_utf8(&[*byte]).unwrap()).await;
                tokio::task::yield_now().await;
            }
        }
    })
    .await
}

#[test]
fn an_answer_that_comes_in_single_bytes_is_the_same_answer() {
    on_a_worker(async {
        let chunks = "2;a=b\r\nok\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n";
        for (head, body, content) in [
            ("HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5", "hello", "hello"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", chunks, "ok0123456789"),
            ("HTTP/1.1 204 No Content\r\nX: y", "", ""),
        ] {
            let text = format!("{head}\r\n\r\n{body}").leak();
            let (port, seen) = dribbling(text).await;
            let gateway = Gateway::to(port).await;
            for _ in 0..3 {
                let answer = gateway.ask(GET).await;
                let (head, came) = answer.split_once("\r\n\r\n").unwrap();
                let came = if head.contains("chunked") { without_chunks(came) } else { came.to_owned() };
                assert_eq!(came, content, "{answer:?}");
            }
            assert_eq!(seen.connections.get(), 1, "{text:?}");
        }
    });
}

#[test]
fn interim_answers_are_passed_by_but_not_for_ever() {
    on_a_worker(async {
        for (count, status) in [(50, "200"), (64, "200"), (65, "502"), (10_000, "502")] {
            let text = format!("{}{OK}", "HTTP/1.1 100 Continue\r\nX: y\r\n\r\n".repeat(count));
            let (port, _) = saying(text.leak()).await;
            let answer = Gateway::to(port).await.ask(GET).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{count}: {answer}");
        }
    });
}

#[test]
fn what_was_not_asked_for_is_nobodys_answer() {
    on_a_worker(async {
        // Right behind the answer, and a moment later when the connection idles.
        for late in [false, true] {
            let (port, seen) = backend(move |mut wire, seen| async move {
                while wire.head(&seen).await.is_some() {
                    let extra = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged";
                    if late {
                        wire.say(OK).await;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        wire.say(extra).await;
                    } else {
                        wire.say(&format!("{OK}{extra}")).await;
                    }
                }
            })
            .await;
            let gateway = Gateway::to(port).await;
            for number in 0..5 {
                let answer = gateway.ask(GET).await;
                assert!(answer.ends_with("ok"), "{answer}");
                while late && seen.heads.borrow().len() <= number {
                    tokio::task::yield_now().await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(seen.connections.get(), 5);
        }
    });
}

#[test]
fn answers_without_a_body_leave_the_connection_in_step() {
    on_a_worker(async {
        let (port, seen) = backend(|mut wire, seen| async move {
            while let Some(head) = wire.head(&seen).await {
                wire.say(match head.split(' ').nth(1).unwrap() {
                    "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
                    "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                    "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                    "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n",
                    _ => OK,
                })
                .await;
            }
        })
        .await;
        let gateway = Gateway::to(port).await;
        for (method, path) in
            [("GET", "/304"), ("GET", "/204"), ("HEAD", "/chunked"), ("HEAD", "/length"), ("HEAD", "/304")]
        {
            let answer = gateway.ask(&GET.replace("GET /a", &format!("{method} {path}"))).await;
            assert!(answer.ends_with("\r\n\r\n"), "{path}: {answer}");
            assert!(gateway.ask(GET).await.ends_with("ok"), "{path}");
        }
        // A 304 that announced a body and three HEADs had connections on which nothing followed.
        assert_eq!((seen.heads.borrow().len(), seen.connections.get()), (10, 5));
        for head in seen.heads.borrow().iter() {
            assert_eq!(head.contains("Connection: close\r\n"), head.starts_with("HEAD"), "{head}");
        }
    });
}

#[test]
fn nothing_follows_a_refused_handshake_or_an_interim_answer_that_announced_a_body() {
    on_a_worker(async {
        let (port, seen) = backend(|mut wire, seen| async move {
            while let Some(head) = wire.head(&seen).await {
                wire.say(match head.split(' ').nth(1).unwrap() {
                    "/hints" => "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n",
                    "/long" => "HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n",
                    "/last" => "HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n",
                    _ => "",
                })
                .await;
                wire.say(OK).await;
            }
        })
        .await;
        let gateway = Gateway::to(port).await;
        let handshake = "Upgrade: websocket\r\nConnection: upgrade, close\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        for (path, lines, follows) in [
            ("/hints", "Connection: close", true),
            ("/long", "Connection: close", false),
            ("/last", "Connection: close", false),
            ("/socket", handshake, false),
        ] {
            let before = seen.connections.get();
            let request = format!("GET {path} HTTP/1.1\r\nHost: gw.test\r\n{lines}\r\n\r\n");
            assert!(gateway.ask(&request).await.ends_with("ok"), "{path}");
            assert!(gateway.ask(GET).await.ends_with("ok"), "{path}");
            let expected = if follows { before.max(1) } else { before + 1 };
            assert_eq!(seen.connections.get(), expected, "{path}");
        }
    });
}

#[test]
fn a_connection_that_either_side_logs_in_is_its_clients_alone() {
    on_a_worker(async {
        // Path: what the answer says beside its length.
        let (port, seen) = backend(|mut wire, seen| async move {
            while let Some(head) = wire.head(&seen).await {
                let said = match head.split(' ').nth(1).unwrap() {
                    "/challenge" => "WWW-Authenticate: Basic realm=\"a\", nEgOtIaTe\r\n",
                    "/second" => "WWW-Authenticate: Basic realm=\"a\"\r\nWWW-Authenticate: NTLM\r\n",
                    "/basic" => "WWW-Authenticate: Basic realm=\"a\"\r\n",
                    "/persists" => "Persistent-Auth: true\r\n",
                    _ => "",
                };
                wire.say(&format!("HTTP/1.1 200 OK\r\n{said}Content-Length: 2\r\n\r\nok")).await;
            }
        })
        .await;
        let gateway = Gateway::to(port).await;
        for (path, line, ties) in [
            ("/plain", "Authorization: Basic bnRsbTo=\r\n", false),
            ("/plain", "Authorization: NTLM TlRMTVNTUAAB\r\n", true),
            ("/plain", "authorization: negotiate YII\r\n", true),
            ("/plain", "Authorization: Basic x\r\nAuthorization: Kerberos y\r\n", true),
            ("/basic", "", false),
            ("/challenge", "", true),
            ("/second", "", true),
            ("/persists", "", true),
        ] {
            let connections = || seen.connections.get();
            let mut client = Wire { socket: gateway.connect().await, buffer: Vec::new() };
            client.say(&format!("GET {path} HTTP/1.1\r\nHost: gw.test\r\n{line}\r\n")).await;
            client.until("ok").await.unwrap();
            let first = connections();
            // Its own next request finds it, another client's does not.
            client.say("GET /plain HTTP/1.1\r\nHost: gw.test\r\n\r\n").await;
            client.until("ok").await.unwrap();
            assert_eq!(connections(), first, "{path} {line}");
            assert!(gateway.ask(GET).await.ends_with("ok"));
            assert_eq!(connections() - first, usize::from(ties), "{path} {line}");
            // Whoever is left in the pool is used up.
            drop(client);
            gateway.clock.advance(Duration::from_secs(2));
        }
    });
}

#[test]
fn health_counts_connections_and_not_pages() {
    on_a_worker(async {
        let (port, _) = backend(|mut wire, seen| async move {
            while let Some(head) = wire.head(&seen).await {
                match head.split(' ').nth(1).unwrap() {
                    "/bad" => wire.say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx").await,
                    "/slow" => {
                        wire.until("never").await;
                    }
                    "/cut" => return,
                    _ => wire.say(OK).await,
                }
            }
        })
        .await;
        let hasty = config::Upstream { response_timeout: Duration::from_millis(30), ..config(vec![url(port)]) };
        let gateway = Gateway::start(hasty, Duration::from_secs(30)).await;
        let ask = async |path: &str| gateway.ask(&GET.replace("/a", path)).await;
        for _ in 0..4 {
            assert!(ask("/bad").await.starts_with("HTTP/1.1 502"));
        }
        assert!(gateway.in_use(), "bad pages put the URL out of use");
        // A slow page while others are answered.
        for _ in 0..4 {
            let (slow, quick) = tokio::join!(ask("/slow"), async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                ask("/a").await
            });
            assert!(slow.starts_with("HTTP/1.1 504") && quick.ends_with("ok"), "{slow} {quick}");
        }
        assert!(gateway.in_use(), "slow pages put the URL out of use");
        // Nothing but silence, and connections that break off.
        for path in ["/slow", "/cut"] {
            for _ in 0..3 {
                ask(path).await;
            }
            assert!(!gateway.in_use(), "{path}");
            assert!(ask("/a").await.ends_with("ok"));
            assert!(gateway.in_use(), "{path}");
        }
    });
}

/// How a backend treats one request.
#[derive(Clone, Copy, Debug)]
struct Manners {
    reads_body: bool,
    /// Says more than it should: 1 with the answer, 2 right behind it, 3 while nothing is asked.
    more: u8,
    sends_head_a_body: bool,
    closes: bool,
}

/// Serves whatever it takes for a request until somebody has said `close`; each answer names the target.
async fn ill_mannered(mut wire: Wire, seen: Rc<Seen>, manners: Vec<Manners>, said_more: Rc<Cell<bool>>) {
    const MORE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged";
    while let Some(head) = wire.head(&seen).await {
        let manners = manners[seen.heads.borrow().len() % manners.len()];
        if manners.reads_body && head.contains("Content-Length") {
            wire.until("\r\n\r\n").await;
        }
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let body = if head.starts_with("HEAD") && !manners.sends_head_a_body { "" } else { &target };
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", target.len());
        if manners.more == 1 {
            answer.push_str(MORE);
        }
        wire.say(&answer).await;
        if manners.more == 2 {
            wire.say(MORE).await;
        }
        if manners.more == 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            wire.say(MORE).await;
        }
        said_more.set(true);
        if manners.closes || head.contains("Connection: close") {
            return;
        }
    }
}

fn some_manners() -> impl proptest::strategy::Strategy<Value = Manners> {
    use proptest::prelude::*;
    (any::<bool>(), 0_u8..4, any::<bool>(), any::<bool>()).prop_map(|(reads_body, more, sends_head_a_body, closes)| {
        Manners { reads_body, more, sends_head_a_body, closes }
    })
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    #[test]
    fn no_byte_of_one_exchange_is_ever_part_of_another(
        manners in proptest::collection::vec(some_manners(), 1..6),
        kinds in proptest::collection::vec(0_u8..3, 2..10),
    ) {
        on_a_worker(async move {
            let said_more = Rc::new(Cell::new(false));
            let said = Rc::clone(&said_more);
            let (port, seen) =
                backend(move |wire, seen| ill_mannered(wire, seen, manners.clone(), Rc::clone(&said))).await;
            let gateway = Gateway::to(port).await;
            for (number, kind) in kinds.iter().enumerate() {
                let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
                let (method, body) = [("GET", ""), ("POST", hidden), ("HEAD", "")][usize::from(*kind)];
                let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
                let head = format!("{method} /own{number} HTTP/1.1\r\nHost: gw.test\r\nConnection: close\r\n{length}\r\n");
                said_more.set(false);
                let answer = gateway.ask(&format!("{head}{body}")).await;
                // Only a request that may not be sent twice can meet a connection that closes at that moment.
                let ends = if method == "HEAD" { String::from("\r\n\r\n") } else { format!("\r\n\r\n/own{number}") };
                let met_a_closed_one = method == "POST" && answer.starts_with("HTTP/1.1 502");
                assert!(met_a_closed_one || (answer.starts_with("HTTP/1.1 200") && answer.ends_with(&ends)), "{answer}");
                // What is said unasked is said before the next request: after it nobody could tell.
                while !said_more.get() && !met_a_closed_one {
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
            }
            let served = seen.heads.borrow();
            assert!(!served.iter().any(|head| head.contains("/hidden")), "{served:?}");
        });
    }
}

#[test]
fn both_directions_of_one_exchange_flow_at_once() {
    on_a_worker(async {
        // Answers at once, and gives every chunk back as it comes.
        let (port, seen) = backend(|mut wire, seen| async move {
            while wire.head(&seen).await.is_some() {
                wire.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                loop {
                    let size = wire.until("\r\n").await.unwrap();
                    let rest = wire.until("\r\n").await.unwrap();
                    wire.say(&format!("{size}{rest}")).await;
                    if size == "0\r\n" {
                        break;
                    }
                }
            }
        })
        .await;
        let always = config::Upstream { reuse: Reuse::Always, ..config(vec![url(port)]) };
        let gateway = Gateway::start(always, Duration::from_secs(30)).await;
        let mut client = Wire { socket: gateway.connect().await, buffer: Vec::new() };
        for round in 1..=2 {
            client.say("POST /a HTTP/1.1\r\nHost: gw.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            client.until("\r\n\r\n").await.unwrap();
            for number in 0..100 {
                // The next only when this one has come back.
                let chunk = format!("5\r\n{number:05}\r\n");
                client.say(&chunk).await;
                assert_eq!(client.until(&format!("{number:05}\r\n")).await.unwrap(), chunk);
            }
            client.say("0\r\n\r\n").await;
            assert_eq!(client.until("0\r\n\r\n").await.unwrap(), "0\r\n\r\n");
            // Complete in both directions, so the second round finds the connection of the first.
            assert_eq!((seen.heads.borrow().len(), seen.connections.get()), (round, 1));
        }
    });
}

#[test]
fn an_answer_before_the_end_of_an_upload_leaves_no_connection_behind() {
    on_a_worker(async {
        let (port, seen) = backend(|mut wire, seen| async move {
            wire.head(&seen).await;
            wire.say(OK).await;
            // Keeps the connection open, as if all were well.
            wire.until("never").await;
        })
        .await;
        let gateway = Gateway::to(port).await;
        for number in 1..=3 {
            let begun = "POST /a HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 10\r\n\r\n12345";
            let mut client = Wire { socket: gateway.connect().await, buffer: Vec::new() };
            client.say(begun).await;
            assert!(client.until("ok").await.unwrap().starts_with("HTTP/1.1 200"));
            assert_eq!(seen.connections.get(), number);
        }
    });
}

#[test]
fn large_bodies_arrive_whole_in_both_directions_in_every_framing() {
    on_a_worker(async {
        const LENGTH: usize = 1_000_003;
        let content: String = (0..LENGTH).map(|at| char::from(b'a' + u8::try_from(at * 7 % 26).unwrap())).collect();
        let folder = tempfile::tempdir().unwrap();
        let port = mirror(None).await;
        self_signed(folder.path(), "right", "localhost");
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (certificate, key) = (file("right.crt"), file("right.key"));
        let over_tls = mirror(Some((&certificate, &key))).await;
        let tls = UpstreamUrl::Https { host: String::from("localhost"), port: over_tls };
        for (urls, ca_file) in [(vec![url(port)], None), (vec![tls], Some(certificate.into()))] {
            let upstream = config::Upstream { ca_file, ..config(urls) };
            let gateway = Gateway::start(upstream, Duration::from_secs(30)).await;
            for framing in [format!("Content-Length: {LENGTH}"), String::from("Transfer-Encoding: chunked")] {
                let mut client = Wire { socket: gateway.connect().await, buffer: Vec::new() };
                let chunked = framing.ends_with("chunked");
                let (begin, end) =
                    if chunked { (format!("{LENGTH:x}\r\n"), "\r\n0\r\n\r\n") } else { (String::new(), "") };
                let head =
                    format!("POST /a HTTP/1.1\r\nHost: gw.test\r\nConnection: close\r\n{framing}\r\n\r\n{begin}");
                let (mut reads, mut writes) = client.socket.split();
                let upload = async {
                    for piece in [&head, &content, end] {
                        writes.write_all(piece.as_bytes()).await.unwrap();
                    }
                };
                let mut answer = Vec::new();
                let (read, ()) = tokio::join!(reads.read_to_end(&mut answer), upload);
                read.unwrap();
                let answer = String::from_utf8(answer).unwrap();
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                assert_eq!(head.to_lowercase().contains("chunked"), chunked, "{head}");
                let body = if chunked { without_chunks(body) } else { body.to_owned() };
                assert!(body == content, "{} bytes came back", body.len());
            }
        }
    });
}

fn without_chunks(mut body: &str) -> String {
    let mut content = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            assert_eq!(rest, "\r\n");
            return content;
        }
        content.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
}

/// Gives every body back in the framing in which it came, by hyper's server.
async fn mirror(tls: Option<(&str, &str)>) -> u16 {
    let acceptor = tls.map(|(certificate, key)| acceptor(certificate, key));
    let listener = TcpListener::bind("localhost:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::task::spawn_local(async move {
                let service = service_fn(async |request: Request<Incoming>| {
                    Ok::<_, std::convert::Infallible>(Response::new(request.into_body()))
                });
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = match acceptor {
                    Some(acceptor) => {
                        let Ok(stream) = acceptor.accept(socket).await else { return };
                        builder.serve_connection(TokioIo::new(stream), service).await
                    }
                    None => builder.serve_connection(TokioIo::new(socket), service).await,
                };
            });
        }
    });
    port
}

#[test]
fn trailers_that_are_too_large_never_end_a_body() {
    on_a_worker(async {
        let (port, seen) = backend(|mut wire, seen| async move {
            while wire.head(&seen).await.is_some() {
                if wire.until("\r\n\r\n").await.is_some() {
                    seen.heads.borrow_mut().push(String::from("whole"));
                    wire.say(OK).await;
                }
            }
        })
        .await;
        let gateway = Gateway::to(port).await;
        let head =
            "POST /a HTTP/1.1\r\nHost: gw.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n1\r\nx\r\n0\r\n";
        for round in 0..100 {
            let mut client = Wire { socket: gateway.connect().await, buffer: Vec::new() };
            client.say(&format!("{head}X-Sum: {}\r\n\r\n", "a".repeat(20 * 1024))).await;
            let leaves = round % 2 == 0;
            if leaves {
                let _ = client.socket.shutdown().await;
            }
            let answer = client.until("\r\n\r\n").await;
            assert!(answer.map_or(leaves, |answer| answer.starts_with("HTTP/1.1 400")));
        }
        assert!(!seen.heads.borrow().iter().any(|head| head == "whole"));
    });
}
