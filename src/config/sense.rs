//! What is well-formed, and can't work or does not do what it seems to: paths that nobody expands, secrets with something
//! around them, cookies that do not reach where they are needed.

use super::reader::{Place, Section};
use super::{Access, Config, HostPattern, Listen, Route, SecureCookie};

/// Why a path would not name what its writer thinks. Does not quote it: a secret may have been pasted in its place.
pub(super) fn unexpanded(path: &str) -> Option<&'static str> {
    if path.starts_with('~') {
        Some("begins with \"~\", and nothing is expanded here; write the whole path")
    } else if path.contains('$') {
        Some("holds \"$\", and no variable is expanded here; write the whole path")
    } else if path.starts_with('%') {
        Some("begins with \"%\", and no specifier of systemd is expanded here; write the whole path")
    } else if path.bytes().any(|byte| byte.is_ascii_control()) {
        Some("holds a control character")
    } else {
        None
    }
}

/// What stands around a secret that its writer did not mean to be part of it: quotes, or the variable's name, as in a file
/// for `--env-file` or `EnvironmentFile=`.
pub(super) fn wrapped(secret: &[u8]) -> Option<&'static str> {
    let is_quoted = matches!(secret, [first @ (b'"' | b'\'' | b'`'), .., last] if first == last);
    if is_quoted {
        return Some("holds quotes around the secret, which would be part of it; remove them");
    }
    let equals = secret.iter().position(|byte| *byte == b'=')?;
    let (before, after) = secret.split_at(equals);
    let name = before.strip_prefix(b"export ").unwrap_or(before);
    let is_name = name.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        && name.len() <= 64;
    let lower = name.to_ascii_lowercase();
    let speaks = ["secret", "token", "key", "password", "jwt"]
        .iter()
        .any(|word| memchr::memmem::find(&lower, word.as_bytes()).is_some());
    let is_variable = name.len() >= 3 && !name.iter().any(u8::is_ascii_lowercase);
    // Base64 ends with "=", and nothing but that comes after it.
    let has_value = after.iter().any(|byte| *byte != b'=');
    (is_name && has_value && (speaks || is_variable))
        .then_some("begins with NAME=, which would be part of the secret; keep only what comes after it")
}

/// Where the keys stand that may not fit together.
pub(super) struct Places {
    pub(super) domain: Place,
    pub(super) path: Place,
    pub(super) secure: Place,
    pub(super) redirect_hosts: Place,
    /// In the order of the routes.
    pub(super) routes: Vec<Place>,
}

/// Warns of a cookie that does not reach the portal, a route, or any browser at all.
pub(super) fn warn(root: &Section<'_>, config: &Config, places: &Places) {
    domain(root, config, places);
    path(root, config, places);
    let is_plain = config.server.listen.iter().any(|listen| matches!(listen, Listen::Tcp(_)));
    if config.cookie.secure == SecureCookie::Always && is_plain && config.server.trusted_proxies.is_empty() {
        root.report().warning(
            &places.secure,
            "cookie.secure",
            "is true, and server.listen is plain HTTP: over it browsers drop the cookie, and nobody stays logged in; put a \
             TLS proxy in front and name it in server.trusted_proxies, or write \"auto\"",
        );
    }
}

fn domain(root: &Section<'_>, config: &Config, places: &Places) {
    let domain = &config.cookie.domain;
    if domain.is_empty() {
        return;
    }
    let said = |host: &str| {
        format!(
            "{host} is not within cookie.domain {domain:?}: browsers drop the cookie there, and nobody can log in on it; \
             change one of them, or run another Doorward for it"
        )
    };
    for (route, place) in config.routes.iter().zip(&places.routes).filter(|(route, _)| needs_login(route)) {
        match &route.host {
            HostPattern::Exact(host) if !covers(domain, host) => {
                root.report().warning(place, "route.host", said(host));
            }
            HostPattern::Wildcard(parent) if !covers(domain, parent) => {
                root.report().warning(place, "route.host", said(&format!("*.{parent}")));
            }
            _ => {}
        }
    }
    for listed in &config.login.redirect_hosts {
        let name = listed.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(&**listed, |(name, _)| name);
        if !covers(domain, name.trim_start_matches("*.")) {
            root.report().warning(&places.redirect_hosts, "login.redirect_hosts", said(listed));
        }
    }
    if let Some(central) = &config.central
        && let Some(host) =
            super::urls::HttpUrl::parse(&central.login_url).ok().map(|url| url.host.to_ascii_lowercase())
        && !covers(domain, &host)
    {
        root.report().warning(&places.domain, "cookie.domain", said(&format!("login.url's host {host}")));
    }
}

