//! The endpoints: how each one reads and answers its requests. The [pipeline](crate::line) does the rest.

mod admin;
mod admin_models;
mod batches;
mod chat;
mod completions;
mod embeddings;
mod files;
mod messages;
mod openapi;
mod page;
mod rerank;
mod responses;
mod small;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use fewbit_api::chat::ChatMessage;
use fewbit_api::common::Sampling;
use fewbit_api::prompt::PromptParam;

use crate::backend::{Caller, Form, ModelInfo, PromptUsed};
use crate::error::ApiError;
use crate::line::line;
use crate::server::Shared;
use crate::stream;

/// The most answers that one request may ask for.
const MAX_ANSWERS: usize = 128;

/// The most stop texts of one request.
const MAX_STOPS: usize = 64;

/// The router of all endpoints.
pub(crate) fn router(server: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(line::<chat::Chat>).fallback(line::<small::WrongMethod>))
        .route("/v1/completions", post(line::<completions::Completions>).fallback(line::<small::WrongMethod>))
        .route("/v1/embeddings", post(line::<embeddings::Embeddings>).fallback(line::<small::WrongMethod>))
        .route("/v1/messages", post(line::<messages::Messages>).fallback(line::<small::WrongMethod>))
        .route("/v1/messages/count_tokens", post(line::<messages::CountTokens>).fallback(line::<small::WrongMethod>))
        .route("/v1/responses", post(line::<responses::Responses>).fallback(line::<small::WrongMethod>))
        .route(
            "/v1/responses/{id}",
            get(line::<responses::OneResponse>)
                .delete(line::<responses::DeleteResponse>)
                .fallback(line::<small::WrongMethod>),
        )
        .route(
            "/v1/files",
            post(line::<files::UploadFile>).get(line::<files::ListFiles>).fallback(line::<small::WrongMethod>),
        )
        .route(
            "/v1/files/{id}",
            get(line::<files::OneFile>).delete(line::<files::DeleteFile>).fallback(line::<small::WrongMethod>),
        )
        .route("/v1/files/{id}/content", get(line::<files::FileContent>).fallback(line::<small::WrongMethod>))
        .route(
            "/v1/batches",
            post(line::<batches::CreateBatch>).get(line::<batches::ListBatches>).fallback(line::<small::WrongMethod>),
        )
        .route("/v1/batches/{id}", get(line::<batches::OneBatch>).fallback(line::<small::WrongMethod>))
        .route("/v1/batches/{id}/cancel", post(line::<batches::CancelBatch>).fallback(line::<small::WrongMethod>))
        .route("/v1/models", get(line::<small::Models>).fallback(line::<small::WrongMethod>))
        .route("/v1/models/{*id}", get(line::<small::OneModel>).fallback(line::<small::WrongMethod>))
        .route("/v1/rerank", post(line::<rerank::Rerank>).fallback(line::<small::WrongMethod>))
        .route("/rerank", post(line::<rerank::Rerank>).fallback(line::<small::WrongMethod>))
        .route("/tokenizer_info", get(line::<small::TokenizerInfo>).fallback(line::<small::WrongMethod>))
        .route("/tokenize", post(line::<small::Tokenize>).fallback(line::<small::WrongMethod>))
        .route("/detokenize", post(line::<small::Detokenize>).fallback(line::<small::WrongMethod>))
        .route("/admin/reload", post(line::<small::Reload>).fallback(line::<small::WrongMethod>))
        .route("/admin/models", get(line::<admin_models::Models>).fallback(line::<small::WrongMethod>))
        .route("/admin/models/load", post(line::<admin_models::Load>).fallback(line::<small::WrongMethod>))
        .route("/admin/models/unload", post(line::<admin_models::Unload>).fallback(line::<small::WrongMethod>))
        .route("/health", get(line::<small::Health>).fallback(line::<small::WrongMethod>))
        .route("/v1/requests", get(line::<admin::Requests<admin::Own>>).fallback(line::<small::WrongMethod>))
        .route("/v1/requests/{id}", delete(line::<admin::Cancel<admin::Own>>).fallback(line::<small::WrongMethod>))
        .route("/v1/usage", get(line::<admin::Usage<admin::Own>>).fallback(line::<small::WrongMethod>))
        .route("/admin/requests", get(line::<admin::Requests<admin::All>>).fallback(line::<small::WrongMethod>))
        .route("/admin/requests/{id}", delete(line::<admin::Cancel<admin::All>>).fallback(line::<small::WrongMethod>))
        .route("/admin/usage", get(line::<admin::Usage<admin::All>>).fallback(line::<small::WrongMethod>))
        .route("/admin/audit", get(line::<admin::Audit>).fallback(line::<small::WrongMethod>))
        .route("/admin/audit/verify", post(line::<admin::Verify>).fallback(line::<small::WrongMethod>))
        .route("/admin/prompts", get(line::<admin::Prompts>).fallback(line::<small::WrongMethod>))
        .route("/admin/prompts/difference", get(line::<admin::Difference>).fallback(line::<small::WrongMethod>))
        .route("/", get(line::<page::Page>).fallback(line::<small::WrongMethod>))
        .route("/page/{file}", get(line::<page::Page>).fallback(line::<small::WrongMethod>))
        .route("/admin/approvals", get(line::<admin::Approvals>).fallback(line::<small::WrongMethod>))
        .route("/admin/approvals/{id}", post(line::<admin::Decide>).fallback(line::<small::WrongMethod>))
        .route("/openapi.json", get(line::<openapi::OpenApi>).fallback(line::<small::WrongMethod>))
        .route("/metrics", get(line::<small::Metrics>).fallback(line::<small::WrongMethod>))
        .fallback(line::<small::Unknown>)
        .with_state(server)
}

