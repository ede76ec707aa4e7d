//! What the tests of the whole share: databases of both kinds, waiting for conditions.

// A test that cannot go on says so by a panic, in its helpers too.
#![allow(clippy::unwrap_used)]

pub mod face;
pub mod postgres;
pub mod wait;
pub mod world;
