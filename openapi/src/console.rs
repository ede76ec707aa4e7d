//! A guest's serial console over a websocket.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::Url;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::ConfigVerifierExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use super::{Error, Problem};

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// An open console.
pub struct Console {
    socket: WebSocketStream<Box<dyn Wire>>,
}

impl Console {
    pub(crate) async fn open(
        base: &Url,
        path: &str,
        shown: &[(HeaderName, HeaderValue)],
        roots: &[CertificateDer<'static>],
    ) -> Result<Console, Error> {
        let url = base.as_str().trim_end_matches('/');
        let host = base.host_str().unwrap_or_default();
        let port = base.port_or_known_default().unwrap_or(443);
        let plain_host = host.trim_start_matches('[').trim_end_matches(']');
        let tcp = TcpStream::connect((plain_host, port)).await.map_err(|e| Error::unreachable(url, &e))?;
        let wire: Box<dyn Wire> = if base.scheme() == "https" {
            let name = ServerName::try_from(plain_host.to_owned())
                .map_err(|_| Error::Settings(format!("`{host}` is no name of a server")))?;
            let tls = TlsConnector::from(Arc::new(tls(roots)?)).connect(name, tcp).await;
            Box::new(tls.map_err(|e| Error::unreachable(url, &e))?)
        } else {
            Box::new(tcp)
        };
        let target = format!("{}/{}", url.replacen("http", "ws", 1), path.trim_start_matches('/'));
        let mut request = target.into_client_request().map_err(|e| Error::Settings(e.to_string()))?;
        request.headers_mut().extend(shown.iter().cloned());
        match tokio_tungstenite::client_async(request, wire).await {
            Ok((socket, _)) => Ok(Console { socket }),
            Err(error) => Err(refused(url, path, error)),
        }
    }

    /// What the guest says next; `None` at the end.
    pub async fn read(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                Some(Ok(Message::Text(text))) => return Ok(Some(Bytes::copy_from_slice(text.as_bytes()))),
                Some(Ok(Message::Close(Some(frame))))
                    if !matches!(frame.code, CloseCode::Normal | CloseCode::Away) =>
                {
                    return Err(Error::Settings(format!("the console was closed: {}", frame.reason)));
                }
                Some(Ok(Message::Close(_))) | None => return Ok(None),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(lost(error)),
            }
        }
    }

    /// Types this.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.socket.send(Message::Binary(bytes)).await.map_err(lost)
    }

    /// Hangs up.
    pub async fn close(mut self) {
        // The other end sees the connection go in any case.
        let _ = self.socket.close(None).await;
    }
}

fn tls(roots: &[CertificateDer<'static>]) -> Result<ClientConfig, Error> {
    let mut config = if roots.is_empty() {
        ClientConfig::with_platform_verifier()
            .map_err(|e| Error::Settings(format!("TLS cannot be set up: {e}")))?
    } else {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        ClientConfig::builder().with_root_certificates(store).with_no_client_auth()
    };
    // A websocket begins as HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn lost(error: tungstenite::Error) -> Error {
    Error::unreachable("the console", &error)
}

fn refused(url: &str, path: &str, error: tungstenite::Error) -> Error {
    let tungstenite::Error::Http(response) = error else { return Error::unreachable(url, &error) };
    let status = response.status().as_u16();
    let body = response.into_body().unwrap_or_default();
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => Error::Problem(Box::new(problem)),
        Err(_) => Error::Unexpected {
            url: path.to_owned(),
            status,
            body: String::from_utf8_lossy(&body).chars().take(300).collect(),
        },
    }
}
