//! Routing: the decision on a host, path and method, against every route looked at one by one.

use std::cell::OnceCell;
use std::path::Path;

use http::Method;

use super::path::{Reference, reference};
use crate::config::{Config, HostPattern, parse};
use crate::message::admit::Host;
use crate::message::path::Readings;
use crate::router::{NoRoute, Router, Target};

/// Tables of routes of every kind. The first digit of the input chooses one.
const TABLES: [&str; 6] = [
    // One route: nothing is refused.
    "[[route]]\nupstream = 'app'\naccess = 'public'",
    // One closed path within an open site.
    "[[route]]\npath = '/admin'\ngroups = ['staff']\nupstream = 'app'\n[[route]]\nupstream = 'app'\naccess = 'public'",
    // Nested, exact, by method.
    "[[route]]\npath = '/a'\nupstream = 'app'\n[[route]]\npath = '/a/b'\nexact = true\nupstream = 'app'\n\
     [[route]]\npath = '/a/b'\nmethods = ['POST', 'GET']\nupstream = 'app'\n\
     [[route]]\npath = '/a/b/c'\naccess = 'deny'\n[[route]]\npath = '/a/b/c'\nmethods = ['HEAD']\nupstream = 'app'",
    // By host.
    "[[route]]\nhost = 'app.example.com'\npath = '/a'\nupstream = 'app'\n\
     [[route]]\nhost = '*.example.com'\npath = '/a/b'\nupstream = 'app'\n\
     [[route]]\npath = '/a/b/c'\nupstream = 'app'\n[[route]]\nhost = '*.example.com'\nupstream = 'app'",
    // Capital letters, and a place of its own for the portal.
    "[portal]\nprefix = '/_auth'\n[[route]]\npath = '/Admin'\nupstream = 'app'\n\
     [[route]]\npath = '/Admin/x'\nupstream = 'app'\n[[route]]\npath = '/public'\naccess = 'public'\nupstream = 'app'",
    // Prefixes that are taken off.
    "[[route]]\npath = '/api'\nstrip_prefix = '/api'\nupstream = 'app'\n\
     [[route]]\npath = '/api/admin'\nstrip_prefix = '/api'\ngroups = ['staff']\nupstream = 'app'\n\
     [[route]]\nupstream = 'app'\naccess = 'public'",
];

thread_local! {
    static ROUTERS: OnceCell<Vec<(Config, Router)>> = const { OnceCell::new() };
}

/// `TABLE METHOD HOST PATH`, parted by single spaces: the router finds the route that the specification names.
pub fn route(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else { return };
    let mut words = line.splitn(4, ' ');
    let (Some(number), Some(method), Some(host), Some(path)) = (words.next(), words.next(), words.next(), words.next())
    else {
        return;
    };
    let (Ok(number), Ok(method), Some(host)) = (number.parse::<usize>(), method.parse::<Method>(), Host::parse(host))
    else {
        return;
    };
    if !path.starts_with('/') || path.len() > 512 {
        return;
    }
    let Some(readings) = Readings::of(path) else { return };
    ROUTERS.with(|routers| {
        let all = routers.get_or_init(|| TABLES.iter().map(|table| built(table)).collect());
        let (config, router) = &all[number % TABLES.len()];
        let found = router.resolve(&host, &readings, &method);
        if let Ok(route) = found
            && let Target::Portal(_) = route.target
        {
            let own = ["/login", "/check", "/logout", "/account", "/account/password", "/account/sessions"];
            let rest = path.strip_prefix(&*config.portal_prefix);
            assert!(rest.is_some_and(|rest| own.contains(&rest) || rest == "/.well-known/jwks.json"), "{line:?}");
            return;
        }
        let name_of = |index: usize| config.routes[index].name.clone();
        let found = found.map(|route| route.name.clone());
        match expected(config, host.as_str(), &method, path, &readings) {
            Expected::Route(index) => assert_eq!(found, Ok(name_of(index)), "{line:?}"),
            Expected::Nothing => assert_eq!(found, Err(NoRoute::NotFound), "{line:?}"),
            Expected::Ambiguous => assert_eq!(found, Err(NoRoute::Ambiguous), "{line:?}"),
            Expected::Unknown => {}
        }
    });
}

