//! Identity headers: removing the client's in every spelling, setting ours.

use http::{HeaderMap, HeaderName};

use crate::config::IdentityHeader;
use crate::policy::Principal;

/// Knows every header name that a client must not send. Made once per configuration.
#[derive(Clone, Debug)]
pub struct Guarded {}

impl Guarded {
    /// `methods_matter`: routes differ by method, so that method-override headers go too.
    #[must_use]
    pub fn new(_ours: &[IdentityHeader], _methods_matter: bool) -> Self {
        todo!("helper: message")
    }

    /// Whether a client's header of this name must not reach a backend.
    #[must_use]
    pub fn covers(&self, _name: &HeaderName) -> bool {
        todo!()
    }

    /// Removes all of them, every copy.
    pub fn strip(&self, _headers: &mut HeaderMap) {
        todo!()
    }
}

/// Sets `headers` from the person; a header without a value is not sent.
pub fn set(_headers: &mut HeaderMap, _ours: &[IdentityHeader], _person: &Principal) {
    todo!()
}
