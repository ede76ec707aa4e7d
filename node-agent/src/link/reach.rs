//! How a server is reached: over the network, or, in simulation, by a wire in memory.
use super::{LinkError, dial};
use crate::identity::{IdentityError, LoadedIdentity};
use futures_util::future::BoxFuture;
use rhyzome_proto::v1::control_client::ControlClient;
use rhyzome_proto::v1::enrollment_client::EnrollmentClient;
use rhyzome_proto::v1::{AgentMessage, ReturnAnswer, ReturnMessage, ServerMessage, WhoAmIRequest};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

/// For each answer while a session begins.
const ANSWER: Duration = Duration::from_secs(10);

/// What a server says in a session.
pub type FromServer = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

/// What a server says to a node that comes back.
pub type ToReturning = Pin<Box<dyn Stream<Item = Result<ReturnAnswer, Status>> + Send>>;

/// Begins a session that says these messages.
pub type Begin =
    Box<dyn FnOnce(mpsc::Receiver<AgentMessage>) -> BoxFuture<'static, Result<FromServer, LinkError>> + Send>;

/// A server that was reached, and that knows who calls.
pub struct Reached {
    /// Its cluster.
    pub cluster_id: String,
    /// Once.
    pub begin: Begin,
}

/// The way to a server.
pub trait Reach: Send + Sync + 'static {
    /// Reaches one as this node.
    fn reach(&self, identity: Arc<LoadedIdentity>) -> BoxFuture<'_, Result<Reached, LinkError>>;

    /// Goes through these steps with one, without showing a certificate: the one there is has run out.
    fn come_back(
        &self,
        identity: Arc<LoadedIdentity>,
        steps: mpsc::Receiver<ReturnMessage>,
    ) -> BoxFuture<'_, Result<ToReturning, LinkError>>;
}

/// By gRPC over mutual TLS.
pub(super) struct Network {
    /// `host:port`; `https://` before it is fine; several with commas between.
    pub(super) server: String,
}

impl Network {
    /// A new connection that shows this certificate.
    pub(super) async fn dial(&self, identity: &LoadedIdentity) -> Result<Channel, LinkError> {
        let tls = rhyzome_pki::agent_client_config(&identity.trust_pem, &identity.identity)
            .map_err(IdentityError::from)?;
        dial::dial(&self.server, first(identity), tls).await.map_err(LinkError::Connection)
    }
}

/// With which of several servers this node begins: always the same one, and each node another.
fn first(identity: &LoadedIdentity) -> usize {
    identity.record.node_id.bytes().map(usize::from).sum()
}

impl Reach for Network {
    fn reach(&self, identity: Arc<LoadedIdentity>) -> BoxFuture<'_, Result<Reached, LinkError>> {
        Box::pin(async move {
            let mut client = ControlClient::new(self.dial(&identity).await?);
            let server = self.server.clone();
            // The first call: under TLS 1.3 only now does a refused certificate show.
            let who = answer(client.who_am_i(WhoAmIRequest {}), &server).await?.into_inner();
            let begin: Begin = Box::new(move |messages| {
                Box::pin(async move {
                    let response = answer(client.session(ReceiverStream::new(messages)), &server).await?;
                    Ok(Box::pin(response.into_inner()) as FromServer)
                })
            });
            Ok(Reached { cluster_id: who.cluster_id, begin })
        })
    }

    fn come_back(
        &self,
        identity: Arc<LoadedIdentity>,
        steps: mpsc::Receiver<ReturnMessage>,
    ) -> BoxFuture<'_, Result<ToReturning, LinkError>> {
        Box::pin(async move {
            let tls =
                rhyzome_pki::returning_client_config(&identity.trust_pem).map_err(IdentityError::from)?;
            let channel =
                dial::dial(&self.server, first(&identity), tls).await.map_err(LinkError::Connection)?;
            let mut client = EnrollmentClient::new(channel);
            let response = answer(client.r#return(ReceiverStream::new(steps)), &self.server).await?;
            Ok(Box::pin(response.into_inner()) as ToReturning)
        })
    }
}

/// Waits for an answer, but not for ever.
pub(super) async fn answer<T>(
    call: impl Future<Output = Result<T, Status>>,
    server: &str,
) -> Result<T, LinkError> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) if dial::has_run_out(&status) => Err(LinkError::RanOut),
        Ok(Err(status)) => Err(LinkError::Refused(dial::refusal(&status))),
        Err(_) => Err(LinkError::Connection(format!("{server} does not answer"))),
    }
}
