//! Answers that Doorward gives itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use sha2::{Digest as _, Sha256};

/// What our own answers are made of.
pub type Reply = Response<Full<Bytes>>;

/// For `WWW-Authenticate`: RFC 9110 section 15.5.2 wants a challenge with every 401; this one opens no dialog in a browser.
pub const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"doorward\"");

/// Why a reply of ours refuses something: rides on it to the access log, and never goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The stable reason code.
    pub reason: &'static str,
    /// More of it for the operator, where there is more; may hold what a client sent.
    pub detail: Option<Box<str>>,
}

/// Marks a reply as a refusal, by its code as a problem report has it.
pub fn refuse(reply: &mut Reply, code: &'static str, detail: Option<Box<str>>) {
    // The log has words of its own where a report must say less, or has said the same for long.
    let reason = match code {
        "wrong_login" => "wrong_password",
        "too_many_tries" => "throttled",
        "malformed_body" | "body_broken" => "malformed",
        code => code,
    };
    reply.extensions_mut().insert(Refused { reason, detail });
}

/// A problem report (RFC 9457) with `Cache-Control: no-store`. `login_url` where a login would help.
#[must_use]
pub fn problem(status: StatusCode, code: &'static str, detail: &str, login_url: Option<&str>) -> Reply {
    let mut value = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "code": code,
        "detail": detail,
    });
    if let (Some(url), Some(object)) = (login_url, value.as_object_mut()) {
        object.insert(String::from("login_url"), url.into());
    }
    let mut reply = typed(status, "application/problem+json", value.to_string());
    refuse(&mut reply, code, None);
    reply
}

/// A JSON answer with `Cache-Control: no-store`.
#[must_use]
pub fn json(status: StatusCode, value: &serde_json::Value) -> Reply {
    typed(status, "application/json", value.to_string())
}

/// Where the forms of a page may lead. A browser applies `form-action` to every redirect behind a form as well, and what
/// a backend answers there is its own affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormsLead {
    /// Only to pages of ours.
    Here,
    /// On to wherever the first page behind it leads: its canonical host, another port, another sign-in.
    On,
}

/// An HTML page with every header that one of ours must have (CSP with a `form-action`, nosniff, no-store, …).
/// Its one inline `<style>` block is allowed by its hash.
#[must_use]
pub fn page(status: StatusCode, html: String, forms: FormsLead) -> Reply {
    let policy = content_security_policy(&html, forms);
    let mut reply = typed(status, "text/html; charset=utf-8", html);
    let headers = reply.headers_mut();
    let policy = HeaderValue::try_from(policy);
    headers.insert(CONTENT_SECURITY_POLICY, policy.unwrap_or(HeaderValue::from_static("default-src 'none'")));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    let opener = HeaderName::from_static("cross-origin-opener-policy");
    headers.insert(opener, HeaderValue::from_static("same-origin"));
    reply
}

fn content_security_policy(html: &str, forms: FormsLead) -> String {
    let mut policy = String::from("default-src 'none'; base-uri 'none'; frame-ancestors 'none'; ");
    let style = html.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>"));
    if let Some((style, _)) = style {
        let hash = STANDARD.encode(Sha256::digest(style.as_bytes()));
        policy.extend(["style-src 'sha256-", &hash, "'; "]);
    }
    // The pages' icon is written into them.
    policy.push_str("img-src data:; ");
    policy.push_str(match forms {
        FormsLead::Here => "form-action 'self'",
        FormsLead::On => "form-action 'self' http: https:",
    });
    policy
}

/// 303 See Other. A location that can't stand in a header becomes `/`.
#[must_use]
pub fn see_other(location: &str) -> Reply {
    let mut reply = empty(StatusCode::SEE_OTHER);
    let location = HeaderValue::try_from(location).unwrap_or(HeaderValue::from_static("/"));
    reply.headers_mut().insert(LOCATION, location);
    reply
}

/// No body.
#[must_use]
pub fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = status;
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Reply {
    let mut reply = empty(status);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    *reply.body_mut() = Full::from(body);
    reply
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_problem_has_its_members() {
        let reply = problem(StatusCode::UNAUTHORIZED, "no_credential", "Log in \"first\".", Some("/login"));
        assert_eq!(reply.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(reply.headers()[CACHE_CONTROL], "no-store");
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"type": "about:blank", "title": "Unauthorized", "status": 401, "code": "no_credential",
                "detail": "Log in \"first\".", "login_url": "/login"})
        );
    }

    #[test]
    fn a_page_allows_its_own_style_only() {
        for (forms, form_action) in
            [(FormsLead::Here, "form-action 'self'"), (FormsLead::On, "form-action 'self' http: https:")]
        {
            let reply = page(StatusCode::OK, "<style>a</style>".into(), forms);
            assert_eq!(
                reply.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap(),
                format!(
                    "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; \
                     style-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='; img-src data:; {form_action}"
                )
            );
        }
    }

    #[test]
    fn a_location_never_splits_the_answer() {
        assert_eq!(see_other("/a\r\nSet-Cookie: x").headers()[LOCATION], "/");
        assert_eq!(see_other("/a").status(), 303);
    }
}
