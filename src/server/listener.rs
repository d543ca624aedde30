//! Where connections come from: TCP ports, unix sockets, sockets handed over by the service manager.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::config::Listen;

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
}

impl Drop for Listeners {
    fn drop(&mut self) {
        for path in &self.unix_paths {
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
        let mut listeners = Self {
            by_worker: (0..workers).map(|_| Vec::new()).collect(),
            addresses: Vec::new(),
            unix_paths: Vec::new(),
        };
        for place in places {
            match place {
                Listen::Tcp(address) => listeners.open_tcp(*address)?,
                Listen::Unix(path) => listeners.open_unix(path)?,
                Listen::Descriptor(name) => listeners.take_over(name)?,
            }
        }
        Ok(listeners)
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
    Tcp(tokio::net::TcpStream, IpAddr),
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
                    if socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true)).is_ok()
                        && let Ok(socket) = tokio::net::TcpStream::from_std(socket)
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
                // Answers are written whole; waiting for more only delays the last piece.
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream, peer.ip().to_canonical()))
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
