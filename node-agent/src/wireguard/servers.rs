//! The driver of devices.

use super::engine::Place;
use super::links;
use super::plan::{self, Peer, Server};
use super::room::{Device, Inner, Room};
use super::rules;
use crate::drivers::{Deviation, DriverError};
use crate::host::netns;
use crate::plain::{ObservedPlain, Ordered, Plain};
use crate::{files, names};
use ipnet::IpNet;
use prost::Message as _;
use rhyzome_proto::v1::{WireguardServerOrder, WireguardServerReport};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Devices of one kind of order.
pub(super) struct Servers {
    pub kind: &'static str,
    pub room: Arc<Room>,
}

/// What was written down of a device before it was made, without its secrets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    kind: String,
    order: WireguardServerOrder,
}

impl Plain for Servers {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn all(&self) -> Result<BTreeSet<String>, DriverError> {
        let all = self.records().map_err(|error| DriverError::io("looking for devices", &error))?;
        Ok(all.into_iter().filter(|(_, record)| record.kind == self.kind).map(|(id, _)| id).collect())
    }

    fn look(&self, id: &str, ordered: Option<&Ordered>) -> Result<Option<ObservedPlain>, DriverError> {
        let failed = |error| DriverError::io(format!("looking at {id}"), &error);
        let Some(record) = self.record(id).map_err(failed)? else { return Ok(None) };
        // Without an order, or with one that cannot be carried out, it is there and in force as nothing.
        let wanted = ordered.and_then(|ordered| Some((ordered, Server::of(ordered).ok()?)));
        let Some((ordered, server)) = wanted else { return Ok(Some(ObservedPlain::default())) };
        {
            let inner = &mut *self.room.lock();
            let device = inner.devices.entry(id.to_owned()).or_insert_with(|| Device::new(server.clone()));
            if record.order.network_id == server.network.clone().unwrap_or_default() {
                device.server = server.clone();
            }
        }
        self.room.refresh_beside(id)?;
        let inner = &*self.room.lock();
        let order = WireguardServerOrder::decode(ordered.body.as_slice()).ok();
        let is_it = order.as_ref() == Some(&record.order) && is_as_it_should_be(&self.room, inner, id);
        let report = WireguardServerReport {
            device: self.room.engine()?.word().to_owned(),
            interface: if server.enabled { names::wireguard(id) } else { String::new() },
        };
        Ok(Some(ObservedPlain {
            in_force: is_it.then(|| ordered.body.clone()),
            report: report.encode_to_vec(),
            rendered: BTreeMap::from([("wireguard.conf".to_owned(), rendered(&server, &record.order))]),
            until_ms: None,
        }))
    }

    fn make(&self, id: &str, ordered: &Ordered) -> Result<Vec<Deviation>, DriverError> {
        if !names::is_safe_id(id) {
            return Err(DriverError::Permanent(format!("id {id:?} cannot be a folder's name")));
        }
        let server = Server::of(ordered).map_err(DriverError::Permanent)?;
        let order = WireguardServerOrder::decode(ordered.body.as_slice())
            .map_err(|error| DriverError::Permanent(format!("the order cannot be read: {error}")))?;
        let inner = &mut *self.room.lock();
        let failed = |error| DriverError::io(format!("the device of {id}"), &error);
        let before = self.record(id).map_err(failed)?;
        let place = self.room.place(id, server.network.as_deref());
        if let Some(before) = before.filter(|it| it.order.network_id != order.network_id || !order.enabled) {
            self.end(id, &before.order)?;
        }
        self.write(id, &Record { kind: self.kind.to_owned(), order }).map_err(failed)?;
        let mut device = inner.devices.remove(id).unwrap_or_else(|| Device::new(server.clone()));
        // A look that goes on sees what is no more.
        (device.server, device.said) = (server, None);
        let made =
            if device.server.enabled { self.build(inner, &mut device, &place) } else { Ok(Vec::new()) };
        if !device.server.enabled {
            device.live = None;
        }
        let was_applied = device.applied.as_deref() == Some(ordered.body.as_slice());
        device.applied = made.is_ok().then(|| ordered.body.clone());
        inner.devices.insert(id.to_owned(), device);
        self.room.refresh(inner, id)?;
        made.map(|changed| if was_applied { changed } else { Vec::new() })
    }

    fn take_away(&self, id: &str) -> Result<(), DriverError> {
        let inner = &mut *self.room.lock();
        let failed = |error| DriverError::io(format!("removing {id}"), &error);
        if let Some(record) = self.record(id).map_err(failed)? {
            self.end(id, &record.order)?;
        }
        inner.devices.remove(id);
        files::remove_folder_if_there(&names::wireguard_folder(&self.room.state, id)).map_err(failed)?;
        let on_node = |record: &Record| record.order.network_id.is_empty();
        if !self.records().map_err(failed)?.values().any(on_node) {
            rules::remove().map_err(failed)?;
        }
        Ok(())
    }
}

impl Servers {
    fn folder(&self) -> PathBuf {
        names::wireguard_folder(&self.room.state, "")
    }

    fn records(&self) -> io::Result<BTreeMap<String, Record>> {
        let entries = match fs::read_dir(self.folder()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries?,
        };
        let mut all = BTreeMap::new();
        for entry in entries {
            if let Ok(id) = entry?.file_name().into_string()
                && let Some(record) = self.record(&id)?
            {
                all.insert(id, record);
            }
        }
        Ok(all)
    }

