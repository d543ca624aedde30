//! One process after another on the same folder and ports (`server.handover`): what the first gives and the second takes.
//!
//! Both serve for a while. What only one of them may answer, the admin listener and the commands of the admin socket, goes
//! over in the moment in which the second one serves.

use std::cell::OnceCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::control::State;
use super::{PATIENCE, StartError, system};
use crate::admin::listener::{self, Reason, Report};
use crate::admin::operations::Operations;
use crate::admin::socket::{self, Claim, Stage};
use crate::config::Config;
use crate::gate::Shared;
use crate::server::{Inheritance, Offer, Succeeded, Taken};
use crate::telemetry::metrics::Metrics;

/// The name under which the admin socket is handed over.
const COMMANDS: &str = "admin socket";
/// The name under which the lock beside it is handed over.
const CLAIM: &str = "admin lock";
/// How often a process that is about to end is looked after.
const PAUSE: Duration = Duration::from_millis(50);

/// The sockets of the process that runs on this folder, where it is to be replaced.
pub(super) fn ask(config: &Config) -> Result<Option<Inheritance>, StartError> {
    if !config.server.handover {
        return Ok(None);
    }
    Inheritance::ask(&config.data_dir).map_err(system("the running process does not hand over its sockets"))
}

/// What one process at a time answers on a folder: there from before the store is read until after the last request.
pub(super) struct Own {
    /// Whether the admin socket is this process's alone.
    claim: Option<Claim>,
    front: Rc<Front>,
    stage: watch::Sender<Stage>,
    /// Those of another process, which answers them still.
    inherited: Inherited,
    answering: Answering,
    /// For a later process.
    copies: Vec<(String, OwnedFd)>,
    taken: Taken,
}

#[derive(Default)]
struct Inherited {
    admin: Option<TcpListener>,
    commands: Option<UnixListener>,
}

/// The tasks that answer.
#[derive(Default)]
struct Answering {
    admin: Option<JoinHandle<()>>,
    commands: Option<JoinHandle<()>>,
}

impl Own {
    /// Opens it, and answers at once that the process is starting; or takes it over, to be answered by [`Own::serve`].
    pub(super) async fn open(
        config: &Config,
        metrics: Metrics,
        mut inheritance: Option<&mut Inheritance>,
    ) -> Result<Self, StartError> {
        let mut own = Self {
            claim: None,
            front: Rc::new(Front { metrics, state: OnceCell::new() }),
            stage: watch::Sender::new(Stage::Starting),
            inherited: Inherited::default(),
            answering: Answering::default(),
            copies: Vec::new(),
            taken: Taken::default(),
        };
        let mut inherited = |name: &str| inheritance.as_mut().and_then(|from| from.named(name).pop());
        // A verify-only gateway has nothing to command: no folder of its own, and no socket.
        if config.central.is_none() {
            super::make_data_dir(config)?;
            let (lock, socket) = (inherited(CLAIM), inherited(COMMANDS));
            own.open_commands(config, lock, socket).await.map_err(system("the admin socket can't be opened"))?;
        }
        if let Some(address) = config.admin.listen {
            let opened = own.open_admin(config, address, inherited(&admin_name(address))).await;
            opened.map_err(|source| StartError::Admin { address: address.to_string(), source })?;
        }
        Ok(own)
    }

    async fn open_commands(
        &mut self,
        config: &Config,
        lock: Option<OwnedFd>,
        socket: Option<OwnedFd>,
    ) -> io::Result<()> {
        let claim = match lock {
            Some(lock) => Claim::inherit(lock),
            None => claim(&config.data_dir).await?,
        };
        let is_inherited = socket.is_some();
        let commands = match socket {
            Some(socket) => socket::inherit(socket)?,
            None => socket::bind(&config.data_dir, &claim)?,
        };
        if config.server.handover {
            self.copies.push((String::from(CLAIM), claim.copy()?));
            self.copies.push((String::from(COMMANDS), commands.as_fd().try_clone_to_owned()?));
        }
        self.claim = Some(claim);
        if is_inherited {
            self.inherited.commands = Some(commands);
        } else {
            self.answer_commands(commands);
        }
        Ok(())
    }

    async fn open_admin(&mut self, config: &Config, address: SocketAddr, inherited: Option<OwnedFd>) -> io::Result<()> {
        let is_inherited = inherited.is_some();
        let admin = match inherited {
            Some(listener) => listener::inherit(listener)?,
            None => bind_admin(address).await?,
        };
        if config.server.handover {
            self.copies.push((admin_name(address), admin.as_fd().try_clone_to_owned()?));
        }
        if is_inherited {
            self.inherited.admin = Some(admin);
        } else {
            self.answer_admin(admin);
        }
        Ok(())
    }

    fn answer_admin(&mut self, listener: TcpListener) {
        let front = Rc::clone(&self.front) as Rc<dyn Report>;
        self.answering.admin = Some(tokio::task::spawn_local(listener::serve(listener, front)));
    }

