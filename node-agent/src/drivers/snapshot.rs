//! Snapshots: copies of disks, each a qcow2 file that stands on nothing else, taken once and never written again.
//!
//! What is known of one is a record of its own in the agent's folder, written before anything is copied: so that half of
//! one is found again, and a whole one whose file is gone is told from one that was never taken.

use crate::drivers::DriverError;
use crate::jail::{self, Allowance};
use crate::qcow2;
use crate::{files, names};
use rhyzome_proto::v1::SnapshotOrder;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What is here of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObservedSnapshot {
    /// It was begun.
    Begun,
    /// It is there.
    Whole(Content),
    /// It was there, and its file is not what it was.
    Lost(PathBuf),
    /// What is known of it cannot be read: why.
    Unclear(String),
}

/// What a whole snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Hex, of the file.
    pub sha256: String,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Size of the disk as a guest sees it.
    pub virtual_size_bytes: u64,
    /// The moment of which it is, in milliseconds since 1970.
    pub taken_at_ms: u64,
}

/// What is kept about one.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// Where its bytes are, or will be.
    file: PathBuf,
    /// The moment of which it is, in milliseconds since 1970.
    taken_at_ms: u64,
    /// None while it is being made.
    content: Option<Content>,
}

/// Where the disk is that is copied while no guest has it open.
#[derive(Debug, Clone)]
pub struct Closed {
    /// Its file.
    pub path: PathBuf,
    /// The image beneath and its format, if it is not where the disk's own file says.
    pub beneath: Option<(PathBuf, String)>,
}

/// Takes, keeps and removes snapshots.
#[derive(Debug)]
pub struct SnapshotDriver {
    state: PathBuf,
    /// Held by whoever gives a file its name, or takes it away: what was removed while it was measured stays so.
    naming: Mutex<()>,
}

impl SnapshotDriver {
    /// Records live under `state`, and the bytes of those whose disk is in no pool of its own.
    pub fn new(state: &Path) -> Self {
        Self { state: state.to_owned(), naming: Mutex::default() }
    }

    /// What is here; None if nothing is.
    pub fn observe(&self, id: &str) -> Option<ObservedSnapshot> {
        let record = match self.record(id) {
            Ok(record) => record?,
            Err(error) => return Some(ObservedSnapshot::Unclear(error.to_string())),
        };
        let Some(content) = record.content else { return Some(ObservedSnapshot::Begun) };
        let there = fs::metadata(&record.file).is_ok_and(|file| file.len() == content.size_bytes);
        Some(match there {
            true => ObservedSnapshot::Whole(content),
            false => ObservedSnapshot::Lost(record.file),
        })
    }

    /// The file of a whole one.
    pub fn file(&self, id: &str) -> Result<PathBuf, DriverError> {
        match self.observe(id) {
            Some(ObservedSnapshot::Whole(_)) => {}
            Some(ObservedSnapshot::Lost(file)) => return Err(lost(id, &file)),
            Some(ObservedSnapshot::Unclear(why)) => return Err(DriverError::Retry(why)),
            Some(ObservedSnapshot::Begun) => {
                return Err(DriverError::Retry(format!("{id} is being taken")));
            }
            None => return Err(DriverError::Permanent(format!("there is no snapshot {id} on this node"))),
        }
        let record = self.record(id)?;
        record.map(|record| record.file).ok_or_else(|| DriverError::Retry(format!("{id} is gone")))
    }

