//! What a server measures of itself, as text that Prometheus reads (OpenMetrics 1.0).
//!
//! - The registry (here) is all that knows how a measure is kept; others hold a [`Metrics`] and say what happened.
//! - `watch`: what is looked at now and then instead of being told. A scrape reads memory only.
//! - `settings`: the configuration's keys.
//!
//! What is measured of a request costs it two look-ups under locks that readers share, and an addition. Labels are words
//! of ours (an operation of the document, a status, a state), or tenants, which operators make: nobody from outside can
//! make another.

mod settings;
mod watch;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use settings::{MetricsConfig, MetricsFile};
pub use watch::{Certificate, Traffic, Watched, glance, look, watch};

/// Of what comes back as text.
pub const MEDIA: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper ends of the buckets of a request's duration, in seconds: around a database's commit, and up to the longest wait.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 60.0];

/// Tenants that are told apart in what was refused; those that come later are `OTHERS` together.
const MOST_TENANTS: usize = 100;
const OTHERS: &str = "(others)";

/// A number that may have a fraction.
type Float = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    operation: Arc<str>,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfOperation {
    operation: Arc<str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Refusal {
    limit: &'static str,
    tenant: Arc<str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfCertificate {
    certificate: Certificate,
}

impl EncodeLabelValue for Certificate {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.word(), encoder)
    }
}

/// All measures of one server. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: Family<Answered, Counter>,
    seconds: Family<OfOperation, Histogram, fn() -> Histogram>,
    refused: Family<Refusal, Counter>,
    tenants: Mutex<BTreeSet<Arc<str>>>,
    certificates: Family<OfCertificate, Float>,
    sessions: Gauge,
    streams: Gauge,
    orders: Counter,
    reports: Counter,
    jobs: Family<OfState, Gauge>,
    awaiting: Gauge,
    waiting_events: Gauge,
    log_lag: Float,
    connections: Family<OfState, Gauge>,
    looked: Float,
}

fn of_requests() -> Histogram {
    Histogram::new(SECONDS)
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// All at nothing.
    pub fn new() -> Metrics {
        let mut inner = Inner {
            registry: Registry::with_prefix("rhyzome"),
            requests: Family::default(),
            seconds: Family::new_with_constructor(of_requests),
            refused: Family::default(),
            tenants: Mutex::default(),
            certificates: Family::default(),
            sessions: Gauge::default(),
            streams: Gauge::default(),
            orders: Counter::default(),
            reports: Counter::default(),
            jobs: Family::default(),
            awaiting: Gauge::default(),
            waiting_events: Gauge::default(),
            log_lag: Float::default(),
            connections: Family::default(),
            looked: Float::default(),
        };
        inner.register();
        Metrics(Arc::new(inner))
    }

    /// A request was answered: by its operation in the document (or `none`), with this status, after so long.
    pub fn answered(&self, operation: &Arc<str>, status: u16, took: Duration) {
        let answered = Answered { operation: operation.clone(), status };
        self.0.requests.get_or_create(&answered).inc();
        let of = OfOperation { operation: operation.clone() };
        self.0.seconds.get_or_create(&of).observe(took.as_secs_f64());
    }

    /// A request was refused by this limit: of this tenant's, or of nobody's.
    pub fn refused(&self, limit: &'static str, tenant: &str) {
        let tenant = self.of_tenants(tenant);
        self.0.refused.get_or_create(&Refusal { limit, tenant }).inc();
    }

    /// A tenant as a label: they are made by operators, and yet there may be more of them than series should be.
    fn of_tenants(&self, tenant: &str) -> Arc<str> {
        let mut told = self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        match told.get(tenant) {
            Some(known) => known.clone(),
            None if told.len() < MOST_TENANTS => {
                let known: Arc<str> = tenant.into();
                told.insert(known.clone());
                known
            }
            None => OTHERS.into(),
        }
    }

    /// All that was told, as text; `glance` first, for what is in memory.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // A String takes whatever is written to it.
        let _ = encode(&mut text, &self.0.registry);
        text
    }
}

impl Inner {
    fn register(&mut self) {
        let registry = &mut self.registry;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "This program", build);
        let about = "Requests answered, by operation of the document and status";
        registry.register("http_requests", about, self.requests.clone());
        let about = "How long requests took until their answer began";
        registry.register_with_unit("http_request_duration", about, Unit::Seconds, self.seconds.clone());
        registry.register(
            "http_refused",
            "Requests refused, by limit and whose it was",
            self.refused.clone(),
        );
        let about = "When a certificate ends, since 1970; of agents, and of tenants, the one that ends first";
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            about,
            Unit::Seconds,
            self.certificates.clone(),
        );
        registry.register("sessions", "Agents connected to this server", self.sessions.clone());
        registry.register(
            "streams",
            "Consoles and logs that nodes are asked for and have not brought yet",
            self.streams.clone(),
        );
        registry.register("orders_sent", "Orders sent to agents by this server", self.orders.clone());
        registry.register("reports_received", "Reports of agents to this server", self.reports.clone());
        let about = "Open jobs of the cluster, by state; not counted beyond 10000";
        registry.register("jobs", about, self.jobs.clone());
        let about = "Orders in flight: open jobs that wait for a node's word; not counted beyond 10000";
        registry.register("orders_in_flight", about, self.awaiting.clone());
        let about = "Events that are not in the log yet; not counted beyond 10000";
        registry.register("event_log_waiting", about, self.waiting_events.clone());
        let about = "Age of the oldest event that is not in the log yet";
        registry.register_with_unit("event_log_lag", about, Unit::Seconds, self.log_lag.clone());
        let about = "Connections to the database that this server may have, and how many are at work";
        registry.register("database_connections", about, self.connections.clone());
        let about = "When the database was last looked at for these figures, since 1970";
        registry.register_with_unit("looked_timestamp", about, Unit::Seconds, self.looked.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_counted_and_told() {
        let (metrics, listed): (_, Arc<str>) = (Metrics::new(), "instance_list".into());
        metrics.answered(&listed, 200, Duration::from_millis(3));
        metrics.answered(&listed, 200, Duration::from_millis(30));
        metrics.answered(&listed, 404, Duration::from_millis(1));
        metrics.refused("tenant-rate", "acme");
        let text = metrics.text();
        for line in [
            "rhyzome_build_info{version=\"",
            "rhyzome_http_requests_total{operation=\"instance_list\",status=\"200\"} 2\n",
            "rhyzome_http_requests_total{operation=\"instance_list\",status=\"404\"} 1\n",
            "rhyzome_http_request_duration_seconds_count{operation=\"instance_list\"} 3\n",
            "rhyzome_http_request_duration_seconds_bucket{le=\"0.005\",operation=\"instance_list\"} 2\n",
            "rhyzome_http_refused_total{limit=\"tenant-rate\",tenant=\"acme\"} 1\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn tenants_make_only_so_many_series() {
        let metrics = Metrics::new();
        (0..3 * MOST_TENANTS).for_each(|number| metrics.refused("tenant-rate", &format!("t{number}")));
        let text = metrics.text();
        assert_eq!(text.lines().filter(|line| line.starts_with("rhyzome_http_refused_total")).count(), 101);
        assert!(text.contains("tenant=\"(others)\"} 200\n"), "{text}");
    }
}
