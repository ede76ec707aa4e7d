//! The packet filter of a network, as text for nft.
//!
//! What belongs to a port is an element of a set, never a rule: the cost of a packet does not grow with the
//! number of ports, and a new port is a transaction of a few elements (3 ms; replacing a table costs the kernel
//! a grace period: 16 ms).

use super::{DesiredNetwork, UPLINK, Uplink};
use crate::names::{BRIDGE, NAMESPACE_PREFIX, WIREGUARD_PREFIX};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Everything that nft is to hold in one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruleset {
    /// "bridge rhyzome": the tables that are ours.
    tables: Vec<String>,
    /// Their sets (empty), chains and rules.
    fixed: String,
    /// What is in which set of the table `bridge rhyzome`.
    elements: BTreeMap<String, BTreeSet<String>>,
}

impl Ruleset {
    /// The rules inside the namespace of `network`. `uplink` is there if the network has a way out.
    pub fn of_network(network: &DesiredNetwork, uplink: Option<Uplink>) -> Self {
        let mut elements: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for port in &network.ports {
            let (tap, mac, address) = (&port.tap, port.mac.to_ascii_lowercase(), port.address);
            let mut add = |set: &str, element: String| {
                elements.entry(set.to_owned()).or_default().insert(element);
            };
            add("port_mac", format!("\"{tap}\" . {mac}"));
            add("port_arp", format!("\"{tap}\" . {mac} . {address}"));
            add("port_ip", format!("\"{tap}\" . {address}"));
            add("port_dhcp", format!("\"{tap}\" . 0x{}", mac.replace(':', "")));
        }
        let mut fixed = String::from(BRIDGE_TABLE);
        fixed.push_str(&inet_table(network, uplink));
        Self { tables: vec!["bridge rhyzome".into(), "inet rhyzome".into()], fixed, elements }
    }

    /// The rules in the node's own namespace: the same for any number of networks.
    pub fn of_node() -> Self {
        let fixed = NODE_TABLE.replace("UPLINKS", &format!("\"{NAMESPACE_PREFIX}*\""));
        Self { tables: vec!["inet rhyzome".into()], fixed, elements: BTreeMap::new() }
    }

    /// One transaction that makes it so, whatever was there.
    pub fn script(&self) -> String {
        let mut text = String::new();
        for table in &self.tables {
            // Adding first makes deleting legal where there is no such table.
            let _ = writeln!(text, "add table {table}\ndelete table {table}");
        }
        text.push_str(&self.definition());
        text
    }

    /// The tables that are ours.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.tables.iter().map(String::as_str)
    }

    /// One transaction that makes it so in a namespace where nothing is: spares the kernel's grace period.
    pub fn definition(&self) -> String {
        let mut text = self.fixed.clone();
        for (set, elements) in &self.elements {
            text.push_str(&change("add", set, elements.iter()));
        }
        text
    }

    /// One transaction that leads here from `before`; none if only replacing everything does.
    pub fn difference(&self, before: &Self) -> Option<String> {
        if self.tables != before.tables || self.fixed != before.fixed {
            return None;
        }
        let none = BTreeSet::new();
        let mut text = String::new();
        // What goes, goes first: the same tap may come back with another address.
        for (set, old) in &before.elements {
            let new = self.elements.get(set).unwrap_or(&none);
            text.push_str(&change("delete", set, old.difference(new)));
        }
        for (set, new) in &self.elements {
            let old = before.elements.get(set).unwrap_or(&none);
            text.push_str(&change("add", set, new.difference(old)));
        }
        Some(text)
    }
}

/// One transaction that takes all of ours out of the node's own namespace.
pub fn without_node_rules() -> &'static str {
    "add table inet rhyzome\ndelete table inet rhyzome\n"
}

fn change<'a>(verb: &str, set: &str, elements: impl Iterator<Item = &'a String>) -> String {
    let elements: Vec<&str> = elements.map(String::as_str).collect();
    if elements.is_empty() {
        return String::new();
    }
    format!("{verb} element bridge rhyzome {set} {{\n  {}\n}}\n", elements.join(",\n  "))
}

