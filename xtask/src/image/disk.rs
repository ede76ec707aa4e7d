//! A disk that firmware boots, made without root and without mounting anything.
//!
//! An MBR with two partitions: FAT with syslinux, kernel and initramfs, written by mtools; ext4 with the root file
//! system, filled by `mke2fs -d`. The result is a compressed qcow2.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::run;

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
/// Where the boot partition begins, as everybody has it.
const BOOT_START: u64 = MIB;

/// What goes on the disk.
pub struct Plan<'a> {
    /// Folder in which the work is done.
    pub work: &'a Path,
    /// The unpacked Debian package `syslinux`.
    pub syslinux: &'a Path,
    /// Size of the boot partition.
    pub boot_mib: u64,
    /// Size of the root partition.
    pub root_mib: u64,
    /// Files of the boot partition: where they are, and their names there.
    pub boot: &'a [(PathBuf, &'a str)],
    /// A shell command's words that fill a folder first, if the root's files are in a tar.
    pub root: Root<'a>,
    /// Label of the root file system.
    pub label: &'a str,
    /// Size of the root's journal.
    pub journal_mib: u64,
}

/// Where the root file system's content comes from.
pub enum Root<'a> {
    /// A folder.
    Folder(&'a Path),
    /// A tar archive.
    Tar(&'a Path),
}

impl Plan<'_> {
    /// Makes the disk, and puts it at `out` in one go.
    pub fn build(&self, out: &Path) -> Result<()> {
        let raw = self.work.join("disk.raw");
        self.partition(&raw)?;
        self.fill_boot(&raw)?;
        self.fill_root(&raw)?;
        let folder = out.parent().context("the image needs a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let part = out.with_extension("qcow2.part");
        run::output(run::words("qemu-img convert -f raw -O qcow2 -c").args([&raw, &part]))?;
        fs::rename(&part, out).with_context(|| format!("cannot write {}", out.display()))
    }

    fn root_start(&self) -> u64 {
        BOOT_START + self.boot_mib * MIB
    }

    fn partition(&self, raw: &Path) -> Result<()> {
        let code = self.syslinux.join("usr/lib/SYSLINUX/mbr.bin");
        let code = fs::read(&code).with_context(|| format!("cannot read {}", code.display()))?;
        let boot = entry(0x80, 0x0c, BOOT_START / SECTOR, self.boot_mib * MIB / SECTOR);
        let root = entry(0, 0x83, self.root_start() / SECTOR, self.root_mib * MIB / SECTOR);
        let mut file = File::create(raw)?;
        file.set_len(self.root_start() + self.root_mib * MIB)?;
        file.write_all(&code[..code.len().min(440)])?;
        file.seek(SeekFrom::Start(446))?;
        file.write_all(&boot)?;
        file.write_all(&root)?;
        file.seek(SeekFrom::Start(510))?;
        file.write_all(&[0x55, 0xaa])?;
        Ok(())
    }

    fn fill_boot(&self, raw: &Path) -> Result<()> {
        let at = format!("{}@@{BOOT_START}", raw.display());
        let sectors = (self.boot_mib * MIB / SECTOR).to_string();
        let hidden = (BOOT_START / SECTOR).to_string();
        let mut format = Command::new("mformat");
        format.args(["-i", &at, "-T", &sectors, "-H", &hidden, "-h", "255", "-s", "63", "-v", "BOOT", "::"]);
        run::output(format.env("MTOOLS_SKIP_CHECK", "1"))?;
        for (from, name) in self.boot {
            let mut copy = Command::new("mcopy");
            copy.args(["-i", &at]).arg(from).arg(format!("::/{name}"));
            run::output(copy.env("MTOOLS_SKIP_CHECK", "1"))?;
        }
        let mut install = Command::new(self.syslinux.join("usr/bin/syslinux"));
        install.args(["--offset", &BOOT_START.to_string(), "--install"]).arg(raw);
        run::output(&mut install)?;
        Ok(())
    }

    fn fill_root(&self, raw: &Path) -> Result<()> {
        let (folder, unpack) = match self.root {
            Root::Folder(folder) => (folder.to_owned(), String::new()),
            Root::Tar(tar) => {
                let folder = self.work.join("root");
                fs::create_dir(&folder)?;
                let unpack =
                    format!("tar -xf '{}' -C '{}' --exclude='./dev/*' &&", tar.display(), folder.display());
                (folder, unpack)
            }
        };
        let script = format!(
            "{unpack} mke2fs -q -t ext4 -L {} -m 0 -J size={} -E offset={},root_owner=0:0 -d '{}' '{}' {}M",
            self.label,
            self.journal_mib,
            self.root_start(),
            folder.display(),
            raw.display(),
            self.root_mib
        );
        run::output(as_root_of_files().args(["sh", "-c", &script]))?;
        Ok(())
    }
}

/// Files must belong to root: who is not gets a user namespace in which it is.
fn as_root_of_files() -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new("env");
    }
    run::words("unshare --map-root-user --map-auto")
}

/// An entry of the partition table; addresses by cylinder are long dead, and set to their maximum.
fn entry(active: u8, kind: u8, start: u64, sectors: u64) -> [u8; 16] {
    let mut entry = [active, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    entry[8..12].copy_from_slice(&(start as u32).to_le_bytes());
    entry[12..].copy_from_slice(&(sectors as u32).to_le_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_16_bytes_little_endian() {
        let entry = entry(0x80, 0x0c, 2048, 65536);
        assert_eq!(entry[0], 0x80);
        assert_eq!(entry[4], 0x0c);
        assert_eq!(entry[8..], [0, 8, 0, 0, 0, 0, 1, 0]);
    }
}
