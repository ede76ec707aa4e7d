//! Others in the way, on PostgreSQL: what it answers with a deadlock is done again from its beginning, wherever in a
//! write that was. Its COMMIT of a transaction in which anything failed undoes it without an error, so no error may be
//! passed over. A connection that has gone while it lay idle is not anybody's trouble either.

use rhyzome_api::kernel::Error;
use rhyzome_api::store::{Asked, NewObject};
use rhyzome_tests::world::{Engine, World};
use serde_json::json;

/// Taking room on a node meets a deadlock, so many times.
async fn deadlocks(world: &World, times: u32) {
    world
        .sql(&format!(
            "CREATE SEQUENCE tries; CREATE FUNCTION deadlock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
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
