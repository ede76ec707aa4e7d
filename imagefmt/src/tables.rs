//! The tables: every pointer in them must lead into the file.

use std::io::{Read, Seek};

use crate::Refusal;
use crate::header::Header;
use crate::source::{Source, be16, be32, be64};

/// Bits 9 to 55 of L1 and L2 entries: a host offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63 says that a cluster is not shared; it is of no interest here.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ALL_ZEROES: u64 = 1;

/// QEMU's limit for what may follow a snapshot's fixed fields.
const MAX_SNAPSHOT_EXTRA: u64 = 1024;
const SNAPSHOT_FIXED: usize = 40;

/// Walks refcount, L1, L2 and snapshot tables.
pub(crate) fn check(source: &mut Source<'_, impl Read + Seek>, header: &Header) -> Result<(), Refusal> {
    refcount_table(source, header)?;
    let mut l2_tables = l1_table(source, header, header.l1_offset, header.l1_size)?;
    // Two L1 entries never share an L2 table: refusing it keeps the work below one pass over the file.
    l2_tables.sort_unstable();
    if l2_tables.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Refusal::Malformed("two L1 entries share an L2 table"));
    }
    for offset in l2_tables {
        l2_table(source, header, offset)?;
    }
    snapshots(source, header)
}

fn refcount_table(source: &mut Source<'_, impl Read + Seek>, header: &Header) -> Result<(), Refusal> {
    let (cluster, file) = (header.cluster_size(), source.size);
    let entries = header.refcount_table_clusters * cluster / 8;
    source.each_u64("the refcount table", header.refcount_table_offset, entries, |_, entry| match entry {
        0 => Ok(()),
        entry => whole_cluster("a refcount block", entry, cluster, file),
    })
}

/// Answers the offsets of the L2 tables that an L1 table names.
fn l1_table(
    source: &mut Source<'_, impl Read + Seek>,
    header: &Header,
    offset: u64,
    entries: u64,
) -> Result<Vec<u64>, Refusal> {
    let (cluster, file) = (header.cluster_size(), source.size);
    let mut tables = Vec::new();
    source.each_u64("the L1 table", offset, entries, |_, entry| {
        let at = entry & !COPIED;
        if at & !OFFSET != 0 {
            return Err(Refusal::Malformed("an L1 entry has reserved bits set"));
        }
        if at != 0 {
            whole_cluster("an L2 table", at, cluster, file)?;
            tables.push(at);
        }
        Ok(())
    })?;
    Ok(tables)
}

fn l2_table(source: &mut Source<'_, impl Read + Seek>, header: &Header, offset: u64) -> Result<(), Refusal> {
    let (cluster, file) = (header.cluster_size(), source.size);
    let mut entry = 0;
    source.each_u64("an L2 table", offset, cluster / 8, |index, word| {
        if !header.extended_l2() {
            let zeroes = word & ALL_ZEROES != 0;
            if zeroes && header.version < 3 {
                return Err(Refusal::Malformed("an L2 entry has reserved bits set"));
            }
            return l2_entry(header, word & !ALL_ZEROES, if zeroes { 0 } else { cluster }, file);
        }
        // Extended entries are pairs: the second word says which of 32 subclusters are there.
        if index % 2 == 0 {
            entry = word;
            return Ok(());
        }
        let last = u64::from(32 - (word as u32).leading_zeros());
        l2_entry(header, entry, last * (cluster / 32), file)
    })
}

/// One L2 entry, of whose cluster the first `used` bytes hold data and must be in the file.
fn l2_entry(header: &Header, entry: u64, used: u64, file: u64) -> Result<(), Refusal> {
    if entry & COMPRESSED != 0 {
        return compressed(header.cluster_bits, entry, file);
    }
    if entry & !(OFFSET | COPIED) != 0 {
        return Err(Refusal::Malformed("an L2 entry has reserved bits set"));
    }
    match entry & OFFSET {
        0 => Ok(()),
        at => within("a data cluster", at, header.cluster_size(), used, file),
    }
}

/// A compressed cluster: any byte offset, and a count of sectors, the last of which may be short.
fn compressed(cluster_bits: u32, entry: u64, file: u64) -> Result<(), Refusal> {
    let offset_bits = 62 - (cluster_bits - 8);
    let offset = entry & ((1 << offset_bits) - 1);
    let sectors = ((entry & !(COPIED | COMPRESSED)) >> offset_bits) + 1;
    let end = (offset / 512 + sectors) * 512;
    if offset >= file || end > file.next_multiple_of(512) {
        return Err(Refusal::Truncated { what: "a compressed cluster", end, file });
    }
    Ok(())
}

/// A cluster that must be in the file from its first to its last byte.
fn whole_cluster(what: &'static str, at: u64, cluster: u64, file: u64) -> Result<(), Refusal> {
    within(what, at, cluster, cluster, file)
}

fn within(what: &'static str, at: u64, cluster: u64, used: u64, file: u64) -> Result<(), Refusal> {
    if !at.is_multiple_of(cluster) {
        return Err(Refusal::Malformed("a table points between clusters"));
    }
    let end = at.saturating_add(used);
    if end > file {
        return Err(Refusal::Truncated { what, end, file });
    }
    Ok(())
}

/// Walks the snapshot table; each snapshot's own L1 table must be within the file, and point into it.
fn snapshots(source: &mut Source<'_, impl Read + Seek>, header: &Header) -> Result<(), Refusal> {
    let mut at = header.snapshots_offset;
    for _ in 0..header.snapshots {
        let fixed = source.bytes("the snapshot table", at, SNAPSHOT_FIXED)?;
        let (l1_offset, l1_size) = (be64(&fixed, 0), u64::from(be32(&fixed, 8)));
        let extra = u64::from(be32(&fixed, 36));
        // A snapshot's table is never larger than that of a disk of the allowed size, grown by saved memory.
        if extra > MAX_SNAPSHOT_EXTRA || l1_size > header.l1_size.max(header.l1_needed()) * 2 + 1 {
            return Err(Refusal::Malformed("a snapshot claims a table that cannot be"));
        }
        if !l1_offset.is_multiple_of(header.cluster_size()) {
            return Err(Refusal::Malformed("a snapshot's L1 table does not begin at a cluster"));
        }
        l1_table(source, header, l1_offset, l1_size)?;
        let names = u64::from(be16(&fixed, 12)) + u64::from(be16(&fixed, 14));
        let len = (SNAPSHOT_FIXED as u64 + extra + names).next_multiple_of(8);
        source.contains("the snapshot table", at, SNAPSHOT_FIXED as u64 + extra + names)?;
        at = at.saturating_add(len);
    }
    Ok(())
}
