//! Images: files named by their SHA-256, fetched once, verified, inspected, and never written again.

use crate::drivers::{DriverError, Progress};
use crate::{files, names};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use rhyzome_imagefmt::{Limits, inspect_qcow2};
use rhyzome_proto::v1::ImageOrder;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a blob from an offset on, chunk by chunk.
pub type BlobStream = BoxStream<'static, Result<Bytes, DriverError>>;

/// Where the bytes of an image come from: its digest and an offset in, a stream of chunks out. The link has it.
pub type BlobSource =
    Arc<dyn Fn(String, u64) -> BoxFuture<'static, Result<BlobStream, DriverError>> + Send + Sync>;

/// What is here of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedImage {
    /// Bytes that the file takes on the node.
    pub bytes_on_disk: u64,
    /// Whole and verified: only then has the file the image's name.
    pub is_whole: bool,
}

/// Bytes between two words on progress.
const PROGRESS_STEP: u64 = 4 << 20;

/// Fetches, checks and removes images.
pub struct ImageDriver {
    state: PathBuf,
    source: BlobSource,
    limits: Limits,
}

impl std::fmt::Debug for ImageDriver {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ImageDriver").field("state", &self.state).finish_non_exhaustive()
    }
}

impl ImageDriver {
    /// Images live under `state`; bytes come from `source`.
    pub fn new(state: &Path, source: BlobSource) -> Self {
        Self { state: state.to_owned(), source, limits: Limits::default() }
    }

    /// What is here of an image; None if nothing is.
    pub fn observe(&self, sha256: &str) -> Option<ObservedImage> {
        if !is_digest(sha256) {
            return None;
        }
        let seen = |path: &Path, is_whole| {
            let bytes_on_disk = fs::metadata(path).ok()?.blocks() * 512;
            Some(ObservedImage { bytes_on_disk, is_whole })
        };
        seen(&names::image_file(&self.state, sha256), true).or_else(|| seen(&self.part(sha256), false))
    }

    fn is_here(&self, sha256: &str) -> bool {
        self.observe(sha256).is_some_and(|image| image.is_whole)
    }

    /// Fetches what is missing, verifies and inspects it. Goes on where an earlier attempt ended.
    pub async fn apply(&self, order: &ImageOrder, progress: Progress) -> Result<(), DriverError> {
        if !is_digest(&order.sha256) {
            return Err(DriverError::Permanent(format!("{:?} is no SHA-256", order.sha256)));
        }
        if self.is_here(&order.sha256) {
            return Ok(());
        }
        let path = names::image_file(&self.state, &order.sha256);
        let part = self.part(&order.sha256);
        self.fetch(order, &part, progress).await?;
        let (order, limits) = (order.clone(), self.limits.clone());
        tokio::task::spawn_blocking(move || accept(&order, &limits, &part, &path))
            .await
            .map_err(|error| DriverError::Retry(format!("verify image: {error}")))?
    }

