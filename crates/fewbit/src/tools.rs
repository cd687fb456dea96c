//! Tools that a model may call: what it is told of them, and how its calls are read.
//!
//! A tool goes into the model's chat template as a JSON schema. How a model writes a call is a matter of its training;
//! all of these are read, whichever model it is:
//!
//! ```text
//! Hermes, Qwen:  <tool_call>{"name": "f", "arguments": {...}}</tool_call>, any number of them
//! Mistral:       [TOOL_CALLS][{"name": "f", "arguments": {...}}], or [TOOL_CALLS]f[ARGS]{...}
//! Llama 3.x:     <|python_tag|>{"name": "f", "parameters": {...}}, or the object alone; several with `;` between them
//! others:        an object or a list of objects with a name and arguments, alone or in a fenced block
//! ```
//!
//! A call of something that is not among the tools is text.

use fewbit_tokenizer::{Message, Tokenizer};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::error::Error;

/// A function that the model may ask for.
///
/// ```
/// use fewbit::Tool;
/// use serde_json::json;
///
/// let schema = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
/// let weather = Tool::new("get_weather", "The weather in a city.", schema);
/// assert_eq!(weather.name, "get_weather");
/// // `model.chat().tools([weather])` tells the model; `Tool::of` takes the schema from a type.
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Tool {
    /// What it is called.
    pub name: String,
    /// What it does, for the model to read.
    pub description: String,
    /// JSON schema of its arguments: an object.
    pub parameters: Value,
}

impl Tool {
    /// A tool whose arguments a JSON schema describes.
    pub fn new(name: impl Into<String>, description: impl Into<String>, parameters: impl Into<Value>) -> Self {
        Self { name: name.into(), description: description.into(), parameters: parameters.into() }
    }

    /// A tool whose arguments are a `T`.
    #[cfg(feature = "constraints")]
    pub fn of<T: schemars::JsonSchema>(name: impl Into<String>, description: impl Into<String>) -> Self {
        let mut schema = schemars::SchemaGenerator::default().into_root_schema_for::<T>();
        // Templates print the schema, and models have not seen these.
        schema.remove("$schema");
        schema.remove("title");
        Self::new(name, description, schema.to_value())
    }

    fn to_json(&self) -> Value {
        let Self { name, description, parameters } = self;
        json!({
            "type": "function",
            "function": { "name": name, "description": description, "parameters": parameters }
        })
    }
}

/// What a template gets of the tools; nothing if there are none.
pub(crate) fn for_template(tools: &[Tool]) -> Option<Value> {
    (!tools.is_empty()).then(|| tools.iter().map(Tool::to_json).collect())
}

/// A call that the model asks for.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ToolCall {
    /// Tells the calls of an answer apart: nine letters and digits, as some templates want it.
    pub id: String,
    /// Which tool.
    pub name: String,
    /// With what: an object.
    pub arguments: Value,
}

impl ToolCall {
    /// The arguments as a type.
    ///
    /// # Errors
    /// [`Error::Json`] if they are not what the type wants.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_value(self.arguments.clone())
            .map_err(|error| Error::Json { error, text: self.arguments.to_string() })
    }
}

/// The message that tells a model what a call gave.
pub(crate) fn result_message(call: &ToolCall, result: &Value) -> Message {
    let text = match result {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Message::tool(&call.name, Some(&call.id), text)
}

/// The message of an answer that calls tools.
pub(crate) fn call_message(text: &str, calls: &[ToolCall]) -> Message {
    let calls = calls.iter().map(|call| fewbit_tokenizer::ToolCall {
        id: Some(call.id.clone()),
        name: call.name.clone(),
        arguments: call.arguments.clone(),
    });
    Message::assistant(text).with_tool_calls(&calls.collect::<Vec<_>>())
}

const MARKS: [&str; 3] = ["<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"];

/// An answer, taken apart.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Answer {
    /// What is said beside the calls.
    pub(crate) text: String,
    pub(crate) calls: Vec<ToolCall>,
}

