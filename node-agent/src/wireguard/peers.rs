//! The driver of peers: each is a line in its server's device.

use super::keys::PublicKey;
use super::links;
use super::plan::{self, Asked, Change};
use super::room::{Device, Inner, Room};
use crate::drivers::{Deviation, DriverError};
use crate::plain::{ObservedPlain, Ordered, OrderedAll, Plain};
use ipnet::IpNet;
use prost::Message as _;
use rhyzome_proto::v1::WireguardPeerReport;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Peers of one kind of order.
pub(super) struct Peers {
    pub kind: &'static str,
    pub room: Arc<Room>,
}

impl Plain for Peers {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn all(&self) -> Result<BTreeSet<String>, DriverError> {
        let inner = self.room.lock();
        Ok(inner.asked.get(self.kind).into_iter().flat_map(BTreeMap::keys).cloned().collect())
    }

    fn look(&self, id: &str, ordered: Option<&Ordered>) -> Result<Option<ObservedPlain>, DriverError> {
        let inner = &mut *self.room.lock();
        if let Some(ordered) = ordered {
            self.hear(inner, id, ordered);
        }
        Ok(self.see(inner, id))
    }

    fn look_at_all(&self, ordered: &OrderedAll) -> Result<BTreeMap<String, ObservedPlain>, DriverError> {
        let inner = &mut *self.room.lock();
        for (id, ordered) in ordered {
            self.hear(inner, id, ordered);
        }
        inner.asked.entry(self.kind).or_default().retain(|id, _| ordered.contains_key(id));
        Ok(ordered.keys().filter_map(|id| Some((id.clone(), self.see(inner, id)?))).collect())
    }

    fn make(&self, id: &str, ordered: &Ordered) -> Result<Vec<Deviation>, DriverError> {
        let asked = Asked::of(ordered).map_err(DriverError::Permanent)?;
        let inner = &mut *self.room.lock();
        self.hear(inner, id, ordered);
        let before = inner.applied.get(id).cloned();
        let is_same = before.as_ref().is_some_and(|(body, _)| *body == ordered.body);
        // Another key or another server: the former one goes first.
        if let Some((_, before)) = before
            && (before.peer.key != asked.peer.key || before.server != asked.server)
        {
            self.take_off(inner, &before)?;
        }
        let now_ms = self.room.env.now_ms();
        let found = if asked.is_on(now_ms) {
            self.put_on(inner, &asked)?
        } else {
            self.take_off(inner, &asked)?;
            None
        };
        inner.applied.insert(id.to_owned(), (ordered.body.clone(), asked.clone()));
        let expected = || format!("the peer {} as it was ordered", asked.peer.key);
        let deviation = found.filter(|_| is_same).map(|it| Deviation::new("wireguard.peer", expected(), it));
        Ok(deviation.into_iter().collect())
    }

    fn take_away(&self, id: &str) -> Result<(), DriverError> {
        let inner = &mut *self.room.lock();
        let asked = inner.asked.get(self.kind).and_then(|all| all.get(id)).map(|(_, asked)| asked.clone());
        let applied = inner.applied.get(id).map(|(_, asked)| asked.clone());
        for asked in [asked, applied].into_iter().flatten() {
            self.take_off(inner, &asked)?;
        }
        inner.applied.remove(id);
        Ok(())
    }
}

impl Peers {
    /// Remembers what is ordered of it. What cannot be read is said when it is to be made.
    fn hear(&self, inner: &mut Inner, id: &str, ordered: &Ordered) {
        let all = inner.asked.entry(self.kind).or_default();
        if all.get(id).is_some_and(|(known, _)| known == ordered) {
            return;
        }
        match Asked::of(ordered) {
            Ok(asked) => drop(all.insert(id.to_owned(), (ordered.clone(), asked))),
            Err(_) => drop(all.remove(id)),
        }
    }

    /// What is here of it.
    fn see(&self, inner: &Inner, id: &str) -> Option<ObservedPlain> {
        let (ordered, asked) = inner.asked.get(self.kind)?.get(id)?;
        let applied = inner.applied.get(id).is_some_and(|(body, _)| *body == ordered.body);
        let device = inner.devices.get(&asked.server);
        let here = device.and_then(|device| device.peer(&asked.peer.key));
        if here.is_none() && !inner.applied.contains_key(id) {
            return None;
        }
        let is_on = asked.is_on(self.room.env.now_ms());
        let has_device = device.is_some_and(|device| device.server.enabled);
        let is_it = match (here, device) {
            (Some(here), Some(device)) => {
                is_on
                    && plan::is_as_asked(&asked.peer, here)
                    && own_routes(device, asked).is_subset(&device.routes)
            }
            // A server that is switched off has no device that it could be on.
            _ => applied && !(is_on && has_device),
        };
        let told = device.map(|device| device.told(&asked.peer.key)).unwrap_or_default();
        let report = WireguardPeerReport {
            endpoint: told.endpoint.map(|it| it.to_string()).unwrap_or_default(),
            last_handshake_ms: i64::try_from(told.traffic.handshake_ms).unwrap_or(0),
            received_bytes: told.traffic.received,
            sent_bytes: told.traffic.sent,
        };
        Some(ObservedPlain {
            in_force: is_it.then(|| ordered.body.clone()),
            report: report.encode_to_vec(),
            rendered: BTreeMap::new(),
            until_ms: asked.expires_ms.filter(|_| is_on),
        })
    }

