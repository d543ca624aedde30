//! The bounded pool of hashing threads: one for the whole process.
//!
//! A job never waits for a place: a full queue is an answer. A job whose asker has gone away is skipped, and a panic
//! ends its own job only. The threads run at the lowest scheduling priority, so that logins never slow requests.
//!
//! The queue belongs to networks, not to jobs: each network that has jobs waiting is served in its turn, and where the
//! queue is full, a network that has fewer waiting takes the place of the newest job of the one that has most. So whoever
//! sends many passwords at once waits for himself.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv6Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Whose turn a job takes: a client's network, or [`OPERATOR`].
pub type Network = Ipv6Addr;
/// Whose turn the jobs of commands take.
pub const OPERATOR: Network = Ipv6Addr::UNSPECIFIED;

/// Why a job gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The queue is full, and this network has its share of it.
    #[error("too many passwords are being checked right now")]
    Busy,
    /// The job panicked.
    #[error("a password check ended in a defect of the program")]
    Failed,
}

/// Handle to the pool; cheap to clone. The threads end when the last handle goes.
#[derive(Clone)]
pub struct HashPool(Arc<Handle>);

/// Closes the queue when it goes.
struct Handle(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Jobs that wait, by network.
struct Queue {
    places: usize,
    waiting: usize,
    jobs: HashMap<Network, VecDeque<Box<dyn Job>>>,
    /// Each network of `jobs` once; the next to be served first.
    turns: VecDeque<Network>,
    closed: bool,
}

/// Something to be worked out for somebody who waits.
trait Job: Send {
    /// Nobody waits for it any more.
    fn is_abandoned(&self) -> bool;
    fn run(self: Box<Self>);
    /// Its place is taken by somebody else's.
    fn refuse(self: Box<Self>);
}

struct Asked<T, W> {
    work: W,
    answer: oneshot::Sender<Result<T, HashError>>,
}

impl<T: Send, W: FnOnce() -> T + Send> Job for Asked<T, W> {
    fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }

    fn run(self: Box<Self>) {
        if !self.answer.is_closed() {
            let _ = self.answer.send(Ok((self.work)()));
        }
    }

    fn refuse(self: Box<Self>) {
        let _ = self.answer.send(Err(HashError::Busy));
    }
}

