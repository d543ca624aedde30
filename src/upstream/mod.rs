//! Forwarding to backends. Sees no credentials and no configuration but its own: only a [`Pass`].
//!
//! Each worker has its own connections. A request drives the connection that it uses, so no other task is woken for it,
//! and dropping the request closes the connection.

mod body;
pub mod connect;
mod health;
mod pool;
mod rewrite;
#[cfg(test)]
mod tests;
mod tunnel;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future as _;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsConnector;

pub use self::body::UpstreamBody;
use self::body::{ClientFault, RequestBody, Sent};
pub use self::health::Health;
use self::health::{InFlight, UrlState};
use self::pool::{Channel, Lease, Pool};
pub use self::tunnel::Tunnel;
use crate::clock::Clock;
use crate::config::{self, IdentityHeader, UpstreamHost};
use crate::message::admit::Admitted;
use crate::message::identity::Guarded;
use crate::policy::Pass;

/// Everything about one request that shapes what the backend sees.
pub struct Outgoing<'a> {
    /// The permission, and the person to name.
    pub pass: &'a Pass,
    /// What admission found out.
    pub admitted: &'a Admitted,
    /// The other end of the client's socket; `None`: a unix socket.
    pub peer: Option<IpAddr>,
    /// For `X-Request-Id`.
    pub request_id: &'a str,
    /// Cut from the front of the path; `""`: nothing.
    pub strip_prefix: &'a str,
    /// Which of the client's headers go no further.
    pub guarded: &'a Guarded,
    /// The headers that name the person.
    pub identity: &'a [IdentityHeader],
    /// Taken out of `Cookie`, unless the upstream's `forward_token` says otherwise.
    pub cookie_name: &'a str,
    /// `Authorization` holds a token of ours: it goes no further, unless `forward_token`.
    pub own_bearer: bool,
    /// Between two pieces of the request's body.
    pub body_timeout: Duration,
}

/// Why a backend gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No URL could be reached.
    #[error("the upstream {upstream} can't be reached")]
    Unreachable {
        /// Its name in the configuration.
        upstream: String,
        /// What the last URL said.
        #[source]
        source: io::Error,
    },
    /// It broke off, or what it sent is not HTTP.
    #[error("the upstream {upstream} broke off or sent something that is not HTTP")]
    Broken {
        /// Its name in the configuration.
        upstream: String,
        /// What was wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer within `response_timeout`.
    #[error("the upstream {upstream} did not answer in time")]
    TimedOut {
        /// Its name in the configuration.
        upstream: String,
    },
    /// The client's body is malformed or broke off.
    #[error("the request's body broke off or is malformed")]
    ClientBody(#[source] hyper::Error),
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
    clock: Clock,
    health: Arc<Health>,
}

struct One {
    name: String,
    config: config::Upstream,
    urls: Vec<Url>,
    tls: Option<TlsConnector>,
    /// Where the search for the least busy URL begins, so that equals take turns.
    turn: Cell<usize>,
}

struct Url {
    state: Arc<UrlState>,
    pool: Rc<Pool>,
    /// For `host = "upstream"`.
    authority: HeaderValue,
}

/// One direction of one connection; more than this is not held for a slow client.
const BUFFER_BYTES: usize = 64 * 1024;
/// Headers of one answer.
const MOST_HEADERS: usize = 256;

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
                Ok(Url { state: Arc::clone(state), pool: Pool::new(clock.clone()), authority })
            });
            all.push(One {
                name: name.clone(),
                config: config.clone(),
                urls: urls.collect::<io::Result<_>>()?,
                tls: health.tls(config)?,
                turn: Cell::new(0),
            });
        }
        Ok(Self { all, clock, health })
    }

    /// Forwards one request. The answer's body is read as the client takes it.
    pub async fn forward(
        &self,
        upstream: usize,
        request: Request<Incoming>,
        outgoing: &Outgoing<'_>,
    ) -> Result<Answer, Error> {
        let Some(one) = self.all.get(upstream) else {
            let source = io::Error::other("there is no such upstream");
            return Err(Error::Unreachable { upstream: upstream.to_string(), source });
        };
        let (mut head, incoming) = request.into_parts();
        let fixed = match &one.config.host {
            UpstreamHost::Preserve => Some(outgoing.admitted.authority.clone()),
            UpstreamHost::Fixed(name) => HeaderValue::from_str(name).ok(),
            UpstreamHost::Upstream => None,
        };
        let host = fixed.clone().unwrap_or_else(|| outgoing.admitted.authority.clone());
        let trailers = rewrite::request(&mut head, outgoing, &host, one.config.forward_token).ok_or_else(|| {
            let source = Box::from("the path can't be written without its prefix");
            Error::Broken { upstream: one.name.clone(), source }
        })?;
        let sent = Rc::new(Sent::default());
        let body = RequestBody::new(incoming, &sent, outgoing.body_timeout, trailers);
        frame(&mut head, &body);
        let mut exchange = Exchange {
            one,
            upstreams: self,
            fixed_host: fixed.is_some(),
            sent,
            // RFC 9110 section 9.2.2: these may be sent again when it is not known whether they arrived.
            repeatable: body.is_empty()
                && matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS)
                && !outgoing.admitted.websocket,
            websocket: outgoing.admitted.websocket,
            outgoing,
        };
        exchange.run(head, body).await
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

