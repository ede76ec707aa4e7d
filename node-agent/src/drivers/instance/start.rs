//! From an order to a running QEMU.

use super::argv::{self, Machine};
use super::process::{Identity, Launch, host_boot_id, last_line, launch};
use super::{BootRecord, InstanceDriver, edited, guarded, holder, seed};
use crate::drivers::DriverError;
use crate::env::uptime;
use crate::host::tools;
use crate::{files, lease, names};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A QEMU that does not listen after this long is ended again.
const FIRST_CONTACT: Duration = Duration::from_secs(30);
/// For one whose control socket has closed to end.
const DYING: Duration = Duration::from_secs(2);

/// What to start.
#[derive(Debug)]
pub struct Start {
    /// The instance's id.
    pub id: String,
    /// What it is to be, and what is remembered about this boot.
    pub boot: BootRecord,
    /// One opened tap per nic, in the order's order.
    pub taps: Vec<OwnedFd>,
    /// Start with the guest's clock stopped.
    pub paused: bool,
    /// For each disk, in the order's order, the image beneath, where it is not where the disk's own file says: another
    /// node may have made that.
    pub beneath: Vec<Option<Beneath>>,
}

/// The image beneath a disk, on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beneath {
    /// Its file.
    pub path: PathBuf,
    /// "qcow2" or "raw".
    pub format: String,
}

impl InstanceDriver {
    /// Writes the instance's folder, runs QEMU, and returns once it answers.
    pub async fn start(&self, start: Start) -> Result<(), DriverError> {
        check(&start)?;
        let id = start.id.clone();
        let folder = names::instance_folder(&self.state, &id);
        if let Some(identity) = Identity::read(&folder.join("pid")).filter(Identity::is_alive) {
            return Err(DriverError::Retry(format!("{id} runs already, as process {}", identity.pid)));
        }
        let before = BootRecord::read(&folder.join("boot.json"));
        let started = self.launch(start, &folder).await;
        if started.is_err() {
            // It never ran: the record of the boot before tells the truth.
            restore(before, &folder.join("boot.json"));
        }
        started
    }

    async fn launch(&self, start: Start, folder: &Path) -> Result<(), DriverError> {
        let (id, state, agent) = (start.id.clone(), self.state.clone(), self.agent.clone());
        let identity = tokio::task::spawn_blocking(move || run(&state, &agent, &start))
            .await
            .map_err(|error| DriverError::Retry(format!("start: {error}")))??;
        tracing::info!(instance = %id, pid = identity.pid, "QEMU started");
        let output = folder.join("qemu.log");
        let ended = |detail: String| {
            let said = last_line(&output).unwrap_or(detail);
            DriverError::Retry(format!("QEMU ended at start: {said}"))
        };
        let guest = self.attend(&id, identity).map_err(|error| ended(error.to_string()))?;
        match guest.first_contact(FIRST_CONTACT).await {
            Ok(()) => Ok(()),
            Err(error) if has_ended(&identity).await => Err(ended(error.to_string())),
            Err(error) => {
                let _ = identity.kill();
                Err(DriverError::Retry(format!("QEMU does not answer, ended again: {error}")))
            }
        }
    }
}

/// Whether this was its end: its sockets close a moment before it is gone, and then it has said why.
async fn has_ended(identity: &Identity) -> bool {
    let until = tokio::time::Instant::now() + DYING;
    while identity.is_alive() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    !identity.is_alive()
}

fn restore(before: Option<BootRecord>, path: &Path) {
    let restored = match before {
        Some(before) => before.write(path),
        None => files::remove_if_there(path).map(drop),
    };
    if let Err(error) = restored {
        tracing::warn!(path = %path.display(), %error, "cannot restore the record of the boot before");
    }
}

