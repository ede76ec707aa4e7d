//! The same on all that match; and a wanted power state, whichever way it is said.

use rhyzome_api::jobs;
use rhyzome_api::store::JobQuery;
use rhyzome_tests::face::Face;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const DISKS: &str = "/v1/tenants/default/disks";
const INSTANCES: &str = "/v1/tenants/default/instances";

rhyzome_tests::on_both!(
    each_has_its_own_outcome,
    once_also_when_half_was_done,
    both_ways_to_a_power_state_end_alike
);

async fn disks(face: &Face) {
    for (name, env) in [("a", "prod"), ("b", "prod"), ("c", "test"), ("d", "prod")] {
        let body = json!({ "name": name, "tags": { "env": env }, "spec": { "size_bytes": 1 << 30 } });
        face.call("POST", DISKS, body).await.is(201);
    }
}

/// Name and status of each.
fn told(reply: &Value) -> Vec<(String, i64)> {
    let items = reply["items"].as_array().unwrap().iter();
    items.map(|item| (item["name"].as_str().unwrap().to_owned(), item["status"].as_i64().unwrap())).collect()
}

async fn each_has_its_own_outcome(world: World) {
    let face = Face::of(&world);
    disks(&face).await;
    for (method, path) in [("DELETE", DISKS), ("PATCH", DISKS)] {
        let body = if method == "PATCH" { json!({ "tags": {} }) } else { Value::Null };
        for query in ["", "?plan=true", "?name_prefix="] {
            let refused = face.call(method, &format!("{path}{query}"), body.clone()).await;
            let refused = refused.is_problem(400, "filter-required");
            assert!(refused.json["detail"].as_str().unwrap().contains("tag.KEY"), "{:#}", refused.json);
        }
        face.call(method, &format!("{path}?limit=5&tag.env=prod"), body.clone())
            .await
            .is_problem(400, "malformed");
        let header = [("if-match", "\"v1\"")];
        let query = format!("{path}?tag.env=prod");
        face.with(method, &query, &header, body).await.is_problem(400, "malformed");
    }
    face.call("POST", &format!("{INSTANCES}/actions/stop"), Value::Null)
        .await
        .is_problem(400, "filter-required");
    let named = face.call("PATCH", &format!("{DISKS}?tag.env=prod"), json!({ "name": "x", "tags": 1 })).await;
    assert_eq!(named.is_problem(422, "invalid").fields(), ["name", "tags"]);

    let planned =
        face.call("PATCH", &format!("{DISKS}?tag.env=prod&plan=true"), json!({ "protected": true })).await;
    assert!(planned.is(200).json["items"][0]["plan"]["object"]["protected"].as_bool().unwrap());
    let patch = json!({ "tags": { "tier": "gold" } });
    let patched = face.call("PATCH", &format!("{DISKS}?tag.env=prod"), patch).await.is(200);
    assert_eq!(told(&patched.json), [("a".into(), 200), ("b".into(), 200), ("d".into(), 200)]);
    assert_eq!(patched.json["next"], Value::Null);
    let gold = face.get(&format!("{DISKS}?tag.tier=gold")).await.is(200);
    assert!(
        gold.json["items"].as_array().unwrap().iter().all(|disk| disk["protected"] == false),
        "a plan is no act"
    );

    face.call("PATCH", &format!("{DISKS}/b"), json!({ "protected": true })).await.is(200);
    let gone = face.call("DELETE", &format!("{DISKS}?tag.env=prod"), Value::Null).await.is(200);
    let items = gone.json["items"].as_array().unwrap();
    assert_eq!(items[1]["problem"]["type"], "/problems/protected", "{:#}", gone.json);
    assert!(items[0]["job"].is_string() && items[2]["job"].is_string(), "{:#}", gone.json);
    let left = face.get(&format!("{DISKS}?order=name")).await;
    let left: Vec<_> = left.json["items"].as_array().unwrap().iter().map(|disk| &disk["name"]).collect();
    assert_eq!(left, ["b", "c"]);
    // What goes already is not asked to go again.
    let again = face.call("DELETE", &format!("{DISKS}?tag.env=prod"), Value::Null).await.is(200);
    assert_eq!(told(&again.json), [("b".into(), 409)]);
}

