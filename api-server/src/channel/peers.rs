//! Streams of nodes at whichever server: of this one directly, of another one by asking it, over the agents' door and
//! mutual TLS, with a certificate that names this server.
use super::lent::{Lent, Purpose, WAITING, toward_user};
use super::streams::{StreamError, Streams};
use crate::store::{Holder, Store};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use rhyzome_pki::{Authority, SERVER_NAME, agent_client_config};
use rhyzome_proto::v1::peer_client::PeerClient;
use rhyzome_proto::v1::{OpenStream, StreamFrame};
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// For TCP, TLS and HTTP/2 together.
const DIAL: Duration = Duration::from_secs(5);
/// For the answer: more than the other server waits for its agent.
const ANSWER: Duration = Duration::from_secs(10);
/// A server that does not answer so often is gone.
const ALIVE: Duration = Duration::from_secs(10);

/// Where streams of any node are asked for. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    streams: Streams,
    store: Store,
    authority: Arc<Authority>,
    server: String,
}

impl Peers {
    /// For the server of this id, whose own nodes are asked by `streams`.
    pub fn new(streams: Streams, store: Store, authority: Arc<Authority>, server: &str) -> Peers {
        Peers { streams, store, authority, server: server.to_owned() }
    }

    /// A stream of an instance that this node holds, at whichever server the node has its session.
    pub async fn open(&self, node: &str, object: &str, purpose: Purpose) -> Result<Lent, StreamError> {
        match self.streams.open(node, object, purpose).await {
            Err(StreamError::NotConnected) => {}
            other => return other,
        }
        let holder = self.store.session_holder(node).await;
        let holder = holder.map_err(|error| StreamError::Unknown(error.to_string()))?;
        let Some(holder) = holder.filter(|holder| holder.server != self.server) else {
            return Err(StreamError::NotConnected);
        };
        self.borrow(&holder, OpenStream { node_id: node.to_owned(), ..purpose.of(object) }, purpose).await
    }

    async fn borrow(
        &self,
        holder: &Holder,
        wanted: OpenStream,
        purpose: Purpose,
    ) -> Result<Lent, StreamError> {
        let Holder { server, address } = holder;
        let elsewhere = |what: String| {
            StreamError::Elsewhere(format!("the node is connected to server {server}, which {what}"))
        };
        if address.is_empty() {
            return Err(elsewhere("has not said where it is reached; is it of an older version?".into()));
        }
        let channel = self.dial(address).await.map_err(|why| {
            elsewhere(format!(
                "cannot be reached at {address}: {why} (`grpc.advertise` of that server says where others reach it)"
            ))
        })?;
        let (outgoing, frames) = mpsc::channel(WAITING);
        let first = StreamFrame { open: Some(wanted), ..StreamFrame::default() };
        // Its receiver is the line above.
        let _ = outgoing.send(first).await;
        let mut client = PeerClient::new(channel);
        let answered = tokio::time::timeout(ANSWER, client.lend(ReceiverStream::new(frames))).await;
        let lent = match answered {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(refused(&status, address, elsewhere)),
            Err(_) => return Err(elsewhere(format!("does not answer at {address}"))),
        };
        let (to_node, from_user) = mpsc::channel(WAITING);
        let (to_user, from_node) = mpsc::channel(WAITING);
        let lost = format!("the connection to server {server} at {address} was lost");
        tokio::spawn(carry(lent, outgoing, from_user, to_user, purpose, lost));
        Ok((to_node, from_node))
    }

    /// A new connection that shows a new certificate of this server.
    async fn dial(&self, address: &str) -> Result<Channel, String> {
        let now = self.store.env().now().0;
        let now = SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(now).unwrap_or(0));
        let identity = self.authority.issue_calling_server(&self.server, now);
        let identity = identity.map_err(|error| error.to_string())?;
        let tls = agent_client_config(&self.authority.trust_pem(), &identity);
        let tls = TlsConnector::from(tls.map_err(|error| error.to_string())?);
        let to = address.to_owned();
        let connector = tower::service_fn(move |_| {
            let (to, tls) = (to.clone(), tls.clone());
            async move {
                let tcp = TcpStream::connect(&to).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
            }
        });
        let endpoint = Endpoint::from_static("http://api.rhyzome.internal")
            .http2_keep_alive_interval(ALIVE)
            .keep_alive_timeout(ALIVE);
        match tokio::time::timeout(DIAL, endpoint.connect_with_connector(connector)).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(causes(&error)),
            Err(_) => Err(format!("no answer within {} s", DIAL.as_secs())),
        }
    }
}

/// What the other server's refusal means here.
fn refused(status: &Status, address: &str, elsewhere: impl Fn(String) -> StreamError) -> StreamError {
    match status.code() {
        Code::FailedPrecondition => StreamError::Refused(status.message().to_owned()),
        Code::DeadlineExceeded => StreamError::Silent,
        // It moved a moment ago, or somebody else answers there.
        Code::NotFound => elsewhere(format!(
            "does not have its session, as {address} answers: try again in a moment, and if that does not help, let \
             `grpc.advertise` of that server lead to it alone"
        )),
        Code::Unimplemented => {
            elsewhere(format!("cannot do that ({}): it is of an older version, upgrade it", status.message()))
        }
        _ => elsewhere(format!("refuses at {address}: {}", status.message())),
    }
}

/// Both ways, until one end is done.
async fn carry(
    mut lent: Streaming<StreamFrame>,
    outgoing: mpsc::Sender<StreamFrame>,
    mut from_user: mpsc::Receiver<Bytes>,
    to_user: mpsc::Sender<Result<Bytes, String>>,
    purpose: Purpose,
    lost: String,
) {
    let up = async {
        while let Some(data) = from_user.recv().await {
            let frame = StreamFrame { data: data.into(), ..StreamFrame::default() };
            if outgoing.send(frame).await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    tokio::select! {
        () = toward_user(&mut lent, &to_user, purpose, &lost) => {}
        () = up => {}
        () = to_user.closed() => {}
    }
}

/// An error with what is behind it, on one line; what only repeats is left out.
fn causes(error: &dyn std::error::Error) -> String {
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