    /// Notes that it is begun now, if that is not too late and there is room for so many bytes. Answers the file that is
    /// to be written.
    pub fn begin(
        &self,
        id: &str,
        order: &SnapshotOrder,
        bytes: u64,
        now_ms: u64,
    ) -> Result<PathBuf, DriverError> {
        if let Some(reason) = late(order, now_ms) {
            return Err(DriverError::Permanent(reason.to_owned()));
        }
        if !names::is_safe_id(id) || !names::is_safe_id(&order.disk_id) {
            return Err(DriverError::Permanent(format!("{id:?} of {:?} cannot be ids", order.disk_id)));
        }
        if self.record(id)?.is_some_and(|record| record.content.is_some()) {
            return Err(DriverError::Retry(format!("{id} was taken already, and is not taken again")));
        }
        let folder = match order.pool.as_ref().filter(|pool| !pool.path.is_empty()) {
            Some(pool) => Path::new(&pool.path).join("snapshots"),
            None => self.state.join("snapshots"),
        };
        let file = folder.join(format!("{id}.qcow2"));
        let part = part(&file);
        let failed = |error: io::Error| DriverError::io(format!("begin {}", file.display()), &error);
        fs::create_dir_all(&folder).and_then(|()| fs::create_dir_all(self.folder())).map_err(failed)?;
        // A guest whose disk is copied stands still when the copy cannot be written.
        let room = nix::sys::statvfs::statvfs(&folder).map_err(|error| failed(error.into()))?;
        let room = room.blocks_available() * room.fragment_size();
        if room < bytes {
            let text = format!("no room: {id} may take {bytes} bytes, and {} has {room}", folder.display());
            return Err(DriverError::Retry(text));
        }
        self.keep(id, &Record { file, taken_at_ms: now_ms, content: None })?;
        Ok(part)
    }

    /// True if something of one that was begun is there.
    pub fn is_going_on(&self, id: &str) -> Result<bool, DriverError> {
        Ok(self.record(id)?.is_some_and(|record| record.content.is_none() && part(&record.file).exists()))
    }

    /// True if all of one that was begun is there, under its name, and only its record does not say so.
    pub fn is_copied(&self, id: &str) -> Result<bool, DriverError> {
        Ok(self.record(id)?.is_some_and(|record| record.content.is_none() && record.file.exists()))
    }

    /// Makes the file that QEMU is to fill: empty, and as large as the disk.
    pub fn blank(&self, part: &Path, virtual_size_bytes: u64) -> Result<(), DriverError> {
        let bytes = qcow2::render(virtual_size_bytes, None).map_err(DriverError::Permanent)?;
        create(part, &bytes)
    }

    /// Copies a disk that no guest has open; none can open it meanwhile.
    pub async fn copy(&self, part: &Path, disk: &Closed) -> Result<(), DriverError> {
        // There already, for nobody else to read; the tool may write to it and to nothing else.
        create(part, &[])?;
        let source = format!("json:{}", described(disk));
        let target = part.to_string_lossy().into_owned();
        let arguments = ["convert", "-q", "-O", "qcow2"].map(ToOwned::to_owned);
        let arguments = arguments.into_iter().chain([source, target]).collect();
        let folder = |path: &Path| path.parent().unwrap_or(path).to_owned();
        let read = vec![self.state.join("images"), folder(&disk.path)];
        jail::run_for(Allowance::COPY, "qemu-img", arguments, read, vec![part.to_owned()]).await
    }

    /// The copy is complete: it is measured, gets its name, and nobody may write it.
    pub fn finish(&self, id: &str) -> Result<(), DriverError> {
        let missing = || DriverError::Retry(format!("{id} was taken away while it was copied"));
        let file = self.record(id)?.ok_or_else(missing)?.file;
        // It has its name already where an agent was killed right after it gave it.
        let part = if file.exists() { file } else { part(&file) };
        let failed = |error: io::Error| DriverError::io(format!("finish {}", part.display()), &error);
        let mut file = File::open(&part).map_err(failed)?;
        let found = qcow2::read(&mut file).map_err(failed)?.filter(|found| found.backing.is_empty());
        let Some(found) = found else {
            // It would be none the next time either.
            files::remove_if_there(&part).map_err(failed)?;
            return Err(DriverError::Retry(format!("{} was no qcow2 file of its own", part.display())));
        };
        let (sha256, size_bytes) = files::sha256(&part).map_err(failed)?;
        let virtual_size_bytes = found.size_bytes;
        file.sync_all().map_err(failed)?;
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let record = self.record(id)?.ok_or_else(missing)?;
        fs::set_permissions(&part, Permissions::from_mode(0o400)).map_err(failed)?;
        fs::rename(&part, &record.file).map_err(failed)?;
        files::sync_folder(record.file.parent().unwrap_or(&record.file)).map_err(failed)?;
        let taken_at_ms = record.taken_at_ms;
        let content = Content { sha256, size_bytes, virtual_size_bytes, taken_at_ms };
        self.keep(id, &Record { content: Some(content), ..record })
    }

