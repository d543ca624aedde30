//! The first look at a request head: what is malformed ends here.

use std::net::IpAddr;

use http::HeaderValue;
use http::request::Parts;
use ipnet::IpNet;

use super::path::Readings;

/// What admission needs to know of the configuration and the listener.
#[derive(Clone, Debug)]
pub struct Edge {
    pub trusted_proxies: Vec<IpNet>,
    /// How the listener itself is reached.
    pub scheme: Scheme,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

/// The canonical form of a host name: lower case, no port, no trailing dot; IPv6 in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host(String);

impl Host {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses `HOST` or `HOST:PORT` (RFC 9110 section 7.2) and makes the canonical host.
    pub fn parse(_authority: &str) -> Option<Self> {
        todo!("helper: message")
    }
}

/// A request that may go on to the router.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// For routing.
    pub host: Host,
    /// The one valid `Host` as it was sent (with its port).
    pub authority: HeaderValue,
    /// What the browser used, as far as a trusted proxy says so.
    pub scheme: Scheme,
    /// The peer, or the right-most address that no trusted proxy vouches for as its own.
    pub client: IpAddr,
    /// Whether the peer is one of `trusted_proxies`.
    pub peer_trusted: bool,
    pub readings: Readings,
    pub intent: Intent,
    /// A complete WebSocket handshake (RFC 6455 section 4.1): GET, HTTP/1.1, `Upgrade: websocket`, `Connection: upgrade`.
    pub websocket: bool,
}

/// Whether a person looks at the answer, or a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    Navigation,
    Program,
}

/// Why a request went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    Host,
    Target,
    Path,
    TransferEncoding,
    Method,
    ContentLength,
    Expectation,
    Header,
}

impl Malformed {
    /// A stable reason code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        todo!()
    }
}

/// Looks at a request head. `peer` is the address at the other end of the socket (`None`: a unix socket).
pub fn admit(_head: &Parts, _peer: Option<IpAddr>, _edge: &Edge) -> Result<Admitted, Malformed> {
    todo!("helper: message")
}
