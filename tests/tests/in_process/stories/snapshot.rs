//! What only a snapshot does: it is taken where its disk is, holds the disk, and its bytes come from its node. What it has
//! in common with every kind is asked in `rest_contract.rs`.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use rhyzome_api::kernel::Error;
use rhyzome_api::rest::{Bytes, ConsoleEnds, ConsoleHub, Wanted};
use rhyzome_tests::audit::audit;
use rhyzome_tests::drive::calm;
use rhyzome_tests::face::{Face, Reply, TOKEN};
use rhyzome_tests::given::Time;
use rhyzome_tests::node::SimNode;
use rhyzome_tests::on_both;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::{Value, json};
use tokio::sync::mpsc;

on_both!(
    it_is_taken_where_its_disk_is_and_holds_it,
    its_bytes_come_from_any_byte_on,
    half_of_it_is_never_taken_for_all,
    a_tenant_with_snapshots_can_be_emptied,
    in_a_shared_pool_it_is_taken_where_the_guest_is_now,
);

const ALL: &str = "/v1/tenants/default/snapshots";

/// Lends what a simulated node says that its snapshots are: their ids. It breaks off before the end if it is to.
struct Ids {
    most: usize,
}

impl ConsoleHub for Ids {
    fn open<'a>(
        &'a self,
        _node: &'a str,
        object: &'a str,
        wanted: Wanted,
    ) -> BoxFuture<'a, Result<ConsoleEnds, Error>> {
        Box::pin(async move {
            let Wanted::Snapshot { from } = wanted else { panic!("{wanted:?}") };
            let (to_node, _) = mpsc::channel(1);
            let (from_node, ends) = mpsc::channel(64);
            let bytes = &object.as_bytes()[usize::try_from(from).unwrap()..];
            for piece in bytes[..bytes.len().min(self.most)].chunks(10) {
                from_node.send(Ok(Bytes::copy_from_slice(piece))).await.unwrap();
            }
            if bytes.len() > self.most {
                from_node.send(Err("the connection to the node was lost".into())).await.unwrap();
            }
            Ok((to_node, ends))
        })
    }
}

/// A world with two nodes, of which the second has the instance `web` with its disks.
async fn with_web(world: &World) -> Vec<SimNode> {
    let mut nodes = Vec::new();
    world.make_image("", "tiny").await;
    world.make("default", "disk", "data", json!({"size_bytes": 1 << 20})).await;
    for name in ["n1", "n2"] {
        let id = world.make_node(name, 1 << 40).await;
        let mut node = SimNode::new(&id, &Time::begin());
        node.connect(&world.store).await.unwrap();
        nodes.push(node);
    }
    let spec = json!({"image": "tiny", "disks": {"data": {"disk": "data"}}, "node": "n2"});
    world.make("default", "instance", "web", spec).await;
    calm(&world.store, &mut nodes).await.unwrap();
    nodes
}

async fn taken(face: &Face, world: &World, nodes: &mut [SimNode], disk: &str) -> Value {
    let body = json!({"name": "monday", "spec": {"disk": disk}});
    face.call("POST", ALL, body).await.is(202);
    calm(&world.store, nodes).await.unwrap();
    face.get(&format!("{ALL}/monday")).await.is(200).json
}

async fn it_is_taken_where_its_disk_is_and_holds_it(world: World) {
    let face = Face::of(&world);
    let mut nodes = with_web(&world).await;
    let snapshot = taken(&face, &world, &mut nodes, "web-root").await;
    assert_eq!((&snapshot["phase"], &snapshot["status"]["node"]), (&json!("ready"), &Value::Null));
    let (id, status) = (snapshot["id"].as_str().unwrap(), &snapshot["status"]);
    assert!(nodes[1].orders().contains_key(id) && !nodes[0].orders().contains_key(id));
    assert_eq!(status["virtual_size_bytes"], 1 << 30);
    assert_eq!(status["sha256"], rhyzome_pki::sha256_hex(id.as_bytes()));
    assert!(status["taken_at"].as_str().unwrap().starts_with("2026-"), "{status:#}");

    // Its disk stays, and so does the instance that has it.
    for path in ["disks/web-root", "instances/web"] {
        let refused = face.call("DELETE", &format!("/v1/tenants/default/{path}"), Value::Null).await;
        let refused = refused.is_problem(409, "in-use");
        assert!(refused.json.to_string().contains("monday"), "{:#}", refused.json);
    }
    let other = json!({"spec": {"disk": "data"}});
    let refused = face.call("PATCH", &format!("{ALL}/monday"), other).await;
    assert_eq!(refused.is_problem(422, "invalid").fields(), ["spec.disk"]);
    face.call("DELETE", &format!("{ALL}/monday"), Value::Null).await.is(202);
    face.call("DELETE", "/v1/tenants/default/instances/web", Value::Null).await.is(202);
    calm(&world.store, &mut nodes).await.unwrap();
    assert!(nodes[1].world.snapshots.is_empty());
    assert_eq!(audit(&world, &nodes).await, []);
}

async fn part(face: &Face, range: &str, more: &[(&str, &str)]) -> Reply {
    let headers: Vec<_> = [("range", range)].into_iter().chain(more.iter().copied()).collect();
    face.with("GET", &format!("{ALL}/monday/content"), &headers, Value::Null).await
}

