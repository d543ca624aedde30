//! Why a request takes the route that it takes: for `doorward explain` and the `[[test]]`s of a configuration.

use std::sync::Arc;

use http::Method;

use super::{Endpoint, NoRoute, Router, Target, covers, starts_with_segments};
use crate::config::{self, Config, Expectation, HostPattern};
use crate::message::admit::Host;
use crate::message::path::Readings;
use crate::policy::{Caller, Denied, Pass, Principal, Unidentified, decide};

/// A request as a person describes it: `GET https://app.example.com/admin?x=1`.
#[derive(Clone, Debug)]
pub struct Described {
    pub method: Method,
    /// `https` or `http`.
    pub scheme: String,
    /// With its port.
    pub authority: String,
    pub host: Host,
    /// As it would be sent, without the query.
    pub path: String,
    pub readings: Readings,
}

impl Described {
    /// Takes a URL apart without changing its path, which the ordinary URL parsers would.
    pub fn parse(method: &str, url: &str) -> Result<Self, String> {
        let method: Method = method.parse().map_err(|_| format!("{method:?} is no method"))?;
        let (scheme, rest) = url
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
            .ok_or_else(|| format!("{url:?} is no URL; write it as http://HOST/PATH"))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let host = Host::parse(authority).ok_or_else(|| format!("{authority:?} is no host"))?;
        let path = target.split(['?', '#']).next().filter(|path| !path.is_empty()).unwrap_or("/").to_owned();
        let readings = Readings::of(&path).ok_or("the path holds a control character: always refused with 400")?;
        Ok(Self { method, scheme: scheme.to_owned(), authority: authority.to_owned(), host, path, readings })
    }
}

/// What would come of a request.
#[derive(Debug)]
pub enum Outcome {
    Portal(Endpoint),
    Allowed { route: usize, pass: Pass },
    Denied { route: usize, denied: Denied },
    NoRoute(NoRoute),
}

impl Outcome {
    /// In the words of `[[test]]`.
    #[must_use]
    pub const fn expectation(&self) -> Expectation {
        match self {
            Self::Portal(_) | Self::Allowed { .. } => Expectation::Allow,
            Self::Denied { denied: Denied::LoginRequired(_), .. } => Expectation::Login,
            Self::Denied { .. } | Self::NoRoute(_) => Expectation::Deny,
        }
    }

    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Portal(_) => "portal",
            Self::Allowed { pass, .. } => pass.reason(),
            Self::Denied { denied, .. } => denied.code(),
            Self::NoRoute(NoRoute::NotFound) => "no_route",
            Self::NoRoute(NoRoute::Ambiguous) => "ambiguous_path",
        }
    }
}

/// Decides a request as the gate would. `person`: `None` where nobody is logged in.
#[must_use]
pub fn outcome(router: &Router, request: &Described, person: Option<Arc<Principal>>) -> Outcome {
    let route = match router.resolve(&request.host, &request.readings, &request.method) {
        Ok(route) => route,
        Err(error) => return Outcome::NoRoute(error),
    };
    if let Target::Portal(endpoint) = route.target {
        return Outcome::Portal(endpoint);
    }
    let index = router.routes.iter().position(|own| std::ptr::eq(own, route)).unwrap_or_default();
    let caller = person.map_or(Caller::Anonymous(Unidentified::NoCredential), Caller::Person);
    match decide(&route.policy, &caller) {
        Ok(pass) => Outcome::Allowed { route: index, pass },
        Err(denied) => Outcome::Denied { route: index, denied },
    }
}

