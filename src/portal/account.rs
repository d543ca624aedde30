//! `/account`: a person's own page, the password change, and the end of sessions.
//!
//! A form that changes something must prove that our own page sent it; JSON is nothing that a foreign page can send.

use http::StatusCode;
use http::header::SET_COOKIE;
use hyper::body::Incoming;

use super::form::{Kind, query_value};
use super::language::Language;
use super::login::{NotStarted, start_session};
use super::logout::signed_out;
use super::pages::{AccountView, form_without_login};
use super::words::Message;
use super::{Call, Portal, RETRY_SOON, pages, retry_after};
use crate::accounts::{AccountError, SignIn};
use crate::auth::Verified;
use crate::message::replies::{self, FormsLead, Reply};
use crate::policy::Principal;
use crate::secret::Secret;
use crate::store::{SessionId, StoreError};

/// `GET`.
pub(super) async fn show(portal: &Portal, call: Call<'_>) -> Reply {
    let Some((person, credential)) = logged_in(call) else { return login_needed(call, None) };
    let notice = match query_value(call.head.uri.query(), "done").as_deref() {
        Some(b"password") => Some(Message::PasswordChanged),
        Some(b"session") => Some(Message::SessionEnded),
        Some(b"over") => Some(Message::NoSuchSession),
        _ => None,
    };
    page(portal, Visitor { call, person, credential }, StatusCode::OK, notice, None).await
}

/// `POST /account/password`: `current`, `new`, and `repeat`, which a program may leave out.
pub(super) async fn change_password(portal: &Portal, call: Call<'_>, body: Incoming) -> Reply {
    let (visitor, kind) = match admitted(call) {
        Ok(admitted) => admitted,
        Err(reply) => return *reply,
    };
    let mut fields = match call.fields(kind, body, &["current", "new", "repeat"]).await {
        Ok(fields) => fields,
        Err(reply) => return *reply,
    };
    let repeat = fields.take("repeat");
    let (Some(current), Some(new)) = (fields.take("current"), fields.take("new")) else {
        return visitor.failed(portal, kind, FILL_IN).await;
    };
    if current.expose().is_empty() || new.expose().is_empty() || (kind == Kind::Form && repeat.is_none()) {
        return visitor.failed(portal, kind, FILL_IN).await;
    }
    if repeat.is_some_and(|repeat| !repeat.matches(new.expose().as_bytes())) {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let failure = Failure { status, code: "repeat_differs", message: Message::RepeatDiffers, detail: "" };
        return visitor.failed(portal, kind, failure).await;
    }
    let config = call.config();
    let (id, client) = (&visitor.credential.account, call.visit.admitted.client);
    let changed =
        portal.accounts.change_own_password(&config.login, &config.token, id, current, new.clone(), client).await;
    match changed {
        Ok(account) => visitor.password_changed(portal, kind, account.username.as_str(), new).await,
        Err(error) => visitor.not_changed(portal, kind, error).await,
    }
}

/// `POST /account/sessions`: `session` ends one of the person's own, `everywhere` all of them.
pub(super) async fn end_sessions(portal: &Portal, call: Call<'_>, body: Incoming) -> Reply {
    let (visitor, kind) = match admitted(call) {
        Ok(admitted) => admitted,
        Err(reply) => return *reply,
    };
    let fields = match call.fields(kind, body, &["session", "everywhere"]).await {
        Ok(fields) => fields,
        Err(reply) => return *reply,
    };
    match (fields.text("session"), fields.text("everywhere")) {
        (None, Some("1" | "true")) => visitor.end_all(portal, kind).await,
        (Some(session), None) => visitor.end_one(portal, kind, session).await,
        _ => call.refuse(Some(kind), StatusCode::BAD_REQUEST, "malformed_body", "name one session, or everywhere=1"),
    }
}

/// Somebody who is logged in and asks for something on his own page.
#[derive(Clone, Copy)]
struct Visitor<'a> {
    call: Call<'a>,
    person: &'a Principal,
    credential: &'a Verified,
}

