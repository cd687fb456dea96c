//! `POST /v1/responses`: OpenAI's newer interface, in which a conversation is a list of items.
//!
//! [`Item::append_to`] converts items to messages of the chat interface.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::chat::{ChatMessage, Content, Role, TokenLogprob, ToolCall, ToolChoice};
use crate::common::kind;
use crate::prompt::PromptParam;

/// A request for a response. The same JSON object also contains the fields of [`Sampling`](crate::common::Sampling).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ResponsesRequest {
    /// The model; may be left out if there is only one.
    pub model: Option<String>,
    /// The new items of the conversation; may be left out if `prompt` names one of the server's.
    pub input: Option<Input>,
    /// A prompt of the server, whose messages come first.
    pub prompt: Option<PromptParam>,
    /// Instructions, for this answer only.
    pub instructions: Option<String>,
    /// The id of a stored answer, from which to continue.
    pub previous_response_id: Option<String>,
    /// Whether to store the answer, so that another request can continue from it. The default is true.
    pub store: Option<bool>,
    /// Whether to answer in the background. Not supported.
    pub background: Option<bool>,
    /// Another way to refer to an earlier conversation. Not supported.
    pub conversation: Option<Value>,
    /// The most tokens that the answer may have.
    pub max_output_tokens: Option<u32>,
    /// Whether to stream the answer while it is generated.
    pub stream: Option<bool>,
    /// The form that the text of the answer must have.
    pub text: Option<TextConfig>,
    /// How much the model should reason.
    pub reasoning: Option<Reasoning>,
    /// Functions that the model may call: `{"type": "function", "name", "description", "parameters"}`.
    pub tools: Option<Vec<Map<String, Value>>>,
    /// Whether the model may, must or must not call a tool.
    pub tool_choice: Option<ToolChoice>,
    /// Whether an answer may contain several calls.
    pub parallel_tool_calls: Option<bool>,
    /// Additional parts of the answer. Only `message.output_text.logprobs` is supported.
    pub include: Option<Vec<String>>,
    /// How many alternatives to return for each token.
    pub top_logprobs: Option<u32>,
    /// Data of the client, which is returned unchanged. `feature` in it names what the request is for, to sum up usage by.
    pub metadata: Option<Map<String, Value>>,
    /// Variables of the model's chat template. Not part of OpenAI's interface.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// The input of a request. In JSON: a text, or a list of items.
#[derive(Debug, Clone, PartialEq)]
pub struct Input(pub Vec<Item>);

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let item = |(i, mut item): (usize, Value)| {
            // serde would take a list of an item's fields as well.
            if !item.is_object() {
                return Err(D::Error::custom(format!("item {i}: expected an object, found {}", kind(&item))));
            }
            // Messages may leave out their `type`.
            if let Value::Object(fields) = &mut item
                && fields.contains_key("role")
                && fields.get("type").is_none_or(Value::is_null)
            {
                fields.insert("type".to_owned(), "message".into());
            }
            Item::deserialize(item).map_err(|error| D::Error::custom(format!("item {i}: {error}")))
        };
        match Value::deserialize(deserializer)? {
            Value::String(text) => {
                Ok(Self(vec![Item::Message { role: Role::User, content: Content(Some(vec![text])) }]))
            }
            Value::Array(items) => items.into_iter().enumerate().map(item).collect::<Result<_, _>>().map(Self),
            other => Err(D::Error::custom(format!("expected a text or a list of items, found {}", kind(&other)))),
        }
    }
}

/// An item of a conversation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Item {
    /// A message.
    Message {
        /// Who sent the message.
        role: Role,
        /// Its text.
        content: Content,
    },
    /// A function call by the model.
    FunctionCall {
        /// The id of the call, unique in a conversation.
        call_id: String,
        /// The name of the function.
        name: String,
        /// The arguments: a string with a JSON object.
        arguments: String,
    },
    /// The result of a function call.
    FunctionCallOutput {
        /// The id of the call.
        call_id: String,
        /// The result.
        output: Content,
    },
    /// The model's reasoning.
    Reasoning {
        /// Parts of type `reasoning_text`.
        content: Option<Vec<ReasoningText>>,
    },
}

/// A part of the model's reasoning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReasoningText {
    /// `reasoning_text`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    pub text: String,
}

