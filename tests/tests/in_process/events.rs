//! The log's readers: streams that miss nothing, the audit, denials. On both databases.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use axum::body::BodyDataStream;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use rhyzome_api::auth::{Authenticator, OperatorToken, RequestDetails, Verdict};
use rhyzome_api::kernel::Caller;
use rhyzome_api::log::{self, LogDuty};
use rhyzome_api::store::{Denial, Keep, LogLease, Store, TAIL_ENTRIES};
use rhyzome_api::{environment, resources};
use rhyzome_tests::face::{Face, TOKEN};
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::log::TestSeal;

/// The same test on both.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::$name(super::World::new(super::Engine::Sqlite).await).await;
        })* }
        mod postgres { $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::$name(super::World::new(super::Engine::Postgres).await).await;
        })* }
    };
}

on_both!(
    who_comes_back_misses_nothing_and_sees_nothing_twice,
    a_thousand_readers_read_the_database_as_often_as_one,
    who_is_far_behind_reads_pages,
    a_stream_is_of_one_tenant_and_of_what_is_asked_for,
    the_audit_is_paged_and_filtered,
    denials_are_kept_and_strangers_counted,
);

/// A leader, as a server runs it, until the guard is dropped.
fn leader(world: &World) -> tokio_util::sync::DropGuard {
    let stop = CancellationToken::new();
    let duty = LogDuty {
        server: "one".into(),
        alone: false,
        seal: Arc::new(TestSeal("ours")),
        keep: Keep::default(),
    };
    tokio::spawn(log::run(world.store.clone(), duty, stop.clone()));
    stop.drop_guard()
}

async fn lead(world: &World) -> LogLease {
    world.store.lead_log("one", false).await.unwrap().unwrap()
}

async fn append_all(world: &World, lease: &LogLease) -> u64 {
    let mut batches = 0;
    while world.store.append_log(lease).await.unwrap().unwrap() > 0 {
        batches += 1;
    }
    batches
}

/// The events of a stream, as they come.
struct Lines(BodyDataStream, String);

impl Lines {
    async fn open(face: &Face, path: &str, headers: &[(&str, &str)]) -> Lines {
        Lines(face.stream(path, headers).await, String::new())
    }