    /// Answers what was there instead, if it was not as asked.
    fn put_on(&self, inner: &mut Inner, asked: &Asked) -> Result<Option<String>, DriverError> {
        let Some(device) = inner.devices.get_mut(&asked.server) else {
            return Err(DriverError::Retry(format!("waits for {}", asked.server)));
        };
        if !device.server.enabled {
            return Ok(None);
        }
        let place = self.room.place(&asked.server, device.server.network.as_deref());
        let new = own_routes(device, asked);
        let missing: BTreeSet<IpNet> = new.difference(&device.routes).copied().collect();
        if !missing.is_empty() {
            let link = links::look(&place).map_err(|error| DriverError::io(&place.name, &error))?;
            if let Some(taken) = link.unwrap_or_default().taken(missing.iter()) {
                let why = format!("{taken} is a network of this node already: a peer cannot be behind it");
                return Err(DriverError::Permanent(why));
            }
        }
        let before = device.peer(&asked.peer.key).cloned();
        let found = match &before {
            None => Some("it is gone".to_owned()),
            Some(here) if plan::is_as_asked(&asked.peer, here) => None,
            Some(_) => Some("somebody changed it".to_owned()),
        };
        if device.live.is_none() {
            return Err(DriverError::Retry(format!("waits for the device of {}", asked.server)));
        }
        if found.is_some() {
            let change = Change { set: vec![asked.peer.clone()], ..Change::default() };
            self.room.send(&place, device, change)?;
        }
        // Thousands of peers whose networks the device's own address reaches cost no look at all routes.
        let old = before.map(|it| plan::routes(&device.server, std::iter::once(&it))).unwrap_or_default();
        if !missing.is_empty() || old != new {
            self.reroute(inner, &asked.server)?;
        }
        Ok(found)
    }

    fn take_off(&self, inner: &mut Inner, asked: &Asked) -> Result<(), DriverError> {
        let key = &asked.peer.key;
        if self.is_elsewhere(inner, asked) {
            return Ok(());
        }
        let Some(device) = inner.devices.get_mut(&asked.server) else { return Ok(()) };
        if device.peer(key).is_none() {
            return Ok(());
        }
        let place = self.room.place(&asked.server, device.server.network.as_deref());
        let change = Change { remove: vec![*key], ..Change::default() };
        self.room.send(&place, device, change)?;
        if own_routes(device, asked).is_empty() { Ok(()) } else { self.reroute(inner, &asked.server) }
    }

    /// True if another order wants this key on this device: then it is not this one's to take away.
    fn is_elsewhere(&self, inner: &Inner, asked: &Asked) -> bool {
        let now_ms = self.room.env.now_ms();
        let same = |other: &Asked| (&other.server, other.peer.key) == (&asked.server, asked.peer.key);
        let others = inner.asked.values().flat_map(BTreeMap::values);
        others.filter(|(_, other)| same(other) && other != asked && other.is_on(now_ms)).count() > 0
    }

    /// Makes the routes to a device those of its peers.
    fn reroute(&self, inner: &mut Inner, server: &str) -> Result<(), DriverError> {
        let wanted = inner.wanted(server, self.room.env.now_ms());
        let Some(device) = inner.devices.get_mut(server) else { return Ok(()) };
        let on = device.live.iter().flat_map(|live| live.peers.keys());
        let routes = plan::routes(&device.server, on.filter_map(|key: &PublicKey| wanted.get(key)));
        if routes == device.routes {
            return Ok(());
        }
        let place = self.room.place(server, device.server.network.as_deref());
        let gone = device.routes.difference(&routes).copied().collect();
        let new = routes.difference(&device.routes).copied().collect();
        links::reroute(&place, &gone, &new).map_err(|error| DriverError::io(&place.name, &error))?;
        device.routes = routes;
        Ok(())
    }
}

/// The routes that this peer alone needs.
fn own_routes(device: &Device, asked: &Asked) -> BTreeSet<IpNet> {
    plan::routes(&device.server, std::iter::once(&asked.peer))
}
