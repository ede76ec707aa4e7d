//! Processes that are not children of the agent: known by their number *and* their start time, because the
//! kernel gives numbers out again.

use nix::libc;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Identifies this boot of the node.
pub fn host_boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// One process, and no later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// In clock ticks since the machine came up.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has number `pid` now; none if nothing that runs has it.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; what follows the last one is numbers.
        let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
        // A zombie holds its number but is no longer a process that does anything.
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Self { pid, start_time: fields.nth(18)?.parse().ok()? })
    }

    /// True while exactly this process runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Its command line, word by word.
    pub fn command_line(self) -> Vec<String> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }

    /// Sends `signal`; false if the process is gone. Never hits another one that took its number.
    #[allow(unsafe_code)]
    pub fn signal(self, signal: nix::sys::signal::Signal) -> io::Result<bool> {
        let Some(handle) = self.handle()? else { return Ok(false) };
        // SAFETY: the descriptor is open; no siginfo is passed.
        let sent = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), signal as i32, 0usize, 0u32)
        };
        match nix::errno::Errno::result(sent) {
            Ok(_) => Ok(true),
            Err(nix::errno::Errno::ESRCH) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Ends it: asks, waits up to `patience`, then kills. Returns when it is gone.
    pub fn end(self, patience: Duration) -> io::Result<()> {
        use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
        for (signal, wait) in [(SIGTERM, patience), (SIGKILL, Duration::from_secs(5))] {
            if !self.signal(signal)? || self.wait(wait)? {
                return Ok(());
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {} does not end", self.pid)))
    }

    /// True once it has ended, false if it still runs after `timeout`.
    fn wait(self, timeout: Duration) -> io::Result<bool> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let deadline = Instant::now() + timeout;
        let Some(handle) = self.handle()? else { return Ok(true) };
        while self.is_alive() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut watched = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
            match poll(&mut watched, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    /// A descriptor that means this process, or none if it is gone.
    #[allow(unsafe_code)]
    fn handle(self) -> io::Result<Option<OwnedFd>> {
        // SAFETY: takes two plain numbers and answers a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid.cast_signed(), 0u32) };
        let fd = match nix::errno::Errno::result(fd) {
            Ok(fd) => libc::c_int::try_from(fd).map_err(io::Error::other)?,
            Err(nix::errno::Errno::ESRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // SAFETY: the kernel has just handed out this descriptor, and nobody else owns it.
        let handle = unsafe { OwnedFd::from_raw_fd(fd) };
        // Looked at after the descriptor was taken: from here on the number cannot change its owner unseen.
        Ok(self.is_alive().then_some(handle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_no_other() {
        let own = ProcessId::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert_eq!(own.command_line(), std::env::args().collect::<Vec<_>>());
        let other = ProcessId { start_time: own.start_time + 1, ..own };
        assert!(!other.is_alive());
        assert!(!other.signal(nix::sys::signal::Signal::SIGKILL).unwrap());
    }

    #[test]
    fn ending_a_process_waits_for_its_end() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        process.end(Duration::from_secs(5)).unwrap();
        assert!(!process.is_alive());
        process.end(Duration::from_secs(5)).unwrap();
        child.wait().unwrap();
    }
}