    /// Removes its file, whole or half, and then its record. Nothing happens if they are gone.
    pub fn remove(&self, id: &str) -> Result<(), DriverError> {
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = self.record(id)? else { return Ok(()) };
        let path = self.path(id);
        for file in [part(&record.file), record.file, path] {
            files::remove_if_there(&file)
                .map_err(|error| DriverError::io(format!("remove {}", file.display()), &error))?;
        }
        Ok(())
    }

    fn folder(&self) -> PathBuf {
        self.state.join("snapshots")
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder().join(format!("{id}.json"))
    }

    fn record(&self, id: &str) -> Result<Option<Record>, DriverError> {
        if !names::is_safe_id(id) {
            return Ok(None);
        }
        let path = self.path(id);
        let failed = |error: io::Error| DriverError::io(format!("read {}", path.display()), &error);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn keep(&self, id: &str, record: &Record) -> Result<(), DriverError> {
        let path = self.path(id);
        let failed = |error: io::Error| DriverError::io(format!("write {}", path.display()), &error);
        let bytes = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
        files::write_durable(&path, &bytes).and_then(|()| files::sync_folder(&self.folder())).map_err(failed)
    }
}

/// Why it is not taken again: that would be of another moment.
pub fn lost(id: &str, file: &Path) -> DriverError {
    DriverError::Retry(format!(
        "snapshot-gone: {} is not there as it was, and {id} is not taken anew by itself; put the file back, or delete \
         the snapshot",
        file.display()
    ))
}

/// Why it is not begun any more, if it is too late.
pub fn late(order: &SnapshotOrder, now_ms: u64) -> Option<&'static str> {
    (1..=now_ms).contains(&order.begin_before_ms).then_some(
        "snapshot-late: it would be of a later moment than the one that was asked for; delete it, and take another",
    )
}

/// A new file with these bytes, for nobody else.
fn create(path: &Path, bytes: &[u8]) -> Result<(), DriverError> {
    let failed = |error: io::Error| DriverError::io(format!("create {}", path.display()), &error);
    files::remove_if_there(path).map_err(failed)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes)).map_err(failed)
}

fn part(file: &Path) -> PathBuf {
    file.with_extension("part")
}

