//! Tests in one process, without real guests: fast, on both databases.

// A test that cannot go on says so by a panic, in its helpers too.
#![allow(clippy::unwrap_used)]

mod arrows;
mod browser;
mod browser_login;
mod bulk;
mod certificates;
mod channel;
mod contention;
mod counts;
mod crash;
mod drain;
mod events;
mod explained;
mod hygiene;
mod laws;
mod letters;
mod limits;
mod log;
mod lost;
mod metrics;
mod once;
mod permissions;
mod placement;
mod plans;
mod quota;
mod rest;
mod rest_contract;
mod retention;
mod retries;
mod rights;
mod second_factor;
mod secrets;
mod sessions;
mod sim;
mod ssh;
mod states;
mod store;
mod stories;
mod tenants;
mod tokens;
mod walls;
mod webhooks;
mod wire;
