//! The decision on one request: its own route, and whatever else it names or takes along.
//!
//! `COPY`, `MOVE` and copies by header act on a second resource, and `DELETE` on all that lies below its target. A backend
//! looks at none of our routes, so each of these must be open to the person before anything is forwarded. What only a body
//! names (`REPORT`, `MERGE`, `UPDATE`) is not seen here; SECURITY.md says so.

use std::collections::BTreeSet;

use http::{HeaderMap, Method};

use super::{Case, Found, NoRoute, Route, Router, Target, lookup};
use crate::message::admit::{Admitted, Host};
use crate::message::path::Readings;
use crate::policy::{self, Caller, Denied, Pass};
use crate::vocabulary::{letters, method};

/// A request that may be forwarded.
#[derive(Debug)]
pub struct Allowed {
    /// The permission.
    pub pass: Pass,
    /// `Destination` as the backend is to read it; `None`: as it came.
    pub destination: Option<Destination>,
}

/// A `Destination` for the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// It came as a URL: the backend gets one of its own scheme and host.
    pub is_url: bool,
    /// Path and query as they came, less the route's prefix.
    pub path: String,
}

/// Why a request is refused, and what about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The rule.
    pub why: Why,
    /// Which header and target; empty where it is the request's own route.
    pub detail: String,
    /// No route leads to the target.
    leads_nowhere: bool,
}

/// The rule that refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The policy of the request's own route, or a login that would help elsewhere.
    Denied(Denied),
    /// 403: a further target, or something below, is closed to this person.
    Target,
    /// 400: a header that names a target can't be read in one way only, or leads to another backend.
    Header,
}

impl Refusal {
    /// The stable reason code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self.why {
            Why::Denied(denied) => denied.code(),
            Why::Target => "target_denied",
            Why::Header => "bad_target_header",
        }
    }

    fn header(detail: impl Into<String>) -> Self {
        Self { why: Why::Header, detail: detail.into(), leads_nowhere: false }
    }

    fn nowhere(detail: impl Into<String>) -> Self {
        Self { why: Why::Target, detail: detail.into(), leads_nowhere: true }
    }

    /// A login helps where nobody is logged in.
    fn denied(denied: Denied, detail: String) -> Self {
        let why = if let Denied::LoginRequired(_) = denied { Why::Denied(denied) } else { Why::Target };
        Self { why, detail, leads_nowhere: false }
    }
}

/// Decides a request that `route` was found for.
pub fn decide(
    router: &Router,
    route: &Route,
    admitted: &Admitted,
    (method, headers): (&Method, &HeaderMap),
    caller: &Caller,
) -> Result<Allowed, Refusal> {
    let pass = policy::decide(&route.policy, caller).map_err(|denied| Refusal {
        why: Why::Denied(denied),
        detail: String::new(),
        leads_nowhere: false,
    })?;
    // Safe methods have one target (RFC 9110 section 9.2.1), and no program reads another one out of a header.
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(Allowed { pass, destination: None });
    }
    let method = method::routed(method);
    let decision = Decision { router, route, admitted, method: &method, caller };
    let destination = decision.further(headers)?;
    decision.own(headers)?;
    Ok(Allowed { pass, destination })
}

struct Decision<'a> {
    router: &'a Router,
    route: &'a Route,
    admitted: &'a Admitted,
    /// In capitals.
    method: &'a Method,
    caller: &'a Caller,
}

/// How a header names its target.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    /// `Destination`: a URL or a path, written to.
    Destination,
    /// `X-Amz-Copy-Source`, `X-Copy-From` and their kin: read from.
    Source,
    /// Swift's other account, which changes what the two above mean.
    Account,
}

/// Names are folded: CGI reads every sign as the same one. Each store has its own prefix for the same header.
fn kind_of(name: &str) -> Option<Names> {
    let folded: String = name.chars().map(|sign| if sign.is_ascii_alphanumeric() { sign } else { '-' }).collect();
    let is_source = ["-copy-source", "-rename-source", "-move-source"].iter().any(|end| folded.ends_with(end));
    match folded.as_str() {
        "destination" => Some(Names::Destination),
        "x-copy-from" | "copy-source" => Some(Names::Source),
        "destination-account" | "x-copy-from-account" => Some(Names::Account),
        _ if is_source => Some(Names::Source),
        _ => None,
    }
}

/// Something that a header could mean.
struct Candidate {
    host: Host,
    path: String,
    /// Otherwise it is one of several readings, of which one must lead somewhere.
    is_sole: bool,
}

