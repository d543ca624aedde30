//! The `doorward` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    doorward::cli::run()
}
