//! What is known of the devices of this node, and the way to them.

use super::engine::{self, Engine, Place};
use super::keys::PublicKey;
use super::links::{self, Link};
use super::plan::{self, Asked, Change, Live, Peer, Server, Traffic};
use crate::drivers::DriverError;
use crate::env::Env;
use crate::names;
use crate::plain::Ordered;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Peers that nobody ordered go after so long: their orders may still be on their way after a lost ledger.
const STRANGE_FOR_MS: u64 = 30_000;
/// Between two words on what passed between a device and its peers.
const TELL_EVERY_MS: u64 = 60_000;

/// All devices of the node.
pub struct Room {
    pub(super) state: PathBuf,
    pub(super) env: Env,
    wanted: engine::Wanted,
    engine: OnceLock<Box<dyn Engine>>,
    inner: Mutex<Inner>,
    /// One look beside the others at a time.
    looks: Mutex<()>,
    messages: AtomicU64,
}

/// What is known. One look or change at a time.
#[derive(Default)]
pub(super) struct Inner {
    /// By the server's id.
    pub devices: BTreeMap<String, Device>,
    /// What was ordered of peers last, by kind and id.
    pub asked: BTreeMap<&'static str, BTreeMap<String, (Ordered, Asked)>>,
    /// The orders of peers that were carried out.
    pub applied: BTreeMap<String, (Vec<u8>, Asked)>,
}

/// What is known of a device.
pub(super) struct Device {
    /// As it should be.
    pub server: Server,
    /// The order that this agent has carried out, if it has.
    pub applied: Option<Vec<u8>>,
    /// As it was when it was looked at last, and what was changed since.
    pub live: Option<Live>,
    /// Routes that lead to it.
    pub routes: BTreeSet<IpNet>,
    /// Where its interface is not as it should be.
    pub crooked: Vec<(String, String)>,
    /// Peers that nobody ordered, and since when they are known.
    pub strangers: BTreeMap<PublicKey, u64>,
    /// What was said to it since a look began that goes on; none if there is no such look, or what it sees is of a device
    /// that was made anew meanwhile.
    pub said: Option<Vec<Change>>,
    told: BTreeMap<PublicKey, Told>,
    told_ms: u64,
}

/// What the server is told of a peer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    at_ms: u64,
    pub endpoint: Option<SocketAddr>,
    pub traffic: Traffic,
}

impl Device {
    pub fn new(server: Server) -> Self {
        Self {
            server,
            applied: None,
            live: None,
            routes: BTreeSet::new(),
            crooked: Vec::new(),
            strangers: BTreeMap::new(),
            said: None,
            told: BTreeMap::new(),
            told_ms: 0,
        }
    }

    /// The peer, as the device has it.
    pub fn peer(&self, key: &PublicKey) -> Option<&Peer> {
        self.live.as_ref()?.peers.get(key).map(|(peer, _)| peer)
    }

    pub fn told(&self, key: &PublicKey) -> Told {
        self.told.get(key).copied().unwrap_or_default()
    }

    /// Strangers that have had their time.
    pub fn overdue(&self, now_ms: u64) -> impl Iterator<Item = PublicKey> {
        let had_time = move |since: u64| now_ms.saturating_sub(since) >= STRANGE_FOR_MS;
        self.strangers.iter().filter(move |(_, since)| had_time(**since)).map(|(key, _)| *key)
    }

    /// What is told of peers changes once a minute, for all of them together; but that one has come is told at once.
    pub fn tell(&mut self, now_ms: u64) {
        let Some(live) = &self.live else { return };
        let is_time = now_ms.saturating_sub(self.told_ms) >= TELL_EVERY_MS || now_ms < self.told_ms;
        for (key, (peer, traffic)) in &live.peers {
            let before = self.told.get(key).copied().unwrap_or_default();
            let has_come = before.traffic.handshake_ms == 0 && traffic.handshake_ms > 0;
            let rested = now_ms.saturating_sub(before.at_ms) >= TELL_EVERY_MS || now_ms < before.at_ms;
            if has_come || (is_time && rested && before.traffic != *traffic) {
                let endpoint = peer.endpoint.filter(|_| traffic.handshake_ms > 0);
                self.told.insert(*key, Told { at_ms: now_ms, endpoint, traffic: *traffic });
            }
        }
        self.told.retain(|key, _| live.peers.contains_key(key));
        if is_time {
            self.told_ms = now_ms;
        }
    }
}

