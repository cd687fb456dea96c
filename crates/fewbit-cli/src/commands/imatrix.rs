//! `fewbit imatrix`: measures an importance matrix, which tells how large the inputs of a model's matrices are on a
//! text.

use serde_json::json;

use crate::args::{Common, ImatrixArgs};
use crate::loading::{load_on_cpu, locate, text_of, windows};
use crate::output::{Out, print_json, progress_bar};
use crate::signals::Tidy;

pub(crate) fn run(common: &Common, args: &ImatrixArgs) -> anyhow::Result<()> {
    let text = text_of(&args.file)?;
    let model = load_on_cpu(common, &args.model.model)?;
    let options = windows(args.ctx, args.chunks);

    let bar = progress_bar("{wide_bar} {pos}/{len} windows, {eta} left");
    let importance = model.importance(&text, &args.file.display().to_string(), &options, |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let mut importance = importance?;
    // If a file stores several matrices as one tensor, they have no tensor names of their own.
    let file = fewbit::expert::open(&locate(common, &args.model.model)?)?;
    importance.retain(|name| file.weights().tensor(name).is_some());
    let tidy = Tidy::new();
    let n_bytes = importance.write(&args.output)?;
    drop(tidy);

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
