//! The four TLS configurations of the house, for rustls with ring.
use crate::pin::PinnedRoot;
use crate::{Identity, PkiError, certificate_times, encoding};
use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::sync::Arc;
use std::time::SystemTime;

const H2: &[u8] = b"h2";
const HTTP11: &[u8] = b"http/1.1";

/// What connections are made of. The first cipher that both ends have is taken, and that is AES-128 with SHA-256 here,
/// not AES-256 with SHA-384: processors have instructions for SHA-256, and keys that live as long as a connection need
/// no more (RFC 8446, 9.1: the one that everybody must have).
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

fn roots(trust_pem: &str) -> Result<RootCertStore, PkiError> {
    let mut store = RootCertStore::empty();
    for root in encoding::certificates(trust_pem, "the trusted roots")? {
        store.add(root)?;
    }
    Ok(store)
}

/// The certificate that a server shows, exchangeable while it runs: connections that are open keep what
/// they were made with, new ones see the new.
pub struct ServerCertificate(ArcSwap<CertifiedKey>);

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerCertificate(..)")
    }
}

impl ServerCertificate {
    /// Begins with this identity.
    pub fn new(identity: &Identity) -> Result<Arc<Self>, PkiError> {
        Ok(Arc::new(Self(ArcSwap::new(identity.certified()?))))
    }

    /// Shows another identity from now on.
    pub fn replace(&self, identity: &Identity) -> Result<(), PkiError> {
        self.0.store(identity.certified()?);
        Ok(())
    }

    /// When what is shown now ends.
    pub fn ends(&self) -> Option<SystemTime> {
        let shown = self.0.load();
        certificate_times(shown.cert.first()?).ok().map(|times| times.not_after)
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Knows a node's certificate of these roots; one that shows none is let through.
pub(crate) fn client_verifier(trust_pem: &str) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(trust_pem)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| PkiError::invalid("the trusted roots", error.to_string()))
}

/// For the gRPC door: TLS 1.3, HTTP/2, a client certificate if the caller has one.
///
/// A certificate that is shown must be good; that one is shown at all is for each service to demand, as
/// joining is the one that works without. Nothing is resumed: a peer that was revoked must knock again.
pub fn grpc_server_config(
    shown: Arc<ServerCertificate>,
    trust_pem: &str,
) -> Result<Arc<ServerConfig>, PkiError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(client_verifier(trust_pem)?)
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For the REST door: TLS 1.2 or 1.3, HTTP/2 or 1.1, no client certificates.
pub fn rest_server_config(shown: Arc<ServerCertificate>) -> Result<Arc<ServerConfig>, PkiError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![H2.to_vec(), HTTP11.to_vec()];
    Ok(Arc::new(config))
}

/// As [`rest_server_config`], asking callers for certificates of these authorities. What is proven is that a caller has
/// the key of what they show. Whether that is good is judged for each request, where it can be said what is wrong, and
/// counts for connections that are open already.
pub fn rest_server_config_asking(
    shown: Arc<ServerCertificate>,
    authorities: Vec<DistinguishedName>,
) -> Result<Arc<ServerConfig>, PkiError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(KeyHolders { authorities, provider: provider() }))
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![H2.to_vec(), HTTP11.to_vec()];
    Ok(Arc::new(config))
}

/// Knows whoever has the key of a certificate, whatever that is.
#[derive(Debug)]
struct KeyHolders {
    authorities: Vec<DistinguishedName>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for KeyHolders {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.authorities
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    crate::pin::shown_by_tls13!();
}

/// HTTP/2, and nothing is resumed.
fn for_agents(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![H2.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// For an agent: shows the node's identity, trusts these roots only. Dial as [`crate::SERVER_NAME`].
pub fn agent_client_config(trust_pem: &str, identity: &Identity) -> Result<Arc<ClientConfig>, PkiError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(trust_pem)?)
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
    Ok(for_agents(config))
}

/// For a node whose certificate has run out: shows none, trusts these roots only. Dial as [`crate::SERVER_NAME`].
pub fn returning_client_config(trust_pem: &str) -> Result<Arc<ClientConfig>, PkiError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(trust_pem)?)
        .with_no_client_auth();
    Ok(for_agents(config))
}

/// For a machine that joins: no identity yet, trusts the root with this SHA-256. Dial as
/// [`crate::SERVER_NAME`].
pub fn joining_client_config(root_fingerprint: &str) -> Result<Arc<ClientConfig>, PkiError> {
    let verifier = Arc::new(PinnedRoot::new(root_fingerprint, provider())?);
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(for_agents(config))
}
