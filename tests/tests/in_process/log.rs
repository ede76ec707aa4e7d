//! The event log on both databases: nothing missed, nothing twice, and whatever is tampered with is named.

use std::collections::BTreeSet;
use std::sync::Arc;

use rhyzome_api::jobs;
use rhyzome_api::kernel::Caller;
use rhyzome_api::store::{Asked, Event, Keep, LogLease, NewObject, Proof, Seal};
use rhyzome_tests::world::{Engine, World};
use serde_json::json;
use tokio_util::sync::CancellationToken;

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
    nothing_is_missed_and_nothing_is_taken_twice,
    who_wakes_up_late_writes_nothing,
    what_is_tampered_with_is_named,
    a_log_written_anew_is_not_signed,
    what_is_not_kept_leaves_a_log_that_is_proven,
    every_write_says_who_and_what,
    what_is_erased_leaves_a_log_that_is_proven,
);

/// A key that a test can read.
pub struct TestSeal(pub &'static str);

impl Seal for TestSeal {
    fn key(&self) -> String {
        self.0.to_owned()
    }

    fn sign(&self, message: &[u8]) -> String {
        rhyzome_pki::sha256_hex(&[self.0.as_bytes(), message].concat())
    }

    fn is_ours(&self, message: &[u8], signature: &str) -> bool {
        self.sign(message) == signature
    }
}

const SEAL: TestSeal = TestSeal("ours");

async fn lead(world: &World) -> LogLease {
    world.store.lead_log("one", false).await.unwrap().expect("nobody else leads")
}

async fn append_all(world: &World, lease: &LogLease) {
    while world.store.append_log(lease).await.unwrap().expect("the lease is good") > 0 {}
}

async fn whole_log(world: &World) -> Vec<Event> {
    world.store.log_after(0, 100_000).await.unwrap()
}

async fn prove(world: &World) -> Proof {
    world.store.prove_log(&SEAL).await.unwrap()
}

async fn nothing_is_missed_and_nothing_is_taken_twice(world: World) {
    let lease = lead(&world).await;
    append_all(&world, &lease).await;
    let before = whole_log(&world).await.len();
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let world = world.clone();
            tokio::spawn(async move {
                let mut made = Vec::new();
                for number in 0..4 {
                    let name = format!("n{writer}-{number}");
                    let cidr = format!("10.{writer}.{number}.0/24");
                    let id =
                        world.make("default", "network", &name, json!({ "cidr": cidr })).await.object.core.id;
                    let patch = json!({ "tags": { "a": "b" } });
                    let (right, kind) = (world.right("default"), world.kind("network"));
                    world.store.update(&right, kind, &id, patch, None, &Asked::default()).await.unwrap();
                    world.store.remove(&right, kind, &id, None, &Asked::default()).await.unwrap();
                    made.push(id);
                }
                made
            })
        })
        .collect();
    // Two append at once while others write.
    let appenders: Vec<_> = (0..2)
        .map(|_| {
            let (world, lease) = (world.clone(), lease.clone());
            tokio::spawn(async move {
                for _ in 0..40 {
                    world.store.append_log(&lease).await.unwrap();
                }
            })
        })
        .collect();
    let mut made = BTreeSet::new();
    for writer in writers {
        made.extend(writer.await.unwrap());
    }
    for appender in appenders {
        appender.await.unwrap();
    }
    append_all(&world, &lease).await;
    let log = whole_log(&world).await;
    assert_eq!(
        log.iter().map(|event| event.seq).collect::<Vec<_>>(),
        (1..=log.len() as i64).collect::<Vec<_>>()
    );
    for id in &made {
        let of: Vec<_> = log
            .iter()
            .filter(|e| e.resource == *id && e.class == "write")
            .map(|e| (e.version, e.verb.as_str()))
            .collect();
        assert_eq!(of, [(1, "create"), (2, "update"), (3, "remove")], "{id}, in the order of its commits");
    }
    let writes = log[before..].iter().filter(|event| event.class == "write").count();
    assert_eq!((made.len(), writes), (64, 192));
    let proof = prove(&world).await;
    assert_eq!((proof.faults.len(), proof.last), (0, log.len() as i64), "{:?}", proof.faults);
}

async fn who_wakes_up_late_writes_nothing(world: World) {
    let late = lead(&world).await;
    assert_eq!(world.store.lead_log("two", false).await.unwrap(), None, "one leads");
    assert_eq!(lead(&world).await, late, "renewing raises nothing");
    world.store.leave_log(&late).await.unwrap();
    let two = world.store.lead_log("two", false).await.unwrap().unwrap();
    assert!(two.epoch > late.epoch);
    assert_eq!(world.store.append_log(&late).await.unwrap(), None);
    assert_eq!(world.store.seal_log(&late, Arc::new(SEAL)).await.unwrap(), None);
    assert_eq!(world.store.prune_log(&late, Keep { entries: Some(1), seconds: None }).await.unwrap(), None);
    assert_eq!(whole_log(&world).await, []);
    append_all(&world, &two).await;
    assert!(!whole_log(&world).await.is_empty());
    // The only process on a database needs to wait for nobody.
    let again = world.store.lead_log("three", true).await.unwrap().unwrap();
    assert_eq!(world.store.append_log(&two).await.unwrap(), None);
    assert!(again.epoch > two.epoch);
}

