//! `fewbit perplexity`: measures how well a model predicts a text, computed as llama.cpp does.

use fewbit::evaluate::Perplexity;
use serde_json::json;

use crate::args::{Common, PerplexityArgs};
use crate::loading::{load, text_of, windows};
use crate::output::{Out, print_json, progress_bar};

pub(crate) fn run(common: &Common, args: &PerplexityArgs) -> anyhow::Result<()> {
    let text = text_of(&args.file)?;
    let model = load(common, &args.model.model)?;
    let options = windows(args.ctx, args.chunks);

    let bar = progress_bar("{wide_bar} {pos}/{len} windows, {msg}, {eta} left");
    let result = model.perplexity(&text, &options, |so_far: &Perplexity| {
        bar.set_length(so_far.chunks as u64);
        bar.set_position(so_far.chunks_done as u64);
        bar.set_message(format!("perplexity {:.4}", so_far.ppl()));
    });
    bar.finish_and_clear();
    let result = result?;

    if common.json {
        let mut object = json!({
            "ppl": result.ppl(),
            "stderr": result.stderr(),
            "nll": result.nll(),
            "tokens_scored": result.nll_per_token.len(),
            "tokens_per_s": result.tokens_per_second(),
            "ctx": args.ctx,
            "chunks": result.chunks_done,
        });
        if args.per_token {
            object["nll_per_token"] = json!(result.nll_per_token);
        }
        return print_json(&object);
    }
    let mut out = Out::new();
    out.line(format_args!(
        "perplexity {:.4} +/- {:.4} over {} tokens in {} windows of {}, {:.0} tokens/s",
        result.ppl(),
        result.stderr(),
        result.nll_per_token.len(),
        result.chunks_done,
        args.ctx,
        result.tokens_per_second(),
    ))?;
    out.flush()
}
