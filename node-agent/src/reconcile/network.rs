//! Networks: what the order says, and a port for each nic of each instance of this node, so that a guest's lease
//! and rules are there before it boots.

use super::{Action, Decision, View};
use crate::drivers::instance::ObservedInstance;
use crate::drivers::network::{DesiredNetwork, Port};
use crate::names;
use ipnet::Ipv4Net;
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::{InstanceNic, NetworkOrder, Order};
use std::net::{IpAddr, Ipv4Addr};

pub(super) fn decide(view: View<'_>, id: &str, network: &NetworkOrder) -> Decision {
    match effective(view, id, network) {
        Err(reason) => Decision::refuse(reason),
        Ok(desired) if is_held(view, &desired) => Decision::Held,
        Ok(desired) => Decision::Do(Action::ApplyNetwork(desired)),
    }
}

pub(super) fn removal(view: View<'_>, id: &str) -> Decision {
    if let Some(port) = ports(view, id).first() {
        return Decision::wait(format!("waits for {}, which is on it", port.instance_id));
    }
    if view.world.networks.contains(id) || view.world.in_force.contains_key(id) {
        Decision::Do(Action::RemoveNetwork)
    } else {
        Decision::Do(Action::Forget)
    }
}

pub(super) fn is_in_force(view: View<'_>, id: &str, network: &NetworkOrder) -> bool {
    effective(view, id, network).is_ok_and(|desired| is_held(view, &desired))
}

fn is_held(view: View<'_>, desired: &DesiredNetwork) -> bool {
    view.world.networks.contains(&desired.id) && view.world.in_force.get(&desired.id) == Some(desired)
}

/// The network with all its ports; or which field of the order cannot be read.
pub fn effective(view: View<'_>, id: &str, network: &NetworkOrder) -> Result<DesiredNetwork, String> {
    let cidr: Ipv4Net =
        network.cidr.parse().map_err(|_| format!("cidr {:?} is no IPv4 subnet", network.cidr))?;
    let gateway: Ipv4Addr =
        network.gateway.parse().map_err(|_| format!("gateway {:?} is no IPv4 address", network.gateway))?;
    let dns: Result<Vec<IpAddr>, String> = network
        .dns
        .iter()
        .map(|text| text.parse().map_err(|_| format!("dns {text:?} is no IP address")))
        .collect();
    Ok(DesiredNetwork {
        id: id.to_owned(),
        cidr,
        gateway,
        nat: network.nat,
        dns: dns?,
        domain: network.domain.clone(),
        ports: ports(view, id),
    })
}

/// The address of a nic, without the prefix length.
pub(super) fn address(nic: &InstanceNic) -> Option<Ipv4Addr> {
    nic.address.split('/').next()?.parse().ok()
}

fn ports(view: View<'_>, network_id: &str) -> Vec<Port> {
    let mut ports: Vec<Port> = view
        .orders
        .values()
        .flat_map(|order| nics(view, order))
        .chain(view.world.instances.values().flat_map(|instance| unordered(view, instance)))
        .filter(|(_, _, nic)| nic.network_id == network_id)
        .filter_map(|(id, hostname, nic)| {
            Some(Port {
                instance_id: id.to_owned(),
                nic: nic.name.clone(),
                tap: names::tap(id, &nic.name),
                mac: nic.mac.to_lowercase(),
                address: address(nic)?,
                hostname: hostname.to_owned(),
            })
        })
        .collect();
    ports.sort_by(|one, other| one.tap.cmp(&other.tap));
    ports
}

/// The nics of a guest that runs and was never ordered, or whose order is still on its way: nobody takes its network
/// away on a guess.
fn unordered<'a>(
    view: View<'a>,
    instance: &'a ObservedInstance,
) -> impl Iterator<Item = (&'a str, &'a str, &'a InstanceNic)> {
    let runs = instance.process.is_some() && !view.orders.contains_key(&instance.id);
    let boot = instance.boot.as_ref().filter(|_| runs).map(|boot| &boot.order);
    boot.into_iter()
        .flat_map(|order| order.nics.iter().map(|nic| (instance.id.as_str(), order.hostname.as_str(), nic)))
}

/// The nics that one instance has or is to have: those of the running guest as it was booted, and those that the
/// order adds. What the order takes away or changes stays until the guest has stopped.
fn nics<'a>(view: View<'a>, order: &'a Order) -> Vec<(&'a str, &'a str, &'a InstanceNic)> {
    let Some(Body::Instance(instance)) = order.body.as_ref().and_then(|body| body.body.as_ref()) else {
        return Vec::new();
    };
    let id = order.object_id.as_str();
    let seen = view.world.instances.get(id).filter(|seen| seen.process.is_some());
    let booted = seen.and_then(|seen| seen.boot.as_ref()).map(|boot| &boot.order);
    let mut nics: Vec<&InstanceNic> = booted.map(|booted| booted.nics.iter().collect()).unwrap_or_default();
    if !order.remove {
        let added: Vec<&InstanceNic> = instance
            .nics
            .iter()
            .filter(|nic| {
                // Two nics may not have one address; the running one keeps it.
                !nics.iter().any(|old| old.name == nic.name || old.address == nic.address)
            })
            .collect();
        nics.extend(added);
    }
    nics.into_iter().map(|nic| (id, instance.hostname.as_str(), nic)).collect()
}
