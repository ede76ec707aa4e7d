//! What only a VPN network does. What it has in common with every kind is asked in `rest_contract.rs`.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rhyzome_api::kernel::Clash;
use rhyzome_api::store::{Asked, NewObject};
use rhyzome_tests::audit::audit;
use rhyzome_tests::drive::calm;
use rhyzome_tests::face::Face;
use rhyzome_tests::given::Time;
use rhyzome_tests::node::SimNode;
use rhyzome_tests::on_both;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

on_both!(
    the_answer_has_all_that_the_client_needs,
    the_next_range_and_the_next_pool,
    many_at_once_have_a_range_each,
    what_is_wrong_is_refused_by_name,
    what_has_expired_says_so,
);

const ALL: &str = "/v1/tenants/default/vpn-networks";

/// A key like no other.
fn key(number: usize) -> String {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    BASE64_STANDARD.encode(bytes)
}

async fn make_pool(world: &World, name: &str, prefix: &str, size: u8) -> String {
    let spec = json!({"prefix": prefix, "network_size": size, "hostname": "vpn.example.com", "node": "host"});
    world.make("", "vpn-pool", name, spec).await.object.core.id
}

async fn the_answer_has_all_that_the_client_needs(world: World) {
    let face = Face::of(&world);
    let node = world.make_node("host", 1 << 30).await;
    let mut nodes = [SimNode::new(&node, &Time::begin())];
    nodes[0].connect(&world.store).await.unwrap();
    let pool = make_pool(&world, "wide", "2001:db8::/40", 48).await;
    calm(&world.store, &mut nodes).await.unwrap();
    let shared = key(99);
    let spec = json!({"public_key": key(1), "size": 48, "preshared_key": shared, "keepalive_seconds": 25});
    let made = face.call("POST", ALL, json!({"name": "laptop", "spec": spec})).await.is(202).json;
    let server = face.get("/v1/vpn-pools/wide").await.is(200).json["status"]["public_key"].clone();
    let wanted = json!({
        "address": "2001:db8:1::1/128", "server_public_key": server, "endpoint": "vpn.example.com:51820",
        "allowed_ips": ["2001:db8::/40"],
    });
    assert_eq!((&made["status"]["config"], &made["status"]["network"]), (&wanted, &json!("2001:db8:1::/48")));
    calm(&world.store, &mut nodes).await.unwrap();
    let path = format!("{ALL}/laptop");
    assert_eq!(face.get(&path).await.is(200).json["phase"], "ready");
    let id = made["id"].as_str().unwrap();
    let order = nodes[0].orders()[id].clone();
    assert_eq!((&order.needs, &*order.secrets[0].value), (&vec![pool], &*shared));

    // Another secret is another generation, and reaches the node.
    face.call("PATCH", &path, json!({"spec": {"preshared_key": key(98)}})).await.is(202);
    calm(&world.store, &mut nodes).await.unwrap();
    let order = &nodes[0].orders()[id];
    assert_eq!((order.generation, &*order.secrets[0].value), (2, &*key(98)));
    // Taken away it is gone, and so is its range.
    face.call("DELETE", &path, Value::Null).await.is(202);
    calm(&world.store, &mut nodes).await.unwrap();
    assert!(!nodes[0].orders().contains_key(id));
    assert_eq!(audit(&world, &nodes).await, []);
}

async fn the_next_range_and_the_next_pool(world: World) {
    let face = Face::of(&world);
    let node = world.make_node("host", 1 << 30).await;
    let mut nodes = [SimNode::new(&node, &Time::begin())];
    nodes[0].connect(&world.store).await.unwrap();
    make_pool(&world, "small", "2001:db8::/46", 48).await;
    let make = async |number: usize, spec: Value| {
        let mut spec = spec;
        spec["public_key"] = key(number).into();
        face.call("POST", ALL, json!({"name": format!("n{number}"), "spec": spec})).await
    };
    let network = |reply: &Value| reply["status"]["network"].as_str().unwrap().to_owned();
    for number in 1..=3 {
        let made = make(number, json!({})).await.is(202).json;
        assert_eq!(network(&made), format!("2001:db8:{number}::/48"));
    }
    for spec in [json!({}), json!({"size": 48}), json!({"pool": "small"})] {
        let full = make(4, spec).await.is_problem(409, "exhausted").json;
        assert!(full["detail"].as_str().unwrap().contains("all 4 ranges"), "{full:#}");
    }
    let none = make(4, json!({"size": 56})).await.is_problem(422, "invalid");
    assert_eq!(none.fields(), ["spec.pool"]);
    assert!(none.json.to_string().contains("hands out ranges of /56"), "{:#}", none.json);
    make_pool(&world, "more", "10.9.0.0/16", 24).await;
    assert_eq!(network(&make(4, json!({})).await.is(202).json), "10.9.1.0/24");
    calm(&world.store, &mut nodes).await.unwrap();
    face.call("DELETE", &format!("{ALL}/n2"), Value::Null).await.is(202);
    calm(&world.store, &mut nodes).await.unwrap();
    assert_eq!(network(&make(5, json!({"size": 48})).await.is(202).json), "2001:db8:2::/48");
    assert_eq!(
        network(&make(6, json!({"prefix": "10.9.200.0/24", "pool": "more"})).await.is(202).json),
        "10.9.200.0/24"
    );
}

