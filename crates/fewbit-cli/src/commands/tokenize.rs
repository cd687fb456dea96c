//! `fewbit tokenize`: converts text on stdin to token ids. Only the vocabulary is read, so files without weights are
//! enough, and folders with a `tokenizer.json` or similar.

use std::io::BufRead;

use anyhow::Context;
use fewbit::expert::tokenizer::SpecialTokens;
use serde_json::json;

use crate::args::{Common, TokenizeArgs};
use crate::loading::{locate, text_of_stdin, tokenizer_options, without_bom};
use crate::output::{Out, print_json};

pub(crate) fn run(common: &Common, args: &TokenizeArgs) -> anyhow::Result<()> {
    let path = locate(common, &args.model.model)?;
    let tokenizer = fewbit::expert::open_tokenizer(&path, &tokenizer_options(common))?;
    let special = if args.special { SpecialTokens::Parse } else { SpecialTokens::Plain };

    if args.jsonl {
        let mut out = Out::new();
        for (i, line) in std::io::stdin().lock().lines().enumerate() {
            let line = line.with_context(|| format!("stdin: line {}", i + 1))?;
            let line = without_bom(line, i == 0);
            let text: String = serde_json::from_str(&line)
                .map_err(|error| anyhow::anyhow!("stdin: line {} is not a JSON string: {error}", i + 1))?;
            out.line(json!(tokenizer.encode(&text, special)))?;
        }
        return out.flush();
    }

    let ids = tokenizer.encode(&text_of_stdin("the text")?, special);
    if common.json {
        return print_json(&json!({ "ids": ids }));
    }
    let mut out = Out::new();
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    out.line(ids.join(" "))?;
    out.flush()
}
