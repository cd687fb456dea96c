//! Tests the GPU backend on Debian's lavapipe, a Vulkan driver that computes on the CPU: the bits of every kernel, and
//! a real model through the program.
//!
//! This neither needs nor tests a GPU. On a machine with one, `cargo test --release -p fewbit-gpu --features wgpu` uses
//! the first device, whatever it is.

use anyhow::Result;

use crate::debian;
use crate::shell::{self, Missing};

/// Debian's Vulkan drivers, and the library that finds drivers.
const PACKAGES: [&str; 2] = ["libvulkan1", "mesa-vulkan-drivers"];

/// Installs missing packages if it may, then runs the tests, and lets a model answer.
pub(crate) fn run() -> Result<()> {
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
    shell::run(&cargo, &[&program[..], &prompt].concat())
}
