//! Headers and tables that lie: each refused for its own reason, and none with a panic.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::Cursor;

use proptest::prelude::*;
use rhyzome_imagefmt::{Format, ImageInfo, Limits, Refusal, inspect_qcow2};
use support::{CLUSTER, image, inspect, put32, put64};

/// The image with one u32 changed.
fn with32(at: u64, value: u32) -> Vec<u8> {
    let mut bytes = image();
    put32(&mut bytes, at, value);
    bytes
}

/// The image with one u64 changed.
fn with64(at: u64, value: u64) -> Vec<u8> {
    let mut bytes = image();
    put64(&mut bytes, at, value);
    bytes
}

fn extension(kind: u32, len: u32) -> Vec<u8> {
    let mut bytes = image();
    put32(&mut bytes, 112, kind);
    put32(&mut bytes, 116, len);
    bytes
}

macro_rules! refused {
    ($bytes:expr, $pattern:pat) => {
        let answer = inspect(&$bytes);
        assert!(matches!(answer, Err($pattern)), "{answer:?}");
    };
}

#[test]
fn a_whole_image_is_accepted() {
    let info = inspect(&image()).unwrap();
    assert_eq!(
        info,
        ImageInfo { format: Format::Qcow2, virtual_size_bytes: 4096, file_size_bytes: 7 * CLUSTER }
    );
    let mut version_2 = with32(4, 2);
    version_2[72..112].fill(0);
    inspect(&version_2).unwrap();
}

#[test]
fn every_truncation_is_refused() {
    let whole = image();
    for len in 0..whole.len() {
        let answer = inspect(&whole[..len]);
        let right = match len {
            0..4 => matches!(answer, Err(Refusal::NotQcow2)),
            _ => matches!(answer, Err(Refusal::Truncated { .. })),
        };
        assert!(right, "cut to {len} bytes: {answer:?}");
    }
}

#[test]
fn what_is_no_qcow2_is_refused() {
    refused!(*b"\x7fELF and more of a program", Refusal::NotQcow2);
    refused!(vec![0; 1 << 20], Refusal::NotQcow2);
    refused!(with32(4, 1), Refusal::UnknownVersion(1));
    refused!(with32(4, 4), Refusal::UnknownVersion(4));
}

#[test]
fn what_leads_to_other_files_is_refused() {
    refused!(with64(8, 200), Refusal::BackingFile);
    refused!(extension(0xe279_2aca, 3), Refusal::BackingFile);
    refused!(with64(72, 1 << 2), Refusal::ExternalDataFile);
    refused!(with64(88, 1 << 1), Refusal::ExternalDataFile);
    refused!(extension(0x4441_5441, 8), Refusal::ExternalDataFile);
    let mut second = extension(0x6803_f857, 5);
    put32(&mut second, 128, 0x4441_5441);
    refused!(second, Refusal::ExternalDataFile);
}

#[test]
fn features_and_encryption_are_refused() {
    refused!(with64(72, 1 << 0), Refusal::Dirty);
    refused!(with64(72, 1 << 1), Refusal::Corrupt);
    refused!(with64(72, 1 << 5), Refusal::UnknownFeatures(32));
    refused!(with64(72, 1 << 63), Refusal::UnknownFeatures(_));
    refused!(with32(32, 1), Refusal::Encrypted);
    refused!(with32(32, 2), Refusal::Encrypted);
    refused!(extension(0x0537_be77, 16), Refusal::Encrypted);
    refused!(with64(72, 1 << 3), Refusal::Malformed(_));
    let mut unknown_type = with64(72, 1 << 3);
    unknown_type[104] = 9;
    refused!(unknown_type, Refusal::Malformed(_));
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    refused!(with64(24, 1 << 60), Refusal::VirtualSizeTooLarge { limit: 17_592_186_044_416, .. });
    refused!(with64(24, u64::MAX), Refusal::VirtualSizeTooLarge { .. });
    refused!(with64(24, 0), Refusal::BadVirtualSize(0));
    refused!(with64(24, 4097), Refusal::BadVirtualSize(4097));
    refused!(with64(24, 1 << 30), Refusal::L1TooSmall { has: 1, needs: 32768 });
    for bits in [0, 8, 22, 63, 64, u32::MAX] {
        refused!(with32(20, bits), Refusal::BadClusterBits(_));
    }
    for length in [0, 72, 103, 105, 520, u32::MAX] {
        refused!(with32(100, length), Refusal::BadHeaderLength(_));
    }
    let small = Limits { max_virtual_size_bytes: 1 << 40, max_file_size_bytes: 1024 };
    let answer = inspect_qcow2(&mut Cursor::new(image()), &small);
    assert!(matches!(answer, Err(Refusal::FileTooLarge { bytes: 3584, limit: 1024 })), "{answer:?}");
}

