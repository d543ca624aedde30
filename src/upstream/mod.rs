//! Forwarding to backends. Sees no credentials and no configuration but its own: only a [`Pass`].
//!
//! Each worker has its own connections. A request drives the connection that it uses, so no other task is woken for it,
//! and dropping the request closes the connection.

mod body;
pub mod connect;
mod health;
mod http1;
mod pool;
mod reuse;
#[cfg(test)]
mod tests;
mod ties;
pub mod tls;
mod trailers;
mod tunnel;
mod upload;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::Instant;

use self::body::Home;
pub use self::body::UpstreamBody;
pub use self::health::Health;
use self::health::{InFlight, UrlState};
use self::http1::response::Asked;
use self::http1::{Buffers, Connection, Message, Silence, request, response};
use self::pool::Pool;
pub use self::ties::Ties;
use self::ties::{Knot, Owner};
use self::tls::Tls;
pub use self::tunnel::Tunnel;
use self::upload::{ClientFault, Upload, upload};
use crate::clock::Clock;
use crate::config::{self, UpstreamHost};
use crate::message::admit::Admitted;
use crate::message::identity::Guarded;
use crate::message::spelling::Spelling;
use crate::policy::Pass;
use crate::secret::Secret;

/// Everything about one request that shapes what the backend sees.
pub struct Outgoing<'a> {
    /// The permission, and the person to name.
    pub pass: &'a Pass,
    /// What admission found out.
    pub admitted: &'a Admitted,
    /// The other end of the client's socket; `None`: a unix socket.
    pub peer: Option<IpAddr>,
    /// For `X-Request-Id`.
    pub request_id: &'a HeaderValue,
    /// Cut from the front of the path; `""`: nothing.
    pub strip_prefix: &'a str,
    /// Takes the place of `Destination`: whether it is a URL, of the backend's own scheme and host, and its path.
    pub destination: Option<(bool, &'a str)>,
    /// Which of the client's headers go no further.
    pub guarded: &'a Guarded,
    /// The lines of the head that name the person of the permission, and nobody else.
    pub identity: &'a [u8],
    /// Taken out of `Cookie`, unless the upstream's `forward_token` says otherwise.
    pub cookie_name: &'a str,
    /// Each `Set-Cookie` line of that name that the answer had. None of them goes on.
    pub said_of_cookie: RefCell<Vec<HeaderValue>>,
    /// `Authorization` holds a token of ours: it goes no further, unless `forward_token`.
    pub own_bearer: bool,
    /// Between two pieces of the request's body.
    pub body_timeout: Duration,
    /// How the client spelled its headers' names.
    pub spelling: &'a Spelling,
    /// For upstreams that ask for it, beside the name of the permission's person.
    pub basic_password: Option<&'a Secret<String>>,
    /// Set once forwarding headers have been left out because their sender is not believed.
    pub disbelieved: Cell<bool>,
    /// The upstream connections that belong to the client's own.
    pub ties: &'a Rc<Ties>,
}

/// Why a backend gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No URL could be reached.
    #[error("the upstream {upstream} can't be reached")]
    Unreachable {
        /// Its name in the configuration.
        upstream: String,
        /// Each address that was tried, and what the system said.
        #[source]
        source: io::Error,
    },
    /// It broke off before an answer.
    #[error("the upstream {upstream} broke off at {url}")]
    Broken {
        /// Its name in the configuration.
        upstream: String,
        /// Where.
        url: String,
        /// What was wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What it sent is no answer, or can be read in two ways.
    #[error("the upstream {upstream} sent something at {url} that is no answer")]
    Malformed {
        /// Its name in the configuration.
        upstream: String,
        /// Where.
        url: String,
        /// What was wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer within `response_timeout`.
    #[error(
        "the upstream {upstream} did not begin an answer at {url} within {limit:?}; upstream.{upstream}.response_timeout is \
         the limit"
    )]
    TimedOut {
        /// Its name in the configuration.
        upstream: String,
        /// Where.
        url: String,
        /// `response_timeout`
        limit: Duration,
    },
    /// The client's body is malformed or broke off.
    #[error("the request's body broke off or is malformed")]
    ClientBody(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The client's body stalled.
    #[error("the request's body did not come in time")]
    ClientBodyTimedOut,
}