impl Visitor<'_> {
    async fn password_changed(self, portal: &Portal, kind: Kind, username: &str, new: Secret<String>) -> Reply {
        let call = self.call;
        // The change ended every token. A login with the new password reads the log's number and the account in the
        // safe order again, so that whatever was revoked meanwhile stays so.
        let (login, client) = (&call.config().login, call.visit.admitted.client);
        let started = match portal.accounts.sign_in(login, username, new, client).await {
            SignIn::Granted { account, log_head } => start_session(portal, call, &account, log_head).await,
            SignIn::Refused | SignIn::Throttled { .. } | SignIn::Busy | SignIn::Unavailable(_) => {
                Err(NotStarted::Unavailable)
            }
        };
        let account_page = call.own("/account?done=password");
        match (started, kind) {
            (Ok(started), _) => {
                let mut reply = match kind {
                    Kind::Form => replies::see_other(&account_page),
                    Kind::Json => replies::empty(StatusCode::NO_CONTENT),
                };
                reply.headers_mut().insert(SET_COOKIE, started.cookie);
                reply
            }
            // The password is the new one all the same; the person logs in with it.
            (Err(_), Kind::Form) => signed_out(call, Some(&login_and_back(call))),
            (Err(_), Kind::Json) => signed_out(call, None),
        }
    }

    async fn not_changed(self, portal: &Portal, kind: Kind, error: AccountError) -> Reply {
        let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
        let (status, code, message) = match &error {
            AccountError::WrongPassword => (unprocessable, "wrong_password", Message::WrongCurrentPassword),
            AccountError::Invalid(_) => (unprocessable, "password_refused", Message::NewPasswordRefused),
            AccountError::NoSuchAccount(_) | AccountError::Store(StoreError::NoSuchAccount) => {
                (unprocessable, "no_stored_account", Message::NoStoredAccount)
            }
            AccountError::Throttled { retry_after } => {
                (StatusCode::TOO_MANY_REQUESTS, "too_many_tries", Message::TooManyTries(retry_after.as_secs()))
            }
            AccountError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", Message::Busy),
            AccountError::Store(error) => {
                tracing::warn!(%error, "a password change failed because the store did not take it");
                (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", Message::Unavailable)
            }
        };
        let detail = if let AccountError::Invalid(detail) = &error { detail.as_str() } else { "" };
        let mut reply = self.failed(portal, kind, Failure { status, code, message, detail }).await;
        match error {
            AccountError::Throttled { retry_after: after } => retry_after(&mut reply, after),
            _ if status == StatusCode::SERVICE_UNAVAILABLE => retry_after(&mut reply, RETRY_SOON),
            _ => {}
        }
        reply
    }

    async fn end_all(self, portal: &Portal, kind: Kind) -> Reply {
        let (call, token) = (self.call, &self.call.config().token);
        match portal.accounts.sign_out_everywhere(token, &self.credential.account).await {
            Ok(_) => {}
            // An account of another issuer's: nothing stored to raise, but its tokens can be ended.
            Err(AccountError::NoSuchAccount(_) | AccountError::Store(StoreError::NoSuchAccount)) => {
                if let Err(error) = portal.sessions.revoke_account(token, &self.credential.account).await {
                    return not_ended(call, kind, &error);
                }
            }
            Err(error) => return not_ended(call, kind, &error),
        }
        self.signed_out(kind)
    }

    async fn end_one(self, portal: &Portal, kind: Kind, session: &str) -> Reply {
        let (call, token) = (self.call, &self.call.config().token);
        let own = match portal.sessions.list(Some(&self.credential.account)).await {
            Ok(own) => own,
            Err(error) => return not_ended(call, kind, &error),
        };
        // Somebody else's session looks like one that is over.
        let own = own.into_iter().map(|own| own.id).find(|own| own.as_str() == session);
        let ended = match &own {
            Some(own) => portal.sessions.revoke(token, own).await,
            None => Ok(false),
        };
        match (ended, kind) {
            (Err(error), _) => not_ended(call, kind, &error),
            (Ok(true), _) if own.as_ref() == self.credential.session.as_ref() => self.signed_out(kind),
            (Ok(true), Kind::Form) => replies::see_other(&call.own("/account?done=session")),
            (Ok(true), Kind::Json) => replies::empty(StatusCode::NO_CONTENT),
            (Ok(false), Kind::Form) => replies::see_other(&call.own("/account?done=over")),
            (Ok(false), Kind::Json) => {
                replies::problem(StatusCode::NOT_FOUND, "no_such_session", "there is no such session", None)
            }
        }
    }

    /// His own session is over now.
    fn signed_out(self, kind: Kind) -> Reply {
        let done = (kind == Kind::Form).then(|| self.call.own("/logout"));
        signed_out(self.call, done.as_deref())
    }

    /// The page again with what went wrong, or a problem report.
    async fn failed(self, portal: &Portal, kind: Kind, failure: Failure<'_>) -> Reply {
        let Failure { status, code, message, detail } = failure;
        match kind {
            Kind::Form => {
                let mut reply = page(portal, self, status, None, Some((message, detail))).await;
                replies::refuse(&mut reply, code, None);
                reply
            }
            Kind::Json => {
                let text = message.text(Language::English);
                replies::problem(status, code, if detail.is_empty() { &text } else { detail }, None)
            }
        }
    }
}

