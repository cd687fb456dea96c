//! Runs every example to its end, because examples are the first thing that people copy. The example that saves
//! something for its next run is run twice.

use std::fs;

use anyhow::{Context, Result};

use crate::shell;

/// Runs each example on the model that it names: those of the library, and those of the candle crate if asked to.
pub(crate) fn run(candle: bool) -> Result<()> {
    let mut names = Vec::new();
    let mut folders = vec!["examples"];
    if candle {
        folders.push("crates/fewbit-candle/examples");
    }
    for folder in folders {
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
    if candle {
        let packages = ["-p", "fewbit-candle", "-p", "fewbit-oracle"];
        shell::run(&shell::cargo(), &[&["build", "--release", "--quiet", "--examples"][..], &packages].concat())?;
    }
    let target = shell::target();
    for name in names {
        let path = target.join("release/examples").join(name + std::env::consts::EXE_SUFFIX);
        shell::run(&path.to_string_lossy(), &[])?;
    }
    Ok(())
}
