//! The control plane: REST API, jobs, and the channel to the agents.
//!
//! The rooms, and who may know whom, are in `docs/architecture.md`; a test reads our own use-lines and
//! fails on an arrow that must not exist.

pub mod admin;
pub mod app;
pub mod audit;
pub mod auth;
pub mod authority;
pub mod blobs;
pub mod channel;
pub mod config;
pub mod environment;
pub mod images_folder;
pub mod jobs;
pub mod kernel;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod outbound;
pub mod process;
pub mod realms;
pub mod resources;
pub mod rest;
pub mod sealing;
pub mod store;
pub mod webhooks;
