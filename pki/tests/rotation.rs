//! One authority becomes another: who believes whom in each phase, with real rustls on both ends, and what a crash leaves.
#![allow(clippy::unwrap_used)]
use rhyzome_pki::*;
use rustls_pki_types::ServerName;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Step = fn(&Authority, SystemTime) -> Result<bool, PkiError>;

struct Node {
    identity: Identity,
    trust: String,
}

fn open(folder: &Path) -> Authority {
    Authority::open_or_create(folder, SystemTime::now()).unwrap()
}

fn node(authority: &Authority) -> Node {
    let key = NodeKey::generate().unwrap();
    let leaf = authority.sign_node_csr(&key.csr_pem().unwrap(), "node_1", SystemTime::now()).unwrap();
    Node { identity: Identity::of_node(&leaf.chain_pem, &key).unwrap(), trust: authority.trust_pem() }
}

/// Whether both ends believe each other.
async fn meet(authority: &Authority, client: Arc<rustls::ClientConfig>) -> bool {
    let shown = ServerCertificate::new(&authority.issue_server(&[], SystemTime::now()).unwrap()).unwrap();
    let server = grpc_server_config(shown, &authority.trust_pem()).unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let served = tokio::spawn(async move {
        let mut stream = tokio_rustls::TlsAcceptor::from(server).accept(near).await?;
        stream.write_all(b"x").await?;
        stream.flush().await
    });
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let called = async {
        let mut stream = tokio_rustls::TlsConnector::from(client).connect(name, far).await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await
    }
    .await;
    served.await.unwrap().is_ok() && called.is_ok()
}

async fn dials(node: &Node, authority: &Authority) -> bool {
    meet(authority, agent_client_config(&node.trust, &node.identity).unwrap()).await
}

async fn joins(token: &str, authority: &Authority) -> bool {
    meet(authority, joining_client_config(token).unwrap()).await
}

#[tokio::test]
async fn whoever_trusts_either_root_is_served_until_the_old_one_retires() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("pki");
    let (ours, now) = (open(&folder), SystemTime::now());
    let (old, old_token) = (node(&ours), ours.fingerprint());
    assert_eq!((ours.phase(), ours.trust_digest()), (Phase::Settled, trust_digest(&old.trust).unwrap()));
    assert!(!ours.activate(now).unwrap() && !ours.retire(now).unwrap(), "there is nothing to go on with");

    assert!(ours.prepare(now).unwrap() && !ours.prepare(now).unwrap(), "one exchange at a time");
    assert_eq!((ours.phase(), ours.fingerprint()), (Phase::Prepared, old_token.clone()));
    let told = node(&ours);
    assert_eq!(fingerprints(&told.trust).unwrap().len(), 2);
    assert_eq!(issuer_key(told.identity.leaf()).unwrap(), issuer_key(old.identity.leaf()).unwrap());
    for node in [&old, &told] {
        assert!(dials(node, &ours).await);
    }

    assert!(ours.activate(now).unwrap() && !ours.activate(now).unwrap());
    let (new, new_token) = (node(&ours), ours.fingerprint());
    assert!(ours.phase() == Phase::Activated && new_token != old_token);
    assert_eq!(issuer_key(new.identity.leaf()).unwrap(), ours.issuer_key());
    assert_ne!(issuer_key(old.identity.leaf()).unwrap(), ours.issuer_key());
    assert!(!ours.has_retired(&issuer_key(old.identity.leaf()).unwrap()));
    for node in [&old, &told, &new] {
        assert!(dials(node, &ours).await, "whichever root it trusts, whichever has signed it");
    }
    assert!(joins(&old_token, &ours).await && joins(&new_token, &ours).await);
    assert_eq!(trust_digest(&new.trust).unwrap(), trust_digest(&told.trust).unwrap(), "in another order");

    assert!(ours.retire(now).unwrap() && !ours.retire(now).unwrap());
    assert_eq!((ours.phase(), ours.fingerprint()), (Phase::Settled, new_token.clone()));
    assert!(dials(&new, &ours).await && dials(&node(&ours), &ours).await);
    assert!(
        !dials(&old, &ours).await && !dials(&told, &ours).await,
        "the old root's certificates are refused"
    );
    assert!(joins(&new_token, &ours).await && !joins(&old_token, &ours).await);
    let by = |node: &Node| issuer_key(node.identity.leaf()).unwrap();
    assert!(ours.has_retired(&by(&old)) && !ours.has_retired(&by(&new)));
    assert_eq!(open(&folder).cluster_id(), ours.cluster_id(), "it is the same cluster");
    let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    assert!(names.len() == 6 && !names.iter().any(|name| name == "root.key"), "{names:?}");
}

