//! `[upstream.NAME]`, `[[route]]` and `[[test]]`.

use std::collections::BTreeMap;

use http::Method;

use super::check::{Reading, span};
use super::reader::{Place, Section, Text};
use super::units::{PathPrefix, canonical_username};
use super::urls::{self, HttpUrl};
use super::{
    Access, Expectation, HostPattern, Listen, PolicyTest, Reuse, Route, Server, Upstream, UpstreamHost, UpstreamUrl,
    inside,
};
use crate::vocabulary::{letters, method};

pub(super) fn upstreams(reading: &Reading<'_>, section: &Section<'_>, server: &Server) -> BTreeMap<String, Upstream> {
    let mut upstreams = BTreeMap::new();
    for (name, one) in section.named() {
        let mut urls = Vec::new();
        let texts = one.texts("urls");
        for text in &texts {
            match text.text.parse::<UpstreamUrl>() {
                Ok(url) if is_ourselves(&url, server) => {
                    one.problem(&text.place, "urls", "is one of server.listen: Doorward would forward to itself");
                }
                Ok(url) if urls.contains(&url) => one.problem(&text.place, "urls", "is named twice"),
                Ok(url) => urls.push(url),
                Err(error) => one.problem(&text.place, "urls", error.to_string()),
            }
        }
        if texts.is_empty() {
            let place = one.place_of("urls");
            one.problem(&place, "urls", "is missing; write for example urls = [\"http://127.0.0.1:9000\"]");
        }
        let host = match one.text("host") {
            None => UpstreamHost::Preserve,
            Some(text) => match text.text.as_str() {
                "preserve" => UpstreamHost::Preserve,
                "upstream" => UpstreamHost::Upstream,
                _ => fixed_host(&one, &text),
            },
        };
        let health_path = one.text("health_path").filter(|text| !text.text.is_empty()).and_then(|text| {
            let good =
                text.text.starts_with('/') && text.text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
            if !good {
                one.problem(&text.place, "health_path", "must be a path such as \"/healthz\"");
            }
            good.then_some(text.text)
        });
        let forward_token = one.boolean("forward_token", false);
        let upstream = Upstream {
            name: name.text.clone(),
            urls,
            host,
            connect_timeout: span(&one, "connect_timeout", "5s", "10ms", "5m"),
            response_timeout: span(&one, "response_timeout", "60s", "10ms", "1d"),
            health_path,
            ca_file: ca_file(reading, &one),
            server_name: server_name(&one),
            reuse: one.choice(
                "reuse",
                &[("without_body", Reuse::WithoutBody), ("always", Reuse::Always), ("never", Reuse::Never)],
                Reuse::WithoutBody,
            ),
            forward_token,
            adopt_login: adopt_login(&one, forward_token),
            basic: one.boolean("basic", false),
        };
        one.close();
        upstreams.insert(name.text, upstream);
    }
    upstreams
}

fn fixed_host(section: &Section<'_>, text: &Text) -> UpstreamHost {
    let (name, port) = match text.text.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, urls::port(port).map(Some).ok_or(())),
        _ => (text.text.as_str(), Ok(None)),
    };
    if port.is_err() || !matches!(name.parse(), Ok(HostPattern::Exact(_))) {
        section.problem(&text.place, "host", "must be \"preserve\", \"upstream\" or a host such as \"app.internal\"");
    }
    UpstreamHost::Fixed(text.text.clone())
}

/// The backend has to be shown the token that takes its own one's place, and a session has to be stored.
fn adopt_login(section: &Section<'_>, forward_token: bool) -> bool {
    let adopts = section.boolean("adopt_login", false);
    let place = section.place_of("adopt_login");
    if adopts && !forward_token {
        section.problem(
            &place,
            "adopt_login",
            "needs forward_token = true in the same section: this backend has to get the token that takes its own one's \
             place",
        );
    }
    adopts
}

