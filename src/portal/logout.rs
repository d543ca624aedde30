//! `/logout`: ends the session behind the request's token, everywhere, and clears the cookie.

use http::{HeaderName, HeaderValue, StatusCode};
use hyper::body::Incoming;

use super::form::Kind;
use super::{Call, Portal, RETRY_SOON, pages, retry_after};
use crate::auth::Verified;
use crate::message::cookies;
use crate::message::replies::{self, FormsLead, Reply};
use crate::store::StoreError;

/// `GET`: only asks, so that no image or link of another page logs anybody out.
pub(super) fn show(call: Call<'_>) -> Reply {
    let username = call.person().map(|person| person.username.as_str());
    let rd = if call.names_return(None) { call.return_to(None) } else { String::new() };
    let has_cookie = !cookies::values(&call.head.headers, &call.config().cookie.name).all(str::is_empty);
    if username.is_none() && !has_cookie {
        return call.page(StatusCode::OK, pages::signed_out(call.place(), &rd), FormsLead::Here);
    }
    call.page(StatusCode::OK, pages::logout(call.place(), username, &rd), FormsLead::On)
}

/// `POST`. Without a valid login there is nothing to end, and the cookie is cleared all the same.
pub(super) async fn submit(portal: &Portal, call: Call<'_>, body: Incoming) -> Reply {
    // A program needs send no body at all, so any other kind than a form is passed over.
    let kind = Kind::of(&call.head.headers).filter(|kind| *kind == Kind::Form);
    if call.comes_from_another_site() {
        return call.cross_site(kind);
    }
    let rd = match kind {
        None => None,
        Some(kind) => match call.fields(kind, body, &["rd"]).await {
            Ok(fields) if call.names_return(fields.text("rd")) => Some(call.return_to(fields.text("rd"))),
            // To the page that says that it is done.
            Ok(_) => Some(call.own("/logout")),
            Err(reply) => return *reply,
        },
    };
    if let Err(error) = end_all(portal, call).await {
        tracing::warn!(%error, "a logout failed: nobody took it down");
        // The cookie stays: somebody who believes to be logged out must be.
        let detail = "the session could not be ended; try again";
        let mut reply = call.refuse(kind, StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail);
        retry_after(&mut reply, RETRY_SOON);
        return reply;
    }
    signed_out(call, rd.as_deref())
}

/// Ends every login that came with the request: of several cookies of our name each is one.
async fn end_all(portal: &Portal, call: Call<'_>) -> Result<(), StoreError> {
    let (visit, token) = (call.visit, &call.config().token);
    let is_cookie = |one: &Verified| visit.cookies.iter().any(|(cookie, _)| std::ptr::eq(&raw const **cookie, one));
    if let Some(credential) = visit.credential.filter(|credential| !is_cookie(credential)) {
        portal.sessions.end(token, credential, visit.presented).await?;
    }
    for (cookie, presented) in visit.cookies {
        portal.sessions.end(token, cookie, presented.as_deref()).await?;
    }
    Ok(())
}

/// The answer to somebody who is logged out now: off to `rd`, or 204.
pub(super) fn signed_out(call: Call<'_>, rd: Option<&str>) -> Reply {
    let mut reply = rd.map_or_else(|| replies::empty(StatusCode::NO_CONTENT), replies::see_other);
    call.clear_cookie(&mut reply);
    // Pages of the backend that the browser has kept go too.
    reply.headers_mut().insert(HeaderName::from_static("clear-site-data"), HeaderValue::from_static("\"cache\""));
    reply
}
