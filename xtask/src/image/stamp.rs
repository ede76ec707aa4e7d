//! Whether an image is current: a hash of what it was made from lies beside it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Hash of everything that goes into an image.
pub struct Stamp(String);

impl Stamp {
    /// Hashes the inputs, each with its length before it.
    pub fn of(inputs: &[&str]) -> Stamp {
        let mut hash = Sha256::new();
        for input in inputs {
            hash.update((input.len() as u64).to_le_bytes());
            hash.update(input);
        }
        Stamp(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Whether the image at `out` was made from the same inputs.
    pub fn matches(&self, out: &Path) -> bool {
        out.exists() && fs::read_to_string(beside(out)).is_ok_and(|text| text.trim() == self.0)
    }

    /// Notes that the image at `out` is made from these inputs.
    pub fn write(&self, out: &Path) -> Result<()> {
        let path = beside(out);
        fs::write(&path, format!("{}\n", self.0)).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn beside(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".stamp");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_current_until_an_input_changes() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a.qcow2");
        let stamp = Stamp::of(&["kernel 6.1", "script"]);
        stamp.write(&out).unwrap();
        assert!(!stamp.matches(&out), "the image itself is missing");
        fs::write(&out, "image").unwrap();
        assert!(stamp.matches(&out));
        assert!(!Stamp::of(&["kernel 6.1script", ""]).matches(&out));
    }
}
