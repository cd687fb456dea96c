//! `fewbit embed`: computes the embeddings of texts, and prints one line for each.

use anyhow::bail;
use fewbit::Pooling;
use serde_json::json;

use crate::args::{Common, EmbedArgs, PoolingArg};
use crate::loading::{load, text_of, text_of_stdin};
use crate::output::{Out, print_json, usage_json};

pub(crate) fn run(common: &Common, args: &EmbedArgs) -> anyhow::Result<()> {
    let mut texts = args.texts.clone();
    if let Some(file) = &args.file {
        let text = if file.as_os_str() == "-" { text_of_stdin("the texts")? } else { text_of(file)? };
        texts.extend(text.lines().map(str::to_owned));
    }
    if let Some(i) = texts.iter().position(String::is_empty) {
        bail!("text {} is empty: leave it out", i + 1);
    }
    let model = load(common, &args.model.model)?;
    let pooling = args.pooling.map_or(model.default_pooling(), Pooling::from);
    let out = model.embed(&texts).pooling(pooling).normalize(!args.no_normalize).run()?;
    if common.json {
        return print_json(&json!({
            "embeddings": out.vectors,
            "dim": model.config().dim,
            "pooling": PoolingArg::name(pooling),
            "normalized": !args.no_normalize,
            "tokens": out.tokens,
            "usage": usage_json(&out.usage),
            "tokens_per_s": out.usage.prompt as f64 / out.elapsed.as_secs_f64(),
        }));
    }
    let mut lines = Out::new();
    for vector in &out.vectors {
        let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
        lines.line(numbers.join(" "))?;
    }
    lines.flush()
}
