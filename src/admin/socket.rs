//! The admin socket: `data_dir/admin.sock`, mode 0600, one JSON line each way.
//!
//! Whoever can open it may do everything that the command line can; its mode and the folder's (0700) are the guard.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::command::{Command, Outcome};
use super::operations::Operations;

/// The longest command: an import of a million accounts fits.
const MAX_COMMAND_BYTES: u64 = 512 * 1024 * 1024;
/// How long a peer may take to send its line.
const READ_TIMEOUT: Duration = Duration::from_mins(1);

/// The socket's place in a data folder.
#[must_use]
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.sock")
}

/// Opens the socket. A stale one, left by a server that was killed, is replaced; one behind which a server answers is an
/// error: a store that many processes may use keeps no second one off this folder.
pub fn bind(data_dir: &Path) -> io::Result<UnixListener> {
    let path = path(data_dir);
    if UnixStream::connect(&path).is_ok() {
        let message = format!("{}: another server runs on this data folder; give each its own", data_dir.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    }
    match fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The folder is 0700, so nobody gets between the making and the mode.
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Goes on with a socket that another process has opened.
pub fn inherit(listener: OwnedFd) -> io::Result<UnixListener> {
    UnixListener::from_std(listener.into())
}

/// Serves commands, one connection after the other being no rule: each has its own task.
pub async fn serve(listener: UnixListener, operations: Rc<Operations>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let operations = Rc::clone(&operations);
                tokio::task::spawn_local(async move {
                    if let Err(error) = answer(stream, &operations).await {
                        tracing::debug!(%error, "a command over the admin socket broke off");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin socket can't accept");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn answer(stream: tokio::net::UnixStream, operations: &Operations) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = tokio::io::BufReader::new(reader.take(MAX_COMMAND_BYTES));
    let read = tokio::time::timeout(READ_TIMEOUT, reader.read_until(b'\n', &mut line)).await;
    let outcome = match read {
        Ok(Ok(_)) => match serde_json::from_slice::<Command>(&line) {
            Ok(command) => operations.carry_out(command).await,
            // serde's message may quote what it read, and that may be a password: only the place is told.
            Err(error) => Outcome::failed(format!("the command can't be read (column {})", error.column())),
        },
        Ok(Err(error)) => return Err(error),
        Err(_) => Outcome::failed("the command did not come in time"),
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
    /// No server runs on this folder.
    #[error("no server runs here")]
    NobodyThere,
    /// There is one, but the socket is not ours to open.
    #[error("{path}: this user may not talk to the running server; run the command as the server's user")]
    Forbidden {
        /// The socket.
        path: String,
    },
    /// It broke off.
    #[error("the running server broke off")]
    BrokeOff(#[source] io::Error),
}

/// Whether a server answers on `data_dir`.
#[must_use]
pub fn is_served(data_dir: &Path) -> bool {
    UnixStream::connect(path(data_dir)).is_ok()
}

/// Asks the server that runs on `data_dir`. Blocking; for the command line.
pub fn ask(data_dir: &Path, command: &Command) -> Result<Outcome, AskError> {
    let path = path(data_dir);
    let mut stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
            AskError::NobodyThere
        }
        io::ErrorKind::PermissionDenied => AskError::Forbidden { path: path.display().to_string() },
        _ => AskError::BrokeOff(error),
    })?;
    let mut line = serde_json::to_vec(command).map_err(|error| AskError::BrokeOff(error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(AskError::BrokeOff)?;
    zeroize::Zeroize::zeroize(&mut line);
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(AskError::BrokeOff)?;
    serde_json::from_str(&answer).map_err(|error| AskError::BrokeOff(error.into()))
}