fn server_name(section: &Section<'_>) -> Option<String> {
    let text = section.text("server_name").filter(|text| !text.text.is_empty())?;
    if rustls_pki_types::ServerName::try_from(text.text.as_str()).is_err() {
        section.problem(&text.place, "server_name", "must be a host name without a port, such as \"app.internal\"");
    }
    Some(text.text)
}

pub(super) fn ca_file(reading: &Reading<'_>, section: &Section<'_>) -> Option<std::path::PathBuf> {
    let (path, place) = reading.file(section, "ca_file")?;
    if let Err(why) = check_authorities(&path) {
        section.problem(&place, "ca_file", format!("{} {why}", path.display()));
    }
    Some(path)
}

/// Reads certificates as the TLS library will need them, so that none is found wanting at the first connection.
pub(super) fn check_authorities(path: &std::path::Path) -> Result<(), String> {
    use rustls_pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    let text = std::fs::read(path).map_err(|error| format!("can't be read: {}", crate::files::told(path)(error)))?;
    if memchr::memmem::find(&text, b"PRIVATE KEY-----").is_some() {
        return Err(String::from("holds a private key; it is to hold the authority's certificates alone"));
    }
    for (number, certificate) in rustls_pki_types::CertificateDer::pem_slice_iter(&text).enumerate() {
        let number = number + 1;
        let certificate = certificate.map_err(|error| format!("holds no certificates in PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("holds a certificate (the {number}.) that is none: {error}"))?;
    }
    if roots.is_empty() { Err(String::from("holds no certificate in PEM")) } else { Ok(()) }
}

fn is_ourselves(url: &UpstreamUrl, server: &Server) -> bool {
    server.listen.iter().any(|listen| match (url, listen) {
        (UpstreamUrl::Http { host, port } | UpstreamUrl::Https { host, port }, Listen::Tcp(address)) => {
            let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
            let same_host = *host == address.ip().to_string()
                || (loopback && (address.ip().is_loopback() || address.ip().is_unspecified()));
            same_host && *port == address.port() && *port != 0
        }
        (UpstreamUrl::Unix(path), Listen::Unix(own)) => path == own,
        _ => false,
    })
}

/// Who may pass.
struct Lists {
    groups: Vec<String>,
    users: Vec<String>,
}

pub(super) fn routes(root: &Section<'_>, upstreams: &BTreeMap<String, Upstream>, portal_prefix: &str) -> Vec<Route> {
    let sections = root.sections("route");
    if sections.is_empty() {
        let place = root.place.clone();
        root.report().problem(
            &place,
            "route",
            "there is none; write for example:\n  [[route]]\n  path = \"/\"\n  upstream = \"app\"",
        );
    }
    let mut routes: Vec<(Route, usize)> = Vec::new();
    let mut places = Vec::new();
    for section in sections {
        let line = section.report().line(&section.place);
        let place = section.place.clone();
        let host = section.parsed("host", HostPattern::Any);
        let path = section.parsed("path", PathPrefix(String::from("/"))).0;
        let route = Route {
            name: String::new(),
            exact: section.boolean("exact", false),
            methods: methods(&section),
            access: section.choice(
                "access",
                &[
                    ("required", Access::Required),
                    ("optional", Access::Optional),
                    ("public", Access::Public),
                    ("deny", Access::Deny),
                ],
                Access::Required,
            ),
            groups: Vec::new(),
            users: Vec::new(),
            api: section.boolean("api", false),
            strip_prefix: strip_prefix(&section, &path),
            upstream: section.text("upstream").map(|text| {
                if !upstreams.contains_key(&text.text) {
                    let known: Vec<&str> = upstreams.keys().map(String::as_str).collect();
                    let known = if known.is_empty() { String::from("there is none") } else { known.join(", ") };
                    section.problem(
                        &text.place,
                        "upstream",
                        format!("there is no [upstream.{}]; known: {known}", text.text),
                    );
                }
                text.text
            }),
            host,
            path,
        };
        let lists = lists(&section, route.access);
        let route = Route { name: named(&route), groups: lists.groups, users: lists.users, ..route };
        if route.upstream.is_none() && route.access != Access::Deny {
            section.problem(&section.place, "upstream", "is missing; only a route with access = \"deny\" needs none");
        }
        section.close();
        let report = root.report();
        for (other, other_line) in &routes {
            if let Some(why) = clash(&route, other) {
                report.problem(
                    &place,
                    "route",
                    format!("{why} as the route of line {other_line}; remove or change one"),
                );
            }
        }
        warn_of_endpoints(root, &place, &route.path, portal_prefix);
        routes.push((route, line));
        places.push(place);
    }
    for (index, warning) in inside::warnings(&routes, upstreams) {
        if let Some(place) = places.get(index) {
            root.report().warning(place, "route", warning);
        }
    }
    routes.into_iter().map(|(route, _)| route).collect()
}

fn warn_of_endpoints(root: &Section<'_>, place: &Place, path: &str, portal_prefix: &str) {
    let endpoints = ["/login", "/check", "/logout", "/account", "/.well-known/jwks.json"];
    if endpoints.iter().any(|endpoint| path == format!("{portal_prefix}{endpoint}")) {
        root.report().warning(
            place,
            "route.path",
            format!("{path} is the portal's own endpoint and comes first; set portal.prefix to move it"),
        );
    }
}

/// As logs, metrics and `explain` call it.
fn named(route: &Route) -> String {
    let host = match &route.host {
        HostPattern::Any => String::from("*"),
        HostPattern::Exact(host) => host.clone(),
        HostPattern::Wildcard(parent) => format!("*.{parent}"),
    };
    let exact = if route.exact { "=" } else { "" };
    let methods: Vec<&str> = route.methods.iter().map(Method::as_str).collect();
    let methods = if methods.is_empty() { String::new() } else { format!(" [{}]", methods.join(",")) };
    format!("{host}{exact}{}{methods}", route.path)
}

/// Two routes that mean the same, or that no request can tell apart.
fn clash(one: &Route, other: &Route) -> Option<&'static str> {
    let overlap = match (one.methods.is_empty(), other.methods.is_empty()) {
        (true, true) => true,
        (false, false) => {
            one.methods.iter().any(|method| covers(&other.methods, method))
                || other.methods.iter().any(|method| covers(&one.methods, method))
        }
        _ => false,
    };
    if one.host != other.host || folded(&one.path) != folded(&other.path) {
        None
    } else if one.path != other.path {
        // Whatever the methods: the readings of such a path would lead to two routes.
        Some("has the same path in other letter case or another Unicode form")
    } else if one.exact == other.exact && overlap {
        Some("means the same requests")
    } else {
        None
    }
}

/// GET covers HEAD.
fn covers(methods: &[Method], method: &Method) -> bool {
    methods.contains(method) || (*method == Method::HEAD && methods.contains(&Method::GET))
}

fn folded(path: &str) -> std::borrow::Cow<'_, [u8]> {
    letters::fold(path.as_bytes(), usize::MAX)
}