    fn record(&self, id: &str) -> io::Result<Option<Record>> {
        match fs::read(names::wireguard_folder(&self.room.state, id).join("order.json")) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn write(&self, id: &str, record: &Record) -> io::Result<()> {
        let folder = names::wireguard_folder(&self.room.state, id);
        fs::create_dir_all(&folder)?;
        if self.record(id)?.as_ref() != Some(record) {
            files::write_durable(&folder.join("order.json"), &serde_json::to_vec_pretty(record)?)?;
            files::sync_folder(&folder)?;
        }
        Ok(())
    }

    fn end(&self, id: &str, order: &WireguardServerOrder) -> Result<(), DriverError> {
        let network = Some(order.network_id.as_str()).filter(|id| !id.is_empty());
        let place = self.room.place(id, network);
        let ended = self.room.engine()?.remove(&place);
        ended.map_err(|error| DriverError::io(format!("ending {}", place.name), &error))
    }

    /// The device with all its peers, its interface and what it may reach. Answers what was not as it should be.
    fn build(
        &self,
        inner: &Inner,
        device: &mut Device,
        place: &Place,
    ) -> Result<Vec<Deviation>, DriverError> {
        let failed = |error: io::Error| DriverError::io(format!("the device {}", place.name), &error);
        if let Some(namespace) = &place.namespace
            && !netns::exists(namespace).map_err(failed)?
        {
            return Err(DriverError::Retry(format!("waits for the namespace {namespace} of its network")));
        }
        let server = device.server.clone();
        let is_new = self.room.engine()?.ensure(place, server.mtu).map_err(failed)?;
        let now_ms = self.room.env.now_ms();
        let mut live = self.room.engine()?.get(place).map_err(failed)?.unwrap_or_default();
        let wanted = inner.wanted(&place.id, now_ms);
        let overdue: BTreeSet<_> = device.overdue(now_ms).collect();
        let spared = live.peers.keys().filter(|key| !overdue.contains(*key)).copied().collect();
        let peers: Vec<&Peer> = wanted.values().collect();
        let change = plan::difference(&server, &peers, &live, &spared);
        let mut changed = Vec::new();
        let mut differs = |expected: String, found: String| {
            changed.push(Deviation::new("wireguard.device", expected, found));
        };
        if is_new {
            differs(format!("the device {}", place.name), "it is gone".into());
        } else {
            if change.private_key.is_some() {
                differs("its own private key".into(), "another one".into());
            }
            let applied = |peer: &Peer| inner.applied.values().any(|(_, asked)| asked.peer == *peer);
            for peer in change.set.iter().filter(|peer| applied(peer)) {
                differs(format!("the peer {} as it was ordered", peer.key), "it is gone, or another".into());
            }
            if let Some(port) = change.port {
                differs(format!("port {port}"), format!("port {}", live.port));
            }
        }
        for key in &change.remove {
            differs("no peer that was not ordered".into(), format!("the peer {key}"));
        }
        self.room.say(place, &change)?;
        plan::after(&mut live, &change);
        let on = live.peers.keys().filter_map(|key| wanted.get(key));
        let routes = plan::routes(&server, on);
        changed.extend(self.straighten(&server, place, routes, is_new)?);
        device.live = Some(live);
        Ok(changed)
    }

    fn straighten(
        &self,
        server: &Server,
        place: &Place,
        routes: BTreeSet<IpNet>,
        is_new: bool,
    ) -> Result<Vec<Deviation>, DriverError> {
        let failed = |error: io::Error| DriverError::io(format!("the interface {}", place.name), &error);
        if server.network.is_none() {
            rules::ensure(server).map_err(failed)?;
        }
        let link = links::look(place).map_err(failed)?.unwrap_or_default();
        let own: BTreeSet<IpNet> = server.addresses.iter().map(IpNet::trunc).collect();
        if let Some(taken) = link.taken(own.iter()) {
            let why = format!("{taken} is a network of this node already: give the device another address");
            return Err(DriverError::Permanent(why));
        }
        let free = routes.into_iter().filter(|it| link.taken(std::iter::once(it)).is_none()).collect();
        let crooked = link.deviations(server, &free);
        if !crooked.is_empty() {
            links::build(place, server, &free).map_err(failed)?;
        }
        let told = crooked.into_iter().filter(|_| !is_new);
        Ok(told.map(|(expected, found)| Deviation::new("wireguard.device", expected, found)).collect())
    }
}

fn is_as_it_should_be(room: &Room, inner: &Inner, id: &str) -> bool {
    let Some(device) = inner.devices.get(id) else { return false };
    match &device.live {
        None => !device.server.enabled,
        Some(live) => {
            device.server.enabled
                && live.private_key.as_ref() == Some(&device.server.private_key)
                && live.port == device.server.port
                && device.crooked.is_empty()
                && device.overdue(room.env.now_ms()).next().is_none()
        }
    }
}

/// As `wg-quick` would have it, without the key and without the peers: those are objects of their own.
fn rendered(server: &Server, order: &WireguardServerOrder) -> String {
    let mut text = format!("[Interface]\n# PublicKey = {}\nPrivateKey = (sealed)\n", order.public_key);
    let _ = writeln!(text, "ListenPort = {}", server.port);
    for address in &server.addresses {
        let _ = writeln!(text, "Address = {address}");
    }
    let _ = writeln!(text, "MTU = {}", server.mtu);
    text
}
