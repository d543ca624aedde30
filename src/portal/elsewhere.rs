//! What a verify-only gateway answers in its centre's place: where to go.
//!
//! `/check` and `/logout` are answered here as everywhere: the one by the token alone, the other by asking the centre.

use http::StatusCode;
use http::header::ALLOW;
use http::{HeaderValue, Method};

use super::Call;
use crate::config::Central;
use crate::message::replies::{self, Reply};
use crate::router::Endpoint;

/// `None`: the endpoint is answered here.
pub(super) fn answer(central: &Central, endpoint: Endpoint, call: Call<'_>) -> Option<Reply> {
    let reads = matches!(call.head.method, Method::GET | Method::HEAD);
    match endpoint {
        Endpoint::Login if reads => Some(replies::see_other(&login_url(central, call))),
        Endpoint::Account | Endpoint::AccountPassword | Endpoint::AccountSessions | Endpoint::ChangePassword
            if reads =>
        {
            Some(replies::see_other(&central.page("account")))
        }
        // A password that came to the wrong door is not carried on to another one.
        Endpoint::Login | Endpoint::Account | Endpoint::AccountPassword | Endpoint::AccountSessions => {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            let detail = "logins and accounts are kept elsewhere: see login_url";
            let mut reply = replies::problem(status, "method_not_allowed", detail, Some(&central.login_url));
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            Some(reply)
        }
        Endpoint::Check
        | Endpoint::Logout
        | Endpoint::Jwks
        | Endpoint::ChangePassword
        | Endpoint::Feed
        | Endpoint::GatewayRenew
        | Endpoint::GatewayLogout => None,
    }
}

/// The centre's login, with the way back to where this login was to lead.
fn login_url(central: &Central, call: Call<'_>) -> String {
    let rd = call.return_to(None);
    let rd = if rd.starts_with('/') { format!("{}{rd}", call.origin()) } else { rd };
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("rd", &rd).finish();
    format!("{}?{query}", central.login_url)
}