async fn its_bytes_come_from_any_byte_on(world: World) {
    let face = Face::lending(&world, Arc::new(Ids { most: usize::MAX }));
    let mut nodes = with_web(&world).await;
    let body = json!({"name": "early", "spec": {"disk": "data"}});
    face.call("POST", ALL, body).await.is(202);
    let early = face.get(&format!("{ALL}/early/content")).await.is_problem(409, "wrong-state");
    assert!(early.json["detail"].as_str().unwrap().contains("wait for its job"), "{:#}", early.json);

    let snapshot = taken(&face, &world, &mut nodes, "data").await;
    let (id, tag) =
        (snapshot["id"].as_str().unwrap(), format!("\"{}\"", snapshot["status"]["sha256"].as_str().unwrap()));
    let all = face.get(&format!("{ALL}/monday/content")).await.is(200);
    assert_eq!(all.bytes, id.as_bytes());
    let size = id.len().to_string();
    for (name, value) in [("content-length", size.as_str()), ("accept-ranges", "bytes"), ("etag", &tag)] {
        assert_eq!(all.header(name), value, "{name}");
    }
    let rest = part(&face, "bytes=12-", &[("if-range", &tag)]).await.is(206);
    assert_eq!(rest.bytes, id.as_bytes()[12..]);
    assert_eq!(rest.header("content-range"), format!("bytes 12-{}/{size}", id.len() - 1));
    let some = part(&face, "bytes=3-14", &[]).await.is(206);
    assert_eq!((&some.bytes[..], some.header("content-length")), (&id.as_bytes()[3..15], "12"));
    // Of another one all is sent.
    assert_eq!(part(&face, "bytes=12-", &[("if-range", "\"other\"")]).await.is(200).bytes, id.as_bytes());
    let beyond = part(&face, "bytes=100-", &[]).await.is_problem(416, "range");
    assert_eq!(beyond.header("content-range"), format!("bytes */{size}"));
    // A log or a console of it there is not.
    face.get(&format!("{ALL}/monday/log")).await.is_problem(404, "not-found");
}

async fn half_of_it_is_never_taken_for_all(world: World) {
    let face = Face::lending(&world, Arc::new(Ids { most: 20 }));
    let mut nodes = with_web(&world).await;
    taken(&face, &world, &mut nodes, "data").await;
    let mut stream = face.stream(&format!("{ALL}/monday/content"), &[]).await;
    let mut came = 0;
    let broken = loop {
        match stream.next().await {
            Some(Ok(piece)) => came += piece.len(),
            Some(Err(_)) => break true,
            None => break false,
        }
    };
    assert_eq!((came, broken), (20, true));
    // Whoever goes on from there has the rest.
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str()), ("range", "bytes=20-")];
    let rest = face.raw("GET", &format!("{ALL}/monday/content"), &headers, axum::body::Body::empty()).await;
    assert_eq!((rest.status, rest.bytes.len()), (206, "snap_".len() + 26 - 20));
}

async fn a_tenant_with_snapshots_can_be_emptied(world: World) {
    let face = Face::of(&world);
    let mut nodes = with_web(&world).await;
    taken(&face, &world, &mut nodes, "web-root").await;
    face.call("DELETE", "/v1/tenants/default?cascade=true", Value::Null).await.is(202);
    until("all of it to be gone", 60, async || {
        calm(&world.store, &mut nodes).await.unwrap();
        (face.get("/v1/tenants/default").await.status == 404).then_some(())
    })
    .await;
    assert!(nodes.iter().all(|node| node.world.snapshots.is_empty() && node.world.disks.is_empty()));
    assert_eq!(audit(&world, &nodes).await, []);
}

async fn in_a_shared_pool_it_is_taken_where_the_guest_is_now(world: World) {
    let face = Face::of(&world);
    let mut nodes = with_web(&world).await;
    let pool = json!({"driver": "dir", "path": "/srv/shared", "shared": true});
    world.make("", "storage-pool", "everywhere", pool).await;
    world
        .make("default", "instance", "moves", json!({"image": "tiny", "root": {"pool": "everywhere"}}))
        .await;
    calm(&world.store, &mut nodes).await.unwrap();
    let path = "/v1/tenants/default/instances/moves";
    let before = face.get(path).await.is(200).json["status"]["node"].as_str().unwrap().to_owned();
    // One before it moves, and one after.
    for name in ["before", "after"] {
        let body = json!({"name": name, "spec": {"disk": "moves-root"}});
        face.call("POST", ALL, body).await.is(202);
        calm(&world.store, &mut nodes).await.unwrap();
        let id = face.get(&format!("{ALL}/{name}")).await.is(200).json["id"].as_str().unwrap().to_owned();
        let now = face.get(path).await.is(200).json["status"]["node"].as_str().unwrap().to_owned();
        assert_eq!(now == before, name == "before", "it was moved");
        for node in &nodes {
            assert_eq!(
                node.orders().contains_key(&id),
                node.id == now,
                "{name} on {}, guest on {now}",
                node.id
            );
        }
        if name == "before" {
            let drain = format!("/v1/nodes/{before}/actions/drain");
            face.call("POST", &drain, json!({"mode": "hard"})).await.is(202);
            calm(&world.store, &mut nodes).await.unwrap();
        }
    }
    until("the end of the drain", 60, async || {
        calm(&world.store, &mut nodes).await.unwrap();
        audit(&world, &nodes).await.is_empty().then_some(())
    })
    .await;
}
