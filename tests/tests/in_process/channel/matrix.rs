//! Every certificate that is not good, and what its bearer gets at each call of the real door: nothing, not even the
//! reason, which stands in the server's log. On one thread, so that the log that is read is this test's.
use super::big;
use super::harness::Cluster;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, SerialNumber};
use rhyzome_api::channel::Purpose;
use rhyzome_pki::{Authority, Identity, NodeKey, joining_client_config, peer_identity};
use rhyzome_proto::v1::control_client::ControlClient;
use rhyzome_proto::v1::{
    AgentMessage, FetchBlobRequest, Hello, Report, ReportState, StreamFrame, WhoAmIRequest, agent_message,
    server_message,
};
use rhyzome_tests::told::Told;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

#[tokio::test]
async fn nothing_but_a_good_certificate_gets_an_answer_on_sqlite() {
    nothing_but_a_good_certificate_gets_an_answer(World::new(Engine::Sqlite).await).await;
}

#[tokio::test]
async fn nothing_but_a_good_certificate_gets_an_answer_on_postgres() {
    nothing_but_a_good_certificate_gets_an_answer(World::new(Engine::Postgres).await).await;
}

#[tokio::test]
async fn a_node_gets_nothing_of_another_on_sqlite() {
    a_node_gets_nothing_of_another(World::new(Engine::Sqlite).await).await;
}

#[tokio::test]
async fn a_node_gets_nothing_of_another_on_postgres() {
    a_node_gets_nothing_of_another(World::new(Engine::Postgres).await).await;
}

const DIGEST: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// Of the service that is for nodes.
const CALLS: usize = 4;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What every call of the service answers, or why there is no connection.
async fn all_calls(cluster: &Cluster, tls: Arc<rustls::ClientConfig>) -> Vec<Result<(), Status>> {
    let client = async || match cluster.dial(tls.clone()).await {
        Ok(channel) => Ok(ControlClient::new(channel)),
        Err(why) => Err(Status::unavailable(why)),
    };
    let who = async { client().await?.who_am_i(WhoAmIRequest {}).await.map(drop) };
    let session = async {
        let (say, messages) = mpsc::channel(1);
        let hello = AgentMessage { message: Some(agent_message::Message::Hello(Hello::default())) };
        say.send(hello).await.unwrap();
        let mut said = client().await?.session(ReceiverStream::new(messages)).await?.into_inner();
        said.message().await.map(drop)
    };
    let blob = async {
        let wanted = FetchBlobRequest { sha256: DIGEST.into(), offset: 0 };
        client().await?.fetch_blob(wanted).await?.into_inner().message().await.map(drop)
    };
    let stream = async {
        let (say, frames) = mpsc::channel(1);
        say.send(StreamFrame { stream_id: "0".repeat(32), ..StreamFrame::default() }).await.unwrap();
        client().await?.attach(ReceiverStream::new(frames)).await?.into_inner().message().await.map(drop)
    };
    vec![who.await, session.await, blob.await, stream.await]
}

/// Certificates of our own intermediate that our own server would never sign.
struct Forge<'a> {
    cluster: &'a Cluster,
    node: String,
}

impl Forge<'_> {
    /// One with these names, which the store knows as the node's.
    async fn named(&self, names: Vec<SanType>) -> Arc<rustls::ClientConfig> {
        let pki = self.cluster.folder.path().join("pki");
        let read = |name: &str| std::fs::read_to_string(pki.join(name)).unwrap();
        let issuer = KeyPair::from_pem(&read("intermediate.key")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("intermediate.pem"), issuer).unwrap();
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("key.pem");
        let key = KeyPair::generate().unwrap();
        rhyzome_pki::write_private(&path, key.serialize_pem().as_bytes()).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.distinguished_name.push(DnType::CommonName, self.node.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let serial = [0x41; 16];
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let leaf = params.signed_by(&key, &issuer).unwrap().pem();
        let chain = leaf + &read("intermediate.pem");
        self.cluster.tls(&Identity::of_node(&chain, &NodeKey::load(&path).unwrap()).unwrap())
    }

    fn uri(&self, cluster: &str) -> SanType {
        SanType::URI(format!("rhyzome://{cluster}/node/{}", self.node).try_into().unwrap())
    }

    async fn signed(&self, by: &Authority, at: SystemTime) -> Identity {
        let key = NodeKey::generate().unwrap();
        let leaf = by.sign_node_csr(&key.csr_pem().unwrap(), &self.node, at).unwrap();
        let later = self.cluster.store().env().now().plus_seconds(3600);
        self.cluster.store().record_certificate(&leaf.serial_hex, &self.node, later).await.unwrap();
        Identity::of_node(&leaf.chain_pem, &key).unwrap()
    }
}

