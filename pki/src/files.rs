//! Private files: 0600 from their first byte, whole or not there, and on the disk before anyone relies on them.
use crate::PkiError;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File { action, path, source }
}

/// Writes a file that only its owner may read: made 0600, filled, synced, then renamed into place.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    by_draft(path, content, |draft| fs::rename(draft, path))
}

/// As `write_private`, but a file that is there already stays: of two that start at once, one wins whole.
pub(crate) fn publish_private(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    by_draft(path, content, |draft| {
        let linked = match fs::hard_link(draft, path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        };
        linked.and_then(|()| fs::remove_file(draft))
    })
}

fn by_draft(
    path: &Path,
    content: &[u8],
    place: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<(), PkiError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.new", crate::random_hex()?));
    let draft = Path::new(&draft);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        place(draft)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(draft);
        PkiError::File { action: "write", path: path.to_owned(), source }
    })
}

/// Makes a folder, and those above it, that only its owner may enter.
pub(crate) fn make_private_folder(path: &Path) -> Result<(), PkiError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make", path))
}

/// A text file.
pub(crate) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(failed("read", path))
}

/// A private key's file: refused when all the machine can read it.
pub(crate) fn read_key(path: &Path) -> Result<String, PkiError> {
    let mode = fs::metadata(path).map_err(failed("read", path))?.permissions().mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(PkiError::KeyExposed { path: path.to_owned(), mode });
    }
    read(path)
}

/// Puts a finished folder in its place in one step. False: another one was there first.
pub(crate) fn publish_folder(draft: &Path, place: &Path) -> Result<bool, PkiError> {
    match fs::rename(draft, place) {
        Ok(()) => {
            if let Some(parent) = place.parent().filter(|p| !p.as_os_str().is_empty()) {
                File::open(parent).and_then(|f| f.sync_all()).map_err(failed("sync", parent))?;
            }
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            fs::remove_dir_all(draft).map_err(failed("remove", draft))?;
            Ok(false)
        }
        Err(error) => Err(failed("make", place)(error)),
    }
}
