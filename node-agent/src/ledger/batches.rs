//! Orders that came together and wait in one file for files of their own: one sync keeps them all, where a sync for each
//! would take the disk as many times as long. Whoever has time gives each its own file; then the batch goes.

use super::{Entry, LedgerError, failed, newer, parse};
use crate::files;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// More orders than this are kept as a batch.
pub const MANY: usize = 16;
/// No object is called so. An agent that knows no batches cannot read such a file, and refuses to start on it.
const PREFIX: &str = "+batch-";

/// The batches of a folder, by number: the later ones know better.
#[derive(Debug, Default)]
pub struct Batches {
    folder: PathBuf,
    open: BTreeMap<u64, BTreeSet<String>>,
}

impl Batches {
    /// Of this folder; none is known yet.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: BTreeMap::new() }
    }

    /// True if this file is one.
    pub fn is_one(path: &Path) -> bool {
        number(path).is_some()
    }

    /// Reads one that an earlier life has left.
    pub fn read(&mut self, path: &Path) -> Result<Vec<Entry>, LedgerError> {
        let bytes = fs::read(path).map_err(|error| failed(&path.display().to_string(), error))?;
        let entries: Vec<Entry> = parse(path, &bytes)?;
        for entry in &entries {
            newer(path, entry.version)?;
        }
        let ids = entries.iter().map(|entry| entry.order.object_id.clone()).collect();
        self.open.insert(number(path).unwrap_or(0), ids);
        Ok(entries)
    }

    /// Keeps these. They are on the disk when it returns.
    pub fn write(&mut self, entries: &[Entry]) -> io::Result<()> {
        let number = self.open.keys().next_back().map_or(1, |last| last + 1);
        let bytes = serde_json::to_vec(entries)?;
        files::write_all_durable(&self.folder, &[(self.path(number), bytes)])?;
        self.open.insert(number, entries.iter().map(|entry| entry.order.object_id.clone()).collect());
        Ok(())
    }

    /// The one that waits longest, and what it holds.
    pub fn first(&self) -> Option<(u64, &BTreeSet<String>)> {
        self.open.first_key_value().map(|(number, ids)| (*number, ids))
    }

    /// Those that hold an order for this object.
    pub fn holding(&self, id: &str) -> Vec<u64> {
        self.open.iter().filter(|(_, ids)| ids.contains(id)).map(|(number, _)| *number).collect()
    }

    /// What one holds.
    pub fn ids(&self, number: u64) -> Option<&BTreeSet<String>> {
        self.open.get(&number)
    }

    /// All that it held has files of its own.
    pub fn remove(&mut self, number: u64) -> io::Result<()> {
        files::remove_if_there(&self.path(number))?;
        files::sync_folder(&self.folder)?;
        self.open.remove(&number);
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        // So that they are listed in their order.
        self.folder.join(format!("{PREFIX}{number:012}.json"))
    }
}

fn number(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()
}
