//! The header of an empty qcow2 file, with or without an image beneath: written here because starting qemu-img
//! takes longer than everything else between an order and a running guest. The format is QEMU's
//! `docs/interop/qcow2.rst`; a test lets qemu-img check what this writes.

use std::io::{self, Read, Seek, SeekFrom};

/// What QEMU itself takes by default.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// One L1 entry stands for a table of 8-byte entries, each for a cluster.
const BYTES_PER_L1_ENTRY: u64 = CLUSTER / 8 * CLUSTER;
const HEADER_LENGTH: u32 = 104;
const MAGIC: u32 = 0x5146_49fb;
const BACKING_FORMAT_EXTENSION: u32 = 0xe279_2aca;
/// Header, refcount table, refcount block; L1 comes next.
const L1_OFFSET: u64 = 3 * CLUSTER;
/// QEMU refuses longer names.
const MAX_BACKING_NAME: usize = 1023;

/// The image that an overlay stands on.
#[derive(Debug, Clone, Copy)]
pub struct Backing<'a> {
    /// Absolute path.
    pub path: &'a str,
    /// "qcow2" or "raw"; always told, never guessed.
    pub format: &'a str,
}

/// All bytes of a new file; what is not written reads as zeros or as the backing image.
pub fn render(size_bytes: u64, backing: Option<Backing<'_>>) -> Result<Vec<u8>, String> {
    let l1_entries = size_bytes.div_ceil(BYTES_PER_L1_ENTRY).max(1);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
    let clusters = 3 + l1_clusters;
    // One refcount block counts 32768 clusters; the L1 table of the largest disk allowed takes a few hundred.
    let l1_entries =
        u32::try_from(l1_entries).ok().filter(|_| clusters <= 1024).ok_or("disk is too large")?;
    if size_bytes == 0 || !size_bytes.is_multiple_of(512) {
        return Err(format!("{size_bytes} bytes is not a whole number of 512 byte sectors"));
    }
    let mut file = vec![0_u8; usize::try_from(clusters * CLUSTER).map_err(|_| "disk is too large")?];
    let header = header(size_bytes, l1_entries, backing)?;
    file[..header.len()].copy_from_slice(&header);
    // The refcount table's one entry, then one for each cluster in use, 16 bits wide.
    put(&mut file, CLUSTER, &(2 * CLUSTER).to_be_bytes());
    for cluster in 0..clusters {
        put(&mut file, 2 * CLUSTER + cluster * 2, &1_u16.to_be_bytes());
    }
    Ok(file)
}

fn header(size_bytes: u64, l1_entries: u32, backing: Option<Backing<'_>>) -> Result<Vec<u8>, String> {
    let mut extensions = Vec::new();
    if let Some(backing) = backing {
        extensions.extend(BACKING_FORMAT_EXTENSION.to_be_bytes());
        extensions.extend(u32::try_from(backing.format.len()).unwrap_or(0).to_be_bytes());
        extensions.extend(backing.format.as_bytes());
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    }
    extensions.extend([0; 8]); // End of extensions.
    let name = backing.map_or("", |backing| backing.path);
    if name.len() > MAX_BACKING_NAME {
        return Err(format!("path of the image is longer than {MAX_BACKING_NAME} bytes: {name}"));
    }
    let name_offset = if name.is_empty() { 0 } else { HEADER_LENGTH as usize + extensions.len() };
    let mut bytes = Vec::with_capacity(2048);
    bytes.extend(MAGIC.to_be_bytes());
    bytes.extend(3_u32.to_be_bytes());
    bytes.extend((name_offset as u64).to_be_bytes());
    bytes.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
    bytes.extend(CLUSTER_BITS.to_be_bytes());
    bytes.extend(size_bytes.to_be_bytes());
    bytes.extend(0_u32.to_be_bytes()); // No encryption.
    bytes.extend(l1_entries.to_be_bytes());
    bytes.extend(L1_OFFSET.to_be_bytes());
    bytes.extend(CLUSTER.to_be_bytes()); // Refcount table.
    bytes.extend(1_u32.to_be_bytes()); // Its clusters.
    bytes.extend([0; 12]); // No snapshots.
    bytes.extend([0; 24]); // No incompatible, compatible, autoclear features.
    bytes.extend(4_u32.to_be_bytes()); // 16 bit refcounts.
    bytes.extend(HEADER_LENGTH.to_be_bytes());
    bytes.extend(extensions);
    bytes.extend(name.as_bytes());
    Ok(bytes)
}

