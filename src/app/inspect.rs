//! What `serve` would refuse beyond the file's text, found without serving and without disturbing a server that runs:
//! keys, folders, ports, files.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{Access, access};

use super::{Centre, may_make_first_key};
use crate::admin::{listener, socket};
use crate::auth::keys::KeyRing;
use crate::clock::Clock;
use crate::config::{Config, Listen, StoreKind};
use crate::gate::Live;
use crate::server::{ListenError, Listeners};
use crate::store;
use crate::telemetry::metrics::Metrics;

/// One thing that `serve` would refuse.
#[derive(Debug)]
pub struct Objection {
    /// The key that it is about, for example `server.listen`.
    pub key: &'static str,
    /// Which one in a list.
    pub index: Option<usize>,
    /// What is wrong, and what to do instead.
    pub message: String,
}

/// Everything that `serve` would refuse now, as this user. The policy tests are run elsewhere.
#[must_use]
pub fn objections(config: &Config) -> Vec<Objection> {
    let clock = Clock::system();
    let mut found = Vec::new();
    let mut object = |key, index, message: String| found.push(Objection { key, index, message });
    let runs = is_served(config);
    if config.central.is_none() {
        if let Some(problem) = folder_problem(&config.data_dir) {
            object("data_dir", None, problem);
        } else {
            if let Some(problem) = key_problem(config, &clock) {
                object("token", None, problem);
            }
            if !runs
                && matches!(config.store.kind, StoreKind::Sled)
                && let Err(error) = store::look(&config.data_dir)
            {
                object("data_dir", None, chain(&error));
            }
        }
    } else if let Err(error) = Centre::of(config) {
        object("token", None, chain(&error));
    }
    if !runs {
        for (index, place) in config.server.listen.iter().enumerate() {
            if let Err(error) = Listeners::probe(place) {
                object("server.listen", Some(index), chain(&error));
            }
        }
        if let Some(problem) = config.admin.listen.and_then(admin_problem) {
            object("admin.listen", None, problem);
        }
    }
    if let Some(file) = &config.log.audit_file
        && let Some(problem) = file_problem(file)
    {
        object("log.audit_file", None, problem);
    }
    if let Err(error) = Live::try_upstreams(config, &clock, &Metrics::default()) {
        object("upstream", None, error.to_string());
    }
    found
}

/// Whether the server of this configuration runs: its ports are in use, and rightly.
fn is_served(config: &Config) -> bool {
    match (&config.central, config.admin.listen) {
        (None, _) => socket::is_served(&config.data_dir),
        (Some(_), Some(admin)) => {
            listener::ask(admin, "/ping").is_ok_and(|(status, body)| status == 200 && body == "pong\n")
        }
        (Some(_), None) => false,
    }
}

fn key_problem(config: &Config, clock: &Clock) -> Option<String> {
    if may_make_first_key(config) {
        return None;
    }
    KeyRing::load(&config.token, &config.data_dir, clock.unix_seconds()).err().map(|error| error.to_string())
}

fn admin_problem(address: SocketAddr) -> Option<String> {
    match Listeners::probe(&Listen::Tcp(address)) {
        Ok(()) => None,
        Err(ListenError::InUse { .. }) => {
            Some(format!("{address} is in use by another process; stop it, or choose another admin.listen"))
        }
        Err(error) => Some(chain(&error)),
    }
}

/// What keeps this process from using a folder, or from making it.
#[must_use]
pub fn folder_problem(folder: &Path) -> Option<String> {
    let shown = folder.display();
    match std::fs::metadata(folder) {
        Ok(found) if !found.is_dir() => Some(format!("{shown} is a file, not a folder")),
        Ok(found) => access(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
            .err()
            .map(|error| format!("{shown} can't be used ({}): {}", io::Error::from(error).kind(), whose(&found))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = existing_parent(folder);
            let found = std::fs::metadata(parent).ok()?;
            if !found.is_dir() {
                return Some(format!("{shown} can't be made: {} is a file", parent.display()));
            }
            access(parent, Access::WRITE_OK | Access::EXEC_OK)
                .err()
                .map(|_| format!("{shown} is not there and can't be made in {}: {}", parent.display(), whose(&found)))
        }
        Err(error) => Some(unreachable(folder, &error)),
    }
}

/// A path that can't even be looked at: says which folder on the way is closed, and whose it is.
#[must_use]
pub fn unreachable(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    // The first one whose content can't be looked at; all above it could be.
    let closed = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()).find_map(|folder| {
        let found = std::fs::metadata(folder).ok()?;
        access(folder, Access::EXEC_OK).is_err().then(|| (folder.to_owned(), found))
    });
    match closed {
        Some((folder, found)) if error.kind() == io::ErrorKind::PermissionDenied => {
            format!("{shown} can't be reached: {} may not be entered: {}", folder.display(), whose(&found))
        }
        _ => format!("{shown} can't be reached: {error}"),
    }
}

/// What keeps this process from appending to a file, which may not be there yet.
fn file_problem(file: &Path) -> Option<String> {
    let shown = file.display();
    match std::fs::metadata(file) {
        Ok(found) if found.is_dir() => Some(format!("{shown} is a folder")),
        Ok(found) => {
            access(file, Access::WRITE_OK).err().map(|_| format!("{shown} can't be written: {}", whose(&found)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            match std::fs::metadata(parent) {
                Ok(found) => access(parent, Access::WRITE_OK | Access::EXEC_OK)
                    .err()
                    .map(|_| format!("{shown} can't be made in its folder: {}", whose(&found))),
                Err(_) => Some(format!("{shown} can't be made: its folder is not there")),
            }
        }
        Err(error) => Some(unreachable(file, &error)),
    }
}

fn existing_parent(path: &Path) -> &Path {
    let parent = path.ancestors().skip(1).find(|parent| parent.as_os_str().is_empty() || parent.exists());
    parent.filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Who we are, whose it is, and what its mode lets others do.
#[must_use]
pub fn whose(found: &std::fs::Metadata) -> String {
    format!(
        "this process is user {} (group {}), it belongs to user {} (group {}) and has mode {:04o}; run the command as \
         that user, or change the owner",
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
        found.uid(),
        found.gid(),
        found.mode() & 0o7777
    )
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
