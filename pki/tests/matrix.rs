//! Who gets through a handshake, and who does not: real rustls on both ends of a pipe.
#![allow(clippy::unwrap_used)]
use rhyzome_pki::*;
use rustls_pki_types::ServerName;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TWO_DAYS: Duration = Duration::from_secs(2 * 24 * 60 * 60);

struct Cluster {
    authority: Authority,
    server: Arc<rustls::ServerConfig>,
    shown: Arc<ServerCertificate>,
    _folder: tempfile::TempDir,
}

fn cluster() -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = Authority::open_or_create(&folder.path().join("pki"), now).unwrap();
    let shown = ServerCertificate::new(&authority.issue_server(&["127.0.0.1".into()], now).unwrap()).unwrap();
    let server = grpc_server_config(shown.clone(), &authority.trust_pem()).unwrap();
    Cluster { authority, server, shown, _folder: folder }
}

fn node(authority: &Authority, id: &str, now: SystemTime) -> Identity {
    let key = NodeKey::generate().unwrap();
    let leaf = authority.sign_node_csr(&key.csr_pem().unwrap(), id, now).unwrap();
    Identity::of_node(&leaf.chain_pem, &key).unwrap()
}

/// What the server saw of the client (its certificate, if any), or why one of the two gave up.
async fn shake(
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
    name: &str,
) -> Result<Option<Vec<u8>>, String> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let served = tokio::spawn(async move {
        let mut stream = tokio_rustls::TlsAcceptor::from(server).accept(near).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        let seen = stream.get_ref().1.peer_certificates().map(|chain| chain[0].to_vec());
        std::io::Result::Ok(seen)
    });
    let called = async {
        let mut stream = tokio_rustls::TlsConnector::from(client).connect(name, far).await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        std::io::Result::Ok(())
    }
    .await;
    match (served.await.unwrap(), called) {
        (Ok(seen), Ok(())) => Ok(seen),
        (server, client) => Err(format!("server: {:?}; client: {:?}", server.err(), client.err())),
    }
}

async fn dial(cluster: &Cluster, identity: &Identity) -> Result<Option<Vec<u8>>, String> {
    let client = agent_client_config(&cluster.authority.trust_pem(), identity).unwrap();
    shake(cluster.server.clone(), client, SERVER_NAME).await
}

#[tokio::test]
async fn the_right_certificate_passes_and_names_the_node() {
    let cluster = cluster();
    let seen = dial(&cluster, &node(&cluster.authority, "node_1", SystemTime::now())).await.unwrap().unwrap();
    let who = peer_identity(&seen).unwrap();
    assert_eq!((who.node_id.as_str(), who.cluster_id.as_str()), ("node_1", cluster.authority.cluster_id()));
    assert_eq!(who.serial.len(), 32);
}

#[tokio::test]
async fn without_a_certificate_the_handshake_passes_but_names_nobody() {
    let cluster = cluster();
    let client = joining_client_config(&cluster.authority.fingerprint()).unwrap();
    assert_eq!(shake(cluster.server.clone(), client, SERVER_NAME).await, Ok(None));
}

#[tokio::test]
async fn expired_and_future_certificates_are_refused() {
    let cluster = cluster();
    let now = SystemTime::now();
    for (when, why) in [(now - TWO_DAYS, "Expired"), (now + TWO_DAYS, "NotValidYet")] {
        let refused = dial(&cluster, &node(&cluster.authority, "node_1", when)).await.unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
}

#[tokio::test]
async fn another_clusters_certificate_is_refused_by_both_ends() {
    let (ours, theirs) = (cluster(), cluster());
    let stranger = node(&theirs.authority, "node_1", SystemTime::now());
    let refused = dial(&ours, &stranger).await.unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    let client = agent_client_config(&theirs.authority.trust_pem(), &stranger).unwrap();
    let refused = shake(ours.server.clone(), client, SERVER_NAME).await.unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
}

#[tokio::test]
async fn a_node_cannot_pose_as_a_server_nor_a_server_as_a_node() {
    let cluster = cluster();
    let now = SystemTime::now();
    let as_server = ServerCertificate::new(&node(&cluster.authority, "node_1", now)).unwrap();
    let server = grpc_server_config(as_server, &cluster.authority.trust_pem()).unwrap();
    let client = joining_client_config(&cluster.authority.fingerprint()).unwrap();
    assert!(shake(server, client, SERVER_NAME).await.is_err());
    assert!(dial(&cluster, &cluster.authority.issue_server(&[], now).unwrap()).await.is_err());
}

#[tokio::test]
async fn a_pin_that_does_not_match_ends_the_handshake() {
    let (ours, theirs) = (cluster(), cluster());
    let client = joining_client_config(&theirs.authority.fingerprint()).unwrap();
    let refused = shake(ours.server.clone(), client, SERVER_NAME).await.unwrap_err();
    assert!(refused.contains("another cluster"), "{refused}");
    assert!(joining_client_config("abc").is_err());
}

#[tokio::test]
async fn a_server_certificate_is_exchanged_while_running() {
    let cluster = cluster();
    let mine = node(&cluster.authority, "node_1", SystemTime::now());
    cluster
        .shown
        .replace(&cluster.authority.issue_server(&[], SystemTime::now() - 60 * TWO_DAYS).unwrap())
        .unwrap();
    let refused = dial(&cluster, &mine).await.unwrap_err();
    assert!(refused.contains("Expired"), "{refused}");
    cluster.shown.replace(&cluster.authority.issue_server(&[], SystemTime::now()).unwrap()).unwrap();
    dial(&cluster, &mine).await.unwrap();
}

#[tokio::test]
async fn rest_answers_under_the_names_given() {
    let cluster = cluster();
    let shown = ServerCertificate::new(
        &cluster
            .authority
            .issue_server(&["10.1.2.3".into(), "cloud.example".into()], SystemTime::now())
            .unwrap(),
    )
    .unwrap();
    let server = rest_server_config(shown).unwrap();
    for (name, good) in [("10.1.2.3", true), ("cloud.example", true), ("other.example", false)] {
        let client = joining_client_config(&cluster.authority.fingerprint()).unwrap();
        assert_eq!(shake(server.clone(), client, name).await.is_ok(), good, "{name}");
    }
}
