//! What may pass by the devices of meshes: nodes ask each other whether they are there, and get answers to what they
//! asked. Nobody else gets in, from nowhere: no guest, no tenant's peer, no neighbour on the wire.

use crate::host::nft;
use crate::names::MESH_PREFIX;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;

const TABLE: &str = "inet rhyzome-mesh";

/// For meshes with these prefixes.
fn definition(prefixes: &BTreeSet<IpNet>) -> String {
    let mut strangers = String::new();
    for prefix in prefixes {
        let family = if matches!(prefix, IpNet::V4(_)) { "ip" } else { "ip6" };
        for side in ["saddr", "daddr"] {
            let _ = writeln!(strangers, "    iifname != \"lo\" {family} {side} {prefix} drop");
        }
    }
    format!(
        r#"table {TABLE} {{
  comment "made by rhyzome-agent; what is changed here by hand is replaced"
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{MESH_PREFIX}*" jump member
{strangers}  }}
  chain member {{
    ct state established,related accept
    icmp type echo-request accept
    icmpv6 type echo-request accept
    drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{MESH_PREFIX}*" drop
    oifname "{MESH_PREFIX}*" drop
  }}
}}
"#
    )
}

/// The rules as they were read back after they were written.
#[derive(Debug, Default)]
pub struct Rules {
    prefixes: BTreeSet<IpNet>,
    there: Option<String>,
}

impl Rules {
    /// True if nobody has changed them.
    pub fn stand(&self) -> io::Result<bool> {
        Ok(self.there.is_some() && nft::list(TABLE)? == self.there)
    }

    /// They are those for these meshes; without one there are none. All of it changes at once.
    pub fn ensure(&mut self, prefixes: &BTreeSet<IpNet>) -> io::Result<()> {
        if prefixes.is_empty() {
            nft::run(&format!("add table {TABLE}\ndelete table {TABLE}\n"))?;
            *self = Self::default();
            return Ok(());
        }
        if self.prefixes == *prefixes && self.stand()? {
            return Ok(());
        }
        nft::run(&format!("add table {TABLE}\ndelete table {TABLE}\n{}", definition(prefixes)))?;
        (self.prefixes, self.there) = (prefixes.clone(), nft::list(TABLE)?);
        Ok(())
    }
}
