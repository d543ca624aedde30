//! The access log: one JSON line for every request, written when its body has ended.
//!
//! Lines are collected per thread and handed over in blocks, so that a request never waits for a disk, nor for whoever
//! reads the log.

use std::cell::RefCell;
use std::io::Write as _;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method};

use super::metrics::{Metrics, RouteCounters};
use super::output::Output;
use super::printable;
use crate::address::Address;
use crate::clock::{Clock, rfc3339};
use crate::config::LogFormat;
use crate::policy::Principal;

/// The facts of one request, filled in as they become known. Everything in it is shared with whoever found it out:
/// nothing is copied for the log's sake.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Visible ASCII.
    pub id: HeaderValue,
    pub client: Option<IpAddr>,
    pub method: Method,
    pub host: Option<Arc<str>>,
    /// Without the query, which may hold what must not be logged.
    pub path: Option<Arc<str>>,
    /// `None`: no route was found.
    pub route: Option<Rc<RouteCounters>>,
    pub user: Option<Arc<Principal>>,
    /// `allow` or `deny`; empty for the portal's own endpoints.
    pub decision: &'static str,
    /// A stable reason code.
    pub reason: &'static str,
    /// More of it, where there is more. May hold what a client sent.
    pub detail: Option<Box<str>>,
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes: u64,
    pub duration: Duration,
    pub upstream_duration: Option<Duration>,
}

impl Entry {
    /// What is known at the very beginning.
    #[must_use]
    pub fn new(client: Option<IpAddr>, method: Method) -> Self {
        Self {
            id: HeaderValue::from_static(""),
            client,
            method,
            host: None,
            path: None,
            route: None,
            user: None,
            decision: "",
            reason: "",
            detail: None,
            status: 0,
            bytes: 0,
            duration: Duration::ZERO,
            upstream_duration: None,
        }
    }

    /// The request's id as text; empty before there is one.
    #[must_use]
    pub fn id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    fn host(&self) -> &str {
        self.host.as_deref().unwrap_or_default()
    }

    fn path(&self) -> &str {
        self.path.as_deref().unwrap_or_default()
    }

    fn route(&self) -> &str {
        self.route.as_ref().map_or("", |route| route.name())
    }

    fn user(&self) -> &str {
        self.user.as_ref().map_or("", |person| &person.username)
    }
}

/// Where access lines go. Cheap to clone.
#[derive(Clone)]
pub struct AccessLog {
    clock: Clock,
    metrics: Metrics,
    format: LogFormat,
    enabled: bool,
}

/// A thread's own lines are handed over when this many bytes have come together, or at [`AccessLog::flush`].
const BLOCK: usize = 60 * 1024;
/// How long the end of the process waits for the last lines to be read.
const LAST_LINES: Duration = Duration::from_secs(2);

