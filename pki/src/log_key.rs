//! The key that signs checkpoints of the event log. It is kept beside the authority and not in the database, so
//! that whoever can write there alone cannot write the log anew.
use crate::{PkiError, encoding, files};
use rcgen::{KeyPair, PKCS_ED25519};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use std::path::Path;

/// An Ed25519 key.
pub struct LogKey {
    key: Ed25519KeyPair,
    name: String,
}

impl std::fmt::Debug for LogKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogKey({}, ..)", self.name)
    }
}

impl LogKey {
    /// Opens the key in this file, or makes a new one, 0600. Of two that start at once both use the same.
    pub fn open_or_create(path: &Path) -> Result<Self, PkiError> {
        if !path.exists() {
            let pem = KeyPair::generate_for(&PKCS_ED25519)?.serialize_pem();
            files::publish_private(path, pem.as_bytes())?;
        }
        Self::open(path)
    }

    /// Opens the key in this file.
    pub fn open(path: &Path) -> Result<Self, PkiError> {
        let invalid = |why: String| PkiError::invalid(path.display().to_string(), why);
        let pair = KeyPair::from_pem(&files::read_key(path)?)
            .map_err(|error| invalid(format!("not a private key in PEM ({error})")))?;
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pair.serialize_der())
            .map_err(|error| invalid(format!("not an Ed25519 key ({error})")))?;
        let name = encoding::sha256_hex(key.public_key().as_ref())[..16].to_owned();
        Ok(Self { key, name })
    }

    /// Tells keys apart: the beginning of the public key's SHA-256.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A signature, in hexadecimal.
    pub fn sign(&self, message: &[u8]) -> String {
        encoding::hex(self.key.sign(message).as_ref())
    }

    /// Whether this key made that signature.
    pub fn verify(&self, message: &[u8], signature: &str) -> bool {
        let Some(signature) = encoding::unhex(signature) else { return false };
        UnparsedPublicKey::new(&ED25519, self.key.public_key().as_ref()).verify(message, &signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn made_once_private_and_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.key");
        let key = LogKey::open_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let signature = key.sign(b"entry 7");
        let again = LogKey::open_or_create(&path).unwrap();
        assert_eq!(again.name(), key.name());
        assert!(again.verify(b"entry 7", &signature));
        assert!(!again.verify(b"entry 8", &signature));
        assert!(!again.verify(b"entry 7", "no hex") && !again.verify(b"entry 7", ""));
        let other = LogKey::open_or_create(&folder.path().join("other.key")).unwrap();
        assert!(!other.verify(b"entry 7", &signature));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no drafts are left");
    }

    #[test]
    fn another_kind_of_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.key");
        crate::NodeKey::generate().unwrap().save(&path).unwrap();
        assert!(LogKey::open(&path).unwrap_err().to_string().contains("not an Ed25519 key"));
    }
}