async fn once_also_when_half_was_done(world: World) {
    let face = Face::of(&world);
    disks(&face).await;
    let key = [("idempotency-key", "k")];
    let path = format!("{DISKS}?tag.env=prod");
    // Broken off wherever it stands; then asked again until it is told to the end.
    for round in 0..30 {
        let bearer = format!("Bearer {}", rhyzome_tests::face::TOKEN);
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("idempotency-key", "k"),
        ];
        let asked = face.raw("PATCH", &path, &headers, r#"{"metadata":{"seen":true}}"#);
        tokio::select! {
            biased;
            () = async { for _ in 0..round { tokio::task::yield_now().await } } => {}
            _ = asked => {}
        }
    }
    let first = face.with("PATCH", &path, &key, json!({ "metadata": { "seen": true } })).await.is(200);
    assert_eq!(told(&first.json), [("a".into(), 200), ("b".into(), 200), ("d".into(), 200)]);
    // One write each: the first made version 2, and no retry made another.
    for name in ["a", "b", "d"] {
        assert_eq!(face.get(&format!("{DISKS}/{name}")).await.json["version"], 2, "{name}");
    }
    // Who matches later is not part of it, and the answer stays the same.
    let late = json!({ "name": "e", "tags": { "env": "prod" }, "spec": { "size_bytes": 1 << 30 } });
    face.call("POST", DISKS, late).await.is(201);
    let again = face.with("PATCH", &path, &key, json!({ "metadata": { "seen": true } })).await.is(200);
    assert_eq!((again.header("idempotency-replayed"), &again.bytes), ("true", &first.bytes));
    face.with("PATCH", &path, &key, json!({ "metadata": {} })).await.is_problem(422, "key-reused");
}

async fn both_ways_to_a_power_state_end_alike(world: World) {
    let face = Face::of(&world);
    let node = world.make_node("n1", 1 << 40).await;
    world.make_image("", "tiny").await;
    let stop = CancellationToken::new();
    tokio::spawn(jobs::run(world.store.clone(), stop.clone()));
    let mut cursor = 0;
    let mut settle = async |names: [&str; 2]| {
        for name in names {
            until("its jobs are done", 60, async || {
                cursor = world.obey(&node, cursor).await;
                let query = JobQuery { limit: 500, ..JobQuery::default() };
                let open = world.store.jobs(&world.right("default"), &query).await.unwrap().items;
                let mine = open.iter().filter(|job| job.resource_name == name);
                mine.into_iter().all(|job| job.state == "done").then_some(())
            })
            .await;
        }
    };
    for name in ["verb", "patch"] {
        face.call("POST", INSTANCES, json!({ "name": name, "spec": { "image": "tiny" } })).await.is(202);
    }
    settle(["verb", "patch"]).await;
    let ways = [
        ("pause", "paused"),
        ("resume", "on"),
        ("stop", "off"),
        ("start", "on"),
        ("pause", "paused"),
        ("stop", "off"),
    ];
    for (verb, power) in ways {
        let acted = face.call("POST", &format!("{INSTANCES}/verb/actions/{verb}"), Value::Null).await.is(202);
        let patch = json!({ "spec": { "power": power } });
        let planned =
            face.call("PATCH", &format!("{INSTANCES}/patch?plan=true"), patch.clone()).await.is(200);
        assert_eq!(planned.json["steps"][0]["verb"], verb, "{:#}", planned.json);
        let patched = face.call("PATCH", &format!("{INSTANCES}/patch"), patch).await.is(202);
        assert_eq!(patched.json["phase"], acted.json["phase"], "{verb}");
        let job = async |answer: &Value| {
            let id = answer["job"].as_str().unwrap();
            let job = face.get(&format!("/v1/jobs/{id}")).await.is(200).json;
            let steps: Vec<_> =
                job["steps"].as_array().unwrap().iter().map(|step| step["what"].clone()).collect();
            (job["verb"].clone(), steps)
        };
        assert_eq!(job(&patched.json).await, job(&acted.json).await, "{verb}");
        settle(["verb", "patch"]).await;
        let end = async |name: &str| {
            let object = face.get(&format!("{INSTANCES}/{name}")).await.is(200).json;
            (object["spec"]["power"].clone(), object["phase"].clone(), object["generation"].clone())
        };
        assert_eq!(end("patch").await, end("verb").await, "{verb}");
        assert_eq!(end("patch").await.0, power);
    }
    face.call("PATCH", &format!("{INSTANCES}/patch"), json!({ "spec": { "power": "paused" } }))
        .await
        .is_problem(422, "invalid");
    face.call("POST", &format!("{INSTANCES}/verb/actions/pause"), Value::Null)
        .await
        .is_problem(409, "wrong-state");

    // A start that hangs, however it was asked for, is cut short by a hard stop.
    face.call("POST", &format!("{INSTANCES}/verb/actions/start"), Value::Null).await.is(202);
    let on = json!({ "spec": { "power": "on" }, "tags": { "a": "b" } });
    face.call("PATCH", &format!("{INSTANCES}/patch"), on).await.is(202);
    let hard = json!({ "mode": "hard" });
    let all = face.call("POST", &format!("{INSTANCES}/actions/stop?phase=starting"), hard).await.is(200);
    assert_eq!(told(&all.json), [("verb".into(), 202), ("patch".into(), 202)]);
    let cancelled = face.get("/v1/jobs?state=cancelled").await.is(200);
    assert_eq!(cancelled.json["items"].as_array().unwrap().len(), 2, "{:#}", cancelled.json);
    stop.cancel();
}
