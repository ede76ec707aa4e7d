//! What the agent needs of the machine: programs, devices and rights, each tried at start, not believed.

use super::netns;
use crate::wireguard::engine;
use nix::libc;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One thing that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// "qemu", "nft", "tun", ...
    pub name: &'static str,
    /// True if it works.
    pub available: bool,
    /// A version, or one line that says what is missing and where to get it.
    pub detail: String,
}

/// A program of another package.
struct Program {
    name: &'static str,
    file: &'static str,
    version: &'static str,
    debian: &'static str,
    alpine: &'static str,
}

const PROGRAMS: &[Program] = &[
    Program {
        name: "qemu",
        file: "qemu-system-x86_64",
        version: "--version",
        debian: "qemu-system-x86",
        alpine: "qemu-system-x86_64",
    },
    Program {
        name: "qemu-img",
        file: "qemu-img",
        version: "--version",
        debian: "qemu-utils",
        alpine: "qemu-img",
    },
    Program { name: "nft", file: "nft", version: "--version", debian: "nftables", alpine: "nftables" },
    Program {
        name: "dnsmasq",
        file: "dnsmasq",
        version: "--version",
        debian: "dnsmasq-base",
        alpine: "dnsmasq",
    },
];

/// Where programs are. Not the environment: a service's PATH often lacks the folders for administration.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The file of a program; its bare name if it is nowhere, so that starting it says so.
pub fn program(file: &str) -> PathBuf {
    FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(file))
        .find(|path| path.is_file())
        .unwrap_or_else(|| file.into())
}

/// What to say when a program could not even be started.
pub fn cannot_start(file: &str, error: &io::Error) -> io::Error {
    let known = PROGRAMS.iter().find(|program| program.file == file);
    match known.filter(|_| error.kind() == io::ErrorKind::NotFound) {
        Some(program) => io::Error::new(error.kind(), program.missing()),
        None => io::Error::new(error.kind(), format!("starting {file}: {error}")),
    }
}

/// Names of the packages with all programs: those of Debian and those of Alpine.
pub fn packages() -> (Vec<&'static str>, Vec<&'static str>) {
    PROGRAMS.iter().map(|program| (program.debian, program.alpine)).unzip()
}

/// The names of programs that are nowhere on this machine.
pub fn missing_programs() -> Vec<&'static str> {
    PROGRAMS.iter().map(|known| known.file).filter(|file| !program(file).is_absolute()).collect()
}

/// Tries everything. Takes some 100 ms, because it really does what it promises.
pub fn probe(wanted: engine::Wanted) -> Vec<Tool> {
    let mut tools: Vec<Tool> = PROGRAMS.iter().map(Program::probe).collect();
    tools.push(device("tun", "/dev/net/tun", "load the kernel module tun (`modprobe tun`)"));
    tools.push(device(
        "kvm",
        "/dev/kvm",
        "guests are emulated, slowly: load kvm_intel or kvm_amd, and be in the group kvm",
    ));
    tools.push(landlock());
    tools.extend(network());
    tools.push(wireguard(wanted));
    tools
}

impl Program {
    fn probe(&self) -> Tool {
        match Command::new(program(self.file)).arg(self.version).stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout);
                Tool::found(self.name, text.lines().next().unwrap_or_default().trim())
            }
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                let first = text.lines().next().unwrap_or("it says nothing");
                Tool::lacking(self.name, format!("{} does not run: {first}", self.file))
            }
            Err(error) => Tool::lacking(self.name, cannot_start(self.file, &error)),
        }
    }

    fn missing(&self) -> String {
        format!(
            "{} is missing: install {} (Debian) or {} (Alpine), or run `rhyzome-agent setup`",
            self.file, self.debian, self.alpine
        )
    }
}

impl Tool {
    fn found(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, available: true, detail: detail.into() }
    }

    fn lacking(name: &'static str, detail: impl ToString) -> Self {
        Self { name, available: false, detail: detail.to_string() }
    }

    fn of(name: &'static str, tried: io::Result<()>, advice: &str) -> Self {
        match tried {
            Ok(()) => Self::found(name, "works"),
            Err(error) => Self::lacking(name, format!("{error}: {advice}")),
        }
    }
}

