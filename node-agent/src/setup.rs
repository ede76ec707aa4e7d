//! `rhyzome-agent setup`: prepares a machine, and prints each thing that it does. Done twice, the second time does
//! nothing that the first did.
//!
//! First the steps are planned from what the machine is (pure, tested), then they are printed, then carried out.

use crate::host::tools;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// The user that the agent becomes.
pub const USER: &str = "rhyzome";
/// The agent's own folder.
pub const STATE: &str = "/var/lib/rhyzome";
/// Where its configuration is.
pub const CONFIGURATION: &str = "/etc/rhyzome";

const SYSTEMD_UNIT: &str = "/etc/systemd/system/rhyzome-agent.service";
const OPENRC_SCRIPT: &str = "/etc/init.d/rhyzome-agent";

/// What kind of machine this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Who installs packages here.
    pub packages: Option<PackageManager>,
    /// Who starts services here.
    pub services: Option<Services>,
    /// Programs that are not there yet.
    pub missing_programs: Vec<&'static str>,
    /// The user exists.
    pub has_user: bool,
    /// The group that may use hardware virtualisation exists, and the user is not in it yet.
    pub joins_kvm: bool,
    /// The agent's own program file.
    pub program: String,
}

/// Debian's or Alpine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageManager {
    /// Debian and its kin.
    Apt,
    /// Alpine.
    Apk,
}

/// The machine's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Services {
    /// systemd
    Systemd,
    /// OpenRC
    OpenRc,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Run a program.
    Run(Vec<String>),
    /// Make a folder that only its owner may enter (0700) or that all may read (0755).
    Folder {
        /// Where.
        path: &'static str,
        /// Its mode.
        mode: u32,
        /// Give it to [`USER`].
        owned: bool,
    },
    /// Write a file.
    File {
        /// Where.
        path: &'static str,
        /// What it says.
        content: String,
        /// Its mode.
        mode: u32,
    },
    /// Nothing to do, but to be known.
    Say(String),
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Run(words) => write!(out, "run     {}", words.join(" ")),
            Step::Folder { path, mode, owned } => {
                let owner = if *owned { USER } else { "root" };
                write!(out, "folder  {path} (mode {mode:04o}, owner {owner})")
            }
            Step::File { path, mode, .. } => write!(out, "file    {path} (mode {mode:04o})"),
            Step::Say(text) => write!(out, "note    {text}"),
        }
    }
}

impl Machine {
    /// Looks at this machine.
    pub fn look() -> io::Result<Self> {
        let user = nix::unistd::User::from_name(USER)?;
        let kvm = nix::unistd::Group::from_name("kvm")?;
        let joins_kvm = kvm.is_some_and(|kvm| !kvm.mem.iter().any(|member| member == USER));
        let has = |file: &str| tools::program(file).is_absolute();
        let packages = if has("apt-get") {
            Some(PackageManager::Apt)
        } else {
            has("apk").then_some(PackageManager::Apk)
        };
        let services = if Path::new("/run/systemd/system").is_dir() {
            Some(Services::Systemd)
        } else {
            has("openrc-run").then_some(Services::OpenRc)
        };
        Ok(Self {
            packages,
            services,
            missing_programs: tools::missing_programs(),
            has_user: user.is_some(),
            joins_kvm,
            program: std::env::current_exe()?.display().to_string(),
        })
    }

    /// Everything that makes this machine one that can be a node.
    pub fn plan(&self) -> Vec<Step> {
        let mut steps = self.install();
        steps.extend(self.account());
        steps.push(Step::Folder { path: STATE, mode: 0o700, owned: true });
        steps.push(Step::Folder { path: CONFIGURATION, mode: 0o755, owned: false });
        steps.extend(self.service());
        steps
    }

