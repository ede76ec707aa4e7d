//! What a network looks like on a node, computed without looking at the node: pure, and tested in milliseconds.

pub mod resolver;
pub mod ruleset;
#[cfg(test)]
mod tests;

use ipnet::Ipv4Net;
use std::net::{IpAddr, Ipv4Addr};

/// The network's own end of the way out, inside its namespace. The other end is called like the namespace.
pub const UPLINK: &str = "up0";

/// The /31 links between namespaces and the node come out of here (RFC 6598: never seen on the Internet).
const UPLINK_POOL: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
/// How many /31 fit into 100.64.0.0/10.
const UPLINK_SLOTS: u32 = 1 << 21;

/// What the node should hold for one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredNetwork {
    /// The object's id.
    pub id: String,
    /// The subnet.
    pub cidr: Ipv4Net,
    /// The network's own address on this node.
    pub gateway: Ipv4Addr,
    /// True: guests reach the outside, with the node's address. False: the network has no way out.
    pub nat: bool,
    /// Resolvers that the network's own one asks. Empty: those of the node.
    pub dns: Vec<IpAddr>,
    /// Guests find each other as NAME.DOMAIN.
    pub domain: String,
    /// One for each nic of each instance of this node.
    pub ports: Vec<Port>,
}

/// One nic of one instance: the only source of frames that its tap may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Whose nic it is.
    pub instance_id: String,
    /// The nic's name within the instance.
    pub nic: String,
    /// The name of its tap, see [`crate::names::tap`].
    pub tap: String,
    /// "52:54:00:12:34:56"
    pub mac: String,
    /// The address that the API promised.
    pub address: Ipv4Addr,
    /// Its name in the network's domain.
    pub hostname: String,
}

/// The two ends of the way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uplink {
    /// The end inside the namespace.
    pub inner: Ipv4Addr,
    /// The end on the node.
    pub outer: Ipv4Addr,
}

impl Uplink {
    /// The link with this number.
    pub fn of_slot(slot: u32) -> Self {
        let outer = u32::from(UPLINK_POOL) + (slot % UPLINK_SLOTS) * 2;
        Self { outer: Ipv4Addr::from(outer), inner: Ipv4Addr::from(outer + 1) }
    }

    /// Both ends as the subnet that they are.
    pub fn subnet(self) -> Ipv4Net {
        Ipv4Net::new_assert(self.outer, 31)
    }
}

/// Picks the number of a new uplink: where the network's id falls, or the next one that `taken` does not hold
/// and that overlaps none of the node's own addresses.
pub fn choose_slot(network_id: &str, taken: &[u32], node: &[Ipv4Net]) -> Option<u32> {
    let digest = crate::names::short_digest(network_id);
    let start = u32::from_str_radix(&digest[..8], 16).unwrap_or_default();
    let tries = u32::try_from(taken.len() + 4096).unwrap_or(UPLINK_SLOTS).min(UPLINK_SLOTS);
    (0..tries).map(|step| start.wrapping_add(step) % UPLINK_SLOTS).find(|slot| {
        let subnet = Uplink::of_slot(*slot).subnet();
        // A host route is somebody else's single address; a wide route is only a way to many.
        let clash = |other: &Ipv4Net| other.prefix_len() >= 10 && other.contains(&subnet.addr());
        !taken.contains(slot) && !node.iter().any(|other| clash(other) || subnet.contains(&other.addr()))
    })
}

/// Says why `network` cannot be made on any node. Every text here ends up in a file that some engine parses, so
/// nothing passes that could be more than a value there.
pub fn check(network: &DesiredNetwork) -> Result<(), String> {
    let DesiredNetwork { id, cidr, gateway, domain, .. } = network;
    if !crate::names::is_safe_id(id) {
        return Err(format!("network id {id:?} cannot be a folder's name"));
    }
    if !is_host_of(*cidr, *gateway) {
        return Err(format!("gateway {gateway} is no host address in {cidr}"));
    }
    if !domain.split('.').all(is_label) {
        return Err(format!("domain {domain:?} is no domain name"));
    }
    for (index, port) in network.ports.iter().enumerate() {
        let whose = format!("nic {} of {}", port.nic, port.instance_id);
        if port.tap.len() > 15 || !is_label(&port.tap) {
            return Err(format!("{whose}: tap {:?} is not the name of an interface", port.tap));
        }
        if !is_unicast_mac(&port.mac) {
            return Err(format!("{whose}: {:?} is not the MAC of a single interface", port.mac));
        }
        if !is_host_of(*cidr, port.address) || port.address == *gateway {
            return Err(format!("{whose}: address {} is not free for guests in {cidr}", port.address));
        }
        if !is_label(&port.hostname) {
            return Err(format!("{whose}: {:?} is no host name", port.hostname));
        }
        for other in &network.ports[..index] {
            let twice = if other.tap == port.tap {
                &port.tap
            } else if other.mac.eq_ignore_ascii_case(&port.mac) {
                &port.mac
            } else if other.address == port.address {
                &port.address.to_string()
            } else {
                continue;
            };
            return Err(format!(
                "{whose}: {twice} already belongs to nic {} of {}",
                other.nic, other.instance_id
            ));
        }
    }
    Ok(())
}

fn is_host_of(cidr: Ipv4Net, address: Ipv4Addr) -> bool {
    cidr.contains(&address)
        && address != cidr.network()
        && (cidr.prefix_len() > 30 || address != cidr.broadcast())
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && !text.starts_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_unicast_mac(text: &str) -> bool {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
        .collect();
    bytes.is_some_and(|bytes| bytes.len() == 6 && bytes[0] & 1 == 0 && bytes.iter().any(|byte| *byte != 0))
}
