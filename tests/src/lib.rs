//! What the tests of the whole share: databases of both kinds, waiting for conditions.

// A test that cannot go on says so by a panic, in its helpers too.
#![allow(clippy::unwrap_used)]

pub mod audit;
pub mod door;
pub mod drive;
pub mod exposition;
pub mod face;
pub mod given;
pub mod keycloak;
pub mod life;
pub mod machine;
pub mod model;
pub mod node;
pub mod people;
pub mod postgres;
pub mod quick;
pub mod sim;
pub mod statements;
pub mod tables;
pub mod tokens;
pub mod told;
pub mod wait;
pub mod world;

/// The same stories on both databases, each in a world of its own.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::$name($crate::world::World::new($crate::world::Engine::Sqlite).await).await;
        })* }
        mod postgres { $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::$name($crate::world::World::new($crate::world::Engine::Postgres).await).await;
        })* }
    };
}
