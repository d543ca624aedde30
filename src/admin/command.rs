//! What an operator can ask of the store, the same whether a server runs or not.
//!
//! A command travels as one line of JSON over the admin socket, or is carried out in the process of the command line
//! itself where no server holds the folder.

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// One thing to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    UserAdd {
        username: String,
        groups: Vec<String>,
        email: String,
        display_name: String,
        password: Password,
    },
    UserList,
    UserShow {
        username: String,
    },
    UserSetPassword {
        username: String,
        password: Password,
    },
    UserSetGroups {
        username: String,
        groups: Vec<String>,
    },
    UserDisable {
        username: String,
    },
    UserEnable {
        username: String,
    },
    UserRemove {
        username: String,
    },
    UserImport {
        format: ImportFormat,
        text: Password,
        #[serde(default)]
        accept_weak: bool,
    },
    UserExport,
    SessionList {
        username: Option<String>,
    },
    SessionRevoke {
        session: String,
    },
    SessionRevokeUser {
        username: String,
    },
    SessionRevokeAll,
    /// `lifetime` in seconds.
    TokenIssue {
        username: String,
        lifetime: Option<u64>,
    },
    TokenInspect {
        token: Password,
    },
    StoreDump,
    StoreRestore {
        dump: Password,
        keep_sessions: bool,
    },
    /// The keys that are in force.
    KeyList,
    /// Read the configuration and the keys again.
    Reload,
    /// The reasons for which the server is not ready; none: it is. Answered at once, also by one that is starting.
    Ready,
}

/// The format of an import file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ImportFormat {
    Htpasswd,
    Json,
    Authelia,
}

/// Text that must not be printed on its way through the socket: a password, a token, a file with hashes.
#[derive(Debug)]
pub struct Password(pub Secret<String>);

impl Serialize for Password {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose())
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Secret::new(text)))
    }
}

/// What came of a command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing to tell but that it is done.
    Done,
    /// Objects for a listing; the shape of each is the contract's.
    Rows { rows: Vec<serde_json::Value> },
    /// A text that the command line prints or writes to a file, such as a token or a dump.
    Text { text: String },
    /// It failed; `message` says why and what to do.
    Failed { message: String },
    /// Nothing was done: the server ended, or did not get as far as serving.
    Gone,
}

impl Outcome {
    /// A failure.
    pub fn failed(message: impl std::fmt::Display) -> Self {
        Self::Failed { message: message.to_string() }
    }
}
