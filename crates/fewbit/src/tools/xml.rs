//! Qwen3-Coder's and Seed's calls: `<function=f>`, parameters, `</function>`.
//!
//! ```text
//! <function=get_weather>
//! <parameter=city>
//! Paris
//! </parameter>
//! </function>
//! ```
//!
//! A value is text without quotes, of the type in the tool's schema. It ends at the `</parameter>` that is followed by
//! another parameter or the end of the function, so that one inside a text ends nothing. Texts are emitted as they
//! come. Some models write `<function=f>{..}</function>`.

use serde_json::{Map, Value};

use super::named::Arguments;
use super::out::{Step, skip_space, take_value};
use super::parser::{Input, MAX_NAME_BYTES, Out, Outcome};
use super::types::Types;

const FUNCTION: &str = "<function=";
const PARAMETER: &str = "<parameter=";
const VALUE_END: &str = "</parameter>";
const FUNCTION_END: &str = "</function>";
/// What may follow a value: another one, or one of the ends.
const NEXT: [&str; 4] = [PARAMETER, FUNCTION_END, "</tool_call>", "</seed:tool_call>"];

#[derive(Debug)]
enum State {
    /// At `<function=`.
    Open,
    Name,
    /// A parameter, or the end.
    Between,
    Key,
    Value,
    Json(Arguments),
    /// `</function>` after JSON.
    End(Map<String, Value>),
}

/// One call.
#[derive(Debug)]
pub(super) struct Xml {
    state: State,
    name: String,
    key: String,
    types: Types,
    /// The value so far.
    text: String,
    /// How much of it was emitted; if any, it is certain to be text.
    n_sent: usize,
    has_begun: bool,
    arguments: Map<String, Value>,
}

impl Xml {
    /// At `<function=`.
    pub(super) fn new() -> Self {
        Self {
            state: State::Open,
            name: String::new(),
            key: String::new(),
            types: Types::default(),
            text: String::new(),
            n_sent: 0,
            has_begun: false,
            arguments: Map::new(),
        }
    }

    /// After it.
    pub(super) fn named() -> Self {
        Self { state: State::Name, ..Self::new() }
    }

    pub(super) fn feed(&mut self, input: &mut Input, out: &mut Out) -> Outcome {
        loop {
            let go_on = match &mut self.state {
                State::Open => {
                    out.attempt += &input.take(FUNCTION.len());
                    self.state = State::Name;
                    Ok(true)
                }
                State::Name => self.name(input, out),
                State::Between => match self.between(input, out) {
                    Ok(Step::Done) => return Outcome::Done,
                    Ok(Step::On) => Ok(true),
                    Ok(Step::Wait) => Ok(false),
                    Err(reason) => Err(reason),
                },
                State::Key => self.key(input, out),
                State::Value => self.value(input, out),
                State::Json(arguments) => match arguments.feed(input, out) {
                    Ok(Some(Value::Object(fields))) => {
                        self.state = State::End(fields);
                        Ok(true)
                    }
                    Ok(_) => Ok(false),
                    Err(reason) => Err(reason),
                },
                State::End(fields) => {
                    skip_space(input, out);
                    match input.begins(FUNCTION_END) {
                        None => Ok(false),
                        is_there => {
                            if is_there == Some(true) {
                                out.attempt += &input.take(FUNCTION_END.len());
                            }
                            let fields = std::mem::take(fields);
                            out.complete(&self.name, None, Value::Object(fields));
                            return Outcome::Done;
                        }
                    }
                }
            };
            match go_on {
                Ok(true) => {}
                Ok(false) => return Outcome::Wait,
                Err(reason) => {
                    return Outcome::Broken { name: Some(self.name.clone()).filter(|name| !name.is_empty()), reason };
                }
            }
        }
    }

    fn name(&mut self, input: &mut Input, out: &mut Out) -> Result<bool, String> {
        let Some(name) = up_to_bracket(&mut self.name, input, out)? else { return Ok(false) };
        self.name = name;
        out.begin(&self.name, None);
        self.state = State::Between;
        Ok(true)
    }

