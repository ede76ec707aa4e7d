//! The control plane: REST API, jobs, and the channel to the agents.
fn main() {}
