//! What the tests of the whole share: databases of both kinds, waiting for conditions.

pub mod face;
pub mod postgres;
pub mod wait;
pub mod world;
