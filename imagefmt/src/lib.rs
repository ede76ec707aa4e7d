//! Reads disk image headers without trusting them.
//!
//! An uploaded image is bytes from a stranger, and QEMU is a large C program that believes most of what a header
//! says: a qcow2 may name any file of the host as its backing or data file, or claim tables of gigabytes. So the
//! header and every table that points into the file are read here first, in safe Rust, and only what is plainly
//! one whole self-contained image goes on. The format is QEMU's `docs/interop/qcow2.rst`; the limits that are not
//! in it (table sizes, number of snapshots) are those of QEMU's own `block/qcow2.h`.
//!
//! Only qcow2 is inspected: a raw image is any file at all, so there is nothing in it to check.
//!
//! ```no_run
//! let mut file = std::fs::File::open("debian.qcow2")?;
//! let info = rhyzome_imagefmt::inspect_qcow2(&mut file, &rhyzome_imagefmt::Limits::default())?;
//! println!("{} bytes for the guest", info.virtual_size_bytes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod extension;
mod header;
mod refusal;
mod source;
mod tables;

use std::io::{Read, Seek};

pub use refusal::Refusal;

use header::Header;
use source::Source;

/// Formats that a disk or an image may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// QEMU's copy-on-write format: the only one that may be uploaded.
    Qcow2,
    /// Plain bytes, as disks of our own may be.
    Raw,
}

impl Format {
    /// The name that QEMU and qemu-img know it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
        }
    }
}

/// What an accepted image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// The format found.
    pub format: Format,
    /// Size of the disk that a guest sees.
    pub virtual_size_bytes: u64,
    /// Size of the file itself.
    pub file_size_bytes: u64,
}

/// How large an image may be or claim to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest disk that a guest may see.
    pub max_virtual_size_bytes: u64,
    /// Largest file that is looked at.
    pub max_file_size_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_virtual_size_bytes: 16 << 40, max_file_size_bytes: 1 << 40 }
    }
}

/// Inspects a qcow2 image: answers what it is, or the first reason why it is refused.
///
/// Reads the header, its extensions, and the L1, L2, refcount and snapshot tables, and never the guest's data. The work
/// is at most one pass over the file; the memory at most 32 MiB of L1 table, twice.
pub fn inspect_qcow2(reader: &mut (impl Read + Seek), limits: &Limits) -> Result<ImageInfo, Refusal> {
    let mut source = Source::new(reader)?;
    if source.size > limits.max_file_size_bytes {
        return Err(Refusal::FileTooLarge { bytes: source.size, limit: limits.max_file_size_bytes });
    }
    let header = Header::read(&mut source)?;
    header.check(limits)?;
    extension::check(&mut source, &header)?;
    tables::check(&mut source, &header)?;
    Ok(ImageInfo {
        format: Format::Qcow2,
        virtual_size_bytes: header.virtual_size,
        file_size_bytes: source.size,
    })
}
