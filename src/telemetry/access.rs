//! The access log: one JSON line for every request, written when its body has ended.
//!
//! Lines are collected per thread and handed to a writer thread in blocks, so that a request never waits for a disk.

use std::cell::RefCell;
use std::io::Write as _;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use super::metrics::Metrics;
use crate::clock::{Clock, rfc3339};
use crate::config::LogFormat;

/// The facts of one request, filled in as they become known.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Entry {
    pub id: String,
    pub client: Option<IpAddr>,
    pub method: String,
    pub host: String,
    /// Without the query, which may hold what must not be logged.
    pub path: String,
    pub route: String,
    pub user: String,
    /// `allow` or `deny`; empty for the portal's own endpoints.
    pub decision: &'static str,
    /// A stable reason code.
    pub reason: &'static str,
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes: u64,
    #[serde(serialize_with = "milliseconds")]
    pub duration: Duration,
    #[serde(serialize_with = "optional_milliseconds")]
    pub upstream_duration: Option<Duration>,
}

fn milliseconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e3)
}

#[expect(clippy::ref_option, reason = "the signature that serde wants")]
fn optional_milliseconds<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => milliseconds(duration, serializer),
        None => serializer.serialize_none(),
    }
}

/// Where access lines go. Cheap to clone.
#[derive(Clone)]
pub struct AccessLog {
    clock: Clock,
    metrics: Metrics,
    format: LogFormat,
    writer: Option<SyncSender<Message>>,
}

enum Message {
    Block(Vec<u8>),
    /// Answer when everything before this has been written.
    Barrier(SyncSender<()>),
}

/// A thread's own lines go to the writer when this many bytes have come together, or at [`AccessLog::flush`].
const BLOCK: usize = 60 * 1024;
/// Blocks that may wait for a slow disk or pipe; then requests wait, for a lost line is worse.
const BLOCKS: usize = 64;

thread_local! {
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static TIME: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

impl AccessLog {
    /// Starts the writer thread; lines go to standard output. `enabled` false: only the metrics are kept.
    pub fn start(clock: Clock, metrics: Metrics, format: LogFormat, enabled: bool) -> std::io::Result<Self> {
        let writer = if enabled {
            let (sender, blocks) = sync_channel(BLOCKS);
            std::thread::Builder::new().name(String::from("access-log")).spawn(move || write_blocks(blocks))?;
            Some(sender)
        } else {
            None
        };
        Ok(Self { clock, metrics, format, writer })
    }

    /// The metrics that every entry counts into.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Writes one line and counts it.
    pub fn write(&self, entry: &Entry) {
        self.metrics.request_ended(&entry.route, entry.status, entry.duration);
        if entry.decision == "deny" {
            self.metrics.denied(entry.reason);
        }
        if self.writer.is_none() {
            return;
        }
        LINES.with_borrow_mut(|lines| {
            match self.format {
                LogFormat::Json => self.json(lines, entry),
                LogFormat::Text => self.text(lines, entry),
            }
            if lines.len() >= BLOCK {
                self.send(lines);
            }
        });
    }

    /// Hands this thread's lines to the writer. Each worker calls it a few times a second and before it ends.
    pub fn flush(&self) {
        LINES.with_borrow_mut(|lines| {
            if !lines.is_empty() {
                self.send(lines);
            }
        });
    }

    /// Waits until every line that was flushed has been written. For the end of the process.
    pub fn close(&self) {
        self.flush();
        if let Some(writer) = &self.writer {
            let (done, wait) = sync_channel(1);
            if writer.send(Message::Barrier(done)).is_ok() {
                // An error means that the writer has ended, and with it everything to wait for.
                let _ = wait.recv();
            }
        }
    }

    fn send(&self, lines: &mut Vec<u8>) {
        let block = std::mem::replace(lines, Vec::with_capacity(lines.len().min(BLOCK) + 1024));
        if let Some(writer) = &self.writer {
            // The writer lives as long as its senders, so this fails only while the process ends.
            let _ = writer.send(Message::Block(block));
        }
    }

    fn json(&self, lines: &mut Vec<u8>, entry: &Entry) {
        self.with_time(|time| {
            lines.extend_from_slice(b"{\"time\":\"");
            lines.extend_from_slice(time.as_bytes());
            lines.extend_from_slice(b"\",\"kind\":\"access\",");
        });
        let start = lines.len();
        if serde_json::to_writer(&mut *lines, entry).is_ok() {
            // Joins the two objects: the entry's own opening brace goes.
            lines.remove(start);
        }
        lines.push(b'\n');
    }

    fn text(&self, lines: &mut Vec<u8>, entry: &Entry) {
        let client = entry.client.map_or_else(|| String::from("-"), |client| client.to_string());
        self.with_time(|time| {
            let _ = writeln!(
                lines,
                "{time} {client} {} {} {} {} {} route={} user={} {} {} {:.3}ms",
                entry.id,
                entry.method,
                entry.host.escape_default(),
                entry.path.escape_default(),
                entry.status,
                entry.route.escape_default(),
                entry.user.escape_default(),
                entry.decision,
                entry.reason,
                entry.duration.as_secs_f64() * 1e3,
            );
        });
    }

    /// The time of the line; its text is made once a second.
    fn with_time(&self, write: impl FnOnce(&str)) {
        let now = self.clock.unix_seconds();
        TIME.with_borrow_mut(|(second, text)| {
            if *second != now || text.is_empty() {
                *second = now;
                *text = rfc3339(now);
            }
            write(text);
        });
    }
}

fn write_blocks(messages: Receiver<Message>) {
    for message in messages {
        match message {
            Message::Block(block) => {
                let mut output = std::io::stdout().lock();
                // A closed pipe must not end the gateway; there is nowhere left to report it either.
                let _ = output.write_all(&block).and_then(|()| output.flush());
            }
            // Nobody waits any more: fine.
            Message::Barrier(done) => drop(done.send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_json_object_whatever_the_request_was() {
        let log = AccessLog {
            clock: Clock::manual(1_795_512_600),
            metrics: Metrics::default(),
            format: LogFormat::Json,
            writer: None,
        };
        let mut lines = Vec::new();
        log.json(&mut lines, &Entry { path: String::from("/a\n\"b\u{1b}"), status: 200, ..Entry::default() });
        assert_eq!(memchr::memchr_iter(b'\n', &lines).count(), 1);
        let line: serde_json::Value = serde_json::from_slice(&lines).unwrap();
        assert_eq!(line["path"], "/a\n\"b\u{1b}");
        assert_eq!(line["time"], "2026-11-24T09:30:00Z");
        assert_eq!(line["kind"], "access");
    }
}
