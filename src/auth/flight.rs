//! Work that many ask for at the same time, on any thread, is done once, and its outcome kept for as long as it is good.
//!
//! - Whoever does the work may be dropped in the middle (his client left): one of those who wait goes on in his place.
//! - Memory is bounded: when it is full, what is no longer good goes first, then everything that is not under way.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

pub(super) struct Flights<K, V> {
    cells: Mutex<HashMap<K, Arc<OnceCell<V>>>>,
    capacity: usize,
}

impl<K: Eq + Hash + Clone, V: Clone> Flights<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { cells: Mutex::new(HashMap::new()), capacity }
    }

    /// The outcome for `key`: one that is there and still `good`, or that of `work`, which no two callers do at a time.
    ///
    /// Work that began before the caller came may end in something that is not good for him: then it is done once more.
    pub(super) async fn get<F: Future<Output = V>>(
        &self,
        key: K,
        good: impl Fn(&V) -> bool,
        work: impl Fn() -> F,
    ) -> V {
        let first = self.cell(&key, &good).get_or_init(&work).await.clone();
        if good(&first) {
            return first;
        }
        self.cell(&key, &good).get_or_init(&work).await.clone()
    }

    fn cell(&self, key: &K, good: impl Fn(&V) -> bool) -> Arc<OnceCell<V>> {
        let usable = |cell: &Arc<OnceCell<V>>| cell.get().is_none_or(&good);
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = cells.get(key).filter(|cell| usable(cell)) {
            return Arc::clone(cell);
        }
        if cells.len() >= self.capacity {
            cells.retain(|_, cell| usable(cell));
        }
        if cells.len() >= self.capacity {
            cells.retain(|_, cell| !cell.initialized() && Arc::strong_count(cell) > 1);
        }
        let cell = Arc::new(OnceCell::new());
        cells.insert(key.clone(), Arc::clone(&cell));
        cell
    }

    /// The outcomes that are there under keys that match.
    pub(super) fn peek(&self, matches: impl Fn(&K) -> bool) -> Vec<V> {
        let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.iter().filter(|(key, _)| matches(key)).filter_map(|(_, cell)| cell.get().cloned()).collect()
    }
}
