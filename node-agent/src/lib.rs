//! The agent that makes a node hold what the control plane assigned to it.

pub mod drivers;
pub mod host;
pub mod names;
pub mod privileges;
pub mod setup;
