//! Doorward's own endpoints: login, check, logout, account, JWKS.
//!
//! Only `POST` changes anything, and never on another site's behalf. A sender of a form gets pages and redirects, any
//! other program gets JSON and problem reports.

mod account;
mod check;
mod elsewhere;
mod form;
mod gateways;
pub mod language;
mod login;
mod logout;
mod pages;
mod words;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LANGUAGE, RETRY_AFTER, SET_COOKIE, USER_AGENT, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use zeroize::Zeroize as _;

use self::form::{Fields, Kind, query_value};
use self::language::Language;
use self::pages::Place;
pub use self::pages::{Failed, error_page, form_without_login};
use crate::accounts::Accounts;
use crate::auth::Verified;
use crate::auth::keys::KeyRing;
use crate::auth::session::{Issued, Sessions};
use crate::config::{Config, SecureCookie};
use crate::feed::{Feed, FeedBody};
use crate::message::admit::{Admitted, Intent, Scheme};
use crate::message::body::{self, BodyError};
use crate::message::cookies;
use crate::message::origin::{self, Sender};
use crate::message::replies::{self, FormsLead, Reply};
use crate::message::return_to;
use crate::policy::{Caller, Principal};
use crate::router::Endpoint;
use crate::store::Store;
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::Metrics;

/// The largest body that is read here, in bytes.
const BODY_LIMIT: usize = 16 * 1024;
/// How long such a body may take in all.
const BODY_TIME: Duration = Duration::from_secs(30);
/// What browsers keep of one cookie, name and value together (RFC 6265 section 6.1).
const COOKIE_LIMIT: usize = 4096;
/// When to come back after a store or a queue did not answer.
const RETRY_SOON: Duration = Duration::from_secs(2);

/// What one request to the portal is about.
pub struct Visit<'a> {
    /// One snapshot for the whole request.
    pub config: &'a Config,
    /// Signs new tokens.
    pub ring: &'a KeyRing,
    /// Host, scheme and client as admission found them.
    pub admitted: &'a Admitted,
    /// After any refresh.
    pub caller: &'a Caller,
    /// The token behind a person.
    pub credential: Option<&'a Verified>,
    /// Its text, where a centre has to be shown it.
    pub presented: Option<&'a str>,
    /// Every valid cookie of our name that came with a `POST`, with its text where a centre has to be shown it.
    pub cookies: &'a [(Arc<Verified>, Option<String>)],
    /// The new expiry (Unix seconds) where this request has just renewed the token.
    pub renewed_until: Option<u64>,
}

/// Answers the portal's endpoints. Shared by all workers; cheap to clone.
#[derive(Clone)]
pub struct Portal {
    accounts: Accounts,
    sessions: Arc<Sessions>,
    metrics: Metrics,
    feed: Arc<Feed>,
    store: Arc<dyn Store>,
    /// Names of hosts at which no cookie can work and a warning has said so.
    warned: Arc<Mutex<HashSet<String>>>,
}

impl Portal {
    /// Joins the two rooms that only a login joins.
    #[must_use]
    pub fn new(
        accounts: Accounts,
        sessions: Arc<Sessions>,
        telemetry: Telemetry,
        feed: Arc<Feed>,
        store: Arc<dyn Store>,
    ) -> Self {
        Self { accounts, sessions, metrics: telemetry.metrics, feed, store, warned: Arc::default() }
    }

    /// Answers [`Endpoint::Feed`]: a body without an end, or the refusal.
    pub async fn feed(&self, visit: &Visit<'_>, head: &Parts) -> Result<Response<FeedBody>, Box<Reply>> {
        gateways::feed(self, Call { visit, head, language: Language::default() }).await
    }

    /// Answers one request. The gate adds a renewed cookie afterwards unless the answer sets the cookie itself, and
    /// drops the body for `HEAD`.
    pub async fn answer(&self, endpoint: Endpoint, visit: &Visit<'_>, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let call = Call { visit, head: &head, language: Language::of(&head.headers) };
        let reads = head.method == Method::GET || head.method == Method::HEAD;
        let posts = head.method == Method::POST;
        if let Some(central) = &visit.config.central
            && let Some(reply) = elsewhere::answer(central, endpoint, call)
        {
            return reply;
        }
        let mut reply = match endpoint {
            Endpoint::Login if reads => login::show(call),
            Endpoint::Login if posts => login::submit(self, call, body).await,
            Endpoint::Check if reads => check::answer(visit),
            Endpoint::Logout if reads => logout::show(call),
            Endpoint::Logout if posts => logout::submit(self, call, body).await,
            Endpoint::Account if reads => account::show(self, call).await,
            Endpoint::AccountPassword if posts => account::change_password(self, call, body).await,
            Endpoint::AccountSessions if posts => account::end_sessions(self, call, body).await,
            // A person who reloads the address after a mistake in a form.
            Endpoint::AccountPassword | Endpoint::AccountSessions if reads && call.is_navigation() => {
                replies::see_other(&call.own("/account"))
            }
            Endpoint::Jwks if reads => jwks(visit.ring),
            Endpoint::ChangePassword if reads => replies::see_other(&call.own("/account")),
            Endpoint::GatewayRenew if posts => gateways::renew(self, call, body).await,
            Endpoint::GatewayLogout if posts => gateways::logout(self, call, body).await,
            Endpoint::Login | Endpoint::Logout => call.method_not_allowed("GET, HEAD, POST"),
            Endpoint::Check | Endpoint::Account | Endpoint::Jwks | Endpoint::ChangePassword => {
                call.method_not_allowed("GET, HEAD")
            }
            Endpoint::AccountPassword
            | Endpoint::AccountSessions
            | Endpoint::GatewayRenew
            | Endpoint::GatewayLogout => call.method_not_allowed("POST"),
            // Its answer is no [`Reply`]: see [`Portal::feed`].
            Endpoint::Feed => call.method_not_allowed("GET"),
        };
        if reply.status() == StatusCode::UNAUTHORIZED {
            // Gateways are told of a realm of their own.
            reply.headers_mut().entry(WWW_AUTHENTICATE).or_insert(replies::CHALLENGE);
        }
        reply
    }
}