impl Item {
    /// Appends the item to messages of the chat interface, where reasoning, text and calls of one answer form one
    /// message.
    pub fn append_to(self, chat: &mut Vec<ChatMessage>) {
        let mut answer = |change: &dyn Fn(&mut ChatMessage) -> bool| {
            let is_open = chat.last_mut().is_some_and(|last| last.role == Role::Assistant && change(last));
            if !is_open {
                let mut message = ChatMessage::with_content(Role::Assistant, Content(None));
                change(&mut message);
                chat.push(message);
            }
        };
        match self {
            Self::Message { role: Role::Assistant, content } => answer(&|last| {
                // A second text, or one after calls, begins a new message.
                let has_room = last.content.0.is_none() && last.tool_calls.is_none();
                if has_room {
                    last.content = content.clone();
                }
                has_room
            }),
            Self::Message { role, content } => chat.push(ChatMessage::with_content(role, content)),
            Self::FunctionCall { call_id, name, arguments } => answer(&|last| {
                let call = ToolCall::new(call_id.clone(), name.clone(), arguments.clone());
                last.tool_calls.get_or_insert_default().push(call);
                true
            }),
            Self::FunctionCallOutput { call_id, output } => {
                let mut message = ChatMessage::with_content(Role::Tool, output);
                message.tool_call_id = Some(call_id);
                chat.push(message);
            }
            Self::Reasoning { content } => {
                let text: String = content.unwrap_or_default().into_iter().map(|part| part.text).collect();
                if !text.is_empty() {
                    let mut message = ChatMessage::with_content(Role::Assistant, Content(None));
                    message.reasoning_content = Some(text);
                    chat.push(message);
                }
            }
        }
    }
}

/// Settings of the text of an answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct TextConfig {
    /// The form that it must have.
    pub format: Option<TextFormat>,
}

/// The form that the text of an answer must have.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TextFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that is valid for a schema.
    JsonSchema {
        /// The schema.
        schema: Value,
    },
}

/// How much the model should reason.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Reasoning {
    /// `none` turns reasoning off. Other values are passed to the model's chat template.
    pub effort: Option<String>,
}

/// Converts tools to those of the chat interface.
///
/// # Errors
/// If a tool has a type that only OpenAI's servers provide, or none. The error is the path of the field and a message.
pub fn chat_tools(tools: &[Map<String, Value>]) -> Result<Vec<Value>, (String, String)> {
    let tool = |(i, tool): (usize, &Map<String, Value>)| match tool.get("type").and_then(Value::as_str) {
        Some("function") => {
            let mut function = tool.clone();
            function.remove("type");
            Ok(json!({ "type": "function", "function": function }))
        }
        Some(kind) => {
            let text = format!("a tool of type {kind:?} runs on OpenAI's servers: only \"function\" can be used here");
            Err((format!("tools[{i}].type"), text))
        }
        None => Err((format!("tools[{i}].type"), "a tool has no text `type`: it is \"function\"".to_owned())),
    };
    tools.iter().enumerate().map(tool).collect()
}

/// An answer, at its beginning or its end.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Response {
    /// The id of the answer.
    pub id: String,
    /// `response`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: u64,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    pub status: &'static str,
    /// Why the answer failed.
    pub error: Option<ResponseError>,
    /// Why the answer is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// As in the request.
    pub instructions: Option<String>,
    /// As in the request.
    pub max_output_tokens: Option<u32>,
    /// The model.
    pub model: String,
    /// The items of the answer.
    pub output: Vec<OutputItem>,
    /// As in the request.
    pub parallel_tool_calls: bool,
    /// As in the request.
    pub previous_response_id: Option<String>,
    /// As in the request.
    pub reasoning: Value,
    /// As in the request.
    pub store: bool,
    /// As in the request.
    pub temperature: Option<f32>,
    /// As in the request.
    pub text: Value,
    /// As in the request.
    pub tool_choice: Value,
    /// As in the request.
    pub tools: Vec<Map<String, Value>>,
    /// As in the request.
    pub top_p: Option<f32>,
    /// Always `disabled`: a prompt that is too long is an error.
    pub truncation: &'static str,
    /// The tokens that it took; null until the end.
    pub usage: Option<ResponseUsage>,
    /// As in the request.
    pub metadata: Map<String, Value>,
}

/// Why an answer failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResponseError {
    /// `server_error`.
    pub code: &'static str,
    /// A message for people.
    pub message: String,
}

/// Why an answer is incomplete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct IncompleteDetails {
    /// `max_output_tokens`.
    pub reason: &'static str,
}

