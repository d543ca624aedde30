//! The line: every request takes these steps in this order, and nobody else writes them down.
//!
//! ```text
//! handle ── opens the Context, cannot fail
//!   └ serve
//!       admit     message   what is malformed ends here
//!       resolve   router    no route, or readings that disagree
//!       identify  auth      who sent it: no I/O
//!       refresh   auth      near the half, or the account has changed: one reading of the account
//!       decide    router    by the policy, the only maker of a Pass; every further target too
//!       forward   upstream  with the Pass; or the portal answers
//! ```
//!
//! Every error on the way becomes an answer in [`reject`] and nowhere else.

mod adoption;
mod body;
mod circle;
mod core;
mod live;
mod named;
mod peers;
mod reject;
mod request_id;
mod streams;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

pub use self::body::AnswerBody;
use self::core::Own;
pub use self::core::{Core, Shared};
pub use self::live::{Live, LiveError};
use self::peers::Matter;
use self::reject::Rejection;
use self::streams::{Place, Whose};
use crate::auth::session::Issued;
use crate::auth::{Asker, Identified, Source, Verified, identify, presented};
use crate::context::Context;
pub use crate::context::cutting;
use crate::message::admit::{Admitted, admit, is_check_of_proxy};
use crate::message::head::{self, RawTarget, Unreadable};
use crate::message::replies::{Refused, Reply};
use crate::message::spelling::Spelling;
use crate::message::{caching, cookies, forwarded, origin};
use crate::policy::{Caller, Denied};
use crate::portal::Visit;
use crate::portal::language::Language;
use crate::router::targets::decide;
use crate::router::{Endpoint, Route, Target};
pub use crate::upstream::Ties;
use crate::upstream::{Answer, Outgoing};

/// The client's side of a connection.
#[derive(Clone)]
pub struct Client {
    /// The address at the other end of the socket, `None` on a unix socket.
    pub peer: Option<IpAddr>,
    /// What backends have logged in for it.
    pub ties: Rc<Ties>,
}

/// Answers one request.
pub fn handle(
    core: Rc<Core>,
    client: Client,
    request: Request<Incoming>,
    spelling: Spelling,
) -> impl Future<Output = Response<AnswerBody>> {
    let log = &core.shared().telemetry().access;
    let mut context = Context::open(core.shared().clock(), log, client.peer, request.method().clone());
    let (mut parts, body) = request.into_parts();
    let mut asked = Asked::new(&parts);
    // An `async fn` would have room for the request beside its parts: every request pays for the size of this.
    async move {
        let shared = core.shared();
        let own = core.own();
        let live = &own.live;
        let outcome = {
            let mut served = pin!(serve(&core, &own, &client, &mut parts, body, &spelling, &mut context, &mut asked));
            std::future::poll_fn(|task| poll_unless_it_panics(served.as_mut(), task)).await
        };
        let mut response = match outcome {
            Ok(Ok(response)) => response,
            Ok(Err(rejection)) => {
                let mut reply = reject::answer(&rejection, live, &asked, &mut context);
                // Not for a session that was ended while the backend was thinking.
                let needs_login = matches!(rejection, Rejection::Denied(Denied::LoginRequired(_)));
                if let (Some(issued), Some(admitted), false) = (&asked.issued, &asked.admitted, needs_login) {
                    add_cookie(live, reply.headers_mut(), issued, live.secure_cookie(admitted.scheme));
                }
                reply.map(AnswerBody::own)
            }
            Err(Panicked) => {
                shared.telemetry().metrics.panicked();
                tracing::error!(request_id = context.entry.id(), "a request ended in a defect of the program");
                reject::answer(&Rejection::Defect, live, &asked, &mut context).map(AnswerBody::own)
            }
        };
        if shared.is_draining() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        context.answer(response.status());
        let without_body =
            asked.head_only || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        response.map(|body| body.with_context(context, without_body))
    }
}

/// Answers what is no request. `head`: as it came, as far as it is known.
pub fn refuse(core: &Rc<Core>, peer: Option<IpAddr>, head: &[u8], why: Unreadable) -> Response<AnswerBody> {
    let shared = core.shared();
    let (method, path) = head::told(head);
    let head_only = method == http::Method::HEAD;
    let mut context = Context::open(shared.clock(), &shared.telemetry().access, peer, method);
    context.entry.id = core.request_id();
    context.entry.path = Some(path.into());
    let response = reject::unreadable(why, &mut context);
    context.answer(response.status());
    response.map(|body| AnswerBody::own(body).with_context(context, head_only))
}

