//! What only a mesh member does. What it has in common with every kind is asked in `rest_contract.rs`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Message as _;
use rhyzome_api::kernel::Error;
use rhyzome_api::store::{Asked, NodeReport};
use rhyzome_proto::v1::{self, MeshMemberOrder, MeshMemberReport, MeshPeer, order_body, report};
use rhyzome_tests::drive::calm;
use rhyzome_tests::face::Face;
use rhyzome_tests::given::Time;
use rhyzome_tests::node::SimNode;
use rhyzome_tests::on_both;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

on_both!(
    nodes_come_together_when_they_have_told_their_keys,
    another_key_is_told_before_it_is_used,
    who_comes_waits_for_nobody_who_is_away,
    who_leaves_is_taken_out_of_all_others,
    who_is_revoked_is_shut_out_until_it_comes_back,
    what_is_wrong_is_refused,
    who_repeats_anothers_key_does_not_take_its_place,
    a_change_of_the_mesh_reaches_all,
);

const ALL: &str = "/v1/mesh-members";

/// A mesh of these nodes, as far as the control plane goes.
struct Mesh {
    world: World,
    face: Face,
    nodes: Vec<SimNode>,
    /// By the node's name: its id, and the member's.
    ids: BTreeMap<String, (String, String)>,
}

/// A key like no other; the same number, the same key.
fn key(number: u8) -> String {
    BASE64_STANDARD.encode([number; 32])
}

impl Mesh {
    async fn of(world: World, names: &[&str]) -> Mesh {
        let face = Face::of(&world);
        face.call("POST", "/v1/meshes", json!({"name": "backbone", "spec": {"prefix": "10.98.0.0/24"}}))
            .await
            .is(201);
        let mut mesh = Mesh { world, face, nodes: Vec::new(), ids: BTreeMap::new() };
        for name in names {
            let id = mesh.world.make_node(name, 1 << 30).await;
            let mut node = SimNode::new(&id, &Time::begin());
            node.connect(&mesh.world.store).await.unwrap();
            mesh.nodes.push(node);
            let endpoint = format!("203.0.113.{}", mesh.nodes.len());
            let body =
                json!({"name": name, "spec": {"mesh": "backbone", "node": name, "endpoint": endpoint}});
            let made = mesh.face.call("POST", ALL, body).await.is(202).json;
            let member = made["id"].as_str().unwrap().to_owned();
            mesh.ids.insert((*name).to_owned(), (id, member));
        }
        mesh.calm().await;
        mesh
    }

    async fn calm(&mut self) {
        calm(&self.world.store, &mut self.nodes).await.unwrap();
    }

    /// A node says this of its member.
    async fn says(&mut self, name: &str, told: MeshMemberReport) {
        self.tries_to_say(name, told).await.unwrap();
        self.calm().await;
    }

    async fn tries_to_say(&self, name: &str, told: MeshMemberReport) -> Result<(), Error> {
        let (node, member) = &self.ids[name];
        let order = self.node(name).orders()[member].clone();
        let report = v1::Report {
            object_id: member.clone(),
            placement_epoch: order.placement_epoch,
            generation: order.generation,
            state: v1::ReportState::Applied.into(),
            body: Some(report::Body::Plain(told.encode_to_vec())),
            ..v1::Report::default()
        };
        let report = NodeReport {
            object_id: member.clone(),
            placement_epoch: i64::try_from(order.placement_epoch).unwrap(),
            generation: i64::try_from(order.generation).unwrap(),
            state: "applied".into(),
            bytes: report.encode_to_vec(),
            ..NodeReport::default()
        };
        self.world.store.record_report(node, report).await.map(drop)
    }

    async fn has_key(&mut self, name: &str, number: u8) {
        self.says(name, MeshMemberReport { public_key: key(number), ..MeshMemberReport::default() }).await;
    }

    fn node(&self, name: &str) -> &SimNode {
        let at = self.ids.keys().position(|other| other == name).unwrap();
        &self.nodes[at]
    }

