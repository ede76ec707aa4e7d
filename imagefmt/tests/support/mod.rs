//! Builds small qcow2 images byte by byte.

use std::io::Cursor;

use rhyzome_imagefmt::{ImageInfo, Limits, Refusal, inspect_qcow2};

/// Cluster size of [`image`]: the smallest that there is.
pub const CLUSTER: u64 = 512;

/// A whole qcow2 (version 3) of 7 clusters: header, refcount table, refcount block, L1, L2, and two of data.
pub fn image() -> Vec<u8> {
    let mut b = vec![0; 7 * CLUSTER as usize];
    b[..4].copy_from_slice(b"QFI\xfb");
    put32(&mut b, 4, 3);
    put32(&mut b, 20, 9);
    put64(&mut b, 24, 4096);
    put32(&mut b, 36, 1);
    put64(&mut b, 40, 3 * CLUSTER);
    put64(&mut b, 48, CLUSTER);
    put32(&mut b, 56, 1);
    put32(&mut b, 96, 4);
    put32(&mut b, 100, 112);
    put64(&mut b, CLUSTER, 2 * CLUSTER);
    for cluster in 0..7 {
        b[(2 * CLUSTER + 2 * cluster + 1) as usize] = 1;
    }
    put64(&mut b, 3 * CLUSTER, (4 * CLUSTER) | (1 << 63));
    put64(&mut b, 4 * CLUSTER, (5 * CLUSTER) | (1 << 63));
    put64(&mut b, 4 * CLUSTER + 8, (6 * CLUSTER) | (1 << 63));
    b
}

/// Writes a big-endian u32.
pub fn put32(bytes: &mut [u8], at: u64, value: u32) {
    bytes[at as usize..at as usize + 4].copy_from_slice(&value.to_be_bytes());
}

/// Writes a big-endian u64.
pub fn put64(bytes: &mut [u8], at: u64, value: u64) {
    bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
}

/// Inspects bytes with the default limits.
pub fn inspect(bytes: &[u8]) -> Result<ImageInfo, Refusal> {
    inspect_qcow2(&mut Cursor::new(bytes), &Limits::default())
}
