//! What a write costs is counted in statements, which are the same on every machine; and it costs as many whatever
//! is there already.

use rhyzome_api::kernel::Error;
use rhyzome_api::store::{Asked, NewObject};
use rhyzome_tests::given::Time;
use rhyzome_tests::statements;
use rhyzome_tests::world::{Engine, World};
use serde_json::json;

// On one thread: what is heard is what this test says.
#[tokio::test]
async fn a_create_says_the_same_whatever_is_there_on_sqlite() {
    a_create_says_the_same_whatever_is_there(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_create_says_the_same_whatever_is_there_on_postgres() {
    a_create_says_the_same_whatever_is_there(Engine::Postgres).await;
}

/// The most that the create of an instance with a disk of its own, an address and a place may say, BEGIN and COMMIT
/// included.
const MOST: usize = 35;

async fn create(world: &World, name: &str) -> Result<Vec<String>, Error> {
    let spec = json!({"image": "tiny", "nics": {"lan": {"network": "lan"}}});
    let body = NewObject { name: Some(name.into()), spec, ..NewObject::default() };
    statements::listen();
    world.store.create(&world.right("default"), world.kind("instance"), body, &Asked::default()).await?;
    Ok(statements::heard())
}

async fn a_create_says_the_same_whatever_is_there(engine: Engine) {
    // Its clock stands: what is known of the nodes does not grow old.
    let world = World::with_env(engine, World::in_one_thread(engine, Time::begin().env(1))).await;
    world.make_image("", "tiny").await;
    world.make("default", "network", "lan", json!({})).await;
    for number in 0..3 {
        world.make_node(&format!("n{number}"), 1 << 40).await;
    }
    for name in ["a", "b", "c"] {
        create(&world, name).await.unwrap();
    }
    let few = create(&world, "few").await.unwrap();
    few.iter().for_each(|sql| println!("{sql}"));
    for sql in xtask::crowd::statements(1, 2_000) {
        world.sql(&sql).await;
    }
    let many = create(&world, "many").await.unwrap();
    println!("{} statements", few.len());
    assert_eq!(few, many);
    assert!((10..=MOST).contains(&few.len()), "{} statements", few.len());
}
