//! Streams that nodes lend: consoles and logs, at the server that holds the node's session and from any other.
use super::harness::{Agent, Cluster};
use super::{big, node_is};
use rhyzome_agent::console_log::{ConsoleLog, LIMIT_BYTES};
use rhyzome_api::app::ConsolesOfChannel;
use rhyzome_api::channel::{Lent, Peers, Purpose, Streams};
use rhyzome_pki::{Authority, Identity, agent_client_config};
use rhyzome_proto::v1::control_client::ControlClient;
use rhyzome_proto::v1::peer_client::PeerClient;
use rhyzome_proto::v1::{OpenStream, StreamFrame, WhoAmIRequest};
use rhyzome_tests::face::Face;
use rhyzome_tests::on_both;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

on_both!(
    a_console_is_lent_both_ways,
    a_log_is_told_and_followed_over_a_cut,
    an_answer_has_the_log_of_a_guest_at_another_server,
    a_stream_ends_when_either_end_goes,
    a_stream_that_nobody_reads_holds_up_no_order,
    a_server_that_cannot_be_asked_is_named,
    servers_and_agents_are_not_taken_for_one_another,
);

const LOG: Purpose = Purpose::Log { tail_lines: None, follow: false };
const FOLLOW: Purpose = Purpose::Log { tail_lines: Some(1), follow: true };

/// Another server of the cluster, without a door: it holds no session.
fn another(cluster: &Cluster) -> Peers {
    Peers::new(Streams::new(), cluster.store().clone(), cluster.authority.clone(), "srv_asking")
}

/// The server that holds the sessions, and another one.
fn both(cluster: &Cluster) -> [Peers; 2] {
    let (streams, store) = (cluster.streams.clone(), cluster.store().clone());
    [Peers::new(streams, store, cluster.authority.clone(), "server"), another(cluster)]
}

fn log_file(cluster: &Cluster) -> PathBuf {
    cluster.folder.path().join("console.log")
}

fn guest_prints(cluster: &Cluster) -> File {
    OpenOptions::new().append(true).create(true).open(log_file(cluster)).unwrap()
}

/// What is said until it ends; why it broke off, if it did.
async fn all(lent: &mut Lent) -> (Vec<u8>, Option<String>) {
    let mut heard = Vec::new();
    loop {
        let piece = tokio::time::timeout(Duration::from_secs(60), lent.1.recv()).await.expect("it ends");
        match piece {
            Some(Ok(bytes)) => heard.extend(bytes),
            Some(Err(why)) => return (heard, Some(why)),
            None => return (heard, None),
        }
    }
}

/// What is said until it ends with this.
async fn until_said(lent: &mut Lent, wanted: &str) -> String {
    let mut heard = Vec::new();
    while !heard.ends_with(wanted.as_bytes()) {
        let piece = tokio::time::timeout(Duration::from_secs(60), lent.1.recv()).await;
        match piece {
            Ok(Some(Ok(bytes))) => heard.extend(bytes),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&heard)),
        }
    }
    String::from_utf8(heard).unwrap()
}

async fn a_console_is_lent_both_ways(world: World) {
    let cluster = Cluster::start(world).await;
    let mut agent = cluster.agent("n1").await;
    agent.orders().await;
    let guest = UnixListener::bind(cluster.folder.path().join("console.sock")).unwrap();
    for server in both(&cluster) {
        let refused = server.open("node_nobody", "inst_1", Purpose::Console).await.unwrap_err();
        assert!(refused.to_string().contains("not connected"), "{refused}");
        let refused = server.open(&agent.node, "disk_1", Purpose::Console).await.unwrap_err();
        assert!(refused.to_string().contains("the node cannot lend it: no console here"), "{refused}");

        let echo = async {
            let (mut socket, _) = guest.accept().await.unwrap();
            socket.write_all(b"login: ").await.unwrap();
            let mut name = [0; 4];
            socket.read_exact(&mut name).await.unwrap();
            socket.write_all(&name).await.unwrap();
            socket.read(&mut name).await.unwrap()
        };
        let user = async {
            let mut lent = server.open(&agent.node, "inst_1", Purpose::Console).await.unwrap();
            until_said(&mut lent, "login: ").await;
            lent.0.send("root".into()).await.unwrap();
            until_said(&mut lent, "root").await;
        };
        let (left, ()) = tokio::join!(echo, user);
        assert_eq!(left, 0, "the socket is closed when nobody looks any more");
    }
}

