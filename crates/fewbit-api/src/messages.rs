//! `POST /v1/messages` and `/v1/messages/count_tokens`, in Anthropic's form.
//!
//! A conversation consists of turns, and a turn of blocks: text, reasoning, tool calls and their results.
//! [`MessagesRequest::into_chat`] converts it to messages of the chat interface, so that backends only need to know
//! that form.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::chat::{ChatMessage, Content, Role, ToolCall, ToolChoice};
use crate::common::kind;
use crate::prompt::PromptParam;

/// Claude Code begins its system prompt with a line that differs in each request. It is removed, because otherwise the
/// cached prompt of an earlier request could not be used.
const BILLING_LINE: &str = "x-anthropic-billing-header:";

/// A request for a message.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct MessagesRequest {
    /// The model; may be left out if there is only one.
    pub model: Option<String>,
    /// The conversation, without the instructions; may be left out if `prompt` names one of the server's.
    #[serde(default)]
    pub messages: Vec<MessageParam>,
    /// A prompt of the server, whose messages come first. Not part of Anthropic's interface.
    pub prompt: Option<PromptParam>,
    /// The instructions.
    pub system: Option<Blocks>,
    /// The most tokens that the answer may have. Required, except for counting tokens.
    pub max_tokens: Option<u32>,
    /// Texts at which the answer ends.
    pub stop_sequences: Option<Vec<String>>,
    /// Whether to stream the answer while it is generated.
    pub stream: Option<bool>,
    /// How random the choice of tokens is; 0 always takes the most probable token.
    pub temperature: Option<f32>,
    /// Only the most probable tokens that together have this probability are considered.
    pub top_p: Option<f32>,
    /// Only the k most probable tokens are considered.
    pub top_k: Option<i64>,
    /// Functions that the model may call.
    pub tools: Option<Vec<ToolParam>>,
    /// Whether the model may, must or must not call a tool.
    pub tool_choice: Option<ToolChoiceParam>,
    /// Whether the model may reason first.
    pub thinking: Option<Thinking>,
    /// The form that the answer must have.
    pub output_config: Option<OutputConfig>,
    /// An older name for [`OutputConfig::format`].
    pub output_format: Option<OutputFormat>,
    /// Data of the client. `feature` in it names what the request is for, to sum up usage by.
    pub metadata: Option<Map<String, Value>>,
    /// The seed of the random numbers: the same seed gives the same answer. Not part of Anthropic's interface.
    pub seed: Option<i64>,
}

/// A turn of a conversation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MessageParam {
    /// Who speaks.
    pub role: Speaker,
    /// The content of the turn.
    pub content: Blocks,
}

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Speaker {
    /// The user. Results of tool calls are in the user's turns as well.
    User,
    /// The model.
    Assistant,
    /// Instructions in the middle of a conversation.
    System,
}

/// The content of a turn. In JSON: a text, or a list of blocks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Blocks(pub Vec<Block>);

/// A block of a turn.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Block {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// The model's reasoning.
    Thinking {
        /// The text.
        thinking: String,
    },
    /// Encrypted reasoning of Anthropic's models. It is ignored.
    RedactedThinking {},
    /// A tool call.
    ToolUse {
        /// The id of the call, unique in a conversation.
        id: String,
        /// The name of the tool.
        name: String,
        /// The arguments.
        input: Map<String, Value>,
    },
    /// The result of a tool call.
    ToolResult {
        /// The id of the call.
        tool_use_id: String,
        /// The result: only blocks of text.
        #[serde(default)]
        content: Option<Blocks>,
    },
}

impl<'de> Deserialize<'de> for Blocks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let block = |(i, block): (usize, Value)| {
            // serde would take a list of a block's fields as well.
            if !block.is_object() {
                return Err(D::Error::custom(format!("block {i}: expected an object, found {}", kind(&block))));
            }
            Block::deserialize(block).map_err(|error| D::Error::custom(format!("block {i}: {error}")))
        };
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(vec![Block::Text { text }])),
            Value::Array(blocks) => blocks.into_iter().enumerate().map(block).collect::<Result<_, _>>().map(Self),
            other => Err(D::Error::custom(format!("expected a text or a list of blocks, found {}", kind(&other)))),
        }
    }
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ToolParam {
    /// `custom`, or left out. Other types are tools that Anthropic's servers run.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments.
    #[serde(default)]
    pub input_schema: Value,
}

