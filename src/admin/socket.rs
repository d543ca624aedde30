//! The admin socket: `data_dir/admin.sock`, mode 0600, one JSON line each way.
//!
//! Whoever can open it may do everything that the command line can; its mode and the folder's (0700) are the guard.

use std::convert::Infallible;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};

use super::command::{Command, Outcome};
use super::listener::Report;
use super::operations::Operations;
use crate::files;

/// The longest command: an import of a million accounts fits.
const MAX_COMMAND_BYTES: u64 = 512 * 1024 * 1024;
/// How long a peer may take to send its line.
const READ_TIMEOUT: Duration = Duration::from_mins(1);

/// The socket's place in a data folder.
#[must_use]
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.sock")
}

/// The socket's place as the system takes it: a socket's path has at most 107 bytes (unix(7)), so that of a deeper folder
/// goes by the open folder itself.
struct Near {
    path: PathBuf,
    /// Held while the path is used.
    _folder: Option<File>,
}

impl Near {
    fn of(data_dir: &Path) -> io::Result<Self> {
        const LONGEST: usize = 107;
        let path = path(data_dir);
        if path.as_os_str().len() <= LONGEST {
            return Ok(Self { path, _folder: None });
        }
        let folder = File::open(data_dir)?;
        let near = format!("/proc/self/fd/{}/admin.sock", folder.as_raw_fd());
        Ok(Self { path: near.into(), _folder: Some(folder) })
    }
}

/// Who may answer on a folder: one process at a time. Held as long as that process lives, and handed over with the socket.
#[derive(Debug)]
pub struct Claim(File);

impl Claim {
    /// `None`: another process has it.
    pub fn take(data_dir: &Path) -> io::Result<Option<Self>> {
        let path = data_dir.join("admin.lock");
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Goes on with what another process has taken.
    #[must_use]
    pub fn inherit(lock: OwnedFd) -> Self {
        Self(lock.into())
    }

    /// For a later process. It is over only when all copies are closed.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        self.0.try_clone().map(OwnedFd::from)
    }
}

/// What is said to a second server.
#[must_use]
pub fn taken(data_dir: &Path) -> io::Error {
    let message = format!("{}: another server runs on this data folder; give each its own", data_dir.display());
    io::Error::new(io::ErrorKind::AddrInUse, message)
}

/// Opens the socket. A stale one, left by a server that was killed, is replaced; one behind which a server answers is an
/// error: a store that many processes may use keeps no second one off this folder.
pub fn bind(data_dir: &Path, _claim: &Claim) -> io::Result<UnixListener> {
    let near = Near::of(data_dir)?;
    let path = &near.path;
    if UnixStream::connect(path).is_ok() {
        return Err(taken(data_dir));
    }
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The folder is 0700, so nobody gets between the making and the mode.
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Goes on with a socket that another process has opened.
pub fn inherit(listener: OwnedFd) -> io::Result<UnixListener> {
    UnixListener::from_std(listener.into())
}

/// What the socket answers with.
pub enum Stage {
    /// Nothing yet: whoever asks waits.
    Starting,
    /// Commands are carried out.
    Serving(Rc<Operations>),
    /// Nothing any more: whoever asks is told to look for itself.
    Over,
}

/// Serves commands until it is [`Stage::Over`], and then until those that were begun are done. Each has its own task.
pub async fn serve(listener: UnixListener, mut stage: watch::Receiver<Stage>, report: Rc<dyn Report>) {
    // Each command holds a sender; none is left when the last one is done.
    let (running, mut done) = mpsc::channel::<Infallible>(1);
    let of_commands = stage.clone();
    let begin = move |stream, running: &mpsc::Sender<Infallible>| {
        let (stage, running, report) = (of_commands.clone(), running.clone(), Rc::clone(&report));
        tokio::task::spawn_local(async move {
            if let Err(error) = answer(stream, stage, &*report).await {
                tracing::debug!(%error, "a command over the admin socket broke off");
            }
            drop(running);
        });
    };
    loop {
        tokio::select! {
            biased;
            () = is_over(&mut stage) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => begin(stream, &running),
                Err(error) => {
                    tracing::warn!(%error, "the admin socket can't accept");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
        }
    }
    // Those who came before the end get an answer, too.
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, _)) = listener.accept() {
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = tokio::net::UnixStream::from_std(stream)
            {
                begin(stream, &running);
            }
        }
    }
    drop(running);
    done.recv().await;
}

/// Waits for the end; a sender that is gone is one.
async fn is_over(stage: &mut watch::Receiver<Stage>) {
    let _ = stage.wait_for(|stage| matches!(stage, Stage::Over)).await;
}