/// Reads the calls of an answer; `text` shows special tokens. `None` if it has none.
pub(crate) fn read(text: &str, tools: &[Tool]) -> Option<Answer> {
    let mark = MARKS.iter().filter_map(|mark| Some((text.find(mark)?, *mark))).min();
    let (before, found) = match mark {
        Some((at, "<tool_call>")) => (&text[..at], tagged(&text[at..])),
        Some((at, mark)) => {
            let rest = &text[at + mark.len()..];
            (&text[..at], if mark == "[TOOL_CALLS]" { named(rest).or_else(|| bare(rest)) } else { bare(rest) })
        }
        None => ("", bare(text)),
    };
    let mut calls = found?;
    if calls.is_empty() || !calls.iter().all(|call| tools.iter().any(|tool| tool.name == call.name)) {
        return None;
    }
    for (i, call) in calls.iter_mut().enumerate() {
        call.id = format!("call{i:05}");
    }
    Some(Answer { text: before.trim().to_owned(), calls })
}

/// `<tool_call>{..}</tool_call>`, repeated.
fn tagged(text: &str) -> Option<Vec<ToolCall>> {
    let parts = text.split("<tool_call>").skip(1);
    parts.map(|part| one(&serde_json::from_str(part.split("</tool_call>").next()?.trim()).ok()?)).collect()
}

/// `name{..}` or `name[ARGS]{..}`, repeated with the mark before each.
fn named(text: &str) -> Option<Vec<ToolCall>> {
    let call = |part: &str| {
        let at = part.find('{')?;
        let (name, arguments) = part.split_at(at);
        let name = name.trim().trim_end_matches("[ARGS]").trim();
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
        let arguments = values(arguments)?;
        match &arguments[..] {
            [arguments @ Value::Object(_)] if is_name => Some(new_call(name, arguments.clone())),
            _ => None,
        }
    };
    text.split("[TOOL_CALLS]").map(call).collect()
}

/// JSON alone.
fn bare(text: &str) -> Option<Vec<ToolCall>> {
    let text = text.trim();
    let text = text.strip_prefix("```json").or_else(|| text.strip_prefix("```")).unwrap_or(text);
    let text = text.trim().trim_end_matches("```");
    let mut calls = Vec::new();
    for value in values(text)? {
        match value {
            Value::Array(list) => calls.extend(list.iter().map(one).collect::<Option<Vec<_>>>()?),
            value => match value.get("tool_calls").and_then(Value::as_array) {
                Some(list) => calls.extend(list.iter().map(one).collect::<Option<Vec<_>>>()?),
                None => calls.push(one(&value)?),
            },
        }
    }
    Some(calls)
}

/// JSON values one after another, with nothing but white space and `;` between them.
fn values(mut text: &str) -> Option<Vec<Value>> {
    let mut all = Vec::new();
    loop {
        text = text.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
        if text.is_empty() {
            return Some(all);
        }
        let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        all.push(stream.next()?.ok()?);
        text = text.get(stream.byte_offset()..)?;
    }
}

/// One object that is a call.
fn one(value: &Value) -> Option<ToolCall> {
    let value = value.get("function").filter(|function| function.is_object()).unwrap_or(value);
    let name = ["name", "function"].iter().find_map(|key| value.get(*key)?.as_str())?;
    let arguments = ["arguments", "parameters"].iter().find_map(|key| value.get(*key));
    let arguments = match arguments {
        // Some write the object as a string.
        Some(Value::String(text)) => serde_json::from_str(text).ok()?,
        Some(other) => other.clone(),
        None => Value::Object(Map::new()),
    };
    arguments.is_object().then(|| new_call(name, arguments))
}

fn new_call(name: &str, arguments: Value) -> ToolCall {
    ToolCall { id: String::new(), name: name.to_owned(), arguments }
}

/// Keeps back, from the text of a stream, what may be a call: all from a mark on, and an answer that begins as JSON.
#[derive(Debug, Default)]
pub(crate) struct CallFilter {
    held: String,
    /// Whether any text went out, and whether nothing may any more.
    begun: bool,
    closed: bool,
}

