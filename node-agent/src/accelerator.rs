//! Which accelerator guests get. `auto` proves KVM by running a guest for a moment: there are machines whose
//! `/dev/kvm` opens and on which yet no ordinary kernel boots.
//!
//! The guest is a boot sector that does what every kernel does early: firmware must load it from a disk, then it
//! switches to long mode with paging, works for a while, asks the processor who it is, takes an interrupt of the timer,
//! and says so on the serial port. A real-mode stub alone would pass where kernels fail. The work is an instant for a
//! processor and a fraction of a second for an emulator: there are machines whose KVM looks at each instruction of a
//! kernel by itself, so that none comes to an end.

use crate::drivers::instance::process::host_boot_id;
use crate::{files, names};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// KVM takes a fifth of a second for this; emulation not much longer.
const DEADLINE: Duration = Duration::from_secs(3);
/// What the guest says.
const MARKER: &[u8] = b"RZOK";
/// Firmware takes no smaller disk for one.
const DISK_BYTES: usize = 1 << 20;

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// KVM where it is proven to work, else emulation.
    Auto,
    /// KVM, unproven.
    Kvm,
    /// Emulation.
    Tcg,
}

/// What guests get, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accelerator {
    /// "kvm", "tcg", or "none" when no QEMU is there.
    pub name: String,
    /// One line.
    pub reason: String,
}

/// Kept for as long as machine and QEMU are the same.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    qemu: String,
    accelerator: Accelerator,
}

/// Chooses. `qemu` is QEMU's version line, or None if there is none; what was found out is kept under `state`.
pub async fn choose(wanted: Wanted, program: &str, qemu: Option<&str>, state: &Path) -> Accelerator {
    let chosen = |name: &str, reason: String| Accelerator { name: name.to_owned(), reason };
    let Some(qemu) = qemu else {
        return chosen("none", "no QEMU on this machine".into());
    };
    match wanted {
        Wanted::Kvm => return chosen("kvm", "configured; not proven".into()),
        Wanted::Tcg => return chosen("tcg", "configured".into()),
        Wanted::Auto => {}
    }
    let file = state.join("accelerator.json");
    let boot_id = host_boot_id();
    let kept = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
    if let Some(kept) = kept.filter(|kept| kept.boot_id == boot_id && kept.qemu == qemu) {
        return kept.accelerator;
    }
    let accelerator = match prove(program, "kvm", state).await {
        Ok(()) => chosen("kvm", "a test guest ran under KVM".into()),
        Err(why) => chosen("tcg", format!("{why}; guests are emulated, which is slow")),
    };
    let kept = Kept { boot_id, qemu: qemu.to_owned(), accelerator };
    let written = serde_json::to_vec_pretty(&kept).map_err(io::Error::from);
    if let Err(error) = written.and_then(|bytes| files::write_atomic(&file, &bytes)) {
        tracing::warn!(%error, "cannot keep which accelerator works; it is found out again at the next start");
    }
    kept.accelerator
}

/// Runs the test guest; the error says how far it came.
async fn prove(program: &str, accelerator: &str, state: &Path) -> Result<(), String> {
    if accelerator == "kvm"
        && let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm")
    {
        return Err(format!("/dev/kvm: {error}"));
    }
    let folder = names::run_root(state);
    let disk = folder.join(format!("probe-{accelerator}.img"));
    let mut bytes = GUEST.to_vec();
    bytes.resize(510, 0);
    bytes.extend([0x55, 0xaa]);
    bytes.resize(DISK_BYTES, 0);
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&disk, &bytes))
        .map_err(|error| format!("cannot write the test guest: {error}"))?;
    let result = run(program, accelerator, &disk).await;
    if let Err(error) = files::remove_if_there(&disk) {
        tracing::warn!(%error, "cannot remove the test guest");
    }
    result
}

