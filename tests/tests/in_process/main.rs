//! Tests in one process, without real guests: fast, on both databases.

mod store;
