//! The only place where an error becomes an answer: status, public words, log level.
//!
//! A person gets a small page or the way to the login, a program a problem report (RFC 9457). What went wrong inside is
//! logged with the request's id and never shown.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

use super::{Asked, Live};
use crate::context::Context;
use crate::message::admit::{Intent, Malformed, Scheme};
use crate::message::head::Unreadable;
use crate::message::replies::{self, FormsLead};
use crate::message::return_to;
use crate::policy::Denied;
use crate::portal::{self, Failed};
use crate::router::NoRoute;
use crate::router::targets::{Refusal, Why};
use crate::upstream;

/// Everything that ends a request before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Rejection {
    #[error("the request is malformed")]
    Malformed(Malformed),
    #[error("no route")]
    NoRoute(NoRoute),
    #[error("refused")]
    Denied(Denied),
    #[error("a further target: {0:?}")]
    Target(Refusal),
    /// With what met what.
    #[error("a WebSocket handshake from another site")]
    ForeignOrigin(String),
    #[error("nobody can be identified right now")]
    NotReady,
    #[error("a defect of the program")]
    Defect,
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
}

impl From<Malformed> for Rejection {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

impl From<NoRoute> for Rejection {
    fn from(error: NoRoute) -> Self {
        Self::NoRoute(error)
    }
}

impl From<Denied> for Rejection {
    fn from(error: Denied) -> Self {
        Self::Denied(error)
    }
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        match refusal.why {
            Why::Denied(denied) => Self::Denied(denied),
            Why::Target | Why::Header => Self::Target(refusal),
        }
    }
}

/// What the world is told of a rejection.
struct Public {
    status: StatusCode,
    /// The stable reason code, for logs, metrics and problem reports.
    code: &'static str,
    words: &'static str,
}

impl Rejection {
    fn public(&self) -> Public {
        let (status, code, words) = match self {
            Self::Malformed(malformed) => return malformed_in_public(*malformed),
            Self::NoRoute(NoRoute::NotFound) => (StatusCode::NOT_FOUND, "no_route", "There is nothing here."),
            Self::NoRoute(NoRoute::Ambiguous) => (
                StatusCode::BAD_REQUEST,
                "ambiguous_path",
                "The path can be read in more than one way, and the readings lead to different places.",
            ),
            Self::Denied(Denied::LoginRequired(why)) => {
                (StatusCode::UNAUTHORIZED, why.code(), "A login is needed here.")
            }
            Self::Denied(denied @ (Denied::NotOnList | Denied::Closed)) => {
                (StatusCode::FORBIDDEN, denied.code(), "This account may not use this page.")
            }
            Self::Target(refusal) => {
                let status = if refusal.why == Why::Header { StatusCode::BAD_REQUEST } else { StatusCode::FORBIDDEN };
                (status, refusal.code(), "The request names or takes along more than this account may use.")
            }
            Self::ForeignOrigin(_) => {
                (StatusCode::FORBIDDEN, "cross_site", "Another site's page may not open a connection here.")
            }
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "not_ready", "Logins can't be checked right now."),
            Self::Defect => (StatusCode::INTERNAL_SERVER_ERROR, "defect", "Something went wrong on our side."),
            Self::Upstream(error) => return upstream_in_public(error),
        };
        Public { status, code, words }
    }
}

fn malformed_in_public(malformed: Malformed) -> Public {
    let (status, words) = match malformed {
        Malformed::Host => (StatusCode::BAD_REQUEST, "The Host header is missing, repeated or not a host."),
        Malformed::Target => (StatusCode::BAD_REQUEST, "The request target has a form that is not served here."),
        Malformed::Path => (StatusCode::BAD_REQUEST, "The path holds a control character or a NUL."),
        Malformed::Header => (StatusCode::BAD_REQUEST, "A header is malformed."),
        Malformed::TransferEncoding => {
            (StatusCode::NOT_IMPLEMENTED, "Only one Transfer-Encoding is understood: chunked.")
        }
        Malformed::Method => (StatusCode::METHOD_NOT_ALLOWED, "This method is not served here."),
        Malformed::ContentLength => (StatusCode::PAYLOAD_TOO_LARGE, "The body is too large."),
        Malformed::Expectation => (StatusCode::EXPECTATION_FAILED, "Only Expect: 100-continue is understood."),
    };
    Public { status, code: malformed.code(), words }
}

