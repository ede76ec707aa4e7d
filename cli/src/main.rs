//! The command line of Rhyzome.
fn main() {}
