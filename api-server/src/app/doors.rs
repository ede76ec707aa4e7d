//! The doors for HTTP, REST's and that of metrics: where they listen, what they show, and what they put up with.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use rhyzome_pki::{
    Authority, Identity, ServerCertificate, rest_server_config, rest_server_config_asking, write_private,
};
use rustls::DistinguishedName;
use tokio_util::sync::CancellationToken;

use super::TOKEN_FILE;
use super::certificates::{Certificates, Tenants};
use super::serve::{Serving, serve};
use crate::config::Config;
use crate::limits::ConnectionLimits;
use crate::metrics::{Metrics, MetricsConfig, Traffic, Watched, glance};
use crate::rest::{self, RestContext, Router};

const CA_FILE: &str = "ca.pem";

/// A door that listens, and serves nobody yet.
struct Door {
    listener: TcpListener,
    address: SocketAddr,
    shown: Option<Arc<ServerCertificate>>,
    /// Callers are asked for certificates, of these authorities if they can choose.
    asks_for: Option<Vec<DistinguishedName>>,
    /// On the domains of tenants something else is shown.
    tenants: Option<Tenants>,
}

impl Door {
    /// With TLS, unless nobody but this machine can listen in. `key` is that of the configuration.
    fn open(
        key: &str,
        listen: SocketAddr,
        config: &Config,
        authority: &Arc<Authority>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Door> {
        let listener =
            TcpListener::bind(listen).with_context(|| format!("`{key}`: {listen} cannot be listened on"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shown = match &config.http_certificate {
            Some((cert, key)) => Some(ServerCertificate::new(&Identity::from_files(cert, key)?)?),
            None if address.ip().is_loopback() => None,
            None => {
                let names = names(address, &config.http_names);
                let shown = ServerCertificate::new(&authority.issue_server(&names, SystemTime::now())?)?;
                tokio::spawn(renew(authority.clone(), names, shown.clone(), stop.clone()));
                Some(shown)
            }
        };
        Ok(Door { listener, address, shown, asks_for: None, tenants: None })
    }

    /// Until `stop`.
    async fn serve(
        self,
        router: Router,
        limits: ConnectionLimits,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let tls = match (self.shown, self.asks_for) {
            (None, _) => None,
            (Some(shown), None) => Some(rest_server_config(shown)?),
            (Some(shown), Some(authorities)) => Some(rest_server_config_asking(shown, authorities)?),
        };
        let tls = tls.map(Certificates::of_server);
        let tls = match (tls, self.tenants) {
            (Some(tls), Some(tenants)) => Some(tls.with_tenants(tenants)),
            (tls, _) => tls,
        };
        serve(listener, Serving { router, tls, limits, metrics }, stop).await;
        Ok(())
    }

    fn url(&self) -> String {
        let scheme = if self.shown.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", SocketAddr::new(reachable(self.address.ip()), self.address.port()))
    }
}

/// Binds REST's door and tells local clients where it is. What it shows, and what serves it.
pub(super) fn serve_rest(
    config: &Config,
    context: RestContext,
    authority: Arc<Authority>,
    stop: CancellationToken,
) -> anyhow::Result<(Option<Arc<ServerCertificate>>, impl Future<Output = anyhow::Result<()>> + use<>)> {
    let mut door = Door::open("http.listen", config.http, config, &authority, &stop)?;
    door.asks_for = context.authenticators.wants_certificates(None);
    if door.asks_for.is_some() && door.shown.is_none() {
        bail!(
            "certificates of callers are shown over TLS only: name the server's own in `http.cert` and `http.key`"
        );
    }
    let (store, known) = (context.store.clone(), context.authenticators.clone());
    door.tenants = Some(Tenants::new(store, authority.clone(), known));
    let url = door.url();
    tell_clients(&config.data, &url, &authority.trust_pem(), config.http_certificate.is_none())?;
    tokio::spawn(follow_trust(authority, config.data.clone(), stop.clone()));
    tracing::info!(%url, pages = %format!("{url}/docs"), "the REST API is served");
    let (limits, metrics) = (config.limits.connections, context.metrics.clone());
    Ok((door.shown.clone(), door.serve(rest::router(context), limits, metrics, stop)))
}

/// Binds the door of metrics. What serves it.
pub(super) fn serve_metrics(
    config: &Config,
    how: &MetricsConfig,
    metrics: Metrics,
    watched: Arc<Watched>,
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    let door = Door::open("metrics.listen", how.listen, config, &watched.authority, &stop)?;
    tracing::info!(url = %format!("{}/metrics", door.url()), "metrics are served");
    let shown = metrics.clone();
    let text = move || {
        glance(&shown, &watched);
        shown.text()
    };
    let router = rest::metrics_router(how.token.as_ref(), Arc::new(text));
    Ok(door.serve(router, config.limits.connections, metrics, stop))
}

/// What passes the agents' door.
pub(super) fn traffic(streams: &crate::channel::Streams) -> Traffic {
    let (sessions, asked) = streams.counted();
    let (orders, reports) = streams.passed();
    let (agents_end, grpc_ends) = streams.certificates_end();
    Traffic { sessions, streams: asked, orders, reports, agents_end, grpc_ends }
}

/// Keeps our own certificate for REST fresh: it lives 30 days, and is made anew each day, and when the authority is
/// exchanged for another.
async fn renew(
    authority: Arc<Authority>,
    names: Vec<String>,
    shown: Arc<ServerCertificate>,
    stop: CancellationToken,
) {
    let (mut issuer, mut renewed) = (authority.issuer_key(), tokio::time::Instant::now());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let now = authority.issuer_key();
        if now == issuer && renewed.elapsed() < Duration::from_secs(24 * 3600) {
            continue;
        }
        let made = authority.issue_server(&names, SystemTime::now());
        if let Err(error) = made.and_then(|identity| shown.replace(&identity)) {
            tracing::error!(%error, "the certificate for REST could not be renewed; trying again tomorrow");
        }
        (issuer, renewed) = (now, tokio::time::Instant::now());
    }
}

/// Writes whom clients on this machine trust, whenever that is something else.
async fn follow_trust(authority: Arc<Authority>, data: PathBuf, stop: CancellationToken) {
    let mut told = authority.trust_digest();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let now = authority.trust_digest();
        if now == told {
            continue;
        }
        match write_private(&data.join(CA_FILE), authority.trust_pem().as_bytes()) {
            Ok(()) => told = now,
            Err(error) => tracing::warn!(%error, "clients on this machine were not told whom to trust"),
        }
    }
}

/// Writes what a client on this machine needs: address, where the token is, whom to trust. For a certificate that is
/// not `own` our authority does not vouch: a client goes by those of its machine.
fn tell_clients(data: &Path, url: &str, trust_pem: &str, own: bool) -> anyhow::Result<()> {
    let data = std::fs::canonicalize(data)?;
    write_private(&data.join(CA_FILE), trust_pem.as_bytes())?;
    let told = serde_json::json!({
        "url": url, "token_file": data.join(TOKEN_FILE), "ca_file": own.then(|| data.join(CA_FILE)),
    });
    write_private(&data.join("client.json"), format!("{told:#}\n").as_bytes())?;
    Ok(())
}

/// Names for a certificate: those configured, and the address itself unless it stands for all.
pub(super) fn names(listens: SocketAddr, configured: &[String]) -> Vec<String> {
    let mut names = configured.to_vec();
    names.push(reachable(listens.ip()).to_string());
    names.push("localhost".to_owned());
    names.dedup();
    names
}

/// Where a client on this machine reaches a listener.
pub(super) fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        other => other,
    }
}
