//! Which site a request comes from, by the evidence of `Origin` (RFC 6454) and `Sec-Fetch-Site`.

use http::{HeaderMap, header};

use super::admit::{Admitted, Host};

/// Whether the page that opens a WebSocket may do so: this host or one of `redirect_hosts`. A program that sends no
/// `Origin` may, for no browser leaves it out (RFC 6455 section 10.2).
#[must_use]
pub fn may_connect(headers: &HeaderMap, admitted: &Admitted, redirect_hosts: &[String]) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (None, _) => true,
        (Some(origin), None) => {
            origin.to_str().is_ok_and(|origin| is_this_host(origin, admitted) || is_listed(origin, redirect_hosts))
        }
        (Some(_), Some(_)) => false,
    }
}

/// Whether an `Origin` names the host and port that the request itself was sent to. Its scheme may be `http` or
/// `https`: what ends TLS in front of us does not always say so.
#[must_use]
pub fn is_this_host(origin: &str, admitted: &Admitted) -> bool {
    let Some((default_port, authority)) = split(origin) else { return false };
    let Ok(own) = admitted.authority.to_str() else { return false };
    Host::parse(authority).is_some_and(|host| host == admitted.host)
        && port(authority).unwrap_or(default_port) == port(own).unwrap_or(default_port)
}

/// Whether an `Origin` is one of the listed hosts, with the port where the list names one.
fn is_listed(origin: &str, hosts: &[String]) -> bool {
    let Some((default_port, authority)) = split(origin) else { return false };
    let Some(host) = Host::parse(authority) else { return false };
    let origin_port = port(authority).unwrap_or(default_port);
    hosts.iter().any(|listed| {
        let wanted = port(listed).unwrap_or(default_port);
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

/// The default port of the scheme, and the authority.
fn split(origin: &str) -> Option<(u16, &str)> {
    let (default_port, authority) = if let Some(rest) = origin.strip_prefix("https://") {
        (443, rest)
    } else {
        (80, origin.strip_prefix("http://")?)
    };
    (!authority.is_empty() && !authority.contains(['/', '@', '?', '#', '\\'])).then_some((default_port, authority))
}

fn port(authority: &str) -> Option<u16> {
    let (_, after) = authority.rsplit_once(':')?;
    // In `[::1]` the last colon belongs to the address.
    if after.ends_with(']') { None } else { after.parse().ok() }
}