fn path(root: &Section<'_>, config: &Config, places: &Places) {
    let path = &config.cookie.path;
    let prefix = &config.portal_prefix;
    if config.central.is_none() && !within(path, &format!("{prefix}/account")) {
        let message = format!(
            "{path:?} does not cover {prefix}/account and {prefix}/logout: browsers do not send the cookie there, and nobody \
             can log out; write \"/\", or move them with portal.prefix"
        );
        root.report().warning(&places.path, "cookie.path", message);
    }
    for (route, place) in config.routes.iter().zip(&places.routes).filter(|(route, _)| needs_login(route)) {
        if !within(path, &route.path) {
            let message = format!(
                "{} is not within cookie.path {path:?}: browsers do not send the cookie there, and a login is asked for again \
                 and again",
                route.path
            );
            root.report().warning(place, "route.path", message);
        }
    }
}

/// Whether somebody has to be logged in, in a browser.
const fn needs_login(route: &Route) -> bool {
    matches!(route.access, Access::Required | Access::Optional) && !route.api
}

/// RFC 6265 section 5.1.3.
fn covers(domain: &str, host: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// RFC 6265 section 5.1.4: whether a browser sends a cookie of this path with every request below `wanted`.
fn within(cookie_path: &str, wanted: &str) -> bool {
    wanted
        .strip_prefix(cookie_path)
        .is_some_and(|rest| rest.is_empty() || cookie_path.ends_with('/') || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_around_a_secret_is_seen() {
        for secret in [
            "\"0123456789abcdef0123456789abcdef\"",
            "'0123456789abcdef0123456789abcdef'",
            "`0123456789abcdef`",
            "JWT_SECRET=0123456789abcdef0123456789abcdef",
            "export JWT_SECRET=0123456789abcdef",
            "secret=0123456789abcdef",
            "JWT_SECRET=\"0123456789abcdef\"",
            "jwtSecret=0123456789abcdef",
            "ABC=x",
        ] {
            assert!(wrapped(secret.as_bytes()).is_some(), "{secret}");
        }
        for secret in [
            "0123456789abcdef0123456789abcdef",
            "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXo=",
            "QUJDREVGR0g==",
            "\"",
            "=abc",
            "a=b",
            "x7=kk\"",
            "it's a secret that's long",
            "1AB=abc",
            "abcdefgh=ijklm",
            "QUJDREVGR0hJSktMTU5PUFFS=",
        ] {
            assert_eq!(wrapped(secret.as_bytes()), None, "{secret}");
        }
    }

    #[test]
    fn paths_that_somebody_would_have_to_expand_are_seen() {
        for path in ["~", "~/x", "~kim/x", "$HOME/x", "${HOME}/x", "/run/$NAME", "%d/secret", "a\nb", "a\0b"] {
            assert!(unexpanded(path).is_some(), "{path:?}");
        }
        for path in ["", "/a/b", "a~", "/a~1", "../x", "/a b", "/100%", "C:/x"] {
            assert_eq!(unexpanded(path), None, "{path:?}");
        }
    }

    #[test]
    fn domains_and_paths_cover_as_browsers_see_it() {
        assert!(covers("example.com", "example.com") && covers("example.com", "a.b.example.com"));
        assert!(!covers("example.com", "badexample.com") && !covers("example.com", "example.org"));
        assert!(!covers("app.example.com", "example.com"));
        assert!(within("/", "/x") && within("/a", "/a") && within("/a", "/a/b") && within("/a/", "/a/b"));
        assert!(!within("/a", "/ab") && !within("/a/", "/a") && !within("/a", "/"));
    }
}
