//! Host, path and method to a route. The most specific wins, whatever its place in the file.
//!
//! Every reading of the path (see `message::path`), with its letters as they are and folded, has to lead to the same
//! route. Looking one reading up costs a few hash look-ups, however many routes there are.

pub mod explain;

use std::collections::HashMap;

use http::Method;

use crate::config::{self, Config, HostPattern};
use crate::message::admit::Host;
use crate::message::path::Readings;
use crate::policy::Policy;

/// One of the portal's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Login,
    Check,
    Logout,
    Account,
    /// `POST PREFIX/account/password`
    AccountPassword,
    /// `POST PREFIX/account/sessions` (end one, or all: "sign out everywhere")
    AccountSessions,
    Jwks,
}

/// The portal's paths below its prefix.
const ENDPOINTS: [(&str, Endpoint); 7] = [
    ("/login", Endpoint::Login),
    ("/check", Endpoint::Check),
    ("/logout", Endpoint::Logout),
    ("/account", Endpoint::Account),
    ("/account/password", Endpoint::AccountPassword),
    ("/account/sessions", Endpoint::AccountSessions),
    ("/.well-known/jwks.json", Endpoint::Jwks),
];

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Portal(Endpoint),
    /// Index into [`Router::upstreams`]. A closed route has none.
    Upstream(Option<usize>),
}

/// One route as the gate needs it.
#[derive(Clone, Debug)]
pub struct Route {
    /// For logs, metrics and `explain`.
    pub name: String,
    pub policy: Policy,
    pub target: Target,
    /// Never redirect to the login page.
    pub api: bool,
    pub strip_prefix: String,
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No route matches.
    NotFound,
    /// The readings of the path lead to different routes.
    Ambiguous,
}

/// All routes of one configuration.
#[derive(Debug)]
pub struct Router {
    portal: HashMap<Vec<u8>, Route, foldhash::fast::RandomState>,
    /// In the order of the configuration.
    routes: Vec<Route>,
    exact_hosts: HashMap<String, Table, foldhash::fast::RandomState>,
    /// By what follows the one label.
    wildcard_hosts: HashMap<String, Table, foldhash::fast::RandomState>,
    any_host: Table,
    upstreams: Vec<String>,
    methods_matter: bool,
    /// One route for every host, path and method: no reading can lead elsewhere.
    catches_all: bool,
}

/// The routes of one host, by path.
#[derive(Debug, Default)]
struct Table {
    as_written: Paths,
    /// The same in lower case, for backends that don't tell case apart.
    folded: Paths,
}

#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Vec<u8>, Vec<Candidate>, foldhash::fast::RandomState>,
    /// Without a trailing slash; `/` is the empty key.
    prefixes: HashMap<Vec<u8>, Vec<Candidate>, foldhash::fast::RandomState>,
    longest: usize,
}

#[derive(Clone, Debug)]
struct Candidate {
    route: usize,
    /// Empty: all.
    methods: Vec<Method>,
}

