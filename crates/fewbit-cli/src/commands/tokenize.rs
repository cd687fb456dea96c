//! `fewbit tokenize`: text on stdin to token ids. Reads the vocabulary only, so files without any
//! weights will do, and folders with a `tokenizer.json` or its like.

use std::io::{BufRead, Read};

use anyhow::Context;
use fewbit::tokenizer::{SpecialTokens, TokenizerOptions};
use serde_json::json;

use crate::args::{Common, TokenizeArgs};
use crate::loading::{check_device, locate};
use crate::output::{Out, print_json};

pub(crate) fn run(common: &Common, args: &TokenizeArgs) -> anyhow::Result<()> {
    check_device(common)?;
    let path = locate(&args.model.model)?;
    let options = common.pre.as_ref().map_or_else(TokenizerOptions::default, TokenizerOptions::with_pre);
    let tokenizer = fewbit::open_tokenizer(&path, &options)?;
    let special = if args.special { SpecialTokens::Parse } else { SpecialTokens::Plain };

    if args.jsonl {
        let mut out = Out::new();
        for (i, line) in std::io::stdin().lock().lines().enumerate() {
            let line = line.with_context(|| format!("stdin: line {}", i + 1))?;
            let text: String = serde_json::from_str(&line)
                .map_err(|error| anyhow::anyhow!("stdin: line {} is not a JSON string: {error}", i + 1))?;
            out.line(json!(tokenizer.encode(&text, special)))?;
        }
        return out.flush();
    }

    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the text from stdin")?;
    let ids = tokenizer.encode(&text, special);
    if common.json {
        return print_json(&json!({ "ids": ids }));
    }
    let mut out = Out::new();
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    out.line(ids.join(" "))?;
    out.flush()
}
