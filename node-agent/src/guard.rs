//! The guard: a small process beside the agent that ends guests marked for being restarted elsewhere when the node's
//! lease does, whatever becomes of the agent. It is started before the first of them, in a session of its own and without
//! rights, outlives an agent that is stopped, killed or upgraded, and ends when no instance here is marked any more.
//!
//! It knows nothing but files: the lease (`lease/until`), marks and pid files of instances. It asks nobody.

use crate::drivers::instance::process::{Identity, host_boot_id};
use crate::drivers::instance::{GUARD, is_marked};
use crate::env::uptime;
use crate::{files, lease};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often it looks whether the lease was extended and who is marked.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// For how long guests may go on by a lease until then, if they may.
pub fn time_left(now: Duration, until: Option<Duration>) -> Option<Duration> {
    let left = until.unwrap_or_default().saturating_sub(lease::KILL_BEFORE).saturating_sub(now);
    (!left.is_zero()).then_some(left)
}

/// Guards the guests of the agent with this folder, until none is marked.
pub fn run(state: &Path) -> io::Result<()> {
    let boot = host_boot_id();
    loop {
        let folders = marked(state)?;
        if folders.is_empty() && leaves(state)? {
            return Ok(());
        }
        let now = uptime();
        let left = time_left(now, lease::kept(state, &boot));
        if left.is_none() {
            folders.iter().for_each(|folder| end(folder));
        }
        // By a clock that goes on while the machine sleeps: it is awake at once when the machine is.
        let next = now + left.unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
        let _ = clock_nanosleep(
            ClockId::CLOCK_BOOTTIME,
            ClockNanosleepFlags::TIMER_ABSTIME,
            &TimeSpec::from(next),
        );
    }
}

/// Folders of instances that are marked. An agent's folder that is gone has none.
fn marked(state: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(state.join("instances")) {
        Ok(entries) => {
            Ok(entries.flatten().map(|entry| entry.path()).filter(|path| is_marked(path)).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn end(folder: &Path) {
    let Some(guest) = Identity::read(&folder.join("pid")).filter(Identity::is_alive) else { return };
    match guest.kill() {
        Ok(()) => eprintln!("the node's lease is over: ended process {} of {}", guest.pid, folder.display()),
        Err(error) => eprintln!("process {} of {} cannot be ended: {error}", guest.pid, folder.display()),
    }
}

/// Takes the pid file away, then looks once more: whoever marks an instance looks for a guard after that. True if
/// nothing is marked even then.
fn leaves(state: &Path) -> io::Result<bool> {
    let pid_file = lease::folder(state).join(GUARD);
    if Identity::read(&pid_file).is_some_and(|guard| guard.pid == std::process::id()) {
        files::remove_if_there(&pid_file)?;
    }
    Ok(marked(state)?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_go_on_until_shortly_before_the_lease_ends() {
        let at = Duration::from_secs;
        assert_eq!(time_left(at(10), Some(at(20))), Some(at(9)));
        assert_eq!(time_left(at(19), Some(at(20))), None);
        assert_eq!(time_left(at(21), Some(at(20))), None);
        assert_eq!(time_left(at(0), None), None);
    }

    #[test]
    fn who_is_marked_is_ended_with_the_lease_and_nobody_else() {
        use crate::drivers::instance::process::{Launch, launch};
        let state = tempfile::tempdir().unwrap();
        let sleeper = |name: &str, marked: bool| {
            let folder = state.path().join("instances").join(name);
            std::fs::create_dir_all(&folder).unwrap();
            if marked {
                std::fs::write(folder.join("guarded"), b"").unwrap();
            }
            launch(&Launch {
                program: "sleep",
                arguments: &["600".into()],
                folder: &folder,
                pid_file: &folder.join("pid"),
                output: &folder.join("output"),
                keep: &[],
                not_after: None,
            })
            .unwrap()
        };
        let (one, other) = (sleeper("one", true), sleeper("other", false));
        let mut lease = lease::Lease::open(state.path(), &host_boot_id());
        let until = uptime() + Duration::from_secs(2);
        lease.extend(until).unwrap();
        let folder = state.path().to_owned();
        let guard = std::thread::spawn(move || run(&folder));
        while one.is_alive() {
            assert!(uptime() < until, "the lease is over and it still runs");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(uptime() + lease::KILL_BEFORE >= until, "it was ended too early");
        assert!(other.is_alive());
        std::fs::remove_file(state.path().join("instances/one/guarded")).unwrap();
        guard.join().unwrap().unwrap();
        other.kill().unwrap();
    }
}
