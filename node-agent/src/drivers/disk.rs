//! Disks: qcow2 files, each empty or standing on an image. They grow and never shrink.

use crate::drivers::DriverError;
use crate::qcow2::{self, Backing, Found};
use crate::{files, jail, names};
use rhyzome_proto::v1::DiskOrder;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What is there of one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedDisk {
    /// Size that the guest sees.
    pub virtual_size_bytes: u64,
    /// Bytes that the file takes on the node.
    pub allocated_bytes: u64,
}

/// The image that a disk is made from, as its own order says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Hex SHA-256.
    pub sha256: String,
    /// "qcow2" or "raw".
    pub format: String,
    /// A disk cannot be smaller.
    pub virtual_size_bytes: u64,
}

/// Makes, grows and removes disks.
#[derive(Debug)]
pub struct DiskDriver {
    state: PathBuf,
}

impl DiskDriver {
    /// Disks without a pool of their own live under `state`.
    pub fn new(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    /// Ids of all disks in the agent's own folder.
    pub fn ids(&self) -> io::Result<BTreeSet<String>> {
        let entries = match fs::read_dir(self.state.join("disks")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(error),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.strip_suffix(".qcow2").map(str::to_owned)).collect())
    }

    /// Where the disk's file is.
    pub fn path(&self, id: &str, order: &DiskOrder) -> PathBuf {
        match order.pool.as_ref().filter(|pool| !pool.path.is_empty()) {
            Some(pool) => Path::new(&pool.path).join(format!("{id}.qcow2")),
            None => names::disk_file(&self.state, id),
        }
    }

    /// What is there; None if nothing is.
    pub fn observe(&self, id: &str, order: &DiskOrder) -> Result<Option<ObservedDisk>, DriverError> {
        Ok(self.look(&self.path(id, order))?.map(|(disk, _)| disk))
    }

    fn look(&self, path: &Path) -> Result<Option<(ObservedDisk, Found)>, DriverError> {
        let failed = |error: &io::Error| DriverError::io(format!("read {}", path.display()), error);
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let found = qcow2::read(&mut file).map_err(|error| failed(&error))?.ok_or_else(|| {
            DriverError::Permanent(format!("{} is there and is no qcow2 file", path.display()))
        })?;
        let allocated_bytes = file.metadata().map_err(|error| failed(&error))?.blocks() * 512;
        Ok(Some((ObservedDisk { virtual_size_bytes: found.size_bytes, allocated_bytes }, found)))
    }

    /// Makes the disk, or grows it. A disk that a guest has open is grown through its QEMU instead.
    pub async fn apply(&self, id: &str, order: &DiskOrder, base: Option<&Base>) -> Result<(), DriverError> {
        if !names::is_safe_id(id) {
            return Err(DriverError::Permanent(format!("{id:?} cannot be an id")));
        }
        let driver = order.pool.as_ref().map_or("", |pool| pool.driver.as_str());
        if !matches!(driver, "" | "dir") {
            return Err(DriverError::Permanent(format!("storage pool driver {driver:?} is unsupported")));
        }
        let path = self.path(id, order);
        let backing = base.map(|base| names::image_file(&self.state, &base.sha256));
        let Some((disk, found)) = self.look(&path)? else {
            return create(&path, order.size_bytes, base, backing.as_deref());
        };
        // By its digest: another node, whose folder may be elsewhere, can have made a disk in a shared pool.
        let name = |path: &Path| path.file_name().map(std::ffi::OsStr::to_owned);
        if name(Path::new(&found.backing)) != backing.as_deref().and_then(name) {
            let expected = backing.unwrap_or_default();
            let text = format!("{} stands on {:?}, not on {expected:?}", path.display(), found.backing);
            return Err(DriverError::Permanent(text));
        }
        if order.size_bytes < disk.virtual_size_bytes {
            let (from, to) = (disk.virtual_size_bytes, order.size_bytes);
            return Err(DriverError::Permanent(format!("a disk never shrinks: {from} to {to} bytes")));
        }
        if order.size_bytes > disk.virtual_size_bytes {
            self.grow(&path, order.size_bytes).await?;
        }
        Ok(())
    }

    /// The image beneath a disk as this node has it, and its format; none if that is what the disk's own file says, or
    /// if there is none.
    pub fn beneath(&self, id: &str, order: &DiskOrder) -> Option<(PathBuf, String)> {
        let (_, found) = self.look(&self.path(id, order)).ok()??;
        let sha256 = Path::new(&found.backing).file_name()?.to_str()?;
        let here = names::image_file(&self.state, sha256);
        let foreign = here != Path::new(&found.backing) && matches!(found.format.as_str(), "qcow2" | "raw");
        (foreign && here.exists()).then_some((here, found.format))
    }

