//! What tests of tunnels look at: the process that is a device, and packets that go on through one.

use rhyzome_agent::host::process::ProcessId;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

fn processes() -> impl Iterator<Item = ProcessId> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| ProcessId::of(entry.file_name().to_str()?.parse().ok()?))
}

/// The process that is the device with this socket.
pub fn device(socket: &Path) -> ProcessId {
    let socket = socket.display().to_string();
    processes().find(|process| process.command_line().contains(&socket)).unwrap()
}

/// Ends whatever devices a test that fails has left in its folder.
pub fn end_devices(folder: &Path) {
    let folder = folder.display().to_string();
    let is_ours = |process: &ProcessId| {
        let words = process.command_line().join(" ");
        words.contains("wireguard-device") && words.contains(&folder)
    };
    for process in processes().filter(is_ours) {
        process.end(Duration::from_secs(5)).unwrap();
    }
}

/// Sends a packet every 10 ms until it is stopped.
pub struct Stream {
    ping: Child,
    back: Arc<AtomicU32>,
    /// Hears what it says, and keeps the line that sums up.
    ear: JoinHandle<String>,
}

impl Stream {
    /// From a namespace to an address.
    pub fn start(namespace: &str, address: &str) -> Self {
        let words = ["netns", "exec", namespace, "ping", "-i", "0.01", address];
        let mut ping = Command::new("ip").args(words).stdout(Stdio::piped()).spawn().unwrap();
        let (said, back) = (BufReader::new(ping.stdout.take().unwrap()), Arc::<AtomicU32>::default());
        let heard = back.clone();
        let ear = std::thread::spawn(move || {
            let mut sum = String::new();
            for line in said.lines().map_while(Result::ok) {
                if line.contains("bytes from") {
                    heard.fetch_add(1, Ordering::Relaxed);
                } else if line.contains("packets transmitted") {
                    sum = line;
                }
            }
            sum
        });
        Stream { ping, back, ear }
    }

    /// How many have come back so far.
    pub fn back(&self) -> u32 {
        self.back.load(Ordering::Relaxed)
    }

    /// How many were sent and how many came back.
    pub fn stop(mut self) -> (u32, u32) {
        let pid = nix::unistd::Pid::from_raw(self.ping.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let sum = self.ear.join().unwrap();
        self.ping.wait().unwrap();
        let mut words = sum.split(", ").map(|part| part.split(' ').next().unwrap().parse().unwrap());
        (words.next().unwrap(), words.next().unwrap())
    }
}