/// Some entries, signed.
async fn filled(world: &World) -> i64 {
    let lease = lead(world).await;
    for number in 0..5 {
        world.make("default", "network", &format!("n{number}"), json!({})).await;
    }
    append_all(world, &lease).await;
    world.store.seal_log(&lease, Arc::new(SEAL)).await.unwrap();
    let last = world.store.log_head().await.unwrap().seq;
    assert!(last > 8);
    last
}

async fn what_is_tampered_with_is_named(world: World) {
    let last = filled(&world).await;
    let proof = prove(&world).await;
    assert_eq!((proof.faults.len(), proof.checkpoints, proof.unsigned), (0, 1, 0), "{:?}", proof.faults);
    let columns = [
        "at",
        "class",
        "tenant",
        "kind",
        "resource",
        "name",
        "verb",
        "outcome",
        "phase",
        "version",
        "job",
        "actor",
        "credential",
        "source",
        "request_id",
        "detail",
        "recorded_at",
        "audited",
    ];
    let mut cases: Vec<(Vec<String>, Vec<String>, &str)> = Vec::new();
    for column in columns {
        let number = matches!(column, "at" | "version" | "recorded_at" | "audited");
        let flipped = if number { format!("1 - {column}") } else { format!("{column} || 'x'") };
        let forth = format!("UPDATE event_log SET {column} = {flipped} WHERE seq = 4");
        let back = if number {
            forth.clone()
        } else {
            format!("UPDATE event_log SET {column} = substr({column}, 1, length({column}) - 1) WHERE seq = 4")
        };
        cases.push((vec![forth], vec![back], "entry 4 "));
    }
    let swap = [
        "UPDATE event_log SET seq = -1 WHERE seq = 3",
        "UPDATE event_log SET seq = 3 WHERE seq = 6",
        "UPDATE event_log SET seq = 6 WHERE seq = -1",
    ]
    .map(str::to_owned)
    .to_vec();
    cases.push((swap.clone(), swap, "entry 3 "));
    for (seq, said) in [(1, "entry 1 is missing"), (5, "entry 5 is missing"), (last, "missing")] {
        let away = format!("UPDATE event_log SET seq = -{seq} WHERE seq = {seq}");
        let back = format!("UPDATE event_log SET seq = {seq} WHERE seq = -{seq}");
        cases.push((vec![away], vec![back], said));
    }
    for (forth, back, said) in cases {
        for sql in &forth {
            world.sql(sql).await;
        }
        let faults = prove(&world).await.faults;
        assert!(faults.iter().any(|fault| fault.contains(said)), "{forth:?}: {faults:?}");
        for sql in &back {
            world.sql(sql).await;
        }
        let proof = prove(&world).await;
        assert_eq!(proof.faults, Vec::<String>::new(), "{back:?}");
    }
}

/// Whoever holds the database, but not the key, can make a chain that hangs together. The signature tells.
async fn a_log_written_anew_is_not_signed(world: World) {
    let last = filled(&world).await;
    // The end is cut off, and the head with it.
    world.sql(&format!("DELETE FROM event_log WHERE seq = {last}")).await;
    let head = format!("(SELECT hash FROM event_log WHERE seq = {})", last - 1);
    world.sql(&format!("UPDATE log_head SET seq = {}, hash = {head}", last - 1)).await;
    let faults = prove(&world).await.faults;
    assert!(faults[0].contains(&format!("entry {last} was signed: its end is cut off")), "{faults:?}");
    let lease = lead(&world).await;
    world.make("default", "network", "another", json!({})).await;
    append_all(&world, &lease).await;
    let faults = prove(&world).await.faults;
    assert!(faults[0].contains(&format!("entry {last} is not the one that was signed")), "{faults:?}");
    // Signed by somebody else.
    world.sql("UPDATE log_checkpoint SET key = 'theirs'").await;
    let faults = prove(&world).await.faults;
    assert!(faults[0].contains(&format!("checkpoint {last} is not signed by our key")), "{faults:?}");
}

