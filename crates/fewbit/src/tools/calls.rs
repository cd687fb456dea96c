//! Calls in JSON: one object, a list of them, or either inside a wrapper.
//!
//! ```text
//! {"name": "f", "arguments": {..}}                   also `parameters`; an `id` may be there
//! {"type": "function", "function": {"name": ..}}     the wrapper of chat interfaces; {"function": "f", ..} too
//! {"tool_call_id": "0", "tool_name": "f", ..}        Cohere
//! [{..}, {..}]                                       and {"tool_calls": [{..}, {..}]}
//! ```
//!
//! The scanner reports where keys and values are; once the name is known, arguments are emitted as they come. When an
//! object ends, it is parsed as a whole, and that decides.

use serde_json::{Map, Value};

use super::parser::{Input, Out, Outcome};
use super::scan::{Event, Scanner};

const NAMES: [&str; 3] = ["name", "function", "tool_name"];
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];
const IDS: [&str; 3] = ["id", "call_id", "tool_call_id"];

/// Calls in one JSON value.
#[derive(Debug)]
pub(super) struct JsonCalls {
    scanner: Scanner,
    /// Whether a mark came before; without one it may be JSON that is no call.
    is_marked: bool,
    /// The text of the value so far.
    text: String,
    /// The current object, if it may be a call.
    call: Option<Object>,
    /// The depth inside the list of calls, if there is one.
    list: Option<usize>,
    /// Whether a complete call was read, or nearly one.
    has_read: bool,
}

/// An object that may be a call, as far as it has been read.
#[derive(Debug)]
struct Object {
    /// The depth inside it; one more inside a wrapper.
    depth: usize,
    is_wrapped: bool,
    /// Position of its beginning in the text.
    from: usize,
    /// Position of the current string in the text.
    string: usize,
    key: String,
    name: Option<String>,
    id: Option<String>,
    arguments: Option<Span>,
    /// How many keys for arguments it has.
    n_arguments: usize,
}

/// The arguments in the text.
#[derive(Debug)]
struct Span {
    /// Position up to which they were emitted.
    from: usize,
    to: Option<usize>,
}

impl JsonCalls {
    pub(super) fn new(is_marked: bool) -> Self {
        let (scanner, text) = (Scanner::new(), String::new());
        Self { scanner, is_marked, text, call: None, list: None, has_read: false }
    }

    /// Whether the current call has the name of a tool.
    pub(super) fn has_name(&self, out: &Out) -> bool {
        let name = self.call.as_ref().and_then(|call| call.name.as_deref());
        name.is_some_and(|name| out.tool(name).is_some())
    }

    pub(super) fn feed(&mut self, input: &mut Input, out: &mut Out) -> Outcome {
        while let Some(c) = input.rest().chars().next() {
            let Ok(event) = self.scanner.push(c) else {
                let name = self.call.take().and_then(|call| call.name);
                if !self.is_marked && !self.has_read && name.as_ref().is_none_or(|name| out.tool(name).is_none()) {
                    return Outcome::Text;
                }
                return Outcome::Broken { name, reason: format!("{c:?} cannot follow in its JSON") };
            };
            out.attempt.extend(input.next());
            let at = self.text.len();
            self.text.push(c);
            if let Some(outcome) = self.take(event, at, out) {
                return outcome;
            }
            if self.scanner.is_done() {
                return if self.has_read {
                    Outcome::Done
                } else if self.is_marked {
                    Outcome::Broken { name: None, reason: "there is no call in its JSON".to_owned() }
                } else {
                    Outcome::Text
                };
            }
        }
        self.send_arguments(out);
        Outcome::Wait
    }

    /// Handles the event of the character at `at`; `Some` if this is not the JSON of a call.
    fn take(&mut self, event: Event, at: usize, out: &mut Out) -> Option<Outcome> {
        let depth = self.scanner.depth();
        match (event, &mut self.call) {
            (Event::None, _) => None,
            (_, Some(call)) => {
                if event == Event::Close && depth + 1 + usize::from(call.is_wrapped) == call.depth {
                    return self.end(at, out);
                }
                let is_first = call.key.is_empty();
                match call.take(event, at, depth, &self.text) {
                    Taken::Nothing => None,
                    Taken::List => {
                        (self.call, self.list) = (None, Some(depth));
                        None
                    }
                    Taken::Key if !self.is_marked => {
                        let key = call.key.as_str();
                        let is_known = ["type", "tool_calls"].contains(&key)
                            || [&NAMES[..], &ARGUMENTS, &IDS].iter().any(|keys| keys.contains(&key));
                        let is_unknown_tool = call.name.as_ref().is_some_and(|name| out.tool(name).is_none());
                        let is_other = (is_first && !is_known) || (is_unknown_tool && !ARGUMENTS.contains(&key));
                        (is_other && !self.has_read).then_some(Outcome::Text)
                    }
                    Taken::Key => None,
                }
            }
            // A list of calls begins.
            (Event::Open, None) if depth == 1 && self.text.ends_with('[') => {
                self.list = Some(depth);
                None
            }
            (Event::Open, None) if depth == self.list.unwrap_or(0) + 1 && self.text.ends_with('{') => {
                self.call = Some(Object::new(depth, at));
                None
            }
            // A list of calls has only objects.
            (Event::Open | Event::Scalar | Event::StringStart, None) if self.list.is_some_and(|list| depth >= list) => {
                if !self.is_marked && !self.has_read {
                    return Some(Outcome::Text);
                }
                Some(Outcome::Broken { name: None, reason: "its list has something that is no call".to_owned() })
            }
            (_, None) => None,
        }
    }

