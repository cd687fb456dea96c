//! The documented list of supported models must match the families.

use fewbit_checkpoint::{architectures, classes};
use std::fs;

#[test]
fn docs_name_every_architecture_and_class() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/models.md");
    let text = fs::read_to_string(path).expect("part of the repository");
    for name in architectures().chain(classes()) {
        assert!(text.contains(&format!("`{name}`")), "docs/models.md does not name `{name}`");
    }
}
