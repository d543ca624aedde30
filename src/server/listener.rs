//! Where connections come from: TCP ports, unix sockets, sockets handed over by the service manager.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::handover::{Inheritance, Taken};
use crate::config::Listen;
use crate::tcp::Tcp;

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has the address.
    #[error("{place} is in use by another process; stop it, or choose another server.listen")]
    InUse {
        /// As the configuration names it.
        place: String,
    },
    /// The service manager handed over no such socket.
    #[error("server.listen names fd:{name}, but the service manager handed over no socket of that name")]
    NotHandedOver {
        /// The name after `fd:`.
        name: String,
    },
    /// Anything else.
    #[error("can't listen on {place}")]
    Failed {
        /// As the configuration names it.
        place: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// One worker's share of one place.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// All places, once for each worker.
#[derive(Debug)]
pub struct Listeners {
    pub(super) by_worker: Vec<Vec<Listener>>,
    /// The TCP addresses that were bound, with the port that the system chose where the configuration said 0.
    pub addresses: Vec<SocketAddr>,
    unix_paths: Vec<PathBuf>,
    /// Whether the files of unix sockets are another process's by now.
    pub taken: Taken,
}

impl Drop for Listeners {
    fn drop(&mut self) {
        for path in self.unix_paths.iter().filter(|_| !self.taken.is_so()) {
            // Somebody may have removed it already; there is nothing to do about it.
            let _ = fs::remove_file(path);
        }
    }
}

/// Connections that the kernel holds ready for us before it refuses more.
const BACKLOG: i32 = 4096;

/// Whoever vanished without a word (a tunnel or an idle stream sends nothing for hours) is noticed after two minutes.
/// Accepted connections inherit it from their listener, so that it costs none of them a system call.
fn ask_whether_they_are_there(listener: &SockRef<'_>) -> io::Result<()> {
    let probes = TcpKeepalive::new().with_time(Duration::from_mins(1)).with_interval(Duration::from_secs(15));
    listener.set_tcp_keepalive(&probes.with_retries(4))
}

impl Listeners {
    /// Opens every place for `workers` workers.
    pub fn open(places: &[Listen], workers: usize) -> Result<Self, ListenError> {
        Self::open_beside(places, workers, None)
    }

    /// The same, with the sockets of a process that this one is to replace wherever it has them.
    pub fn open_beside(
        places: &[Listen],
        workers: usize,
        mut inheritance: Option<&mut Inheritance>,
    ) -> Result<Self, ListenError> {
        let mut listeners = Self {
            by_worker: (0..workers).map(|_| Vec::new()).collect(),
            addresses: Vec::new(),
            unix_paths: Vec::new(),
            taken: Taken::default(),
        };
        for place in places {
            let name = name_of(place);
            let inherited = inheritance.as_mut().map(|from| from.named(&name)).unwrap_or_default();
            if !inherited.is_empty() {
                // Until this process serves.
                listeners.taken.set(true);
                listeners.inherit(place, &inherited).map_err(|source| ListenError::Failed { place: name, source })?;
                continue;
            }
            match place {
                Listen::Tcp(address) => listeners.open_tcp(*address)?,
                Listen::Unix(path) => listeners.open_unix(path)?,
                Listen::Descriptor(name) => listeners.take_over(name)?,
            }
        }
        Ok(listeners)
    }

    /// Each socket goes to a worker at least, and each worker gets one: they may be more or fewer than before.
    fn inherit(&mut self, place: &Listen, sockets: &[OwnedFd]) -> io::Result<()> {
        let workers = self.by_worker.len();
        for turn in 0..workers.max(sockets.len()) {
            let socket = sockets.iter().cycle().nth(turn).map(OwnedFd::try_clone).transpose()?;
            let (Some(socket), Some(own)) = (socket, self.by_worker.get_mut(turn % workers.max(1))) else { continue };
            own.push(match place {
                Listen::Unix(_) => Listener::Unix(socket.into()),
                Listen::Tcp(_) | Listen::Descriptor(_) => Listener::Tcp(socket.into()),
            });
        }
        match place {
            Listen::Unix(path) => self.unix_paths.push(path.clone()),
            Listen::Tcp(address) => self.addresses.push(*address),
            Listen::Descriptor(_) => {}
        }
        Ok(())
    }

    /// Copies of all sockets that were opened here, for the process that is to replace this one. What the service manager
    /// handed over, it hands over again.
    pub fn copies(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let mut copies: Vec<(String, OwnedFd)> = Vec::new();
        for listener in self.by_worker.iter().flatten() {
            match listener {
                Listener::Tcp(listener) => {
                    copies.push((name_of(&Listen::Tcp(listener.local_addr()?)), listener.try_clone()?.into()));
                }
                Listener::Unix(listener) => {
                    let address = listener.local_addr()?;
                    let Some(path) = address.as_pathname() else { continue };
                    let name = name_of(&Listen::Unix(path.to_owned()));
                    // The workers share it.
                    if copies.iter().all(|(known, _)| *known != name) {
                        copies.push((name, listener.try_clone()?.into()));
                    }
                }
            }
        }
        Ok(copies)
    }

    /// Finds out whether a place could be opened, and leaves it as it is: what listens there notices nothing.
    pub fn probe(place: &Listen) -> Result<(), ListenError> {
        let name = name_of(place);
        match place {
            Listen::Tcp(address) => match bind(*address, false) {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(ListenError::InUse { place: name }),
                Err(source) => Err(ListenError::Failed { place: name, source }),
            },
            Listen::Unix(path) => match fs::symlink_metadata(path) {
                Ok(there) if !there.file_type().is_socket() => {
                    let source = io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there");
                    Err(ListenError::Failed { place: name, source })
                }
                Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                    Err(ListenError::InUse { place: name })
                }
                _ => {
                    let folder = path.parent().unwrap_or(Path::new("/"));
                    let may = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
                    let source = rustix::fs::access(folder, may).map_err(io::Error::from);
                    source.map_err(|source| ListenError::Failed { place: name, source })
                }
            },
            // Only the service manager's start can tell.
            Listen::Descriptor(_) => Ok(()),
        }
    }

    fn open_tcp(&mut self, address: SocketAddr) -> Result<(), ListenError> {
        let failed = |source: io::Error| {
            if source.kind() == io::ErrorKind::AddrInUse {
                ListenError::InUse { place: address.to_string() }
            } else {
                ListenError::Failed { place: address.to_string(), source }
            }
        };
        // Each worker's socket shares the port with its siblings, and would as readily share it with another server of
        // the same user. A socket that does not share finds out whether one is there.
        let probe = bind(address, false).map_err(failed)?;
        let address = probe.local_addr().map_err(failed)?.as_socket().unwrap_or(address);
        drop(probe);
        for own in &mut self.by_worker {
            let socket = bind(address, true).map_err(failed)?;
            socket.listen(BACKLOG).map_err(failed)?;
            own.push(Listener::Tcp(socket.into()));
        }
        self.addresses.push(address);
        Ok(())
    }

    fn open_unix(&mut self, path: &Path) -> Result<(), ListenError> {
        let place = format!("unix:{}", path.display());
        let failed = |source| ListenError::Failed { place: place.clone(), source };
        if let Ok(there) = fs::symlink_metadata(path) {
            if !there.file_type().is_socket() {
                return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there")));
            }
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(ListenError::InUse { place });
            }
            fs::remove_file(path).map_err(failed)?;
        }
        let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
        // The front proxy usually runs as another user; what it may do is decided by the folder and by the group.
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        self.unix_paths.push(path.to_owned());
        for own in &mut self.by_worker {
            own.push(Listener::Unix(listener.try_clone().map_err(failed)?));
        }
        Ok(())
    }

    /// Takes over sockets by `LISTEN_FDNAMES` (sd_listen_fds(3)). Every worker accepts from the same socket.
    fn take_over(&mut self, name: &str) -> Result<(), ListenError> {
        let missing = || ListenError::NotHandedOver { name: name.to_owned() };
        let failed = |source| ListenError::Failed { place: format!("fd:{name}"), source };
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut handed_over = listenfd::ListenFd::from_env();
        let mut found = false;
        for index in 0..handed_over.len() {
            let this = names.split(':').nth(index).unwrap_or("unknown");
            if this != name {
                continue;
            }
            if let Ok(Some(listener)) = handed_over.take_tcp_listener(index) {
                listener.set_nonblocking(true).map_err(failed)?;
                ask_whether_they_are_there(&SockRef::from(&listener)).map_err(failed)?;
                if let Ok(address) = listener.local_addr() {
                    self.addresses.push(address);
                }
                for own in &mut self.by_worker {
                    own.push(Listener::Tcp(listener.try_clone().map_err(failed)?));
                }
                found = true;
            } else if let Ok(Some(listener)) = handed_over.take_unix_listener(index) {
                listener.set_nonblocking(true).map_err(failed)?;
                for own in &mut self.by_worker {
                    own.push(Listener::Unix(listener.try_clone().map_err(failed)?));
                }
                found = true;
            }
        }
        if found { Ok(()) } else { Err(missing()) }
    }
}