fn put(file: &mut [u8], offset: u64, bytes: &[u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    if let Some(place) = file.get_mut(start..start.saturating_add(bytes.len())) {
        place.copy_from_slice(bytes);
    }
}

/// What a file's header says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Size that the guest sees.
    pub size_bytes: u64,
    /// Name of the image beneath; empty for none.
    pub backing: String,
    /// Its format, if the file says it.
    pub format: String,
}

/// Reads back what [`render`] wrote, or QEMU made of it. None if this is no such file.
pub fn read(file: &mut (impl Read + Seek)) -> io::Result<Option<Found>> {
    let mut header = [0_u8; 32];
    file.seek(SeekFrom::Start(0))?;
    if let Err(error) = file.read_exact(&mut header) {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
    }
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    let length = word(16) as usize;
    if word(0) != MAGIC || length > MAX_BACKING_NAME {
        return Ok(None);
    }
    let mut name = vec![0_u8; length];
    file.seek(SeekFrom::Start(long(8)))?;
    file.read_exact(&mut name)?;
    let format = if name.is_empty() { String::new() } else { backing_format(file)? };
    Ok(Some(Found { size_bytes: long(24), backing: String::from_utf8_lossy(&name).into_owned(), format }))
}

/// What the header's extensions say of the format of the image beneath; empty if they say nothing.
fn backing_format(file: &mut (impl Read + Seek)) -> io::Result<String> {
    let mut word = [0_u8; 4];
    file.seek(SeekFrom::Start(u64::from(HEADER_LENGTH) - 4))?;
    file.read_exact(&mut word)?;
    // They begin where the header ends, and end with one of no kind.
    let mut at = u64::from(u32::from_be_bytes(word));
    while at < CLUSTER {
        let mut head = [0_u8; 8];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut head)?;
        let kind = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        if kind == 0 {
            break;
        }
        if kind == BACKING_FORMAT_EXTENSION && length <= 32 {
            let mut format = vec![0_u8; length as usize];
            file.read_exact(&mut format)?;
            return Ok(String::from_utf8_lossy(&format).into_owned());
        }
        at += 8 + u64::from(length).next_multiple_of(8);
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn qemu_img(arguments: &[&str]) -> serde_json::Value {
        let output = Command::new("qemu-img").args(arguments).output().expect("install qemu-utils");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[test]
    fn qemu_img_finds_nothing_wrong_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        std::fs::write(&base, render(3 << 20, None).unwrap()).unwrap();
        let base = base.to_str().unwrap();
        for (number, size) in [512, 1 << 30, 10 << 30, (16 << 40) + 512].into_iter().enumerate() {
            let path = folder.path().join(format!("{number}.qcow2"));
            let bytes = render(size, Some(Backing { path: base, format: "qcow2" })).unwrap();
            std::fs::write(&path, &bytes).unwrap();
            let path = path.to_str().unwrap();
            let info = qemu_img(&["info", "--output=json", path]);
            assert_eq!(info["virtual-size"], size);
            assert_eq!(info["backing-filename"], base);
            assert_eq!(info["backing-filename-format"], "qcow2");
            assert_eq!(info["format-specific"]["data"]["corrupt"], false);
            let check = qemu_img(&["check", "--output=json", "-f", "qcow2", path]);
            assert_eq!(check["check-errors"], 0, "{check}");
            assert_eq!(check.get("leaks"), None, "{check}");
            let found = read(&mut io::Cursor::new(bytes)).unwrap();
            assert_eq!(
                found,
                Some(Found { size_bytes: size, backing: base.to_owned(), format: "qcow2".into() })
            );
        }
    }

    #[test]
    fn what_is_no_disk_is_not_taken_for_one() {
        assert_eq!(read(&mut io::Cursor::new(vec![0; 4096])).unwrap(), None);
        assert_eq!(read(&mut io::Cursor::new(vec![])).unwrap(), None);
        assert!(render(1000, None).is_err());
        assert!(render(1 << 62, None).is_err());
    }
}
