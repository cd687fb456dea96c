//! `/admin/*`, and what a key may see of itself: requests in progress, usage, the state of the audit log. Not part of
//! OpenAI's interface.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A list.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct List<T> {
    /// `list`.
    pub object: &'static str,
    /// Its items.
    pub data: Vec<T>,
}

impl<T> List<T> {
    /// Creates a list.
    pub fn new(data: Vec<T>) -> Self {
        Self { object: "list", data }
    }
}

/// A request in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LiveRequest {
    /// The request id.
    pub id: String,
    /// The name of the key.
    pub key: Option<String>,
    /// The path of the endpoint.
    pub endpoint: String,
    /// The model or route.
    pub model: String,
    /// `waiting` until its first tokens are there, then `generating`.
    pub state: &'static str,
    /// How many answers it gets.
    pub answers: usize,
    /// Tokens of the prompt; 0 if they are not known yet.
    pub prompt_tokens: u64,
    /// Tokens generated so far.
    pub completion_tokens: u64,
    /// For how long it has been running, in milliseconds.
    pub elapsed_ms: u64,
}

/// The result of cancelling a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cancelled {
    /// The request id.
    pub id: String,
    /// Always true.
    pub cancelled: bool,
}

/// What a key used on one day of one model, with one prompt, for one feature.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UsageRow {
    /// The day (UTC), such as `2026-11-28`.
    pub day: String,
    /// The name of the key.
    pub key: String,
    /// The model or route.
    pub model: String,
    /// The version of the prompt that was named, such as `support@3`; null without one.
    pub prompt: Option<String>,
    /// The feature that the client named; null without one.
    pub feature: Option<String>,
    /// Answers that were begun, including those that failed or were cancelled.
    pub answers: u64,
    /// How many of them failed.
    pub failed: u64,
    /// Requests that ended before an answer was begun.
    pub refused: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// How many of them were found in the cache.
    pub cached_tokens: u64,
    /// Generated tokens.
    pub completion_tokens: u64,
    /// Cost, in the currency of the prices.
    pub cost: f64,
    /// The durations of all answers together, in milliseconds.
    pub elapsed_ms: u64,
}

/// The state of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditState {
    /// The number of lines.
    pub lines: u64,
    /// The SHA-256 of the last line, in hexadecimal.
    pub hash: String,
    /// Whether all entries so far could be written.
    pub is_complete: bool,
}

/// The result of verifying the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditCheck {
    /// Whether no line was changed, removed or inserted.
    pub is_intact: bool,
    /// The number of lines.
    pub lines: u64,
    /// The SHA-256 of the last line; of none, if the log is not intact.
    pub hash: Option<String>,
    /// What is wrong, with the line number.
    pub problem: Option<String>,
}

/// A call of a tool that waits for the approval of a person.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Approval {
    /// Its id, to decide about it.
    pub id: String,
    /// The id of the request to whose answer the call belongs.
    pub request: String,
    /// The name of the key.
    pub key: Option<String>,
    /// The model or route.
    pub model: String,
    /// The tool, as `SERVER__TOOL`.
    pub tool: String,
    /// The arguments that the model wrote.
    pub arguments: Map<String, Value>,
    /// When the call was made, in milliseconds since 1970.
    pub asked_ms: u64,
    /// When it is denied if nobody has decided, in milliseconds since 1970.
    pub expires_ms: u64,
}

/// A request to decide about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DecideRequest {
    /// What to do.
    pub decision: Verdict,
}

/// What to do with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Run it.
    Approve,
    /// Do not run it.
    Deny,
}

/// The answer to a [`DecideRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Decided {
    /// The id of the call.
    pub id: String,
    /// What was decided.
    pub decision: Verdict,
}

/// A prompt of the server.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PromptInfo {
    /// Its name.
    pub name: String,
    /// The version that requests get that name none.
    pub promoted: Option<u32>,
    /// Another version that some of these requests get.
    pub canary: Option<CanaryInfo>,
    /// Why requests that name no version get none, although one is promoted.
    pub problem: Option<String>,
    /// Its versions, in ascending order.
    pub versions: Vec<PromptVersionInfo>,
}

/// A version that some requests get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CanaryInfo {
    /// The version.
    pub version: u32,
    /// How many of a hundred requests get it.
    pub percent: u8,
    /// Whether each key always gets the same version.
    pub by_key: bool,
}

/// A version of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PromptVersionInfo {
    /// Its name in requests, such as `support@3`.
    pub id: String,
    /// The version.
    pub version: u32,
    /// The hash of its files.
    pub sha256: String,
    /// What it is for.
    pub description: String,
    /// Its variables, by name.
    pub variables: Vec<PromptVariable>,
    /// Its messages.
    pub messages: Vec<PromptMessage>,
}

/// A variable of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PromptVariable {
    /// Its name.
    pub name: String,
    /// `text`, `number`, `boolean`, or `json` for any value.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What it is for.
    pub description: String,
    /// Its value in requests that give none; null if every request must give one.
    pub default: Option<Value>,
}

/// A message of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PromptMessage {
    /// Who says it: `system`, `user` or `assistant`.
    pub role: &'static str,
    /// Its template.
    pub content: String,
}

/// How a version of a prompt differs from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PromptDifference {
    /// The one version, such as `support@3`.
    pub from: String,
    /// The other one.
    pub to: String,
    /// The lines of both: variables, then messages.
    pub lines: Vec<DifferenceLine>,
}

/// A line of one or both of two texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DifferenceLine {
    /// A space for a line of both, `-` for one of the first text, `+` for one of the second.
    pub change: &'static str,
    /// The line.
    pub line: String,
}