async fn nothing_but_a_good_certificate_gets_an_answer(world: World) {
    let told = Told::listen();
    let cluster = Cluster::start(world).await;
    let node = cluster.make_node("n1").await;
    let forge = Forge { cluster: &cluster, node: node.clone() };
    let (now, own) = (SystemTime::now(), cluster.authority.cluster_id());
    // All that follow are recorded: it is not for that that they are refused.
    let later = cluster.store().env().now().plus_seconds(3600);
    cluster.store().record_certificate(&"41".repeat(16), &node, later).await.unwrap();
    let other = Authority::open_or_create(&cluster.folder.path().join("other"), now).unwrap();
    let revoked = forge.signed(&cluster.authority, now).await;
    let serial = peer_identity(revoked.leaf()).unwrap().serial;
    cluster.world.sql(&format!("UPDATE certificate SET revoked_at = 1 WHERE serial = '{serial}'")).await;
    let dns = SanType::DnsName("n1.example".try_into().unwrap());
    let good = cluster.tls(&forge.signed(&cluster.authority, now).await);
    let cases = [
        ("none", joining_client_config(&cluster.authority.fingerprint()).unwrap(), "without a certificate"),
        (
            "expired",
            cluster.tls(&forge.signed(&cluster.authority, now - 2 * DAY).await),
            "certificate expired",
        ),
        (
            "not yet valid",
            cluster.tls(&forge.signed(&cluster.authority, now + 2 * DAY).await),
            "not valid yet",
        ),
        ("of another authority", cluster.tls(&forge.signed(&other, now).await), "UnknownIssuer"),
        ("revoked", cluster.tls(&revoked), "it was revoked"),
        ("no names", forge.named(vec![]).await, "exactly one URI, and names 0"),
        ("a DNS name only", forge.named(vec![dns]).await, "exactly one URI, and names 0"),
        (
            "another cluster's name",
            forge.named(vec![forge.uri("elsewhere")]).await,
            "it is of another cluster",
        ),
        (
            "two names",
            forge.named(vec![forge.uri(own), forge.uri("other")]).await,
            "exactly one URI, and names 2",
        ),
    ];
    for (what, tls, reason) in cases {
        told.take();
        let outcomes = all_calls(&cluster, tls).await;
        for (call, outcome) in outcomes.into_iter().enumerate() {
            let refused = outcome.expect_err(&format!("{what}: call {call}"));
            is_nothing_useful(&refused, &node, what);
        }
        let mut log = Vec::new();
        until(&format!("{what}: {reason:?} in the log, for each call"), 10, async || {
            log.extend(told.take());
            // A client that was cut off in its handshake may try again.
            (log.iter().filter(|line| line.contains(reason)).count() >= CALLS).then_some(())
        })
        .await;
    }
    // The same name, of our own cluster and alone, is what is let in: so it was for nothing else that these were not.
    let alone = forge.named(vec![forge.uri(own)]).await;
    for tls in [good, alone] {
        let outcomes = all_calls(&cluster, tls).await;
        assert!(outcomes[0].is_ok() && outcomes[1].is_ok(), "{outcomes:?}");
        assert_eq!(outcomes[2].as_ref().unwrap_err().code(), Code::NotFound);
        assert_eq!(outcomes[3].as_ref().unwrap_err().code(), Code::NotFound);
    }
}

/// Either one of two sentences, or an alert of TLS: no name, no number, nothing of the inside.
fn is_nothing_useful(refused: &Status, node: &str, what: &str) {
    let sentences = ["this certificate is not accepted here", "a node's certificate is needed; join first"];
    let told = format!("{refused:?}");
    if refused.code() == Code::Unauthenticated {
        assert!(sentences.contains(&refused.message()), "{what}: {told}");
        assert!(refused.details().is_empty(), "{what}: {told}");
    } else {
        let alerts = ["CertificateExpired", "UnknownCA", "BadCertificate", "CertificateUnknown"];
        assert!(alerts.iter().any(|alert| told.contains(alert)), "{what}: {told}");
    }
    for inside in [node, "SELECT", "certificate WHERE", "/pki", "intermediate"] {
        assert!(!told.contains(inside), "{what}: {told}");
    }
}

