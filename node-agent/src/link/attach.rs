//! Lends a stream: joins a unix socket on this node to a stream that the server asked for.
use super::Shared;
use rhyzome_proto::v1::control_client::ControlClient;
use rhyzome_proto::v1::{OpenStream, StreamFrame};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, SeekFrom};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Frames that may be on their way before the socket is not read any more.
const FRAMES: usize = 16;
const FRAME_BYTES: usize = 16 * 1024;
/// How much of what was said before is sent first.
const BEFORE_BYTES: u64 = 64 * 1024;

/// Runs until one end closes. What goes wrong is told to the server in the first frame, or ends the stream.
pub(super) async fn lend(shared: Arc<Shared>, wanted: OpenStream) {
    let socket = connect(&shared, &wanted).await;
    let (frames, outgoing) = mpsc::channel(FRAMES);
    let first = StreamFrame {
        stream_id: wanted.stream_id.clone(),
        data: Vec::new(),
        error: socket.as_ref().err().cloned().unwrap_or_default(),
    };
    if frames.send(first).await.is_err() {
        return;
    }
    let attached = async {
        let channel = shared.dial().await.map_err(|error| error.to_string())?;
        let response = ControlClient::new(channel).attach(ReceiverStream::new(outgoing)).await;
        response.map_err(|status| super::dial::refusal(&status))
    };
    match (attached.await, socket) {
        (Ok(response), Ok(socket)) => {
            let (socket, before) = socket;
            let (reading, writing) = socket.into_split();
            if !before.is_empty()
                && frames.send(StreamFrame { data: before, ..StreamFrame::default() }).await.is_err()
            {
                return;
            }
            tokio::select! {
                () = upward(reading, frames) => {}
                () = downward(response.into_inner(), writing) => {}
            }
        }
        (Ok(_), Err(reason)) => tracing::info!(object = wanted.object_id, reason, "a stream cannot be lent"),
        (Err(reason), _) => {
            tracing::warn!(object = wanted.object_id, reason, "a stream could not be attached")
        }
    }
}

async fn connect(shared: &Shared, wanted: &OpenStream) -> Result<(UnixStream, Vec<u8>), String> {
    let lendable = (shared.config.socket_of)(&wanted.object_id, &wanted.purpose)?;
    let socket = UnixStream::connect(&lendable.socket).await.map_err(|error| {
        format!("the {} of {} does not answer: {error}", wanted.purpose, wanted.object_id)
    })?;
    let before = match &lendable.log {
        // What was said before is a courtesy: without it the stream works all the same.
        Some(log) => end_of(log).await.unwrap_or_default(),
        None => Vec::new(),
    };
    Ok((socket, before))
}

/// The last bytes of a file.
async fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(path).await?;
    let length = file.metadata().await?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(BEFORE_BYTES))).await?;
    let mut bytes = Vec::new();
    file.take(BEFORE_BYTES).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

async fn upward(mut socket: OwnedReadHalf, frames: mpsc::Sender<StreamFrame>) {
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        let Ok(length @ 1..) = socket.read(&mut buffer).await else { return };
        let frame = StreamFrame { data: buffer[..length].to_vec(), ..StreamFrame::default() };
        if frames.send(frame).await.is_err() {
            return;
        }
    }
}

async fn downward(mut frames: Streaming<StreamFrame>, mut socket: OwnedWriteHalf) {
    while let Ok(Some(frame)) = frames.message().await {
        if socket.write_all(&frame.data).await.is_err() {
            return;
        }
    }
}
