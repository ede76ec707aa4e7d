//! dnsmasq's files for one network: addresses by DHCP, names by DNS. Text only; [`super::super::dnsmasq`] runs it.

use super::DesiredNetwork;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

/// What the configuration depends on besides the network itself.
#[derive(Debug, Clone)]
pub struct Setting<'a> {
    /// The network's folder: all of dnsmasq's files are there.
    pub folder: &'a Path,
    /// How long a lease holds. dnsmasq itself never gives less than 120 seconds; clients are told to renew at half
    /// of what is said here.
    pub lease_seconds: u32,
    /// The node's own resolvers, for networks that name none.
    pub node_dns: &'a [IpAddr],
    /// The user and group to become, if the agent itself is root.
    pub user: Option<(&'a str, &'a str)>,
}

/// The configuration. A change of it needs a restart of dnsmasq; ports are not part of it.
pub fn configuration(network: &DesiredNetwork, setting: &Setting<'_>) -> String {
    let folder = setting.folder.display();
    let (cidr, gateway, domain) = (network.cidr.trunc(), network.gateway, &network.domain);
    let lease = setting.lease_seconds;
    let mut text = format!(
        "\
# Written by rhyzome-agent for {id}. What is changed here is lost: add your own in {folder}/drop-in/NAME.conf
pid-file={folder}/dnsmasq.pid
conf-dir={folder}/drop-in,*.conf
interface={bridge}
except-interface=lo
bind-interfaces
# Names: those of the ports first, then what the resolvers below say.
no-hosts
no-resolv
addn-hosts={folder}/hosts
local=/{domain}/
domain={domain}
domain-needed
bogus-priv
cache-size=1000
",
        id = network.id,
        bridge = crate::names::BRIDGE,
    );
    // Without a way out no resolver can be reached, and asking would only make guests wait.
    if network.nat {
        let upstream = if network.dns.is_empty() { setting.node_dns } else { &network.dns };
        for server in upstream {
            let _ = writeln!(text, "server={server}");
        }
    }
    let _ = write!(
        text,
        "\
# Addresses: only those promised by the API, each to its own MAC.
dhcp-range={network_address},static,{netmask},{lease}s
dhcp-hostsfile={folder}/dhcp-hosts
dhcp-leasefile={folder}/leases
dhcp-lease-max=65536
dhcp-authoritative
dhcp-ignore-names
no-ping
quiet-dhcp
log-facility={folder}/dnsmasq.log
dhcp-option=option:dns-server,{gateway}
dhcp-option=option:T1,{t1}
dhcp-option=option:T2,{t2}
",
        network_address = cidr.network(),
        netmask = cidr.netmask(),
        t1 = (lease / 2).max(3),
        t2 = (lease / 8 * 7).max(4),
    );
    // An empty router option: a network without a way out must not draw its guests' default route.
    let _ = if network.nat {
        writeln!(text, "dhcp-option=option:router,{gateway}")
    } else {
        writeln!(text, "dhcp-option=option:router")
    };
    if let Some((user, group)) = setting.user {
        let _ = writeln!(text, "user={user}\ngroup={group}");
    }
    text
}

/// Which MAC gets which address and name: read by dnsmasq again when told so, without a restart.
pub fn reservations(network: &DesiredNetwork) -> String {
    lines(network.ports.iter().map(|port| {
        format!("{},{},{}", port.mac.to_ascii_lowercase(), port.address, port.hostname.to_ascii_lowercase())
    }))
}

/// Names of all ports, there from before they ask for an address until after they are silent.
pub fn names(network: &DesiredNetwork) -> String {
    lines(network.ports.iter().map(|port| {
        let name = port.hostname.to_ascii_lowercase();
        format!("{} {name}.{} {name}", port.address, network.domain)
    }))
}

fn lines(entries: impl Iterator<Item = String>) -> String {
    let mut entries: Vec<String> = entries.collect();
    // The order in which ports came must not look like a change.
    entries.sort();
    entries.iter().fold(String::new(), |text, entry| text + entry + "\n")
}

/// Resolvers that can be asked from another namespace: loopback addresses mean someone else there.
pub fn usable_resolvers(resolv_conf: &str) -> Vec<IpAddr> {
    let words = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = words.filter_map(|rest| rest.trim().parse::<IpAddr>().ok());
    // The way out of a network is IPv4.
    addresses.filter(|address| address.is_ipv4() && !address.is_loopback()).collect()
}

/// Addresses in dnsmasq's own table of leases: MAC and address of each line.
pub fn leases(table: &str) -> impl Iterator<Item = (&str, &str)> {
    table.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next()?.parse::<u64>().ok()?;
        Some((words.next()?, words.next()?))
    })
}

/// The table without leases that the network no longer promises. None if all of it still holds.
///
/// dnsmasq would not give an address to its new owner while its lease to the former one runs.
pub fn without_broken_leases(table: &str, network: &DesiredNetwork) -> Option<String> {
    let holds = |mac: &str, address: &str| {
        network
            .ports
            .iter()
            .any(|port| port.mac.eq_ignore_ascii_case(mac) && port.address.to_string() == address)
    };
    let stale = |line: &str| leases(line).any(|(mac, address)| !holds(mac, address));
    table.lines().any(stale).then(|| {
        table.lines().filter(|line| !stale(line)).fold(String::new(), |text, line| text + line + "\n")
    })
}
