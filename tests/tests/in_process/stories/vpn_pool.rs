//! What only a VPN pool does. What it has in common with every kind is asked in `rest_contract.rs`.

use rhyzome_tests::drive::calm;
use rhyzome_tests::face::Face;
use rhyzome_tests::given::Time;
use rhyzome_tests::node::SimNode;
use rhyzome_tests::on_both;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

on_both!(
    its_key_is_given_or_made_and_never_shown,
    ranges_and_ports_exist_once,
    only_where_wireguard_is_and_never_an_instance_where_no_qemu_is,
    what_is_in_use_stays,
);

const ALL: &str = "/v1/vpn-pools";
const PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
const PUBLIC: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

fn pool(name: &str, change: Value) -> Value {
    let mut spec =
        json!({"prefix": "2001:db8::/40", "network_size": 48, "hostname": "vpn.example.com", "node": "host"});
    for (key, value) in change.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"name": name, "spec": spec})
}

async fn its_key_is_given_or_made_and_never_shown(world: World) {
    let face = Face::of(&world);
    let node = world.make_node("host", 1 << 30).await;
    let mut nodes = [SimNode::new(&node, &Time::begin())];
    nodes[0].connect(&world.store).await.unwrap();
    let given = face.call("POST", ALL, pool("given", json!({"private_key": PRIVATE}))).await.is(202);
    assert_eq!(given.json["status"]["public_key"], PUBLIC);
    assert_eq!(given.json["status"]["endpoint"], "vpn.example.com:51820");
    assert_eq!(
        (&given.json["status"]["address"], &given.json["status"]["networks"]),
        (&json!("2001:db8::1"), &json!(256))
    );
    let made = face
        .call("POST", ALL, pool("made", json!({"prefix": "10.9.0.0/16", "network_size": 32})))
        .await
        .is(202);
    assert_eq!(made.json["secrets"], Value::Null, "{:#}", made.json);
    assert_eq!(made.json["status"]["endpoint"], "vpn.example.com:51821");
    let key = made.json["status"]["public_key"].as_str().unwrap();
    assert!(key.len() == 44 && key != PUBLIC, "{key}");
    calm(&world.store, &mut nodes).await.unwrap();
    for name in ["given", "made"] {
        assert_eq!(face.get(&format!("{ALL}/{name}")).await.is(200).json["phase"], "ready");
    }
    let order = &nodes[0].orders()[given.json["id"].as_str().unwrap()];
    assert_eq!(order.secrets.len(), 1);
    assert_eq!(
        (&*order.secrets[0].marker, &*order.secrets[0].value),
        (given.json["spec"]["private_key"].as_str().unwrap(), PRIVATE)
    );

    let path = format!("{ALL}/given");
    let off = face.call("PATCH", &path, json!({"spec": {"enabled": false}})).await.is(202).json;
    assert_eq!(off["status"]["public_key"], PUBLIC);
    calm(&world.store, &mut nodes).await.unwrap();
    assert_eq!(face.get(&path).await.is(200).json["phase"], "disabled");
    let other = face.call("PATCH", &path, json!({"spec": {"hostname": "other.example.com"}})).await;
    assert_eq!(other.is_problem(422, "invalid").fields(), ["spec.hostname"]);
}

async fn ranges_and_ports_exist_once(world: World) {
    let face = Face::of(&world);
    world.make_node("host", 1 << 30).await;
    face.call("POST", ALL, pool("first", json!({"port": 51000}))).await.is(202);
    let taken =
        face.call("POST", ALL, pool("second", json!({"prefix": "2001:db8:10::/44", "port": 51000}))).await;
    let taken = taken.is_problem(422, "invalid");
    assert_eq!(taken.fields(), ["spec.port", "spec.prefix"]);
    let said = taken.json.to_string();
    assert!(
        said.contains("overlaps vpn pool `first`") && said.contains("51000 is in use on its node"),
        "{said}"
    );
    let odd = face.call("POST", ALL, pool("odd", json!({"prefix": "2001:db8:10::1/44"}))).await;
    assert_eq!(odd.is_problem(422, "invalid").fields(), ["spec.prefix"]);
}

async fn only_where_wireguard_is_and_never_an_instance_where_no_qemu_is(world: World) {
    let face = Face::of(&world);
    let host = world.make_node("host", 1 << 40).await;
    let said = |wireguard: bool| {
        let tool =
            json!([{"name": "wireguard", "available": wireguard, "detail": "install wireguard-tools"}]);
        json!({"accelerator": "none", "capabilities": tool})
    };
    world.store.record_node_status(&host, said(false)).await.unwrap();
    let refused = face.call("POST", ALL, pool("wide", json!({}))).await.is_problem(409, "no-capacity");
    assert!(refused.json.to_string().contains("install wireguard-tools"), "{:#}", refused.json);
    world.store.record_node_status(&host, said(true)).await.unwrap();
    face.call("POST", ALL, pool("wide", json!({}))).await.is(202);
    world.make_image("", "tiny").await;
    let instance = json!({"spec": {"image": "tiny"}});
    let refused = face.call("POST", "/v1/tenants/default/instances", instance).await;
    let refused = refused.is_problem(409, "no-capacity").json.to_string();
    assert!(refused.contains("it cannot run guests"), "{refused}");
}

async fn what_is_in_use_stays(world: World) {
    let face = Face::of(&world);
    world.make_node("host", 1 << 30).await;
    face.call("POST", ALL, pool("wide", json!({}))).await.is(202);
    let client = json!({"name": "laptop", "spec": {"public_key": PUBLIC}});
    face.call("POST", "/v1/tenants/default/vpn-networks", client).await.is(202);
    let used = face.call("DELETE", &format!("{ALL}/wide"), Value::Null).await.is_problem(409, "in-use").json;
    assert!(used.to_string().contains("laptop"), "{used:#}");
    let node = face.call("DELETE", "/v1/nodes/host", Value::Null).await.is_problem(409, "in-use").json;
    assert!(node.to_string().contains("wide"), "{node:#}");
}