/// Default-deny at the port where frames come in. Family bridge knows no `ct state` on every kernel, and needs none
/// here: each frame is judged by itself.
///
/// IPv6 of guests falls to the policy: networks are IPv4 for now, so there is no address that a guest could rightly
/// send from, and no router advertisement passes. So do VLAN tags and everything else that is not IPv4 or ARP.
const BRIDGE_TABLE: &str = r#"table bridge rhyzome {
  comment "made by rhyzome-agent; what is changed here by hand is replaced"
  set port_mac {
    typeof iifname . ether saddr
  }
  set port_arp {
    typeof iifname . arp saddr ether . arp saddr ip
  }
  set port_ip {
    typeof iifname . ip saddr
  }
  set port_dhcp {
    typeof iifname . @th,288,48
  }
  chain from_port {
    type filter hook prerouting priority -300; policy drop;
    iifname . ether saddr != @port_mac drop
    ether type vmap { arp : goto arp_from_port, ip : goto ip_from_port }
  }
  chain arp_from_port {
    arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iifname . arp saddr ether . arp saddr ip @port_arp accept
    # A probe: is this address taken? It claims nothing.
    arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether @port_mac accept
    drop
  }
  chain ip_from_port {
    # DHCP: as a client only, and for its own MAC only (the field chaddr).
    udp sport 67 drop
    udp dport 67 udp sport 68 iifname . @th,288,48 != @port_dhcp drop
    ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
    iifname . ip saddr @port_ip accept
    drop
  }
}
"#;

/// Guests and the node: what a guest may ask of the namespace itself, and the way out.
fn inet_table(network: &DesiredNetwork, uplink: Option<Uplink>) -> String {
    let (gateway, cidr) = (network.gateway, network.cidr.trunc());
    let mut text = format!(
        r#"table inet rhyzome {{
  comment "made by rhyzome-agent; what is changed here by hand is replaced"
  chain input {{
    type filter hook input priority filter; policy drop;
    iif "lo" accept
    ct state established,related accept
    iifname "{BRIDGE}" udp sport 68 udp dport 67 accept
    iifname "{BRIDGE}" ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
    iifname "{BRIDGE}" ip daddr {gateway} icmp type echo-request accept
    # Peers of a tunnel that ends here: names, and no more.
    iifname "{WIREGUARD_PREFIX}*" ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
    iifname "{WIREGUARD_PREFIX}*" ip daddr {gateway} icmp type echo-request accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    # Frames from guest to guest come by here where the kernel hands bridged frames to IP filters.
    iifname "{BRIDGE}" oifname "{BRIDGE}" accept
    # Guests and peers of a tunnel that ends here. From where a peer may send is the device's to say.
    iifname "{WIREGUARD_PREFIX}*" oifname "{BRIDGE}" ip daddr {cidr} accept
    iifname "{BRIDGE}" oifname "{WIREGUARD_PREFIX}*" ip saddr {cidr} accept
"#
    );
    if let Some(Uplink { outer, .. }) = uplink {
        let _ = write!(
            text,
            r#"    ct state established,related accept
    ip daddr {outer} drop
    iifname "{BRIDGE}" oifname "{UPLINK}" ip saddr {cidr} accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{UPLINK}" ip saddr {cidr} masquerade
  }}
}}
"#
        );
    } else {
        text.push_str("  }\n}\n");
    }
    text
}

/// The node must not be reached by guests, nor guests of one network by those of another, nor the metadata service
/// of a cloud that this node itself may be a guest of (it hands out the node's own credentials).
const NODE_TABLE: &str = r#"table inet rhyzome {
  comment "made by rhyzome-agent; what is changed here by hand is replaced"
  chain input {
    type filter hook input priority filter; policy accept;
    iifname UPLINKS ct state established,related accept
    iifname UPLINKS drop
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname UPLINKS meta nfproto ipv6 drop
    iifname UPLINKS oifname UPLINKS drop
    iifname UPLINKS ip saddr != 100.64.0.0/10 drop
    iifname UPLINKS ip daddr 169.254.0.0/16 drop
    oifname UPLINKS ct state established,related accept
    oifname UPLINKS drop
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 100.64.0.0/10 oifname != UPLINKS masquerade
  }
}
"#;
