//! Processes of this machine, as /proc shows them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub pid: i32,
    /// Its command line.
    pub argv: Vec<String>,
    /// Its working directory, where it may be seen.
    pub cwd: String,
}

impl Seen {
    /// Its command line, as one would type it.
    pub fn line(&self) -> String {
        self.argv.join(" ")
    }

    /// Whether its command line or its working directory names `folder`, or something in it.
    pub fn names(&self, folder: &Path) -> bool {
        let folder = folder.to_string_lossy();
        self.argv.iter().chain([&self.cwd]).any(|text| mentions(text, &folder))
    }
}

/// Whether `text` names `folder`, and not only another whose name begins the same.
fn mentions(text: &str, folder: &str) -> bool {
    text.match_indices(folder).any(|(at, _)| {
        let after = text[at + folder.len()..].chars().next();
        !after.is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    })
}

/// All processes that are not zombies, but for this one.
pub fn all() -> Vec<Seen> {
    let own = std::process::id().cast_signed();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .filter_map(look)
        .collect()
}

/// Processes whose command line or working directory names `folder`.
pub fn of(folder: &Path) -> Vec<Seen> {
    all().into_iter().filter(|seen| seen.names(folder)).collect()
}

/// One process. Zombies and kernel threads have no command line: they are not there.
pub fn look(pid: i32) -> Option<Seen> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|bytes| !bytes.is_empty())?;
    let words = bytes.strip_suffix(&[0]).unwrap_or(&bytes).split(|byte| *byte == 0);
    let argv = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    Some(Seen { pid, argv, cwd: cwd.to_string_lossy().into_owned() })
}

/// Sends a signal. It is no failure if the process is gone already.
pub fn signal(pid: i32, signal: Signal) {
    // Another user's process cannot be signalled: then the wait for its end says so.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Ends these processes: asks, waits, and insists. Answers those that live on.
pub fn end(seen: &[Seen], patience: Duration) -> Vec<Seen> {
    let lives = |seen: &Seen| look(seen.pid).is_some_and(|now| now.argv == seen.argv);
    for (word, patience) in [(Signal::SIGTERM, patience), (Signal::SIGKILL, Duration::from_secs(5))] {
        seen.iter().filter(|seen| lives(seen)).for_each(|seen| signal(seen.pid, word));
        let until = Instant::now() + patience;
        while seen.iter().any(lives) {
            if Instant::now() > until {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    seen.iter().filter(|seen| lives(seen)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_named_whole() {
        assert!(mentions("--state-dir=/var/demo", "/var/demo"));
        assert!(mentions("file=/var/demo/disk.qcow2,if=none", "/var/demo"));
        assert!(mentions("path=/var/demo,server=on", "/var/demo"));
        assert!(!mentions("/var/demo2/disk", "/var/demo"));
        assert!(!mentions("/var/demo-old", "/var/demo"));
        assert!(mentions("/var/demo2 /var/demo", "/var/demo"));
    }
}
