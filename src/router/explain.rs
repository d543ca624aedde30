//! Why a request takes the route that it takes, for `doorward explain` and for policy tests.

use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::{Method, Request};

use super::targets::{self, Why};
use super::{NoRoute, Route, Router, Target};
use crate::config::{self, Config, Expectation, HostPattern};
use crate::message::admit::{Admitted, Edge, Host, Scheme, admit};
use crate::message::head::{self, RawTarget};
use crate::message::path::Readings;
use crate::policy::{Caller, Denied, Principal, Unidentified};

/// All that can be said about one request without sending it.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The canonical host.
    pub host: String,
    /// As it would be sent.
    pub path: String,
    /// The most decoded, dot-free reading.
    pub canonical: String,
    /// Every reading, the path as sent first.
    pub readings: Vec<String>,
    /// The route's name, or why there is none.
    pub matched: Result<String, NoRoute>,
    /// Every route of the file in its order, and why it matches or doesn't.
    pub routes: Vec<(String, String)>,
}

/// What would become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Allowed, refused, or sent to the login.
    pub decision: Expectation,
    /// A stable code.
    pub reason: &'static str,
    /// The route's name.
    pub route: Option<String>,
}

/// Explains a request. `url`: `http://HOST/PATH` or `https://…`, its path as it would stand in the request.
pub fn explain(config: &Config, router: &Router, method: &Method, url: &str) -> Result<Explanation, String> {
    let (host, path) = split(url)?;
    let readings = Readings::of(path).ok_or("a control character hides in the path: the answer is 400")?;
    let matched = router.resolve(&host, &readings, method);
    let mut all = Vec::new();
    readings.all(&mut |reading| {
        all.push(String::from_utf8_lossy(reading).into_owned());
        true
    });
    let in_portal = matched.is_ok_and(|route| matches!(route.target, Target::Portal(_)));
    let winner = matched.ok().map(|route| route.name.as_str());
    let why = |route: &config::Route| {
        let reason = if in_portal {
            String::from("the portal's endpoints come first")
        } else {
            why_not(route, &host, readings.as_sent(), method).unwrap_or_else(|| {
                String::from(if winner == Some(&*route.name) {
                    "matches"
                } else {
                    "another route is more specific, or the readings disagree"
                })
            })
        };
        (route.name.clone(), reason)
    };
    Ok(Explanation {
        host: host.as_str().to_owned(),
        path: path.to_owned(),
        canonical: readings.canonical(),
        readings: all,
        matched: matched.map(|route| route.name.clone()),
        routes: config.routes.iter().map(why).collect(),
    })
}

/// Why a route does not take a path as it was sent. `None`: it could.
fn why_not(route: &config::Route, host: &Host, path: &[u8], method: &Method) -> Option<String> {
    let name = host.as_str();
    match &route.host {
        HostPattern::Exact(wanted) if wanted != name => return Some(format!("host {name} is not {wanted}")),
        HostPattern::Wildcard(suffix) if name.split_once('.').is_none_or(|(_, rest)| rest != suffix) => {
            return Some(format!("host {name} is not one label before {suffix}"));
        }
        _ => {}
    }
    let rest = path.strip_prefix(route.path.as_bytes());
    let under = match rest {
        Some(rest) if route.exact => rest.is_empty(),
        Some(rest) => route.path == "/" || rest.is_empty() || rest.starts_with(b"/"),
        None => false,
    };
    if !under {
        return Some(format!("the path is not {}{}", if route.exact { "exactly " } else { "under " }, route.path));
    }
    let named = |wanted: &Method| route.methods.contains(wanted);
    if route.methods.is_empty() || named(method) || (*method == Method::HEAD && named(&Method::GET)) {
        None
    } else {
        Some(format!("{method} is not among its methods"))
    }
}

/// What the gate would decide. `person`: who is logged in. `Err`: the URL can't be used.
pub fn outcome(router: &Router, method: &Method, url: &str, person: Option<&Principal>) -> Result<Outcome, String> {
    let (edge, head) = head_of(method, url)?;
    let refused = |reason| Outcome { decision: Expectation::Deny, reason, route: None };
    let admitted = match admit(&head, None, &edge) {
        Ok(admitted) => admitted,
        Err(malformed) => return Ok(refused(malformed.code())),
    };
    Ok(match router.resolve(&admitted.host, &admitted.readings, method) {
        Ok(route) => decide(router, route, &admitted, &head, person),
        Err(none) => refused(none.code()),
    })
}