/// A call that brings a stream; it is left open.
async fn bring(cluster: &Cluster, node: &str, stream_id: &str) -> Streaming<StreamFrame> {
    let (say, frames) = mpsc::channel(1);
    say.send(StreamFrame { stream_id: stream_id.into(), ..StreamFrame::default() }).await.unwrap();
    let mut client =
        ControlClient::new(cluster.dial(cluster.tls(&cluster.identity(node).await)).await.unwrap());
    client.attach(ReceiverStream::new(frames)).await.unwrap().into_inner()
}

async fn a_node_gets_nothing_of_another(world: World) {
    let told = Told::listen();
    let cluster = Cluster::start(world).await;
    let mut mine = cluster.agent("n1").await;
    mine.connected().await;
    mine.handle.node_status(big());
    super::node_is(&cluster, &mine.node, "ready").await;
    cluster.world.make_image("", "tiny").await;
    std::fs::write(cluster.folder.path().join("blobs").join(DIGEST), b"bytes").unwrap();
    let made = cluster.world.make("default", "instance", "one", json!({"image": "tiny"})).await.object;
    let rows = cluster.store().assignments_after(&mine.node, 0, 100).await.unwrap();
    assert!(rows.iter().any(|row| row.object_id == made.core.id), "it is the first node's");
    assert!(mine.handle.fetch_blob(DIGEST, 0).await.is_ok());

    // Orders: none of the other's come.
    let mut other = cluster.agent("n2").await;
    assert_eq!(other.orders().await, Vec::<u64>::new());
    // Bytes.
    told.take();
    let refused = other.handle.fetch_blob(DIGEST, 0).await.err().unwrap().to_string();
    assert!(refused.contains("no order of this node names these bytes"), "{refused}");
    let log = told.take();
    assert!(log.iter().any(|line| line.contains(DIGEST) && line.contains(&other.node)), "{log:#?}");
    // Streams: that which is asked of the first is not the second's to bring, though it knew its number.
    let node = mine.node.clone();
    drop(mine);
    let (say, mut heard) = super::hostile::session(&cluster, &node).await;
    let hello = AgentMessage { message: Some(agent_message::Message::Hello(Hello::default())) };
    say.send(hello).await.unwrap();
    let Some(server_message::Message::Welcome(_)) = heard.message().await.unwrap().unwrap().message else {
        panic!("no welcome")
    };
    let (asked, object) = (cluster.streams.clone(), made.core.id.clone());
    let asked_of = node.clone();
    let waiting =
        tokio::spawn(async move { asked.open(&asked_of, &object, Purpose::Console).await.map(drop) });
    let stream_id = loop {
        let said = heard.message().await.unwrap().unwrap().message;
        if let Some(server_message::Message::OpenStream(wanted)) = said {
            break wanted.stream_id;
        }
    };
    let mut others = bring(&cluster, &other.node, &stream_id).await;
    assert_eq!(others.message().await.unwrap_err().code(), Code::NotFound);
    let log = told.take();
    assert!(log.iter().any(|line| line.contains("stream") && line.contains(&other.node)), "{log:#?}");
    let _brought = bring(&cluster, &node, &stream_id).await;
    assert!(waiting.await.unwrap().is_ok(), "it stayed the first node's");
    // Reports: what it says of the other's instance is not believed.
    let before = cluster.store().assignments_after(&node, 0, 100).await.unwrap().len();
    other.handle.report(Report {
        object_id: made.core.id.clone(),
        placement_epoch: 1,
        generation: 1,
        state: ReportState::Failed.into(),
        message: "a lie".into(),
        ..Report::default()
    });
    // Heard behind it.
    other.handle.node_status(big());
    super::node_is(&cluster, &other.node, "ready").await;
    let states = cluster.world.ask("SELECT message FROM assignment").await;
    assert!(states.len() >= before && !states.iter().any(|row| row[0].contains("a lie")), "{states:?}");
}
