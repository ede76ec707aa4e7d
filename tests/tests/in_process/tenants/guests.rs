//! What the guests of a tenant do while it is suspended, and after.

use rhyzome_api::kernel::Error;
use rhyzome_api::store::Asked;
use rhyzome_tests::world::Engine;
use serde_json::{Value, json};

use super::{ACME, House, act};

/// Those that ran run again, and no others.
async fn what_ran_runs_again(engine: Engine) {
    let mut house = House::new(engine).await;
    let suspending = act(&house.face, "suspend", json!({ "mode": "hard" })).await.is(202);
    assert_eq!(suspending.json["phase"], "suspending");
    house.quiet().await;
    assert_eq!(house.face.get(ACME).await.json["phase"], "suspended");
    assert_eq!(house.phases().await, ["off stopped", "runs stopped", "sleeps stopped"]);
    let start = format!("{ACME}/instances/runs/actions/start");
    house.face.by("otto", "POST", &start, Value::Null).await.is_problem(403, "tenant-suspended");
    // Again is no harm: what ran before the first time is not forgotten.
    act(&house.face, "suspend", json!({})).await.is(200);
    house.fine().await;
    act(&house.face, "resume", json!({})).await.is(202);
    house.quiet().await;
    assert_eq!(house.phases().await, ["off stopped", "runs running", "sleeps paused"]);
    assert_eq!(house.face.get(ACME).await.json["phase"], "ready");
    house.face.by("otto", "POST", &format!("{ACME}/instances/off/actions/start"), Value::Null).await.is(202);
    house.quiet().await;
    house.fine().await;
}

#[tokio::test]
async fn what_ran_runs_again_on_sqlite() {
    what_ran_runs_again(Engine::Sqlite).await;
}

#[tokio::test]
async fn what_ran_runs_again_on_postgres() {
    what_ran_runs_again(Engine::Postgres).await;
}

/// What is to go on goes on; and what an operator does meanwhile stands.
async fn kept_or_as_the_operator_left_it(engine: Engine) {
    let mut house = House::new(engine).await;
    act(&house.face, "suspend", json!({ "instances": "keep" })).await.is(200);
    house.quiet().await;
    assert_eq!(house.phases().await, ["off stopped", "runs running", "sleeps paused"]);
    act(&house.face, "suspend", json!({ "instances": "stop" })).await.is(202);
    house.quiet().await;
    assert_eq!(house.phases().await, ["off stopped", "runs stopped", "sleeps stopped"]);
    for verb in ["start", "stop"] {
        let path = format!("{ACME}/instances/runs/actions/{verb}");
        house.face.call("POST", &path, json!({ "mode": "graceful" })).await.is(202);
        house.quiet().await;
    }
    act(&house.face, "resume", json!({})).await.is(202);
    house.quiet().await;
    assert_eq!(house.phases().await, ["off stopped", "runs stopped", "sleeps paused"]);
    house.fine().await;
}

#[tokio::test]
async fn kept_or_as_the_operator_left_it_on_sqlite() {
    kept_or_as_the_operator_left_it(Engine::Sqlite).await;
}

#[tokio::test]
async fn kept_or_as_the_operator_left_it_on_postgres() {
    kept_or_as_the_operator_left_it(Engine::Postgres).await;
}

/// An instance that was stopped is not started by somebody whose rights were looked at before.
async fn nobody_starts_it_late(engine: Engine) {
    let mut house = House::new(engine).await;
    let said = rhyzome_tests::people::person("otto");
    let right = house.world.store.admit(said, "").await.unwrap().may("start", "instance", "acme").unwrap();
    act(&house.face, "suspend", json!({})).await.is(202);
    house.quiet().await;
    let call = rhyzome_api::kernel::resource::Call { verb: "start".into(), ..Default::default() };
    let kind = house.world.kind("instance");
    let late = house.world.store.act(&right, kind, "runs", call, false, None, &Asked::default()).await;
    assert!(matches!(late, Err(Error::Suspended(_))), "{late:?}");
}

#[tokio::test]
async fn nobody_starts_it_late_on_sqlite() {
    nobody_starts_it_late(Engine::Sqlite).await;
}

#[tokio::test]
async fn nobody_starts_it_late_on_postgres() {
    nobody_starts_it_late(Engine::Postgres).await;
}
