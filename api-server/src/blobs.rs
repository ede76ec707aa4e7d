//! The bytes of images, one file each, called by their SHA-256. Whatever arrives is a stranger's: it is
//! measured and inspected under another name first, and refused bytes leave nothing.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use rhyzome_imagefmt::{ImageInfo, Limits, inspect_qcow2};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

use crate::kernel::{Env, Error, Right};
use crate::store::{Asked, ImageContent, Store};

/// Files that are still arriving begin so.
const ARRIVING: &str = ".arriving-";

/// The folder of blobs. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    folder: PathBuf,
    limits: Limits,
    env: Env,
    /// One at a time gets its name and its row: so that giving up one never takes another's file away.
    naming: Arc<Mutex<()>>,
}

/// Why bytes were not taken.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// More than the limit.
    #[error("an image may have at most {0} bytes")]
    TooLarge(u64),
    /// The sender stopped before the end.
    #[error("the content broke off after {0} bytes: upload it again")]
    BrokeOff(u64),
    /// No image, or one that does harm.
    #[error("{0}")]
    Refused(String),
    /// The store did not want them.
    #[error(transparent)]
    Store(#[from] Error),
    /// The folder cannot be written.
    #[error("the folder of images: {0}")]
    Io(#[from] std::io::Error),
}

/// Bytes that have arrived and are good, but have no name yet. Dropped: they are gone.
pub struct Arrived {
    file: Arriving,
    content: ImageContent,
}

/// A file that is removed unless it was renamed.
struct Arriving(PathBuf);

impl Drop for Arriving {
    fn drop(&mut self) {
        // Renamed, or nothing was written yet: both are fine.
        let _ = std::fs::remove_file(&self.0);
    }
}

// === impl Blobs ===

impl Blobs {
    /// The folder, made if it is not there; what arrived halfway before is swept out.
    pub fn open(folder: &Path, limits: Limits, env: Env) -> std::io::Result<Blobs> {
        std::fs::create_dir_all(folder)?;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(ARRIVING) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Blobs { folder: folder.to_owned(), limits, env, naming: Arc::default() })
    }

    /// The most bytes that one image may have.
    pub fn most_bytes(&self) -> u64 {
        self.limits.max_file_size_bytes
    }

    /// Where the bytes of this SHA-256 (in hex) are, or will be.
    pub fn path(&self, sha256: &str) -> PathBuf {
        self.folder.join(sha256)
    }

    /// Takes bytes in as they come, and looks whether they are a good image.
    pub async fn receive<E>(
        &self,
        mut bytes: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<Arrived, BlobError> {
        let file = Arriving(self.folder.join(self.env.id(ARRIVING)));
        let mut writer = tokio::fs::File::create_new(&file.0).await?;
        let (mut hash, mut size) = (Sha256::new(), 0_u64);
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(|_| BlobError::BrokeOff(size))?;
            size += chunk.len() as u64;
            if size > self.limits.max_file_size_bytes {
                return Err(BlobError::TooLarge(self.limits.max_file_size_bytes));
            }
            hash.update(&chunk);
            writer.write_all(&chunk).await?;
        }
        writer.sync_all().await?;
        drop(writer);
        let info = self.inspect(&file.0).await?;
        let sha256 = rhyzome_pki::hex(&hash.finalize());
        let content = ImageContent {
            sha256,
            size_bytes: size,
            virtual_size_bytes: info.virtual_size_bytes,
            format: info.format.as_str().to_owned(),
        };
        Ok(Arrived { file, content })
    }

    async fn inspect(&self, path: &Path) -> Result<ImageInfo, BlobError> {
        let (path, limits) = (path.to_owned(), self.limits.clone());
        let look = move || -> Result<ImageInfo, BlobError> {
            let mut file = File::open(&path)?;
            inspect_qcow2(&mut file, &limits).map_err(|refusal| BlobError::Refused(refusal.to_string()))
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(found) => found,
            Err(error) => Err(Error::Internal(format!("looking at an image: {error}")).into()),
        }
    }

    /// Gives arrived bytes their name, and the image its content. If the store refuses, nothing stays.
    pub async fn publish(
        &self,
        store: &Store,
        right: &Right,
        image: &str,
        arrived: Arrived,
        asked: &Asked,
    ) -> Result<crate::kernel::Stored, BlobError> {
        let _one_at_a_time = self.naming.lock().await;
        let path = self.path(&arrived.content.sha256);
        let is_new = match tokio::fs::metadata(&path).await {
            Ok(_) => false,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Young again: the sweep leaves young files alone, and the row comes a moment later.
                let file = File::options().append(true).open(&arrived.file.0)?;
                file.set_modified(std::time::SystemTime::now())?;
                tokio::fs::rename(&arrived.file.0, &path).await?;
                tokio::fs::File::open(&self.folder).await?.sync_all().await?;
                true
            }
            Err(error) => return Err(error.into()),
        };
        match store.set_image_content(right, image, arrived.content, asked).await {
            Ok(object) => Ok(object),
            Err(error) => {
                if is_new {
                    tokio::fs::remove_file(&path).await?;
                }
                Err(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Timestamp;
    use crate::kernel::env::{Clock, Random};

    struct Fixed;

    impl Clock for Fixed {
        fn now(&self) -> Timestamp {
            Timestamp(0)
        }
    }

    impl Random for Fixed {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(7);
        }
    }

    async fn offered(chunks: Vec<Result<&'static [u8], ()>>, most: u64) -> (BlobError, usize) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(".arriving-_old"), "half").unwrap();
        let limits = Limits { max_file_size_bytes: most, ..Limits::default() };
        let env = Env::new(Arc::new(Fixed), Arc::new(Fixed));
        let blobs = Blobs::open(folder.path(), limits, env).unwrap();
        let chunks = chunks.into_iter().map(|chunk| chunk.map(Bytes::from_static));
        let error = blobs.receive(futures_util::stream::iter(chunks)).await.err().unwrap();
        (error, std::fs::read_dir(folder.path()).unwrap().count())
    }

    #[tokio::test]
    async fn what_is_refused_leaves_nothing() {
        let (error, left) = offered(vec![Ok(b"no image"), Ok(b" at all")], 1 << 20).await;
        assert!(matches!(error, BlobError::Refused(_)), "{error}");
        assert_eq!(left, 0);
        let (error, left) = offered(vec![Ok(b"too"), Ok(b" much")], 4).await;
        assert!(matches!(error, BlobError::TooLarge(4)), "{error}");
        assert_eq!(left, 0);
        let (error, left) = offered(vec![Ok(b"half"), Err(())], 1 << 20).await;
        assert!(matches!(error, BlobError::BrokeOff(4)), "{error}");
        assert_eq!(left, 0);
    }
}
