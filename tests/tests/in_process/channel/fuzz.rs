//! An agent and a server that do not speak as agreed, by a seed: neither falls over, each says why it ends, and the next
//! session of one that does works.
use super::harness::{Agent, Cluster, Ledger};
use super::raw::{Act, FalseServer, call, mangled, no_panic, noise, watch_for_panics};
use prost::Message as _;
use rhyzome_agent::env::Env;
use rhyzome_agent::link::LinkEvent;
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::{
    AgentMessage, CaughtUp, FetchBlobRequest, Heartbeat, Hello, InstanceOrder, JoinRequest, NodeStatus,
    OpenStream, Order, OrderBody, RenewRequest, RenewResponse, Report, ReportState, ServerMessage,
    StreamFrame, Welcome, agent_message, server_message,
};
use rhyzome_tests::given::Dice;
use rhyzome_tests::on_both;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tonic::Status;

on_both!(a_server_outlives_agents_that_do_not_speak_as_agreed);

const SESSION: &str = "/rhyzome.v1.Control/Session";
/// Sessions and calls of each kind of nonsense.
const ROUNDS: u64 = 40;

fn seed() -> u64 {
    std::env::var("TEST_SEED").map_or(1, |text| text.parse().unwrap())
}

fn from_agent(message: agent_message::Message) -> Vec<u8> {
    AgentMessage { message: Some(message) }.encode_to_vec()
}

fn hello() -> Vec<u8> {
    from_agent(agent_message::Message::Hello(Hello {
        agent_version: env!("CARGO_PKG_VERSION").into(),
        ..Hello::default()
    }))
}

fn what_agents_say() -> Vec<Vec<u8>> {
    let report = |state: ReportState| Report {
        object_id: "inst_1".into(),
        generation: 1,
        state: state.into(),
        message: "words".into(),
        rendered: [("command".into(), "qemu".into())].into(),
        ..Report::default()
    };
    let status =
        NodeStatus { hostname: "n1".into(), vcpus: 4, accelerator: "tcg".into(), ..NodeStatus::default() };
    vec![
        hello(),
        from_agent(agent_message::Message::Heartbeat(Heartbeat::default())),
        from_agent(agent_message::Message::Node(status)),
        from_agent(agent_message::Message::Report(report(ReportState::Working))),
        from_agent(agent_message::Message::Report(report(ReportState::Gone))),
        from_agent(agent_message::Message::Renew(RenewRequest { csr_pem: "no request".into() })),
    ]
}

