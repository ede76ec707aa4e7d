//! What a device should hold, what it holds, and the one message that leads from this to that: pure.

use super::keys::{PublicKey, SecretKey};
use crate::plain::Ordered;
use ipnet::IpNet;
use prost::Message as _;
use rhyzome_proto::v1::{WireguardPeerOrder, WireguardServerOrder};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// Where no other size is ordered: fits into every path that carries 1500 bytes, over IPv6 too.
pub(super) const USUAL_MTU: u32 = 1420;
/// What devices of all kinds can do.
pub(super) const MTUS: std::ops::RangeInclusive<u32> = 576..=4032;

/// A device as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Whose public half the peers know.
    pub private_key: SecretKey,
    /// UDP, on the node.
    pub port: u16,
    /// Its own, each with the prefix that is reached through it.
    pub addresses: BTreeSet<IpNet>,
    /// Of what passes.
    pub mtu: u32,
    /// The network that it ends in; none: the node itself.
    pub network: Option<String>,
    /// False: it is not there.
    pub enabled: bool,
}

/// A peer, on a device or as it should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub key: PublicKey,
    /// Mixed into each handshake.
    pub preshared: Option<SecretKey>,
    /// What may come from it, and what goes to it.
    pub allowed: BTreeSet<IpNet>,
    /// Where it is called; on a device: where it called from last.
    pub endpoint: Option<SocketAddr>,
    /// Seconds; 0: never.
    pub keepalive: u16,
}

/// A peer that was ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its server's id.
    pub server: String,
    /// As it should be on the device, while it is there.
    pub peer: Peer,
    /// False: it is not on the device.
    pub enabled: bool,
    /// Milliseconds since 1970; from then on it is not on the device.
    pub expires_ms: Option<u64>,
}

/// What passed between a device and a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Milliseconds since 1970; 0: none yet.
    pub handshake_ms: u64,
    /// Bytes from it.
    pub received: u64,
    /// Bytes to it.
    pub sent: u64,
}

/// A device as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Live {
    /// None: it was given none yet.
    pub private_key: Option<SecretKey>,
    /// UDP.
    pub port: u16,
    /// By key.
    pub peers: BTreeMap<PublicKey, (Peer, Traffic)>,
}

/// One message to a device. What it does not speak of stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Another key.
    pub private_key: Option<SecretKey>,
    /// Another port.
    pub port: Option<u16>,
    /// Peers that go.
    pub remove: Vec<PublicKey>,
    /// Peers that come or change: keys, networks and keepalive as they stand here; the endpoint if there is one.
    pub set: Vec<Peer>,
}

impl Change {
    /// True if it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Server {
    /// From an order and its secrets.
    pub fn of(ordered: &Ordered) -> Result<Self, String> {
        let order = WireguardServerOrder::decode(ordered.body.as_slice())
            .map_err(|error| format!("the order cannot be read: {error}"))?;
        let private_key = match ordered.secret(&order.private_key) {
            Some(text) => SecretKey::parse("private key", text)?,
            // One that is on its way out needs none.
            None if !order.enabled || ordered.remove => SecretKey([0; 32]),
            None => return Err("the order came without its private key; order it again".into()),
        };
        let network = Some(order.network_id).filter(|id| !id.is_empty());
        let addresses = networks(&order.addresses)?;
        if network.is_some() && addresses.iter().any(|it| matches!(it, IpNet::V6(_))) {
            return Err("networks are IPv4 for now: a device in one cannot have an IPv6 address".into());
        }
        let mtu = if order.mtu == 0 { USUAL_MTU } else { order.mtu };
        if !MTUS.contains(&mtu) {
            return Err(format!("an mtu of {mtu} is not between {} and {}", MTUS.start(), MTUS.end()));
        }
        Ok(Self {
            private_key,
            port: u16::try_from(order.listen_port)
                .map_err(|_| format!("{} is no port", order.listen_port))?,
            addresses,
            mtu,
            network,
            enabled: order.enabled,
        })
    }
}

