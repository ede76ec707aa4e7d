//! TLS below HTTP: what the transport was shown goes with each request of a connection.

use std::io;
use std::sync::Arc;

use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use futures_util::future::BoxFuture;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;

use crate::rest::{Showing, Shown};

/// Accepts TLS, and tells requests what was shown.
#[derive(Clone)]
pub struct TlsDoor(RustlsAcceptor);

impl TlsDoor {
    /// One with this configuration.
    pub fn new(config: Arc<ServerConfig>) -> TlsDoor {
        TlsDoor(RustlsAcceptor::new(RustlsConfig::from_config(config)))
    }
}

impl<I, S> Accept<I, S> for TlsDoor
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Send + 'static,
{
    type Stream = TlsStream<I>;
    type Service = Showing<S>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            let (stream, service) = inner.accept(stream, service).await?;
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let shown = Shown(chain.iter().cloned().collect());
            Ok((stream, shown.with(service)))
        })
    }
}
