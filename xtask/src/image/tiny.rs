//! The tiny guest: Debian's cloud kernel, busybox, and a boot script. It boots in seconds, even without KVM.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Cpio;
use super::debs::Deb;
use super::disk::{Plan, Root};
use super::modules::Modules;
use super::recipe::Recipe;
use crate::run;

const INITRD: &str = include_str!("tiny-initrd.sh");
const INIT: &str = include_str!("tiny-init.sh");
const UDHCPC: &str = include_str!("tiny-udhcpc.sh");
/// Everything here that has a say in what the image is.
const SOURCES: &[&str] =
    &[INITRD, INIT, UDHCPC, include_str!("tiny.rs"), include_str!("disk.rs"), include_str!("modules.rs")];

/// The long command line is all about time: each word saves the guest work that takes long without KVM.
const SYSLINUX: &str = "\
DEFAULT tiny
PROMPT 0
TIMEOUT 0
LABEL tiny
  KERNEL vmlinuz
  INITRD initrd
  APPEND console=ttyS0,115200 quiet loglevel=3 panic=5 edd=off mitigations=off nokaslr lsm= audit=0 \
cryptomgr.notests random.trust_cpu=on tsc=reliable no_timer_check noreplace-smp clearcpuid=smap initcall_blacklist=init_kprobe_trace
";

const INITTAB: &str = "\
::sysinit:/etc/rhyzome/boot
ttyS0::respawn:-/bin/sh
::ctrlaltdel:/sbin/reboot
::shutdown:/etc/rhyzome/halt
";

/// Whatever still writes keeps the root from becoming read-only, so it goes first.
const HALT: &str = "\
#!/bin/sh
echo 'Rhyzome tiny: going down' >/dev/console
sync
kill -TERM -1
usleep 100000
umount -a -r 2>/dev/null
sync
[ \"$1\" = poweroff ] && exec poweroff -f
";

/// Not by way of init, which would wait two seconds for processes that are gone.
const POWER_BUTTON: &str = "\
#!/bin/sh
exec /etc/rhyzome/halt poweroff
";

/// Needed to reach the root file system.
const BOOT_MODULES: &[&str] = &["virtio_pci", "virtio_blk"];
/// Needed later, or perhaps: network, seeds as ISO 9660 or FAT on other drives, power button.
const ROOT_MODULES: &[&str] = &[
    "virtio_net",
    "isofs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "button",
    "evdev",
    "virtio_scsi",
    "ata_piix",
    "sr_mod",
    "sd_mod",
    "virtio_rng",
];

/// Builds the image, unless it is there and current.
pub fn build(out: &Path, install: bool) -> Result<()> {
    let Some(recipe) = Recipe::begin("tiny", "busybox-static", SOURCES, out, install)? else { return Ok(()) };
    let unpack = |deb: &Deb| {
        recipe.progress.step(&format!("unpacking {}", deb.name));
        deb.unpack(&recipe.cache, install)
    };
    let parts = Parts {
        kernel: unpack(&recipe.kernel)?,
        busybox: unpack(&recipe.main)?,
        syslinux: unpack(&recipe.syslinux)?,
    };
    recipe.progress.step("making the disk");
    parts.disk(recipe.work.path(), out)?;
    recipe.finish(out)
}

/// The unpacked packages.
struct Parts {
    kernel: PathBuf,
    busybox: PathBuf,
    syslinux: PathBuf,
}

impl Parts {
    fn disk(&self, work: &Path, out: &Path) -> Result<()> {
        let root = work.join("tree");
        self.root(&root)?;
        let initrd = work.join("initrd");
        fs::write(&initrd, self.initrd()?)?;
        let config = work.join("syslinux.cfg");
        fs::write(&config, SYSLINUX)?;
        Plan {
            work,
            syslinux: &self.syslinux,
            boot_mib: 32,
            root_mib: 223,
            boot: &[(self.vmlinuz()?, "vmlinuz"), (initrd, "initrd"), (config, "syslinux.cfg")],
            root: Root::Folder(&root),
            label: "rhyzome-root",
            journal_mib: 4,
        }
        .build(out)
    }

    /// `lib/modules/VERSION` of the kernel.
    fn modules(&self) -> Result<PathBuf> {
        only_entry(&self.kernel.join("lib/modules"), "")
    }

    fn vmlinuz(&self) -> Result<PathBuf> {
        only_entry(&self.kernel.join("boot"), "vmlinuz-")
    }

    fn busybox(&self) -> PathBuf {
        self.busybox.join("bin/busybox")
    }

    /// The initramfs: just enough to find the root file system.
    fn initrd(&self) -> Result<Vec<u8>> {
        let modules = Modules::read(&self.modules()?, BOOT_MODULES)?;
        let mut cpio = Cpio::new();
        for folder in ["bin", "dev", "lib", "proc", "root", "sys"] {
            cpio.folder(folder);
        }
        cpio.file("init", 0o755, INITRD.as_bytes());
        cpio.file("bin/busybox", 0o755, &fs::read(self.busybox())?);
        for name in modules.order() {
            cpio.file(&format!("lib/{name}.ko"), 0o644, modules.bytes(name));
        }
        cpio.file("lib/order", 0o644, format!("{}\n", modules.order().join("\n")).as_bytes());
        Ok(cpio.finish())
    }

    /// The root file system.
    fn root(&self, root: &Path) -> Result<()> {
        let folders = "bin dev etc/acpi/PWRF etc/rhyzome lib proc root run sbin sys tmp usr/bin usr/sbin var/lib var/log";
        for folder in folders.split(' ') {
            fs::create_dir_all(root.join(folder))?;
        }
        let busybox = root.join("bin/busybox");
        fs::copy(self.busybox(), &busybox)?;
        for path in run::output(Command::new(&busybox).arg("--list-full"))?.lines() {
            let link = root.join(path);
            if !link.exists() && link.parent().is_some_and(Path::exists) {
                symlink("/bin/busybox", link)?;
            }
        }
        let files = [
            ("etc/inittab", 0o644, INITTAB),
            ("etc/hostname", 0o644, "tiny\n"),
            ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
            ("etc/group", 0o644, "root:x:0:\n"),
            ("etc/profile", 0o644, "export PATH=/usr/sbin:/usr/bin:/sbin:/bin PS1='\\h:\\w# '\n"),
            ("etc/rhyzome/boot", 0o755, INIT),
            ("etc/rhyzome/halt", 0o755, HALT),
            ("etc/rhyzome/udhcpc", 0o755, UDHCPC),
            ("etc/acpi/PWRF/00000080", 0o755, POWER_BUTTON),
        ];
        for (path, mode, content) in files {
            fs::write(root.join(path), content)?;
            fs::set_permissions(root.join(path), Permissions::from_mode(mode))?;
        }
        let kernel = self.modules()?;
        let version = kernel.file_name().context("the kernel has no version")?;
        Modules::read(&kernel, ROOT_MODULES)?.install(&root.join("lib/modules").join(version))
    }
}

/// The one entry of a folder whose name begins with `prefix`.
fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .with_context(|| format!("{} has no {prefix}*", folder.display()))
}
