//! Runs every example to its end, because examples are the first thing that people copy. The example that saves
//! something for its next run is run twice.

use std::fs;

use anyhow::{Context, Result};

use crate::shell;

/// The folders with examples: of the library, and of the candle crate.
const FOLDERS: [&str; 2] = ["examples", "crates/fewbit-candle/examples"];

/// Runs each example on the model that it names.
pub(crate) fn run() -> Result<()> {
    let mut names = Vec::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(shell::root().join(folder)).context(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
            }
        }
    }
    names.sort();
    let again = names.iter().position(|name| name == "saved_session").context("no example saved_session")?;
    names.insert(again, names[again].clone());
    // Builds the packages that CI tests together: built alone, one would select other features of its dependencies and
    // compile them again.
    shell::run(&shell::cargo(), &["build", "--release", "--quiet", "--examples"])?;
    let candle = ["-p", "fewbit-candle", "-p", "fewbit-oracle", "-p", "xtask"];
    shell::run(&shell::cargo(), &[&["build", "--release", "--quiet", "--examples"][..], &candle].concat())?;
    let target = shell::target();
    for name in names {
        let path = target.join("release/examples").join(name + std::env::consts::EXE_SUFFIX);
        shell::run(&path.to_string_lossy(), &[])?;
    }
    Ok(())
}
