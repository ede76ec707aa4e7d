//! Tests in one process, without real guests: fast, on both databases.

mod channel;
mod rest;
mod rest_contract;
mod store;
