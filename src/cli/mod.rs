//! The command line: reads arguments, calls the rooms, prints. Exit status 0: done; 1: it failed; 2: wrong usage or
//! wrong or missing configuration.

mod arguments;
mod configuration;
mod demo;
mod explain;
mod health;
mod key;
mod operate;
mod output;
mod protect;
mod reach;
mod serve;
mod session;
mod store;
mod token;
mod typed;
mod user;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use self::arguments::{Arguments, Verb};
use self::output::Output;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It failed (exit status 1). The text says why and what to do next.
    Failed(String),
    /// Wrong usage, or a wrong or missing configuration (exit status 2).
    Usage(String),
}

impl Failure {
    fn failed(message: impl std::fmt::Display) -> Self {
        Self::Failed(message.to_string())
    }

    fn usage(message: impl std::fmt::Display) -> Self {
        Self::Usage(message.to_string())
    }
}

/// What every command returns.
pub(crate) type Done = Result<(), Failure>;

/// Runs the program with the arguments of the process.
#[must_use]
pub fn run() -> ExitCode {
    crate::files::make_private_files();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way too; clap knows which stream and status each needs.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let mut output = Output::new();
    match carry_out(arguments, &mut output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(message)) => {
            output.error(&message);
            ExitCode::from(1)
        }
        Err(Failure::Usage(message)) => {
            output.error(&message);
            ExitCode::from(2)
        }
    }
}

fn carry_out(arguments: Arguments, output: &mut Output) -> Done {
    let place = arguments.place;
    match arguments.verb {
        Verb::Protect(arguments) => protect::run(&arguments, &place, output),
        Verb::Demo(arguments) => demo::run(&arguments, &place, output),
        Verb::Serve => serve::run(&place, output),
        Verb::CheckConfig => configuration::check(&place, output),
        Verb::Health(arguments) => health::run(&arguments, &place, output),
        Verb::Explain(arguments) => explain::run(&arguments, &place, output),
        Verb::User { verb } => user::run(verb, &place, output),
        Verb::Session { verb } => session::run(verb, &place, output),
        Verb::Token { verb } => token::run(verb, &place, output),
        Verb::Key { verb } => key::run(&verb, &place, output),
        Verb::Store { verb } => store::run(&verb, &place, output),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "doorward", &mut script);
            output.bytes(&script)
        }
        Verb::Man { out: Some(folder) } => {
            let told = |error: std::io::Error| Failure::failed(format!("{}: {error}", folder.display()));
            std::fs::create_dir_all(&folder).map_err(told)?;
            clap_mangen::generate_to(Arguments::command(), &folder).map_err(told)
        }
        Verb::Man { out: None } => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page).map_err(Failure::failed)?;
            output.bytes(&page)
        }
    }
}
