//! The moment at which a program is executed, as the kernel tells it: fanotify's FAN_OPEN_EXEC, which comes from
//! within execve itself and names the process. No clock of ours has to be guessed from a file's time or from
//! /proc, whose times are whole ticks; what is added is the time in which this thread wakes, so figures are
//! rather too long than too short.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use nix::fcntl::AT_FDCWD;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};

/// One execution.
#[derive(Debug, Clone, Copy)]
pub struct Exec {
    /// By which process.
    pub pid: i32,
    /// When, for differences.
    pub at: Instant,
    /// When, for comparison with what other programs wrote down.
    pub time: SystemTime,
}

/// Watches one program.
pub struct Watch(Receiver<Exec>);

impl Watch {
    /// Begins to watch. Needs root.
    pub fn of(program: &Path) -> Result<Watch> {
        let group = Fanotify::init(
            InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC,
            EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC,
        )
        .context("the kernel does not let us watch executions (fanotify): run this as root")?;
        group
            .mark(MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_OPEN_EXEC, AT_FDCWD, Some(program))
            .with_context(|| format!("{} cannot be watched", program.display()))?;
        let (tell, told) = channel();
        // Ends with this process: nothing wakes a reader of fanotify but an event.
        std::thread::spawn(move || {
            while let Ok(events) = group.read_events() {
                let (at, time) = (Instant::now(), SystemTime::now());
                if events.iter().any(|event| tell.send(Exec { pid: event.pid(), at, time }).is_err()) {
                    return;
                }
            }
        });
        Ok(Watch(told))
    }

    /// Forgets what was seen until now.
    pub fn forget(&self) {
        while self.0.try_recv().is_ok() {}
    }

    /// The next execution of which `is_it` is true.
    pub fn next(&self, patience: Duration, is_it: impl Fn(&Exec) -> bool) -> Result<Exec> {
        let until = Instant::now() + patience;
        loop {
            match self.0.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(exec) if is_it(&exec) => return Ok(exec),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("nothing was executed within {} s", patience.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the watch on executions ended"),
            }
        }
    }
}
