//! What is known of the devices of meshes, and the way to them.

use super::keys::Keys;
use super::plan::{self as members, Member};
use super::rules::Rules;
use crate::drivers::{Deviation, DriverError};
use crate::names;
use crate::plain::Ordered;
use crate::wireguard::engine::Place;
use crate::wireguard::keys::{PublicKey, SecretKey};
use crate::wireguard::links;
use crate::wireguard::plan::{self, Change, Live, Peer, Server, Traffic};
use crate::wireguard::room::Room;
use ipnet::IpNet;
use prost::Message as _;
use rhyzome_proto::v1::MeshMemberOrder;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Peers that nobody ordered go after so long: their orders may still be on their way after a lost ledger.
const STRANGE_FOR_MS: u64 = 30_000;
/// How often and how long a port is waited for that was just left.
const PORT_TRIES: u32 = 200;
const PORT_PAUSE: Duration = Duration::from_millis(2);
/// Between two words on what passed between members.
const TELL_EVERY_MS: u64 = 60_000;

/// All that is known. One look or change at a time.
#[derive(Default)]
pub struct Inner {
    /// Which node this is.
    pub node: Option<String>,
    /// As they were ordered, by id; not those that are to go.
    pub members: BTreeMap<String, Member>,
    /// Those that are to go.
    pub leaving: BTreeMap<String, Member>,
    /// Their orders.
    pub bodies: BTreeMap<String, Vec<u8>>,
    /// The orders that were carried out.
    pub applied: BTreeMap<String, Vec<u8>>,
    /// By mesh.
    pub devices: BTreeMap<String, Device>,
    /// Of this node's own members, as they were read last.
    pub keys: BTreeMap<String, Keys>,
    /// Next keys of others that have come.
    pub come: BTreeSet<PublicKey>,
    /// What holds for all meshes.
    pub rules: Rules,
    /// Since when orders say the next key of this node's own members.
    heard: BTreeMap<String, (PublicKey, u64)>,
}

/// What this node's own device in a mesh is like.
pub struct Device {
    /// Whose it is.
    pub member: String,
    /// As it should be.
    pub server: Server,
    /// Of the mesh.
    pub prefix: Option<IpNet>,
    /// As it was when it was looked at last, and what was changed since.
    pub live: Option<Live>,
    /// Keys that this agent has put there: they go as soon as nobody orders them.
    pub ours: BTreeSet<PublicKey>,
    /// What was told of peers.
    pub told: BTreeMap<PublicKey, Told>,
    told_ms: u64,
    crooked: Vec<(String, String)>,
    strangers: BTreeMap<PublicKey, u64>,
}

/// What the server is told of a peer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Told {
    pub endpoint: Option<SocketAddr>,
    pub traffic: Traffic,
}

/// Where the device of a member is.
pub fn place(id: &str) -> Place {
    Place { id: id.to_owned(), name: names::mesh(id), namespace: None }
}

impl Device {
    /// It is there, with the addresses and routes that it should have.
    pub fn is_straight(&self) -> bool {
        self.live.is_some() && self.crooked.is_empty()
    }

    pub fn new(member: &str, server: Server) -> Self {
        Self {
            member: member.to_owned(),
            server,
            prefix: None,
            live: None,
            ours: BTreeSet::new(),
            told: BTreeMap::new(),
            told_ms: 0,
            crooked: Vec::new(),
            strangers: BTreeMap::new(),
        }
    }

    /// With this key, and nobody that nobody ordered.
    pub fn is_as_it_should_be(&self, key: &SecretKey, now_ms: u64) -> bool {
        let Some(live) = &self.live else { return false };
        live.private_key.as_ref() == Some(key)
            && live.port == self.server.port
            && self.crooked.is_empty()
            && self.overdue(now_ms).next().is_none()
    }

    fn overdue(&self, now_ms: u64) -> impl Iterator<Item = PublicKey> {
        let had_time = move |since: u64| now_ms.saturating_sub(since) >= STRANGE_FOR_MS;
        self.strangers.iter().filter(move |(_, since)| had_time(**since)).map(|(key, _)| *key)
    }

    /// What is told changes once a minute, for all peers together; but that one has come is told at once.
    fn tell(&mut self, now_ms: u64) {
        let Some(live) = &self.live else { return };
        let is_time = now_ms.saturating_sub(self.told_ms) >= TELL_EVERY_MS || now_ms < self.told_ms;
        for (key, (peer, traffic)) in &live.peers {
            let before = self.told.get(key).map_or(0, |told| told.traffic.handshake_ms);
            if traffic.handshake_ms > 0 && (is_time || before == 0) {
                self.told.insert(*key, Told { endpoint: peer.endpoint, traffic: *traffic });
            }
        }
        self.told.retain(|key, _| live.peers.contains_key(key));
        if is_time {
            self.told_ms = now_ms;
        }
    }
}

