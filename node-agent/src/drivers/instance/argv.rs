//! The exact command line of one guest: a pure function of its order, so that a golden test can read it.

use super::Beneath;
use crate::names;
use rhyzome_proto::v1::{InstanceDisk, InstanceOrder};
use sha2::{Digest, Sha256};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

/// The one architecture that this agent starts guests of.
pub const ARCHITECTURE: &str = "x86_64";

/// What QEMU may not do once it runs.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// All that decides a command line.
#[derive(Debug)]
pub struct Machine<'a> {
    /// The instance's id.
    pub id: &'a str,
    /// What it is to be.
    pub order: &'a InstanceOrder,
    /// "kvm" or "tcg".
    pub accelerator: &'a str,
    /// The agent's own folder.
    pub state: &'a Path,
    /// One descriptor per nic, in the order's order, as QEMU inherits them.
    pub taps: &'a [RawFd],
    /// Start with the guest's clock stopped.
    pub paused: bool,
    /// For each disk the image beneath, if it is not where the disk's own file says.
    pub beneath: &'a [Option<Beneath>],
    /// The operator's own additions, last.
    pub additions: &'a [String],
}

/// Where a guest's control and console sockets are.
pub fn socket(state: &Path, id: &str, name: &str) -> PathBuf {
    names::run_folder(state, id).join(name)
}

/// Where a disk's file is: in the named pool, or the agent's own.
pub fn disk_path(state: &Path, disk: &InstanceDisk) -> PathBuf {
    match disk.pool.as_ref().filter(|pool| !pool.path.is_empty()) {
        Some(pool) => Path::new(&pool.path).join(format!("{}.qcow2", disk.disk_id)),
        None => names::disk_file(state, &disk.disk_id),
    }
}

/// The block node of the disk at `index`; QMP knows it by this name.
pub fn disk_node(index: usize) -> String {
    format!("disk{index}")
}

/// QEMU's arguments, without the program's own name.
pub fn arguments(machine: &Machine<'_>) -> Vec<String> {
    let mut argv = Arguments(Vec::with_capacity(64));
    board(&mut argv, machine);
    for (index, disk) in machine.order.disks.iter().enumerate() {
        let beneath = machine.beneath.get(index).and_then(Option::as_ref);
        block(&mut argv, machine.state, index, disk, beneath);
    }
    seed(&mut argv, machine);
    for (index, (nic, tap)) in machine.order.nics.iter().zip(machine.taps).enumerate() {
        argv.pair("-netdev", format!("tap,id=nic{index},fd={tap}"));
        // No option ROM: nothing boots from the network, and firmware starts sooner.
        argv.pair(
            "-device",
            format!("virtio-net-pci,netdev=nic{index},id=net{index},mac={},romfile=", nic.mac.to_lowercase()),
        );
    }
    sockets(&mut argv, machine);
    argv.pair("-sandbox", SANDBOX);
    if machine.paused {
        argv.0.push("-S".into());
    }
    argv.0.extend(machine.additions.iter().cloned());
    argv.0
}

fn board(argv: &mut Arguments, machine: &Machine<'_>) {
    let order = machine.order;
    argv.pair("-name", format!("guest={},debug-threads=on", machine.id));
    argv.pair("-uuid", uuid(machine.id));
    argv.pair("-machine", format!("q35,accel={},usb=off", machine.accelerator));
    argv.pair("-cpu", if machine.accelerator == "kvm" { "host" } else { "max" });
    argv.pair("-smp", order.vcpus.max(1).to_string());
    argv.pair("-m", format!("size={}k", order.memory_bytes / 1024));
    argv.0.extend(["-nodefaults", "-no-user-config"].map(Into::into));
    argv.pair("-display", "none");
    argv.pair("-rtc", "base=utc,driftfix=slew");
    argv.pair("-device", "virtio-rng-pci");
}

