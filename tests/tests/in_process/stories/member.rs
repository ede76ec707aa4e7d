//! A member has rights in a tenant as long as they are one, on every server; and the last owner stays.

use rhyzome_tests::on_both;
use rhyzome_tests::people::{face, person};
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};

on_both!(
    in_from_the_first_moment_and_out_at_once,
    no_more_than_ones_own,
    the_last_owner_stays,
    nobody_finds_others_by_trying_names
);

const KEYS: &str = "/v1/tenants/default/ssh-keys";
const GROUPS: &str = "/v1/tenants/default/placement-groups";
const MEMBERS: &str = "/v1/tenants/default/members";

fn group(name: &str) -> Value {
    json!({ "name": name, "spec": { "rule": "anti-affinity" } })
}

async fn in_from_the_first_moment_and_out_at_once(world: World) {
    let face = face(&world);
    face.seen_by("anna", GROUPS).await.is_problem(404, "not-found");
    let member = face.member("default", "anna", "editor").await;
    face.by("anna", "POST", GROUPS, group("one")).await.is(201);
    face.seen_by("anna", &format!("{MEMBERS}/{member}")).await.is(200);
    face.by("anna", "DELETE", &format!("{MEMBERS}/{member}"), Value::Null).await.is_problem(403, "denied");
    let viewer = json!({ "spec": { "role": "viewer" } });
    face.call("PATCH", &format!("{MEMBERS}/{member}"), viewer).await.is(200);
    face.by("anna", "POST", GROUPS, group("two")).await.is_problem(403, "denied");
    // One's own keys, all the same.
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
    let key = json!({ "name": "mine", "spec": { "public_key": KEY } });
    face.by("anna", "POST", KEYS, key).await.is(201);
    face.by("anna", "PATCH", &format!("{KEYS}/mine"), json!({ "tags": { "a": "b" } })).await.is(200);
    face.call("DELETE", &format!("{MEMBERS}/{member}"), Value::Null).await.is(202);
    for path in [GROUPS, KEYS, MEMBERS] {
        face.seen_by("anna", path).await.is_problem(404, "not-found");
    }
}

async fn no_more_than_ones_own(world: World) {
    let face = face(&world);
    face.member("default", "otto", "owner").await;
    let (emil, vera) = (face.user("emil").await, face.user("vera").await);
    let add = |user: &str, role: &str| json!({ "spec": { "user": user, "role": role } });
    face.by("otto", "POST", MEMBERS, add(&emil, "editor")).await.is(201);
    face.by("emil", "POST", MEMBERS, add(&vera, "viewer")).await.is_problem(403, "denied");
    // May have others in, but only as what they are themselves.
    let role = json!({ "name": "host", "spec": { "scopes": ["member:*", "disk:get"] } });
    face.by("otto", "POST", "/v1/tenants/default/roles", role).await.is(201);
    face.by("otto", "POST", MEMBERS, add(&vera, "host")).await.is(201);
    let fritz = face.user("fritz").await;
    for role in ["owner", "editor", "viewer"] {
        face.by("vera", "POST", MEMBERS, add(&fritz, role)).await.is_problem(403, "denied");
    }
    face.by("vera", "POST", MEMBERS, add(&fritz, "host")).await.is_problem(422, "invalid");
    let wrong = face.by("otto", "POST", MEMBERS, add(&fritz, "operator")).await;
    assert_eq!(wrong.is_problem(422, "invalid").fields(), ["spec.role"]);
}

async fn the_last_owner_stays(world: World) {
    let face = face(&world);
    let (anna, otto) =
        (face.member("default", "anna", "owner").await, face.member("default", "otto", "owner").await);
    let at = |member: &str| format!("{MEMBERS}/{member}");
    let less = json!({ "spec": { "role": "editor" } });
    face.by("anna", "PATCH", &at(&otto), less.clone()).await.is(200);
    face.by("anna", "PATCH", &at(&anna), less).await.is_problem(409, "wrong-state");
    face.by("anna", "DELETE", &at(&anna), Value::Null).await.is_problem(409, "wrong-state");
    face.by("anna", "GET", GROUPS, Value::Null).await.is(200);
    face.by("anna", "PATCH", &at(&otto), json!({ "spec": { "role": "owner" } })).await.is(200);
    face.by("anna", "DELETE", &at(&anna), Value::Null).await.is(202);
    face.call("DELETE", &at(&otto), Value::Null).await.is(202);
}

async fn nobody_finds_others_by_trying_names(world: World) {
    let face = face(&world);
    world.make("", "tenant", "beta", json!({})).await;
    face.member("default", "otto", "owner").await;
    face.user("vera").await;
    let theirs = face.user("bea - beta").await;
    let add = |user: &str| json!({ "spec": { "user": user } });
    for user in ["vera", "nobody", "usr_00000000000000000000000000", &theirs] {
        let refused = face.by("otto", "POST", MEMBERS, add(user)).await.is_problem(422, "invalid");
        assert_eq!(refused.json["errors"][0]["reason"], format!("there is no user `{user}`"));
    }
    // Somebody of a tenant's own realm has no rights elsewhere, even if an operator errs.
    face.member("default", "bea - beta", "owner").await;
    face.seen_by("bea - beta", GROUPS).await.is_problem(404, "not-found");
}

/// What another server has written counts here, with a bell in moments, without one after a second.
#[tokio::test(flavor = "multi_thread")]
async fn revoked_on_one_server_is_revoked_on_all() {
    let world = World::new(Engine::Postgres).await;
    let face = face(&world);
    let member = face.member("default", "anna", "viewer").await;
    let url = world.db.parse().unwrap();
    let env = rhyzome_api::environment::system_env();
    let other = rhyzome_api::store::Store::open(&url, env, rhyzome_api::resources::registry()).await.unwrap();
    let may = async || {
        let anna = other.admit(person("anna"), "").await.unwrap();
        anna.may("list", "placement-group", "default").is_ok()
    };
    assert!(may().await);
    face.call("DELETE", &format!("{MEMBERS}/{member}"), Value::Null).await.is(202);
    let since = std::time::Instant::now();
    while may().await {
        assert!(since.elapsed().as_secs() < 30, "it never hears of it");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}