    /// The last order that a node has taken.
    fn cursor(&self, name: &str) -> u64 {
        self.node(name).orders().values().map(|order| order.sequence).max().unwrap_or(0)
    }

    /// What a node was ordered to hold of the mesh, by the names of members.
    fn ordered(&self, name: &str) -> BTreeMap<String, MeshMemberOrder> {
        let orders = self.node(name).orders();
        let all = orders.values().filter(|order| order.kind == "mesh-member" && !order.remove);
        let body = |order: &v1::Order| match order.body.as_ref().unwrap().body.as_ref().unwrap() {
            order_body::Body::Plain(body) => MeshMemberOrder::decode(body.as_slice()).unwrap(),
            other => panic!("{other:?}"),
        };
        all.map(|order| (order.name.clone(), body(order))).collect()
    }

    /// Whom a node has as peers.
    fn peers(&self, name: &str) -> Vec<String> {
        self.ordered(name).into_keys().filter(|other| other != name).collect()
    }

    async fn get(&self, name: &str) -> Value {
        self.face.get(&format!("{ALL}/{name}")).await.is(200).json
    }
}

async fn nodes_come_together_when_they_have_told_their_keys(world: World) {
    let mut mesh = Mesh::of(world, &["a", "b", "c"]).await;
    assert_eq!((mesh.peers("a").len(), mesh.ordered("a").len()), (0, 1), "nobody has told a key");
    for (number, name) in (1..).zip(["a", "b", "c"]) {
        assert_eq!(mesh.get(name).await["phase"], "ready");
        mesh.has_key(name, number).await;
    }
    for (name, others) in [("a", ["b", "c"]), ("b", ["a", "c"]), ("c", ["a", "b"])] {
        assert_eq!(mesh.peers(name), others);
        let all = mesh.ordered(name);
        let told: Vec<_> = all.values().map(|order| order.public_key.clone()).collect();
        assert_eq!(told, [key(1), key(2), key(3)], "the same on each, and its own key comes back to each");
        let where_to: Vec<_> = all.values().map(|order| order.endpoint.clone()).collect();
        assert_eq!(where_to, ["203.0.113.1:51820", "203.0.113.2:51820", "203.0.113.3:51820"]);
    }
    // What a node sees of the others is shown, and is no reason to tell them anything.
    let sequence = mesh.cursor("b");
    let peer = MeshPeer {
        node_name: "b".into(),
        address: "10.98.0.2".into(),
        endpoint: "203.0.113.2:51820".into(),
        last_handshake_ms: 1_790_000_000_000,
        ..MeshPeer::default()
    };
    let told = MeshMemberReport { public_key: key(1), peers: vec![peer], ..MeshMemberReport::default() };
    mesh.says("a", told).await;
    let shown = mesh.get("a").await;
    assert_eq!(shown["status"]["peers"]["b"]["endpoint"], "203.0.113.2:51820");
    assert_eq!(shown["status"]["peers"]["b"]["last_handshake_at"], "2026-09-21T14:13:20.000000Z");
    assert_eq!(mesh.cursor("b"), sequence);
    // Another endpoint reaches the others as one order each.
    let path = format!("{ALL}/a");
    mesh.face.call("PATCH", &path, json!({"spec": {"endpoint": "203.0.113.9:7"}})).await.is(202);
    mesh.calm().await;
    assert_eq!(mesh.ordered("b")["a"].endpoint, "203.0.113.9:7");
    assert_eq!(mesh.cursor("b"), sequence + 1);
}

