//! QEMU as a process of the node: started so that it outlives the agent, found again without mistaking another
//! process for it, watched without polling.

use crate::env::uptime;
pub use crate::host::process::host_boot_id;
use crate::privileges;
use nix::libc;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its number.
    pub pid: u32,
    /// When it began, in the kernel's ticks since boot: survives exec, differs for a reused number.
    pub start_ticks: u64,
}

impl Identity {
    /// What is written in a pid file.
    pub fn read(pid_file: &Path) -> Option<Self> {
        let text = fs::read_to_string(pid_file).ok()?;
        let (pid, ticks) = text.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, start_ticks: ticks.parse().ok()? })
    }

    /// True while exactly this process runs (a zombie does not).
    pub fn is_alive(&self) -> bool {
        let Ok(stat) = fs::read(format!("/proc/{}/stat", self.pid)) else { return false };
        let mut fields = after_name(&stat).split(|byte| *byte == b' ');
        let state = fields.next().unwrap_or_default();
        let ticks = fields.nth(START_TICKS_AFTER_STATE).and_then(|text| str::from_utf8(text).ok());
        state != b"Z" && state != b"X" && ticks.and_then(|text| text.parse().ok()) == Some(self.start_ticks)
    }

    /// Kills exactly this process, at once.
    pub fn kill(&self) -> io::Result<()> {
        let handle = self.handle()?;
        send_kill(&handle)
    }

    /// A descriptor that becomes readable when the process ends.
    #[allow(unsafe_code)]
    pub fn watch(&self) -> io::Result<Exit> {
        let handle = self.handle()?;
        // SAFETY: an owned descriptor is open, and stays the same one until the `AsyncFd` is dropped with it.
        let handle = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE)? };
        Ok(Exit { pid: self.pid, handle })
    }

    fn handle(&self) -> io::Result<OwnedFd> {
        let handle = open_pidfd(self.pid)?;
        // The number may have been reused before the descriptor was taken, never after.
        if self.is_alive() { Ok(handle) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    }
}

/// Waits for one process.
#[derive(Debug)]
pub struct Exit {
    pid: u32,
    handle: AsyncFd<OwnedFd>,
}

impl Exit {
    /// Ends when the process has; says how it ended if it was a child of this agent.
    pub async fn wait(&self) -> Option<String> {
        // An error here is one of the reactor, at shutdown: nobody is left to tell.
        let _ = self.handle.readable().await;
        reap(self.pid)
    }
}

/// `/proc/PID/stat` counts the state as field 3 and the start time as field 22.
const START_TICKS_AFTER_STATE: usize = 18;

/// The fields after the name, which may itself hold spaces and brackets.
fn after_name(stat: &[u8]) -> &[u8] {
    let end = stat.iter().rposition(|byte| *byte == b')').map_or(stat.len(), |at| at + 2);
    stat.get(end..).unwrap_or_default()
}

/// What a new process is.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Name or path.
    pub program: &'a str,
    /// Without the program's own name.
    pub arguments: &'a [String],
    /// Working directory.
    pub folder: &'a Path,
    /// Written by the new process itself before it becomes the program.
    pub pid_file: &'a Path,
    /// Gets what the program prints.
    pub output: &'a Path,
    /// Descriptors that it keeps, under the same numbers.
    pub keep: &'a [RawFd],
    /// At this uptime of the machine it is too late: then nothing is run.
    pub not_after: Option<Duration>,
}

/// Starts a program in a session of its own, with no capabilities and no way to gain any.
///
/// The pid file is written between fork and exec: there is no moment at which the program runs and a restarted
/// agent could not find it.
pub fn launch(launch: &Launch<'_>) -> io::Result<Identity> {
    let private =
        |path: &Path| OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let output = private(launch.output)?;
    let pid_file = private(launch.pid_file)?;
    let mut command = Command::new(launch.program);
    command
        .args(launch.arguments)
        .current_dir(launch.folder)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    prepare(&mut command, pid_file.as_raw_fd(), launch.keep.to_vec(), launch.not_after);
    // Not waited for here: `Exit` reaps it, and init does if this agent is gone by then.
    #[allow(clippy::zombie_processes)]
    let child = command
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run {}: {error}", launch.program)))?;
    let identity = Identity::read(launch.pid_file);
    identity.filter(|identity| identity.pid == child.id()).ok_or_else(|| {
        io::Error::other(format!("{} was not written by process {}", launch.pid_file.display(), child.id()))
    })
}

