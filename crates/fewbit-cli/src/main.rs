//! The `fewbit` program.
//!
//! Results go to stdout, everything else to stderr. Exit status: 0 for success, 1 for failure (one line `error: ...`
//! tells why and what to do), 2 for wrong usage, 128 plus the signal's number if a signal ended it.
#![forbid(unsafe_code)]

mod advice;
mod args;
mod commands;
mod hyphens;
mod loading;
mod output;
mod placed;
mod signals;
#[cfg(feature = "otel")]
mod telemetry;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(hyphens::sorted(&Cli::command(), std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout, which may be closed: that is not an error.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(2),
            };
        }
    };
    start_log(&cli);
    signals::install();
    let common = &cli.common;
    let result = match &cli.command {
        Command::Run(args) => commands::run::run(common, args),
        Command::Chat(args) => commands::chat::run(common, args),
        Command::Pull(args) => commands::pull::run(common, args),
        Command::List(args) => commands::list::run(common, args),
        Command::Inspect(args) => commands::inspect::run(common, args),
        Command::Devices => commands::devices::run(common),
        Command::Tokenize(args) => commands::tokenize::run(common, args),
        Command::Embed(args) => commands::embed::run(common, args),
        Command::Perplexity(args) => commands::perplexity::run(common, args),
        Command::Bench(args) => commands::bench::run(common, args),
        Command::Quantize(args) => commands::quantize::run(common, args),
        Command::Compare(args) => commands::compare::run(common, args),
        Command::Imatrix(args) => commands::imatrix::run(common, args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => commands::serve::run(common, args),
        #[cfg(feature = "serve")]
        Command::Batch(args) => commands::batch::run(common, args),
        #[cfg(feature = "serve")]
        Command::Keys(args) => commands::keys::run(common, args),
        #[cfg(feature = "serve")]
        Command::Usage(args) => commands::usage::run(common, args),
        #[cfg(feature = "serve")]
        Command::Audit(args) => commands::audit::run(common, args),
        #[cfg(feature = "serve")]
        Command::Prompts(args) => commands::prompts::run(common, args),
        #[cfg(feature = "serve")]
        Command::Replay(args) => commands::replay::run(common, args),
    };
    if let Some(code) = signals::exit_code() {
        // The command has cleaned up by now.
        return ExitCode::from(code);
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of stdout closed it, which is not an error.
        Err(error) if error.is::<output::StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("error: {}", output::one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Sends the log of the libraries to stderr, at the requested level. A server always tells what goes wrong; every command
/// tells which GPU `auto` chose, and that a device was lost.
fn start_log(cli: &Cli) {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).without_time();
    let level = match cli.common.verbose {
        #[cfg(feature = "serve")]
        0 if matches!(cli.command, Command::Serve(_)) => {
            let all = Targets::new().with_default(LevelFilter::WARN);
            return log.finish().with(all.with_target("fewbit::device::auto", LevelFilter::INFO)).init();
        }
        0 => {
            let devices = Targets::new().with_target("fewbit::device", LevelFilter::WARN);
            let devices = devices.with_target("fewbit::device::auto", LevelFilter::INFO);
            return log.with_target(false).finish().with(devices).init();
        }
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    log.with_max_level(level).init();
}
