//! Keeps a guest's console log from filling the disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

/// A log is cut when it is larger than this.
pub const LIMIT_BYTES: u64 = 1 << 20;

/// Moves the log's content to `console.log.1` and empties it, if it is too large. QEMU holds the file open for
/// appending, so it is emptied in place; what the guest prints in the very moment between may be lost.
pub fn trim(log: &Path) -> io::Result<bool> {
    let length = match fs::metadata(log) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if length <= LIMIT_BYTES {
        return Ok(false);
    }
    // A guest may have printed gigabytes since the last look: keep the end only.
    let mut from = File::open(log)?;
    io::Seek::seek(&mut from, io::SeekFrom::Start(length - LIMIT_BYTES))?;
    let mut to = File::create(log.with_extension("log.1"))?;
    io::copy(&mut io::Read::take(from, LIMIT_BYTES), &mut to)?;
    OpenOptions::new().write(true).open(log)?.set_len(0)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_large_log_is_cut_and_its_end_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("console.log");
        assert!(!trim(&log).unwrap());
        let mut file = OpenOptions::new().append(true).create(true).open(&log).unwrap();
        file.write_all(b"early\n").unwrap();
        assert!(!trim(&log).unwrap());
        file.write_all(&vec![b'x'; LIMIT_BYTES as usize]).unwrap();
        assert!(trim(&log).unwrap());
        file.write_all(b"late\n").unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"late\n");
        assert_eq!(fs::metadata(folder.path().join("console.log.1")).unwrap().len(), LIMIT_BYTES);
    }
}
