//! Units and names that a person types: durations, sizes, hosts, paths, networks.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use unicode_normalization::UnicodeNormalization as _;

use super::urls::{self, HttpUrl};
use super::{HostPattern, Listen, TemplatePart, UpstreamUrl, sense};
use crate::vocabulary::letters;

/// Why a text is not what it should be; a sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

impl UnitError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// A span of time: `90s`, `30m`, `12h`, `7d`, `250ms`, or several from large to small as in `3d12h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
        let wrong =
            || UnitError::new(format!("{text:?} is no duration; write for example \"90s\", \"30m\" or \"3d12h\""));
        let mut rest = text;
        let mut total = 0_u64;
        let mut next_unit = 0;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, after) = rest.split_at(digits);
            let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, after) = after.split_at(letters);
            let number: u64 = number.parse().map_err(|_| wrong())?;
            let (index, millis) = UNITS
                .iter()
                .enumerate()
                .skip(next_unit)
                .find(|(_, (name, _))| *name == unit)
                .map(|(index, (_, millis))| (index, *millis))
                .ok_or_else(wrong)?;
            next_unit = index + 1;
            total = number.checked_mul(millis).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
            rest = after;
        }
        // A hundred years: more is a slip of the hand, and sums of two stay far from overflowing.
        if total > 100 * 366 * 86_400_000 {
            return Err(UnitError::new(format!("{text:?} is longer than a hundred years")));
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

/// A size in bytes: `512B`, `16KiB`, `1MiB`, `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub usize);

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong =
            || UnitError::new(format!("{text:?} is no size; write for example \"512B\", \"16KiB\" or \"1MiB\""));
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: usize = number.parse().map_err(|_| wrong())?;
        let factor = match unit {
            "B" => 1,
            "KiB" => 1024,
            "MiB" => 1024 * 1024,
            "GiB" => 1024 * 1024 * 1024,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

/// A network in CIDR form, or a single address. Everybody's network is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(pub IpNet);

impl FromStr for Network {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match network(text) {
            Some(net) if is_mapped(&net) => Err(UnitError::new(format!(
                "{text:?} is an IPv4 network in IPv6 form, in which no client is seen; write it as IPv4, for example \
                 \"10.1.0.0/16\""
            ))),
            Some(net) if net.prefix_len() == 0 => Err(UnitError::new(format!(
                "{text:?} is everybody; name the networks of your own proxies, for example \"10.1.0.0/16\""
            ))),
            Some(net) => Ok(Self(net.trunc())),
            None => Err(UnitError::new(format!(
                "{text:?} is no network; write for example \"10.1.0.0/16\" or \"127.0.0.1\""
            ))),
        }
    }
}

/// An address as the standard library reads it (no octal, no zeros before it), and digits after one "/".
fn network(text: &str) -> Option<IpNet> {
    let Some((address, length)) = text.split_once('/') else {
        return text.parse::<IpAddr>().ok().map(IpNet::from);
    };
    let length = urls::port(length).and_then(|length| u8::try_from(length).ok())?;
    IpNet::new(address.parse().ok()?, length).ok()
}

fn is_mapped(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some() && net.prefix_len() >= 96)
}

/// The whole path of a unix socket, as `what` begins with it.
fn socket_path(text: &str, path: &str, example: &str) -> Result<PathBuf, UnitError> {
    /// The room that unix(7) has for a path, less the byte that ends it.
    const MOST: usize = 107;
    let wrong = |why: &str| Err(UnitError::new(format!("{text:?}: {why}, for example {example:?}")));
    if let Some(why) = sense::unexpanded(path) {
        return wrong(why);
    }
    if !path.starts_with('/') || path.ends_with('/') {
        return wrong("write the whole path");
    }
    if path.len() > MOST {
        return wrong("is longer than the 107 bytes that a socket's path may have");
    }
    Ok(PathBuf::from(path))
}

impl FromStr for Listen {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(text, path, "unix:/run/doorward.sock").map(Self::Unix);
        }
        if let Some(name) = text.strip_prefix("fd:") {
            // FileDescriptorName= of systemd.socket(5).
            let is_name =
                (1..=255).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
            return if is_name {
                Ok(Self::Descriptor(name.to_owned()))
            } else {
                Err(UnitError::new(format!("{text:?}: write the socket's name, for example \"fd:http\"")))
            };
        }
        address(text).map(Self::Tcp)
    }
}

/// `HOST:PORT` with an address or `localhost`.
pub(super) fn address(text: &str) -> Result<SocketAddr, UnitError> {
    let wrong = || {
        UnitError::new(format!(
            "{text:?} is no address to listen on; write for example \"127.0.0.1:8080\", \"[::1]:8080\" or \"0.0.0.0:80\""
        ))
    };
    if let Some(port) = text.strip_prefix("localhost:") {
        return Ok(SocketAddr::from(([127, 0, 0, 1], urls::port(port).ok_or_else(wrong)?)));
    }
    // The standard library takes zeros before a port.
    text.rsplit_once(':').and_then(|(_, port)| urls::port(port)).ok_or_else(wrong)?;
    text.parse().map_err(|_| wrong())
}