impl CallFilter {
    /// The tokens and text of a piece in, the text that is certainly none of a call out.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, tokens: &[u32], text: &str) -> String {
        let is_mark = |id: &u32| tokenizer.token_text(*id).is_some_and(|text| MARKS.contains(&text));
        self.held += text;
        self.closed |= tokens.iter().any(is_mark);
        if !self.begun && self.held.trim_start().starts_with(['{', '[', '`']) {
            self.closed = true;
        }
        if let Some(at) = MARKS.iter().filter_map(|mark| self.held.find(mark)).min() {
            self.closed = true;
            return self.release(at);
        }
        if self.closed {
            return String::new();
        }
        // The end may be the beginning of a mark; white space at the beginning says nothing yet.
        let partial = |mark: &&str| (1..mark.len()).rev().find(|&n| self.held.ends_with(&mark[..n])).unwrap_or(0);
        let keep = MARKS.iter().map(partial).max().unwrap_or(0);
        if !self.begun && self.held.trim_start().is_empty() {
            return String::new();
        }
        self.release(self.held.len() - keep)
    }

    fn release(&mut self, n_bytes: usize) -> String {
        let rest = self.held.split_off(n_bytes);
        self.begun |= !self.held.is_empty();
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back, where it turned out to be no call.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Vec<Tool> {
        ["get_weather", "add"].map(|name| Tool::new(name, "", json!({ "type": "object" }))).into()
    }

    fn calls(text: &str) -> Vec<(String, Value)> {
        let answer = read(text, &tools()).unwrap_or_else(|| panic!("{text:?} has no call"));
        answer.calls.into_iter().map(|call| (call.name, call.arguments)).collect()
    }

    #[test]
    fn every_style_is_read() {
        let paris = ("get_weather".to_owned(), json!({ "city": "Paris" }));
        let add = ("add".to_owned(), json!({ "a": 1, "b": 2 }));
        for text in [
            r#"<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>"#,
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>",
            r#"[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]"#,
            r#"[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]"#,
            r#"[TOOL_CALLS]get_weather{"city": "Paris"}"#,
            r#"[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}"#,
            r#"<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}"#,
            r#"{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}"#,
            r#"{"function": "get_weather", "arguments": {"city": "Paris"}}"#,
            r#"{"function": {"name": "get_weather", "arguments": "{\"city\": \"Paris\"}"}}"#,
            "```json\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n```",
            r#"{"tool_calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}]}"#,
        ] {
            assert_eq!(calls(text), std::slice::from_ref(&paris), "{text}");
        }
        for text in [
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}</tool_call>\n\
             <tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}</tool_call>",
            r#"{"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "add", "parameters": {"a": 1, "b": 2}}"#,
            r#"[TOOL_CALLS]get_weather{"city": "Paris"}[TOOL_CALLS]add{"a": 1, "b": 2}"#,
        ] {
            assert_eq!(calls(text), [paris.clone(), add.clone()], "{text}");
        }
        let answer = read("Let me see. <tool_call>{\"name\": \"add\"}</tool_call>", &tools()).unwrap();
        assert_eq!((answer.text.as_str(), answer.calls[0].id.len()), ("Let me see.", 9));
        assert_eq!(answer.calls[0].arguments, json!({}));
    }

    #[test]
    fn what_is_no_call_is_text() {
        for text in [
            "",
            "Hello.",
            "{",
            "[]",
            "{\"name\": \"get_weather\"",
            r#"{"name": "unknown", "arguments": {}}"#,
            r#"{"name": "add", "arguments": [1, 2]}"#,
            r#"{"city": "Paris"}"#,
            r#"<tool_call>{"name": "add", "arguments": {}"#,
            r#"<tool_call>nonsense</tool_call>"#,
            r#"[TOOL_CALLS]add"#,
            r#"{"name": "add", "arguments": {}} and more"#,
        ] {
            assert_eq!(read(text, &tools()), None, "{text}");
        }
    }

    #[test]
    fn arguments_become_a_type() {
        #[derive(Debug, PartialEq, serde::Deserialize)]
        struct Add {
            a: i32,
            b: i32,
        }
        let answer = read(r#"{"name": "add", "arguments": {"a": 1, "b": 2}}"#, &tools()).unwrap();
        assert_eq!(answer.calls[0].parse::<Add>().unwrap(), Add { a: 1, b: 2 });
        assert!(matches!(answer.calls[0].parse::<Vec<i32>>(), Err(Error::Json { .. })));
    }
}
