//! Project commands: demo, test, bench, openapi, image.
fn main() {}
