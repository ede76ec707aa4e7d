//! Secrets in orders: opened on the way to the node that the object is ordered from, and found nowhere else.
use super::harness::{Agent, Cluster};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rhyzome_agent::link::LinkEvent;
use rhyzome_api::environment::system_env;
use rhyzome_api::sealing::{Keyring, Source};
use rhyzome_api::store::Vault as _;
use rhyzome_proto::v1::{Capability, NodeStatus, Order};
use rhyzome_tests::face::Face;
use rhyzome_tests::told::Told;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How many networks there are, each with a secret of its own.
const NETWORKS: usize = 150;
const ALL: &str = "/v1/tenants/default/vpn-networks";

/// A key like no other; the same number, the same key.
fn key(number: usize) -> String {
    let mut dice = rhyzome_tests::given::Dice::new(number as u64);
    let bytes: Vec<u8> = (0..4).flat_map(|_| dice.roll().to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes)
}

/// The key that a network's client shares with the server.
fn shared(number: usize) -> String {
    key(10_000 + number)
}

async fn ready(cluster: &Cluster, name: &str) -> Agent {
    let mut agent = cluster.agent(name).await;
    agent.connected().await;
    let wireguard = Capability { name: "wireguard".into(), available: true, detail: String::new() };
    let said = NodeStatus { hostname: name.into(), capabilities: vec![wireguard], ..NodeStatus::default() };
    agent.handle.node_status(said);
    let (right, kind) = (cluster.world.right(""), cluster.world.kind("node"));
    until("the node has said what it can do", 60, async || {
        let node = cluster.store().get(&right, kind, name).await.unwrap();
        (node.status["capabilities"][0]["name"] == "wireguard").then_some(())
    })
    .await;
    agent
}

/// Orders by the names of their objects, until there are so many.
async fn orders(agent: &mut Agent, count: usize) -> BTreeMap<String, Order> {
    let mut orders = BTreeMap::new();
    while orders.len() < count {
        match agent.event(60).await {
            LinkEvent::Order(order) => drop(orders.insert(order.name.clone(), *order)),
            LinkEvent::Disconnected { reason } => panic!("disconnected: {reason}"),
            _ => {}
        }
    }
    orders
}

/// The node says that it has carried out all orders.
async fn obeyed(cluster: &Cluster, node: &str) {
    cluster.world.obey(node, 0).await;
    rhyzome_api::jobs::look(cluster.store()).await.unwrap();
}

fn values(order: &Order) -> Vec<&str> {
    order.secrets.iter().map(|secret| secret.value.as_str()).collect()
}

async fn secrets_reach_their_node_and_nothing_else(engine: Engine) {
    let told = Told::listen();
    let cluster = Cluster::start(World::new(engine).await).await;
    let (mut host, mut other) = (ready(&cluster, "host").await, ready(&cluster, "other").await);
    let face = Face::of(&cluster.world);
    let private = key(1);
    let spec = json!({"prefix": "2001:db8::/40", "network_size": 48, "hostname": "vpn.example.com", "node": "host",
        "private_key": private});
    let mut answers = face
        .call("POST", "/v1/vpn-pools", json!({"name": "wide", "spec": spec}))
        .await
        .is(202)
        .bytes
        .to_vec();
    assert_eq!(values(&orders(&mut host, 1).await["wide"]), [&*private]);
    obeyed(&cluster, &host.node).await;
    for number in 0..NETWORKS {
        let spec = json!({"public_key": key(100 + number), "preshared_key": shared(number)});
        let body = json!({"name": format!("n{number}"), "spec": spec, "metadata": {"canary": "seen-by-all"}});
        answers.extend(face.call("POST", ALL, body).await.is(202).bytes);
    }
    let got = orders(&mut host, NETWORKS).await;
    for number in 0..NETWORKS {
        let order = &got[&format!("n{number}")];
        assert_eq!(values(order), [&*shared(number)], "only what this object holds");
        assert!(!format!("{order:?}").contains(&shared(number)));
    }

    obeyed(&cluster, &host.node).await;

    // Sealing them with another key orders nothing anew.
    let last = got.values().map(|order| order.sequence).max().unwrap();
    let Source::File(path) = cluster.world.keyring.source() else { panic!() };
    Keyring::open(Source::File(path.clone())).unwrap().add(&system_env()).unwrap();
    cluster.world.keyring.reload().unwrap();
    while cluster.store().seal_anew().await.unwrap() > 0 {}
    assert_eq!(cluster.store().sealed_by().await.unwrap().len(), 1);
    // A changed one does, and it is opened by the new key.
    let patch = json!({"spec": {"preshared_key": shared(NETWORKS)}});
    answers.extend(face.call("PATCH", &format!("{ALL}/n7"), patch).await.is(202).bytes);
    let next = orders(&mut host, 1).await;
    assert_eq!((next["n7"].sequence, values(&next["n7"])), (last + 1, vec![&*shared(NETWORKS)]));

    // One that cannot be opened waits, and those behind it: nothing is passed over.
    let sealed_by =
        |key: &str| format!("UPDATE secret SET key = '{key}' WHERE holder = '{}'", got["n9"].object_id);
    cluster.world.sql(&sealed_by("a-key-of-nobody")).await;
    for name in ["n9", "n8"] {
        face.call("PATCH", &format!("{ALL}/{name}"), json!({"spec": {"keepalive_seconds": 5}})).await.is(202);
    }
    assert!(host.disconnected().await.contains("cannot be opened"));
    cluster.world.sql(&sealed_by(&cluster.world.keyring.newest())).await;
    // A harness that keeps no ledger is told everything again.
    let next = orders(&mut host, NETWORKS + 1).await;
    assert_eq!([next["n9"].generation, next["n8"].generation], [2, 2]);
    assert_eq!((values(&next["n9"]), values(&next["n8"])), (vec![&*shared(9)], vec![&*shared(8)]));

    // The other node is told nothing of all that.
    let image = cluster
        .world
        .make(
            "",
            "vpn-pool",
            "elsewhere",
            json!({
                "prefix": "10.9.0.0/16", "network_size": 24, "hostname": "vpn.example.com", "node": "other",
            }),
        )
        .await
        .object
        .core
        .id;
    let theirs = orders(&mut other, 1).await;
    assert_eq!((theirs.len(), &theirs["elsewhere"].object_id), (1, &image));

    for look in [ALL, "/v1/vpn-pools", "/v1/jobs", "/v1/audit"] {
        answers.extend(face.call("GET", &format!("{look}?limit=1000"), Value::Null).await.is(200).bytes);
    }
    for look in ["", "/rendered", "/revisions"] {
        answers.extend(face.get(&format!("{ALL}/n7{look}")).await.is(200).bytes);
    }
    let mut written = cluster.world.written().await;
    written.extend(told.take().join("\n").bytes());
    written.extend(answers);
    let written = String::from_utf8_lossy(&written);
    assert!(written.contains("seen-by-all") && written.contains("sealed:sec_") && written.contains("INFO"));
    for secret in (0..=NETWORKS).map(shared).chain([private]) {
        let raw: String =
            BASE64_STANDARD.decode(&secret).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(![secret, hex, raw].iter().any(|form| written.contains(form)), "a secret is in the open");
    }
}

// In a runtime of one thread, so that all that is logged is heard.
#[tokio::test]
async fn secrets_reach_their_node_and_nothing_else_on_sqlite() {
    secrets_reach_their_node_and_nothing_else(Engine::Sqlite).await;
}

#[tokio::test]
async fn secrets_reach_their_node_and_nothing_else_on_postgres() {
    secrets_reach_their_node_and_nothing_else(Engine::Postgres).await;
}