/// Why a password was not changed.
#[derive(Clone, Copy)]
struct Failure<'a> {
    status: StatusCode,
    code: &'static str,
    message: Message,
    /// More words from the rules for passwords, or none.
    detail: &'a str,
}

const FILL_IN: Failure<'static> =
    Failure { status: StatusCode::BAD_REQUEST, code: "malformed_body", message: Message::FillIn, detail: "" };

fn logged_in(call: Call<'_>) -> Option<(&Principal, &Verified)> {
    Some((call.person()?.as_ref(), call.visit.credential?))
}

/// Every check before a body is read.
fn admitted(call: Call<'_>) -> Result<(Visitor<'_>, Kind), Box<Reply>> {
    let Some(kind) = Kind::of(&call.head.headers) else { return Err(Box::new(call.unsupported_media_type())) };
    if call.comes_from_another_site() {
        return Err(Box::new(call.cross_site(Some(kind))));
    }
    match logged_in(call) {
        Some((person, credential)) => Ok((Visitor { call, person, credential }, kind)),
        None => Err(Box::new(login_needed(call, Some(kind)))),
    }
}

fn login_needed(call: Call<'_>, kind: Option<Kind>) -> Reply {
    if kind == Some(Kind::Form) {
        let page = form_without_login(call.language, &call.own("/login"), "");
        let mut reply = call.page(StatusCode::UNAUTHORIZED, page, FormsLead::Here);
        replies::refuse(&mut reply, "not_logged_in", None);
        reply
    } else if kind.is_none() && call.is_navigation() {
        replies::see_other(&login_and_back(call))
    } else {
        let login_url = call.own("/login");
        replies::problem(StatusCode::UNAUTHORIZED, "not_logged_in", "nobody is logged in", Some(&login_url))
    }
}

/// The login page, and from there to the account page.
fn login_and_back(call: Call<'_>) -> String {
    let back: String = form_urlencoded::byte_serialize(call.own("/account").as_bytes()).collect();
    call.own(&format!("/login?rd={back}"))
}

fn not_ended(call: Call<'_>, kind: Kind, error: &dyn std::error::Error) -> Reply {
    tracing::warn!(%error, "a session could not be ended");
    let detail = "the session could not be ended; try again";
    let mut reply = call.refuse(Some(kind), StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail);
    retry_after(&mut reply, RETRY_SOON);
    reply
}

/// The page itself. Without its store it can't be made: 503.
async fn page(
    portal: &Portal,
    visitor: Visitor<'_>,
    status: StatusCode,
    notice: Option<Message>,
    problem: Option<(Message, &str)>,
) -> Reply {
    let Visitor { call, person, credential } = visitor;
    let sessions = match portal.sessions.list(Some(&credential.account)).await {
        Ok(sessions) => sessions,
        Err(error) => {
            tracing::warn!(%error, "the account page can't be shown");
            let detail = "the store does not answer";
            let mut reply = call.refuse(None, StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail);
            retry_after(&mut reply, RETRY_SOON);
            return reply;
        }
    };
    let current: Option<&SessionId> = credential.session.as_ref();
    let view = AccountView {
        person,
        sessions: &sessions,
        current,
        min_password_length: call.config().login.min_password_length,
        notice,
        problem: problem.map(|(message, _)| message),
        detail: problem.map_or("", |(_, detail)| detail),
    };
    call.page(status, pages::account(call.place(), &view), FormsLead::Here)
}
