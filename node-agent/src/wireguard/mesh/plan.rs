//! What the orders of a mesh mean on one node: pure.

use crate::wireguard::keys::{PublicKey, SecretKey};
use crate::wireguard::plan::{Live, MTUS, Peer, Server, USUAL_MTU};
use ipnet::IpNet;
use rhyzome_proto::v1::MeshMemberOrder;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// A member, as it was ordered.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Which mesh.
    pub mesh: String,
    /// Whose.
    pub node: String,
    /// What people call its node.
    pub node_name: String,
    /// Of the mesh.
    pub prefix: IpNet,
    /// Its own.
    pub address: IpAddr,
    /// Where it is dialed.
    pub endpoint: Option<SocketAddr>,
    /// Its key, once it has told one.
    pub key: Option<PublicKey>,
    /// The one after it.
    pub next: Option<PublicKey>,
    /// The order itself.
    pub order: MeshMemberOrder,
}

impl Member {
    /// From an order.
    pub fn of(order: MeshMemberOrder) -> Result<Self, String> {
        let key = |text: &str| match text {
            "" => Ok(None),
            text => PublicKey::parse(text).map(Some),
        };
        let prefix: IpNet =
            order.prefix.parse().map_err(|_| format!("{:?} is no ADDRESS/PREFIX", order.prefix))?;
        let address: IpAddr =
            order.address.parse().map_err(|_| format!("{:?} is no address", order.address))?;
        if !prefix.contains(&address) {
            return Err(format!("{address} is not in {prefix}"));
        }
        let endpoint = match order.endpoint.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| format!("{text:?} is no ADDRESS:PORT"))?),
        };
        Ok(Self {
            mesh: order.mesh_id.clone(),
            node: order.node_id.clone(),
            node_name: order.node_name.clone(),
            prefix,
            address,
            endpoint,
            key: key(&order.public_key)?,
            next: key(&order.next_public_key)?,
            order,
        })
    }

    /// The device of this node, with this key.
    pub fn device(&self, private_key: SecretKey) -> Result<Server, String> {
        let order = &self.order;
        let mtu = if order.mtu == 0 { USUAL_MTU } else { order.mtu };
        if !MTUS.contains(&mtu) {
            return Err(format!("an mtu of {mtu} is not between {} and {}", MTUS.start(), MTUS.end()));
        }
        let own = IpNet::new(self.address, self.prefix.prefix_len()).map_err(|error| error.to_string())?;
        Ok(Server {
            private_key,
            port: u16::try_from(order.listen_port)
                .map_err(|_| format!("{} is no port", order.listen_port))?,
            addresses: BTreeSet::from([own]),
            mtu,
            network: None,
            enabled: true,
        })
    }

    /// Its keys.
    pub fn keys(&self) -> impl Iterator<Item = PublicKey> {
        [self.key, self.next].into_iter().flatten()
    }

    /// As a peer, on a device that holds this. Of two keys the next one may shake hands, and nothing passes; once it has
    /// `come`, it is the only one.
    pub fn peers(&self, come: bool) -> Vec<Peer> {
        let keepalive = u16::try_from(self.order.keepalive_seconds).unwrap_or(u16::MAX);
        let peer = |key: PublicKey, is_it: bool| Peer {
            key,
            preshared: None,
            allowed: if is_it { BTreeSet::from([IpNet::from(self.address)]) } else { BTreeSet::new() },
            endpoint: self.endpoint,
            keepalive: if is_it { keepalive } else { 0 },
        };
        match (self.key, self.next) {
            (_, Some(next)) if come => vec![peer(next, true)],
            (Some(key), Some(next)) => vec![peer(key, true), peer(next, false)],
            (Some(key), None) => vec![peer(key, true)],
            (None, _) => Vec::new(),
        }
    }

    /// True if its next key has shaken hands, or was let in before.
    pub fn has_come(&self, live: &Live) -> bool {
        let next = self.next.and_then(|next| live.peers.get(&next));
        next.is_some_and(|(peer, traffic)| traffic.handshake_ms > 0 || !peer.allowed.is_empty())
    }
}

/// The same for all members but this one, by key.
pub fn peers<'a>(
    members: impl Iterator<Item = &'a Member>,
    come: &BTreeSet<PublicKey>,
) -> BTreeMap<PublicKey, Peer> {
    let of = |member: &Member| member.peers(member.next.is_some_and(|next| come.contains(&next)));
    members.flat_map(of).map(|peer| (peer.key, peer)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::plan::Traffic;

    const KEY: [u8; 32] = [1; 32];
    const NEXT: [u8; 32] = [2; 32];

    fn member(next: bool) -> Member {
        let text = |key: [u8; 32]| PublicKey(key).to_string();
        let order = MeshMemberOrder {
            mesh_id: "mesh_1".into(),
            node_id: "node_1".into(),
            prefix: "10.98.0.0/24".into(),
            address: "10.98.0.3".into(),
            endpoint: "192.0.2.3:51820".into(),
            listen_port: 51820,
            keepalive_seconds: 25,
            public_key: text(KEY),
            next_public_key: if next { text(NEXT) } else { String::new() },
            ..MeshMemberOrder::default()
        };
        Member::of(order).unwrap()
    }

    #[test]
    fn the_next_key_shakes_hands_before_anything_passes() {
        let reached = |peers: Vec<Peer>| -> Vec<(u8, usize, u16)> {
            peers.iter().map(|peer| (peer.key.0[0], peer.allowed.len(), peer.keepalive)).collect()
        };
        assert_eq!(reached(member(false).peers(false)), [(1, 1, 25)]);
        assert_eq!(reached(member(true).peers(false)), [(1, 1, 25), (2, 0, 0)]);
        assert_eq!(reached(member(true).peers(true)), [(2, 1, 25)]);
        let mut live = Live::default();
        assert!(!member(true).has_come(&live));
        let waiting = member(true).peers(false).remove(1);
        live.peers.insert(waiting.key, (waiting.clone(), Traffic::default()));
        assert!(!member(true).has_come(&live));
        let shaken = Traffic { handshake_ms: 9, ..Traffic::default() };
        live.peers.insert(waiting.key, (waiting, shaken));
        assert!(member(true).has_come(&live) && !member(false).has_come(&live));
        // A device of its own process forgets the handshake when the peer is changed.
        let let_in = member(true).peers(true).remove(0);
        live.peers.insert(let_in.key, (let_in, Traffic::default()));
        assert!(member(true).has_come(&live));
    }

    #[test]
    fn the_device_has_the_address_with_the_prefix_of_the_mesh() {
        let device = member(false).device(SecretKey([9; 32])).unwrap();
        assert_eq!(device.addresses, BTreeSet::from(["10.98.0.3/24".parse().unwrap()]));
        assert_eq!((device.port, device.mtu), (51820, 1420));
        let mut order = member(false).order;
        order.address = "10.97.0.3".into();
        assert!(Member::of(order).unwrap_err().contains("is not in 10.98.0.0/24"));
    }
}
