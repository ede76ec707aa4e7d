//! The file, with its size known, and reads that are checked against it.

use std::io::{Read, Seek, SeekFrom};

use crate::Refusal;

/// Bytes read at a time when walking tables.
const CHUNK: usize = 64 << 10;

/// A reader whose size is known.
pub(crate) struct Source<'a, R> {
    reader: &'a mut R,
    pub(crate) size: u64,
}

impl<'a, R: Read + Seek> Source<'a, R> {
    pub(crate) fn new(reader: &'a mut R) -> Result<Self, Refusal> {
        let size = reader.seek(SeekFrom::End(0))?;
        Ok(Source { reader, size })
    }

    /// Refuses what does not lie within the file.
    pub(crate) fn contains(&self, what: &'static str, offset: u64, len: u64) -> Result<(), Refusal> {
        let end = offset.saturating_add(len);
        if end > self.size {
            return Err(Refusal::Truncated { what, end, file: self.size });
        }
        Ok(())
    }

    /// Reads bytes that must lie within the file; `len` is bounded by the caller.
    pub(crate) fn bytes(&mut self, what: &'static str, offset: u64, len: usize) -> Result<Vec<u8>, Refusal> {
        self.contains(what, offset, len as u64)?;
        self.reader.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; len];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Hands each big-endian u64 of a table to `visit`, with its index, a chunk at a time.
    pub(crate) fn each_u64(
        &mut self,
        what: &'static str,
        offset: u64,
        count: u64,
        mut visit: impl FnMut(u64, u64) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        self.contains(what, offset, count.saturating_mul(8))?;
        self.reader.seek(SeekFrom::Start(offset))?;
        let mut buffer = vec![0; CHUNK];
        let mut index = 0;
        while index < count {
            let words = (count - index).min((CHUNK / 8) as u64);
            let part = &mut buffer[..words as usize * 8];
            self.reader.read_exact(part)?;
            for word in part.chunks_exact(8) {
                visit(index, be64(word, 0))?;
                index += 1;
            }
        }
        Ok(())
    }
}

/// Big-endian u64 at `at`; the caller has made sure that it is there.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Big-endian u32 at `at`; the caller has made sure that it is there.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// Big-endian u16 at `at`; the caller has made sure that it is there.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from(bytes[at]) << 8 | u16::from(bytes[at + 1])
}
