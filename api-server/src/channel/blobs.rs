//! An image's bytes, from an offset, to a node that was ordered to hold it.
use super::ChannelContext;
use super::caller::{Caller, status_of};
use rhyzome_proto::v1::{BlobChunk, FetchBlobRequest};
use std::io::SeekFrom;
use std::sync::Arc;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tonic::Status;

const CHUNK: usize = 256 * 1024;
/// Chunks that may wait for the network.
const WAITING: usize = 4;
/// Between chunks, every so many bytes, the caller is looked at again: a revoked node gets no more.
const LOOK_AGAIN: u64 = 16 << 20;

type Chunks = mpsc::Receiver<Result<BlobChunk, Status>>;

/// Begins to send.
pub(super) async fn fetch(
    context: Arc<ChannelContext>,
    caller: Caller,
    wanted: FetchBlobRequest,
) -> Result<Chunks, Status> {
    let sha256 = wanted.sha256;
    if sha256.len() != 64 || !sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Status::invalid_argument("not a SHA-256 in 64 lower-case hexadecimal digits"));
    }
    let allowed = context.store.node_may_fetch(&caller.node, &sha256).await;
    let path = context.blobs.join(&sha256);
    // What is not there, and what this node has no order for, look the same.
    let missing = || Status::not_found("no order of this node names these bytes");
    if !allowed.map_err(|error| status_of(&error))? {
        tracing::info!(node = caller.node, sha256, "bytes that no order of this node names were refused");
        return Err(missing());
    }
    let mut file = File::open(&path).await.map_err(|error| {
        tracing::error!(path = %path.display(), %error, "an image that a node needs cannot be read");
        missing()
    })?;
    let size = file.metadata().await.map_err(|error| read_failed(&error))?.len();
    if wanted.offset > size {
        return Err(Status::out_of_range(format!("there are only {size} bytes")));
    }
    file.seek(SeekFrom::Start(wanted.offset)).await.map_err(|error| read_failed(&error))?;
    let (chunks, waiting) = mpsc::channel(WAITING);
    tokio::spawn(send(context, caller, file, chunks));
    Ok(waiting)
}

fn read_failed(error: &std::io::Error) -> Status {
    tracing::error!(%error, "an image cannot be read");
    Status::unavailable("the image cannot be read now")
}

async fn send(
    context: Arc<ChannelContext>,
    caller: Caller,
    mut file: File,
    chunks: mpsc::Sender<Result<BlobChunk, Status>>,
) {
    let mut since_look = 0;
    loop {
        let mut data = Vec::with_capacity(CHUNK);
        let read = (&mut file).take(CHUNK as u64).read_to_end(&mut data).await;
        since_look += data.len() as u64;
        let chunk = match read {
            Ok(0) => return,
            Ok(_) if since_look > LOOK_AGAIN && is_refused(&context, &caller).await => {
                Err(Status::unauthenticated("this certificate is not accepted here"))
            }
            Ok(_) => Ok(BlobChunk { data }),
            Err(error) => Err(read_failed(&error)),
        };
        if since_look > LOOK_AGAIN {
            since_look = 0;
        }
        let last = chunk.is_err();
        if chunks.send(chunk).await.is_err() || last {
            return;
        }
    }
}

/// While the database is away, what was allowed stays allowed.
async fn is_refused(context: &ChannelContext, caller: &Caller) -> bool {
    context.store.certificate_refused(&caller.serial, &caller.node).await.unwrap_or(false)
}
