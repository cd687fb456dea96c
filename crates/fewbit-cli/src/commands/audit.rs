//! `fewbit audit`: verifies that the log of a server was not changed, and writes parts of it.

use std::fmt;

use anyhow::{Context, bail};
use fewbit_gateway::{Entry, Head, date, verify};
use serde_json::json;

use crate::args::{AuditArgs, AuditCommand, Common, ExportArgs, StoreArg, VerifyArgs};
use crate::output::{Out, note, print_json};

pub(crate) fn run(common: &Common, args: &AuditArgs) -> anyhow::Result<()> {
    match &args.command {
        AuditCommand::Verify(args) => prove(common, args),
        AuditCommand::Head { place } => show_head(common, place),
        AuditCommand::Export(args) => export(args),
    }
}

fn prove(common: &Common, args: &VerifyArgs) -> anyhow::Result<()> {
    let noted = args.head.as_deref().map(parse).transpose()?;
    let head = verify(args.place.store()?, noted.as_ref(), |_| ())?;
    print(common, &head, format_args!("{} lines, unchanged; head {}", head.n, shown(&head)))
}

fn show_head(common: &Common, place: &StoreArg) -> anyhow::Result<()> {
    let head = verify(place.store()?, None, |_| ())?;
    print(common, &head, format_args!("{}", shown(&head)))
}

/// Prints a head: as JSON, or as this text.
fn print(common: &Common, head: &Head, text: fmt::Arguments<'_>) -> anyhow::Result<()> {
    if common.json {
        return print_json(&json!({ "lines": head.n, "hash": head.hash }));
    }
    let mut out = Out::new();
    out.line(text)?;
    out.flush()
}

/// Lines are written before the last one has been checked: the status says whether all of them are unchanged.
fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let (since, until) = (args.since.as_deref().map(day).transpose()?, args.until.as_deref().map(day).transpose()?);
    let is_asked_for = |entry: &Entry| {
        let day = date(entry.time_ms);
        since.is_none_or(|since| *since <= *day)
            && until.is_none_or(|until| *day <= *until)
            && args.key.as_ref().is_none_or(|key| entry.key.as_ref() == Some(key))
            && args.request.as_ref().is_none_or(|request| entry.request == *request)
    };
    let (mut out, mut written, mut n_written) = (Out::new(), Ok(()), 0_u64);
    let head = verify(args.place.store()?, None, |entry| {
        if written.is_ok() && is_asked_for(entry) {
            written = serde_json::to_string(entry).map_err(Into::into).and_then(|line| out.line(line));
            n_written += 1;
        }
    })?;
    written?;
    out.flush()?;
    note(format_args!("{n_written} of {} lines, unchanged; head {}", head.n, shown(&head)));
    Ok(())
}

fn shown(head: &Head) -> String {
    format!("{}:{}", head.n, head.hash)
}

/// Checks the form of a day. Days of this form are in the order of their texts.
fn day(text: &str) -> anyhow::Result<&str> {
    let form = |(i, byte): (usize, u8)| if i == 4 || i == 7 { byte == b'-' } else { byte.is_ascii_digit() };
    if text.len() != 10 || !text.bytes().enumerate().all(form) {
        bail!("{text:?} is not a day: give one such as 2026-11-28");
    }
    Ok(text)
}

fn parse(text: &str) -> anyhow::Result<Head> {
    let (n, hash) = text.split_once(':').with_context(|| format!("{text:?} is not a head: give LINES:HASH"))?;
    if hash.len() != 64 {
        bail!("{hash:?} is not a hash: give LINES:HASH as `fewbit audit verify` shows it");
    }
    Ok(Head { n: n.parse().with_context(|| format!("{n:?} is not a number of lines"))?, hash: hash.to_owned() })
}