#[test]
fn bombs_are_refused_before_anything_is_allocated() {
    refused!(with32(36, u32::MAX), Refusal::TableTooLarge { what: "the L1 table", .. });
    refused!(with32(36, 4 << 20), Refusal::Truncated { .. });
    refused!(with32(56, u32::MAX), Refusal::TableTooLarge { .. });
    refused!(with32(56, 16 << 10), Refusal::Truncated { .. });
    refused!(with32(56, 0), Refusal::Malformed(_));
    refused!(with32(60, u32::MAX), Refusal::TableTooLarge { what: "the snapshot table", .. });
    refused!(extension(0x1234_5678, u32::MAX), Refusal::Malformed(_));
    let mut bitmaps = extension(0x2385_2875, 24);
    put64(&mut bitmaps, 128, u64::MAX);
    refused!(bitmaps, Refusal::TableTooLarge { .. });
}

#[test]
fn pointers_out_of_the_file_are_refused() {
    for field in [40, 48] {
        refused!(with64(field, 1 << 40), Refusal::Truncated { .. });
        refused!(with64(field, u64::MAX - 511), Refusal::Truncated { .. });
        refused!(with64(field, 0), Refusal::Malformed(_));
        refused!(with64(field, 8), Refusal::Malformed(_));
    }
    refused!(with64(CLUSTER, 7 * CLUSTER), Refusal::Truncated { what: "a refcount block", .. });
    refused!(with64(3 * CLUSTER, 7 * CLUSTER), Refusal::Truncated { what: "an L2 table", .. });
    refused!(with64(4 * CLUSTER, 7 * CLUSTER), Refusal::Truncated { what: "a data cluster", .. });
    refused!(with64(4 * CLUSTER, (1 << 62) | 9000), Refusal::Truncated { what: "a compressed cluster", .. });
    refused!(with64(4 * CLUSTER, (1 << 62) | (1 << 61) | 3072), Refusal::Truncated { .. });
    refused!(with64(3 * CLUSTER, 1 << 60), Refusal::Malformed(_));
    refused!(with64(4 * CLUSTER, 1 << 1), Refusal::Malformed(_));
}

#[test]
fn an_l2_table_is_never_walked_twice() {
    let mut bytes = with32(36, 64);
    for entry in 0..64 {
        put64(&mut bytes, 3 * CLUSTER + 8 * entry, 4 * CLUSTER);
    }
    refused!(bytes, Refusal::Malformed("two L1 entries share an L2 table"));
}

#[test]
fn snapshots_are_walked() {
    let mut bytes = with32(60, 1);
    put64(&mut bytes, 64, 7 * CLUSTER);
    refused!(bytes, Refusal::Truncated { what: "the snapshot table", .. });
    bytes.resize(8 * CLUSTER as usize, 0);
    inspect(&bytes).unwrap();
    put32(&mut bytes, 7 * CLUSTER + 8, u32::MAX);
    refused!(bytes, Refusal::Malformed(_));
    put32(&mut bytes, 7 * CLUSTER + 8, 1);
    put64(&mut bytes, 7 * CLUSTER, 8 * CLUSTER);
    refused!(bytes, Refusal::Truncated { .. });
    put64(&mut bytes, 7 * CLUSTER, 3 * CLUSTER);
    inspect(&bytes).unwrap();
    put32(&mut bytes, 60, 2);
    put32(&mut bytes, 7 * CLUSTER + 36, 1025);
    refused!(bytes, Refusal::Malformed(_));
}

#[test]
fn each_refusal_is_one_line() {
    for bytes in [with32(4, 1), with64(8, 1), with64(24, 1 << 60), image()[..600].to_vec(), vec![]] {
        let line = inspect(&bytes).unwrap_err().to_string();
        assert!(!line.contains('\n') && line.len() > 20, "{line}");
    }
}

proptest! {
    #[test]
    fn random_headers_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 4..4096)) {
        bytes[..4].copy_from_slice(b"QFI\xfb");
        let _ = inspect(&bytes);
    }

    #[test]
    fn random_changes_never_panic(changes in proptest::collection::vec((0..3584usize, any::<u8>()), 1..12)) {
        let mut bytes = image();
        for (at, value) in changes {
            bytes[at] = value;
        }
        let _ = inspect(&bytes);
    }

    #[test]
    fn random_fields_never_panic(fields in proptest::collection::vec((0..14u64, any::<u64>(), 0..64u32), 1..4)) {
        let mut bytes = image();
        for (field, value, shift) in fields {
            put64(&mut bytes, 8 * field + 4, value >> shift);
        }
        let _ = inspect(&bytes);
    }
}
