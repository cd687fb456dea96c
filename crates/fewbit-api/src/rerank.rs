//! `POST /v1/rerank`, in the form that Jina, Cohere, llama.cpp's server and vLLM share. OpenAI has no such endpoint.

use serde::{Deserialize, Serialize};

use crate::embedding::EmbeddingUsage;

/// A request to order documents by how relevant they are to a query.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct RerankRequest {
    /// The model; may be left out if there is only one.
    pub model: Option<String>,
    /// The query.
    pub query: String,
    /// The documents.
    pub documents: Vec<Document>,
    /// How many results to return; all by default.
    pub top_n: Option<u32>,
    /// Whether results have their documents; false by default.
    pub return_documents: Option<bool>,
}

/// A document: a text, or an object with a text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "expected a text, or an object with `text`")]
#[non_exhaustive]
pub enum Document {
    /// A text.
    Text(String),
    /// An object with a text.
    Object {
        /// The text.
        text: String,
    },
}

impl Document {
    /// The text.
    pub fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

/// Documents in the order of their relevance.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RerankResponse {
    /// An id, which Cohere's clients expect.
    pub id: String,
    /// `list`.
    pub object: &'static str,
    /// The model.
    pub model: String,
    /// The most relevant first.
    pub results: Vec<RerankResult>,
    /// The tokens of the request.
    pub usage: EmbeddingUsage,
}

/// A document with its relevance.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RerankResult {
    /// The index of the document in the request.
    pub index: usize,
    /// How relevant it is.
    pub relevance_score: f32,
    /// The document, if the request asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<RerankDocument>,
}

/// A document of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RerankDocument {
    /// The text.
    pub text: String,
}
