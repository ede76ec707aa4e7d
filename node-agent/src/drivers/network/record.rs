//! What the driver remembers about a network between two looks: a small file in the network's folder.
//!
//! Losing it costs time, not truth: all but the number of the uplink is compared with what is live, and made anew
//! where it does not match.

use super::plan::ruleset::Ruleset;
use crate::host::process::ProcessId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The file's name.
pub const FILE: &str = "network.json";

/// One network's memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Which /31 leads out; kept even while the network has no way out.
    pub slot: Option<u32>,
    /// True while the network has a way out.
    pub nat: bool,
    /// What nft was last told.
    pub applied: Option<Applied>,
    /// The dnsmasq that serves the network.
    pub resolver: Option<Resolver>,
    /// Digests of the files, by name, as they were written last: whoever finds another one finds somebody else's hand.
    pub files: BTreeMap<String, String>,
    /// When all of it was as it should be.
    pub whole: Option<Whole>,
}

/// A moment at which all of a network was as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    /// In which boot of the node: the next one begins with nothing, and that is nobody's doing.
    pub boot_id: String,
    /// A digest of what it should be.
    pub network: String,
}

/// Rules, and the moment at which they were the live ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The namespace's cookie.
    pub namespace: u64,
    /// The namespace's count of transactions right after ours.
    pub generation: u32,
    /// What was written.
    pub ruleset: Ruleset,
}

/// A running dnsmasq.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolver {
    /// Which process.
    pub process: ProcessId,
    /// The cookie of the namespace that it was started in.
    pub namespace: u64,
    /// The index of the bridge that its sockets are bound to: another bridge of the same name is deaf to it.
    pub bridge: u32,
    /// A digest of the configuration that it was started with.
    pub configuration: String,
}

impl Record {
    /// What is remembered in `folder`: nothing if there is no readable file.
    pub fn load(folder: &Path) -> Self {
        let file = folder.join(FILE);
        // The second is there alone only if the agent died in the middle of `write`.
        [file.clone(), beside(&file)]
            .iter()
            .find_map(|file| serde_json::from_slice(&fs::read(file).ok()?).ok())
            .unwrap_or_default()
    }

    /// Remembers.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        write(&folder.join(FILE), &serde_json::to_string_pretty(self)?)
    }
}

/// Replaces a file as a whole: a reader never sees half of one. Not synced: after a power cut the machine has no
/// namespaces either, and everything is made anew.
///
/// The old file is taken away first, because ext4 writes a file out before it lets it replace another: 1.5 ms each,
/// while a user waits for an instance.
pub fn write(file: &Path, text: &str) -> io::Result<()> {
    let new = beside(file);
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("writing {}: {error}", file.display()));
    fs::write(&new, text).map_err(named)?;
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(error)),
        _ => {}
    }
    fs::rename(&new, file).map_err(named)
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    file.with_file_name(name)
}

/// Replaces a file if it says something else. True if it did.
pub fn write_if_changed(file: &Path, text: &str) -> io::Result<bool> {
    if fs::read(file).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(false);
    }
    write(file, text)?;
    Ok(true)
}