impl Decision<'_> {
    /// What headers name.
    fn further(&self, headers: &HeaderMap) -> Result<Option<Destination>, Refusal> {
        let mut seen = BTreeSet::new();
        let mut destination = None;
        // Programs use `Destination` with these for purposes of their own: then only what it could open is looked at.
        let is_lax = matches!(*self.method, Method::POST | Method::PUT | Method::PATCH | Method::DELETE);
        for (name, value) in headers {
            let Some(kind) = kind_of(name.as_str()) else { continue };
            if !seen.insert(name.as_str().replace(|sign: char| !sign.is_ascii_alphanumeric(), "-")) {
                return Err(Refusal::header(format!("{name} came more than once.")));
            }
            let is_lax = is_lax && kind == Names::Destination;
            let value = std::str::from_utf8(value.as_bytes()).map(str::trim).unwrap_or_default();
            if value.is_empty() && !is_lax {
                return Err(Refusal::header(format!("{name} names nothing that can be read.")));
            }
            let methods: &[Method] = match kind {
                Names::Destination => &[Method::PUT, self.method.clone()],
                Names::Source => &[Method::GET],
                // The whole tree of that account may be meant.
                Names::Account if self.everything_is_open(&self.admitted.host) => continue,
                Names::Account => return Err(Refusal::header(format!("{name} leads beside the routes."))),
            };
            let written = match self.candidates(kind, name.as_str(), value) {
                Err(_) if is_lax => continue,
                written => written?,
            };
            let found = match self.each_is_open(name.as_str(), &written, methods) {
                Err(refusal) if is_lax && (refusal.why == Why::Header || refusal.leads_nowhere) => continue,
                found => found?,
            };
            if kind == Names::Destination && !is_lax {
                destination = rewritten(found, &written);
            }
        }
        Ok(destination)
    }

    /// All that a value could mean.
    fn candidates(&self, kind: Names, name: &str, value: &str) -> Result<Vec<Candidate>, Refusal> {
        let here = &self.admitted.host;
        let scheme = value.split_once("://").map(|(scheme, _)| scheme);
        if let Some(scheme) = scheme.filter(|scheme| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
            let is_http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
            let rest = value.get(scheme.len() + 3..).unwrap_or_default();
            let (authority, path) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
            let host = Host::parse(authority).filter(|_| is_http);
            let host = host.ok_or_else(|| Refusal::header(format!("{name} is not a URL of this site.")))?;
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            if self.is_here(scheme, authority, &host) {
                return Ok(vec![Candidate { host: here.clone(), path, is_sole: true }]);
            }
            if kind == Names::Destination {
                return Err(Refusal::header(format!("{name} names another host: {host}.", host = host.as_str())));
            }
            return Ok(vec![Candidate { host, path, is_sole: false }]);
        }
        let path = if value.starts_with('/') { value.to_owned() } else { format!("/{value}") };
        let prefix = self.route.strip_prefix.trim_end_matches('/');
        let beside = if kind == Names::Source { prefix } else { "" };
        let mut paths = vec![format!("{beside}{path}")];
        // Swift names a container beside that of the request: version and account stay.
        let sent = String::from_utf8_lossy(self.admitted.readings.as_sent());
        let inner = sent.strip_prefix(prefix).unwrap_or(&sent);
        if let [_, version, account, _, ..] = *inner.split('/').collect::<Vec<_>>() {
            paths.push(format!("{prefix}/{version}/{account}{path}"));
        }
        // A bucket that is a host name of its own does not stand in the path.
        if kind == Names::Source
            && let Some((_, key)) = path.get(1..).and_then(|path| path.split_once('/'))
        {
            paths.push(format!("{prefix}/{key}"));
        }
        Ok(paths.into_iter().map(|path| Candidate { host: here.clone(), path, is_sole: false }).collect())
    }

    /// This site, as the request or a trusted proxy names it. The scheme is that of whoever ends TLS.
    fn is_here(&self, scheme: &str, authority: &str, host: &Host) -> bool {
        let default = if scheme.eq_ignore_ascii_case("https") { "443" } else { "80" };
        let port_of = |authority: &str| {
            let port = authority.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.contains(']'));
            port.filter(|port| !port.is_empty()).unwrap_or(default).to_owned()
        };
        let sent = self.admitted.authority.to_str().unwrap_or_default();
        [sent, self.admitted.vouched_authority.as_ref().and_then(|value| value.to_str().ok()).unwrap_or(sent)]
            .iter()
            .any(|known| Host::parse(known).is_some_and(|known| known == *host) && port_of(known) == port_of(authority))
    }

    /// Every candidate that leads somewhere is open to this person, and one leads to this backend.
    fn each_is_open<'r>(
        &'r self,
        name: &str,
        candidates: &[Candidate],
        methods: &[Method],
    ) -> Result<Option<&'r Route>, Refusal> {
        let mut found = None;
        for candidate in candidates {
            let told = format!("{name} names {}", candidate.path);
            let readings = Readings::of(&candidate.path)
                .ok_or_else(|| Refusal::header(format!("{name} holds a control character.")))?;
            for method in methods {
                let route = match self.router.resolve(&candidate.host, &readings, method) {
                    Ok(route) => route,
                    Err(NoRoute::Ambiguous) => {
                        let routes = self.router.alternatives(&candidate.host, &readings, method).join(", ");
                        return Err(Refusal::header(format!("{told}, which can be several routes: {routes}.")));
                    }
                    Err(NoRoute::NotFound) if candidate.is_sole => {
                        return Err(Refusal::nowhere(format!("{told}, which no route leads to.")));
                    }
                    Err(NoRoute::NotFound) => continue,
                };
                if route.target != self.route.target {
                    if candidate.is_sole {
                        return Err(Refusal::header(format!("{told}, which another backend serves.")));
                    }
                    continue;
                }
                policy::decide(&route.policy, self.caller).map_err(|denied| {
                    Refusal::denied(denied, format!("{told}, which is closed (route {}).", route.name))
                })?;
                found = found.or(Some(route));
            }
            if methods.contains(&Method::PUT) {
                // What is written over goes, with all below it.
                self.nothing_below_is_closed(&readings, Effect::Writes, &told)?;
            }
        }
        // A URL of another host that no route serves is not ours to guard.
        let is_elsewhere = candidates.iter().all(|candidate| candidate.host != self.admitted.host);
        if found.is_none() && !is_elsewhere {
            return Err(Refusal::nowhere(format!("{name} leads to no route of this backend.")));
        }
        Ok(found)
    }

    /// What the method does to the request's own path beside what its route was asked for.
    fn own(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let readings = &self.admitted.readings;
        let (as_well, tree): (&[Method], _) = match self.method.as_str() {
            "COPY" => (&[Method::GET], (!is_depth(headers, &["0"])).then_some(Effect::Reads)),
            "MOVE" => (&[Method::GET, Method::DELETE], Some(Effect::Writes)),
            "DELETE" | "UNBIND" => (&[], Some(Effect::Writes)),
            "LOCK" => (&[], (!is_depth(headers, &["0"])).then_some(Effect::Writes)),
            "PROPFIND" => (&[], (!is_depth(headers, &["0", "1", "1,noroot"])).then_some(Effect::Reads)),
            "REPORT" => {
                let is_deep = headers.contains_key("depth") && !is_depth(headers, &["0", "1"]);
                (&[], is_deep.then_some(Effect::Reads))
            }
            // Their body names what they act on: it may be anything that the backend serves here.
            "SEARCH" => return self.everything_here(Effect::Reads),
            "BIND" | "REBIND" => return self.everything_here(Effect::Writes),
            _ => return Ok(()),
        };
        let told = format!("{} of {}", self.method, String::from_utf8_lossy(readings.as_sent()));
        for method in as_well {
            let Ok(route) = self.router.resolve(&self.admitted.host, readings, method) else {
                return Err(Refusal::nowhere(format!("{told} is also a {method}, for which there is no route.")));
            };
            policy::decide(&route.policy, self.caller).map_err(|denied| {
                Refusal::denied(denied, format!("{told} is also a {method}, which is closed (route {}).", route.name))
            })?;
        }
        tree.map_or(Ok(()), |effect| self.nothing_below_is_closed(readings, effect, &told))
    }

    fn everything_here(&self, effect: Effect) -> Result<(), Refusal> {
        let told = format!("{} may act on all of this backend", self.method);
        Readings::of("/").map_or(Ok(()), |root| self.nothing_below_is_closed(&root, effect, &told))
    }

    fn everything_is_open(&self, host: &Host) -> bool {
        let root = Readings::of("/");
        root.is_some_and(|root| {
            self.router.closed_below(self.route, (host, &root), Effect::Writes, self.caller).is_none()
        })
    }

    fn nothing_below_is_closed(&self, readings: &Readings, effect: Effect, told: &str) -> Result<(), Refusal> {
        let closed = self.router.closed_below(self.route, (&self.admitted.host, readings), effect, self.caller);
        closed.map_or(Ok(()), |(route, denied)| {
            Err(Refusal::denied(denied, format!("{told}, and {} below it is closed.", route.name)))
        })
    }
}

