//! What other servers of the cluster ask of this one: streams of nodes whose sessions are here.
use super::ChannelContext;
use super::caller::calling_server;
use super::lent::{Lent, Purpose};
use super::streams::StreamError;
use rhyzome_proto::v1::peer_server::Peer as PeerService;
use rhyzome_proto::v1::{OpenStream, StreamFrame};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// For the first frame.
const FIRST: Duration = Duration::from_secs(5);

pub(super) struct Peer {
    pub(super) context: Arc<ChannelContext>,
}

#[tonic::async_trait]
impl PeerService for Peer {
    type LendStream = ReceiverStream<Result<StreamFrame, Status>>;

    async fn lend(
        &self,
        request: Request<Streaming<StreamFrame>>,
    ) -> Result<Response<Self::LendStream>, Status> {
        let server = calling_server(&self.context, &request)?;
        let mut frames = request.into_inner();
        let wanted = first(&mut frames).await?;
        let unknown = || Status::unimplemented(format!("this server lends no {:?}", wanted.purpose));
        let purpose = Purpose::asked(&wanted).ok_or_else(unknown)?;
        let streams = &self.context.streams;
        let lent = streams.open(&wanted.node_id, &wanted.object_id, purpose).await;
        let lent = lent.map_err(|error| status_of(&error))?;
        tracing::info!(
            server,
            node = wanted.node_id,
            object = wanted.object_id,
            "a stream is lent to a server"
        );
        let (outgoing, for_server) = mpsc::channel(1);
        tokio::spawn(carry(lent, frames, outgoing));
        Ok(Response::new(ReceiverStream::new(for_server)))
    }
}

async fn first(frames: &mut Streaming<StreamFrame>) -> Result<OpenStream, Status> {
    match tokio::time::timeout(FIRST, frames.message()).await {
        Ok(Ok(Some(StreamFrame { open: Some(wanted), .. }))) => Ok(wanted),
        Ok(Err(status)) => Err(status),
        Ok(Ok(_)) => Err(Status::invalid_argument("the first frame says which stream")),
        Err(_) => Err(Status::deadline_exceeded("nothing was said")),
    }
}

/// The asking server tells these apart by their codes; `peers` has the other side of it.
fn status_of(error: &StreamError) -> Status {
    let text = error.to_string();
    match error {
        StreamError::NotConnected => Status::not_found(text),
        StreamError::Refused(reason) => Status::failed_precondition(reason.clone()),
        StreamError::Silent => Status::deadline_exceeded(text),
        _ => Status::unavailable(text),
    }
}

/// Both ways, until one end is done.
async fn carry(
    (to_node, mut from_node): Lent,
    mut frames: Streaming<StreamFrame>,
    outgoing: mpsc::Sender<Result<StreamFrame, Status>>,
) {
    let down = async {
        while let Some(piece) = from_node.recv().await {
            let frame = match piece {
                Ok(data) => StreamFrame { data: data.into(), ..StreamFrame::default() },
                Err(error) => StreamFrame { error, ..StreamFrame::default() },
            };
            if outgoing.send(Ok(frame)).await.is_err() {
                return;
            }
        }
        // The other server has gone if this fails.
        let _ = outgoing.send(Ok(StreamFrame { end: true, ..StreamFrame::default() })).await;
    };
    let up = async {
        while let Some(Ok(frame)) = frames.next().await {
            if to_node.send(frame.data.into()).await.is_err() {
                // The node has ended it: what it said last is still on its way.
                return std::future::pending().await;
            }
        }
    };
    tokio::select! {
        () = down => {}
        () = up => {}
        () = outgoing.closed() => {}
    }
}
