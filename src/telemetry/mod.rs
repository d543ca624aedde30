//! What an operator sees: the access log, the audit log, the metrics, the program's own log.

pub mod access;
pub mod audit;
pub mod metrics;
mod output;
mod own;
mod printable;

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::clock::Clock;
use crate::config::Log;

/// All three, for code that needs more than one. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    pub access: access::AccessLog,
    pub audit: audit::Audit,
    pub metrics: metrics::Metrics,
}

/// Why the log can't be set up.
#[derive(Debug, thiserror::Error)]
#[error("log.level: {0}")]
pub struct LevelError(#[from] tracing_subscriber::filter::ParseError);

/// Sends the program's own messages to standard output, in the format and from the level that the configuration names.
/// Later calls in one process change nothing (tests).
pub fn subscribe(log: &Log) -> Result<(), LevelError> {
    let filter = EnvFilter::try_new(&log.level)?;
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| output::Piece)
        .with_ansi(false)
        // Its complaint about a log that can't be written would go to standard error and panic if that is full as well.
        .log_internal_errors(false)
        .event_format(own::Lines { format: log.format, colours, clock: Clock::system() })
        .try_init();
    Ok(())
}

/// Writes one line that is already formatted to the log. Never waits.
pub(crate) fn log_line(line: &str) {
    let mut bytes = Vec::with_capacity(line.len() + 1);
    bytes.extend_from_slice(line.as_bytes());
    bytes.push(b'\n');
    output::Output::standard().send(bytes);
}
