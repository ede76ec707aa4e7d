//! Copies a disk of a running guest as it is at one moment: QEMU's own backup job, which goes on when this agent does
//! not, and is found again by its name (QEMU's `qapi/block-core.json`: blockdev-backup, sync "full").

use super::{BootRecord, InstanceDriver, argv};
use crate::drivers::{DriverError, Progress};
use crate::names;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Between two looks at how far it is.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

impl InstanceDriver {
    /// Whether the guest's QEMU is at work on the copy called `copy`, or has done it.
    pub async fn is_copying(&self, id: &str, copy: &str) -> Result<bool, DriverError> {
        Ok(self.job(id, &names::copy(copy)).await?.is_some())
    }

    /// Begins to copy a disk, as it is now, into this qcow2 file.
    pub async fn begin_copy(
        &self,
        id: &str,
        disk_id: &str,
        copy: &str,
        into: &Path,
    ) -> Result<(), DriverError> {
        let name = names::copy(copy);
        let boot = BootRecord::read(&self.folder(id).join("boot.json"));
        let index = boot.and_then(|boot| boot.order.disks.iter().position(|disk| disk.disk_id == disk_id));
        let index = index.ok_or_else(|| DriverError::Retry(format!("{id} does not have {disk_id} open")))?;
        // Of an earlier try that came no further.
        self.close(id, &name).await?;
        let target = json!({
            "driver": "qcow2", "node-name": name, "discard": "unmap", "detect-zeroes": "unmap",
            "file": {"driver": "file", "filename": into.to_string_lossy()},
        });
        self.command(id, "blockdev-add", target).await?;
        let job = json!({
            "job-id": name, "device": argv::disk_node(index), "target": name, "sync": "full", "auto-dismiss": false,
        });
        let begun = self.command(id, "blockdev-backup", job).await;
        if begun.is_err()
            && let Err(error) = self.close(id, &name).await
        {
            tracing::warn!(instance = id, %error, "the file of a copy that was not begun is still open");
        }
        begun
    }

    /// Waits until the copy is complete, and closes its file; that it was made stays known until `forget_copy`. Told
    /// between: how many bytes of the disk are copied.
    pub async fn await_copy(
        &self,
        id: &str,
        copy: &str,
        mut progress: Progress,
        virtual_size_bytes: u64,
    ) -> Result<(), DriverError> {
        let name = names::copy(copy);
        loop {
            let job = self.job(id, &name).await?;
            let job = job.ok_or_else(|| DriverError::Retry("QEMU's copy of the disk is gone".into()))?;
            if job["status"] == "concluded" {
                // Nobody may measure a file that QEMU still writes to.
                self.close(id, &name).await?;
                let Some(error) = job["error"].as_str() else { return Ok(()) };
                self.forget_copy(id, copy).await?;
                return Err(DriverError::Retry(format!("QEMU could not copy the disk: {error}")));
            }
            let number = |key: &str| u128::from(job[key].as_u64().unwrap_or(0));
            let total = number("total-progress").max(1);
            let done = number("current-progress").min(total) * u128::from(virtual_size_bytes) / total;
            progress(u64::try_from(done).unwrap_or(virtual_size_bytes));
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The copy is kept elsewhere: its QEMU need not know of it any more.
    pub async fn forget_copy(&self, id: &str, copy: &str) -> Result<(), DriverError> {
        self.command(id, "job-dismiss", json!({"id": names::copy(copy)})).await
    }

    /// Gives up a copy, if there is one; its file is closed when this returns.
    pub async fn end_copy(&self, id: &str, copy: &str) -> Result<(), DriverError> {
        let name = names::copy(copy);
        while let Some(job) = self.job(id, &name).await? {
            let (verb, arguments) = match job["status"].as_str() {
                Some("concluded") => ("job-dismiss", json!({"id": name})),
                _ => ("block-job-cancel", json!({"device": name, "force": true})),
            };
            // It may have come to its end in this very moment: the next look tells.
            if let Err(error) = self.command(id, verb, arguments).await {
                tracing::debug!(instance = id, %error, "{verb}");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.close(id, &name).await
    }

    /// Closes the file of a copy, if it is open.
    async fn close(&self, id: &str, name: &str) -> Result<(), DriverError> {
        match self.command(id, "blockdev-del", json!({"node-name": name})).await {
            // QEMU's words for a name that it does not know.
            Err(error) if error.to_string().contains("Failed to find node") => Ok(()),
            result => result,
        }
    }

    async fn job(&self, id: &str, name: &str) -> Result<Option<Value>, DriverError> {
        let jobs = self.ask(id, "query-jobs", json!({})).await?;
        Ok(jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == name)).cloned())
    }
}
