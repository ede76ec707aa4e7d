//! Clients that are not our agent, and certificates that are not good here.
use super::harness::Cluster;
use rhyzome_pki::{Authority, Identity, NodeKey, joining_client_config, returning_client_config};
use rhyzome_proto::v1::control_client::ControlClient;
use rhyzome_proto::v1::enrollment_client::EnrollmentClient;
use rhyzome_proto::v1::return_answer::Step as Answer;
use rhyzome_proto::v1::return_message::Step;
use rhyzome_proto::v1::{
    AgentMessage, Heartbeat, Hello, ReturnAnswer, ReturnClaim, ReturnMessage, ReturnProof, ServerMessage,
    StreamFrame, WhoAmIRequest, agent_message, server_message,
};
use rhyzome_tests::on_both;
use rhyzome_tests::world::World;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

on_both!(
    only_a_good_certificate_of_this_cluster_gets_an_answer,
    an_agent_that_floods_or_does_not_say_hello_is_cut_off_with_a_reason,
    a_stream_that_nobody_asked_for_is_refused,
    nobody_comes_back_without_the_key,
);

pub async fn who_am_i(cluster: &Cluster, tls: Arc<rustls::ClientConfig>) -> Result<String, String> {
    let mut client = ControlClient::new(cluster.dial(tls).await?);
    let answer = client.who_am_i(WhoAmIRequest {}).await;
    answer.map(|answer| answer.into_inner().node_id).map_err(|status| format!("{status:?}"))
}

async fn only_a_good_certificate_of_this_cluster_gets_an_answer(world: World) {
    let cluster = Cluster::start(world).await;
    let node = cluster.make_node("n1").await;
    let good = cluster.tls(&cluster.identity(&node).await);
    assert_eq!(who_am_i(&cluster, good).await.as_deref(), Ok(&*node));

    let none = joining_client_config(&cluster.authority.fingerprint()).unwrap();
    assert!(who_am_i(&cluster, none).await.unwrap_err().contains("join first"));

    let key = NodeKey::generate().unwrap();
    let csr = key.csr_pem().unwrap();
    let past = SystemTime::now() - Duration::from_secs(48 * 60 * 60);
    let signed = |authority: &Authority, node: &str, at| {
        let leaf = authority.sign_node_csr(&csr, node, at).unwrap();
        cluster.tls(&Identity::of_node(&leaf.chain_pem, &key).unwrap())
    };
    let other = Authority::open_or_create(&cluster.folder.path().join("other"), SystemTime::now()).unwrap();
    let now = SystemTime::now();
    for (tls, what) in [
        (signed(&cluster.authority, &node, past), "expired"),
        (signed(&other, &node, now), "another authority's"),
        (signed(&cluster.authority, &node, now), "signed, but never recorded"),
        (signed(&cluster.authority, "node_nobody", now), "of no node"),
    ] {
        assert!(who_am_i(&cluster, tls).await.is_err(), "{what}");
    }
}

pub type Down = Streaming<ServerMessage>;

pub async fn session(cluster: &Cluster, node: &str) -> (mpsc::Sender<AgentMessage>, Down) {
    let channel = cluster.dial(cluster.tls(&cluster.identity(node).await)).await.unwrap();
    let (up, messages) = mpsc::channel(64);
    let down = ControlClient::new(channel).session(ReceiverStream::new(messages)).await.unwrap();
    (up, down.into_inner())
}

fn message(message: agent_message::Message) -> AgentMessage {
    AgentMessage { message: Some(message) }
}

/// The server's parting words.
pub async fn goodbye(mut down: Down) -> String {
    let last = async {
        while let Some(said) = down.message().await.unwrap() {
            if let Some(server_message::Message::Goodbye(goodbye)) = said.message {
                return goodbye.reason;
            }
        }
        "nothing".into()
    };
    tokio::time::timeout(Duration::from_secs(60), last).await.unwrap()
}