/// Whether the model may, must or must not call a tool.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ToolChoiceParam {
    /// `auto`, `any`, `tool` or `none`.
    #[serde(rename = "type")]
    pub kind: ToolChoiceKind,
    /// The name of the tool, for `tool`.
    pub name: Option<String>,
    /// Whether the answer may contain at most one call.
    pub disable_parallel_tool_use: Option<bool>,
}

/// The kind of a [`ToolChoiceParam`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ToolChoiceKind {
    /// It decides whether to call a tool.
    Auto,
    /// It must call at least one tool.
    Any,
    /// It must call the named tool.
    Tool,
    /// It must not call a tool.
    None,
}

/// Whether the model may reason first.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Thinking {
    /// `enabled`, `adaptive`, `between_tools` or `disabled`.
    #[serde(rename = "type")]
    pub kind: ThinkingKind,
}

/// The kind of a [`Thinking`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ThinkingKind {
    /// The model reasons.
    Enabled,
    /// The model reasons if it considers it useful. Treated like `Enabled`.
    Adaptive,
    /// The model reasons only after tool results.
    BetweenTools,
    /// The model does not reason.
    Disabled,
}

/// Settings of the answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OutputConfig {
    /// The form that the answer must have.
    pub format: Option<OutputFormat>,
}

/// The form that an answer must have.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutputFormat {
    /// JSON that is valid for a schema.
    JsonSchema {
        /// The schema.
        schema: Value,
    },
}

/// Why a request cannot be converted to the chat interface: the path of the field, and a message.
pub type Refused = (String, String);

impl MessagesRequest {
    /// Takes the conversation and converts it to messages of the chat interface.
    ///
    /// # Errors
    /// If a block is at a place where its type is not allowed, or a user's turn is empty.
    pub fn into_chat(&mut self) -> Result<Vec<ChatMessage>, Refused> {
        let mut chat = Vec::with_capacity(self.messages.len() + 1);
        if let Some(system) = self.system.take() {
            let mut texts = texts(system, "system")?;
            texts.retain(|text| !text.starts_with(BILLING_LINE));
            if !texts.is_empty() {
                chat.push(ChatMessage::new(Role::System, texts.join("\n\n")));
            }
        }
        for (i, message) in std::mem::take(&mut self.messages).into_iter().enumerate() {
            match message.role {
                Speaker::User => user(message.content, i, &mut chat)?,
                Speaker::Assistant => chat.push(assistant(message.content, i)?),
                Speaker::System => {
                    let said = texts(message.content, &format!("messages[{i}].content"))?;
                    chat.push(ChatMessage::with_content(Role::System, Content(Some(said))));
                }
            }
        }
        Ok(chat)
    }

    /// Takes the tools and converts them to those of the chat interface.
    ///
    /// # Errors
    /// If a tool has a type that only Anthropic's servers provide.
    pub fn chat_tools(&mut self) -> Result<Vec<Value>, Refused> {
        let tool = |(i, tool): (usize, ToolParam)| match tool.kind.as_deref() {
            None | Some("custom") => {
                let ToolParam { name, description, input_schema, .. } = tool;
                let mut function = json!({ "name": name, "parameters": input_schema });
                if let Some(description) = description {
                    function["description"] = description.into();
                }
                Ok(json!({ "type": "function", "function": function }))
            }
            Some(kind) => {
                let text =
                    format!("a tool of type {kind:?} runs on Anthropic's servers: only \"custom\" can be used here");
                Err((format!("tools[{i}].type"), text))
            }
        };
        self.tools.take().unwrap_or_default().into_iter().enumerate().map(tool).collect()
    }

    /// The tool choice of the chat interface, and whether the answer may contain several calls.
    ///
    /// # Errors
    /// If the kind is `tool` and no tool is named.
    pub fn chat_choice(&self) -> Result<(ToolChoice, bool), Refused> {
        let Some(choice) = &self.tool_choice else { return Ok((ToolChoice::Auto, true)) };
        let kind = match (choice.kind, &choice.name) {
            (ToolChoiceKind::Auto, _) => ToolChoice::Auto,
            (ToolChoiceKind::Any, _) => ToolChoice::Required,
            (ToolChoiceKind::None, _) => ToolChoice::None,
            (ToolChoiceKind::Tool, Some(name)) => ToolChoice::Named(name.clone()),
            (ToolChoiceKind::Tool, None) => {
                return Err(("tool_choice.name".to_owned(), "`tool_choice` names no tool".to_owned()));
            }
        };
        Ok((kind, !choice.disable_parallel_tool_use.unwrap_or(false)))
    }
}