#[tokio::test]
async fn other_processes_follow_and_only_one_of_them_takes_a_step() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("pki");
    let (one, other) = (open(&folder), open(&folder));
    let now = SystemTime::now();
    assert_eq!(other.refresh().unwrap(), 0);
    let steps: [Step; 3] = [Authority::prepare, Authority::activate, Authority::retire];
    for (done, step) in (1..).zip(steps) {
        let taken = std::thread::scope(|scope| {
            let both = [&one, &other].map(|authority| scope.spawn(|| step(authority, now).unwrap()));
            both.map(|one| one.join().unwrap())
        });
        assert_eq!(taken.iter().filter(|taken| **taken).count(), 1, "step {done}");
        assert!(one.refresh().unwrap() == done && other.refresh().unwrap() == done);
        assert_eq!((one.phase(), one.fingerprint()), (other.phase(), other.fingerprint()));
        // A process that starts only now, after a crash of all others, goes on from there.
        let third = open(&folder);
        assert_eq!((third.phase(), third.trust_digest()), (one.phase(), other.trust_digest()));
        assert_eq!(third.generations(), one.generations());
    }
}

#[test]
fn what_a_crash_left_halfway_is_no_authority_and_goes() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("pki");
    let ours = open(&folder);
    let before = ours.trust_pem();
    for half in ["root-0a1b2c3d.key", "root-0a1b2c3d.pem", "intermediate-0a1b2c3d.key"] {
        std::fs::copy(folder.join("root.key"), folder.join(half)).unwrap();
    }
    std::fs::write(folder.join("root-mine.pem"), "an operator's own").unwrap();
    assert_eq!(open(&folder).trust_pem(), before);
    assert!(ours.prepare(SystemTime::now()).unwrap());
    assert!(!folder.join("root-0a1b2c3d.key").exists() && folder.join("root-mine.pem").exists());
    assert_eq!(ours.generations().len(), 2);
}

#[test]
fn without_its_record_nothing_is_swept_away() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("pki");
    let (ours, now) = (open(&folder), SystemTime::now());
    assert!(ours.prepare(now).unwrap() && ours.activate(now).unwrap() && ours.retire(now).unwrap());
    let files = || std::fs::read_dir(&folder).unwrap().count();
    let record = folder.join("rotation.json");
    let text = std::fs::read(&record).unwrap();
    std::fs::remove_file(&record).unwrap();
    let before = files();
    assert!(ours.prepare(now).is_err() && Authority::open_or_create(&folder, now).is_err());
    assert_eq!(files(), before);
    std::fs::write(&record, text).unwrap();
    assert_eq!(open(&folder).trust_pem(), ours.trust_pem());
}

#[test]
fn without_the_roots_key_or_for_an_authority_of_ones_own_it_says_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("pki");
    let ours = open(&folder);
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let chain = text("intermediate.pem") + &text("root.pem");
    let own = Authority::from_pem(&chain, &text("intermediate.key"), "pki.cert").unwrap();
    assert!(own.prepare(SystemTime::now()).unwrap_err().to_string().contains("files of your own"));
    assert_eq!(own.refresh().unwrap(), 0);
    std::fs::remove_file(folder.join("root.key")).unwrap();
    let refused = ours.prepare(SystemTime::now()).unwrap_err().to_string();
    assert!(refused.contains("put its key back"), "{refused}");
    assert_eq!(open(&folder).phase(), Phase::Settled);
    let ends = ours.generations()[0].issuer_ends;
    assert!(ends > SystemTime::now() + Duration::from_secs(9 * 365 * 24 * 3600));
}
