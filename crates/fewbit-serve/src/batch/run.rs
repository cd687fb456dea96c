//! Answers the lines of batches while the server runs.
//!
//! ```text
//! validating --> in_progress --> finalizing --> completed
//!      |              |--> cancelling --> cancelled
//!      v              |--> expired
//!    failed <---------+    (the key was revoked)
//! ```
//!
//! Each batch is a task. A line is a request of the key that created the batch, and passes the same pipeline as if the
//! key had sent it: its scopes, limits and log. What is refused only for now is asked again later. All batches together
//! ask at most [`FileLimits::jobs`](super::files::FileLimits::jobs) lines at a time.
//!
//! A stopped server leaves its batches as they are, and the next one continues them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fewbit_api::batches::{BatchError, BatchErrors, BatchStatus, RequestCounts};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, block_in_place};

use super::files::{Files, Owned, StoredBatch, is_over, now_ms};
use super::progress::{Progress, paths};
use super::{BatchLine, BatchLines, check, output};
use crate::local::Local;
use crate::server::Shared;

/// The most mistakes of a file that are reported.
const MAX_ERRORS: usize = 100;

/// The tasks of batches.
pub(crate) struct Running {
    /// `None` once the server stops.
    tasks: Mutex<Option<JoinSet<()>>>,
    /// To cancel batches, by their ids.
    cancels: Mutex<HashMap<String, watch::Sender<bool>>>,
    jobs: usize,
    places: Arc<Semaphore>,
}

/// How the answering of lines ended.
enum End {
    Complete,
    Expired,
    Cancelled,
    /// The key is not in use any more.
    KeyGone,
}

impl Running {
    pub(crate) fn new(jobs: usize) -> Self {
        let (tasks, cancels) = (Mutex::new(Some(JoinSet::new())), Mutex::default());
        Self { tasks, cancels, jobs: jobs.max(1), places: Arc::new(Semaphore::new(jobs.max(1))) }
    }

