//! Programs of other makers beside the gateway: backends, checkers. `tests/run` installs them.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::wait;

/// A file of `tests/`; fails where `tests/run` has not put it yet.
pub(crate) fn of_tests(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path);
    assert!(path.exists(), "{} is not there: run tests/run, which installs it", path.display());
    path
}

pub(crate) fn python() -> Command {
    Command::new(of_tests(".cache/venv/bin/python"))
}

pub(crate) fn node(script: &str) -> Command {
    let mut command = Command::new("node");
    command.env("NODE_PATH", of_tests(".cache/npm/node_modules")).arg(of_tests(script));
    command
}

/// A server of another make; it is killed when it is dropped.
pub(crate) struct Peer {
    child: Child,
    pub(crate) port: u16,
}

impl Peer {
    /// Starts the command and waits until something listens on the port.
    pub(crate) fn start(mut command: Command, port: u16, log: &Path) -> Self {
        let log_file = || File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(log_file()).stderr(log_file());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}: run tests/run"));
        wait::until("the other program to listen", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{command:?} ended with {status}:\n{}", fs::read_to_string(log).unwrap());
            }
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self { child, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Asked first, so that a server takes its own workers along.
        if let Some(id) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        for _ in 0..500 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
