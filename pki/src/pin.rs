//! Trust for a machine that knows nothing yet but the root's digest.
use crate::{PkiError, encoding};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;

/// That the other side has the key of what it shows is the same of servers and clients: by the algorithms of the
/// verifier's own `provider`.
macro_rules! shown_by_tls13 {
    () => {
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}
pub(crate) use shown_by_tls13;

/// Verifies a server's chain against that certificate in it whose SHA-256 is the pin.
#[derive(Debug)]
pub(crate) struct PinnedRoot {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl PinnedRoot {
    pub(crate) fn new(fingerprint: &str, provider: Arc<CryptoProvider>) -> Result<Self, PkiError> {
        let fingerprint = fingerprint.to_ascii_lowercase();
        if fingerprint.len() != 64 || !fingerprint.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(PkiError::invalid("the pin", "not 64 hexadecimal digits (SHA-256 of the root)"));
        }
        Ok(Self { fingerprint, provider })
    }
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // A leaf that is pinned itself would be trusted for its name alone: only what is above it counts.
        let root = intermediates
            .iter()
            .find(|certificate| encoding::sha256_hex(certificate) == self.fingerprint)
            .ok_or_else(|| {
                rustls::Error::General(
                    "the server belongs to another cluster than the token (its root is not the pinned one)"
                        .into(),
                )
            })?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    shown_by_tls13!();
}