async fn many_at_once_have_a_range_each(world: World) {
    world.make_node("host", 1 << 30).await;
    make_pool(&world, "wide", "10.9.0.0/20", 24).await;
    let tasks: Vec<_> = (0..20)
        .map(|number| {
            let (store, right, kind) =
                (world.store.clone(), world.right("default"), world.kind("vpn-network"));
            let body = NewObject { spec: json!({"public_key": key(number)}), ..NewObject::default() };
            tokio::spawn(async move { store.create(&right, kind, body, &Asked::default()).await })
        })
        .collect();
    let (mut given, mut refused) = (BTreeSet::new(), 0);
    for task in tasks {
        match task.await.unwrap() {
            Ok(written) => assert!(given.insert(written.object.claims["network"].to_string())),
            Err(rhyzome_api::kernel::Error::Clash(Clash::Exhausted(_))) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    // Of sixteen one is the pool's own.
    assert_eq!((given.len(), refused), (15, 5), "{given:?}");
}

async fn what_is_wrong_is_refused_by_name(world: World) {
    let face = Face::of(&world);
    world.make_node("host", 1 << 30).await;
    make_pool(&world, "wide", "2001:db8::/40", 48).await;
    let post = async |spec: Value| face.call("POST", ALL, json!({"spec": spec})).await;
    post(json!({"public_key": key(1), "prefix": "2001:db8:7::/48"})).await.is(202);
    for (spec, field, why) in [
        (json!({"public_key": "nonsense"}), "spec.public_key", "WireGuard key"),
        (json!({"public_key": key(1)}), "spec.public_key", "another network of this pool has this key"),
        (json!({"public_key": key(2), "prefix": "2001:db8:7::/48"}), "spec.prefix", "overlaps vpn network"),
        (json!({"public_key": key(2), "prefix": "2001:db8::/48"}), "spec.prefix", "overlaps vpn pool `wide`"),
        (json!({"public_key": key(2), "prefix": "2001:db9::/48"}), "spec.prefix", "outside 2001:db8::/40"),
        (json!({"public_key": key(2), "prefix": "2001:db8:7::1/48"}), "spec.prefix", "did you mean"),
        (json!({"public_key": key(2), "pool": "nowhere"}), "spec.pool", "no vpn pool `nowhere`"),
        (json!({"public_key": key(2), "preshared_key": "x"}), "spec.preshared_key", "WireGuard key"),
    ] {
        let refused = post(spec).await.is_problem(422, "invalid");
        assert_eq!(refused.fields(), [field]);
        assert!(refused.json.to_string().contains(why), "{why}: {:#}", refused.json);
    }
}

async fn what_has_expired_says_so(world: World) {
    let face = Face::of(&world);
    let node = world.make_node("host", 1 << 30).await;
    let mut nodes = [SimNode::new(&node, &Time::begin())];
    nodes[0].connect(&world.store).await.unwrap();
    make_pool(&world, "wide", "2001:db8::/40", 48).await;
    calm(&world.store, &mut nodes).await.unwrap();
    let (past, later) = ("2020-01-01T00:00:00.000000Z", "2120-01-01T00:00:00.000000Z");
    let spec = |at: &str| json!({"public_key": key(1), "expires_at": at});
    let id =
        face.call("POST", ALL, json!({"name": "one", "spec": spec(later)})).await.is(202).json["id"].clone();
    calm(&world.store, &mut nodes).await.unwrap();
    let path = format!("{ALL}/one");
    assert_eq!(world.store.expire().await.unwrap(), 0);
    assert_eq!(face.get(&path).await.is(200).json["phase"], "ready");
    for _ in 0..2 {
        face.call("PATCH", &path, json!({"spec": {"expires_at": past}})).await.is(202);
        calm(&world.store, &mut nodes).await.unwrap();
        // Its node knows the moment, and waits for nobody.
        let body = nodes[0].orders()[id.as_str().unwrap()].body.clone();
        assert!(format!("{body:?}").contains("Plain"));
        assert_eq!(world.store.expire().await.unwrap(), 1);
        assert_eq!(world.store.expire().await.unwrap(), 0);
        let shown = face.get(&path).await.is(200).json;
        assert_eq!((&shown["phase"], &shown["status"]["expired_at"]), (&json!("expired"), &json!(past)));
        let list = face.get(&format!("{ALL}?phase=expired")).await.is(200).json;
        assert_eq!(list["items"].as_array().unwrap().len(), 1);
        // More time.
        face.call("PATCH", &path, json!({"spec": {"expires_at": later}})).await.is(202);
        calm(&world.store, &mut nodes).await.unwrap();
        let shown = face.get(&path).await.is(200).json;
        assert_eq!((&shown["phase"], &shown["status"]["expired_at"]), (&json!("ready"), &Value::Null));
    }
    assert_eq!(audit(&world, &nodes).await, []);
}