fn built(table: &str) -> (Config, Router) {
    let text = format!("{table}\n[upstream.app]\nurls = ['http://127.0.0.1:9000']\n");
    let config = parse(&text, Path::new("config.toml"), &|_| None).unwrap_or_else(|problems| panic!("{problems:?}"));
    let router = Router::new(&config);
    (config, router)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Route(usize),
    Nothing,
    Ambiguous,
    /// The path has too many readings for the reference.
    Unknown,
}

fn expected(config: &Config, host: &str, method: &Method, path: &str, readings: &Readings) -> Expected {
    let first = of_reading(config, host, method, path.as_bytes(), false);
    let agree = |prefix: &[u8], all: &[Vec<u8>]| {
        all.iter().all(|reading| {
            let reading = [prefix, reading].concat();
            both_ways(&reading).all(|reading| {
                [false, true].iter().all(|folded| of_reading(config, host, method, reading, *folded) == first)
            })
        })
    };
    match reference(path.as_bytes()) {
        // The product gave up as well, or it would have said so: see the target for paths.
        Reference::Control => return Expected::Unknown,
        Reference::TooMany if config.routes.len() == 1 => {}
        Reference::TooMany => return Expected::Ambiguous,
        Reference::Whole(_) if !readings.complete() && config.routes.len() > 1 => return Expected::Ambiguous,
        Reference::Whole(all) if !agree(b"", &all) => return Expected::Ambiguous,
        Reference::Whole(_) => {}
    }
    let Expected::Route(index) = first else { return first };
    let prefix = config.routes[index].strip_prefix.as_str();
    if prefix.is_empty() || readings.is_plain() {
        return first;
    }
    let Some(rest) = path.strip_prefix(prefix).filter(|rest| rest.starts_with('/')) else { return Expected::Ambiguous };
    match reference(rest.as_bytes()) {
        Reference::Whole(all) if Readings::of(rest).is_some_and(|left| left.complete()) => {
            if agree(prefix.as_bytes(), &all) { first } else { Expected::Ambiguous }
        }
        _ => Expected::Ambiguous,
    }
}

/// A reading as it is, and without a slash at its end.
pub(super) fn both_ways(reading: &[u8]) -> impl Iterator<Item = &[u8]> {
    let without = reading.strip_suffix(b"/").filter(|before| !before.is_empty());
    std::iter::once(reading).chain(without)
}

/// Letters without their case, apart from the product: by the large ones.
fn small(text: &[u8]) -> Vec<u8> {
    use unicode_normalization::UnicodeNormalization as _;
    let Ok(text) = std::str::from_utf8(text) else { return text.to_ascii_lowercase() };
    let large: String = text.nfd().collect::<String>().to_uppercase().nfd().collect();
    large.replace("I\u{307}", "I").to_lowercase().into_bytes()
}

/// The route of one reading: of all that match, the most specific.
pub(super) fn of_reading(config: &Config, host: &str, method: &Method, path: &[u8], folded: bool) -> Expected {
    let case = |text: &[u8]| if folded { small(text) } else { text.to_vec() };
    let method = &method.as_str().to_ascii_uppercase().parse::<Method>().unwrap();
    let path = case(path);
    let mut best: Vec<(usize, [usize; 4])> = Vec::new();
    for (index, route) in config.routes.iter().enumerate() {
        let host_rank = match &route.host {
            HostPattern::Any => 0,
            HostPattern::Wildcard(parent) if host.split_once('.').is_some_and(|(_, rest)| rest == parent) => 1,
            HostPattern::Exact(name) if host == name => 2,
            _ => continue,
        };
        let own = case(route.path.as_bytes());
        let below = [own.as_slice(), if own.ends_with(b"/") { b"" } else { b"/" }].concat();
        if path != own && (route.exact || !path.starts_with(&below)) {
            continue;
        }
        let method_rank = match route.methods.as_slice() {
            [] => 0,
            named if named.contains(method) => 2,
            named if method == Method::HEAD && named.contains(&Method::GET) => 1,
            _ => continue,
        };
        best.push((index, [host_rank, usize::from(route.exact), own.len(), method_rank]));
    }
    let Some(rank) = best.iter().map(|(_, rank)| *rank).max() else { return Expected::Nothing };
    match best.iter().filter(|(_, other)| *other == rank).collect::<Vec<_>>().as_slice() {
        [(only, _)] => Expected::Route(*only),
        _ => Expected::Ambiguous,
    }
}
