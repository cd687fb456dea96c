//! `POST /v1/completions`.

use std::sync::Arc;

use fewbit_api::common::Sampling;
use fewbit_api::completion::{CompletionChoice, CompletionRequest, CompletionResponse, Logprobs};
use fewbit_api::sse;
use serde_json::{Map, Value};

use super::{Head, count, finite, first_seed, form_of_extensions, model_of, total, usage, wants_usage};
use crate::backend::{Alternative, End, Input, Job, Piece, Token, Usage};
use crate::error::ApiError;
use crate::line::{Call, Endpoint, Reply};
use crate::server::Shared;
use crate::stream::{self, Form};

/// The default token limit of an answer, as in OpenAI's interface.
const MAX_TOKENS: usize = 16;
/// The most alternatives per token that can be requested.
const MAX_LOGPROBS: u32 = 20;

pub(super) struct Completions;

impl Endpoint for Completions {
    const PATH: &'static str = "/v1/completions";

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let request: CompletionRequest = call.read()?;
        let sampling: Sampling = call.read()?;
        let model = model_of(server, &call.caller, request.model.as_deref())?;
        let prompts = request.prompt.list;
        if prompts.is_empty() {
            return Err(ApiError::invalid("prompt", "`prompt` is an empty list: give at least one text"));
        }
        let n = count(request.n, prompts.len())?;
        if request.best_of.is_some_and(|best_of| best_of as usize != n) {
            let message = "`best_of` is another number than `n`: answers are not ranked here, leave it out";
            return Err(ApiError::invalid("best_of", message));
        }
        if request.suffix.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::invalid("suffix", "`suffix`: texts are continued, not filled in; leave it out"));
        }
        if request.logprobs.is_some_and(|n| n > MAX_LOGPROBS) {
            return Err(ApiError::invalid("logprobs", format!("`logprobs` can be {MAX_LOGPROBS} at most")));
        }
        let seed = first_seed(&sampling);
        let form = form_of_extensions(&sampling)?;
        let echo = request.echo.unwrap_or(false);
        let jobs = prompts.into_iter().flat_map(|prompt| {
            let job = Job {
                caller: call.caller.clone(),
                model: model.id.clone(),
                input: Input::Text { prompt, echo },
                sampling: sampling.clone(),
                seed,
                max_tokens: Some(request.max_tokens.map_or(MAX_TOKENS, |n| n as usize)),
                logprobs: request.logprobs.map(|n| n as usize),
                form: form.clone(),
                prompt: None,
            };
            (0..n as u64).map(move |i| Job { seed: seed.wrapping_add(i), ..job.clone() })
        });
        let jobs: Vec<Job> = jobs.collect();
        let head = Head::new("cmpl-", model, wants_usage(request.stream_options.as_ref()));
        let has_logprobs = request.logprobs.is_some();
        if request.stream.unwrap_or(false) {
            let offsets = vec![0; jobs.len()];
            return stream::reply(server, jobs, n, Chunks { head, has_logprobs, offsets }).await;
        }
        let answers = stream::begin(server, jobs).await?;
        let by = stream::answered_by(&answers);
        let answers = stream::whole(answers).await?;
        let used = total(answers.iter().enumerate().map(|(i, (_, end))| (i, end.usage)), n);
        let choices = answers.into_iter().enumerate().map(|(index, (piece, end))| CompletionChoice {
            index,
            logprobs: has_logprobs.then(|| logprobs(&piece.tokens, &mut 0)),
            text: piece.text,
            finish_reason: Some(end.finish.as_str()),
        });
        Ok(Reply::json(&response(&head, choices.collect(), Some(Some(usage(used)))))?.by(by))
    }
}

fn response(
    head: &Head,
    choices: Vec<CompletionChoice>,
    usage: Option<Option<fewbit_api::common::Usage>>,
) -> CompletionResponse {
    CompletionResponse {
        id: head.id.clone(),
        object: "text_completion",
        created: head.created,
        model: head.model.id.clone(),
        system_fingerprint: head.model.fingerprint.clone(),
        choices,
        usage,
    }
}

/// Log probabilities in the form of completions. `offset` is the position of the first token in the text, in
/// characters, and is advanced to the end of the last.
fn logprobs(tokens: &[Token], offset: &mut usize) -> Logprobs {
    let mut all = Logprobs::default();
    for token in tokens {
        all.text_offset.push(*offset);
        *offset += String::from_utf8_lossy(&token.bytes).chars().count();
        all.tokens.push(token.text.clone());
        all.token_logprobs.push(token.logprob.map(finite));
        let top = |other: &Alternative| (other.text.clone(), Value::from(finite(other.logprob)));
        let has_top = token.logprob.is_some();
        all.top_logprobs.push(has_top.then(|| token.top.iter().map(top).collect::<Map<_, _>>()));
    }
    all
}

struct Chunks {
    head: Head,
    has_logprobs: bool,
    /// How many characters of each answer were sent so far.
    offsets: Vec<usize>,
}

impl Chunks {
    fn chunk(&self, choice: CompletionChoice) -> String {
        let null = self.head.wants_usage.then_some(None);
        sse::data(&response(&self.head, vec![choice], null)).unwrap_or_default()
    }
}

impl Form for Chunks {
    fn piece(&mut self, index: usize, piece: Piece) -> Option<String> {
        if piece.text.is_empty() && piece.tokens.is_empty() {
            return None;
        }
        let logprobs = match self.offsets.get_mut(index) {
            Some(offset) if self.has_logprobs => Some(logprobs(&piece.tokens, offset)),
            _ => None,
        };
        Some(self.chunk(CompletionChoice { index, text: piece.text, logprobs, finish_reason: None }))
    }

    fn end(&mut self, index: usize, end: End) -> String {
        let finish_reason = Some(end.finish.as_str());
        self.chunk(CompletionChoice { index, text: String::new(), logprobs: None, finish_reason })
    }

    fn last(&mut self, used: Usage) -> String {
        let usage = self
            .head
            .wants_usage
            .then(|| sse::data(&response(&self.head, Vec::new(), Some(Some(usage(used))))).unwrap_or_default());
        usage.unwrap_or_default() + sse::DONE
    }
}
