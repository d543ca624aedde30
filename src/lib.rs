//! Doorward: a login in front of HTTP applications that have none of their own.
//!
//! The program is a thin shell around this library. `ARCHITECTURE.md` draws the line that every request takes and says
//! which room may know which; here is only what the program and the tools beside it need.

#![forbid(unsafe_code)]

mod accounts;
mod address;
mod admin;
mod app;
mod auth;
mod central;
pub mod cli;
mod clock;
mod config;
mod context;
mod feed;
mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
#[cfg(feature = "measure")]
#[doc(hidden)]
pub mod measure;
mod message;
mod policy;
mod portal;
mod router;
mod secret;
mod server;
mod store;
mod tcp;
mod telemetry;
mod upstream;
mod vocabulary;