/// Why a route is not the one, in words; `None` where it would match.
#[must_use]
pub fn why_not(route: &config::Route, request: &Described) -> Option<String> {
    let host = request.host.as_str();
    let host_matches = match &route.host {
        HostPattern::Any => true,
        HostPattern::Exact(own) => own == host,
        HostPattern::Wildcard(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
    };
    if !host_matches {
        return Some(format!("the host {host} is not its host"));
    }
    let path = request.readings.as_sent();
    let own = route.path.as_bytes();
    let path_matches = if route.exact {
        path == own
    } else {
        own == b"/" || starts_with_segments(path, own)
    };
    if !path_matches {
        return Some(if route.exact {
            format!("the path is not exactly {}", route.path)
        } else {
            format!("the path is not below {}", route.path)
        });
    }
    if !covers(&route.methods, &request.method) {
        return Some(format!("its methods do not cover {}", request.method));
    }
    None
}

/// Every reading of the path, for a person to look at; at most 40.
#[must_use]
pub fn readings(request: &Described) -> Vec<String> {
    const MOST: usize = 40;
    let mut all = Vec::new();
    request.readings.all(|reading| {
        all.push(String::from_utf8_lossy(reading).into_owned());
        all.len() < MOST
    });
    all
}

/// Runs the policy tests of a configuration. One message for each that failed.
#[must_use]
pub fn run_tests(config: &Config) -> Vec<String> {
    let router = Router::new(config);
    config.tests.iter().filter_map(|test| run_test(config, &router, test).err()).collect()
}

fn run_test(config: &Config, router: &Router, test: &config::PolicyTest) -> Result<(), String> {
    let place = config.source.as_ref().map_or_else(String::new, |source| format!("{}:{}:1: ", source.display(), test.line));
    let name = format!("{place}test: {} {}", test.method, test.url);
    let request = Described::parse(test.method.as_str(), &test.url).map_err(|error| format!("{name}: {error}"))?;
    let person = test.user.as_ref().map(|user| {
        Arc::new(Principal {
            id: String::from("test"),
            username: user.clone(),
            groups: test.groups.clone(),
            email: String::new(),
            display_name: String::new(),
        })
    });
    let outcome = outcome(router, &request, person);
    let came = outcome.expectation();
    if came == test.expect {
        return Ok(());
    }
    let route = match &outcome {
        Outcome::Allowed { route, .. } | Outcome::Denied { route, .. } => {
            config.routes.get(*route).map_or_else(String::new, |route| format!(" by route {}", route.name))
        }
        Outcome::Portal(_) | Outcome::NoRoute(_) => String::new(),
    };
    Err(format!("{name}: expected {}, but it is {}{route} ({})", word(test.expect), word(came), outcome.reason()))
}

/// An expectation as the file writes it.
#[must_use]
pub const fn word(expectation: Expectation) -> &'static str {
    match expectation {
        Expectation::Allow => "allow",
        Expectation::Deny => "deny",
        Expectation::Login => "login",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::tests::routes;

    #[test]
    fn a_url_is_taken_apart_as_it_is() {
        let request = Described::parse("GET", "https://App.example.com:8443/a/../b%2f?x=/c#d").unwrap();
        assert_eq!((request.host.as_str(), request.path.as_str()), ("app.example.com", "/a/../b%2f"));
        assert_eq!(Described::parse("GET", "http://h").unwrap().path, "/");
        for (method, url) in [("GET", "/a"), ("G T", "http://h/"), ("GET", "ftp://h/"), ("GET", "http://a b/"), ("GET", "http://h/%00")] {
            assert!(Described::parse(method, url).is_err(), "{method} {url}");
        }
    }

    #[test]
    fn each_route_says_why_it_is_not_the_one() {
        let routes = routes(&[
            ("a.test", "/", false, &[], ""),
            ("", "/x", false, &[], ""),
            ("", "/y", true, &[], ""),
            ("", "/", false, &[Method::POST], ""),
            ("", "/", false, &[], ""),
        ]);
        let request = Described::parse("GET", "http://b.test/y/z").unwrap();
        let why: Vec<_> = routes.iter().map(|route| why_not(route, &request)).collect();
        let words = ["host", "not below", "not exactly", "methods"];
        for (why, word) in why.iter().zip(words) {
            assert!(why.as_ref().is_some_and(|why| why.contains(word)), "{why:?} {word}");
        }
        assert_eq!(why.last(), Some(&None));
    }
}
