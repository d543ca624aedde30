//! Doorward.

pub mod accounts;
pub mod admin;
pub mod app;
pub mod auth;
pub mod cli;
pub mod clock;
mod context;
mod gate;
mod server;
pub mod config;
pub mod message;
pub mod policy;
pub mod portal;
pub mod router;
pub mod secret;
pub mod store;
pub mod telemetry;
pub mod upstream;
