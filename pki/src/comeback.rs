//! The way back in for a node whose certificate ran out while it was away: it proves that it still has the key.
use crate::{
    Authority, NodeIdentity, NodeKey, PkiError, certificate_times, encoding, peer, peer_identity, tls,
};
use rcgen::SigningKey;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::UnixTime;
use std::time::{Duration, SystemTime};

/// What a signature is good for, so that it is good for nothing else.
const PURPOSE: &[u8] = b"rhyzome: a node comes back\0";
/// A node's chain has its own certificate and an intermediate; one of a foreign authority may have some more.
const MOST_CERTIFICATES: usize = 8;
const MOST_BYTES: usize = 64 * 1024;

/// What a node has to sign: nobody can foresee it, and it is asked once.
#[derive(Debug, Clone, Copy)]
pub struct Challenge([u8; 32]);

/// A node as its certificate names it, which this authority once signed. Whether whoever shows it has the key, and
/// whether it was revoked, is still to be asked.
#[derive(Debug, Clone)]
pub struct FormerNode {
    /// Who it says to be.
    pub identity: NodeIdentity,
    public_key: Vec<u8>,
}

impl Challenge {
    /// A new one.
    pub fn new() -> Result<Self, PkiError> {
        Ok(Self(encoding::random()?))
    }

    /// As it travels.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn words(cluster_id: &str, challenge: &[u8]) -> Vec<u8> {
    [PURPOSE, cluster_id.as_bytes(), b"\0", challenge].concat()
}

impl NodeKey {
    /// What proves to a server of this cluster that the key is here.
    pub fn sign_challenge(&self, cluster_id: &str, challenge: &[u8]) -> Result<Vec<u8>, PkiError> {
        Ok(self.pair().sign(&words(cluster_id, challenge))?)
    }
}

impl Authority {
    /// Reads the chain of a node's certificate, whether or not its time is over: it must have been good on its last day,
    /// and is not good before its first.
    pub fn former_node(&self, chain_pem: &str, now: SystemTime) -> Result<FormerNode, PkiError> {
        if chain_pem.len() > MOST_BYTES {
            return Err(PkiError::Peer("its chain is too long".into()));
        }
        let chain = encoding::certificates(chain_pem, "the node's certificate")?;
        if chain.len() > MOST_CERTIFICATES {
            return Err(PkiError::Peer("its chain is too long".into()));
        }
        let (leaf, above) = (&chain[0], &chain[1..]);
        let times = certificate_times(leaf)?;
        if now < times.not_before {
            return Err(PkiError::TooEarly);
        }
        let then = times.not_after.min(now).duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        tls::client_verifier(&self.trust_pem())?
            .verify_client_cert(leaf, above, UnixTime::since_unix_epoch(then))
            .map_err(|error| PkiError::Peer(error.to_string()))?;
        let identity = peer_identity(leaf)?;
        if identity.cluster_id != self.cluster_id() {
            return Err(PkiError::Peer("it is of another cluster".into()));
        }
        let public_key = peer::parse(leaf)?.public_key().subject_public_key.data.to_vec();
        Ok(FormerNode { identity, public_key })
    }
}

impl FormerNode {
    /// Whether the certificate's key has made this signature of this challenge.
    pub fn has_signed(&self, challenge: &Challenge, signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.public_key);
        key.verify(&words(&self.identity.cluster_id, challenge.bytes()), signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn authority(folder: &tempfile::TempDir, name: &str, now: SystemTime) -> Authority {
        Authority::open_or_create(&folder.path().join(name), now).unwrap()
    }

    #[test]
    fn only_the_key_of_a_certificate_of_this_cluster_brings_its_node_back() {
        let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
        let (ours, other) = (authority(&folder, "ours", now), authority(&folder, "other", now));
        let (key, stranger) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let leaf = ours.sign_node_csr(&key.csr_pem().unwrap(), "node_1", now).unwrap();
        let later = now + 30 * DAY;
        let node = ours.former_node(&leaf.chain_pem, later).unwrap();
        assert_eq!((node.identity.node_id.as_str(), &node.identity.serial), ("node_1", &leaf.serial_hex));
        let (challenge, next) = (Challenge::new().unwrap(), Challenge::new().unwrap());
        let sign = |key: &NodeKey, cluster: &str| key.sign_challenge(cluster, challenge.bytes()).unwrap();
        assert!(node.has_signed(&challenge, &sign(&key, ours.cluster_id())));
        assert!(!node.has_signed(&next, &sign(&key, ours.cluster_id())), "a signature is good once");
        assert!(!node.has_signed(&challenge, &sign(&stranger, ours.cluster_id())));
        assert!(!node.has_signed(&challenge, &sign(&key, other.cluster_id())), "it is good for one cluster");
        assert!(other.former_node(&leaf.chain_pem, later).is_err());
        assert!(ours.former_node(&leaf.chain_pem, now - DAY).is_err(), "it is not good before its time");
        assert!(ours.former_node("", later).is_err());
        let server = ours.issue_server(&[], now).unwrap();
        assert!(ours.former_node(&encoding::pem_of(&server.chain), later).is_err(), "a server is no node");
    }
}
