//! Who may write to a disk: processes that hold QEMU's lock for writing on it, as the kernel shows their locks.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// The byte that QEMU locks while it may write: 100, and one for the second of its permissions.
const WRITES: u64 = 101;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The most that had it at once.
    pub most: usize,
    /// All that ever had it.
    pub writers: BTreeSet<i32>,
    /// Each time that they were others than before.
    pub changes: Vec<BTreeSet<i32>>,
    pub looks: u64,
}

pub struct Poller {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Poller {
    /// Looks at this disk until the end, every few milliseconds.
    pub fn of(disk: &Path) -> Poller {
        let file = std::fs::metadata(disk).unwrap();
        let file = (file.dev(), file.ino());
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let (into, until) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let now = writers(file);
                let mut seen = into.lock().unwrap();
                seen.looks += 1;
                seen.most = seen.most.max(now.len());
                seen.writers.extend(&now);
                if seen.changes.last() != Some(&now) {
                    seen.changes.push(now);
                }
                drop(seen);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Poller { seen, stop, thread: Some(thread) }
    }

    /// Who has it now.
    pub fn now(&self) -> BTreeSet<i32> {
        self.seen.lock().unwrap().changes.last().cloned().unwrap_or_default()
    }

    /// All that was seen.
    pub fn end(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn writers(file: (u64, u64)) -> BTreeSet<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|pid| is_qemu(*pid) && writes(*pid, file)).collect()
}

fn is_qemu(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with(b"qemu-system"))
}

fn writes(pid: i32, file: (u64, u64)) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|entry| entry.file_name().into_string().ok()).any(|number| {
        let open = std::fs::metadata(format!("/proc/{pid}/fd/{number}"));
        let same = open.is_ok_and(|open| (open.dev(), open.ino()) == file);
        same && std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))
            .is_ok_and(|info| info.lines().any(locks_it))
    })
}

/// `lock: 1: OFDLCK ADVISORY  READ -1 fe:00:10125418 100 101`: locks side by side are shown as one.
fn locks_it(line: &str) -> bool {
    let Some(lock) = line.strip_prefix("lock:") else { return false };
    let mut words = lock.split_whitespace().rev().map(str::parse::<u64>);
    let (Some(Ok(last)), Some(Ok(first))) = (words.next(), words.next()) else { return false };
    (first..=last).contains(&WRITES)
}
