//! The same files, asked of the real qemu-img: what it makes is accepted, and what is accepted it finds whole.
//!
//! qemu-img runs as `nobody` when the tests run as root: it gets to see hostile files here.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use rhyzome_imagefmt::{ImageInfo, Limits, Refusal, inspect_qcow2};
use support::{image, inspect};
use tempfile::TempDir;

const NOBODY: u32 = 65534;

struct Lab {
    folder: TempDir,
    root: bool,
}

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::metadata("/proc/self").map(|own| own.permissions().mode()).is_ok()
            && chown(folder.path(), Some(NOBODY), Some(NOBODY)).is_ok();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        Lab { folder, root }
    }

    fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new("qemu-img");
        command.args(arguments.split_whitespace()).current_dir(self.folder.path());
        if self.root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.output().expect("qemu-img is needed: apt-get install qemu-utils")
    }

    fn make(&self, arguments: &str) {
        let mut output = self.run(arguments);
        // For LUKS it counts how much of a processor's time its hashes take, and gives up if the kernel, which counts in
        // ticks, has seen none of it.
        for _ in 0..20 {
            if !String::from_utf8_lossy(&output.stderr).contains("Unable to get accurate CPU usage") {
                break;
            }
            output = self.run(arguments);
        }
        assert!(output.status.success(), "qemu-img {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn inspect(&self, name: &str) -> Result<ImageInfo, Refusal> {
        let mut file = File::open(self.folder.path().join(name)).unwrap();
        inspect_qcow2(&mut file, &Limits::default())
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Bytes that compress badly and some that are zero, of a length that fills no cluster.
    fn raw(&self) {
        let mut state = 1u32;
        let mut bytes: Vec<u8> = (0..900 * 512)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        bytes[70_000..200_000].fill(0);
        bytes[300_000..400_000].fill(7);
        fs::write(self.path().join("raw"), bytes).unwrap();
    }
}

#[test]
fn what_qemu_img_makes_is_accepted() {
    let lab = Lab::new();
    lab.raw();
    let makers = [
        "create -f qcow2 IMAGE 1G",
        "create -f qcow2 IMAGE 512",
        "create -f qcow2 -o compat=0.10 IMAGE 1G",
        "create -f qcow2 -o cluster_size=512 IMAGE 64M",
        "create -f qcow2 -o cluster_size=2M,refcount_bits=64 IMAGE 10G",
        "create -f qcow2 -o extended_l2=on IMAGE 1G",
        "create -f qcow2 -o preallocation=metadata IMAGE 64M",
        "create -f qcow2 -o preallocation=metadata,extended_l2=on IMAGE 64M",
        "create -f qcow2 -o preallocation=falloc IMAGE 8M",
        "create -f qcow2 IMAGE 16T",
        "convert -O qcow2 raw IMAGE",
        "convert -O qcow2 -c raw IMAGE",
        "convert -O qcow2 -c -o compression_type=zstd raw IMAGE",
        "convert -O qcow2 -o cluster_size=512 raw IMAGE",
        "convert -O qcow2 -c -o cluster_size=512 raw IMAGE",
        "convert -O qcow2 -o cluster_size=2M raw IMAGE",
        "convert -O qcow2 -o compat=0.10 raw IMAGE",
        "convert -O qcow2 -o extended_l2=on raw IMAGE",
        "convert -O qcow2 -S 0 raw IMAGE",
    ];
    for (number, maker) in makers.iter().enumerate() {
        let name = format!("{number}.qcow2");
        lab.make(&maker.replace("IMAGE", &name));
        let info = lab.inspect(&name).unwrap_or_else(|refusal| panic!("{maker}: {refusal}"));
        agrees(&lab, &name, &info);
    }
}

/// qemu-img says the same size, and finds nothing wrong.
fn agrees(lab: &Lab, name: &str, info: &ImageInfo) {
    let said = lab.run(&format!("info -f qcow2 --output=json {name}"));
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains(&format!("\"virtual-size\": {},", info.virtual_size_bytes)), "{name}: {said}");
    assert!(!said.contains("backing-filename") && !said.contains("data-file"), "{name}: {said}");
    lab.make(&format!("check -q -f qcow2 {name}"));
}

#[test]
fn snapshots_and_bitmaps_are_accepted() {
    let lab = Lab::new();
    lab.raw();
    lab.make("convert -O qcow2 raw some.qcow2");
    lab.make("snapshot -c one some.qcow2");
    lab.make("snapshot -c two some.qcow2");
    lab.make("bitmap --add some.qcow2 changes");
    let info = lab.inspect("some.qcow2").unwrap();
    agrees(&lab, "some.qcow2", &info);
}

#[test]
fn what_leads_elsewhere_is_refused() {
    let lab = Lab::new();
    lab.make("create -f qcow2 base.qcow2 1M");
    lab.make("create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2");
    assert!(matches!(lab.inspect("overlay.qcow2"), Err(Refusal::BackingFile)));
    // qemu-img truncates what data_file names: so it names a file of this folder.
    lab.make("create -f qcow2 -o data_file=data,data_file_raw=on external.qcow2 1M");
    assert!(matches!(lab.inspect("external.qcow2"), Err(Refusal::ExternalDataFile)));
    lab.make("create -f qcow2 -o lazy_refcounts=on lazy.qcow2 1M");
    lab.inspect("lazy.qcow2").unwrap();
    let secret =
        "--object secret,id=s,data=hush -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    lab.make(&format!("create -f qcow2 {secret} luks.qcow2 1M"));
    assert!(matches!(lab.inspect("luks.qcow2"), Err(Refusal::Encrypted)));
}

#[test]
fn our_own_image_is_whole_for_qemu_img_too() {
    let lab = Lab::new();
    fs::write(lab.path().join("own.qcow2"), image()).unwrap();
    let info = inspect(&image()).unwrap();
    agrees(&lab, "own.qcow2", &info);
}

/// One byte of the header changed, for each byte: whatever is still accepted, qemu-img opens, and with the same size.
#[test]
fn accepted_headers_open() {
    let lab = Lab::new();
    let mut accepted = 0;
    for at in 4..112 {
        let mut bytes = image();
        bytes[at] ^= 0x10;
        let Ok(info) = inspect(&bytes) else { continue };
        fs::write(lab.path().join("changed.qcow2"), &bytes).unwrap();
        let said = lab.run("info -f qcow2 --output=json changed.qcow2");
        assert!(said.status.success(), "byte {at}: {}", String::from_utf8_lossy(&said.stderr));
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(
            said.contains(&format!("\"virtual-size\": {},", info.virtual_size_bytes)),
            "byte {at}: {said}"
        );
        accepted += 1;
    }
    assert!(accepted > 0);
}
