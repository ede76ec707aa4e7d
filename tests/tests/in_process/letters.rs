//! Dead letters: what failed for good is on a list, says what it leaves behind, and can be retried, skipped or
//! undone. The auditor looks after each.

use rhyzome_api::kernel::Error;
use rhyzome_api::store::{Asked, Job, JobQuery};
use rhyzome_tests::audit::{Wrong, audit};
use rhyzome_tests::life::{Ask, Run};
use rhyzome_tests::world::Engine;
use serde_json::json;

/// Tests on both databases, each in a world with a node.
macro_rules! on_each {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test] async fn $name() { super::$name(super::begin(super::Engine::Sqlite).await).await; })* }
        mod postgres { $(#[tokio::test] async fn $name() { super::$name(super::begin(super::Engine::Postgres).await).await; })* }
    };
}

on_each!(
    a_failed_creation_says_what_is_kept_and_is_retried,
    a_failed_creation_is_undone_by_deleting_it,
    a_failed_change_goes_back_to_what_was_applied,
    what_is_skipped_leaves_the_list,
    a_removal_stops_waiting_for_a_lost_node,
    only_what_failed,
);

async fn begin(engine: Engine) -> Run {
    Run::new(engine, rhyzome_api::resources::registry().get("instance").unwrap()).await
}

async fn dead(run: &Run) -> Vec<Job> {
    let query = JobQuery { dead: true, limit: 10, ..JobQuery::default() };
    run.store.jobs(&run.world.right("default"), &query).await.unwrap().items
}

async fn fine(run: &Run) {
    let found = audit(&run.world, &run.nodes).await;
    assert!(found.is_empty(), "{found:#?}");
}

/// An instance whose creation failed; its id.
async fn failed_creation(run: &mut Run) -> String {
    run.ask(&Ask::Make("instance", "web".into(), json!({"image": "tiny"}))).await;
    let id = run.id("instance", "web").await.unwrap();
    run.nodes[0].refuses.insert(id.clone(), "no such machine".into());
    run.quiet().await;
    run.nodes[0].refuses.clear();
    id
}

/// An instance that runs, and whose change failed; its id.
async fn failed_change(run: &mut Run) -> String {
    run.ask(&Ask::Make("instance", "web".into(), json!({"image": "tiny"}))).await;
    run.quiet().await;
    let id = run.id("instance", "web").await.unwrap();
    run.nodes[0].refuses.insert(id.clone(), "it does not fit".into());
    run.ask(&Ask::Patch("instance", "web".into(), json!({"spec": {"vcpus": 7}}))).await;
    run.quiet().await;
    run.nodes[0].refuses.clear();
    id
}

async fn state(run: &Run, job: &str) -> String {
    run.store.job(&run.world.right("default"), job).await.unwrap().state
}

async fn a_failed_creation_says_what_is_kept_and_is_retried(mut run: Run) {
    failed_creation(&mut run).await;
    let letters = dead(&run).await;
    assert_eq!(letters.len(), 1);
    let said = letters[0].left_behind.join("; ");
    for part in ["address", "mac", "room on node `n1`"] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    let right = run.world.right("default");
    let new = run.store.retry_job(&right, &letters[0].id, &Asked::default()).await.unwrap();
    run.quiet().await;
    assert_eq!(state(&run, &new.id).await, "done");
    assert_eq!(dead(&run).await.len(), 0);
    fine(&run).await;
}

async fn a_failed_creation_is_undone_by_deleting_it(mut run: Run) {
    failed_creation(&mut run).await;
    let letter = dead(&run).await.remove(0);
    let right = run.world.right("default");
    let new = run.store.undo_job(&right, &letter.id, &Asked::default()).await.unwrap();
    assert_eq!(new.verb, "remove");
    run.quiet().await;
    assert_eq!(run.id("instance", "web").await, None);
    assert_eq!(dead(&run).await.len(), 0);
    assert!(run.world.ask("SELECT value FROM lease").await.is_empty());
    fine(&run).await;
}