impl Router {
    /// Builds the tables.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let upstreams: Vec<String> = config.upstreams.keys().cloned().collect();
        let mut router = Self {
            portal: portal_routes(&config.portal_prefix),
            routes: Vec::with_capacity(config.routes.len()),
            exact_hosts: HashMap::default(),
            wildcard_hosts: HashMap::default(),
            any_host: Table::default(),
            methods_matter: config.routes.iter().any(|route| !route.methods.is_empty()),
            catches_all: matches!(&*config.routes, [only] if only.host == HostPattern::Any
                && only.path == "/" && !only.exact && only.methods.is_empty() && only.strip_prefix.is_empty()),
            upstreams,
        };
        for route in &config.routes {
            router.add(route);
        }
        router
    }

    fn add(&mut self, route: &config::Route) {
        let candidate = Candidate { route: self.routes.len(), methods: route.methods.clone() };
        let table = match &route.host {
            HostPattern::Any => &mut self.any_host,
            HostPattern::Exact(host) => self.exact_hosts.entry(host.clone()).or_default(),
            HostPattern::Wildcard(parent) => self.wildcard_hosts.entry(parent.clone()).or_default(),
        };
        table.as_written.add(route.path.as_bytes(), route.exact, candidate.clone());
        table.folded.add(&fold(route.path.as_bytes()), route.exact, candidate);
        let upstream = route.upstream.as_ref().and_then(|name| self.upstreams.iter().position(|own| own == name));
        self.routes.push(Route {
            name: route.name.clone(),
            policy: Policy { access: route.access, groups: route.groups.clone(), users: route.users.clone() },
            target: Target::Upstream(upstream),
            api: route.api,
            strip_prefix: route.strip_prefix.clone(),
        });
    }

    /// Names of upstreams, in the order of [`Target::Upstream`].
    #[must_use]
    pub fn upstreams(&self) -> &[String] {
        &self.upstreams
    }

    /// Finds the route of a request.
    pub fn resolve(&self, host: &Host, readings: &Readings, method: &Method) -> Result<&Route, NoRoute> {
        if let Some(route) = self.portal.get(readings.as_sent()) {
            return Ok(route);
        }
        let found = if self.catches_all { Some(0) } else { self.agreed(host, readings, method)? };
        let route = found.and_then(|index| self.routes.get(index)).ok_or(NoRoute::NotFound)?;
        // The prefix is cut from the path as it was sent: where it is spelled otherwise there, cutting would guess.
        if starts_with_segments(readings.as_sent(), route.strip_prefix.as_bytes()) {
            Ok(route)
        } else {
            Err(NoRoute::Ambiguous)
        }
    }

    /// Whether some routes name methods.
    #[must_use]
    pub const fn methods_matter(&self) -> bool {
        self.methods_matter
    }

    /// The route that every reading leads to.
    fn agreed(&self, host: &Host, readings: &Readings, method: &Method) -> Result<Option<usize>, NoRoute> {
        let tables = self.tables(host);
        let find = |path: &[u8], folded: bool| {
            tables.iter().flatten().find_map(|table| {
                let paths = if folded { &table.folded } else { &table.as_written };
                paths.find(path, method)
            })
        };
        let first = find(readings.as_sent(), false);
        let mut buffer = Vec::new();
        let agree = readings.all(|reading| {
            if find(reading, false) != first {
                return false;
            }
            if reading.iter().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
                return find(reading, true) == first;
            }
            buffer.clear();
            buffer.extend_from_slice(reading);
            find(&fold(&buffer), true) == first
        });
        if agree { Ok(first) } else { Err(NoRoute::Ambiguous) }
    }

    /// The tables of a host, the most specific first.
    fn tables(&self, host: &Host) -> [Option<&Table>; 3] {
        let name = host.as_str();
        let parent = name.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent);
        [
            self.exact_hosts.get(name),
            parent.and_then(|parent| self.wildcard_hosts.get(parent)),
            Some(&self.any_host),
        ]
    }
}

impl Paths {
    fn add(&mut self, path: &[u8], exact: bool, candidate: Candidate) {
        let candidates = if exact {
            self.exact.entry(path.to_vec()).or_default()
        } else {
            let key = if path == b"/" { b"" } else { path };
            self.longest = self.longest.max(key.len());
            self.prefixes.entry(key.to_vec()).or_default()
        };
        candidates.push(candidate);
        // Those that name methods come first.
        candidates.sort_by_key(|candidate| candidate.methods.is_empty());
    }

    fn find(&self, path: &[u8], method: &Method) -> Option<usize> {
        if let Some(route) = self.exact.get(path).and_then(|candidates| choose(candidates, method)) {
            return Some(route);
        }
        let mut end = path.len();
        loop {
            let prefix = path.get(..end)?;
            if end <= self.longest
                && let Some(route) = self.prefixes.get(prefix).and_then(|candidates| choose(candidates, method))
            {
                return Some(route);
            }
            end = memchr::memrchr(b'/', prefix)?;
        }
    }
}

