//! What is looked at now and then: what is in memory whenever metrics are asked for, what is in the database every few
//! seconds. Each look at the database reads so many rows at most, however many there are.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use rhyzome_pki::Authority;
use tokio_util::sync::CancellationToken;

use super::{Inner, Metrics, OfCertificate, OfState};
use crate::kernel::Error;
use crate::store::Store;

/// How often the database is looked at.
const EVERY: Duration = Duration::from_secs(10);

/// Whose end is told.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Certificate {
    /// Of the nodes that are connected, the one that ends first.
    Agents,
    /// The root; of several that are trusted, the one that ends first.
    Root,
    /// The issuing certificate; likewise.
    Intermediate,
    /// What this server shows agents.
    Grpc,
    /// What this server shows clients of REST.
    Http,
    /// Of those that were given for domains of tenants, the one that ends first.
    Tenants,
}

/// What a server has that can be looked at.
pub struct Watched {
    /// The database.
    pub store: Store,
    /// The cluster's authority.
    pub authority: Arc<Authority>,
    /// The agents' door.
    pub traffic: Box<dyn Fn() -> Traffic + Send + Sync>,
    /// When what this server shows clients of REST ends, if it shows anything.
    pub http_ends: Box<dyn Fn() -> Option<SystemTime> + Send + Sync>,
}

/// What passes the agents' door of this server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Agents that are connected.
    pub sessions: usize,
    /// Consoles and logs that are asked for and not brought yet.
    pub streams: usize,
    /// Orders that were sent since the start.
    pub orders: u64,
    /// Reports that were received since the start.
    pub reports: u64,
    /// When, of the certificates of the agents that are connected, the first one ends.
    pub agents_end: Option<SystemTime>,
    /// When what agents are shown ends.
    pub grpc_ends: Option<SystemTime>,
}

impl Certificate {
    /// As it is told.
    pub fn word(self) -> &'static str {
        match self {
            Certificate::Agents => "agents",
            Certificate::Root => "root",
            Certificate::Intermediate => "intermediate",
            Certificate::Grpc => "grpc",
            Certificate::Http => "http",
            Certificate::Tenants => "tenants",
        }
    }
}

/// Looks until it is told to stop.
pub async fn watch(metrics: Metrics, watched: Arc<Watched>, stop: CancellationToken) {
    loop {
        if let Err(error) = look(&metrics, &watched).await {
            tracing::warn!(%error, "the figures of the database could not be looked at; trying again");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Looks at the database once.
pub async fn look(metrics: &Metrics, watched: &Watched) -> Result<(), Error> {
    let figures = watched.store.figures().await?;
    let inner = &metrics.0;
    for (state, count) in figures.jobs {
        inner.jobs.get_or_create(&OfState { state }).set(count);
    }
    inner.awaiting.set(figures.awaiting);
    inner.waiting_events.set(figures.waiting_events);
    let now = watched.store.env().now();
    inner.log_lag.set(figures.oldest_event.map_or(0.0, |at| (now.0 - at.0).max(0) as f64 / 1e6));
    inner.ends(Certificate::Tenants, figures.given_end.map(SystemTime::from));
    inner.looked.set(now.0 as f64 / 1e6);
    Ok(())
}

/// What is in memory.
pub fn glance(metrics: &Metrics, watched: &Watched) {
    let inner = &metrics.0;
    let traffic = (watched.traffic)();
    inner.sessions.set(i64::try_from(traffic.sessions).unwrap_or(i64::MAX));
    inner.streams.set(i64::try_from(traffic.streams).unwrap_or(i64::MAX));
    inner.orders.inner().store(traffic.orders, Ordering::Relaxed);
    inner.reports.inner().store(traffic.reports, Ordering::Relaxed);
    let (used, most) = watched.store.connections();
    inner.connections.get_or_create(&OfState { state: "used" }).set(i64::from(used));
    inner.connections.get_or_create(&OfState { state: "most" }).set(i64::from(most));
    let generations = watched.authority.generations();
    let all = [
        (Certificate::Agents, traffic.agents_end),
        (Certificate::Root, generations.iter().map(|generation| generation.root_ends).min()),
        (Certificate::Intermediate, generations.iter().map(|generation| generation.issuer_ends).min()),
        (Certificate::Grpc, traffic.grpc_ends),
        (Certificate::Http, (watched.http_ends)()),
    ];
    for (certificate, ends) in all {
        inner.ends(certificate, ends);
    }
}

impl Inner {
    /// When it ends; `None`: there is none.
    fn ends(&self, certificate: Certificate, ends: Option<SystemTime>) {
        let labels = OfCertificate { certificate };
        match ends {
            Some(ends) => {
                let since = ends.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                self.certificates.get_or_create(&labels).set(since.as_secs_f64());
            }
            None => drop(self.certificates.remove(&labels)),
        }
    }
}