async fn run(program: &str, accelerator: &str, disk: &Path) -> Result<(), String> {
    let file = disk.to_string_lossy().replace(',', ",,");
    let mut child = Command::new(program)
        .args(["-machine", &format!("q35,accel={accelerator},usb=off")])
        .args(["-cpu", if accelerator == "kvm" { "host" } else { "max" }])
        .args(["-m", "32", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args([
            "-blockdev",
            &format!("driver=raw,node-name=d,read-only=on,file.driver=file,file.filename={file}"),
        ])
        .args(["-device", "virtio-blk-pci,drive=d,bootindex=0"])
        .args(["-chardev", "stdio,id=c,signal=off", "-serial", "chardev:c"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let (Some(mut said), Some(mut complaint)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(format!("{program} has no output"));
    };
    let mut marker = [0_u8; MARKER.len()];
    let outcome = match tokio::time::timeout(DEADLINE, said.read_exact(&mut marker)).await {
        Ok(Ok(_)) if marker == MARKER => Ok(()),
        Ok(Ok(_)) => Err(format!("{accelerator}: a test guest spoke nonsense")),
        Ok(Err(_)) => {
            let mut text = String::new();
            let _ = complaint.read_to_string(&mut text).await;
            Err(format!("{accelerator}: QEMU ended: {}", text.lines().last().unwrap_or("it said nothing")))
        }
        Err(_) => Err(format!(
            "{accelerator}: a test guest did not come as far as a kernel's first steps within {} s, although \
             /dev/kvm opens",
            DEADLINE.as_secs()
        )),
    };
    if let Err(error) = child.kill().await {
        tracing::debug!(%error, "the test guest had ended already");
    }
    outcome
}

/// The boot sector, loaded at 0x7c00. Its source is `accelerator.S` beside this file; a test runs it.
#[rustfmt::skip]
const GUEST: [u8; 280] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfc, 0xbf, 0x00, 0x10,
    0xb9, 0x00, 0x10, 0x66, 0xf3, 0xab, 0x66, 0xc7, 0x06, 0x00, 0x10, 0x03, 0x20, 0x00, 0x00, 0x66,
    0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0x00, 0x00, 0x66, 0xc7, 0x06, 0x00, 0x30, 0x83, 0x00, 0x00,
    0x00, 0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6,
    0x21, 0xb0, 0xfe, 0xe6, 0x21, 0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, 0x0f, 0x20,
    0xe0, 0x0c, 0x20, 0x0f, 0x22, 0xe0, 0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x80, 0xcc,
    0x01, 0x0f, 0x30, 0x66, 0x0f, 0x01, 0x16, 0x08, 0x7d, 0x0f, 0x20, 0xc0, 0x66, 0x0d, 0x01, 0x00,
    0x00, 0x80, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0x7d, 0x7c, 0x00, 0x00, 0x08, 0x00, 0x31, 0xc0, 0x8e,
    0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0x00, 0x00, 0xbf, 0x00, 0x42, 0x00, 0x00, 0xb8,
    0xe8, 0x7c, 0x00, 0x00, 0x66, 0x89, 0x07, 0xb8, 0x08, 0x00, 0x00, 0x8e, 0x66, 0x89, 0x47, 0x02,
    0xc1, 0xe8, 0x10, 0x66, 0x89, 0x47, 0x04, 0x0f, 0x01, 0x1c, 0x25, 0x0e, 0x7d, 0x00, 0x00, 0xb9,
    0x80, 0xf0, 0xfa, 0x02, 0x89, 0x0c, 0x25, 0x00, 0x50, 0x00, 0x00, 0x03, 0x04, 0x25, 0x00, 0x50,
    0x00, 0x00, 0xff, 0xc9, 0x75, 0xee, 0x31, 0xc0, 0x0f, 0xa2, 0x0f, 0x31, 0x31, 0xdb, 0xfb, 0xf4,
    0x85, 0xdb, 0x74, 0xfb, 0xbe, 0xf0, 0x7c, 0x00, 0x00, 0xb9, 0x04, 0x00, 0x00, 0x00, 0x66, 0xba,
    0xf8, 0x03, 0xf3, 0x6e, 0xfa, 0xf4, 0xeb, 0xfc, 0xff, 0xc3, 0xb0, 0x20, 0xe6, 0x20, 0x48, 0xcf,
    0x52, 0x5a, 0x4f, 0x4b, 0x0f, 0x1f, 0x40, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00, 0x0f, 0x00, 0xf8, 0x7c, 0x00, 0x00, 0x0f, 0x02,
    0x00, 0x40, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::instance::program;

    #[tokio::test]
    async fn the_test_guest_does_what_it_says_where_guests_run() {
        let folder = tempfile::tempdir().unwrap();
        prove(&program(), "tcg", folder.path()).await.unwrap();
        let refused = prove(&program(), "no-such", folder.path()).await.unwrap_err();
        assert!(refused.contains("QEMU ended: ") && refused.contains("no-such"), "{refused}");
        assert_eq!(std::fs::read_dir(folder.path().join("run")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_choice_is_made_in_time_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let began = std::time::Instant::now();
        let chosen = choose(Wanted::Auto, &program(), Some("7.2"), folder.path()).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(["kvm", "tcg"].contains(&chosen.name.as_str()), "{chosen:?}");
        assert!(!chosen.reason.is_empty());
        let again = choose(Wanted::Auto, "/no/such/program", Some("7.2"), folder.path()).await;
        assert_eq!(again, chosen);
        assert_eq!(choose(Wanted::Auto, "x", None, folder.path()).await.name, "none");
    }
}
