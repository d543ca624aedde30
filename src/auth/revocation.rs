//! The live part of the revocation log in memory: read on every request without a lock, without I/O.

use super::{Standing, Verified};
use crate::store::{LogEntry, LogFollower};

/// What is revoked. Shared by every worker.
#[derive(Debug, Default)]
pub struct Revocations {}

impl Revocations {
    /// False until the log has been read once: until then nobody is let in.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        todo!("helper: auth")
    }

    /// Whether a token is still good.
    #[must_use]
    pub fn standing(&self, _token: &Verified) -> Standing {
        todo!()
    }

    /// The newest number that was read.
    #[must_use]
    pub fn head(&self) -> u64 {
        todo!()
    }

    /// Rises with every change; open streams look again when it does. Cheap: one atomic load.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        todo!()
    }

    /// Waits until [`Revocations::epoch`] is no longer `seen`.
    pub async fn changed(&self, _seen: u64) {
        todo!()
    }

    /// Live entries (a metric).
    #[must_use]
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Forgets what has expired; called now and then by the control thread.
    pub fn forget_expired(&self, _now: u64) {
        todo!()
    }
}

impl LogFollower for Revocations {
    fn extend(&self, _entries: &[LogEntry], _head: u64) {
        todo!()
    }
}
