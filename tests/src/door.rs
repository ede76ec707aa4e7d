//! A router on a port of this machine, as a server has it: with its listener, and what it puts up with.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;
use rhyzome_api::app::{Certificates, Serving, serve};
use rhyzome_api::limits::ConnectionLimits;
use rhyzome_api::metrics::Metrics;
use rustls::ServerConfig;
use tokio_util::sync::{CancellationToken, DropGuard};

/// It is open until this goes.
pub struct Door {
    /// Where.
    pub address: SocketAddr,
    /// Where is counted whom it cut off.
    pub metrics: Metrics,
    _stop: DropGuard,
}

impl Door {
    /// As a server has it, but that everybody may come from this machine.
    pub fn open(router: Router) -> Door {
        let usual = ConnectionLimits::default();
        Door::within(router, ConnectionLimits { of_one_address: usual.most, ..usual }, None)
    }

    /// Within these limits; with TLS, if there is a configuration of it.
    pub fn within(router: Router, limits: ConnectionLimits, tls: Option<Arc<ServerConfig>>) -> Door {
        Door::showing(router, limits, tls.map(Certificates::of_server))
    }

    /// Within these limits; with TLS, if something is shown.
    pub fn showing(router: Router, limits: ConnectionLimits, tls: Option<Certificates>) -> Door {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (stop, metrics) = (CancellationToken::new(), Metrics::new());
        let serving = Serving { router, tls, limits, metrics: metrics.clone() };
        tokio::spawn(serve(listener, serving, stop.clone()));
        Door { address, metrics, _stop: stop.drop_guard() }
    }
}
