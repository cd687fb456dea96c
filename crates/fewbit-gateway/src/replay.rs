//! Replay: a local answer of the log, computed again and compared bit for bit.
//!
//! The same request with the same seed gives the same answer, so the log can be checked long after: against the request as
//! it was kept, or as the client kept it. The hashes of the request and of the answer are in the line of the log.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use fewbit_serve::api::common::Prompt;
use fewbit_serve::api::prompt::PromptParam;
use fewbit_serve::{
    Backend, BackendError, BackendErrorKind, Boxed, Caller, Embedded, Generating, Job, ModelInfo, Models, Prompts,
    RenderedPrompt, Sample, Server,
};
use futures_util::TryStreamExt;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::audit::{Entry, Outcome, verify};
use crate::error::GatewayError;
use crate::hex;
use crate::output::{Answer, Heard};
use crate::prompts::PromptStore;
use crate::routes::Routes;
use crate::texts::{self, Text};

/// The hash of a request: of the job without its caller.
pub(crate) fn request_sha256(job: &Value) -> String {
    hex(&Sha256::digest(job.to_string().as_bytes()))
}

/// Which lines of the log to replay.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Which {
    /// All answers of this request.
    Request(String),
    /// The last ones.
    Last(usize),
    /// All.
    All,
}

/// The lines of a log that are chosen. The whole log is verified meanwhile.
///
/// # Errors
/// The errors of [`verify`].
pub fn chosen(store: impl AsRef<Path>, which: &Which) -> Result<Vec<Entry>, GatewayError> {
    let mut all: std::collections::VecDeque<Entry> = std::collections::VecDeque::new();
    verify(store, None, |entry| {
        let is_one = match which {
            Which::Request(id) => entry.request == *id,
            Which::Last(_) | Which::All => entry.output_sha256.is_some(),
        };
        if is_one {
            all.push_back(entry.clone());
        }
        if let Which::Last(n) = which
            && all.len() > *n
        {
            all.pop_front();
        }
    })?;
    Ok(all.into())
}

/// Why a line of the log cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoReplay {
    /// The answer is not complete, or the line is not one of an answer.
    #[error("it has no complete answer")]
    Incomplete,
    /// The answer is another server's.
    #[error("it was answered by {backend}, which is not computed here")]
    Upstream {
        /// The target that answered.
        backend: String,
    },
    /// The request was not kept.
    #[error("its request is not kept: set `[audit] keep_text = \"exact\"` for later ones, or give it with --request")]
    NotKept,
    /// The request was kept with masked texts.
    #[error("its request was kept with {n} masked texts: give it with --request")]
    Masked {
        /// How many.
        n: usize,
    },
    /// The given request is another one.
    #[error("this is another request than the one of the log: {why}")]
    OtherRequest {
        /// What shows it.
        why: String,
    },
    /// The kept request cannot be read.
    #[error("its request cannot be read: {0}")]
    Unreadable(String),
}

/// The model of this server that gave an answer.
///
/// # Errors
/// If the answer is not complete, or not from a model of this server.
pub fn local_model(entry: &Entry) -> Result<&str, NoReplay> {
    if entry.outcome != Outcome::Complete || entry.output_sha256.is_none() {
        return Err(NoReplay::Incomplete);
    }
    match &entry.backend {
        None => Ok(&entry.model),
        Some(backend) => backend.strip_prefix("local/").ok_or_else(|| NoReplay::Upstream { backend: backend.clone() }),
    }
}

/// The request of a line of the log, as it was kept.
///
/// # Errors
/// If it is not kept exactly.
pub fn kept_request(store: impl AsRef<Path>, entry: &Entry) -> Result<Job, NoReplay> {
    let found = texts::find(store.as_ref(), entry).map_err(|error| NoReplay::Unreadable(error.to_string()))?;
    let Text { job, masked, .. } = found.ok_or(NoReplay::NotKept)?;
    if masked > 0 {
        return Err(NoReplay::Masked { n: masked });
    }
    Job::from_json(job, caller(entry)).map_err(|error| NoReplay::Unreadable(error.to_string()))
}

fn caller(entry: &Entry) -> Caller {
    Caller {
        key: entry.key.as_deref().map(Into::into),
        request: entry.request.as_str().into(),
        endpoint: "replay",
        feature: entry.feature.as_deref().map(Into::into),
    }
}

