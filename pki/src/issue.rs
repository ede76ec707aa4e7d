//! Making certificates. What is written into each is decided here and nowhere else.
use crate::peer::{cluster_uri, is_plain_id, node_uri, one_server_uri, server_uri};
use crate::{Authority, Identity, PkiError, SERVER_NAME, certificate_times, encoding};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub(crate) const NODE_LIFE: Duration = DAY;
pub(crate) const SERVER_LIFE: Duration = Duration::from_secs(30 * DAY.as_secs());
/// A server makes a new one for each call, so it need not outlast more than clocks that differ.
const CALLING_LIFE: Duration = Duration::from_secs(60 * 60);
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * DAY.as_secs());
const INTERMEDIATE_LIFE: Duration = Duration::from_secs(10 * 365 * DAY.as_secs());
/// Clocks differ: a new certificate is already good on a machine that is this far behind (or a tenth of its
/// life, if that is less: two thirds of it are to be left when it is new).
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// A request with a P-256 key has a few hundred bytes.
const MAX_REQUEST_BYTES: usize = 8 * 1024;

/// A certificate that was signed for a node.
#[derive(Debug, Clone)]
pub struct SignedLeaf {
    /// Leaf first, then the intermediate.
    pub chain_pem: String,
    /// Lower-case hexadecimal.
    pub serial_hex: String,
    /// When it ends.
    pub not_after: SystemTime,
}

pub(crate) struct NewAuthority {
    pub root_pem: String,
    pub root_key_pem: String,
    pub intermediate_pem: String,
    pub intermediate_key_pem: String,
    /// The intermediate's key, signed by the root before.
    pub cross_pem: Option<String>,
}

/// A root, and when it ends.
type Elder<'a> = (&'a Issuer<'a, KeyPair>, SystemTime);

/// A root with the cluster's name, and an intermediate signed by it, and by the root before if there is one.
pub(crate) fn new_authority(
    cluster_id: &str,
    now: SystemTime,
    elder: Option<Elder<'_>>,
) -> Result<NewAuthority, PkiError> {
    let root_key = KeyPair::generate()?;
    let mut root = authority_params("Rhyzome root", &root_key, 1, (now, ROOT_LIFE))?;
    root.subject_alt_names = vec![SanType::URI(cluster_uri(cluster_id).try_into()?)];
    let root_key_pem = root_key.serialize_pem();
    let root = CertifiedIssuer::self_signed(root, root_key)?;
    let key = KeyPair::generate()?;
    let mut params = authority_params("Rhyzome intermediate", &key, 0, (now, INTERMEDIATE_LIFE))?;
    params.use_authority_key_identifier_extension = true;
    let intermediate_pem = params.signed_by(&key, &root)?.pem();
    let cross = elder.map(|(elder, ends)| {
        params.not_after = OffsetDateTime::from(ends.min(now + INTERMEDIATE_LIFE));
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
        Ok::<_, PkiError>(params.signed_by(&key, elder)?.pem())
    });
    Ok(NewAuthority {
        cross_pem: cross.transpose()?,
        intermediate_pem,
        intermediate_key_pem: key.serialize_pem(),
        root_pem: root.pem(),
        root_key_pem,
    })
}

