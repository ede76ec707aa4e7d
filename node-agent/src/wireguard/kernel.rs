//! The kernel's WireGuard, by netlink.

use super::engine::{Engine, Place, inside};
use super::keys::{PublicKey, SecretKey};
use super::plan::{Change, Live, Peer, Traffic};
use crate::host::netns;
use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use rtnetlink::{LinkUnspec, LinkWireguard};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

/// Peers in one message: the kernel takes no more than a page or two at once.
const AT_ONCE: usize = 16;
/// The same for networks of one peer.
const NETWORKS_AT_ONCE: usize = 64;

/// The kernel's own devices.
#[derive(Debug, Clone, Copy)]
pub struct Kernel;

impl Kernel {
    /// Makes a device in a namespace that nobody ever sees.
    pub fn probe() -> io::Result<()> {
        netns::on_own_thread(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            add_link("probe", None)
        })
    }
}

impl Engine for Kernel {
    fn word(&self) -> &'static str {
        "kernel"
    }

    fn ensure(&self, place: &Place, _mtu: u32) -> io::Result<bool> {
        if is_there(place)? {
            return Ok(false);
        }
        // Born on the node, where its UDP socket stays; moved to where it ends.
        match &place.namespace {
            None => add_link(&place.name, None)?,
            Some(namespace) => add_link(&place.name, Some(&File::open(netns::path(namespace))?))?,
        }
        Ok(true)
    }

    fn get(&self, place: &Place) -> io::Result<Option<Live>> {
        if !is_there(place)? {
            return Ok(None);
        }
        let attributes = vec![WireguardAttribute::IfName(place.name.clone())];
        let message = WireguardMessage { cmd: WireguardCmd::GetDevice, attributes };
        let answers =
            inside(place.namespace.as_deref(), || request(vec![message], NLM_F_REQUEST | NLM_F_DUMP))?;
        let mut live = Live::default();
        for attribute in answers.into_iter().flat_map(|answer| answer.attributes) {
            match attribute {
                WireguardAttribute::PrivateKey(key) => {
                    live.private_key = Some(SecretKey(key)).filter(|key| !key.is_zero());
                }
                WireguardAttribute::ListenPort(port) => live.port = port,
                WireguardAttribute::Peers(peers) => peers.into_iter().for_each(|peer| read(&mut live, peer)),
                _ => {}
            }
        }
        Ok(Some(live))
    }

    fn set(&self, place: &Place, change: &Change) -> io::Result<()> {
        let messages = messages(&place.name, change);
        inside(place.namespace.as_deref(), || request(messages, NLM_F_REQUEST | NLM_F_ACK)).map(drop)
    }

    fn remove(&self, place: &Place) -> io::Result<()> {
        let gone = place.namespace.as_deref().is_some_and(|it| !netns::exists(it).unwrap_or(true));
        if gone || !is_there(place)? {
            return Ok(());
        }
        inside(place.namespace.as_deref(), || {
            let index = nix::net::if_::if_nametoindex(place.name.as_str())?;
            with_netlink(async |handle| handle.link().del(index).execute().await)
        })
    }
}

/// True if it is there and the kernel's own: a device in a process has the same name.
fn is_there(place: &Place) -> io::Result<bool> {
    inside(place.namespace.as_deref(), || {
        if nix::net::if_::if_nametoindex(place.name.as_str()).is_err() {
            return Ok(false);
        }
        let mut is_ours = false;
        with_netlink(async |handle| {
            let mut links = handle.link().get().match_name(place.name.clone()).execute();
            while let Some(link) = links.try_next().await? {
                let infos = link.attributes.iter().filter_map(|attribute| match attribute {
                    LinkAttribute::LinkInfo(infos) => Some(infos),
                    _ => None,
                });
                is_ours = infos.flatten().any(|info| *info == LinkInfo::Kind(InfoKind::Wireguard));
            }
            Ok(())
        })?;
        Ok(is_ours)
    })
}

/// In the namespace of this thread; then moved to the other one.
fn add_link(name: &str, namespace: Option<&File>) -> io::Result<()> {
    with_netlink(async |handle| {
        handle.link().add(LinkWireguard::new(name).build()).execute().await?;
        let Some(namespace) = namespace else { return Ok(()) };
        let moved = LinkUnspec::new_with_name(name).setns_by_fd(namespace.as_raw_fd()).build();
        handle.link().set(moved).execute().await
    })
}

fn with_netlink(work: impl AsyncFnOnce(rtnetlink::Handle) -> Result<(), rtnetlink::Error>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        work(handle).await.map_err(|error| io::Error::other(error.to_string()))
    })
}

/// All of them one after the other, and all that is answered.
fn request(messages: Vec<WireguardMessage>, flags: u16) -> io::Result<Vec<WireguardMessage>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, mut handle, _) = genetlink::new_connection()?;
        tokio::spawn(connection);
        let mut all = Vec::new();
        for message in messages {
            let mut message = NetlinkMessage::from(GenlMessage::from_payload(message));
            message.header.flags = flags;
            let asked = handle.request(message).await;
            let mut answers = asked.map_err(|error| io::Error::other(error.to_string()))?;
            while let Some(answer) = answers.next().await {
                let answer = answer.map_err(|error| io::Error::other(error.to_string()))?;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => all.push(inner.payload),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
        Ok(all)
    })
}

