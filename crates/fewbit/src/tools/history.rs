//! Calls and results in a conversation, as a template wants them.

use fewbit_tokenizer::Message;
use serde_json::{Value, json};

use super::{Tool, ToolCall, ToolError};

/// How calls are put into the messages that a template gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// Arguments as the text of an object, not as the object.
    pub(crate) is_text: bool,
    /// Each call in a message of its own, followed by its result.
    pub(crate) is_split: bool,
}

impl Form {
    /// The usual ones first. A template takes the first that it does not fail on.
    pub(crate) const ALL: [Self; 4] = [
        Self { is_text: false, is_split: false },
        Self { is_text: true, is_split: false },
        Self { is_text: false, is_split: true },
        Self { is_text: true, is_split: true },
    ];

    /// The messages in this form.
    pub(crate) fn apply(self, messages: &[Message]) -> Result<Vec<Message>, ToolError> {
        let mut messages = if self.is_split { split(messages)? } else { messages.to_vec() };
        if self.is_text {
            for message in &mut messages {
                let calls = message.fields.get_mut("tool_calls").and_then(Value::as_array_mut);
                for arguments in calls.into_iter().flatten().filter_map(|call| call.pointer_mut("/function/arguments"))
                {
                    if !arguments.is_string() {
                        *arguments = arguments.to_string().into();
                    }
                }
            }
        }
        Ok(messages)
    }
}

/// The calls of a message, as templates get them.
pub(crate) fn calls_of(message: &Message) -> &[Value] {
    message.fields.get("tool_calls").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

/// Messages with several calls become messages with one call each, each followed by its result.
fn split(messages: &[Message]) -> Result<Vec<Message>, ToolError> {
    let mut out = Vec::new();
    let mut rest = messages;
    while let Some((message, after)) = rest.split_first() {
        rest = after;
        let calls = calls_of(message);
        if calls.len() < 2 {
            out.push(message.clone());
            continue;
        }
        let n_results = rest.iter().take_while(|message| message.role == "tool").count();
        let (results, after) = rest.split_at(n_results);
        rest = after;
        for (i, call) in calls.iter().enumerate() {
            let mut one = message.clone().with_field("tool_calls", json!([call]));
            if i > 0 {
                one.content.clear();
                one.fields.shift_remove("reasoning_content");
            }
            out.push(one);
            let id = text(call.get("id"));
            let of_id = results.iter().find(|result| text(result.fields.get("tool_call_id")) == id);
            let result = of_id.filter(|_| !id.is_empty()).or_else(|| results.get(i).filter(|_| id.is_empty()));
            let name = text(call.pointer("/function/name"));
            let missing = || ToolError::NoResult { id: id.to_owned(), name: name.to_owned() };
            out.push(result.ok_or_else(missing)?.clone());
        }
    }
    Ok(out)
}

/// The message that tells a model what a call gave.
fn result_message(call: &ToolCall, result: &Value) -> Message {
    let text = match result {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Message::tool(&call.name, Some(&call.id), text)
}

/// The messages with results of the calls of the last answer, in the order of the calls.
pub(crate) fn ordered_results(
    messages: &[Message],
    results: impl IntoIterator<Item = (ToolCall, Value)>,
) -> Result<Vec<Message>, ToolError> {
    let calls = messages.last().map_or(&[][..], calls_of);
    let known: Vec<String> = calls.iter().map(|call| text(call.get("id")).to_owned()).collect();
    let mut ordered: Vec<Option<Message>> = vec![None; known.len()];
    for (call, result) in results {
        let Some(place) = known.iter().position(|id| *id == call.id).and_then(|i| ordered.get_mut(i)) else {
            return Err(ToolError::UnknownCall { id: call.id, known });
        };
        if place.is_some() {
            return Err(ToolError::SecondResult { id: call.id });
        }
        *place = Some(result_message(&call, &result));
    }
    let name = |i: usize| text(calls.get(i).and_then(|call| call.pointer("/function/name"))).to_owned();
    let all = ordered.into_iter().enumerate().zip(&known);
    all.map(|((i, message), id)| message.ok_or_else(|| ToolError::NoResult { id: id.clone(), name: name(i) })).collect()
}

/// The message of an answer.
pub(crate) fn answer_message(answer: &super::Answer) -> Message {
    let mut message = Message::assistant(&answer.text);
    if !answer.reasoning.is_empty() {
        message = message.with_field("reasoning_content", answer.reasoning.clone());
    }
    if answer.calls.is_empty() {
        return message;
    }
    let calls = answer.calls.iter().map(|call| fewbit_tokenizer::ToolCall {
        id: Some(call.id.clone()),
        name: call.name.clone(),
        arguments: call.arguments.clone(),
    });
    message.with_tool_calls(&calls.collect::<Vec<_>>())
}

/// What a model without a template for tools is told of them.
fn instructions(tools: &[Tool]) -> String {
    let list: Vec<String> = tools.iter().map(|tool| tool.to_json()["function"].to_string()).collect();
    format!(
        "You can call these tools. Each line describes one, with a JSON schema of its arguments:\n{}\n\n\
         To call a tool, write only this, once for each call:\n\
         <tool_call>\n{{\"name\": \"the tool's name\", \"arguments\": {{the arguments}}}}\n</tool_call>\n\
         What it gives comes back between <tool_response> and </tool_response>.",
        list.join("\n")
    )
}

/// The conversation as texts, with the tools in its system message: for templates that know no tools.
pub(crate) fn as_texts(messages: &[Message], tools: &[Tool]) -> Vec<Message> {
    let mut out: Vec<Message> = Vec::new();
    let told = (!tools.is_empty()).then(|| instructions(tools));
    match (messages.first().filter(|message| message.role == "system"), told) {
        (Some(system), Some(told)) => out.push(Message::system(format!("{}\n\n{told}", system.content))),
        (Some(system), None) => out.push(system.clone()),
        (None, told) => out.extend(told.map(Message::system)),
    }
    let mut was_result = false;
    for message in messages.iter().skip(usize::from(messages.first().is_some_and(|m| m.role == "system"))) {
        let is_result = message.role == "tool";
        if is_result {
            let text = format!("<tool_response>\n{}\n</tool_response>", message.content);
            match out.last_mut().filter(|_| was_result) {
                Some(last) => last.content = format!("{}\n{text}", last.content),
                None => out.push(Message::user(text)),
            }
        } else {
            let mut message = message.clone();
            for call in calls_of(&message).to_vec() {
                let call = json!({
                    "name": call.pointer("/function/name"), "arguments": call.pointer("/function/arguments")
                });
                let before = if message.content.is_empty() { "" } else { "\n" };
                message.content = format!("{}{before}<tool_call>\n{call}\n</tool_call>", message.content);
            }
            message.fields.shift_remove("tool_calls");
            out.push(message);
        }
        was_result = is_result;
    }
    out
}