    async fn fetch(
        &self,
        order: &ImageOrder,
        part: &Path,
        mut progress: Progress,
    ) -> Result<(), DriverError> {
        let failed = |error: io::Error| DriverError::io(format!("write {}", part.display()), &error);
        fs::create_dir_all(self.state.join("images")).map_err(failed)?;
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(part).map_err(failed)?;
        let mut have = file.metadata().map_err(failed)?.len();
        if have > order.size_bytes {
            file.set_len(0).map_err(failed)?;
            have = 0;
        }
        if have == order.size_bytes {
            return Ok(());
        }
        let mut told = have;
        let mut chunks = (self.source)(order.sha256.clone(), have).await?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            have += chunk.len() as u64;
            if have > order.size_bytes {
                files::remove_if_there(part).map_err(failed)?;
                return Err(DriverError::Retry(format!(
                    "image is longer than its {} bytes",
                    order.size_bytes
                )));
            }
            file.write_all(&chunk).map_err(failed)?;
            if have - told >= PROGRESS_STEP {
                told = have;
                progress(have);
                tokio::task::yield_now().await;
            }
        }
        file.sync_all().map_err(failed)?;
        if have < order.size_bytes {
            return Err(DriverError::Retry(format!("image ended at {have} of {} bytes", order.size_bytes)));
        }
        Ok(())
    }

    /// Removes the image's file and what was fetched of it. Nothing happens if they are gone.
    pub fn remove(&self, sha256: &str) -> Result<(), DriverError> {
        if !is_digest(sha256) {
            return Ok(());
        }
        for path in [self.part(sha256), names::image_file(&self.state, sha256)] {
            files::remove_if_there(&path)
                .map_err(|error| DriverError::io(format!("remove {}", path.display()), &error))?;
        }
        Ok(())
    }

    fn part(&self, sha256: &str) -> PathBuf {
        names::image_file(&self.state, &format!("{sha256}.part"))
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Nothing opens the image before this has read it: then it gets its name, and nobody may write it.
fn accept(order: &ImageOrder, limits: &Limits, part: &Path, path: &Path) -> Result<(), DriverError> {
    let failed = |error: io::Error| DriverError::io(format!("verify {}", part.display()), &error);
    let mut file = File::open(part).map_err(failed)?;
    let (found, _) = files::sha256(part).map_err(failed)?;
    let refuse = |text: String| {
        // Kept, it would be refused again without being fetched again.
        let _ = fs::remove_file(part);
        DriverError::Retry(text)
    };
    if found != order.sha256 {
        return Err(refuse(format!("image has SHA-256 {found}, not {}", order.sha256)));
    }
    match order.format.as_str() {
        "qcow2" => {
            let info = inspect_qcow2(&mut file, limits).map_err(|refusal| {
                DriverError::Permanent(refuse(format!("image refused: {refusal}")).to_string())
            })?;
            let (is, told) = (info.virtual_size_bytes, order.virtual_size_bytes);
            if told != 0 && is != told {
                return Err(DriverError::Permanent(format!("image is of {is} virtual bytes, not {told}")));
            }
        }
        "raw" => {}
        other => return Err(DriverError::Permanent(format!("image format {other:?} is unsupported"))),
    }
    fs::set_permissions(part, Permissions::from_mode(0o444)).map_err(failed)?;
    fs::rename(part, path).map_err(failed)?;
    files::sync_folder(path.parent().unwrap_or(path)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2;
    use std::sync::Mutex;

    fn sha256(bytes: &[u8]) -> String {
        rhyzome_pki::sha256_hex(bytes)
    }

    /// Serves `bytes`, breaking off after `break_at` the first time; remembers the offsets asked for.
    fn source(bytes: Vec<u8>, break_at: usize, offsets: Arc<Mutex<Vec<u64>>>) -> BlobSource {
        Arc::new(move |_, offset| {
            let mut asked = offsets.lock().unwrap();
            let end = if asked.is_empty() { break_at } else { bytes.len() };
            asked.push(offset);
            let chunks: Vec<_> = bytes[usize::try_from(offset).unwrap()..end]
                .chunks(1000)
                .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
                .collect();
            Box::pin(async move { Ok(futures_util::stream::iter(chunks).boxed()) })
        })
    }

    fn order(bytes: &[u8]) -> ImageOrder {
        ImageOrder {
            sha256: sha256(bytes),
            size_bytes: bytes.len() as u64,
            format: "qcow2".into(),
            virtual_size_bytes: 1 << 20,
        }
    }

    #[tokio::test]
    async fn a_fetch_goes_on_where_it_broke_off() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = qcow2::render(1 << 20, None).unwrap();
        let offsets = Arc::new(Mutex::new(Vec::new()));
        let driver = ImageDriver::new(folder.path(), source(bytes.clone(), 5000, offsets.clone()));
        let order = order(&bytes);
        let broken = driver.apply(&order, Box::new(|_| {})).await.unwrap_err();
        assert!(!broken.is_permanent() && broken.to_string().contains("ended at 5000"), "{broken}");
        assert!(!driver.is_here(&order.sha256));
        driver.apply(&order, Box::new(|_| {})).await.unwrap();
        assert_eq!(*offsets.lock().unwrap(), [0, 5000]);
        let path = names::image_file(folder.path(), &order.sha256);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
        driver.remove(&order.sha256).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("images")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_is_no_image_never_gets_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let host = qcow2::Backing { path: "/etc/shadow", format: "raw" };
        for bytes in [b"no image at all".to_vec(), qcow2::render(1 << 20, Some(host)).unwrap()] {
            let order = order(&bytes);
            let driver = ImageDriver::new(folder.path(), source(bytes.clone(), bytes.len(), Arc::default()));
            let refused = driver.apply(&order, Box::new(|_| {})).await.unwrap_err();
            assert!(refused.is_permanent(), "{refused}");
            assert!(!driver.is_here(&order.sha256));
        }
    }

    #[tokio::test]
    async fn other_bytes_than_ordered_are_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = qcow2::render(1 << 20, None).unwrap();
        let order = ImageOrder { sha256: sha256(b"other"), ..order(&bytes) };
        let driver = ImageDriver::new(folder.path(), source(bytes.clone(), bytes.len(), Arc::default()));
        let refused = driver.apply(&order, Box::new(|_| {})).await.unwrap_err();
        assert!(refused.to_string().contains("not "), "{refused}");
        assert_eq!(fs::read_dir(folder.path().join("images")).unwrap().count(), 0);
    }
}