fn read(live: &mut Live, attributes: WireguardPeer) {
    let mut key = None;
    let (mut preshared, mut endpoint, mut keepalive) = (None, None, 0);
    let (mut allowed, mut traffic) = (BTreeSet::new(), Traffic::default());
    for attribute in attributes.0 {
        match attribute {
            WireguardPeerAttribute::PublicKey(bytes) => key = Some(PublicKey(bytes)),
            WireguardPeerAttribute::PresharedKey(bytes) => {
                preshared = Some(SecretKey(bytes)).filter(|key| !key.is_zero());
            }
            WireguardPeerAttribute::Endpoint(address) => endpoint = Some(address),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => keepalive = seconds,
            WireguardPeerAttribute::LastHandshake(time) => {
                let milliseconds = time.seconds.saturating_mul(1000) + time.nano_seconds / 1_000_000;
                traffic.handshake_ms = u64::try_from(milliseconds).unwrap_or(0);
            }
            WireguardPeerAttribute::RxBytes(bytes) => traffic.received = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => traffic.sent = bytes,
            WireguardPeerAttribute::AllowedIps(ips) => {
                allowed.extend(ips.iter().filter_map(|ip| network(ip)))
            }
            _ => {}
        }
    }
    let Some(key) = key else { return };
    // A peer with many networks comes in several pieces, of which only the first has all.
    match live.peers.get_mut(&key) {
        Some((peer, _)) => peer.allowed.extend(allowed),
        None => {
            let peer = Peer { key, preshared, allowed, endpoint, keepalive };
            live.peers.insert(key, (peer, traffic));
        }
    }
}

fn network(attributes: &[WireguardAllowedIpAttr]) -> Option<IpNet> {
    let mut address = None;
    let mut length = None;
    for attribute in attributes {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(it) => address = Some(*it),
            WireguardAllowedIpAttr::Cidr(it) => length = Some(*it),
            _ => {}
        }
    }
    IpNet::new(address?, length?).ok()
}

fn allowed(network: &IpNet) -> WireguardAllowedIp {
    let family = match network.addr() {
        IpAddr::V4(_) => WireguardAddressFamily::Ipv4,
        IpAddr::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(network.addr()),
        WireguardAllowedIpAttr::Cidr(network.prefix_len()),
    ])
}

/// A change, in as many messages as it needs: one, but for thousands of peers or networks.
fn messages(name: &str, change: &Change) -> Vec<WireguardMessage> {
    let mut peers: Vec<WireguardPeer> = change.remove.iter().map(removed).collect();
    peers.extend(change.set.iter().flat_map(changed));
    let mut first: Vec<WireguardAttribute> = Vec::new();
    first.extend(change.private_key.as_ref().map(|key| WireguardAttribute::PrivateKey(key.0)));
    first.extend(change.port.map(WireguardAttribute::ListenPort));
    let chunks =
        if peers.is_empty() { vec![Vec::new()] } else { peers.chunks(AT_ONCE).map(<[_]>::to_vec).collect() };
    let message = |chunk: Vec<WireguardPeer>| {
        let mut attributes = vec![WireguardAttribute::IfName(name.to_owned())];
        attributes.append(&mut first);
        if !chunk.is_empty() {
            attributes.push(WireguardAttribute::Peers(chunk));
        }
        WireguardMessage { cmd: WireguardCmd::SetDevice, attributes }
    };
    chunks.into_iter().map(message).collect()
}

fn removed(key: &PublicKey) -> WireguardPeer {
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(key.0),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
    ])
}

fn changed(peer: &Peer) -> Vec<WireguardPeer> {
    let networks: Vec<WireguardAllowedIp> = peer.allowed.iter().map(allowed).collect();
    let mut rest = networks.chunks(NETWORKS_AT_ONCE);
    let mut first = vec![
        WireguardPeerAttribute::PublicKey(peer.key.0),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
        WireguardPeerAttribute::PresharedKey(peer.preshared.as_ref().map_or([0; 32], |key| key.0)),
        WireguardPeerAttribute::PersistentKeepalive(peer.keepalive),
        WireguardPeerAttribute::AllowedIps(rest.next().map(<[_]>::to_vec).unwrap_or_default()),
    ];
    first.extend(peer.endpoint.map(WireguardPeerAttribute::Endpoint));
    let more = rest.map(|networks| {
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(peer.key.0),
            WireguardPeerAttribute::AllowedIps(networks.to_vec()),
        ])
    });
    std::iter::once(WireguardPeer(first)).chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u16) -> Peer {
        let [high, low] = number.to_be_bytes();
        let mut key = [0; 32];
        (key[0], key[1]) = (high, low);
        let allowed = BTreeSet::from([format!("10.9.{high}.{low}/32").parse().unwrap()]);
        Peer { key: PublicKey(key), preshared: None, allowed, endpoint: None, keepalive: 5 }
    }

    #[test]
    fn one_peer_is_one_message_and_what_is_sent_is_read_again() {
        let change = Change { set: vec![peer(1)], ..Change::default() };
        let sent = messages("rzwg0", &change);
        assert_eq!(sent.len(), 1);
        let mut live = Live::default();
        for attribute in sent.into_iter().flat_map(|message| message.attributes) {
            if let WireguardAttribute::Peers(peers) = attribute {
                peers.into_iter().for_each(|peer| read(&mut live, peer));
            }
        }
        assert_eq!(live.peers[&peer(1).key].0, peer(1));
    }

    #[test]
    fn thousands_go_in_pieces_and_the_key_only_once() {
        let set: Vec<Peer> = (0..100).map(peer).collect();
        let change = Change { private_key: Some(SecretKey([1; 32])), set, ..Change::default() };
        let sent = messages("rzwg0", &change);
        let with_key = |message: &&WireguardMessage| {
            message.attributes.iter().any(|it| matches!(it, WireguardAttribute::PrivateKey(_)))
        };
        assert_eq!((sent.len(), sent.iter().filter(with_key).count()), (7, 1));
    }
}
