//! Writing to stdout and stderr when either may be closed.
//!
//! `println!` panics on a closed pipe; a program whose output is piped into `head` must not. Every
//! write to stdout goes through [`Out`], which turns a closed pipe into [`StdoutClosed`], which ends
//! the program quietly.

use std::error::Error;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::time::Duration;

use fewbit::{Timings, Usage};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::advice;

/// Stdout was closed by its reader.
#[derive(Debug)]
pub(crate) struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout is closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Stdout, buffered.
pub(crate) struct Out(BufWriter<StdoutLock<'static>>);

impl Out {
    pub(crate) fn new() -> Self {
        Self(BufWriter::new(io::stdout().lock()))
    }

    pub(crate) fn text(&mut self, text: &str) -> anyhow::Result<()> {
        check(self.0.write_all(text.as_bytes()))
    }

    pub(crate) fn line(&mut self, line: impl fmt::Display) -> anyhow::Result<()> {
        check(writeln!(self.0, "{line}"))
    }

    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        check(self.0.flush())
    }
}

/// Prints the single JSON object of `--json`.
pub(crate) fn print_json(value: &Value) -> anyhow::Result<()> {
    let mut out = Out::new();
    out.line(value)?;
    out.flush()
}

fn check(result: io::Result<()>) -> anyhow::Result<()> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => StdoutClosed.into(),
        _ => anyhow::Error::new(error).context("cannot write to stdout"),
    })
}

/// Prints a line on stderr. Ignores errors: if stderr is closed, there is no place to report them.
pub(crate) fn note(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The template of a progress bar that counts bytes.
pub(crate) const TRANSFER: &str = "{wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";

/// Creates a progress bar on stderr, which is hidden if that is not a terminal. Its length is 0 until the first report,
/// so that it is not drawn before.
pub(crate) fn progress_bar(template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Formats an error with its causes and, if there is any, advice, as one line.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut text = with_causes(error.as_ref());
    if let Some(advice) = advice::on(error) {
        text += &format!(" ({advice})");
    }
    text.split(['\n', '\r']).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Formats an error with its causes. Some libraries repeat the cause in their message; then it is not repeated here.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text += ": ";
            text += &words;
        }
        next = cause.source();
    }
    text
}

pub(crate) fn usage_json(usage: &Usage) -> Value {
    json!({
        "prompt": usage.prompt,
        "cached": usage.cached,
        "completion": usage.completion,
        "drafted": usage.drafted,
        "accepted": usage.accepted,
    })
}

pub(crate) fn timings_json(timings: &Timings) -> Value {
    json!({
        "load_s": timings.load.as_secs_f64(),
        "queue_s": timings.queue.as_secs_f64(),
        "prefill_s": timings.prefill.as_secs_f64(),
        "decode_s": timings.decode.as_secs_f64(),
        "sample_s": timings.sample.as_secs_f64(),
        "constrain_s": timings.constrain.as_secs_f64(),
        "prefill_tok_s": timings.prefill_tokens_per_second(),
        "decode_tok_s": timings.decode_tokens_per_second(),
    })
}

/// Formats a number of bytes, such as `4.2 kB` or `98.4 MB`: in decimal units, like file managers and download pages.
pub(crate) fn bytes(n: u64) -> String {
    let mut value = n as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") }
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Shows the model's reasoning, dimmed, if stderr is a terminal. Not on stdout, which is for the answer.
pub(crate) fn reasoning(text: &str) {
    let mut stderr = std::io::stderr().lock();
    if !text.is_empty() && std::io::IsTerminal::is_terminal(&stderr) {
        // Reasoning is not essential, so errors are ignored.
        let _ = std::io::Write::write_all(&mut stderr, format!("\x1b[2m{text}\x1b[0m").as_bytes());
    }
}