thread_local! {
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static TIME: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

impl AccessLog {
    /// Lines go to standard output. `enabled` false: only the metrics are kept.
    #[must_use]
    pub const fn new(clock: Clock, metrics: Metrics, format: LogFormat, enabled: bool) -> Self {
        Self { clock, metrics, format, enabled }
    }

    /// The metrics that every entry counts into.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Writes one line and counts it.
    pub fn write(&self, entry: &Entry) {
        self.metrics.request_ended(entry.route.as_deref(), entry.status, entry.duration);
        if entry.decision == "deny" {
            self.metrics.denied(entry.reason);
        }
        if !self.enabled {
            return;
        }
        LINES.with_borrow_mut(|lines| {
            match self.format {
                LogFormat::Json => self.json(lines, entry),
                LogFormat::Text => self.text(lines, entry),
            }
            if lines.len() >= BLOCK {
                Self::send(lines);
            }
        });
    }

    /// Hands this thread's lines to the writer. Each worker calls it a few times a second and before it ends.
    pub fn flush(&self) {
        LINES.with_borrow_mut(|lines| {
            if self.enabled && !lines.is_empty() {
                Self::send(lines);
            }
        });
    }

    /// Waits until every line that was flushed has been written, but not for a reader that has stopped. For the end of the
    /// process.
    pub fn close(&self) {
        self.flush();
        Output::standard().settle(LAST_LINES);
    }

    fn send(lines: &mut Vec<u8>) {
        let block = std::mem::replace(lines, Vec::with_capacity(lines.len().min(BLOCK) + 1024));
        Output::standard().send(block);
    }

    /// Written by hand: every request pays for it, and the field's names are ours.
    fn json(&self, lines: &mut Vec<u8>, entry: &Entry) {
        self.with_time(|time| {
            lines.extend_from_slice(b"{\"time\":\"");
            lines.extend_from_slice(time.as_bytes());
            lines.extend_from_slice(b"\",\"kind\":\"access\",\"id\":");
        });
        json_string(lines, entry.id());
        match entry.client {
            None => lines.extend_from_slice(b",\"client\":null"),
            Some(client) => {
                lines.extend_from_slice(b",\"client\":\"");
                lines.extend_from_slice(Address::of(client).text());
                lines.push(b'"');
            }
        }
        // A method is a token (RFC 9110 section 9.1), so nothing in it needs escaping.
        lines.extend_from_slice(b",\"method\":\"");
        lines.extend_from_slice(entry.method.as_str().as_bytes());
        for (name, text) in [
            (&b"\",\"host\":"[..], entry.host()),
            (b",\"path\":", entry.path()),
            (b",\"route\":", entry.route()),
            (b",\"user\":", entry.user()),
        ] {
            lines.extend_from_slice(name);
            json_string(lines, text);
        }
        // Words of our own.
        lines.extend_from_slice(b",\"decision\":\"");
        lines.extend_from_slice(entry.decision.as_bytes());
        lines.extend_from_slice(b"\",\"reason\":\"");
        lines.extend_from_slice(entry.reason.as_bytes());
        lines.push(b'"');
        if let Some(detail) = &entry.detail {
            lines.extend_from_slice(b",\"detail\":");
            json_string(lines, detail);
        }
        let mut digits = itoa::Buffer::new();
        lines.extend_from_slice(b",\"status\":");
        lines.extend_from_slice(digits.format(entry.status).as_bytes());
        lines.extend_from_slice(b",\"bytes\":");
        lines.extend_from_slice(digits.format(entry.bytes).as_bytes());
        lines.extend_from_slice(b",\"duration\":");
        milliseconds(lines, entry.duration);
        lines.extend_from_slice(b",\"upstream_duration\":");
        match entry.upstream_duration {
            Some(duration) => milliseconds(lines, duration),
            None => lines.extend_from_slice(b"null"),
        }
        lines.extend_from_slice(b"}\n");
    }

    /// For a person: what happened first, then who and why.
    fn text(&self, lines: &mut Vec<u8>, entry: &Entry) {
        let client = entry.client.map_or_else(|| String::from("-"), |client| client.to_string());
        self.with_time(|time| {
            let _ = write!(
                lines,
                "{time} {client} {} {} {}{} {:.1}ms",
                entry.status,
                entry.method,
                printable::text(entry.host()),
                printable::text(entry.path()),
                entry.duration.as_secs_f64() * 1e3,
            );
        });
        for (name, value) in [
            ("user", entry.user()),
            ("route", entry.route()),
            ("", entry.decision),
            ("reason", entry.reason),
            ("detail", entry.detail.as_deref().unwrap_or_default()),
            ("id", short(entry.id())),
        ] {
            let is = if name.is_empty() { "" } else { "=" };
            if !value.is_empty() {
                let _ = write!(lines, " {name}{is}{}", printable::text(value));
            }
        }
        lines.push(b'\n');
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

/// The end of an id, which is the part that differs.
fn short(id: &str) -> &str {
    const SIGNS: usize = 8;
    id.len().checked_sub(SIGNS).and_then(|at| id.get(at..)).unwrap_or(id)
}

/// A JSON string (RFC 8259 section 7). Text that needs no escaping, which is nearly all, is copied as it is.
fn json_string(lines: &mut Vec<u8>, text: &str) {
    if is_plain(text) {
        lines.push(b'"');
        lines.extend_from_slice(text.as_bytes());
        lines.push(b'"');
    } else {
        // Writing a string can't fail.
        let written = serde_json::to_string(text).unwrap_or_default();
        lines.extend_from_slice(printable::json(&written).as_bytes());
    }
}

#[expect(clippy::needless_bitwise_bool, reason = "without a way out in between, many bytes are looked at at once")]
fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |plain, byte| plain & (byte.wrapping_sub(0x20) < 0x5f) & (byte != b'"') & (byte != b'\\'))
}

/// Milliseconds with the microseconds behind the point.
fn milliseconds(lines: &mut Vec<u8>, duration: Duration) {
    let micros = duration.as_micros();
    let mut digits = itoa::Buffer::new();
    lines.extend_from_slice(digits.format(micros / 1000).as_bytes());
    let rest = micros % 1000;
    if rest != 0 {
        let padding: &[u8] = match rest {
            0..10 => b".00",
            10..100 => b".0",
            _ => b".",
        };
        lines.extend_from_slice(padding);
        lines.extend_from_slice(digits.format(rest).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line_of(entry: &Entry) -> serde_json::Value {
        let log = AccessLog {
            clock: Clock::manual(1_795_512_600),
            metrics: Metrics::default(),
            format: LogFormat::Json,
            enabled: false,
        };
        let mut lines = Vec::new();
        log.json(&mut lines, entry);
        assert_eq!(memchr::memchr_iter(b'\n', &lines).count(), 1);
        serde_json::from_slice(&lines).unwrap()
    }

    #[test]
    fn a_line_is_one_json_object_whatever_the_request_was() {
        let path = "/a\n\"b\u{1b}\\";
        let entry = Entry { path: Some(path.into()), status: 200, ..Entry::new(None, Method::GET) };
        let line = line_of(&entry);
        assert_eq!(line["path"], path);
        assert_eq!(line["time"], "2026-11-24T09:30:00Z");
        assert_eq!(line["kind"], "access");
        assert_eq!(line["client"], serde_json::Value::Null);
        assert_eq!(line["upstream_duration"], serde_json::Value::Null);
    }

    #[test]
    fn nothing_in_a_line_hides_or_turns_what_follows() {
        let entry = Entry { path: Some("/\u{9b}2J\u{202e}/é".into()), status: 200, ..Entry::new(None, Method::GET) };
        for format in [LogFormat::Json, LogFormat::Text] {
            let log =
                AccessLog { clock: Clock::manual(1_795_512_600), metrics: Metrics::default(), format, enabled: false };
            let mut lines = Vec::new();
            match format {
                LogFormat::Json => log.json(&mut lines, &entry),
                LogFormat::Text => log.text(&mut lines, &entry),
            }
            let line = String::from_utf8(lines).unwrap();
            assert!(!line.contains(['\u{9b}', '\u{202e}']) && line.contains('é') && line.contains("202e"), "{line}");
        }
    }

    #[test]
    fn every_fact_has_its_place() {
        let metrics = Metrics::default();
        let kim = Principal {
            id: String::from("1"),
            username: String::from("kim"),
            groups: Vec::new(),
            email: String::new(),
            display_name: String::new(),
        };
        let entry = Entry {
            id: HeaderValue::from_static("id-1"),
            host: Some("gw.test".into()),
            path: Some("/x".into()),
            route: Some(Rc::new(metrics.route("app/"))),
            user: Some(Arc::new(kim)),
            decision: "allow",
            reason: "logged_in",
            status: 404,
            bytes: 12,
            duration: Duration::from_micros(1_002_003),
            upstream_duration: Some(Duration::from_millis(7)),
            ..Entry::new(Some("::1".parse().unwrap()), Method::PUT)
        };
        let expected = serde_json::json!({
            "time": "2026-11-24T09:30:00Z", "kind": "access", "id": "id-1", "client": "::1", "method": "PUT",
            "host": "gw.test", "path": "/x", "route": "app/", "user": "kim", "decision": "allow", "reason": "logged_in",
            "status": 404, "bytes": 12, "duration": 1002.003, "upstream_duration": 7,
        });
        assert_eq!(line_of(&entry), expected);
    }

    proptest! {
        #[test]
        fn text_and_spans_are_read_back_as_they_were(text in "\\PC*|.*", micros in 0_u64..10_000_000_000) {
            let mut written = Vec::new();
            json_string(&mut written, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&written).unwrap(), text);
            let mut written = Vec::new();
            milliseconds(&mut written, Duration::from_micros(micros));
            let read: f64 = serde_json::from_slice(&written).unwrap();
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let expected = micros as f64 / 1e3;
            prop_assert!((read - expected).abs() < 1e-6, "{} is not {}", read, expected);
        }
    }
}