fn device(name: &'static str, file: &str, advice: &str) -> Tool {
    match OpenOptions::new().read(true).write(true).open(file) {
        Ok(_) => Tool::found(name, format!("{file} opens")),
        Err(error) => Tool::lacking(name, format!("{file}: {error}: {advice}")),
    }
}

/// By the kernel, or by a process of its own: said which.
fn wireguard(wanted: engine::Wanted) -> Tool {
    match engine::probe(wanted) {
        Ok(word) => Tool::found("wireguard", word),
        Err(error) => Tool::lacking("wireguard", error),
    }
}

#[allow(unsafe_code)]
fn landlock() -> Tool {
    const CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no structure and answers a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    if version > 0 {
        Tool::found("landlock", format!("version {version}"))
    } else {
        Tool::lacking("landlock", "the kernel does not offer it: boot with lsm=landlock,... to jail qemu-img")
    }
}

/// Makes one of each kind of interface, and rules, in a namespace that nobody ever sees.
fn network() -> Vec<Tool> {
    const RIGHTS: &str =
        "start the agent as root (it drops what it does not need) or with CAP_NET_ADMIN and CAP_SYS_ADMIN";
    let mut tools = Vec::new();
    let entered = netns::on_own_thread(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        tools.push(Tool::of("bridge", make_link(Kind::Bridge), "the kernel needs the module bridge"));
        tools.push(Tool::of("veth", make_link(Kind::Veth), "the kernel needs the module veth"));
        tools.push(Tool::of("tap", netns::create_tap("probe-tap"), "the kernel needs the module tun"));
        tools.push(Tool::of(
            "nft-bridge",
            rules(BRIDGE_RULES),
            "the kernel needs nf_tables with family bridge",
        ));
        tools.push(Tool::of(
            "nft-nat",
            rules(NAT_RULES),
            "the kernel needs nf_tables with nft_chain_nat and nft_masq",
        ));
        Ok(())
    });
    tools.insert(0, Tool::of("netns", entered.and_then(|()| nameable()), RIGHTS));
    tools
}

/// True namespaces have a name in a folder that we must be able to write to.
fn nameable() -> io::Result<()> {
    fs::create_dir_all(netns::FOLDER)?;
    nix::unistd::access(netns::FOLDER, nix::unistd::AccessFlags::W_OK)
        .map_err(|errno| io::Error::other(format!("{} cannot be written to: {errno}", netns::FOLDER)))
}

enum Kind {
    Bridge,
    Veth,
}

fn make_link(kind: Kind) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let message = match kind {
            Kind::Bridge => rtnetlink::LinkBridge::new("probe-br").build(),
            Kind::Veth => rtnetlink::LinkVeth::new("probe-a", "probe-b").build(),
        };
        handle.link().add(message).execute().await.map_err(|error| io::Error::other(error.to_string()))
    })
}

const BRIDGE_RULES: &str = "table bridge probe { chain c { type filter hook prerouting priority -300; }; }";
const NAT_RULES: &str =
    "table inet probe { chain c { type nat hook postrouting priority srcnat; oifname \"x\" masquerade; }; }";

fn rules(script: &str) -> io::Result<()> {
    let output = Command::new(program("nft"))
        .arg(script)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| cannot_start("nft", &error))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(text.lines().next().unwrap_or("nft does not say why").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_one_line_with_its_packages() {
        let error = cannot_start("qemu-system-x86_64", &io::Error::from(io::ErrorKind::NotFound)).to_string();
        assert!(
            error.contains("qemu-system-x86 (Debian)") && error.contains("qemu-system-x86_64 (Alpine)"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);
        let gone = Program { name: "x", file: "no-such-program", version: "-V", debian: "d", alpine: "a" };
        assert!(!gone.probe().available);
    }

    #[test]
    fn all_that_networks_need_is_here() {
        let tools = probe(engine::Wanted::Auto);
        for name in
            ["nft", "dnsmasq", "tun", "netns", "bridge", "veth", "tap", "nft-bridge", "nft-nat", "wireguard"]
        {
            let tool = tools.iter().find(|tool| tool.name == name).unwrap();
            assert!(tool.available, "{name}: {}", tool.detail);
        }
    }
}
