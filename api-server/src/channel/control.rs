//! The calls of nodes. Each begins by asking who calls.
use super::caller::caller;
use super::door::{SessionDoor, ToAgent};
use super::{ChannelContext, blobs};
use rhyzome_proto::v1::control_server::Control as ControlService;
use rhyzome_proto::v1::{
    AgentMessage, BlobChunk, FetchBlobRequest, StreamFrame, WhoAmIRequest, WhoAmIResponse,
};
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(super) struct Control {
    pub(super) context: Arc<ChannelContext>,
    pub(super) sessions: SessionDoor,
}

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

#[tonic::async_trait]
impl ControlService for Control {
    type SessionStream = ToAgent;
    type FetchBlobStream = ReceiverStream<Result<BlobChunk, Status>>;
    type AttachStream = ReceiverStream<Result<StreamFrame, Status>>;

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        let caller = caller(&self.context, &request).await?;
        Ok(Response::new(WhoAmIResponse {
            node_id: caller.node,
            cluster_id: self.context.authority.cluster_id().to_owned(),
            server_version: VERSION.to_owned(),
        }))
    }

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = caller(&self.context, &request).await?;
        Ok(Response::new(self.sessions.begin(caller, request.into_inner())))
    }

    async fn fetch_blob(
        &self,
        request: Request<FetchBlobRequest>,
    ) -> Result<Response<Self::FetchBlobStream>, Status> {
        let caller = caller(&self.context, &request).await?;
        let chunks = blobs::fetch(self.context.clone(), caller, request.into_inner()).await?;
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    async fn attach(
        &self,
        request: Request<Streaming<StreamFrame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = caller(&self.context, &request).await?;
        let frames = self.context.streams.attach(caller, request.into_inner());
        Ok(Response::new(ReceiverStream::new(frames)))
    }
}
