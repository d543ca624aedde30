//! Workers, listeners, connections, and how they come to rest.
//!
//! Each worker is a thread with a current-thread runtime, its own listening sockets and its own state; nothing that a
//! request touches crosses to another thread.

mod connection;
mod handover;
mod listener;
mod pace;
mod roster;
mod socket;

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::LocalRuntime;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};

pub use self::handover::{Inheritance, Offer, Succeeded, Taken};
use self::listener::{Accepted, Accepting, Listener};
pub use self::listener::{ListenError, Listeners};
use self::roster::Roster;
use crate::gate::{Core, Shared};

/// How far the process is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serve,
    /// No new connections; an answer ends its connection.
    Drain,
    /// Idle connections have had their grace and are closed.
    Leave,
    /// Whatever still runs is cut.
    Cut,
}

/// An idle connection may have a request on its way to us when the drain begins; this long it is still answered.
const IDLE_GRACE: Duration = Duration::from_secs(1);

/// Serves one connection that came in no other way, to its end.
#[cfg(any(test, fuzzing))]
pub async fn serve_socket<S>(socket: S, peer: Option<std::net::IpAddr>, core: Rc<Core>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (_stage, stages) = watch::channel(Stage::Serve);
    connection::serve(socket, peer, None, core, stages).await;
}

/// All workers.
pub struct Workers {
    stage: watch::Sender<Stage>,
    done: mpsc::UnboundedReceiver<()>,
    threads: Vec<std::thread::JoinHandle<()>>,
    open: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts one thread for each worker's share of the listeners. They accept at once.
    pub fn start(mut listeners: Listeners, shared: &Arc<Shared>) -> io::Result<Self> {
        let (stage, _) = watch::channel(Stage::Serve);
        let (finished, done) = mpsc::unbounded_channel();
        let open = Arc::new(AtomicUsize::new(0));
        let places = roster::fitting(shared.live().config.server.limits.max_connections);
        let permits = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        let roster = Arc::new(Roster::default());
        let mut threads = Vec::new();
        for (number, own) in std::mem::take(&mut listeners.by_worker).into_iter().enumerate() {
            let worker = Worker {
                shared: Arc::clone(shared),
                stage: stage.subscribe(),
                permits: Arc::clone(&permits),
                roster: Arc::clone(&roster),
                open: Arc::clone(&open),
            };
            let finished = finished.clone();
            let (opened, opens) = std::sync::mpsc::sync_channel(1);
            let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                // It can't leave the thread that it was made on.
                let runtime = match LocalRuntime::new() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(opened.send(Err(error))),
                };
                let _ = opened.send(Ok(()));
                runtime.block_on(worker.run(own));
                // What still runs is cut; a name that is being looked up is not waited for.
                runtime.shutdown_background();
                // The control thread may be gone already, at a second signal.
                let _ = finished.send(());
            })?;
            opens.recv().map_err(io::Error::other)??;
            threads.push(thread);
        }
        // Their files are removed when the workers are done with them.
        let guard = listeners;
        let mut stage_of_guard = stage.subscribe();
        std::thread::Builder::new().name(String::from("listeners")).spawn(move || {
            if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() {
                let _ = runtime.block_on(stage_of_guard.wait_for(|stage| *stage >= Stage::Drain));
            }
            drop(guard);
        })?;
        Ok(Self { stage, done, threads, open })
    }

    /// Open client connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Stops accepting, lets running requests finish, then ends. False: `limit` ran out and the rest was cut.
    /// [`Shared::drain`] comes first: connections that serve look at nothing else.
    pub async fn drain(mut self, limit: Duration) -> bool {
        self.stage.send_replace(Stage::Drain);
        let mut left = self.threads.len();
        let grace = IDLE_GRACE.min(limit / 2);
        let mut whole = all_done(&mut self.done, &mut left, grace).await;
        if !whole {
            self.stage.send_replace(Stage::Leave);
            whole = all_done(&mut self.done, &mut left, limit.saturating_sub(grace)).await;
        }
        self.stage.send_replace(Stage::Cut);
        for thread in self.threads {
            // A worker that panicked has been reported by its panic.
            let _ = thread.join();
        }
        whole
    }
}

/// Waits for the workers that are `left`. False: `limit` ran out.
async fn all_done(done: &mut mpsc::UnboundedReceiver<()>, left: &mut usize, limit: Duration) -> bool {
    let waiting = async {
        while *left > 0 {
            // `None` can't come while workers are left.
            let _ = done.recv().await;
            *left -= 1;
        }
    };
    tokio::time::timeout(limit, waiting).await.is_ok()
}

struct Worker {
    shared: Arc<Shared>,
    stage: watch::Receiver<Stage>,
    permits: Arc<Semaphore>,
    roster: Arc<Roster>,
    open: Arc<AtomicUsize>,
}

/// One worker's connections, so that it knows when the last one has gone.
#[derive(Default)]
struct Open {
    count: Cell<usize>,
    none_left: Notify,
}

struct Counted {
    own: Rc<Open>,
    all: Arc<AtomicUsize>,
    shared: Arc<Shared>,
}