fn decide(router: &Router, route: &Route, admitted: &Admitted, head: &Parts, person: Option<&Principal>) -> Outcome {
    let caller = match person {
        Some(person) => Caller::Person(std::sync::Arc::new(person.clone())),
        None => Caller::Anonymous(Unidentified::NoCredential),
    };
    let (decision, reason) = match targets::decide(router, route, admitted, (&head.method, &head.headers), &caller) {
        Ok(allowed) => (Expectation::Allow, allowed.pass.reason()),
        Err(refusal) if matches!(refusal.why, Why::Denied(Denied::LoginRequired(_))) => {
            (Expectation::Login, refusal.code())
        }
        Err(refusal) => (Expectation::Deny, refusal.code()),
    };
    Outcome { decision, reason, route: Some(route.name.clone()) }
}

/// The head of a request for this URL as it would come to the gate, from a peer that nobody trusts.
fn head_of(method: &Method, url: &str) -> Result<(Edge, Parts), String> {
    let (scheme, authority, target) = parts_of(url)?;
    // Bytes that clients send and no URI holds come to the decision encoded, and as they are beside it.
    let encoded = head::encoded(target.as_bytes());
    let mut request = Request::builder()
        .method(method)
        .uri(&encoded)
        .header(HOST, authority)
        .body(())
        .map_err(|_| format!("{target:?} can't stand in a request"))?;
    if encoded != target {
        request.extensions_mut().insert(RawTarget(Bytes::copy_from_slice(target.as_bytes())));
    }
    Ok((Edge { trusted_proxies: Vec::new(), scheme }, request.into_parts().0))
}

/// Runs the configuration's `[[test]]`s: one message for each that fails.
#[must_use]
pub fn run_tests(config: &Config) -> Vec<String> {
    if config.tests.is_empty() {
        return Vec::new();
    }
    let router = Router::new(config);
    let mut failures = Vec::new();
    for test in &config.tests {
        let who = test.user.as_deref().unwrap_or("nobody");
        let person = test.user.as_ref().map(|user| Principal {
            id: String::new(),
            username: user.clone(),
            groups: test.groups.clone(),
            email: String::new(),
            display_name: String::new(),
        });
        let request = format!("{}: test: {} {} as {who}", test.place, test.method, test.url);
        match outcome(&router, &test.method, &test.url, person.as_ref()) {
            Ok(came) if came.decision == test.expect => {}
            Ok(came) => {
                let route = came.route.map_or_else(|| String::from("no route"), |name| format!("route {name}"));
                failures.push(format!(
                    "{request}: expected {}, but it is {} ({}, {route})",
                    word(test.expect),
                    word(came.decision),
                    came.reason
                ));
            }
            Err(problem) => failures.push(format!("{request}: {problem}")),
        }
    }
    failures
}

pub fn word(expectation: Expectation) -> &'static str {
    match expectation {
        Expectation::Allow => "allow",
        Expectation::Deny => "deny",
        Expectation::Login => "login",
    }
}

/// Host and raw path: a URL library would already remove the dot segments that are to be judged.
fn split(url: &str) -> Result<(Host, &str), String> {
    let (_, authority, target) = parts_of(url)?;
    let host = Host::parse(authority).ok_or_else(|| format!("{authority:?} is not a host name"))?;
    Ok((host, target.split('?').next().unwrap_or_default()))
}

/// Scheme, authority, and path with query: what a client sends of a URL, so without its fragment.
fn parts_of(url: &str) -> Result<(Scheme, &str, &str), String> {
    const WRONG: &str = "write the URL as https://HOST/PATH";
    let (scheme, rest) = url.split_once("://").ok_or(WRONG)?;
    let scheme = match scheme {
        scheme if scheme.eq_ignore_ascii_case("http") => Scheme::Http,
        scheme if scheme.eq_ignore_ascii_case("https") => Scheme::Https,
        _ => return Err(WRONG.to_owned()),
    };
    let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    Host::parse(authority).ok_or_else(|| format!("{authority:?} is not a host name"))?;
    let target = target.split('#').next().unwrap_or_default();
    // A query alone decides nothing.
    Ok((scheme, authority, if target.starts_with('/') { target } else { "/" }))
}
