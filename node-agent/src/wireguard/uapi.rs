//! The text that userspace devices understand (<https://www.wireguard.com/xplatform/>): written and read here.

use super::keys::{PublicKey, SecretKey, from_hex, hex};
use super::plan::{Change, Live, Peer, Traffic};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Asks for everything.
pub const GET: &str = "get=1\n\n";

/// One message that changes this.
pub fn set(change: &Change) -> String {
    let mut text = String::from("set=1\n");
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key}={value}");
    };
    if let Some(key) = &change.private_key {
        line("private_key", &hex(&key.0));
    }
    if let Some(port) = change.port {
        line("listen_port", &port.to_string());
    }
    for key in &change.remove {
        line("public_key", &hex(&key.0));
        line("remove", "true");
    }
    for peer in &change.set {
        line("public_key", &hex(&peer.key.0));
        line("preshared_key", &hex(&peer.preshared.as_ref().map_or([0; 32], |key| key.0)));
        if let Some(endpoint) = peer.endpoint {
            line("endpoint", &endpoint.to_string());
        }
        line("persistent_keepalive_interval", &peer.keepalive.to_string());
        line("replace_allowed_ips", "true");
        for network in &peer.allowed {
            line("allowed_ip", &network.to_string());
        }
    }
    text.push('\n');
    text
}

/// Reads the answer to [`GET`] or to [`set`]. The error: what the device says.
pub fn read(answer: &str) -> Result<Live, String> {
    let mut live = Live::default();
    let mut peer: Option<(Peer, Traffic)> = None;
    let mut errno = None;
    for line in answer.lines().filter(|line| !line.is_empty()) {
        let (key, value) = line.split_once('=').ok_or("the device's answer is no list of words")?;
        let bad = || format!("the device's answer has no good {key}");
        match (key, &mut peer) {
            ("private_key", None) => {
                live.private_key =
                    Some(SecretKey(from_hex(value).ok_or_else(bad)?)).filter(|key| !key.is_zero());
            }
            ("listen_port", None) => live.port = value.parse().map_err(|_| bad())?,
            ("public_key", _) => {
                keep(&mut live, peer.take());
                let key = PublicKey(from_hex(value).ok_or_else(bad)?);
                let (preshared, allowed) = (None, BTreeSet::new());
                let fresh = Peer { key, preshared, allowed, endpoint: None, keepalive: 0 };
                peer = Some((fresh, Traffic::default()));
            }
            ("errno", _) => errno = Some(value.to_owned()),
            (_, Some((peer, traffic))) => read_of_peer(key, value, peer, traffic).ok_or_else(bad)?,
            _ => {}
        }
    }
    keep(&mut live, peer);
    match errno.as_deref() {
        Some("0") => Ok(live),
        Some(errno) => Err(format!("the device refused it with errno {errno}")),
        None => Err("the device did not answer to the end".into()),
    }
}

fn read_of_peer(key: &str, value: &str, peer: &mut Peer, traffic: &mut Traffic) -> Option<()> {
    match key {
        "preshared_key" => peer.preshared = Some(SecretKey(from_hex(value)?)).filter(|key| !key.is_zero()),
        "endpoint" => peer.endpoint = Some(value.parse().ok()?),
        "persistent_keepalive_interval" => peer.keepalive = value.parse().ok()?,
        "allowed_ip" => drop(peer.allowed.insert(value.parse().ok()?)),
        "last_handshake_time_sec" => traffic.handshake_ms += value.parse::<u64>().ok()?.saturating_mul(1000),
        "last_handshake_time_nsec" => traffic.handshake_ms += value.parse::<u64>().ok()? / 1_000_000,
        "rx_bytes" => traffic.received = value.parse().ok()?,
        "tx_bytes" => traffic.sent = value.parse().ok()?,
        _ => {}
    }
    Some(())
}

fn keep(live: &mut Live, peer: Option<(Peer, Traffic)>) {
    if let Some((peer, traffic)) = peer {
        live.peers.insert(peer.key, (peer, traffic));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_understood_again() {
        let peer = Peer {
            key: PublicKey([7; 32]),
            preshared: Some(SecretKey([8; 32])),
            allowed: BTreeSet::from(["10.0.0.0/8".parse().unwrap(), "fd00::/48".parse().unwrap()]),
            endpoint: Some("[2001:db8::1]:5".parse().unwrap()),
            keepalive: 25,
        };
        let change = Change {
            private_key: Some(SecretKey([1; 32])),
            port: Some(51820),
            remove: vec![PublicKey([6; 32])],
            set: vec![peer.clone()],
        };
        let text = set(&change);
        assert!(text.contains("remove=true") && text.ends_with("\n\n"), "{text}");
        // A device says the same of what it has, and more.
        let said = text.replace(&format!("public_key={}\nremove=true\n", hex(&[6; 32])), "");
        let figures =
            "last_handshake_time_sec=3\nlast_handshake_time_nsec=5000000\nrx_bytes=1\ntx_bytes=2\nnew=x\n";
        let live =
            read(&format!("{}{figures}errno=0\n\n", said.trim_end_matches('\n').to_owned() + "\n")).unwrap();
        assert_eq!((live.port, live.private_key), (51820, Some(SecretKey([1; 32]))));
        let traffic = Traffic { handshake_ms: 3005, received: 1, sent: 2 };
        assert_eq!(live.peers[&peer.key], (peer, traffic));
    }

    #[test]
    fn half_an_answer_and_a_refusal_are_errors() {
        assert_eq!(read("errno=0\n\n"), Ok(Live::default()));
        for bad in ["", "listen_port=1\n", "errno=22\n", "nonsense\nerrno=0\n", "listen_port=x\nerrno=0\n"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
