//! Guests that run only while the node holds a lease: marked by a file in their folder, for the guard (`guard.rs`), which
//! ends them in time whatever becomes of the agent.

use super::process::{Identity, Launch, launch};
use super::{BootRecord, InstanceDriver};
use crate::drivers::DriverError;
use crate::{files, lease};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::path::Path;

/// The file that marks an instance.
const MARK: &str = "guarded";
/// The guard's pid file, beside the lease.
pub const GUARD: &str = "guard";
/// The program that runs, also when its file was replaced by a newer one.
pub(super) const OWN_PROGRAM: &str = "/proc/self/exe";

/// Whether the instance with this folder is marked.
pub fn is_marked(folder: &Path) -> bool {
    folder.join(MARK).exists()
}

impl InstanceDriver {
    /// The guest that runs is marked from now on, or not any more.
    pub fn guard_running(&self, id: &str, guarded: bool) -> Result<(), DriverError> {
        let folder = self.folder(id);
        let failed = |error: io::Error| DriverError::io(format!("mark {}", folder.display()), &error);
        // The record comes last, so that whatever is cut short is done again.
        if guarded {
            mark(&self.state, &folder, &self.agent)?;
        } else {
            files::remove_if_there(&folder.join(MARK)).map_err(failed)?;
        }
        let path = folder.join("boot.json");
        let Some(mut boot) = BootRecord::read(&path) else { return Ok(()) };
        boot.order.ha_restart = guarded;
        boot.write(&path).map_err(failed)
    }

    /// A guard that was ended, or that went down with the machine, is started again, if there is anything to guard.
    pub fn keep_guard(&self) {
        let Ok(ids) = self.ids() else { return };
        if ids.iter().any(|id| is_marked(&self.folder(id)))
            && let Err(error) = ensure_guard(&self.state, &self.agent)
        {
            tracing::error!(%error, "there is no guard; guests marked for being restarted elsewhere depend on this agent");
        }
    }
}

/// Marks an instance, and sees to it that there is a guard.
pub(super) fn mark(state: &Path, folder: &Path, agent: &str) -> Result<(), DriverError> {
    // First the mark, then a look at the guard: one that is about to end because nothing was marked looks again after
    // it has taken its pid file away.
    fs::write(folder.join(MARK), b"")
        .map_err(|error| DriverError::io(format!("mark {}", folder.display()), &error))?;
    ensure_guard(state, agent).map_err(|error| {
        DriverError::Retry(format!(
            "no-guard: the process that ends this guest when the node's lease does cannot be started: {error}"
        ))
    })
}

/// Takes the mark away, if there is one.
pub(super) fn unmark(folder: &Path) -> Result<(), DriverError> {
    files::remove_if_there(&folder.join(MARK))
        .map(drop)
        .map_err(|error| DriverError::io(format!("unmark {}", folder.display()), &error))
}

fn ensure_guard(state: &Path, agent: &str) -> io::Result<()> {
    let folder = lease::folder(state);
    let pid_file = folder.join(GUARD);
    if Identity::read(&pid_file).is_some_and(|guard| guard.is_alive()) {
        return Ok(());
    }
    fs::create_dir_all(&folder)?;
    let arguments = ["guard".to_owned(), "--state-dir".to_owned(), state.display().to_string()];
    let guard = launch(&Launch {
        program: agent,
        arguments: &arguments,
        folder: &folder,
        pid_file: &pid_file,
        output: &folder.join("guard.log"),
        keep: &[],
        not_after: None,
    })?;
    tracing::info!(pid = guard.pid, "the guard was started");
    // It may end before this agent does, and somebody has to hear of it.
    let pid = Pid::from_raw(guard.pid.cast_signed());
    let waiting = std::thread::Builder::new().name("guard".to_owned()).stack_size(64 << 10);
    waiting.spawn(move || waitpid(pid, None)).map(drop)
}
