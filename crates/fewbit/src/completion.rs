//! What a generation returns: pieces while it runs, and a summary at its end.

use std::time::Duration;

use crate::sample::TokenLogprob;
use crate::tools::{MalformedCall, ToolCall, ToolCallDelta};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model generated an end-of-text token, or the text of a constraint is complete and nothing can follow it.
    EndOfGeneration,
    /// The model ended an answer that calls tools.
    ToolCalls,
    /// The text reached a stop string.
    StopString,
    /// The model generated a stop token.
    StopToken,
    /// The condition given to `stop_when` was true.
    StopCondition,
    /// The generation has `max_tokens` tokens, or the context or the memory for it is full.
    Length,
    /// The deadline or the time limit passed.
    Timeout,
    /// The generation was dropped, cancelled, or failed before its end.
    Cancelled,
}

impl FinishReason {
    /// The name of the OpenAI API: `stop`, `tool_calls` or `length`; or `timeout` and `cancelled`, which that API does
    /// not have.
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

/// How many tokens a generation processed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt: usize,
    /// Tokens of the prompt that were in the KV cache already, from earlier turns of this conversation or from another
    /// request that begins with the same tokens.
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
    /// Loading the model: once for all of its generations.
    pub load: Duration,
    /// Waiting for other requests: in the queue, and between the steps that include this one.
    pub queue: Duration,
    /// Running the prompt through the model.
    pub prefill: Duration,
    /// Everything after the first generated token, sampling included.
    pub decode: Duration,
    /// Choosing tokens; included in the times above.
    pub sample: Duration,
    /// Applying a constraint; included in the times above.
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
    /// Text to append; always valid UTF-8. Empty while a character or a possible stop string is incomplete: its text
    /// comes with a later piece.
    pub text: String,
    /// Reasoning to append, of models that reason before they answer. Only where a chat template is used.
    pub reasoning: String,
    /// Parts of tool calls, as they are generated. Only in a conversation that has tools.
    pub tool_calls: Vec<ToolCallDelta>,
    /// Text that began like a tool call but is none; it is also in `text`, of this piece or of earlier ones.
    pub malformed_calls: Vec<MalformedCall>,
    /// The tokens of this step. Empty in a last piece that only has text that was held back.
    pub token_ids: Vec<u32>,
    /// Log probabilities, one for each of these tokens; empty unless requested.
    pub logprobs: Vec<TokenLogprob>,
}

/// A finished generation.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Completion {
    /// The generated text, without the stop string that ended it. With `echo` it begins with the prompt. In a
    /// conversation with tools it does not contain the tool calls.
    pub text: String,
    /// The tool calls of the answer. Only in a conversation that has tools.
    pub tool_calls: Vec<ToolCall>,
    /// Text that began like a tool call but is none; it is also in `text`.
    pub malformed_calls: Vec<MalformedCall>,
    /// The model's reasoning before its answer.
    pub reasoning: String,
    /// The generated tokens, without the one that ended the generation.
    pub tokens: Vec<u32>,
    /// Log probabilities, one for each of these tokens; empty unless requested.
    pub logprobs: Vec<TokenLogprob>,
    /// Log probabilities, one for each token of the prompt; empty unless they were requested and the prompt is echoed.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// The tokens of the prompt.
    pub prompt_tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How many tokens it processed.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// The seed of the random numbers: the one that was set, or the one that was drawn.
    pub seed: u64,
}

impl std::fmt::Display for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}
