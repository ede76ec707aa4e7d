//! Meshes: WireGuard among nodes. Of each mesh this node has one device, with a key that it makes itself, and all other
//! members as peers. Each member is an order of its own, this node's too: what changes of one is a difference of one.
//!
//! - `plan`: what orders mean: pure. `keys`: this node's own, and when they change. `rules`: who gets in.
//! - `room`: what is known of the devices. This file: the driver.

mod keys;
mod plan;
mod room;
mod rules;

pub use keys::SETTLE_MS;

use super::keys::PublicKey;
use super::room::Room;
use crate::drivers::{Deviation, DriverError};
use crate::identity::IdentityFolder;
use crate::plain::{ObservedPlain, Ordered, OrderedAll, Plain};
use crate::{files, names};
use keys::{Due, Keys};
use plan::Member;
use prost::Message as _;
use rhyzome_proto::v1::{MeshMemberOrder, MeshMemberReport, MeshPeer};
use room::{Device, Inner};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The kind.
pub const KIND: &str = "mesh-member";

/// Between two looks whether the next key of another member has come.
const POLL_MS: u64 = 200;
/// Nobody listens there: what is sent has the device shake hands.
const DISCARD: u16 = 9;

/// The driver of members.
pub(super) struct Members {
    room: Arc<Room>,
    inner: Mutex<Inner>,
}