/// What carries commands out, as soon as there is one. `None`: nothing does any more.
async fn operations(stage: &mut watch::Receiver<Stage>) -> Option<Rc<Operations>> {
    match &*stage.wait_for(|stage| !matches!(stage, Stage::Starting)).await.ok()? {
        Stage::Serving(operations) => Some(Rc::clone(operations)),
        Stage::Starting | Stage::Over => None,
    }
}

async fn answer(
    stream: tokio::net::UnixStream,
    mut stage: watch::Receiver<Stage>,
    report: &dyn Report,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = tokio::io::BufReader::new(reader.take(MAX_COMMAND_BYTES));
    let mut ending = stage.clone();
    let read = tokio::select! {
        biased;
        read = tokio::time::timeout(READ_TIMEOUT, reader.read_until(b'\n', &mut line)) => Some(read),
        () = is_over(&mut ending) => None,
    };
    let outcome = match read {
        Some(Ok(Ok(_))) => match serde_json::from_slice::<Command>(&line) {
            Ok(Command::Ready) => {
                let reasons = report.reasons().into_iter().map(serde_json::to_value);
                Outcome::Rows { rows: reasons.collect::<Result<_, _>>()? }
            }
            Ok(command) => match operations(&mut stage).await {
                Some(operations) => operations.carry_out(command).await,
                None => Outcome::Gone,
            },
            // serde's message may quote what it read, and that may be a password: only the place is told.
            Err(error) => Outcome::failed(format!("the command can't be read (column {})", error.column())),
        },
        Some(Ok(Err(error))) => return Err(error),
        Some(Err(_)) => Outcome::failed("the command did not come in time"),
        None => Outcome::Gone,
    };
    zeroize::Zeroize::zeroize(&mut line);
    let mut text = serde_json::to_vec(&outcome)?;
    text.push(b'\n');
    writer.write_all(&text).await?;
    writer.shutdown().await
}

/// Why a running server could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No server runs on this folder, or it ended before it could carry the command out.
    #[error("no server runs here")]
    NobodyThere,
    /// There is one, but the socket is not ours to open.
    #[error("{path}: this user may not talk to a running server ({whose}); run the command as the server's user")]
    Forbidden {
        /// The socket.
        path: String,
        /// Whose it is, or the folder above it, and who we are.
        whose: String,
    },
    /// What answers there is not this user's.
    #[error(
        "{path}: a program of uid {user} answers there, which is neither this user nor root; nothing was told to it"
    )]
    Stranger {
        /// The socket.
        path: String,
        /// Whose program it is.
        user: u32,
    },
    /// It broke off.
    #[error("the running server broke off")]
    BrokeOff(#[source] io::Error),
}

/// Whether a server answers on `data_dir`.
#[must_use]
pub fn is_served(data_dir: &Path) -> bool {
    Near::of(data_dir).and_then(|near| UnixStream::connect(&near.path)).is_ok()
}

/// Asks the server that runs on `data_dir`, and waits as long as it takes. Blocking; for the command line.
pub fn ask(data_dir: &Path, command: &Command) -> Result<Outcome, AskError> {
    ask_within(data_dir, command, None)
}

/// The same, within a limit for each of its steps.
pub fn ask_within(data_dir: &Path, command: &Command, limit: Option<Duration>) -> Result<Outcome, AskError> {
    let path = path(data_dir);
    let connected = Near::of(data_dir).and_then(|near| UnixStream::connect(&near.path));
    let mut stream = connected.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
            AskError::NobodyThere
        }
        io::ErrorKind::PermissionDenied => {
            AskError::Forbidden { path: path.display().to_string(), whose: files::story(&path) }
        }
        _ => AskError::BrokeOff(error),
    })?;
    // In a data folder where everybody may put files, anybody could wait here for passwords.
    let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(|error| AskError::BrokeOff(error.into()))?;
    if !files::is_trusted(peer.uid.as_raw()) {
        return Err(AskError::Stranger { path: path.display().to_string(), user: peer.uid.as_raw() });
    }
    let limited = stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit));
    limited.map_err(AskError::BrokeOff)?;
    let mut line = serde_json::to_vec(command).map_err(|error| AskError::BrokeOff(error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(AskError::BrokeOff)?;
    zeroize::Zeroize::zeroize(&mut line);
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(AskError::BrokeOff)?;
    match serde_json::from_str(&answer) {
        Ok(Outcome::Gone) => Err(AskError::NobodyThere),
        outcome => outcome.map_err(|error| AskError::BrokeOff(error.into())),
    }
}
