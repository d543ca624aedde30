//! Host, path and method to a route. The most specific wins, whatever its place in the file.
//!
//! Exact host, then wildcard, then any; exact path, then the longest prefix of whole segments; methods named before all.
//! A route whose methods don't match falls through to the next specific. Every reading of a path, as it stands and with
//! its case folded, with and without a slash behind an exact path, leads to the same route, or there is none. The cost
//! does not depend on the number of routes.

pub mod explain;
pub mod targets;

use std::collections::HashMap;

use http::Method;

use crate::config::{Access, Config, HostPattern};
use crate::message::admit::Host;
use crate::message::path::Readings;
use crate::policy::Policy;
use crate::vocabulary::{letters, method};

/// One of the portal's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `PREFIX/login`
    Login,
    /// `PREFIX/check`
    Check,
    /// `PREFIX/logout`
    Logout,
    /// `PREFIX/account`
    Account,
    /// `POST PREFIX/account/password`
    AccountPassword,
    /// `POST PREFIX/account/sessions` (end one, or all others: "sign out everywhere")
    AccountSessions,
    /// `PREFIX/.well-known/jwks.json`
    Jwks,
    /// `PREFIX/.well-known/change-password`, where password managers send a person: on to the account page.
    ChangePassword,
    /// `GET PREFIX/gateways/revocations`: the feed
    Feed,
    /// `POST PREFIX/gateways/renew`
    GatewayRenew,
    /// `POST PREFIX/gateways/logout`
    GatewayLogout,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Doorward answers itself.
    Portal(Endpoint),
    /// Index into [`Router::upstreams`]. A closed route has none.
    Upstream(Option<usize>),
}

/// One route as the gate needs it.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its place among all routes of the configuration.
    pub index: usize,
    /// For logs, metrics and `explain`.
    pub name: String,
    /// What it demands.
    pub policy: Policy,
    /// Where it leads.
    pub target: Target,
    /// Never redirect to the login page.
    pub api: bool,
    /// `""`, or what is taken off the path as it was sent: it stands there literally, see [`Router::resolve`].
    pub strip_prefix: String,
    /// Its path holds a colon, a plus sign: then one in a request's path may be just that.
    literal: (bool, bool),
    /// `None` for the portal's.
    spot: Option<targets::Spot>,
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// 404.
    NotFound,
    /// The readings of the path lead to different routes: 400.
    Ambiguous,
}

impl NoRoute {
    /// The stable reason code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotFound => "no_route",
            Self::Ambiguous => "ambiguous_path",
        }
    }
}

/// All routes of one configuration.
#[derive(Debug)]
pub struct Router {
    /// The portal's, then those of the file in its order.
    routes: Vec<Route>,
    upstreams: Vec<String>,
    portal: HashMap<Box<[u8]>, usize, Hasher>,
    exact: HashMap<Box<str>, Table, Hasher>,
    /// By what follows the first label.
    wildcard: HashMap<Box<str>, Table, Hasher>,
    any: Table,
    methods_matter: bool,
}

/// How many routes a refusal names.
const MAX_ALTERNATIVES: usize = 8;

type Hasher = foldhash::fast::RandomState;

/// What a centre answers its verify-only gateways, where it is one. The portal asks for their token itself.
const GATEWAYS: [(&str, Endpoint, Access); 3] = [
    ("/gateways/revocations", Endpoint::Feed, Access::Public),
    ("/gateways/renew", Endpoint::GatewayRenew, Access::Public),
    ("/gateways/logout", Endpoint::GatewayLogout, Access::Public),
];

/// Whether a path is one of the portal's pages under this prefix that applications are fond of, too.
#[must_use]
pub fn is_portal_page(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|page| matches!(page, "/login" | "/logout" | "/account" | "/check"))
}

/// The portal's endpoints: path under the prefix, and who may come so far. The portal itself answers who is nobody where
/// the access is optional.
const PORTAL: [(&str, Endpoint, Access); 8] = [
    ("/login", Endpoint::Login, Access::Optional),
    ("/check", Endpoint::Check, Access::Optional),
    ("/logout", Endpoint::Logout, Access::Optional),
    ("/account", Endpoint::Account, Access::Required),
    ("/account/password", Endpoint::AccountPassword, Access::Required),
    ("/account/sessions", Endpoint::AccountSessions, Access::Required),
    ("/.well-known/jwks.json", Endpoint::Jwks, Access::Public),
    ("/.well-known/change-password", Endpoint::ChangePassword, Access::Public),
];