impl Counted {
    fn new(own: &Rc<Open>, all: &Arc<AtomicUsize>, shared: &Arc<Shared>) -> Self {
        own.count.set(own.count.get() + 1);
        all.fetch_add(1, Ordering::SeqCst);
        shared.telemetry().metrics.connection_opened();
        Self { own: Rc::clone(own), all: Arc::clone(all), shared: Arc::clone(shared) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.own.count.set(self.own.count.get() - 1);
        self.all.fetch_sub(1, Ordering::SeqCst);
        self.shared.telemetry().metrics.connection_closed();
        if self.own.count.get() == 0 {
            self.own.none_left.notify_waiters();
        }
    }
}

impl Worker {
    async fn run(self, listeners: Vec<Listener>) {
        let core = Core::new(Arc::clone(&self.shared));
        tokio::task::spawn_local(Rc::clone(&core).watch_streams());
        tokio::task::spawn_local(tidy(Rc::clone(&core)));
        let open = Rc::new(Open::default());
        let mut accepting = Vec::new();
        for listener in listeners {
            match Accepting::new(listener) {
                Ok(listener) => {
                    accepting.push(tokio::task::spawn_local(self.accept(listener, Rc::clone(&core), Rc::clone(&open))));
                }
                Err(error) => tracing::error!(%error, "a worker can't use its listener"),
            }
        }
        for loop_of_one in accepting {
            // A panic there has been reported; the other loops go on.
            let _ = loop_of_one.await;
        }
        let mut stage = self.stage.clone();
        let cut = stage.wait_for(|stage| *stage == Stage::Cut);
        let none_left = async {
            while open.count.get() > 0 {
                let notified = open.none_left.notified();
                if open.count.get() == 0 {
                    break;
                }
                notified.await;
            }
        };
        tokio::select! {
            _ = cut => {}
            () = none_left => {}
        }
        core.tidy();
    }

    /// Accepts until the drain begins, then takes what the kernel already holds for us: those clients have been told
    /// that they are connected.
    fn accept(&self, listener: Accepting, core: Rc<Core>, open: Rc<Open>) -> impl Future<Output = ()> + 'static {
        let mut stage = self.stage.clone();
        let (permits, roster) = (Arc::clone(&self.permits), Arc::clone(&self.roster));
        let all = Arc::clone(&self.open);
        async move {
            let mut trouble = Trouble::default();
            loop {
                let accepted = tokio::select! {
                    biased;
                    accepted = listener.accept() => accepted,
                    _ = stage.wait_for(|stage| *stage >= Stage::Drain) => break,
                };
                let accepted = match accepted {
                    Ok(accepted) => {
                        trouble = Trouble::default();
                        accepted
                    }
                    Err(error) => {
                        trouble.wait(&error).await;
                        continue;
                    }
                };
                let permit = place(&permits, &roster).await;
                serve(accepted, Some((permit, Arc::clone(&roster))), &core, &open, &all, &stage);
            }
            // What the runtime has not yet heard of is asked of the kernel itself.
            for accepted in listener.rest() {
                serve(accepted, None, &core, &open, &all, &stage);
            }
        }
    }
}

/// A place under `max_connections`. Where there is none, connections that have idled longest make room; where none idles,
/// this one waits, unserved, until another one ends.
async fn place(permits: &Arc<Semaphore>, roster: &Roster) -> OwnedSemaphorePermit {
    /// Then somebody may have become idle.
    const AGAIN: Duration = Duration::from_millis(50);
    loop {
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return permit;
        }
        roster.make_room();
        if let Ok(Ok(permit)) = tokio::time::timeout(AGAIN, Arc::clone(permits).acquire_owned()).await {
            return permit;
        }
    }
}

/// Gives a connection a task of its own. `permit`: its place under `max_connections`.
fn serve(
    accepted: Accepted,
    permit: Option<(OwnedSemaphorePermit, Arc<Roster>)>,
    core: &Rc<Core>,
    open: &Rc<Open>,
    all: &Arc<AtomicUsize>,
    stage: &watch::Receiver<Stage>,
) {
    let counted = Counted::new(open, all, core.shared());
    let (core, stage) = (Rc::clone(core), stage.clone());
    tokio::task::spawn_local(async move {
        match accepted {
            Accepted::Tcp(socket, peer) => connection::serve(socket, Some(peer), permit, core, stage).await,
            Accepted::Unix(socket) => connection::serve(socket, None, permit, core, stage).await,
        }
        drop(counted);
    });
}

async fn tidy(core: Rc<Core>) {
    const EVERY: Duration = Duration::from_millis(250);
    loop {
        tokio::time::sleep(EVERY).await;
        core.tidy();
    }
}

/// Backing off when connections can't be accepted, for example because there are no file descriptors left.
#[derive(Default)]
struct Trouble {
    failures: u32,
}

impl Trouble {
    async fn wait(&mut self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, InvalidInput};
        // The client has left before it was accepted: no trouble of ours.
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | InvalidInput) {
            return;
        }
        if self.failures.is_multiple_of(20) {
            tracing::error!(%error, "connections can't be accepted; trying again");
        }
        let delay = Duration::from_millis(10 << self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(delay).await;
    }
}