/// The texts of blocks at a place where only text is allowed.
fn texts(blocks: Blocks, at: &str) -> Result<Vec<String>, Refused> {
    let text = |(i, block): (usize, Block)| match block {
        Block::Text { text } => Ok(text),
        _ => Err((format!("{at}[{i}]"), "only blocks of type \"text\" can be here".to_owned())),
    };
    blocks.0.into_iter().enumerate().map(text).collect()
}

/// Converts a user's turn. Results of tool calls come before its text, because they answer the turn before.
fn user(blocks: Blocks, i: usize, chat: &mut Vec<ChatMessage>) -> Result<(), Refused> {
    let mut said = Vec::new();
    let mut n_results = 0_usize;
    for (j, block) in blocks.0.into_iter().enumerate() {
        let at = format!("messages[{i}].content[{j}]");
        match block {
            Block::Text { text } => said.push(text),
            Block::ToolResult { tool_use_id, content } => {
                let text = texts(content.unwrap_or_default(), &format!("{at}.content"))?.concat();
                let mut message = ChatMessage::new(Role::Tool, text);
                message.tool_call_id = Some(tool_use_id);
                chat.push(message);
                n_results += 1;
            }
            _ => return Err((at, "a user's turn has blocks of type \"text\" and \"tool_result\"".to_owned())),
        }
    }
    if !said.is_empty() {
        chat.push(ChatMessage::with_content(Role::User, Content(Some(said))));
    } else if n_results == 0 {
        return Err((format!("messages[{i}].content"), "a user's turn is empty".to_owned()));
    }
    Ok(())
}

fn assistant(blocks: Blocks, i: usize) -> Result<ChatMessage, Refused> {
    let (mut said, mut thought, mut calls) = (Vec::new(), String::new(), Vec::new());
    for (j, block) in blocks.0.into_iter().enumerate() {
        match block {
            Block::Text { text } => said.push(text),
            Block::Thinking { thinking } => thought += &thinking,
            Block::RedactedThinking {} => {}
            Block::ToolUse { id, name, input } => calls.push(ToolCall::new(id, name, Value::Object(input).to_string())),
            Block::ToolResult { .. } => {
                let text = "what a call gave belongs into a user's turn".to_owned();
                return Err((format!("messages[{i}].content[{j}]"), text));
            }
        }
    }
    let mut message = ChatMessage::with_content(Role::Assistant, Content((!said.is_empty()).then_some(said)));
    message.reasoning_content = (!thought.is_empty()).then_some(thought);
    message.tool_calls = (!calls.is_empty()).then_some(calls);
    Ok(message)
}

/// An answer, or the head of a streamed one.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MessagesResponse {
    /// The id of the answer.
    pub id: String,
    /// `message`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `assistant`.
    pub role: &'static str,
    /// The model.
    pub model: String,
    /// The blocks of the answer.
    pub content: Vec<AnswerBlock>,
    /// Why the answer ended: `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`; null in the head of a stream.
    pub stop_reason: Option<&'static str>,
    /// The stop sequence that ended it, if one did.
    pub stop_sequence: Option<String>,
    /// Always null: no answer is refused by a classifier here.
    pub stop_details: (),
    /// The tokens that it took.
    pub usage: MessagesUsage,
    /// Always null: no code is run here.
    pub container: (),
}

/// A block of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AnswerBlock {
    /// Text.
    Text {
        /// The text.
        text: String,
        /// Always null: models here do not cite.
        citations: (),
    },
    /// The model's reasoning.
    Thinking {
        /// The text.
        thinking: String,
        /// Always empty: reasoning is not signed here.
        signature: &'static str,
    },
    /// A tool call.
    ToolUse {
        /// The id of the call, unique in a conversation.
        id: String,
        /// The name of the tool.
        name: String,
        /// The arguments.
        input: Value,
        /// Who makes the call.
        caller: CallBy,
    },
}

/// Who makes a tool call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum CallBy {
    /// The model itself, always: no code is run here that could.
    #[default]
    Direct,
}

