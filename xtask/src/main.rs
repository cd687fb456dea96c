//! Automation of the fewbit repository: what would otherwise be a shell script that nobody remembers.
//!
//! `cargo xtask` lists the commands. Each prints the commands that it runs, so that one of them can be repeated
//! by hand.
#![forbid(unsafe_code)]

mod aarch64;
mod clients;
mod debian;
mod deny;
mod examples;
mod features;
mod fuzz;
mod gpu;
mod gpu_check;
mod openapi;
mod page;
mod pictures;
mod ptx;
mod public_api;
mod record;
mod shell;
mod telemetry;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// Automation of the fewbit repository
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Everything that CI runs (.ci/run)
    Ci {
        /// Also each feature alone, candle beside fewbit, the long tests on aarch64, OpenTelemetry, fuzzing, and what is known of the dependencies
        #[arg(long)]
        full: bool,
    },
    /// The kernels' tests on an emulated aarch64 (Debian's packages)
    Aarch64 {
        /// The long ones as well
        #[arg(long)]
        all: bool,
    },
    /// Run official clients against `fewbit serve`
    Clients,
    /// Look up advisories, licences and sources of all dependencies (cargo-deny, which it compiles)
    Deny,
    /// Run every example to its end
    Examples {
        /// Those with candle as well, which takes minutes to compile
        #[arg(long)]
        candle: bool,
    },
    /// Check each crate with each of its features alone, and with none
    Features,
    /// The GPU backend on a Vulkan driver that needs no GPU (Debian's packages)
    Gpu {
        /// Also the tokens of 200 steps of a real model, which takes minutes
        #[arg(long)]
        all: bool,
    },
    /// Prepare what only a real GPU can show, as a folder that runs without a toolchain, and run it
    GpuCheck(gpu_check::Options),
    /// Test `fewbit serve` with requests made from OpenAPI documents: its own, OpenAI's, Anthropic's
    Openapi {
        /// 2,000 requests and more
        #[arg(long)]
        full: bool,
    },
    /// Test the page of `fewbit serve` in Chromium (Debian's package)
    Page,
    /// Compile the CUDA kernels of fewbit-gpu to PTX (NVRTC, a package for Python; no GPU is needed)
    Ptx {
        /// Only say whether the PTX belongs to its sources, and rounds as the CPU does
        #[arg(long)]
        check: bool,
    },
    /// Compare the public API with docs/public-api.txt, or write that
    PublicApi {
        /// Write the file
        #[arg(long)]
        write: bool,
    },
    /// Measure, and write benches/records/DATE-CPU.csv
    RecordBench(record::Part),
    /// Draw README's pictures: the chart of docs/speed.md, the program in a terminal
    Pictures,
    /// Receive what `fewbit serve` exports for OpenTelemetry
    Telemetry,
    /// Fuzz the parsers
    Fuzz {
        /// How long, each
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u32,
        /// Which; all if none is named
        #[arg(value_name = "TARGET")]
        targets: Vec<String>,
    },
}

fn main() -> ExitCode {
    let Some(task) = Cli::parse().task else {
        // Nothing asked for: what there is.
        return match Cli::command().print_help() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    };
    let result = match task {
        Task::Ci { full } => ci(full),
        Task::Aarch64 { all } => aarch64::run(all),
        Task::Clients => clients::run(),
        Task::Deny => deny::run(),
        Task::Examples { candle } => examples::run(candle),
        Task::Features => features::run(),
        Task::Gpu { all } => gpu::run(all),
        Task::GpuCheck(options) => gpu_check::run(&options),
        Task::Openapi { full } => openapi::run(full),
        Task::Page => page::run(),
        Task::Ptx { check } => ptx::run(check),
        Task::PublicApi { write } => public_api::run(write),
        Task::RecordBench(part) => record::run(&part),
        Task::Pictures => pictures::run(),
        Task::Telemetry => telemetry::run(),
        Task::Fuzz { seconds, targets } => fuzz::run(seconds, targets),
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

fn ci(full: bool) -> Result<()> {
    let args: &[&str] = if full { &[".ci/run", "--full"] } else { &[".ci/run"] };
    shell::run("bash", args)
}
