//! Forwarding to backends. Sees no credentials and no configuration but its own: only a [`Pass`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;

use crate::clock::Clock;
use crate::config::{self, IdentityHeader};
use crate::message::admit::Admitted;
use crate::message::identity::Guarded;
use crate::policy::Pass;
use crate::telemetry::metrics::Metrics;

/// Everything about one request that shapes what the backend sees.
pub struct Outgoing<'a> {
    pub pass: &'a Pass,
    pub admitted: &'a Admitted,
    pub peer: Option<IpAddr>,
    pub request_id: &'a str,
    pub strip_prefix: &'a str,
    pub guarded: &'a Guarded,
    pub identity: &'a [IdentityHeader],
    /// Taken out of `Cookie`, unless the upstream's `forward_token` says otherwise.
    pub cookie_name: &'a str,
    /// `Authorization` holds a token of ours: it goes no further, unless `forward_token`.
    pub own_bearer: bool,
    /// Between two pieces of the request's body.
    pub body_timeout: Duration,
}

/// Why a backend gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 502: no URL could be reached, or the backend broke the protocol.
    #[error("the upstream {upstream} can't be reached")]
    Unreachable {
        upstream: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// 502.
    #[error("the upstream {upstream} broke off or sent something that is not HTTP")]
    Broken {
        upstream: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// 504.
    #[error("the upstream {upstream} did not answer in time")]
    TimedOut { upstream: String },
    /// 400: the client's body is malformed or broke off.
    #[error("the request's body broke off or is malformed")]
    ClientBody(#[source] hyper::Error),
    /// 408.
    #[error("the request's body did not come in time")]
    ClientBodyTimedOut,
}

/// The state of every URL of every upstream: shared by all workers, probed by the control thread.
pub struct Health {}

impl Health {
    #[must_use]
    pub fn new(_upstreams: &BTreeMap<String, config::Upstream>, _metrics: Metrics) -> Self {
        todo!("helper: upstream")
    }

    /// Probes the `health_path` of each upstream that has one, until dropped. For the control thread.
    pub async fn probe(self: Arc<Self>, _clock: Clock) {
        todo!()
    }
}

/// One worker's upstreams and their idle connections. Not shared between threads.
pub struct Upstreams {}

impl Upstreams {
    /// `names`: in the order of `router::Target::Upstream`.
    pub fn new(
        _names: &[String],
        _config: &BTreeMap<String, config::Upstream>,
        _health: Arc<Health>,
        _clock: Clock,
    ) -> std::io::Result<Self> {
        todo!()
    }

    /// Forwards one request. The answer's body is read as the client takes it.
    pub async fn forward(
        &self,
        _upstream: usize,
        _request: Request<Incoming>,
        _outgoing: &Outgoing<'_>,
    ) -> Result<Answer, Error> {
        todo!()
    }

    /// Closes connections that have idled too long. Each worker calls it every second.
    pub fn close_idle(&self) {
        todo!()
    }
}

/// What a backend answered.
pub enum Answer {
    Response(Response<UpstreamBody>),
    /// 101: the tunnel is ready to be joined to the client's upgraded connection.
    Tunnel {
        head: Response<()>,
        upstream: Tunnel,
    },
}

/// An upgraded connection to a backend.
pub struct Tunnel {}

impl Tunnel {
    /// Copies both ways until one side ends or `over` says that the session is over.
    pub async fn join(self, _client: hyper::upgrade::OnUpgrade, _over: impl Future<Output = ()>) {
        todo!()
    }
}

/// The body of a backend's answer. Reading it drives the upstream connection; when it has ended the connection goes
/// back to the pool, when it is dropped before, the connection is closed.
pub struct UpstreamBody {}

impl http_body::Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        todo!()
    }
}

/// An answer's body that broke off: the client's connection is aborted so that it can tell.
#[derive(Debug, thiserror::Error)]
#[error("the upstream's answer broke off")]
pub struct BodyError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
