//! Every example runs to its end: they are the first thing that people copy.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Runs each file of `examples/` on the model that it names.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if let Some(extra) = args.first() {
        bail!("examples takes no arguments, and got {extra:?}");
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(shell::root().join("examples")).context("examples/")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    for name in names {
        shell::run(&shell::cargo(), &["run", "--release", "--quiet", "--example", &name])?;
    }
    Ok(())
}
