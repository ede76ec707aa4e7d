//! One connection to the server: TCP, TLS as the cluster's own authority wants it, HTTP/2.
use hyper_util::rt::TokioIo;
use rhyzome_pki::SERVER_NAME;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint};

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Dials the first of `servers` that can be reached: `host:port`, or `https://host:port`, with commas between. `first`
/// says with which one to begin (counted round), so that not all nodes are at the same. Under TLS 1.3 a refusal of our
/// certificate shows on the first call only.
pub(crate) async fn dial(
    servers: &str,
    first: usize,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Channel, String> {
    let all: Vec<&str> = servers.split(',').map(str::trim).filter(|server| !server.is_empty()).collect();
    let mut failures = Vec::new();
    for server in all.iter().cycle().skip(first % all.len().max(1)).take(all.len()) {
        match dial_one(server, tls.clone()).await {
            Ok(channel) => return Ok(channel),
            Err(failure) => failures.push(failure),
        }
    }
    Err(if failures.is_empty() { "no server is named".to_owned() } else { failures.join("; ") })
}

async fn dial_one(server: &str, tls: Arc<rustls::ClientConfig>) -> Result<Channel, String> {
    let address = server.strip_prefix("https://").unwrap_or(server).trim_end_matches('/').to_owned();
    let connector = tower::service_fn(move |_| {
        let (address, tls) = (address.clone(), TlsConnector::from(tls.clone()));
        async move {
            let tcp = TcpStream::connect(&address).await?;
            tcp.set_nodelay(true)?;
            // Every server's certificate carries this name, whatever address is dialed.
            let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
        }
    });
    // The address is the connector's business; the endpoint's only serves as the calls' authority.
    let endpoint = Endpoint::from_static("http://api.rhyzome.internal");
    match tokio::time::timeout(DIAL_TIMEOUT, endpoint.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(format!("cannot reach {server}: {}", causes(&error))),
        Err(_) => Err(format!("cannot reach {server}: no answer within {} s", DIAL_TIMEOUT.as_secs())),
    }
}

/// An error with what is behind it, on one line; what only repeats is left out.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// What a refused call says: the server's own words, or what went wrong below them.
pub(crate) fn refusal(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(_) => causes(status),
        None => status.message().to_owned(),
    }
}

/// True if the server's TLS has told us that our certificate's time is over. HTTP/2 keeps only the words of what went
/// wrong below it.
pub(crate) fn has_run_out(status: &tonic::Status) -> bool {
    causes(status).contains("CertificateExpired")
}
