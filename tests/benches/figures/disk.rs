//! How fast the disk is by itself: what nobody who keeps his word can be faster than, one write at a time.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often per second a page of 4 KiB can be written and be on the disk, one after the other.
pub fn syncs_per_second(folder: &Path, during: Duration) -> Result<f64> {
    let path = folder.join("syncs");
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    let page = [7_u8; 4096];
    // A log does not grow with each write either: its file is there.
    file.write_all_at(&vec![0; 1 << 20], 0)?;
    file.sync_all()?;
    let (since, mut done) = (Instant::now(), 0_u32);
    while since.elapsed() < during {
        file.write_all_at(&page, u64::from(done % 256) * 4096)?;
        file.sync_data()?;
        done += 1;
    }
    let rate = f64::from(done) / since.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(rate)
}
