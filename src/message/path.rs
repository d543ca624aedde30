//! The every-reading rule: all that a backend could take a path for.

/// Every plausible reading of one path.
#[derive(Clone, Debug)]
pub struct Readings {}

impl Readings {
    /// Works them out. `None` where a control character or NUL hides in it, also encoded.
    #[must_use]
    pub fn of(_path: &str) -> Option<Self> {
        todo!("helper: message")
    }

    /// The path as it was sent.
    #[must_use]
    pub fn as_sent(&self) -> &[u8] {
        todo!()
    }

    /// Calls `visit` with every distinct reading, the one as sent first, until it returns false.
    /// Case folding is not among them: the router compares each reading both ways (see `router`).
    pub fn all(&self, _visit: &mut dyn FnMut(&[u8]) -> bool) {
        todo!()
    }

    /// The most decoded, dot-free reading, for `explain` and logs.
    #[must_use]
    pub fn canonical(&self) -> String {
        todo!()
    }
}
