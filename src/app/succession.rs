//! One process after another on the same folder and ports (`server.handover`): what the first gives and the second takes.
//!
//! Both serve for a while. What only one of them may answer, the admin listener and the commands of the admin socket, goes
//! over in the moment in which the second one serves.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::control::State;
use super::{StartError, system};
use crate::admin::operations::Operations;
use crate::admin::{listener, socket};
use crate::config::Config;
use crate::gate::Shared;
use crate::server::{Inheritance, Listeners, Offer, Succeeded, Taken};

/// The name under which the admin socket is handed over.
const COMMANDS: &str = "admin socket";

/// The sockets of the process that runs on this folder, where it is to be replaced.
pub(super) fn ask(config: &Config) -> Result<Option<Inheritance>, StartError> {
    if !config.server.handover {
        return Ok(None);
    }
    Inheritance::ask(&config.data_dir).map_err(system("the running process does not hand over its sockets"))
}

/// What one process at a time answers on a folder.
pub(super) struct Own {
    admin: Option<TcpListener>,
    commands: Option<UnixListener>,
    /// For a later process.
    copies: Vec<(String, OwnedFd)>,
}

impl Own {
    /// Opens it, or takes it over.
    pub(super) fn open(
        config: &Config,
        listeners: &Listeners,
        mut inheritance: Option<&mut Inheritance>,
    ) -> Result<Self, StartError> {
        let mut inherited = |name: &str| inheritance.as_mut().and_then(|from| from.named(name).pop());
        let admin = match config.admin.listen {
            Some(address) => {
                let opened = inherited(&admin_name(address)).map_or_else(|| listener::bind(address), listener::inherit);
                Some(opened.map_err(|source| StartError::Admin { address: address.to_string(), source })?)
            }
            None => None,
        };
        // A verify-only gateway has nothing to command: no folder of its own, and no socket.
        let commands = if config.central.is_some() {
            None
        } else {
            let opened = inherited(COMMANDS).map_or_else(|| socket::bind(&config.data_dir), socket::inherit);
            Some(opened.map_err(system("the admin socket can't be opened"))?)
        };
        let mut own = Self { admin, commands, copies: Vec::new() };
        if config.server.handover {
            own.copies =
                own.copied(config, listeners).map_err(system("the sockets can't be copied for a later process"))?;
        }
        Ok(own)
    }

    fn copied(&self, config: &Config, listeners: &Listeners) -> io::Result<Vec<(String, OwnedFd)>> {
        let mut copies = listeners.copies()?;
        if let (Some(address), Some(admin)) = (config.admin.listen, &self.admin) {
            copies.push((admin_name(address), admin.as_fd().try_clone_to_owned()?));
        }
        if let Some(commands) = &self.commands {
            copies.push((String::from(COMMANDS), commands.as_fd().try_clone_to_owned()?));
        }
        Ok(copies)
    }

    /// Answers, and offers everything to a later process where that is wanted.
    pub(super) fn serve(
        self,
        config: &Config,
        state: &Rc<State>,
        operations: Rc<Operations>,
        taken: &Taken,
    ) -> Result<Option<Arc<Offer>>, StartError> {
        let mut answering = Vec::new();
        if let Some(admin) = self.admin {
            answering.push(tokio::task::spawn_local(listener::serve(admin, Rc::clone(state) as _)));
        }
        if let Some(commands) = self.commands {
            answering.push(tokio::task::spawn_local(socket::serve(commands, operations)));
        }
        if !config.server.handover {
            return Ok(None);
        }
        let (offer, successions) = Offer::open(&config.data_dir, self.copies, taken.clone())
            .map_err(system("the socket for a later process can't be opened"))?;
        tokio::task::spawn_local(make_way(successions, answering));
        Ok(Some(offer))
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
