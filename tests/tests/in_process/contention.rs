//! Others in the way, on PostgreSQL: what it answers with a deadlock is done again from its beginning, wherever in a
//! write that was. Its COMMIT of a transaction in which anything failed undoes it without an error, so no error may be
//! passed over. A connection that has gone while it lay idle is not anybody's trouble either.

use std::sync::Arc;

use rhyzome_api::kernel::Error;
use rhyzome_api::store::{Asked, NewObject};
use rhyzome_tests::tables::postgres;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use serde_json::json;

/// Taking room on a node meets a deadlock, so many times.
async fn deadlocks(world: &World, times: u32) {
    world
        .sql(&format!(
            "CREATE SEQUENCE tries; GRANT USAGE ON SEQUENCE tries TO PUBLIC; CREATE FUNCTION deadlock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF nextval('tries') <= {times} THEN
                 RAISE EXCEPTION 'on purpose' USING ERRCODE = '40P01';
               END IF;
               RETURN NEW;
             END $$;
             CREATE TRIGGER deadlock BEFORE UPDATE ON node_state FOR EACH ROW
               WHEN (OLD.vcpus_used <> NEW.vcpus_used) EXECUTE FUNCTION deadlock();"
        ))
        .await;
}

/// One whose disk is made with it, after it has taken its room.
async fn instance(world: &World) -> Result<String, Error> {
    let body = NewObject { spec: json!({"image": "tiny"}), ..NewObject::default() };
    let right = world.right("default");
    let made = world.store.create(&right, world.kind("instance"), body, &Asked::default()).await;
    made.map(|written| written.object.core.id)
}

async fn ready() -> World {
    let world = World::new(Engine::Postgres).await;
    world.make_node("n1", 1 << 40).await;
    world.make_image("", "tiny").await;
    world
}

async fn objects(world: &World) -> Vec<Vec<String>> {
    world.ask("SELECT kind, name FROM live ORDER BY kind, name").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_meets_deadlocks_is_done_all_the_same() {
    let world = ready().await;
    deadlocks(&world, 3).await;
    let id = instance(&world).await.unwrap();
    assert_eq!(world.ask("SELECT last_value FROM tries").await, [["4"]]);
    let placed = world.ask("SELECT vcpus_used FROM node_state").await;
    assert_eq!(placed, [["1"]], "{id} has its room once");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_meets_nothing_else_is_told_to_come_back_and_has_changed_nothing() {
    let world = ready().await;
    let before = objects(&world).await;
    deadlocks(&world, 1_000_000).await;
    let told = instance(&world).await;
    let Err(Error::Unavailable(text)) = told else { panic!("{told:?}") };
    assert!(text.contains("nothing was changed") && !text.contains("on purpose"), "{text}");
    assert_eq!(objects(&world).await, before);
}

/// Ends all connections but one's own, as a restart of the database does.
async fn end_connections(world: &World) {
    let ended = "SELECT count(pg_terminate_backend(pid))::text FROM pg_stat_activity \
                 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
    assert_ne!(world.ask(ended).await, [["0"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_finds_the_connections_gone_gets_others_and_hears_nothing_of_it() {
    let world = ready().await;
    let (right, kind) = (world.right("default"), world.kind("instance"));
    for _ in 0..3 {
        // As many at once as it takes for several connections to lie idle.
        let made = futures_util::future::join_all((0..8).map(|_| instance(&world))).await;
        let made: Vec<String> = made.into_iter().collect::<Result<_, _>>().unwrap();
        end_connections(&world).await;
        world.store.get(&right, kind, &made[0]).await.unwrap();
        end_connections(&world).await;
        instance(&world).await.unwrap();
    }
    assert_eq!(world.ask("SELECT count(*)::text FROM live WHERE kind = 'instance'").await, [["27"]]);
}

/// Whoever writes what an object needs of its node stands still there, while somebody holds this lock.
const STAND_STILL: &str = "CREATE FUNCTION still() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      PERFORM pg_advisory_xact_lock_shared(1);
      RETURN NEW;
    END $$;
    CREATE TRIGGER still BEFORE INSERT ON assignment_need FOR EACH ROW EXECUTE FUNCTION still();";

/// How many of this database wait for a lock: one of that kind, or any other.
async fn waiting(world: &World, advisory: bool) -> usize {
    let sql = "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
               WHERE NOT l.granted AND a.datname = current_database() AND (l.locktype = 'advisory') = ";
    world.ask(&format!("{sql}{advisory}")).await.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_keeps_what_a_new_instance_needs_while_the_last_one_that_needed_it_leaves() {
    let world = Arc::new(ready().await);
    let node = world.ask("SELECT id FROM resource WHERE kind = 'node'").await[0][0].clone();
    let first = instance(&world).await.unwrap();
    let cursor = world.obey(&node, 0).await;
    let right = world.right("default");
    world.store.remove(&right, world.kind("instance"), &first, None, &Asked::default()).await.unwrap();

    world.sql(STAND_STILL).await;
    let mut holder = postgres(&world.db).await;
    sqlx::raw_sql("SELECT pg_advisory_lock(1)").execute(&mut holder).await.unwrap();
    let making = tokio::spawn({
        let world = world.clone();
        async move { instance(&world).await }
    });
    until("the second to be ordered", 30, async || (waiting(&world, true).await > 0).then_some(())).await;
    let leaving = tokio::spawn({
        let world = world.clone();
        async move { world.obey(&node, cursor).await }
    });
    until("the first to leave", 30, async || (waiting(&world, false).await > 0).then_some(())).await;
    sqlx::raw_sql("SELECT pg_advisory_unlock(1)").execute(&mut holder).await.unwrap();
    making.await.unwrap().unwrap();
    leaving.await.unwrap();
    let missing = "SELECT n.need FROM assignment_need n WHERE NOT EXISTS \
                   (SELECT 1 FROM assignment a WHERE a.node = n.node AND a.object = n.need AND a.remove = 0)";
    assert!(world.ask(missing).await.is_empty(), "{:?} must go, and is needed", world.ask(missing).await);
}
