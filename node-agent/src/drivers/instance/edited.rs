//! Files that the agent wrote for an instance, and whether somebody else has changed them since.

use super::{BootRecord, InstanceDriver, argv, seed};
use crate::drivers::{Deviation, DriverError};
use crate::files;
use crate::host::process::ProcessId;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// The files that are looked at; what is in `drop-in/` is the operator's, and never looked at.
const FILES: [&str; 2] = ["command", "seed.iso"];

/// What was read of a file: good as long as it was not written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Read {
    modified: SystemTime,
    length: u64,
    digest: String,
}

/// Digests of what was just written.
pub(super) fn digests(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    FILES.iter().map(|name| Ok(((*name).to_owned(), digest(&fs::read(folder.join(name))?)))).collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl InstanceDriver {
    /// Files of an instance that are not as they were written.
    pub fn edited(&self, id: &str) -> Vec<Deviation> {
        let folder = self.folder(id);
        let Some(boot) = BootRecord::read(&folder.join("boot.json")) else { return Vec::new() };
        let differs = |(name, written): (&String, &String)| {
            let found = match self.digest_of(&folder.join(name)) {
                Some(digest) if digest == *written => return None,
                Some(_) => "it was changed by hand",
                None => "it is gone, or cannot be read",
            };
            Some(Deviation::new("guest.file", format!("{name} as the agent wrote it"), found))
        };
        boot.files.iter().filter_map(differs).collect()
    }

    /// Writes the files again as they were when the guest was started. The guest is not touched.
    pub fn rewrite(&self, id: &str) -> Result<(), DriverError> {
        let folder = self.folder(id);
        let failed = |error: io::Error| DriverError::io(format!("write {}", folder.display()), &error);
        let Some(mut boot) = BootRecord::read(&folder.join("boot.json")) else { return Ok(()) };
        let image =
            seed::iso(&seed::texts(id, &boot.order, &boot.secrets)).map_err(DriverError::Permanent)?;
        files::write_atomic(&folder.join("seed.iso"), &image).map_err(failed)?;
        let running =
            super::process::Identity::read(&folder.join("pid")).filter(|identity| identity.is_alive());
        if let Some(process) = running.and_then(|identity| ProcessId::of(identity.pid)) {
            // What runs is the truth of what it was started as.
            let words = process.command_line();
            if let Some((program, arguments)) = words.split_first() {
                let text = argv::readable(program, arguments);
                files::write_atomic(&folder.join("command"), text.as_bytes()).map_err(failed)?;
            }
        }
        // Without a process the command line is made anew at the next start.
        boot.files = digests(&folder).map_err(failed)?;
        boot.write(&folder.join("boot.json")).map_err(failed)
    }

    fn digest_of(&self, path: &Path) -> Option<String> {
        let meta = fs::metadata(path).ok()?;
        let (modified, length) = (meta.modified().ok()?, meta.len());
        let mut read = self.read.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) =
            read.get(path).filter(|known| (known.modified, known.length) == (modified, length))
        {
            return Some(known.digest.clone());
        }
        let digest = digest(&fs::read(path).ok()?);
        read.insert(path.to_owned(), Read { modified, length, digest: digest.clone() });
        Some(digest)
    }
}
