//! A node's own key. It is made on the node and never leaves it.
use crate::{PkiError, files};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::path::Path;

/// An ECDSA P-256 key that stays where it was made.
pub struct NodeKey(KeyPair);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey(..)")
    }
}

impl NodeKey {
    /// A new key.
    pub fn generate() -> Result<Self, PkiError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// Reads a key from its file.
    pub fn load(path: &Path) -> Result<Self, PkiError> {
        let pem = files::read_key(path)?;
        let key = KeyPair::from_pem(&pem).map_err(|error| {
            PkiError::invalid(path.display().to_string(), format!("not a private key in PEM ({error})"))
        })?;
        Ok(Self(key))
    }

    /// Writes the key, 0600.
    pub fn save(&self, path: &Path) -> Result<(), PkiError> {
        files::write_private(path, self.0.serialize_pem().as_bytes())
    }

    /// A signing request: proof that the asker holds the key. It asks for nothing else, as nothing else
    /// in it would be believed.
    pub fn csr_pem(&self) -> Result<String, PkiError> {
        Ok(CertificateParams::default().serialize_request(&self.0)?.pem()?)
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }

    pub(crate) fn der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }
}
