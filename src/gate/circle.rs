//! A backend that sends people to a page of its own name which is ours: it leads in a circle, and is said once.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use http::{HeaderMap, header};

use super::Live;
use crate::message::admit::Admitted;
use crate::router::is_portal_page;

/// Told of a redirect's head. One warning for each route and process.
pub(super) fn look_at(live: &Live, admitted: &Admitted, route: &str, path: &str, headers: &HeaderMap) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let Some(location) = headers.get(header::LOCATION).and_then(|location| location.to_str().ok()) else { return };
    let Some(page) = page(&String::from_utf8_lossy(admitted.authority.as_bytes()), path, location) else { return };
    let prefix = &live.config.portal_prefix;
    if !is_portal_page(prefix, &page) || !SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(route.to_owned()) {
        return;
    }
    let cure = if prefix.is_empty() { "/_auth" } else { "/_doorward" };
    tracing::warn!(
        route,
        page,
        "the backend redirects to a page that Doorward answers itself, so that people may be led in a circle; if it has \
         such a page of its own, set portal.prefix = \"{cure}\" (`doorward protect --prefix {cure}`)"
    );
}

/// The path on this host that a `Location` leads to; `None`: another host, or no URL.
fn page(authority: &str, path: &str, location: &str) -> Option<String> {
    let base = url::Url::parse(&format!("http://{authority}{path}")).ok()?;
    let target = base.join(location).ok()?;
    // TLS may end before us, so that the port says nothing.
    (target.host_str() == base.host_str()).then(|| target.path().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_page_of_this_host_or_none() {
        for (location, wanted) in [
            ("/login", Some("/login")),
            ("login?next=/", Some("/app/login")),
            ("../login", Some("/login")),
            ("//h.test/login", Some("/login")),
            ("https://h.test/login", Some("/login")),
            ("https://other.test/login", None),
            ("mailto:kim@h.test", None),
        ] {
            assert_eq!(page("h.test:8080", "/app/page", location).as_deref(), wanted, "{location}");
        }
    }
}