impl Asked {
    /// From an order and its secrets.
    pub fn of(ordered: &Ordered) -> Result<Self, String> {
        let order = WireguardPeerOrder::decode(ordered.body.as_slice())
            .map_err(|error| format!("the order cannot be read: {error}"))?;
        let preshared = match (order.preshared_key.as_str(), ordered.secret(&order.preshared_key)) {
            ("", _) => None,
            (_, Some(text)) => Some(SecretKey::parse("preshared key", text)?),
            (_, None) if ordered.remove => None,
            (_, None) => return Err("the order came without its preshared key; order it again".into()),
        };
        let endpoint = match order.endpoint.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| format!("{text:?} is no ADDRESS:PORT"))?),
        };
        let allowed = networks(&order.allowed_ips)?.iter().map(IpNet::trunc).collect();
        let keepalive = u16::try_from(order.keepalive_seconds)
            .map_err(|_| format!("keepalive of {} s is too long", order.keepalive_seconds))?;
        Ok(Self {
            server: order.server_id,
            peer: Peer { key: PublicKey::parse(&order.public_key)?, preshared, allowed, endpoint, keepalive },
            enabled: order.enabled && !ordered.remove,
            expires_ms: u64::try_from(order.expires_at_ms).ok().filter(|at| *at > 0),
        })
    }

    /// True while it is to be on the device.
    pub fn is_on(&self, now_ms: u64) -> bool {
        self.enabled && self.expires_ms.is_none_or(|at| now_ms < at)
    }
}

fn networks(texts: &[String]) -> Result<BTreeSet<IpNet>, String> {
    texts.iter().map(|text| text.parse().map_err(|_| format!("{text:?} is no ADDRESS/PREFIX"))).collect()
}

/// True if the device has this peer as it should be. Where it calls from is its own affair: it may roam.
pub fn is_as_asked(wanted: &Peer, live: &Peer) -> bool {
    let found = live.endpoint.is_some() || wanted.endpoint.is_none();
    Peer { endpoint: None, ..wanted.clone() } == Peer { endpoint: None, ..live.clone() } && found
}

/// What leads from `live` to `server` with exactly these peers but for those that `spared` keeps.
pub fn difference(server: &Server, wanted: &[&Peer], live: &Live, spared: &BTreeSet<PublicKey>) -> Change {
    let keys: BTreeSet<PublicKey> = wanted.iter().map(|peer| peer.key).collect();
    let is_strange = |key: &&PublicKey| !keys.contains(*key) && !spared.contains(*key);
    let differs = |peer: &&&Peer| live.peers.get(&peer.key).is_none_or(|(here, _)| !is_as_asked(peer, here));
    Change {
        private_key: (live.private_key.as_ref() != Some(&server.private_key))
            .then(|| server.private_key.clone()),
        port: (live.port != server.port).then_some(server.port),
        remove: live.peers.keys().filter(is_strange).copied().collect(),
        set: wanted.iter().filter(differs).map(|peer| (*peer).clone()).collect(),
    }
}

/// What the device holds after this, as long as nobody else changes it.
pub fn after(live: &mut Live, change: &Change) {
    if let Some(key) = &change.private_key {
        live.private_key = Some(key.clone());
    }
    live.port = change.port.unwrap_or(live.port);
    for key in &change.remove {
        live.peers.remove(key);
    }
    for peer in &change.set {
        let before = live.peers.get(&peer.key);
        let endpoint = peer.endpoint.or(before.and_then(|(before, _)| before.endpoint));
        let traffic = before.map(|(_, traffic)| *traffic).unwrap_or_default();
        live.peers.insert(peer.key, (Peer { endpoint, ..peer.clone() }, traffic));
    }
}

