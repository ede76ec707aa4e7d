//! A binding: a user, a group, or all whom an authenticator knows; with a tenant, a kind, tags or one object; and its
//! denials, which nobody lifts for themselves.

use rhyzome_tests::on_both;
use rhyzome_tests::people::face;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

on_both!(whoever_it_is_about_has_it, denials_cannot_be_lifted_by_whom_they_bind, operators_bind_everywhere);

const BINDINGS: &str = "/v1/tenants/default/bindings";
const GROUPS: &str = "/v1/tenants/default/placement-groups";

fn binding(name: &str, subject: Value, more: Value) -> Value {
    let mut spec = json!({ "subjects": { "who": subject } });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "name": name, "spec": spec })
}

async fn whoever_it_is_about_has_it(world: World) {
    let face = face(&world);
    for (name, env) in [("one", "dev"), ("two", "prod")] {
        let body = json!({ "name": name, "tags": { "env": env }, "spec": { "rule": "anti-affinity" } });
        face.call("POST", GROUPS, body).await.is(201);
    }
    let ops = json!({ "group": "ops", "authenticator": "corp" });
    let dev = json!({ "role": "editor", "tags": { "env": "dev" } });
    face.call("POST", BINDINGS, binding("ops", ops, dev)).await.is(201);
    let names = async |who: &str| {
        let page = face.seen_by(who, GROUPS).await.is(200).json;
        page["items"].as_array().unwrap().iter().map(|item| item["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names("anna ops").await, ["one"]);
    face.seen_by("anna", GROUPS).await.is_problem(404, "not-found");
    face.seen_by("anna dev", GROUPS).await.is_problem(404, "not-found");
    // The same group of somebody else's directory is another one.
    let elsewhere = json!({ "group": "dev", "authenticator": "other" });
    face.call("POST", BINDINGS, binding("dev", elsewhere, json!({ "role": "owner" }))).await.is(201);
    face.seen_by("anna dev", GROUPS).await.is_problem(404, "not-found");
    let two = face.get(&format!("{GROUPS}/two")).await.json["id"].clone();
    let all = json!({ "authenticator": "corp" });
    let one_object = json!({ "scopes": ["*:get", "*:list"], "object": two });
    face.call("POST", BINDINGS, binding("all", all, one_object)).await.is(201);
    assert_eq!(names("anna").await, ["two"]);
    assert_eq!(names("anna ops").await, ["one", "two"]);
    face.call("DELETE", &format!("{BINDINGS}/ops"), Value::Null).await.is(202);
    assert_eq!(names("anna ops").await, ["two"]);
    let kinds = json!({ "role": "viewer", "kinds": ["network", "disc"] });
    let wrong = face.call("POST", BINDINGS, binding("x", json!({ "authenticator": "corp" }), kinds)).await;
    assert_eq!(wrong.is_problem(422, "invalid").fields(), ["spec.kinds.1"]);
}

async fn denials_cannot_be_lifted_by_whom_they_bind(world: World) {
    let face = face(&world);
    let otto = face.user("otto").await;
    face.member("default", "otto", "owner").await;
    face.member("default", "olga", "owner").await;
    let stop = json!({ "effect": "deny", "scopes": ["placement-group:*"] });
    face.call("POST", BINDINGS, binding("stop", json!({ "user": otto }), stop)).await.is(201);
    let new = json!({ "spec": { "rule": "anti-affinity" } });
    face.by("otto", "POST", GROUPS, new.clone()).await.is_problem(403, "denied");
    let at = format!("{BINDINGS}/stop");
    face.by("otto", "DELETE", &at, Value::Null).await.is_problem(403, "denied");
    let allow = json!({ "spec": { "effect": "allow" } });
    face.by("otto", "PATCH", &at, allow).await.is_problem(403, "denied");
    let nobody = json!({ "spec": { "subjects": { "who": null, "other": { "authenticator": "none" } } } });
    face.by("otto", "PATCH", &at, nobody).await.is_problem(403, "denied");
    let again = binding("again", json!({ "user": otto }), json!({ "role": "owner" }));
    face.by("otto", "POST", BINDINGS, again).await.is_problem(403, "denied");
    face.by("olga", "DELETE", &at, Value::Null).await.is(202);
    face.by("otto", "POST", GROUPS, new).await.is(201);
}

async fn operators_bind_everywhere(world: World) {
    let face = face(&world);
    let anna = face.user("anna").await;
    face.seen_by("anna", "/v1/nodes").await.is_problem(404, "not-found");
    let staff = binding("anna", json!({ "user": anna }), json!({ "role": "operator" }));
    face.by("anna", "POST", "/v1/bindings", staff.clone()).await.is_problem(404, "not-found");
    face.by("anna", "POST", BINDINGS, staff.clone()).await.is_problem(404, "not-found");
    face.call("POST", BINDINGS, staff.clone()).await.is_problem(422, "invalid");
    face.call("POST", "/v1/bindings", staff).await.is(201);
    for path in ["/v1/nodes", "/v1/users", "/v1/jobs", GROUPS, "/v1/placement-groups"] {
        face.seen_by("anna", path).await.is(200);
    }
    // A part of it: nodes may be looked at, and nothing else.
    let some = binding(
        "vera",
        json!({ "user": face.user("vera").await }),
        json!({ "scopes": ["node:get", "node:list"] }),
    );
    face.call("POST", "/v1/bindings", some).await.is(201);
    face.seen_by("vera", "/v1/nodes").await.is(200);
    face.by("vera", "POST", "/v1/nodes", json!({ "spec": {} })).await.is_problem(403, "denied");
    face.seen_by("vera", "/v1/users").await.is_problem(403, "denied");
    face.call("DELETE", "/v1/bindings/anna", Value::Null).await.is(202);
    face.seen_by("anna", "/v1/nodes").await.is_problem(404, "not-found");
}