impl HashPool {
    /// Starts `threads` threads at the lowest scheduling priority; at most `queue` jobs wait. Both are at least 1.
    pub fn start(threads: usize, queue: usize) -> std::io::Result<Self> {
        let queue =
            Queue { places: queue.max(1), waiting: 0, jobs: HashMap::new(), turns: VecDeque::new(), closed: false };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), changed: Condvar::new() });
        let handle = Self(Arc::new(Handle(Arc::clone(&shared))));
        for number in 0..threads.max(1) {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("hash-{number}")).spawn(move || shared.work())?;
        }
        Ok(handle)
    }

    /// Jobs waiting right now (a metric).
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.0.lock().waiting
    }

    /// Runs `work` on a hashing thread, in its network's turn. [`HashError::Busy`] where there is no place for it, at
    /// once or when a network that has fewer waiting takes its place.
    pub async fn run<T: Send + 'static>(
        &self,
        network: Network,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HashError> {
        let (answer, asker) = oneshot::channel();
        self.0.0.lock().put(network, Box::new(Asked { work, answer }))?;
        self.0.0.changed.notify_one();
        asker.await.unwrap_or(Err(HashError::Failed))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        // On Linux "this process" in setpriority(2) means the calling thread. Without it hashing still works.
        if let Err(error) = rustix::process::setpriority_process(None, 19) {
            tracing::warn!(%error, "the hashing threads keep the ordinary priority");
        }
        while let Some(job) = self.next() {
            if catch_unwind(AssertUnwindSafe(|| job.run())).is_err() {
                tracing::error!("a password check ended in a defect of the program");
            }
        }
    }

    /// Waits for a job. `None` once the last handle is gone and nothing waits.
    fn next(&self) -> Option<Box<dyn Job>> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.take() {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Queue {
    fn put(&mut self, network: Network, job: Box<dyn Job>) -> Result<(), HashError> {
        if self.waiting >= self.places {
            self.sweep();
        }
        if self.waiting >= self.places {
            self.make_place(network)?;
        }
        let jobs = self.jobs.entry(network).or_default();
        if jobs.is_empty() {
            self.turns.push_back(network);
        }
        jobs.push_back(job);
        self.waiting += 1;
        Ok(())
    }

    /// The first job of the network whose turn it is; it is the last to have another turn.
    fn take(&mut self) -> Option<Box<dyn Job>> {
        let network = self.turns.pop_front()?;
        let jobs = self.jobs.get_mut(&network)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.jobs.remove(&network);
        } else {
            self.turns.push_back(network);
        }
        self.waiting -= usize::from(job.is_some());
        job
    }

    /// Lets go of what nobody waits for.
    fn sweep(&mut self) {
        self.jobs.retain(|_, jobs| {
            jobs.retain(|job| !job.is_abandoned());
            !jobs.is_empty()
        });
        self.turns.retain(|network| self.jobs.contains_key(network));
        self.waiting = self.jobs.values().map(VecDeque::len).sum();
    }

    /// The newest job of the network that has most waiting makes place for one of a network that would still have fewer.
    fn make_place(&mut self, network: Network) -> Result<(), HashError> {
        let own = self.jobs.get(&network).map_or(0, VecDeque::len);
        let most = self.jobs.iter_mut().max_by_key(|(_, jobs)| jobs.len());
        let (_, jobs) = most.filter(|(_, jobs)| jobs.len() > own + 1).ok_or(HashError::Busy)?;
        if let Some(newest) = jobs.pop_back() {
            self.waiting -= 1;
            newest.refuse();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_own_job_only() {
        let pool = HashPool::start(1, 2).unwrap();
        assert_eq!(pool.run(OPERATOR, || -> u8 { panic!("on purpose") }).await, Err(HashError::Failed));
        assert_eq!(pool.run(OPERATOR, || 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_full_queue_answers_at_once() {
        let pool = HashPool::start(1, 1).unwrap();
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let (began, running) = oneshot::channel();
        let first = tokio::spawn({
            let pool = pool.clone();
            async move {
                pool.run(OPERATOR, move || {
                    let _ = began.send(());
                    let _ = gate.recv();
                })
                .await
            }
        });
        running.await.unwrap();
        let mut second = Box::pin(pool.run(OPERATOR, || 2));
        tokio::select! { biased; _ = &mut second => panic!("nobody is free"), () = std::future::ready(()) => {} }
        assert_eq!(pool.waiting(), 1);
        assert_eq!(pool.run(OPERATOR, || 3).await, Err(HashError::Busy));
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(()));
        assert_eq!(second.await, Ok(2));
    }

    fn network(number: u16) -> Network {
        Network::new(0x2001, 0xdb8, number, 0, 0, 0, 0, 0)
    }

    /// A job that does nothing, and whoever waits for it.
    fn job(answers: &mut Vec<oneshot::Receiver<Result<u32, HashError>>>, number: u32) -> Box<dyn Job> {
        let (answer, asker) = oneshot::channel();
        answers.push(asker);
        Box::new(Asked { work: move || number, answer })
    }

    fn queue(places: usize) -> Queue {
        Queue { places, waiting: 0, jobs: HashMap::new(), turns: VecDeque::new(), closed: false }
    }

    #[test]
    fn networks_take_turns_and_the_greedy_one_makes_place() {
        let (mut queue, mut answers) = (queue(8), Vec::new());
        for number in 0..8 {
            queue.put(network(1), job(&mut answers, number)).unwrap();
        }
        assert_eq!(queue.put(network(1), job(&mut answers, 8)), Err(HashError::Busy));
        // Another one gets in as long as it has fewer, and nobody else's goes for it.
        for number in 10..14 {
            queue.put(network(2), job(&mut answers, number)).unwrap();
        }
        assert_eq!(queue.put(network(2), job(&mut answers, 14)), Err(HashError::Busy));
        queue.put(network(3), job(&mut answers, 20)).unwrap();
        assert_eq!(queue.waiting, 8);
        let mut served = Vec::new();
        while let Some(job) = queue.take() {
            job.run();
            for (at, answer) in answers.iter_mut().enumerate() {
                if let Ok(Ok(number)) = answer.try_recv() {
                    assert!(!served.contains(&number), "{at}");
                    served.push(number);
                }
            }
        }
        // The oldest of each network first, one after the other.
        let (last, rest) = served.split_last().unwrap();
        assert_eq!(rest, [0, 10, 20, 1, 11, 2, 12]);
        assert!([3, 13].contains(last), "{last}");
        assert_eq!((queue.waiting, queue.jobs.len(), queue.turns.len()), (0, 0, 0));
    }

    #[test]
    fn what_nobody_waits_for_makes_place_first() {
        let (mut queue, mut answers) = (queue(4), Vec::new());
        for number in 0..4 {
            queue.put(network(1), job(&mut answers, number)).unwrap();
        }
        answers.drain(1..3);
        queue.put(network(1), job(&mut answers, 4)).unwrap();
        assert_eq!(queue.waiting, 3);
    }

    proptest::proptest! {
        /// However many networks push and in what order: the count is right, the bound holds, and a network that has
        /// fewer waiting than half its equal share of the places always gets in.
        #[test]
        fn the_queue_is_bounded_and_shared(steps in proptest::collection::vec((0_u16..6, 0_u8..4), 1..300)) {
            let (mut queue, mut answers) = (queue(12), Vec::new());
            for (number, (from, step)) in steps.into_iter().enumerate() {
                if step == 0 {
                    drop(queue.take());
                } else {
                    let own = queue.jobs.get(&network(from)).map_or(0, VecDeque::len);
                    let put = queue.put(network(from), job(&mut answers, u32::try_from(number).unwrap()));
                    if own == 0 {
                        proptest::prop_assert_eq!(put, Ok(()));
                    }
                }
                proptest::prop_assert_eq!(queue.waiting, queue.jobs.values().map(VecDeque::len).sum::<usize>());
                proptest::prop_assert_eq!(queue.turns.len(), queue.jobs.len());
                proptest::prop_assert!(queue.waiting <= 12);
            }
        }
    }
}
