//! Header extensions: those that lead out of the file are refused, the others are only walked.

use std::io::{Read, Seek};

use crate::Refusal;
use crate::header::Header;
use crate::source::{Source, be32, be64};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTERNAL_DATA: u32 = 0x4441_5441;
const ENCRYPTION: u32 = 0x0537_be77;
const BITMAPS: u32 = 0x2385_2875;

/// QEMU's limits for persistent bitmaps.
const MAX_BITMAPS: u32 = 65535;
const MAX_BITMAP_DIRECTORY: u64 = 1024 * 65535;

/// Walks the extensions, which end with the first cluster at the latest.
pub(crate) fn check(source: &mut Source<'_, impl Read + Seek>, header: &Header) -> Result<(), Refusal> {
    let area = source.bytes("the first cluster", 0, header.cluster_size() as usize)?;
    let mut at = header.length as usize;
    while at + 8 <= area.len() {
        let (kind, len) = (be32(&area, at), be32(&area, at + 4) as usize);
        if kind == END {
            return Ok(());
        }
        let data = area
            .get(at + 8..)
            .and_then(|rest| rest.get(..len))
            .ok_or(Refusal::Malformed("a header extension leaves the first cluster"))?;
        one(source, kind, data)?;
        at += 8 + len.next_multiple_of(8);
    }
    Ok(())
}

fn one(source: &Source<'_, impl Read + Seek>, kind: u32, data: &[u8]) -> Result<(), Refusal> {
    match kind {
        BACKING_FORMAT => Err(Refusal::BackingFile),
        EXTERNAL_DATA => Err(Refusal::ExternalDataFile),
        ENCRYPTION => Err(Refusal::Encrypted),
        BITMAPS => bitmaps(source, data),
        _ => Ok(()),
    }
}

fn bitmaps(source: &Source<'_, impl Read + Seek>, data: &[u8]) -> Result<(), Refusal> {
    if data.len() != 24 {
        return Err(Refusal::Malformed("the bitmaps extension has a wrong length"));
    }
    let (count, size, offset) = (be32(data, 0), be64(data, 8), be64(data, 16));
    if count > MAX_BITMAPS || size > MAX_BITMAP_DIRECTORY {
        return Err(Refusal::TableTooLarge {
            what: "the bitmap directory",
            claimed: count.into(),
            limit: MAX_BITMAPS.into(),
        });
    }
    source.contains("the bitmap directory", offset, size)
}