impl Router {
    /// Every route of a checked configuration, and the portal's.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let upstreams: Vec<String> = config.upstreams.keys().cloned().collect();
        let mut router = Self {
            routes: Vec::with_capacity(PORTAL.len() + config.routes.len()),
            upstreams,
            portal: HashMap::default(),
            exact: HashMap::default(),
            wildcard: HashMap::default(),
            any: Table::default(),
            methods_matter: config.routes.iter().any(|route| !route.methods.is_empty()),
        };
        let is_centre = config.central.is_none() && config.token.gateway_secret.is_some();
        for (path, endpoint, access) in PORTAL.into_iter().chain(GATEWAYS.into_iter().filter(|_| is_centre)) {
            let path = format!("{}{path}", config.portal_prefix);
            router.portal.insert(path.as_bytes().into(), router.routes.len());
            router.routes.push(Route {
                index: router.routes.len(),
                name: format!("portal:{path}"),
                policy: Policy { access, groups: Vec::new(), users: Vec::new() },
                target: Target::Portal(endpoint),
                api: false,
                strip_prefix: String::new(),
                literal: (false, false),
                spot: None,
            });
        }
        for route in &config.routes {
            router.add(route);
        }
        router
    }

    fn add(&mut self, route: &crate::config::Route) {
        let index = self.routes.len();
        let table = match &route.host {
            HostPattern::Any => &mut self.any,
            HostPattern::Exact(host) => self.exact.entry(host.as_str().into()).or_default(),
            HostPattern::Wildcard(suffix) => self.wildcard.entry(suffix.as_str().into()).or_default(),
        };
        table.add(route, index);
        let upstream = route.upstream.as_ref().and_then(|name| self.upstreams.iter().position(|known| known == name));
        self.routes.push(Route {
            index,
            name: route.name.clone(),
            policy: Policy { access: route.access, groups: route.groups.clone(), users: route.users.clone() },
            target: Target::Upstream(upstream),
            api: route.api,
            strip_prefix: route.strip_prefix.clone(),
            literal: (route.path.contains(':'), route.path.contains('+')),
            spot: Some(targets::Spot::of(route)),
        });
    }

    /// Names of upstreams, in the order of [`Target::Upstream`].
    #[must_use]
    pub fn upstreams(&self) -> &[String] {
        &self.upstreams
    }

    /// Every route, in the order of [`Route::index`].
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Finds the route of a request.
    pub fn resolve(&self, host: &Host, readings: &Readings, method: &Method) -> Result<&Route, NoRoute> {
        let index = self.index(host, readings, method)?;
        self.routes.get(index).ok_or(NoRoute::NotFound)
    }

    /// Whether some routes name methods.
    #[must_use]
    pub fn methods_matter(&self) -> bool {
        self.methods_matter
    }

    /// The names of all routes that the readings of a path lead to, for those that were refused for it.
    #[must_use]
    pub fn alternatives(&self, host: &Host, readings: &Readings, method: &Method) -> Vec<&str> {
        let method = method::routed(method);
        let tables = self.tables(host);
        let mut found: Vec<&str> = Vec::new();
        let mut add = |one: Found| {
            let name = match one {
                Found::Route(index) => self.routes.get(index).map_or("no route", |route| &route.name),
                Found::Several => "routes that differ in letter case only",
                Found::Nothing => "no route",
            };
            if !found.contains(&name) && found.len() < MAX_ALTERNATIVES {
                found.push(name);
            }
        };
        readings.all(&mut |reading| {
            for one in [reading, without_final_slash(&tables, reading).unwrap_or(reading)] {
                add(lookup(&tables, one, &method, Case::AsSent));
                add(lookup(&tables, one, &method, Case::Folded));
            }
            true
        });
        found
    }

    fn index(&self, host: &Host, readings: &Readings, method: &Method) -> Result<usize, NoRoute> {
        if let Some(index) = self.portal.get(readings.as_sent()) {
            return Ok(*index);
        }
        let tables = self.tables(host);
        let method = method::routed(method);
        let sent = readings.as_sent();
        let first = lookup(&tables, sent, &method, Case::AsSent);
        // Where there is one reading, no case to fold and no slash to drop, `first` was all there is to ask.
        let is_all = readings.is_plain()
            && tables.iter().flatten().all(|table| table.ignores_case_of(sent))
            && without_final_slash(&tables, sent).is_none();
        let agrees = |reading: &[u8]| leads_to(&tables, reading, &method, first);
        if is_all || all_agree(&tables, readings, agrees) {
            return self.reached(first, readings, agrees);
        }
        let literal = match first {
            Found::Route(index) => self.routes.get(index).map_or((false, false), |route| route.literal),
            _ => (false, false),
        };
        let again = if literal == (false, false) { None } else { readings.with_literal(literal.0, literal.1) };
        match again {
            Some(readings) if all_agree(&tables, &readings, agrees) => self.reached(first, &readings, agrees),
            _ => Err(NoRoute::Ambiguous),
        }
    }

    fn reached(&self, first: Found, readings: &Readings, agrees: impl Fn(&[u8]) -> bool) -> Result<usize, NoRoute> {
        match first {
            Found::Nothing => Err(NoRoute::NotFound),
            Found::Several => Err(NoRoute::Ambiguous),
            Found::Route(index) => self.check_prefix(index, readings, agrees).map(|()| index),
        }
    }

    /// What is stripped stands at the start as it was sent, and what is left, read again, does not lead out.
    fn check_prefix(&self, index: usize, readings: &Readings, agrees: impl Fn(&[u8]) -> bool) -> Result<(), NoRoute> {
        let prefix = self.routes.get(index).map_or("", |route| route.strip_prefix.trim_end_matches('/'));
        if prefix.is_empty() {
            return Ok(());
        }
        let rest = readings.as_sent().strip_prefix(prefix.as_bytes()).ok_or(NoRoute::Ambiguous)?;
        if !rest.is_empty() && !rest.starts_with(b"/") {
            return Err(NoRoute::Ambiguous);
        }
        if readings.is_plain() {
            return Ok(());
        }
        let left = std::str::from_utf8(rest).ok().and_then(Readings::of).ok_or(NoRoute::Ambiguous)?;
        let mut same = left.complete();
        left.all(&mut |reading| {
            same &= agrees(&[prefix.as_bytes(), reading].concat());
            same
        });
        if same { Ok(()) } else { Err(NoRoute::Ambiguous) }
    }

    /// The tables that can hold a route for this host, the most specific first.
    fn tables(&self, host: &Host) -> [Option<&Table>; 3] {
        let host = host.as_str();
        let suffix = host.split_once('.').and_then(|(_, suffix)| self.wildcard.get(suffix));
        [self.exact.get(host), suffix, Some(&self.any)]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    AsSent,
    Folded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Route(usize),
    /// Routes that differ in case only, met with the case folded.
    Several,
}

