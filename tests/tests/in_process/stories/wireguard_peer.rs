//! What only a WireGuard peer does. What it has in common with every kind is asked in `rest_contract.rs`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Message as _;
use rhyzome_proto::v1::{WireguardPeerOrder, order_body::Body};
use rhyzome_tests::audit::audit;
use rhyzome_tests::drive::calm;
use rhyzome_tests::face::Face;
use rhyzome_tests::given::Time;
use rhyzome_tests::node::SimNode;
use rhyzome_tests::on_both;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

on_both!(it_has_an_address_and_networks_of_its_own, what_is_wrong_is_refused_by_name);

const ALL: &str = "/v1/tenants/default/wireguard-peers";

fn key(number: u8) -> String {
    BASE64_STANDARD.encode([number; 32])
}

fn peer(name: &str, number: u8, change: Value) -> Value {
    let mut spec = json!({"server": "office", "public_key": key(number)});
    for (key, value) in change.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"name": name, "spec": spec})
}

async fn world_with_a_server(world: &World) -> SimNode {
    let node = world.make_node("n1", 1 << 40).await;
    world.make("default", "network", "lan", json!({"cidr": "10.20.0.0/24"})).await;
    let server = json!({"network": "lan", "hostname": "vpn.example.com"});
    world.make("default", "wireguard-server", "office", server).await;
    let mut node = SimNode::new(&node, &Time::begin());
    node.connect(&world.store).await.unwrap();
    node
}

async fn it_has_an_address_and_networks_of_its_own(world: World) {
    let face = Face::of(&world);
    let mut nodes = [world_with_a_server(&world).await];
    calm(&world.store, &mut nodes).await.unwrap();
    let first = face.call("POST", ALL, peer("first", 1, json!({}))).await.is(202).json;
    let config = &first["status"]["config"];
    assert_eq!(
        (&config["address"], &config["endpoint"]),
        (&json!("10.99.0.2/32"), &json!("vpn.example.com:51820"))
    );
    assert_eq!(config["allowed_ips"], json!(["10.99.0.0/24", "10.20.0.0/24"]));
    assert_eq!((&config["dns"], &config["domain"]), (&json!("10.20.0.1"), &json!("lan.internal")));
    let site = json!({"networks": ["10.30.0.0/16", "fd00:1::/48"], "endpoint": "site.example.com:51820", "keepalive_seconds": 25});
    let site = face.call("POST", ALL, peer("site", 2, site)).await.is(202).json;
    assert_eq!(site["status"]["config"]["address"], "10.99.0.3/32");
    calm(&world.store, &mut nodes).await.unwrap();
    let ordered = |nodes: &[SimNode]| {
        let order = &nodes[0].orders()[site["id"].as_str().unwrap()];
        let Some(Body::Plain(body)) = order.body.as_ref().unwrap().body.as_ref() else { panic!("{order:?}") };
        WireguardPeerOrder::decode(body.as_slice()).unwrap()
    };
    let order = ordered(&nodes);
    assert_eq!(order.allowed_ips, ["10.99.0.3/32", "10.30.0.0/16", "fd00:1::/48"]);
    assert_eq!((&*order.endpoint, order.keepalive_seconds), ("site.example.com:51820", 25));

    // A part of what it had, and what it gave back another one has.
    let path = format!("{ALL}/site");
    face.call("PATCH", &path, json!({"spec": {"networks": ["10.30.0.0/17"]}})).await.is(202);
    calm(&world.store, &mut nodes).await.unwrap();
    assert_eq!(ordered(&nodes).allowed_ips, ["10.99.0.3/32", "10.30.0.0/17"]);
    let rest = json!({"networks": ["10.30.128.0/17", "fd00:1::/48"]});
    face.call("POST", ALL, peer("rest", 3, rest)).await.is(202);
    // Another key: the old one is free.
    face.call("PATCH", &path, json!({"spec": {"public_key": key(9)}})).await.is(202);
    calm(&world.store, &mut nodes).await.unwrap();
    face.call("POST", ALL, peer("again", 2, json!({}))).await.is(202);
    calm(&world.store, &mut nodes).await.unwrap();
    assert_eq!(audit(&world, &nodes).await, []);
    let server = "/v1/tenants/default/wireguard-servers/office";
    face.call("DELETE", server, Value::Null).await.is_problem(409, "in-use");
}

async fn what_is_wrong_is_refused_by_name(world: World) {
    let face = Face::of(&world);
    let _node = world_with_a_server(&world).await;
    let first = json!({"address": "10.99.0.7", "networks": ["10.30.0.0/16"]});
    face.call("POST", ALL, peer("first", 1, first)).await.is(202);
    for (number, change, field, why) in [
        (1, json!({}), "spec.public_key", "another peer of this server has this key"),
        (2, json!({"public_key": "x"}), "spec.public_key", "WireGuard key"),
        (2, json!({"address": "10.99.0.7"}), "spec.address", "overlaps wireguard peer `first`"),
        (2, json!({"address": "10.98.0.7"}), "spec.address", "outside 10.99.0.0/24"),
        (2, json!({"address": "10.99.0.1"}), "spec.address", "the server's own"),
        (2, json!({"networks": ["10.30.7.0/24"]}), "spec.networks.0", "overlaps wireguard peer `first`"),
        (2, json!({"networks": ["10.20.0.128/25"]}), "spec.networks.0", "overlaps wireguard server `office`"),
        (2, json!({"networks": ["10.99.0.0/25"]}), "spec.networks.0", "the range of the tunnel itself"),
        (2, json!({"networks": ["10.40.0.1/16"]}), "spec.networks.0", "did you mean 10.40.0.0/16?"),
        (2, json!({"server": "nowhere"}), "spec.server", "no wireguard server `nowhere`"),
    ] {
        let refused = face.call("POST", ALL, peer("second", number, change)).await.is_problem(422, "invalid");
        assert_eq!(refused.fields(), [field]);
        assert!(refused.json.to_string().contains(why), "{why}: {:#}", refused.json);
    }
}