/// What a refusal needs to know of the request, gathered as it becomes known.
struct Asked {
    head_only: bool,
    method: http::Method,
    path_and_query: String,
    /// The lines of `Accept-Language`, to be read only where a page is written.
    languages: Vec<HeaderValue>,
    admitted: Option<Admitted>,
    /// The route never redirects to the login page.
    api: bool,
    /// A cookie of our name came that is no login.
    stale_cookie: bool,
    /// A renewed token, which goes out on a refusal as well.
    issued: Option<Issued>,
}

impl Asked {
    fn new(parts: &Parts) -> Self {
        Self {
            head_only: parts.method == http::Method::HEAD,
            method: parts.method.clone(),
            path_and_query: String::new(),
            languages: Vec::new(),
            admitted: None,
            api: false,
            stale_cookie: false,
            issued: None,
        }
    }

    /// Keeps what a refusal would need once the request itself has been given away. Only for requests that are refused.
    fn remember(&mut self, parts: &Parts) {
        self.path_and_query = parts.uri.path_and_query().map_or_else(|| String::from("/"), ToString::to_string);
        self.languages = languages(&parts.headers);
    }

    fn language(&self) -> Language {
        Language::of_lines(&self.languages)
    }
}

fn languages(headers: &HeaderMap) -> Vec<HeaderValue> {
    headers.get_all(header::ACCEPT_LANGUAGE).iter().cloned().collect()
}

