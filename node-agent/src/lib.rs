//! The agent that makes a node hold what the control plane assigned to it.

pub mod drivers;
pub mod files;
pub mod jail;
pub mod ledger;
pub mod names;
pub mod reconcile;
