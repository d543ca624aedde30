//! Where `rd` may lead.
//!
//! What is not plainly a path on this host, or an `http`/`https` URL of this host or of a listed one, leads to `/`.

use url::Url;

use super::admit::Scheme;
use super::path::Readings;

/// The longest target in bytes: half of what a request's head may have by default.
pub const LONGEST: usize = 16 * 1024;

/// The target that is safe to put into `Location`: a path on this host, or a URL of this host or a listed one; else `/`.
/// `authority`: this host as the browser knows it. `portal_prefix`: `/login`, `/logout` and `/check` below it become `/`.
///
/// Another port of this host is another host. A listed host without a port means the scheme's own port; `*.example.com`
/// means one label before it, as in a route.
#[must_use]
pub fn safe(rd: &[u8], authority: &str, scheme: Scheme, redirect_hosts: &[String], portal_prefix: &str) -> String {
    std::str::from_utf8(rd)
        .ok()
        .and_then(|rd| checked(rd, authority, scheme, redirect_hosts, portal_prefix))
        .unwrap_or_else(|| String::from("/"))
}

fn checked(rd: &str, authority: &str, scheme: Scheme, hosts: &[String], portal_prefix: &str) -> Option<String> {
    let hostile = |byte: u8| byte <= b' ' || byte == 0x7f || byte == b'\\';
    if rd.is_empty() || rd.len() > LONGEST || rd.bytes().any(hostile) || rd.chars().any(char::is_control) {
        return None;
    }
    let here = Url::parse(&format!("{}://{authority}/", scheme.as_str())).ok()?;
    let target = if rd.starts_with('/') {
        if rd.starts_with("//") {
            return None;
        }
        here.join(rd).ok().filter(|target| target.origin() == here.origin())?
    } else {
        absolute(rd).filter(|target| is_same_host(target, &here) || hosts.iter().any(|host| is_listed(target, host)))?
    };
    let is_here = is_same_host(&target, &here);
    let raw_path = if rd.starts_with('/') { rd.split(['?', '#']).next()? } else { target.path() };
    if !is_calm(target.path(), is_here, portal_prefix) || !is_calm(raw_path, is_here, portal_prefix) {
        return None;
    }
    if !rd.starts_with('/') {
        return Some(String::from(target));
    }
    target.as_str().get(here.as_str().len() - 1..).filter(|path| is_one_slash(path.as_bytes())).map(str::to_owned)
}

/// A URL whose authority is written plainly: no user, no percent sign, nothing that readers disagree about.
fn absolute(rd: &str) -> Option<Url> {
    let (scheme, rest) = rd.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    if authority.is_empty() || !authority.bytes().all(plain) {
        return None;
    }
    Url::parse(rd).ok()
}

/// No reading of the path starts like another host or holds a control character, and on this host none is an endpoint that would send the person
/// round in circles.
fn is_calm(path: &str, is_here: bool, portal_prefix: &str) -> bool {
    let Some(readings) = Readings::of(path) else { return false };
    let mut calm = readings.complete();
    readings.all(&mut |reading| {
        calm &= is_one_slash(reading)
            && !reading.iter().any(u8::is_ascii_control)
            && !(is_here && is_loop(reading, portal_prefix));
        calm
    });
    calm
}

const fn is_one_slash(path: &[u8]) -> bool {
    matches!(path, [b'/'] | [b'/', ..]) && !matches!(path, [b'/', b'/' | b'\\', ..])
}

fn is_loop(path: &[u8], portal_prefix: &str) -> bool {
    let Some((prefix, rest)) = path.split_at_checked(portal_prefix.len()) else { return false };
    prefix.eq_ignore_ascii_case(portal_prefix.as_bytes())
        && ["/login", "/logout", "/check"].iter().any(|endpoint| {
            let (start, after) = rest.split_at(rest.len().min(endpoint.len()));
            start.eq_ignore_ascii_case(endpoint.as_bytes()) && matches!(after, [] | [b'/', ..])
        })
}

fn is_same_host(target: &Url, here: &Url) -> bool {
    host_of(target).is_some_and(|host| Some(host) == host_of(here)) && target.port() == here.port()
}

fn host_of(url: &Url) -> Option<&str> {
    url.host_str().map(|host| host.strip_suffix('.').unwrap_or(host))
}

fn is_listed(target: &Url, entry: &str) -> bool {
    let Some(host) = host_of(target) else { return false };
    let (pattern, host) = match entry.strip_prefix("*.") {
        Some(suffix) => match host.split_once('.') {
            Some((_, rest)) => (suffix, rest),
            None => return false,
        },
        None => (entry, host),
    };
    let Ok(listed) = Url::parse(&format!("{}://{pattern}/", target.scheme())) else { return false };
    host_of(&listed) == Some(host) && listed.port() == target.port()
}

#[cfg(test)]
mod tests;
