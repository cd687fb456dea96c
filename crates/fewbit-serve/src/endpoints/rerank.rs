//! `POST /v1/rerank`: documents in the order of their relevance to a query.

use std::sync::Arc;

use fewbit_api::embedding::EmbeddingUsage;
use fewbit_api::rerank::{Document, RerankDocument, RerankRequest, RerankResponse, RerankResult};

use super::model_of;
use crate::error::ApiError;
use crate::line::{Call, Endpoint, Reply};
use crate::server::{Shared, random_id};

/// The most documents of one request.
const MAX_DOCUMENTS: usize = 1000;

pub(super) struct Rerank;

impl Endpoint for Rerank {
    const PATH: &'static str = "/v1/rerank";

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let request: RerankRequest = call.read()?;
        let model = model_of(server, &call.caller, request.model.as_deref())?;
        let n = request.documents.len();
        if n == 0 || n > MAX_DOCUMENTS {
            let message = format!("`documents` has {n} items: give at least 1, at most {MAX_DOCUMENTS}");
            return Err(ApiError::invalid("documents", message));
        }
        if request.query.is_empty() {
            return Err(ApiError::invalid("query", "`query` is empty: say what is looked for"));
        }
        if request.top_n == Some(0) {
            return Err(ApiError::invalid("top_n", "`top_n` is 0: give at least 1, or leave it out"));
        }
        let documents: Vec<String> = request.documents.into_iter().map(Document::into_text).collect();
        let texts = request.return_documents.unwrap_or(false).then(|| documents.clone());
        let reranked = server.backend.rerank(&call.caller, &model.id, request.query, documents).await?;
        let result = |(index, relevance_score): (usize, f32)| RerankResult {
            index,
            relevance_score,
            document: texts.as_ref().and_then(|texts| Some(RerankDocument { text: texts.get(index)?.clone() })),
        };
        let mut results: Vec<_> = reranked.scores.into_iter().enumerate().map(result).collect();
        // Documents of the same relevance keep their order.
        results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
        results.truncate(request.top_n.map_or(usize::MAX, |n| n as usize));
        let n = reranked.prompt_tokens;
        let usage = EmbeddingUsage { prompt_tokens: n, total_tokens: n };
        let response = RerankResponse { id: random_id("rerank-"), object: "list", model: model.id, results, usage };
        Ok(Reply::json(&response)?.by(reranked.answered_by.into_iter().collect()))
    }
}