impl Members {
    /// With the engine of this room.
    pub fn new(room: Arc<Room>) -> Self {
        Self { room, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self, id: &str) -> PathBuf {
        names::mesh_folder(&self.room.state, id)
    }

    /// Members of this node that were made here.
    fn own(&self) -> io::Result<BTreeSet<String>> {
        let entries = match fs::read_dir(self.folder("")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    /// Which node this is.
    fn node(&self, inner: &mut Inner) -> Result<String, DriverError> {
        if inner.node.is_none() {
            let record = IdentityFolder::new(&self.room.state).record();
            let record = record.map_err(|error| DriverError::Retry(error.to_string()))?;
            inner.node = record.map(|record| record.node_id);
        }
        inner.node.clone().ok_or_else(|| DriverError::Retry("this node has not joined a cluster yet".into()))
    }
}

impl Plain for Members {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn all(&self) -> Result<BTreeSet<String>, DriverError> {
        let own = self.own().map_err(|error| DriverError::io("looking for members", &error))?;
        Ok(own.into_iter().chain(self.lock().members.keys().cloned()).collect())
    }

    fn look(&self, id: &str, ordered: Option<&Ordered>) -> Result<Option<ObservedPlain>, DriverError> {
        let inner = &mut *self.lock();
        if let Some(ordered) = ordered {
            inner.hear(id, ordered);
        }
        if self.folder(id).exists() {
            self.look_at_device(inner, id)?;
        }
        self.see(inner, id)
    }

    fn look_at_all(&self, ordered: &OrderedAll) -> Result<BTreeMap<String, ObservedPlain>, DriverError> {
        let inner = &mut *self.lock();
        // A node that is in no mesh need not know who it is.
        if !ordered.is_empty() {
            self.node(inner)?;
        }
        for (id, ordered) in ordered {
            inner.hear(id, ordered);
        }
        inner.retain(|id| ordered.contains_key(id));
        let own = self.own().map_err(|error| DriverError::io("looking for members", &error))?;
        for id in &own {
            self.look_at_device(inner, id)?;
        }
        let mut all = BTreeMap::new();
        for id in own.iter().chain(ordered.keys()) {
            if let Some(seen) = self.see(inner, id)? {
                all.insert(id.clone(), seen);
            }
        }
        Ok(all)
    }

    fn make(&self, id: &str, ordered: &Ordered) -> Result<Vec<Deviation>, DriverError> {
        if !names::is_safe_id(id) {
            return Err(DriverError::Permanent(format!("id {id:?} cannot be a folder's name")));
        }
        let order = MeshMemberOrder::decode(ordered.body.as_slice())
            .map_err(|error| DriverError::Permanent(format!("the order cannot be read: {error}")))?;
        let member = Member::of(order).map_err(DriverError::Permanent)?;
        let inner = &mut *self.lock();
        inner.hear(id, ordered);
        let is_same = inner.applied.get(id).is_some_and(|body| *body == ordered.body);
        let changed = if member.node == self.node(inner)? {
            self.make_own(inner, id, &member)?
        } else {
            self.make_peer(inner, &member)?
        };
        inner.applied.insert(id.to_owned(), ordered.body.clone());
        Ok(if is_same { changed } else { Vec::new() })
    }

    fn take_away(&self, id: &str) -> Result<(), DriverError> {
        let inner = &mut *self.lock();
        let member = inner.members.remove(id).or_else(|| inner.leaving.get(id).cloned());
        inner.applied.remove(id);
        if self.folder(id).exists() {
            let failed = |error| DriverError::io(format!("removing {id}"), &error);
            self.room.engine()?.remove(&room::place(id)).map_err(failed)?;
            inner.devices.retain(|_, device| device.member != id);
            inner.keys.remove(id);
            let prefixes = inner.prefixes();
            inner.rules.ensure(&prefixes).map_err(failed)?;
            files::remove_folder_if_there(&names::wireguard_folder(&self.room.state, id)).map_err(failed)?;
            // Last: as long as it is there, this is tried again.
            return files::remove_folder_if_there(&self.folder(id)).map_err(failed);
        }
        let Some(member) = member else { return Ok(()) };
        if let Some(device) = inner.devices.get_mut(&member.mesh) {
            device.ours.extend(member.keys());
        }
        room::bring(&self.room, inner, &member.mesh).map(drop)
    }
}

impl Members {
    /// The device of this node, with all its peers; what somebody had changed of it.
    fn make_own(&self, inner: &mut Inner, id: &str, member: &Member) -> Result<Vec<Deviation>, DriverError> {
        let failed = |error: io::Error| DriverError::io(format!("the member {id}"), &error);
        let (folder, now_ms) = (self.folder(id), self.room.env.now_ms());
        let mut keys = match Keys::read(&folder).map_err(failed)? {
            Some(keys) => keys,
            None => {
                let keys = Keys::make(now_ms, member.order.rotations).map_err(failed)?;
                keys.write(&folder).map_err(failed)?;
                keys
            }
        };
        let due = keys.due(&member.order, inner.heard(id, member, &keys, now_ms), now_ms);
        match due {
            Due::Nothing(_) => {}
            Due::Make => {
                keys.announce(member.order.rotations).map_err(failed)?;
                keys.write(&folder).map_err(failed)?;
            }
            Due::Switch => {
                keys.switch(now_ms);
                keys.write(&folder).map_err(failed)?;
                tracing::info!(mesh = member.mesh, key = %keys::public(&keys.current), "another key");
            }
        }
        let server = member.device(keys.current.clone()).map_err(DriverError::Permanent)?;
        let new = || Device::new(id, server.clone());
        let device = inner.devices.entry(member.mesh.clone()).or_insert_with(new);
        device.server = server;
        let changed = room::build(&self.room, inner, &member.mesh)?;
        inner.keys.insert(id.to_owned(), keys);
        if due == Due::Switch {
            let members = inner.others(&member.mesh);
            members.for_each(poke);
        }
        Ok(changed)
    }

    /// Another member, on this node's device.
    fn make_peer(&self, inner: &mut Inner, member: &Member) -> Result<Vec<Deviation>, DriverError> {
        if inner.devices.get(&member.mesh).is_none_or(|device| device.live.is_none()) {
            return Err(DriverError::Retry("waits for this node's own member of the mesh".into()));
        }
        room::look(&self.room, inner, &member.mesh)?;
        let is_there = |inner: &Inner| {
            let live = inner.devices.get(&member.mesh).and_then(|device| device.live.as_ref());
            member.keys().all(|key| live.is_some_and(|live| live.peers.contains_key(&key)))
        };
        let has_come = |inner: &Inner| member.next.is_some_and(|next| inner.come.contains(&next));
        let was_there = is_there(inner) || has_come(inner);
        if room::bring(&self.room, inner, &member.mesh)? {
            // What was changed may have lost its session: whoever speaks first begins another.
            poke(member);
        }
        let what = || format!("the peer {} of the mesh", member.node_name);
        let deviation = || Deviation::new("wireguard.peer", what(), "it is gone");
        Ok((!was_there).then(deviation).into_iter().collect())
    }

    /// Looks at what is there of the device of this member of the node's own.
    fn look_at_device(&self, inner: &mut Inner, id: &str) -> Result<(), DriverError> {
        let Some(member) = inner.members.get(id).cloned() else { return Ok(()) };
        let failed = |error: io::Error| DriverError::io(format!("looking at {id}"), &error);
        let Some(keys) = Keys::read(&self.folder(id)).map_err(failed)? else { return Ok(()) };
        if let Ok(server) = member.device(keys.current.clone()) {
            let new = || Device::new(id, server);
            inner.devices.entry(member.mesh.clone()).or_insert_with(new);
        }
        inner.keys.insert(id.to_owned(), keys);
        room::look(&self.room, inner, &member.mesh)?;
        // One that is up as it should be is guarded, and stays so when another one is built.
        if let Some(device) = inner.devices.get_mut(&member.mesh)
            && device.is_straight()
        {
            device.prefix = Some(member.prefix);
        }
        Ok(())
    }

    /// What is here of it.
    fn see(&self, inner: &mut Inner, id: &str) -> Result<Option<ObservedPlain>, DriverError> {
        let is_own = self.folder(id).exists();
        let Some(member) = inner.members.get(id).cloned() else {
            // Without an order, or with one that cannot be carried out, it is there and in force as nothing.
            let is_left = inner.leaving.get(id).is_some_and(|member| inner.is_left(member));
            return Ok((is_own || is_left || inner.applied.contains_key(id)).then(ObservedPlain::default));
        };
        if is_own {
            self.see_own(inner, id, &member).map(Some)
        } else {
            Ok(self.see_peer(inner, id, &member))
        }
    }

    fn see_own(&self, inner: &mut Inner, id: &str, member: &Member) -> Result<ObservedPlain, DriverError> {
        let now_ms = self.room.env.now_ms();
        let (Some(keys), Some(device)) = (inner.keys.get(id).cloned(), inner.devices.get(&member.mesh))
        else {
            return Ok(ObservedPlain::default());
        };
        let stand = inner.rules.stand().map_err(|error| DriverError::io("looking at the rules", &error))?;
        let is_it = stand && device.is_as_it_should_be(&keys.current, now_ms);
        let report = MeshMemberReport {
            public_key: keys::public(&keys.current).to_string(),
            next_public_key: keys.next_public().map(|key| key.to_string()).unwrap_or_default(),
            key_since_ms: i64::try_from(keys.since_ms).unwrap_or(0),
            device: self.room.engine()?.word().to_owned(),
            interface: names::mesh(id),
            peers: inner.others(&member.mesh).map(|other| told(device, other)).collect(),
        };
        let rendered = rendered(member, &keys, inner.others(&member.mesh));
        let body = inner.applied.get(id).filter(|_| is_it).cloned();
        let until_ms = match keys.due(&member.order, inner.heard(id, member, &keys, now_ms), now_ms) {
            Due::Nothing(at) => at,
            Due::Make | Due::Switch => Some(0),
        };
        Ok(ObservedPlain {
            in_force: body.filter(|body| inner.bodies.get(id) == Some(body)),
            report: report.encode_to_vec(),
            rendered: BTreeMap::from([("mesh.conf".to_owned(), rendered)]),
            until_ms,
        })
    }

    fn see_peer(&self, inner: &Inner, id: &str, member: &Member) -> Option<ObservedPlain> {
        let applied = inner.applied.get(id)?;
        let device = inner.devices.get(&member.mesh);
        let live = device.and_then(|device| device.live.as_ref());
        let come = member.next.is_some_and(|next| inner.come.contains(&next));
        let has = |peer: &super::plan::Peer| {
            let here = live.and_then(|live| live.peers.get(&peer.key));
            here.is_some_and(|(here, _)| super::plan::is_as_asked(peer, here))
        };
        let is_it = inner.bodies.get(id) == Some(applied) && member.peers(come).iter().all(has);
        // Its next key may shake hands at any moment.
        let until_ms = (member.next.is_some() && !come).then(|| self.room.env.now_ms() + POLL_MS);
        let in_force = is_it.then(|| applied.clone());
        Some(ObservedPlain { in_force, until_ms, ..ObservedPlain::default() })
    }
}

/// What this node's device knows of another member.
fn told(device: &Device, member: &Member) -> MeshPeer {
    let all = member.keys().map(|key: PublicKey| device.told.get(&key).copied().unwrap_or_default());
    let last = all.max_by_key(|told| told.traffic.handshake_ms).unwrap_or_default();
    MeshPeer {
        node_name: member.node_name.clone(),
        address: member.address.to_string(),
        endpoint: last.endpoint.map(|it| it.to_string()).unwrap_or_default(),
        last_handshake_ms: i64::try_from(last.traffic.handshake_ms).unwrap_or(0),
        received_bytes: last.traffic.received,
        sent_bytes: last.traffic.sent,
    }
}

/// Has the device shake hands with another member. What is lost is lost: it is only a knock.
fn poke(member: &Member) {
    let any = if member.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let sent = UdpSocket::bind(any).and_then(|socket| socket.send_to(&[], (member.address, DISCARD)));
    if let Err(error) = sent {
        tracing::debug!(node = member.node_name, %error, "cannot knock");
    }
}

/// As `wg-quick` would have it, without the key.
fn rendered<'a>(own: &Member, keys: &Keys, others: impl Iterator<Item = &'a Member>) -> String {
    let mut text = format!("[Interface]\n# PublicKey = {}\n", keys::public(&keys.current));
    let (address, length) = (own.address, own.prefix.prefix_len());
    let _ = writeln!(text, "PrivateKey = (never leaves the node)\nListenPort = {}", own.order.listen_port);
    let _ = writeln!(text, "Address = {address}/{length}");
    for other in others {
        for peer in other.peers(false) {
            let allowed: Vec<String> = peer.allowed.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "\n# {}\n[Peer]\nPublicKey = {}", other.node_name, peer.key);
            let _ = writeln!(text, "AllowedIPs = {}", allowed.join(", "));
            if let Some(endpoint) = peer.endpoint {
                let _ = writeln!(text, "Endpoint = {endpoint}");
            }
        }
    }
    text
}
