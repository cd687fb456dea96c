//! Converts messages of the interface to those of the engine.

use fewbit::Message;
use fewbit::expert::tokenizer::ToolCall;
use fewbit_api::chat::{ChatMessage, Role};
use serde_json::{Map, Value};

use crate::backend::BackendError;

/// A conversation.
pub(crate) struct Conversation {
    /// Its first message, if that is a system message. It replaces the one recommended for the model.
    pub(crate) system: Option<String>,
    pub(crate) messages: Vec<Message>,
}

/// Converts a conversation.
pub(crate) fn read(wire: Vec<ChatMessage>) -> Result<Conversation, BackendError> {
    let mut wire: std::collections::VecDeque<_> = wire.into_iter().enumerate().collect();
    let is_system = wire.front().is_some_and(|(_, first)| first.role == Role::System);
    let system = is_system.then(|| wire.pop_front()).flatten();
    let system = system.map(|(_, first)| first.content.as_text().unwrap_or_default());
    let mut messages = Vec::with_capacity(wire.len());
    // The names of called functions, by call id.
    let mut called: Map<String, Value> = Map::new();
    for (i, message) in wire {
        let at = |field: &str| format!("messages[{i}].{field}");
        let text = message.content.as_text();
        let mut read = match message.role {
            Role::System => Message::system(text.unwrap_or_default()),
            Role::User => match text {
                Some(text) => Message::user(text),
                None => {
                    return Err(BackendError::invalid(at("content"), "a user's message has no `content`: give a text"));
                }
            },
            Role::Assistant => assistant(text, message.tool_calls, &mut called, i)?,
            Role::Tool => {
                let Some(id) = &message.tool_call_id else {
                    let text = "a tool's message has no `tool_call_id`: say which call it answers";
                    return Err(BackendError::invalid(at("tool_call_id"), text));
                };
                let Some(name) = called.get(id).and_then(Value::as_str) else {
                    let text = format!("there is no call {id:?} in the messages before this one");
                    return Err(BackendError::invalid(at("tool_call_id"), text));
                };
                Message::tool(name, Some(id), text.unwrap_or_default())
            }
            _ => return Err(BackendError::invalid(at("role"), "is of a role that is not known")),
        };
        if let Some(reasoning) = message.reasoning_content.filter(|_| message.role == Role::Assistant) {
            read = read.with_field("reasoning_content", reasoning);
        }
        if let Some(name) = message.name.filter(|_| message.role != Role::Tool) {
            read = read.with_field("name", name);
        }
        messages.push(read);
    }
    Ok(Conversation { system, messages })
}

fn assistant(
    text: Option<String>,
    calls: Option<Vec<fewbit_api::chat::ToolCall>>,
    called: &mut Map<String, Value>,
    i: usize,
) -> Result<Message, BackendError> {
    let message = Message::assistant(text.unwrap_or_default());
    let calls = calls.unwrap_or_default();
    if calls.is_empty() {
        return Ok(message);
    }
    let read = calls.into_iter().enumerate().map(|(j, call)| {
        let function = call.function;
        let arguments = match function.arguments.trim() {
            "" => Value::Object(Map::new()),
            text => serde_json::from_str(text).unwrap_or(Value::Null),
        };
        if !arguments.is_object() {
            let at = format!("messages[{i}].tool_calls[{j}].function.arguments");
            return Err(BackendError::invalid(at, "the arguments of a call are not the JSON text of an object"));
        }
        called.insert(call.id.clone(), function.name.clone().into());
        Ok(ToolCall { id: Some(call.id), name: function.name, arguments })
    });
    let read: Vec<_> = read.collect::<Result<_, _>>()?;
    Ok(message.with_tool_calls(&read))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn conversation(value: Value) -> Result<Conversation, (Option<String>, String)> {
        read(serde_json::from_value(value).unwrap()).map_err(|error| (error.param, error.message))
    }

    #[test]
    fn tool_results_must_match_tool_calls() {
        let call = |arguments: &str| json!({ "id": "c1", "type": "function", "function": { "name": "f", "arguments": arguments } });
        let with = |arguments: &str, id: &str| {
            conversation(json!([
                { "role": "developer", "content": "Be brief." },
                { "role": "user", "content": "Hi", "name": "Ada" },
                { "role": "assistant", "content": null, "tool_calls": [call(arguments)] },
                { "role": "tool", "tool_call_id": id, "content": [{ "type": "text", "text": "3" }] },
            ]))
        };
        let good = with("{\"x\": 1}", "c1").unwrap();
        assert_eq!(good.system.as_deref(), Some("Be brief."));
        let want = [
            Message::user("Hi").with_field("name", "Ada"),
            Message::assistant("").with_tool_calls(&[ToolCall {
                id: Some("c1".into()),
                name: "f".into(),
                arguments: json!({ "x": 1 }),
            }]),
            Message::tool("f", Some("c1"), "3"),
        ];
        assert_eq!(good.messages, want);
        assert_eq!(with("", "c1").unwrap().messages.len(), 3);
        let at =
            |result: Result<Conversation, (Option<String>, String)>| result.err().and_then(|(param, _)| param).unwrap();
        assert_eq!(at(with("[1]", "c1")), "messages[2].tool_calls[0].function.arguments");
        assert_eq!(at(with("{", "c1")), "messages[2].tool_calls[0].function.arguments");
        assert_eq!(at(with("{}", "c2")), "messages[3].tool_call_id");
        assert_eq!(at(conversation(json!([{ "role": "tool", "content": "3" }]))), "messages[0].tool_call_id");
        assert_eq!(at(conversation(json!([{ "role": "user" }]))), "messages[0].content");
    }
}