/// An item of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutputItem {
    /// The model's reasoning.
    Reasoning {
        /// The id of the item.
        id: String,
        /// Always empty: reasoning is returned in full, not summarized.
        summary: Vec<String>,
        /// The reasoning.
        content: Vec<ReasoningText>,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
    },
    /// A message.
    Message {
        /// The id of the item.
        id: String,
        /// `assistant`.
        role: &'static str,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
        /// A single text.
        content: Vec<OutputText>,
    },
    /// A function call.
    FunctionCall {
        /// The id of the item.
        id: String,
        /// The id of the call, unique in a conversation.
        call_id: String,
        /// The name of the function.
        name: String,
        /// The arguments: a string with a JSON object.
        arguments: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
    },
}

/// A text of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OutputText {
    /// `output_text`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The text.
    pub text: String,
    /// Always empty.
    pub annotations: Vec<Value>,
    /// Log probabilities of its tokens, if they were requested.
    pub logprobs: Vec<TokenLogprob>,
}

impl OutputText {
    /// Creates a text.
    pub fn new(text: String, logprobs: Vec<TokenLogprob>) -> Self {
        Self { kind: "output_text", text, annotations: Vec::new(), logprobs }
    }
}

/// The tokens that an answer took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResponseUsage {
    /// Tokens of the prompt.
    pub input_tokens: usize,
    /// Details about the prompt tokens.
    pub input_tokens_details: InputDetails,
    /// Generated tokens.
    pub output_tokens: usize,
    /// Details about the generated tokens.
    pub output_tokens_details: OutputDetails,
    /// The sum of both.
    pub total_tokens: usize,
}

/// Details of a [`ResponseUsage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InputDetails {
    /// Tokens that were found in the cache, because an earlier request had them.
    pub cached_tokens: usize,
}

/// Details of a [`ResponseUsage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OutputDetails {
    /// Always 0: reasoning is not counted separately.
    pub reasoning_tokens: usize,
}

impl ResponseUsage {
    /// Creates a usage with these numbers of tokens.
    pub fn new(prompt: usize, cached: usize, completion: usize) -> Self {
        Self {
            input_tokens: prompt,
            input_tokens_details: InputDetails { cached_tokens: cached },
            output_tokens: completion,
            output_tokens_details: OutputDetails { reasoning_tokens: 0 },
            total_tokens: prompt + completion,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::from_value;

    use super::*;

    #[test]
    fn input_items_become_chat_messages() {
        let input: Input = from_value(json!([
            { "role": "developer", "content": "Be brief." },
            { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "Hi" }] },
            { "type": "reasoning", "id": "rs_1", "summary": [], "content": [{ "type": "reasoning_text", "text": "Hm." }] },
            { "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
              "content": [{ "type": "output_text", "text": "Wait.", "annotations": [] }] },
            { "type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed" },
            { "type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}" },
            { "type": "function_call_output", "call_id": "c1", "output": "3" },
            { "type": "function_call_output", "call_id": "c2", "output": [{ "type": "input_text", "text": "4" }] }
        ]))
        .unwrap();
        let mut chat = Vec::new();
        input.0.into_iter().for_each(|item| item.append_to(&mut chat));
        let mut answer = ChatMessage::new(Role::Assistant, "Wait.");
        answer.reasoning_content = Some("Hm.".into());
        answer.tool_calls = Some(vec![ToolCall::new("c1", "f", "{}"), ToolCall::new("c2", "g", "{}")]);
        let result = |id: &str, text: &str| {
            let mut message = ChatMessage::new(Role::Tool, text);
            message.tool_call_id = Some(id.into());
            message
        };
        let want = [
            ChatMessage::new(Role::System, "Be brief."),
            ChatMessage::new(Role::User, "Hi"),
            answer,
            result("c1", "3"),
            result("c2", "4"),
        ];
        assert_eq!(chat, want);
    }

    #[test]
    fn unsupported_items_and_tools_are_rejected() {
        let input = |value| from_value::<Input>(value).map_err(|error| error.to_string());
        assert!(
            input(json!([{ "type": "item_reference", "id": "x" }])).unwrap_err().contains("item 0: unknown variant")
        );
        assert!(
            input(json!([{ "role": "user", "content": [{ "type": "input_image" }] }])).unwrap_err().contains("part 0")
        );
        assert!(input(json!(3)).unwrap_err().contains("found a number"));
        let tools: Vec<Map<String, Value>> = from_value(json!([{ "type": "web_search" }])).unwrap();
        assert_eq!(chat_tools(&tools).unwrap_err().0, "tools[0].type");
    }
}
