//! The authority's files, and what it signs and refuses to sign.
#![allow(clippy::unwrap_used)]
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, SanType};
use rhyzome_pki::*;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::*;

fn open(folder: &Path) -> Authority {
    Authority::open_or_create(folder, SystemTime::now()).unwrap()
}

#[test]
fn it_is_made_once_kept_private_and_never_printed() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("pki");
    let first = open(&folder);
    let second = open(&folder);
    assert_eq!(first.fingerprint(), second.fingerprint());
    assert_eq!(first.cluster_id(), second.cluster_id());
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    for entry in std::fs::read_dir(&folder).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1, "no draft left behind");
    assert_eq!(format!("{first:?}"), format!("Authority(cluster {}, keys ..)", first.cluster_id()));
    let identity = first.issue_server(&[], SystemTime::now()).unwrap();
    assert_eq!(format!("{identity:?}"), "Identity(3 certificates, key ..)");
}

#[test]
fn of_many_first_starts_one_wins() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("pki");
    let prints: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| open(&folder).fingerprint())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(prints.iter().all(|print| *print == prints[0]));
}

#[test]
fn an_exposed_key_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("pki");
    open(&folder);
    let key = folder.join("intermediate.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = Authority::open_or_create(&folder, SystemTime::now()).unwrap_err().to_string();
    assert!(refused.contains("chmod 600"), "{refused}");
}

#[test]
fn an_authority_of_ones_own_is_taken_if_it_holds_together() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("pki");
    let made = open(&folder);
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let chain = text("intermediate.pem") + &text("root.pem");
    let taken = Authority::from_pem(&chain, &text("intermediate.key"), "pki.ca").unwrap();
    assert_eq!(taken.fingerprint(), made.fingerprint());
    Authority::from_pem(&text("root.pem"), &text("root.key"), "pki.ca").unwrap();

    let refused = |cert: &str, key: &str| Authority::from_pem(cert, key, "pki.ca").unwrap_err().to_string();
    assert!(refused(&chain, &text("root.key")).contains("another certificate"));
    assert!(refused(&text("intermediate.pem"), &text("intermediate.key")).contains("root last"));
    assert!(refused("nothing", &text("root.key")).contains("no PEM certificate"));
    assert!(refused(&chain, "nothing").contains("not a private key"));
    let sec1 = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\n";
    assert!(refused(&chain, sec1).contains("step crypto key format --pkcs8"));
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMHcCAQEE\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert!(refused(&chain, locked).contains("without a password"));

    let key = KeyPair::generate().unwrap();
    let plain = CertificateParams::new(vec!["a.example".into()]).unwrap().self_signed(&key).unwrap();
    assert!(refused(&plain.pem(), &key.serialize_pem()).contains("no authority"));
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Corporate root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let foreign = params.self_signed(&key).unwrap();
    let foreign = Authority::from_pem(&foreign.pem(), &key.serialize_pem(), "pki.ca").unwrap();
    assert_eq!(foreign.cluster_id(), &foreign.fingerprint()[..16]);
}

#[test]
fn a_hostile_request_gets_nothing_but_its_key_signed() {
    let home = tempfile::tempdir().unwrap();
    let authority = open(&home.path().join("pki"));
    let key = KeyPair::generate().unwrap();
    let mut wish = CertificateParams::new(vec!["evil.example".into()]).unwrap();
    wish.subject_alt_names.push(SanType::URI("rhyzome://other/node/node_victim".try_into().unwrap()));
    wish.distinguished_name.push(DnType::CommonName, "evil");
    wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = wish.serialize_request(&key).unwrap().pem().unwrap();
    let leaf = authority.sign_node_csr(&csr, "node_1", SystemTime::now()).unwrap();

    let der = CertificateDer::from_pem_slice(leaf.chain_pem.as_bytes()).unwrap();
    let who = peer_identity(&der).unwrap();
    assert_eq!((who.node_id.as_str(), who.serial.as_str()), ("node_1", leaf.serial_hex.as_str()));
    assert_eq!(who.cluster_id, authority.cluster_id());
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    assert!(!certificate.is_ca());
    assert_eq!(certificate.subject().to_string(), "CN=node_1");
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 1);
    let usage = certificate.extended_key_usage().unwrap().unwrap();
    assert!(usage.value.client_auth && !usage.value.server_auth && !usage.value.any);
    let ends = certificate_times(&der).unwrap().not_after;
    assert!(leaf.not_after.duration_since(ends).unwrap().as_secs() < 2);
}

#[test]
fn a_request_that_is_none_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let authority = open(&home.path().join("pki"));
    let csr = NodeKey::generate().unwrap().csr_pem().unwrap();
    let refused = |csr: &str, node: &str| {
        authority.sign_node_csr(csr, node, SystemTime::now()).unwrap_err().to_string()
    };
    assert!(refused("", "node_1").contains("PKCS #10"));
    assert!(refused(&csr, "a/../b").contains("cannot be the id"));
    assert!(refused(&"x".repeat(10_000), "node_1").contains("longer than"));
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = CertificateParams::default().serialize_request(&p384).unwrap().pem().unwrap();
    assert!(refused(&p384, "node_1").contains("P-256"));
    // Somebody else's key under one's own signature: the proof of possession fails.
    let tampered = csr.replacen("MI", "MJ", 1);
    assert!(!refused(&tampered, "node_1").is_empty());
}

#[test]
fn a_nodes_key_survives_its_file() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("key.pem");
    let key = NodeKey::generate().unwrap();
    key.save(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let authority = open(&home.path().join("pki"));
    let leaf = authority.sign_node_csr(&key.csr_pem().unwrap(), "node_1", SystemTime::now()).unwrap();
    Identity::of_node(&leaf.chain_pem, &NodeKey::load(&path).unwrap()).unwrap();
    assert!(Identity::of_node(&leaf.chain_pem, &NodeKey::generate().unwrap()).is_err());
    assert_eq!(format!("{key:?}"), "NodeKey(..)");
}

#[test]
fn a_server_that_calls_is_named_and_serves_nobody() {
    let home = tempfile::tempdir().unwrap();
    let authority = open(&home.path().join("pki"));
    let now = SystemTime::now();
    let identity = authority.issue_calling_server("srv_1", now).unwrap();
    let who = calling_server(identity.leaf()).unwrap();
    assert_eq!((who.cluster_id.as_str(), who.server_id.as_str()), (authority.cluster_id(), "srv_1"));
    let (_, certificate) = X509Certificate::from_der(identity.leaf()).unwrap();
    let usage = certificate.extended_key_usage().unwrap().unwrap();
    assert!(usage.value.client_auth && !usage.value.server_auth && !usage.value.any);
    assert!(certificate_times(identity.leaf()).unwrap().not_after < now + Duration::from_secs(3601));
    assert!(authority.issue_calling_server("srv/../1", now).is_err());

    // Neither is taken for the other.
    assert!(peer_identity(identity.leaf()).unwrap_err().to_string().contains("not the name of a node"));
    let csr = NodeKey::generate().unwrap().csr_pem().unwrap();
    let node = authority.sign_node_csr(&csr, "node_1", now).unwrap();
    let node = CertificateDer::from_pem_slice(node.chain_pem.as_bytes()).unwrap();
    assert!(calling_server(&node).unwrap_err().to_string().contains("not the name of a server"));
    let door = authority.issue_server(&["a.example.com".into()], now).unwrap();
    assert!(calling_server(door.leaf()).is_err());
}
