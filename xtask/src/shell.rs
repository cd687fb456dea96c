//! Runs other programs at the root of the repository.

use std::ffi::OsStr;
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

/// A command without what `cargo run` says of this program: a cargo that is told of another package than the one before
/// compiles again all build scripts that ask for it, ring's among them, and everything above them.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
    command
}

/// Prints the command, runs it, and fails if it does.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<()> {
    let mut command = command(program);
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
    let mut command = command(program);
    command.args(args).current_dir(root()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    /// What a cargo that tests sets for its tests stands for what `cargo run` sets.
    #[test]
    fn commands_do_not_learn_which_package_runs_them() {
        let command = super::command("cargo");
        let removed: Vec<_> = command.get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        for name in ["CARGO_PKG_NAME", "CARGO_PKG_VERSION_MAJOR", "CARGO_MANIFEST_DIR"] {
            assert!(removed.iter().any(|removed| *removed == name), "{name}: {removed:?}");
        }
    }
}