async fn a_log_is_told_and_followed_over_a_cut(world: World) {
    let cluster = Cluster::start(world).await;
    let mut agent = cluster.agent("n1").await;
    agent.orders().await;
    let mut guest = guest_prints(&cluster);
    for server in both(&cluster) {
        File::create(log_file(&cluster)).unwrap();
        guest.write_all(b"one\ntwo\nthree\n").unwrap();
        let mut lent = server.open(&agent.node, "inst_1", LOG).await.unwrap();
        assert!(all(&mut lent).await.0.ends_with(b"one\ntwo\nthree\n"));
        let two = Purpose::Log { tail_lines: Some(2), follow: false };
        let mut lent = server.open(&agent.node, "inst_1", two).await.unwrap();
        assert_eq!(all(&mut lent).await, (b"two\nthree\n".to_vec(), None));

        // While somebody follows it is cut, and not all had been told.
        let mut lent = server.open(&agent.node, "inst_1", FOLLOW).await.unwrap();
        assert_eq!(until_said(&mut lent, "three\n").await, "three\n");
        let much: String = (0..2 * LIMIT_BYTES / 8).map(|line| format!("{line:07}\n")).collect();
        let (before, after) = much.split_at(much.len() / 2 + 800);
        guest.write_all(before.as_bytes()).unwrap();
        assert!(ConsoleLog::at(&log_file(&cluster)).trim().unwrap());
        guest.write_all(after.as_bytes()).unwrap();
        guest.write_all(b"end\n").unwrap();
        let heard = until_said(&mut lent, "end\n").await;
        // A piece that was cut off before it was told is said to be lost, and nothing else is.
        match heard.split_once("\n[what came here is not kept any more]\n") {
            None => assert!(heard == much + "end\n"),
            Some((first, rest)) => assert!(before.starts_with(first) && (much + "end\n").ends_with(rest)),
        }
    }
}

async fn an_answer_has_the_log_of_a_guest_at_another_server(world: World) {
    let cluster = Cluster::start(world).await;
    let mut agent = cluster.agent("n1").await;
    agent.connected().await;
    agent.handle.node_status(big());
    node_is(&cluster, &agent.node, "ready").await;
    cluster.world.make_image("", "tiny").await;
    cluster.world.make("default", "instance", "web", json!({"image": "tiny"})).await;
    guest_prints(&cluster).write_all(b"one\ntwo\n").unwrap();
    let face = Face::lending(&cluster.world, Arc::new(ConsolesOfChannel(another(&cluster))));
    let path = "/v1/tenants/default/instances/web/log";
    let reply = face.get(path).await.is(200);
    assert_eq!(
        (&*reply.bytes, reply.header("content-type")),
        (&b"one\ntwo\n"[..], "text/plain; charset=utf-8")
    );
    assert_eq!(face.get(&format!("{path}?tail=1")).await.is(200).bytes, b"two\n");
    face.get(&format!("{path}?tail=many")).await.is_problem(400, "malformed");
    face.get(&format!("{path}?follow=perhaps")).await.is_problem(400, "malformed");
    face.get("/v1/tenants/default/instances/none/log").await.is_problem(404, "not-found");
    drop(agent);
    node_is_away(&cluster).await;
    let away = face.get(path).await.is_problem(503, "unavailable");
    assert_eq!(away.json["why"], "the node is not connected", "{:#}", away.json);
}

async fn node_is_away(cluster: &Cluster) {
    until("the end of the session", 60, async || {
        let rows = cluster.world.ask("SELECT node FROM node_state WHERE connected = 1").await;
        rows.is_empty().then_some(())
    })
    .await;
}

async fn a_stream_ends_when_either_end_goes(world: World) {
    let mut cluster = Cluster::start(world).await;
    let mut agent = cluster.agent("n1").await;
    agent.orders().await;
    guest_prints(&cluster).write_all(b"up\n").unwrap();
    let [here, there] = both(&cluster);
    let (mut near, mut far) = (
        here.open(&agent.node, "inst_1", FOLLOW).await.unwrap(),
        there.open(&agent.node, "inst_1", FOLLOW).await.unwrap(),
    );
    until_said(&mut near, "up\n").await;
    until_said(&mut far, "up\n").await;
    let (node, state, ledger) = (agent.node.clone(), agent.state.clone(), agent.ledger.clone());
    drop(agent);
    // Its agent is gone: nobody takes this for all that there was.
    assert!(all(&mut near).await.1.is_some());
    assert!(all(&mut far).await.1.is_some());

    let mut agent = Agent::start(&cluster, &node, state, ledger);
    agent.orders().await;
    let mut far = there.open(&node, "inst_1", FOLLOW).await.unwrap();
    until_said(&mut far, "up\n").await;
    cluster.shut().await;
    let why = all(&mut far).await.1.unwrap();
    assert!(why.contains("was lost"), "{why}");
}

