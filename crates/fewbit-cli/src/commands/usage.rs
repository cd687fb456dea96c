//! `fewbit usage`: what was used of a server, and what it cost.

use fewbit_gateway::{By, usage};
use serde_json::json;

use crate::args::{Common, UsageArgs, UsageBy};
use crate::output::{Out, print_json};

pub(crate) fn run(common: &Common, args: &UsageArgs) -> anyhow::Result<()> {
    let (by, name) = match args.by {
        UsageBy::Key => (By::Key, "key"),
        UsageBy::Model => (By::Model, "model"),
        UsageBy::Day => (By::Day, "day"),
    };
    let rows = usage(args.place.store()?, by)?;
    if common.json {
        return print_json(&json!({ "by": name, "rows": rows }));
    }
    let mut out = Out::new();
    if args.csv {
        out.line("of,answers,refused,prompt_tokens,cached_tokens,completion_tokens,cost")?;
        for row in &rows {
            let of = if row.of.contains([',', '"', '\n']) {
                format!("\"{}\"", row.of.replace('"', "\"\""))
            } else {
                row.of.clone()
            };
            let (prompt, cached, completion) = (row.prompt_tokens, row.cached_tokens, row.completion_tokens);
            out.line(format_args!("{of},{},{},{prompt},{cached},{completion},{}", row.answers, row.refused, row.cost))?;
        }
        return out.flush();
    }
    let width = rows.iter().map(|row| row.of.chars().count()).max().unwrap_or(0).max(name.len());
    out.line(format_args!("{name:width$}  answers  refused  prompt tokens  known already  answer tokens        cost"))?;
    for row in &rows {
        out.line(format_args!(
            "{:width$}  {:>7}  {:>7}  {:>13}  {:>13}  {:>13}  {:>10.4}",
            row.of, row.answers, row.refused, row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.cost
        ))?;
    }
    out.flush()
}
