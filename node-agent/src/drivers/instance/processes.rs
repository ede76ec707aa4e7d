//! Every QEMU that runs on the node, whoever started it: by /proc, by what its command line says.

use crate::names::short_digest;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Mutex, PoisonError};

/// Ticks of `/proc/PID/stat` in a second: the kernel's word to programs, the same on every machine that we run on.
const TICKS: u64 = 100;
/// Bytes of memory that QEMU gives without `-m`.
const USUAL_MEMORY: u64 = 128 << 20;

/// A QEMU that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedGuest {
    /// Its number.
    pub pid: u32,
    /// A digest of its command line: the same for the same guest when it is started again.
    pub digest: String,
    /// What its command line calls it; empty if nothing.
    pub name: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Paths of its disks.
    pub disks: Vec<String>,
    /// Milliseconds since 1970.
    pub started_at_ms: u64,
}

/// Looks at processes, and remembers those that it has read.
#[derive(Debug, Default)]
pub struct Processes {
    /// By number and start: those that are no guests, too.
    known: Mutex<BTreeMap<(u32, u64), Option<ObservedGuest>>>,
}

impl Processes {
    /// All guests that run now. What has gone meanwhile is not among them.
    pub fn guests(&self) -> Vec<ObservedGuest> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut here = BTreeSet::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let Some(ticks) = start_ticks(pid) else { continue };
            let key = (pid, ticks);
            // A process may become another program until it is a guest; a guest stays one.
            if !matches!(known.get(&key), Some(Some(_))) {
                known.insert(key, read(pid, ticks));
            }
            here.insert(key);
        }
        known.retain(|key, _| here.contains(key));
        known.values().flatten().cloned().collect()
    }
}

fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

fn read(pid: u32, ticks: u64) -> Option<ObservedGuest> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<String> =
        bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let booted: u64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let guest = parse(&words)?;
    Some(ObservedGuest { pid, started_at_ms: booted * 1000 + ticks * 1000 / TICKS, ..guest })
}

/// What a command line says of a guest; none if it is no guest's.
fn parse(words: &[String]) -> Option<ObservedGuest> {
    let program = words.first()?.rsplit('/').next()?;
    let is_qemu = program.starts_with("qemu-system-") || matches!(program, "qemu-kvm" | "kvm");
    let mut guest = ObservedGuest {
        pid: 0,
        digest: short_digest(&words.join("\n")),
        name: String::new(),
        vcpus: 1,
        memory_bytes: USUAL_MEMORY,
        disks: Vec::new(),
        started_at_ms: 0,
    };
    for pair in words.windows(2) {
        let value = pair[1].as_str();
        // QEMU takes one dash or two.
        match pair[0].trim_start_matches("--").trim_start_matches('-') {
            // Asked for what it can do, not a guest.
            "machine" | "M" if value.split(',').next() == Some("none") => return None,
            "name" => guest.name = option(value, &["guest"]).or_else(|| first(value)).unwrap_or_default(),
            "smp" => {
                let count = option(value, &["cpus"]).or_else(|| first(value));
                guest.vcpus = count.and_then(|text| text.parse().ok()).unwrap_or(1);
            }
            "m" => {
                let size = option(value, &["size"]).or_else(|| first(value));
                guest.memory_bytes = size.and_then(|text| bytes_of(&text)).unwrap_or(USUAL_MEMORY);
            }
            "drive" | "blockdev" => guest.disks.extend(path(value)),
            "hda" | "hdb" | "hdc" | "hdd" | "cdrom" => guest.disks.push(value.to_owned()),
            _ => {}
        }
    }
    is_qemu.then_some(guest)
}

/// `a=b,c=d` taken apart; two commas are one that separates nothing.
fn parts(text: &str) -> Vec<String> {
    const COMMA: char = '\u{1}';
    let marked = text.replace(",,", &COMMA.to_string());
    marked.split(',').map(|part| part.replace(COMMA, ",")).collect()
}

fn option(text: &str, keys: &[&str]) -> Option<String> {
    parts(text).iter().find_map(|part| {
        let (key, value) = part.split_once('=')?;
        keys.contains(&key).then(|| value.to_owned())
    })
}

/// The first part, if it is not an option with a name.
fn first(text: &str) -> Option<String> {
    parts(text).into_iter().next().filter(|part| !part.contains('=') && !part.is_empty())
}

fn path(text: &str) -> Option<String> {
    if text.starts_with('{') {
        let value: serde_json::Value = serde_json::from_str(text).ok()?;
        let found = value.get("filename").or_else(|| value.pointer("/file/filename"));
        return found.and_then(|name| name.as_str()).map(str::to_owned);
    }
    option(text, &["file", "filename", "file.filename"])
}

/// `512`, `512M`, `2G`, `524288k`: MiB where no unit is said.
fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "m" | "mb" => 20,
        "b" => 0,
        "k" | "kb" => 10,
        "g" | "gb" => 30,
        "t" | "tb" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<ObservedGuest> {
        parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_command_line_tells_name_size_and_disks() {
        let ours = of(concat!(
            "/usr/bin/qemu-system-x86_64 -name guest=inst_1,debug-threads=on -smp 2 -m size=524288k ",
            "-blockdev driver=qcow2,node-name=disk0,file.driver=file,file.filename=/srv/a,,b/disk_1.qcow2"
        ));
        let ours = ours.unwrap();
        assert_eq!((ours.name.as_str(), ours.vcpus, ours.memory_bytes), ("inst_1", 2, 512 << 20));
        assert_eq!(ours.disks, ["/srv/a,b/disk_1.qcow2"]);
        let foreign = of(concat!(
            "qemu-system-x86_64 -name mail -m 1G -smp cpus=4,sockets=1 -drive if=virtio,file=/vm/mail.img ",
            "-blockdev {\"driver\":\"file\",\"filename\":\"/vm/more.raw\"} -cdrom /iso/one.iso"
        ));
        let foreign = foreign.unwrap();
        assert_eq!((foreign.name.as_str(), foreign.vcpus, foreign.memory_bytes), ("mail", 4, 1 << 30));
        assert_eq!(foreign.disks, ["/vm/mail.img", "/vm/more.raw", "/iso/one.iso"]);
        let bare = of("kvm -m 512").unwrap();
        assert_eq!((bare.name.as_str(), bare.vcpus, bare.memory_bytes), ("", 1, 512 << 20));
    }

    #[test]
    fn what_is_no_guest_is_none() {
        assert_eq!(of("qemu-img resize x.qcow2 10G"), None);
        assert_eq!(of("bash -c qemu-system-x86_64"), None);
        assert_eq!(of("qemu-system-x86_64 -machine none -nographic"), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn this_program_is_looked_at_and_is_no_guest() {
        let processes = Processes::default();
        let own = std::process::id();
        assert!(processes.guests().iter().all(|guest| guest.pid != own));
        assert!(start_ticks(own).is_some());
    }
}