/// What a backend answered.
pub enum Answer {
    /// An ordinary answer.
    Response(Response<UpstreamBody>),
    /// 101: the tunnel is ready to be joined to the client's upgraded connection.
    Tunnel {
        /// The head for the client.
        head: Response<()>,
        /// The backend's side.
        upstream: Tunnel,
    },
}

/// An answer's body that broke off: the client's connection is aborted so that it can tell.
#[derive(Debug, thiserror::Error)]
#[error("the upstream's answer broke off")]
pub struct BodyError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// One worker's upstreams and their idle connections. Not shared between threads.
pub struct Upstreams {
    all: Vec<One>,
    buffers: Rc<Buffers>,
    clock: Clock,
    health: Arc<Health>,
}

struct One {
    name: String,
    config: config::Upstream,
    urls: Vec<Url>,
    tls: Option<Tls>,
    /// Where the search for the least busy URL begins, so that equals take turns.
    turn: Cell<usize>,
}

struct Url {
    state: Arc<UrlState>,
    pool: Rc<Pool>,
    /// For `host = "upstream"`.
    authority: HeaderValue,
    /// Answers that came from here to this worker.
    answers: Cell<u64>,
}

impl Upstreams {
    /// `names`: in the order of `router::Target::Upstream`. Fails where TLS towards one of them can't be set up.
    pub fn new(
        names: &[String],
        config: &BTreeMap<String, config::Upstream>,
        health: Arc<Health>,
        clock: Clock,
    ) -> io::Result<Self> {
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            let Some(config) = config.get(name) else { continue };
            let urls = health.urls(name).iter().map(|state| {
                let authority = health::authority(&state.url);
                let authority = HeaderValue::from_str(&authority).map_err(io::Error::other)?;
                Ok(Url { state: Arc::clone(state), pool: Pool::new(clock.clone()), authority, answers: Cell::new(0) })
            });
            all.push(One {
                name: name.clone(),
                config: config.clone(),
                urls: urls.collect::<io::Result<_>>()?,
                tls: health.tls(config)?,
                turn: Cell::new(0),
            });
        }
        Ok(Self { all, buffers: Rc::default(), clock, health })
    }

    /// Forwards one request. The answer's body is read as the client takes it.
    pub async fn forward(
        &self,
        upstream: usize,
        parts: &Parts,
        incoming: Incoming,
        outgoing: &Outgoing<'_>,
    ) -> Result<Answer, Error> {
        let Some(one) = self.all.get(upstream) else {
            let source = io::Error::other("there is no such upstream");
            return Err(Error::Unreachable { upstream: upstream.to_string(), source });
        };
        let fixed = match &one.config.host {
            UpstreamHost::Preserve => Some(outgoing.admitted.authority.clone()),
            UpstreamHost::Fixed(name) => HeaderValue::from_str(name).ok(),
            UpstreamHost::Upstream => None,
        };
        let trailers = if parts.headers.contains_key(header::TRAILER) {
            trailers::announced(&parts.headers, |name| outgoing.guarded.covers(name))
        } else {
            Vec::new()
        };
        let (framing, upload) = upload(incoming, &trailers, outgoing.body_timeout);
        if !outgoing.ties.is_empty() {
            outgoing.ties.keep_only(&Owner::of(outgoing));
        }
        let may_tie = outgoing.pass.person().is_some() || !outgoing.admitted.peer_trusted;
        let authorizes = ties::authorizes(&parts.headers);
        let exchange = Exchange {
            one,
            upstreams: self,
            fixed_host: fixed.as_ref(),
            head: request::Head {
                parts,
                outgoing,
                forward_token: one.config.forward_token,
                scheme: scheme_of(&one.config),
                basic: one.config.basic,
                framing,
                trailers: &trailers,
                alone: reuse::is_alone(one.config.reuse, &parts.method, upload.is_some()) || (authorizes && !may_tie),
            },
            may_tie,
            authorizes,
            // RFC 9110 section 9.2.2: these may be sent again when it is not known whether they arrived.
            repeatable: upload.is_none()
                && matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS)
                && !outgoing.admitted.websocket,
            asked: Asked {
                head_only: parts.method == Method::HEAD,
                upgrade: outgoing.admitted.websocket,
                guarded: outgoing.guarded,
                cookie_name: outgoing.cookie_name,
                said_of_cookie: &outgoing.said_of_cookie,
            },
        };
        exchange.run(upload).await
    }

    /// Closes connections that have idled too long. Each worker calls it now and then.
    pub fn close_idle(&self) {
        for url in self.all.iter().flat_map(|one| &one.urls) {
            url.pool.close_idle();
        }
    }

    fn now(&self) -> u64 {
        self.health.millis(self.clock.instant())
    }
}