/// The routes that a device needs beside those of its own addresses. Never a default route: a tunnel does not take the
/// node's own way out.
pub fn routes<'a>(server: &Server, peers: impl Iterator<Item = &'a Peer>) -> BTreeSet<IpNet> {
    let reached = |network: &IpNet| server.addresses.iter().any(|own| own.contains(network));
    let all = peers.flat_map(|peer| peer.allowed.iter());
    all.filter(|network| network.prefix_len() > 0 && !reached(network)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server {
            private_key: SecretKey([1; 32]),
            port: 51820,
            addresses: BTreeSet::from(["10.9.0.1/24".parse().unwrap()]),
            mtu: 1420,
            network: None,
            enabled: true,
        }
    }

    fn peer(key: u8, allowed: &[&str]) -> Peer {
        let allowed = allowed.iter().map(|text| text.parse().unwrap()).collect();
        Peer { key: PublicKey([key; 32]), preshared: None, allowed, endpoint: None, keepalive: 0 }
    }

    fn holding(peers: &[&Peer]) -> Live {
        let mut live = Live::default();
        let change = difference(&server(), peers, &live, &BTreeSet::new());
        after(&mut live, &change);
        live
    }

    #[test]
    fn only_what_differs_is_said() {
        let (a, b, c) = (peer(1, &["10.9.0.2/32"]), peer(2, &["10.9.0.3/32"]), peer(3, &["10.9.0.4/32"]));
        let live = holding(&[&a, &b]);
        let nothing = BTreeSet::new();
        assert!(difference(&server(), &[&a, &b], &live, &nothing).is_empty());
        let change = difference(&server(), &[&a, &c], &live, &nothing);
        assert_eq!(change, Change { remove: vec![b.key], set: vec![c.clone()], ..Change::default() });
        let spared = BTreeSet::from([b.key]);
        assert_eq!(difference(&server(), &[&a, &c], &live, &spared).remove, []);
        let other = Server { port: 1, private_key: SecretKey([9; 32]), ..server() };
        let change = difference(&other, &[&a, &b], &live, &nothing);
        assert_eq!(
            (change.port, change.private_key, change.set),
            (Some(1), Some(SecretKey([9; 32])), vec![])
        );
    }

    #[test]
    fn a_peer_that_roams_is_as_asked_and_one_changed_by_hand_is_not() {
        let asked = Peer { endpoint: Some("192.0.2.1:1".parse().unwrap()), ..peer(1, &["10.9.0.2/32"]) };
        let mut live = holding(&[&asked]);
        live.peers.get_mut(&asked.key).unwrap().0.endpoint = Some("192.0.2.9:7".parse().unwrap());
        assert!(difference(&server(), &[&asked], &live, &BTreeSet::new()).is_empty());
        live.peers.get_mut(&asked.key).unwrap().0.keepalive = 5;
        assert_eq!(
            difference(&server(), &[&asked], &live, &BTreeSet::new()).set,
            std::slice::from_ref(&asked)
        );
        let lost = holding(&[&peer(1, &["10.9.0.2/32"])]);
        assert_eq!(difference(&server(), &[&asked], &lost, &BTreeSet::new()).set, [asked]);
    }

    #[test]
    fn routes_are_what_the_addresses_do_not_reach_and_never_the_way_out() {
        let (a, b) = (peer(1, &["10.9.0.2/32", "10.7.0.0/16"]), peer(2, &["0.0.0.0/0", "::/0", "fd00::/48"]));
        let routes = routes(&server(), [&a, &b].into_iter());
        let words: Vec<String> = routes.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["10.7.0.0/16", "fd00::/48"]);
    }

    #[test]
    fn orders_are_read_with_their_secrets_and_expire() {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let order = WireguardPeerOrder {
            server_id: "wgs".into(),
            public_key: key.into(),
            preshared_key: "sealed:1".into(),
            allowed_ips: vec!["10.9.0.2/32".into()],
            enabled: true,
            expires_at_ms: 50,
            ..WireguardPeerOrder::default()
        };
        let mut ordered = Ordered::from(order.encode_to_vec());
        assert!(Asked::of(&ordered).unwrap_err().contains("without its preshared key"));
        let (marker, value) = ("sealed:1".to_owned(), key.to_owned());
        ordered.secrets.push(rhyzome_proto::v1::OrderSecret { marker, value });
        let asked = Asked::of(&ordered).unwrap();
        assert!(asked.is_on(49) && !asked.is_on(50));
        assert!(
            !format!("{asked:?} {ordered:?} {:?}", ordered.secrets).contains(&key[4..40])
                || asked.peer.key.to_string() == key
        );
        ordered.remove = true;
        assert!(!Asked::of(&ordered).unwrap().is_on(1));
        let server =
            WireguardServerOrder { enabled: true, listen_port: 70_000, ..WireguardServerOrder::default() };
        assert!(Server::of(&server.encode_to_vec().into()).unwrap_err().contains("private key"));
    }
}
