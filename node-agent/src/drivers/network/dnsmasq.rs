//! Runs dnsmasq for one network: it outlives the agent, and is found again by its record.

use super::plan::DesiredNetwork;
use super::plan::resolver::{self, Setting};
use super::record::{Resolver, write, write_if_changed};
use crate::drivers::Deviation;
use crate::host::process::ProcessId;
use crate::host::{netns, tools};
use crate::privileges;
use nix::sys::signal::Signal;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long dnsmasq may take to end when asked.
const PATIENCE: Duration = Duration::from_secs(2);

/// What dnsmasq needs: ports below 1024, and answers to clients that have no address yet. It pings nobody.
const RIGHTS: &[privileges::Right] = &[privileges::Right::NetBindService, privileges::Right::NetAdmin];

/// The process that serves, and what has to be done for it to serve the right things.
pub struct Service<'a> {
    /// Name of the network's namespace.
    pub namespace: &'a str,
    /// Its cookie.
    pub cookie: u64,
    /// The index of its bridge.
    pub bridge: u32,
    /// The network's files.
    pub setting: Setting<'a>,
}

impl Service<'_> {
    /// Makes dnsmasq serve `network`: not at all touched if it does, told to read again if only ports changed,
    /// restarted if it must be. `found` is the one that was remembered. Beside it: what was not as it had been left, if
    /// it is still to be what it was.
    pub fn ensure(
        &self,
        network: &DesiredNetwork,
        found: Option<&Resolver>,
    ) -> io::Result<(Resolver, Vec<Deviation>)> {
        let folder = self.setting.folder;
        let configuration = resolver::configuration(network, &self.setting);
        write_if_changed(&folder.join("dnsmasq.conf"), &configuration)?;
        let reservations = write_if_changed(&folder.join("dhcp-hosts"), &resolver::reservations(network))?;
        let names = write_if_changed(&folder.join("hosts"), &resolver::names(network))?;
        let digest = digest(&configuration, &folder.join("drop-in"))?;

        let table = folder.join("leases");
        let broken =
            fs::read_to_string(&table).ok().and_then(|text| resolver::without_broken_leases(&text, network));
        let mut strange = Vec::new();
        if broken.is_some() {
            strange.push(Deviation::new("network.leases", "leases of its ports", "a lease that no port has"));
        }
        if let Some(dead) = found.filter(|found| !found.process.is_alive()) {
            let expected = format!("dnsmasq, as process {}", dead.process.pid);
            strange.push(Deviation::new("network.process", expected, "it does not run"));
        }
        if let Some(found) = found.filter(|found| found.process.is_alive()) {
            let right = found.namespace == self.cookie
                && found.bridge == self.bridge
                && found.configuration == digest;
            if right && broken.is_none() {
                if !(reservations || names) || found.process.signal(Signal::SIGHUP)? {
                    return Ok((found.clone(), strange));
                }
            } else {
                found.process.end(PATIENCE)?;
            }
        }
        end_by_pid_file(folder)?;
        // Only while nobody has the table open, and read again: it may have changed until the very end.
        if broken.is_some()
            && let Some(kept) = resolver::without_broken_leases(&fs::read_to_string(&table)?, network)
        {
            write(&table, &kept)?;
        }
        let process = self.start()?;
        let resolver =
            Resolver { process, namespace: self.cookie, bridge: self.bridge, configuration: digest };
        Ok((resolver, strange))
    }

    fn start(&self) -> io::Result<ProcessId> {
        let folder = self.setting.folder;
        let mut command = Command::new(tools::program("dnsmasq"));
        command
            .arg(format!("--conf-file={}", folder.join("dnsmasq.conf").display()))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        privileges::limit_in_child(&mut command, &rights(self.setting.user.is_some()));
        command.process_group(0);
        // dnsmasq puts itself into the background, in a session of its own: what is waited for here is only its
        // beginning, which ends when it serves or has said why it cannot.
        let (status, said) = netns::run_in(self.namespace, move || {
            let mut child = command.spawn().map_err(|error| tools::cannot_start("dnsmasq", &error))?;
            let status = child.wait()?;
            let mut said = String::new();
            if let Some(mut stderr) = child.stderr.take().filter(|_| !status.success()) {
                stderr.read_to_string(&mut said)?;
            }
            Ok((status, said))
        })?;
        if !status.success() {
            let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it did not say why");
            return Err(io::Error::other(format!("dnsmasq does not start: {}", first.trim())));
        }
        let pid = read_pid(folder)
            .ok_or_else(|| io::Error::other("dnsmasq started, but left no pid file; see dnsmasq.log"))?;
        ProcessId::of(pid).ok_or_else(|| {
            io::Error::other(format!(
                "dnsmasq ended right after its start; see {}/dnsmasq.log",
                folder.display()
            ))
        })
    }
}

/// Root that drops its rights in dnsmasq itself must be able to set groups; anyone else needs no more than [`RIGHTS`].
fn rights(as_root: bool) -> Vec<privileges::Right> {
    let mut rights = RIGHTS.to_vec();
    if as_root {
        rights.push(privileges::Right::SetGid);
    }
    rights
}

/// Ends the network's dnsmasq, remembered or not. Fine if there is none.
pub fn end(folder: &Path, found: Option<&Resolver>) -> io::Result<()> {
    if let Some(found) = found {
        found.process.end(PATIENCE)?;
    }
    end_by_pid_file(folder)
}

/// For one that was started, but whose start nobody lived to write down.
fn end_by_pid_file(folder: &Path) -> io::Result<()> {
    let Some(process) = read_pid(folder).and_then(ProcessId::of) else { return Ok(()) };
    let own = format!("--conf-file={}", folder.join("dnsmasq.conf").display());
    if process.command_line().contains(&own) { process.end(PATIENCE) } else { Ok(()) }
}

fn read_pid(folder: &Path) -> Option<u32> {
    fs::read_to_string(folder.join("dnsmasq.pid")).ok()?.trim().parse().ok()
}

/// Of all that dnsmasq reads only once, at its start: its configuration, and what the operator added.
fn digest(configuration: &str, drop_in: &Path) -> io::Result<String> {
    let mut text = configuration.to_owned();
    let mut files = Vec::new();
    for entry in fs::read_dir(drop_in)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "conf") {
            files.push(file);
        }
    }
    files.sort();
    for file in files {
        text.push_str(&file.to_string_lossy());
        text.push_str(&String::from_utf8_lossy(&fs::read(&file)?));
    }
    Ok(crate::names::short_digest(&text))
}
