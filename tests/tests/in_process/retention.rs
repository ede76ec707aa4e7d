//! Retention of history: what is old goes, a bounded amount at a time; what a living object may yet need stays.

use rhyzome_api::store::{Asked, JobQuery, KeepHistory};
use rhyzome_tests::audit::audit;
use rhyzome_tests::face::Face;
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
    a_living_object_keeps_what_it_may_need,
    a_dead_letter_keeps_all_of_its_object,
    what_has_gone_is_forgotten_with_its_history,
    a_secret_goes_with_the_last_revision_that_names_it,
    so_much_and_no_more_at_once,
    an_answer_is_given_again_as_long_as_was_said,
);

const DAY: i64 = 24 * 3600;
const KEEP: KeepHistory = KeepHistory { jobs: Some(30 * DAY), revisions: Some(60 * DAY) };

async fn begin(engine: Engine) -> Run {
    Run::new(engine, rhyzome_api::resources::registry().get("instance").unwrap()).await
}

/// Goes through all of it.
async fn forget(run: &Run, keep: KeepHistory) {
    let mut after = String::new();
    while let Some(next) = run.store.forget_history(&after, keep).await.unwrap() {
        assert!(next > after);
        after = next;
    }
    let orphans = "SELECT job FROM job_step WHERE job NOT IN (SELECT id FROM job) UNION ALL \
                   SELECT job FROM job_after WHERE after NOT IN (SELECT id FROM job)";
    assert!(run.world.ask(orphans).await.is_empty());
    let found = audit(&run.world, &run.nodes).await;
    assert!(found.is_empty(), "{found:#?}");
}

async fn vcpus(run: &mut Run, vcpus: u32) {
    run.ask(&Ask::Patch("instance", "web".into(), json!({"spec": {"vcpus": vcpus}}))).await;
    run.quiet().await;
}

/// An instance with some history, its id.
async fn instance(run: &mut Run) -> String {
    run.ask(&Ask::Make("instance", "web".into(), json!({"image": "tiny"}))).await;
    run.quiet().await;
    vcpus(run, 2).await;
    vcpus(run, 3).await;
    run.id("instance", "web").await.unwrap()
}

/// Verbs and states of its jobs, and its versions, the oldest first.
async fn history(run: &Run, id: &str) -> (Vec<String>, Vec<i64>) {
    let sql = format!("SELECT verb, state FROM job WHERE resource = '{id}' ORDER BY id");
    let jobs = run.world.ask(&sql).await.into_iter().map(|row| row.join(" ")).collect();
    let sql = format!("SELECT version FROM revision WHERE resource = '{id}' ORDER BY version");
    (jobs, run.world.ask(&sql).await.into_iter().map(|row| row[0].parse().unwrap()).collect())
}

async fn fail_a_change(run: &mut Run, id: &str) -> String {
    run.nodes[0].refuses.insert(id.to_owned(), "it does not fit".into());
    vcpus(run, 7).await;
    run.nodes[0].refuses.clear();
    let dead = JobQuery { dead: true, limit: 10, ..JobQuery::default() };
    run.store.jobs(&run.world.right("default"), &dead).await.unwrap().items.remove(0).id
}

async fn undo(run: &mut Run, letter: &str) {
    let right = run.world.right("default");
    let new = run.store.undo_job(&right, letter, &Asked::default()).await.unwrap();
    run.quiet().await;
    assert_eq!(run.store.job(&right, &new.id).await.unwrap().state, "done");
    let object = run.store.get(&right, run.world.kind("instance"), "web").await.unwrap();
    assert_eq!(object.spec["vcpus"], 3);
}

async fn a_living_object_keeps_what_it_may_need(mut run: Run) {
    let id = instance(&mut run).await;
    let all = (vec!["create done".to_owned(), "update done".into(), "update done".into()], vec![1, 2, 3]);
    assert_eq!(history(&run, &id).await, all);
    for keep in [KeepHistory::default(), KEEP] {
        forget(&run, keep).await;
        assert_eq!(history(&run, &id).await, all, "nothing is old");
    }
    run.time.pass(31 * DAY);
    forget(&run, KEEP).await;
    assert_eq!(history(&run, &id).await, (vec!["update done".to_owned()], vec![1, 2, 3]));
    run.ask(&Ask::Patch("instance", "web".into(), json!({"tags": {"env": "prod"}}))).await;
    run.time.pass(61 * DAY);
    forget(&run, KEEP).await;
    // The newest one, as it is; of its tags alone nothing could be undone by going back.
    assert_eq!(history(&run, &id).await, (vec!["update done".to_owned()], vec![4]));

    // The last change that was done is kept while another is under way, and what was before it.
    let letter = fail_a_change(&mut run, &id).await;
    run.time.pass(100 * DAY);
    forget(&run, KEEP).await;
    assert_eq!(
        history(&run, &id).await,
        (vec!["update done".to_owned(), "update failed".into()], vec![4, 5])
    );
    undo(&mut run, &letter).await;
}