#[expect(clippy::too_many_lines, reason = "the line, step by step: in pieces nobody could read its order")]
#[expect(clippy::too_many_arguments, reason = "one request's facts, used once")]
async fn serve(
    core: &Rc<Core>,
    own: &Own,
    connection: &Client,
    parts: &mut Parts,
    body: Incoming,
    spelling: &Spelling,
    context: &mut Context,
    asked: &mut Asked,
) -> Result<Response<AnswerBody>, Rejection> {
    let (shared, live) = (core.shared(), &own.live);
    let peer = connection.peer;
    let admitted = match admit(parts, peer, &live.edge) {
        Ok(admitted) => admitted,
        Err(malformed) => {
            context.entry.path = Some(parts.uri.path().into());
            if is_check_of_proxy(parts, peer, &live.edge) {
                return Ok(answer_check(context));
            }
            asked.remember(parts);
            return Err(malformed.into());
        }
    };
    context.entry.client = Some(admitted.client);
    context.entry.host = Some(admitted.host.shared());
    context.entry.path = Some(admitted.readings.shared());
    context.entry.id = forwarded::request_id(&parts.headers, admitted.peer_trusted, || core.request_id());
    let admitted = &*asked.admitted.insert(admitted);
    if let Some(header) = admitted.doubt {
        shared.peers().warn(Matter::NotUnderstood(header), peer);
    }

    let route = live.router.resolve(&admitted.host, &admitted.readings, &parts.method);
    let route = match route {
        Ok(route) => route,
        Err(error) => {
            asked.remember(parts);
            return Err(error.into());
        }
    };
    context.entry.route = own.counters(route);
    asked.api = route.api;

    let known = match who(core, live, admitted, route, &parts.headers).await {
        Ok(known) => known,
        Err(rejection) => {
            asked.remember(parts);
            return Err(rejection);
        }
    };
    asked.stale_cookie = known.identified.stale_cookie;
    asked.issued.clone_from(&known.issued);
    if let Caller::Person(person) = &known.caller {
        context.entry.user = Some(Arc::clone(person));
    }

    let head = (&parts.method, &parts.headers);
    let allowed = match decide(&live.router, route, admitted, head, &known.caller) {
        Ok(allowed) => allowed,
        Err(refusal) => {
            asked.remember(parts);
            return Err(refusal.into());
        }
    };
    let pass = allowed.pass;
    context.entry.decision = "allow";
    context.entry.reason = pass.reason();
    let secure = live.secure_cookie(admitted.scheme);
    let mut response = match route.target {
        Target::Portal(endpoint) => {
            let presented = known.presented(core, live, &parts.headers);
            let cookies = known.cookies(core, live, parts);
            let visit = Visit {
                config: &live.config,
                ring: &live.ring,
                admitted,
                caller: &known.caller,
                credential: known.credential(),
                presented: presented.as_deref(),
                cookies: &cookies,
                renewed_until: known.issued.as_ref().map(|issued| issued.expires),
            };
            if endpoint == Endpoint::Login && forwarded::comes_disbelieved(&parts.headers, admitted) {
                shared.peers().warn(Matter::Disbelieved, peer);
            }
            // In boxes of their own, so that forwarded requests do not carry their size around.
            if endpoint == Endpoint::Feed {
                match Box::pin(shared.portal().feed(&visit, parts)).await {
                    Ok(feed) => feed.map(AnswerBody::feed),
                    Err(mut refusal) => {
                        note_refusal(&mut refusal, context);
                        refusal.map(AnswerBody::own)
                    }
                }
            } else {
                let (nothing, ()) = Request::new(()).into_parts();
                let request = Request::from_parts(std::mem::replace(parts, nothing), body);
                let mut reply = Box::pin(shared.portal().answer(endpoint, &visit, request)).await;
                note_refusal(&mut reply, context);
                reply.map(AnswerBody::own)
            }
        }
        Target::Upstream(upstream) => {
            // A route without an upstream is closed, and a closed route gives no Pass.
            let Some(upstream) = upstream else { return Err(Rejection::Defect) };
            let hosts = &live.config.login.redirect_hosts;
            if admitted.websocket && !origin::may_connect(&parts.headers, admitted, hosts, &live.config.cookie.name) {
                let met = origin::what_met(&parts.headers, admitted);
                asked.remember(parts);
                return Err(Rejection::ForeignOrigin(met));
            }
            let request_id = context.entry.id.clone();
            let identity = own.identity_lines(&pass);
            let outgoing = Outgoing {
                pass: &pass,
                admitted,
                peer,
                request_id: &request_id,
                strip_prefix: &route.strip_prefix,
                destination: allowed.destination.as_ref().map(|destination| (destination.is_url, &*destination.path)),
                guarded: &live.guarded,
                identity: &identity,
                cookie_name: &live.config.cookie.name,
                said_of_cookie: RefCell::default(),
                own_bearer: known.identified.own_bearer,
                body_timeout: live.config.server.limits.body_timeout,
                spelling,
                disbelieved: Cell::new(false),
                basic_password: live.config.identity.basic_password.as_ref(),
                ties: &connection.ties,
            };
            let client = admitted.websocket.then(|| upgrade_of(parts));
            let forwarded = forward(core, own, upstream, (parts, body, client), &outgoing, &known, route, context);
            let answer = forwarded.await;
            if outgoing.disbelieved.get() {
                shared.peers().warn(Matter::Disbelieved, peer);
            }
            match answer {
                Ok(mut response) => {
                    if !outgoing.said_of_cookie.borrow().is_empty() {
                        let headers = &parts.headers;
                        let upstream = live.upstream(upstream).ok_or(Rejection::Defect)?;
                        let spoken = adoption::Spoken { core, live, upstream, known: &known, admitted, headers };
                        Box::pin(spoken.act(&outgoing.said_of_cookie, response.headers_mut())).await;
                    }
                    if response.status().is_redirection() {
                        circle::look_at(live, admitted, &route.name, parts.uri.path(), response.headers());
                    }
                    response
                }
                Err(rejection) => {
                    asked.remember(parts);
                    return Err(rejection);
                }
            }
        }
    };
    if let Some(issued) = &known.issued {
        add_cookie(live, response.headers_mut(), issued, secure);
    } else if known.identified.stale_cookie
        && matches!(route.target, Target::Portal(_))
        && matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::SEE_OTHER)
    {
        // Other proxies pass one cookie on, if any.
        let twins = !matches!(route.target, Target::Portal(Endpoint::Check));
        clear_cookie(live, response.headers_mut(), secure, twins);
    }
    Ok(response)
}

/// The portal decides for itself what it refuses; the log is told of it here.
fn note_refusal(reply: &mut Reply, context: &mut Context) {
    if let Some(Refused { reason, detail }) = reply.extensions_mut().remove::<Refused>() {
        context.entry.decision = "deny";
        context.entry.reason = reason;
        context.entry.detail = detail;
    }
}

/// Who sent a request, after any refresh.
struct Known {
    identified: Identified,
    caller: Caller,
    issued: Option<Issued>,
    /// It took more than the token: the store was asked, or a centre.
    looked_up: bool,
}

