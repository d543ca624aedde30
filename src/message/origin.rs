//! Whether a request was sent by our own pages, by the evidence that browsers give: one judgement for the login, every
//! form of ours and WebSockets.
//!
//! A page can neither leave out nor forge `Sec-Fetch-Site` (W3C Fetch Metadata) and `Origin` (RFC 6454), so they need no
//! token in the form. `Sec-Fetch-Site` is the stronger one: the browser itself compares, with the address that it has
//! really opened. `Origin` has to be compared here, with what proxies have left of that address.

use http::header::{AUTHORIZATION, COOKIE, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::admit::{Admitted, Host, Scheme, authority_port};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// One of our own pages, a listed host's, or the person without any page.
    ThisSite,
    /// Nothing is told: not a browser, or a very old one.
    Unknown,
    /// Another site, a sibling host, a sandboxed frame, or nonsense.
    AnotherSite,
}

/// Weighs the evidence. `redirect_hosts`: hosts other than this one whose pages may send here.
///
/// `Sec-Fetch-Site` decides where it came: `same-origin` and `none` are this site, whatever `Origin` and `Host` became on
/// the way. Without it `Origin` must be this host or a listed one.
#[must_use]
pub fn sender(headers: &HeaderMap, admitted: &Admitted, redirect_hosts: &[String]) -> Sender {
    let (Ok(site), Ok(origin)) = (only(headers, &SEC_FETCH_SITE), only(headers, &ORIGIN)) else {
        return Sender::AnotherSite;
    };
    let origin = match origin.map(HeaderValue::to_str) {
        None => None,
        Some(Ok(origin)) => Some(origin),
        Some(Err(_)) if site.is_none() => return Sender::AnotherSite,
        Some(Err(_)) => Some("null"),
    };
    let is_listed = || origin.is_some_and(|origin| is_listed(origin, redirect_hosts));
    let is_ours = match site.map(HeaderValue::as_bytes) {
        // `none`: the person typed the address or reloaded; no page had a part in it.
        Some(b"same-origin" | b"none") => true,
        Some(b"same-site") => is_listed(),
        Some(_) => false,
        None => match origin {
            None => return Sender::Unknown,
            Some(origin) => is_this_host(origin, admitted) || is_listed(),
        },
    };
    if is_ours { Sender::ThisSite } else { Sender::AnotherSite }
}

/// Whether the sender of a WebSocket handshake may open it. Another site's page may not where the handshake carries the
/// cookie `name`, which the browser sends by itself; where it does not, or where a credential came that no browser sends
/// by itself, there is nothing to ride on.
#[must_use]
pub fn may_connect(headers: &HeaderMap, admitted: &Admitted, redirect_hosts: &[String], name: &str) -> bool {
    !rides_on_cookie(headers, name) || sender(headers, admitted, redirect_hosts) != Sender::AnotherSite
}

fn rides_on_cookie(headers: &HeaderMap, name: &str) -> bool {
    // Browsers send what they remember of these schemes to whichever page's socket.
    const SENT_BY_ITSELF: [&[u8]; 4] = [b"basic", b"digest", b"negotiate", b"ntlm"];
    let mut credentials = headers.get_all(AUTHORIZATION).iter().map(|line| {
        let scheme = line.as_bytes().trim_ascii_start().split(u8::is_ascii_whitespace).next().unwrap_or_default();
        !scheme.is_empty() && !SENT_BY_ITSELF.iter().any(|known| scheme.eq_ignore_ascii_case(known))
    });
    if credentials.any(|deliberate| deliberate) {
        return false;
    }
    headers.get_all(COOKIE).iter().any(|line| {
        matches!(
            super::cookies::take_out(line.as_bytes(), name),
            super::cookies::Left::Part(_) | super::cookies::Left::Nothing
        )
    })
}

/// What met what, for the person who has to find out why their own page was refused: `Origin`, `Sec-Fetch-Site`, and
/// this host. Cut to a length that a log can take.
#[must_use]
pub fn what_met(headers: &HeaderMap, admitted: &Admitted) -> String {
    let shown = |name: &HeaderName| {
        let lines: Vec<_> = headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
        if lines.is_empty() { String::from("absent") } else { lines.join(" and ").chars().take(MAX_SHOWN).collect() }
    };
    let here = format!("{}://{}", admitted.scheme.as_str(), admitted.public_authority());
    format!("Origin {}, Sec-Fetch-Site {}, this host {here}", shown(&ORIGIN), shown(&SEC_FETCH_SITE))
}

/// Characters of one header in [`what_met`].
const MAX_SHOWN: usize = 200;

/// More than one line of a header that may come once.
struct Repeated;

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Repeated> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next();
    if lines.next().is_some() { Err(Repeated) } else { Ok(first) }
}

/// Whether an `Origin` names the host and port that the browser opened. It may be `https` where nobody has told that TLS
/// ends in front of us; never `http` where `https` is known, for anybody on the way can write such a page.
fn is_this_host(origin: &str, admitted: &Admitted) -> bool {
    let Some((scheme, authority)) = split(origin) else { return false };
    let scheme_agrees = scheme == Scheme::Https || admitted.scheme == Scheme::Http;
    let Some(host) = Host::parse(authority) else { return false };
    // The port is compared under the origin's own scheme, for that is the one whose default port it leaves out.
    let port = |authority: &str| authority_port(authority).unwrap_or(scheme.default_port());
    let names = |own: &str| Host::parse(own).is_some_and(|own| own == host) && port(own) == port(authority);
    scheme_agrees
        && (names(admitted.public_authority())
            || (!admitted.host_is_vouched && admitted.authority.to_str().is_ok_and(names)))
}

/// Whether an `Origin` is one of the listed hosts, with the port where the list names one.
fn is_listed(origin: &str, hosts: &[String]) -> bool {
    let Some((scheme, authority)) = split(origin) else { return false };
    let Some(host) = Host::parse(authority) else { return false };
    let default_port = scheme.default_port();
    let origin_port = authority_port(authority).unwrap_or(default_port);
    hosts.iter().any(|listed| {
        let wanted = authority_port(listed).unwrap_or(default_port);
        let name =
            listed.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(&**listed, |(name, _)| name);
        let matches = match name.strip_prefix("*.") {
            Some(parent) => host
                .as_str()
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent)),
            None => Host::parse(name).is_some_and(|listed| listed == host),
        };
        matches && origin_port == wanted
    })
}

/// The scheme and the authority; `None` for `null`, other schemes, and anything with a path or user.
fn split(origin: &str) -> Option<(Scheme, &str)> {
    let (scheme, authority) = origin.split_once("://")?;
    let scheme = if scheme.eq_ignore_ascii_case("https") {
        Scheme::Https
    } else if scheme.eq_ignore_ascii_case("http") {
        Scheme::Http
    } else {
        return None;
    };
    let is_plain = !authority.is_empty() && !authority.contains(['/', '@', '?', '#', '\\', ',', ' ']);
    is_plain.then_some((scheme, authority))
}

#[cfg(test)]
#[path = "origin_tests.rs"]
mod tests;
