//! Writing files so that a crash leaves the old or the new one, never half of one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Writes `bytes` beside `path` and renames it there. Whole after a crash of the program; what must also
/// survive a crash of the machine is written with [`write_durable`].
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = stage(path, bytes)?.0;
    fs::rename(beside, path)
}

/// Like [`write_atomic`], and on the disk when it returns, but for the folder's own entry: call
/// [`sync_folder`] once after a batch.
pub fn write_durable(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (beside, file) = stage(path, bytes)?;
    file.sync_all()?;
    fs::rename(beside, path)
}

/// Makes names in a folder durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a file that may be gone already. True if it was there.
pub fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a folder and all in it; it may be gone already.
pub fn remove_folder_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn stage(path: &Path, bytes: &[u8]) -> io::Result<(PathBuf, File)> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let beside = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    Ok((beside, file))
}
