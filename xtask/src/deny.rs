//! What the dependencies are: known vulnerabilities, licences, where they come from (`deny.toml`), by cargo-deny.

use std::path::PathBuf;

use anyhow::Result;

use crate::shell::{self, Missing};

/// Compiled once, into the build folder.
const VERSION: &str = "0.20.2";

/// Known vulnerabilities, as cargo-deny fetches them.
const DATABASE: &str = "https://github.com/RustSec/advisory-db";

/// The program, installed if it is not there yet.
fn program() -> Result<PathBuf> {
    let root = shell::target().join("tools").join(format!("cargo-deny-{VERSION}"));
    let program = root.join("bin").join("cargo-deny").with_extension(std::env::consts::EXE_EXTENSION);
    if !program.is_file() {
        let package = format!("cargo-deny@{VERSION}");
        shell::run(&shell::cargo(), &["install", "--locked", "--root", &root.to_string_lossy(), &package])?;
    }
    Ok(program)
}

pub(crate) fn run() -> Result<()> {
    let program = program()?;
    let check = |what: &[&str]| shell::run(&program.to_string_lossy(), &[&["--all-features", "check"], what].concat());
    check(&["bans", "licenses", "sources"])?;
    // Told apart from advisories that were found, which fail.
    if !shell::works("git", &["ls-remote", DATABASE, "HEAD"]) {
        return Err(Missing(format!("{DATABASE} cannot be reached: no advisory was looked up")).into());
    }
    check(&["advisories"])
}
