//! Coverage-guided fuzzing of everything that reads untrusted bytes: `fuzz/`.
//!
//! The targets need a nightly compiler and a C++ compiler (for libFuzzer), which building and testing do not; nothing
//! else is installed. The tests of fewbit-format always run a quick, deterministic variant (`tests/gguf/mutate.rs`).
//! Compiling takes some minutes, because everything is built with coverage counters and AddressSanitizer.

use std::fs;

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use crate::shell::{self, Missing};

/// A program in `fuzz/` that writes the seed inputs; it is not a fuzz target.
const SEEDS: &str = "make_seeds";

/// The target that needs the engine, whose kernels take ten times as long to compile as everything else; and the feature
/// that it needs.
const ENGINE: &str = "session";

/// The compiler flags that libFuzzer needs: counters on every edge, compared values, and aborting on memory errors.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Cdebug-assertions -Coverflow-checks --cfg fuzzing";

fn targets() -> Result<Vec<String>> {
    let manifest: Table =
        fs::read_to_string(shell::root().join("fuzz/Cargo.toml"))?.parse().context("fuzz/Cargo.toml")?;
    let programs = manifest.get("bin").and_then(Value::as_array).context("fuzz/Cargo.toml has no targets")?;
    let names = programs.iter().filter_map(|program| program.get("name")?.as_str());
    Ok(names.filter(|name| *name != SEEDS).map(str::to_owned).collect())
}

/// Fuzzes the targets named, or all of them.
pub(crate) fn run(seconds: u32, mut chosen: Vec<String>) -> Result<()> {
    let all = targets()?;
    if let Some(unknown) = chosen.iter().find(|name| !all.contains(name)) {
        bail!("there is no target {unknown:?}, there are: {}", all.join(", "));
    }
    if chosen.is_empty() {
        chosen = all;
    }
    // For libFuzzer, 0 means no time limit.
    if seconds == 0 {
        bail!("--seconds needs at least 1");
    }
    let host = host()?;
    if !["c++", "g++", "clang++"].iter().any(|compiler| shell::works(compiler, &["--version"])) {
        return Err(Missing("fuzzing compiles libFuzzer, and there is no C++ compiler".to_owned()).into());
    }
    let fuzz = shell::root().join("fuzz");
    let target = shell::target();
    let target = target.join("fuzz");
    // With a target named, build scripts and macros are compiled without the flags.
    let mut build = shell::command("cargo");
    build.args(["+nightly", "build", "--locked", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", &host]);
    for name in chosen.iter().map(String::as_str).chain([SEEDS]) {
        build.args(["--bin", name]);
    }
    if chosen.iter().any(|name| name == ENGINE) {
        build.args(["--features", ENGINE]);
    }
    // This runs under another cargo, whose settings do not apply to nightly.
    for name in ["RUSTC", "RUSTDOC", "CARGO"] {
        build.env_remove(name);
    }
    build.env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", &target);
    shell::run_command(build)?;

    let programs = target.join(&host).join("release");
    shell::run(&programs.join(SEEDS).to_string_lossy(), &[])?;
    for name in &chosen {
        let (corpus, artifacts) = (fuzz.join("corpus").join(name), fuzz.join("artifacts").join(name));
        fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
        fs::create_dir_all(&artifacts).with_context(|| artifacts.display().to_string())?;
        let prefix = format!("-artifact_prefix={}/", artifacts.display());
        let limit = format!("-max_total_time={seconds}");
        let program = programs.join(name);
        shell::run(&program.to_string_lossy(), &[&corpus.to_string_lossy(), &limit, &prefix, "-print_final_stats=1"])?;
    }
    Ok(())
}

/// The platform that the nightly compiler builds for.
fn host() -> Result<String> {
    let missing =
        || Missing("fuzzing needs a nightly compiler: `rustup toolchain install nightly --profile minimal`".to_owned());
    let output = shell::command("rustc").args(["+nightly", "--version", "--verbose"]).output();
    let output = output.ok().filter(|output| output.status.success()).ok_or_else(missing)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc +nightly --version says no host")?.to_owned())
}