async fn an_agent_that_floods_or_does_not_say_hello_is_cut_off_with_a_reason(world: World) {
    let cluster = Cluster::start(world).await;
    let node = cluster.make_node("n1").await;
    let (up, down) = session(&cluster, &node).await;
    up.send(message(agent_message::Message::Heartbeat(Heartbeat::default()))).await.unwrap();
    assert!(goodbye(down).await.contains("Hello"));

    let (up, down) = session(&cluster, &node).await;
    up.send(message(agent_message::Message::Hello(Hello::default()))).await.unwrap();
    tokio::spawn(async move {
        while up.send(message(agent_message::Message::Heartbeat(Heartbeat::default()))).await.is_ok() {}
    });
    assert!(goodbye(down).await.contains("too many messages"));
}

async fn a_stream_that_nobody_asked_for_is_refused(world: World) {
    let cluster = Cluster::start(world).await;
    let node = cluster.make_node("n1").await;
    let channel = cluster.dial(cluster.tls(&cluster.identity(&node).await)).await.unwrap();
    let (up, frames) = mpsc::channel(1);
    up.send(StreamFrame { stream_id: "0".repeat(32), ..StreamFrame::default() }).await.unwrap();
    let answer = ControlClient::new(channel).attach(ReceiverStream::new(frames)).await.unwrap();
    let refused = answer.into_inner().message().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
}

pub type Back = (mpsc::Sender<ReturnMessage>, Streaming<ReturnAnswer>);

/// Somebody without a certificate who wants to come back, and says this first.
pub async fn back(cluster: &Cluster, first: Step) -> Back {
    let tls = returning_client_config(&cluster.authority.trust_pem()).unwrap();
    let mut client = EnrollmentClient::new(cluster.dial(tls).await.unwrap());
    let (say, steps) = mpsc::channel(4);
    say.send(ReturnMessage { step: Some(first) }).await.unwrap();
    let answers = client.r#return(ReceiverStream::new(steps)).await.unwrap().into_inner();
    (say, answers)
}

async fn nobody_comes_back_without_the_key(world: World) {
    let cluster = Cluster::start(world).await;
    let node = cluster.make_node("n1").await;
    let (key, stranger) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let now = SystemTime::now();
    let leaf = cluster.authority.sign_node_csr(&key.csr_pem().unwrap(), &node, now).unwrap();
    let later = cluster.store().env().now().plus_seconds(3600);
    cluster.store().record_certificate(&leaf.serial_hex, &node, later).await.unwrap();
    let claim = || Step::Claim(ReturnClaim { certificate_chain_pem: leaf.chain_pem.clone() });
    let proof = |by: &NodeKey, challenge: &[u8]| {
        let signature = by.sign_challenge(cluster.authority.cluster_id(), challenge).unwrap();
        Step::Proof(ReturnProof { signature, csr_pem: by.csr_pem().unwrap() })
    };
    let mut old = Vec::new();
    for (by, welcome) in [(&stranger, false), (&key, true)] {
        let (say, mut answers) = back(&cluster, claim()).await;
        let told = answers.message().await.unwrap().unwrap().step;
        let Some(Answer::Challenge(challenge)) = told else { panic!("{told:?}") };
        say.send(ReturnMessage { step: Some(proof(by, &challenge)) }).await.unwrap();
        let ended = answers.message().await;
        assert_eq!(ended.is_ok(), welcome, "{ended:?}");
        old = challenge;
    }
    // What was signed for one challenge is good for no other, and nothing is good before a claim.
    let (say, mut answers) = back(&cluster, claim()).await;
    answers.message().await.unwrap();
    say.send(ReturnMessage { step: Some(proof(&key, &old)) }).await.unwrap();
    let refused = answers.message().await.unwrap_err();
    assert!(refused.message().contains("brings nobody back"), "{refused}");
    let (_say, mut answers) = back(&cluster, proof(&key, &old)).await;
    assert_eq!(answers.message().await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let claim = Step::Claim(ReturnClaim { certificate_chain_pem: "no certificate".into() });
    let (_say, mut answers) = back(&cluster, claim).await;
    assert_eq!(answers.message().await.unwrap_err().code(), tonic::Code::PermissionDenied);
}
