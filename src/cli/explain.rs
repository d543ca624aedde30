//! `doorward explain METHOD URL [--as USER]`: what would come of a request. Changes nothing.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};

use super::arguments::{Explain, Place};
use super::output::{Output, printable};
use super::{Done, Failure, configuration, operate};
use crate::admin::command::Command;
use crate::config::{Config, UpstreamHost, UpstreamUrl};
use crate::message::identity;
use crate::policy::{Denied, Principal};
use crate::router::explain::{Described, Outcome, outcome, readings, why_not, word};
use crate::router::{NoRoute, Router};

pub(super) fn run(arguments: &Explain, place: &Place, output: &mut Output) -> Done {
    let config = configuration::load(place)?;
    let request = Described::parse(&arguments.method.to_uppercase(), &arguments.url).map_err(Failure::usage)?;
    let person = match &arguments.as_user {
        Some(name) => Some(Arc::new(account(&config, name)?)),
        None => None,
    };
    let router = Router::new(&config);
    let outcome = outcome(&router, &request, person.clone());
    let report = Report { config: &config, request: &request, person: person.as_deref(), outcome: &outcome };
    if arguments.json { output.json(&report.json()) } else { report.text(output) }
}

/// The account as the running server, or the store, knows it.
fn account(config: &Config, name: &str) -> Result<Principal, Failure> {
    if !config.data_dir.exists() {
        return Err(Failure::failed(format!("there is no account named {name:?}: {} is not there", config.data_dir.display())));
    }
    let command = Command::UserShow { username: name.to_owned() };
    let rows = operate::rows(operate::operate(config.clone(), command)?);
    let account = rows.into_iter().next().unwrap_or_default();
    if account["disabled"] == Value::Bool(true) {
        return Err(Failure::failed(format!("{name} is disabled: every request with its tokens counts as nobody's")));
    }
    let text = |field: &str| account[field].as_str().unwrap_or_default().to_owned();
    let groups = account["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
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
    request: &'a Described,
    person: Option<&'a Principal>,
    outcome: &'a Outcome,
}

impl Report<'_> {
    fn route(&self) -> Option<usize> {
        match self.outcome {
            Outcome::Allowed { route, .. } | Outcome::Denied { route, .. } => Some(*route),
            Outcome::Portal(_) | Outcome::NoRoute(_) => None,
        }
    }

    fn route_name(&self) -> Option<&str> {
        self.route().and_then(|index| self.config.routes.get(index)).map(|route| &*route.name)
    }

    /// What the client would get, in words.
    fn answer(&self) -> &'static str {
        match self.outcome {
            Outcome::Portal(_) => "Doorward answers itself",
            Outcome::Allowed { .. } => "forwarded",
            Outcome::Denied { denied: Denied::LoginRequired(_), .. } => "a person is sent to the login page (303), a program gets 401",
            Outcome::Denied { denied: Denied::NotOnList | Denied::Closed, .. } => "403",
            Outcome::NoRoute(NoRoute::NotFound) => "404",
            Outcome::NoRoute(NoRoute::Ambiguous) => "400: the readings of the path lead to different routes",
        }
    }

    fn others(&self) -> Vec<(String, String)> {
        let chosen = self.route();
        let routes = self.config.routes.iter().enumerate();
        routes
            .filter(|(index, _)| Some(*index) != chosen)
            .map(|(_, route)| {
                let why = why_not(route, self.request).unwrap_or_else(|| match self.outcome {
                    Outcome::Portal(_) => String::from("the portal's own endpoints come first"),
                    Outcome::NoRoute(_) => String::from("another reading of the path leads elsewhere"),
                    Outcome::Allowed { .. } | Outcome::Denied { .. } => String::from("another route is more specific"),
                });
                (route.name.clone(), why)
            })
            .collect()
    }

    /// The headers that Doorward would set for the backend.
    fn headers(&self) -> Option<HeaderMap> {
        let Outcome::Allowed { route, pass } = self.outcome else { return None };
        let route = self.config.routes.get(*route)?;
        let upstream = self.config.upstreams.get(route.upstream.as_ref()?)?;
        let mut headers = HeaderMap::new();
        let host = match (&upstream.host, upstream.urls.first()) {
            (UpstreamHost::Fixed(name), _) => name.clone(),
            (UpstreamHost::Upstream, Some(UpstreamUrl::Http { host, port } | UpstreamUrl::Https { host, port })) => {
                format!("{host}:{port}")
            }
            _ => self.request.authority.clone(),
        };
        let set = |headers: &mut HeaderMap, name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set(&mut headers, header::HOST.as_str(), &host);
        set(&mut headers, "x-forwarded-proto", &self.request.scheme);
        set(&mut headers, "x-forwarded-host", &self.request.authority);
        set(&mut headers, "x-forwarded-for", "(the client's address)");
        set(&mut headers, "x-real-ip", "(the client's address)");
        set(&mut headers, "x-request-id", "(a fresh id)");
        if let Some(person) = pass.person() {
            identity::set(&mut headers, &self.config.identity.headers, person);
        }
        Some(headers)
    }

    fn json(&self) -> Value {
        let headers = self.headers().map(|headers| {
            headers
                .iter()
                .map(|(name, value)| (name.to_string(), json!(String::from_utf8_lossy(value.as_bytes()))))
                .collect::<serde_json::Map<_, _>>()
        });
        let others: Vec<Value> =
            self.others().into_iter().map(|(route, why)| json!({ "route": route, "why_not": why })).collect();
        json!({
            "method": self.request.method.as_str(),
            "host": self.request.host.as_str(),
            "path": self.request.path,
            "canonical_path": self.request.readings.canonical(),
            "readings": readings(self.request),
            "user": self.person.map(|person| &person.username),
            "route": self.route_name(),
            "decision": word(self.outcome.expectation()),
            "reason": self.outcome.reason(),
            "answer": self.answer(),
            "headers": headers,
            "other_routes": others,
        })
    }

    fn text(&self, output: &mut Output) -> Done {
        let who = self.person.map_or("nobody is logged in", |person| &person.username);
        output.line(&format!("request    {} {} on {}", self.request.method, printable(&self.request.path), self.request.host.as_str()))?;
        output.line(&format!("who        {}", printable(who)))?;
        output.line(&format!("canonical  {}", printable(&self.request.readings.canonical())))?;
        let readings = readings(self.request);
        if readings.len() > 1 {
            output.line(&format!("readings   {}", readings.len()))?;
            for reading in &readings {
                output.line(&format!("           {}", printable(reading)))?;
            }
        }
        output.line(&format!("route      {}", self.route_name().unwrap_or("none")))?;
        output.line(&format!("decision   {} ({})", word(self.outcome.expectation()), self.outcome.reason()))?;
        output.line(&format!("answer     {}", self.answer()))?;
        if let Some(headers) = self.headers() {
            output.line("headers that the backend can trust")?;
            for (name, value) in &headers {
                output.line(&format!("           {name}: {}", printable(&String::from_utf8_lossy(value.as_bytes()))))?;
            }
        }
        let others = self.others();
        if !others.is_empty() {
            output.line("other routes")?;
            for (name, why) in others {
                output.line(&format!("           {}: {why}", printable(&name)))?;
            }
        }
        Ok(())
    }
}
