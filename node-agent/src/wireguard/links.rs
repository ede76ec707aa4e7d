//! What a device needs of the kernel beside its peers: addresses, size, routes, and being up. Looks first, then changes
//! what differs.

use super::engine::{Place, inside};
use super::plan::Server;
use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The interface as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    index: u32,
    up: bool,
    mtu: u32,
    addresses: BTreeSet<IpNet>,
    routes: BTreeSet<IpNet>,
    /// Networks that other interfaces beside it are in.
    others: BTreeSet<IpNet>,
}

impl Link {
    /// Where it is not as it should be; empty: nowhere.
    pub fn deviations(&self, server: &Server, routes: &BTreeSet<IpNet>) -> Vec<(String, String)> {
        let mut all = Vec::new();
        if !self.up {
            all.push(("the device up".to_owned(), "it is down".to_owned()));
        }
        if self.mtu != server.mtu {
            all.push((format!("an mtu of {}", server.mtu), format!("{}", self.mtu)));
        }
        if self.addresses != server.addresses {
            all.push((format!("addresses: {}", words(&server.addresses)), words(&self.addresses)));
        }
        if self.routes != *routes {
            let missing = routes.difference(&self.routes).copied().collect();
            let strange = self.routes.difference(routes).copied().collect();
            all.push((format!("routes to {}", words(&missing)), format!("routes to {}", words(&strange))));
        }
        all
    }

    /// The first of these networks of which another interface has a part, or all.
    pub fn meets<'a>(&self, networks: impl Iterator<Item = &'a IpNet>) -> Option<IpNet> {
        let mut networks = networks;
        let meets = |network: &IpNet, other: &IpNet| other.contains(network) || network.contains(other);
        networks.find(|network| self.others.iter().any(|other| meets(network, other))).copied()
    }

    /// The first of these networks that another interface is in already: a tunnel does not take it away.
    pub fn taken<'a>(&self, networks: impl Iterator<Item = &'a IpNet>) -> Option<IpNet> {
        let mut networks = networks;
        networks.find(|network| self.others.iter().any(|other| other.contains(*network))).copied()
    }
}

fn words(networks: &BTreeSet<IpNet>) -> String {
    if networks.is_empty() {
        return "none".into();
    }
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The interface; none if it is not there.
pub fn look(place: &Place) -> io::Result<Option<Link>> {
    with_netlink(place, async |handle| look_by(&handle, &place.name).await)
}

/// Makes it so, and answers what is there then.
pub fn build(place: &Place, server: &Server, routes: &BTreeSet<IpNet>) -> io::Result<()> {
    with_netlink(place, async |handle| {
        let Some(link) = look_by(&handle, &place.name).await? else {
            return Err(rtnetlink::Error::RequestFailed);
        };
        if link.mtu != server.mtu || !link.up {
            let message = LinkUnspec::new_with_index(link.index).mtu(server.mtu).up().build();
            handle.link().set(message).execute().await?;
        }
        for (message, network) in addresses_of(&handle, link.index).await? {
            if !server.addresses.contains(&network) {
                handle.address().del(message).execute().await?;
            }
        }
        for network in server.addresses.difference(&link.addresses) {
            handle.address().add(link.index, network.addr(), network.prefix_len()).execute().await?;
        }
        // Of what was there before it was taken down nothing is left.
        let here = if link.up { link.routes } else { BTreeSet::new() };
        route(&handle, link.index, &here, routes).await
    })
}

/// Changes the routes of a device that is as it should be but for them.
pub fn reroute(place: &Place, gone: &BTreeSet<IpNet>, new: &BTreeSet<IpNet>) -> io::Result<()> {
    with_netlink(place, async |handle| {
        let index = look_by(&handle, &place.name).await?.map(|link| link.index);
        route(&handle, index.ok_or(rtnetlink::Error::RequestFailed)?, gone, new).await
    })
}

fn with_netlink<T: Send>(
    place: &Place,
    work: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error> + Send,
) -> io::Result<T> {
    inside(place.namespace.as_deref(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            let done = work(handle).await;
            done.map_err(|error| io::Error::other(format!("the interface {}: {error}", place.name)))
        })
    })
}

async fn look_by(handle: &Handle, name: &str) -> Result<Option<Link>, rtnetlink::Error> {
    let mut link = None;
    let mut links = handle.link().get().execute();
    while let Some(message) = links.try_next().await? {
        let mut here = Link {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Link::default()
        };
        let mut is_it = false;
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(found) => is_it = found == name,
                LinkAttribute::Mtu(mtu) => here.mtu = mtu,
                _ => {}
            }
        }
        if is_it {
            link = Some(here);
        }
    }
    let Some(mut link) = link else { return Ok(None) };
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await? {
        match network_of(&message) {
            Some(network) if message.header.index == link.index => drop(link.addresses.insert(network)),
            // A single address of somebody else's is no network that could be taken from anyone.
            Some(network) => drop(link.others.insert(network.trunc())),
            None => {}
        }
    }
    for any in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        let mut routes = handle.route().get(any).execute();
        while let Some(message) = routes.try_next().await? {
            link.routes.extend(route_of(&message, link.index));
        }
    }
    Ok(Some(link))
}

async fn addresses_of(handle: &Handle, index: u32) -> Result<Vec<(AddressMessage, IpNet)>, rtnetlink::Error> {
    let mut all = Vec::new();
    let mut addresses = handle.address().get().set_link_index_filter(index).execute();
    while let Some(message) = addresses.try_next().await? {
        if let Some(network) = network_of(&message).filter(|_| message.header.index == index) {
            all.push((message, network));
        }
    }
    Ok(all)
}

/// With its host part. Not those that the kernel gives by itself.
fn network_of(message: &AddressMessage) -> Option<IpNet> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(it) => address = Some(*it),
            AddressAttribute::Address(it) if address.is_none() => address = Some(*it),
            _ => {}
        }
    }
    let address = address.filter(|it| !matches!(it, IpAddr::V6(it) if it.is_unicast_link_local()))?;
    IpNet::new(address, message.header.prefix_len).ok()
}

/// One of those that we, or people, make: not the kernel's own.
fn route_of(message: &RouteMessage, index: u32) -> Option<IpNet> {
    if message.header.protocol == RouteProtocol::Kernel {
        return None;
    }
    let leads_here = |it: &RouteAttribute| matches!(it, RouteAttribute::Oif(oif) if *oif == index);
    if !message.attributes.iter().any(leads_here) {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(it)) => {
            IpNet::new((*it).into(), message.header.destination_prefix_length).ok()
        }
        RouteAttribute::Destination(RouteAddress::Inet6(it)) => {
            IpNet::new((*it).into(), message.header.destination_prefix_length).ok()
        }
        _ => None,
    })
}

async fn route(
    handle: &Handle,
    index: u32,
    here: &BTreeSet<IpNet>,
    wanted: &BTreeSet<IpNet>,
) -> Result<(), rtnetlink::Error> {
    for network in here.difference(wanted) {
        match handle.route().del(message(*network, index)).execute().await {
            Err(rtnetlink::Error::NetlinkError(error))
                if error.to_io().raw_os_error() == Some(nix::libc::ESRCH) => {}
            other => other?,
        }
    }
    for network in wanted.difference(here) {
        handle.route().add(message(*network, index)).replace().execute().await?;
    }
    Ok(())
}

fn message(network: IpNet, index: u32) -> RouteMessage {
    match network {
        IpNet::V4(it) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(it.addr(), it.prefix_len())
            .output_interface(index)
            .build(),
        IpNet::V6(it) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(it.addr(), it.prefix_len())
            .output_interface(index)
            .build(),
    }
}
