//! The audit log: one JSON line for every event that somebody may have to account for.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::printable;
use crate::clock::{Clock, rfc3339};
use crate::files;

/// One event. Fields that say nothing are left out of the line. Never put a secret into one.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Event<'a> {
    /// `login`, `login_failed`, `login_throttled`, `renewal`, `logout`, `revocation`, `account_added`, … (fixed words).
    #[expect(clippy::struct_field_names, reason = "the word that the line has")]
    pub event: &'static str,
    /// `ok` or a reason code.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub outcome: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub username: &'a str,
    #[serde(rename = "_id", skip_serializing_if = "str::is_empty")]
    pub id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub sid: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub client: &'a str,
    /// Further words for a person, such as which groups an account has now.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub detail: &'a str,
}

/// The audit log. Cheap to clone.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    clock: Clock,
    sink: Sink,
}

enum Sink {
    Log,
    File(Mutex<File>),
    Nowhere,
}

impl Audit {
    /// With the ordinary log.
    #[must_use]
    pub fn with_log(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, sink: Sink::Log }))
    }

    /// Into a file of its own, made with mode 0600, appended to, one line a write.
    pub fn to_file(clock: Clock, path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(files::told(path))?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            // A command that root gives before the service's first start must not keep the service from its own file.
            files::give_to_owner_of(path, folder)?;
        }
        Ok(Self(Arc::new(Inner { clock, sink: Sink::File(Mutex::new(file)) })))
    }

    /// For a command that runs on its own and has no log.
    #[must_use]
    pub fn silent(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, sink: Sink::Nowhere }))
    }

    /// Writes one event. An audit file that can't be written is reported on the log with the event itself, so that
    /// nothing is lost in silence.
    pub fn record(&self, event: &Event<'_>) {
        #[derive(serde::Serialize)]
        struct Line<'a> {
            time: String,
            kind: &'static str,
            #[serde(flatten)]
            event: &'a Event<'a>,
        }
        let line = Line { time: rfc3339(self.0.clock.unix_seconds()), kind: "audit", event };
        let text = serde_json::to_string(&line).unwrap_or_default();
        let mut text = printable::json(&text).into_owned();
        match &self.0.sink {
            Sink::Log => crate::telemetry::log_line(&text),
            Sink::Nowhere => {}
            Sink::File(file) => {
                text.push('\n');
                let written = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes());
                if let Err(error) = written {
                    tracing::error!(%error, event = text.trim_end(), "the audit file can't be written");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_stays_inside_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let audit = Audit::to_file(Clock::manual(1_795_512_600), &path).unwrap();
        audit.record(&Event { event: "login_failed", username: "a\nb\u{1b}[2J\"", ..Event::default() });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["username"], "a\nb\u{1b}[2J\"");
        assert_eq!(line["time"], "2026-11-24T09:30:00Z");
        assert!(line.get("sid").is_none());
    }
}