impl Inner {
    /// Those of this server that are to be on the device now.
    pub fn wanted(&self, server: &str, now_ms: u64) -> BTreeMap<PublicKey, Peer> {
        let all = self.asked.values().flat_map(BTreeMap::values).map(|(_, asked)| asked);
        let on = all.filter(|asked| asked.server == server && asked.is_on(now_ms));
        on.map(|asked| (asked.peer.key, asked.peer.clone())).collect()
    }

    /// All keys that orders speak of, on or not.
    pub fn known(&self, server: &str) -> BTreeSet<PublicKey> {
        let all = self.asked.values().flat_map(BTreeMap::values).map(|(_, asked)| asked);
        let asked = all.filter(|asked| asked.server == server).map(|asked| asked.peer.key);
        let applied = self.applied.values().filter(|(_, asked)| asked.server == server);
        asked.chain(applied.map(|(_, asked)| asked.peer.key)).collect()
    }
}

impl Room {
    /// Of the agent with this folder. What carries packets is found out when it is needed.
    pub fn new(state: &Path, env: Env, wanted: engine::Wanted) -> Self {
        Self {
            state: state.to_owned(),
            env,
            wanted,
            engine: OnceLock::new(),
            inner: Mutex::default(),
            looks: Mutex::default(),
            messages: AtomicU64::new(0),
        }
    }

    /// The same, with this engine.
    pub fn with_engine(state: &Path, env: Env, engine: Box<dyn Engine>) -> Self {
        Self { engine: OnceLock::from(engine), ..Self::new(state, env, engine::Wanted::Auto) }
    }