    /// How large a copy of it that stands on nothing may become, as it is now: what it and its image hold.
    pub fn copied_bytes(&self, id: &str, order: &DiskOrder) -> Result<u64, DriverError> {
        let path = self.path(id, order);
        let gone = || DriverError::Retry(format!("{} is not there", path.display()));
        let (disk, found) = self.look(&path)?.ok_or_else(gone)?;
        let image = self.beneath(id, order).map_or_else(|| PathBuf::from(&found.backing), |(image, _)| image);
        let beneath = match found.format.as_str() {
            "qcow2" => self.look(&image)?.map_or(0, |(image, _)| image.virtual_size_bytes),
            _ => fs::metadata(&image).map_or(0, |image| image.len()),
        };
        Ok(disk.allocated_bytes.saturating_add(beneath).min(disk.virtual_size_bytes))
    }

    async fn grow(&self, path: &Path, size_bytes: u64) -> Result<(), DriverError> {
        let folder = path.parent().unwrap_or(path).to_owned();
        let arguments = ["resize", "-q", "-f", "qcow2"]
            .map(ToOwned::to_owned)
            .into_iter()
            .chain([path.to_string_lossy().into_owned(), size_bytes.to_string()]);
        jail::run("qemu-img", arguments.collect(), vec![self.state.join("images")], vec![folder]).await
    }

    /// Removes the disk's file. Nothing happens if it is gone.
    pub fn remove(&self, id: &str, order: &DiskOrder) -> Result<(), DriverError> {
        let path = self.path(id, order);
        let failed = |error: io::Error| DriverError::io(format!("remove {}", path.display()), &error);
        files::remove_if_there(&path.with_extension("qcow2.new")).map_err(failed)?;
        files::remove_if_there(&path).map_err(failed)?;
        // Who opened it last.
        files::remove_if_there(&path.with_extension("holder")).map_err(failed)?;
        Ok(())
    }
}

fn create(
    path: &Path,
    size_bytes: u64,
    base: Option<&Base>,
    backing: Option<&Path>,
) -> Result<(), DriverError> {
    let failed = |error: io::Error| DriverError::io(format!("create {}", path.display()), &error);
    if let Some(base) = base.filter(|base| size_bytes < base.virtual_size_bytes) {
        let needed = base.virtual_size_bytes;
        return Err(DriverError::Permanent(format!("{size_bytes} bytes is less than its image's {needed}")));
    }
    let name = backing.map(|path| path.to_string_lossy().into_owned());
    let under = base.zip(name.as_deref()).map(|(base, path)| Backing { path, format: &base.format });
    let bytes = qcow2::render(size_bytes, under).map_err(DriverError::Permanent)?;
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(failed)?;
    let beside = path.with_extension("qcow2.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .map_err(failed)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&beside, path).and_then(|()| files::sync_folder(folder)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(size_bytes: u64) -> DiskOrder {
        DiskOrder { size_bytes, ..DiskOrder::default() }
    }

    #[tokio::test]
    async fn a_disk_is_made_grown_never_shrunk_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let driver = DiskDriver::new(folder.path());
        fs::create_dir(folder.path().join("images")).unwrap();
        assert_eq!(driver.observe("disk_1", &order(0)).unwrap(), None);
        driver.apply("disk_1", &order(1 << 20), None).await.unwrap();
        driver.apply("disk_1", &order(1 << 20), None).await.unwrap();
        driver.apply("disk_1", &order(8 << 20), None).await.unwrap();
        assert_eq!(
            driver.observe("disk_1", &order(0)).unwrap().map(|disk| disk.virtual_size_bytes),
            Some(8 << 20)
        );
        let refused = driver.apply("disk_1", &order(1 << 20), None).await.unwrap_err();
        assert!(refused.is_permanent() && refused.to_string().contains("never shrinks"), "{refused}");
        driver.remove("disk_1", &order(0)).unwrap();
        driver.remove("disk_1", &order(0)).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("disks")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_disk_on_another_image_is_not_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let driver = DiskDriver::new(folder.path());
        driver.apply("disk_1", &order(1 << 20), None).await.unwrap();
        let base = Base { sha256: "ab".into(), format: "qcow2".into(), virtual_size_bytes: 512 };
        let refused = driver.apply("disk_1", &order(1 << 20), Some(&base)).await.unwrap_err();
        assert!(refused.is_permanent(), "{refused}");
        let refused = driver.apply("disk_2", &order(256), Some(&base)).await.unwrap_err();
        assert!(refused.to_string().contains("less than its image's"), "{refused}");
    }
}