/// Any token but what is never served; in capitals, since methods are routed without regard to case.
fn methods(section: &Section<'_>) -> Vec<Method> {
    let mut methods: Vec<Method> = Vec::new();
    for text in section.texts("methods") {
        let typed = &text.text;
        match typed.to_ascii_uppercase().parse::<Method>() {
            Ok(method) if !method::is_served(&method) => {
                section.problem(&text.place, "methods", format!("{typed} is never served"));
            }
            Ok(method) if methods.contains(&method) => {
                section.problem(&text.place, "methods", format!("{typed} is named twice"));
            }
            Ok(method) => {
                if let Some(meant) = method::is_slip_for(&method) {
                    section.report().warning(
                        &text.place,
                        &section.full("methods"),
                        format!("{typed} is not a registered method; if {meant} is meant, write that"),
                    );
                }
                methods.push(method);
            }
            Err(_) => section.problem(
                &text.place,
                "methods",
                format!("{typed:?} is not a method; write a token, for example \"POST\""),
            ),
        }
    }
    methods
}

fn strip_prefix(section: &Section<'_>, path: &str) -> String {
    let Some(text) = section.text("strip_prefix").filter(|text| !text.text.is_empty()) else { return String::new() };
    match text.text.parse::<PathPrefix>() {
        Ok(prefix) if prefix.0 == "/" => String::new(),
        Ok(prefix) if !prefix.0.bytes().all(|byte| byte.is_ascii_graphic()) => {
            section.problem(&text.place, "strip_prefix", "must be ASCII without blanks: it is taken off as it is sent");
            String::new()
        }
        Ok(prefix) if path == prefix.0 || path.strip_prefix(&prefix.0).is_some_and(|rest| rest.starts_with('/')) => {
            prefix.0
        }
        Ok(prefix) => {
            section.problem(
                &text.place,
                "strip_prefix",
                format!("{} is no beginning of the route's path {path}", prefix.0),
            );
            String::new()
        }
        Err(error) => {
            section.problem(&text.place, "strip_prefix", error.to_string());
            String::new()
        }
    }
}

