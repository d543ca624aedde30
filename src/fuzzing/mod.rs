//! What the fuzzers drive: one function for each target, which takes bytes and panics where a promise is broken.
//!
//! Not in the program: built for `cargo fuzz` (which sets `cfg(fuzzing)`) and for the unit tests, which feed every
//! target its seeds and some thousand mutations of them. No target trusts the code that it looks at: each holds it
//! against a second, slow and naive reading of the same rule, written here from the specification.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a target that meets something else than was promised ends there: that is its report"
)]

mod config;
mod cookies;
mod gate;
mod headers;
mod host;
mod import;
mod login;
mod path;
mod route;
mod token;

pub use config::config;
pub use cookies::cookies;
pub use gate::gate;
pub use headers::headers;
pub use host::host;
pub use import::import;
pub use login::login;
pub use path::path;
pub use route::route;
pub use token::token;

/// A target.
pub type Target = fn(&[u8]);

/// Every target, by the name of its file in `fuzz/targets` and of its folder in `fuzz/seeds`.
pub const TARGETS: &[(&str, Target)] = &[
    ("config", config),
    ("cookies", cookies),
    ("gate", gate),
    ("headers", headers),
    ("host", host),
    ("import", import),
    ("login", login),
    ("path", path),
    ("route", route),
    ("token", token),
];

#[cfg(test)]
mod tests;
