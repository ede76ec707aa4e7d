//! Why an image is refused: one clear line each.

/// Why an image is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The file does not begin as a qcow2 does.
    #[error(
        "not a qcow2 image (it does not begin with \"QFI\\xfb\"): convert it with `qemu-img convert -O qcow2`"
    )]
    NotQcow2,
    /// A version of the format that does not exist.
    #[error("qcow2 version {0} is not known (2 and 3 are)")]
    UnknownVersion(u32),
    /// Something that must be in the file lies beyond its end.
    #[error("the image is truncated: {what} ends at byte {end}, the file at byte {file}: upload it again")]
    Truncated {
        /// What does not fit.
        what: &'static str,
        /// Where it would end.
        end: u64,
        /// Where the file ends.
        file: u64,
    },
    /// The image needs another file, its backing file.
    #[error(
        "the image names a backing file: an image must be whole, flatten it with `qemu-img convert -O qcow2`"
    )]
    BackingFile,
    /// The image keeps its data in another file.
    #[error(
        "the image names an external data file: an image must be whole, flatten it with `qemu-img convert -O qcow2`"
    )]
    ExternalDataFile,
    /// Incompatible feature bits that nobody has defined yet.
    #[error("the image needs features that are not known here (incompatible feature bits {0:#x})")]
    UnknownFeatures(u64),
    /// The image is encrypted.
    #[error("the image is encrypted: decrypt it with `qemu-img convert` first")]
    Encrypted,
    /// Marked dirty: its writer did not close it.
    #[error("the image is marked dirty (not closed properly): repair it with `qemu-img check -r all`")]
    Dirty,
    /// Marked corrupt by QEMU.
    #[error("the image is marked corrupt: repair it with `qemu-img check -r all`")]
    Corrupt,
    /// The guest's disk would be larger than allowed.
    #[error("the image claims a disk of {claimed} bytes, the limit is {limit}")]
    VirtualSizeTooLarge {
        /// What the header says.
        claimed: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The guest's disk would be empty or end within a sector.
    #[error("the image claims a disk of {0} bytes: it must be a multiple of 512, and not 0")]
    BadVirtualSize(u64),
    /// The file is larger than allowed.
    #[error("the image file has {bytes} bytes, the limit is {limit}")]
    FileTooLarge {
        /// Size of the file.
        bytes: u64,
        /// What is allowed.
        limit: u64,
    },
    /// Cluster size outside of what the format allows.
    #[error("cluster_bits is {0}: it must be 9 to 21 (14 to 21 with extended L2 entries)")]
    BadClusterBits(u32),
    /// Header length that cannot be.
    #[error("header_length is {0}: it must be a multiple of 8, at least 104, and within the first cluster")]
    BadHeaderLength(u32),
    /// A table larger than QEMU itself would load.
    #[error("{what} claims {claimed} entries, at most {limit} are allowed")]
    TableTooLarge {
        /// Which table.
        what: &'static str,
        /// What the header says.
        claimed: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The L1 table does not cover the disk.
    #[error("the L1 table has {has} entries, a disk of this size needs {needs}")]
    L1TooSmall {
        /// Entries there.
        has: u64,
        /// Entries needed.
        needs: u64,
    },
    /// Anything else that the format forbids.
    #[error("the image is malformed: {0}")]
    Malformed(&'static str),
    /// The file could not be read.
    #[error("cannot read the image: {0}")]
    Io(#[from] std::io::Error),
}
