//! What a centre answers its verify-only gateways: the revocation feed, renewals, logouts.
//!
//! Each call shows the gateways' own token, which is compared in constant time before anything else is read. A renewal
//! or a logout shows the person's token too: whoever steals the gateways' token can read the feed, and be nobody.

use std::sync::Arc;

use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;

use super::form::query_value;
use super::{BODY_LIMIT, BODY_TIME, Call, Portal, RETRY_SOON, forget, retry_after};
use crate::auth::centre::Asked;
use crate::feed::{FeedBody, Last};
use crate::message::body;
use crate::message::replies::{self, Reply};

/// The feed from where the gateway was; from the beginning where it says nothing, or what is not known here.
pub(super) async fn feed(portal: &Portal, call: Call<'_>) -> Result<Response<FeedBody>, Box<Reply>> {
    if call.head.method != Method::GET {
        return Err(Box::new(call.method_not_allowed("GET")));
    }
    only_gateways(call)?;
    let body = portal.feed.open(&*portal.store, last(call).as_ref()).await.map_err(|error| {
        tracing::warn!(%error, "the revocation log can't be read for a gateway");
        Box::new(unavailable())
    })?;
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx and those that follow it would hold lines back until a buffer is full.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

/// Reads the account behind a token again, and renews it where it came as a cookie.
pub(super) async fn renew(portal: &Portal, call: Call<'_>, body: Incoming) -> Reply {
    let asked = match asked(call, body).await {
        Ok(asked) => asked,
        Err(reply) => return *reply,
    };
    let verified = match call.visit.ring.verify(&asked.token, portal.sessions.now()) {
        Ok(verified) => Arc::new(verified),
        Err(error) => {
            tracing::debug!(%error, "a gateway asked about a token that is not accepted here");
            return replies::problem(StatusCode::FORBIDDEN, "invalid_token", "the token is not accepted here", None);
        }
    };
    let config = call.config();
    let answered =
        portal.sessions.answer_gateway(call.visit.ring, &config.token, &config.store, &verified, &asked).await;
    match answered.map(serde_json::to_value) {
        Some(Ok(value)) => replies::json(StatusCode::OK, &value),
        Some(Err(_)) | None => unavailable(),
    }
}

/// Ends the session of a token. One that is not accepted any more has none.
pub(super) async fn logout(portal: &Portal, call: Call<'_>, body: Incoming) -> Reply {
    let asked = match asked(call, body).await {
        Ok(asked) => asked,
        Err(reply) => return *reply,
    };
    let config = call.config();
    if let Ok(verified) = call.visit.ring.verify(&asked.token, portal.sessions.now())
        && let Err(error) = portal.sessions.end(&config.token, &verified, None).await
    {
        tracing::warn!(%error, "a gateway's logout failed because the store did not take it");
        return unavailable();
    }
    replies::empty(StatusCode::NO_CONTENT)
}

/// Refuses whoever does not show the gateways' token.
fn only_gateways(call: Call<'_>) -> Result<(), Box<Reply>> {
    let mut lines = call.head.headers.get_all(AUTHORIZATION).iter();
    let shown = match (lines.next(), lines.next()) {
        (Some(line), None) => line.as_bytes().strip_prefix(b"Bearer "),
        _ => None,
    };
    let token = call.config().token.gateway_secret.as_ref();
    if token.zip(shown).is_some_and(|(token, shown)| token.matches(shown)) {
        return Ok(());
    }
    let detail = "this is for gateways that show the token of token.revocation_token_file";
    let mut reply = replies::problem(StatusCode::UNAUTHORIZED, "wrong_gateway_token", detail, None);
    reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"doorward gateways\""));
    Err(Box::new(reply))
}

async fn asked(call: Call<'_>, body: Incoming) -> Result<Asked, Box<Reply>> {
    only_gateways(call)?;
    let refused = |status, code, detail: &str| Err(Box::new(replies::problem(status, code, detail, None)));
    let bytes = match body::read(body, BODY_LIMIT, BODY_TIME).await {
        Ok(bytes) => bytes,
        Err(error @ body::BodyError::TooLarge { .. }) => {
            return refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", &error.to_string());
        }
        Err(error) => return refused(StatusCode::BAD_REQUEST, "body_broken", &error.to_string()),
    };
    let asked = serde_json::from_slice::<Asked>(&bytes);
    forget(bytes);
    // The parser's own words could quote the token.
    asked.or_else(|_| refused(StatusCode::BAD_REQUEST, "malformed_body", "this is no question of a gateway"))
}

/// `?after=NUMBER&print=TEXT`
fn last(call: Call<'_>) -> Option<Last> {
    let text = |name| query_value(call.head.uri.query(), name).and_then(|value| String::from_utf8(value).ok());
    let number = text("after")?.parse().ok()?;
    Some(Last { number, print: text("print")? })
}

fn unavailable() -> Reply {
    let mut reply =
        replies::problem(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", "the store does not answer", None);
    retry_after(&mut reply, RETRY_SOON);
    reply
}
