//! Which URLs are in use: failures of real requests, probes, and how much each one has to do.

use std::collections::BTreeMap;
use std::future::Future as _;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::connect;
use super::tls::{Tls, tls};
use crate::clock::Clock;
use crate::config::{self, UpstreamUrl};
use crate::telemetry::metrics::Metrics;

/// Failures in a row that put a URL out of use.
const FAILURES_IN_A_ROW: u32 = 3;
/// How long it is out the first time; doubled each time after.
const FIRST_REST: Duration = Duration::from_secs(1);
/// At most.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// Between two probes of one URL.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// Probes in a row that must fail before a URL counts as down.
const FAILED_PROBES: u32 = 2;

/// The state of every URL of every upstream: shared by all workers, probed by the control thread.
pub struct Health {
    origin: Instant,
    upstreams: BTreeMap<String, Vec<Arc<UrlState>>>,
    config: BTreeMap<String, config::Upstream>,
    /// By `ca_file` and `server_name`: reading certificates takes longer than a request, so it is done once for all workers.
    tls: Mutex<BTreeMap<TlsKey, Tls>>,
}

/// `ca_file` and `server_name`.
type TlsKey = (Option<PathBuf>, Option<String>);

/// One URL as all workers see it.
pub(super) struct UrlState {
    pub(super) url: UpstreamUrl,
    pub(super) label: String,
    upstream: String,
    in_flight: AtomicUsize,
    failures: AtomicU32,
    rests: AtomicU32,
    /// Milliseconds since the health's origin.
    out_until: AtomicU64,
    probed_down: AtomicBool,
    metrics: Metrics,
}

/// Counts as a request in flight while it lives.
pub(super) struct InFlight(Arc<UrlState>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Health {
    /// Every URL begins in use.
    #[must_use]
    pub fn new(upstreams: &BTreeMap<String, config::Upstream>, clock: &Clock, metrics: &Metrics) -> Self {
        let state = |name: &str, url: &UpstreamUrl| {
            let label = label(url);
            metrics.upstream_up(name, &label, true);
            Arc::new(UrlState {
                url: url.clone(),
                label,
                upstream: name.to_owned(),
                in_flight: AtomicUsize::new(0),
                failures: AtomicU32::new(0),
                rests: AtomicU32::new(0),
                out_until: AtomicU64::new(0),
                probed_down: AtomicBool::new(false),
                metrics: metrics.clone(),
            })
        };
        let upstreams_state = upstreams
            .iter()
            .map(|(name, upstream)| (name.clone(), upstream.urls.iter().map(|url| state(name, url)).collect()))
            .collect();
        Self { origin: clock.instant(), upstreams: upstreams_state, config: upstreams.clone(), tls: Mutex::default() }
    }

    /// Upstreams of which no URL is in use.
    #[must_use]
    pub fn unreachable(&self, now: Instant) -> Vec<&str> {
        let now = self.millis(now);
        self.upstreams
            .iter()
            .filter(|(_, urls)| !urls.iter().any(|url| url.is_in_use(now)))
            .map(|(name, _)| &**name)
            .collect()
    }

    /// Probes the `health_path` of each upstream that has one, until dropped. For the control thread.
    pub async fn probe(self: Arc<Self>, clock: Clock) {
        // Each URL for itself: one that hangs must not keep the others from being looked at.
        let mut probes = JoinSet::new();
        for (name, upstream) in &self.config {
            let Some(path) = &upstream.health_path else { continue };
            let tls = match self.tls(upstream) {
                Ok(tls) => tls,
                Err(error) => {
                    tracing::error!(upstream = name, %error, "the upstream can't be probed");
                    continue;
                }
            };
            for state in self.urls(name) {
                let lookout = Prober {
                    health: Arc::clone(&self),
                    state: Arc::clone(state),
                    path: path.clone(),
                    connect_timeout: upstream.connect_timeout,
                    tls: tls.clone(),
                };
                probes.spawn(lookout.run(clock.clone()));
            }
        }
        probes.join_all().await;
    }

    /// TLS where one of the upstream's URLs needs it.
    pub(super) fn tls(&self, upstream: &config::Upstream) -> io::Result<Option<Tls>> {
        if !upstream.urls.iter().any(|url| matches!(url, UpstreamUrl::Https { .. })) {
            return Ok(None);
        }
        let mut made = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (upstream.ca_file.clone(), upstream.server_name.clone());
        if let Some(tls) = made.get(&key) {
            return Ok(Some(tls.clone()));
        }
        let new = tls(upstream.ca_file.as_deref(), upstream.server_name.as_deref())?;
        made.insert(key, new.clone());
        Ok(Some(new))
    }

    pub(super) fn urls(&self, upstream: &str) -> &[Arc<UrlState>] {
        self.upstreams.get(upstream).map_or(&[], |urls| urls)
    }

    pub(super) fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_millis()).unwrap_or(u64::MAX)
    }
}

impl UrlState {
    /// `now`: milliseconds since the health's origin.
    pub(super) fn is_in_use(&self, now: u64) -> bool {
        !self.probed_down.load(Ordering::Relaxed) && self.out_until.load(Ordering::Relaxed) <= now
    }

