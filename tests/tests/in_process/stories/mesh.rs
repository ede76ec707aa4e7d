//! What only a mesh does. What it has in common with every kind is asked in `rest_contract.rs`.

use rhyzome_tests::face::Face;
use rhyzome_tests::on_both;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

on_both!(it_says_how_many_nodes_it_can_have, ranges_exist_once_and_addresses_run_out);

const ALL: &str = "/v1/meshes";

fn mesh(name: &str, prefix: &str) -> Value {
    json!({"name": name, "spec": {"prefix": prefix}})
}

async fn it_says_how_many_nodes_it_can_have(world: World) {
    let face = Face::of(&world);
    let made = face.call("POST", ALL, mesh("backbone", "10.98.0.0/24")).await.is(201).json;
    assert_eq!((&made["phase"], &made["status"]["nodes"]), (&json!("ready"), &json!(254)));
    let wide = face.call("POST", ALL, mesh("wide", "10.99.0.0/16")).await.is_problem(422, "invalid");
    assert_eq!(wide.fields(), ["spec.prefix"]);
    assert!(wide.json.to_string().contains("at most 254 nodes"), "{:#}", wide.json);
    let path = format!("{ALL}/backbone");
    let moved = face.call("PATCH", &path, json!({"spec": {"prefix": "10.97.0.0/24"}})).await;
    assert_eq!(moved.is_problem(422, "invalid").fields(), ["spec.prefix"]);
}

async fn ranges_exist_once_and_addresses_run_out(world: World) {
    let face = Face::of(&world);
    face.call("POST", ALL, mesh("small", "10.98.0.0/30")).await.is(201);
    let over = face.call("POST", ALL, mesh("over", "10.98.0.0/24")).await.is_problem(422, "invalid").json;
    assert!(over.to_string().contains("overlaps mesh `small`"), "{over:#}");
    let members = "/v1/mesh-members";
    for (number, address) in ["10.98.0.1", "10.98.0.2"].into_iter().enumerate() {
        let node = format!("n{number}");
        world.make_node(&node, 1 << 30).await;
        let member = json!({"name": node, "spec": {"mesh": "small", "node": node}});
        let made = face.call("POST", members, member).await.is(202).json;
        assert_eq!(made["status"]["address"], address);
    }
    world.make_node("n2", 1 << 30).await;
    let member = json!({"name": "n2", "spec": {"mesh": "small", "node": "n2"}});
    let none = face.call("POST", members, member).await.is_problem(409, "exhausted").json;
    assert!(none["detail"].as_str().unwrap().contains('4'), "{none:#}");
    let used = face.call("DELETE", &format!("{ALL}/small"), Value::Null).await.is_problem(409, "in-use");
    assert!(used.json.to_string().contains("n1"), "{:#}", used.json);
}
