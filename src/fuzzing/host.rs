//! Hosts: one canonical form, and a target that agrees with it.

use http::{HeaderValue, Request};

use crate::message::admit::{Edge, Host, Scheme, admit};

/// A `Host` value and, on a second line, the authority of an absolute-form target.
pub fn host(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (given, target) = text.split_once('\n').unwrap_or((text, ""));
    let found = Host::parse(given);
    if let Some(host) = &found {
        let canonical = host.as_str();
        assert_eq!(Host::parse(canonical).as_ref(), Some(host), "{given:?} is not canonical as {canonical:?}");
        assert_eq!(canonical, canonical.to_ascii_lowercase(), "{given:?}");
        for same in [given.to_ascii_uppercase(), given.to_ascii_lowercase(), format!("{canonical}:65535")] {
            assert_eq!(Host::parse(&same).as_ref(), Some(host), "{given:?} and {same:?} are the same host");
        }
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.:[]".contains(&byte);
        assert!(canonical.bytes().all(plain), "{canonical:?}");
        assert!(!canonical.ends_with('.') && !canonical.is_empty(), "{canonical:?}");
        // What a browser makes of the same text, where it takes it for a name.
        if let Ok(url) = url::Url::parse(&format!("http://{given}/")) {
            let theirs = url.host_str().unwrap_or_default();
            let theirs = theirs.strip_suffix('.').unwrap_or(theirs);
            match url.host() {
                // It takes `127.1` and `0x7f000001` for an address; here they are names that no route has.
                Some(url::Host::Ipv4(_)) | None => {}
                Some(url::Host::Ipv6(address)) => {
                    let own = canonical.trim_matches(['[', ']']).parse();
                    assert_eq!(own, Ok(address), "a browser reads {given:?} in another way");
                }
                Some(url::Host::Domain(_)) => assert_eq!(theirs, canonical, "a browser reads {given:?} in another way"),
            }
        }
    }
    let Ok(value) = HeaderValue::from_str(given) else { return };
    let edge = Edge { trusted_proxies: Vec::new(), scheme: Scheme::Http };
    let head = |uri: &str| Some(Request::builder().uri(uri).header("host", &value).body(()).ok()?.into_parts().0);
    let Some(plain) = head("/") else { return };
    let admitted = admit(&plain, None, &edge);
    assert_eq!(admitted.as_ref().ok().map(|admitted| &admitted.host), found.as_ref(), "{given:?}");
    let Some(absolute) = head(&format!("http://{target}/")) else { return };
    if absolute.uri.authority().is_some()
        && let Ok(admitted) = admit(&absolute, None, &edge)
    {
        let authority = absolute.uri.authority().map_or("", http::uri::Authority::as_str);
        assert_eq!(Host::parse(authority), Some(admitted.host), "{target:?} contradicts {given:?}");
        let port = |text: &str| {
            let (_, after) = text.rsplit_once(':').filter(|(_, after)| !after.ends_with(']'))?;
            after.parse::<u16>().ok()
        };
        assert_eq!(port(authority).unwrap_or(80), port(given).unwrap_or(80), "{target:?} contradicts {given:?}");
    }
}
