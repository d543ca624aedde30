//! `/login`: the page, and the one place where a password becomes a session.
//!
//! What is wrong with a login (name, password, or account) shows in no byte of the answer.

use std::net::IpAddr;

use http::header::{ORIGIN, SET_COOKIE};
use http::{HeaderValue, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use super::form::Kind;
use super::pages::LoginView;
use super::words::Message;
use super::{Call, Portal, RETRY_SOON, pages, retry_after};
use crate::accounts::SignIn;
use crate::auth::Verified;
use crate::auth::session::Issued;
use crate::clock::rfc3339;
use crate::config::SecureCookie;
use crate::message::admit::{Host, Scheme};
use crate::message::replies::{self, FormsLead, Reply};
use crate::store::{Account, StoreError};

/// `GET`: the form, or the way on for somebody who is logged in already.
pub(super) fn show(call: Call<'_>) -> Reply {
    let rd = call.return_to(None);
    let Some(person) = call.person() else {
        return page(call, StatusCode::OK, &rd, "", None);
    };
    // Where another host does not get this cookie it would send the browser straight back here, for ever.
    let reaches = rd.starts_with('/') || !call.config().cookie.domain.is_empty();
    if call.names_return(None) && reaches {
        replies::see_other(&rd)
    } else {
        call.page(StatusCode::OK, pages::signed_in(call.place(), &person.username, &rd), FormsLead::On)
    }
}

/// The page with the form.
fn page(call: Call<'_>, status: StatusCode, rd: &str, username: &str, problem: Option<Message>) -> Reply {
    let login = &call.config().login;
    // A long one stands in the page's own address, to which the form goes; the body has its limit.
    let rd = if rd.len() > LONGEST_FIELD { "" } else { rd };
    let view = LoginView { title: &login.title, help: &login.help, rd, username, problem };
    call.page(status, pages::login(call.place(), &view), FormsLead::On)
}

/// The longest `rd` that is written into the form as well, in bytes.
const LONGEST_FIELD: usize = 2048;
/// The longest name that is shown again, in characters; no account has such a long one.
const LONGEST_NAME: usize = 256;

/// `POST`.
pub(super) async fn submit(portal: &Portal, call: Call<'_>, body: Incoming) -> Reply {
    let Some(kind) = Kind::of(&call.head.headers) else { return call.unsupported_media_type() };
    if call.comes_from_another_site() {
        return call.cross_site(Some(kind));
    }
    let mut fields = match call.fields(kind, body, &["username", "password", "rd"]).await {
        Ok(fields) => fields,
        Err(reply) => return *reply,
    };
    let rd = if kind == Kind::Form { call.return_to(fields.text("rd")) } else { String::new() };
    let username: String = fields.text("username").unwrap_or_default().chars().take(LONGEST_NAME).collect();
    let attempt = Attempt { call, kind, rd, username };
    let filled_in = |value: &crate::secret::Secret<String>| !value.expose().is_empty();
    let username = fields.take("username").filter(filled_in);
    let password = fields.take("password").filter(filled_in);
    let (Some(username), Some(password)) = (username, password) else {
        return attempt.failed(StatusCode::BAD_REQUEST, "malformed_body", Message::FillIn);
    };
    if let Some(why) = cookie_cannot_work(call, kind) {
        portal.warn_of_cookie(call.host(), &why);
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return attempt.failed(status, "cookie_cannot_work", Message::CookieCannotWork);
    }
    let login = &call.config().login;
    match portal.accounts.sign_in(login, username.expose(), password, call.visit.admitted.client).await {
        SignIn::Granted { account, log_head } => attempt.granted(portal, &account, log_head).await,
        SignIn::Refused => {
            portal.metrics.login("refused");
            attempt.failed(StatusCode::UNAUTHORIZED, "wrong_login", Message::WrongLogin)
        }
        SignIn::Throttled { retry_after: after } => {
            portal.metrics.login("throttled");
            let message = Message::TooManyTries(after.as_secs());
            let mut reply = attempt.failed(StatusCode::TOO_MANY_REQUESTS, "too_many_tries", message);
            retry_after(&mut reply, after);
            reply
        }
        SignIn::Busy => {
            portal.metrics.login("busy");
            attempt.later("busy", Message::Busy)
        }
        SignIn::Unavailable(error) => {
            portal.metrics.login("unavailable");
            tracing::warn!(%error, "a login failed because the store did not answer");
            attempt.later("store_unavailable", Message::Unavailable)
        }
    }
}

/// Why no browser would keep or send our cookie at this address, where that is certain: the person would be asked to
/// sign in again and again.
fn cookie_cannot_work(call: Call<'_>, kind: Kind) -> Option<String> {
    let cookie = &call.config().cookie;
    let host = Host::parse(call.host())?;
    let (host, domain) = (host.as_str(), cookie.domain.trim_start_matches('.'));
    let is_covered = host == domain || host.strip_suffix(domain).is_some_and(|front| front.ends_with('.'));
    // A program on the machine itself reads the cookie's line as it stands.
    let is_local_program = kind == Kind::Json && host.parse::<IpAddr>().is_ok();
    if !domain.is_empty() && !is_covered && !is_local_program {
        return Some(format!("cookie.domain = {domain:?} does not cover the host {host:?}"));
    }
    let headers = &call.head.headers;
    let origin = headers.get(ORIGIN).map(HeaderValue::as_bytes);
    let is_plain = match origin {
        Some(origin) => origin.starts_with(b"http://"),
        // A browser names the origin of every form.
        None => kind == Kind::Form,
    };
    // Over TLS that ends in front of us, and on the machine itself, browsers send `Sec-Fetch-*`.
    let is_secure = call.visit.admitted.scheme == Scheme::Https || headers.contains_key("sec-fetch-site");
    (cookie.secure == SecureCookie::Always && is_plain && !is_secure)
        .then(|| format!("cookie.secure = true, and the host {host:?} was opened over plain http"))
}

impl Portal {
    /// Says it once for each host, and for not too many.
    fn warn_of_cookie(&self, host: &str, why: &str) {
        const MAX_HOSTS: usize = 16;
        let mut warned = self.warned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if warned.len() < MAX_HOSTS && warned.insert(host.to_owned()) {
            tracing::warn!(host, "nobody can sign in here: {why}, so that no browser would send the cookie back");
        }
    }
}

/// A login under way, and how its sender is to be answered.
struct Attempt<'a> {
    call: Call<'a>,
    kind: Kind,
    rd: String,
    /// As it was typed.
    username: String,
}