/// The framing is written anew from what the codec read: `005` was one spelling of five, and a body of unknown length
/// is said to be chunked whatever the method, for the codec would take a `GET` without it to have none.
fn frame(head: &mut Parts, body: &RequestBody) {
    use http_body::Body as _;
    let length = body.size_hint().exact();
    if length.is_none() {
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else if let (Some(length), Some(value)) = (length, head.headers.get_mut(header::CONTENT_LENGTH)) {
        *value = HeaderValue::from(length);
    }
}

/// One request's way to one upstream, over as many tries as are safe.
struct Exchange<'a> {
    one: &'a One,
    upstreams: &'a Upstreams,
    fixed_host: bool,
    sent: Rc<Sent>,
    repeatable: bool,
    websocket: bool,
    outgoing: &'a Outgoing<'a>,
}

/// How one try failed.
enum Failed {
    /// Nothing was sent; here is the request again.
    Unsent(Box<Request<RequestBody>>),
    /// Something may have been sent. No byte of an answer came.
    Unanswered(hyper::Error),
    TimedOut,
}

impl Exchange<'_> {
    async fn run(&mut self, head: Parts, body: RequestBody) -> Result<Answer, Error> {
        let mut request = Request::from_parts(head, body);
        let mut last_error = None;
        for url in self.order() {
            if !self.fixed_host {
                request.headers_mut().insert(header::HOST, url.authority.clone());
            }
            // Counted while it connects, too: a URL that nobody answers at must not look idle.
            let in_flight = url.state.begin();
            // An idle connection first, unless the request needs one of its own.
            let idle = if self.websocket { None } else { url.pool.take(!self.repeatable) };
            if let Some(channel) = idle {
                // Kept for the case that the backend closed the connection at the same moment.
                let again = self.repeatable.then(|| request_again(&request));
                match self.send(channel, request).await {
                    Ok(answer) => return self.answered(url, answer, in_flight),
                    Err(Failed::Unsent(unsent)) => {
                        url.pool.suspect();
                        request = *unsent;
                    }
                    Err(Failed::Unanswered(error)) => {
                        url.pool.suspect();
                        match again {
                            Some(again) => request = again,
                            None => return Err(self.failed(url, error)),
                        }
                    }
                    Err(Failed::TimedOut) => return Err(self.timed_out(url)),
                }
            }
            let channel = match self.open(url).await {
                Ok(channel) => channel,
                Err(error) => {
                    url.state.failed(self.upstreams.now());
                    last_error = Some(error);
                    continue;
                }
            };
            match self.send(channel, request).await {
                Ok(answer) => return self.answered(url, answer, in_flight),
                Err(Failed::Unsent(unsent)) => {
                    url.state.failed(self.upstreams.now());
                    last_error = Some(io::Error::other("it closed a fresh connection"));
                    request = *unsent;
                }
                Err(Failed::Unanswered(error)) => return Err(self.failed(url, error)),
                Err(Failed::TimedOut) => return Err(self.timed_out(url)),
            }
        }
        let source = last_error.unwrap_or_else(|| io::Error::other("it has no URL"));
        Err(Error::Unreachable { upstream: self.one.name.clone(), source })
    }

    /// One that has rested and may be tried again, where no other request tries it already; the URLs in use, the least
    /// busy first; then the others, for a late try is better than none.
    fn order(&self) -> Vec<&Url> {
        let urls = &self.one.urls;
        if let [only] = &**urls {
            return vec![only];
        }
        let turn = self.one.turn.get();
        self.one.turn.set(turn.wrapping_add(1));
        let now = self.upstreams.now();
        let mut order: Vec<&Url> = urls.iter().cycle().skip(turn % urls.len().max(1)).take(urls.len()).collect();
        let trial = urls.iter().position(|url| url.state.begin_trial(now, self.one.config.connect_timeout));
        let trial = trial.and_then(|index| urls.get(index)).map(|url| Rc::as_ptr(&url.pool));
        order.sort_by_cached_key(|url| {
            (trial != Some(Rc::as_ptr(&url.pool)), !url.state.is_in_use(now), url.state.load())
        });
        order
    }

    async fn open(&self, url: &Url) -> io::Result<Channel> {
        let mut stream =
            connect::connect(&url.state.url, self.one.tls.as_ref(), self.one.config.connect_timeout).await?;
        // A tunnel wants to know at once; an answer that came before the end of the upload is still to be read.
        if !self.websocket {
            stream.read_on_after_failed_write();
        }
        let (sender, connection) = http1::Builder::new()
            .max_headers(MOST_HEADERS)
            .max_buf_size(BUFFER_BYTES)
            .preserve_header_case(true)
            .title_case_headers(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        Ok(Channel { sender, connection: Box::pin(connection) })
    }

    /// Sends the request over a connection and waits for the answer's head, driving the connection meanwhile.
    async fn send(&self, mut channel: Channel, request: Request<RequestBody>) -> Result<Answered, Failed> {
        if self.websocket {
            return self.send_upgrade(channel, request).await;
        }
        let limit = self.one.config.response_timeout;
        let mut alarm = pin!(tokio::time::sleep(limit));
        let mut pieces = 0;
        let outcome = {
            // With a waker that wakes nobody it must never be put off, as the runtime's budget could do.
            let mut sending = pin!(tokio::task::coop::unconstrained(channel.sender.try_send_request(request)));
            let connection = &mut channel.connection;
            std::future::poll_fn(|task: &mut Context<'_>| {
                // The connection answers the sending half within its own poll, so that one needs no waker.
                let mut quiet = Context::from_waker(Waker::noop());
                let mut poll = sending.as_mut().poll(&mut quiet);
                if poll.is_pending() {
                    let over = connection.as_mut().poll(task).is_ready();
                    poll = sending.as_mut().poll(&mut quiet);
                    if poll.is_pending() && over {
                        // The connection has ended and told the sending half; it will be told by now.
                        task.waker().wake_by_ref();
                    }
                }
                if let Poll::Ready(outcome) = poll {
                    return Poll::Ready(Some(outcome));
                }
                // An upload may take as long as it moves.
                if pieces != self.sent.pieces.get() {
                    pieces = self.sent.pieces.get();
                    alarm.as_mut().reset(tokio::time::Instant::now() + limit);
                }
                while alarm.as_mut().poll(task).is_ready() {
                    // A client that stalls has a limit of its own, and is not the backend's failure.
                    if !self.sent.waiting.get() {
                        return Poll::Ready(None);
                    }
                    alarm.as_mut().reset(tokio::time::Instant::now() + limit);
                }
                Poll::Pending
            })
            .await
        };
        match outcome {
            None => Err(Failed::TimedOut),
            Some(Ok(response)) => Ok(Answered::Response(response, Some(channel))),
            Some(Err(mut error)) => match error.take_message() {
                Some(request) => Err(Failed::Unsent(Box::new(request))),
                None => Err(Failed::Unanswered(error.into_error())),
            },
        }
    }

    /// An upgrade outlives the request, so a task of its own drives the connection.
    async fn send_upgrade(&self, channel: Channel, request: Request<RequestBody>) -> Result<Answered, Failed> {
        let Channel { mut sender, connection } = channel;
        let connection = *std::pin::Pin::into_inner(connection);
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection for an upgrade ended in an error");
            }
        });
        let answer = tokio::time::timeout(self.one.config.response_timeout, sender.send_request(request)).await;
        match answer {
            Err(_) => Err(Failed::TimedOut),
            Ok(Err(error)) => Err(Failed::Unanswered(error)),
            Ok(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Ok(Answered::Upgraded(response))
            }
            Ok(Ok(response)) => Ok(Answered::Response(response, None)),
        }
    }

    fn answered(&self, url: &Url, answered: Answered, in_flight: InFlight) -> Result<Answer, Error> {
        match answered {
            Answered::Upgraded(mut response) => {
                let is_websocket = response
                    .headers()
                    .get(header::UPGRADE)
                    .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
                if !is_websocket {
                    return Err(self.broken(url, Box::from("it switched to another protocol than WebSocket")));
                }
                let upstream = hyper::upgrade::on(&mut response);
                let (mut head, _) = response.into_parts();
                rewrite::response(&mut head, self.outgoing, true).map_err(|error| self.broken(url, error.into()))?;
                url.state.succeeded();
                Ok(Answer::Tunnel { head: Response::from_parts(head, ()), upstream: Tunnel { upstream, in_flight } })
            }
            Answered::Response(response, _) if response.status().is_informational() => {
                Err(self.broken(url, Box::from("it switched protocols without being asked")))
            }
            Answered::Response(response, channel) => {
                let (mut head, incoming) = response.into_parts();
                let trailers = rewrite::response(&mut head, self.outgoing, false)
                    .map_err(|error| self.broken(url, error.into()))?;
                url.state.succeeded();
                let lease = channel.map(|channel| Lease::new(channel, &url.pool, in_flight));
                let body = UpstreamBody::new(incoming, lease, trailers);
                Ok(Answer::Response(Response::from_parts(head, body)))
            }
        }
    }

    /// Whose fault it was: the client's body, or the backend.
    fn failed(&self, url: &Url, error: hyper::Error) -> Error {
        match self.sent.fault.take() {
            Some(ClientFault::Broken(error)) => Error::ClientBody(error),
            Some(ClientFault::TimedOut) => Error::ClientBodyTimedOut,
            None => self.broken(url, Box::new(error)),
        }
    }

    fn broken(&self, url: &Url, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
        url.state.failed(self.upstreams.now());
        Error::Broken { upstream: self.one.name.clone(), source }
    }

    fn timed_out(&self, url: &Url) -> Error {
        url.state.failed(self.upstreams.now());
        Error::TimedOut { upstream: self.one.name.clone() }
    }
}

enum Answered {
    /// `None`: a task of its own drives the connection.
    Response(Response<Incoming>, Option<Channel>),
    Upgraded(Response<Incoming>),
}

/// The same request once more. Only for those without a body.
fn request_again(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut again = Request::new(RequestBody::Empty);
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    again
}
