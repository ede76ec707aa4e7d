//! The node's lease: granted by a server for a while, counted by a clock that goes on while the machine sleeps. Guests
//! that are marked for being restarted elsewhere run only while it holds.
//!
//! It counts from when the heartbeat was sent that it answers, so whatever delays the answer makes it shorter. It stands
//! in a file, for the guard (`guard.rs`) and for the next process of the agent, and is in force from then on only.

use crate::files;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a lease is asked for while one is needed.
pub const ASK_EVERY: Duration = Duration::from_secs(5);
/// So long before its end the agent stops what runs by it, in order and with a record.
const STOP_BEFORE: Duration = Duration::from_secs(3);
/// So long before its end the guard kills what still does.
pub const KILL_BEFORE: Duration = Duration::from_secs(1);
/// Nothing is started by a lease that ends sooner than this.
const START_BEFORE: Duration = Duration::from_secs(6);

/// What the lease allows at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    /// There is none, or it is about to end: what runs by it has to stop.
    #[default]
    Over,
    /// What runs goes on, and nothing is started.
    Ending,
    /// Guests run and start.
    Held,
}

/// The lease of one node, as its agent knows it.
#[derive(Debug)]
pub struct Lease {
    folder: PathBuf,
    host_boot_id: String,
    until: Duration,
}

impl Lease {
    /// The one that an earlier process of the agent has left, if any. `host_boot_id`: in another boot of the machine
    /// its clock began anew, and no guest of before runs.
    pub fn open(state: &Path, host_boot_id: &str) -> Lease {
        let until = kept(state, host_boot_id).unwrap_or_default();
        Lease { folder: folder(state), host_boot_id: host_boot_id.to_owned(), until }
    }

    /// It holds until then, unless it holds for longer anyway. In force once it is written.
    pub fn extend(&mut self, until: Duration) -> io::Result<()> {
        if until <= self.until {
            return Ok(());
        }
        std::fs::create_dir_all(&self.folder)?;
        let text = format!("{} {}\n", self.host_boot_id, until.as_millis());
        files::write_atomic(&self.folder.join(FILE), text.as_bytes())?;
        self.until = until;
        Ok(())
    }

    /// What it allows at this moment.
    pub fn standing(&self, now: Duration) -> Standing {
        standing(now, self.until)
    }

    /// How long until it allows less than at this moment, if nobody extends it.
    pub fn changes_in(&self, now: Duration) -> Option<Duration> {
        [START_BEFORE, STOP_BEFORE]
            .into_iter()
            .map(|before| self.until.saturating_sub(before).saturating_sub(now))
            .find(|left| !left.is_zero())
    }
}

/// What a lease until then allows now.
pub fn standing(now: Duration, until: Duration) -> Standing {
    if now + START_BEFORE < until {
        Standing::Held
    } else if now + STOP_BEFORE < until {
        Standing::Ending
    } else {
        Standing::Over
    }
}

const FILE: &str = "until";

/// Where lease and guard have their files.
pub fn folder(state: &Path) -> PathBuf {
    state.join("lease")
}

/// Until when the lease holds that stands in the file; none if there is none of this boot of the machine.
pub fn kept(state: &Path, host_boot_id: &str) -> Option<Duration> {
    let text = std::fs::read_to_string(folder(state).join(FILE)).ok()?;
    let (boot, millis) = text.trim().split_once(' ')?;
    (boot == host_boot_id).then(|| millis.parse().ok().map(Duration::from_millis)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_ends_for_the_agent_before_it_ends_for_the_guard_before_it_ends() {
        let until = at(100);
        let of = |now| standing(at(now), until);
        assert_eq!(
            [of(0), of(93), of(94), of(96), of(97), of(1000)].map(|it| format!("{it:?}")),
            ["Held", "Held", "Ending", "Ending", "Over", "Over"]
        );
        assert!(KILL_BEFORE < STOP_BEFORE && STOP_BEFORE < START_BEFORE);
    }

    #[test]
    fn it_is_there_after_a_restart_and_not_after_a_reboot() {
        let folder = tempfile::tempdir().unwrap();
        let mut lease = Lease::open(folder.path(), "boot-1");
        assert_eq!(lease.standing(Duration::ZERO), Standing::Over);
        lease.extend(at(50)).unwrap();
        assert_eq!((lease.standing(at(40)), lease.changes_in(at(40))), (Standing::Held, Some(at(4))));
        assert_eq!(lease.changes_in(at(45)), Some(at(2)));
        assert_eq!(lease.changes_in(at(60)), None);
        // What comes late does not shorten what was granted since.
        lease.extend(at(20)).unwrap();
        assert_eq!(lease.standing(at(40)), Standing::Held);
        assert_eq!(Lease::open(folder.path(), "boot-1").standing(at(40)), Standing::Held);
        assert_eq!(Lease::open(folder.path(), "boot-2").standing(at(0)), Standing::Over);
    }

    #[test]
    fn what_cannot_be_written_is_not_in_force() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("lease"), "in the way").unwrap();
        let mut lease = Lease::open(folder.path(), "boot");
        assert!(lease.extend(at(50)).is_err());
        assert_eq!(lease.standing(Duration::ZERO), Standing::Over);
    }
}
