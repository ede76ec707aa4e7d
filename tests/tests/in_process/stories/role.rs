//! A role of one's own: a change counts at once for all who have it, and nobody puts into one what they have not.

use rhyzome_tests::on_both;
use rhyzome_tests::people::face;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

on_both!(a_change_counts_for_all_who_have_it, nothing_in_it_that_its_maker_has_not);

const ROLES: &str = "/v1/tenants/default/roles";
const GROUPS: &str = "/v1/tenants/default/placement-groups";

async fn a_change_counts_for_all_who_have_it(world: World) {
    let face = face(&world);
    world.make("default", "placement-group", "one", json!({ "rule": "anti-affinity" })).await;
    let role = |scopes: Value| json!({ "name": "looker", "spec": { "scopes": scopes } });
    face.call("POST", ROLES, role(json!(["placement-group:get"]))).await.is(201);
    face.member("default", "anna", "looker").await;
    face.seen_by("anna", &format!("{GROUPS}/one")).await.is(200);
    face.seen_by("anna", GROUPS).await.is_problem(403, "denied");
    let patch = role(json!(["placement-group:get", "placement-group:list"]));
    face.call("PATCH", &format!("{ROLES}/looker"), patch).await.is(200);
    face.seen_by("anna", GROUPS).await.is(200);
    face.call("DELETE", &format!("{ROLES}/looker"), Value::Null).await.is_problem(409, "in-use");
    // One that operators made for all can be given by everybody, and changed by nobody else.
    face.call("POST", "/v1/roles", json!({ "name": "common", "spec": { "scopes": ["disk:get"] } }))
        .await
        .is(201);
    face.member("default", "otto", "owner").await;
    let vera = face.user("vera").await;
    let member = json!({ "spec": { "user": vera, "role": "common" } });
    face.by("otto", "POST", "/v1/tenants/default/members", member).await.is(201);
    face.by("otto", "DELETE", &format!("{ROLES}/common"), Value::Null).await.is_problem(403, "denied");
    let unknown = role(json!(["instnce:get"]));
    let wrong = face.call("POST", ROLES, json!({ "spec": unknown["spec"] })).await;
    assert_eq!(wrong.is_problem(422, "invalid").fields(), ["spec.scopes.0"]);
}

async fn nothing_in_it_that_its_maker_has_not(world: World) {
    let face = face(&world);
    let role = |scopes: Value| json!({ "spec": { "scopes": scopes } });
    face.call("POST", ROLES, json!({ "name": "clerk", "spec": { "scopes": ["role:*", "disk:*"] } }))
        .await
        .is(201);
    face.member("default", "anna", "clerk").await;
    face.by("anna", "POST", ROLES, role(json!(["disk:get"]))).await.is(201);
    face.by("anna", "POST", ROLES, role(json!(["network:get"]))).await.is_problem(403, "denied");
    let more = json!({ "spec": { "scopes": ["*:*"] } });
    face.by("anna", "PATCH", &format!("{ROLES}/clerk"), more.clone()).await.is_problem(403, "denied");
    face.by("anna", "PATCH", &format!("{ROLES}/clerk?plan=true"), more).await.is_problem(403, "denied");
}
