//! Automation of the fewbit repository: what would otherwise be a shell script that nobody remembers.
//!
//! `cargo xtask` lists the commands. Each prints the commands that it runs, so that one of them can be repeated
//! by hand.
#![forbid(unsafe_code)]

mod aarch64;
mod clients;
mod debian;
mod examples;
mod features;
mod fuzz;
mod gpu;
mod public_api;
mod record;
mod shell;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// Name, arguments, what it does, and the function.
type Task = (&'static str, &'static str, &'static str, fn(&[String]) -> Result<()>);

const TASKS: &[Task] = &[
    ("ci", "[--full]", "everything that CI runs (.ci/run); with --full also fuzzing and all tests on aarch64", ci),
    ("aarch64", "[--all]", "the kernels' tests on an emulated aarch64 (Debian's packages)", aarch64::run),
    ("clients", "", "run official clients against `fewbit serve`", clients::run),
    ("examples", "", "run every example to its end", examples::run),
    ("features", "", "check each crate with each of its features alone, and with none", features::run),
    ("gpu", "", "the GPU backend on a Vulkan driver that needs no GPU (Debian's packages)", gpu::run),
    ("public-api", "[--write]", "compare the public API with docs/public-api.txt, or write that", public_api::run),
    ("record-bench", "[--kernels|--models] [--quick]", "measure, and write benches/records/DATE-CPU.csv", record::run),
    ("fuzz", "[--seconds N] [TARGET..]", "fuzz the parsers, N seconds each (60)", fuzz::run),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.split_first() {
        None => {
            help();
            Ok(())
        }
        Some((name, rest)) => match TASKS.iter().find(|(task, ..)| task == name) {
            Some((.., run)) => run(rest),
            None if ["help", "-h", "--help"].contains(&name.as_str()) => {
                help();
                Ok(())
            }
            None => {
                eprintln!("error: there is no command {name:?}: `cargo xtask` lists them");
                return ExitCode::from(2);
            }
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let is_missing = error.chain().any(|cause| cause.is::<shell::Missing>());
            if is_missing { ExitCode::from(shell::Missing::CODE) } else { ExitCode::FAILURE }
        }
    }
}

fn help() {
    println!("cargo xtask COMMAND\n");
    for (name, args, what, _) in TASKS {
        println!("  {:34} {what}", format!("{name} {args}"));
    }
}

fn ci(args: &[String]) -> Result<()> {
    match args {
        [] => shell::run("bash", &[".ci/run"]),
        [arg] if arg == "--full" => shell::run("bash", &[".ci/run", "--full"]),
        _ => bail!("ci takes `--full` or nothing"),
    }
}