fn choose(candidates: &[Candidate], method: &Method) -> Option<usize> {
    candidates.iter().find(|candidate| covers(&candidate.methods, method)).map(|candidate| candidate.route)
}

/// Whether a route's list of methods covers one. GET covers HEAD.
fn covers(methods: &[Method], method: &Method) -> bool {
    methods.is_empty() || methods.contains(method) || (method == Method::HEAD && methods.contains(&Method::GET))
}

/// Whether a path begins with a prefix of whole segments.
fn starts_with_segments(path: &[u8], prefix: &[u8]) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with(b"/"))
}

/// Lower case as a backend that does not tell case apart sees it, also beyond ASCII.
fn fold(path: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(path) {
        Ok(text) => text.to_lowercase().into_bytes(),
        Err(_) => path.to_ascii_lowercase(),
    }
}

fn portal_routes(prefix: &str) -> HashMap<Vec<u8>, Route, foldhash::fast::RandomState> {
    ENDPOINTS
        .iter()
        .map(|(path, endpoint)| {
            let path = format!("{prefix}{path}");
            let route = Route {
                name: format!("portal{path}"),
                policy: Policy { access: config::Access::Optional, groups: Vec::new(), users: Vec::new() },
                target: Target::Portal(*endpoint),
                api: false,
                strip_prefix: String::new(),
            };
            (path.into_bytes(), route)
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Access;

    /// `(host, path, exact, methods, strip_prefix)`; the route is named by its place.
    type Row<'a> = (&'a str, &'a str, bool, &'a [Method], &'a str);

    pub(crate) fn routes(rows: &[Row<'_>]) -> Vec<config::Route> {
        rows.iter()
            .enumerate()
            .map(|(index, (host, path, exact, methods, strip_prefix))| config::Route {
                name: index.to_string(),
                host: match (*host, host.strip_prefix("*.")) {
                    ("", _) => HostPattern::Any,
                    (_, Some(parent)) => HostPattern::Wildcard(parent.to_owned()),
                    (host, None) => HostPattern::Exact(host.to_owned()),
                },
                path: (*path).to_owned(),
                exact: *exact,
                methods: methods.to_vec(),
                access: Access::Required,
                groups: Vec::new(),
                users: Vec::new(),
                api: false,
                strip_prefix: (*strip_prefix).to_owned(),
                upstream: None,
            })
            .collect()
    }

    fn router(rows: &[Row<'_>]) -> Router {
        let routes = routes(rows);
        let mut router = Router {
            portal: portal_routes(""),
            routes: Vec::new(),
            exact_hosts: HashMap::default(),
            wildcard_hosts: HashMap::default(),
            any_host: Table::default(),
            upstreams: Vec::new(),
            methods_matter: false,
            catches_all: false,
        };
        for route in &routes {
            router.add(route);
        }
        router
    }

    fn resolve(router: &Router, host: &str, path: &str, method: Method) -> Result<String, NoRoute> {
        let host = Host::parse(host).unwrap();
        router.resolve(&host, &Readings::of(path).unwrap(), &method).map(|route| route.name.clone())
    }

    #[test]
    fn the_most_specific_route_wins_whatever_its_place() {
        let router = router(&[
            ("", "/", false, &[], ""),
            ("app.test", "/", false, &[], ""),
            ("*.test", "/", false, &[], ""),
            ("app.test", "/a", false, &[], ""),
            ("app.test", "/a/b", false, &[], ""),
            ("app.test", "/a/b", true, &[], ""),
            ("app.test", "/a", false, &[Method::POST], ""),
            ("app.test", "/a/g", false, &[Method::GET], ""),
        ]);
        for (host, path, method, expected) in [
            ("other", "/x", Method::GET, "0"),
            ("app.test", "/x", Method::GET, "1"),
            ("b.test", "/x", Method::GET, "2"),
            ("b.c.test", "/x", Method::GET, "0"),
            ("test", "/x", Method::GET, "0"),
            ("app.test", "/a", Method::GET, "3"),
            ("app.test", "/a/", Method::GET, "3"),
            ("app.test", "/ab", Method::GET, "1"),
            ("app.test", "/a/b/c", Method::GET, "4"),
            ("app.test", "/a/b", Method::GET, "5"),
            ("app.test", "/a/x", Method::POST, "6"),
            ("app.test", "/a/g", Method::HEAD, "7"),
            ("app.test", "/a/g", Method::PUT, "3"),
            ("app.test", "/login", Method::GET, "portal/login"),
            ("app.test", "/account/password", Method::POST, "portal/account/password"),
        ] {
            assert_eq!(resolve(&router, host, path, method.clone()).as_deref(), Ok(expected), "{method} {host} {path}");
        }
    }

    #[test]
    fn readings_that_disagree_are_refused_and_those_that_agree_are_not() {
        let router = router(&[("", "/", false, &[], ""), ("", "/admin", false, &[], ""), ("", "/public", false, &[], "")]);
        for path in [
            "/public/../admin", "/public/%2e%2e/admin", "/public/%252e%252e/admin", "/public/..%2fadmin",
            "/public/..;/admin", "/public\\..\\admin", "//admin", "/ADMIN", "/Admin/x", "/%61dmin", "/admin;x=1/y",
            "/admin%3f", "/x/..%5cadmin", "/admin%20", "/public%2fx", "/pub/..;x/admin", "/\u{212a}/../admin",
        ] {
            assert_ne!(resolve(&router, "h", path, Method::GET).as_deref(), Ok("0"), "{path}");
            assert_ne!(resolve(&router, "h", path, Method::GET).as_deref(), Ok("2"), "{path}");
        }
        for (path, expected) in [
            ("/admin/a%20b", "1"), ("/admin/.", "1"), ("/admin/a//b", "1"), ("/administrator", "0"), ("/public/x%2fy", "2"),
            ("/a%2fb/%ED%95%9C", "0"), ("/LOGIN", "0"), ("/admin/%C3%84;v=1", "1"), ("/admin/x/../y", "1"),
        ] {
            assert_eq!(resolve(&router, "h", path, Method::GET).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn a_prefix_is_cut_only_where_it_is_spelled_so() {
        let router = router(&[("", "/api", false, &[], "/api")]);
        assert_eq!(resolve(&router, "h", "/api/x", Method::GET).as_deref(), Ok("0"));
        assert_eq!(resolve(&router, "h", "/api", Method::GET).as_deref(), Ok("0"));
        assert_eq!(resolve(&router, "h", "/%61pi/x", Method::GET), Err(NoRoute::Ambiguous));
        assert_eq!(resolve(&router, "h", "/api../x", Method::GET), Err(NoRoute::Ambiguous));
        assert_eq!(resolve(&router, "h", "/apis", Method::GET), Err(NoRoute::NotFound));
    }

    proptest! {
        #[test]
        fn what_a_careful_backend_serves_below_admin_never_takes_another_route(
            parts in prop::collection::vec(prop_oneof![
                Just("/"), Just("admin"), Just("public"), Just(".."), Just("."), Just("%2e"), Just("%2f"), Just("%5c"),
                Just(";x"), Just("%252e"), Just("\\"), Just("A"), Just("%3f"), Just("%20"), Just("ADMIN"), Just("%61dmin"),
            ], 0..12)
        ) {
            let router = router(&[("", "/", false, &[], ""), ("", "/admin", false, &[], ""), ("", "/public", false, &[], "")]);
            let path = format!("/{}", parts.concat());
            let readings = Readings::of(&path).unwrap();
            let canonical = readings.canonical();
            if canonical == "/admin" || canonical.starts_with("/admin/") {
                let found = resolve(&router, "h", &path, Method::GET);
                prop_assert!(matches!(found.as_deref(), Ok("1") | Err(NoRoute::Ambiguous)), "{path}: {found:?}");
            }
        }
    }
}
