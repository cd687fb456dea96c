//! `fewbit usage`: shows the usage of a server, and its cost.

use fewbit_gateway::{By, Row, usage};
use serde_json::json;

use crate::args::{Common, UsageArgs, UsageBy};
use crate::output::{Out, print_json};

pub(crate) fn run(common: &Common, args: &UsageArgs) -> anyhow::Result<()> {
    let (by, name) = match args.by {
        UsageBy::Key => (By::Key, "key"),
        UsageBy::Model => (By::Model, "model"),
        UsageBy::Backend => (By::Backend, "backend"),
        UsageBy::Prompt => (By::Prompt, "prompt"),
        UsageBy::Feature => (By::Feature, "feature"),
        UsageBy::Day => (By::Day, "day"),
    };
    let rows = usage(args.place.store()?, by)?;
    if common.json {
        return print_json(&json!({ "by": name, "rows": rows }));
    }
    let mut out = Out::new();
    if args.csv {
        out.line("of,answers,refused,prompt_tokens,cached_tokens,completion_tokens,cost,fallbacks,estimated")?;
        for row in &rows {
            let of = if row.of.contains([',', '"', '\n']) {
                format!("\"{}\"", row.of.replace('"', "\"\""))
            } else {
                row.of.clone()
            };
            let (prompt, cached, completion) = (row.prompt_tokens, row.cached_tokens, row.completion_tokens);
            let Row { answers, refused, cost, fallbacks, estimated, .. } = row;
            out.line(format_args!(
                "{of},{answers},{refused},{prompt},{cached},{completion},{cost},{fallbacks},{estimated}"
            ))?;
        }
        return out.flush();
    }
    let width = rows.iter().map(|row| row.of.chars().count()).max().unwrap_or(0).max(name.len());
    out.line(format_args!(
        "{name:width$}  answers  refused  prompt tokens  known already  answer tokens        cost  fallbacks  estimated"
    ))?;
    for row in &rows {
        out.line(format_args!(
            "{:width$}  {:>7}  {:>7}  {:>13}  {:>13}  {:>13}  {:>10.4}  {:>9}  {:>9}",
            row.of,
            row.answers,
            row.refused,
            row.prompt_tokens,
            row.cached_tokens,
            row.completion_tokens,
            row.cost,
            row.fallbacks,
            row.estimated
        ))?;
    }
    out.flush()
}
