//! The operator's folder of images: each qcow2 file put there becomes a global image by its file name, after
//! the same checks as an upload.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use crate::blobs::{BlobError, Blobs};
use crate::kernel::{Caller, Clash, Error, NameRule, name};
use crate::store::{Asked, NewObject, Store};

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// A file that was written to more recently may still be growing.
const SETTLED: Duration = Duration::from_secs(2);

/// A file as it was when it was last dealt with.
type Seen = HashMap<PathBuf, (u64, SystemTime)>;

/// Runs until it is told to stop.
pub async fn watch(store: Store, blobs: Blobs, folder: PathBuf, stop: CancellationToken) {
    let mut seen = Seen::new();
    loop {
        if let Err(error) = look(&store, &blobs, &folder, &mut seen).await {
            tracing::warn!(%error, folder = %folder.display(), "the folder of images was not looked at");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn look(store: &Store, blobs: &Blobs, folder: &Path, seen: &mut Seen) -> std::io::Result<()> {
    let mut entries = tokio::fs::read_dir(folder).await?;
    while let Some(entry) = entries.next_entry().await? {
        let path = entry.path();
        let meta = entry.metadata().await?;
        let known = (meta.len(), meta.modified()?);
        let age = SystemTime::now().duration_since(known.1).unwrap_or_default();
        if !meta.is_file() || path.extension().is_none_or(|e| e != "qcow2") || age < SETTLED {
            continue;
        }
        if seen.get(&path) == Some(&known) {
            continue;
        }
        match take(store, blobs, &path).await {
            Ok(true) => tracing::info!(file = %path.display(), "became a global image"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, file = %path.display(), "did not become an image"),
        }
        seen.insert(path, known);
    }
    Ok(())
}

/// `false`: there is an image of this name, with its content, already.
async fn take(store: &Store, blobs: &Blobs, path: &Path) -> Result<bool, BlobError> {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some(reason) = name::refuse(&stem, NameRule::Label) {
        return Err(BlobError::Refused(format!("the file name `{stem}` {reason}")));
    }
    let kind = store.registry().get("image")?;
    let right = Caller::system().may("create", "image", "")?;
    match store.get(&right, kind, &stem).await {
        Ok(image) if image.status["sha256"].is_string() => return Ok(false),
        Ok(_) | Err(Error::NotFound) => {}
        Err(error) => return Err(error.into()),
    }
    let file = tokio::fs::File::open(path).await?;
    // The checks come before the object: a refused file leaves no image behind.
    let arrived = blobs.receive(ReaderStream::with_capacity(file, 256 << 10)).await?;
    let asked = Asked { request_id: format!("images.folder/{stem}"), ..Asked::default() };
    let body = NewObject { name: Some(stem.clone()), spec: serde_json::json!({}), ..NewObject::default() };
    match store.create(&right, kind, body, &asked).await {
        Ok(_) | Err(Error::Clash(Clash::NameTaken(_))) => {}
        Err(error) => return Err(error.into()),
    }
    blobs.publish(store, &right, &stem, arrived, &asked).await?;
    Ok(true)
}