async fn a_failed_change_goes_back_to_what_was_applied(mut run: Run) {
    let id = failed_change(&mut run).await;
    let letter = dead(&run).await.remove(0);
    assert!(letter.left_behind[0].contains("generation 1"), "{:?}", letter.left_behind);
    let right = run.world.right("default");
    let new = run.store.undo_job(&right, &letter.id, &Asked::default()).await.unwrap();
    run.quiet().await;
    assert_eq!(state(&run, &new.id).await, "done");
    let object = run.store.get(&right, run.world.kind("instance"), &id).await.unwrap();
    assert_eq!(
        (object.spec["vcpus"].clone(), object.core.phase.as_str()),
        (serde_json::Value::Null, "running")
    );
    assert_eq!(dead(&run).await.len(), 0);
    fine(&run).await;
}

async fn what_is_skipped_leaves_the_list(mut run: Run) {
    failed_change(&mut run).await;
    let letter = dead(&run).await.remove(0);
    let right = run.world.right("default");
    let job = run.store.skip_job(&right, &letter.id, &Asked::default()).await.unwrap();
    assert_eq!((job.state.as_str(), job.problem.as_deref()), ("cancelled", Some("skipped: it does not fit")));
    assert_eq!(dead(&run).await.len(), 0);
    run.quiet().await;
    fine(&run).await;
}

/// The object goes; the node is told as soon as it is back, and then all is well.
async fn a_removal_stops_waiting_for_a_lost_node(mut run: Run) {
    run.ask(&Ask::Make("instance", "web".into(), json!({"image": "tiny"}))).await;
    run.quiet().await;
    let store = run.store.clone();
    run.nodes[0].disconnect(&store).await.unwrap();
    let right = run.world.right("default");
    let kind = run.world.kind("instance");
    let removed = store.remove(&right, kind, "web", None, &Asked::default()).await.unwrap();
    let id = removed.object.core.id;
    // Its root disk waits as well.
    while let Some(open) = rhyzome_tests::drive::open_jobs(&run.world).await.pop() {
        let job = store.skip_job(&right, &open[0], &Asked::default()).await.unwrap();
        assert_eq!(job.state, "done");
        assert!(job.left_behind[0].contains("has not let go of it"), "{:?}", job.left_behind);
    }
    assert!(matches!(store.get(&right, kind, &id).await, Err(Error::NotFound)));
    let found = audit(&run.world, &run.nodes).await;
    assert!(
        found.iter().any(|finding| finding.wrong == Wrong::Orphan && finding.what.contains(&id)),
        "{found:#?}"
    );
    run.nodes[0].connect(&store).await.unwrap();
    run.quiet().await;
    fine(&run).await;
}

async fn only_what_failed(mut run: Run) {
    run.ask(&Ask::Make("instance", "web".into(), json!({"image": "tiny"}))).await;
    let right = run.world.right("default");
    let object = run.store.get(&right, run.world.kind("instance"), "web").await.unwrap();
    let job = object.core.job.unwrap();
    for _ in 0..2 {
        let skipped = run.store.skip_job(&right, &job, &Asked::default()).await;
        assert!(matches!(skipped, Err(Error::Clash(_))), "{skipped:?}");
        let undone = run.store.undo_job(&right, &job, &Asked::default()).await;
        assert!(matches!(undone, Err(Error::Clash(_))), "{undone:?}");
        run.quiet().await;
    }
    // A later job has taken the place of what failed.
    let id = failed_change_of(&mut run, &object.core.id).await;
    run.ask(&Ask::Act("instance", "web".into(), "stop".into())).await;
    run.quiet().await;
    assert!(dead(&run).await.is_empty());
    let undone = run.store.undo_job(&right, &id, &Asked::default()).await;
    assert!(matches!(undone, Err(Error::Clash(_))), "{undone:?}");
}

async fn failed_change_of(run: &mut Run, id: &str) -> String {
    run.nodes[0].refuses.insert(id.to_owned(), "it does not fit".into());
    run.ask(&Ask::Patch("instance", "web".into(), json!({"spec": {"vcpus": 7}}))).await;
    run.quiet().await;
    run.nodes[0].refuses.clear();
    dead(run).await.remove(0).id
}
