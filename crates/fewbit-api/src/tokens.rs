//! `POST /tokenize` and `POST /detokenize`, which are not part of OpenAI's interface. llama.cpp's server calls the text
//! `content`, vLLM calls it `prompt`: requests may use either name, and answers have both.

use serde::{Deserialize, Serialize};

/// A request to tokenize a text.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct TokenizeRequest {
    /// The model; may be left out if there is only one.
    pub model: Option<String>,
    /// The text.
    #[serde(alias = "prompt")]
    pub content: String,
    /// Whether to add the begin-of-text token, if the model uses one. The default is false.
    #[serde(alias = "add_special_tokens")]
    pub add_special: Option<bool>,
    /// Whether special tokens are recognized in the text. The default is false.
    pub parse_special: Option<bool>,
}

/// The tokens of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenizeResponse {
    /// The token ids.
    pub tokens: Vec<u32>,
    /// How many there are.
    pub count: usize,
    /// How many tokens a prompt and its answer can have together.
    pub max_model_len: usize,
}

/// A request to turn tokens into text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct DetokenizeRequest {
    /// The model; may be left out if there is only one.
    pub model: Option<String>,
    /// The token ids.
    pub tokens: Vec<u32>,
}

/// The text of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DetokenizeResponse {
    /// The text.
    pub content: String,
    /// The same text again.
    pub prompt: String,
}
