//! Where `rd` may lead.

use super::admit::Scheme;

/// The target that is safe to put into `Location`: a path on this host, or a URL of this host or a listed one; else `/`.
/// `authority`: this host as the browser knows it. `portal_prefix`: `/login`, `/logout` and `/check` below it become `/`.
#[must_use]
pub fn safe(_rd: &[u8], _authority: &str, _scheme: Scheme, _redirect_hosts: &[String], _portal_prefix: &str) -> String {
    todo!("helper: message")
}
