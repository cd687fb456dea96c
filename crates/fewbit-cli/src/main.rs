//! The `fewbit` program.
fn main() {}
