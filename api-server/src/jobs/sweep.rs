//! What has to be looked at now and then: heartbeats of servers, what expires, bytes that no image needs any more, answers
//! that nobody asks for again, history that need not be kept.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio_util::sync::CancellationToken;

use crate::kernel::Error;
use crate::store::{Bell, KeepHistory, Store};

/// Well within a server's lease.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often the folder of image bytes is swept when no image says that it has changed, in heartbeats.
const BLOBS_EVERY: u32 = 120;
/// How often history is gone through, in heartbeats: six hours.
const HISTORY_EVERY: u32 = 4320;
/// How many pages of objects are gone through between two heartbeats: a heartbeat does not wait for a long history.
const PAGES_AT_ONCE: u32 = 20;
/// How often answers to retries that nobody makes any more are forgotten, in heartbeats.
const KEYS_EVERY: u32 = 720;
/// Bytes younger than this may have got their name, but not yet their row.
const BLOB_GRACE: Duration = Duration::from_secs(15);

/// For whom is swept, and what.
#[derive(Clone, Debug)]
pub struct SweepDuty {
    /// This server.
    pub server: String,
    /// The folder of image bytes.
    pub blobs: PathBuf,
    /// How long history is kept.
    pub keep: KeepHistory,
}

/// Runs until it is told to stop.
pub async fn sweep(store: Store, duty: SweepDuty, stop: CancellationToken) {
    let SweepDuty { server, blobs, keep } = duty;
    let mut bells = store.bells().subscribe();
    let mut round = 0_u32;
    // How far history was gone through; none: until the next time.
    let mut history = None;
    // After a start: what was left by whoever ran before.
    let mut images_changed = true;
    loop {
        if let Err(error) = heartbeat(&store, &server).await {
            tracing::warn!(%error, "this server's heartbeat was not written; trying again");
        }
        if let Err(error) = store.expire().await {
            tracing::warn!(%error, "what has expired was not told; trying again");
        }
        if let Err(error) = store.tell_of_certificates().await {
            tracing::warn!(%error, "which certificates end was not told; trying again");
        }
        if round.is_multiple_of(KEYS_EVERY)
            && let Err(error) = store.forget_old_keys().await
        {
            tracing::warn!(%error, "old idempotency keys were not forgotten");
        }
        if round.is_multiple_of(HISTORY_EVERY) {
            history.get_or_insert_with(String::new);
        }
        if let Some(after) = history.take() {
            history = sweep_history(&store, after, keep).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "history was not gone through");
                None
            });
        }
        images_changed |= round.is_multiple_of(BLOBS_EVERY);
        if images_changed {
            match sweep_blobs(&store, &blobs, BLOB_GRACE).await {
                // What is too young now is looked at again.
                Ok(young) => images_changed = young,
                Err(error) => tracing::warn!(%error, "the folder of image bytes was not swept"),
            }
        }
        round = round.wrapping_add(1);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
        images_changed |= heard_of_images(&mut bells);
    }
}

/// True if a bell spoke of an image, or may have.
fn heard_of_images(bells: &mut Receiver<Bell>) -> bool {
    let mut heard = false;
    loop {
        match bells.try_recv() {
            Ok(Bell::Resource(id)) => heard |= id.starts_with("img_"),
            Ok(_) => {}
            Err(TryRecvError::Lagged(_)) => heard = true,
            Err(TryRecvError::Empty | TryRecvError::Closed) => return heard,
        }
    }
}

/// Says that this server is there, and takes down what dead ones have left.
pub async fn heartbeat(store: &Store, server: &str) -> Result<(), Error> {
    store.server_heartbeat(server).await?;
    let lost = store.bury_servers(server, false).await?;
    if lost > 0 {
        tracing::warn!(nodes = lost, "the sessions of a dead server were taken down");
    }
    Ok(())
}

/// Some pages of objects; where to go on.
async fn sweep_history(store: &Store, after: String, keep: KeepHistory) -> Result<Option<String>, Error> {
    let mut after = after;
    for _ in 0..PAGES_AT_ONCE {
        let Some(next) = store.forget_history(&after, keep).await? else { return Ok(None) };
        after = next;
    }
    Ok(Some(after))
}

/// Deletes files that no image names and that are older than the grace; true if some were too young to judge.
async fn sweep_blobs(store: &Store, blobs: &Path, grace: Duration) -> Result<bool, Error> {
    let read = |e: std::io::Error| Error::Internal(format!("{}: {e}", blobs.display()));
    let mut files = tokio::fs::read_dir(blobs).await.map_err(read)?;
    let mut unnamed = Vec::new();
    let mut young = false;
    while let Some(file) = files.next_entry().await.map_err(read)? {
        let name = file.file_name().to_string_lossy().into_owned();
        // What is still arriving belongs to its upload.
        if name.starts_with('.') {
            continue;
        }
        let modified = file.metadata().await.and_then(|meta| meta.modified()).map_err(read)?;
        let age = SystemTime::now().duration_since(modified).unwrap_or_default();
        if age < grace {
            young = true;
        } else {
            unnamed.push((name, file.path()));
        }
    }
    if unnamed.is_empty() {
        return Ok(young);
    }
    let wanted = store.image_contents().await?;
    for (name, path) in unnamed.into_iter().filter(|(name, _)| !wanted.contains(name)) {
        tracing::info!(file = name, "no image needs these bytes any more");
        tokio::fs::remove_file(path).await.map_err(read)?;
    }
    Ok(young)
}
