//! A certificate chain with its key: what one end of a TLS connection shows of itself.
use crate::{NodeKey, PkiError, encoding, files};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;

/// A certificate chain, leaf first, and the key of the leaf.
pub struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({} certificates, key ..)", self.chain.len())
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Identity {
    /// A node's chain, as the server answered it, with the node's own key.
    pub fn of_node(chain_pem: &str, key: &NodeKey) -> Result<Self, PkiError> {
        let identity =
            Self { chain: encoding::certificates(chain_pem, "the node's certificate")?, key: key.der() };
        identity.certified()?;
        Ok(identity)
    }

    /// A certificate chain and its key from files, as other tools write them.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, PkiError> {
        let chain = encoding::certificates(&files::read(cert)?, &cert.display().to_string())?;
        let name = key.display().to_string();
        let key = PrivateKeyDer::from_pem_slice(files::read_key(key)?.as_bytes())
            .map_err(|error| PkiError::invalid(&name, format!("not a private key in PEM ({error})")))?;
        let identity = Self { chain, key };
        identity.certified().map_err(|error| PkiError::invalid(name, error.to_string()))?;
        Ok(identity)
    }

    /// The leaf.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// The leaf, in PEM.
    pub fn leaf_pem(&self) -> String {
        encoding::pem_of(&self.chain[..1])
    }

    /// The chain with a key that can sign. Refuses a key that is not the certificate's.
    pub(crate) fn certified(&self) -> Result<Arc<CertifiedKey>, PkiError> {
        let provider = rustls::crypto::ring::default_provider();
        Ok(Arc::new(CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider)?))
    }
}