/// The tokens that an answer took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MessagesUsage {
    /// Tokens of the prompt, without those that were found in the cache.
    pub input_tokens: usize,
    /// Always 0: storing in the cache is not charged.
    pub cache_creation_input_tokens: usize,
    /// Tokens of the prompt that were found in the cache.
    pub cache_read_input_tokens: usize,
    /// Generated tokens.
    pub output_tokens: usize,
    /// Always null: how long something stays in the cache is not promised here.
    pub cache_creation: (),
    /// Always null: reasoning is not counted apart.
    pub output_tokens_details: (),
    /// Always null: there are no tools of Anthropic's here.
    pub server_tool_use: (),
    /// Always null: there are no tiers here.
    pub service_tier: (),
    /// Always null: it is computed on this server.
    pub inference_geo: (),
}

impl MessagesUsage {
    /// Creates a usage with these numbers of tokens, where `prompt` includes the `cached` ones.
    pub fn new(prompt: usize, cached: usize, completion: usize) -> Self {
        Self {
            input_tokens: prompt.saturating_sub(cached),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: completion,
            ..Self::default()
        }
    }
}

/// The answer to a request to count tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CountResponse {
    /// Tokens of the prompt.
    pub input_tokens: usize,
}

#[cfg(test)]
mod tests {
    use serde_json::from_value;

    use super::*;

    fn request(value: Value) -> Result<MessagesRequest, String> {
        from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn anthropic_turns_become_chat_messages() {
        let mut all = request(json!({
            "system": [
                { "type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=af2;" },
                { "type": "text", "text": "Be brief.", "cache_control": { "type": "ephemeral" } }
            ],
            "messages": [
                { "role": "user", "content": "Hi" },
                { "role": "assistant", "content": [
                    { "type": "thinking", "thinking": "Hm.", "signature": "s" },
                    { "type": "redacted_thinking", "data": "x" },
                    { "type": "text", "text": "Wait." },
                    { "type": "tool_use", "id": "t1", "name": "f", "input": { "x": 1 } }
                ] },
                { "role": "user", "content": [
                    { "type": "text", "text": "So?" },
                    { "type": "tool_result", "tool_use_id": "t1", "content": [{ "type": "text", "text": "3" }], "is_error": false }
                ] }
            ]
        }))
        .unwrap();
        let mut assistant = ChatMessage::new(Role::Assistant, "Wait.");
        assistant.reasoning_content = Some("Hm.".into());
        assistant.tool_calls = Some(vec![ToolCall::new("t1", "f", "{\"x\":1}")]);
        let mut result = ChatMessage::new(Role::Tool, "3");
        result.tool_call_id = Some("t1".into());
        let want = [
            ChatMessage::new(Role::System, "Be brief."),
            ChatMessage::new(Role::User, "Hi"),
            assistant,
            result,
            ChatMessage::new(Role::User, "So?"),
        ];
        assert_eq!(all.into_chat().unwrap(), want);
    }

    #[test]
    fn invalid_content_is_rejected_with_its_path() {
        let one = |role: &str, content: Value| request(json!({ "messages": [{ "role": role, "content": content }] }));
        let at = |role: &str, content: Value| one(role, content).unwrap().into_chat().unwrap_err().0;
        assert_eq!(at("user", json!([])), "messages[0].content");
        assert_eq!(at("user", json!([{ "type": "thinking", "thinking": "" }])), "messages[0].content[0]");
        let result = json!([{ "type": "tool_result", "tool_use_id": "x", "content": "y" }]);
        assert_eq!(at("assistant", result), "messages[0].content[0]");
        let nested =
            json!([{ "type": "tool_result", "tool_use_id": "x", "content": [{ "type": "thinking", "thinking": "" }] }]);
        assert_eq!(at("user", nested), "messages[0].content[0].content[0]");
        assert!(one("user", json!([{ "type": "image" }])).unwrap_err().contains("block 0: unknown variant `image`"));
        assert!(one("king", json!("x")).unwrap_err().contains("unknown variant `king`"));
        assert_eq!(at("system", json!([{ "type": "thinking", "thinking": "" }])), "messages[0].content[0]");
        let said = one("system", json!("x")).unwrap().into_chat().unwrap();
        assert_eq!(said, [ChatMessage::new(Role::System, "x")]);
        let tools = json!({ "messages": [], "tools": [{ "type": "web_search_20250305", "name": "web_search" }] });
        assert_eq!(request(tools).unwrap().chat_tools().unwrap_err().0, "tools[0].type");
        let choice = json!({ "messages": [], "tool_choice": { "type": "tool" } });
        assert_eq!(request(choice).unwrap().chat_choice().unwrap_err().0, "tool_choice.name");
    }
}
