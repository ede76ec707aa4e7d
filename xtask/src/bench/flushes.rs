//! How often server and agent wait for the disk: every fsync and fdatasync, seen by strace from outside, so that no
//! counter of the product is believed. Tracing slows both down; the counts are what is used, not the times.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::procfs;

/// A strace on some processes.
pub struct Trace {
    child: Child,
    file: PathBuf,
}

/// One wait for the disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Flush {
    /// When it began.
    pub time: SystemTime,
    /// The file.
    pub path: String,
}

impl Trace {
    /// Begins to trace, and returns once every process is.
    pub fn attach(pids: &[i32], file: &Path) -> Result<Trace> {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-y", "-ttt", "-e", "trace=fsync,fdatasync", "-o"]).arg(file);
        for pid in pids {
            command.arg("-p").arg(pid.to_string());
        }
        let child =
            command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().context("strace cannot be run")?;
        let mut trace = Trace { child, file: file.to_owned() };
        let until = Instant::now() + Duration::from_secs(10);
        while !pids.iter().all(|pid| is_traced(*pid)) {
            if Instant::now() > until || trace.child.try_wait()?.is_some() {
                bail!(
                    "strace cannot attach to the processes: is another tracer there, or kernel.yama.ptrace_scope 3?"
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(trace)
    }

    /// Ends it; answers all that was seen.
    pub fn end(mut self) -> Result<Vec<Flush>> {
        procfs::signal(self.child.id().cast_signed(), Signal::SIGINT);
        self.child.wait()?;
        Ok(fs::read_to_string(&self.file)?.lines().filter_map(parse).collect())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // It detaches from what it traces; gone already after `end`.
        if matches!(self.child.try_wait(), Ok(None)) {
            procfs::signal(self.child.id().cast_signed(), Signal::SIGINT);
            let _ = self.child.wait();
        }
        let _ = fs::remove_file(&self.file);
    }
}

/// Every thread of it.
fn is_traced(pid: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|of| of.trim() != "0"))
    })
}

/// `TID SECONDS fdatasync(FD</path>) = 0`, or its first half.
fn parse(line: &str) -> Option<Flush> {
    let mut words = line.split_whitespace().skip(1);
    let since: f64 = words.next()?.parse().ok()?;
    let call = words.next()?;
    let (name, descriptor) = call.split_once('(')?;
    let path = descriptor.split_once('<')?.1.split('>').next()?;
    matches!(name, "fsync" | "fdatasync")
        .then(|| Flush { time: UNIX_EPOCH + Duration::from_secs_f64(since), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_strace_are_read() {
        let whole = parse("4711 1700000000.250000 fdatasync(11</srv/a.db-wal>) = 0").unwrap();
        assert_eq!(whole.path, "/srv/a.db-wal");
        assert_eq!(whole.time, UNIX_EPOCH + Duration::from_millis(1_700_000_000_250));
        assert!(parse("4711 1700000000.25 fsync(3</a/b> <unfinished ...>").is_some());
        assert_eq!(parse("4711 1700000000.25 <... fsync resumed>) = 0"), None);
        assert_eq!(parse("4711 1700000000.25 +++ exited with 0 +++"), None);
    }
}
