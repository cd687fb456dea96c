//! The kernel tests on emulated aarch64: compiled for aarch64 and run by QEMU, on an x86-64 machine with Debian's
//! packages (Debian 12 or later).
//!
//! They compare bits: every operation on NEON must give the same as its scalar definition. Speed cannot be measured
//! here. The packages are one download of 260 MB; compiling takes a minute, and the tests about as long. A rustup
//! toolchain that has the target is used if there is one, and otherwise Debian's, with a separate build folder.

use std::path::Path;

use anyhow::Result;

use crate::debian;
use crate::shell::{self, Missing};

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// The linker and C library, the emulator, and the C library that emulated programs load.
const TOOLS: [&str; 4] = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user", "libc6:arm64"];

/// Debian's compiler with the standard library of aarch64.
const COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev:arm64"];

/// Tests that take a quarter of a minute each under emulation, and that other tests largely cover.
const LONG: [&str; 4] = [
    "attention_equals_its_definition_for_every_split",
    "values_in_keys_of_several_pages",
    "every_batch_size_from_1_to_300",
    "long_rows_and_large_batches",
];

/// Installs missing packages if it may, then compiles and runs the tests. `all` includes the long ones.
pub(crate) fn run(all: bool) -> Result<()> {
    if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) {
        return Err(Missing("aarch64 is emulated on Linux on x86-64 only".to_owned()).into());
    }
    let debian = !has_target();
    let compiler: &[&str] = if debian { &COMPILER } else { &[] };
    debian::install(&[&TOOLS, compiler].concat(), "dpkg --add-architecture arm64 && ")?;

    let mut command = shell::command(if debian { "/usr/bin/cargo".to_owned() } else { shell::cargo() });
    command.args(["test", "--locked", "--release", "--target", TARGET, "-p", "fewbit-quant", "-p", "fewbit-kernels"]);
    // Documentation is the same everywhere, and doc tests are compiled one by one.
    command.args(["--lib", "--test", "*", "--"]);
    if !all {
        for name in LONG {
            command.args(["--skip", name]);
        }
    }
    if debian {
        // This runs under rustup's cargo, whose settings do not apply to Debian's.
        for name in ["RUSTUP_TOOLCHAIN", "RUSTC", "RUSTDOC", "CARGO"] {
            command.env_remove(name);
        }
        command.env("PATH", format!("/usr/bin:{}", std::env::var("PATH").unwrap_or_default()));
    }
    let target = shell::target();
    command
        .env("CARGO_TARGET_DIR", target.join("emulated"))
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc")
        // All features that QEMU supports; without `-L`, which makes threads hang.
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "qemu-aarch64 -cpu max");
    shell::run_command(command)
}

/// Whether the compiler that runs this has the standard library of aarch64.
fn has_target() -> bool {
    let output = shell::command("rustc").args(["--print", "sysroot"]).output();
    output.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Path::new(&sysroot).join("lib/rustlib").join(TARGET).is_dir()
    })
}
