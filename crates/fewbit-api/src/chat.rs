//! `POST /v1/chat/completions`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::common::{StreamOptions, Usage, kind};
use crate::prompt::PromptParam;

/// A chat request. The same JSON object also contains the fields of [`Sampling`](crate::common::Sampling).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ChatRequest {
    /// The model; may be left out if there is only one.
    pub model: Option<String>,
    /// The conversation; may be left out if `prompt` names one of the server's.
    #[serde(default)]
    pub messages: Vec<ChatMessage>,
    /// A prompt of the server, whose messages come first. Not part of OpenAI's interface for chats.
    pub prompt: Option<PromptParam>,
    /// The older name of `max_completion_tokens`.
    pub max_tokens: Option<u32>,
    /// The most tokens that an answer may have.
    pub max_completion_tokens: Option<u32>,
    /// How many answers to give.
    pub n: Option<u32>,
    /// Whether to stream the answer while it is generated.
    pub stream: Option<bool>,
    /// Options of the stream.
    pub stream_options: Option<StreamOptions>,
    /// Whether to return log probabilities of the tokens.
    pub logprobs: Option<bool>,
    /// How many alternatives to return for each token.
    pub top_logprobs: Option<u32>,
    /// The form that the answer must have.
    pub response_format: Option<ResponseFormat>,
    /// Functions that the model may call. They are not parsed here, but by the backend.
    pub tools: Option<Vec<Value>>,
    /// Whether the model may, must or must not call a tool.
    pub tool_choice: Option<ToolChoice>,
    /// Whether an answer may contain several calls.
    pub parallel_tool_calls: Option<bool>,
    /// The deprecated predecessor of `tools`. Not supported.
    pub functions: Option<Value>,
    /// Data of the client. `feature` in it names what the request is for, to sum up usage by.
    pub metadata: Option<Map<String, Value>>,
    /// Variables of the model's chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ChatMessage {
    /// Who sent the message.
    pub role: Role,
    /// The text of the message.
    #[serde(default)]
    pub content: Content,
    /// The name of the sender.
    pub name: Option<String>,
    /// The calls of an assistant's message.
    pub tool_calls: Option<Vec<ToolCall>>,
    /// The id of the call that a tool's message answers.
    pub tool_call_id: Option<String>,
    /// The model's reasoning before an assistant's message.
    pub reasoning_content: Option<String>,
}

impl ChatMessage {
    /// Creates a message with this text.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self::with_content(role, Content(Some(vec![text.into()])))
    }

    /// Creates a message with this content.
    pub fn with_content(role: Role, content: Content) -> Self {
        Self { role, content, name: None, tool_calls: None, tool_call_id: None, reasoning_content: None }
    }
}

/// Who sent a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// The instructions. OpenAI's newer models call this role `developer`.
    #[serde(alias = "developer")]
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// The result of a call.
    Tool,
}

/// The content of a message. In JSON: a text, a list of parts that are texts, or null.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content(pub Option<Vec<String>>);

impl Content {
    /// The text of all parts together.
    pub fn as_text(&self) -> Option<String> {
        self.0.as_ref().map(|parts| parts.concat())
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let part = |(i, part): (usize, &Value)| {
            let wrong = |what: &str| D::Error::custom(format!("part {i} {what}"));
            let kind = part.get("type").and_then(Value::as_str).ok_or_else(|| wrong("has no text `type`"))?;
            let field = match kind {
                "text" | "input_text" | "output_text" => "text",
                "refusal" => "refusal",
                _ => return Err(wrong(&format!("is of type {kind:?}: this server takes only \"text\""))),
            };
            let text =
                part.get(field).and_then(Value::as_str).ok_or_else(|| wrong(&format!("has no text `{field}`")))?;
            Ok(text.to_owned())
        };
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self(None)),
            Value::String(text) => Ok(Self(Some(vec![text]))),
            Value::Array(parts) => {
                parts.iter().enumerate().map(part).collect::<Result<_, _>>().map(|all| Self(Some(all)))
            }
            other => Err(D::Error::custom(format!("expected a text or a list of parts, found {}", kind(&other)))),
        }
    }
}

/// A function call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ToolCall {
    /// The id of the call, unique in a conversation.
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// The function and its arguments.
    pub function: FunctionCall,
}

fn function() -> String {
    "function".to_owned()
}

impl ToolCall {
    /// Creates a function call.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            kind: function(),
            function: FunctionCall { name: name.into(), arguments: arguments.into() },
        }
    }
}

/// The function and the arguments of a [`ToolCall`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FunctionCall {
    /// The name of the function.
    pub name: String,
    /// The arguments: a string with a JSON object.
    pub arguments: String,
}

/// Whether the model may, must or must not call a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ToolChoice {
    /// It must not call a tool.
    None,
    /// It decides whether to call a tool.
    Auto,
    /// It must call at least one tool.
    Required,
    /// It must call this function.
    Named(String),
}

impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let named = || value.pointer("/function/name").or_else(|| value.get("name")).and_then(Value::as_str);
        match &value {
            Value::String(word) if word == "none" => Ok(Self::None),
            Value::String(word) if word == "auto" => Ok(Self::Auto),
            Value::String(word) if word == "required" => Ok(Self::Required),
            Value::Object(_) if let Some(name) = named() => Ok(Self::Named(name.to_owned())),
            _ => Err(D::Error::custom(
                "expected \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": ...}}",
            )),
        }
    }
}

