//! Bridge, taps and the way out, by rtnetlink: looks first, then changes what differs.
//!
//! A netlink socket belongs to the namespace of the thread that opened it, for ever. So it is opened on a thread
//! inside the namespace and used from outside.

use super::plan::{DesiredNetwork, UPLINK, Uplink};
use crate::drivers::Deviation;
use crate::host::netns;
use crate::names::BRIDGE;
use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

/// Netlink, in one namespace.
pub struct Links {
    handle: Handle,
}

/// One interface.
#[derive(Debug, Clone, Default)]
pub struct Link {
    index: u32,
    up: bool,
    controller: Option<u32>,
    /// The index of a veth's other end, in the other namespace.
    peer: Option<u32>,
}

/// What is there now.
#[derive(Debug, Default)]
pub struct Live {
    links: BTreeMap<String, Link>,
    addresses: Vec<(AddressMessage, u32, Ipv4Net)>,
    default_via: Option<Ipv4Addr>,
}

impl Live {
    /// The taps of ours, wanted or not.
    pub fn taps(&self) -> impl Iterator<Item = &String> {
        self.links.keys().filter(|name| {
            // What is called differently was put there by someone else, and stays.
            name.len() == 11
                && name.starts_with('t')
                && name[1..].bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    }

    /// Where this is not what the network wants, in a namespace that was as it should be.
    pub fn deviations(&self, network: &DesiredNetwork, uplink: Option<Uplink>) -> Vec<Deviation> {
        let mut all = Vec::new();
        let mut differs = |expected: String, found: &str| {
            all.push(Deviation::new("network.links", expected, found));
        };
        let bridge = self.links.get(BRIDGE);
        let standing = |link: Option<&Link>| match link {
            None => Some("it is gone"),
            Some(link) if !link.up => Some("it is down"),
            Some(_) => None,
        };
        if let Some(found) = standing(bridge) {
            differs(format!("the bridge {BRIDGE}"), found);
        }
        let own = Ipv4Net::new_assert(network.gateway, network.cidr.prefix_len());
        for (name, subnet) in
            [(BRIDGE, Some(own)), (UPLINK, uplink.map(|it| Ipv4Net::new_assert(it.inner, 31)))]
        {
            let (Some(link), Some(subnet)) = (self.links.get(name), subnet) else { continue };
            let here: Vec<_> = self.addresses.iter().filter(|(_, at, _)| *at == link.index).collect();
            if here.len() != 1 || here.iter().any(|(_, _, address)| *address != subnet) {
                let found: Vec<String> = here.iter().map(|(_, _, address)| address.to_string()).collect();
                differs(
                    format!("{name} with the address {subnet}"),
                    &format!("addresses: {}", found.join(", ")),
                );
            }
        }
        if let Some(uplink) = uplink {
            if let Some(found) = standing(self.links.get(UPLINK)) {
                differs(format!("the way out {UPLINK}"), found);
            } else if self.default_via != Some(uplink.outer) {
                differs(format!("the default route by {}", uplink.outer), "it is gone, or leads elsewhere");
            }
        }
        for port in &network.ports {
            let link = self.links.get(&port.tap);
            let apart = || {
                let master = link.and_then(|link| link.controller);
                (master != bridge.map(|bridge| bridge.index)).then_some("it is not on the bridge")
            };
            if let Some(found) = standing(link).or_else(apart) {
                differs(format!("the tap {} of nic {} of {}", port.tap, port.nic, port.instance_id), found);
            }
        }
        let wanted = |tap: &&String| network.ports.iter().any(|port| port.tap == **tap);
        for tap in self.taps().filter(|tap| !wanted(tap)) {
            differs(format!("no tap {tap}"), "it is there");
        }
        all
    }

    /// All addresses of the namespace.
    pub fn addresses(&self) -> Vec<Ipv4Net> {
        self.addresses.iter().map(|(_, _, address)| *address).collect()
    }
}

impl Links {
    /// Opens netlink in the namespace of this thread; the runtime whose context this is drives it.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Looks at everything in the namespace.
    pub async fn observe(&self) -> io::Result<Live> {
        let failed = |error| failure("reading the namespace's interfaces", &error);
        let mut live = Live::default();
        let mut links = self.handle.link().get().execute();
        while let Some(message) = links.try_next().await.map_err(failed)? {
            let (name, link) = read_link(message);
            live.links.insert(name, link);
        }
        live.addresses = self.addresses().await.map_err(failed)?;
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut routes = self.handle.route().get(all).execute();
        while let Some(message) = routes.try_next().await.map_err(failed)? {
            if message.header.destination_prefix_length != 0 {
                continue;
            }
            for attribute in message.attributes {
                if let RouteAttribute::Gateway(RouteAddress::Inet(via)) = attribute {
                    live.default_via = Some(via);
                }
            }
        }
        Ok(live)
    }

    async fn addresses(&self) -> Result<Vec<(AddressMessage, u32, Ipv4Net)>, rtnetlink::Error> {
        let mut found = Vec::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await? {
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            if let Some(subnet) = local.and_then(|local| Ipv4Net::new(local, message.header.prefix_len).ok())
            {
                let index = message.header.index;
                found.push((message, index, subnet));
            }
        }
        Ok(found)
    }

    /// Bridge, gateway address and the namespace's end of the way out; taps come down and without frames.
    ///
    /// Answers the bridge's index. `make_taps` makes the missing ones: that is an ioctl, done on a thread inside the namespace.
    pub async fn build(
        &self,
        live: &Live,
        network: &DesiredNetwork,
        uplink: Option<Uplink>,
        make_taps: impl FnOnce(&[&str]) -> io::Result<()>,
    ) -> io::Result<u32> {
        if let Some(link) = live.links.get("lo").filter(|link| !link.up) {
            self.up("lo", link.index).await?;
        }
        let bridge = match live.links.get(BRIDGE) {
            Some(link) => link.clone(),
            None => {
                // A bridge without an address of its own takes one of its ports', and changes it with them.
                let message = LinkBridge::new(BRIDGE).address(bridge_mac(&network.id)).up().build();
                self.add(BRIDGE, message).await?;
                Link { up: true, ..self.get(BRIDGE).await?.ok_or_else(|| gone(BRIDGE))? }
            }
        };
        if !bridge.up {
            self.up(BRIDGE, bridge.index).await?;
        }
        let own = Ipv4Net::new_assert(network.gateway, network.cidr.prefix_len());
        self.set_address(live, BRIDGE, bridge.index, own).await?;
        self.build_inner_end(live, uplink).await?;

        let wanted: BTreeSet<&str> = network.ports.iter().map(|port| port.tap.as_str()).collect();
        let missing: Vec<&str> =
            wanted.iter().filter(|tap| !live.links.contains_key(**tap)).copied().collect();
        if !missing.is_empty() {
            make_taps(&missing)?;
        }
        for tap in wanted {
            let enslaved = live.links.get(tap).is_some_and(|link| link.controller == Some(bridge.index));
            if !enslaved {
                let message = LinkUnspec::new_with_name(tap).controller(bridge.index).build();
                self.set(tap, message).await?;
            }
        }
        Ok(bridge.index)
    }

    async fn build_inner_end(&self, live: &Live, uplink: Option<Uplink>) -> io::Result<()> {
        let Some(uplink) = uplink else { return self.delete(UPLINK).await };
        let Some(link) = self.get(UPLINK).await? else { return Err(gone(UPLINK)) };
        let subnet = Ipv4Net::new_assert(uplink.inner, 31);
        self.set_address(live, UPLINK, link.index, subnet).await?;
        if !link.up {
            self.up(UPLINK, link.index).await?;
        }
        // Taking an interface down takes its routes away, so that the one seen before may be gone.
        if live.default_via != Some(uplink.outer) || !live.links.get(UPLINK).is_some_and(|link| link.up) {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(uplink.outer).build();
            let added = self.handle.route().add(route).replace().execute().await;
            added.map_err(|error| failure("setting the default route", &error))?;
        }
        Ok(())
    }

    /// Lets frames through taps. Only after the rules are there.
    pub async fn open_taps(&self, live: &Live, network: &DesiredNetwork) -> io::Result<()> {
        for port in &network.ports {
            if !live.links.get(&port.tap).is_some_and(|link| link.up) {
                let message = LinkUnspec::new_with_name(&port.tap).up().build();
                self.set(&port.tap, message).await?;
            }
        }
        Ok(())
    }

    /// Takes away taps that no port has.
    pub async fn close_taps(&self, live: &Live, network: &DesiredNetwork) -> io::Result<()> {
        for tap in live.taps() {
            if !network.ports.iter().any(|port| port.tap == *tap) {
                self.delete(tap).await?;
            }
        }
        Ok(())
    }

    /// Called on the node's own netlink: the way out of `namespace`. True if it was made anew.
    pub async fn build_outer_end(&self, namespace: &str, inside: &Live, uplink: Uplink) -> io::Result<bool> {
        let inner = inside.links.get(UPLINK);
        let outer = self.get(namespace).await?;
        let paired = match (inner, &outer) {
            (Some(inner), Some(outer)) => inner.peer == Some(outer.index) && outer.peer == Some(inner.index),
            _ => false,
        };
        let subnet = Ipv4Net::new_assert(uplink.outer, 31);
        if paired && outer.as_ref().is_some_and(|link| link.up) {
            let index = outer.map(|link| link.index).unwrap_or_default();
            let failed = |error| failure("reading the node's addresses", &error);
            let present = self.addresses().await.map_err(failed)?;
            if present.iter().any(|(_, at, address)| *at == index && *address == subnet) {
                return Ok(false);
            }
        }
        // Half of a pair, or one whose namespace was deleted by hand: made anew as a whole.
        self.delete(namespace).await?;
        let target = File::open(netns::path(namespace))?;
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name(UPLINK).build();
        peer.attributes.push(LinkAttribute::NetNsFd(target.as_raw_fd()));
        let message = LinkVeth::new(namespace, UPLINK).set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
        self.add(namespace, message.build()).await?;
        let link = self.get(namespace).await?.ok_or_else(|| gone(namespace))?;
        // The node's end speaks IPv4 only. Where the kernel has no IPv6 there is nothing to switch off.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{namespace}/disable_ipv6"), "1");
        self.set_address(&Live::default(), namespace, link.index, subnet).await?;
        self.up(namespace, link.index).await?;
        Ok(true)
    }

    /// Takes an interface away; fine if there is none.
    pub async fn delete(&self, name: &str) -> io::Result<()> {
        let Some(link) = self.get(name).await? else { return Ok(()) };
        match self.handle.link().del(link.index).execute().await {
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(failure(format!("deleting interface {name}"), &error)),
            Ok(()) => Ok(()),
        }
    }

    async fn get(&self, name: &str) -> io::Result<Option<Link>> {
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(message) => Ok(message.map(|message| read_link(message).1)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failure(format!("reading interface {name}"), &error)),
        }
    }

    async fn add(&self, name: &str, message: LinkMessage) -> io::Result<()> {
        let added = self.handle.link().add(message).execute().await;
        added.map_err(|error| failure(format!("making interface {name}"), &error))
    }

    async fn set(&self, name: &str, message: LinkMessage) -> io::Result<()> {
        let set = self.handle.link().set(message).execute().await;
        set.map_err(|error| failure(format!("setting interface {name}"), &error))
    }

    async fn up(&self, name: &str, index: u32) -> io::Result<()> {
        self.set(name, LinkUnspec::new_with_index(index).up().build()).await
    }

    /// Gives the interface exactly this one address.
    async fn set_address(&self, live: &Live, name: &str, index: u32, subnet: Ipv4Net) -> io::Result<()> {
        let failed = |error| failure(format!("giving {subnet} to interface {name}"), &error);
        let mut present = false;
        for (message, at, address) in live.addresses.iter().filter(|(_, at, _)| *at == index) {
            if *address == subnet {
                present = true;
            } else {
                tracing::info!(%address, index = at, "taking away an address that is not the network's");
                self.handle.address().del(message.clone()).execute().await.map_err(failed)?;
            }
        }
        if present {
            return Ok(());
        }
        let address = self.handle.address().add(index, IpAddr::V4(subnet.addr()), subnet.prefix_len());
        match address.execute().await {
            Err(rtnetlink::Error::NetlinkError(error))
                if error.to_io().kind() == io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            other => other.map_err(failed),
        }
    }
}

fn read_link(message: LinkMessage) -> (String, Link) {
    let mut name = String::new();
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link { index: message.header.index, up, ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = text,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Link(index) => link.peer = Some(index),
            _ => {}
        }
    }
    (name, link)
}

/// Locally administered, and always the same for a network: guests keep it in their ARP caches.
fn bridge_mac(network_id: &str) -> Vec<u8> {
    let digest = crate::names::short_digest(&format!("bridge/{network_id}"));
    let tail = (0..10).step_by(2).map(|at| u8::from_str_radix(&digest[at..at + 2], 16).unwrap_or_default());
    std::iter::once(0x02).chain(tail).collect()
}

fn is_missing(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    message.to_io().raw_os_error() == Some(nix::libc::ENODEV)
}

fn gone(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("interface {name} was taken away while it was being set up"),
    )
}

fn failure(doing: impl std::fmt::Display, error: &rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            let error = message.to_io();
            io::Error::new(error.kind(), format!("{doing}: {error}"))
        }
        other => io::Error::other(format!("{doing}: {other}")),
    }
}
