//! `doorward explain METHOD URL [--as USER]`: what would come of a request. Changes nothing.

use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Value, json};

use super::arguments::{Explain, Place};
use super::output::{Output, printable};
use super::user::field;
use super::{Done, Failure, configuration, operate};
use crate::admin::command::Command;
use crate::config::{Config, Expectation, UpstreamHost, UpstreamUrl};
use crate::message::identity;
use crate::policy::Principal;
use crate::router::Router;
use crate::router::explain::{Explanation, Outcome, explain, outcome, word};

pub(super) fn run(arguments: &Explain, place: &Place, output: &mut Output) -> Done {
    let config = configuration::load(place)?;
    let method: Method = arguments
        .method
        .to_uppercase()
        .parse()
        .map_err(|_| Failure::usage(format!("{:?} is no method", arguments.method)))?;
    let person = match &arguments.as_user {
        Some(name) => Some(account(&config, name)?),
        None => None,
    };
    let router = Router::new(&config);
    let outcome = outcome(&router, &method, &arguments.url, person.as_ref()).map_err(Failure::usage)?;
    let report = Report {
        config: &config,
        method: &method,
        url: &arguments.url,
        person: person.as_ref(),
        outcome: &outcome,
        explanation: explain(&config, &router, &method, &arguments.url),
    };
    if arguments.json { output.json(&report.json()) } else { report.text(output) }
}

/// The account as the running server, or the store, knows it.
fn account(config: &Config, name: &str) -> Result<Principal, Failure> {
    operate::here_or_elsewhere(config)?;
    if !config.data_dir.exists() {
        let folder = config.data_dir.display();
        return Err(Failure::failed(format!("there is no account named {name:?}: {folder} is not there")));
    }
    let command = Command::UserShow { username: name.to_owned() };
    let rows = operate::rows(operate::operate(config.clone(), command)?);
    let account = rows.into_iter().next().unwrap_or_default();
    if *field(&account, "disabled") == Value::Bool(true) {
        return Err(Failure::failed(format!("{name} is disabled: every request with its tokens counts as nobody's")));
    }
    let text = |name: &str| field(&account, name).as_str().unwrap_or_default().to_owned();
    let groups =
        field(&account, "groups").as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    Ok(Principal {
        id: text("_id"),
        username: text("username"),
        groups: groups.collect(),
        email: text("email"),
        display_name: text("display_name"),
    })
}

struct Report<'a> {
    config: &'a Config,
    method: &'a Method,
    url: &'a str,
    person: Option<&'a Principal>,
    outcome: &'a Outcome,
    /// `Err`: the path holds a control character, so there is nothing to route.
    explanation: Result<Explanation, String>,
}