    pub(super) fn load(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Whether this request is the one that tries a URL after its rest. The others leave it alone meanwhile, for they
    /// might all wait for a host that is gone. A trial without an outcome (the client left) is free again after
    /// `connect_timeout` and a second.
    pub(super) fn begin_trial(&self, now: impl FnOnce() -> u64, connect_timeout: Duration) -> bool {
        if self.rests.load(Ordering::Relaxed) == 0 || self.probed_down.load(Ordering::Relaxed) {
            return false;
        }
        let now = now();
        let until = self.out_until.load(Ordering::Relaxed);
        let next = now + 1000 + u64::try_from(connect_timeout.as_millis()).unwrap_or(u64::from(u32::MAX));
        until <= now && self.out_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// An answer came.
    pub(super) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.failures.store(0, Ordering::Relaxed);
        if self.rests.swap(0, Ordering::Relaxed) != 0 {
            self.out_until.store(0, Ordering::Relaxed);
            self.metrics.upstream_up(&self.upstream, &self.label, !self.probed_down.load(Ordering::Relaxed));
            tracing::info!(upstream = self.upstream, url = self.label, "the URL is in use again");
        }
    }

    /// A probe came back; `down`: it was not the first to fail.
    fn probed(&self, outcome: io::Result<()>, down: bool, now: u64) {
        if self.probed_down.swap(down, Ordering::Relaxed) == down {
            return;
        }
        self.metrics.upstream_up(&self.upstream, &self.label, self.is_in_use(now));
        match outcome {
            Ok(()) => tracing::info!(upstream = self.upstream, url = self.label, "the probe succeeds again"),
            Err(error) => {
                let (upstream, url) = (&self.upstream, &self.label);
                tracing::warn!(upstream, url, %error, "the probe fails; the URL is out of use");
            }
        }
    }

    /// What it answered is of no use, which says nothing about the next answer.
    pub(super) fn erred(&self) {
        self.metrics.upstream_error(&self.upstream, &self.label);
    }

    /// It could not be reached, broke off or answered nobody in time.
    pub(super) fn failed(&self, now: u64) {
        self.erred();
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < FAILURES_IN_A_ROW {
            return;
        }
        // One failure more after its rest puts it out again at once.
        self.failures.store(FAILURES_IN_A_ROW - 1, Ordering::Relaxed);
        let rests = self.rests.fetch_add(1, Ordering::Relaxed).min(5);
        let rest = (FIRST_REST * 2_u32.pow(rests)).min(LONGEST_REST);
        self.out_until.store(now + u64::try_from(rest.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.metrics.upstream_up(&self.upstream, &self.label, false);
        tracing::warn!(
            upstream = self.upstream,
            url = self.label,
            seconds = rest.as_secs(),
            "the URL failed repeatedly and rests"
        );
    }
}

/// Looks after one URL.
struct Prober {
    health: Arc<Health>,
    state: Arc<UrlState>,
    path: String,
    connect_timeout: Duration,
    tls: Option<Tls>,
}

impl Prober {
    async fn run(self, clock: Clock) {
        let mut failed = 0_u32;
        loop {
            let limit = self.connect_timeout + Duration::from_secs(2);
            let outcome = tokio::time::timeout(limit, self.ask())
                .await
                .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time")));
            failed = if outcome.is_ok() { 0 } else { failed.saturating_add(1) };
            self.state.probed(outcome, failed >= FAILED_PROBES, self.health.millis(clock.instant()));
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    /// One `GET` of the health path; 2xx and 3xx are good.
    async fn ask(&self) -> io::Result<()> {
        let stream = connect::connect(&self.state.url, self.tls.as_ref(), self.connect_timeout).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let request = Request::get(&self.path)
            .header(header::HOST, authority(&self.state.url))
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        // The head is all that is asked for; a body that never ends is nobody's concern.
        let mut connection = pin!(connection);
        let mut answered = pin!(sender.send_request(request));
        let mut over = false;
        let answer = std::future::poll_fn(|task| {
            over = over || connection.as_mut().poll(task).is_ready();
            answered.as_mut().poll(task)
        });
        let status = answer.await.map_err(io::Error::other)?.status();
        if status.is_success() || status.is_redirection() {
            Ok(())
        } else {
            Err(io::Error::other(format!("it answered {status}")))
        }
    }
}

/// The authority of a URL, for `Host`.
pub(super) fn authority(url: &UpstreamUrl) -> String {
    let with_port = |host: &str, port: u16, default: u16| {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        if port == default { host } else { format!("{host}:{port}") }
    };
    match url {
        UpstreamUrl::Http { host, port } => with_port(host, *port, 80),
        UpstreamUrl::Https { host, port } => with_port(host, *port, 443),
        UpstreamUrl::Unix(_) => String::from("localhost"),
    }
}

/// For logs and metrics.
fn label(url: &UpstreamUrl) -> String {
    match url {
        UpstreamUrl::Http { .. } => format!("http://{}", authority(url)),
        UpstreamUrl::Https { .. } => format!("https://{}", authority(url)),
        UpstreamUrl::Unix(path) => format!("unix:{}", path.display()),
    }
}
