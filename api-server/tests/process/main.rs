//! `rhyzome-api` as a process: how it refuses to start, and what its commands do to a database of either kind, with
//! and without a server at work on it.

// A test that cannot go on says so by a panic, in its helpers too.
#![allow(clippy::unwrap_used)]

mod backup;
mod metrics;
mod operator;
mod pki;
mod place;
// Its other users ask more of it.
#[allow(dead_code)]
#[path = "../../../tests/src/postgres.rs"]
#[allow(missing_docs)]
mod postgres;
#[allow(dead_code)]
#[path = "../../../tests/src/quick.rs"]
#[allow(missing_docs)]
mod quick;
mod schema;
mod secrets;
mod start;
mod users;
