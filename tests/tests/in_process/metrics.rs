//! What a server measures of itself: numbers move, the text is in order, and looking costs the same however much there is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::http::Request;
use rhyzome_api::kernel::secret::Plain;
use rhyzome_api::metrics::{MEDIA, Metrics, Traffic, Watched, glance, look};
use rhyzome_api::rest::metrics_router;
use rhyzome_api::store::MOST_COUNTED;
use rhyzome_pki::Authority;
use rhyzome_tests::exposition::parse;
use rhyzome_tests::face::Face;
use rhyzome_tests::world::{Engine, World};
use rhyzome_tests::{on_both, statements};
use serde_json::{Value, json};
use tower::ServiceExt as _;

on_both!(
    requests_are_counted_by_operation_and_status,
    jobs_orders_and_the_log_are_counted,
    strangers_make_no_series,
);

fn watched(world: &World) -> Watched {
    let authority = Authority::open_or_create(&world.folder().join("pki"), SystemTime::now()).unwrap();
    Watched {
        store: world.store.clone(),
        authority: Arc::new(authority),
        traffic: Box::new(Traffic::default),
        http_ends: Box::new(|| None),
    }
}

/// All that is measured now.
async fn measured(metrics: &Metrics, watched: &Watched) -> BTreeMap<String, f64> {
    look(metrics, watched).await.unwrap();
    glance(metrics, watched);
    parse(&metrics.text())
}

async fn requests_are_counted_by_operation_and_status(world: World) {
    let (face, watched) = (Face::of(&world), watched(&world));
    let count = |all: &BTreeMap<String, f64>, operation: &str, status: u16| {
        let series = format!("rhyzome_http_requests_total{{operation=\"{operation}\",status=\"{status}\"}}");
        all.get(&series).copied().unwrap_or_default()
    };
    face.get("/v1/tenants/default/networks").await.is(200);
    face.get("/v1/tenants/default/networks").await.is(200);
    face.get("/v1/tenants/default/networks/none").await.is(404);
    face.raw("GET", "/v1/tenants/default/networks", &[], Body::empty()).await.is(401);
    face.call("POST", "/v1/tenants/default/networks", json!({ "spec": { "no": 1 } })).await.is(422);
    face.get("/nowhere").await.is(404);
    let all = measured(&face.metrics, &watched).await;
    assert_eq!(count(&all, "network_list", 200), 2.0, "{all:#?}");
    assert_eq!(count(&all, "network_list", 401), 1.0);
    assert_eq!(count(&all, "network_get", 404), 1.0);
    assert_eq!(count(&all, "network_create", 422), 1.0);
    assert_eq!(count(&all, "none", 404), 1.0);
    let took = "rhyzome_http_request_duration_seconds";
    assert_eq!(all[&format!("{took}_count{{operation=\"network_list\"}}")], 3.0);
    assert_eq!(all[&format!("{took}_bucket{{le=\"+Inf\",operation=\"network_list\"}}")], 3.0);
    assert!(all[&format!("{took}_sum{{operation=\"network_list\"}}")] > 0.0);
    assert!(all.keys().any(|series| series.starts_with("rhyzome_build_info{version=")));
}

async fn jobs_orders_and_the_log_are_counted(world: World) {
    let (face, watched) = (Face::of(&world), watched(&world));
    let before = measured(&face.metrics, &watched).await;
    world.make_image("", "tiny").await;
    world.make_node("n1", 1 << 40).await;
    let body = json!({ "name": "web", "spec": { "image": "tiny" } });
    face.call("POST", "/v1/tenants/default/instances", body).await.is(202);
    let after = measured(&face.metrics, &watched).await;
    let open = |all: &BTreeMap<String, f64>| -> f64 {
        let all = all.iter().filter(|(series, _)| series.starts_with("rhyzome_jobs{"));
        all.map(|(_, count)| count).sum()
    };
    assert!(open(&after) >= open(&before) + 1.0, "{after:#?}");
    assert!(after["rhyzome_orders_in_flight"] >= 1.0, "{after:#?}");
    // Nobody leads the log here.
    assert!(after["rhyzome_event_log_waiting"] > before["rhyzome_event_log_waiting"], "{after:#?}");
    assert!(after["rhyzome_event_log_lag_seconds"] > 0.0);
    let lease = world.store.lead_log("server", true).await.unwrap().unwrap();
    while world.store.append_log(&lease).await.unwrap() != Some(0) {}
    let read = measured(&face.metrics, &watched).await;
    assert_eq!((read["rhyzome_event_log_waiting"], read["rhyzome_event_log_lag_seconds"]), (0.0, 0.0));
    assert!(read["rhyzome_database_connections{state=\"most\"}"] >= 4.0);
    assert!(read["rhyzome_looked_timestamp_seconds"] >= after["rhyzome_looked_timestamp_seconds"]);
}

