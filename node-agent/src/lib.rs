//! The agent that makes a node hold what the control plane assigned to it.

pub mod drivers;
pub mod names;
