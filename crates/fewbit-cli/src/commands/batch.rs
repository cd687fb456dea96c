//! `fewbit batch IN OUT`: answers many requests from a file, in OpenAI's batch format.
//!
//! ```text
//! in:  {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
//! out: {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "body": {...}}, "error": null}
//! ```
//!
//! Output lines have the order of the input lines, and are written as soon as all lines before them are. A run that was
//! interrupted continues after the last complete line. The same input gives the same bytes.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use fewbit_serve::{BatchLines, EngineBackend, Server};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::args::{BatchArgs, Common};
use crate::loading;
use crate::output::{note, print_json, progress_bar};
use crate::signals::{self, Tidy};

pub(crate) fn run(common: &Common, args: &BatchArgs) -> anyhow::Result<()> {
    let n_done = done(&args.output, &args.input)?;
    let n_all = lines(&args.input)?.try_fold(0_u64, |n, line| line.map(|_| n + 1))?;
    let mut models = Vec::new();
    for given in &args.models {
        let id = EngineBackend::name_of(given);
        let model = loading::load(common, given).with_context(|| format!("model {id}"))?;
        models.push((id, model));
    }
    let server = Server::new(EngineBackend::new(models)?).local();
    if n_done > 0 {
        note(format_args!("{n_done} of {n_all} lines are there already: going on after them"));
    }
    let out = OpenOptions::new().create(true).append(true).open(&args.output);
    let mut out = out.with_context(|| format!("cannot write {}", args.output.display()))?;
    let bar = progress_bar("{wide_bar} {pos}/{len} {per_sec} {eta}");
    bar.set_length(n_all);
    bar.set_position(n_done);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start the threads of the requests")?;
    let _tidy = Tidy::new();
    let (mut n_failed, mut n_new) = (0_u64, 0_u64);
    runtime.block_on(async {
        let requests = lines(&args.input)?.enumerate().skip(usize::try_from(n_done)?);
        let answers = requests.map(|(i, line)| {
            let server = server.clone();
            async move { anyhow::Ok(server.batch_line(i as u64 + 1, &line?, args.seed).await) }
        });
        let mut answers = std::pin::pin!(stream::iter(answers).buffered(args.jobs.max(1)));
        while let Some(line) = answers.next().await.transpose()? {
            out.write_all(line.text.as_bytes()).with_context(|| format!("cannot write {}", args.output.display()))?;
            n_failed += u64::from(!line.is_good);
            n_new += 1;
            bar.inc(1);
            if signals::flag().load(Ordering::SeqCst) {
                break;
            }
        }
        anyhow::Ok(())
    })?;
    bar.finish_and_clear();
    let is_whole = n_done + n_new == n_all;
    if common.json {
        print_json(&json!({ "lines": n_all, "answered": n_done + n_new, "new": n_new, "failed": n_failed }))?;
    } else {
        note(format_args!("{n_new} lines answered, {n_failed} of them with an error: {}", args.output.display()));
    }
    if !is_whole && !signals::flag().load(Ordering::SeqCst) {
        bail!("{} got shorter while it was read", args.input.display());
    }
    Ok(())
}

/// The lines of a file, without empty ones.
fn lines(path: &Path) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Vec<u8>>>> {
    let name = path.display().to_string();
    let lines = BatchLines::open(path).with_context(|| format!("cannot read {name}"))?;
    Ok(lines.map(move |line| line.with_context(|| format!("cannot read {name}"))))
}

/// Counts the lines that an earlier run wrote, and removes an incomplete one at the end. Fails if they do not belong to
/// this input.
fn done(output: &Path, input: &Path) -> anyhow::Result<u64> {
    if !output.exists() {
        return Ok(0);
    }
    let other = |n: u64| {
        let (output, input) = (output.display(), input.display());
        format!("line {n} of {output} is not the answer to line {n} of {input}: give another name, or delete the file")
    };
    let mut wanted = lines(input)?;
    let (mut n, mut n_bytes) = (0, 0);
    let mut reader = BufReader::new(File::open(output).with_context(|| format!("cannot read {}", output.display()))?);
    loop {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).with_context(|| format!("cannot read {}", output.display()))?;
        if line.last() != Some(&b'\n') {
            let file = OpenOptions::new().write(true).open(output);
            let cut = file.and_then(|file| if line.is_empty() { Ok(()) } else { file.set_len(n_bytes) });
            cut.with_context(|| format!("cannot write {}", output.display()))?;
            return Ok(n);
        }
        let id = |line: &[u8]| serde_json::from_slice::<Value>(line).ok().map(|line| line["custom_id"].clone());
        let want = wanted.next().transpose()?.with_context(|| other(n + 1))?;
        match id(&line) {
            Some(written) if written == id(&want).unwrap_or_default() => {}
            _ => bail!(other(n + 1)),
        }
        n_bytes += line.len() as u64;
        n += 1;
    }
}