/// A `Destination` as the backend has to read it.
fn rewritten(found: Option<&Route>, candidates: &[Candidate]) -> Option<Destination> {
    let Candidate { path, is_sole: is_url, .. } = candidates.first()?;
    let prefix = found.map_or("", |route| route.strip_prefix.trim_end_matches('/'));
    if !is_url && prefix.is_empty() {
        return None;
    }
    let left = path.strip_prefix(prefix).unwrap_or(path);
    let slash = if left.starts_with('/') { "" } else { "/" };
    Some(Destination { is_url: *is_url, path: format!("{slash}{left}") })
}

/// What is done to a whole tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Its contents get into other hands.
    Reads,
    /// It is changed, taken away, or both.
    Writes,
}

/// One `Depth` (RFC 4918 section 10.2) of these values. None, several or another one: infinity.
fn is_depth(headers: &HeaderMap, values: &[&str]) -> bool {
    let mut lines = headers.get_all("depth").iter();
    let (Some(depth), None) = (lines.next(), lines.next()) else { return false };
    values.iter().any(|value| depth.as_bytes().trim_ascii() == value.as_bytes())
}

impl Router {
    /// A route for this backend below a path, on this host, that is closed to this person.
    fn closed_below(
        &self,
        own: &Route,
        (host, readings): (&Host, &Readings),
        effect: Effect,
        caller: &Caller,
    ) -> Option<(&Route, Denied)> {
        let mut trees = Vec::new();
        readings.all(&mut |reading| {
            let mut tree = letters::fold(reading, usize::MAX).into_owned();
            while tree.last() == Some(&b'/') {
                tree.pop();
            }
            trees.push(tree);
            true
        });
        let prefix = letters::fold(own.strip_prefix.trim_end_matches('/').as_bytes(), usize::MAX);
        self.routes.iter().filter(|route| route.index != own.index).find_map(|route| {
            let denied = policy::decide(&route.policy, caller).err()?;
            let spot = route.spot.as_ref()?;
            let is_same_backend = route.target == own.target || route.target == Target::Upstream(None);
            let counts = is_same_backend && spot.is_touched_by(effect) && self.is_reached_on(host, route.index, spot);
            (counts && trees.iter().any(|tree| spot.lies_below(tree, &prefix))).then_some((route, denied))
        })
    }

