//! The client connections of all workers, so that at `max_connections` those that have idled longest make room.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::pace::Pace;

/// So many make room at once, at most: looking for them costs a look at each connection.
const MOST_AT_ONCE: usize = 32;
/// Of those that idle, one in so many makes room at once.
const SHARE: usize = 8;
/// Files that are not for connections: store, logs, listeners, admin.
const OTHER_FILES: u64 = 64;
/// So many client connections have one to a backend at the same time, where the limit of open files is large: the others
/// idle, and idle ones have none.
const BUSY_AT_ONCE: u64 = 4096;

/// Who is connected.
#[derive(Default)]
pub(super) struct Roster {
    next: AtomicU64,
    connections: Mutex<HashMap<u64, Arc<Pace>>>,
}

/// A connection's entry; it ends with the connection, or when that becomes a tunnel.
pub(super) struct Entry {
    roster: Arc<Roster>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.roster.connections.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

impl Roster {
    pub(super) fn enter(self: &Arc<Self>, pace: &Arc<Pace>) -> Entry {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::clone(pace));
        Entry { roster: Arc::clone(self), number }
    }

    /// Sends those away that have idled longest; nobody whose request is under way, which each looks at again itself.
    pub(super) fn make_room(&self) {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        // Of two since the same millisecond, the one that came first.
        let mut idle: Vec<(u64, u64, &Arc<Pace>)> = connections
            .iter()
            .filter_map(|(number, pace)| pace.idle_since().map(|since| (since, *number, pace)))
            .collect();
        idle.sort_unstable_by_key(|(since, number, _)| (*since, *number));
        for (_, _, pace) in idle.iter().take((idle.len() / SHARE).clamp(1, MOST_AT_ONCE)) {
            pace.send_away();
        }
    }
}

/// How many client connections fit into so many open files, so that those with a request under way can have a backend.
fn most_connections(files: u64) -> usize {
    let files = files.saturating_sub(OTHER_FILES);
    usize::try_from((files / 2).max(files.saturating_sub(BUSY_AT_ONCE))).unwrap_or(usize::MAX)
}

/// Raises the soft limit of open files to the hard one. How many connections fit: each may need a file of its own and one
/// for its backend.
pub(super) fn fitting(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let most = files.map_or(usize::MAX, most_connections);
    if wanted <= most {
        return wanted;
    }
    let used = most.max(1);
    tracing::warn!(
        used,
        max_connections = wanted,
        files = files.unwrap_or_default(),
        "server.limits.max_connections does not fit the limit of open files; raise LimitNOFILE"
    );
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_beside_their_backends() {
        for (files, most) in
            [(0, 0), (64, 0), (256, 96), (1024, 480), (8256, 4096), (20_000, 15_840), (1 << 20, 1_044_416)]
        {
            assert_eq!(most_connections(files), most, "{files} files");
        }
    }
}