#[allow(unsafe_code)]
fn prepare(command: &mut Command, pid_file: RawFd, keep: Vec<RawFd>, not_after: Option<Duration>) {
    // SAFETY: the closure runs between fork and exec of a threaded program, so it makes nothing but direct
    // system calls on memory that it owns: no allocation, no locks.
    unsafe {
        command.pre_exec(move || {
            write_identity(pid_file)?;
            if libc::setsid() == -1 {
                return Err(io::Error::last_os_error());
            }
            for descriptor in &keep {
                if libc::fcntl(*descriptor, libc::F_SETFD, 0) == -1 {
                    return Err(io::Error::last_os_error());
                }
            }
            privileges::drop_all_in_child()?;
            // Asked here, last of all: an agent that was stopped on its way does not stop this process with it.
            match not_after {
                Some(limit) if uptime() >= limit => Err(io::Error::from_raw_os_error(libc::ETIME)),
                _ => Ok(()),
            }
        });
    }
}

/// Writes "PID START_TICKS" of the calling process, on the stack alone.
#[allow(unsafe_code)]
fn write_identity(pid_file: RawFd) -> io::Result<()> {
    let mut buffer = [0_u8; 1024];
    // SAFETY: a constant C string, a buffer of the length given, descriptors opened here or handed in.
    let length = unsafe {
        let stat = libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if stat == -1 {
            return Err(io::Error::last_os_error());
        }
        let length = libc::read(stat, buffer.as_mut_ptr().cast(), buffer.len());
        libc::close(stat);
        length
    };
    let stat = buffer.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
    let pid = stat.split(|byte| *byte == b' ').next().unwrap_or_default();
    let mut fields = after_name(stat).split(|byte| *byte == b' ').skip(1);
    let ticks = fields.nth(START_TICKS_AFTER_STATE).unwrap_or_default();
    for part in [pid, b" ", ticks, b"\n"] {
        // SAFETY: a live slice and its own length.
        let written = unsafe { libc::write(pid_file, part.as_ptr().cast(), part.len()) };
        if usize::try_from(written).ok() != Some(part.len()) {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[allow(unsafe_code)]
fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes a number and flags, and returns a new descriptor that nobody else owns.
    unsafe {
        let descriptor = libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK);
        if descriptor == -1 {
            return Err(io::Error::last_os_error());
        }
        let number = RawFd::try_from(descriptor).map_err(io::Error::other)?;
        Ok(OwnedFd::from_raw_fd(number))
    }
}

#[allow(unsafe_code)]
fn send_kill(handle: &impl AsFd) -> io::Result<()> {
    let descriptor = handle.as_fd().as_raw_fd();
    // SAFETY: a live descriptor, a signal number, no siginfo, no flags.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, descriptor, libc::SIGKILL, std::ptr::null::<()>(), 0)
    };
    if sent == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Collects a child that has ended. None for a process that an earlier agent started.
fn reap(pid: u32) -> Option<String> {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Some(format!("exit code {code}")),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(format!("killed by {signal}")),
        _ => None,
    }
}

/// The last line that a program printed.
pub fn last_line(output: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(output).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(folder: &Path) -> Identity {
        launch(&Launch {
            program: "sleep",
            arguments: &["600".into()],
            folder,
            pid_file: &folder.join("pid"),
            output: &folder.join("output"),
            keep: &[],
            not_after: None,
        })
        .unwrap()
    }

    #[tokio::test]
    async fn a_process_is_known_watched_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let identity = sleeper(folder.path());
        assert!(identity.is_alive());
        assert!(!Identity { start_ticks: identity.start_ticks + 1, ..identity }.is_alive());
        assert_eq!(Identity::read(&folder.path().join("pid")), Some(identity));
        let status = fs::read_to_string(format!("/proc/{}/status", identity.pid)).unwrap();
        for set in ["CapEff", "CapPrm", "CapInh"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        let exit = identity.watch().unwrap();
        identity.kill().unwrap();
        assert_eq!(exit.wait().await.as_deref(), Some("killed by SIGKILL"));
        assert!(!identity.is_alive());
        assert!(identity.watch().is_err());
    }

    #[test]
    fn nothing_is_run_when_it_is_too_late() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let error = launch(&Launch {
            program: "sleep",
            arguments: &["600".into()],
            folder: path,
            pid_file: &path.join("pid"),
            output: &path.join("output"),
            keep: &[],
            not_after: Some(uptime()),
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "cannot run sleep: Timer expired (os error 62)");
        assert!(!Identity::read(&path.join("pid")).unwrap().is_alive());
    }

    #[test]
    fn a_missing_program_is_one_clear_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let error = launch(&Launch {
            program: "no-such-program",
            arguments: &[],
            folder: path,
            pid_file: &path.join("pid"),
            output: &path.join("output"),
            keep: &[],
            not_after: None,
        })
        .unwrap_err();
        assert!(error.to_string().starts_with("cannot run no-such-program: No such file"), "{error}");
    }
}
