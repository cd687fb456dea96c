//! `GET /v1/models` and `GET /v1/models/ID`.

use serde::Serialize;

/// A list of models.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The models.
    pub data: Vec<ModelObject>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelObject {
    /// Its name in requests.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// `fewbit`.
    pub owned_by: &'static str,
    /// How many tokens a prompt and its answer can have together; 0 if unknown. The name is vLLM's; OpenAI has no such
    /// field.
    pub max_model_len: usize,
    /// Whether it is in memory: `loaded`, `loading`, `unloaded` or `unloading`. OpenAI has no such field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'static str>,
}