/// The model that a request names, or the only one there is.
fn model_of(server: &Shared, caller: &Caller, name: Option<&str>) -> Result<ModelInfo, ApiError> {
    let mut models = server.backend.models().list(caller);
    let ids = || models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>().join(", ");
    match name {
        None if models.len() == 1 => Ok(models.remove(0)),
        None => Err(ApiError::invalid("model", format!("`model` is missing: name one of {}", ids()))),
        Some(name) => match models.iter().position(|model| model.id == name) {
            Some(i) => Ok(models.swap_remove(i)),
            None => {
                let message = format!("there is no model {name:?} here: name one of {}", ids());
                let error =
                    ApiError { param: Some("model".to_owned()), ..ApiError::new(StatusCode::NOT_FOUND, message) };
                Err(error.code("model_not_found"))
            }
        },
    }
}

/// Puts the messages of the prompt that a request names before its own.
fn with_prompt(
    server: &Shared,
    caller: &Caller,
    prompt: Option<PromptParam>,
    messages: &mut Vec<ChatMessage>,
) -> Result<Option<Arc<PromptUsed>>, ApiError> {
    let Some(prompt) = prompt else { return Ok(None) };
    let Some(prompts) = &server.prompts else {
        let message =
            "this server has no prompts of its own: leave `prompt` out, or name a folder in its configuration";
        return Err(ApiError::invalid("prompt", message));
    };
    let rendered = prompts.render(caller, &prompt)?;
    messages.splice(0..0, rendered.messages);
    Ok(Some(rendered.used))
}

/// How many answers to give for each prompt, checked.
fn count(n: Option<u32>, n_prompts: usize) -> Result<usize, ApiError> {
    let n = n.unwrap_or(1) as usize;
    if n == 0 || n.saturating_mul(n_prompts) > MAX_ANSWERS {
        let message =
            format!("`n`: {n} answers to {n_prompts} prompts are asked for: at least 1, at most {MAX_ANSWERS}");
        return Err(ApiError::invalid("n", message));
    }
    Ok(n)
}

/// The seed of the first answer. Each further answer has the next number.
fn first_seed(sampling: &Sampling) -> u64 {
    sampling.seed.map_or_else(crate::server::random, i64::cast_unsigned)
}

/// The constraint of the fields `grammar` and `regex`. Also checks the number of stop texts.
fn form_of_extensions(sampling: &Sampling) -> Result<Option<(Form, &'static str)>, ApiError> {
    // Every stop text is searched for after every token, so their number is limited.
    if sampling.stop.as_ref().is_some_and(|stop| stop.0.len() > MAX_STOPS) {
        return Err(ApiError::invalid("stop", format!("`stop` has more than {MAX_STOPS} texts: give fewer")));
    }
    match (&sampling.grammar, &sampling.regex) {
        (Some(_), Some(_)) => {
            Err(ApiError::invalid("grammar", "`grammar` and `regex` are given: leave one of them out"))
        }
        (Some(grammar), None) => Ok(Some((Form::Grammar(grammar.clone()), "grammar"))),
        (None, Some(regex)) => Ok(Some((Form::Regex(regex.clone()), "regex"))),
        (None, None) => Ok(None),
    }
}

/// A logarithm that JSON can represent: OpenAI uses -9999 for a probability of 0.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

fn now_s() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
}

/// The fields that all chunks of an answer share.
struct Head {
    id: String,
    created: u64,
    model: ModelInfo,
    wants_usage: bool,
}

impl Head {
    fn new(prefix: &str, model: ModelInfo, wants_usage: bool) -> Self {
        Self { id: crate::server::random_id(prefix), created: now_s(), model, wants_usage }
    }
}

fn usage(usage: crate::backend::Usage) -> fewbit_api::common::Usage {
    fewbit_api::common::Usage::new(usage.prompt, usage.cached, usage.completion)
}

/// Whether the client asks for usage in the stream.
fn wants_usage(options: Option<&fewbit_api::common::StreamOptions>) -> bool {
    options.and_then(|options| options.include_usage).unwrap_or(false)
}

pub(crate) use small::decoded;
use stream::total;
