//! `GET /v1/models` and `GET /v1/models/ID`.

use serde::Serialize;

/// The models there are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// Each.
    pub data: Vec<ModelObject>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelObject {
    /// What requests call it.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// `fewbit`.
    pub owned_by: &'static str,
    /// Tokens that a prompt and its answer can have together. Not OpenAI's; vLLM's name.
    pub max_model_len: usize,
}
