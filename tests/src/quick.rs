//! Where tests keep what need not outlive them: in memory, where nothing waits for a disk, if the machine has room there.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

/// What all that tests keep at once stays below, their PostgreSQL with its log of changes among it.
const ROOM: u64 = 4 << 30;

/// Below which folder.
pub fn below() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let free = statvfs(memory).map_or(0, |there| there.blocks_available() * there.fragment_size());
    if free > ROOM { memory.to_owned() } else { std::env::temp_dir() }
}

/// A new folder there.
pub fn folder() -> TempDir {
    tempfile::tempdir_in(below()).unwrap()
}