    fn install(&self) -> Vec<Step> {
        if self.missing_programs.is_empty() {
            return vec![Step::Say("all programs are there".into())];
        }
        let (debian, alpine) = tools::packages();
        match self.packages {
            Some(PackageManager::Apt) => {
                let install = ["apt-get", "install", "--yes", "--no-install-recommends"];
                vec![command(&["apt-get", "update"]), command(&[&install[..], &debian[..]].concat())]
            }
            Some(PackageManager::Apk) => vec![command(&[&["apk", "add"][..], &alpine[..]].concat())],
            None => vec![Step::Say(format!(
                "neither apt nor apk is here: install {} by hand",
                self.missing_programs.join(", ")
            ))],
        }
    }

    fn account(&self) -> Vec<Step> {
        // Each system has its own words for it; busybox knows no useradd.
        let busybox = self.packages == Some(PackageManager::Apk);
        let mut steps = Vec::new();
        if !self.has_user {
            steps.push(if busybox {
                command(&["adduser", "-S", "-D", "-H", "-h", STATE, "-s", "/sbin/nologin", USER])
            } else {
                let shell = "/usr/sbin/nologin";
                command(&["useradd", "--system", "--user-group", "--home-dir", STATE, "--shell", shell, USER])
            });
        }
        if self.joins_kvm {
            steps.push(if busybox {
                command(&["addgroup", USER, "kvm"])
            } else {
                command(&["usermod", "--append", "--groups", "kvm", USER])
            });
        }
        steps
    }

    fn service(&self) -> Vec<Step> {
        match self.services {
            Some(Services::Systemd) => vec![
                Step::File { path: SYSTEMD_UNIT, content: systemd_unit(&self.program), mode: 0o644 },
                command(&["systemctl", "daemon-reload"]),
                Step::Say("join the cluster, then: systemctl enable --now rhyzome-agent".into()),
            ],
            Some(Services::OpenRc) => vec![
                Step::File { path: OPENRC_SCRIPT, content: openrc_script(&self.program), mode: 0o755 },
                Step::Say(
                    "join the cluster, then: rc-update add rhyzome-agent && rc-service rhyzome-agent start"
                        .into(),
                ),
            ],
            None => vec![Step::Say(format!(
                "neither systemd nor OpenRC runs here: join the cluster, then start by hand, as root: {}",
                self.program
            ))],
        }
    }
}

/// Prints what is done and, unless `dry_run`, does it.
pub fn run(dry_run: bool, out: &mut impl Write) -> io::Result<()> {
    if !dry_run && !nix::unistd::geteuid().is_root() {
        return Err(io::Error::other(
            "setup changes the machine: run it as root, or with --dry-run to only see",
        ));
    }
    for step in Machine::look()?.plan() {
        let done = step.is_done()?;
        writeln!(out, "{step}{}", if done { " - is so already" } else { "" })?;
        if !dry_run && !done {
            step.carry_out().map_err(|error| io::Error::other(format!("{step}: {error}")))?;
        }
    }
    Ok(())
}

impl Step {
    fn is_done(&self) -> io::Result<bool> {
        Ok(match self {
            Step::Run(_) | Step::Say(_) => false,
            Step::Folder { path, mode, owned } => {
                let Ok(found) = fs::metadata(path) else { return Ok(false) };
                let owner = std::os::unix::fs::MetadataExt::uid(&found);
                let wanted = if *owned {
                    nix::unistd::User::from_name(USER)?.map(|user| user.uid.as_raw())
                } else {
                    Some(0)
                };
                found.is_dir() && found.permissions().mode() & 0o7777 == *mode && Some(owner) == wanted
            }
            Step::File { path, content, .. } => fs::read_to_string(path).is_ok_and(|found| found == *content),
        })
    }

