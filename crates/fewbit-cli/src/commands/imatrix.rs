//! `fewbit imatrix`: which inputs of a model's matrices are large, on a text.

use std::io::IsTerminal;

use anyhow::Context;
use fewbit::evaluate::PerplexityOptions;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::args::{Common, ImatrixArgs};
use crate::loading::{load, locate};
use crate::output::{Out, print_json};

pub(crate) fn run(common: &Common, args: &ImatrixArgs) -> anyhow::Result<()> {
    let text = std::fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let text = String::from_utf8(text)
        .map_err(|error| anyhow::anyhow!("{} is not UTF-8 text: {}", args.file.display(), error.utf8_error()))?;
    let model = load(common, &args.model.model)?;
    let mut options = PerplexityOptions::default().ctx(args.ctx);
    if let Some(n) = args.chunks {
        options = options.chunks(usize::try_from(n).unwrap_or(usize::MAX));
    }

    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} windows, {eta} left") {
        bar.set_style(style);
    }
    let importance = model.importance(&text, &args.file.display().to_string(), &options, |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let mut importance = importance?;
    // Where a file has one matrix for several parts, the parts have no names of their own in it.
    let file = fewbit::open(&locate(&args.model.model)?)?;
    importance.retain(|name| file.weights().tensor(name).is_some());
    let n_bytes = importance.write(&args.output)?;

    if common.json {
        return print_json(&json!({
            "entries": importance.len(),
            "chunks": importance.n_chunks(),
            "ctx": importance.chunk_tokens(),
            "bytes": n_bytes,
        }));
    }
    let mut out = Out::new();
    out.line(format_args!(
        "{}: {} matrices, over {} windows of {} tokens",
        args.output.display(),
        importance.len(),
        importance.n_chunks(),
        importance.chunk_tokens(),
    ))?;
    out.flush()
}
