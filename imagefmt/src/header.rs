//! The fixed header of a qcow2: fields, and what they may say.

use std::io::{Read, Seek};

use crate::source::{Source, be32, be64};
use crate::{Limits, Refusal};

const MAGIC: &[u8; 4] = b"QFI\xfb";
const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;

/// Incompatible feature bits.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;

/// Autoclear bit: the external data file can be read as raw.
const RAW_EXTERNAL_DATA: u64 = 1 << 1;

/// QEMU's own limits: 32 MiB of L1 table, 8 MiB of refcount table.
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// QEMU allows 65536; no honest image comes near this, and each one is another L1 table.
const MAX_SNAPSHOTS: u64 = 1024;

/// The header, as read.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) backing_file_offset: u64,
    pub(crate) cluster_bits: u32,
    pub(crate) virtual_size: u64,
    crypt_method: u32,
    pub(crate) l1_size: u64,
    pub(crate) l1_offset: u64,
    pub(crate) refcount_table_offset: u64,
    pub(crate) refcount_table_clusters: u64,
    pub(crate) snapshots: u64,
    pub(crate) snapshots_offset: u64,
    incompatible: u64,
    autoclear: u64,
    refcount_order: u32,
    pub(crate) length: u32,
    compression_type: u8,
}

impl Header {
    pub(crate) fn read(source: &mut Source<'_, impl Read + Seek>) -> Result<Header, Refusal> {
        let start = source.size.min(MAGIC.len() as u64) as usize;
        if source.bytes("the header", 0, start)? != MAGIC {
            return Err(Refusal::NotQcow2);
        }
        let b = source.bytes("the header", 0, V2_LENGTH)?;
        let mut header = Header {
            version: be32(&b, 4),
            backing_file_offset: be64(&b, 8),
            cluster_bits: be32(&b, 20),
            virtual_size: be64(&b, 24),
            crypt_method: be32(&b, 32),
            l1_size: be32(&b, 36).into(),
            l1_offset: be64(&b, 40),
            refcount_table_offset: be64(&b, 48),
            refcount_table_clusters: be32(&b, 56).into(),
            snapshots: be32(&b, 60).into(),
            snapshots_offset: be64(&b, 64),
            incompatible: 0,
            autoclear: 0,
            refcount_order: 4,
            length: V2_LENGTH as u32,
            compression_type: 0,
        };
        if header.version == 3 {
            let b = source.bytes("the header", 0, V3_LENGTH)?;
            header.incompatible = be64(&b, 72);
            header.autoclear = be64(&b, 88);
            header.refcount_order = be32(&b, 96);
            header.length = be32(&b, 100);
            if header.length > V3_LENGTH as u32 {
                header.compression_type = source.bytes("the header", V3_LENGTH as u64, 1)?[0];
            }
        }
        Ok(header)
    }

    /// Size of a cluster in bytes; only after [`Header::check`] has accepted `cluster_bits`.
    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether L2 entries have 16 bytes.
    pub(crate) fn extended_l2(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }

    /// Entries in one L2 table.
    pub(crate) fn l2_entries(&self) -> u64 {
        self.cluster_size() / if self.extended_l2() { 16 } else { 8 }
    }

    /// L1 entries that the guest's disk needs.
    pub(crate) fn l1_needed(&self) -> u64 {
        self.virtual_size.div_ceil(self.cluster_size() * self.l2_entries())
    }

    /// Checks every field against the others and the limits, before anything is read by them.
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        self.check_features()?;
        self.check_shape()?;
        self.check_sizes(limits)?;
        self.check_tables()
    }

    fn check_features(&self) -> Result<(), Refusal> {
        if self.version != 2 && self.version != 3 {
            return Err(Refusal::UnknownVersion(self.version));
        }
        let unknown = self.incompatible & !KNOWN;
        if unknown != 0 {
            return Err(Refusal::UnknownFeatures(unknown));
        }
        if self.backing_file_offset != 0 {
            return Err(Refusal::BackingFile);
        }
        if self.incompatible & EXTERNAL_DATA != 0 || self.autoclear & RAW_EXTERNAL_DATA != 0 {
            return Err(Refusal::ExternalDataFile);
        }
        if self.crypt_method != 0 {
            return Err(Refusal::Encrypted);
        }
        if self.incompatible & CORRUPT != 0 {
            return Err(Refusal::Corrupt);
        }
        if self.incompatible & DIRTY != 0 {
            return Err(Refusal::Dirty);
        }
        Ok(())
    }

    fn check_shape(&self) -> Result<(), Refusal> {
        let least = if self.extended_l2() { 14 } else { 9 };
        if !(least..=21).contains(&self.cluster_bits) {
            return Err(Refusal::BadClusterBits(self.cluster_bits));
        }
        if self.version == 3
            && (self.length < V3_LENGTH as u32
                || !self.length.is_multiple_of(8)
                || u64::from(self.length) > self.cluster_size())
        {
            return Err(Refusal::BadHeaderLength(self.length));
        }
        if self.refcount_order > 6 {
            return Err(Refusal::Malformed("refcount_order is above 6"));
        }
        let has_type = self.incompatible & COMPRESSION_TYPE != 0;
        match (has_type, self.compression_type) {
            (false, 0) | (true, 1) => Ok(()),
            (true, 0) => Err(Refusal::Malformed("its compression feature bit is set for plain zlib")),
            (false, _) => Err(Refusal::Malformed("a compression type without its feature bit")),
            (true, _) => Err(Refusal::Malformed("unknown compression type")),
        }
    }

    fn check_sizes(&self, limits: &Limits) -> Result<(), Refusal> {
        if self.virtual_size > limits.max_virtual_size_bytes {
            return Err(Refusal::VirtualSizeTooLarge {
                claimed: self.virtual_size,
                limit: limits.max_virtual_size_bytes,
            });
        }
        if self.virtual_size == 0 || !self.virtual_size.is_multiple_of(512) {
            return Err(Refusal::BadVirtualSize(self.virtual_size));
        }
        Ok(())
    }

    fn check_tables(&self) -> Result<(), Refusal> {
        at_most("the L1 table", self.l1_size, MAX_L1_ENTRIES)?;
        let most_clusters = (MAX_REFCOUNT_TABLE_BYTES / self.cluster_size()).max(1);
        at_most("the refcount table (clusters)", self.refcount_table_clusters, most_clusters)?;
        at_most("the snapshot table", self.snapshots, MAX_SNAPSHOTS)?;
        if self.l1_size < self.l1_needed() {
            return Err(Refusal::L1TooSmall { has: self.l1_size, needs: self.l1_needed() });
        }
        if self.refcount_table_clusters == 0 {
            return Err(Refusal::Malformed("it has no refcount table"));
        }
        let starts = [self.l1_offset, self.refcount_table_offset, self.snapshots_offset];
        let missing = starts[0] == 0 || starts[1] == 0 || self.snapshots > 0 && starts[2] == 0;
        if missing || starts.iter().any(|at| !at.is_multiple_of(self.cluster_size())) {
            return Err(Refusal::Malformed("a table does not begin at a cluster of its own"));
        }
        Ok(())
    }
}

fn at_most(what: &'static str, claimed: u64, limit: u64) -> Result<(), Refusal> {
    if claimed > limit {
        return Err(Refusal::TableTooLarge { what, claimed, limit });
    }
    Ok(())
}
