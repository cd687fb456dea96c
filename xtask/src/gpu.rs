//! Tests the GPU backend on Debian's lavapipe, a Vulkan driver that computes on the CPU: the bits of every kernel, and
//! a real model through the program; on request also that it says the same as on the CPU for 200 tokens, in the arithmetic
//! of the device, which takes minutes.
//!
//! This neither needs nor tests a GPU. On a machine with one, `cargo test --release -p fewbit-gpu --features wgpu` uses
//! the first device, whatever it is.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::debian;
use crate::shell::{self, Missing};

/// Debian's Vulkan drivers, and the library that finds drivers.
const PACKAGES: [&str; 2] = ["libvulkan1", "mesa-vulkan-drivers"];

/// The most that distributions may diverge in the mean over the steps, in nats: twice what was measured.
const MOST_MEAN_KL: f64 = 8e-4;

/// Installs missing packages if it may, then runs the tests, and lets a model answer.
pub(crate) fn run(all: bool) -> Result<()> {
    if !cfg!(target_os = "linux") {
        return Err(Missing("lavapipe is a driver for Linux".to_owned()).into());
    }
    debian::install(&PACKAGES, "")?;
    let cargo = shell::cargo();
    let mut tests = shell::command(&cargo);
    // With the packages of README's test command, so that nothing is compiled again.
    tests.args(["test", "--locked", "--release", "--test", "plan", "--test", "wgpu"]);
    // Without this variable, they are skipped if there is no device.
    tests.env("FEWBIT_TEST_GPU", "1");
    shell::run_command(tests)?;
    // What a model does when its device is lost.
    let mut tests = shell::command(&cargo);
    tests.args(["test", "--locked", "--release", "--test", "it", "--", "devices::gpu"]);
    tests.env("FEWBIT_TEST_GPU", "1");
    shell::run_command(tests)?;
    let program = ["run", "--locked", "--release", "-p", "fewbit-cli", "--"];
    shell::run(&cargo, &[&program[..], &["devices"]].concat())?;
    let prompt = ["run", "smollm2-135m-instruct", "Why is the sky blue?", "-n", "8", "--device", "vulkan:0"];
    shell::run(&cargo, &[&program[..], &prompt].concat())?;
    if all { check(&cargo, &program) } else { Ok(()) }
}

/// Compares 200 steps of a model with those of the CPU.
fn check(cargo: &str, program: &[&str]) -> Result<()> {
    let bench =
        ["bench", "smollm2-135m-instruct", "--device", "vulkan:0", "-p", "0", "-n", "0", "--check", "200", "--json"];
    let mut command = shell::command(cargo);
    command.args(program).args(bench).current_dir(shell::root()).stderr(Stdio::inherit());
    let output = command.output().context("cargo cannot be started")?;
    ensure!(output.status.success(), "`fewbit bench --check` failed");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).context("it prints JSON")?;
    let check = &json["check"];
    println!("compared with the CPU: {check}");
    ensure!(check["same_tokens"] == 200, "other tokens than on the CPU");
    ensure!(
        check["mean_kl"].as_f64().is_some_and(|kl| kl < MOST_MEAN_KL),
        "further from the CPU than {MOST_MEAN_KL:e}"
    );
    Ok(())
}
