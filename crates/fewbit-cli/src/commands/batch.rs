//! `fewbit batch IN OUT`: answers many requests from a file, in OpenAI's batch format.
//!
//! ```text
//! in:  {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
//! out: {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "body": {...}}, "error": null}
//! ```
//!
//! Output lines have the order of the input lines, and are written as soon as all lines before them are. A run that was
//! interrupted continues after the last complete line. The same input gives the same bytes: times, random ids, numbers
//! of cached tokens and seeds, which would differ from run to run, are left out or derived from the line number.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use fewbit_serve::{EngineBackend, Local, Server};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::args::{BatchArgs, Common};
use crate::loading;
use crate::output::{note, print_json, progress_bar};
use crate::signals::{self, Tidy};

/// The endpoints that a line can name.
const PATHS: [&str; 5] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"];
/// The size limit of a line, in bytes.
const MAX_LINE: u64 = 16 << 20;

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
            async move { anyhow::Ok(answer(&server, i as u64 + 1, &line?, args.seed).await) }
        });
        let mut answers = std::pin::pin!(stream::iter(answers).buffered(args.jobs.max(1)));
        while let Some((is_good, line)) = answers.next().await.transpose()? {
            out.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", args.output.display()))?;
            n_failed += u64::from(!is_good);
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

/// Reads the lines of a file, without empty ones.
fn lines(path: &Path) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Vec<u8>>>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let name = path.display().to_string();
    let next = move || -> Option<anyhow::Result<Vec<u8>>> {
        loop {
            let mut line = Vec::new();
            match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Err(error) => return Some(Err(error).with_context(|| format!("cannot read {name}"))),
                Ok(0) => return None,
                Ok(_) if line.len() as u64 == MAX_LINE => {
                    return Some(Err(anyhow::anyhow!("a line of {name} has more than {MAX_LINE} bytes: cut it up")));
                }
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => return Some(Ok(line)),
            }
        }
    };
    Ok(std::iter::from_fn(next))
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

/// Answers a line of the input. Returns whether it succeeded, and the line of the output.
async fn answer(server: &Local, n: u64, line: &[u8], seed: i64) -> (bool, String) {
    let written = |custom_id: &Value, response: Value, error: Value| {
        let line =
            json!({ "id": format!("batch_req_{n}"), "custom_id": custom_id, "response": response, "error": error });
        format!("{line}\n")
    };
    let wrong = |custom_id: &Value, message: String| {
        (false, written(custom_id, Value::Null, json!({ "code": "invalid_request", "message": message })))
    };
    let mut request: Value = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => return wrong(&Value::Null, format!("the line is not JSON: {error}")),
    };
    let custom_id = request["custom_id"].clone();
    let path = request["url"].as_str().unwrap_or_default().to_owned();
    if !PATHS.contains(&path.as_str()) {
        return wrong(&custom_id, format!("`url` is {path:?}: it can be one of {}", PATHS.join(", ")));
    }
    let Some(body) = request["body"].as_object_mut() else {
        return wrong(&custom_id, "`body` is no object".to_owned());
    };
    if body.get("stream").is_some_and(|stream| *stream == true) {
        return wrong(&custom_id, "`body.stream`: lines are answered as a whole; leave it out".to_owned());
    }
    if body.get("seed").is_none_or(Value::is_null) {
        body.insert("seed".to_owned(), seed.into());
    }
    let answer = server.post(&path, request["body"].to_string()).await;
    let mut body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    settle(&mut body, n);
    let response = json!({ "status_code": answer.status, "body": body });
    (answer.status == 200, written(&custom_id, response, Value::Null))
}

/// Replaces everything that differs from run to run.
fn settle(body: &mut Value, n: u64) {
    let Value::Object(fields) = body else { return };
    for time in ["created", "created_at"] {
        if let Some(time) = fields.get_mut(time) {
            *time = 0.into();
        }
    }
    fields.shift_remove("request_id");
    let prefix = |id: &str| {
        id.split_once('_').map_or_else(|| id.split('-').next().unwrap_or_default().to_owned(), |(p, _)| p.to_owned())
    };
    if let Some(id) = fields.get_mut("id")
        && let Some(old) = id.as_str()
    {
        *id = format!("{}_batch_{n}", prefix(old)).into();
    }
    for (i, item) in fields.get_mut("output").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        if let Some(old) = item["id"].as_str() {
            item["id"] = format!("{}_batch_{n}_{i}", prefix(old)).into();
        }
    }
    let Some(Value::Object(usage)) = fields.get_mut("usage") else { return };
    usage.shift_remove("prompt_tokens_details");
    usage.shift_remove("input_tokens_details");
    if let (Some(new), Some(read)) =
        (usage.get("input_tokens").and_then(Value::as_u64), usage.shift_remove("cache_read_input_tokens"))
    {
        usage.insert("input_tokens".to_owned(), (new + read.as_u64().unwrap_or(0)).into());
    }
}
