//! Having a command carried out: by the running server, or here where none runs.

use std::path::Path;
use std::time::Duration;

use indicatif::ProgressBar;

use super::Failure;
use crate::admin::command::{Command, Outcome};
use crate::admin::socket::{AskError, ask};
use crate::app::{self, StartError};
use crate::config::Config;

/// Carries out a command and returns what came of it.
pub(super) fn operate(config: Config, command: Command) -> Result<Outcome, Failure> {
    here_or_elsewhere(&config)?;
    let outcome = match ask_server(&config.data_dir, &command)? {
        Some(outcome) => outcome,
        None => app::alone(config, command).map_err(|error| start_failure(&error))?,
    };
    match outcome {
        Outcome::Failed { message } => Err(Failure::Failed(message)),
        outcome => Ok(outcome),
    }
}

/// A verify-only gateway has no accounts, sessions and keys: says where they are.
pub(super) fn here_or_elsewhere(config: &Config) -> Result<(), Failure> {
    match &config.central {
        None => Ok(()),
        Some(central) => Err(Failure::usage(format!(
            "this is the configuration of a verify-only gateway (store.kind = \"none\"): accounts, sessions and keys are \
             kept by its centre, {}; run the command there",
            central.page("").trim_end_matches('/')
        ))),
    }
}

/// The rows of a listing.
pub(super) fn rows(outcome: Outcome) -> Vec<serde_json::Value> {
    match outcome {
        Outcome::Rows { rows } => rows,
        Outcome::Done | Outcome::Text { .. } | Outcome::Failed { .. } => Vec::new(),
    }
}

/// The text of an outcome.
pub(super) fn text(outcome: Outcome) -> String {
    match outcome {
        Outcome::Text { text } => text,
        Outcome::Done | Outcome::Rows { .. } | Outcome::Failed { .. } => String::new(),
    }
}

/// A sign that something long goes on, on a terminal only.
pub(super) fn spinner(message: String) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

/// `None`: no server runs on this folder. A server that holds the folder but has no socket yet is waited for.
pub(super) fn ask_server(data_dir: &Path, command: &Command) -> Result<Option<Outcome>, Failure> {
    match ask(data_dir, command) {
        Ok(outcome) => Ok(Some(outcome)),
        Err(AskError::NobodyThere) => Ok(None),
        Err(error @ (AskError::Forbidden { .. } | AskError::BrokeOff(_))) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            Err(Failure::failed(format!("{error}{cause}")))
        }
    }
}

/// What kept a gateway or a command from starting, with all its causes.
pub(super) fn start_failure(error: &StartError) -> Failure {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.ends_with(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        source = cause.source();
    }
    match error {
        StartError::Level(_) | StartError::Live(_) => Failure::Usage(message),
        StartError::Store(_)
        | StartError::DataDir { .. }
        | StartError::Listen(_)
        | StartError::Admin { .. }
        | StartError::Centre(_)
        | StartError::System { .. } => Failure::Failed(message),
    }
}