fn upstream_in_public(error: &upstream::Error) -> Public {
    let (status, code, words) = match error {
        upstream::Error::Unreachable { .. } => {
            (StatusCode::BAD_GATEWAY, "upstream_unreachable", "The application behind this address can't be reached.")
        }
        upstream::Error::Broken { .. } => {
            (StatusCode::BAD_GATEWAY, "upstream_broke_off", "The application behind this address broke off.")
        }
        upstream::Error::Malformed { .. } => (
            StatusCode::BAD_GATEWAY,
            "upstream_malformed",
            "The application behind this address sent something that can't be passed on.",
        ),
        upstream::Error::TimedOut { .. } => (
            StatusCode::GATEWAY_TIMEOUT,
            "upstream_timed_out",
            "The application behind this address did not answer in time.",
        ),
        upstream::Error::ClientBody(_) => {
            (StatusCode::BAD_REQUEST, "body_broke_off", "The request's body is malformed or broke off.")
        }
        upstream::Error::ClientBodyTimedOut => {
            (StatusCode::REQUEST_TIMEOUT, "body_timed_out", "The request's body did not come in time.")
        }
    };
    Public { status, code, words }
}

/// Makes the answer and notes the reason.
pub(super) fn answer(
    rejection: &Rejection,
    live: &Live,
    asked: &Asked,
    context: &mut Context,
) -> Response<Full<Bytes>> {
    let public = rejection.public();
    // A backend that failed was asked on a Pass: the decision stands, whatever came of it.
    if !matches!(rejection, Rejection::Upstream(_)) {
        context.entry.decision = "deny";
    }
    context.entry.reason = public.code;
    if let Rejection::ForeignOrigin(met) = rejection {
        context.entry.detail = Some(met.as_str().into());
    }
    log(rejection, context);

    let intent = asked.admitted.as_ref().map_or(Intent::Program, |admitted| admitted.intent);
    let person_looks = intent != Intent::Program && !asked.api;
    let detail = detail(rejection, live, asked).unwrap_or_default();
    if !detail.is_empty() {
        context.entry.detail = Some(detail.clone());
    }
    let mut response = match rejection {
        Rejection::Denied(Denied::LoginRequired(_)) if person_looks && intent == Intent::Form => {
            let page = portal::form_without_login(asked.language(), &login_url(live, asked), context.entry.id());
            let mut response = replies::page(public.status, page, FormsLead::Here);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, replies::CHALLENGE);
            response
        }
        Rejection::Denied(Denied::LoginRequired(_)) if person_looks => replies::see_other(&login_url(live, asked)),
        Rejection::Denied(Denied::LoginRequired(_)) => {
            let mut response =
                replies::problem(public.status, public.code, public.words, Some(&login_url(live, asked)));
            response.headers_mut().insert(header::WWW_AUTHENTICATE, replies::CHALLENGE);
            response
        }
        _ if person_looks => {
            let page = portal::error_page(&Failed {
                language: asked.language(),
                status: public.status,
                prefix: &live.config.portal_prefix,
                is_form: intent == Intent::Form,
                back: if intent == Intent::Navigation { &asked.path_and_query } else { "" },
                help: &live.config.login.help,
                request_id: context.entry.id(),
                detail: &detail,
            });
            replies::page(public.status, page, FormsLead::Here)
        }
        Rejection::ForeignOrigin(met) => {
            replies::problem(public.status, public.code, &format!("{} {met}.", public.words), None)
        }
        _ if detail.is_empty() => replies::problem(public.status, public.code, public.words, None),
        _ => replies::problem(public.status, public.code, &format!("{} {detail}", public.words), None),
    };
    let headers = response.headers_mut();
    match public.status {
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        _ => {}
    }
    if asked.stale_cookie && matches!(rejection, Rejection::Denied(Denied::LoginRequired(_))) {
        let scheme = asked.admitted.as_ref().map_or(Scheme::Http, |admitted| admitted.scheme);
        super::clear_cookie(live, headers, live.secure_cookie(scheme), true);
    }
    if matches!(rejection, Rejection::Malformed(_)) {
        // Whoever sends this is not to be believed about where his next request begins.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Bytes of a browser's head that are not its URL: cookies first of all.
const HEAD_BESIDE_URL: usize = 8 * 1024;

/// The answer to what is no request, and the end of its connection.
pub(super) fn unreadable(why: Unreadable, context: &mut Context) -> Response<Full<Bytes>> {
    context.entry.decision = "deny";
    context.entry.reason = why.code();
    tracing::debug!(request_id = context.entry.id(), reason = why.code(), "refused before it was a request");
    let mut response = replies::problem(why.status(), why.code(), why.words(), None);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What this very request was refused for, where the reason code alone does not say it. Route names are no secret: each
/// is a pattern of paths.
fn detail(rejection: &Rejection, live: &Live, asked: &Asked) -> Option<Box<str>> {
    match (rejection, &asked.admitted) {
        (Rejection::NoRoute(NoRoute::Ambiguous), Some(admitted)) => {
            let routes = live.router.alternatives(&admitted.host, &admitted.readings, &asked.method);
            Some(format!("Routes: {}.", routes.join(", ")).into())
        }
        (Rejection::Target(refusal), _) => Some(refusal.detail.as_str().into()),
        _ => None,
    }
}

/// Where a login would help: the login page with the way back. Only a page that is fetched by its address can be
/// returned to.
fn login_url(live: &Live, asked: &Asked) -> String {
    // The way back from a centre is a whole URL.
    let (mut url, here) = match (&live.config.central, &asked.admitted) {
        (Some(central), Some(admitted)) => {
            let authority = admitted.public_authority();
            (central.login_url.clone(), format!("{}://{authority}", admitted.scheme.as_str()))
        }
        (Some(central), None) => (central.login_url.clone(), String::new()),
        (None, _) => (format!("{}/login", live.config.portal_prefix), String::new()),
    };
    if !matches!(asked.method, http::Method::GET | http::Method::HEAD) {
        return url;
    }
    let path = asked.path_and_query.split('?').next().unwrap_or_default();
    // The browser sends this URL back in a head of its own, beside everything else there: what would not fit is cut.
    let room = live.config.server.limits.max_header_bytes.saturating_sub(HEAD_BESIDE_URL).max(HEAD_BESIDE_URL);
    for target in [asked.path_and_query.as_str(), path] {
        let rd = format!("{here}{target}");
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("rd", &rd).finish();
        if rd.len() <= return_to::LONGEST && url.len() + query.len() < room {
            url.push('?');
            url.push_str(&query);
            break;
        }
    }
    url
}

fn log(rejection: &Rejection, context: &Context) {
    let request_id = context.entry.id();
    match rejection {
        Rejection::Upstream(error @ (upstream::Error::ClientBody(_) | upstream::Error::ClientBodyTimedOut)) => {
            tracing::debug!(request_id, error = %Chain(error), "the client's body failed");
        }
        Rejection::Upstream(error) => tracing::warn!(request_id, error = %Chain(error), "the upstream failed"),
        Rejection::NotReady => tracing::warn!(request_id, "refused: the revocation log or the account can't be read"),
        Rejection::Defect => tracing::error!(request_id, "refused: a defect of the program"),
        Rejection::Malformed(_)
        | Rejection::NoRoute(_)
        | Rejection::Denied(_)
        | Rejection::Target(_)
        | Rejection::ForeignOrigin(_) => {
            tracing::debug!(request_id, reason = context.entry.reason, "refused");
        }
    }
}

/// An error with all its causes on one line.
pub(super) struct Chain<'a>(pub(super) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(formatter, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
