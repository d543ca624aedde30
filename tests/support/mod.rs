//! What the tests stand on: a whole gateway on ports of its own, backends that follow a script, HTTP byte for byte,
//! and a look at the fields of every answer.

pub(crate) mod cases;
pub(crate) mod file_server;
pub(crate) mod gateway;
pub(crate) mod link;
pub(crate) mod peer;
pub(crate) mod postgres;
pub(crate) mod token;
pub(crate) mod turn;
pub(crate) mod upstream;
pub(crate) mod user;
pub(crate) mod wait;
pub(crate) mod wire;

pub(crate) use gateway::{Builder, Gateway, PASSWORD, SECRET};
pub(crate) use upstream::{Then, Upstream, reply, reply_bytes};
pub(crate) use wire::{Connection, Request, Response};
