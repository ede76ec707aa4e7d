//! A user is there at the first login, and is who the authenticator says, whatever they are called.

use rhyzome_tests::on_both;
use rhyzome_tests::people::face;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

on_both!(
    there_at_the_first_login,
    awaited_before_it,
    let_in_nowhere_when_disabled,
    everybody_at_once_is_one_user
);

async fn there_at_the_first_login(world: World) {
    let face = face(&world);
    let anna = face.user("anna").await;
    assert_eq!(face.user("anna").await, anna);
    let user = face.get(&format!("/v1/users/{anna}")).await.is(200).json;
    assert_eq!((&user["name"], &user["phase"]), (&json!("anna"), &json!("ready")));
    let spec = json!({ "username": "anna", "authenticator": "corp", "subject": "subject of anna", "disabled": false });
    assert_eq!(user["spec"], spec);
    // Users are the operators' to see; one's own is told by whoami.
    face.seen_by("anna", "/v1/users").await.is_problem(404, "not-found");
    face.seen_by("anna", &format!("/v1/users/{anna}")).await.is_problem(404, "not-found");
    // Names that are no labels, and two who are called the same.
    face.user("Anna@example.com").await;
    face.user("anna@example.com").await;
    let wrong = face.by(&"x".repeat(201), "GET", "/v1/whoami", Value::Null).await;
    assert!(
        wrong.is_problem(401, "unauthenticated").json["detail"].as_str().unwrap().contains("spec.username")
    );
}

async fn awaited_before_it(world: World) {
    let face = face(&world);
    let spec = json!({ "username": "bert", "authenticator": "corp" });
    let made = face.call("POST", "/v1/users", json!({ "name": "berty", "spec": spec })).await.is(201).json;
    assert_eq!(made["phase"], "awaited");
    assert_eq!(face.user("bert").await, made["id"].as_str().unwrap());
    let known = face.get("/v1/users/berty").await.is(200).json;
    assert_eq!((&known["phase"], &known["spec"]["subject"]), (&json!("ready"), &json!("subject of bert")));
    let twice = json!({ "spec": { "username": "x", "authenticator": "corp", "subject": "subject of bert" } });
    assert_eq!(
        face.call("POST", "/v1/users", twice).await.is_problem(422, "invalid").fields(),
        ["spec.subject"]
    );
}

async fn let_in_nowhere_when_disabled(world: World) {
    let face = face(&world);
    let anna = face.user("anna").await;
    let disable =
        |disabled: bool| face.call("PATCH", "/v1/users/anna", json!({ "spec": { "disabled": disabled } }));
    disable(true).await.is(200);
    face.seen_by("anna", "/v1/whoami").await.is_problem(401, "unauthenticated");
    disable(false).await.is(200);
    face.seen_by("anna", "/v1/whoami").await.is(200);
    face.member("default", "anna", "viewer").await;
    face.call("DELETE", &format!("/v1/users/{anna}"), Value::Null).await.is_problem(409, "in-use");
}

async fn everybody_at_once_is_one_user(world: World) {
    let face = face(&world);
    let mut all = futures_util::future::join_all((0..8).map(|_| face.user("anna"))).await;
    all.dedup();
    assert_eq!(all.len(), 1, "{all:?}");
}
