//! What a person types for an address, and what they mean by it. Messages speak of what was typed.

use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs as _};

use crate::config::units::PathPrefix;
use crate::config::{Listen, UpstreamUrl};

/// Where the application listens: `http://HOST:PORT`, `HOST:PORT`, `:PORT`, `PORT`, `unix:/PATH`. Returns it as the
/// configuration has it.
pub(super) fn backend(typed: &str) -> Result<String, String> {
    const EXAMPLES: &str = "write for example http://127.0.0.1:9000, localhost:9000, 9000 or unix:/run/app.sock";
    let typed = typed.trim();
    if typed.starts_with("unix:") {
        return match typed.parse::<UpstreamUrl>() {
            Ok(_) => Ok(typed.to_owned()),
            Err(_) => Err(format!("URL: a socket needs its whole path; {EXAMPLES}")),
        };
    }
    let (scheme, rest) = match typed.split_once("://") {
        None => ("http", typed),
        Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
            "http" => ("http", rest),
            "https" => ("https", rest),
            "ws" | "wss" => return Err(String::from("URL: write http:// or https://; WebSockets go the same way")),
            _ => return Err(format!("URL: only http and https are served; {EXAMPLES}")),
        },
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // What stands there is not shown: it may be a password.
    if authority.contains('@') {
        return Err(String::from("URL: it must not hold a user name or a password"));
    }
    let address = address(authority).map_err(|problem| match problem {
        Some(problem) => format!("URL: {problem}; {EXAMPLES}"),
        None => format!("URL: it names no host and no port; {EXAMPLES}"),
    })?;
    let url = format!("{scheme}://{address}");
    if !matches!(path, "" | "/") {
        return Err(format!(
            "URL: the path can't stand here, for the application gets the path that the browser asks for; leave it out: \
             {url}"
        ));
    }
    match url.parse::<UpstreamUrl>() {
        Ok(_) => Ok(url),
        Err(_) => Err(format!("URL: {authority:?} is no address; {EXAMPLES}")),
    }
}