fn check(start: &Start) -> Result<(), DriverError> {
    let order = &start.boot.order;
    if !names::is_safe_id(&start.id) {
        return Err(DriverError::Permanent(format!("{:?} cannot be an id", start.id)));
    }
    if !matches!(order.architecture.as_str(), "" | argv::ARCHITECTURE) {
        return Err(DriverError::Permanent(format!("unsupported architecture {:?}", order.architecture)));
    }
    if let Some(nic) = order.nics.iter().find(|nic| !is_mac(&nic.mac)) {
        return Err(DriverError::Permanent(format!("nic {}: {:?} is no MAC address", nic.name, nic.mac)));
    }
    if let Some(disk) = order.disks.iter().find(|disk| !names::is_safe_id(&disk.disk_id)) {
        return Err(DriverError::Permanent(format!("{:?} cannot be a disk id", disk.disk_id)));
    }
    if order.memory_bytes < 1 << 20 || order.vcpus == 0 {
        return Err(DriverError::Permanent("a guest needs at least 1 vCPU and 1 MiB of memory".into()));
    }
    Ok(())
}

fn is_mac(text: &str) -> bool {
    let mut parts = 0;
    let well_formed = text.split(':').all(|part| {
        parts += 1;
        part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    well_formed && parts == 6
}

fn run(state: &Path, agent: &str, start: &Start) -> Result<Identity, DriverError> {
    let folder = names::instance_folder(state, &start.id);
    let failed = |error: io::Error| DriverError::io(format!("write {}", folder.display()), &error);
    let drop_in = folder.join("drop-in");
    fs::create_dir_all(&drop_in).map_err(failed)?;
    for socket in ["qmp.sock", "console.sock"] {
        files::remove_if_there(&argv::socket(state, &start.id, socket)).map_err(failed)?;
    }
    fs::create_dir_all(names::run_folder(state, &start.id)).map_err(failed)?;
    let image = seed::iso(&seed::texts(&start.id, &start.boot.order, &start.boot.secrets))
        .map_err(DriverError::Permanent)?;
    files::write_atomic(&folder.join("seed.iso"), &image).map_err(failed)?;
    let not_after = if start.boot.order.ha_restart {
        guarded::mark(state, &folder, agent)?;
        Some(lease_end(state)?)
    } else {
        guarded::unmark(&folder)?;
        None
    };
    holder::note(state, &start.id, &start.boot)?;

    let additions = additions(&drop_in).map_err(failed)?;
    let taps: Vec<RawFd> = start.taps.iter().map(AsRawFd::as_raw_fd).collect();
    let arguments = argv::arguments(&Machine {
        id: &start.id,
        order: &start.boot.order,
        accelerator: &start.boot.accelerator,
        state,
        taps: &taps,
        paused: start.paused,
        beneath: &start.beneath,
        additions: &additions,
    });
    let program = program();
    files::write_atomic(&folder.join("command"), argv::readable(&program, &arguments).as_bytes())
        .map_err(failed)?;
    // Before the process exists: a record without a process is a crash, a process without one is a riddle.
    let mut boot = start.boot.clone();
    boot.files = edited::digests(&folder).map_err(failed)?;
    boot.write(&folder.join("boot.json")).map_err(failed)?;
    launch(&Launch {
        program: &program,
        arguments: &arguments,
        folder: &folder,
        pid_file: &folder.join("pid"),
        output: &folder.join("qemu.log"),
        keep: &taps,
        not_after,
    })
    .map_err(|error| DriverError::Retry(error.to_string()))
}

/// Until when a guest may be started that runs by the node's lease.
fn lease_end(state: &Path) -> Result<Duration, DriverError> {
    let until = lease::kept(state, &host_boot_id()).unwrap_or_default();
    let limit = until.saturating_sub(lease::KILL_BEFORE);
    match uptime() < limit {
        true => Ok(limit),
        false => {
            Err(DriverError::Retry("lease-lost: the node's lease ended before the guest was started".into()))
        }
    }
}

/// QEMU's program for guests of this agent's architecture.
pub fn program() -> String {
    let file = format!("qemu-system-{}", argv::ARCHITECTURE);
    tools::program(&file).to_string_lossy().into_owned()
}

/// The operator's own arguments: files in order of name, lines in order.
fn additions(drop_in: &Path) -> io::Result<Vec<String>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(drop_in)?.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "args"));
    paths.sort();
    let mut lines = Vec::new();
    for path in paths {
        let text = fs::read_to_string(path)?;
        let meant = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.extend(meant.map(ToOwned::to_owned));
    }
    Ok(lines)
}
