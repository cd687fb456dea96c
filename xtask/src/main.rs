//! Automation of the fewbit repository.
fn main() {}
