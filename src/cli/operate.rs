//! Having a command carried out: by the running server, or here where none runs.

use std::path::Path;
use std::time::Duration;

use indicatif::ProgressBar;

use super::Failure;
use crate::admin::command::{Command, Outcome};
use crate::admin::socket::{AskError, ask};
use crate::app::{Alone, StartError};
use crate::config::Config;
use crate::store::StoreError;

/// How long a command waits for another process that holds the folder, and does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Carries out a command and returns what came of it.
pub(super) fn operate(config: Config, command: Command) -> Result<Outcome, Failure> {
    here_or_elsewhere(&config)?;
    let mut given = Some((config, command));
    let outcome = patiently(|| {
        let Some((config, command)) = given.take() else { return Err(Failure::failed("nothing is left to do")) };
        if let Some(outcome) = ask_server(&config.data_dir, &command)? {
            return Ok(Attempt::Done(outcome));
        }
        match Alone::open(&config, matches!(command, Command::StoreRestore { .. })) {
            Ok(alone) => alone.carry_out(config, command).map(Attempt::Done).map_err(|error| start_failure(&error)),
            Err(error @ StartError::Store(StoreError::InUse { .. })) => {
                given = Some((config, command));
                Ok(Attempt::Held(start_failure(&error)))
            }
            Err(error) => Err(start_failure(&error)),
        }
    })?;
    match outcome {
        Outcome::Failed { message } => Err(Failure::Failed(message)),
        outcome => Ok(outcome),
    }
}

/// What one try came to.
pub(super) enum Attempt<T> {
    Done(T),
    /// Another process holds the folder; what to say if it does so for long.
    Held(Failure),
}

/// Tries until it is done. Whoever holds a folder without answering is a server on its way up or down, or another command:
/// ask it again at each try, for it may answer by then, or have gone.
pub(super) fn patiently<T>(mut attempt: impl FnMut() -> Result<Attempt<T>, Failure>) -> Result<T, Failure> {
    let mut waited = Duration::ZERO;
    loop {
        match attempt()? {
            Attempt::Done(done) => return Ok(done),
            Attempt::Held(_) if waited < PATIENCE => {
                std::thread::sleep(PAUSE);
                waited += PAUSE;
            }
            Attempt::Held(failure) => return Err(failure),
        }
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
        Outcome::Done | Outcome::Text { .. } | Outcome::Failed { .. } | Outcome::Gone => Vec::new(),
    }
}

/// The text of an outcome.
pub(super) fn text(outcome: Outcome) -> String {
    match outcome {
        Outcome::Text { text } => text,
        Outcome::Done | Outcome::Rows { .. } | Outcome::Failed { .. } | Outcome::Gone => String::new(),
    }
}

/// A sign that something long goes on, on a terminal only.
pub(super) fn spinner(message: String) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

/// `None`: no server answers on this folder. One that is starting is waited for.
pub(super) fn ask_server(data_dir: &Path, command: &Command) -> Result<Option<Outcome>, Failure> {
    match ask(data_dir, command) {
        Ok(outcome) => Ok(Some(outcome)),
        Err(AskError::NobodyThere) => Ok(None),
        Err(error @ (AskError::Forbidden { .. } | AskError::Stranger { .. } | AskError::BrokeOff(_))) => {
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