impl Known {
    fn credential(&self) -> Option<&Verified> {
        match &self.caller {
            Caller::Person(_) => self.identified.credential.as_ref().map(|(verified, _)| &**verified),
            Caller::Anonymous(_) => None,
        }
    }

    /// Every valid cookie of our name, for what a `POST` to the portal ends or replaces.
    fn cookies(&self, core: &Core, live: &Live, parts: &Parts) -> Vec<(Arc<Verified>, Option<String>)> {
        if parts.method != http::Method::POST {
            return Vec::new();
        }
        let shared = core.shared();
        let (name, now) = (&live.config.cookie.name, shared.clock().unix_seconds());
        self.valid_cookies()
            .map(|verified| {
                let credential = (Arc::clone(verified), Source::Cookie);
                let text = core.with_tokens(|tokens| {
                    let shown = shared.sessions().has_centre();
                    let find =
                        || presented(&parts.headers, name, &live.ring, tokens, &credential, now).map(str::to_owned);
                    shown.then(find).flatten()
                });
                (credential.0, text)
            })
            .collect()
    }

    fn valid_cookies(&self) -> impl Iterator<Item = &Arc<Verified>> {
        let own = self.identified.credential.iter().filter(|(_, source)| *source == Source::Cookie);
        own.map(|(verified, _)| verified).chain(&self.identified.other_cookies)
    }

    /// The text of the token, for a gateway that has to show it to its centre.
    fn presented(&self, core: &Core, live: &Live, headers: &HeaderMap) -> Option<String> {
        let shared = core.shared();
        let credential = self.identified.credential.as_ref().filter(|_| shared.sessions().has_centre())?;
        let now = shared.clock().unix_seconds();
        let name = &live.config.cookie.name;
        core.with_tokens(|tokens| presented(headers, name, &live.ring, tokens, credential, now).map(str::to_owned))
    }
}

