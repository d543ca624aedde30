//! A whole gateway: started in order, watched by the control thread, taken down in order.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::LocalRuntime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::centre::Centre;
use super::reload::Reloader;
use super::succession::{self, Own};
use super::{Owners, PATIENCE, Purpose, Rooms, StartError, may_make_first_key, open_store, system, telemetry};
use crate::admin::listener::{Reason, Report};
use crate::admin::operations::{InForce, Operations};
use crate::auth::keys;
use crate::clock::Clock;
use crate::config::Config;
use crate::feed::{self, Feed};
use crate::gate::{Live, LiveError, Shared};
use crate::portal::Portal;
use crate::server::{Inheritance, ListenError, Listeners, Workers};
use crate::store::{Store, Write};
use crate::telemetry::Telemetry;

/// How a gateway ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Everything that ran was finished.
    Whole,
    /// `server.drain` ran out, or a second signal came.
    Cut,
}

/// Runs a gateway until a signal ends it. `ready` is called once it accepts connections, with its TCP addresses.
pub fn serve(config: Config, ready: impl FnOnce(&[std::net::SocketAddr])) -> Result<Stopped, StartError> {
    let runtime = LocalRuntime::new().map_err(system("the runtime can't be started"))?;
    let _owners = Owners::of(&config);
    runtime.block_on(run(config, ready))
}

async fn run(config: Config, ready: impl FnOnce(&[std::net::SocketAddr])) -> Result<Stopped, StartError> {
    let clock = Clock::system();
    crate::telemetry::subscribe(&config.log)?;
    let telemetry = telemetry(&config, &clock, true)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // Signals are caught before anything is open, so that an early one ends the start in order too.
    let mut signals = Signals::new()?;

    // Everything that can be refused comes before the first connection is accepted.
    Live::test(&config)?;
    let mut inheritance = succession::ask(&config)?;
    // Before a port opens and before the store is read, which takes its time: whoever finds this process finds somebody
    // who answers.
    let mut own = Own::open(&config, telemetry.metrics.clone(), inheritance.as_mut()).await?;
    let start = Start { config: &config, clock, telemetry: &telemetry, inheritance };
    let stopped = serve_behind(&mut own, start, &mut signals, ready).await;
    // Where the start failed nobody has done that yet.
    own.close(&config).await;
    telemetry.access.close();
    stopped
}

/// What a gateway is made of.
struct Start<'c> {
    config: &'c Config,
    clock: Clock,
    telemetry: &'c Telemetry,
    inheritance: Option<Inheritance>,
}