    fn answer_commands(&mut self, listener: UnixListener) {
        let front = Rc::clone(&self.front) as Rc<dyn Report>;
        self.answering.commands =
            Some(tokio::task::spawn_local(socket::serve(listener, self.stage.subscribe(), front)));
    }

    /// From here on the answers are those of a process that serves. Offers everything to a later process where that is
    /// wanted: `sockets`, and what is its own.
    pub(super) fn serve(
        &mut self,
        config: &Config,
        state: &Rc<State>,
        operations: Rc<Operations>,
        sockets: Vec<(String, OwnedFd)>,
        taken: &Taken,
    ) -> Result<Option<Arc<Offer>>, StartError> {
        // Set once, here.
        let _ = self.front.state.set(Rc::clone(state));
        self.stage.send_replace(Stage::Serving(operations));
        self.taken = taken.clone();
        let Inherited { admin, commands } = std::mem::take(&mut self.inherited);
        if let Some(admin) = admin {
            self.answer_admin(admin);
        }
        if let Some(commands) = commands {
            self.answer_commands(commands);
        }
        if !config.server.handover {
            return Ok(None);
        }
        let mut copies = sockets;
        copies.append(&mut self.copies);
        let (offer, successions) = Offer::open(&config.data_dir, copies, taken.clone())
            .map_err(system("the socket for a later process can't be opened"))?;
        let Answering { admin, commands } = std::mem::take(&mut self.answering);
        tokio::task::spawn_local(make_way(successions, [admin, commands].into_iter().flatten().collect()));
        Ok(Some(offer))
    }

    /// Takes no more commands; those that were begun are carried out, and whoever comes too late, or waited for a start
    /// that failed, is told to look for itself. Call it before the store is closed.
    pub(super) async fn close(&mut self, config: &Config) {
        let is_ours = self.claim.is_some() && self.inherited.commands.is_none() && !self.taken.is_so();
        if is_ours {
            // Before the socket: whoever finds the file finds somebody behind it.
            let _ = std::fs::remove_file(socket::path(&config.data_dir));
        }
        self.stage.send_replace(Stage::Over);
        if let Some(commands) = self.answering.commands.take() {
            // A command that hangs does not keep the process.
            let _ = tokio::time::timeout(PATIENCE, commands).await;
        }
    }
}

/// Waits for a process that is about to end: a restart begins before the end of what it replaces.
async fn claim(data_dir: &Path) -> io::Result<Claim> {
    let mut waited = Duration::ZERO;
    loop {
        match Claim::take(data_dir)? {
            Some(claim) => return Ok(claim),
            None if waited < PATIENCE => {
                tokio::time::sleep(PAUSE).await;
                waited += PAUSE;
            }
            None => return Err(socket::taken(data_dir)),
        }
    }
}

/// The port may still be held by the process that this one replaces, for the moment that its end takes.
async fn bind_admin(address: SocketAddr) -> io::Result<TcpListener> {
    let mut waited = Duration::ZERO;
    loop {
        match listener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && waited < PATIENCE / 5 => {
                tokio::time::sleep(PAUSE).await;
                waited += PAUSE;
            }
            bound => return bound,
        }
    }
}

/// What the admin listener tells: until there is a state, that the process is starting.
struct Front {
    metrics: Metrics,
    state: OnceCell<Rc<State>>,
}

impl Report for Front {
    fn reasons(&self) -> Vec<Reason> {
        match self.state.get() {
            Some(state) => state.reasons(),
            None => vec![Reason { code: "starting", detail: String::from("the store is being opened and read") }],
        }
    }

    fn metrics(&self) -> String {
        self.metrics.text()
    }
}

/// Waits until this process knows all that a decision needs.
pub(super) async fn ready_to_decide(shared: &Shared) {
    const PAUSE: Duration = Duration::from_millis(20);
    while !shared.revocations().is_ready() || shared.live().ring.is_empty() {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Tells the old process that this one serves. The workers do so already, so this may wait for the answer.
pub(super) fn succeed(inheritance: Inheritance, taken: &Taken) {
    match inheritance.serving() {
        Ok(()) => tracing::info!("took over from the running process, which may be ended now"),
        Err(error) => tracing::warn!(%error, "the process that was to be replaced has gone before its time"),
    }
    taken.set(false);
}

/// Waits for the process that takes over, and leaves to it what only one of both may answer.
async fn make_way(mut successions: mpsc::UnboundedReceiver<Succeeded>, answering: Vec<JoinHandle<()>>) {
    let Some(succeeded) = successions.recv().await else { return };
    for task in answering {
        task.abort();
        // Its socket is closed when it has ended; that it was aborted is no news.
        let _ = task.await;
    }
    tracing::info!("another process has taken over; this one serves beside it until it is told to end");
    // It may be gone again: then there is nobody to tell.
    let _ = succeeded.send(());
}

/// The name under which the admin listener is handed over.
fn admin_name(address: SocketAddr) -> String {
    format!("admin {address}")
}
