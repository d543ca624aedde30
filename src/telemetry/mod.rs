//! What an operator sees: the access log, the audit log, the metrics, the program's own log.

pub mod access;
pub mod audit;
pub mod metrics;

use std::io::Write as _;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

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
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stdout)
        .with_ansi(false)
        // Its complaint about a log that can't be written would go to standard error and panic if that is full as well.
        .log_internal_errors(false);
    let _ = match log.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.try_init(),
    };
    Ok(())
}

/// Writes one line that is already formatted to the log.
pub(crate) fn log_line(line: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{line}");
}