/// As the configuration writes it.
fn name_of(place: &Listen) -> String {
    match place {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => format!("unix:{}", path.display()),
        Listen::Descriptor(name) => format!("fd:{name}"),
    }
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // "[::]:80" beside "0.0.0.0:80" is two places.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    ask_whether_they_are_there(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Either kind, once it belongs to a runtime.
pub(super) enum Accepting {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

/// One accepted connection.
pub(super) enum Accepted {
    Tcp(Tcp, IpAddr),
    Unix(tokio::net::UnixStream),
}

impl Accepting {
    /// Call it inside a runtime.
    pub(super) fn new(listener: Listener) -> io::Result<Self> {
        match listener {
            Listener::Tcp(listener) => tokio::net::TcpListener::from_std(listener).map(Self::Tcp),
            Listener::Unix(listener) => tokio::net::UnixListener::from_std(listener).map(Self::Unix),
        }
    }

    /// Takes what the kernel holds ready, and closes the socket at once: the shorter the moment between the two, the
    /// fewer clients find the door shut in their face.
    pub(super) fn rest(self) -> Vec<Accepted> {
        let mut accepted = Vec::new();
        match self {
            Self::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return accepted };
                let mut sockets = Vec::new();
                while let Ok(socket) = listener.accept() {
                    sockets.push(socket);
                }
                drop(listener);
                for (socket, peer) in sockets {
                    if socket.set_nonblocking(true).is_ok()
                        && let Ok(socket) = tokio::net::TcpStream::from_std(socket).and_then(Tcp::new)
                    {
                        accepted.push(Accepted::Tcp(socket, peer.ip().to_canonical()));
                    }
                }
            }
            Self::Unix(listener) => {
                let Ok(listener) = listener.into_std() else { return accepted };
                while let Ok((socket, _)) = listener.accept() {
                    if socket.set_nonblocking(true).is_ok()
                        && let Ok(socket) = tokio::net::UnixStream::from_std(socket)
                    {
                        accepted.push(Accepted::Unix(socket));
                    }
                }
            }
        }
        accepted
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Accepted::Tcp(Tcp::new(stream)?, peer.ip().to_canonical()))
            }
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_refused_and_a_free_one_is_shared_among_workers() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let first = Listeners::open(&[Listen::Tcp(any)], 3).unwrap();
        assert_eq!(first.by_worker.len(), 3);
        let taken = first.addresses[0];
        assert_ne!(taken.port(), 0);
        let error = Listeners::open(&[Listen::Tcp(taken)], 1).unwrap_err();
        assert!(matches!(error, ListenError::InUse { .. }), "{error}");
        drop(first);
        Listeners::open(&[Listen::Tcp(taken)], 1).unwrap();
    }

    #[test]
    fn sockets_of_another_process_go_to_more_workers_or_to_fewer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let address = Listeners::open(&[Listen::Tcp(any)], 1).unwrap().addresses[0];
        let places = [Listen::Tcp(address), Listen::Unix(path.clone())];
        let first = Listeners::open(&places, 2).unwrap();
        for workers in [1, 2, 5] {
            let (offer, _successions) =
                super::super::handover::Offer::open(folder.path(), first.copies().unwrap(), Taken::default()).unwrap();
            let mut inheritance = Inheritance::ask(folder.path()).unwrap().unwrap();
            let second = Listeners::open_beside(&places, workers, Some(&mut inheritance)).unwrap();
            assert_eq!(second.addresses, [address]);
            let kinds = |own: &[Listener]| own.iter().any(|one| matches!(one, Listener::Unix(_)));
            assert!(second.by_worker.iter().all(|own| own.len() >= 2 && kinds(own)), "{second:?}");
            let distinct = second.by_worker.iter().map(Vec::len).sum::<usize>();
            assert_eq!(distinct, workers.max(2) + workers, "each of two ports' sockets has a worker");
            // One that ends before it serves leaves the other's file alone.
            drop(second);
            assert!(path.exists());
            offer.close();
        }
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_but_neither_a_live_one_nor_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let place = [Listen::Unix(path.clone())];
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = Listeners::open(&place, 2).unwrap();
        assert!(matches!(Listeners::open(&place, 1), Err(ListenError::InUse { .. })));
        drop(first);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(Listeners::open(&place, 1).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
