//! The program's own messages as lines: JSON for machines, plain words for a person at a terminal.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::printable;
use crate::clock::Clock;
use crate::config::LogFormat;

/// Writes events.
pub(super) struct Lines {
    pub(super) format: LogFormat,
    /// Standard output is a terminal.
    pub(super) colours: bool,
    pub(super) clock: Clock,
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => drop(self.others.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::from(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, Value::String(value.to_string()));
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = event.metadata().level();
        let millis = i64::try_from(self.clock.unix_millis()).unwrap_or_default();
        let now = jiff::Timestamp::from_millisecond(millis).unwrap_or_default();
        match self.format {
            LogFormat::Json => {
                let time = now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
                let mut line = json_pairs([("time", &*time), ("level", level.as_str()), ("message", &fields.message)]);
                for (name, value) in &fields.others {
                    let _ = write!(line, ",{}:{value}", Value::from(name.as_str()));
                }
                let _ = write!(line, ",\"target\":{}}}", Value::from(event.metadata().target()));
                writeln!(writer, "{}", printable::json(&line))
            }
            LogFormat::Text => {
                let level = if self.colours { coloured(*level) } else { plain(*level) };
                write!(writer, "{} {level} {}", now.strftime("%Y-%m-%dT%H:%M:%SZ"), printable::text(&fields.message))?;
                for (name, value) in &fields.others {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    write!(writer, " {name}={}", printable::text(&text))?;
                }
                writeln!(writer)
            }
        }
    }
}

/// The beginning of an object, still open.
fn json_pairs<const N: usize>(pairs: [(&str, &str); N]) -> String {
    let mut line = String::from("{");
    for (index, (name, value)) in pairs.into_iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let _ = write!(line, "{comma}\"{name}\":{}", Value::from(value));
    }
    line
}

const fn plain(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARN ",
        Level::INFO => "INFO ",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "TRACE",
    }
}

const fn coloured(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31mERROR\x1b[0m",
        Level::WARN => "\x1b[33mWARN \x1b[0m",
        Level::INFO => "\x1b[32mINFO \x1b[0m",
        Level::DEBUG => "\x1b[34mDEBUG\x1b[0m",
        Level::TRACE => "\x1b[35mTRACE\x1b[0m",
    }
}
