//! `doorward store …`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::arguments::{Place, StoreVerb};
use super::output::Output;
use super::{Done, Failure, configuration, operate};
use crate::admin::command::Command;
use crate::admin::operations::hidden;

pub(super) fn run(verb: &StoreVerb, place: &Place, output: &mut Output) -> Done {
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
    }
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
