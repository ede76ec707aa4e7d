//! The agent that makes a node hold what the control plane assigned to it.

pub mod drivers;
pub mod enroll;
pub mod files;
pub mod host;
pub mod identity;
pub mod jail;
pub mod ledger;
pub mod link;
pub mod names;
pub mod owner;
pub mod privileges;
pub mod reconcile;
pub mod report;
pub mod setup;
pub mod enroll;
pub mod identity;
pub mod link;