fn lookup(tables: &[Option<&Table>; 3], path: &[u8], method: &Method, case: Case) -> Found {
    tables
        .iter()
        .flatten()
        .map(|table| table.find(path, method, case))
        .find(|found| *found != Found::Nothing)
        .unwrap_or(Found::Nothing)
}

/// Whether a reading leads to what was found first, whatever the letter case, and with or without a slash at its end.
fn leads_to(tables: &[Option<&Table>; 3], reading: &[u8], method: &Method, first: Found) -> bool {
    let same = |reading: &[u8]| {
        lookup(tables, reading, method, Case::AsSent) == first && lookup(tables, reading, method, Case::Folded) == first
    };
    same(reading) && without_final_slash(tables, reading).is_none_or(same)
}

/// Whether every reading agrees. Where there are more than were looked at, only a single route is beyond doubt.
fn all_agree(tables: &[Option<&Table>; 3], readings: &Readings, agrees: impl Fn(&[u8]) -> bool) -> bool {
    let mut same = true;
    readings.all(&mut |reading| {
        same = agrees(reading);
        same
    });
    same && (readings.complete() || has_one_outcome(tables))
}

/// A single route for everything on this host: no reading can lead anywhere else.
fn has_one_outcome(tables: &[Option<&Table>; 3]) -> bool {
    let mut own = tables.iter().flatten().filter(|table| table.routes > 0);
    matches!((own.next(), own.next()), (Some(table), None) if table.routes == 1 && table.prefix.contains_key(&b"/"[..]))
}

/// What programs that pass over a slash at the end (Express, unless it is strict) compare with an exact path. `None`:
/// there is none to drop, or no exact path.
fn without_final_slash<'a>(tables: &[Option<&Table>; 3], reading: &'a [u8]) -> Option<&'a [u8]> {
    let (_, before) = reading.split_last().filter(|(last, before)| **last == b'/' && !before.is_empty())?;
    tables.iter().flatten().any(|table| !table.exact.is_empty()).then_some(before)
}

