//! What `fewbit serve` exports with the feature `otel`, received by OpenTelemetry's own types in Python.

use anyhow::{Result, bail};

use crate::{clients, shell};

/// Builds the program with the feature, and runs the collector against it.
pub(crate) fn run() -> Result<()> {
    let python = clients::environment(clients::FOLDER, "clients")?;
    shell::run(&shell::cargo(), &["build", "--release", "--quiet", "-p", "fewbit-cli", "--features", "otel"])?;
    let program = shell::target().join("release/fewbit").with_extension(std::env::consts::EXE_EXTENSION);
    let script = shell::root().join(clients::FOLDER).join("telemetry.py");
    eprintln!("$ python {}", script.display());
    let status = shell::command(python).arg(&script).env("FEWBIT_PROGRAM", program).status()?;
    if !status.success() {
        bail!("{} failed: {status}", script.display());
    }
    Ok(())
}