async fn serve_behind(
    own: &mut Own,
    start: Start<'_>,
    signals: &mut Signals,
    ready: impl FnOnce(&[std::net::SocketAddr]),
) -> Result<Stopped, StartError> {
    let Start { config, clock, telemetry, mut inheritance } = start;
    if may_make_first_key(config) {
        let key = keys::generate(&config.data_dir, config.token.algorithm, &clock).map_err(LiveError::from)?;
        tracing::info!(kid = key.kid, file = key.origin, "no key is named and none was there: made the first one");
    }
    // Whoever changes the keys from here on finds somebody to tell.
    let live = Live::new(config.clone(), &clock, &telemetry.metrics)?;
    let listeners = open_listeners(config, inheritance.as_mut()).await?;
    let addresses = listeners.addresses.clone();
    let store = open_store(config, &clock, Purpose::Serve, PATIENCE).await?;
    let rooms = Rooms::furnish(config, clock.clone(), telemetry.clone(), store, Purpose::Serve).await?;
    let taken = listeners.taken.clone();
    let copies = if config.server.handover { listeners.copies() } else { Ok(Vec::new()) };
    let copies = copies.map_err(system("the sockets can't be copied for a later process"))?;

    let shared = share(live, &rooms, telemetry);
    let state = Rc::new(State {
        shared: Arc::clone(&shared),
        leaving: Cell::new(false),
        store_problem: RefCell::new(None),
        centre: rooms.centre.clone(),
    });

    let probing = Rc::new(RefCell::new(Probing::default()));
    probing.borrow_mut().start(&shared.live(), &clock);
    let reloader = config.source.clone().map(|source| reloader(source, &rooms, &shared, &probing));
    if let Some(centre) = &rooms.centre {
        centre.follow(&shared, &rooms.freshness);
    }
    let operations = operations(&rooms, &shared, reloader.as_ref());
    if let Some(reloader) = &reloader {
        tokio::task::spawn_local(Rc::clone(reloader).watch());
    }
    tokio::task::spawn_local(look_after(Rc::clone(&state), Arc::clone(&rooms.store), rooms.hashers.clone()));
    tokio::task::spawn_local(keep_beating(Arc::clone(&rooms.feed), Arc::clone(&shared)));

    if inheritance.is_some() {
        // Until then the old process is the better one to come to.
        tokio::select! {
            () = succession::ready_to_decide(&shared) => {}
            () = signals.stop() => return Ok(Stopped::Whole),
        }
    }
    let workers = Workers::start(listeners, &shared).map_err(system("the workers can't be started"))?;
    if let Some(inheritance) = inheritance {
        succession::succeed(inheritance, &taken);
    }
    let offer = own.serve(config, &state, operations, copies, &taken)?;
    tracing::info!(
        listen = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        workers = config.server.workers,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    ready(&addresses);
    notify(&[sd_notify::NotifyState::Ready]);

    signals.wait(reloader.as_deref()).await;
    if let Some(offer) = &offer {
        offer.close();
    }
    state.leaving.set(true);
    let stopped = take_down(&shared, &rooms.feed, workers, signals).await;
    own.close(config).await;
    if let Err(error) = rooms.store.close().await {
        tracing::error!(%error, "the store could not be closed in order");
    }
    Ok(stopped)
}

/// What carries out commands.
fn operations(rooms: &Rooms, shared: &Arc<Shared>, reloader: Option<&Rc<Reloader>>) -> Rc<Operations> {
    let shared = Arc::clone(shared);
    let in_force = Box::new(move || shared.live() as Arc<dyn InForce>);
    let reload = reloader.map(Rc::clone).map(|reloader| Box::new(move || reloader.reload()) as _);
    Rc::new(rooms.operations(in_force, reload))
}

/// What all workers share.
fn share(live: Live, rooms: &Rooms, telemetry: &Telemetry) -> Arc<Shared> {
    let portal = Portal::new(
        rooms.accounts.clone(),
        Arc::clone(&rooms.sessions),
        telemetry.clone(),
        Arc::clone(&rooms.feed),
        Arc::clone(&rooms.store),
    );
    let shared = Shared::new(
        live,
        rooms.clock.clone(),
        Arc::clone(&rooms.revocations),
        Arc::clone(&rooms.freshness),
        Arc::clone(&rooms.sessions),
        portal,
        telemetry.clone(),
    );
    Arc::new(match &rooms.centre {
        Some(centre) => shared.with_keys_of_centre(centre.wanted()),
        None => shared,
    })
}

/// Reads the file again, and tells those who have to know.
fn reloader(
    source: std::path::PathBuf,
    rooms: &Rooms,
    shared: &Arc<Shared>,
    probing: &Rc<RefCell<Probing>>,
) -> Rc<Reloader> {
    let (probing, clock) = (Rc::clone(probing), rooms.clock.clone());
    let (feed, of_feed) = (Arc::clone(&rooms.feed), Arc::clone(shared));
    let swapped = move |live: &Arc<Live>| {
        probing.borrow_mut().start(live, &clock);
        // Gateways are told of new keys before they meet a token that was signed with one.
        beat(&feed, &of_feed);
    };
    Reloader::new(Arc::clone(shared), source, rooms.centre.clone(), swapped)
}

/// A port may still be held by the process that this one replaces, for the moment that its end takes.
async fn open_listeners(config: &Config, inheritance: Option<&mut Inheritance>) -> Result<Listeners, StartError> {
    const PAUSE: Duration = Duration::from_millis(100);
    if inheritance.is_some() {
        // It is there, and stays: nothing to wait for.
        return Ok(Listeners::open_beside(&config.server.listen, config.server.workers, inheritance)?);
    }
    let mut waited = Duration::ZERO;
    loop {
        match Listeners::open(&config.server.listen, config.server.workers) {
            Err(ListenError::InUse { .. }) if waited < PATIENCE / 5 => {
                tokio::time::sleep(PAUSE).await;
                waited += PAUSE;
            }
            opened => return Ok(opened?),
        }
    }
}

async fn take_down(shared: &Arc<Shared>, feed: &Feed, workers: Workers, signals: &mut Signals) -> Stopped {
    notify(&[sd_notify::NotifyState::Stopping]);
    let live = shared.live();
    let (delay, limit) = (live.config.server.drain_delay, live.config.server.drain);
    drop(live);
    if !delay.is_zero() && !linger(delay, signals).await {
        // Nothing is waited for: what runs is cut.
        shared.drain();
        feed.close();
        let _ = workers.drain(Duration::ZERO).await;
        return Stopped::Cut;
    }
    tracing::info!(connections = workers.connections(), tunnels = shared.tunnels(), "draining");
    shared.drain();
    // Its answers have no end of their own.
    feed.close();
    tokio::select! {
        whole = workers.drain(limit) => {
            if whole {
                tracing::info!("drained");
                Stopped::Whole
            } else {
                tracing::warn!("server.drain ran out; what was still running was cut");
                Stopped::Cut
            }
        }
        () = signals.stop() => {
            tracing::warn!("a second signal: ending at once");
            Stopped::Cut
        }
    }
}

/// Goes on serving, new connections too, while those who send them learn from `/ready` that this process leaves. False
/// where a second signal wants the end at once.
async fn linger(delay: Duration, signals: &mut Signals) -> bool {
    tracing::info!(seconds = delay.as_secs(), "leaving: new connections are served until server.drain_delay is over");
    tokio::select! {
        () = tokio::time::sleep(delay) => true,
        () = signals.stop() => {
            tracing::warn!("a second signal: ending at once");
            false
        }
    }
}

/// Tells the service manager, where there is one.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// `SIGXFSZ` of signal(7); the same number on every architecture of Linux that is served.
const SIGXFSZ: i32 = 25;

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
    /// A file that may not grow would end the process; caught, the write fails and is reported.
    _file_size: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, StartError> {
        let catch = |kind| signal(kind).map_err(system("signals can't be caught"));
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            hang_up: catch(SignalKind::hangup())?,
            _file_size: catch(SignalKind::from_raw(SIGXFSZ))?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for the signal that ends the process; reloads at each SIGHUP until then.
    async fn wait(&mut self, reloader: Option<&Reloader>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => {
                    if let Some(reloader) = reloader {
                        notify(&[sd_notify::NotifyState::Reloading]);
                        // Reported where it is done.
                        let _ = reloader.reload();
                        notify(&[sd_notify::NotifyState::Ready]);
                    }
                }
            }
        }
    }
}

