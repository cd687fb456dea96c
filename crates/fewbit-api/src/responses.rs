//! `POST /v1/responses`: OpenAI's later form, in which a conversation is a list of items.
//!
//! [`Item::append_to`] says the same as messages of the chat interface.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::chat::{ChatMessage, Content, Role, TokenLogprob, ToolCall, ToolChoice};
use crate::common::kind;

/// What is asked for. How tokens are chosen is read from the same object: [`Sampling`](crate::common::Sampling).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct ResponsesRequest {
    /// Which model; may be left out where there is only one.
    pub model: Option<String>,
    /// What is new of the conversation.
    pub input: Input,
    /// Instructions, for this answer only.
    pub instructions: Option<String>,
    /// What went before: an answer that was kept.
    pub previous_response_id: Option<String>,
    /// Whether to keep the answer, so that another request can go on from it: yes if nothing is said.
    pub store: Option<bool>,
    /// Whether to answer later: not here.
    pub background: Option<bool>,
    /// Another way to name what went before: not here.
    pub conversation: Option<Value>,
    /// The most tokens that the answer may have.
    pub max_output_tokens: Option<u32>,
    /// Whether the answer comes as it is generated.
    pub stream: Option<bool>,
    /// What the answer must be.
    pub text: Option<TextConfig>,
    /// How much the model shall think.
    pub reasoning: Option<Reasoning>,
    /// Functions that the model may call: `{"type": "function", "name", "description", "parameters"}`.
    pub tools: Option<Vec<Map<String, Value>>>,
    /// Whether the model may, must or must not call.
    pub tool_choice: Option<ToolChoice>,
    /// Whether an answer may have several calls.
    pub parallel_tool_calls: Option<bool>,
    /// What the answer shall have besides: `message.output_text.logprobs` is known.
    pub include: Option<Vec<String>>,
    /// How many alternatives to tell of each token.
    pub top_logprobs: Option<u32>,
    /// The client's own notes.
    pub metadata: Option<Map<String, Value>>,
    /// Variables of the model's chat template. Not OpenAI's.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// A text, or items.
#[derive(Debug, Clone, PartialEq)]
pub struct Input(pub Vec<Item>);

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let item = |(i, mut item): (usize, Value)| {
            // A message may leave out what it is.
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

/// A part of a conversation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Item {
    /// What somebody said.
    Message {
        /// Who.
        role: Role,
        /// What.
        content: Content,
    },
    /// A call of the model.
    FunctionCall {
        /// Tells the calls of a conversation apart.
        call_id: String,
        /// Which function.
        name: String,
        /// JSON of an object, as a text.
        arguments: String,
    },
    /// What a call gave.
    FunctionCallOutput {
        /// Which call.
        call_id: String,
        /// What it gave.
        output: Content,
    },
    /// What the model thought.
    Reasoning {
        /// Parts of type `reasoning_text`.
        content: Option<Vec<ReasoningText>>,
    },
}

/// A part of what the model thought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasoningText {
    /// `reasoning_text`.
    #[serde(rename = "type")]
    pub kind: String,
    /// It.
    pub text: String,
}

impl Item {
    /// Says the same in the chat interface: thoughts, texts and calls of one answer are one message there.
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
                // A second text is a message of its own.
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

/// How the text of an answer shall be.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct TextConfig {
    /// In which form.
    pub format: Option<TextFormat>,
}

/// What the text of an answer must be.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TextFormat {
    /// Anything.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema.
        schema: Value,
    },
}

/// How much the model shall think.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Reasoning {
    /// `none` is not at all; how others are told apart is the template's matter.
    pub effort: Option<String>,
}

/// Tools, as the chat interface has them.
///
/// # Errors
/// The field, and why: if a tool is of a type that only OpenAI's servers have.
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
pub struct Response {
    /// Tells answers apart.
    pub id: String,
    /// `response`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: u64,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    pub status: &'static str,
    /// Why it failed.
    pub error: Option<ResponseError>,
    /// Why it is not complete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// As asked for.
    pub instructions: Option<String>,
    /// As asked for.
    pub max_output_tokens: Option<u32>,
    /// Which model.
    pub model: String,
    /// What was answered.
    pub output: Vec<OutputItem>,
    /// As asked for.
    pub parallel_tool_calls: bool,
    /// As asked for.
    pub previous_response_id: Option<String>,
    /// As asked for.
    pub reasoning: Value,
    /// As asked for.
    pub store: bool,
    /// As asked for.
    pub temperature: Option<f32>,
    /// As asked for.
    pub text: Value,
    /// As asked for.
    pub tool_choice: Value,
    /// As asked for.
    pub tools: Vec<Map<String, Value>>,
    /// As asked for.
    pub top_p: Option<f32>,
    /// Always `disabled`: what is too long is an error.
    pub truncation: &'static str,
    /// Tokens, at the end.
    pub usage: Option<ResponseUsage>,
    /// As asked for.
    pub metadata: Map<String, Value>,
}

/// Why an answer failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResponseError {
    /// `server_error`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// Why an answer is not complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IncompleteDetails {
    /// `max_output_tokens`.
    pub reason: &'static str,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutputItem {
    /// What the model thought.
    Reasoning {
        /// Tells items apart.
        id: String,
        /// Always empty: thoughts are told as they are.
        summary: Vec<String>,
        /// They.
        content: Vec<ReasoningText>,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
    },
    /// What the model says.
    Message {
        /// Tells items apart.
        id: String,
        /// `assistant`.
        role: &'static str,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
        /// One text.
        content: Vec<OutputText>,
    },
    /// A call.
    FunctionCall {
        /// Tells items apart.
        id: String,
        /// Tells the calls of a conversation apart.
        call_id: String,
        /// Which function.
        name: String,
        /// JSON of an object, as a text.
        arguments: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
    },
}

/// What the model says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputText {
    /// `output_text`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// It.
    pub text: String,
    /// Always empty.
    pub annotations: Vec<Value>,
    /// How probable its tokens were, if that was asked for.
    pub logprobs: Vec<TokenLogprob>,
}

impl OutputText {
    /// A text.
    pub fn new(text: String, logprobs: Vec<TokenLogprob>) -> Self {
        Self { kind: "output_text", text, annotations: Vec::new(), logprobs }
    }
}

/// How many tokens an answer took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ResponseUsage {
    /// Of the prompt.
    pub input_tokens: usize,
    /// More about it.
    pub input_tokens_details: InputDetails,
    /// Of the answer.
    pub output_tokens: usize,
    /// More about it.
    pub output_tokens_details: OutputDetails,
    /// Both.
    pub total_tokens: usize,
}

/// A part of [`ResponseUsage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct InputDetails {
    /// Tokens that were computed for an earlier request already.
    pub cached_tokens: usize,
}

/// A part of [`ResponseUsage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OutputDetails {
    /// Always 0: thoughts are not counted apart.
    pub reasoning_tokens: usize,
}

impl ResponseUsage {
    /// Of so many tokens.
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
    fn items_become_messages() {
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
    fn what_cannot_be_is_refused() {
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
