//! Finding and reading the configuration, and `doorward check-config`.

use std::io;
use std::path::{Path, PathBuf};

use super::arguments::Place;
use super::output::Output;
use super::{Done, Failure};
use crate::app::{self, Objection};
use crate::config::{self, Config};
use crate::router::explain::run_tests;

/// The file that a command is about.
pub(super) fn find(place: &Place) -> Result<PathBuf, Failure> {
    if let Some(file) = &place.config {
        return if may_be_read(file)? { Ok(file.clone()) } else { Err(is_not_there(file)) };
    }
    if let Some(folder) = &place.data {
        let file = folder.join("config.toml");
        return if may_be_read(&file)? {
            Ok(file)
        } else {
            Err(Failure::usage(format!(
                "{} is not there; `doorward protect http://127.0.0.1:9000 --data {}` makes it, for an application that \
                 listens there",
                file.display(),
                quoted(folder)
            )))
        };
    }
    if let Some(file) = std::env::var_os("DOORWARD_CONFIG").filter(|value| !value.is_empty()) {
        let file = PathBuf::from(file);
        return if may_be_read(&file)? { Ok(file) } else { Err(is_not_there(&file)) };
    }
    for file in ["./config.toml", "./doorward-data/config.toml", "/etc/doorward/config.toml"] {
        if may_be_read(Path::new(file))? {
            return Ok(PathBuf::from(file));
        }
    }
    Err(Failure::usage(
        "there is no configuration: not ./config.toml, not ./doorward-data (which `doorward protect` makes), not \
         /etc/doorward/config.toml; name the file with --config, or such a folder with --data",
    ))
}

/// `false`: it is not there. A file that is there and closed to this user is an error of its own.
fn may_be_read(file: &Path) -> Result<bool, Failure> {
    match std::fs::metadata(file) {
        Ok(found) => match rustix::fs::access(file, rustix::fs::Access::READ_OK) {
            Ok(()) => Ok(true),
            Err(_) => Err(Failure::usage(format!("{} may not be read: {}", file.display(), app::whose(&found)))),
        },
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(Failure::usage(app::unreachable(file, &error))),
    }
}

fn is_not_there(file: &Path) -> Failure {
    Failure::usage(format!("{} is not there", file.display()))
}

/// A path as a shell reads it back.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |sign: char| sign.is_alphanumeric() || "/._-+,:@%=".contains(sign);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Reads the configuration; every problem is in the failure.
pub(super) fn load(place: &Place) -> Result<Config, Failure> {
    let file = find(place)?;
    config::load(&file, &config::from_process).map_err(|problems| {
        let count = problems.len();
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let plural = if count == 1 { "problem" } else { "problems" };
        Failure::usage(format!("{count} {plural} in {}\n{}", file.display(), lines.join("\n")))
    })
}

/// `doorward check-config`: the file's text, its policy tests, and what `serve` would refuse beyond it.
pub(super) fn check(place: &Place, output: &mut Output) -> Done {
    let file = find(place)?;
    let config = load(place)?;
    for warning in &config.warnings {
        output.note(&format!("warning: {warning}"));
    }
    let mut failed = run_tests(&config);
    failed.extend(
        app::objections(&config)
            .into_iter()
            .map(|Objection { key, index, message }| config::problem_at(&file, key, index, message).to_string()),
    );
    if !failed.is_empty() {
        return Err(Failure::usage(failed.join("\n")));
    }
    output.line(&format!(
        "{}: good; {} routes, {} policy tests passed",
        file.display(),
        config.routes.len(),
        config.tests.len()
    ))
}
