//! A certificate chain with its key: what one end of a TLS connection shows of itself.
use crate::{NodeKey, PkiError, encoding, files};
use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
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
        Self::with_key(chain, &files::read_key(key)?, &key.display().to_string())
    }

    /// A certificate chain and its key, both in PEM.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        Self::with_key(encoding::certificates(chain_pem, "the certificate")?, key_pem, "the key")
    }

    fn with_key(chain: Vec<CertificateDer<'static>>, key_pem: &str, what: &str) -> Result<Self, PkiError> {
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| PkiError::invalid(what, format!("not a private key in PEM ({error})")))?;
        let identity = Self { chain, key };
        identity.certified().map_err(|error| PkiError::invalid(what, error.to_string()))?;
        Ok(identity)
    }

    /// Whether it may be shown by whoever is called so.
    pub fn is_for(&self, name: &str) -> bool {
        let parsed = ParsedCertificate::try_from(self.leaf());
        let name = ServerName::try_from(name);
        matches!((parsed, name), (Ok(parsed), Ok(name)) if verify_server_name(&parsed, &name).is_ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_in_pem_is_for_its_names() {
        let made = rcgen::generate_simple_self_signed(vec!["api.acme.example".into()]).unwrap();
        let other = rcgen::generate_simple_self_signed(vec!["b.example".into()]).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let identity = Identity::from_pem(&chain, &key).unwrap();
        assert!(identity.is_for("api.acme.example"));
        assert!(!identity.is_for("acme.example") && !identity.is_for("no name"));
        assert!(Identity::from_pem(&chain, &other.signing_key.serialize_pem()).is_err(), "another's key");
        assert!(Identity::from_pem(&chain, &chain).is_err() && Identity::from_pem("", &key).is_err());
    }
}
