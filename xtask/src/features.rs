//! Checks that every feature compiles alone. A build of the whole workspace cannot show this, because there the
//! features of one crate are enabled by another.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::shell;

/// The name of the package in `folder`, and its features except `default`.
fn features(folder: &Path) -> Result<(String, Vec<String>)> {
    let path = folder.join("Cargo.toml");
    let manifest: Table = fs::read_to_string(&path)
        .with_context(|| path.display().to_string())?
        .parse()
        .with_context(|| path.display().to_string())?;
    let name = manifest.get("package").and_then(|package| package.get("name")).and_then(Value::as_str);
    let name = name.with_context(|| format!("{}: no package name", path.display()))?;
    let table = manifest.get("features").and_then(Value::as_table);
    let names = table.into_iter().flat_map(Table::keys).filter(|name| *name != "default").cloned();
    Ok((name.to_owned(), names.collect()))
}

/// Runs `cargo check` for each package of the workspace without features, and with each feature alone. Tests and
/// examples are left out, because their dependencies could enable features.
pub(crate) fn run() -> Result<()> {
    let root = shell::root();
    let manifest: Table = fs::read_to_string(root.join("Cargo.toml"))?.parse().context("Cargo.toml")?;
    let members = manifest.get("workspace").and_then(|workspace| workspace.get("members")).and_then(Value::as_array);
    let members = members.context("Cargo.toml: no workspace members")?.iter().filter_map(Value::as_str);
    for folder in members.chain(["."]) {
        let (package, features) = features(&root.join(folder))?;
        let check = |features: &[&str]| {
            let args = ["check", "--quiet", "-p", &package, "--no-default-features"];
            shell::run(&shell::cargo(), &[&args, features].concat())
        };
        check(&[])?;
        for feature in &features {
            check(&["--features", feature])?;
        }
    }
    Ok(())
}