    /// The next event: number, class, data. `None` at the end of the stream.
    async fn next(&mut self) -> Option<(i64, String, Value)> {
        loop {
            if let Some((block, rest)) = self.1.split_once("\n\n") {
                let field = |name: &str| {
                    let mut found =
                        block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    found.next().unwrap_or_default().to_owned()
                };
                let (id, class, data) = (field("id"), field("event"), field("data"));
                self.1 = rest.to_owned();
                if !data.is_empty() {
                    return Some((id.parse().unwrap(), class, serde_json::from_str(&data).unwrap()));
                }
                continue;
            }
            let bytes = self.0.next().await?.unwrap();
            self.1.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    async fn all(mut self) -> Vec<(i64, String, Value)> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

async fn who_comes_back_misses_nothing_and_sees_nothing_twice(world: World) {
    let _leader = leader(&world);
    let face = Face::of(&world);
    let writer = {
        let world = world.clone();
        tokio::spawn(async move {
            for number in 0..40 {
                world.make("default", "network", &format!("n{number}"), json!({})).await;
            }
            world.make("default", "network", "the-last", json!({})).await;
        })
    };
    let mut seen = Vec::new();
    let mut last = 0;
    'reading: for taken in (1..).map(|round| 1 + round % 7) {
        // Each time the connection breaks after a few, and the client says what it saw last.
        let id = last.to_string();
        let mut lines = Lines::open(&face, "/v1/events?since=3", &[("last-event-id", &id)]).await;
        for _ in 0..taken {
            let (seq, _, data) = lines.next().await.expect("the stream goes on");
            assert_eq!(data["seq"], seq);
            seen.push(seq);
            last = seq;
            if data["name"] == "the-last" {
                break 'reading;
            }
        }
    }
    writer.await.unwrap();
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
    let log = world.store.log_after(0, 100_000).await.unwrap();
    let made = log.iter().filter(|event| event.kind == "network" && event.verb == "create").count();
    assert_eq!(made, 41);
}

async fn a_thousand_readers_read_the_database_as_often_as_one(world: World) {
    let lease = lead(&world).await;
    append_all(&world, &lease).await;
    // The servers meet in the database: the readers are at another one.
    let url = world.db.parse().unwrap();
    let other = Store::open(&url, environment::system_env(), resources::registry()).await.unwrap();
    for readers in [1, 1000] {
        let from = world.store.log_head().await.unwrap().seq;
        // The tail is at the present end.
        until("the tail has come so far", 60, async || {
            let at = other.read_log(None).await.unwrap().at();
            (at == from).then_some(())
        })
        .await;
        let (before, begun) = (other.log_reads(), Instant::now());
        let mut tasks = Vec::new();
        for _ in 0..readers {
            let mut reader = other.read_log(Some(from)).await.unwrap();
            tasks.push(tokio::spawn(async move {
                let mut seen = Vec::new();
                while seen.len() < 20 {
                    seen.extend(reader.more().await.unwrap().iter().map(|event| event.seq));
                }
                seen
            }));
        }
        let mut batches = 0;
        for number in 0..20 {
            world
                .make("default", "ssh-key", &format!("k{readers}-{number}"), json!({ "public_key": KEY }))
                .await;
            batches += append_all(&world, &lease).await;
        }
        for task in tasks {
            assert_eq!(task.await.unwrap()[..20], (from + 1..=from + 20).collect::<Vec<_>>());
        }
        let reads = other.log_reads();
        assert_eq!(reads.catch_ups, before.catch_ups, "{readers} readers: none reads by itself");
        let net = begun.elapsed().as_secs() + 3;
        let follows = reads.follows - before.follows;
        println!("{readers} readers, {batches} batches: {follows} reads");
        assert!(follows <= 2 * batches + net, "{readers} readers: {follows} reads for {batches} batches");
    }
}

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

async fn who_is_far_behind_reads_pages(world: World) {
    let lease = lead(&world).await;
    append_all(&world, &lease).await;
    let from = world.store.log_head().await.unwrap().seq;
    let mut slow = world.store.read_log(None).await.unwrap();
    let mut fast = world.store.read_log(None).await.unwrap();
    let many = TAIL_ENTRIES + 1000;
    let denial = Denial { actor: "somebody".into(), verb: "get".into(), ..Denial::default() };
    let mut noted = 0;
    while noted < many {
        for _ in 0..2000.min(many - noted) {
            world.store.note_denial(denial.clone());
            noted += 1;
        }
        world.store.flush_denials().await.unwrap();
        append_all(&world, &lease).await;
    }
    let last = from + many as i64;
    let mut seen = 0;
    while seen < many {
        seen += fast.more().await.unwrap().len();
    }
    assert_eq!(fast.at(), last);
    let mut seen = Vec::new();
    while seen.len() < many {
        seen.extend(slow.more().await.unwrap().iter().map(|event| event.seq));
    }
    assert_eq!(seen, (from + 1..=last).collect::<Vec<_>>());
    assert!(world.store.log_reads().catch_ups > 0, "it was out of what is kept in memory");
    assert_eq!(slow.now().await.unwrap().map(|more| more.len()), None);
}

async fn a_stream_is_of_one_tenant_and_of_what_is_asked_for(world: World) {
    let lease = lead(&world).await;
    let face = Face::of(&world);
    world.make("", "tenant", "other", json!({})).await;
    let id = world.make("default", "network", "mine", json!({})).await.object.core.id;
    world.make("default", "ssh-key", "key", json!({ "public_key": KEY })).await;
    world.make("other", "network", "theirs", json!({})).await;
    append_all(&world, &lease).await;
    let read = async |query: &str| {
        let path = format!("/v1{query}");
        Lines::open(&face, &path, &[]).await.all().await
    };
    let names = |all: Vec<(i64, String, Value)>| {
        all.into_iter().map(|(_, _, data)| data["name"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let mine = read("/tenants/default/events?since=0&follow=false").await;
    assert!(mine.iter().all(|(.., data)| data["tenant"] == "default"), "{mine:?}");
    assert!(mine.iter().all(|(.., data)| data.get("source").is_none()), "that is told by the audit");
    assert_eq!(names(mine), BTreeSet::from(["mine".to_owned(), "key".to_owned()]));
    let theirs = names(read("/tenants/other/events?since=0&follow=false").await);
    assert_eq!(theirs, BTreeSet::from(["theirs".to_owned()]));
    let one = read(&format!("/events?since=0&follow=false&resource={id}&class=write&kind=network")).await;
    assert_eq!((one.len(), one[0].1.as_str()), (1, "write"));
    let head = world.store.log_head().await.unwrap().seq;
    let last = read("/events?since=-2&follow=false").await;
    assert_eq!(last.iter().map(|(seq, ..)| *seq).collect::<Vec<_>>(), [head - 1, head]);
    let all = read("/events?since=2020-01-01T00:00:00Z&follow=false").await;
    assert_eq!(all.len() as i64, head);
    assert!(read("/events?follow=false").await.is_empty(), "from now on, to now");
    assert!(read("/events?since=2099-01-01T00:00:00Z&follow=false").await.is_empty());

    face.get("/v1/events?since=yesterday").await.is_problem(400, "malformed");
    face.get("/v1/events?follow=perhaps").await.is_problem(400, "malformed");
    face.get("/v1/events?colour=red").await.is_problem(400, "malformed");
    face.get("/v1/tenants/nobody/events").await.is_problem(404, "not-found");
    // What is not kept any more is not passed over in silence.
    world.store.seal_log(&lease, Arc::new(TestSeal("ours"))).await.unwrap();
    world.make("default", "network", "later", json!({})).await;
    append_all(&world, &lease).await;
    let keep = Keep { entries: Some(1), seconds: None };
    assert_eq!(world.store.prune_log(&lease, keep).await.unwrap(), Some(head + 1));
    let gone = face.get("/v1/events?since=0").await.is_problem(410, "gone");
    assert_eq!(gone.json["first"], head + 1);
    assert!(!read(&format!("/events?since={head}&follow=false")).await.is_empty());
    assert_eq!(read("/events?since=-1000&follow=false").await[0].0, head + 1, "as far back as there is");
}

async fn the_audit_is_paged_and_filtered(world: World) {
    let lease = lead(&world).await;
    let face = Face::of(&world);
    world.make("", "tenant", "other", json!({})).await;
    world.make("other", "network", "theirs", json!({})).await;
    let why = [("rhyzome-reason", "because")];
    let body = json!({ "name": "mine", "spec": {} });
    let made = face.with("POST", "/v1/tenants/default/networks", &why, body).await;
    let id = made.json["id"].as_str().unwrap().to_owned();
    append_all(&world, &lease).await;
    let items = async |query: &str| {
        let reply = face.get(&format!("/v1{query}")).await.is(200);
        reply.json["items"].as_array().unwrap().clone()
    };
    let all = items("/audit?limit=1000").await;
    let numbers: Vec<_> = all.iter().map(|entry| entry["seq"].as_i64().unwrap()).collect();
    assert!(numbers.is_sorted_by(|a, b| a > b), "the newest first: {numbers:?}");
    assert!(all.iter().all(|entry| entry["class"] != "phase" && entry["class"] != "job"));
    let entry = &items(&format!("/tenants/default/audit?resource={id}")).await[0];
    assert_eq!((&entry["actor"], &entry["credential"]), (&json!("operator"), &json!("operator-token")));
    assert_eq!((&entry["detail"], &entry["verb"]), (&json!("because"), &json!("create")));
    assert_eq!(entry["request_id"], made.header("x-request-id"));
    let mine = items("/tenants/default/audit").await;
    assert!(!mine.is_empty() && mine.iter().all(|entry| entry["tenant"] == "default"));
    for (filter, at_least) in [
        ("actor=operator", 1),
        ("actor=system", 5),
        ("kind=network", 2),
        ("verb=create", 5),
        ("kind=network&actor=system", 1),
        ("since=2020-01-01T00:00:00Z&until=2099-01-01T00:00:00Z", all.len()),
    ] {
        assert!(items(&format!("/audit?{filter}")).await.len() >= at_least, "{filter}");
    }
    for nothing in
        ["actor=nobody", "until=2020-01-01T00:00:00Z", "since=2099-01-01T00:00:00Z", "outcome=denied"]
    {
        assert!(items(&format!("/audit?{nothing}")).await.is_empty(), "{nothing}");
    }
    let mut paged = Vec::new();
    let mut path = "/v1/audit?limit=2".to_owned();
    loop {
        let page = face.get(&path).await.is(200);
        paged.extend(page.json["items"].as_array().unwrap().clone());
        let Some(next) = page.json["next"].as_str() else { break };
        path = format!("/v1/audit?limit=2&page={next}");
    }
    assert_eq!(paged, all);
    face.get("/v1/audit?since=yesterday").await.is_problem(400, "malformed");
}

/// Knows a guest who may do nothing, and one whose credential is not good any more.
struct Guests;

impl Authenticator for Guests {
    fn authenticate<'a>(&'a self, header: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
        let guest = Caller { name: "guest".into(), credential: "guest-token".into(), ..Caller::default() };
        let verdict = match header {
            Some("Bearer guest") => Verdict::Caller(guest),
            Some("Bearer old") => Verdict::RefusedKnown(guest, "it has expired".into()),
            _ => Verdict::NotMine,
        };
        Box::pin(std::future::ready(verdict))
    }
}

async fn denials_are_kept_and_strangers_counted(world: World) {
    let lease = lead(&world).await;
    let face = Face::letting_in(&world, vec![Arc::new(OperatorToken::new(TOKEN)), Arc::new(Guests)]);
    let id = world.make("default", "network", "mine", json!({})).await.object.core.id;
    let ask = async |who: &str, path: &str| face.raw("GET", path, &[("authorization", who)], "").await;
    let path = format!("/v1/tenants/default/networks/{id}");
    let there = ask("Bearer guest", &path).await.is_problem(404, "not-found");
    let not = ask("Bearer guest", "/v1/tenants/default/networks/none").await.is_problem(404, "not-found");
    let told = |reply: &rhyzome_tests::face::Reply| {
        let mut json = reply.json.clone();
        json["request_id"] = Value::Null;
        json
    };
    assert_eq!(told(&there), told(&not), "the answer does not tell");
    ask("Bearer old", &path).await.is_problem(401, "unauthenticated");
    for _ in 0..30 {
        ask("Bearer wrong", &path).await.is_problem(401, "unauthenticated");
    }
    // What an operator does not find is no denial.
    face.get("/v1/tenants/default/networks/none").await.is_problem(404, "not-found");
    world.store.flush_denials().await.unwrap();
    append_all(&world, &lease).await;
    let all = face.get("/v1/audit?outcome=denied").await.is(200).json["items"].as_array().unwrap().clone();
    let said: Vec<_> = all
        .iter()
        .map(|entry| {
            let text = |key: &str| entry[key].as_str().unwrap().to_owned();
            (text("class"), text("actor"), text("verb"), text("kind"))
        })
        .collect();
    let entry = |class: &str, actor: &str, verb: &str, kind: &str| {
        (class.to_owned(), actor.to_owned(), verb.to_owned(), kind.to_owned())
    };
    assert_eq!(
        said.iter().filter(|one| **one == entry("denied", "guest", "get", "network")).count(),
        2,
        "{said:?}"
    );
    assert!(said.contains(&entry("denied", "guest", "authenticate", "")), "{said:?}");
    let strangers: Vec<_> = all.iter().filter(|entry| entry["class"] == "anonymous").collect();
    assert_eq!(strangers.len(), 1, "thirty are one entry");
    assert!(strangers[0]["detail"].as_str().unwrap().starts_with("30 times from "), "{:?}", strangers[0]);
    assert_eq!(all.len(), 4, "{said:?}");
    let denied = all.iter().find(|entry| entry["verb"] == "get").unwrap();
    assert_eq!((&denied["tenant"], &denied["credential"]), (&json!("default"), &json!("guest-token")));
    assert!(denied["detail"].as_str().unwrap().starts_with("GET /v1/tenants/default/networks/"));
    // However many sources there are, the memory for them has an end.
    for number in 0..5000 {
        world.store.note_stranger(&format!("192.0.2.{number}"));
    }
    world.store.flush_denials().await.unwrap();
    append_all(&world, &lease).await;
    let sources = world.store.log_after(0, 100_000).await.unwrap();
    let counted: Vec<_> = sources.iter().filter(|event| event.class == "anonymous").skip(1).collect();
    assert_eq!(counted.len(), 1025);
    assert!(counted.iter().any(|e| e.source == "elsewhere" && e.detail.starts_with("3976 times")));
}