async fn a_stream_that_nobody_reads_holds_up_no_order(world: World) {
    let cluster = Cluster::start(world).await;
    let mut agent = cluster.agent("n1").await;
    agent.connected().await;
    agent.handle.node_status(big());
    node_is(&cluster, &agent.node, "ready").await;
    let guest = UnixListener::bind(cluster.folder.path().join("console.sock")).unwrap();
    let mut unread = Vec::new();
    for server in both(&cluster) {
        let (lent, accepted) =
            tokio::join!(server.open(&agent.node, "inst_1", Purpose::Console), guest.accept());
        let mut socket = accepted.unwrap().0;
        // It prints until nothing more is taken from it.
        let printed = async {
            let mut printed = 0_usize;
            while let Ok(Ok(())) =
                tokio::time::timeout(Duration::from_secs(1), socket.write_all(&[b'x'; 4096])).await
            {
                printed += 4096;
                assert!(printed < 64 << 20, "somebody keeps all of it");
            }
            printed
        };
        assert!(printed.await > 0);
        unread.push((lent.unwrap(), socket));
    }
    cluster.world.make_image("", "tiny").await;
    cluster.world.make("default", "instance", "one", json!({"image": "tiny"})).await;
    let mut seen = agent.orders().await;
    while seen.len() < 4 {
        seen.extend(agent.orders().await);
    }
}

async fn a_server_that_cannot_be_asked_is_named(world: World) {
    let cluster = Cluster::start(world).await;
    let mut agent = cluster.agent("n1").await;
    agent.orders().await;
    let asking = another(&cluster);
    let why = async || asking.open(&agent.node, "inst_1", LOG).await.unwrap_err().to_string();

    // Nobody listens there any more.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    cluster.world.sql(&format!("UPDATE server SET address = '{closed}' WHERE id = 'server'")).await;
    let said = why().await;
    let wanted = format!("the node is connected to server server, which cannot be reached at {closed}: ");
    assert!(said.starts_with(&wanted) && said.contains("grpc.advertise"), "{said}");

    // Somebody who is no server of this cluster.
    let strange = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = strange.local_addr().unwrap();
    let answers = tokio::spawn(async move {
        while let Ok((mut socket, _)) = strange.accept().await {
            // Whoever is answered so may be gone.
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    cluster.world.sql(&format!("UPDATE server SET address = '{address}' WHERE id = 'server'")).await;
    assert!(why().await.contains(&format!("cannot be reached at {address}")));
    answers.abort();

    cluster.world.sql("UPDATE server SET address = '' WHERE id = 'server'").await;
    assert!(why().await.contains("has not said where it is reached"));

    // Another server answers there: the node has no session at that one.
    let other = cluster.beside("srv_other").await;
    let address = other.address;
    cluster.world.sql(&format!("UPDATE server SET address = '{address}' WHERE id = 'server'")).await;
    let said = why().await;
    assert!(said.contains("does not have its session") && said.contains(&address.to_string()), "{said}");
}

async fn servers_and_agents_are_not_taken_for_one_another(world: World) {
    let cluster = Cluster::start(world).await;
    let node = cluster.make_node("n1").await;
    let wanted = || {
        let asked = OpenStream { node_id: node.clone(), purpose: "log".into(), ..OpenStream::default() };
        StreamFrame { open: Some(asked), ..StreamFrame::default() }
    };
    let lend = async |identity: &Identity, first: StreamFrame| {
        let channel = cluster.dial(cluster.tls(identity)).await.map_err(|_| Code::Unavailable)?;
        let (frames, outgoing) = mpsc::channel(1);
        frames.send(first).await.unwrap();
        let answer = PeerClient::new(channel).lend(ReceiverStream::new(outgoing)).await;
        answer.map(drop).map_err(|status| status.code())
    };
    let server = cluster.authority.issue_calling_server("srv_2", SystemTime::now()).unwrap();
    assert_eq!(lend(&server, wanted()).await, Err(Code::NotFound), "known, and the node is not here");
    assert_eq!(lend(&server, StreamFrame::default()).await, Err(Code::InvalidArgument));
    let screen = OpenStream { purpose: "screen".into(), ..OpenStream::default() };
    let screen = StreamFrame { open: Some(screen), ..StreamFrame::default() };
    assert_eq!(lend(&server, screen).await, Err(Code::Unimplemented));

    // A node's certificate, a server's for its door, one of yesterday, one of elsewhere.
    assert_eq!(lend(&cluster.identity(&node).await, wanted()).await, Err(Code::Unauthenticated));
    let yesterday = SystemTime::now() - Duration::from_secs(24 * 3600);
    let old = cluster.authority.issue_calling_server("srv_2", yesterday).unwrap();
    let other = Authority::open_or_create(&cluster.folder.path().join("other"), SystemTime::now()).unwrap();
    let strange = other.issue_calling_server("srv_2", SystemTime::now()).unwrap();
    let door = cluster.authority.issue_server(&["127.0.0.1".into()], SystemTime::now()).unwrap();
    for identity in [old, strange, door] {
        let refused = lend(&identity, wanted()).await.unwrap_err();
        assert_ne!(refused, Code::NotFound);
    }

    // And a server is no node.
    let tls = agent_client_config(&cluster.authority.trust_pem(), &server).unwrap();
    let mut control = ControlClient::new(cluster.dial(tls).await.unwrap());
    let refused = control.who_am_i(WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}