fn authority_params(
    name: &str,
    key: &KeyPair,
    below: u8,
    (now, life): (SystemTime, Duration),
) -> Result<CertificateParams, PkiError> {
    let mut params = bare_params(now, life)?;
    // A subject of its own for each key: verifiers look issuers up by subject, and two keys under one name
    // make them take the wrong one while the authority is rotated.
    let key_id = &encoding::sha256_hex(&key.subject_public_key_info())[..16];
    params.distinguished_name.push(DnType::CommonName, format!("{name} {key_id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn bare_params(now: SystemTime, life: Duration) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = OffsetDateTime::from(now - BACKDATE.min(life / 10));
    params.not_after = OffsetDateTime::from(now + life);
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
    Ok(params)
}

/// 126 random bits. The first byte is neither zero nor negative, so that its text is the same everywhere.
fn random_serial() -> Result<[u8; 16], PkiError> {
    let mut serial = encoding::random::<16>()?;
    serial[0] = (serial[0] & 0x3f) | 0x40;
    Ok(serial)
}

fn read_request(csr_pem: &str) -> Result<CertificateSigningRequestParams, PkiError> {
    if csr_pem.len() > MAX_REQUEST_BYTES {
        return Err(PkiError::Request(format!("it is longer than {MAX_REQUEST_BYTES} bytes")));
    }
    let request = CertificateSigningRequestParams::from_pem(csr_pem)
        .map_err(|error| PkiError::Request(format!("{error}; send a PKCS #10 request in PEM")))?;
    if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(PkiError::Request("its key is not an ECDSA P-256 key".into()));
    }
    Ok(request)
}

impl Authority {
    /// A new key and certificate for a server that is reached under `names` (DNS names or addresses).
    ///
    /// Its chain ends in the root itself, so that a joining agent, which knows the root's digest only, can
    /// verify it. While the root before is trusted, what leads to that one follows.
    pub fn issue_server(&self, names: &[String], now: SystemTime) -> Result<Identity, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = bare_params(now, self.server_life)?;
        let mut all = vec![SERVER_NAME.to_owned()];
        all.extend(names.iter().filter(|name| *name != SERVER_NAME).cloned());
        params.subject_alt_names = CertificateParams::new(all)?.subject_alt_names;
        params.subject_alt_names.push(SanType::URI(server_uri(self.cluster_id()).try_into()?));
        params.distinguished_name.push(DnType::CommonName, "Rhyzome server");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let keys = self.keys.load();
        let leaf = params.signed_by(&key, &keys.issuer)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(keys.chain.iter().chain(&keys.beside).cloned());
        Ok(Identity { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() })
    }

    /// A new key and certificate with which a server calls another: good for an hour, for calling only.
    pub fn issue_calling_server(&self, server_id: &str, now: SystemTime) -> Result<Identity, PkiError> {
        if !is_plain_id(server_id) {
            return Err(PkiError::Request(format!("{server_id:?} cannot be the id of a server")));
        }
        let key = KeyPair::generate()?;
        let mut params = bare_params(now, CALLING_LIFE)?;
        let uri = one_server_uri(self.cluster_id(), server_id);
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.distinguished_name.push(DnType::CommonName, server_id);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let keys = self.keys.load();
        let leaf = params.signed_by(&key, &keys.issuer)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(keys.chain.iter().chain(&keys.beside).cloned());
        Ok(Identity { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() })
    }

    /// Whether a request could be signed; for callers who spend something on it, such as a join token.
    pub fn check_csr(csr_pem: &str) -> Result<(), PkiError> {
        read_request(csr_pem).map(drop)
    }

    /// Signs a node's request. Only the public key in it is believed (and that the asker holds the private
    /// one, which the request's signature proves); names, usages and times are ours.
    pub fn sign_node_csr(
        &self,
        csr_pem: &str,
        node_id: &str,
        now: SystemTime,
    ) -> Result<SignedLeaf, PkiError> {
        if !is_plain_id(node_id) {
            return Err(PkiError::Request(format!("{node_id:?} cannot be the id of a node")));
        }
        let request = read_request(csr_pem)?;
        let mut params = bare_params(now, self.node_life)?;
        params.subject_alt_names = vec![SanType::URI(node_uri(self.cluster_id(), node_id).try_into()?)];
        params.distinguished_name.push(DnType::CommonName, node_id);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let serial_hex =
            params.serial_number.as_ref().map(|s| encoding::hex(&s.to_bytes())).unwrap_or_default();
        // No longer than what signs it: whoever checks it on its last day finds all of the chain good.
        let keys = self.keys.load();
        let not_after = (now + self.node_life).min(certificate_times(&keys.chain[0])?.not_after);
        params.not_after = OffsetDateTime::from(not_after);
        let leaf = params.signed_by(&request.public_key, &keys.issuer)?;
        // The root is what the node trusts already, so it does not travel with the chain.
        let above = &keys.chain[..keys.chain.len() - 1];
        Ok(SignedLeaf {
            chain_pem: format!("{}{}", encoding::pem_of(&[leaf.der().clone()]), encoding::pem_of(above)),
            serial_hex,
            not_after,
        })
    }
}