/// All that is answered until the end: it comes, and what was said last.
async fn to_the_end(answer: Result<tonic::Streaming<Vec<u8>>, Status>) -> String {
    let mut last = String::new();
    let Ok(mut down) = answer.inspect_err(|status| last = status.to_string()) else { return last };
    let heard = async {
        loop {
            match down.message().await {
                Ok(Some(said)) => {
                    let said = ServerMessage::decode(&*said).ok().and_then(|said| said.message);
                    if let Some(server_message::Message::Goodbye(goodbye)) = said {
                        last = goodbye.reason;
                    }
                }
                Ok(None) => return,
                Err(status) => return last = status.to_string(),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), heard).await.expect("it comes to its end");
    last
}

async fn a_server_outlives_agents_that_do_not_speak_as_agreed(world: World) {
    watch_for_panics();
    let (seed, cluster) = (seed(), Cluster::start(world).await);
    let mut dice = Dice::new(seed);
    let node = cluster.make_node("n1").await;
    let identity = cluster.identity(&node).await;
    let samples = what_agents_say();
    let mut unreadable = 0;
    for round in 0..ROUNDS {
        let (up, messages) = mpsc::channel(64);
        let mut all: Vec<Vec<u8>> = (0..dice.below(40)).map(|_| mangled(&mut dice, &samples)).collect();
        if dice.percent(80) {
            all.insert(0, hello());
        }
        let bad = all.iter().skip(1).any(|bytes| AgentMessage::decode(&**bytes).is_err());
        let first = all.first().and_then(|first| AgentMessage::decode(&**first).ok()?.message);
        let greeted = matches!(first, Some(agent_message::Message::Hello(_)));
        for message in all {
            up.send(message).await.unwrap();
        }
        // Some hang up at once, some when they have heard the end.
        let stays = dice.percent(50).then(|| up.clone());
        drop(up);
        if stays.is_none() || bad || !greeted {
            let why = to_the_end(call(&cluster, &identity, SESSION, messages).await).await;
            assert!(!why.contains('\n'), "seed {seed}, round {round}: {why}");
            if stays.is_some() {
                assert!(!why.is_empty(), "seed {seed}, round {round}: it ended without a word");
            }
            unreadable += usize::from(why.contains("cannot be read"));
        }
    }
    assert!(unreadable > 0, "seed {seed}: nothing was unreadable");
    for _ in 0..ROUNDS {
        other_calls(&cluster, &identity, &mut dice).await;
        no_http(&cluster, &identity, &mut dice).await;
    }
    let (up, messages) = mpsc::channel(2);
    up.send(hello()).await.unwrap();
    up.send(vec![0; 5 << 20]).await.unwrap();
    let why = to_the_end(call(&cluster, &identity, SESSION, messages).await).await;
    assert!(why.contains("cannot be read") && why.contains("too large"), "{why}");

    until("all of them to be gone", 60, async || {
        let open = cluster.world.ask("SELECT node FROM node_state WHERE connected = 1").await;
        open.is_empty().then_some(())
    })
    .await;
    let state = cluster.plant(&node, "n1", SystemTime::now()).await;
    let mut agent = Agent::start(&cluster, &node, state, Ledger::at(0, 0));
    agent.orders().await;
    no_panic();
}

/// Calls beside the session.
async fn other_calls(cluster: &Cluster, identity: &rhyzome_pki::Identity, dice: &mut Dice) {
    let frame = StreamFrame { stream_id: "0".repeat(32), data: vec![1; 100], ..StreamFrame::default() };
    let asked = OpenStream { node_id: "node_1".into(), purpose: "log".into(), ..OpenStream::default() };
    let open = StreamFrame { open: Some(asked), ..StreamFrame::default() };
    let blob = FetchBlobRequest { sha256: "a".repeat(64), offset: u64::MAX };
    let join = JoinRequest { token: "rzj1.a.b".into(), node_name: "n1".into(), ..JoinRequest::default() };
    let samples = [frame.encode_to_vec(), open.encode_to_vec(), blob.encode_to_vec(), join.encode_to_vec()];
    let server = cluster.authority.issue_calling_server("srv_1", SystemTime::now()).unwrap();
    let calls = [
        ("/rhyzome.v1.Control/Attach", identity),
        ("/rhyzome.v1.Control/FetchBlob", identity),
        ("/rhyzome.v1.Enrollment/Join", identity),
        ("/rhyzome.v1.Enrollment/Return", identity),
        ("/rhyzome.v1.Peer/Lend", &server),
        ("/rhyzome.v1.Peer/Lend", identity),
        ("/rhyzome.v1.Control/Whatever", identity),
    ];
    let (path, who) = calls[usize::try_from(dice.below(calls.len() as u64)).unwrap()];
    let (up, messages) = mpsc::channel(8);
    for _ in 0..=dice.below(4) {
        up.send(mangled(dice, &samples)).await.unwrap();
    }
    drop(up);
    to_the_end(call(cluster, who, path, messages).await).await;
}

/// What is not even HTTP/2.
async fn no_http(cluster: &Cluster, identity: &rhyzome_pki::Identity, dice: &mut Dice) {
    let tcp = tokio::net::TcpStream::connect(cluster.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from(rhyzome_pki::SERVER_NAME).unwrap();
    let connector = tokio_rustls::TlsConnector::from(cluster.tls(identity));
    let mut connection = connector.connect(name, tcp).await.unwrap();
    let mut bytes = if dice.percent(50) { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec() } else { Vec::new() };
    bytes.extend(noise(dice, 500));
    // The server may hang up before it has heard all.
    let _ = connection.write_all(&bytes).await;
    let _ = connection.shutdown().await;
    let mut answer = Vec::new();
    let ended = connection.read_to_end(&mut answer);
    // How it hangs up is all the same; that it does is not.
    let _ = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it hangs up");
}

// === a false server ===

fn from_server(message: server_message::Message) -> Vec<u8> {
    ServerMessage { message: Some(message) }.encode_to_vec()
}

fn welcome(cluster: &Cluster, session: u64) -> Vec<u8> {
    from_server(server_message::Message::Welcome(Welcome {
        cluster_id: cluster.authority.cluster_id().into(),
        db_epoch: 1,
        session,
        heartbeat_seconds: 100,
        server_version: "1".into(),
    }))
}

fn order(id: &str, body: Body) -> Order {
    let body = Some(OrderBody { body: Some(body) });
    Order {
        object_id: id.into(),
        kind: "instance".into(),
        db_epoch: 1,
        generation: 1,
        body,
        ..Order::default()
    }
}

fn what_servers_say(cluster: &Cluster) -> Vec<Vec<u8>> {
    let guest = InstanceOrder { vcpus: 1, hostname: "web".into(), ..InstanceOrder::default() };
    let open = OpenStream {
        stream_id: "0".repeat(32),
        object_id: "inst_1".into(),
        purpose: "log".into(),
        ..OpenStream::default()
    };
    let renewed = RenewResponse {
        certificate_chain_pem: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".into(),
        trust_pem: cluster.authority.trust_pem(),
    };
    vec![
        welcome(cluster, 7),
        from_server(server_message::Message::Heartbeat(Heartbeat::default())),
        from_server(server_message::Message::Order(order("inst_1", Body::Instance(guest)))),
        from_server(server_message::Message::Order(order("box_1", Body::Plain(vec![1, 2, 3])))),
        from_server(server_message::Message::CaughtUp(CaughtUp { sequence: 9 })),
        from_server(server_message::Message::OpenStream(open)),
        from_server(server_message::Message::Renewed(renewed)),
    ]
}

#[tokio::test]
async fn an_agent_outlives_servers_that_do_not_speak_as_agreed() {
    watch_for_panics();
    let (seed, cluster) = (seed(), Cluster::start(World::new(Engine::Sqlite).await).await);
    let rounds = usize::try_from(ROUNDS).unwrap();
    let samples = what_servers_say(&cluster);
    let good = vec![
        welcome(&cluster, 4242),
        from_server(server_message::Message::CaughtUp(CaughtUp { sequence: 1 })),
    ];
    let first = welcome(&cluster, 7);
    let script = Arc::new(move |number: usize| {
        // The same number, the same act, however often it is asked.
        let mut dice = Dice::new(seed.wrapping_mul(1000).wrapping_add(number as u64));
        if number >= rounds {
            return Act::Stay(good.clone());
        }
        if dice.percent(20) {
            return Act::Noise(noise(&mut dice, 500));
        }
        let mut said: Vec<Vec<u8>> = (0..dice.below(20)).map(|_| mangled(&mut dice, &samples)).collect();
        if dice.percent(70) {
            said.insert(0, first.clone());
        }
        match dice.percent(50) {
            true => Act::Say(said),
            false => Act::Fail(said, Status::internal("nonsense")),
        }
    });
    let server = FalseServer::start(&cluster, script).await;
    let node = cluster.make_node("n1").await;
    let state = cluster.plant(&node, "n1", SystemTime::now()).await;
    // Without jitter it dials again at once.
    let env = Env::simulated(Arc::new(SystemTime::now), Arc::new(|| 0.0));
    let mut agent = Agent::start_at(&cluster, server.address, &node, state, Ledger::at(0, 0), env);
    let mut ends = 0;
    let heard = async {
        loop {
            match agent.event(60).await {
                LinkEvent::Disconnected { reason } => {
                    assert!(!reason.is_empty() && !reason.contains('\n'), "seed {seed}: {reason:?}");
                    ends += 1;
                }
                LinkEvent::Connected { session: 4242, .. } => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(300), heard).await.expect("it comes to the good one");
    assert!(ends >= rounds / 2, "seed {seed}: {ends} sessions ended");
    agent.caught_up(1).await;
    no_panic();
}

#[tokio::test]
async fn an_agent_lends_no_more_than_so_many_streams_at_once() {
    let cluster = Cluster::start(World::new(Engine::Sqlite).await).await;
    let wanted = |number: usize| {
        from_server(server_message::Message::OpenStream(OpenStream {
            stream_id: format!("{number:032}"),
            object_id: "inst_1".into(),
            purpose: "log".into(),
            log: Some(rhyzome_proto::v1::LogWindow { tail_lines: None, follow: true }),
            ..OpenStream::default()
        }))
    };
    let mut said = vec![welcome(&cluster, 1)];
    said.extend((0..1000).map(wanted));
    said.push(from_server(server_message::Message::CaughtUp(CaughtUp { sequence: 3 })));
    let script = Arc::new(move |_| Act::Stay(said.clone()));
    let server = FalseServer::start(&cluster, script).await;
    let node = cluster.make_node("n1").await;
    let state = cluster.plant(&node, "n1", SystemTime::now()).await;
    let ledger = Ledger::at(0, 0);
    let mut agent = Agent::start_at(&cluster, server.address, &node, state, ledger, Env::system());
    agent.connected().await;
    // All of them stand before it, and hold nothing up.
    agent.caught_up(3).await;
    until("the streams", 60, async || (server.attached.load(Ordering::SeqCst) == 64).then_some(())).await;
    agent.handle.node_status(NodeStatus::default());
    assert_eq!(server.attached.load(Ordering::SeqCst), 64);
    drop(agent);
    until("their end", 60, async || (server.attached.load(Ordering::SeqCst) == 0).then_some(())).await;
}
