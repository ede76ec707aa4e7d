//! Deleting a tenant that has something: refused with the list, or all of it, in order, whatever happens meanwhile.

use rhyzome_api::kernel::env::Moment;
use rhyzome_tests::audit::audit;
use rhyzome_tests::life::{Ask, Run, life};
use rhyzome_tests::on_both;
use rhyzome_tests::people::face;
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};

use super::{ACME, House};

on_both!(what_it_has_is_told, a_plan_takes_nothing, hundreds_go_too);

const CASCADE: &str = "/v1/tenants/acme?cascade=true";

async fn what_it_has_is_told(world: World) {
    let face = face(&world);
    super::acme(&face).await;
    let group = json!({ "name": "kept", "protected": true, "spec": { "rule": "anti-affinity" } });
    face.call("POST", &format!("{ACME}/placement-groups"), group).await.is(201);
    let refused = face.call("DELETE", ACME, Value::Null).await.is_problem(409, "in-use");
    let used: Vec<&str> = refused.json["used_by"]
        .as_array()
        .unwrap()
        .iter()
        .map(|user| user["kind"].as_str().unwrap())
        .collect();
    assert_eq!(used, ["member", "member", "placement-group"]);
    let refused = face.call("DELETE", CASCADE, Value::Null).await.is_problem(409, "protected");
    assert_eq!(refused.json["protected"][0]["name"], "kept");
    assert_eq!(refused.json["protected"].as_array().unwrap().len(), 1);
    face.call("PATCH", ACME, json!({ "protected": true })).await.is(200);
    face.call("DELETE", CASCADE, Value::Null).await.is_problem(409, "protected");
    face.get(ACME).await.is(200);
    face.call("DELETE", "/v1/tenants/acme?cascade=perhaps", Value::Null).await.is_problem(400, "malformed");
    let other = "/v1/machine-types/small?cascade=true";
    face.call("DELETE", other, Value::Null).await.is_problem(400, "malformed");
    // Nobody but operators, whatever they own there.
    face.by("otto", "DELETE", CASCADE, Value::Null).await.is_problem(404, "not-found");
}

async fn a_plan_takes_nothing(world: World) {
    let face = face(&world);
    super::acme(&face).await;
    let planned = face.call("DELETE", "/v1/tenants/acme?cascade=true&plan=true", Value::Null).await.is(200);
    assert_eq!(planned.json["steps"][0]["what"]["do"], "empty", "{:#}", planned.json);
    face.get(ACME).await.is(200);
    face.by("otto", "GET", &format!("{ACME}/members"), Value::Null).await.is(200);
}

/// More than one transaction takes: each goes by its own removal.
async fn hundreds_go_too(world: World) {
    let face = face(&world);
    super::acme(&face).await;
    for nth in 0..230 {
        world.make("acme", "placement-group", &format!("g{nth}"), json!({ "rule": "anti-affinity" })).await;
    }
    let deleting = face.call("DELETE", CASCADE, Value::Null).await.is(202);
    assert_eq!(deleting.json["phase"], "deleting");
    let job = deleting.json["job"].as_str().unwrap().to_owned();
    face.call("POST", &format!("/v1/jobs/{job}/cancel"), Value::Null).await.is_problem(409, "wrong-state");
    face.call("POST", &format!("/v1/jobs/{job}/skip"), Value::Null).await.is_problem(409, "wrong-state");
    let body = json!({ "name": "more", "spec": { "rule": "anti-affinity" } });
    face.call("POST", &format!("{ACME}/placement-groups"), body.clone()).await.is_problem(409, "wrong-state");
    face.call("POST", "/v1/tenants", json!({ "name": "acme", "spec": {} }))
        .await
        .is_problem(409, "name-taken");
    rhyzome_tests::wait::until("all of it to be gone", 60, async || {
        rhyzome_api::jobs::look(&world.store).await.unwrap();
        (face.get(&format!("/v1/jobs/{job}")).await.json["state"] == "done").then_some(())
    })
    .await;
    face.get(ACME).await.is_problem(404, "not-found");
    let left = world.ask("SELECT kind, name FROM resource WHERE tenant = 'acme' AND gone_at IS NULL").await;
    assert!(left.is_empty(), "{left:?}");
    let removed = world
        .ask("SELECT count(*) FROM job WHERE tenant = 'acme' AND verb = 'remove' AND state = 'done'")
        .await;
    assert_eq!(removed, [["232"]], "two members and all groups");
    assert!(world
            .ask("SELECT q.quantity FROM quota q JOIN resource r ON r.id = q.tenant WHERE r.name = 'acme' AND q.used <> 0")
            .await
            .is_empty());
    face.call("POST", "/v1/tenants", json!({ "name": "acme", "spec": {} })).await.is(201);
    face.call("POST", &format!("{ACME}/placement-groups"), body).await.is(201);
    face.seen_by("otto", &format!("{ACME}/members")).await.is_problem(404, "not-found");
}

