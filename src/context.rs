//! The facts of one request, from its head to the end of its answer's body.
//!
//! A [`Context`] writes the access line when it is dropped, so a request whose client has left is logged and counted
//! as well (status 499, as nginx writes it).

use std::cell::Cell;
use std::net::IpAddr;
use std::time::Instant;

use crate::clock::Clock;
use crate::telemetry::access::{AccessLog, Entry};

/// One request's facts. Owned by the request's future, then by its answer's body or tunnel.
pub struct Context {
    /// What the access line will say.
    pub entry: Entry,
    /// When the head had been read.
    pub started: Instant,
    clock: Clock,
    log: AccessLog,
    answered: bool,
}

impl Context {
    /// Opens the books on one request.
    #[must_use]
    pub fn open(clock: &Clock, log: &AccessLog, client: Option<IpAddr>, method: http::Method) -> Self {
        log.metrics().request_began();
        let entry = Entry::new(client, method);
        Self { entry, started: clock.instant(), clock: clock.clone(), log: log.clone(), answered: false }
    }

    /// The answer's head is decided; from here on its body counts.
    pub fn answer(&mut self, status: http::StatusCode) {
        self.entry.status = status.as_u16();
    }

    /// The whole answer was handed over: dropping the context now is the ordinary end.
    pub fn complete(&mut self) {
        self.answered = true;
    }
}

thread_local! {
    static CUT: Cell<&'static str> = const { Cell::new("") };
}

/// Whatever ends while `during` runs was cut off for this reason, and not left by its client.
pub fn cutting<T>(reason: &'static str, during: impl FnOnce() -> T) -> T {
    let before = CUT.replace(reason);
    let result = during();
    CUT.set(before);
    result
}

impl Drop for Context {
    fn drop(&mut self) {
        /// "Client closed request": not a registered status, but the word every operator of nginx knows.
        const CLIENT_LEFT: u16 = 499;
        // While a thread ends there may be no such word any more.
        let cut = CUT.try_with(Cell::get).unwrap_or_default();
        if !self.answered && !cut.is_empty() {
            self.entry.reason = cut;
            self.entry.status = if self.entry.status == 0 { CLIENT_LEFT } else { self.entry.status };
        } else if !self.answered {
            self.entry.status = CLIENT_LEFT;
            if self.entry.reason.is_empty() {
                self.entry.reason = "client_left";
            }
        }
        self.entry.duration = self.clock.instant().saturating_duration_since(self.started);
        self.log.write(&self.entry);
    }
}
