//! What this machine is, for the node's status.

use crate::accelerator::Accelerator;
use crate::drivers::instance::process::host_boot_id;
use crate::host::tools::Tool;
use crate::reconcile::Kind;
use rhyzome_proto::v1::{Capability, NodeStatus};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The node's status as it is now.
pub fn status(state: &Path, accelerator: Option<&Accelerator>, tools: &[Tool]) -> NodeStatus {
    let (disk_bytes, disk_available_bytes) = disk(state);
    let (name, reason) = accelerator.map_or_else(
        || (String::new(), "being found out".to_owned()),
        |accelerator| (accelerator.name.clone(), accelerator.reason.clone()),
    );
    NodeStatus {
        hostname: line("/proc/sys/kernel/hostname"),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        vcpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        memory_bytes: memory_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        disk_bytes,
        disk_available_bytes,
        accelerator: name,
        accelerator_reason: reason,
        capabilities: tools
            .iter()
            .map(|tool| Capability {
                name: tool.name.to_owned(),
                available: tool.available,
                detail: tool.detail.clone(),
            })
            .collect(),
        kernel: line("/proc/sys/kernel/osrelease"),
        boot_id: host_boot_id(),
        simulated: false,
    }
}

/// Kinds that this node cannot hold, and the line that says which tool is missing.
pub fn missing(tools: &[Tool]) -> BTreeMap<Kind, String> {
    let needs: [(Kind, &[&str]); 3] = [
        (Kind::Instance, &["qemu"]),
        (Kind::Snapshot, &["qemu-img"]),
        (Kind::Network, &["nft", "dnsmasq", "tun", "netns", "bridge", "tap"]),
    ];
    let lacking = |names: &[&str]| {
        let tool = tools.iter().find(|tool| names.contains(&tool.name) && !tool.available)?;
        Some(format!("missing-capability {}: {}", tool.name, tool.detail))
    };
    needs.into_iter().filter_map(|(kind, names)| Some((kind, lacking(names)?))).collect()
}

fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn memory_bytes(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

fn disk(state: &Path) -> (u64, u64) {
    match nix::sys::statvfs::statvfs(state) {
        Ok(stat) => {
            let unit = stat.fragment_size();
            (stat.blocks() * unit, stat.blocks_available() * unit)
        }
        Err(_) => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_stops_the_kind_that_needs_it() {
        let tool = |name, available| Tool { name, available, detail: "install it".into() };
        let missing = missing(&[tool("qemu", true), tool("dnsmasq", false), tool("kvm", false)]);
        assert_eq!(missing.keys().collect::<Vec<_>>(), [&Kind::Network]);
        assert_eq!(missing[&Kind::Network], "missing-capability dnsmasq: install it");
    }

    #[test]
    fn the_machine_is_described() {
        let status = status(Path::new("/"), None, &[]);
        assert!(status.vcpus > 0 && status.memory_bytes > 0 && status.disk_bytes > 0);
        assert_eq!(memory_bytes("MemFree: 1 kB\nMemTotal:       2048 kB\n"), 2 << 20);
    }
}