/// How a body is written, and the texts that were asked for and found in it.
#[cfg(any(test, fuzzing))]
pub type Read = (bool, Option<Vec<(&'static str, String)>>);

/// Reads a body as a login does. `None`: of a type that is not read; true: a form, false: JSON.
#[cfg(any(test, fuzzing))]
#[must_use]
pub fn read_fields(headers: &http::HeaderMap, body: &[u8], wanted: &'static [&'static str]) -> Option<Read> {
    let kind = Kind::of(headers)?;
    let fields = Fields::parse(kind, body, wanted).ok();
    let texts = |fields: Fields| {
        wanted.iter().filter_map(|name| Some((*name, fields.text(name)?.to_owned()))).collect::<Vec<_>>()
    };
    Some((kind == Kind::Form, fields.map(texts)))
}

fn jwks(ring: &KeyRing) -> Reply {
    match ring.jwks() {
        Some(keys) => replies::json(StatusCode::OK, &keys),
        None => {
            replies::problem(StatusCode::NOT_FOUND, "no_public_keys", "tokens are not signed with a public key", None)
        }
    }
}

/// Whether our cookie is to be marked `Secure` (RFC 6265 section 4.1.2.5).
#[must_use]
pub fn cookie_is_secure(secure: SecureCookie, scheme: Scheme) -> bool {
    match secure {
        SecureCookie::Always => true,
        SecureCookie::Never => false,
        SecureCookie::Auto => scheme == Scheme::Https,
    }
}

/// One request, without its body, in the language of its sender.
#[derive(Clone, Copy)]
struct Call<'a> {
    visit: &'a Visit<'a>,
    head: &'a Parts,
    language: Language,
}