async fn another_key_is_told_before_it_is_used(world: World) {
    let mut mesh = Mesh::of(world, &["a", "b"]).await;
    mesh.has_key("a", 1).await;
    mesh.has_key("b", 2).await;
    let path = format!("{ALL}/a/actions/rotate");
    mesh.face.call("POST", &path, Value::Null).await.is(202);
    mesh.calm().await;
    assert_eq!((mesh.ordered("a")["a"].rotations, mesh.ordered("b")["b"].rotations), (1, 0));
    let next =
        MeshMemberReport { public_key: key(1), next_public_key: key(3), ..MeshMemberReport::default() };
    mesh.says("a", next).await;
    for name in ["a", "b"] {
        let order = &mesh.ordered(name)["a"];
        assert_eq!((&order.public_key, &order.next_public_key), (&key(1), &key(3)), "{name}");
    }
    assert_eq!(mesh.get("a").await["status"]["next_public_key"], key(3));
    mesh.has_key("a", 3).await;
    for name in ["a", "b"] {
        let order = &mesh.ordered(name)["a"];
        assert_eq!((&order.public_key, order.next_public_key.as_str()), (&key(3), ""), "{name}");
    }
    // What a peer says of it changes nothing.
    let (node, member) = (mesh.ids["b"].0.clone(), mesh.ids["a"].1.clone());
    let lie = MeshMemberReport { public_key: key(9), ..MeshMemberReport::default() };
    let body = Some(report::Body::Plain(lie.encode_to_vec()));
    let bytes = v1::Report { body, ..v1::Report::default() }.encode_to_vec();
    let lie = NodeReport {
        object_id: member,
        placement_epoch: 1,
        generation: 9,
        state: "applied".into(),
        bytes,
        ..NodeReport::default()
    };
    mesh.world.store.record_report(&node, lie).await.unwrap();
    assert_eq!(mesh.get("a").await["status"]["public_key"], key(3));
}

async fn who_comes_waits_for_nobody_who_is_away(world: World) {
    let mut mesh = Mesh::of(world, &["a", "z"]).await;
    mesh.has_key("a", 1).await;
    mesh.has_key("z", 2).await;
    let away = mesh.nodes.pop().unwrap();
    let id = mesh.world.make_node("m", 1 << 30).await;
    let mut node = SimNode::new(&id, &Time::begin());
    node.connect(&mesh.world.store).await.unwrap();
    let body = json!({"name": "m", "spec": {"mesh": "backbone", "node": "m"}});
    let made = mesh.face.call("POST", ALL, body).await.is(202).json;
    mesh.ids.insert("m".into(), (id, made["id"].as_str().unwrap().to_owned()));
    node.hear(&mesh.world.store).await.unwrap();
    mesh.nodes.push(node);
    // Its first word has the key: from then on it is ordered from all others, one of which does not answer.
    mesh.has_key("m", 3).await;
    assert_eq!(mesh.get("m").await["phase"], "ready");
    assert_eq!(
        (mesh.peers("a"), mesh.peers("m")),
        (vec!["m".into(), "z".into()], vec!["a".into(), "z".into()])
    );
    mesh.nodes.push(away);
    mesh.calm().await;
    assert_eq!(mesh.peers("z"), ["a", "m"]);
}

async fn who_leaves_is_taken_out_of_all_others(world: World) {
    let mut mesh = Mesh::of(world, &["a", "b", "c"]).await;
    for (number, name) in (1..).zip(["a", "b", "c"]) {
        mesh.has_key(name, number).await;
    }
    let used = mesh.face.call("DELETE", "/v1/nodes/c", Value::Null).await.is_problem(409, "in-use").json;
    assert!(used.to_string().contains("mesh-member"), "{used:#}");
    mesh.face.call("DELETE", &format!("{ALL}/c"), Value::Null).await.is(202);
    mesh.calm().await;
    assert_eq!((mesh.peers("a"), mesh.peers("b")), (vec!["b".to_owned()], vec!["a".to_owned()]));
    assert!(mesh.ordered("c").is_empty(), "{:?}", mesh.ordered("c"));
    mesh.face.get(&format!("{ALL}/c")).await.is_problem(404, "not-found");
    // Its address and its place are free again.
    let again = json!({"name": "c", "spec": {"mesh": "backbone", "node": "c"}});
    mesh.face.call("POST", ALL, again).await.is(202);
    mesh.calm().await;
}

