//! Coverage-guided fuzzing of everything that reads bytes from strangers: `fuzz/`.
//!
//! The targets need a nightly compiler and cargo-fuzz, which building and testing do not; the tests of
//! fewbit-format run a deterministic, quick relative of this (`tests/gguf/mutate.rs`) everywhere.

use std::fs;

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use crate::shell;

/// A program of `fuzz/` that writes what fuzzing starts from, and is no target.
const SEEDS: &str = "make_seeds";

fn targets() -> Result<Vec<String>> {
    let manifest: Table =
        fs::read_to_string(shell::root().join("fuzz/Cargo.toml"))?.parse().context("fuzz/Cargo.toml")?;
    let programs = manifest.get("bin").and_then(Value::as_array).context("fuzz/Cargo.toml has no targets")?;
    let names = programs.iter().filter_map(|program| program.get("name")?.as_str());
    Ok(names.filter(|name| *name != SEEDS).map(str::to_owned).collect())
}

/// Fuzzes the targets named, or all of them.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let all = targets()?;
    let mut seconds = 60;
    let mut chosen = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            let value = args.next().context("--seconds needs a number")?;
            seconds = value.parse::<u32>().with_context(|| format!("--seconds {value}: not a number of seconds"))?;
        } else if all.contains(arg) {
            chosen.push(arg.clone());
        } else {
            bail!("there is no target {arg:?}, there are: {}", all.join(", "));
        }
    }
    if chosen.is_empty() {
        chosen = all;
    }
    if !shell::works("cargo", &["+nightly", "--version"]) {
        bail!("fuzzing needs a nightly compiler: `rustup toolchain install nightly --profile minimal`");
    }
    if !shell::works("cargo", &["+nightly", "fuzz", "--version"]) {
        bail!("fuzzing needs cargo-fuzz: `cargo install cargo-fuzz`");
    }
    shell::run(&shell::cargo(), &["run", "--quiet", "--manifest-path", "fuzz/Cargo.toml", "--bin", SEEDS])?;
    let limit = format!("-max_total_time={seconds}");
    for target in &chosen {
        shell::run("cargo", &["+nightly", "fuzz", "run", target, "--", &limit])?;
    }
    Ok(())
}