    fn key(&mut self, input: &mut Input, out: &mut Out) -> Result<bool, String> {
        let Some(key) = up_to_bracket(&mut self.key, input, out)? else { return Ok(false) };
        if key.is_empty() || self.arguments.contains_key(&key) {
            return Err(format!("the parameter {key:?} cannot stand there"));
        }
        self.types = out.types(&self.name, &key);
        self.key = key;
        (self.n_sent, self.has_begun) = (0, false);
        self.text.clear();
        self.state = State::Value;
        Ok(true)
    }

    fn between(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        skip_space(input, out);
        let rest = input.rest();
        if rest.starts_with(PARAMETER) {
            out.attempt += &input.take(PARAMETER.len());
            self.key.clear();
            self.state = State::Key;
        } else if rest.starts_with('{') && self.arguments.is_empty() {
            self.state = State::Json(Arguments::new());
        } else if NEXT[1..].iter().any(|end| rest.starts_with(end)) {
            if rest.starts_with(FUNCTION_END) {
                out.attempt += &input.take(FUNCTION_END.len());
            }
            out.arguments(if self.arguments.is_empty() { "{}" } else { "}" });
            let arguments = std::mem::take(&mut self.arguments);
            out.complete(&self.name, None, Value::Object(arguments));
            return Ok(Step::Done);
        } else if NEXT.iter().any(|mark| mark.starts_with(rest)) {
            return Ok(Step::Wait);
        } else {
            return Err("neither a parameter nor the function's end follows".to_owned());
        }
        Ok(Step::On)
    }

    fn value(&mut self, input: &mut Input, out: &mut Out) -> Result<bool, String> {
        let is_complete = take_value(&mut self.text, VALUE_END, &NEXT, input, out);
        if is_complete {
            self.end_value(out);
        } else {
            self.send_text(out, false);
        }
        Ok(is_complete)
    }

    /// The range of the value's own text, without the line breaks around it.
    fn span(&self, is_complete: bool) -> (usize, usize) {
        let from = if self.text.starts_with("\r\n") { 2 } else { usize::from(self.text.starts_with('\n')) };
        let mut to = self.text.len();
        for end in ["\n", "\r"] {
            if self.text[from..to].ends_with(end) {
                to -= 1;
            } else if is_complete {
                break;
            }
        }
        (from, to)
    }

    /// Emits the text so far, if the value is certain to be text.
    fn send_text(&mut self, out: &mut Out, is_complete: bool) {
        if !self.types.is_text() {
            return;
        }
        let (from, to) = self.span(is_complete);
        if !is_complete && to <= from {
            return;
        }
        let mut new = String::new();
        if !std::mem::replace(&mut self.has_begun, true) {
            let before = if self.arguments.is_empty() { '{' } else { ',' };
            new = format!("{before}{}:\"", Value::from(self.key.as_str()));
            self.n_sent = from;
        }
        if let Some(text) = self.text.get(self.n_sent..to) {
            let quoted = Value::from(text).to_string();
            new += &quoted[1..quoted.len() - 1];
            self.n_sent = to;
        }
        if is_complete {
            new.push('"');
        }
        out.arguments(&new);
    }

    fn end_value(&mut self, out: &mut Out) {
        self.send_text(out, true);
        let (from, to) = self.span(true);
        let value = self.types.value(&self.text[from..to]);
        if !self.types.is_text() {
            let before = if self.arguments.is_empty() { '{' } else { ',' };
            out.arguments(&format!("{before}{}:{value}", Value::from(self.key.as_str())));
        }
        self.arguments.insert(std::mem::take(&mut self.key), value);
        self.state = State::Between;
    }
}

/// Reads a name up to `>`; `None` if it is not complete yet.
fn up_to_bracket(name: &mut String, input: &mut Input, out: &mut Out) -> Result<Option<String>, String> {
    while let Some(c) = input.rest().chars().next() {
        if c == '\n' || c == '<' || name.len() >= MAX_NAME_BYTES {
            return Err("its name has no end".to_owned());
        }
        out.attempt.extend(input.next());
        if c == '>' {
            return Ok(Some(std::mem::take(name).trim().to_owned()));
        }
        name.push(c);
    }
    Ok(None)
}
