//! `POST /tokenize` and `POST /detokenize`. They are not OpenAI's: llama.cpp's server calls the text `content`, vLLM
//! `prompt`. Both are understood, and both are answered.

use serde::{Deserialize, Serialize};

/// A text to take apart.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct TokenizeRequest {
    /// Which model; may be left out where there is only one.
    pub model: Option<String>,
    /// The text.
    #[serde(alias = "prompt")]
    pub content: String,
    /// Whether the token that begins a text is added, if the model wants one. Not by default.
    #[serde(alias = "add_special_tokens")]
    pub add_special: Option<bool>,
    /// Whether special tokens are recognised in the text. Not by default.
    pub parse_special: Option<bool>,
}

/// Its tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenizeResponse {
    /// Their ids.
    pub tokens: Vec<u32>,
    /// How many.
    pub count: usize,
    /// Tokens that a prompt and its answer can have together.
    pub max_model_len: usize,
}

/// Tokens to put together.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct DetokenizeRequest {
    /// Which model; may be left out where there is only one.
    pub model: Option<String>,
    /// Their ids.
    pub tokens: Vec<u32>,
}

/// Their text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DetokenizeResponse {
    /// The text.
    pub content: String,
    /// The same.
    pub prompt: String,
}
