//! Project commands, and what they share with benches and tests: a world of real processes, and what it leaves behind.

pub mod bench;
pub mod crowd;
pub mod demo;
pub mod fuzz;
pub mod http;
pub mod image;
pub mod keycloak;
pub mod leftovers;
pub mod new_resource;
pub mod openapi;
pub mod packages;
pub mod procfs;
pub mod progress;
pub mod provider;
pub mod run;
pub mod sim;
pub mod test;
pub mod tokens;
pub mod world;

use std::path::PathBuf;

/// The root of the repository.
pub fn repository() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}
