//! `Idempotency-Key`, where it is hard: at once, while waiting, after a crash, after a day. On both databases.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use rhyzome_api::jobs;
use rhyzome_api::kernel::env::{Clock, Random};
use rhyzome_api::kernel::{Env, Timestamp};
use rhyzome_api::store::NodeReport;
use rhyzome_tests::face::Face;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const DISKS: &str = "/v1/tenants/default/disks";
const INSTANCES: &str = "/v1/tenants/default/instances";
const KEY: (&str, &str) = ("idempotency-key", "the-key");

/// A clock that a test moves, and numbers that nobody foresees but this file.
struct Moved(AtomicI64, AtomicU64);

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

impl Random for Moved {
    fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes {
            // Weyl's sequence through a mixer: enough to keep names and addresses apart.
            let mut x = self.1.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *byte = (x >> 32) as u8;
        }
    }
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::$name(super::Engine::Sqlite).await;
        })* }
        mod postgres { $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::$name(super::Engine::Postgres).await;
        })* }
    };
}

on_both!(
    of_many_at_once_one_is_done,
    whoever_breaks_off_finds_it_done_once_or_not_at_all,
    whoever_waits_and_asks_again_gets_the_same_end,
    after_a_day_a_key_is_forgotten,
);

async fn names(face: &Face, list: &str) -> Vec<String> {
    let page = face.get(&format!("{list}?limit=1000")).await.is(200);
    page.json["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .collect()
}

async fn of_many_at_once_one_is_done(engine: Engine) {
    let world = World::new(engine).await;
    let face = Arc::new(Face::of(&world));
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let face = face.clone();
            tokio::spawn(async move {
                // No name: if it were done twice, nothing else would stop it.
                face.with("POST", DISKS, &[KEY], json!({ "spec": { "size_bytes": 1 << 30 } })).await.is(201)
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    assert_eq!(names(&face, DISKS).await.len(), 1);
    assert!(answers.iter().all(|answer| answer.bytes == answers[0].bytes));
    let first = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_empty()).count();
    assert_eq!(first, 1, "one did it, the others were told");
}

async fn whoever_breaks_off_finds_it_done_once_or_not_at_all(engine: Engine) {
    let world = World::new(engine).await;
    let face = Arc::new(Face::of(&world));
    for round in 0..40 {
        let name = format!("disk{round}");
        let body = json!({ "name": name, "spec": { "size_bytes": 1 << 30 } });
        let key = [("idempotency-key", name.as_str())];
        let (other, told) = (face.clone(), body.clone());
        let owned = name.clone();
        let task = tokio::spawn(async move {
            other.with("POST", DISKS, &[("idempotency-key", owned.as_str())], told).await
        });
        // Each round breaks off a little later: before, within and after the write.
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        task.abort();
        let _ = task.await;
        let again = face.with("POST", DISKS, &key, body).await.is(201);
        assert_eq!(again.json["name"], name, "never `name-taken`, which a second try would be told");
    }
    assert_eq!(names(&face, DISKS).await.len(), 40);
}

/// Answers every order of a node with this state.
async fn answer_all(world: &World, node: &str, cursor: &mut i64, state: &str) {
    for order in world.store.assignments_after(node, *cursor, 1000).await.unwrap() {
        *cursor = order.sequence;
        let state = if order.remove { "gone" } else { state };
        let report = NodeReport {
            object_id: order.object_id,
            placement_epoch: order.placement_epoch,
            generation: order.generation,
            state: state.into(),
            message: "as the test wants it".into(),
            permanent: state == "failed",
            ..NodeReport::default()
        };
        world.store.record_report(node, report).await.unwrap();
    }
}

async fn whoever_waits_and_asks_again_gets_the_same_end(engine: Engine) {
    let world = World::new(engine).await;
    let face = Arc::new(Face::of(&world));
    let node = world.make_node("n1", 1 << 40).await;
    world.make_image("", "tiny").await;
    let stop = CancellationToken::new();
    tokio::spawn(jobs::run(world.store.clone(), stop.clone()));
    let mut cursor = 0;
    for (name, state, status) in [("good", "applied", 201), ("bad", "failed", 409)] {
        let body = json!({ "name": name, "spec": { "image": "tiny" } });
        let ask = |wait: &'static str| {
            let (face, body) = (face.clone(), body.clone());
            tokio::spawn(async move {
                let headers = [("idempotency-key", name), ("prefer", wait)];
                face.with("POST", INSTANCES, &headers, body).await
            })
        };
        // Two at once, and both wait; the node answers only now.
        let (first, second) = (ask("wait=60"), ask("wait=60"));
        until("it is ordered from the node", 60, async || {
            let there = world.store.assignments_after(&node, cursor, 1000).await.unwrap();
            there.iter().any(|order| order.kind == "instance").then_some(())
        })
        .await;
        let both = tokio::spawn(async move { (first.await.unwrap(), second.await.unwrap()) });
        until("both are answered", 30, async || {
            answer_all(&world, &node, &mut cursor, state).await;
            both.is_finished().then_some(())
        })
        .await;
        let (first, second) = both.await.unwrap();
        assert_eq!((first.status, second.status), (status, status), "{:#}", first.json);
        assert_eq!(first.bytes, second.bytes);
        // Later, and whoever does not wait: the same, also after the object has changed.
        face.call("PATCH", &format!("{INSTANCES}/{name}"), json!({ "tags": { "a": "b" } })).await.is(200);
        for wait in ["wait=1", "respond-async"] {
            let later = ask(wait).await.unwrap();
            assert_eq!((later.status, &later.bytes), (status, &first.bytes), "{:#}", later.json);
            assert_eq!(later.header("location"), first.header("location"));
            assert_eq!(later.header("preference-applied"), first.header("preference-applied"));
        }
    }
    stop.cancel();
}

async fn after_a_day_a_key_is_forgotten(engine: Engine) {
    let moved = Arc::new(Moved(AtomicI64::new(1_800_000_000_000_000), AtomicU64::new(1)));
    let world = World::with_env(engine, Env::new(moved.clone(), moved.clone())).await;
    let face = Face::of(&world);
    let make = async || {
        let body = json!({ "spec": { "size_bytes": 1 << 30 } });
        face.with("POST", DISKS, &[KEY], body).await.is(201).json["name"].clone()
    };
    let hours = |hours: i64| moved.0.fetch_add(hours * 3_600_000_000, Ordering::Relaxed);
    let first = make().await;
    hours(23);
    assert_eq!(make().await, first);
    assert_eq!(world.store.forget_old_keys().await.unwrap(), 0);
    hours(2);
    let second = make().await;
    assert_ne!(second, first, "a day has passed: it is a new request");
    assert_eq!(make().await, second);
    hours(25);
    assert_eq!(world.store.forget_old_keys().await.unwrap(), 1);
    assert_eq!(names(&face, DISKS).await.len(), 2);
}