impl Inner {
    /// Remembers what is ordered of a member. What cannot be read is said when it is to be made.
    pub fn hear(&mut self, id: &str, ordered: &Ordered) {
        let (is, is_not) = match ordered.remove {
            false => (&mut self.members, &mut self.leaving),
            true => (&mut self.leaving, &mut self.members),
        };
        is_not.remove(id);
        if self.bodies.get(id) == Some(&ordered.body) && is.contains_key(id) {
            return;
        }
        let order = MeshMemberOrder::decode(ordered.body.as_slice()).ok();
        match order.and_then(|order| Member::of(order).ok()) {
            Some(member) => drop(is.insert(id.to_owned(), member)),
            None => drop(is.remove(id)),
        }
        self.bodies.insert(id.to_owned(), ordered.body.clone());
    }

    /// Only these are ordered.
    pub fn retain(&mut self, is_ordered: impl Fn(&String) -> bool) {
        self.members.retain(|id, _| is_ordered(id));
        self.leaving.retain(|id, _| is_ordered(id));
        self.bodies.retain(|id, _| is_ordered(id));
        let next: BTreeSet<_> = self.members.values().filter_map(|member| member.next).collect();
        self.come.retain(|key| next.contains(key));
    }

    /// True if something of a member that is to go is still on a device.
    pub fn is_left(&self, member: &Member) -> bool {
        let live = self.devices.get(&member.mesh).and_then(|device| device.live.as_ref());
        member.keys().any(|key| live.is_some_and(|live| live.peers.contains_key(&key)))
    }

    /// The other members of a mesh.
    pub fn others(&self, mesh: &str) -> impl Iterator<Item = &Member> {
        let node = self.node.as_deref().unwrap_or_default();
        self.members.values().filter(move |member| member.mesh == mesh && member.node != node)
    }

    /// Of all meshes that this node is in.
    pub fn prefixes(&self) -> BTreeSet<IpNet> {
        self.devices.values().filter_map(|device| device.prefix).collect()
    }

    /// Since when the order of an own member says its next key.
    pub fn heard(&mut self, id: &str, member: &Member, keys: &Keys, now_ms: u64) -> Option<u64> {
        let next = keys.next_public().filter(|next| member.next == Some(*next))?;
        let entry = self.heard.entry(id.to_owned()).or_insert((next, now_ms));
        if entry.0 != next {
            *entry = (next, now_ms);
        }
        Some(entry.1)
    }
}

/// Looks at the device of a mesh, and at who has come.
pub fn look(room: &Room, inner: &mut Inner, mesh: &str) -> Result<(), DriverError> {
    let known: BTreeSet<PublicKey> = inner.others(mesh).flat_map(Member::keys).collect();
    let Some(device) = inner.devices.get_mut(mesh) else { return Ok(()) };
    let (place, now_ms) = (place(&device.member), room.env.now_ms());
    let failed = |error: io::Error| DriverError::io(format!("looking at {}", place.name), &error);
    device.live = room.engine()?.get(&place).map_err(failed)?;
    match links::look(&place).map_err(failed)? {
        Some(link) => device.crooked = link.deviations(&device.server, &BTreeSet::new()),
        None => device.live = None,
    }
    let here = device.live.iter().flat_map(|live| live.peers.keys());
    let strange = here.filter(|key| !known.contains(*key));
    let since = strange.map(|key| (*key, device.strangers.get(key).copied().unwrap_or(now_ms)));
    device.strangers = since.collect();
    device.tell(now_ms);
    let Some(live) = device.live.clone() else { return Ok(()) };
    let come: Vec<_> = inner.others(mesh).filter(|it| it.has_come(&live)).filter_map(|it| it.next).collect();
    inner.come.extend(come);
    Ok(())
}

