//! Guarded routes that lie inside laxer ones of the same backend.
//!
//! Which file or handler a path means is the backend's to say: `/index.php/admin`, `/admin.json` or `/ADMIN~1` may be
//! `/admin` to it, and no list of readings can know. Where what lies around is open to more people, that is a way in, so
//! the operator is told.

use std::collections::BTreeMap;

use super::{Access, HostPattern, Route, Upstream};

/// A warning for each route inside a laxer one: the route's index, and the words. `routes`: each with its line.
pub(super) fn warnings(routes: &[(Route, usize)], upstreams: &BTreeMap<String, Upstream>) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, (inner, _)) in routes.iter().enumerate() {
        let outer = routes.iter().filter(|(outer, _)| {
            lets_in_more(outer, inner)
                && same_backend(outer, inner, upstreams)
                && hosts_meet(&outer.host, &inner.host)
                && is_inside(inner, outer)
        });
        // One is enough to know: the most open, the nearest.
        let Some((outer, line)) = outer.max_by_key(|(outer, _)| (openness(outer), outer.path.len())) else { continue };
        found.push((index, words(inner, outer, *line)));
    }
    found
}

fn words(inner: &Route, outer: &Route, line: usize) -> String {
    let whom = match outer.access {
        Access::Public | Access::Optional => "everybody",
        Access::Required | Access::Deny => "more people",
    };
    let (at_backend, around) = (behind(inner), behind(outer));
    // The outer route reaches it by its plain name.
    if inner.strip_prefix != outer.strip_prefix && !is_under(&inner.path, &outer.path) {
        let by = join(&outer.path, at_backend.strip_prefix(around).unwrap_or_default());
        return format!(
            "{} is guarded, but the route of line {line} ({}) is open to {whom} and leads to the same place of the same \
             backend as {by}; give that route a guard too, or take it away",
            inner.name, outer.name
        );
    }
    format!(
        "{} is guarded inside the route of line {line} ({}), which is open to {whom} and leads to the same backend: if the \
         backend knows other names for it (index.php{at_backend}, {at_backend}.json, short names), they are open; guard the \
         route around it and open single paths instead",
        inner.name, outer.name
    )
}

fn join(prefix: &str, rest: &str) -> String {
    format!("{}/{}", prefix.trim_end_matches('/'), rest.trim_start_matches('/'))
}

/// Whether somebody passes `outer` whom `inner` refuses. A closed route without an upstream counts as the strictest.
fn lets_in_more(outer: &Route, inner: &Route) -> bool {
    match (outer.access, inner.access) {
        (Access::Deny, _) | (_, Access::Public | Access::Optional) => false,
        (Access::Public | Access::Optional, Access::Required | Access::Deny) | (Access::Required, Access::Deny) => true,
        (Access::Required, Access::Required) => {
            let anybody = |route: &Route| route.groups.is_empty() && route.users.is_empty();
            !anybody(inner)
                && (anybody(outer)
                    || outer.groups.iter().any(|group| !inner.groups.contains(group))
                    || outer.users.iter().any(|user| !inner.users.contains(user)))
        }
    }
}

fn openness(route: &Route) -> u8 {
    u8::from(matches!(route.access, Access::Public | Access::Optional))
}

/// The same name, or a URL that both have. A closed route names no backend: it is closed on that of the route around it.
fn same_backend(outer: &Route, inner: &Route, upstreams: &BTreeMap<String, Upstream>) -> bool {
    let (Some(one), Some(other)) = (&outer.upstream, &inner.upstream) else { return inner.upstream.is_none() };
    let urls = |name: &String| upstreams.get(name).map_or(&[][..], |upstream| upstream.urls.as_slice());
    one == other || urls(one).iter().any(|url| urls(other).contains(url))
}

/// Whether one host can match both.
fn hosts_meet(one: &HostPattern, other: &HostPattern) -> bool {
    let within = |parent: &str, host: &str| host.split_once('.').is_some_and(|(_, rest)| rest == parent);
    match (one, other) {
        (HostPattern::Any, _) | (_, HostPattern::Any) => true,
        (HostPattern::Wildcard(parent), HostPattern::Exact(host))
        | (HostPattern::Exact(host), HostPattern::Wildcard(parent)) => within(parent, host),
        (one, other) => one == other,
    }
}

/// The path as the backend sees it.
fn behind(route: &Route) -> &str {
    let left = route.path.strip_prefix(&route.strip_prefix).unwrap_or(&route.path);
    if left.is_empty() { "/" } else { left }
}

/// At the backend `inner` lies under `outer`, or is the same place. An exact route has nothing inside; the same route by
/// other methods is no other name for it.
fn is_inside(inner: &Route, outer: &Route) -> bool {
    let is_same = inner.path == outer.path && inner.host == outer.host && inner.exact == outer.exact;
    !outer.exact && !is_same && is_under(behind(inner), behind(outer))
}

fn is_under(path: &str, prefix: &str) -> bool {
    prefix == "/" || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
