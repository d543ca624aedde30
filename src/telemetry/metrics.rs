//! Metrics in the Prometheus text format. Label sets are fixed: nothing that a client sends becomes a label.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UpstreamLabels {
    upstream: String,
    url: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DecisionLabel {
    reason: &'static str,
}

/// One worker's hold on the counters of one route: each is looked up once, so that a request only counts.
pub struct RouteCounters {
    name: String,
    metrics: Metrics,
    /// By status class, from 1xx to 5xx. A class that never came is not in the text.
    classes: [OnceCell<Counter>; 5],
}

impl std::fmt::Debug for RouteCounters {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "RouteCounters({:?})", self.name)
    }
}

impl RouteCounters {
    /// The route's name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn count(&self, status: u16) {
        let (index, status) = class_of(status);
        if let Some(counter) = self.classes.get(index) {
            let labels = || RequestLabels { route: self.name.clone(), status };
            counter.get_or_init(|| self.metrics.0.requests.get_or_create_owned(&labels())).inc();
        }
    }
}

/// A status's class; what is no status counts as a failure of ours.
const fn class_of(status: u16) -> (usize, &'static str) {
    match status {
        100..200 => (0, "1xx"),
        200..300 => (1, "2xx"),
        300..400 => (2, "3xx"),
        400..500 => (3, "4xx"),
        _ => (4, "5xx"),
    }
}

/// All metrics of one process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Histogram,
    in_flight: Gauge,
    connections: Gauge,
    denials: Family<DecisionLabel, Counter>,
    logins: Family<OutcomeLabel, Counter>,
    renewals: Family<OutcomeLabel, Counter>,
    revocations: Counter,
    live_revocations: Gauge,
    revocation_lag: Gauge,
    store_up: Gauge,
    feed_readers: Gauge,
    upstream_up: Family<UpstreamLabels, Gauge>,
    upstream_errors: Family<UpstreamLabels, Counter>,
    hash_queue: Gauge,
    reloads: Family<OutcomeLabel, Counter>,
    panics: Counter,
    #[expect(dead_code, reason = "counted where the lines are lost")]
    log_lines_lost: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("doorward");
        macro_rules! register {
            ($metric:expr, $name:literal, $help:literal) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        let inner = Inner {
            requests: register!(Family::default(), "requests", "Requests by route and status class"),
            durations: register!(
                Histogram::new(exponential_buckets(0.001, 2.5, 12)),
                "request_duration_seconds",
                "From the request's head to the end of the answer's body"
            ),
            in_flight: register!(Gauge::default(), "requests_in_flight", "Requests being answered"),
            connections: register!(Gauge::default(), "connections", "Open client connections"),
            denials: register!(Family::default(), "denials", "Refused requests by reason"),
            logins: register!(Family::default(), "logins", "Tries to log in by outcome"),
            renewals: register!(Family::default(), "renewals", "Token renewals by outcome"),
            revocations: register!(Counter::default(), "revocations", "Entries read from the revocation log"),
            live_revocations: register!(
                Gauge::default(),
                "live_revocations",
                "Entries of the revocation log in memory"
            ),
            revocation_lag: register!(
                Gauge::default(),
                "revocation_lag_seconds",
                "How old this process's knowledge of the revocation log may be"
            ),
            store_up: register!(Gauge::default(), "store_up", "1 while the store takes changes"),
            feed_readers: register!(Gauge::default(), "feed_readers", "Verify-only gateways that read the feed here"),
            upstream_up: register!(Family::default(), "upstream_up", "1 while the upstream's URL is in use"),
            upstream_errors: register!(Family::default(), "upstream_errors", "Failed tries by upstream URL"),
            hash_queue: register!(Gauge::default(), "hash_queue", "Passwords waiting to be hashed"),
            reloads: register!(Family::default(), "reloads", "Reloads of the configuration by outcome"),
            log_lines_lost: register!(
                super::output::lost_lines().clone(),
                "log_lines_lost",
                "Lines of the log that were lost because nobody read it or it could not be written"
            ),
            panics: register!(Counter::default(), "panics", "Requests that ended in a defect of the program"),
            registry: Registry::default(),
        };
        Self(Arc::new(Inner { registry, ..inner }))
    }
}

