//! Finding and reading the configuration, and `doorward check-config`.

use std::path::{Path, PathBuf};

use super::arguments::Place;
use super::output::Output;
use super::{Done, Failure};
use crate::config::{self, Config};
use crate::router::explain::run_tests;

/// The file that a command is about.
pub(super) fn find(place: &Place) -> Result<PathBuf, Failure> {
    if let Some(file) = &place.config {
        return Ok(file.clone());
    }
    if let Some(folder) = &place.data {
        let file = folder.join("config.toml");
        return if file.exists() {
            Ok(file)
        } else {
            Err(Failure::usage(format!(
                "{} is not there; `doorward protect URL --data {}` makes it",
                file.display(),
                folder.display()
            )))
        };
    }
    if let Some(file) = std::env::var_os("DOORWARD_CONFIG").filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(file));
    }
    for file in ["./config.toml", "/etc/doorward/config.toml"] {
        if Path::new(file).exists() {
            return Ok(PathBuf::from(file));
        }
    }
    Err(Failure::usage(
        "there is no configuration: use --config FILE, $DOORWARD_CONFIG, ./config.toml or /etc/doorward/config.toml; \
         `doorward protect URL` needs none",
    ))
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

/// `doorward check-config`.
pub(super) fn check(place: &Place, output: &mut Output) -> Done {
    let file = find(place)?;
    let config = load(place)?;
    for warning in &config.warnings {
        output.note(&format!("warning: {warning}"));
    }
    let failed = run_tests(&config);
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