/// The request of a line of the log, from the body that the client sent. It must have the hash of the log.
///
/// # Errors
/// If it is another request.
pub async fn given_request(body: Vec<u8>, entry: &Entry, prompts: Option<Arc<PromptStore>>) -> Result<Job, NoReplay> {
    let other = |why: &str| NoReplay::OtherRequest { why: why.to_owned() };
    let capture = Capture { model: entry.model.clone(), jobs: Arc::default() };
    let jobs = Arc::clone(&capture.jobs);
    let server = Server::new(capture);
    let server = match (prompts, &entry.prompt) {
        (Some(store), Some(id)) => server.prompts(Pinned { store, id: id.clone() }),
        _ => server,
    };
    let answer = server.local().post(&entry.endpoint, body).await;
    let jobs = std::mem::take(&mut *jobs.lock().unwrap_or_else(PoisonError::into_inner));
    if jobs.is_empty() {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let message = body.pointer("/error/message").and_then(Value::as_str);
        return Err(other(message.unwrap_or("it is not valid")));
    }
    for mut job in jobs {
        job.seed = entry.seed.unwrap_or(job.seed);
        if Some(request_sha256(&job.to_json())) == entry.request_sha256 {
            job.caller = caller(entry);
            job.prompt = None;
            return Ok(job);
        }
    }
    Err(other("its hash differs"))
}

/// Computes the answer to a request of the log again.
///
/// # Errors
/// If the backend fails.
pub async fn answer_again(backend: &Routes, mut job: Job, entry: &Entry) -> Result<Answer, BackendError> {
    let requested = job.model.clone();
    local_model(entry).unwrap_or(&entry.model).clone_into(&mut job.model);
    let mut events = backend.generate_locally(job, &requested).await?;
    let mut heard = Heard::default();
    while let Some(event) = events.try_next().await? {
        heard.hear(&event);
    }
    Ok(heard.answer())
}

/// The version of a prompt that a line of the log names.
struct Pinned {
    store: Arc<PromptStore>,
    id: String,
}

impl Prompts for Pinned {
    fn render(&self, caller: &Caller, prompt: &PromptParam) -> Result<RenderedPrompt, BackendError> {
        let pinned = PromptParam { id: self.id.clone(), version: None, variables: prompt.variables.clone() };
        self.store.render(caller, &pinned)
    }
}

/// A backend that only takes note of its jobs.
struct Capture {
    model: String,
    jobs: Arc<Mutex<Vec<Job>>>,
}

fn none() -> BackendError {
    BackendError::new(BackendErrorKind::Internal, "nothing is answered here")
}

impl Models for Capture {
    fn list(&self, _: &Caller) -> Vec<ModelInfo> {
        vec![ModelInfo {
            id: self.model.clone(),
            created: 0,
            context_length: 0,
            fingerprint: String::new(),
            state: None,
        }]
    }

    fn tokenize<'a>(
        &'a self,
        _: &'a Caller,
        _: &'a str,
        _: &'a str,
        _: bool,
        _: bool,
    ) -> Boxed<'a, Result<Vec<u32>, BackendError>> {
        Box::pin(async { Err(none()) })
    }

    fn detokenize<'a>(&'a self, _: &'a Caller, _: &'a str, _: &'a [u32]) -> Boxed<'a, Result<String, BackendError>> {
        Box::pin(async { Err(none()) })
    }

    fn samples(&self) -> Vec<Sample> {
        Vec::new()
    }
}

impl Backend for Capture {
    fn models(&self) -> &dyn Models {
        self
    }

    fn generate(&self, job: Job) -> Boxed<'_, Result<Generating, BackendError>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push(job);
        // The next jobs of the request must come as well, so this one does not fail.
        Box::pin(async { Ok(Generating::new(futures_util::stream::iter([Err(none())]))) })
    }

    fn count(&self, _: Job) -> Boxed<'_, Result<usize, BackendError>> {
        Box::pin(async { Err(none()) })
    }

    fn embed(&self, _: &Caller, _: &str, _: Vec<Prompt>) -> Boxed<'_, Result<Embedded, BackendError>> {
        Box::pin(async { Err(none()) })
    }
}
