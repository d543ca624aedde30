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

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::super::admit::{Edge, Scheme, admit};
    use super::*;

    fn may(host: &str, origins: &[&str]) -> bool {
        let request = http::Request::builder().uri("/").header("host", host).body(()).unwrap();
        let edge = Edge { trusted_proxies: Vec::new(), scheme: Scheme::Http };
        let mut parts = request.into_parts().0;
        let admitted = admit(&parts, None, &edge).unwrap();
        for origin in origins {
            parts.headers.append(header::ORIGIN, HeaderValue::from_bytes(origin.as_bytes()).unwrap());
        }
        let listed = ["listed.test".to_owned(), "port.test:8443".to_owned(), "*.wild.test".to_owned()];
        may_connect(&parts.headers, &admitted, &listed)
    }

    #[test]
    fn a_page_of_this_host_or_a_listed_one_may_connect() {
        assert!(may("app.test", &[]), "a program sends no Origin");
        for origin in [
            "http://app.test",
            "https://app.test",
            "http://APP.test",
            "http://app.test.",
            "http://app.test:80",
            "https://listed.test",
            "https://listed.test:443",
            "https://port.test:8443",
            "https://one.wild.test",
        ] {
            assert!(may("app.test", &[origin]), "{origin}");
        }
        assert!(may("[::1]:8080", &["http://[::1]:8080"]));
    }

    #[test]
    fn no_other_page_may_and_neither_may_two() {
        for origin in [
            "",
            "null",
            "app.test",
            "//app.test",
            "ftp://app.test",
            "http://",
            "http://app.test/",
            "http://app.test@evil.test",
            "http://evil.test?app.test",
            "http://evil.test#app.test",
            "http://evil.test\\app.test",
            "http://app.test:8080",
            "http://app.test:443",
            "http://app.test.evil.test",
            "http://xapp.test",
            "http://sub.app.test",
            "https://sub.listed.test",
            "https://listed.test:8443",
            "https://port.test",
            "https://wild.test",
            "https://one.two.wild.test",
            "https://.wild.test",
            "http://app.test, http://app.test",
            "http://\u{e9}.test",
        ] {
            assert!(!may("app.test", &[origin]), "{origin}");
        }
        // The first of two is ours, or the second, or both.
        for two in [
            ["http://app.test", "http://evil.test"],
            ["http://evil.test", "http://app.test"],
            ["http://app.test", "http://app.test"],
        ] {
            assert!(!may("app.test", &two), "{two:?}");
        }
    }
}