/// The form that an answer must have.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that is valid for a schema.
    JsonSchema {
        /// The schema.
        json_schema: JsonSchema,
    },
}

/// The schema of a [`ResponseFormat`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct JsonSchema {
    /// The schema; without it, any JSON object is valid.
    pub schema: Option<Value>,
}

/// An answer to a chat request.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChatResponse {
    /// The id of the answer.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: String,
    /// Identifies what computed the answer: as long as it is the same, the same seed gives the same answer.
    pub system_fingerprint: String,
    /// As many answers as were requested.
    pub choices: Vec<ChatChoice>,
    /// The tokens of the request and its answers.
    pub usage: Usage,
}

/// One of the answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChatChoice {
    /// The index of the answer.
    pub index: usize,
    /// The answer itself.
    pub message: AssistantMessage,
    /// Log probabilities, if they were requested.
    pub logprobs: Option<ChatLogprobs>,
    /// Why the answer ended: `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
}

/// The message of an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The text; null if there are only calls.
    pub content: Option<String>,
    /// Always null: refusals are not told apart from other text.
    pub refusal: Option<String>,
    /// The model's reasoning before the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// Log probabilities of the tokens of an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChatLogprobs {
    /// The log probability of each token.
    pub content: Vec<TokenLogprob>,
    /// Always null.
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// A token with its log probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenLogprob {
    /// The token as text; a part of a character is shown as U+FFFD.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The bytes of the token.
    pub bytes: Vec<u8>,
    /// The most probable tokens at this position.
    pub top_logprobs: Vec<TopLogprob>,
}

/// An alternative token at a position.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The bytes of the token.
    pub bytes: Vec<u8>,
}

/// A chunk of a streamed answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChatChunk {
    /// The id of the answer, the same in all its chunks.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970, the same in all chunks.
    pub created: u64,
    /// The model.
    pub model: String,
    /// Identifies what computed the answer.
    pub system_fingerprint: String,
    /// One part of an answer; none in the chunk with the usage.
    pub choices: Vec<ChunkChoice>,
    /// The usage, only if it was requested: in the last chunk, and null in the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// A part of one of the answers, in a chunk.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChunkChoice {
    /// The index of the answer.
    pub index: usize,
    /// The new part.
    pub delta: Delta,
    /// Log probabilities, if they were requested.
    pub logprobs: Option<ChatLogprobs>,
    /// Why the answer ended, in its last chunk; null before.
    pub finish_reason: Option<&'static str>,
}

/// A new part of an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Delta {
    /// The role, in the first chunk only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text to append.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Reasoning to append.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Parts of calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// A part of a function call in a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ToolCallDelta {
    /// The index of the call in the answer.
    pub index: usize,
    /// The id of the call, in its first part only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, in the first part only.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// The new part of the name and the arguments.
    pub function: FunctionDelta,
}

/// The function and the arguments in a [`ToolCallDelta`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FunctionDelta {
    /// The name of the function, in the first part only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Text to append.
    pub arguments: String,
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;
    use crate::common::Sampling;

    fn request(value: Value) -> Result<ChatRequest, String> {
        from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn null_fields_are_absent_and_unknown_fields_are_ignored() {
        let mut all =
            json!({ "messages": [{ "role": "user", "content": "Hi", "name": null, "audio": null }], "x": {} });
        for name in [
            "model",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "ignore_eos",
            "repeat_penalty",
            "presence_penalty",
            "frequency_penalty",
            "logit_bias",
            "seed",
            "stop",
            "max_tokens",
            "max_completion_tokens",
            "n",
            "stream",
            "stream_options",
            "logprobs",
            "top_logprobs",
            "response_format",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "functions",
            "chat_template_kwargs",
            "grammar",
            "regex",
            "repeat_last_n",
        ] {
            all[name] = Value::Null;
        }
        assert_eq!(Sampling::deserialize(&all).unwrap(), Sampling::default());
        let nulls = request(all).unwrap();
        assert_eq!(nulls, request(json!({ "messages": [{ "role": "user", "content": "Hi" }] })).unwrap());
    }

    #[test]
    fn content_is_text_or_a_list_of_text_parts() {
        let message = |value| from_value::<ChatMessage>(value).map_err(|error| error.to_string());
        let parts = json!({ "role": "developer", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] });
        let system = message(parts).unwrap();
        assert_eq!((system.role, system.content.as_text().unwrap().as_str()), (Role::System, "ab"));
        assert_eq!(message(json!({ "role": "assistant" })).unwrap().content.as_text(), None);
        let image = json!({ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "data:" } }] });
        assert!(message(image).unwrap_err().contains("part 0 is of type \"image_url\""));
        assert!(message(json!({ "role": "user", "content": 7 })).unwrap_err().contains("found a number"));
        assert!(message(json!({ "role": "king", "content": "" })).unwrap_err().contains("unknown variant `king`"));
    }

    #[test]
    fn tool_choice_is_a_mode_or_a_named_function() {
        let choice = |value| from_value::<ToolChoice>(value).ok();
        assert_eq!(choice(json!("required")), Some(ToolChoice::Required));
        let named = json!({ "type": "function", "function": { "name": "f" } });
        assert_eq!(choice(named), Some(ToolChoice::Named("f".into())));
        assert_eq!(choice(json!("always")), None);
        assert_eq!(choice(json!({ "type": "function" })), None);
    }
}
