//! Tool calls and results in a conversation, in the form that a template needs.

use std::borrow::Cow;

use fewbit_tokenizer::{ChatTemplate, Message};
use serde_json::{Value, json};

use super::{Tool, ToolCall, ToolError, ToolStyle};

/// Fields in which a message may have its reasoning.
const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// The messages in a form that the template can render. The conversation itself is not changed:
///
/// - if a template rejects or drops system messages, the first ones go to the beginning of the user's first message,
///   with an empty line after them;
/// - if a template does not render calls, they become text of their message, in the format of the model's style;
/// - if a template renders only one call per message, a message with several becomes one message per call, each with
///   its result;
/// - the rest is done by [`ChatTemplate::fitted`].
pub(crate) fn fitted<'m>(
    messages: &'m [Message],
    template: &ChatTemplate,
    style: ToolStyle,
) -> Result<Cow<'m, [Message]>, ToolError> {
    let mut messages = Cow::Borrowed(messages);
    if messages.first().is_some_and(|message| message.role == "system") && !template.capabilities().system {
        messages = Cow::Owned(without_system(&messages));
    }
    if messages.iter().any(|message| !calls_of(message).is_empty()) {
        let can = template.capabilities();
        if !can.tool_calls {
            messages = Cow::Owned(messages.iter().map(|message| in_words(message, style)).collect());
        } else if !can.parallel_calls && messages.iter().any(|message| calls_of(message).len() > 1) {
            messages = Cow::Owned(split(&messages)?);
        }
    }
    Ok(match messages {
        Cow::Borrowed(messages) => template.fitted(messages),
        Cow::Owned(messages) => Cow::Owned(template.fitted(&messages).into_owned()),
    })
}

/// Moves the text of the first system messages to the beginning of the user's first message.
fn without_system(messages: &[Message]) -> Vec<Message> {
    let n_system = messages.iter().take_while(|message| message.role == "system").count();
    let (system, rest) = messages.split_at(n_system);
    let told: Vec<String> = system.iter().map(words_of).filter(|text| !text.is_empty()).collect();
    let mut rest = rest.to_vec();
    if told.is_empty() {
        return rest;
    }
    let told = told.join("\n\n");
    match rest.iter_mut().find(|message| message.role == "user") {
        Some(user) => match user.fields.get_mut("content") {
            Some(Value::Array(parts)) => parts.insert(0, json!({ "type": "text", "text": format!("{told}\n\n") })),
            _ => {
                user.fields.shift_remove("content");
                user.content = format!("{told}\n\n{}", user.content);
            }
        },
        None => rest.insert(0, Message::user(told)),
    }
    rest
}

/// The text of a message, whose content may be a list of parts.
fn words_of(message: &Message) -> String {
    match message.fields.get("content") {
        Some(Value::Array(parts)) => parts.iter().map(|part| text(part.get("text"))).collect(),
        _ => message.content.clone(),
    }
}

/// The message with its calls as text.
fn in_words(message: &Message, style: ToolStyle) -> Message {
    let calls = calls_of(message);
    if calls.is_empty() {
        return message.clone();
    }
    let said = words_of(message);
    let before = if said.is_empty() { "" } else { "\n" };
    let mut written = message.clone();
    written.content = format!("{said}{before}{}", style.write(calls));
    written.omits_content = false;
    for field in ["tool_calls", "content"] {
        written.fields.shift_remove(field);
    }
    written
}

/// The calls of a message, as templates get them.
pub(crate) fn calls_of(message: &Message) -> &[Value] {
    message.fields.get("tool_calls").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

/// Splits messages with several calls into messages with one call each, each followed by its result.
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
                // Text and reasoning come only before the first call.
                one.content.clear();
                for field in REASONING.into_iter().chain(["content"]) {
                    one.fields.shift_remove(field);
                }
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

/// The message with the result of a call.
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

/// The message that records an answer.
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

/// The instructions about tools for a model whose template does not support them.
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

/// The conversation as plain text, with the tools in its system message: for templates without support for tools.
pub(crate) fn as_texts(messages: &[Message], tools: &[Tool]) -> Vec<Message> {
    let mut out: Vec<Message> = Vec::new();
    let told = (!tools.is_empty()).then(|| instructions(tools));
    match (messages.first().filter(|message| message.role == "system"), told) {
        (Some(system), Some(told)) => out.push(Message::system(format!("{}\n\n{told}", words_of(system)))),
        (Some(system), None) => out.push(Message::system(words_of(system))),
        (None, told) => out.extend(told.map(Message::system)),
    }
    let mut was_result = false;
    for message in messages.iter().skip(usize::from(messages.first().is_some_and(|m| m.role == "system"))) {
        let is_result = message.role == "tool";
        if is_result {
            let text = format!("<tool_response>\n{}\n</tool_response>", words_of(message));
            match out.last_mut().filter(|_| was_result) {
                Some(last) => last.content = format!("{}\n{text}", last.content),
                None => out.push(Message::user(text)),
            }
        } else {
            out.push(in_words(message, ToolStyle::Hermes));
        }
        was_result = is_result;
    }
    out
}
