//! `fewbit audit`: verifies that the log of a server was not changed.

use anyhow::{Context, bail};
use fewbit_gateway::{Head, verify};
use serde_json::json;

use crate::args::{AuditArgs, AuditCommand, Common};
use crate::output::{Out, print_json};

pub(crate) fn run(common: &Common, args: &AuditArgs) -> anyhow::Result<()> {
    let AuditCommand::Verify(args) = &args.command;
    let noted = args.head.as_deref().map(parse).transpose()?;
    let head = verify(args.place.store()?, noted.as_ref(), |_| ())?;
    if common.json {
        return print_json(&json!({ "lines": head.n, "hash": head.hash }));
    }
    let mut out = Out::new();
    out.line(format_args!("{} lines, unchanged; head {}:{}", head.n, head.n, head.hash))?;
    out.flush()
}

fn parse(text: &str) -> anyhow::Result<Head> {
    let (n, hash) = text.split_once(':').with_context(|| format!("{text:?} is not a head: give LINES:HASH"))?;
    if hash.len() != 64 {
        bail!("{hash:?} is not a hash: give LINES:HASH as `fewbit audit verify` shows it");
    }
    Ok(Head { n: n.parse().with_context(|| format!("{n:?} is not a number of lines"))?, hash: hash.to_owned() })
}