    /// How many messages were sent to devices that change something.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn engine(&self) -> Result<&dyn Engine, DriverError> {
        if let Some(engine) = self.engine.get() {
            return Ok(&**engine);
        }
        let chosen = engine::choose(self.wanted, &self.state)
            .map_err(|error| DriverError::Retry(format!("missing-capability wireguard: {error}")))?;
        tracing::info!(device = chosen.word(), "WireGuard");
        Ok(&**self.engine.get_or_init(|| chosen))
    }

    pub(super) fn place(&self, id: &str, network: Option<&str>) -> Place {
        Place { id: id.to_owned(), name: names::wireguard(id), namespace: network.map(names::namespace) }
    }

    /// Looks at a device.
    pub(super) fn refresh(&self, inner: &mut Inner, id: &str) -> Result<(), DriverError> {
        let Some(device) = inner.devices.get(id) else { return Ok(()) };
        let sight = self.sight(&self.place(id, device.server.network.as_deref()))?;
        self.take(inner, id, sight, &[]);
        Ok(())
    }

    /// The same without keeping others from the room: a device takes its time to tell of thousands of peers, and one more
    /// does not wait for that.
    pub(super) fn refresh_beside(&self, id: &str) -> Result<(), DriverError> {
        let _one = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let place = {
            let inner = &mut *self.lock();
            let Some(device) = inner.devices.get_mut(id) else { return Ok(()) };
            device.said = Some(Vec::new());
            self.place(id, device.server.network.as_deref())
        };
        let sight = self.sight(&place);
        let inner = &mut *self.lock();
        let said = inner.devices.get_mut(id).and_then(|device| device.said.take());
        let (Some(said), sight) = (said, sight?) else { return Ok(()) };
        self.take(inner, id, sight, &said);
        Ok(())
    }

    fn sight(&self, place: &Place) -> Result<Sight, DriverError> {
        let failed = |error: io::Error| DriverError::io(format!("looking at {}", place.name), &error);
        let Some(live) = self.engine()?.get(place).map_err(failed)? else { return Ok(None) };
        Ok(links::look(place).map_err(failed)?.map(|link| (live, link)))
    }

    /// Believes what was seen of a device, and `said` to it since the look began.
    fn take(&self, inner: &mut Inner, id: &str, sight: Sight, said: &[Change]) {
        let now_ms = self.env.now_ms();
        let (wanted, known) = (inner.wanted(id, now_ms), inner.known(id));
        let Some(device) = inner.devices.get_mut(id) else { return };
        let Some((mut live, link)) = sight else {
            device.live = None;
            device.routes.clear();
            return;
        };
        said.iter().for_each(|change| plan::after(&mut live, change));
        // Whoever said something has seen to the routes as well.
        if said.is_empty() {
            let on = live.peers.keys().filter_map(|key| wanted.get(key));
            let routes = plan::routes(&device.server, on).into_iter();
            let free = routes.filter(|it| link.taken(std::iter::once(it)).is_none()).collect();
            device.crooked = link.deviations(&device.server, &free);
            device.routes = free;
        }
        let strange = live.peers.keys().filter(|key| !known.contains(*key));
        let since = strange.map(|key| (*key, device.strangers.get(key).copied().unwrap_or(now_ms)));
        device.strangers = since.collect();
        device.live = Some(live);
        device.tell(now_ms);
    }

    /// One message to a device of which it is known what it holds.
    pub(super) fn send(&self, place: &Place, device: &mut Device, change: Change) -> Result<(), DriverError> {
        self.say(place, &change)?;
        if let Some(live) = &mut device.live {
            plan::after(live, &change);
        }
        device.said.iter_mut().for_each(|said| said.push(change.clone()));
        Ok(())
    }

    /// One message, if it changes anything.
    pub(super) fn say(&self, place: &Place, change: &Change) -> Result<(), DriverError> {
        if change.is_empty() {
            return Ok(());
        }
        if let Some(port) = change.port.filter(|port| *port != 0) {
            // A device would say no more than that it does not like it.
            UdpSocket::bind(("0.0.0.0", port)).map_err(|error| {
                DriverError::Retry(format!("UDP port {port} of this node cannot be listened on: {error}"))
            })?;
        }
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.engine()?
            .set(place, change)
            .map_err(|error| DriverError::io(format!("changing {}", place.name), &error))
    }
}

/// A device and its interface; none if either is not there.
type Sight = Option<(Live, Link)>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::keys::SecretKey;

    #[test]
    fn what_passed_is_told_once_a_minute_and_that_one_came_at_once() {
        let server = Server {
            private_key: SecretKey([1; 32]),
            port: 1,
            addresses: BTreeSet::new(),
            mtu: 1420,
            network: None,
            enabled: true,
        };
        let mut device = Device::new(server);
        let key = PublicKey([2; 32]);
        let mut pass = |now_ms: u64, handshake_ms: u64, received: u64| {
            let (preshared, allowed) = (None, BTreeSet::new());
            let endpoint = Some("192.0.2.1:9".parse().unwrap());
            let peer = Peer { key, preshared, allowed, endpoint, keepalive: 0 };
            let traffic = Traffic { handshake_ms, received, sent: 0 };
            device.live = Some(Live { peers: BTreeMap::from([(key, (peer, traffic))]), ..Live::default() });
            device.tell(now_ms);
            let told = device.told(&key);
            (told.traffic.received, told.endpoint.is_some())
        };
        assert_eq!(pass(100_000, 0, 0), (0, false));
        assert_eq!(pass(104_000, 103_000, 10), (10, true), "it has come");
        assert_eq!(pass(150_000, 103_000, 20), (10, true));
        assert_eq!(pass(162_000, 103_000, 30), (10, true), "not a minute since it was told");
        assert_eq!(pass(222_000, 103_000, 40), (40, true));
        assert_eq!(pass(250_000, 103_000, 50), (40, true));
    }
}
