//! An API token: shown once, kept as a hash; never more than its maker, also later; within its limits, and until its
//! end.

use rhyzome_tests::given::Time;
use rhyzome_tests::on_both;
use rhyzome_tests::people::face;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};

on_both!(
    shown_once_and_kept_as_a_hash,
    never_more_than_its_maker,
    within_its_limits,
    ones_own_and_nobody_elses,
    the_operators_own
);

const GROUPS: &str = "/v1/tenants/default/placement-groups";

async fn make(face: &rhyzome_tests::face::Face, who: &str, name: &str, spec: Value) -> String {
    let made = face.by(who, "POST", "/v1/tokens", json!({ "name": name, "spec": spec })).await.is(201);
    made.json["secrets"]["token"].as_str().unwrap().to_owned()
}

fn group(name: &str) -> Value {
    json!({ "name": name, "spec": { "rule": "anti-affinity" } })
}

async fn shown_once_and_kept_as_a_hash(world: World) {
    let face = face(&world);
    let secret = make(&face, "anna", "ci", json!({})).await;
    assert!(secret.starts_with("rzt_") && secret.len() == 4 + 43, "{secret}");
    let shown = face.seen_by("anna", "/v1/tokens/ci").await.is(200);
    assert!(!shown.json.to_string().contains("rzt_"), "{}", shown.json);
    let written = world.written().await;
    let found = |text: &str| written.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(!found(&secret) && !found(&secret[4..]), "the database holds it");
    let me = face.seen_by(&secret, "/v1/whoami").await.is(200).json;
    assert_eq!((&me["name"], &me["credential"]), (&json!("anna"), &json!("token ci")));
    until("its use is shown", 30, async || {
        let shown = face.seen_by("anna", "/v1/tokens/ci").await.json;
        shown["status"]["last_used_at"].is_string().then_some(())
    })
    .await;
    for bogus in ["rzt_", "rzt_x", &format!("{secret}x"), &secret[..46]] {
        face.seen_by(bogus, "/v1/whoami").await.is_problem(401, "unauthenticated");
    }
    face.by("anna", "DELETE", "/v1/tokens/ci", Value::Null).await.is(202);
    face.seen_by(&secret, "/v1/whoami").await.is_problem(401, "unauthenticated");
}

async fn never_more_than_its_maker(world: World) {
    let face = face(&world);
    let member = face.member("default", "anna", "editor").await;
    let token = make(&face, "anna", "ci", json!({})).await;
    face.by(&token, "POST", GROUPS, group("one")).await.is(201);
    face.seen_by(&token, "/v1/nodes").await.is_problem(404, "not-found");
    // No token makes another one: that would outlive it.
    for (method, path) in [("POST", "/v1/tokens"), ("PATCH", "/v1/tokens/ci"), ("DELETE", "/v1/tokens/ci")] {
        let body = if method == "DELETE" { Value::Null } else { json!({ "spec": {} }) };
        let refused = face.by(&token, method, path, body).await;
        assert!(matches!(refused.status, 403 | 404), "{method}: {}", refused.json);
    }
    let at = format!("/v1/tenants/default/members/{member}");
    face.call("PATCH", &at, json!({ "spec": { "role": "viewer" } })).await.is(200);
    face.seen_by(&token, &format!("{GROUPS}/one")).await.is(200);
    face.by(&token, "POST", GROUPS, group("two")).await.is_problem(403, "denied");
    face.call("DELETE", &at, Value::Null).await.is(202);
    face.seen_by(&token, GROUPS).await.is_problem(404, "not-found");
    face.call("PATCH", "/v1/users/anna", json!({ "spec": { "disabled": true } })).await.is(200);
    face.seen_by(&token, "/v1/whoami").await.is_problem(401, "unauthenticated");
}

async fn within_its_limits(world: World) {
    let face = face(&world);
    world.make("", "tenant", "beta", json!({})).await;
    for tenant in ["default", "beta"] {
        face.member(tenant, "anna", "editor").await;
        let body = json!({ "name": "dev", "tags": { "env": "dev" }, "spec": { "rule": "anti-affinity" } });
        face.by("anna", "POST", &GROUPS.replace("default", tenant), body).await.is(201);
    }
    face.by("anna", "POST", GROUPS, group("plain")).await.is(201);
    let plain = face.get(&format!("{GROUPS}/plain")).await.json["id"].clone();
    let cases = [
        (json!({ "scopes": ["placement-group:get", "placement-group:list"] }), [200, 200, 200, 403]),
        (json!({ "tenant": "beta" }), [404, 404, 200, 404]),
        (json!({ "kinds": ["disk"] }), [404, 404, 404, 403]),
        (json!({ "tags": { "env": "dev" } }), [200, 404, 200, 403]),
        (json!({ "object": plain }), [404, 200, 404, 403]),
        (json!({ "networks": ["192.0.2.0/24"] }), [401, 401, 401, 401]),
    ];
    for (at, (spec, wanted)) in cases.into_iter().enumerate() {
        let token = make(&face, "anna", &format!("t{at}"), spec.clone()).await;
        let get = async |path: String| face.seen_by(&token, &path).await.status;
        let beta = GROUPS.replace("default", "beta");
        let told = [
            get(format!("{GROUPS}/dev")).await,
            get(format!("{GROUPS}/plain")).await,
            get(format!("{beta}/dev")).await,
            face.by(&token, "POST", GROUPS, group("new")).await.status,
        ];
        assert_eq!(told, wanted, "{spec}");
    }
    let past = json!({ "spec": { "expires_at": "2001-01-01T00:00:00Z" } });
    let refused = face.by("anna", "POST", "/v1/tokens", past).await;
    assert_eq!(refused.is_problem(422, "invalid").fields(), ["spec.expires_at"]);
}

async fn ones_own_and_nobody_elses(world: World) {
    let face = face(&world);
    make(&face, "anna", "ci", json!({})).await;
    make(&face, "bert", "cd", json!({})).await;
    let names = async |who: &str| {
        let page = face.seen_by(who, "/v1/tokens").await.is(200).json;
        page["items"].as_array().unwrap().iter().map(|item| item["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names("anna").await, ["ci"]);
    assert_eq!(names("operator").await, ["ci", "cd"]);
    face.seen_by("anna", "/v1/tokens/cd").await.is_problem(404, "not-found");
    face.by("anna", "DELETE", "/v1/tokens/cd", Value::Null).await.is_problem(404, "not-found");
}

async fn the_operators_own(world: World) {
    let face = face(&world);
    let token =
        make(&face, "operator", "ci", json!({ "scopes": ["placement-group:*"], "tenant": "default" })).await;
    face.by(&token, "POST", GROUPS, group("one")).await.is(201);
    face.seen_by(&token, "/v1/nodes").await.is_problem(404, "not-found");
    face.seen_by(&token, "/v1/tenants/default/disks").await.is_problem(403, "denied");
}

async fn it_ends(engine: Engine) {
    let time = Time::begin();
    let world = World::with_time(engine, &time, 5).await;
    let face = face(&world);
    let ends = time.now().plus_seconds(60);
    let token = make(&face, "anna", "ci", json!({ "expires_at": ends })).await;
    face.seen_by(&token, "/v1/whoami").await.is(200);
    time.pass(61);
    face.seen_by(&token, "/v1/whoami").await.is_problem(401, "unauthenticated");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_on_sqlite() {
    it_ends(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_on_postgres() {
    it_ends(Engine::Postgres).await;
}
