//! The three laws of every job of every kind: whatever step fails, nothing is left; what was undone is undone
//! again and nothing happens; each step is done twice and nothing happens. And the same by two servers at once.

use std::collections::BTreeSet;

use rhyzome_api::jobs;
use rhyzome_api::kernel::Kind;
use rhyzome_api::store::Store;
use rhyzome_tests::audit::audit;
use rhyzome_tests::life::{Ask, Run, is_asked, life};
use rhyzome_tests::world::Engine;

/// Kinds whose lives have jobs with more than one step.
fn kinds() -> Vec<&'static dyn Kind> {
    let registry = rhyzome_api::resources::registry();
    let all: Vec<&'static dyn Kind> = registry.all().to_vec();
    let held = |kind: &&dyn Kind| kind.meta().held != rhyzome_api::kernel::Held::Never;
    all.into_iter().filter(|kind| held(kind) && is_asked(*kind)).collect()
}

async fn fine(run: &Run, when: &str) {
    let found = audit(&run.world, &run.nodes).await;
    assert!(found.is_empty(), "{when}: {found:#?}");
}

/// The last job: its id, verb, state, how many steps it has.
async fn last_job(run: &Run) -> Option<(String, String, String, i64)> {
    let sql = "SELECT j.id, j.verb, j.state, (SELECT count(*) FROM job_step s WHERE s.job = j.id) FROM job j \
               ORDER BY j.id DESC LIMIT 1";
    let row = run.world.ask(sql).await.pop()?;
    Some((row[0].clone(), row[1].clone(), row[2].clone(), row[3].parse().unwrap()))
}

/// Nothing that belongs to anybody: what is left are copies of images.
async fn nothing_is_left(run: &mut Run, when: &str) {
    run.leave().await;
    fine(run, when).await;
    let left = "SELECT r.kind, a.object FROM assignment a JOIN resource r ON r.id = a.object WHERE r.kind <> 'image' \
                UNION ALL SELECT 'lease', value FROM lease UNION ALL SELECT 'room', holder FROM placement";
    let left = run.world.ask(left).await;
    assert!(left.is_empty(), "{when}: {left:?}");
    assert!(run.nodes[0].holds().is_empty(), "{when}: {:?}", run.nodes[0].holds());
}

/// Puts a job back to one of its steps, as if what it did were not known to have been done.
async fn put_back(run: &Run, job: &str, state: &str, step: i64) {
    let sql = format!(
        "UPDATE job SET state = '{state}', step = {step}, finished_at = NULL, awaits = NULL, wake_at = 0 WHERE id = '{job}'"
    );
    run.world.sql(&sql).await;
}

/// Everything that a life asks for fails at this step, but for taking away. True: something did fail.
async fn fails_at(engine: Engine, kind: &'static dyn Kind, step: i64) -> bool {
    let mut run = Run::new(engine, kind).await;
    let when = format!("{} fails at step {step}", kind.meta().kind);
    let mut failed = false;
    let asks = life(kind);
    for ask in asks.iter().filter(|ask| !matches!(ask, Ask::Remove(..))) {
        run.strikes.fail_at(Some(step));
        run.step(ask).await;
        run.strikes.fail_at(None);
        let Some((id, verb, state, steps)) = last_job(&run).await else { continue };
        failed |= state == "failed";
        if state == "failed" && verb == "create" {
            fine(&run, &format!("{when}, undone")).await;
            // The second law.
            put_back(&run, &id, "undoing", step.min(steps - 1)).await;
            run.quiet().await;
            let (_, _, state, _) = last_job(&run).await.unwrap();
            assert_eq!(state, "failed", "{when}, undone twice");
            fine(&run, &format!("{when}, undone twice")).await;
        }
    }
    for ask in asks.iter().filter(|ask| matches!(ask, Ask::Remove(..))) {
        run.ask(ask).await;
        run.quiet().await;
    }
    nothing_is_left(&mut run, &when).await;
    failed
}

async fn whatever_fails(engine: Engine) {
    for kind in kinds() {
        let mut step = 0;
        while fails_at(engine, kind, step).await {
            step += 1;
        }
        println!("{}, {engine:?}: {step} steps", kind.meta().kind);
        assert!(step > 0, "{} has no job that can fail", kind.meta().kind);
    }
}

#[tokio::test]
async fn whatever_fails_nothing_is_left_on_sqlite() {
    whatever_fails(Engine::Sqlite).await;
}

#[tokio::test]
async fn whatever_fails_nothing_is_left_on_postgres() {
    whatever_fails(Engine::Postgres).await;
}

/// Each job, when it is done, is put back to each of its steps; the node says everything again.
async fn each_step_twice(engine: Engine) {
    for kind in kinds() {
        let mut run = Run::new(engine, kind).await;
        let mut done = BTreeSet::new();
        for ask in life(kind) {
            run.step(&ask).await;
            let Some((id, verb, state, steps)) = last_job(&run).await else { continue };
            if state != "done" || !done.insert(id.clone()) {
                continue;
            }
            for step in 0..steps {
                put_back(&run, &id, "running", step).await;
                let store = run.store.clone();
                run.nodes[0].connect(&store).await.unwrap();
                run.quiet().await;
                let when = format!("{} {verb}, step {step} twice", kind.meta().kind);
                let (_, _, state, _) = last_job(&run).await.unwrap();
                assert_eq!(state, "done", "{when}");
                fine(&run, &when).await;
            }
        }
        nothing_is_left(&mut run, kind.meta().kind).await;
    }
}

#[tokio::test]
async fn each_step_twice_on_sqlite() {
    each_step_twice(Engine::Sqlite).await;
}

#[tokio::test]
async fn each_step_twice_on_postgres() {
    each_step_twice(Engine::Postgres).await;
}

/// Both look at all jobs at the same time, and hear each report at the same time.
async fn both(run: &mut Run, other: &Store) {
    for _ in 0..260 {
        let (one, two) = tokio::join!(jobs::look(&run.store), jobs::look(other));
        one.and(two).unwrap();
        let store = run.store.clone();
        let node = &mut run.nodes[0];
        let mut busy = node.hear(&store).await.unwrap();
        busy |= node.work();
        for report in node.news() {
            busy = true;
            let id = node.id.clone();
            let (one, two) =
                tokio::join!(store.record_report(&id, report.clone()), other.record_report(&id, report));
            one.and(two).unwrap();
        }
        if !busy && rhyzome_tests::drive::open_jobs(&run.world).await.is_empty() {
            return;
        }
        if !busy {
            run.time.pass(17);
        }
    }
    panic!("stuck: {:?}", rhyzome_tests::drive::open_jobs(&run.world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_two_servers_at_once() {
    for kind in kinds() {
        let mut run = Run::new(Engine::Postgres, kind).await;
        let url = run.world.db.parse().unwrap();
        let other = Store::open(&url, run.time.env(99), rhyzome_api::resources::registry()).await.unwrap();
        other.seal_with(run.world.keyring.clone());
        for ask in life(kind) {
            run.ask(&ask).await;
            if !matches!(ask, Ask::Make("image", ..)) {
                both(&mut run, &other).await;
            }
        }
        nothing_is_left(&mut run, kind.meta().kind).await;
        let twice = "SELECT job, count(*) FROM event WHERE class = 'job' GROUP BY job HAVING count(*) > 1";
        let twice = run.world.ask(twice).await;
        assert!(twice.is_empty(), "jobs that ended more than once: {twice:?}");
    }
}