/// The health probes of the configuration in force.
#[derive(Default)]
struct Probing(Option<JoinHandle<()>>);

impl Probing {
    fn start(&mut self, live: &Arc<Live>, clock: &Clock) {
        let probe = Arc::clone(&live.health).probe(clock.clone());
        if let Some(before) = self.0.replace(tokio::task::spawn_local(probe)) {
            before.abort();
        }
    }
}

/// What the admin listener tells.
pub(super) struct State {
    shared: Arc<Shared>,
    /// The signal to end has come; connections may still be served, see `server.drain_delay`.
    leaving: Cell<bool>,
    store_problem: RefCell<Option<String>>,
    centre: Option<Rc<Centre>>,
}

impl Report for State {
    fn reasons(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut add = |code, detail| reasons.push(Reason { code, detail });
        if self.leaving.get() {
            add("draining", String::from("the process is on its way out"));
        }
        if !self.shared.revocations().is_ready() {
            let why = self.centre.as_ref().and_then(|centre| centre.status().feed_problem());
            add("starting", detailed("the revocation log has not been read yet", why));
        }
        if self.shared.live().ring.is_empty() {
            let why = self.centre.as_ref().and_then(|centre| centre.status().keys_problem());
            add("starting", detailed("the centre's keys have not been read yet", why));
        }
        if let Some(problem) = &*self.store_problem.borrow() {
            add("store_unreachable", problem.clone());
        }
        let live = self.shared.live();
        let staleness = self.shared.staleness();
        if staleness > live.config.store.max_staleness {
            let why = self.centre.as_ref().and_then(|centre| centre.status().feed_problem());
            let what = format!("the revocation log was last heard of {} s ago", staleness.as_secs());
            add("stale", detailed(&what, why));
        }
        for name in live.health.unreachable(self.shared.clock().instant()) {
            add("upstream_unreachable", format!("no URL of upstream {name:?} can be reached"));
        }
        reasons
    }

    fn metrics(&self) -> String {
        self.shared.telemetry().metrics.text()
    }
}

fn detailed(what: &str, why: Option<String>) -> String {
    why.map_or_else(|| what.to_owned(), |why| format!("{what}: {why}"))
}

/// A sign of life for those who read the revocation feed here.
fn beat(feed: &Feed, shared: &Shared) {
    let keys = shared.live().ring.jwks().map(|keys| feed::line::print(keys.to_string().as_bytes()));
    feed.beat(shared.staleness(), keys.unwrap_or_default(), shared.revocations().forgotten_here(shared.clock()));
}

async fn keep_beating(feed: Arc<Feed>, shared: Arc<Shared>) {
    loop {
        beat(&feed, &shared);
        shared.telemetry().metrics.feed_readers(feed.readers());
        tokio::time::sleep(feed::BEAT_EVERY).await;
    }
}

/// Once a second: the store's health, what has expired, and gauges.
async fn look_after(state: Rc<State>, store: Arc<dyn Store>, hashers: crate::accounts::hashing::HashPool) {
    const EVERY: Duration = Duration::from_secs(1);
    let shared = &state.shared;
    let mut longest = 0;
    let metrics = &shared.telemetry().metrics;
    loop {
        let health = match state.centre {
            // There is no store; the feed says itself when it was heard of.
            Some(_) => Ok(()),
            None => store.health().await,
        };
        let problem = health.err().map(|error| error.to_string());
        match (&*state.store_problem.borrow(), &problem) {
            (None, Some(problem)) => tracing::error!(%problem, "the store takes no changes"),
            (Some(_), None) => tracing::info!("the store takes changes again"),
            _ => {}
        }
        metrics.store_up(problem.is_none());
        *state.store_problem.borrow_mut() = problem;
        let horizon = shared.live().config.token.horizon().as_secs();
        if state.centre.is_none() && horizon > longest && store.apply(vec![Write::Longest(horizon)]).await.is_ok() {
            longest = horizon;
        }
        metrics.live_revocations(shared.revocations().len());
        metrics.revocation_lag(shared.staleness().as_secs());
        metrics.hash_queue(hashers.waiting());
        shared.telemetry().access.flush();
        tokio::time::sleep(EVERY).await;
    }
}
