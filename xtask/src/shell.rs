//! Runs other programs at the root of the repository.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A tool that a command needs is not on this machine: nothing was tested. The process ends with [`Missing::CODE`].
#[derive(Debug)]
pub(crate) struct Missing(pub(crate) String);

impl Missing {
    /// The exit code that `.ci/run` counts as skipped, where that is allowed.
    pub(crate) const CODE: u8 = 3;
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// The build folder of cargo.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder in the repository")
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Prints the command, runs it, and fails if it does.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args);
    run_command(command)
}

/// As [`run`], for a command with its own environment variables or its own folder.
pub(crate) fn run_command(mut command: Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let name = Path::new(&program).file_stem().map_or(program.clone(), |stem| stem.to_string_lossy().into_owned());
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let line = format!("{name} {}", args.join(" "));
    eprintln!("$ {line}");
    if command.get_current_dir().is_none() {
        command.current_dir(root());
    }
    let status = command.status();
    let status = status.with_context(|| format!("{program} cannot be started: is it installed?"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Whether the command can be run and succeeds; its output is discarded.
pub(crate) fn works(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).current_dir(root()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