/// By its first URL; mixed ones would need a `Destination` each.
fn scheme_of(upstream: &config::Upstream) -> &'static str {
    let is_tls = matches!(upstream.urls.first(), Some(config::UpstreamUrl::Https { .. }));
    if is_tls { "https" } else { "http" }
}

/// A request's head as it would go to a backend, read back. `None`: its path can't be written without the prefix.
#[cfg(any(test, fuzzing))]
pub fn rewritten(parts: &Parts, outgoing: &Outgoing<'_>, forward_token: bool) -> Option<http::HeaderMap> {
    let trailers = trailers::announced(&parts.headers, |name| outgoing.guarded.covers(name));
    // A body is the business of others.
    let framing = request::Framing::Length(0);
    let head = request::Head {
        parts,
        outgoing,
        forward_token,
        scheme: "http",
        basic: false,
        framing,
        trailers: &trailers,
        alone: false,
    };
    let mut written = Vec::new();
    head.write(&mut written, &outgoing.admitted.authority).ok()?;
    let mut fields = vec![httparse::EMPTY_HEADER; 4096];
    let mut read = httparse::Request::new(&mut fields);
    assert!(read.parse(&written).is_ok_and(|status| status.is_complete()), "what goes out is no request");
    let mut headers = http::HeaderMap::new();
    for field in read.headers {
        let name = http::HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(headers)
}

/// One request's way to one upstream, over as many tries as are safe.
struct Exchange<'a> {
    one: &'a One,
    upstreams: &'a Upstreams,
    /// `None`: each URL has its own.
    fixed_host: Option<&'a HeaderValue>,
    head: request::Head<'a>,
    /// Whose request it is can be told from the next one's.
    may_tie: bool,
    /// The request may log the connection in.
    authorizes: bool,
    repeatable: bool,
    asked: Asked<'a>,
}

/// How one try failed.
enum Failed {
    /// Nothing was sent; here is the message again.
    Unsent(Message),
    /// Something may have been sent. No byte of an answer came.
    Unanswered(Silence),
    /// Something came that is no answer.
    Broken(Silence),
    Client(ClientFault),
    TimedOut {
        /// How many had come from the URL when this one was sent.
        answers: u64,
    },
}

