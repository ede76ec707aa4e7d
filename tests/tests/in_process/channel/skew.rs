//! Agents and servers of different versions.
use super::harness::{Agent, Cluster, Ledger};
use super::raw::{Act, FalseServer, call};
use super::{big, node_is};
use prost::Message as _;
use rhyzome_agent::env::Env;
use rhyzome_agent::link::LinkEvent;
use rhyzome_agent::reconcile::{Orders, View, World as Node, plan};
use rhyzome_agent::report;
use rhyzome_api::kernel::{Clash, Error};
use rhyzome_api::store::{Asked, NewObject};
use rhyzome_proto::v1::{
    AgentMessage, CaughtUp, Heartbeat, Hello, NodeStatus, Order, Report, ReportState, ServerMessage, Welcome,
    agent_message, server_message,
};
use rhyzome_tests::on_both;
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::mpsc;

on_both!(an_agent_of_another_version_is_shown, what_a_newer_agent_says_is_passed_over);

/// Our version, so many minor versions away.
fn version(away: u32) -> String {
    let mut numbers = env!("CARGO_PKG_VERSION").split('.');
    let (major, minor) = (numbers.next().unwrap(), numbers.next().unwrap());
    format!("{major}.{}.0", minor.parse::<u32>().unwrap() + away)
}

async fn status(cluster: &Cluster, node: &str) -> Value {
    cluster.store().get(&cluster.world.right(""), cluster.world.kind("node"), node).await.unwrap().status
}

