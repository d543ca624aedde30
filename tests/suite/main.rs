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
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "measured figures and a failed gateway's log are shown beside the test's own words"
)]
#![expect(
    clippy::format_push_string,
    clippy::format_collect,
    clippy::case_sensitive_file_extension_comparisons,
    clippy::type_complexity,
    clippy::too_many_lines,
    reason = "tests are read from top to bottom and run once"
)]
#![expect(clippy::disallowed_methods, reason = "tests stand outside the program and look at the real clock")]

#[path = "../support/mod.rs"]
mod support;

mod adoption;
mod browser;
mod build;
mod central;
mod check;
mod check_config;
mod command_line;
mod cookies;
mod copies;
mod deployment;
mod durability;
mod exchanges;
mod exhaustion;
mod framing;
mod further_targets;
mod hostile_framing;
mod hostile_identity;
mod hostile_login;
mod hostile_paths;
mod hostile_sessions;
mod hostile_tokens;
mod hostile_upgrades;
mod identity;
mod layering;
mod load;
mod login;
mod logs;
mod operation;
mod paths;
mod peers;
mod quick_start;
mod redirects;
mod renewal;
mod replicas;
mod revocation;
mod security_table;
mod start;
mod streaming;
mod targets;
mod upstreams;
mod websocket;
