//! Other programs, run at the root of the repository.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder in the repository")
}

/// The cargo that runs this.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Prints the command, runs it, and fails if it does.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<()> {
    let name = Path::new(program).file_stem().map_or(program.into(), |stem| stem.to_string_lossy());
    eprintln!("$ {name} {}", args.join(" "));
    let status = Command::new(program).args(args).current_dir(root()).status();
    let status = status.with_context(|| format!("{program} cannot be started: is it installed?"))?;
    if !status.success() {
        bail!("`{name} {}` failed: {status}", args.join(" "));
    }
    Ok(())
}

/// Whether the command can be run and succeeds, whatever it prints.
pub(crate) fn works(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).current_dir(root()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