    /// Begins or continues a batch.
    pub(crate) fn start(&self, server: &Arc<Shared>, files: &Files, id: String) {
        let (cancel, cancelled) = watch::channel(false);
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), cancel);
        let (server, files) = (Arc::clone(server), files.clone());
        if let Some(tasks) = &mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner) {
            // Tasks that ended are removed.
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                if let Err(error) = run(&server, &files, &id, cancelled).await {
                    tracing::error!(%error, batch = id, "a batch cannot go on");
                    let _ =
                        fail(&files, &id, "storage_error", "the server cannot read or write the files of the batch");
                }
                files.shared.running.cancels.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            });
        }
    }

    pub(crate) fn cancel(&self, id: &str) {
        if let Some(cancel) = self.cancels.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            let _ = cancel.send(true);
        }
    }

    /// Ends all tasks, for the next server to continue.
    pub(crate) fn stop(&self) {
        drop(self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn now_s() -> u64 {
    now_ms() / 1000
}

async fn run(server: &Arc<Shared>, files: &Files, id: &str, mut cancelled: watch::Receiver<bool>) -> io::Result<()> {
    let Some(Owned { key, it: stored, .. }) = files.stored(id) else { return Ok(()) };
    let folder = &files.shared.folder;
    let input = folder.join(format!("{}.data", stored.batch.input_file_id));
    if stored.batch.status == BatchStatus::Validating {
        let (path, endpoint, limit) = (input.clone(), stored.batch.endpoint.clone(), files.limits().lines);
        let checked = tokio::task::spawn_blocking(move || validate(&path, &endpoint, limit)).await;
        let checked = checked.map_err(io::Error::other)??;
        let is_good = checked.is_ok();
        files.change(id, true, |stored| match checked {
            Ok(total) => {
                stored.batch.request_counts.total = total;
                stored.batch.in_progress_at = Some(now_s());
                // It may have been cancelled meanwhile.
                if stored.batch.status == BatchStatus::Validating {
                    stored.batch.status = BatchStatus::InProgress;
                }
            }
            Err(data) => {
                stored.batch.status = BatchStatus::Failed;
                stored.batch.failed_at = Some(now_s());
                stored.batch.errors = Some(BatchErrors { object: "list".into(), data });
            }
        })?;
        if !is_good {
            return Ok(());
        }
    }
    if stored.ends_as.is_none() {
        let mut progress = block_in_place(|| Progress::open(folder, id))?;
        count(files, id, &progress)?;
        let end = match files.stored(id).map(|stored| stored.it.batch.status) {
            Some(BatchStatus::Cancelling) => End::Cancelled,
            _ => {
                let local = Local::new(Arc::clone(server))
                    .on_behalf(key.as_deref().map(Into::into))
                    .feature(stored.feature.as_deref().map(Into::into));
                answer_all(&local, files, &stored, &input, &mut progress, &mut cancelled).await?
            }
        };
        files.change(id, true, |stored| {
            let (ends_as, errors) = match end {
                End::Complete => (BatchStatus::Completed, None),
                End::Expired => (BatchStatus::Expired, None),
                End::Cancelled => (BatchStatus::Cancelled, None),
                End::KeyGone => {
                    let message = "the key that created the batch is not in use any more, or may not be used here";
                    (BatchStatus::Failed, Some(error("invalid_api_key", message.to_owned(), None, None)))
                }
            };
            if ends_as == BatchStatus::Completed {
                stored.batch.status = BatchStatus::Finalizing;
                stored.batch.finalizing_at = Some(now_s());
            }
            stored.batch.errors = errors.map(|error| BatchErrors { object: "list".into(), data: vec![error] });
            stored.ends_as = Some(ends_as);
        })?;
    }
    finish(files, id)
}

/// Keeps the answers as files. Can be repeated after an interruption.
fn finish(files: &Files, id: &str) -> io::Result<()> {
    let Some(Owned { key, it: stored, .. }) = files.stored(id) else { return Ok(()) };
    let Some(ends_as) = stored.ends_as else { return Ok(()) };
    let [good, bad] = paths(&files.shared.folder, id);
    let outputs = files.adopt(&key, &good, &stored.output_id, format!("{id}_output.jsonl"))?;
    let errors = files.adopt(&key, &bad, &stored.error_id, format!("{id}_error.jsonl"))?;
    files.change(id, true, |stored| {
        let batch = &mut stored.batch;
        (batch.output_file_id, batch.error_file_id, batch.status) = (outputs, errors, ends_as);
        let time = match ends_as {
            BatchStatus::Expired => &mut batch.expired_at,
            BatchStatus::Cancelled => &mut batch.cancelled_at,
            BatchStatus::Failed => &mut batch.failed_at,
            _ => &mut batch.completed_at,
        };
        *time = Some(now_s());
    })
}

fn fail(files: &Files, id: &str, code: &'static str, message: &str) -> io::Result<()> {
    files.change(id, true, |stored| {
        if !is_over(&stored.batch) {
            stored.batch.status = BatchStatus::Failed;
            stored.batch.failed_at = Some(now_s());
            let data = vec![error(code, message.to_owned(), None, None)];
            stored.batch.errors = Some(BatchErrors { object: "list".into(), data });
        }
    })
}

fn count(files: &Files, id: &str, progress: &Progress) -> io::Result<()> {
    let (completed, failed) = (progress.n_good, progress.n_bad);
    files.change(id, false, |stored| {
        let total = stored.batch.request_counts.total;
        stored.batch.request_counts = RequestCounts { total, completed, failed };
    })
}

async fn answer_all(
    local: &Local,
    files: &Files,
    stored: &StoredBatch,
    input: &PathBuf,
    progress: &mut Progress,
    cancelled: &mut watch::Receiver<bool>,
) -> io::Result<End> {
    let (id, seed) = (&stored.batch.id, stored.seed);
    let n_done = usize::try_from(progress.n_done()).unwrap_or(usize::MAX);
    let lines = || io::Result::Ok(BatchLines::open(input)?.zip(1_u64..));
    let running = &files.shared.running;
    let ask = |(line, n): (io::Result<Vec<u8>>, u64)| async move {
        io::Result::Ok(answer(local, &running.places, n, &line?, seed).await)
    };
    let mut answers = std::pin::pin!(stream::iter(lines()?.skip(n_done)).map(ask).buffered(running.jobs));
    let left = stored.batch.expires_at.unwrap_or(u64::MAX).saturating_sub(now_s());
    let mut expired = std::pin::pin!(tokio::time::sleep(Duration::from_secs(left)));
    loop {
        let next = tokio::select! {
            biased;
            _ = cancelled.wait_for(|is_cancelled| *is_cancelled) => return Ok(End::Cancelled),
            () = &mut expired => break,
            next = answers.next() => next,
        };
        match next.transpose()? {
            None => return Ok(End::Complete),
            Some(line) if line.status == Some(401) => return Ok(End::KeyGone),
            Some(line) => {
                progress.write(line.is_good, &line.text)?;
                count(files, id, progress)?;
            }
        }
    }
    let n_done = usize::try_from(progress.n_done()).unwrap_or(usize::MAX);
    for (line, n) in lines()?.skip(n_done) {
        let request: Value = serde_json::from_slice(&line?).unwrap_or_default();
        let error = json!({ "code": "batch_expired", "message": "the time of the batch was over before this line" });
        progress.write(false, &output(n, &request["custom_id"], Value::Null, error))?;
    }
    count(files, id, progress)?;
    Ok(End::Expired)
}

/// Answers a line. What is refused only for now is asked again.
async fn answer(local: &Local, places: &Semaphore, n: u64, line: &[u8], seed: i64) -> BatchLine {
    loop {
        let answered = {
            let _place = places.acquire().await;
            local.batch_line(n, line, seed).await
        };
        match (answered.status, answered.retry_after_s) {
            (Some(429 | 503), Some(seconds)) => tokio::time::sleep(Duration::from_secs(seconds.max(1).into())).await,
            _ => return answered,
        }
    }
}

fn error(code: &'static str, message: String, param: Option<&str>, line: Option<u64>) -> BatchError {
    BatchError { code: code.into(), message, param: param.map(str::to_owned), line }
}

/// Checks all lines of a file. Returns how many there are, or what is wrong with them.
fn validate(path: &Path, endpoint: &str, limit: u64) -> io::Result<Result<u64, Vec<BatchError>>> {
    let (mut ids, mut errors, mut n) = (HashSet::new(), Vec::new(), 0_u64);
    for line in BatchLines::open(path)? {
        n += 1;
        if errors.len() >= MAX_ERRORS {
            break;
        }
        if n > limit {
            errors.push(error(
                "too_many_lines",
                format!("the file has more than {limit} lines: cut it up"),
                None,
                None,
            ));
            break;
        }
        let mut wrong = |code, param: &'static str, message: String| {
            errors.push(error(code, message, Some(param).filter(|p| !p.is_empty()), Some(n)))
        };
        let line = match line {
            Ok(line) => line,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                wrong("line_too_long", "", error.to_string());
                break;
            }
            Err(error) => return Err(error),
        };
        let request: Value = match serde_json::from_slice(&line) {
            Ok(request) => request,
            Err(error) => {
                wrong("invalid_json_line", "", format!("the line is not JSON: {error}"));
                continue;
            }
        };
        match request["custom_id"].as_str() {
            None => wrong("missing_custom_id", "custom_id", "`custom_id` is missing, or no text".to_owned()),
            Some(id) if !ids.insert(id.to_owned()) => {
                wrong("duplicate_custom_id", "custom_id", "`custom_id` is that of an earlier line".to_owned());
            }
            Some(_) => {}
        }
        match check(&request) {
            Err(mistake) => wrong(mistake.code, mistake.param, mistake.message),
            Ok(()) if request["url"] != endpoint => {
                wrong("mismatched_endpoint", "url", format!("`url` is not {endpoint}, the endpoint of the batch"));
            }
            Ok(()) => {}
        }
    }
    if n == 0 {
        errors.push(error("empty_file", "the file has no lines".to_owned(), None, None));
    }
    Ok(if errors.is_empty() { Ok(n) } else { Err(errors) })
}
