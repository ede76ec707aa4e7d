//! An image's bytes, from an offset, on a connection of their own.
use super::{LinkError, Shared, dial};
use bytes::Bytes;
use rhyzome_proto::v1::control_client::ControlClient;
use rhyzome_proto::v1::{BlobChunk, FetchBlobRequest};
use std::time::Duration;
use tonic::Streaming;

/// A server that sends nothing for this long is not going to.
const STALLED: Duration = Duration::from_secs(30);

/// Bytes on their way. After an error fetch again from where the last one ended.
pub struct Blob(Streaming<BlobChunk>);

impl Blob {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LinkError> {
        match tokio::time::timeout(STALLED, self.0.message()).await {
            Ok(Ok(chunk)) => Ok(chunk.map(|chunk| chunk.data.into())),
            Ok(Err(status)) => Err(LinkError::Connection(dial::refusal(&status))),
            Err(_) => Err(LinkError::Silent(STALLED)),
        }
    }
}

pub(super) async fn fetch(shared: &Shared, sha256: &str, offset: u64) -> Result<Blob, LinkError> {
    let mut client = ControlClient::new(shared.dial().await?);
    let request = FetchBlobRequest { sha256: sha256.to_owned(), offset };
    match tokio::time::timeout(STALLED, client.fetch_blob(request)).await {
        Ok(Ok(response)) => Ok(Blob(response.into_inner())),
        Ok(Err(status)) => Err(LinkError::Refused(dial::refusal(&status))),
        Err(_) => Err(LinkError::Silent(STALLED)),
    }
}