/// `HOST`, `HOST:PORT`, `:PORT`, `PORT`, `[IPV6]:PORT`. `Err(None)`: there is nothing.
fn address(authority: &str) -> Result<String, Option<String>> {
    const HERE: &str = "127.0.0.1";
    if authority.is_empty() {
        return Err(None);
    }
    if let Ok(ip) = authority.parse::<Ipv6Addr>() {
        return Ok(format!("[{ip}]"));
    }
    if is_number(authority) {
        return port(authority).map(|port| format!("{HERE}:{port}")).map_err(Some);
    }
    let (host, typed_port) = if let Some(rest) = authority.strip_prefix('[') {
        let inner = rest.split_once(']').and_then(|(ip, rest)| Some((ip.parse::<Ipv6Addr>().ok()?, rest)));
        let Some((ip, rest)) = inner else { return Err(Some(format!("{authority:?} is no IPv6 address"))) };
        match rest {
            "" => (format!("[{ip}]"), None),
            rest => (format!("[{ip}]"), Some(rest.strip_prefix(':').unwrap_or(rest))),
        }
    } else {
        match authority.rsplit_once(':') {
            None => (authority.to_owned(), None),
            Some(("", port)) => (String::from(HERE), Some(port)),
            Some((host, port)) => (host.to_owned(), Some(port)),
        }
    };
    let is_name =
        |host: &str| !host.is_empty() && host.chars().all(|sign| sign.is_ascii_alphanumeric() || "-_.".contains(sign));
    if !host.starts_with('[') && !is_name(&host) {
        return Err(Some(format!("{host:?} is no host name")));
    }
    match typed_port {
        None => Ok(host),
        Some(typed_port) => port(typed_port).map(|port| format!("{host}:{port}")).map_err(Some),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn port(text: &str) -> Result<u16, String> {
    let port = if is_number(text) { text.parse::<u16>().ok().filter(|port| *port != 0) } else { None };
    port.ok_or_else(|| format!("{text:?} is no port (1 to 65535)"))
}

/// Where the login listens: `PORT` is on this machine only, `:PORT` on all its addresses. Returns it as the configuration
/// has it.
pub(super) fn listen(typed: &str) -> Result<(String, Listen), String> {
    const EXAMPLES: &str = "write for example 8080 (this machine only), 0.0.0.0:8080 (the network too) or [::1]:8080";
    let typed = typed.trim();
    let wrong = |problem: &str| format!("--listen {typed}: {problem}; {EXAMPLES}");
    if typed.to_ascii_lowercase().starts_with("https://") {
        return Err(wrong("TLS on the listener is not built yet"));
    }
    let bare = typed.strip_prefix("http://").map_or(typed, |rest| rest.trim_end_matches('/'));
    if bare.starts_with("unix:") || bare.starts_with("fd:") {
        let place = bare.parse::<Listen>().map_err(|error| format!("--listen {error}"))?;
        return Ok((bare.to_owned(), place));
    }
    let listen_port = |text: &str| {
        // 0 takes any free one.
        if is_number(text) { text.parse::<u16>().ok() } else { None }
            .ok_or_else(|| wrong(&format!("{text:?} is no port (1 to 65535)")))
    };
    let address: SocketAddr = if is_number(bare) {
        ([127, 0, 0, 1], listen_port(bare)?).into()
    } else if let Some(port) = bare.strip_prefix(':').or_else(|| bare.strip_prefix("*:"))
        && !port.contains(':')
    {
        ([0, 0, 0, 0], listen_port(port)?).into()
    } else if let Ok(address) = bare.parse() {
        address
    } else if bare.parse::<Ipv6Addr>().is_ok() || bare.ends_with(']') {
        return Err(wrong("it names no port"));
    } else {
        let Some((host, port)) = bare.rsplit_once(':') else { return Err(wrong("it names no port")) };
        let port = listen_port(port)?;
        if host == "localhost" {
            ([127, 0, 0, 1], port).into()
        } else {
            let found = (host, port).to_socket_addrs().ok().and_then(|mut found| found.next());
            found.ok_or_else(|| wrong(&format!("{host:?} is no address of this machine")))?
        }
    };
    Ok((address.to_string(), Listen::Tcp(address)))
}

/// A path that needs no login.
pub(super) fn public(typed: &str) -> Result<String, String> {
    if !typed.starts_with('/') {
        let path = typed.split_once("://").map_or(typed, |(_, rest)| rest.split_once('/').map_or("", |(_, path)| path));
        return Err(format!("--public {typed}: a path begins with \"/\"; write --public /{path}"));
    }
    if typed == "/" {
        return Err(String::from("--public /: that is everything, and then there would be no login"));
    }
    if let Some(before) = typed.strip_suffix("/*").or_else(|| typed.strip_suffix("/**")) {
        return Err(format!("--public {typed}: what is below a path goes with it; write --public {before}"));
    }
    if typed.contains(['?', '#']) {
        return Err(format!("--public {typed}: a path only, without \"?\" and \"#\""));
    }
    typed.parse::<PathPrefix>().map_err(|error| format!("--public {typed}: {error}"))?;
    Ok(typed.to_owned())
}

/// Where the login's own pages stand; empty for the root.
pub(super) fn prefix(typed: &str) -> Result<String, String> {
    let bare = typed.trim().trim_end_matches('/');
    if bare.is_empty() {
        return Ok(String::new());
    }
    let prefix = if bare.starts_with('/') { bare.to_owned() } else { format!("/{bare}") };
    let is_plain = |sign: char| sign.is_ascii_alphanumeric() || "/-_.~".contains(sign);
    if prefix.chars().all(is_plain)
        && !prefix.contains("//")
        && !prefix.split('/').any(|part| part == "." || part == "..")
    {
        Ok(prefix)
    } else {
        Err(format!("--prefix {typed}: write a path of letters and digits, for example /_auth"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whatever_is_typed_for_a_backend_is_understood() {
        for (typed, meant) in [
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
            ("HTTP://App.lan", "http://App.lan"),
            (" localhost:9000 ", "http://localhost:9000"),
            ("localhost:9000/", "http://localhost:9000"),
            (":9000", "http://127.0.0.1:9000"),
            ("9000", "http://127.0.0.1:9000"),
            ("http://:9000", "http://127.0.0.1:9000"),
            ("app", "http://app"),
            ("app_1:80", "http://app_1:80"),
            ("https://app.lan:8443", "https://app.lan:8443"),
            ("[::1]:9000", "http://[::1]:9000"),
            ("::1", "http://[::1]"),
            ("http://[::1]:9000/", "http://[::1]:9000"),
            ("https://[fe80::1]", "https://[fe80::1]"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
        ] {
            assert_eq!(backend(typed).as_deref(), Ok(meant), "{typed:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_backend_is_said_of_the_argument() {
        for (typed, word) in [
            ("", "no host"),
            ("http://", "no host"),
            ("ftp://127.0.0.1", "only http"),
            ("ws://127.0.0.1:1", "WebSockets"),
            ("not a url", "is no host name"),
            ("http://127.0.0.1:9000/app", "leave it out: http://127.0.0.1:9000"),
            ("localhost:9000/app?x", "leave it out: http://localhost:9000"),
            ("localhost:99999", "\"99999\" is no port"),
            ("localhost:0", "\"0\" is no port"),
            ("localhost:", "is no port"),
            ("localhost:http", "is no port"),
            ("99999", "is no port"),
            ("[::1", "is no IPv6"),
            ("[::1]9000x", "is no port"),
            ("unix:app.sock", "whole path"),
        ] {
            let problem = backend(typed).unwrap_err();
            assert!(problem.starts_with("URL: ") && problem.contains(word), "{typed:?}: {problem}");
        }
        let problem = backend("http://kim:topsecret@127.0.0.1:9000/").unwrap_err();
        assert!(!problem.contains("topsecret"), "{problem}");
    }

    #[test]
    fn whatever_is_typed_for_listening_is_understood() {
        for (typed, meant) in [
            ("8080", "127.0.0.1:8080"),
            (":8080", "0.0.0.0:8080"),
            ("*:8080", "0.0.0.0:8080"),
            ("0.0.0.0:8080", "0.0.0.0:8080"),
            ("localhost:8080", "127.0.0.1:8080"),
            ("http://127.0.0.1:8080/", "127.0.0.1:8080"),
            ("[::1]:8080", "[::1]:8080"),
            ("[::]:8080", "[::]:8080"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("unix:/run/d.sock", "unix:/run/d.sock"),
        ] {
            assert_eq!(listen(typed).map(|(text, _)| text).as_deref(), Ok(meant), "{typed:?}");
        }
        for typed in
            ["", "nowhere", "127.0.0.1", "::1", "[::1]", "127.0.0.1:99999", "99999", ":x", "https://[::1]:1", "unix:x"]
        {
            let problem = listen(typed).unwrap_err();
            assert!(problem.starts_with("--listen "), "{typed:?}: {problem}");
        }
    }

    #[test]
    fn a_public_path_is_a_path() {
        assert_eq!(public("/open").as_deref(), Ok("/open"));
        for (typed, word) in [
            ("open", "--public /open"),
            ("http://h/open", "--public /open"),
            ("/", "everything"),
            ("/open/*", "write --public /open"),
            ("/open?x=1", "without"),
        ] {
            let problem = public(typed).unwrap_err();
            assert!(problem.starts_with("--public ") && problem.contains(word), "{typed:?}: {problem}");
        }
        for (typed, meant) in [("/_auth", "/_auth"), ("_auth/", "/_auth"), ("", ""), ("/", ""), ("/a/b", "/a/b")] {
            assert_eq!(prefix(typed).as_deref(), Ok(meant), "{typed:?}");
        }
        for typed in ["/a//b", "/a b", "/../x", "/é", "/a?"] {
            assert!(prefix(typed).is_err_and(|problem| problem.starts_with("--prefix ")), "{typed:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_understood_can_be_served(typed in "(http://|https://)?[a-z0-9.:\\[\\]/@ -]{0,24}") {
            if let Ok(url) = backend(&typed) {
                prop_assert!(url.parse::<UpstreamUrl>().is_ok(), "{typed:?} became {url:?}");
            }
        }
    }
}
