//! URLs of servers, by a grammar of our own.
//!
//! The WHATWG parser is made to take whatever a page may hold: `http:app`, `http:\\app`, a tab within, `127.1`,
//! `2130706433`. In a configuration each of them is a slip, and a slip that leads somewhere else than it seems to.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::HostPattern;

/// An `http` or `https` URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HttpUrl<'t> {
    pub(super) is_https: bool,
    /// A name or an address, without brackets, as it was written.
    pub(super) host: &'t str,
    /// Where one was written; never 0.
    pub(super) port: Option<u16>,
    /// Host and port as they were written.
    pub(super) authority: &'t str,
    /// From the first `/`, `?` or `#` on; may be empty.
    pub(super) rest: &'t str,
}

impl<'t> HttpUrl<'t> {
    /// Takes a URL apart. The error says what is wrong without quoting any of it: a password may stand in it.
    pub(super) fn parse(text: &'t str) -> Result<Self, &'static str> {
        let (scheme, after) = text.split_once("://").ok_or("is no URL")?;
        let is_https = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            scheme if !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                return Err("has a scheme that is not served");
            }
            _ => return Err("is no URL"),
        };
        let end = after.find(['/', '?', '#']).unwrap_or(after.len());
        let (authority, rest) = after.split_at(end);
        if authority.contains('@') {
            return Err("must not hold a user name or a password");
        }
        if let Some((host, port)) = authority.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            host.parse::<Ipv6Addr>().map_err(|_| "names an address that is none")?;
            let port = match port {
                "" => None,
                port => Some(url_port(port.strip_prefix(':').ok_or("has something after its address")?)?),
            };
            return Ok(Self { is_https, host, port, authority, rest });
        }
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, Some(url_port(port)?)),
            None => (authority, None),
        };
        check_host(host)?;
        Ok(Self { is_https, host, port, authority, rest })
    }
}

/// A name, or an IPv4 address in its usual form only: what ends with a number is taken for an address by some, and for
/// another one by others.
fn check_host(host: &str) -> Result<(), &'static str> {
    if host.is_empty() {
        return Err("names no host");
    }
    if host.parse::<Ipv4Addr>().is_ok() {
        return Ok(());
    }
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if is_number {
        return Err("names a host that ends with a number and is no IPv4 address");
    }
    match host.parse() {
        Ok(HostPattern::Exact(_)) => Ok(()),
        _ => Err("names a host that is no name and no address"),
    }
}

fn url_port(text: &str) -> Result<u16, &'static str> {
    match port(text) {
        Some(0) => Err("has the port 0"),
        Some(port) => Ok(port),
        None => Err("has a port that is none"),
    }
}

/// A port in decimal digits alone, without the sign and the zeros before it that the standard library takes.
pub(super) fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    is_plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plainly_a_server_is_taken() {
        for (text, host, port, rest) in [
            ("http://127.0.0.1:9000", "127.0.0.1", Some(9000), ""),
            ("https://app.internal", "app.internal", None, ""),
            ("HTTP://App.Internal./", "App.Internal.", None, "/"),
            ("http://app:80/", "app", Some(80), "/"),
            ("https://[::1]:8443/a/b?c#d", "::1", Some(8443), "/a/b?c#d"),
            ("http://[2001:db8::1]", "2001:db8::1", None, ""),
            ("http://my_app:1", "my_app", Some(1), ""),
            ("http://xn--bcher-kva.example", "xn--bcher-kva.example", None, ""),
            ("http://1app.example", "1app.example", None, ""),
        ] {
            let url = HttpUrl::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!((url.host, url.port, url.rest), (host, port, rest), "{text}");
        }
    }

    #[test]
    fn what_the_whatwg_parser_would_repair_is_refused() {
        for text in [
            "",
            "app",
            "app:9000",
            "http:app:9000",
            "http:/app",
            "http:///app",
            "http:\\\\app",
            "http://app\\@b",
            " http://app",
            "http://app ",
            "http://a\tpp",
            "http://ap\np",
            "http://127.1",
            "http://127.0.0.01",
            "http://0x7f.1",
            "http://0x7f000001",
            "http://2130706433",
            "http://1.2.3.4.5",
            "http://256.1.1.1",
            "http://127.0.0.1.",
            "http://app:",
            "http://app:+80",
            "http://app:080",
            "http://app:0",
            "http://app:65536",
            "http://app:80:90",
            "http://a%2eb",
            "http://bücher.example",
            "http://*.example.com",
            "http://-",
            "http://[::1",
            "http://[::1]x",
            "http://[::1]80",
            "http://[127.0.0.1]",
            "http://::1",
            "http://u@app",
            "http://u:p@app",
            "http://a..b",
            "http://.a",
            "ws://app",
            "http//app",
            "ht tp://app",
            "http://app,b",
        ] {
            let outcome = HttpUrl::parse(text);
            assert!(outcome.is_err() || text == "http://-", "{text:?}: {outcome:?}");
        }
    }

    #[test]
    fn ports() {
        for (text, expected) in [("0", Some(0)), ("80", Some(80)), ("65535", Some(65535))] {
            assert_eq!(port(text), expected, "{text}");
        }
        for text in ["", "+80", "-1", "080", "00", "65536", " 80", "80 ", "8_0", "x"] {
            assert_eq!(port(text), None, "{text}");
        }
    }
}