// === with guests ===

/// Guests, their disks and networks go; what a node holds that is away goes when it is back, and all else meanwhile.
async fn guests_go_in_order(engine: Engine) {
    let mut house = House::new(engine).await;
    let body = json!({ "name": "data", "spec": { "size_bytes": 1 << 30 } });
    house.face.call("POST", &format!("{ACME}/disks"), body).await;
    let attach = json!({ "spec": { "root": { "keep": true }, "image": "tiny", "disks": { "d": { "disk": "data" } } }, "name": "kept" });
    house.face.call("POST", &format!("{ACME}/instances"), attach).await.is(202);
    house.quiet().await;
    house.nodes[0].lose();
    let deleting = house.face.call("DELETE", CASCADE, Value::Null).await.is(202);
    let job = deleting.json["job"].as_str().unwrap().to_owned();
    let shown = async |house: &House| house.face.get(&format!("/v1/jobs/{job}")).await.is(200).json;
    for _ in 0..6 {
        rhyzome_tests::drive::calm(&house.world.store, &mut house.nodes).await.unwrap();
        house.time.pass(17);
    }
    let waiting = shown(&house).await;
    assert_eq!(waiting["state"], "running");
    let message = waiting["steps"][0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("waits for the ") && message.contains("on its way out"), "{message}");
    // What no node holds has gone.
    let sql = "SELECT kind FROM resource WHERE tenant = 'acme' AND gone_at IS NULL AND kind IN ('member', 'ssh-key')";
    assert!(house.world.ask(sql).await.is_empty());
    let alive = "SELECT kind, name FROM live WHERE tenant = 'acme'";
    assert!(house.world.ask(alive).await.is_empty());
    let store = house.world.store.clone();
    house.nodes[0].connect(&store).await.unwrap();
    house.quiet().await;
    assert_eq!(shown(&house).await["state"], "done");
    house.face.get(ACME).await.is_problem(404, "not-found");
    assert!(house.nodes[0].holds().iter().all(|id| id.starts_with("img_")), "{:?}", house.nodes[0].holds());
    house.fine().await;
}

#[tokio::test]
async fn guests_go_in_order_on_sqlite() {
    guests_go_in_order(Engine::Sqlite).await;
}

#[tokio::test]
async fn guests_go_in_order_on_postgres() {
    guests_go_in_order(Engine::Postgres).await;
}

/// A tenant with a guest is deleted while the process ends there; then all is gone.
async fn ended(engine: Engine, at: &[(u64, Moment)]) -> (u64, u32) {
    let kind = rhyzome_api::resources::registry().get("instance").unwrap();
    let mut run = Run::new(engine, kind).await;
    run.ask(&life(kind).remove(0)).await;
    run.quiet().await;
    run.comebacks = 0;
    run.strikes.plan(at);
    run.step(&Ask::Empty("default".into())).await;
    let found = audit(&run.world, &run.nodes).await;
    assert!(found.is_empty(), "ended at {at:?}: {found:#?}");
    let left = run.world.ask("SELECT kind, name FROM resource WHERE (tenant = 'default' OR kind = 'tenant') AND gone_at IS NULL").await;
    assert!(left.is_empty(), "ended at {at:?}: {left:?}");
    (run.strikes.commits(), run.comebacks)
}

#[tokio::test]
async fn whenever_the_process_ends_on_sqlite() {
    let (commits, _) = ended(Engine::Sqlite, &[]).await;
    let mut points = 0;
    for commit in 1..=commits {
        for moment in [Moment::Before, Moment::Inside, Moment::After] {
            points += ended(Engine::Sqlite, &[(commit, moment)]).await.1.min(1);
        }
    }
    println!("{commits} commits, {points} crash points");
    assert!(commits > 4 && points > 8, "{commits} commits, {points} crash points");
}

#[tokio::test]
async fn whenever_the_process_ends_on_postgres() {
    let (commits, _) = ended(Engine::Postgres, &[]).await;
    for commit in (1..=commits).step_by(3) {
        ended(Engine::Postgres, &[(commit, Moment::After)]).await;
        ended(Engine::Postgres, &[(commit, Moment::Inside)]).await;
    }
}