type Paths = HashMap<Box<[u8]>, Entry, Hasher>;

/// The routes of one host pattern.
#[derive(Debug, Default)]
struct Table {
    exact: Paths,
    prefix: Paths,
    folded_exact: Paths,
    folded_prefix: Paths,
    /// Length of the longest path, in bytes.
    longest: usize,
    /// Some path has letters that folding changes.
    has_case: bool,
    routes: usize,
}

impl Table {
    fn add(&mut self, route: &crate::config::Route, index: usize) {
        self.routes += 1;
        let (plain, folded) = if route.exact {
            (&mut self.exact, &mut self.folded_exact)
        } else {
            (&mut self.prefix, &mut self.folded_prefix)
        };
        for path in letters::spellings(&route.path) {
            let small = letters::fold(path.as_bytes(), usize::MAX);
            self.longest = self.longest.max(path.len()).max(small.len());
            self.has_case |= *small != *path.as_bytes();
            folded.entry((*small).into()).or_default().add(&route.methods, index);
            plain.entry(path.into_bytes().into()).or_default().add(&route.methods, index);
        }
    }

    /// Whether folding the case changes nothing, neither here nor there.
    fn ignores_case_of(&self, path: &[u8]) -> bool {
        !self.has_case && !path.iter().any(|byte| byte.is_ascii_uppercase() || !byte.is_ascii())
    }

    fn find(&self, path: &[u8], method: &Method, case: Case) -> Found {
        match case {
            Case::AsSent => self.find_in(&self.exact, &self.prefix, path, method),
            Case::Folded if self.ignores_case_of(path) => self.find_in(&self.exact, &self.prefix, path, method),
            Case::Folded if path.is_ascii() => {
                // One byte more than the longest route path: enough to see where its last segment ends.
                let wanted = path.get(..=self.longest).unwrap_or(path);
                let mut buffer = [0_u8; 256];
                if let Some(folded) = buffer.get_mut(..wanted.len()) {
                    folded.copy_from_slice(wanted);
                    folded.make_ascii_lowercase();
                    self.find_in(&self.folded_exact, &self.folded_prefix, folded, method)
                } else {
                    let folded = wanted.to_ascii_lowercase();
                    self.find_in(&self.folded_exact, &self.folded_prefix, &folded, method)
                }
            }
            Case::Folded => {
                let folded = letters::fold(path, self.longest);
                self.find_in(&self.folded_exact, &self.folded_prefix, &folded, method)
            }
        }
    }

    fn find_in(&self, exact: &Paths, prefix: &Paths, path: &[u8], method: &Method) -> Found {
        if path.len() <= self.longest
            && let Some(found) = exact.get(path).and_then(|entry| entry.find(method))
        {
            return found;
        }
        let mut end = path.len().min(self.longest);
        loop {
            let whole = path.get(end).is_none_or(|next| *next == b'/');
            if whole
                && let Some(found) =
                    path.get(..end).and_then(|start| prefix.get(start)).and_then(|entry| entry.find(method))
            {
                return found;
            }
            if end <= 1 {
                break;
            }
            end -= 1;
        }
        let root = path.first() == Some(&b'/');
        root.then(|| prefix.get(&b"/"[..])).flatten().and_then(|entry| entry.find(method)).unwrap_or(Found::Nothing)
    }
}

/// The routes of one path.
#[derive(Debug, Default)]
struct Entry {
    named: Vec<(Method, usize)>,
    all: Vec<usize>,
}

impl Entry {
    fn add(&mut self, methods: &[Method], index: usize) {
        if methods.is_empty() {
            self.all.push(index);
        }
        self.named.extend(methods.iter().map(|method| (method.clone(), index)));
    }

    fn find(&self, method: &Method) -> Option<Found> {
        let named =
            |wanted: &Method| one(self.named.iter().filter(|(method, _)| method == wanted).map(|(_, index)| *index));
        named(method)
            .or_else(|| if *method == Method::HEAD { named(&Method::GET) } else { None })
            .or_else(|| one(self.all.iter().copied()))
    }
}

fn one(mut indexes: impl Iterator<Item = usize>) -> Option<Found> {
    let first = indexes.next()?;
    Some(if indexes.any(|other| other != first) { Found::Several } else { Found::Route(first) })
}

#[cfg(test)]
pub(crate) mod tests;
