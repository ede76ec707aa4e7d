//! A few seeds of the simulation: `cargo xtask sim --seeds N` runs as many as one likes.

use std::collections::BTreeSet;

use rhyzome_api::kernel::Error;
use rhyzome_api::store::{Asked, NewObject};
use rhyzome_tests::life::{Ask, Run};
use rhyzome_tests::sim::run;
use rhyzome_tests::world::Engine;
use serde_json::json;

const STEPS: u32 = 300;
/// What goes wrong: everything does in so many seeds.
const KINDS_OF_FAULTS: usize = 18;

#[test]
fn twenty_seeds_end_well() {
    let mut faults = BTreeSet::new();
    for seed in 1..=20 {
        let story = run(Engine::Sqlite, seed, STEPS);
        faults.extend(story.faults.into_keys());
        assert!(story.found.is_empty(), "seed {seed}: {:#?}\n{:#?}", story.found, story.last);
    }
    assert_eq!(faults.len(), KINDS_OF_FAULTS, "{faults:?}");
}

#[test]
fn the_same_seed_does_the_same() {
    let [one, two, other] = [7, 7, 8].map(|seed| run(Engine::Sqlite, seed, STEPS));
    assert_eq!(one.trace, two.trace, "{:#?}\n{:#?}", one.last, two.last);
    assert_ne!(one.trace, other.trace);
}

/// On the other database too.
#[test]
fn a_few_seeds_end_well_on_postgres() {
    for seed in 1..=3 {
        let story = run(Engine::Postgres, seed, STEPS);
        assert!(story.found.is_empty(), "seed {seed}: {:#?}\n{:#?}", story.found, story.last);
    }
}

/// What a full disk refused is obeyed when it has room again, though later orders came in between.
#[tokio::test]
async fn a_disk_that_was_full_has_lost_no_order() {
    let kind = rhyzome_api::resources::registry().get("instance").unwrap();
    let mut run = Run::new(Engine::Sqlite, kind).await;
    let make = |name: &str| Ask::Make("instance", name.to_owned(), json!({"image": "tiny"}));
    run.nodes[0].fill();
    run.ask(&make("one")).await;
    let store = run.store.clone();
    rhyzome_tests::drive::calm(&store, &mut run.nodes).await.unwrap();
    assert!(run.nodes[0].orders().is_empty(), "the disk was not full");
    run.nodes[0].relieve();
    run.ask(&make("two")).await;
    run.quiet().await;
    let ended =
        run.world.ask("SELECT resource_name, state FROM job WHERE kind = 'instance' ORDER BY id").await;
    assert_eq!(ended, [["one", "done"], ["two", "done"]]);
}

/// A server that is cut off from its database answers so to reads and writes, does nothing, and goes on afterwards.
#[tokio::test]
async fn a_server_cut_off_from_its_database_goes_on_afterwards() {
    let kind = rhyzome_api::resources::registry().get("disk").unwrap();
    let run = Run::new(Engine::Sqlite, kind).await;
    let right = run.world.right("default");
    let body =
        NewObject { name: Some("one".into()), spec: json!({"size_bytes": 1 << 30}), ..NewObject::default() };
    run.strikes.cut_off(2);
    let written = run.store.create(&right, kind, body.clone(), &Asked::default()).await.map(drop);
    assert!(matches!(written, Err(Error::Unavailable(_))), "{written:?}");
    let read = run.store.get(&right, kind, "one").await.map(drop);
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    let read = run.store.get(&right, kind, "one").await.map(drop);
    assert!(matches!(read, Err(Error::NotFound)), "{read:?}");
    run.store.create(&right, kind, body, &Asked::default()).await.unwrap();
    assert!(run.id("disk", "one").await.is_some());
}