/// Whatever is asked for, by whatever method: there is a series for what is in the document, and for nothing else.
async fn strangers_make_no_series(world: World) {
    let (face, watched) = (Face::of(&world), watched(&world));
    for name in 0..200 {
        face.get(&format!("/v1/tenants/t{name}/instances/i{name}")).await.is(404);
        face.raw("GET", &format!("/x{name}?{name}"), &[], Body::empty()).await.is(404);
    }
    face.raw("BREW", "/v1", &[], Body::empty()).await.is(405);
    let all = measured(&face.metrics, &watched).await;
    let counted = |series: &&String| series.starts_with("rhyzome_http_requests_total");
    assert_eq!(all.keys().filter(counted).count(), 3, "{all:#?}");
}

/// On one thread: what is heard is what this test says.
#[tokio::test]
async fn a_look_costs_the_same_however_much_there_is_on_sqlite() {
    a_look_costs_the_same(World::new(Engine::Sqlite).await).await;
}

#[tokio::test]
async fn a_look_costs_the_same_however_much_there_is_on_postgres() {
    a_look_costs_the_same(World::new(Engine::Postgres).await).await;
}

async fn a_look_costs_the_same(world: World) {
    world.make_image("", "tiny").await;
    for sql in xtask::crowd::statements(1, 12_000) {
        world.sql(&sql).await;
    }
    world.sql("UPDATE job SET finished_at = NULL, state = 'waiting'").await;
    statements::listen();
    let figures = world.store.figures().await.unwrap();
    let heard = statements::heard();
    assert_eq!(figures.jobs[0], ("waiting", MOST_COUNTED), "{figures:?}");
    assert_eq!(heard.len(), 7, "{heard:?}");
    for sql in heard {
        assert!(sql.contains("LIMIT"), "{sql}");
        let plan = world.plan(&sql).await;
        let bad = match &plan {
            // The table of events is kept in the order of their numbers.
            Value::Array(lines) => lines.iter().filter_map(Value::as_str).any(|line| {
                let scan = line.starts_with("SCAN job") && !line.contains("INDEX");
                scan || line.starts_with("USE TEMP B-TREE")
            }),
            plan => ["Seq Scan", "Sort"].iter().any(|word| plan.to_string().contains(word)),
        };
        assert!(!bad, "{sql}\n{plan}");
    }
}

/// Beside the API, in no document; and where it can be reached from elsewhere, for those who show its own token.
#[tokio::test]
async fn the_door_asks_for_its_own_token() {
    let world = World::new(Engine::Sqlite).await;
    Face::of(&world).get("/metrics").await.is_problem(404, "not-found");
    let metrics = Metrics::new();
    let token = Plain::new("a-token-that-is-long".to_owned());
    let ask = async |token: Option<&Plain>, shown: &str, path: &str| {
        let metrics = metrics.clone();
        let router = metrics_router(token, Arc::new(move || metrics.text()));
        let request = Request::builder().uri(path).header("authorization", shown);
        let answer = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let media = answer.headers().get("content-type").map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), media.unwrap_or_default())
    };
    let good = (200, MEDIA.to_owned());
    assert_eq!(ask(None, "", "/metrics").await, good);
    assert_eq!(ask(Some(&token), "Bearer a-token-that-is-long", "/metrics").await, good);
    for wrong in ["", "Bearer ", "Bearer another-token-as-long", "Basic a-token-that-is-long"] {
        assert_eq!(ask(Some(&token), wrong, "/metrics").await.0, 401, "{wrong}");
    }
    assert_eq!(ask(None, "", "/v1").await.0, 404);
}