async fn who(
    core: &Rc<Core>,
    live: &Arc<Live>,
    admitted: &Admitted,
    route: &Route,
    headers: &HeaderMap,
) -> Result<Known, Rejection> {
    let shared = core.shared();
    if !shared.may_identify(&live.config.store) || live.ring.is_empty() {
        return Err(Rejection::NotReady);
    }
    let now = shared.clock().unix_seconds();
    let mut identified = core.with_tokens(|tokens| {
        identify(headers, &live.config.cookie.name, &live.ring, tokens, shared.revocations(), shared.clock())
    });
    let fresh;
    let mut live = live;
    let looked_up = identified.unknown_key;
    // Rare as well.
    if looked_up && Box::pin(shared.has_new_keys(&live.config.store)).await {
        fresh = shared.live();
        live = &fresh;
        identified = core.with_tokens(|tokens| {
            identify(headers, &live.config.cookie.name, &live.ring, tokens, shared.revocations(), shared.clock())
        });
    }
    if !shared.sessions().needs_refresh(&live.config.token, &identified, now) {
        let caller = identified.caller.clone();
        return Ok(Known { identified, caller, issued: None, looked_up });
    }
    let mut known = Known { caller: identified.caller.clone(), identified, issued: None, looked_up: true };
    let presented = known.presented(core, live, headers);
    let user_agent = headers.get(header::USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let asker = Asker {
        client: admitted.client,
        user_agent: user_agent.as_deref().unwrap_or_default(),
        presented: presented.as_deref(),
    };
    let config = &live.config;
    let refresh = shared.sessions().refresh(&live.ring, &config.token, &config.store, &known.identified, asker);
    // Rare, and large: in a box of its own.
    let refreshed = Box::pin(refresh).await;
    if refreshed.unavailable && route.policy.access != crate::config::Access::Public {
        return Err(Rejection::NotReady);
    }
    let identified = &mut known.identified;
    if let (Caller::Anonymous(why), Some((_, Source::Cookie))) = (&refreshed.caller, &identified.credential) {
        // That it is too old is for the wall clock to say only where the monotonic clock agrees.
        let is_certain = |now| shared.revocations().time_that_is_over(shared.clock()).is_some_and(|over| over >= now);
        identified.stale_cookie = *why != crate::policy::Unidentified::ExpiredToken || is_certain(now);
    }
    Ok(Known { caller: refreshed.caller, issued: refreshed.issued, ..known })
}

/// The client's connection, once it has been told that it is a tunnel. hyper looks for it in whole requests only.
fn upgrade_of(parts: &mut Parts) -> OnUpgrade {
    let mut upgradable = Request::new(());
    std::mem::swap(upgradable.extensions_mut(), &mut parts.extensions);
    if let Some(raw) = upgradable.extensions().get::<RawTarget>() {
        parts.extensions.insert(raw.clone());
    }
    hyper::upgrade::on(&mut upgradable)
}

#[expect(clippy::too_many_arguments, reason = "one request's facts, used once")]
async fn forward(
    core: &Rc<Core>,
    own: &Own,
    upstream: usize,
    (parts, body, client): (&Parts, Incoming, Option<OnUpgrade>),
    outgoing: &Outgoing<'_>,
    known: &Known,
    route: &Route,
    context: &mut Context,
) -> Result<Response<AnswerBody>, Rejection> {
    let shared = core.shared();
    // A public route stays open whoever logs out.
    let is_public = route.policy.access == crate::config::Access::Public;
    let verified = known.identified.credential.as_ref().map(|(verified, _)| Arc::clone(verified));
    let epoch = shared.revocations().epoch();
    let upstreams = own.upstreams(shared.clock()).map_err(|error| {
        tracing::error!(%error, "the upstreams can't be set up");
        Rejection::Defect
    })?;
    // Nothing was waited for so far, but where somebody was looked up anew.
    let asked_at = if known.looked_up { shared.clock().instant() } else { context.started };
    let answer = upstreams.forward(upstream, parts, body, outgoing).await;
    context.entry.upstream_duration = Some(shared.clock().instant().saturating_duration_since(asked_at));
    let answer = answer?;
    // Revoked while the backend was thinking: its answer is for nobody any more.
    if let Some(verified) = &verified
        && !is_public
        && epoch != shared.revocations().epoch()
        && shared.revocations().standing(verified) == crate::auth::Standing::Revoked
    {
        return Err(Denied::LoginRequired(crate::policy::Unidentified::RevokedToken).into());
    }
    let whose = Whose { verified, is_public };
    match answer {
        Answer::Response(response) => Ok(response.map(|body| AnswerBody::upstream(body, core.streams(), whose))),
        Answer::Tunnel { head, upstream } => {
            if let Some(client) = client {
                let over = core.streams().enter(whose, Place::of(&context.entry));
                core.spawn_tunnel(async move { upstream.join(client, over).await });
            }
            Ok(head.map(|()| AnswerBody::nothing()))
        }
    }
}

/// Puts a renewed token on an answer, unless the answer already says something about that cookie (a logout).
/// A proxy in front wants to know whether somebody answers. No host is named, so that no route and no backend is meant.
fn answer_check(context: &mut Context) -> Response<AnswerBody> {
    context.entry.decision = "allow";
    context.entry.reason = "proxy_check";
    tracing::debug!(request_id = context.entry.id(), "the check of a trusted proxy is answered here");
    Response::new(AnswerBody::own(Full::default()))
}

fn add_cookie(live: &Live, headers: &mut HeaderMap, issued: &Issued, secure: bool) {
    let name = &live.config.cookie.name;
    if headers.get_all(header::SET_COOKIE).iter().any(|line| cookies::sets(line.as_bytes(), name)) {
        return;
    }
    let renewed = cookies::set_cookie(&live.config.cookie, secure, issued.token.expose(), issued.max_age);
    headers.append(header::SET_COOKIE, renewed);
    caching::make_private(headers);
}

/// Clears a cookie that is no login, unless the answer already says something about that cookie (a new login).
fn clear_cookie(live: &Live, headers: &mut HeaderMap, secure: bool, twins: bool) {
    let config = &live.config.cookie;
    if !headers.get_all(header::SET_COOKIE).iter().any(|line| cookies::sets(line.as_bytes(), &config.name)) {
        headers.append(header::SET_COOKIE, cookies::set_cookie(config, secure, "", 0));
        for line in twins.then(|| cookies::clear_twins(config, secure)).into_iter().flatten() {
            headers.append(header::SET_COOKIE, line);
        }
    }
}

/// Polls, and turns a panic into an error, so that it ends one request and not a worker's connection.
fn poll_unless_it_panics<F: Future>(
    future: Pin<&mut F>,
    task: &mut TaskContext<'_>,
) -> Poll<Result<F::Output, Panicked>> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| future.poll(task))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(Panicked)),
    }
}

struct Panicked;
