//! What has to be looked at now and then: heartbeats of servers, and bytes that no image needs any more.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::kernel::Error;
use crate::store::Store;

/// Well within a server's lease.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often the folder of image bytes is swept, in heartbeats.
const BLOBS_EVERY: u32 = 12;
/// Bytes younger than this may belong to an upload that is not written down yet.
const BLOB_GRACE: Duration = Duration::from_secs(600);

/// Runs until it is told to stop.
pub async fn sweep(store: Store, server: String, blobs: PathBuf, stop: CancellationToken) {
    let mut round = 0_u32;
    loop {
        if let Err(error) = heartbeat(&store, &server).await {
            tracing::warn!(%error, "this server's heartbeat was not written; trying again");
        }
        if round.is_multiple_of(BLOBS_EVERY)
            && let Err(error) = sweep_blobs(&store, &blobs, BLOB_GRACE).await
        {
            tracing::warn!(%error, "the folder of image bytes was not swept");
        }
        round = round.wrapping_add(1);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
    }
}

async fn heartbeat(store: &Store, server: &str) -> Result<(), Error> {
    store.server_heartbeat(server).await?;
    let lost = store.bury_servers(server, false).await?;
    if lost > 0 {
        tracing::warn!(nodes = lost, "the sessions of a dead server were taken down");
    }
    Ok(())
}

/// Deletes files that no image names and that are older than the grace.
async fn sweep_blobs(store: &Store, blobs: &Path, grace: Duration) -> Result<(), Error> {
    let read = |e: std::io::Error| Error::Internal(format!("{}: {e}", blobs.display()));
    let mut files = tokio::fs::read_dir(blobs).await.map_err(read)?;
    while let Some(file) = files.next_entry().await.map_err(read)? {
        let name = file.file_name().to_string_lossy().into_owned();
        let modified = file.metadata().await.and_then(|meta| meta.modified()).map_err(read)?;
        let age = SystemTime::now().duration_since(modified).unwrap_or_default();
        if age < grace || store.image_content_wanted(&name).await? {
            continue;
        }
        tracing::info!(file = name, "no image needs these bytes any more");
        tokio::fs::remove_file(file.path()).await.map_err(read)?;
    }
    Ok(())
}