async fn a_dead_letter_keeps_all_of_its_object(mut run: Run) {
    let id = instance(&mut run).await;
    let letter = fail_a_change(&mut run, &id).await;
    let before = history(&run, &id).await;
    assert_eq!((before.0.len(), before.1.len()), (4, 4));
    run.time.pass(1000 * DAY);
    forget(&run, KEEP).await;
    assert_eq!(history(&run, &id).await, before);
    undo(&mut run, &letter).await;
    run.time.pass(1000 * DAY);
    forget(&run, KEEP).await;
    assert_eq!(history(&run, &id).await, (vec!["update done".to_owned()], vec![5]));
}

async fn what_has_gone_is_forgotten_with_its_history(mut run: Run) {
    let id = instance(&mut run).await;
    run.ask(&Ask::Remove("instance", "web".into())).await;
    run.quiet().await;
    let row = format!("SELECT id FROM resource WHERE id = '{id}'");
    run.time.pass(31 * DAY);
    forget(&run, KEEP).await;
    let (jobs, versions) = history(&run, &id).await;
    assert!(jobs.is_empty() && !versions.is_empty(), "{jobs:?} {versions:?}");
    assert_eq!(run.world.ask(&row).await.len(), 1);
    run.time.pass(61 * DAY);
    forget(&run, KEEP).await;
    assert!(run.world.ask(&row).await.is_empty());
    // Nodes and what lives stay; the log tells of it as before.
    let told = format!("SELECT count(*) FROM event WHERE resource = '{id}'");
    assert_ne!(run.world.ask(&told).await[0][0], "0");
    let living = "SELECT id FROM live WHERE id NOT IN (SELECT id FROM resource)";
    assert!(run.world.ask(living).await.is_empty());
}

async fn a_secret_goes_with_the_last_revision_that_names_it(mut run: Run) {
    let spec =
        json!({"url": "https://hooks.example.com/a", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"});
    run.ask(&Ask::Make("webhook", "tell".into(), spec)).await;
    for path in ["b", "c"] {
        let spec = json!({"url": format!("https://hooks.example.com/{path}"), "secret": null});
        run.ask(&Ask::Patch("webhook", "tell".into(), json!({"spec": spec}))).await;
    }
    let secrets = async |run: &Run| run.world.ask("SELECT id FROM secret").await.len();
    assert_eq!(secrets(&run).await, 3);
    run.time.pass(61 * DAY);
    forget(&run, KEEP).await;
    assert_eq!(secrets(&run).await, 1);
    let right = run.world.right("default");
    let hook = run.store.get(&right, run.world.kind("webhook"), "tell").await.unwrap();
    assert!(run.store.secret(&hook, "spec.secret").await.unwrap().is_some());
}

async fn so_much_and_no_more_at_once(run: Run) {
    let id = run.world.make("", "machine-type", "tiny", json!({"vcpus": 1, "memory_bytes": 1 << 28})).await;
    let id = id.object.core.id;
    let many = format!(
        "WITH RECURSIVE n (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < 2500) \
         INSERT INTO revision (resource, version, generation, name, tags, metadata, spec, actor, at) \
         SELECT r.id, n.n, 1, r.name, r.tags, r.metadata, r.spec, 'x', 1 FROM resource r, n WHERE r.id = '{id}'"
    );
    run.world.sql(&many).await;
    run.world.sql(&format!("UPDATE resource SET version = 2500 WHERE id = '{id}'")).await;
    run.time.pass(61 * DAY);
    run.strikes.plan(&[]);
    forget(&run, KEEP).await;
    assert_eq!(run.strikes.commits(), 3);
    assert_eq!(history(&run, &id).await.1, [2500]);
}

async fn an_answer_is_given_again_as_long_as_was_said(run: Run) {
    run.store.keep_answers(2 * 3600);
    let face = Face::of(&run.world);
    let make = async || {
        let key = [("idempotency-key", "one")];
        let body = json!({"spec": {"size_bytes": 1 << 30}});
        face.with("POST", "/v1/tenants/default/disks", &key, body).await.is(201).json["name"].clone()
    };
    let first = make().await;
    run.time.pass(3600);
    assert_eq!((make().await, run.store.forget_old_keys().await.unwrap()), (first.clone(), 0));
    run.time.pass(2 * 3600);
    assert_ne!(make().await, first);
    run.time.pass(3 * 3600);
    assert_eq!(run.store.forget_old_keys().await.unwrap(), 1);
}
