//! The bounded pool of hashing threads: one for the whole process.

/// Handle to the pool; cheap to clone. The threads end when the last handle goes.
#[derive(Clone)]
pub struct HashPool {}

impl HashPool {
    /// Starts `threads` threads at the lowest scheduling priority; at most `queue` jobs wait.
    pub fn start(_threads: usize, _queue: usize) -> std::io::Result<Self> {
        todo!("helper: accounts")
    }

    /// Jobs waiting right now (a metric).
    #[must_use]
    pub fn waiting(&self) -> usize {
        todo!()
    }
}