async fn what_is_not_kept_leaves_a_log_that_is_proven(world: World) {
    let last = filled(&world).await;
    let lease = lead(&world).await;
    let all = Keep { entries: Some(last), seconds: Some(3600) };
    assert_eq!(world.store.prune_log(&lease, all).await.unwrap(), Some(1), "all of it is to be kept");
    world.make("default", "network", "later", json!({})).await;
    append_all(&world, &lease).await;
    let few = Keep { entries: Some(1), seconds: None };
    assert_eq!(world.store.prune_log(&lease, few).await.unwrap(), Some(last + 1), "up to the checkpoint");
    assert_eq!(whole_log(&world).await[0].seq, last + 1);
    let proof = prove(&world).await;
    assert_eq!((proof.faults, proof.first), (vec![], last + 1));
    append_all(&world, &lease).await;
    assert!(whole_log(&world).await.iter().any(|event| event.verb == "prune"), "the log tells of it");
    assert_eq!(prove(&world).await.faults, Vec::<String>::new());
    // By age, as far as it is signed.
    world.store.seal_log(&lease, Arc::new(SEAL)).await.unwrap();
    let signed = world.store.log_head().await.unwrap().seq;
    let old = Keep { entries: None, seconds: Some(-1) };
    assert_eq!(world.store.prune_log(&lease, old).await.unwrap(), Some(signed + 1));
    append_all(&world, &lease).await;
    assert_eq!(prove(&world).await.faults, Vec::<String>::new());
    // More than the log tells of.
    world.store.seal_log(&lease, Arc::new(SEAL)).await.unwrap();
    let signed = world.store.log_head().await.unwrap();
    world.make("default", "network", "last", json!({})).await;
    append_all(&world, &lease).await;
    world.sql(&format!("DELETE FROM event_log WHERE seq <= {}", signed.seq)).await;
    world.sql(&format!("UPDATE log_head SET first = {}", signed.seq + 1)).await;
    let faults = prove(&world).await.faults;
    assert_eq!(
        faults,
        [format!("entries up to {} were taken out, and the log does not tell of it", signed.seq)]
    );
}

async fn what_is_erased_leaves_a_log_that_is_proven(world: World) {
    filled(&world).await;
    let lease = lead(&world).await;
    let anna = Caller::operator("anna", "hers").may("", "", "default").unwrap();
    let asked = Asked { source: "192.0.2.9".into(), ..Asked::default() };
    let body = || NewObject { spec: json!({}), ..NewObject::default() };
    for _ in 0..2 {
        world.store.create(&anna, world.kind("network"), body(), &asked).await.unwrap();
    }
    append_all(&world, &lease).await;
    let hers = whole_log(&world).await.iter().filter(|event| event.actor == "anna").count();
    assert!(hers >= 2);
    assert_eq!(world.store.erase_log("anna").await.unwrap(), hers as u64);
    assert_eq!(prove(&world).await.faults, Vec::<String>::new());
    append_all(&world, &lease).await;
    let log = whole_log(&world).await;
    assert!(!format!("{log:?}").contains("anna") && !format!("{log:?}").contains("192.0.2.9"));
    let proof = prove(&world).await;
    assert_eq!((proof.faults, proof.erased), (vec![], hers as i64));
    world.sql("UPDATE event_log SET erased = 1, actor = '' WHERE seq = 2").await;
    let faults = prove(&world).await.faults;
    assert_eq!(faults, [format!("{} entries are empty, and the log tells of {hers} only", hers + 1)]);
}

async fn every_write_says_who_and_what(world: World) {
    let lease = lead(&world).await;
    let node = world.make_node("n1", 1 << 40).await;
    world.make_image("", "tiny").await;
    append_all(&world, &lease).await;
    let from = whole_log(&world).await;
    let node_verbs: Vec<_> =
        from.iter().filter(|e| e.resource == node && e.class == "write").map(|e| e.verb.as_str()).collect();
    assert_eq!(node_verbs, ["create", "invite", "join"]);
    assert!(from.iter().any(|e| e.kind == "image" && e.verb == "upload"));
    let phases: Vec<_> =
        from.iter().filter(|e| e.resource == node && e.class == "phase").map(|e| e.phase.as_str()).collect();
    assert!(!phases.is_empty(), "a node that connects comes into another phase");
    let asked =
        Asked { request_id: "req-7".into(), reason: Some("because".into()), source: "192.0.2.7".into() };
    let body = NewObject { name: Some("web".into()), spec: json!({"image": "tiny"}), ..NewObject::default() };
    let right = world.right("default");
    let made = world.store.create(&right, world.kind("instance"), body, &asked).await.unwrap();
    world.obey(&node, 0).await;
    let job = made.job.unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(jobs::run(world.store.clone(), stop.clone()));
    rhyzome_tests::wait::until("the job is done", 60, async || {
        (world.store.job(&right, &job).await.unwrap().state == "done").then_some(())
    })
    .await;
    stop.cancel();
    append_all(&world, &lease).await;
    let log = world.store.log_after(from.len() as i64, 1000).await.unwrap();
    let of: Vec<_> = log.iter().filter(|e| e.resource == made.object.core.id).collect();
    let said: Vec<_> = of.iter().map(|e| (e.class.as_str(), e.verb.as_str(), e.outcome.as_str())).collect();
    assert_eq!(said[0], ("write", "create", "accepted"));
    assert!(said.contains(&("job", "create", "done")), "{said:?}");
    for event in &of {
        assert_eq!((event.actor.as_str(), event.source.as_str()), ("system", "192.0.2.7"), "{event:?}");
        assert_eq!((event.request_id.as_str(), event.job.as_str()), ("req-7", job.as_str()), "{event:?}");
        assert_eq!((event.tenant.as_str(), event.name.as_str()), ("default", "web"));
    }
    assert_eq!(of[0].detail, "because");
    let now = world.store.get(&right, world.kind("instance"), "web").await.unwrap().core.phase;
    let last = of.iter().rfind(|event| event.class == "phase").unwrap();
    assert_eq!(last.phase, now, "{of:?}");
}
