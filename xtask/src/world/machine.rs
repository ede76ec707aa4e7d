//! What a world needs of the machine: the user `rhyzome`, folders it can reach, namespaces.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::{User, geteuid};

use crate::{http, run};

/// Makes the machine one on which root can start a server: neither it nor the agent stays root.
pub fn prepare(binaries: &Path) -> Result<()> {
    if !geteuid().is_root() || User::from_name("rhyzome")?.is_some() {
        return Ok(());
    }
    run::output(Command::new(binaries.join("rhyzome-agent")).arg("setup")).map(drop)
}

/// The namespace in which a node keeps a network.
pub fn namespace_of(network_id: &str) -> String {
    let start = network_id.char_indices().rev().nth(9).map_or(0, |(at, _)| at);
    format!("rz-{}", &network_id[start..])
}

/// The name of the user that we are.
pub(super) fn own_name() -> Result<String> {
    let user = User::from_uid(geteuid())?.context("the user that runs this has no name")?;
    Ok(user.name)
}

/// Refuses a folder that the user `rhyzome` cannot reach.
pub(super) fn check_traversable(folder: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    for above in folder.ancestors() {
        if fs::metadata(above)?.permissions().mode() & 0o001 == 0 {
            bail!(
                "{} is closed to the user `rhyzome`, as whom server and agent run: choose another --folder",
                above.display()
            );
        }
    }
    Ok(())
}

/// Runs a program as root: directly, or by sudo.
pub(super) fn as_root(words: &[String], environment: &[(String, String)]) -> Result<String> {
    let mut command = Command::new(if geteuid().is_root() { words[0].as_str() } else { "sudo" });
    command.args(if geteuid().is_root() { &words[1..] } else { words });
    run::output(command.envs(environment.iter().cloned()).env_remove("RUST_BACKTRACE"))
}

/// Fetches a page inside a namespace.
pub(super) fn guest_page(
    namespace: &str,
    server: SocketAddr,
    path: &str,
    patience: Duration,
) -> Result<String> {
    if geteuid().is_root() {
        return http::page_in(namespace, server, path, patience);
    }
    let seconds = patience.as_secs().to_string();
    let url = format!("http://{server}{path}");
    let words = ["ip", "netns", "exec", namespace, "curl", "-sSf", "--max-time", &seconds, &url];
    as_root(&words.map(str::to_owned), &[])
}

/// Takes away the namespaces of the networks that agents under `folder` kept. Answers what could not be done.
pub(super) fn remove_namespaces(folder: &Path) -> Vec<String> {
    let mut failed = Vec::new();
    for state in entries(folder) {
        for network in entries(&folder.join(state).join("networks")) {
            let namespace = namespace_of(&network);
            if !Path::new("/run/netns").join(&namespace).exists() {
                continue;
            }
            let words = ["ip", "netns", "delete", &namespace].map(str::to_owned);
            failed.extend(as_root(&words, &[]).err().map(|error| format!("{error:#}")));
        }
    }
    failed
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_called_as_the_agent_calls_it() {
        assert_eq!(namespace_of("net_019a8c5e7b3a7f10a2b3c4d5e6f70819"), "rz-d5e6f70819");
        assert_eq!(namespace_of("short"), "rz-short");
    }
}
