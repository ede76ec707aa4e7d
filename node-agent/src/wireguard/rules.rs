//! What peers may reach through a device that ends on the node itself: beyond the node, not the node. Devices that end in
//! a network are in the rules of that network.

use super::plan::Server;
use crate::host::nft;
use crate::names::{NAMESPACE_PREFIX, WIREGUARD_PREFIX};
use ipnet::IpNet;
use std::fs;
use std::io;
use std::path::Path;

const TABLE: &str = "inet rhyzome-wireguard";

/// The node answers its peers when it is asked whether it is there, and otherwise only what it asked for itself. The
/// metadata service of a cloud that this node may be a guest of hands out the node's own credentials.
fn definition() -> String {
    format!(
        r#"table {TABLE} {{
  comment "made by rhyzome-agent; what is changed here by hand is replaced"
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{WIREGUARD_PREFIX}*" ct state established,related accept
    iifname "{WIREGUARD_PREFIX}*" icmp type echo-request accept
    iifname "{WIREGUARD_PREFIX}*" icmpv6 type echo-request accept
    iifname "{WIREGUARD_PREFIX}*" drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{WIREGUARD_PREFIX}*" oifname "{NAMESPACE_PREFIX}*" drop
    iifname "{NAMESPACE_PREFIX}*" oifname "{WIREGUARD_PREFIX}*" drop
    iifname "{WIREGUARD_PREFIX}*" ip daddr 169.254.0.0/16 drop
  }}
}}
"#
    )
}

/// The node's own rules are there, and it passes packets on. Answers what was there instead, if somebody took them away.
pub fn ensure(server: &Server) -> io::Result<()> {
    if nft::list(TABLE)?.is_none() {
        nft::run(&definition())?;
    }
    if server.addresses.iter().any(|it| matches!(it, IpNet::V4(_))) {
        switch("/proc/sys/net/ipv4/ip_forward", "1")?;
    }
    if server.addresses.iter().any(|it| matches!(it, IpNet::V6(_))) {
        pass_on_ipv6()?;
    }
    Ok(())
}

/// The last device of the node itself is gone.
pub fn remove() -> io::Result<()> {
    nft::run(&format!("add table {TABLE}\ndelete table {TABLE}\n"))
}

/// A machine that passes packets on takes no address from routers any more, unless it is told to.
fn pass_on_ipv6() -> io::Result<()> {
    let folder = Path::new("/proc/sys/net/ipv6/conf");
    if fs::read_to_string(folder.join("all/forwarding"))?.trim() == "1" {
        return Ok(());
    }
    for entry in fs::read_dir(folder)?.flatten() {
        let setting = entry.path().join("accept_ra");
        if fs::read_to_string(&setting).is_ok_and(|text| text.trim() == "1") {
            fs::write(setting, "2")?;
        }
    }
    fs::write(folder.join("all/forwarding"), "1")
}

fn switch(file: &str, value: &str) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{file}: {error}"));
    if fs::read_to_string(file).map_err(named)?.trim() == value {
        return Ok(());
    }
    fs::write(file, value).map_err(named)
}
