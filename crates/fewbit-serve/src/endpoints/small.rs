//! The endpoints that generate nothing.

use std::sync::Arc;

use axum::http::StatusCode;
use fewbit_api::models::{ModelList, ModelObject};
use fewbit_api::tokens::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
use serde_json::json;

use super::model_of;
use crate::backend::ModelInfo;
use crate::error::ApiError;
use crate::line::{Call, Endpoint, Reply};
use crate::server::Shared;

fn object(model: ModelInfo) -> ModelObject {
    ModelObject {
        id: model.id,
        object: "model",
        created: model.created,
        owned_by: "fewbit",
        max_model_len: model.context_length,
        state: model.state.map(crate::models::ModelState::as_str),
    }
}

pub(super) struct Models;

impl Endpoint for Models {
    const PATH: &'static str = "/v1/models";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let data = server.backend.models().list(&call.caller).into_iter().map(object).collect();
        Reply::json(&ModelList { object: "list", data })
    }
}

pub(super) struct OneModel;

impl Endpoint for OneModel {
    const PATH: &'static str = "/v1/models/{id}";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let id = call.path.strip_prefix("/v1/models/").unwrap_or_default();
        Reply::json(&object(model_of(server, &call.caller, Some(&decoded(id)))?))
    }
}

/// Decodes percent-encoding. Invalid sequences are kept.
pub(crate) fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'%').then(|| std::str::from_utf8(after.get(..2)?).ok()).flatten();
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) struct Tokenize;

impl Endpoint for Tokenize {
    const PATH: &'static str = "/tokenize";

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let request: TokenizeRequest = call.read()?;
        let model = model_of(server, &call.caller, request.model.as_deref())?;
        let add = request.add_special.unwrap_or(false);
        let parse = request.parse_special.unwrap_or(false);
        let tokens = server.backend.models().tokenize(&call.caller, &model.id, &request.content, add, parse).await?;
        Reply::json(&TokenizeResponse { count: tokens.len(), tokens, max_model_len: model.context_length })
    }
}

pub(super) struct Detokenize;

impl Endpoint for Detokenize {
    const PATH: &'static str = "/detokenize";

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let request: DetokenizeRequest = call.read()?;
        let model = model_of(server, &call.caller, request.model.as_deref())?;
        let content = server.backend.models().detokenize(&call.caller, &model.id, &request.tokens).await?;
        Reply::json(&DetokenizeResponse { prompt: content.clone(), content })
    }
}

/// In vLLM's form.
pub(super) struct TokenizerInfo;

impl Endpoint for TokenizerInfo {
    const PATH: &'static str = "/tokenizer_info";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let model = model_of(server, &call.caller, call.query("model").as_deref())?;
        Reply::json(&server.backend.models().tokenizer_info(&call.caller, &model.id).await?)
    }
}

pub(super) struct Health;

impl Endpoint for Health {
    const PATH: &'static str = "/health";
    const IS_OPEN: bool = true;
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, _: Call) -> Result<Reply, ApiError> {
        if server.is_draining() {
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is about to stop"));
        }
        Reply::json(&json!({ "status": "ok" }))
    }
}

pub(super) struct Metrics;

impl Endpoint for Metrics {
    const PATH: &'static str = "/metrics";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, _: Call) -> Result<Reply, ApiError> {
        let text = server.stats.text(&server.backend.models().samples());
        Ok(Reply::bytes(text, "text/plain; version=0.0.4; charset=utf-8"))
    }
}

/// Reloads the configuration.
pub(super) struct Reload;

impl Endpoint for Reload {
    const PATH: &'static str = "/admin/reload";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, _: Call) -> Result<Reply, ApiError> {
        let Some(reload) = server.reload.clone() else {
            let message = "this server was started without a configuration file: there is nothing to reload";
            return Err(ApiError::new(StatusCode::NOT_FOUND, message));
        };
        // Reloading reads files, which would block the runtime.
        let reloaded = tokio::task::spawn_blocking(move || reload()).await.map_err(|_| ApiError::internal())?;
        reloaded.map_err(|error| {
            let message = format!("the configuration in use stays, because the new one is wrong: {error}");
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, message).code("invalid_config")
        })?;
        Reply::json(&json!({ "status": "reloaded" }))
    }
}

/// The fallback for unknown paths.
pub(super) struct Unknown;

impl Endpoint for Unknown {
    const PATH: &'static str = "unknown";
    const HAS_BODY: bool = false;

    async fn answer(_: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let message = format!("there is nothing under {:?} here: a client's base URL ends in /v1", call.path);
        Err(ApiError::new(StatusCode::NOT_FOUND, message).code("unknown_url"))
    }
}

/// The fallback for known paths that are called with another method.
pub(super) struct WrongMethod;

impl Endpoint for WrongMethod {
    const PATH: &'static str = "wrong method";
    const HAS_BODY: bool = false;

    async fn answer(_: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let message =
            format!("{:?} does not have this method: see the list of endpoints in docs/gateway.md", call.path);
        Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message))
    }
}
