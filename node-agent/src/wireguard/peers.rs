//! The driver of peers: each is a line in its server's device.

use super::keys::PublicKey;
use super::links;
use super::plan::{self, Asked, Change, Peer};
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

    fn is_together(&self) -> bool {
        true
    }

    /// One message to each device for all that are new on it.
    fn prepare(&self, all: &[(String, Ordered)]) {
        let inner = &mut *self.room.lock();
        let now_ms = self.room.env.now_ms();
        let mut new: BTreeMap<String, Vec<Peer>> = BTreeMap::new();
        for (id, ordered) in all {
            self.hear(inner, id, ordered);
            // What was there before is compared with what is found, each by itself.
            let Some((_, asked)) = inner.asked.get(self.kind).and_then(|all| all.get(id)) else { continue };
            if asked.is_on(now_ms) && !inner.applied.contains_key(id) {
                new.entry(asked.server.clone()).or_default().push(asked.peer.clone());
            }
        }
        for (server, peers) in new.into_iter().filter(|(_, peers)| peers.len() > 1) {
            if let Err(error) = self.put_on_together(inner, &server, peers) {
                tracing::debug!(server, %error, "peers come one by one");
            }
        }
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

    /// Those that the device does not know yet and that nothing speaks against.
    fn put_on_together(
        &self,
        inner: &mut Inner,
        server: &str,
        mut peers: Vec<Peer>,
    ) -> Result<(), DriverError> {
        let Some(device) = inner.devices.get_mut(server).filter(|device| device.server.enabled) else {
            return Ok(());
        };
        let Some(live) = &device.live else { return Ok(()) };
        peers.retain(|peer| !live.peers.contains_key(&peer.key));
        let place = self.room.place(server, device.server.network.as_deref());
        let routes = |peer: &Peer| plan::routes(&device.server, std::iter::once(peer));
        let is_routed = peers.iter().any(|peer| !routes(peer).is_subset(&device.routes));
        if is_routed {
            let link = links::look(&place).map_err(|error| DriverError::io(&place.name, &error))?;
            let link = link.unwrap_or_default();
            peers.retain(|peer| link.taken(routes(peer).difference(&device.routes)).is_none());
        }
        self.room.send(&place, device, Change { set: peers, ..Change::default() })?;
        if is_routed { self.reroute(inner, server) } else { Ok(()) }
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

#[cfg(test)]
mod tests {
    use super::super::engine::{Engine, Place};
    use super::super::keys::SecretKey;
    use super::super::plan::{Live, Server};
    use super::*;
    use crate::env::Env;
    use rhyzome_proto::v1::WireguardPeerOrder;
    use std::io;
    use std::path::Path;
    use std::sync::Mutex;

    /// Takes all that it is told, and remembers it.
    #[derive(Clone, Default)]
    struct Deaf(Arc<Mutex<Vec<Change>>>);

    impl Engine for Deaf {
        fn word(&self) -> &'static str {
            "deaf"
        }
        fn ensure(&self, _: &Place, _: u32) -> io::Result<bool> {
            Ok(false)
        }
        fn get(&self, _: &Place) -> io::Result<Option<Live>> {
            Ok(None)
        }
        fn set(&self, _: &Place, change: &Change) -> io::Result<()> {
            self.0.lock().unwrap().push(change.clone());
            Ok(())
        }
        fn remove(&self, _: &Place) -> io::Result<()> {
            Ok(())
        }
    }

    fn ordered(number: u8, key: PublicKey) -> (String, Ordered) {
        let order = WireguardPeerOrder {
            server_id: "wgs_1".into(),
            public_key: key.to_string(),
            allowed_ips: vec![format!("10.9.0.{number}/32")],
            enabled: true,
            ..WireguardPeerOrder::default()
        };
        (format!("wgp_{number}"), Ordered::from(order.encode_to_vec()))
    }

    #[test]
    fn those_that_come_together_are_one_message_and_who_changed_is_told_by_itself() {
        let deaf = Deaf::default();
        let room = Room::with_engine(Path::new("/"), Env::system(), Box::new(deaf.clone()));
        let server = Server {
            private_key: SecretKey([1; 32]),
            port: 1,
            addresses: BTreeSet::from(["10.9.0.254/24".parse().unwrap()]),
            mtu: 1420,
            network: None,
            enabled: true,
        };
        let mut device = Device::new(server);
        device.live = Some(Live::default());
        room.lock().devices.insert("wgs_1".into(), device);
        let peers = Peers { kind: "wireguard-peer", room: Arc::new(room) };
        let key = |number| PublicKey([number; 32]);
        let mut all: Vec<_> = (1..=3).map(|number| ordered(number, key(number))).collect();
        peers.prepare(&all);
        assert_eq!(deaf.0.lock().unwrap().iter().map(|change| change.set.len()).collect::<Vec<_>>(), [3]);
        for (id, ordered) in &all {
            assert_eq!(peers.make(id, ordered), Ok(Vec::new()));
            assert!(peers.look(id, Some(ordered)).unwrap().unwrap().in_force.is_some());
        }
        assert_eq!(deaf.0.lock().unwrap().len(), 1, "each was said twice");
        // One has another key: its former one goes, whoever comes with it.
        all = vec![ordered(3, key(33)), ordered(4, key(4)), ordered(5, key(5))];
        peers.prepare(&all);
        all.iter().for_each(|(id, ordered)| assert_eq!(peers.make(id, ordered), Ok(Vec::new())));
        let said = deaf.0.lock().unwrap().split_off(1);
        assert_eq!(said.iter().map(|change| change.set.len()).collect::<Vec<_>>(), [2, 0, 1]);
        assert_eq!(said[1].remove, [key(3)]);
    }
}
