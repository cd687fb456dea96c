//! Gemma 4's calls: JSON without quotes around its keys, and with a mark in place of the quotes around its texts.
//!
//! ```text
//! call:get_weather{city:<|"|>Paris<|"|>,days:2,at:[{lat:48.9}]}
//! ```
//!
//! Between two such marks nothing is escaped. JSON's own quotes are accepted too, and a value that has no quotes at all is
//! of the type in the tool's schema. It is translated to JSON as it is read.

use serde_json::Value;

use super::out::{Step, skip_space};
use super::parser::{Input, MAX_NAME_BYTES, Out, Outcome, overlap};
use super::python;
use super::types::Types;

/// Stands before and after a text.
pub(super) const QUOTE: &str = "<|\"|>";
/// Stands before the name.
pub(super) const CALL: &str = "call:";

/// Deeper nested values are refused.
const MAX_DEPTH: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Name,
    /// A key, or the end of an object.
    Key,
    /// A key without quotes, up to its colon.
    BareKey,
    Colon,
    /// A value; in a list, perhaps its end.
    Value,
    /// A text, or a key, up to the next mark.
    Marked {
        is_key: bool,
    },
    /// The same in JSON's quotes.
    Quoted {
        is_key: bool,
        is_escaped: bool,
    },
    /// A number or a word.
    Bare,
    /// A comma, or the end of what is open.
    After,
}

/// An object or a list that is open.
#[derive(Debug)]
struct Open {
    is_object: bool,
    is_empty: bool,
}

/// One call, after its mark.
#[derive(Debug)]
pub(super) struct Gemma {
    state: State,
    name: String,
    open: Vec<Open>,
    /// The current key, number, word, or text in quotes so far.
    token: String,
    /// The argument that the current value belongs to.
    key: String,
    /// The arguments so far, in JSON.
    json: String,
    n_sent: usize,
}

impl Gemma {
    pub(super) fn new() -> Self {
        Self {
            state: State::Name,
            name: String::new(),
            open: Vec::new(),
            token: String::new(),
            key: String::new(),
            json: String::new(),
            n_sent: 0,
        }
    }

    pub(super) fn feed(&mut self, input: &mut Input, out: &mut Out) -> Outcome {
        loop {
            let step = match self.state {
                State::Name => self.name(input, out),
                State::Key => self.key(input, out),
                State::Value => self.value(input, out),
                State::Colon => self.colon(input, out),
                State::BareKey | State::Bare => self.bare(input, out),
                State::Marked { is_key } => Ok(self.marked(is_key, input, out)),
                State::Quoted { is_key, is_escaped } => self.quoted(is_key, is_escaped, input, out),
                State::After => self.after(input, out),
            };
            match step {
                Ok(Step::On) => {}
                Ok(Step::Wait) => {
                    self.send(out);
                    return Outcome::Wait;
                }
                Ok(Step::Done) => {
                    self.send(out);
                    return match serde_json::from_str(&self.json) {
                        Ok(value) => {
                            out.complete(&self.name, None, value);
                            Outcome::Done
                        }
                        Err(_) => self.broken("its arguments are no object".to_owned()),
                    };
                }
                Err(reason) => return self.broken(reason),
            }
        }
    }

    fn broken(&self, reason: String) -> Outcome {
        Outcome::Broken { name: Some(self.name.clone()).filter(|_| self.state != State::Name), reason }
    }

    fn send(&mut self, out: &mut Out) {
        out.arguments(&self.json[self.n_sent..]);
        self.n_sent = self.json.len();
    }

    fn name(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        while let Some(c) = input.rest().chars().next() {
            if c == '{' {
                self.name = self.name.strip_prefix(CALL).unwrap_or(&self.name).trim().to_owned();
                out.begin(&self.name, None);
                self.open('{');
                out.attempt.extend(input.next());
                return Ok(Step::On);
            }
            let is_part = c.is_alphanumeric() || "_-.:".contains(c) || c.is_whitespace();
            if !is_part || self.name.len() >= MAX_NAME_BYTES {
                return Err(format!("{c:?} cannot stand in a name"));
            }
            self.name.push(c);
            out.attempt.extend(input.next());
        }
        Ok(Step::Wait)
    }

    /// Begins an object or a list.
    fn open(&mut self, c: char) {
        let is_object = c == '{';
        self.open.push(Open { is_object, is_empty: true });
        self.json.push(c);
        self.state = if is_object { State::Key } else { State::Value };
    }

    fn close(&mut self, c: char) -> Step {
        self.open.pop();
        self.json.push(c);
        self.state = State::After;
        if self.open.is_empty() { Step::Done } else { Step::On }
    }

    /// Writes the comma before all but the first key of an object, or item of a list.
    fn separate(&mut self) {
        if let Some(open) = self.open.last_mut()
            && !std::mem::take(&mut open.is_empty)
        {
            self.json.push(',');
        }
    }

    fn key(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        skip_space(input, out);
        let Some(c) = input.rest().chars().next() else { return Ok(Step::Wait) };
        match (c, input.begins(QUOTE)) {
            ('}', _) => {
                out.attempt.extend(input.next());
                return Ok(self.close(c));
            }
            (_, None) => return Ok(Step::Wait),
            (_, Some(true)) => {
                out.attempt += &input.take(QUOTE.len());
                self.state = State::Marked { is_key: true };
            }
            ('"', _) => {
                self.state = State::Quoted { is_key: true, is_escaped: false };
                self.token.extend(input.next());
                out.attempt.push(c);
            }
            _ => self.state = State::BareKey,
        }
        self.separate();
        Ok(Step::On)
    }