    /// Whether requests to this host can take the route at all.
    fn is_reached_on(&self, host: &Host, index: usize, spot: &Spot) -> bool {
        let tables = self.tables(host);
        let others = [Method::GET, Method::PUT, Method::DELETE];
        let named = if spot.methods.is_empty() { &others[..] } else { &spot.methods };
        named.iter().any(|method| lookup(&tables, spot.path.as_bytes(), method, Case::AsSent) == Found::Route(index))
    }
}

/// Where a route lies.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    path: String,
    /// Without letter case; no slash at the end.
    folded: Vec<u8>,
    /// The same as the backend sees it.
    behind: Vec<u8>,
    methods: Vec<Method>,
}

impl Spot {
    pub(super) fn of(route: &crate::config::Route) -> Self {
        let fold = |path: &str| letters::fold(path.trim_end_matches('/').as_bytes(), usize::MAX).into_owned();
        let behind = route.path.strip_prefix(route.strip_prefix.trim_end_matches('/')).unwrap_or(&route.path);
        Self {
            path: route.path.clone(),
            folded: fold(&route.path),
            behind: fold(behind),
            methods: route.methods.clone(),
        }
    }

    /// A route for other methods says nothing about reading.
    fn is_touched_by(&self, effect: Effect) -> bool {
        let reads =
            |method: &Method| matches!(method.as_str(), "GET" | "HEAD" | "PROPFIND" | "COPY" | "REPORT" | "SEARCH");
        self.methods.is_empty() || effect == Effect::Writes || self.methods.iter().any(reads)
    }

    /// `tree`: folded, no slash at its end. Compared as sent, and as the backend sees both.
    fn lies_below(&self, tree: &[u8], prefix: &[u8]) -> bool {
        is_under(&self.folded, tree) || tree.strip_prefix(prefix).is_some_and(|left| is_under(&self.behind, left))
    }
}

fn is_under(path: &[u8], tree: &[u8]) -> bool {
    path.strip_prefix(tree).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests;
