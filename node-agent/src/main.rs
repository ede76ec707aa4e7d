//! The agent that makes a node hold what the control plane assigned to it.
fn main() {}
