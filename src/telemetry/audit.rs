//! The audit log: one JSON line for every event that somebody may have to account for.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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

/// The file, and whether it still stands where it was opened.
struct Opened {
    file: File,
    path: PathBuf,
    /// When that was last looked at.
    looked: Option<Instant>,
}

/// Appends, makes what is not there.
fn open(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(files::told(path))?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        // A command that root gives before the service's first start must not keep the service from its own file.
        files::give_to_owner_of(path, folder)?;
    }
    Ok(file)
}

impl Opened {
    fn look_if_due(&mut self, now: Instant) {
        const EVERY: Duration = Duration::from_secs(1);
        if self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= EVERY) {
            self.look(now);
        }
    }

    /// A file that can't be opened anew is no reason to lose events: the old one is kept, and the next look tries again.
    fn look(&mut self, now: Instant) {
        self.looked = Some(now);
        if self.is_in_place() {
            return;
        }
        match open(&self.path) {
            Ok(file) => self.file = file,
            Err(error) => {
                tracing::error!(%error, "the audit file was moved and can't be opened anew; the old one is written on");
            }
        }
    }

    fn is_in_place(&self) -> bool {
        match (std::fs::metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(ours)) => there.dev() == ours.dev() && there.ino() == ours.ino(),
            _ => false,
        }
    }
}

enum Sink {
    Log,
    File(Mutex<Opened>),
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
        let opened = Opened { file: open(path)?, path: path.to_owned(), looked: None };
        Ok(Self(Arc::new(Inner { clock, sink: Sink::File(Mutex::new(opened)) })))
    }

    /// Opens the file anew where it was moved away, as log rotation does it. Without this call that is noticed by the
    /// next event that comes a second or more after the last look.
    pub fn look_for_file(&self) {
        if let Sink::File(opened) = &self.0.sink {
            opened.lock().unwrap_or_else(PoisonError::into_inner).look(self.0.clock.instant());
        }
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
            Sink::File(opened) => {
                text.push('\n');
                let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
                opened.look_if_due(self.0.clock.instant());
                let written = opened.file.write_all(text.as_bytes());
                drop(opened);
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

    #[test]
    fn a_file_that_was_moved_is_made_anew_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("audit.log"), folder.path().join("audit.log.1"));
        let clock = Clock::manual(1_795_512_600);
        let audit = Audit::to_file(clock.clone(), &path).unwrap();
        let lines = |path: &Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
        let write = || audit.record(&Event { event: "login", ..Event::default() });
        write();
        std::fs::rename(&path, &moved).unwrap();
        // Not looked at for each event.
        write();
        assert_eq!((lines(&moved), lines(&path)), (2, 0));
        clock.advance(Duration::from_secs(1));
        write();
        assert_eq!((lines(&moved), lines(&path)), (2, 1));
        // Told to look, it does so at once; what somebody else made there is appended to.
        std::fs::rename(&path, &moved).unwrap();
        std::fs::write(&path, "made by another\n").unwrap();
        audit.look_for_file();
        write();
        assert_eq!((lines(&moved), lines(&path)), (1, 2));
        // Nowhere to write: the old file is kept until there is.
        std::fs::rename(&path, &moved).unwrap();
        std::fs::create_dir(&path).unwrap();
        audit.look_for_file();
        write();
        assert_eq!(lines(&moved), 3);
        std::fs::remove_dir(&path).unwrap();
        audit.look_for_file();
        write();
        assert_eq!((lines(&moved), lines(&path)), (3, 1));
    }
}
