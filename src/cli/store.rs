//! `doorward store …`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use indicatif::ProgressBar;

use super::arguments::{Place, StoreVerb};
use super::operate::Attempt;
use super::output::Output;
use super::{Done, Failure, configuration, operate};
use crate::admin::command::{Command, Outcome};
use crate::admin::operations::hidden;
use crate::admin::socket::is_served;
use crate::app::{self, CopyError, Source, Stage, StartError};
use crate::store::StoreError;

pub(super) fn run(verb: &StoreVerb, place: &Place, output: &mut Output) -> Done {
    if let StoreVerb::Copy { from, to } = verb {
        return copy(from, to, output);
    }
    let config = configuration::load(place)?;
    match verb {
        StoreVerb::Dump { file } => {
            let text = operate::text(operate::operate(config, Command::StoreDump)?);
            match file {
                None => output.bytes(text.as_bytes()),
                Some(file) => {
                    write_private(file, &text)
                        .map_err(|error| Failure::failed(format!("{}: {error}", file.display())))?;
                    output.line(&format!("wrote {}; it holds password hashes", file.display()))
                }
            }
        }
        StoreVerb::Restore { file, keep_sessions } => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Failure::failed(format!("{}: {error}", file.display())))?;
            let command = Command::StoreRestore { dump: hidden(text), keep_sessions: *keep_sessions };
            let spinner = operate::spinner(format!("restoring {}", file.display()));
            let outcome = operate::operate(config, command);
            spinner.finish_and_clear();
            let restored = operate::text(outcome?);
            output.line(&format!("restored {restored}"))?;
            if *keep_sessions {
                output.note(
                    "Sessions of the dump are valid again. If anything was revoked since it was made, run \
                     `doorward session revoke --all`.",
                );
            }
            Ok(())
        }
        // Named with its own two configurations, above.
        StoreVerb::Copy { .. } => Ok(()),
    }
}

fn copy(from: &Path, to: &Path, output: &mut Output) -> Done {
    let read = |file: &Path| configuration::load(&Place { config: Some(file.to_owned()), data: None });
    let (source, target) = (read(from)?, read(to)?);
    for (config, file) in [(&source, from), (&target, to)] {
        if config.central.is_some() {
            return Err(Failure::usage(format!(
                "{}: store.kind is \"none\", so there is nothing to copy",
                file.display()
            )));
        }
    }
    if app::is_same_store(&source, &target) {
        return Err(Failure::usage("--from and --to name the same store"));
    }
    // One folder can belong to two stores of different kinds; then the server there is the source's.
    if source.data_dir != target.data_dir && is_served(&target.data_dir) {
        return Err(Failure::failed(format!(
            "a server runs on the target ({}); stop it, and start it again when the copy is done",
            target.data_dir.display()
        )));
    }
    let (message, bar) = ("copying", ProgressBar::no_length());
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(120));
    let (copied, was_running) = operate::patiently(|| {
        let running = operate::ask_server(&source.data_dir, &Command::StoreDump)?;
        let was_running = running.is_some();
        let records = match running {
            Some(Outcome::Failed { message }) => return Err(Failure::failed(format!("the source: {message}"))),
            Some(outcome) => Source::Dump(operate::text(outcome)),
            None if !app::is_there(&source) => {
                return Err(Failure::failed(format!("there is no store in {}", source.data_dir.display())));
            }
            None => Source::Idle(Box::new(source.clone())),
        };
        let copied = app::copy(records, &target, &|stage| match stage {
            Stage::Reading(records) => bar.set_length(records),
            Stage::Read => bar.inc(1),
            Stage::Writing => bar.set_message("writing"),
        });
        match copied {
            Err(error @ CopyError::Source(StartError::Store(StoreError::InUse { .. }))) => {
                Ok(Attempt::Held(Failure::failed(chain(&error))))
            }
            Err(error) => Err(Failure::failed(chain(&error))),
            Ok(copied) => Ok(Attempt::Done((copied, was_running))),
        }
    })?;
    bar.finish_and_clear();
    let counts = copied.counts;
    output.line(&format!(
        "copied {} accounts, {} sessions, {} revocations",
        counts.accounts, counts.sessions, counts.entries
    ))?;
    if was_running {
        output.note("The source's server still runs: what changes there from now on is not in the copy.");
    }
    if !app::accepts_tokens(&source, &target) {
        output.note(
            "The target's configuration does not accept the source's tokens (another key or issuer): everybody would \
             have to log in again. Give both the same key.",
        );
    }
    Ok(())
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // Transparent errors repeat what they wrap.
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

/// Whole or not at all: a file that was there stays until the new one is on disk.
fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let partial = file.with_file_name(name);
    let mut written = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&partial)?;
    let done = written.write_all(text.as_bytes()).and_then(|()| written.sync_all());
    let done = done.and_then(|()| std::fs::rename(&partial, file));
    if done.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&partial);
        return done;
    }
    match file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}