impl Exchange<'_> {
    async fn run(&self, upload: Option<Box<Upload>>) -> Result<Answer, Error> {
        let (alone, all);
        let order: &[&Url] = if let [only] = &*self.one.urls {
            only.state.begin_trial(|| self.upstreams.now(), self.one.config.connect_timeout);
            alone = [only];
            &alone
        } else {
            all = self.order();
            &all
        };
        let mut errors = Vec::new();
        let mut message = None;
        let mut upload = Some(upload);
        for url in order {
            let mut next = match message.take() {
                None => Message::new(self.write_head(url)?, upload.take().flatten()),
                Some(message) => self.readdressed(message, url)?,
            };
            // Counted while it connects, too: a URL that nobody answers at must not look idle.
            let in_flight = url.state.begin();
            // The client's own; else an idle connection, unless the request needs a fresh one.
            let tied = self.take_tied(url);
            let is_tied = tied.is_some();
            let idle = if self.asked.upgrade { tied } else { tied.or_else(|| url.pool.take(!self.repeatable)) };
            if let Some(connection) = idle {
                match self.send(url, connection, next).await {
                    Ok((connection, head)) => return Ok(self.answered(url, connection, head, in_flight, is_tied)),
                    Err(Failed::Unsent(unsent)) => {
                        url.pool.suspect();
                        next = unsent;
                    }
                    // The backend may have closed the connection at the same moment.
                    Err(Failed::Unanswered(silence)) => {
                        url.pool.suspect();
                        if !self.repeatable {
                            return Err(self.broken(url, silence));
                        }
                        next = Message::new(self.write_head(url)?, None);
                    }
                    Err(failed) => return Err(self.failed(url, failed)),
                }
            }
            // Rare where connections are kept, and large: in a box of its own.
            let connection = match Box::pin(self.open(url)).await {
                Ok(connection) => connection,
                Err(error) => {
                    url.state.failed(self.upstreams.now());
                    errors.push(format!("{}: {error}", url.state.label));
                    message = Some(next);
                    continue;
                }
            };
            match self.send(url, connection, next).await {
                Ok((connection, head)) => return Ok(self.answered(url, connection, head, in_flight, false)),
                Err(Failed::Unsent(unsent)) => {
                    url.state.failed(self.upstreams.now());
                    errors.push(format!("{}: it closed a fresh connection", url.state.label));
                    message = Some(unsent);
                }
                Err(failed) => return Err(self.failed(url, failed)),
            }
        }
        let source =
            io::Error::other(if errors.is_empty() { String::from("it has no URL") } else { errors.join("; ") });
        Err(Error::Unreachable { upstream: self.one.name.clone(), source })
    }

    /// One that has rested and may be tried again, where no other request tries it already; the URLs in use, the least
    /// busy first; then, as a last resort, those at rest.
    fn order(&self) -> Vec<&Url> {
        let urls = &self.one.urls;
        let turn = self.one.turn.get();
        self.one.turn.set(turn.wrapping_add(1));
        let now = self.upstreams.now();
        let mut order: Vec<&Url> = urls.iter().cycle().skip(turn % urls.len().max(1)).take(urls.len()).collect();
        let trial = urls.iter().position(|url| url.state.begin_trial(|| now, self.one.config.connect_timeout));
        let trial = trial.and_then(|index| urls.get(index)).map(|url| Rc::as_ptr(&url.pool));
        order.sort_by_cached_key(|url| {
            let is_trial = trial == Some(Rc::as_ptr(&url.pool));
            (!self.head.outgoing.ties.has(&url.pool), !is_trial, !url.state.is_in_use(now), url.state.load())
        });
        order
    }

    fn write_head(&self, url: &Url) -> Result<Vec<u8>, Error> {
        let mut buffer = self.upstreams.buffers.for_writing();
        match self.head.write(&mut buffer, self.fixed_host.unwrap_or(&url.authority)) {
            Ok(()) => Ok(buffer),
            Err(error) => Err(Error::Broken {
                upstream: self.one.name.clone(),
                url: url.state.label.clone(),
                source: Box::new(error),
            }),
        }
    }

    /// For another URL, which may have another name.
    fn readdressed(&self, mut message: Message, url: &Url) -> Result<Message, Error> {
        if self.fixed_host.is_none() {
            message.replace_head(self.write_head(url)?);
        }
        Ok(message)
    }

    async fn open(&self, url: &Url) -> io::Result<Box<Connection>> {
        let stream = connect::connect(&url.state.url, self.one.tls.as_ref(), self.one.config.connect_timeout).await?;
        Ok(Connection::new(stream, &self.upstreams.buffers))
    }

    /// Sends the message over a connection and waits for the answer's head.
    async fn send(
        &self,
        url: &Url,
        mut connection: Box<Connection>,
        message: Message,
    ) -> Result<(Box<Connection>, response::Head), Failed> {
        let limit = self.one.config.response_timeout;
        let mut due = None;
        let mut pieces = 0;
        let answers = url.answers.get();
        connection.begin(message);
        let outcome = std::future::poll_fn(|task: &mut Context<'_>| {
            if let Err(fault) = connection.send(task) {
                return Poll::Ready(Err(Failed::Client(fault)));
            }
            if let Poll::Ready(outcome) = connection.poll_head(task, &self.asked) {
                return Poll::Ready(outcome.map_err(|silence| match connection.take_unsent() {
                    Some(message) => Failed::Unsent(message),
                    None if connection.heard() => Failed::Broken(silence),
                    None => Failed::Unanswered(silence),
                }));
            }
            // An upload may take as long as it moves.
            if pieces != connection.pieces() {
                pieces = connection.pieces();
                due = None;
            }
            while connection.poll_due(task, *due.get_or_insert_with(|| Instant::now() + limit)).is_ready() {
                // A client that stalls has a limit of its own, and is not the backend's failure.
                if !connection.waits_for_client() {
                    return Poll::Ready(Err(Failed::TimedOut { answers }));
                }
                due = None;
            }
            Poll::Pending
        })
        .await;
        outcome.map(|head| (connection, head))
    }

    /// Whose fault it was: the client's body, or the backend.
    fn failed(&self, url: &Url, failed: Failed) -> Error {
        match failed {
            Failed::Client(ClientFault::TimedOut) => Error::ClientBodyTimedOut,
            Failed::Client(fault) => Error::ClientBody(Box::new(fault)),
            Failed::Unanswered(silence) | Failed::Broken(silence) => self.broken(url, silence),
            Failed::Unsent(_) => self.broken(url, Silence::Closed),
            Failed::TimedOut { answers } => {
                // While others are answered it is this page that is slow, and not the backend.
                if answers == url.answers.get() {
                    url.state.failed(self.upstreams.now());
                } else {
                    url.state.erred();
                }
                let limit = self.one.config.response_timeout;
                Error::TimedOut { upstream: self.one.name.clone(), url: url.state.label.clone(), limit }
            }
        }
    }

    /// Whether this exchange's connection goes back. Who was asked for another protocol may no longer speak HTTP on it,
    /// though it refused.
    const fn goes_back(&self) -> bool {
        !self.head.alone && !self.asked.upgrade
    }

    /// Health counts connections, not pages: who sends a bad head is there, and its other pages may be good.
    fn broken(&self, url: &Url, silence: Silence) -> Error {
        let (upstream, at) = (self.one.name.clone(), url.state.label.clone());
        if let Silence::Malformed(malformed) = silence {
            url.state.erred();
            return Error::Malformed { upstream, url: at, source: Box::new(malformed) };
        }
        url.state.failed(self.upstreams.now());
        Error::Broken { upstream, url: at, source: Box::new(silence) }
    }

    /// The connection of this person on this client connection, where the backend has logged it in.
    fn take_tied(&self, url: &Url) -> Option<Box<Connection>> {
        let ties = self.head.outgoing.ties;
        if ties.is_empty() { None } else { ties.take(&url.pool) }
    }

    /// Where the connection goes after the answer. One that may be logged in, and one that was, never to the pool.
    fn home(&self, url: &Url, logs_in: bool) -> Home {
        let pool = Rc::clone(&url.pool);
        if !self.goes_back() || (logs_in && !self.may_tie) {
            Home::Nowhere
        } else if logs_in {
            let ties = Rc::clone(self.head.outgoing.ties);
            Home::Tied(Box::new(Knot { ties, owner: Owner::of(self.head.outgoing), pool }))
        } else {
            Home::Pool(pool)
        }
    }

    fn answered(
        &self,
        url: &Url,
        connection: Box<Connection>,
        head: response::Head,
        in_flight: InFlight,
        is_tied: bool,
    ) -> Answer {
        url.state.succeeded();
        url.answers.set(url.answers.get().wrapping_add(1));
        let response::Head { status, headers, framing, keeps, logs_in, trailers } = head;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let (stream, early) = connection.into_parts();
            let mut head = Response::new(());
            *head.status_mut() = status;
            *head.headers_mut() = headers;
            return Answer::Tunnel { head, upstream: Tunnel { stream, early, in_flight } };
        }
        let home = if keeps { self.home(url, is_tied || self.authorizes || logs_in) } else { Home::Nowhere };
        let mut response = Response::new(UpstreamBody::new(connection, framing, trailers, home, in_flight));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Answer::Response(response)
    }
}
