//! `POST /v1/completions`: texts that are continued as they are, without a chat template.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::{Prompts, StreamOptions, Usage};

/// What is asked for. How tokens are chosen is read from the same object: [`Sampling`](crate::common::Sampling).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct CompletionRequest {
    /// Which model; may be left out where there is only one.
    pub model: Option<String>,
    /// What to continue.
    pub prompt: Prompts,
    /// The most tokens of each answer: 16 if nothing is said.
    pub max_tokens: Option<u32>,
    /// How many answers for each prompt.
    pub n: Option<u32>,
    /// Whether the answer comes as it is generated.
    pub stream: Option<bool>,
    /// What the stream shall have besides.
    pub stream_options: Option<StreamOptions>,
    /// How many alternatives to tell of each token, with how probable all are; 0 tells of the tokens only.
    pub logprobs: Option<u32>,
    /// Whether the answer begins with the prompt.
    pub echo: Option<bool>,
    /// Answers among which the best would be chosen.
    pub best_of: Option<u32>,
    /// A text that would follow the answer.
    pub suffix: Option<String>,
}

/// An answer, or a part of one: both have the same form.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompletionResponse {
    /// Tells answers apart.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// Which model.
    pub model: String,
    /// What computed it.
    pub system_fingerprint: String,
    /// Of a stream: one, or none in the chunk with the usage.
    pub choices: Vec<CompletionChoice>,
    /// Of a stream: in the last chunk, if it was asked for; null in those before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One of the answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompletionChoice {
    /// Which: those of the first prompt first.
    pub index: usize,
    /// The text, or what is new of it.
    pub text: String,
    /// How probable it was.
    pub logprobs: Option<Logprobs>,
    /// `stop` or `length`, at the end.
    pub finish_reason: Option<&'static str>,
}

/// How probable tokens were: four lists of one length.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Logprobs {
    /// Their texts.
    pub tokens: Vec<String>,
    /// Natural logarithms of their probabilities; null for a token that follows nothing.
    pub token_logprobs: Vec<Option<f32>>,
    /// The most probable tokens of each place, by text.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where in the text they begin, in characters.
    pub text_offset: Vec<usize>,
}