    fn carry_out(&self) -> io::Result<()> {
        match self {
            Step::Say(_) => Ok(()),
            Step::Run(words) => {
                let status = Command::new(tools::program(&words[0]))
                    .args(&words[1..])
                    .env("DEBIAN_FRONTEND", "noninteractive")
                    .status()?;
                if status.success() {
                    Ok(())
                } else {
                    Err(io::Error::other(format!("it ended with {status}")))
                }
            }
            Step::Folder { path, mode, owned } => {
                fs::create_dir_all(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
                let user = if *owned { nix::unistd::User::from_name(USER)? } else { None };
                let (uid, gid) = user.map_or((0, 0), |user| (user.uid.as_raw(), user.gid.as_raw()));
                std::os::unix::fs::chown(path, Some(uid), Some(gid))
            }
            Step::File { path, content, mode } => {
                fs::write(path, content)?;
                fs::set_permissions(path, fs::Permissions::from_mode(*mode))
            }
        }
    }
}

fn command(words: &[&str]) -> Step {
    Step::Run(words.iter().map(|word| (*word).to_owned()).collect())
}

/// It starts as root with few rights and drops more by itself. No `Protect...=` and no `Private...=`: they give a
/// service mounts of its own, and then the names of our namespaces would be invisible to everyone else.
fn systemd_unit(program: &str) -> String {
    format!(
        "\
# Written by `rhyzome-agent setup`. Change it with `systemctl edit rhyzome-agent`.
[Unit]
Description=Rhyzome node agent
After=network-online.target
Wants=network-online.target

[Service]
ExecStart={program}
Restart=always
RestartSec=2
# Guests and what serves them go on while the agent is stopped or upgraded.
KillMode=process
# The last five are given up as soon as it has become the user {USER}.
CapabilityBoundingSet=CAP_NET_ADMIN CAP_SYS_ADMIN CAP_NET_BIND_SERVICE CAP_SETUID CAP_SETGID CAP_SETPCAP CAP_CHOWN CAP_DAC_OVERRIDE
NoNewPrivileges=yes
LimitNOFILE=65536
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"
    )
}

fn openrc_script(program: &str) -> String {
    format!(
        "\
#!/sbin/openrc-run
# Written by `rhyzome-agent setup`. It drops its rights by itself; guests go on while it is stopped.
description=\"Rhyzome node agent\"
supervisor=supervise-daemon
command={program}
respawn_delay=2
rc_cgroup_cleanup=no

depend() {{
    need net
    after firewall
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            packages: Some(PackageManager::Apt),
            services: Some(Services::Systemd),
            missing_programs: vec!["nft"],
            has_user: false,
            joins_kvm: true,
            program: "/usr/bin/rhyzome-agent".into(),
        }
    }

    fn text(machine: &Machine) -> String {
        machine.plan().iter().map(|step| format!("{step}\n")).collect()
    }

    #[test]
    fn debian_with_systemd() {
        let text = text(&machine());
        assert!(
            text.contains("apt-get install --yes --no-install-recommends qemu-system-x86 qemu-utils"),
            "{text}"
        );
        assert!(
            text.contains("useradd --system") && text.contains("usermod --append --groups kvm rhyzome"),
            "{text}"
        );
        assert!(text.contains("/var/lib/rhyzome (mode 0700, owner rhyzome)"), "{text}");
        assert!(text.contains("file    /etc/systemd/system/rhyzome-agent.service"), "{text}");
    }

    #[test]
    fn alpine_with_openrc() {
        let text = text(&Machine {
            packages: Some(PackageManager::Apk),
            services: Some(Services::OpenRc),
            ..machine()
        });
        assert!(text.contains("apk add qemu-system-x86_64 qemu-img nftables dnsmasq"), "{text}");
        assert!(text.contains("adduser -S") && text.contains("addgroup rhyzome kvm"), "{text}");
        assert!(text.contains("/etc/init.d/rhyzome-agent (mode 0755)"), "{text}");
    }

    #[test]
    fn a_machine_with_neither_says_how_to_go_on() {
        let text = text(&Machine { packages: None, services: None, ..machine() });
        assert!(text.contains("install nft by hand") && text.contains("start by hand, as root"), "{text}");
    }

    #[test]
    fn what_is_there_is_not_made_again() {
        let done = Machine { missing_programs: Vec::new(), has_user: true, joins_kvm: false, ..machine() };
        let text = text(&done);
        assert!(
            !text.contains("apt-get") && !text.contains("useradd") && !text.contains("usermod"),
            "{text}"
        );
    }

    #[test]
    fn a_dry_run_only_prints() {
        let mut out = Vec::new();
        run(true, &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains(STATE));
    }
}
