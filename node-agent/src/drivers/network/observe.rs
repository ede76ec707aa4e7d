//! Which networks this node holds, by what is on its disk: nothing is asked of the kernel.

use super::record;
use std::fs;
use std::io;
use std::path::Path;

/// A network that this node holds something of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNetwork {
    /// The object's id.
    pub id: String,
}

/// All networks with a folder under `state`.
pub fn networks(state: &Path) -> io::Result<Vec<ObservedNetwork>> {
    let mut found: Vec<ObservedNetwork> =
        records(state)?.into_iter().map(|(id, _)| ObservedNetwork { id }).collect();
    found.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(found)
}

/// All networks with what is remembered of them.
pub fn records(state: &Path) -> io::Result<Vec<(String, record::Record)>> {
    let entries = match fs::read_dir(state.join("networks")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Ok(id) = entry.file_name().into_string()
            && entry.file_type()?.is_dir()
        {
            found.push((id, record::Record::load(&entry.path())));
        }
    }
    Ok(found)
}