impl<'a> Call<'a> {
    fn config(self) -> &'a Config {
        self.visit.config
    }

    fn person(self) -> Option<&'a Arc<Principal>> {
        match self.visit.caller {
            Caller::Person(person) => Some(person),
            Caller::Anonymous(_) => None,
        }
    }

    /// This host as the browser knows it.
    fn host(self) -> &'a str {
        self.visit.admitted.public_authority()
    }

    fn place(self) -> Place<'a> {
        Place { language: self.language, prefix: &self.config().portal_prefix, host: self.host() }
    }

    /// This host's own address, as the browser knows it.
    fn origin(self) -> String {
        format!("{}://{}", self.visit.admitted.scheme.as_str(), self.host())
    }

    /// The path of an endpoint of ours.
    fn own(self, path: &str) -> String {
        format!("{}{path}", self.config().portal_prefix)
    }

    fn is_navigation(self) -> bool {
        self.visit.admitted.intent == Intent::Navigation
    }

    /// The address to come back to that somebody has named, in a form's field or in the query.
    fn names_return(self, field: Option<&str>) -> bool {
        field.is_some_and(|field| !field.is_empty()) || query_value(self.head.uri.query(), "rd").is_some()
    }

    /// Where to go afterwards: what the form says, else the query, and only where that is safe.
    fn return_to(self, field: Option<&str>) -> String {
        let rd = match field {
            Some(field) if !field.is_empty() => field.as_bytes().to_vec(),
            _ => query_value(self.head.uri.query(), "rd").unwrap_or_default(),
        };
        let config = self.config();
        let (hosts, prefix) = (&config.login.redirect_hosts, &config.portal_prefix);
        return_to::safe(&rd, self.host(), self.visit.admitted.scheme, hosts, prefix)
    }

    /// Whether another site's page has sent this. A sender that tells nothing is a program: a browser leaves none of the
    /// evidence out when another site posts, and sends no `SameSite=Lax` cookie with it either.
    fn comes_from_another_site(self) -> bool {
        let hosts = &self.config().login.redirect_hosts;
        origin::sender(&self.head.headers, self.visit.admitted, hosts) == Sender::AnotherSite
    }

    /// What the sender calls itself, cut to what a session record takes.
    fn user_agent(self) -> String {
        let sent = self.head.headers.get(USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
        let text = String::from_utf8_lossy(sent);
        text.chars().filter(|character| !character.is_control()).take(256).collect()
    }

    fn page(self, status: StatusCode, html: String, forms: FormsLead) -> Reply {
        let mut reply = replies::page(status, html, forms);
        reply.headers_mut().insert(CONTENT_LANGUAGE, HeaderValue::from_static(self.language.tag()));
        reply
    }

    /// A refusal in the sender's own kind: a page for the sender of a form, a problem report for any other.
    fn refuse(self, kind: Option<Kind>, status: StatusCode, code: &'static str, detail: &str) -> Reply {
        if kind == Some(Kind::Form) || (kind.is_none() && self.is_navigation()) {
            let page = error_page(&Failed {
                language: self.language,
                status,
                prefix: &self.config().portal_prefix,
                is_form: kind == Some(Kind::Form),
                back: "",
                help: &self.config().login.help,
                request_id: "",
                detail: "",
            });
            let mut reply = self.page(status, page, FormsLead::Here);
            replies::refuse(&mut reply, code, None);
            reply
        } else {
            replies::problem(status, code, detail, None)
        }
    }

    fn method_not_allowed(self, allow: &'static str) -> Reply {
        let mut reply =
            self.refuse(None, StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this method is not possible here");
        reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        reply
    }

    fn cross_site(self, kind: Option<Kind>) -> Reply {
        let met = origin::what_met(&self.head.headers, self.visit.admitted);
        let mut reply = if kind == Some(Kind::Form) {
            self.page(StatusCode::FORBIDDEN, pages::cross_site(self.language, &met), FormsLead::Here)
        } else {
            let detail = format!("this was sent from another site's page: {met}");
            self.refuse(kind, StatusCode::FORBIDDEN, "cross_site", &detail)
        };
        replies::refuse(&mut reply, "cross_site", Some(met.into()));
        reply
    }

    fn unsupported_media_type(self) -> Reply {
        let detail = "send application/json or application/x-www-form-urlencoded, in UTF-8";
        self.refuse(None, StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
    }

    /// Reads the fields of a body; the answer to give where that fails.
    async fn fields(self, kind: Kind, body: Incoming, wanted: &'static [&'static str]) -> Result<Fields, Box<Reply>> {
        let bytes = match body::read(body, BODY_LIMIT, BODY_TIME).await {
            Ok(bytes) => bytes,
            Err(error) => {
                let (status, code) = match error {
                    BodyError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
                    BodyError::TimedOut => (StatusCode::REQUEST_TIMEOUT, "body_timed_out"),
                    BodyError::Broken(_) => (StatusCode::BAD_REQUEST, "body_broken"),
                };
                return Err(Box::new(self.refuse(Some(kind), status, code, &error.to_string())));
            }
        };
        let fields = Fields::parse(kind, &bytes, wanted);
        forget(bytes);
        fields.map_err(|malformed| {
            Box::new(self.refuse(Some(kind), StatusCode::BAD_REQUEST, "malformed_body", &malformed.to_string()))
        })
    }

    fn set_cookie(self, value: &str, max_age: u64) -> HeaderValue {
        let cookie = &self.config().cookie;
        cookies::set_cookie(cookie, cookie_is_secure(cookie.secure, self.visit.admitted.scheme), value, max_age)
    }

    fn clear_cookie(self, reply: &mut Reply) {
        reply.headers_mut().insert(SET_COOKIE, self.set_cookie("", 0));
        self.clear_twins(reply);
    }

    /// Clears what would stand beside our cookie.
    fn clear_twins(self, reply: &mut Reply) {
        let cookie = &self.config().cookie;
        for line in cookies::clear_twins(cookie, cookie_is_secure(cookie.secure, self.visit.admitted.scheme)) {
            reply.headers_mut().append(SET_COOKIE, line);
        }
    }

    /// The cookie for a fresh token; `None` where browsers would drop it, being too large.
    fn cookie_for(self, issued: &Issued) -> Option<HeaderValue> {
        let token = issued.token.expose();
        let fits = self.config().cookie.name.len() + token.len() <= COOKIE_LIMIT;
        fits.then(|| self.set_cookie(token, issued.max_age))
    }
}

/// Overwrites a body that may have held a password, where nobody else has a hand on it.
fn forget(bytes: Bytes) {
    if let Ok(mut bytes) = bytes.try_into_mut() {
        bytes.zeroize();
    }
}

fn retry_after(reply: &mut Reply, after: Duration) {
    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
    reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_rounded_up_to_whole_seconds() {
        for (millis, expected) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2"), (300_000, "300")] {
            let mut reply = Reply::default();
            retry_after(&mut reply, Duration::from_millis(millis));
            assert_eq!(reply.headers()[RETRY_AFTER], expected);
        }
    }

    #[test]
    fn the_cookie_is_secure_unless_it_came_over_plain_http() {
        assert!(cookie_is_secure(SecureCookie::Auto, Scheme::Https));
        assert!(!cookie_is_secure(SecureCookie::Auto, Scheme::Http));
        assert!(cookie_is_secure(SecureCookie::Always, Scheme::Http));
        assert!(!cookie_is_secure(SecureCookie::Never, Scheme::Https));
    }
}
