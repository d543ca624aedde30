//! For the operator: the admin listener (ping, ready, metrics) and the admin socket (account and session commands).

pub mod command;
pub mod listener;
pub mod operations;
pub mod socket;