impl Metrics {
    /// A request was taken up.
    pub fn request_began(&self) {
        self.0.in_flight.inc();
    }

    /// The counters of a route.
    #[must_use]
    pub fn route(&self, name: &str) -> RouteCounters {
        RouteCounters { name: name.to_owned(), metrics: self.clone(), classes: Default::default() }
    }

    /// A request ended, its body included. `None`: it had no route.
    pub fn request_ended(&self, route: Option<&RouteCounters>, status: u16, took: Duration) {
        self.0.in_flight.dec();
        if let Some(route) = route {
            route.count(status);
        } else {
            let (_, status) = class_of(status);
            self.0.requests.get_or_create(&RequestLabels { route: String::new(), status }).inc();
        }
        self.0.durations.observe(took.as_secs_f64());
    }

    /// A request was refused.
    pub fn denied(&self, reason: &'static str) {
        self.0.denials.get_or_create(&DecisionLabel { reason }).inc();
    }

    /// A client connection opened.
    pub fn connection_opened(&self) {
        self.0.connections.inc();
    }

    /// A client connection closed.
    pub fn connection_closed(&self) {
        self.0.connections.dec();
    }

    /// `ok`, `refused`, `throttled`, `busy`, `unavailable`.
    pub fn login(&self, outcome: &'static str) {
        self.0.logins.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// `ok`, `refused`, `unavailable`.
    pub fn renewal(&self, outcome: &'static str) {
        self.0.renewals.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Entries of the revocation log were read.
    pub fn revocations(&self, new: usize) {
        self.0.revocations.inc_by(new as u64);
    }

    /// Entries of the revocation log in memory.
    pub fn live_revocations(&self, live: usize) {
        self.0.live_revocations.set(i64::try_from(live).unwrap_or(i64::MAX));
    }

    /// How old this process's knowledge of the log may be, in seconds.
    pub fn revocation_lag(&self, seconds: u64) {
        self.0.revocation_lag.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// Whether the store takes changes.
    pub fn store_up(&self, up: bool) {
        self.0.store_up.set(i64::from(up));
    }

    /// Verify-only gateways that read the revocation feed.
    pub fn feed_readers(&self, readers: usize) {
        self.0.feed_readers.set(i64::try_from(readers).unwrap_or(i64::MAX));
    }

    /// Whether one URL of an upstream is in use.
    pub fn upstream_up(&self, upstream: &str, url: &str, up: bool) {
        let labels = UpstreamLabels { upstream: upstream.to_owned(), url: url.to_owned() };
        self.0.upstream_up.get_or_create(&labels).set(i64::from(up));
    }

    /// A try at an upstream failed.
    pub fn upstream_error(&self, upstream: &str, url: &str) {
        let labels = UpstreamLabels { upstream: upstream.to_owned(), url: url.to_owned() };
        self.0.upstream_errors.get_or_create(&labels).inc();
    }

    /// Passwords waiting to be hashed.
    pub fn hash_queue(&self, waiting: usize) {
        self.0.hash_queue.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// `ok` or `refused`.
    pub fn reload(&self, outcome: &'static str) {
        self.0.reloads.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// A request ended in a panic.
    pub fn panicked(&self) {
        self.0.panics.inc();
    }

    /// The text that `GET /metrics` answers.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.0.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_in_the_text() {
        let metrics = Metrics::default();
        metrics.request_began();
        metrics.request_ended(Some(&metrics.route("app/")), 204, Duration::from_millis(3));
        metrics.login("refused");
        let text = metrics.text();
        assert!(text.contains("doorward_requests_total{route=\"app/\",status=\"2xx\"} 1"), "{text}");
        assert!(text.contains("doorward_logins_total{outcome=\"refused\"} 1"), "{text}");
        assert!(text.contains("doorward_requests_in_flight 0"), "{text}");
    }
}
