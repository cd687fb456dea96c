//! GLM's calls: a name, and a pair of tags for each argument.
//!
//! ```text
//! get_weather
//! <arg_key>city</arg_key>
//! <arg_value>Paris</arg_value>
//! ```
//!
//! A value is text without quotes, of the type in the tool's schema. It ends at the `</arg_value>` that is followed by
//! another argument or the end of the call, so that one inside a text ends nothing. Newer models leave out the line breaks.

use serde_json::{Map, Value};

use super::out::{Step, skip_space, take_value};
use super::parser::{Input, MAX_NAME_BYTES, Out, Outcome, overlap};

const KEY: &str = "<arg_key>";
const KEY_END: &str = "</arg_key>";
const VALUE: &str = "<arg_value>";
const VALUE_END: &str = "</arg_value>";
const CALL_END: &str = "</tool_call>";
/// What may follow the name and every value.
const NEXT: [&str; 2] = [KEY, CALL_END];

#[derive(Debug)]
enum State {
    Name,
    /// An argument, or the end.
    Between,
    Key,
    /// Before a value.
    Open,
    Value,
}

/// One call, after its mark.
#[derive(Debug)]
pub(super) struct Pairs {
    state: State,
    name: String,
    /// The current key or value so far.
    text: String,
    key: String,
    arguments: Map<String, Value>,
}

impl Pairs {
    pub(super) fn new() -> Self {
        let (name, text, key) = (String::new(), String::new(), String::new());
        Self { state: State::Name, name, text, key, arguments: Map::new() }
    }

    pub(super) fn feed(&mut self, input: &mut Input, out: &mut Out) -> Outcome {
        loop {
            let step = match self.state {
                State::Name => self.name(input, out),
                State::Between => self.between(input, out),
                State::Key => self.key(input, out),
                State::Open => self.open(input, out),
                State::Value => self.value(input, out),
            };
            match step {
                Ok(Step::On) => {}
                Ok(Step::Wait) => return Outcome::Wait,
                Ok(Step::Done) => return Outcome::Done,
                Err(reason) => {
                    let name = Some(self.name.clone()).filter(|_| !matches!(self.state, State::Name));
                    return Outcome::Broken { name, reason };
                }
            }
        }
    }

    fn name(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        while let Some(c) = input.rest().chars().next() {
            if c == '<' || c.is_whitespace() {
                out.begin(&self.name, None);
                self.state = State::Between;
                return Ok(Step::On);
            }
            if !(c.is_alphanumeric() || "_-.".contains(c)) || self.name.len() >= MAX_NAME_BYTES {
                return Err(format!("{c:?} cannot stand in a name"));
            }
            self.name.push(c);
            out.attempt.extend(input.next());
        }
        Ok(Step::Wait)
    }

    fn between(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        skip_space(input, out);
        let rest = input.rest();
        if rest.starts_with(KEY) {
            out.attempt += &input.take(KEY.len());
            self.state = State::Key;
            return Ok(Step::On);
        }
        if rest.starts_with(CALL_END) {
            out.arguments(if self.arguments.is_empty() { "{}" } else { "}" });
            out.complete(&self.name, None, Value::Object(std::mem::take(&mut self.arguments)));
            return Ok(Step::Done);
        }
        match NEXT.iter().any(|mark| mark.starts_with(rest)) {
            true => Ok(Step::Wait),
            false => Err("neither an argument nor the call's end follows".to_owned()),
        }
    }

    fn key(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        let rest = input.rest();
        let end = rest.find(KEY_END);
        let new = input.take(end.unwrap_or(rest.len() - overlap(rest, KEY_END)));
        self.text += &new;
        out.attempt += &new;
        if self.text.len() > MAX_NAME_BYTES {
            return Err("a key has no end".to_owned());
        }
        if end.is_none() {
            return Ok(Step::Wait);
        }
        out.attempt += &input.take(KEY_END.len());
        self.key = std::mem::take(&mut self.text).trim().to_owned();
        if self.key.is_empty() || self.arguments.contains_key(&self.key) {
            return Err(format!("the argument {:?} cannot stand there", self.key));
        }
        self.state = State::Open;
        Ok(Step::On)
    }

    fn open(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        skip_space(input, out);
        match input.begins(VALUE) {
            None => Ok(Step::Wait),
            Some(false) => Err("no value follows a key".to_owned()),
            Some(true) => {
                out.attempt += &input.take(VALUE.len());
                self.state = State::Value;
                Ok(Step::On)
            }
        }
    }

    fn value(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        if !take_value(&mut self.text, VALUE_END, &NEXT, input, out) {
            return Ok(Step::Wait);
        }
        let value = out.types(&self.name, &self.key).value(&std::mem::take(&mut self.text));
        let before = if self.arguments.is_empty() { '{' } else { ',' };
        out.arguments(&format!("{before}{}:{value}", Value::from(self.key.as_str())));
        self.arguments.insert(std::mem::take(&mut self.key), value);
        self.state = State::Between;
        Ok(Step::On)
    }
}
