//! What a generation returns: pieces while it runs, and a summary at its end.

use std::time::Duration;

use crate::sample::TokenLogprob;
use crate::tools::{MalformedCall, ToolCall, ToolCallDelta};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model chose a token that ends its text, or a constrained text is complete and nothing can follow.
    EndOfGeneration,
    /// The model ended its answer, which calls tools.
    ToolCalls,
    /// A stop string came up.
    StopString,
    /// A stop token came up.
    StopToken,
    /// A condition of the caller's was met.
    StopCondition,
    /// `max_tokens` is reached, or the context or the memory for it is full.
    Length,
    /// Its deadline passed.
    Timeout,
    /// The generation was dropped, cancelled, or failed before its end.
    Cancelled,
}

impl FinishReason {
    /// The word that the OpenAI interface uses: `stop`, `tool_calls`, `length`, or `timeout` and `cancelled`, which it
    /// does not have.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EndOfGeneration | Self::StopString | Self::StopToken | Self::StopCondition => "stop",
            Self::ToolCalls => "tool_calls",
            Self::Length => "length",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }
}

impl std::fmt::Display for FinishReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many tokens a generation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt, the cached ones included.
    pub prompt: usize,
    /// Tokens of the prompt that were in the KV cache already: of this conversation, or of another request
    /// that begins alike.
    pub cached: usize,
    /// Tokens generated.
    pub completion: usize,
    /// Tokens that were drafted: see [`Speculation`](crate::Speculation).
    pub drafted: usize,
    /// Drafted tokens that were accepted.
    pub accepted: usize,
}

/// Where the time of a generation went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Timings {
    /// Loading the model, once for all its generations.
    pub load: Duration,
    /// Waiting for other generations.
    pub queue: Duration,
    /// Running the prompt through the model.
    pub prefill: Duration,
    /// Everything from the first generated token on, sampling included.
    pub decode: Duration,
    /// Choosing tokens: a part of the above.
    pub sample: Duration,
    /// Following a constraint: a part of the above.
    pub constrain: Duration,
    /// Tokens computed during `prefill`.
    pub prefill_tokens: usize,
    /// Tokens generated during `decode`. The first token is a result of the prefill.
    pub decode_tokens: usize,
}

impl Timings {
    /// Prompt tokens per second; 0 if there were none.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.prefill_tokens as u64, self.prefill)
    }

    /// Generated tokens per second; 0 if there were none.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.decode_tokens as u64, self.decode)
    }
}

/// Tokens per second; 0 if there were none.
pub(crate) fn rate(tokens: u64, time: Duration) -> f64 {
    if tokens == 0 || time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// One step of a generation: what one token added to the text.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Piece {
    /// Text to append; always valid UTF-8. Empty while a character or a possible stop string is
    /// incomplete: its text comes with a later piece.
    pub text: String,
    /// Reasoning to append, from models that reason before they answer. Only where a chat template is used.
    pub reasoning: String,
    /// Parts of calls, as they are generated: in a conversation that has tools.
    pub tool_calls: Vec<ToolCallDelta>,
    /// What began as a call and is none; its text is in `text`, of this piece or of those before.
    pub malformed_calls: Vec<MalformedCall>,
    /// The tokens of this step. Empty in a last piece that only brings out text that was held back.
    pub token_ids: Vec<u32>,
    /// For each of these tokens, if they were asked for.
    pub logprobs: Vec<TokenLogprob>,
}

/// A finished generation.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Completion {
    /// The generated text, up to but without a stop string; after the prompt's, if that is echoed. In a conversation
    /// with tools, without the calls.
    pub text: String,
    /// The tools that the answer calls: in a conversation that has tools.
    pub tool_calls: Vec<ToolCall>,
    /// What began as a call and is none: it stays in the text.
    pub malformed_calls: Vec<MalformedCall>,
    /// The model's reasoning before its answer.
    pub reasoning: String,
    /// The generated tokens, without one that ended the generation.
    pub tokens: Vec<u32>,
    /// For each of these tokens, if they were asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// For each token of the prompt, if they were asked for and the prompt is echoed.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// The tokens of the prompt.
    pub prompt_tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How many tokens it took.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// The seed of the random numbers: the one given, or the one that was drawn.
    pub seed: u64,
}

impl std::fmt::Display for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}
