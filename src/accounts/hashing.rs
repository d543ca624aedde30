//! The bounded pool of hashing threads: one for the whole process.
//!
//! A job never waits for a place: a full queue is an answer. A job whose asker has gone away is skipped, and a panic
//! ends its own job only. The threads run at the lowest scheduling priority, so that logins never slow requests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

type Job = Box<dyn FnOnce() + Send>;

/// Why a job gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The queue is full.
    #[error("too many passwords are being checked right now")]
    Busy,
    /// The job panicked.
    #[error("a password check ended in a defect of the program")]
    Failed,
}

/// Handle to the pool; cheap to clone. The threads end when the last handle goes.
#[derive(Clone)]
pub struct HashPool {
    jobs: SyncSender<Job>,
    waiting: Arc<AtomicUsize>,
}

impl HashPool {
    /// Starts `threads` threads at the lowest scheduling priority; at most `queue` jobs wait. Both are at least 1.
    pub fn start(threads: usize, queue: usize) -> std::io::Result<Self> {
        let (jobs, receiver) = sync_channel(queue.max(1));
        let receiver = Arc::new(Mutex::new(receiver));
        let waiting = Arc::new(AtomicUsize::new(0));
        for number in 0..threads.max(1) {
            let (receiver, waiting) = (Arc::clone(&receiver), Arc::clone(&waiting));
            std::thread::Builder::new().name(format!("hash-{number}")).spawn(move || work(&receiver, &waiting))?;
        }
        Ok(Self { jobs, waiting })
    }

    /// Jobs waiting right now (a metric).
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Runs `job` on a hashing thread. [`HashError::Busy`] at once where the queue is full.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, HashError> {
        let (answer, asker) = tokio::sync::oneshot::channel();
        let job: Job = Box::new(move || {
            if !answer.is_closed() {
                let _ = answer.send(job());
            }
        });
        // Counted before it is sent, or a quick thread would count below nothing.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.jobs.try_send(job).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(HashError::Busy);
        }
        asker.await.map_err(|_| HashError::Failed)
    }
}

fn work(jobs: &Mutex<Receiver<Job>>, waiting: &AtomicUsize) {
    // On Linux "this process" in setpriority(2) means the calling thread. Without it hashing still works.
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::warn!(%error, "the hashing threads keep the ordinary priority");
    }
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        waiting.fetch_sub(1, Ordering::Relaxed);
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a password check ended in a defect of the program");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_own_job_only() {
        let pool = HashPool::start(1, 2).unwrap();
        assert_eq!(pool.run(|| -> u8 { panic!("on purpose") }).await, Err(HashError::Failed));
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_full_queue_answers_at_once() {
        let pool = HashPool::start(1, 1).unwrap();
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let (began, running) = tokio::sync::oneshot::channel();
        let first = tokio::spawn({
            let pool = pool.clone();
            async move {
                pool.run(move || {
                    let _ = began.send(());
                    let _ = gate.recv();
                })
                .await
            }
        });
        running.await.unwrap();
        let mut second = Box::pin(pool.run(|| 2));
        tokio::select! { biased; _ = &mut second => panic!("nobody is free"), () = std::future::ready(()) => {} }
        assert_eq!(pool.waiting(), 1);
        assert_eq!(pool.run(|| 3).await, Err(HashError::Busy));
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(()));
        assert_eq!(second.await, Ok(2));
    }
}
