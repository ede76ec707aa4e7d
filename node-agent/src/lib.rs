//! The agent that makes a node hold what the control plane assigned to it.

pub mod enroll;
pub mod identity;
pub mod link;
