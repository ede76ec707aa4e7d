//! Guests: one QEMU process and one folder each.
//!
//! The folder holds what an operator may want to read: `command` (the exact command line), `seed.iso`,
//! `console.log`, `qemu.log` (what QEMU itself printed), `boot.json`, `pid`. Lines of `drop-in/*.args` are
//! appended to the command line, one argument a line, `#` begins a comment: the agent never touches them.

pub mod argv;
pub mod boot;
pub mod process;
pub mod qmp;
pub mod seed;

mod copy;
mod edited;
mod guarded;
mod guest;
mod holder;
mod processes;
mod start;

pub use boot::BootRecord;
pub use guarded::{GUARD, is_marked};
pub use processes::{ObservedGuest, Processes};
pub use start::{Beneath, Start, program};

use crate::console_log::ConsoleLog;
use crate::drivers::DriverError;
use crate::{files, names};
use guest::Guest;
use process::Identity;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// What is there of one instance.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedInstance {
    /// The instance's id: the folder's name.
    pub id: String,
    /// The present or last boot.
    pub boot: Option<BootRecord>,
    /// The process, while it runs.
    pub process: Option<ObservedProcess>,
}

/// A QEMU that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedProcess {
    /// Its number.
    pub pid: u32,
    /// True if the guest's clock stands still.
    pub paused: bool,
}

/// Something happened to this instance: look again.
pub type Bell = mpsc::UnboundedSender<String>;

/// Starts, watches, stops and removes guests.
#[derive(Debug)]
pub struct InstanceDriver {
    state: PathBuf,
    bell: Bell,
    /// The agent's own program, which is the guard too.
    agent: String,
    guests: Mutex<HashMap<String, Arc<Guest>>>,
    processes: Processes,
    /// Files that were read to see whether they are as they were written.
    read: Mutex<HashMap<PathBuf, edited::Read>>,
}

impl InstanceDriver {
    /// `bell` is rung with an instance's id when its process or its QEMU says something.
    pub fn new(state: &Path, bell: Bell) -> Self {
        let agent = guarded::OWN_PROGRAM.to_owned();
        Self {
            state: state.to_owned(),
            bell,
            agent,
            guests: Mutex::default(),
            processes: Processes::default(),
            read: Mutex::default(),
        }
    }

    /// The same, with another program as the guard than the one that runs.
    pub fn guarded_by(self, agent: String) -> Self {
        Self { agent, ..self }
    }

    /// Every QEMU that runs on this node, ours or not.
    pub fn processes(&self) -> Vec<ObservedGuest> {
        self.processes.guests()
    }

