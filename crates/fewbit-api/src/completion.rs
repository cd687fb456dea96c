//! `POST /v1/completions`: continues texts as they are, without a chat template.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::{Prompts, StreamOptions, Usage};

/// A request for completions. The same JSON object also contains the fields of [`Sampling`](crate::common::Sampling).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct CompletionRequest {
    /// The model; may be left out if there is only one.
    pub model: Option<String>,
    /// The texts to continue.
    pub prompt: Prompts,
    /// The most tokens of each answer. The default is 16.
    pub max_tokens: Option<u32>,
    /// How many answers to give for each prompt.
    pub n: Option<u32>,
    /// Whether to stream the answer while it is generated.
    pub stream: Option<bool>,
    /// Options of the stream.
    pub stream_options: Option<StreamOptions>,
    /// How many alternatives to return for each token, with log probabilities; 0 returns those of the tokens only.
    pub logprobs: Option<u32>,
    /// Whether the answer begins with the prompt.
    pub echo: Option<bool>,
    /// How many answers to generate, of which the best are returned. Only the value of `n` is supported.
    pub best_of: Option<u32>,
    /// A text that follows the answer. Not supported.
    pub suffix: Option<String>,
}

/// An answer, or a chunk of a streamed one: both have the same form.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CompletionResponse {
    /// The id of the answer.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: String,
    /// Identifies what computed the answer.
    pub system_fingerprint: String,
    /// The answers. A chunk of a stream has one, or none in the chunk with the usage.
    pub choices: Vec<CompletionChoice>,
    /// The usage. A stream has it only if it was requested: in the last chunk, and null in the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One of the answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CompletionChoice {
    /// The index of the answer: first come all answers to the first prompt.
    pub index: usize,
    /// The text; in a stream, what is new of it.
    pub text: String,
    /// Log probabilities, if they were requested.
    pub logprobs: Option<Logprobs>,
    /// `stop` or `length`; null in a stream until the end.
    pub finish_reason: Option<&'static str>,
}

/// Log probabilities of tokens: four lists of the same length.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Logprobs {
    /// The texts of the tokens.
    pub tokens: Vec<String>,
    /// Natural logarithms of their probabilities; null for the first token of a text.
    pub token_logprobs: Vec<Option<f32>>,
    /// The most probable tokens at each position, by text.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// The positions of the tokens in the text, in characters.
    pub text_offset: Vec<usize>,
}
