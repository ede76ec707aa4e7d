//! The files: authorities, and what they have revoked.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{DistinguishedName, RootCertStore};

use super::Settings;

/// What the files say.
pub struct Trust {
    /// Judges a chain.
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// What the authorities are called: clients are told whose certificates are wanted.
    pub hints: Vec<DistinguishedName>,
}

/// Inode, and time of the last change, of both.
pub type Stamps = ((u64, i64, i64), Option<(u64, i64, i64)>);

/// By what one sees that a file is another one by now.
pub fn stamps(settings: &Settings) -> Result<Stamps, String> {
    let one = |key: &str, path: &Path| {
        let meta =
            std::fs::metadata(path).map_err(|error| format!("`{key}`: {}: {error}", path.display()))?;
        Ok::<_, String>((meta.ino(), meta.ctime(), meta.ctime_nsec()))
    };
    Ok((one("ca", &settings.ca)?, settings.crl.as_deref().map(|path| one("crl", path)).transpose()?))
}

/// Reads both.
pub fn read(settings: &Settings) -> Result<Trust, String> {
    let mut roots = RootCertStore::empty();
    for one in all::<CertificateDer<'static>>("ca", &settings.ca, "certificate")? {
        roots.add(one).map_err(|error| format!("`ca`: {}: {error}", settings.ca.display()))?;
    }
    let hints = roots.subjects();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(path) = &settings.crl {
        let lists =
            all::<CertificateRevocationListDer<'static>>("crl", path, "list of revoked certificates")?;
        builder = builder.with_crls(lists).enforce_revocation_expiration();
    }
    let verifier = builder.build().map_err(|error| format!("`ca` or `crl`: {error}"))?;
    Ok(Trust { verifier, hints })
}

fn all<T: PemObject>(key: &str, path: &Path, what: &str) -> Result<Vec<T>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("`{key}`: {}: {error}", path.display());
    let found: Result<Vec<T>, _> = T::pem_file_iter(path).map_err(|error| failed(&error))?.collect();
    match found.map_err(|error| failed(&error))? {
        none if none.is_empty() => Err(failed(&format!("there is no {what} in it"))),
        found => Ok(found),
    }
}