impl FromStr for HostPattern {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text.is_empty() {
            return Ok(Self::Any);
        }
        let (wildcard, name) = text.strip_prefix("*.").map_or((false, text), |name| (true, name));
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if !name.is_ascii() {
            return Err(UnitError::new(format!("{text:?}: write the name in its ASCII form (xn--…)")));
        }
        if let Some(address) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'))
            && !wildcard
        {
            let address: std::net::Ipv6Addr =
                address.parse().map_err(|_| UnitError::new(format!("{text:?} is no host")))?;
            return Ok(Self::Exact(format!("[{address}]")));
        }
        let is_name = !name.is_empty()
            && name.len() <= 253
            && name.split('.').all(|label| {
                !label.is_empty()
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            });
        if !is_name {
            return Err(UnitError::new(format!(
                "{text:?} is no host; write for example \"app.example.com\" or \"*.example.com\", without a port"
            )));
        }
        Ok(if wildcard { Self::Wildcard(name) } else { Self::Exact(name) })
    }
}

/// A path of a route: absolute, as a person reads it (any UTF-8 text, nothing encoded), whole segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPrefix(pub String);

impl FromStr for PathPrefix {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let say = |what: &str| Err(UnitError::new(format!("{text:?} {what}")));
        if !text.starts_with('/') {
            return say("must begin with \"/\"");
        }
        if let Some(sign) =
            text.chars().find(|sign| matches!(sign, '?' | '#' | ';' | '\\' | '%' | '*') || sign.is_control())
        {
            return Err(UnitError::new(format!(
                "{text:?} holds {sign:?}; write the plain path up to a whole segment: \"/admin\" is /admin and /admin/…"
            )));
        }
        let trimmed = text.strip_suffix('/').unwrap_or(text);
        if trimmed.split('/').skip(1).any(|segment| segment.is_empty() || segment.ends_with(['.', ' '])) {
            return say("holds an empty segment or one that ends with a dot or a blank");
        }
        // What folds to nothing would be a prefix of everything.
        let folded = letters::fold(trimmed.as_bytes(), usize::MAX);
        if folded.ends_with(b"/") || folded.windows(2).any(|pair| pair == b"//") {
            return say("holds a segment of invisible characters only");
        }
        Ok(Self(if trimmed.is_empty() { String::from("/") } else { trimmed.to_owned() }))
    }
}

impl FromStr for UpstreamUrl {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        // The text itself is not shown: a password may stand in it.
        let wrong = |why: &str| {
            Err(UnitError::new(format!(
                "{why}; write for example \"http://127.0.0.1:9000\", \"https://app.internal\" or \"unix:/run/app.sock\""
            )))
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return match socket_path("unix:", path, "unix:/run/app.sock") {
                Ok(path) => Ok(Self::Unix(path)),
                Err(_) => {
                    wrong("must give the whole path of a socket, at most 107 bytes, with nothing to expand in it")
                }
            };
        }
        let HttpUrl { is_https, host, port, rest, .. } = match HttpUrl::parse(text) {
            Ok(url) => url,
            Err(why) => return wrong(why),
        };
        if !matches!(rest, "" | "/") {
            return wrong("must not hold a path; use strip_prefix on the route");
        }
        // An address has one form, so that the same server twice is noticed.
        let host = host.parse::<IpAddr>().map_or_else(|_| host.to_ascii_lowercase(), |address| address.to_string());
        Ok(if is_https {
            Self::Https { host, port: port.unwrap_or(443) }
        } else {
            Self::Http { host, port: port.unwrap_or(80) }
        })
    }
}

/// A host for `redirect_hosts`: `HOST`, `*.HOST`, either with `:PORT`; lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectHost(pub String);

impl FromStr for RedirectHost {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, Some(port)),
            _ => (text, None),
        };
        if port.is_some_and(|port| urls::port(port).is_none()) {
            return Err(UnitError::new(format!(
                "{text:?} is no host; write for example \"app.example.com\" or \"app.example.com:8443\", without https://"
            )));
        }
        let name = match name.parse::<HostPattern>()? {
            HostPattern::Any => return Err(UnitError::new("an empty host leads nowhere; remove it")),
            HostPattern::Exact(name) => name,
            HostPattern::Wildcard(name) => format!("*.{name}"),
        };
        Ok(Self(port.map_or_else(|| name.clone(), |port| format!("{name}:{port}"))))
    }
}

/// A header template such as `"{username}"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(pub Vec<TemplatePart>);

impl FromStr for Template {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const KNOWN: &str = "{id} {username} {email} {groups} {display_name}";
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('{') {
                let Some((name, after)) = after.split_once('}') else {
                    return Err(UnitError::new(format!(
                        "{text:?} has a \"{{\" that nothing closes; known are {KNOWN}"
                    )));
                };
                parts.push(match name {
                    "id" => TemplatePart::Id,
                    "username" => TemplatePart::Username,
                    "email" => TemplatePart::Email,
                    "groups" => TemplatePart::Groups,
                    "display_name" => TemplatePart::DisplayName,
                    _ => return Err(UnitError::new(format!("{{{name}}} is not known; known are {KNOWN}"))),
                });
                rest = after;
            } else {
                let end = rest.find('{').unwrap_or(rest.len());
                let (literal, after) = rest.split_at(end);
                if literal.chars().any(|sign| sign.is_control() || sign == '}') {
                    return Err(UnitError::new(format!("{text:?} holds a sign that no header may hold")));
                }
                parts.push(TemplatePart::Text(literal.to_owned()));
                rest = after;
            }
        }
        if parts.is_empty() {
            return Err(UnitError::new(format!("is empty; known are {KNOWN}")));
        }
        Ok(Self(parts))
    }
}