impl Report<'_> {
    /// What the client would get, in words.
    fn answer(&self) -> &'static str {
        match (self.outcome.decision, self.outcome.reason) {
            (Expectation::Allow, _) if self.route().is_none() => "Doorward answers itself",
            (Expectation::Allow, _) => "forwarded",
            (Expectation::Login, _) => "a person is sent to the login page (303), a program gets 401",
            (Expectation::Deny, "no_route") => "404",
            (Expectation::Deny, "method_not_allowed") => "405",
            (Expectation::Deny, "ambiguous_path" | "bad_path" | "bad_target" | "bad_target_header" | "bad_host") => {
                "400"
            }
            (Expectation::Deny, _) => "403",
        }
    }

    /// The route of the file; `None` for the portal's endpoints.
    fn route(&self) -> Option<&crate::config::Route> {
        let name = self.outcome.route.as_ref()?;
        self.config.routes.iter().find(|route| route.name == *name)
    }

    /// Whom the route is for, where this person is none of them: groups and users.
    fn would_pass(&self) -> Option<(&[String], &[String])> {
        if self.outcome.decision == Expectation::Allow {
            return None;
        }
        let route = self.route()?;
        let is_listed = !(route.groups.is_empty() && route.users.is_empty());
        is_listed.then_some((route.groups.as_slice(), route.users.as_slice()))
    }

    /// The headers that Doorward would set for the backend.
    fn headers(&self) -> Option<HeaderMap> {
        if self.outcome.decision != Expectation::Allow {
            return None;
        }
        let upstream = self.config.upstreams.get(self.route()?.upstream.as_ref()?)?;
        let (scheme, rest) = self.url.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        let host = match (&upstream.host, upstream.urls.first()) {
            (UpstreamHost::Fixed(name), _) => name.clone(),
            (UpstreamHost::Upstream, Some(UpstreamUrl::Http { host, port } | UpstreamUrl::Https { host, port })) => {
                format!("{host}:{port}")
            }
            _ => authority.to_owned(),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (header::HOST.as_str(), host.as_str()),
            ("x-forwarded-proto", scheme),
            ("x-forwarded-host", authority),
            ("x-forwarded-for", "(the client's address)"),
            ("x-real-ip", "(the client's address)"),
            ("x-request-id", "(a fresh id)"),
        ] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        if let Some(person) = self.person {
            identity::set(&mut headers, &self.config.identity.headers, person);
        }
        Some(headers)
    }

    fn json(&self) -> Value {
        let headers = self.headers().map(|headers| {
            let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            headers
                .iter()
                .map(|(name, value)| (name.to_string(), json!(text(value))))
                .collect::<serde_json::Map<_, _>>()
        });
        let mut report = json!({
            "method": self.method.as_str(),
            "url": self.url,
            "user": self.person.map(|person| &person.username),
            "route": self.outcome.route,
            "decision": word(self.outcome.decision),
            "reason": self.outcome.reason,
            "answer": self.answer(),
            "headers": headers,
            "would_pass": self.would_pass().map(|(groups, users)| json!({ "groups": groups, "users": users })),
        });
        if let (Ok(explanation), Value::Object(report)) = (&self.explanation, &mut report) {
            let routes: Vec<Value> =
                explanation.routes.iter().map(|(route, why)| json!({ "route": route, "why": why })).collect();
            report.insert(String::from("matched"), json!(explanation.matched.as_ref().ok()));
            report.insert(String::from("host"), json!(explanation.host));
            report.insert(String::from("path"), json!(explanation.path));
            report.insert(String::from("canonical_path"), json!(explanation.canonical));
            report.insert(String::from("readings"), json!(explanation.readings));
            report.insert(String::from("routes"), json!(routes));
        }
        report
    }

    fn text(&self, output: &mut Output) -> Done {
        let mut line = |name: &str, value: &str| output.line(&format!("{name:<10} {}", printable(value)));
        line("request", &format!("{} {}", self.method, self.url))?;
        line("who", self.person.map_or("nobody is logged in", |person| &person.username))?;
        match &self.explanation {
            Ok(explanation) => {
                line("canonical", &explanation.canonical)?;
                if explanation.readings.len() > 1 {
                    for reading in &explanation.readings {
                        line("reading", reading)?;
                    }
                }
            }
            Err(problem) => line("problem", problem)?,
        }
        line("route", self.outcome.route.as_deref().unwrap_or("none"))?;
        line("decision", &format!("{} ({})", word(self.outcome.decision), self.outcome.reason))?;
        line("answer", self.answer())?;
        if let Some((groups, users)) = self.would_pass() {
            let of = |what: &str, names: &[String]| {
                if names.is_empty() { None } else { Some(format!("{what} {}", names.join(", "))) }
            };
            let all: Vec<String> = [of("groups", groups), of("users", users)].into_iter().flatten().collect();
            line("would pass", &all.join("; "))?;
        }
        for (name, value) in self.headers().iter().flatten() {
            line("header", &format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))?;
        }
        if let Ok(explanation) = &self.explanation {
            for (route, why) in &explanation.routes {
                line("routes", &format!("{route}: {why}"))?;
            }
        }
        Ok(())
    }
}
