//! The whole program from outside: the built binary, real sockets, real processes.
//!
//! Every test waits for conditions and never for a time; a part that can't run on this machine fails, it is not skipped.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets something else than it expects ends there and says so"
)]
#![expect(clippy::disallowed_methods, reason = "tests stand outside the program and look at the real clock")]

#[path = "../support/mod.rs"]
mod support;

mod check;
mod cookies;
mod durability;

mod framing;
mod identity;
mod layering;
mod load;
mod login;
mod logs;
mod operation;
mod paths;
mod redirects;
mod peers;
mod renewal;
mod revocation;
mod streaming;
mod upstreams;
mod websocket;