/// The canonical form of a user name, by the store's rule: NFKC, lower case, 1 to 64 characters, none of them a control
/// character, white space or invisible.
pub(super) fn canonical_username(typed: &str) -> Result<String, UnitError> {
    const MOST: usize = 64;
    let wrong =
        || UnitError::new("is no user name: 1 to 64 characters, no white space, control or invisible characters");
    // Bounded before the work: NFKC can make one character eighteen.
    if typed.chars().count() > MOST {
        return Err(wrong());
    }
    let mut name: String = typed.nfkc().collect();
    for _ in 0..4 {
        let next: String = name.to_lowercase().nfkc().collect();
        if next == name {
            break;
        }
        name = next;
    }
    if name.is_empty() || name.chars().count() > MOST || name.chars().any(is_forbidden_in_names) {
        return Err(wrong());
    }
    Ok(name)
}

fn is_forbidden_in_names(sign: char) -> bool {
    sign.is_control()
        || sign.is_whitespace()
        || matches!(sign,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{ffff}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in
            [("90s", 90), ("30m", 1800), ("7d", 604_800), ("3d12h", 302_400), ("0s", 0), ("1h1m1s", 3661)]
        {
            assert_eq!(text.parse::<Span>().map(|span| span.duration().as_secs()), Ok(seconds), "{text}");
        }
        for text in ["", "7", "d", "7x", "-1s", "1.5h", "1s1h", "1h1h", "7d ", "99999999999999999999d", "200000000h"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!("16KiB".parse(), Ok(ByteSize(16_384)));
        assert_eq!("1MiB".parse(), Ok(ByteSize(1_048_576)));
        for text in ["", "16", "16KB", "KiB", "-1B", "99999999999999999999GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_paths_and_networks() {
        assert_eq!("App.Example.com.".parse(), Ok(HostPattern::Exact(String::from("app.example.com"))));
        assert_eq!("*.example.com".parse(), Ok(HostPattern::Wildcard(String::from("example.com"))));
        assert_eq!("[::1]".parse(), Ok(HostPattern::Exact(String::from("[::1]"))));
        for text in ["a.*.b", "a:80", "http://a", "a/b", "*", "*.", "a..b", "ä.de"] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
        assert_eq!("/admin/".parse(), Ok(PathPrefix(String::from("/admin"))));
        assert_eq!("/".parse(), Ok(PathPrefix(String::from("/"))));
        for text in ["/caf\u{e9}", "/\u{ad00}\u{b9ac} x/y", "/v1/x:run", "/c++"] {
            assert_eq!(text.parse(), Ok(PathPrefix(text.to_owned())));
        }
        for text in
            ["", "admin", "/a?b", "/a//b", "/../a", "/a%20", "/a;b", "/a*", "/a./b", "/a ", "/a /b", "/\u{200b}/a"]
        {
            assert!(text.parse::<PathPrefix>().is_err(), "{text}");
        }
        assert!("10.0.0.0/8".parse::<Network>().is_ok());
        assert!("::1".parse::<Network>().is_ok());
        for text in ["0.0.0.0/0", "::/0", "10.0.0.0/33", "x"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn upstream_urls() {
        assert_eq!("http://a:9000".parse(), Ok(UpstreamUrl::Http { host: String::from("a"), port: 9000 }));
        assert_eq!("https://a".parse(), Ok(UpstreamUrl::Https { host: String::from("a"), port: 443 }));
        assert_eq!("http://[::1]:1".parse(), Ok(UpstreamUrl::Http { host: String::from("::1"), port: 1 }));
        assert_eq!("unix:/a".parse(), Ok(UpstreamUrl::Unix(PathBuf::from("/a"))));
        for text in ["", "a:9000", "ftp://a", "http://u:p@a", "http://a/b", "http://a?x", "unix:a"] {
            assert!(text.parse::<UpstreamUrl>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Span>();
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<Network>();
            let _ = text.parse::<Listen>();
            let _ = text.parse::<HostPattern>();
            let _ = text.parse::<PathPrefix>();
            let _ = text.parse::<UpstreamUrl>();
            let _ = text.parse::<RedirectHost>();
            let _ = text.parse::<Template>();
        }

        #[test]
        fn a_duration_reads_back(days in 0_u64..9999, hours in 0_u64..24, seconds in 0_u64..60) {
            let span: Span = format!("{days}d{hours}h{seconds}s").parse().unwrap();
            prop_assert_eq!(span.duration().as_secs(), days * 86_400 + hours * 3600 + seconds);
        }
    }
}
