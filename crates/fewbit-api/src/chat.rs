//! `POST /v1/chat/completions`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::common::{StreamOptions, Usage, kind};

/// What is asked for. How tokens are chosen is read from the same object: [`Sampling`](crate::common::Sampling).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct ChatRequest {
    /// Which model; may be left out where there is only one.
    pub model: Option<String>,
    /// The conversation.
    pub messages: Vec<ChatMessage>,
    /// The older name of `max_completion_tokens`.
    pub max_tokens: Option<u32>,
    /// The most tokens that an answer may have.
    pub max_completion_tokens: Option<u32>,
    /// How many answers.
    pub n: Option<u32>,
    /// Whether the answer comes as it is generated.
    pub stream: Option<bool>,
    /// What the stream shall have besides.
    pub stream_options: Option<StreamOptions>,
    /// Whether to tell how probable the tokens were.
    pub logprobs: Option<bool>,
    /// How many alternatives to tell of each.
    pub top_logprobs: Option<u32>,
    /// What the answer must be.
    pub response_format: Option<ResponseFormat>,
    /// Functions that the model may call: each is read by whoever knows what a tool is.
    pub tools: Option<Vec<Value>>,
    /// Whether the model may, must or must not call.
    pub tool_choice: Option<ToolChoice>,
    /// Whether an answer may have several calls.
    pub parallel_tool_calls: Option<bool>,
    /// The form of before `tools`.
    pub functions: Option<Value>,
    /// Variables of the model's chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct ChatMessage {
    /// Whose it is.
    pub role: Role,
    /// What was said.
    #[serde(default)]
    pub content: Content,
    /// Who said it.
    pub name: Option<String>,
    /// Calls of an assistant's message.
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Which call a tool's message answers.
    pub tool_call_id: Option<String>,
    /// What the model thought before an assistant's message.
    pub reasoning_content: Option<String>,
}

impl ChatMessage {
    /// A message that is a text.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self::with_content(role, Content(Some(vec![text.into()])))
    }

    /// A message.
    pub fn with_content(role: Role, content: Content) -> Self {
        Self { role, content, name: None, tool_calls: None, tool_call_id: None, reasoning_content: None }
    }
}

/// Whose a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Instructions.
    #[serde(alias = "developer")]
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// What a call gave.
    Tool,
}

/// What a message says: a text, parts that are texts, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content(pub Option<Vec<String>>);

impl Content {
    /// All of it.
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

/// A call of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Tells the calls of a conversation apart.
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// Which, and with what.
    pub function: FunctionCall,
}

fn function() -> String {
    "function".to_owned()
}

impl ToolCall {
    /// A call.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            kind: function(),
            function: FunctionCall { name: name.into(), arguments: arguments.into() },
        }
    }
}

/// A part of [`ToolCall`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// Which function.
    pub name: String,
    /// JSON of an object, as a text.
    pub arguments: String,
}

/// Whether the model may call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ToolChoice {
    /// It must not.
    None,
    /// It decides.
    Auto,
    /// It must.
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

/// What an answer must be.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema and its name.
        json_schema: JsonSchema,
    },
}

/// A part of [`ResponseFormat`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct JsonSchema {
    /// The schema; without it any object.
    pub schema: Option<Value>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatResponse {
    /// Tells answers apart.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// Which model.
    pub model: String,
    /// What computed it: the same means the same answers for the same seeds.
    pub system_fingerprint: String,
    /// As many as were asked for.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    pub usage: Usage,
}

/// One of the answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatChoice {
    /// Which.
    pub index: usize,
    /// What was answered.
    pub message: AssistantMessage,
    /// How probable it was.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
}

/// What the model answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The text; null if there are only calls.
    pub content: Option<String>,
    /// Always null: models here do not refuse in a field of their own.
    pub refusal: Option<String>,
    /// What the model thought before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// How probable tokens were.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatLogprobs {
    /// Of each token.
    pub content: Vec<TokenLogprob>,
    /// Always null.
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// How probable a token was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// Its text; a part of a character shows as U+FFFD.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The bytes of its text.
    pub bytes: Vec<u8>,
    /// The most probable tokens of its place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that could have come.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The bytes of its text.
    pub bytes: Vec<u8>,
}

/// A part of an answer that is streamed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatChunk {
    /// The same in all chunks of an answer.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970, the same in all chunks.
    pub created: u64,
    /// Which model.
    pub model: String,
    /// What computed it.
    pub system_fingerprint: String,
    /// One; none in the chunk with the usage.
    pub choices: Vec<ChunkChoice>,
    /// In the last chunk, if it was asked for; null in those before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// A part of one of the answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChunkChoice {
    /// Which.
    pub index: usize,
    /// What is new.
    pub delta: Delta,
    /// How probable it was.
    pub logprobs: Option<ChatLogprobs>,
    /// In the last chunk of an answer.
    pub finish_reason: Option<&'static str>,
}

/// What is new.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Delta {
    /// In the first chunk.
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

/// A part of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToolCallDelta {
    /// Which call of the answer.
    pub index: usize,
    /// Once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, with the name.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// What is new of it.
    pub function: FunctionDelta,
}

/// A part of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FunctionDelta {
    /// Once.
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
    fn null_is_nothing_and_unknown_fields_are_ignored() {
        let mut all =
            json!({ "messages": [{ "role": "user", "content": "Hi", "name": null, "audio": null }], "x": {} });
        for name in [
            "model",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
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
    fn contents_are_texts_or_parts() {
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
    fn choices_of_tools() {
        let choice = |value| from_value::<ToolChoice>(value).ok();
        assert_eq!(choice(json!("required")), Some(ToolChoice::Required));
        let named = json!({ "type": "function", "function": { "name": "f" } });
        assert_eq!(choice(named), Some(ToolChoice::Named("f".into())));
        assert_eq!(choice(json!("always")), None);
        assert_eq!(choice(json!({ "type": "function" })), None);
    }
}