    /// Handles the end of an object.
    fn end(&mut self, at: usize, out: &mut Out) -> Option<Outcome> {
        self.send_arguments(out);
        let call = self.call.take()?;
        let value = self.text.get(call.from..=at).map(serde_json::from_str::<Value>);
        let name = call.name.as_deref();
        match value {
            Some(Ok(value)) => match read(&value) {
                _ if call.n_arguments > 1 => out.reject(call.name, "it has arguments twice".to_owned()),
                Some((name, arguments)) if out.tool(name).is_some() => {
                    out.complete(name, call.id.as_deref(), arguments);
                }
                // Any object may have a name; only one that has arguments as well is a call.
                _ if !self.is_marked && !self.has_read && (name.is_none() || call.n_arguments == 0) => {
                    return Some(Outcome::Text);
                }
                None if name.is_none() => out.reject(None, "it has no name".to_owned()),
                None => out.reject(call.name, "its arguments are not an object".to_owned()),
                Some((name, _)) => out.reject(Some(name.to_owned()), format!("there is no tool {name:?}")),
            },
            _ => out.reject(call.name, "it is no JSON".to_owned()),
        }
        self.has_read = true;
        None
    }

    /// Emits the arguments so far, if the call they belong to is known.
    fn send_arguments(&mut self, out: &mut Out) {
        let Some(call) = &mut self.call else { return };
        let Some(name) = &call.name else { return };
        let Some(span) = &mut call.arguments else {
            // Without a mark, a name alone does not make it a call.
            if self.is_marked {
                out.begin(name, call.id.as_deref());
            }
            return;
        };
        if out.tool(name).is_none() || call.n_arguments > 1 {
            return;
        }
        out.begin(name, call.id.as_deref());
        let to = span.to.unwrap_or(self.text.len());
        if let Some(new) = self.text.get(span.from..to) {
            out.arguments(new);
            span.from = to;
        }
    }
}

/// What a character means to an object.
enum Taken {
    Nothing,
    /// One of its own keys.
    Key,
    /// The object is no call, but has a list of calls.
    List,
}

impl Object {
    fn new(depth: usize, from: usize) -> Self {
        Self {
            depth,
            is_wrapped: false,
            from,
            string: from,
            key: String::new(),
            name: None,
            id: None,
            arguments: None,
            n_arguments: 0,
        }
    }

    fn take(&mut self, event: Event, at: usize, depth: usize, text: &str) -> Taken {
        let string = || serde_json::from_str::<String>(text.get(self.string..=at)?).ok();
        match event {
            Event::KeyStart | Event::StringStart if depth == self.depth => self.string = at,
            Event::KeyEnd if depth == self.depth => {
                self.key = string().unwrap_or_default();
                self.n_arguments += usize::from(ARGUMENTS.contains(&self.key.as_str()));
                return Taken::Key;
            }
            Event::StringEnd if depth == self.depth => {
                let key = self.key.as_str();
                if key == "name" || (NAMES.contains(&key) && self.name.is_none()) {
                    self.name = string();
                } else if IDS.contains(&key) {
                    self.id = string();
                }
            }
            Event::Open if depth == self.depth + 1 => {
                let is_object = text.ends_with('{');
                match self.key.as_str() {
                    "tool_calls" if !is_object => return Taken::List,
                    "function" if is_object && !self.is_wrapped => {
                        (self.depth, self.is_wrapped) = (depth, true);
                        self.key.clear();
                    }
                    key if ARGUMENTS.contains(&key) && is_object => {
                        self.arguments = Some(Span { from: at, to: None });
                    }
                    _ => {}
                }
            }
            Event::Close if depth == self.depth => {
                if let Some(span) = self.arguments.as_mut().filter(|span| span.to.is_none()) {
                    span.to = Some(at + 1);
                }
            }
            // The wrapper's inner object ends; more keys of the outer one may follow.
            Event::Close if self.is_wrapped && depth + 1 == self.depth => {
                (self.depth, self.is_wrapped) = (depth, false);
                self.key = "function".to_owned();
            }
            _ => {}
        }
        Taken::Nothing
    }
}

/// The name and the arguments of an object that is a call.
fn read(value: &Value) -> Option<(&str, Value)> {
    let value = value.get("function").filter(|function| function.is_object()).unwrap_or(value);
    let name = NAMES.iter().find_map(|key| value.get(*key)?.as_str())?;
    let arguments = match ARGUMENTS.iter().find_map(|key| value.get(*key)) {
        // Some models write the object as a string.
        Some(Value::String(text)) => serde_json::from_str(text).ok()?,
        Some(other) => other.clone(),
        None => Value::Null,
    };
    match arguments {
        Value::Null => Some((name, Value::Object(Map::new()))),
        arguments => arguments.is_object().then_some((name, arguments)),
    }
}