/// As QEMU's tools take it: every format said, none guessed.
fn described(disk: &Closed) -> Value {
    let file = |path: &Path| json!({"driver": "file", "filename": path.to_string_lossy()});
    let mut all = json!({"driver": "qcow2", "file": file(&disk.path)});
    // Nobody writes to it meanwhile: no guess on whether the file system has locks.
    all["file"]["locking"] = "on".into();
    if let Some((image, format)) = &disk.beneath {
        all["backing"] = json!({"driver": format, "file": file(image)});
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use rhyzome_proto::v1::StoragePool;
    use std::process::Command;

    fn qemu_img(arguments: &[&str]) {
        let done = Command::new("qemu-img").args(arguments).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn order(pool: &Path) -> SnapshotOrder {
        let pool = StoragePool { path: pool.to_string_lossy().into_owned(), ..StoragePool::default() };
        SnapshotOrder { disk_id: "disk_1".into(), pool: Some(pool), begin_before_ms: 0 }
    }

    fn whole(driver: &SnapshotDriver) -> Content {
        match driver.observe("snap_1") {
            Some(ObservedSnapshot::Whole(content)) => content,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_closed_disk_is_copied_with_what_is_beneath_it() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        // A comma and a quote mean something to QEMU, and must not here.
        let pool = state.join("a,\"pool");
        fs::create_dir(&pool).unwrap();
        fs::create_dir(state.join("images")).unwrap();
        let raw = state.join("raw");
        let bytes: Vec<u8> = (0..3 << 20).map(|n: u32| (n >> 8) as u8).collect();
        fs::write(&raw, &bytes).unwrap();
        let (image, disk) = (state.join("images/base"), pool.join("disk_1.qcow2"));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &text(&raw), &text(&image)]);
        let elsewhere = qcow2::Backing { path: "/not/here/base", format: "qcow2" };
        fs::write(&disk, qcow2::render(3 << 20, Some(elsewhere)).unwrap()).unwrap();

        let driver = SnapshotDriver::new(state);
        assert_eq!(driver.observe("snap_1"), None);
        let part = driver.begin("snap_1", &order(&pool), 1, 5).unwrap();
        assert_eq!(driver.observe("snap_1"), Some(ObservedSnapshot::Begun));
        let closed = Closed { path: disk, beneath: Some((image, "qcow2".into())) };
        driver.copy(&part, &closed).await.unwrap();
        // Begun anew after an agent was killed: what is there already is no obstacle.
        driver.copy(&driver.begin("snap_1", &order(&pool), 1, 7).unwrap(), &closed).await.unwrap();
        driver.finish("snap_1").unwrap();
        // Killed between the name and the record: there is nothing to copy again.
        let record = state.join("snapshots/snap_1.json");
        let mut before: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
        before["content"] = Value::Null;
        fs::write(&record, before.to_string()).unwrap();
        assert!(driver.is_copied("snap_1").unwrap() && !driver.is_going_on("snap_1").unwrap());
        driver.finish("snap_1").unwrap();

        let content = whole(&driver);
        assert_eq!((content.virtual_size_bytes, content.taken_at_ms), (3 << 20, 7));
        let file = driver.file("snap_1").unwrap();
        assert_eq!(content.sha256, rhyzome_pki::sha256_hex(&fs::read(&file).unwrap()));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o400);
        assert!(
            driver.begin("snap_1", &order(&pool), 1, 9).unwrap_err().to_string().contains("not taken again")
        );
        let back = state.join("back");
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &text(&file), &text(&back)]);
        assert!(fs::read(&back).unwrap() == bytes, "the copy has other bytes");

        fs::remove_file(&file).unwrap();
        assert_eq!(driver.observe("snap_1"), Some(ObservedSnapshot::Lost(file)));
        assert!(driver.file("snap_1").unwrap_err().to_string().contains("snapshot-gone"));
        driver.remove("snap_1").unwrap();
        driver.remove("snap_1").unwrap();
        assert_eq!(driver.observe("snap_1"), None);
        assert_eq!(fs::read_dir(pool.join("snapshots")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(state.join("snapshots")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_is_no_disk_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let driver = SnapshotDriver::new(folder.path());
        let part = driver.begin("snap_1", &order(folder.path()), 1, 7).unwrap();
        fs::write(&part, b"no disk").unwrap();
        assert!(driver.is_going_on("snap_1").unwrap());
        assert!(driver.finish("snap_1").is_err() && !driver.is_going_on("snap_1").unwrap());
        assert_eq!(driver.observe("snap_1"), Some(ObservedSnapshot::Begun));
        let gone = Closed { path: folder.path().join("disk_1.qcow2"), beneath: None };
        assert!(!driver.copy(&part, &gone).await.unwrap_err().is_permanent());
        assert!(driver.begin("../etc", &order(folder.path()), 1, 7).unwrap_err().is_permanent());
        let full = driver.begin("snap_2", &order(folder.path()), u64::MAX, 7).unwrap_err();
        assert!(full.to_string().starts_with("no room") && !full.is_permanent(), "{full}");
        let late = SnapshotOrder { begin_before_ms: 7, ..order(folder.path()) };
        assert!(driver.begin("snap_2", &late, 1, 7).unwrap_err().is_permanent());
        assert_eq!(driver.observe("snap_2"), None);
        // A record that cannot be read is neither forgotten nor made anew.
        let record = folder.path().join("snapshots/snap_1.json");
        let before = fs::read(&record).unwrap();
        fs::write(&record, b"{").unwrap();
        assert!(matches!(driver.observe("snap_1"), Some(ObservedSnapshot::Unclear(_))));
        assert!(
            driver.begin("snap_1", &order(folder.path()), 1, 7).is_err() && driver.remove("snap_1").is_err()
        );
        fs::write(&record, before).unwrap();
        driver.remove("snap_1").unwrap();
        assert!(!part.exists());
        assert!(driver.finish("snap_1").unwrap_err().to_string().contains("taken away"));
    }
}
