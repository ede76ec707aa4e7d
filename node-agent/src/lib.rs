//! The agent that makes a node hold what the control plane assigned to it.

pub mod accelerator;
pub mod agent;
pub mod config;
pub mod drivers;
pub mod enroll;
pub mod env;
pub mod files;
pub mod findings;
pub mod guard;
pub mod host;
pub mod identity;
pub mod jail;
pub mod lease;
pub mod ledger;
pub mod link;
pub mod machine;
pub mod names;
pub mod node;
pub mod owner;
pub mod plain;
pub mod privileges;
pub mod reconcile;
pub mod refusal;
pub mod report;
pub mod setup;
pub mod status;