/// Brings the peers of a mesh onto its device: one message, if anything differs. True if it did.
pub fn bring(room: &Room, inner: &mut Inner, mesh: &str) -> Result<bool, DriverError> {
    let wanted = members::peers(inner.others(mesh), &inner.come);
    let Some(device) = inner.devices.get_mut(mesh) else { return Ok(false) };
    let place = place(&device.member);
    let overdue: BTreeSet<_> = device.overdue(room.env.now_ms()).collect();
    let Some(live) = device.live.as_mut() else { return Ok(false) };
    let is_spared = |key: &&PublicKey| !device.ours.contains(*key) && !overdue.contains(*key);
    let spared = live.peers.keys().filter(is_spared).copied().collect();
    let peers: Vec<&Peer> = wanted.values().collect();
    let change = plan::difference(&device.server, &peers, live, &spared);
    send(room, &place, live, &change)?;
    device.ours = wanted.into_keys().collect();
    Ok(!change.is_empty())
}

/// One message to a device that holds this.
fn send(room: &Room, place: &Place, live: &mut Live, change: &Change) -> Result<(), DriverError> {
    room.say(place, change)?;
    plan::after(live, change);
    Ok(())
}

/// Gives a device that has a key another one. One in a process of its own binds its port anew for it, while its former
/// socket may still be there, and would be left without any: so it goes by another port, and comes back when its own
/// is free.
fn change_key(room: &Room, device: &mut Device) -> Result<(), DriverError> {
    let (place, server) = (place(&device.member), &device.server);
    let Some(live) = device.live.as_mut() else { return Ok(()) };
    let is_other = live.private_key.as_ref().is_some_and(|key| *key != server.private_key);
    if !is_other || room.engine()?.word() != "userspace" {
        return Ok(());
    }
    let aside = Change { private_key: Some(server.private_key.clone()), port: Some(0), ..Change::default() };
    send(room, &place, live, &aside)?;
    let back = Change { port: Some(server.port), ..Change::default() };
    let mut tries = 0;
    while let Err(error) = send(room, &place, live, &back) {
        tries += 1;
        if tries == PORT_TRIES {
            return Err(error);
        }
        std::thread::sleep(PORT_PAUSE);
    }
    Ok(())
}

/// The device of a mesh with all its peers, its interface and the rules. Answers what was not as it should be.
pub fn build(room: &Room, inner: &mut Inner, mesh: &str) -> Result<Vec<Deviation>, DriverError> {
    let Some(device) = inner.devices.get(mesh) else { return Ok(Vec::new()) };
    let (place, server) = (place(&device.member), device.server.clone());
    let failed = |error: io::Error| DriverError::io(format!("the device {}", place.name), &error);
    let mut changed = Vec::new();
    let mut differs = |expected: String, found: String| {
        changed.push(Deviation::new("wireguard.device", expected, found));
    };
    // It has no key and no address yet.
    let is_new = room.engine()?.ensure(&place, server.mtu).map_err(failed)?;
    let link = links::look(&place).map_err(failed)?.unwrap_or_default();
    let own: BTreeSet<IpNet> = server.addresses.iter().map(IpNet::trunc).collect();
    // Before any rule: what they keep out would be all that this network brings, the server's own words among it.
    if let Some(taken) = link.meets(own.iter()) {
        if let Some(device) = inner.devices.get_mut(mesh) {
            device.prefix = None;
        }
        let prefixes = inner.prefixes();
        inner.rules.ensure(&prefixes).map_err(failed)?;
        if is_new {
            room.engine()?.remove(&place).map_err(failed)?;
        }
        let why = format!("{taken} is a network of this node already: make a mesh with another prefix");
        return Err(DriverError::Permanent(why));
    }
    if let Some(device) = inner.devices.get_mut(mesh) {
        device.prefix = own.first().copied();
    }
    let prefixes = inner.prefixes();
    if !inner.rules.stand().map_err(failed)? {
        differs("the rules of the mesh".into(), "they are others".into());
    }
    // Before there is anything to get in by.
    inner.rules.ensure(&prefixes).map_err(failed)?;
    look(room, inner, mesh)?;
    let Some(device) = inner.devices.get_mut(mesh) else { return Ok(changed) };
    let live = device.live.get_or_insert_default();
    if is_new {
        differs(format!("the device {}", place.name), "it is gone".into());
    } else if live.port != server.port {
        differs(format!("port {}", server.port), format!("port {}", live.port));
    }
    for key in device.overdue(room.env.now_ms()) {
        differs("no peer that was not ordered".into(), format!("the peer {key}"));
    }
    for (expected, found) in device.crooked.iter().filter(|_| !is_new) {
        differs(expected.clone(), found.clone());
    }
    let crooked = !device.crooked.is_empty() || is_new;
    change_key(room, device)?;
    bring(room, inner, mesh)?;
    if crooked {
        links::build(&place, &server, &BTreeSet::new()).map_err(failed)?;
    }
    look(room, inner, mesh)?;
    Ok(changed)
}
