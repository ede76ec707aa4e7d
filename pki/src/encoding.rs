//! Hexadecimal, digests, random numbers and PEM: the small change of this crate.
use crate::PkiError;
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::fmt::Write;

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes that a hexadecimal text stands for, if it is one.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// SHA-256 of some bytes, in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

/// `N` random bytes from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0u8; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| PkiError::Random)?;
    Ok(bytes)
}

/// 16 random bytes from the system, in lower-case hexadecimal.
pub fn random_hex() -> Result<String, PkiError> {
    Ok(hex(&random::<16>()?))
}

/// Every certificate in a PEM text, in order. An empty list is an error that names `what`.
pub(crate) fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| PkiError::invalid(what, format!("not a PEM certificate ({error})")))?;
    if found.is_empty() {
        return Err(PkiError::invalid(what, "holds no PEM certificate"));
    }
    Ok(found)
}

/// The first certificate in a PEM text.
pub fn first_certificate(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    Ok(certificates(pem, "the certificate")?.swap_remove(0))
}

/// SHA-256 of every certificate in a PEM text: whether a pinned root is among them.
pub fn fingerprints(pem: &str) -> Result<Vec<String>, PkiError> {
    Ok(certificates(pem, "the trusted roots")?.iter().map(|der| sha256_hex(der)).collect())
}

/// Tells sets of trusted roots apart, whatever their order: SHA-256 of their SHA-256s, sorted, one a line.
pub fn trust_digest(pem: &str) -> Result<String, PkiError> {
    Ok(digest_of(&certificates(pem, "the trusted roots")?))
}

pub(crate) fn digest_of(roots: &[CertificateDer<'_>]) -> String {
    let mut all: Vec<String> = roots.iter().map(|der| sha256_hex(der)).collect();
    all.sort();
    sha256_hex(all.join("\n").as_bytes())
}

/// Certificates as one PEM text.
pub(crate) fn pem_of(certificates: &[CertificateDer<'_>]) -> String {
    use base64::Engine;
    let mut text = String::new();
    for certificate in certificates {
        let body = base64::engine::general_purpose::STANDARD.encode(certificate);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let mut rest = body.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            text.push_str(line);
            text.push('\n');
            rest = after;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}
