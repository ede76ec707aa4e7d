//! Tests in one process, without real guests: fast, on both databases.

mod rest;
mod rest_contract;
mod store;
