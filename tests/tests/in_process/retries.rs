//! A job that cannot be taken further comes again, each time later, and says so.

use rhyzome_api::jobs;
use rhyzome_tests::given::Time;
use rhyzome_tests::world::{Engine, World};
use serde_json::json;

#[tokio::test]
async fn what_cannot_be_taken_further_is_put_off_on_sqlite() {
    what_cannot_be_taken_further_is_put_off(Engine::Sqlite).await;
}

#[tokio::test]
async fn what_cannot_be_taken_further_is_put_off_on_postgres() {
    what_cannot_be_taken_further_is_put_off(Engine::Postgres).await;
}

async fn what_cannot_be_taken_further_is_put_off(engine: Engine) {
    let time = Time::begin();
    let world = World::with_time(engine, &time, 1).await;
    world.make_image("", "tiny").await;
    world.make_node("n1", 1 << 40).await;
    let job = world.make("default", "instance", "one", json!({"image": "tiny"})).await.job.unwrap();
    let other = world.make("default", "instance", "two", json!({"image": "tiny"})).await.job.unwrap();
    let at = format!("job = '{job}' AND idx = (SELECT step FROM job WHERE id = '{job}')");
    let step = world.ask(&format!("SELECT step FROM job_step WHERE {at}")).await.remove(0).remove(0);
    world.sql(&format!("UPDATE job_step SET step = 'broken' WHERE {at}")).await;
    let tries = async |id: &str| {
        world.ask(&format!("SELECT attempts FROM job WHERE id = '{id}'")).await.remove(0).remove(0)
    };

    world.sql("UPDATE job SET wake_at = 1").await;
    jobs::look(&world.store).await.unwrap();
    assert_eq!((tries(&job).await, tries(&other).await), ("1".into(), "0".into()), "the others go on");
    let said = world.ask(&format!("SELECT message FROM job_step WHERE {at}")).await.remove(0).remove(0);
    assert_eq!(said, "could not be taken further, tried again: the server's log says why");
    jobs::look(&world.store).await.unwrap();
    assert_eq!(tries(&job).await, "1", "it is not due");
    for (pause, after) in [(1_000, "2"), (1_000, "2"), (1_000, "3")] {
        time.pass_ms(pause);
        jobs::look(&world.store).await.unwrap();
        assert_eq!(tries(&job).await, after);
    }

    world.sql(&format!("UPDATE job_step SET step = '{step}' WHERE {at}")).await;
    time.pass_ms(4_000);
    jobs::look(&world.store).await.unwrap();
    let told = world.store.job(&world.right("default"), &job).await.unwrap();
    assert_eq!(told.attempts, 3);
    assert!(
        told.due_at.is_some() && told.steps.iter().all(|step| !step.message.contains("tried again")),
        "{told:?}"
    );
}
