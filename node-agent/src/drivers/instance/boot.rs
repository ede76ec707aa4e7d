//! What the present or last QEMU of an instance was started as: the record that tells a crash from a stop, and
//! a change that waits for the next boot from one that is in force.

use crate::files;
use rhyzome_proto::v1::{InstanceOrder, OrderSecret};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The format's number, for programs to come.
const VERSION: u32 = 1;

/// One file in the instance's folder. It needs no fsync: a machine that went down took its QEMU with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BootRecord {
    version: u32,
    /// The node's boot in which this QEMU was started.
    pub host_boot_id: String,
    /// The order's boot epoch at that time.
    pub boot_epoch: u64,
    /// The order's generation at that time.
    pub generation: u64,
    /// Milliseconds since 1970.
    pub started_at_ms: u64,
    /// How often it was brought back since it was last ordered to boot.
    pub restarts: u32,
    /// How many of those came quickly after one another: decides how long to wait.
    pub streak: u32,
    /// When this agent asked it to stop; 0 if it never did.
    pub stop_asked_at_ms: u64,
    /// "kvm" or "tcg".
    pub accelerator: String,
    /// Of the order by which it was started: database and placement.
    #[serde(default)]
    pub db_epoch: u64,
    /// The second of the two.
    #[serde(default)]
    pub placement_epoch: u64,
    /// What it was started as.
    pub order: InstanceOrder,
    /// What the markers in it stand for.
    #[serde(default)]
    pub secrets: Vec<OrderSecret>,
    /// Digests of the files that were written for it, by name.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

impl BootRecord {
    /// A first boot of `order`.
    pub fn new(
        order: &InstanceOrder,
        generation: u64,
        accelerator: &str,
        host_boot_id: &str,
        now_ms: u64,
    ) -> Self {
        Self {
            version: VERSION,
            host_boot_id: host_boot_id.to_owned(),
            boot_epoch: order.boot_epoch,
            generation,
            started_at_ms: now_ms,
            restarts: 0,
            streak: 0,
            stop_asked_at_ms: 0,
            accelerator: accelerator.to_owned(),
            db_epoch: 0,
            placement_epoch: 0,
            order: order.clone(),
            secrets: Vec::new(),
            files: BTreeMap::new(),
        }
    }

    /// The record in a folder, or None when there is none that can be read.
    pub fn read(path: &Path) -> Option<Self> {
        let record: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (record.version <= VERSION).then_some(record)
    }

    /// Writes it whole or not at all.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        files::write_atomic(path, &serde_json::to_vec_pretty(self)?)
    }
}