    /// All instances that have a folder here, running or not.
    pub fn ids(&self) -> Result<BTreeSet<String>, DriverError> {
        let root = self.state.join("instances");
        match std::fs::read_dir(&root) {
            Ok(entries) => {
                Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(DriverError::io(format!("read {}", root.display()), &error)),
        }
    }

    /// One instance; None if nothing of it is there.
    pub async fn observe_one(&self, id: &str) -> Option<ObservedInstance> {
        let folder = self.folder(id);
        if !folder.is_dir() {
            self.lock().remove(id);
            return None;
        }
        let boot = BootRecord::read(&folder.join("boot.json"));
        let process = self
            .guest(id)
            .await
            .map(|guest| ObservedProcess { pid: guest.identity.pid, paused: guest.is_paused() });
        Some(ObservedInstance { id: id.to_owned(), boot, process })
    }

    /// The running guest, adopted now if this agent did not know it yet.
    async fn guest(&self, id: &str) -> Option<Arc<Guest>> {
        let known = self.lock().get(id).cloned();
        if let Some(guest) = known {
            if guest.identity.is_alive() {
                guest.ensure_connected().await;
                return Some(guest);
            }
            self.lock().remove(id);
        }
        let identity = Identity::read(&self.folder(id).join("pid")).filter(Identity::is_alive)?;
        tracing::info!(instance = id, pid = identity.pid, "adopted a running guest");
        self.attend(id, identity).ok()
    }

    /// Begins to watch a process and to speak with its QEMU.
    fn attend(&self, id: &str, identity: Identity) -> io::Result<Arc<Guest>> {
        let socket = argv::socket(&self.state, id, "qmp.sock");
        let guest = Guest::attend(id, identity, socket, self.bell.clone())?;
        self.lock().insert(id.to_owned(), guest.clone());
        Ok(guest)
    }

    /// Presses the guest's power button, and remembers that it was this agent who did.
    pub async fn press_power(&self, id: &str, now_ms: u64) -> Result<(), DriverError> {
        self.remember_stop(id, now_ms)?;
        self.command(id, "system_powerdown", json!({})).await
    }

    /// Ends the guest's process at once. It is gone when this returns.
    pub async fn kill(&self, id: &str, now_ms: u64) -> Result<(), DriverError> {
        self.remember_stop(id, now_ms)?;
        let Some(identity) = Identity::read(&self.folder(id).join("pid")).filter(Identity::is_alive) else {
            return Ok(());
        };
        let failed = |error: io::Error| DriverError::io(format!("end QEMU {}", identity.pid), &error);
        let exit = match identity.watch() {
            Ok(exit) => exit,
            // It ended by itself in this very moment.
            Err(_) if !identity.is_alive() => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        identity.kill().or_else(|error| if identity.is_alive() { Err(failed(error)) } else { Ok(()) })?;
        exit.wait().await;
        self.lock().remove(id);
        Ok(())
    }

    /// Stops the guest's clock.
    pub async fn pause(&self, id: &str) -> Result<(), DriverError> {
        self.command(id, "stop", json!({})).await
    }

    /// Lets the guest's clock run.
    pub async fn resume(&self, id: &str) -> Result<(), DriverError> {
        self.command(id, "cont", json!({})).await
    }

    /// Grows a disk under a running guest.
    pub async fn resize_disk(&self, id: &str, disk_id: &str, size_bytes: u64) -> Result<(), DriverError> {
        let boot = BootRecord::read(&self.folder(id).join("boot.json"));
        let index = boot
            .and_then(|boot| boot.order.disks.iter().position(|disk| disk.disk_id == disk_id))
            .ok_or_else(|| {
                DriverError::Retry(format!("{id} was not booted with {disk_id}; grown at its next stop"))
            })?;
        let arguments = json!({"node-name": argv::disk_node(index), "size": size_bytes});
        self.command(id, "block_resize", arguments).await
    }

    async fn command(&self, id: &str, name: &str, arguments: Value) -> Result<(), DriverError> {
        self.ask(id, name, arguments).await.map(drop)
    }

    async fn ask(&self, id: &str, name: &str, arguments: Value) -> Result<Value, DriverError> {
        let Some(guest) = self.guest(id).await else {
            return Err(DriverError::Retry(format!("{name}: no QEMU runs for {id}")));
        };
        guest.execute(name, arguments).await.map_err(|error| DriverError::Retry(format!("{name}: {error}")))
    }

    /// Ends the guest and removes everything made for it.
    pub async fn remove(&self, id: &str, now_ms: u64) -> Result<(), DriverError> {
        if !names::is_safe_id(id) {
            return Err(DriverError::Permanent(format!("{id:?} cannot be an id")));
        }
        if self.folder(id).is_dir() {
            self.kill(id, now_ms).await?;
        }
        for folder in [names::run_folder(&self.state, id), self.folder(id)] {
            files::remove_folder_if_there(&folder)
                .map_err(|error| DriverError::io(format!("remove {}", folder.display()), &error))?;
        }
        Ok(())
    }

    /// What was written for this instance, by file name.
    pub fn rendered(&self, id: &str) -> BTreeMap<String, String> {
        let folder = self.folder(id);
        let mut texts = BTreeMap::new();
        if let Ok(command) = std::fs::read_to_string(folder.join("command")) {
            texts.insert("command".to_owned(), command);
        }
        if let Some(boot) = BootRecord::read(&folder.join("boot.json")) {
            for (name, text) in seed::texts(id, &boot.order, &[]) {
                texts.insert(format!("seed/{name}"), text);
            }
        }
        texts
    }

    /// Cuts console logs that have grown too large.
    pub fn trim_logs(&self, id: &str) {
        for name in ["console.log", "qemu.log"] {
            if let Err(error) = ConsoleLog::at(&self.folder(id).join(name)).trim() {
                tracing::warn!(instance = id, %error, "cannot trim {name}");
            }
        }
    }

    fn remember_stop(&self, id: &str, now_ms: u64) -> Result<(), DriverError> {
        let path = self.folder(id).join("boot.json");
        let Some(mut boot) = BootRecord::read(&path) else { return Ok(()) };
        if boot.stop_asked_at_ms == 0 {
            boot.stop_asked_at_ms = now_ms;
            boot.write(&path)
                .map_err(|error| DriverError::io(format!("write {}", path.display()), &error))?;
        }
        Ok(())
    }

    fn folder(&self, id: &str) -> PathBuf {
        names::instance_folder(&self.state, id)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Guest>>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
