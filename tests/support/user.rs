//! The program as another user, and files of other users: as root, or by `sudo -n` (as `tests/run` installs packages).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::gateway::{Finished, PROGRAM};

/// Somebody to run as.
#[derive(Clone, Copy)]
pub(crate) struct User {
    pub(crate) id: u32,
    pub(crate) group: u32,
    /// Further groups.
    pub(crate) groups: &'static [u32],
}

/// Whom the shipped container runs as.
pub(crate) const CONTAINER: User = User { id: 65532, group: 65532, groups: &[] };

/// A command of root's.
pub(crate) fn as_root(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new(program)
    } else {
        let mut command = Command::new("sudo");
        command.args(["-n", "--"]).arg(program);
        command
    };
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// Runs a shell line as root, with `$1` and so on.
#[track_caller]
pub(crate) fn root_does(line: &str, arguments: &[&Path]) {
    let output = as_root("sh").args(["-euc", line, "sh"]).args(arguments).output();
    let output = output.expect("these tests make files of other users: run them as root or with sudo");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

impl User {
    /// A command of this user's, with nothing in its environment but what is given here.
    pub(crate) fn command(&self, program: &Path, environment: &[(&str, &str)]) -> Command {
        let groups = self.groups.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let mut command = as_root("env");
        command.args(["-i", "PATH=/usr/bin:/bin", "NO_COLOR=1", "LANG=C.UTF-8"]);
        // A planted fault that is switched on stays so.
        command.args(std::env::var("PLANTED").map(|fault| format!("PLANTED={fault}")));
        command.args(environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.args(["setpriv", &format!("--reuid={}", self.id), &format!("--regid={}", self.group)]);
        command.arg(if groups.is_empty() { String::from("--clear-groups") } else { format!("--groups={groups}") });
        command.arg("--").arg(program);
        command
    }

    pub(crate) fn run(&self, program: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Finished {
        Finished::of(self.command(program, environment).args(arguments).output().unwrap())
    }
}

/// Puts the program where every user can reach it.
pub(crate) fn program_in(folder: &Path) -> PathBuf {
    let program = folder.join("doorward");
    if fs::hard_link(PROGRAM, &program).is_err() {
        fs::copy(PROGRAM, &program).unwrap();
    }
    program
}
