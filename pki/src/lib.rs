//! Certificates: authority, identities, enrolment requests, TLS configurations.
//!
//! One authority per cluster: a root that is used once, and an intermediate that signs. Every certificate
//! below it is an ECDSA P-256 leaf with one job, told by its extended key usage:
//!
//! - a **server** leaf ([`Authority::issue_server`]) serves agents and, if wanted, the REST API. It always
//!   carries the name [`SERVER_NAME`], which agents verify instead of the address they happen to dial.
//! - a **node** leaf ([`Authority::sign_node_csr`]) is an agent's identity: the URI
//!   `rhyzome://CLUSTER/node/NODE` in its subject alternative names, and nothing else, says who it is.
//! - a **calling server** leaf ([`Authority::issue_calling_server`]) is what a server shows when it asks another one:
//!   `rhyzome://CLUSTER/server/SERVER`, for an hour.
//!
//! Agents find the root by its SHA-256 ([`Authority::fingerprint`]), which their join token carries.
//!
//! This crate knows neither tonic nor axum; it ends at rustls configurations. Time comes in as an argument.

mod authority;
mod comeback;
mod encoding;
mod error;
mod files;
mod identity;
mod issue;
mod keys;
mod log_key;
mod peer;
mod pin;
mod rotation;
mod tls;

pub use authority::Authority;
pub use comeback::{Challenge, FormerNode};
pub use encoding::{fingerprints, first_certificate, hex, random_hex, sha256_hex, trust_digest};
pub use error::PkiError;
pub use files::write_private;
pub use identity::Identity;
pub use issue::SignedLeaf;
pub use keys::NodeKey;
pub use log_key::LogKey;
pub use peer::{
    CertificateTimes, NodeIdentity, ServerIdentity, SubjectNames, calling_server, certificate_times,
    issuer_key, peer_identity, subject_names,
};
pub use rotation::{Generation, Phase, Role, hold};
pub use tls::{
    ServerCertificate, agent_client_config, grpc_server_config, joining_client_config, rest_server_config,
    rest_server_config_asking, returning_client_config,
};

/// The name that every server leaf carries and every agent verifies.
///
/// Agents trust one private authority and nothing else, so the role is what matters, not the address:
/// a server can move or stand behind any number of addresses without a new certificate.
pub const SERVER_NAME: &str = "api.rhyzome.internal";