async fn who_is_revoked_is_shut_out_until_it_comes_back(world: World) {
    let mut mesh = Mesh::of(world, &["a", "b"]).await;
    mesh.has_key("a", 1).await;
    mesh.has_key("b", 2).await;
    let (right, node) = (mesh.world.right(""), mesh.ids["b"].0.clone());
    mesh.world.store.revoke_certificates(&right, &node, &Asked::default()).await.unwrap();
    // Its connection may last for a moment: what it says there is believed no more.
    let again = MeshMemberReport { public_key: key(2), ..MeshMemberReport::default() };
    mesh.tries_to_say("b", again).await.unwrap();
    let away = mesh.nodes.pop().unwrap();
    mesh.calm().await;
    assert_eq!(mesh.peers("a"), Vec::<String>::new());
    assert_eq!(mesh.get("b").await["status"]["public_key"], Value::Null);
    mesh.nodes.push(away);
    mesh.nodes[1].connect(&mesh.world.store).await.unwrap();
    mesh.calm().await;
    assert_eq!(mesh.peers("a"), Vec::<String>::new(), "it has not told a key since");
    mesh.has_key("b", 4).await;
    assert_eq!(mesh.ordered("a")["b"].public_key, key(4));
    assert_eq!(mesh.peers("b"), ["a"]);
}

async fn what_is_wrong_is_refused(world: World) {
    let mut mesh = Mesh::of(world, &["a"]).await;
    let twice = json!({"name": "again", "spec": {"mesh": "backbone", "node": "a"}});
    let twice = mesh.face.call("POST", ALL, twice).await.is_problem(422, "invalid");
    assert!(twice.json.to_string().contains("is in the mesh already"), "{:#}", twice.json);
    assert_eq!(twice.fields(), ["spec.node"]);
    mesh.world.make_node("n", 1 << 30).await;
    let named = json!({"name": "n", "spec": {"mesh": "backbone", "node": "n", "endpoint": "n.example.com"}});
    let named = mesh.face.call("POST", ALL, named).await.is_problem(422, "invalid");
    assert_eq!(named.fields(), ["spec.endpoint"]);
    let nowhere = json!({"name": "n", "spec": {"mesh": "none", "node": "n"}});
    assert_eq!(mesh.face.call("POST", ALL, nowhere).await.is_problem(422, "invalid").fields(), ["spec.mesh"]);
    // What is no key is not passed on.
    mesh.says("a", MeshMemberReport { public_key: "hush".into(), ..MeshMemberReport::default() }).await;
    assert_eq!(mesh.get("a").await["status"]["public_key"], Value::Null);
}

async fn who_repeats_anothers_key_does_not_take_its_place(world: World) {
    let mut mesh = Mesh::of(world, &["a", "b"]).await;
    mesh.has_key("a", 1).await;
    mesh.has_key("b", 2).await;
    for told in [
        MeshMemberReport { public_key: key(2), ..MeshMemberReport::default() },
        MeshMemberReport { public_key: key(1), next_public_key: key(2), ..MeshMemberReport::default() },
    ] {
        assert!(mesh.tries_to_say("a", told).await.is_err());
    }
    mesh.calm().await;
    assert_eq!(mesh.ordered("b")["a"].public_key, key(1));
    assert_eq!(mesh.ordered("b")["a"].next_public_key, "");
}

async fn a_change_of_the_mesh_reaches_all(world: World) {
    let mut mesh = Mesh::of(world, &["a", "b"]).await;
    mesh.has_key("a", 1).await;
    mesh.has_key("b", 2).await;
    let change = json!({"spec": {"rotation_seconds": 600, "keepalive_seconds": 5}});
    mesh.face.call("PATCH", "/v1/meshes/backbone", change).await.is(202);
    mesh.calm().await;
    for (node, member) in [("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")] {
        let order = &mesh.ordered(node)[member];
        assert_eq!((order.rotation_seconds, order.keepalive_seconds), (600, 5), "{member} on {node}");
    }
    assert_eq!(mesh.get("a").await["phase"], "ready");
}
