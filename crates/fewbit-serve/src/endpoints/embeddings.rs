//! `POST /v1/embeddings`.

use std::sync::Arc;

use fewbit_api::embedding::{Embedding, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage, Vector};

use super::model_of;
use crate::error::ApiError;
use crate::line::{Call, Endpoint, Reply};
use crate::server::Shared;

/// The most texts of one request: OpenAI's limit.
const MAX_TEXTS: usize = 2048;

pub(super) struct Embeddings;

impl Endpoint for Embeddings {
    const PATH: &'static str = "/v1/embeddings";

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let request: EmbeddingRequest = call.read()?;
        let model = model_of(server, &call.caller, request.model.as_deref())?;
        let texts = request.input.list;
        if texts.is_empty() || texts.len() > MAX_TEXTS {
            let message = format!("`input` has {} texts: give at least 1, at most {MAX_TEXTS}", texts.len());
            return Err(ApiError::invalid("input", message));
        }
        let embedded = server.backend.embed(&call.caller, &model.id, texts).await?;
        let dim = embedded.vectors.first().map_or(0, Vec::len);
        if let Some(asked) = request.dimensions.filter(|&asked| asked as usize != dim) {
            let message =
                format!("`dimensions` is {asked}: the vectors of {:?} have {dim}, and no other length", model.id);
            return Err(ApiError::invalid("dimensions", message));
        }
        let format = request.encoding_format.unwrap_or_default();
        let vectors = embedded.vectors.into_iter().enumerate();
        let data = vectors.map(|(index, vector)| Embedding {
            object: "embedding",
            index,
            embedding: Vector::new(vector, format),
        });
        let n = embedded.prompt_tokens;
        let usage = EmbeddingUsage { prompt_tokens: n, total_tokens: n };
        let by = embedded.answered_by.into_iter().collect();
        Ok(Reply::json(&EmbeddingResponse { object: "list", data: data.collect(), model: model.id, usage })?.by(by))
    }
}
