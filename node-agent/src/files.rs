//! Writing files so that a crash leaves the old or the new one, never half of one.

use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Writes `bytes` beside `path` and renames it there. Whole after a crash of the program; what must also
/// survive a crash of the machine is written with [`write_durable`].
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = stage(path, bytes)?.0;
    fs::rename(beside, path)
}

/// Files whose syncs are waited for at once.
const AT_ONCE: usize = 16;

/// Like [`write_atomic`] for some files of one folder, and all of it on the disk when it returns. Their syncs are
/// asked for side by side: they share the file system's commits, which cost milliseconds each.
pub fn write_all_durable(folder: &Path, files: &[(PathBuf, Vec<u8>)]) -> io::Result<()> {
    for files in files.chunks(AT_ONCE) {
        let staged: Vec<(PathBuf, File)> =
            files.iter().map(|(path, bytes)| stage(path, bytes)).collect::<io::Result<_>>()?;
        sync_together(&staged)?;
        for ((path, _), (beside, _)) in files.iter().zip(&staged) {
            fs::rename(beside, path)?;
        }
    }
    sync_folder(folder)
}

fn sync_together(staged: &[(PathBuf, File)]) -> io::Result<()> {
    let Some(((_, first), others)) = staged.split_first() else { return Ok(()) };
    std::thread::scope(|scope| {
        let others: Vec<_> = others.iter().map(|(_, file)| scope.spawn(|| file.sync_all())).collect();
        let first = first.sync_all();
        let joined = others.into_iter().map(|other| {
            other.join().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs a file panicked")))
        });
        first.and(joined.collect())
    })
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

/// The SHA-256 of a file, in hex, and how many bytes it has.
pub fn sha256(path: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0_u8; 256 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((rhyzome_pki::hex(&hasher.finalize()), size));
        }
        size += read as u64;
        hasher.update(&buffer[..read]);
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
