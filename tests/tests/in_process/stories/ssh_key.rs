//! What only an SSH key does. What it has in common with every kind is asked in `rest_contract.rs`.

use rhyzome_tests::face::Face;
use rhyzome_tests::on_both;
use rhyzome_tests::world::World;
use serde_json::json;

on_both!(a_key_is_read_shown_and_never_changed, a_private_key_is_sent_back);

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@laptop";
const ALL: &str = "/v1/tenants/default/ssh-keys";

async fn a_key_is_read_shown_and_never_changed(world: World) {
    let face = Face::of(&world);
    face.call("POST", ALL, json!({"name": "me", "spec": {"public_key": KEY}})).await.is(201);
    let path = format!("{ALL}/me");
    let shown = face.get(&path).await.is(200).json;
    assert_eq!(shown["status"]["type"], "ssh-ed25519");
    assert!(shown["status"]["fingerprint"].as_str().unwrap().starts_with("SHA256:"), "{shown:#}");
    let other = json!({"spec": {"public_key": KEY.replace("me@laptop", "you@laptop")}});
    let refused = face.call("PATCH", &path, other).await;
    assert_eq!(refused.is_problem(422, "invalid").fields(), ["spec.public_key"]);
}

async fn a_private_key_is_sent_back(world: World) {
    let face = Face::of(&world);
    let private = "-----BEGIN OPENSSH PRIVATE KEY-----";
    let told = face.call("POST", ALL, json!({"name": "me", "spec": {"public_key": private}})).await;
    let told = told.is_problem(422, "invalid");
    assert!(told.json["errors"][0]["reason"].as_str().unwrap().contains("private key"), "{:#}", told.json);
    assert_eq!(face.get(ALL).await.is(200).json["items"], json!([]));
}