fn lists(section: &Section<'_>, access: Access) -> Lists {
    let groups = section.texts("groups");
    let users = section.texts("users");
    if access != Access::Required
        && let Some(first) = groups.first().or(users.first())
    {
        section.problem(&first.place, "access", "must be \"required\" where groups or users are listed");
    }
    for group in &groups {
        if group.text.is_empty() || group.text.contains(',') || group.text.chars().any(char::is_control) {
            section.problem(&group.place, "groups", "a group must not be empty or hold a comma");
        }
    }
    let users = users.iter().filter_map(|user| username(section, "users", user)).collect();
    Lists { groups: groups.into_iter().map(|group| group.text).collect(), users }
}

fn username(section: &Section<'_>, key: &str, typed: &Text) -> Option<String> {
    canonical_username(&typed.text)
        .map_err(|error| section.problem(&typed.place, key, format!("{:?} {error}", typed.text)))
        .ok()
}

pub(super) fn tests(root: &Section<'_>) -> Vec<PolicyTest> {
    root.sections("test").into_iter().filter_map(test).collect()
}

fn test(section: Section<'_>) -> Option<PolicyTest> {
    let place = section.report().shown(&section.place_of("request"));
    let request = section.text("request");
    let user = section.text("user").and_then(|text| username(&section, "user", &text));
    let groups: Vec<String> = section.texts("groups").into_iter().map(|text| text.text).collect();
    let expect = section.has("expect").then(|| {
        section.choice(
            "expect",
            &[("allow", Expectation::Allow), ("deny", Expectation::Deny), ("login", Expectation::Login)],
            Expectation::Deny,
        )
    });
    if expect.is_none() {
        section.problem(&section.place, "expect", "is missing; write \"allow\", \"deny\" or \"login\"");
    }
    if !section.has("user") && !groups.is_empty() {
        section.problem(&section.place_of("groups"), "groups", "needs a user: nobody has no groups");
    }
    let parsed = match &request {
        None => {
            section.problem(
                &section.place,
                "request",
                "is missing; write for example \"GET https://app.example.com/admin\"",
            );
            None
        }
        Some(text) => {
            let parsed = text.text.split_once(' ').and_then(|(method, url)| {
                let method = method.parse::<Method>().ok()?;
                let is_url = HttpUrl::parse(url).is_ok() && !url.contains(' ');
                is_url.then(|| (method, url.to_owned()))
            });
            if parsed.is_none() {
                section.problem(
                    &text.place,
                    "request",
                    "must be a method and a URL, for example \"GET https://app.example.com/admin\"",
                );
            }
            parsed
        }
    };
    section.close();
    let (method, url) = parsed?;
    Some(PolicyTest { method, url, user, groups, expect: expect?, place })
}
