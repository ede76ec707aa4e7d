//! What only a WireGuard server does. What it has in common with every kind is asked in `rest_contract.rs`.

use rhyzome_proto::v1::{WireguardServerOrder, order_body::Body};
use rhyzome_tests::audit::audit;
use rhyzome_tests::drive::calm;
use rhyzome_tests::face::Face;
use rhyzome_tests::given::Time;
use rhyzome_tests::node::SimNode;
use rhyzome_tests::on_both;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

use prost::Message as _;

on_both!(
    it_is_beside_the_instances_of_its_network,
    ranges_of_a_tenant_do_not_overlap,
    a_drained_node_keeps_it
);

const ALL: &str = "/v1/tenants/default/wireguard-servers";

async fn it_is_beside_the_instances_of_its_network(world: World) {
    let (face, time) = (Face::of(&world), Time::begin());
    let mut nodes = Vec::new();
    for name in ["n1", "n2", "n3"] {
        let node = world.make_node(name, 1 << 40).await;
        let mut node = SimNode::new(&node, &time);
        node.connect(&world.store).await.unwrap();
        nodes.push(node);
    }
    world.make_image("", "tiny").await;
    let network =
        world.make("default", "network", "lan", json!({"cidr": "10.20.0.0/24"})).await.object.core.id;
    let instance = json!({"image": "tiny", "node": "n2", "nics": {"lan": {"network": "lan"}}});
    world.make("default", "instance", "web", instance).await;
    let spec = json!({"network": "lan", "hostname": "vpn.example.com"});
    let made = face.call("POST", ALL, json!({"name": "office", "spec": spec})).await.is(202).json;
    let status = &made["status"];
    assert_eq!(status["node"], nodes[1].id);
    assert_eq!(
        (&status["address"], &status["endpoint"]),
        (&json!("10.99.0.1"), &json!("vpn.example.com:51820"))
    );
    calm(&world.store, &mut nodes).await.unwrap();
    assert_eq!(face.get(&format!("{ALL}/office")).await.is(200).json["phase"], "ready");
    let order = &nodes[1].orders()[made["id"].as_str().unwrap()];
    assert_eq!(order.needs, std::slice::from_ref(&network));
    let Some(Body::Plain(body)) = order.body.as_ref().unwrap().body.as_ref() else { panic!("{order:?}") };
    let body = WireguardServerOrder::decode(body.as_slice()).unwrap();
    assert_eq!((&body.addresses, &body.network_id), (&vec!["10.99.0.1/24".to_owned()], &network));
    assert_eq!(body.private_key, order.secrets[0].marker);
    assert_ne!(order.secrets[0].value, body.private_key);

    // The network stays there for it when the instance has gone, and goes with it.
    face.call("DELETE", "/v1/tenants/default/instances/web", Value::Null).await.is(202);
    calm(&world.store, &mut nodes).await.unwrap();
    assert!(nodes[1].orders().contains_key(&network));
    face.call("DELETE", "/v1/tenants/default/networks/lan", Value::Null).await.is_problem(409, "in-use");
    face.call("DELETE", &format!("{ALL}/office"), Value::Null).await.is(202);
    calm(&world.store, &mut nodes).await.unwrap();
    assert!(!nodes[1].orders().contains_key(&network));
    assert_eq!(audit(&world, &nodes).await, []);
}

async fn ranges_of_a_tenant_do_not_overlap(world: World) {
    let face = Face::of(&world);
    world.make_node("n1", 1 << 40).await;
    world.make("default", "network", "lan", json!({"cidr": "10.20.0.0/24"})).await;
    let post =
        async |name: &str, spec: Value| face.call("POST", ALL, json!({"name": name, "spec": spec})).await;
    post("one", json!({})).await.is(202);
    for (spec, why) in [
        (json!({}), "overlaps wireguard server `one`"),
        (json!({"cidr": "10.20.0.0/16"}), "overlaps network `lan`"),
        (json!({"cidr": "10.98.0.1/24"}), "did you mean 10.98.0.0/24?"),
    ] {
        let refused = post("two", spec).await.is_problem(422, "invalid");
        assert_eq!(refused.fields(), ["spec.cidr"]);
        assert!(refused.json.to_string().contains(why), "{why}: {:#}", refused.json);
    }
    let network = json!({"name": "other", "spec": {"cidr": "10.99.0.0/16"}});
    let network = face.call("POST", "/v1/tenants/default/networks", network).await.is_problem(422, "invalid");
    assert_eq!(network.fields(), ["spec.cidr"]);
    // A port each, on the same node.
    assert_eq!(post("two", json!({"cidr": "fd00:9::/64"})).await.is(202).json["status"]["port"], 51821);
}

async fn a_drained_node_keeps_it(world: World) {
    let face = Face::of(&world);
    let node = world.make_node("n1", 1 << 40).await;
    world.make_node("n2", 1 << 40).await;
    let mut nodes = [SimNode::new(&node, &Time::begin())];
    nodes[0].connect(&world.store).await.unwrap();
    let made = face.call("POST", ALL, json!({"name": "office", "spec": {"node": "n1"}})).await.is(202).json;
    calm(&world.store, &mut nodes).await.unwrap();
    let key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    let peer = json!({"name": "laptop", "spec": {"server": "office", "public_key": key}});
    face.call("POST", "/v1/tenants/default/wireguard-peers", peer).await.is(202);
    calm(&world.store, &mut nodes).await.unwrap();
    let drain = "/v1/nodes/n1/actions/drain";
    let refused = face.call("POST", drain, json!({})).await.is_problem(409, "wrong-state").json;
    let said = refused["detail"].as_str().unwrap();
    assert!(said.contains("`office` (a wireguard server stays") && !said.contains("laptop"), "{said}");
    face.call("POST", drain, json!({"mode": "hard"})).await.is(202);
    calm(&world.store, &mut nodes).await.unwrap();
    assert!(nodes[0].orders().contains_key(made["id"].as_str().unwrap()));
    // What goes along with it may still be made there.
    let peer = json!({"spec": {"server": "office", "public_key": key.replace('h', "g")}});
    face.call("POST", "/v1/tenants/default/wireguard-peers", peer).await.is(202);
}
