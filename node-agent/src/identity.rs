//! Who this node is, on its own disk: `identity/{key.pem,chain.pem,trust.pem,node.json}`.
//!
//! `node.json` is written last: while it is missing the node has not joined, whatever else is there.
use rhyzome_pki::{CertificateTimes, Identity, NodeKey, PkiError, certificate_times, write_private};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// What the node knows of itself since it joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Given by the server.
    pub node_id: String,
    /// The name that it joined under.
    pub node_name: String,
    /// The cluster that it belongs to.
    pub cluster_id: String,
    /// SHA-256 of the cluster's root, as the join token pinned it.
    pub root_sha256: String,
    /// `host:port` that it joined at.
    pub server: String,
}

/// Why the identity's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Nobody has joined here yet.
    #[error(
        "this node has not joined a cluster yet; get a join token from an operator (rhyzome node invite NAME)"
    )]
    NotJoined,
    /// A file could not be used.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Key or certificate cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// The folder with the identity's files.
#[derive(Debug, Clone)]
pub struct IdentityFolder(PathBuf);

/// All of it, ready for dialing.
#[derive(Debug, Clone)]
pub struct LoadedIdentity {
    /// Who this node is.
    pub record: NodeRecord,
    /// Certificate chain and key.
    pub identity: Identity,
    /// The roots that are trusted, PEM.
    pub trust_pem: String,
    /// From when to when the certificate is good.
    pub times: CertificateTimes,
}

impl IdentityFolder {
    /// The identity within the agent's folder.
    pub fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("identity"))
    }

    /// The record, if this node has joined.
    pub fn record(&self) -> Result<Option<NodeRecord>, IdentityError> {
        let path = self.0.join("node.json");
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| IdentityError::File { path, source: std::io::Error::other(error) }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::File { path, source }),
        }
    }

    /// The node's key: what an earlier, unfinished join made, or a new one.
    pub fn key(&self) -> Result<NodeKey, IdentityError> {
        let path = self.0.join("key.pem");
        if path.exists() {
            return Ok(NodeKey::load(&path)?);
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(|source| IdentityError::File { path: self.0.clone(), source })?;
        let key = NodeKey::generate()?;
        key.save(&path)?;
        Ok(key)
    }

    /// Keeps a certificate that was just issued. Refuses one that does not fit the key or the trust.
    pub fn keep_certificate(&self, chain_pem: &str, trust_pem: &str) -> Result<(), IdentityError> {
        Identity::of_node(chain_pem, &self.key()?)?;
        rhyzome_pki::fingerprints(trust_pem)?;
        write_private(&self.0.join("trust.pem"), trust_pem.as_bytes())?;
        write_private(&self.0.join("chain.pem"), chain_pem.as_bytes())?;
        Ok(())
    }

    /// Keeps roots that are trusted from now on, in place of those before. Refuses what are none.
    pub fn keep_trust(&self, trust_pem: &str) -> Result<(), IdentityError> {
        rhyzome_pki::fingerprints(trust_pem)?;
        Ok(write_private(&self.0.join("trust.pem"), trust_pem.as_bytes())?)
    }

    /// True if this root (the SHA-256 of its certificate, in hex) is trusted.
    pub fn trusts(&self, root_sha256: &str) -> Result<bool, IdentityError> {
        Ok(rhyzome_pki::fingerprints(&self.text("trust.pem")?)?.iter().any(|root| root == root_sha256))
    }

    /// The certificate's chain, as it was issued.
    pub fn chain_pem(&self) -> Result<String, IdentityError> {
        self.text("chain.pem")
    }

    fn text(&self, name: &str) -> Result<String, IdentityError> {
        let path = self.0.join(name);
        std::fs::read_to_string(&path).map_err(|source| IdentityError::File { path, source })
    }

    /// Ends a join.
    pub fn keep_record(&self, record: &NodeRecord) -> Result<(), IdentityError> {
        let path = self.0.join("node.json");
        let text = serde_json::to_vec_pretty(record).map_err(|error| IdentityError::File {
            path: path.clone(),
            source: std::io::Error::other(error),
        })?;
        Ok(write_private(&path, &text)?)
    }

    /// The machine that this folder was last used on; none if nobody has written it down.
    pub fn machine(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.0.join("machine")).ok()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty())
    }

    /// Writes down the machine that this folder is used on.
    pub fn keep_machine(&self, machine_id: &str) -> Result<(), IdentityError> {
        Ok(write_private(&self.0.join("machine"), format!("{machine_id}\n").as_bytes())?)
    }

    /// Reads all of it.
    pub fn load(&self) -> Result<LoadedIdentity, IdentityError> {
        let record = self.record()?.ok_or(IdentityError::NotJoined)?;
        let key = NodeKey::load(&self.0.join("key.pem"))?;
        let identity = Identity::of_node(&self.chain_pem()?, &key)?;
        let times = certificate_times(identity.leaf())?;
        Ok(LoadedIdentity { record, identity, trust_pem: self.text("trust.pem")?, times })
    }
}
