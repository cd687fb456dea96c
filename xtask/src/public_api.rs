//! The public API as the compiler sees it: `docs/public-api.txt`, which shows in a review what a change does to it.
//!
//! It comes from rustdoc's JSON, whose form changes with the compiler: this works with the version that the workspace
//! states as its `rust-version`. The crate that reads it is behind a feature, which this command turns on for itself.

use anyhow::Result;

#[cfg(not(feature = "public-api"))]
pub(crate) fn run(write: bool) -> Result<()> {
    let mut all = vec!["run", "--quiet", "--package", "xtask", "--features", "public-api", "--", "public-api"];
    all.extend(write.then_some("--write"));
    crate::shell::run(&crate::shell::cargo(), &all)
}

#[cfg(feature = "public-api")]
pub(crate) fn run(write: bool) -> Result<()> {
    listing::run(write)
}

#[cfg(feature = "public-api")]
mod listing {
    use std::fmt::Write;
    use std::fs;
    use std::process::Command;

    use anyhow::{Context, Result, bail};

    use crate::shell;

    /// What users see: `fewbit`, and the crates that it re-exports.
    const CRATES: [&str; 6] =
        ["fewbit", "fewbit-checkpoint", "fewbit-format", "fewbit-model", "fewbit-quant", "fewbit-tokenizer"];

    /// Compares the API with the committed listing, or writes that.
    pub(super) fn run(write: bool) -> Result<()> {
        let path = shell::root().join("docs/public-api.txt");
        let mut text = String::from("The public API, written by `cargo xtask public-api --write`.\n");
        for name in CRATES {
            write!(text, "\n# {name}\n\n{}", list(name)?)?;
        }
        if write {
            return fs::write(&path, text).with_context(|| path.display().to_string());
        }
        let known = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let without = |all: &str, other: &str| {
            let other: std::collections::HashSet<&str> = other.lines().collect();
            all.lines().filter(|line| !other.contains(line)).map(str::to_owned).collect::<Vec<_>>()
        };
        let (gone, new) = (without(&known, &text), without(&text, &known));
        gone.iter().for_each(|line| println!("- {line}"));
        new.iter().for_each(|line| println!("+ {line}"));
        if gone.len() + new.len() > 0 {
            bail!("the public API has changed: if that is meant, run `cargo xtask public-api --write`");
        }
        println!("the public API is what docs/public-api.txt says");
        Ok(())
    }

    /// The items of a crate with all its features, one a line; derived and automatic implementations are left out.
    fn list(name: &str) -> Result<String> {
        let json = shell::root().join("target").join("doc").join(format!("{}.json", name.replace('-', "_")));
        let mut command = Command::new(shell::cargo());
        command
            .current_dir(shell::root())
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", shell::root().join("target"));
        command.args(["rustdoc", "--quiet", "--lib", "--all-features", "--package", name, "--"]);
        command.args(["-Z", "unstable-options", "--output-format", "json", "--cap-lints", "allow"]);
        if !command.status().context("cargo cannot be started")?.success() {
            bail!("rustdoc failed for {name}");
        }
        let api = public_api::Builder::from_rustdoc_json(&json)
            .omit_blanket_impls(true)
            .omit_auto_trait_impls(true)
            .omit_auto_derived_impls(true)
            .build()
            .with_context(|| format!("{}: written by another version of Rust?", json.display()))?;
        let mut text = String::new();
        for item in api.items() {
            writeln!(text, "{item}")?;
        }
        Ok(text)
    }
}
