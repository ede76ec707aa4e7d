//! The full guest: Debian with cloud-init, as mmdebstrap makes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::disk::{Plan, Root};
use super::recipe::Recipe;
use crate::run;

/// Runs inside mmdebstrap, with the root folder as its first argument.
const CUSTOMIZE: &str = include_str!("debian-customize.sh");
const SOURCES: &[&str] = &[CUSTOMIZE, include_str!("debian.rs"), include_str!("disk.rs")];

/// What the guest has beyond a minimal system.
const PACKAGES: &str = "linux-image-cloud-amd64,systemd-sysv,dbus,cloud-init,cloud-guest-utils,openssh-server,\
netplan.io,iproute2,iputils-ping,ca-certificates,sudo,acpid,e2fsprogs,udev,login,passwd,kmod,zstd,initramfs-tools";

const SYSLINUX: &str = "\
DEFAULT debian
PROMPT 0
TIMEOUT 0
LABEL debian
  KERNEL vmlinuz
  INITRD initrd.img
  APPEND root=LABEL=rhyzome-debian rw quiet edd=off console=ttyS0,115200
";

/// Builds the image, unless it is there and current.
pub fn build(out: &Path, install: bool) -> Result<()> {
    let Some(recipe) = Recipe::begin("debian", "cloud-init", SOURCES, out, install)? else { return Ok(()) };
    let syslinux = recipe.syslinux.unpack(&recipe.cache, install)?;
    let work = recipe.work.path();
    recipe.progress.step("mmdebstrap (a minute)");
    let tar = bootstrap(work)?;
    recipe.progress.step("making the disk");
    disk(work, &syslinux, &tar, out)?;
    recipe.finish(out)
}

/// The root file system as a tar, with kernel and initramfs in it.
fn bootstrap(work: &Path) -> Result<PathBuf> {
    let (tar, script) = (work.join("root.tar"), work.join("customize.sh"));
    fs::write(&script, CUSTOMIZE)?;
    let mode = if nix::unistd::geteuid().is_root() { "root" } else { "unshare" };
    let mut command = Command::new("mmdebstrap");
    command.arg(format!("--mode={mode}"));
    command.args(["--variant=minbase", "--quiet", &format!("--include={PACKAGES}")]);
    // Documentation is most of what nobody reads on a guest; copyright files stay.
    command.arg("--dpkgopt=path-exclude=/usr/share/man/*").arg("--dpkgopt=path-exclude=/usr/share/locale/*");
    command
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright");
    // Virtual machines have few drivers: a small initramfs loads faster, where the disk is read by firmware.
    command.arg(
        r#"--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d" && echo "MODULES=list
COMPRESS=zstd" >"$1/etc/initramfs-tools/conf.d/rhyzome" && mkdir -p "$1/etc/initramfs-tools" && printf "virtio_pci\nvirtio_blk\next4\n" >"$1/etc/initramfs-tools/modules""#,
    );
    command.arg(format!("--customize-hook=sh '{}' \"$1\"", script.display()));
    command.arg("bookworm").arg(&tar);
    run::output(command.env("TMPDIR", work))?;
    Ok(tar)
}

fn disk(work: &Path, syslinux: &Path, tar: &Path, out: &Path) -> Result<()> {
    let mut boot = Vec::new();
    for name in ["vmlinuz", "initrd.img"] {
        // The links at the root of a Debian name the newest kernel's files.
        let listing = run::output(
            Command::new("tar").args(["-tf"]).arg(tar).args(["--wildcards", &format!("./boot/{name}-*")]),
        )?;
        let member = listing.lines().next().with_context(|| format!("the system has no {name}"))?.to_owned();
        let path = work.join(name);
        run::output(Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(work).arg(&member))?;
        fs::rename(work.join(&member), &path)?;
        boot.push((path, name));
    }
    let config = work.join("syslinux.cfg");
    fs::write(&config, SYSLINUX)?;
    boot.push((config, "syslinux.cfg"));
    let plan = Plan {
        work,
        syslinux,
        boot_mib: 127,
        root_mib: 1920,
        boot: &boot,
        root: Root::Tar(tar),
        label: "rhyzome-debian",
        journal_mib: 32,
    };
    plan.build(out)
}
