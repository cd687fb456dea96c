//! Everything that only a real GPU can show, as one prepared run: whether its results are right, and how fast it is.
//!
//! It makes a folder with the program, the tests of the GPU backends as programs, and a script; all are stripped. The folder
//! needs no registry and no toolchain where it runs: copy it to a machine with a GPU and run `./run.sh`, or
//! `./run.sh vulkan:1` for another than the first device, or `./run.sh cuda` for NVIDIA's driver.
//!
//! The script takes under eight minutes: the bits of every operation and weight type, through Vulkan or Metal in exact
//! arithmetic; 200 greedy tokens of a model of stories against the CPU's, with `cuda` bit for bit, and as many of a large
//! model; then tables of the speed of random weights of known shapes, next to what the device was measured to be able to
//! do at most, and of the time of each kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::shell;

/// What to prepare and run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only prepare the folder, to copy it to a machine with a GPU
    #[arg(long)]
    prepare: bool,
    /// The device to run it on [default: vulkan, or metal]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// A small shape and few tokens: for a try on a driver that computes on the CPU
    #[arg(long)]
    quick: bool,
}

/// The most bytes of the folder.
const MOST_BYTES: u64 = 60_000_000;

const SCRIPT: &str = r#"#!/bin/sh
# Checks a GPU, and measures it: ./run.sh [DEVICE]. Made by `cargo xtask gpu-check`.
# QUICK=1 measures a small shape only.
set -eu
cd "$(dirname "$0")"
device=${1:-DEVICE}
export FEWBIT_TEST_GPU=1
# The tests take the first device of its kind unless it has a number.
case $device in *:*) number=${device#*:} ;; *) number=0 ;; esac
case $device in
cuda*) tests=./cuda-tests; export FEWBIT_TEST_CUDA=$number ;;
*) tests=./gpu-tests; export FEWBIT_TEST_DEVICE=$number ;;
esac

echo "==> devices"
./fewbit devices
echo "==> bits of every operation and type, tokens of 200 steps (the CPU's must come out)"
$tests --test-threads 4
if [ "${QUICK:-}" = 1 ]; then
    shapes="smollm2-135m:Q8_0"
    checked="$shapes"
    steps=4
    lengths="-p 16 -n 4 -r 1"
else
    shapes="tinyllama-1.1b:Q4_0 tinyllama-1.1b:Q4_K_M tinyllama-1.1b:Q8_0 llama-3.1-8b:Q4_K_M"
    checked="tinyllama-1.1b:Q4_K_M"
    steps=200
    lengths="-p 512 -n 64 --depth 0,2048 --batch 1,8 -r 3"
fi
for shape in $shapes; do
    echo "==> $shape"
    check=
    [ "$shape" != "$checked" ] || check="--check $steps"
    ./fewbit bench --shape "${shape%%:*}" --type "${shape##*:}" --device "$device" $lengths $check --kernels
done
echo "==> done"
"#;

/// Prepares the folder, and runs its script unless that is not wanted.
pub(crate) fn run(options: &Options) -> Result<()> {
    let cargo = shell::cargo();
    // Without the server: a third of the program, which nothing here runs.
    let features = ["--no-default-features", "--features", "cuda,wgpu"];
    shell::run(&cargo, &[&["build", "--locked", "--release", "-p", "fewbit-cli"], &features[..]].concat())?;
    let tests = ["wgpu", "cuda"].map(|name| test_program(&cargo, name));
    let target = shell::target();
    let folder = target.join("gpu-check");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let program = format!("fewbit{}", std::env::consts::EXE_SUFFIX);
    strip(&target.join("release").join(&program), &folder.join(&program))?;
    for (tests, name) in tests.into_iter().zip(["gpu-tests", "cuda-tests"]) {
        strip(&tests?, &folder.join(name))?;
    }
    let default = if cfg!(target_vendor = "apple") { "metal" } else { "vulkan" };
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT.replace("DEVICE}", &format!("{default}}}")))?;
    make_executable(&script)?;

    let mut n_bytes = 0;
    for entry in fs::read_dir(&folder)? {
        n_bytes += entry?.metadata()?.len();
    }
    ensure!(n_bytes < MOST_BYTES, "the folder has {n_bytes} bytes, of at most {MOST_BYTES}");
    println!("{}: {:.1} MB; copy it to a machine with a GPU and run ./run.sh", folder.display(), n_bytes as f64 / 1e6);
    if options.prepare {
        return Ok(());
    }
    let mut command = shell::command(&script);
    command.args(&options.device);
    if options.quick {
        command.env("QUICK", "1");
    }
    shell::run_command(command)
}

/// Builds the tests of a GPU backend, and returns their program.
fn test_program(cargo: &str, name: &str) -> Result<PathBuf> {
    let mut command = shell::command(cargo);
    // With the packages of README's test command, so that nothing is compiled again.
    command.args(["test", "--locked", "--release", "--no-run", "--test", name, "--message-format", "json"]);
    command.current_dir(shell::root()).stderr(Stdio::inherit());
    let output = command.output().context("cargo cannot be started")?;
    ensure!(output.status.success(), "the tests of the GPU backend cannot be built");
    let output = String::from_utf8(output.stdout).context("cargo writes UTF-8")?;
    let messages = output.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let found = messages
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    found.context("cargo names no program of the tests")
}

/// Copies a program without its symbols.
fn strip(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    let mut command = shell::command("strip");
    command.arg(to);
    shell::run_command(command).context("`strip` comes with a C compiler (Debian's binutils, Xcode's tools)")
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> Result<()> {
    Ok(())
}
