//! Who is on the other end: reads the one name in a node's certificate that counts.
use crate::{PkiError, encoding};
use std::time::{Duration, SystemTime};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

/// A node as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The cluster that issued the certificate.
    pub cluster_id: String,
    /// The node.
    pub node_id: String,
    /// The certificate's serial number, lower-case hexadecimal.
    pub serial: String,
}

/// A server as the certificate names it that it shows to other servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerIdentity {
    /// The cluster that issued the certificate.
    pub cluster_id: String,
    /// The server, as the database knows it.
    pub server_id: String,
}

/// What a certificate says of whose it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubjectNames {
    /// Common names of the subject.
    pub common_names: Vec<String>,
    /// Its organizational units.
    pub organizational_units: Vec<String>,
    /// Addresses of mail, of its alternative names.
    pub emails: Vec<String>,
    /// URIs, of the same.
    pub uris: Vec<String>,
    /// It says that it is for clients, and not that it is for servers.
    pub for_clients: bool,
}

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateTimes {
    /// Not before.
    pub not_before: SystemTime,
    /// Not after.
    pub not_after: SystemTime,
}

/// The URI that names a cluster's root.
pub(crate) fn cluster_uri(cluster_id: &str) -> String {
    format!("rhyzome://{cluster_id}")
}

/// The URI that names a server of a cluster.
pub(crate) fn server_uri(cluster_id: &str) -> String {
    format!("rhyzome://{cluster_id}/server")
}

/// The URI that names one server among those of a cluster.
pub(crate) fn one_server_uri(cluster_id: &str, server_id: &str) -> String {
    format!("rhyzome://{cluster_id}/server/{server_id}")
}

/// The URI that names a node.
pub(crate) fn node_uri(cluster_id: &str, node_id: &str) -> String {
    format!("rhyzome://{cluster_id}/node/{node_id}")
}

/// An id that can stand in a URI without escaping.
pub(crate) fn is_plain_id(id: &str) -> bool {
    (1..=80).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

pub(crate) fn parse<'a>(der: &'a [u8]) -> Result<X509Certificate<'a>, PkiError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| PkiError::Peer("it cannot be parsed".into()))?;
    Ok(certificate)
}

pub(crate) fn uris(certificate: &X509Certificate<'_>) -> Result<Vec<String>, PkiError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| PkiError::Peer("its subject alternative names cannot be parsed".into()))?;
    Ok(names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect())
}

/// Reads what a certificate says of whose it is, whoever has signed it.
pub fn subject_names(cert_der: &[u8]) -> Result<SubjectNames, PkiError> {
    let certificate = parse(cert_der)?;
    let subject = certificate.subject();
    let text = |value: &AttributeTypeAndValue<'_>| {
        value.as_str().map(str::to_owned).map_err(|_| PkiError::Peer("its subject cannot be parsed".into()))
    };
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| PkiError::Peer("its subject alternative names cannot be parsed".into()))?;
    let emails = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::RFC822Name(address) => Some((*address).to_owned()),
        _ => None,
    });
    let usage = certificate
        .extended_key_usage()
        .map_err(|_| PkiError::Peer("its extended key usage cannot be parsed".into()))?;
    Ok(SubjectNames {
        for_clients: usage.is_some_and(|usage| usage.value.client_auth && !usage.value.server_auth),
        common_names: subject.iter_common_name().map(text).collect::<Result<_, _>>()?,
        organizational_units: subject.iter_organizational_unit().map(text).collect::<Result<_, _>>()?,
        emails: emails.collect(),
        uris: uris(&certificate)?,
    })
}

/// Reads the node's identity from a certificate whose chain TLS has verified already.
pub fn peer_identity(cert_der: &[u8]) -> Result<NodeIdentity, PkiError> {
    let certificate = parse(cert_der)?;
    let (cluster_id, node_id) = named(&certificate, "node")?;
    Ok(NodeIdentity { cluster_id, node_id, serial: encoding::hex(certificate.raw_serial()) })
}

/// Reads the identity of a server that calls another from a certificate whose chain TLS has verified already.
pub fn calling_server(cert_der: &[u8]) -> Result<ServerIdentity, PkiError> {
    let (cluster_id, server_id) = named(&parse(cert_der)?, "server")?;
    Ok(ServerIdentity { cluster_id, server_id })
}

/// The cluster and the id in the one URI of a certificate, if it names one of this role.
fn named(certificate: &X509Certificate<'_>, role: &str) -> Result<(String, String), PkiError> {
    let uris = uris(certificate)?;
    let [uri] = uris.as_slice() else {
        return Err(PkiError::Peer(format!("it must name exactly one URI, and names {}", uris.len())));
    };
    let named = uri
        .strip_prefix("rhyzome://")
        .and_then(|rest| rest.split_once(&format!("/{role}/")))
        .filter(|(cluster, id)| is_plain_id(cluster) && is_plain_id(id));
    match named {
        Some((cluster, id)) => Ok((cluster.to_owned(), id.to_owned())),
        None => Err(PkiError::Peer(format!("{uri:?} is not the name of a {role}"))),
    }
}

/// From when to when a certificate is good.
pub fn certificate_times(cert_der: &[u8]) -> Result<CertificateTimes, PkiError> {
    let certificate = parse(cert_der)?;
    let at = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
    Ok(CertificateTimes {
        not_before: at(certificate.validity().not_before.timestamp()),
        not_after: at(certificate.validity().not_after.timestamp()),
    })
}

/// How a certificate names the key that has signed it (its authority key identifier), in lower-case hexadecimal; empty
/// if it does not.
pub fn issuer_key(cert_der: &[u8]) -> Result<String, PkiError> {
    key_named(cert_der, |extension| match extension {
        ParsedExtension::AuthorityKeyIdentifier(named) => named.key_identifier.as_ref().map(|key| key.0),
        _ => None,
    })
}

/// How an authority's certificate names its own key: as those that it signs do.
pub(crate) fn own_key(cert_der: &[u8]) -> Result<String, PkiError> {
    key_named(cert_der, |extension| match extension {
        ParsedExtension::SubjectKeyIdentifier(key) => Some(key.0),
        _ => None,
    })
}

fn key_named(
    cert_der: &[u8],
    named: impl for<'a> Fn(&'a ParsedExtension<'a>) -> Option<&'a [u8]>,
) -> Result<String, PkiError> {
    let certificate = parse(cert_der)?;
    let mut extensions = certificate.extensions().iter();
    let key = extensions.find_map(|extension| named(extension.parsed_extension()).map(encoding::hex));
    Ok(key.unwrap_or_default())
}