fn block(argv: &mut Arguments, state: &Path, index: usize, disk: &InstanceDisk, beneath: Option<&Beneath>) {
    let node = disk_node(index);
    let read_only = if disk.read_only { "on" } else { "off" };
    let beneath = beneath.map_or_else(String::new, |image| {
        format!(
            ",backing.driver={},backing.read-only=on,backing.file.driver=file,backing.file.filename={}",
            image.format,
            escape(&image.path)
        )
    });
    argv.pair(
        "-blockdev",
        format!(
            "driver=qcow2,node-name={node},read-only={read_only},discard=unmap,file.driver=file,file.locking=on,\
             file.filename={}{beneath}",
            escape(&disk_path(state, disk))
        ),
    );
    let serial: String = disk.name.chars().take(20).collect();
    let boot = if disk.boot { ",bootindex=0" } else { "" };
    argv.pair("-device", format!("virtio-blk-pci,drive={node},id=blk{index},serial={serial}{boot}"));
}

fn seed(argv: &mut Arguments, machine: &Machine<'_>) {
    let file = names::instance_folder(machine.state, machine.id).join("seed.iso");
    argv.pair(
        "-blockdev",
        format!("driver=raw,node-name=seed,read-only=on,file.driver=file,file.filename={}", escape(&file)),
    );
    argv.pair("-device", "virtio-blk-pci,drive=seed,id=seed-dev,serial=cidata");
}

fn sockets(argv: &mut Arguments, machine: &Machine<'_>) {
    let log = names::instance_folder(machine.state, machine.id).join("console.log");
    let console = socket(machine.state, machine.id, "console.sock");
    let control = socket(machine.state, machine.id, "qmp.sock");
    argv.pair(
        "-chardev",
        format!(
            "socket,id=console,path={},server=on,wait=off,logfile={},logappend=on",
            escape(&console),
            escape(&log)
        ),
    );
    argv.pair("-serial", "chardev:console");
    argv.pair("-chardev", format!("socket,id=qmp,path={},server=on,wait=off", escape(&control)));
    argv.pair("-mon", "chardev=qmp,mode=control");
}

struct Arguments(Vec<String>);

impl Arguments {
    fn pair(&mut self, option: &str, value: impl Into<String>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }
}

/// A comma separates QEMU's options; two are one that does not.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// A stable UUID of the machine, which firmware shows to the guest: made from the id, marked as version 8.
fn uuid(id: &str) -> String {
    let mut bytes: [u8; 32] = Sha256::digest(id.as_bytes()).into();
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// The command line as a shell would take it, one argument per line: for people.
pub fn readable(program: &str, arguments: &[String]) -> String {
    let mut text = quote(program);
    for argument in arguments {
        text.push_str(if argument.starts_with('-') { " \\\n  " } else { " " });
        text.push_str(&quote(argument));
    }
    text.push('\n');
    text
}

fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rhyzome_proto::v1::{InstanceNic, StoragePool};

    fn order() -> InstanceOrder {
        InstanceOrder {
            vcpus: 2,
            memory_bytes: 512 << 20,
            disks: vec![
                InstanceDisk {
                    name: "root".into(),
                    disk_id: "disk_1".into(),
                    boot: true,
                    ..InstanceDisk::default()
                },
                InstanceDisk {
                    name: "data".into(),
                    disk_id: "disk_2".into(),
                    pool: Some(StoragePool { path: "/srv/a,b".into(), ..StoragePool::default() }),
                    ..InstanceDisk::default()
                },
            ],
            nics: vec![InstanceNic {
                name: "lan".into(),
                mac: "52:54:00:AA:00:01".into(),
                ..InstanceNic::default()
            }],
            ..InstanceOrder::default()
        }
    }

    #[test]
    fn the_command_line_reads_as_reviewed() {
        let order = order();
        let machine = Machine {
            id: "inst_1",
            order: &order,
            accelerator: "tcg",
            state: Path::new("/s"),
            taps: &[7],
            paused: false,
            beneath: &[],
            additions: &["-d".into(), "guest errors".into()],
        };
        let text = readable("qemu-system-x86_64", &arguments(&machine));
        assert_eq!(text, include_str!("argv.golden"));
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quote("a'b c"), r"'a'\''b c'");
        assert_eq!(quote(""), "''");
    }
}
