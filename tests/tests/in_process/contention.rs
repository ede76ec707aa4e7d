//! Others in the way, on PostgreSQL: what it answers with a deadlock is done again from its beginning, wherever in a
//! write that was. Its COMMIT of a transaction in which anything failed undoes it without an error, so no error may be
//! passed over.

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