async fn an_agent_of_another_version_is_shown(world: World) {
    let cluster = Cluster::start(world).await;
    let mut agent = cluster.agent("n1").await;
    agent.connected().await;
    agent.handle.node_status(big());
    node_is(&cluster, &agent.node, "ready").await;
    cluster.world.make_image("", "tiny").await;
    let old = cluster.world.make("default", "instance", "old", json!({"image": "tiny"})).await;
    let now = status(&cluster, &agent.node).await;
    assert_eq!((&now["version_skew"], &now["version_advice"]), (&json!("none"), &json!("")));
    let (node, state) = (agent.node.clone(), agent.state.clone());
    drop(agent);

    let make = async |name: &str| {
        let body =
            NewObject { name: Some(name.into()), spec: json!({"image": "tiny"}), ..NewObject::default() };
        let kind = cluster.world.kind("instance");
        cluster.store().create(&cluster.world.right("default"), kind, body, &Asked::default()).await
    };
    for (said, skew, behind, takes) in [
        (version(1), "newer", "the servers", true),
        (version(2), "unsupported", "the servers", false),
        ("?\0".into(), "unsupported", "the agent", false),
    ] {
        let mut agent = Agent::start_saying(&cluster, &node, state.clone(), &said);
        agent.connected().await;
        let now = status(&cluster, &node).await;
        assert_eq!(now["version_skew"], skew, "{said}: {now:#}");
        let advice = now["version_advice"].as_str().unwrap();
        assert!(advice.contains(&format!("upgrade {behind}")), "{now:#}");
        match make(&format!("new-{takes}")).await {
            Ok(_) => assert!(takes, "{said}"),
            Err(Error::Clash(Clash::NoCapacity(table))) => {
                assert!(!takes && table[0].reasons[0].contains("version is not supported"), "{table:?}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    // What is there is served all the same.
    let mut agent = Agent::start_saying(&cluster, &node, state, &version(2));
    agent.orders().await;
    let (right, kind) = (cluster.world.right("default"), cluster.world.kind("instance"));
    let id = &old.object.core.id;
    cluster.store().remove(&right, kind, id, None, &Asked::default()).await.unwrap();
    loop {
        if let LinkEvent::Order(order) = agent.event(60).await
            && order.object_id == *id
            && order.remove
        {
            break;
        }
    }
}

/// A field that is not known, with some bytes in it.
fn future_field(number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut bytes);
    prost::encoding::encode_varint(3, &mut bytes);
    bytes.extend(b"new");
    bytes
}

/// A message of one field, which has these bytes.
fn wrapped(number: u32, inside: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut bytes);
    prost::encoding::encode_varint(inside.len() as u64, &mut bytes);
    bytes.extend(inside);
    bytes
}

async fn what_a_newer_agent_says_is_passed_over(world: World) {
    let cluster = Cluster::start(world).await;
    let node = cluster.make_node("n1").await;
    let (up, messages) = mpsc::channel(8);
    let say = async |bytes: Vec<u8>| up.send(bytes).await.unwrap();
    let hello = Hello { agent_version: version(1), ..Hello::default() };
    // Numbers are those of `AgentMessage`.
    say(wrapped(1, &[hello.encode_to_vec(), future_field(99)].concat())).await;
    let identity = cluster.identity(&node).await;
    let mut down = call(&cluster, &identity, "/rhyzome.v1.Control/Session", messages).await.unwrap();
    say(future_field(77)).await;
    let status =
        NodeStatus { accelerator: "tcg".into(), hostname: "of tomorrow".into(), ..NodeStatus::default() };
    say(wrapped(3, &[status.encode_to_vec(), future_field(60)].concat())).await;
    let report = Report { object_id: "inst_1".into(), state: 99, ..Report::default() };
    say(wrapped(4, &[report.encode_to_vec(), future_field(61)].concat())).await;
    say([wrapped(2, &[]), future_field(88)].concat()).await;
    let mut heartbeat = async || {
        loop {
            let said = ServerMessage::decode(&*down.message().await.unwrap().expect("it goes on")).unwrap();
            match said.message {
                Some(server_message::Message::Heartbeat(_)) => return,
                Some(server_message::Message::Goodbye(goodbye)) => panic!("{}", goodbye.reason),
                _ => {}
            }
        }
    };
    heartbeat().await;
    let (right, kind) = (cluster.world.right(""), cluster.world.kind("node"));
    let now = cluster.store().get(&right, kind, &node).await.unwrap();
    assert_eq!((&now.status["connected"], &now.status["hostname"]), (&json!(true), &json!("of tomorrow")));
    let again = AgentMessage { message: Some(agent_message::Message::Heartbeat(Heartbeat::default())) };
    say(again.encode_to_vec()).await;
    heartbeat().await;
}

#[tokio::test]
async fn what_a_newer_server_orders_is_answered_unsupported() {
    let cluster = Cluster::start(World::new(Engine::Sqlite).await).await;
    let welcome = Welcome {
        cluster_id: cluster.authority.cluster_id().into(),
        db_epoch: 1,
        session: 1,
        heartbeat_seconds: 100,
        server_version: version(1),
    };
    // A kind that is not known, and a known one whose body is not: of the body only bytes arrive.
    let order = |kind: &str| {
        let order =
            Order { object_id: format!("{kind}_1"), kind: kind.into(), generation: 1, ..Order::default() };
        wrapped(3, &[order.encode_to_vec(), wrapped(11, &future_field(77))].concat())
    };
    let up = ServerMessage { message: Some(server_message::Message::CaughtUp(CaughtUp { sequence: 2 })) };
    let said = vec![
        wrapped(1, &[welcome.encode_to_vec(), future_field(50)].concat()),
        future_field(90),
        order("hologram"),
        order("instance"),
        order("network"),
        up.encode_to_vec(),
    ];
    let server = FalseServer::start(&cluster, Arc::new(move |_| Act::Stay(said.clone()))).await;
    let node = cluster.make_node("n1").await;
    let state = cluster.plant(&node, "n1", SystemTime::now()).await;
    let mut agent = Agent::start_at(&cluster, server.address, &node, state, Ledger::at(0, 0), Env::system());
    let mut orders = Orders::new();
    loop {
        match agent.event(60).await {
            LinkEvent::Order(order) => drop(orders.insert(order.object_id.clone(), *order)),
            LinkEvent::CaughtUp(_) => break,
            LinkEvent::Disconnected { reason } => panic!("{reason}"),
            _ => {}
        }
    }
    assert_eq!(orders.len(), 3);
    let world = Node::default();
    for (id, decision) in plan(View { orders: &orders, world: &world, now_ms: 0 }) {
        let report = report::of(&orders[&id], &decision, &world, None, None);
        assert_eq!((report.state(), report.permanent), (ReportState::Failed, true), "{id}");
        assert!(report.message.starts_with("unsupported: "), "{id}: {}", report.message);
    }
}
