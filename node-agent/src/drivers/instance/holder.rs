//! Who may open a disk that several nodes can reach: beside its file stands for which instance, and by which placement of
//! it, it was opened last. A node with an older order finds that there, and leaves the disk alone, also when nothing has
//! it open at that moment. Two at once are stopped by QEMU's own locks.

use super::{BootRecord, argv};
use crate::drivers::DriverError;
use nix::fcntl::{Flock, FlockArg};
use std::fs::OpenOptions;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Of a placement: the database that counted it, and its number. Later ones are greater.
type Rank = (u64, u64);

/// Notes this boot at all disks in shared pools that it may write to, unless a later one was there.
pub(super) fn note(state: &Path, id: &str, boot: &BootRecord) -> Result<(), DriverError> {
    let rank = (boot.db_epoch, boot.placement_epoch);
    for disk in boot.order.disks.iter().filter(|disk| !disk.read_only) {
        if disk.pool.as_ref().is_some_and(|pool| pool.shared && !pool.path.is_empty()) {
            claim(&argv::disk_path(state, disk).with_extension("holder"), id, rank)?;
        }
    }
    Ok(())
}

fn claim(path: &Path, id: &str, rank: Rank) -> Result<(), DriverError> {
    let failed = |error: io::Error| DriverError::io(format!("note who holds {}", path.display()), &error);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut file = Flock::lock(file.map_err(failed)?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed(errno.into()))?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    match holder(&text) {
        _ if text.is_empty() => {}
        Some((other, held)) if other == id && held > rank => {
            return Err(DriverError::Permanent(format!(
                "stale-placement: the disk {} was opened by placement {held:?} of this instance, and this order is of \
                 {rank:?}: it runs, or ran, elsewhere since",
                path.with_extension("").display()
            )));
        }
        Some((other, held)) if other == id && held == rank => return Ok(()),
        // An earlier one; or it belonged to another instance, which the server lets go of it before.
        Some(_) => {}
        None => {
            return Err(DriverError::Retry(format!(
                "{} cannot be read: make sure that nobody has the disk open, and remove that file",
                path.display()
            )));
        }
    }
    let line = format!("{id} {} {}\n", rank.0, rank.1);
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(line.as_bytes()))
        .and_then(|()| file.sync_all());
    written.map_err(failed)
}

fn holder(text: &str) -> Option<(&str, Rank)> {
    let mut words = text.split_whitespace();
    let (id, db, placement) = (words.next()?, words.next()?, words.next()?);
    Some((id, (db.parse().ok()?, placement.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_placement_is_refused_at_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk_1.holder");
        claim(&path, "inst_1", (1, 1)).unwrap();
        claim(&path, "inst_1", (1, 3)).unwrap();
        claim(&path, "inst_1", (1, 3)).unwrap();
        let refused = claim(&path, "inst_1", (1, 2)).unwrap_err();
        assert!(refused.is_permanent() && refused.to_string().starts_with("stale-placement: "), "{refused}");
        // A restored database counts placements anew.
        claim(&path, "inst_1", (2, 1)).unwrap();
        assert!(claim(&path, "inst_1", (1, 9)).is_err());
        // It was attached to another one since.
        claim(&path, "inst_2", (1, 1)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "inst_2 1 1\n");
    }

    #[test]
    fn what_cannot_be_read_is_no_permission() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk_1.holder");
        std::fs::write(&path, "inst_1 1").unwrap();
        let refused = claim(&path, "inst_1", (1, 2)).unwrap_err();
        assert!(refused.to_string().contains("remove that file"), "{refused}");
    }
}
