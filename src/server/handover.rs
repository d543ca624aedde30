//! Handing the listening sockets of a running process to the one that is to replace it: `data_dir/handover.sock`.
//!
//! - What is handed over are the sockets themselves, with the connections that the kernel holds ready in them. Two
//!   processes that each opened the port (`SO_REUSEPORT`) would lose those that come between the last look of the old one
//!   and its end; one socket in two processes has no such moment, for it closes only with the last of them.
//! - Both accept until the old one is told to end. Until the new one says that it serves, the old one has given up
//!   nothing: whatever becomes of the new one, nobody outside notices.
//! - Whoever can open the socket may have everything: its mode (0600) and the folder's (0700) are the guard, as for the
//!   admin socket.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::{mpsc, oneshot};

/// What the old process says after its last socket.
const ALL: &str = "all";
/// What the new one says when it accepts connections.
const SERVING: &str = "serving";
/// What the old one answers when it has let go of everything that only one of them may have.
const RELEASED: &str = "released";
/// The longest message: a socket's name, which may hold a path.
const LONGEST: usize = 4096;
/// How long a message of the other process may take; it does nothing else meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// A listening socket and where it listens, as the configuration writes it.
pub type Named = (String, OwnedFd);

/// The socket's place in a data folder.
fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("handover.sock")
}

/// What a running process holds ready for its successor.
#[derive(Debug)]
pub struct Offer {
    /// Copies of the sockets. Empty when the process ends: what nobody else has must close with its workers.
    sockets: Mutex<Vec<Named>>,
    taken: Taken,
    path: PathBuf,
}

/// Whether another process has the sockets, or is about to: then their files are not removed here.
#[derive(Clone, Debug, Default)]
pub struct Taken(Arc<AtomicBool>);

impl Taken {
    #[must_use]
    pub fn is_so(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// From here on it is so, or not.
    pub fn set(&self, taken: bool) {
        self.0.store(taken, Ordering::SeqCst);
    }
}

/// The successor serves. Answer it when everything is released that only one process may have.
pub type Succeeded = oneshot::Sender<()>;

impl Offer {
    /// Offers sockets until one process has taken them over, which is told to `succeeded`.
    pub fn open(
        data_dir: &Path,
        sockets: Vec<Named>,
        taken: Taken,
    ) -> io::Result<(Arc<Self>, mpsc::UnboundedReceiver<Succeeded>)> {
        let path = path(data_dir);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Its messages keep their bounds: each is one socket.
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        listener.bind(&SockAddr::unix(&path)?)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.listen(1)?;
        let offer = Arc::new(Self { sockets: Mutex::new(sockets), taken, path });
        let (succeeded, successions) = mpsc::unbounded_channel();
        let offered = Arc::clone(&offer);
        // A thread of its own, which waits for another process; the end of this one does not wait for it.
        std::thread::Builder::new().name(String::from("handover")).spawn(move || {
            while let Ok((successor, _)) = listener.accept() {
                match offered.hand_over(&successor, &succeeded) {
                    Ok(()) => return,
                    Err(error) => {
                        offered.taken.set(false);
                        tracing::warn!(%error, "a process that was to take over has gone; this one goes on");
                    }
                }
            }
        })?;
        Ok((offer, successions))
    }

    fn hand_over(&self, successor: &Socket, succeeded: &mpsc::UnboundedSender<Succeeded>) -> io::Result<()> {
        successor.set_write_timeout(Some(PATIENCE))?;
        self.taken.set(true);
        {
            let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, socket) in &*sockets {
                send(successor, name, Some(socket.as_fd()))?;
            }
        }
        send(successor, ALL, None)?;
        // As long as it needs to get ready: it waits for its database, for example. Its end is noticed.
        if receive(successor)?.0 != SERVING {
            return Err(io::Error::other("it said something that is no word of ours"));
        }
        let (answer, released) = oneshot::channel();
        let told = succeeded.send(answer).is_ok();
        if told && released.blocking_recv().is_ok() {
            // Its own takes this place.
            let _ = send(successor, RELEASED, None);
        }
        self.withdraw();
        Ok(())
    }

    /// Lets go of the copies.
    pub fn withdraw(&self) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// At the end of the process: nobody can take over any more.
    pub fn close(&self) {
        self.withdraw();
        if !self.taken.is_so() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The sockets of the process that is to be replaced, which goes on meanwhile.
#[derive(Debug)]
pub struct Inheritance {
    sockets: Vec<Named>,
    predecessor: Socket,
}

impl Inheritance {
    /// Asks the process that runs on this data folder. `None`: there is none, or it hands nothing over.
    pub fn ask(data_dir: &Path) -> io::Result<Option<Self>> {
        let predecessor = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        if predecessor.connect(&SockAddr::unix(path(data_dir))?).is_err() {
            return Ok(None);
        }
        predecessor.set_read_timeout(Some(PATIENCE))?;
        predecessor.set_write_timeout(Some(PATIENCE))?;
        let mut sockets = Vec::new();
        loop {
            match receive(&predecessor)? {
                (name, Some(socket)) => sockets.push((name, socket)),
                (word, None) if word == ALL => return Ok(Some(Self { sockets, predecessor })),
                (_, None) => return Err(io::Error::other("it said something that is no word of ours")),
            }
        }
    }

    /// Every socket of this name; each is given out once.
    pub fn named(&mut self, name: &str) -> Vec<OwnedFd> {
        self.sockets.extract_if(.., |(own, _)| own == name).map(|(_, socket)| socket).collect()
    }

    /// Tells the old process that this one serves, and waits until it has let go of the rest.
    pub fn serving(self) -> io::Result<()> {
        send(&self.predecessor, SERVING, None)?;
        match receive(&self.predecessor)? {
            (word, None) if word == RELEASED => Ok(()),
            _ => Err(io::Error::other("it said something that is no word of ours")),
        }
    }
}

fn send(to: &Socket, text: &str, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let sockets: Vec<BorrowedFd<'_>> = socket.into_iter().collect();
    if !sockets.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::other("no room for a socket"));
    }
    rustix::net::sendmsg(to, &[IoSlice::new(text.as_bytes())], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(from: &Socket) -> io::Result<(String, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0; LONGEST];
    let received = loop {
        let mut into = [IoSliceMut::new(&mut text)];
        match rustix::net::recvmsg(from, &mut into, &mut beside, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    text.truncate(received.bytes);
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    let socket = beside.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    Ok((text, socket))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_socket_goes_over_with_the_connections_that_wait_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let mut early = TcpStream::connect(address).unwrap();
        early.write_all(b"early").unwrap();
        assert!(Inheritance::ask(folder.path()).unwrap().is_none());
        let copy = OwnedFd::from(listener.try_clone().unwrap());
        let taken = Taken::default();
        let (offer, mut successions) =
            Offer::open(folder.path(), vec![(String::from("x"), copy)], taken.clone()).unwrap();
        // One that gives up leaves all as it was.
        drop(Inheritance::ask(folder.path()).unwrap().unwrap());
        let mut inheritance = Inheritance::ask(folder.path()).unwrap().unwrap();
        assert!(taken.is_so());
        let socket = inheritance.named("x").pop().unwrap();
        assert!(inheritance.named("x").is_empty() && inheritance.named("y").is_empty());
        let successor = std::thread::spawn(move || inheritance.serving());
        successions.blocking_recv().unwrap().send(()).unwrap();
        successor.join().unwrap().unwrap();
        offer.close();
        drop(listener);
        let (mut accepted, _) = TcpListener::from(socket).accept().unwrap();
        let mut said = [0; 5];
        accepted.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"early");
    }
}