impl Attempt<'_> {
    async fn granted(&self, portal: &Portal, account: &Account, log_head: u64) -> Reply {
        let call = self.call;
        match start_session(portal, call, account, log_head).await {
            Ok(Started { issued, cookie }) => {
                portal.metrics.login("ok");
                let mut reply = match self.kind {
                    Kind::Form => replies::see_other(&self.rd),
                    Kind::Json => replies::json(StatusCode::OK, &granted_shape(account, &issued)),
                };
                reply.headers_mut().insert(SET_COOKIE, cookie);
                reply
            }
            Err(NotStarted::Unavailable) => {
                portal.metrics.login("unavailable");
                self.later("store_unavailable", Message::Unavailable)
            }
            Err(NotStarted::CookieTooLarge) => {
                portal.metrics.login("unavailable");
                self.failed(StatusCode::INTERNAL_SERVER_ERROR, "token_too_large", Message::CookieTooLarge)
            }
        }
    }

    fn later(&self, code: &'static str, message: Message) -> Reply {
        let mut reply = self.failed(StatusCode::SERVICE_UNAVAILABLE, code, message);
        retry_after(&mut reply, RETRY_SOON);
        reply
    }

    fn failed(&self, status: StatusCode, code: &'static str, message: Message) -> Reply {
        let call = self.call;
        match self.kind {
            Kind::Form => {
                let mut reply = page(call, status, &self.rd, &self.username, Some(message));
                replies::refuse(&mut reply, code, None);
                reply
            }
            Kind::Json => {
                let detail = message.text(super::language::Language::English);
                replies::problem(status, code, &detail, None)
            }
        }
    }
}

/// A session that has begun.
pub(super) struct Started {
    pub(super) issued: Issued,
    pub(super) cookie: HeaderValue,
}

/// Why none has.
pub(super) enum NotStarted {
    Unavailable,
    CookieTooLarge,
}

/// Starts a session for an account whose password was just right; the one that this request came with ends.
pub(super) async fn start_session(
    portal: &Portal,
    call: Call<'_>,
    account: &Account,
    log_head: u64,
) -> Result<Started, NotStarted> {
    let (visit, token) = (call.visit, &call.config().token);
    let (client, user_agent) = (visit.admitted.client, call.user_agent());
    // A login takes the place of the browser's own sessions; a bearer token that came along is a script's and stays.
    let replaces: Vec<&Verified> = visit.cookies.iter().map(|(verified, _)| &**verified).collect();
    let started = portal.sessions.start(visit.ring, token, account, log_head, client, &user_agent, &replaces).await;
    let issued = started.map_err(|error| {
        if matches!(error, StoreError::TooLarge { .. }) {
            tracing::error!(username = %account.username, %error, "no browser would keep the token of this account");
            return NotStarted::CookieTooLarge;
        }
        tracing::warn!(%error, "a session could not be stored");
        NotStarted::Unavailable
    })?;
    if let Some(cookie) = call.cookie_for(&issued) {
        return Ok(Started { issued, cookie });
    }
    tracing::error!(username = %account.username, "the token is too large for a cookie; the account has too many groups");
    if let Err(error) = portal.sessions.revoke(token, &issued.session).await {
        tracing::warn!(%error, "a session that nobody can use could not be ended");
    }
    Err(NotStarted::CookieTooLarge)
}

fn granted_shape(account: &Account, issued: &Issued) -> serde_json::Value {
    json!({
        "_id": account.id.as_str(),
        "username": account.username.as_str(),
        "__v": account.version,
        "groups": account.groups,
        "expires_at": rfc3339(issued.expires),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn the_answer_has_the_promised_shape_and_no_secret() {
        let account = Account {
            id: "a1".parse().unwrap(),
            username: "kim".parse().unwrap(),
            password_hash: Secret::new(String::from("canary-hash")),
            groups: vec![String::from("staff")],
            email: String::from("kim@example.com"),
            display_name: String::new(),
            disabled: false,
            version: 0,
            created: 1,
            changed: 1,
            revision: 0,
        };
        let issued = Issued {
            token: Secret::new(String::from("canary-token")),
            max_age: 604_800,
            expires: 1_795_512_600,
            session: "s1".parse().unwrap(),
        };
        let shape = granted_shape(&account, &issued);
        let expected = json!({"_id": "a1", "username": "kim", "__v": 0, "groups": ["staff"], "expires_at": "2026-11-24T09:30:00Z"});
        assert_eq!(shape, expected);
    }
}