    fn colon(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        skip_space(input, out);
        match input.rest().chars().next() {
            None => Ok(Step::Wait),
            Some(':') => {
                out.attempt.extend(input.next());
                self.end_key();
                Ok(Step::On)
            }
            Some(c) => Err(format!("{c:?} cannot follow a key")),
        }
    }

    /// Writes the key, which `token` has.
    fn end_key(&mut self) {
        let key = std::mem::take(&mut self.token);
        self.json += &Value::from(key.as_str()).to_string();
        self.json.push(':');
        if self.open.len() == 1 {
            self.key = key;
        }
        self.state = State::Value;
    }

    fn value(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        skip_space(input, out);
        let Some(c) = input.rest().chars().next() else { return Ok(Step::Wait) };
        let is_marked = match input.begins(QUOTE) {
            None => return Ok(Step::Wait),
            Some(is_marked) => is_marked,
        };
        let in_list = self.open.last().is_some_and(|open| !open.is_object);
        if c == ']' && in_list {
            out.attempt.extend(input.next());
            return Ok(self.close(c));
        }
        if in_list {
            self.separate();
        }
        match c {
            _ if is_marked => {
                out.attempt += &input.take(QUOTE.len());
                self.json.push('"');
                self.state = State::Marked { is_key: false };
            }
            '{' | '[' if self.open.len() >= MAX_DEPTH => return Err("its arguments are nested too deeply".to_owned()),
            '{' | '[' => {
                out.attempt.extend(input.next());
                self.open(c);
            }
            '"' => {
                self.state = State::Quoted { is_key: false, is_escaped: false };
                self.token.extend(input.next());
                out.attempt.push(c);
            }
            _ => self.state = State::Bare,
        }
        Ok(Step::On)
    }

    /// A text or a key up to the mark that ends it, which nothing escapes.
    fn marked(&mut self, is_key: bool, input: &mut Input, out: &mut Out) -> Step {
        let rest = input.rest();
        let end = rest.find(QUOTE);
        let new = input.take(end.unwrap_or(rest.len() - overlap(rest, QUOTE)));
        out.attempt += &new;
        if is_key {
            self.token += &new;
        } else {
            let quoted = Value::from(new).to_string();
            self.json += quoted.get(1..quoted.len() - 1).unwrap_or_default();
        }
        if end.is_none() {
            return Step::Wait;
        }
        out.attempt += &input.take(QUOTE.len());
        if !is_key {
            self.json.push('"');
        }
        self.state = if is_key { State::Colon } else { State::After };
        Step::On
    }

    /// A text or a key in JSON's quotes.
    fn quoted(&mut self, is_key: bool, mut is_escaped: bool, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        while let Some(c) = input.next() {
            self.token.push(c);
            out.attempt.push(c);
            if c == '"' && !is_escaped {
                let text: String = serde_json::from_str(&self.token).map_err(|_| "a text is no JSON".to_owned())?;
                if is_key {
                    self.token = text;
                    self.state = State::Colon;
                } else {
                    self.json += &std::mem::take(&mut self.token);
                    self.state = State::After;
                }
                return Ok(Step::On);
            }
            is_escaped = c == '\\' && !is_escaped;
        }
        self.state = State::Quoted { is_key, is_escaped };
        Ok(Step::Wait)
    }

    /// A key up to its colon, or a value up to a comma or the end of what is open.
    fn bare(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        let is_key = self.state == State::BareKey;
        while let Some(c) = input.rest().chars().next() {
            if is_key && c == ':' {
                out.attempt.extend(input.next());
                self.token.truncate(self.token.trim_end().len());
                if self.token.is_empty() {
                    return Err("a key is missing".to_owned());
                }
                self.end_key();
                return Ok(Step::On);
            }
            if ",}]".contains(c) && !is_key {
                let text = std::mem::take(&mut self.token);
                let types = match self.open.len() {
                    1 => out.types(&self.name, &self.key),
                    _ => Types::default(),
                };
                let value = value_of(text.trim(), types).ok_or("a value is missing")?;
                self.json += &value.to_string();
                self.state = State::After;
                return Ok(Step::On);
            }
            if "{[\"".contains(c) || (is_key && (",}]\n".contains(c) || self.token.len() >= MAX_NAME_BYTES)) {
                return Err(format!("{c:?} cannot stand in a {}", if is_key { "key" } else { "value without quotes" }));
            }
            self.token.push(c);
            out.attempt.extend(input.next());
        }
        Ok(Step::Wait)
    }

    fn after(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        skip_space(input, out);
        let Some(c) = input.rest().chars().next() else { return Ok(Step::Wait) };
        let is_object = self.open.last().is_some_and(|open| open.is_object);
        let step = match c {
            ',' => {
                self.state = if is_object { State::Key } else { State::Value };
                Step::On
            }
            '}' if is_object => self.close(c),
            ']' if !is_object => self.close(c),
            _ => return Err(format!("{c:?} cannot follow a value")),
        };
        out.attempt.extend(input.next());
        Ok(step)
    }
}

/// The value of a text without quotes: a number or a word if the types allow it, otherwise a text; `None` if there is none.
fn value_of(text: &str, types: Types) -> Option<Value> {
    if text.is_empty() {
        return None;
    }
    let read = python::parse(text).filter(|value| types == Types::default() || types.allow(value));
    Some(read.unwrap_or_else(|| text.into()))
}
