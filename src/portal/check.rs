//! `GET /check`: who is logged in, for another proxy's sub-request. No I/O, no body, never a redirect.

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use super::Visit;
use crate::clock::rfc3339;
use crate::config::{Identity, IdentityHeader, TemplatePart};
use crate::message::identity;
use crate::message::replies::{self, Reply};
use crate::policy::{Caller, Principal};

pub(super) fn answer(visit: &Visit<'_>) -> Reply {
    let person = match visit.caller {
        Caller::Person(person) => Some(person.as_ref()),
        Caller::Anonymous(_) => None,
    };
    let mut reply = if let Some(person) = person {
        let expires = visit.renewed_until.or_else(|| visit.credential.map(|credential| credential.expires));
        replies::json(StatusCode::OK, &shape(person, expires))
    } else {
        let login_url = match &visit.config.central {
            Some(central) => central.login_url.clone(),
            None => format!("{}/login", visit.config.portal_prefix),
        };
        replies::problem(StatusCode::UNAUTHORIZED, "not_logged_in", "nobody is logged in", Some(&login_url))
    };
    write_identity(reply.headers_mut(), &visit.config.identity, person);
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

fn shape(person: &Principal, expires: Option<u64>) -> serde_json::Value {
    json!({
        "_id": person.id,
        "username": person.username,
        "groups": person.groups,
        "expires_at": expires.map(rfc3339),
    })
}

/// Every identity header there is, empty where it has no value: the proxy that asked copies them over whatever the
/// client sent, and a missing one would let the client's own through.
fn write_identity(headers: &mut HeaderMap, configuration: &Identity, person: Option<&Principal>) {
    identity::set_all(headers, &answered_headers(configuration), person);
}

/// The fixed three, and those that the file configures; the file wins where it names one of the three.
fn answered_headers(configuration: &Identity) -> Vec<IdentityHeader> {
    const FIXED: [(&str, TemplatePart); 3] = [
        ("x-auth-request-user", TemplatePart::Username),
        ("x-auth-request-groups", TemplatePart::Groups),
        ("x-auth-request-email", TemplatePart::Email),
    ];
    let mut headers = configuration.configured.clone();
    for (name, part) in FIXED {
        let name = HeaderName::from_static(name);
        if !headers.iter().any(|header| header.name == name) {
            headers.push(IdentityHeader { name, template: vec![part] });
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(name: &'static str) -> Identity {
        let header = IdentityHeader { name: HeaderName::from_static(name), template: vec![TemplatePart::Id] };
        Identity { headers: Vec::new(), configured: vec![header], pass: Vec::new(), basic_password: None }
    }

    #[test]
    fn every_header_is_there_and_empty_for_nobody() {
        let mut headers = HeaderMap::new();
        write_identity(&mut headers, &configured("x-auth-user"), None);
        let mut names: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        names.sort_unstable();
        let expected = ["x-auth-request-email", "x-auth-request-groups", "x-auth-request-user", "x-auth-user"];
        assert_eq!(names, expected.map(|name| (name, &b""[..])));
    }

    #[test]
    fn a_configured_header_takes_the_place_of_a_fixed_one() {
        let ours = answered_headers(&configured("x-auth-request-user"));
        let users: Vec<_> = ours.iter().filter(|header| header.name == "x-auth-request-user").collect();
        assert_eq!(users.len(), 1);
        assert_eq!(users[0].template, [TemplatePart::Id]);
    }

    #[test]
    fn the_answer_has_the_promised_shape() {
        let person = Principal {
            id: String::from("a1"),
            username: String::from("kim"),
            groups: vec![String::from("staff")],
            email: String::from("kim@example.com"),
            display_name: String::from("Kim"),
        };
        let expected =
            json!({"_id": "a1", "username": "kim", "groups": ["staff"], "expires_at": "2026-11-24T09:30:00Z"});
        assert_eq!(shape(&person, Some(1_795_512_600)), expected);
    }
}
