//! Calls in a section of their own: DeepSeek's and Kimi's.
//!
//! ```text
//! DeepSeek R1, V3   BEGIN function SEPARATOR get_weather\n```json\n{"city": "Paris"}\n``` END
//! DeepSeek V3.1     BEGIN get_weather SEPARATOR {"city": "Paris"} END
//! Kimi K2           BEGIN functions.get_weather:0 SEPARATOR {"city": "Paris"} END
//! ```
//!
//! What Kimi writes before the separator is the call's id as well.

use super::named::Arguments;
use super::out::{Step, skip_space};
use super::parser::{Input, MAX_NAME_BYTES, Out, Outcome, overlap};

/// The marks in a section. Those around it are a [`Mark`](super::style::Mark).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) begin: &'static str,
    pub(crate) separator: &'static str,
    pub(crate) end: &'static str,
}

pub(crate) const DEEPSEEK: Section =
    Section { begin: "<｜tool▁call▁begin｜>", separator: "<｜tool▁sep｜>", end: "<｜tool▁call▁end｜>" };
pub(crate) const KIMI: Section =
    Section { begin: "<|tool_call_begin|>", separator: "<|tool_call_argument_begin|>", end: "<|tool_call_end|>" };

/// What may stand around the arguments.
pub(super) const FENCE: &str = "```";
const FENCED_JSON: &str = "```json";
/// What DeepSeek R1 and V3 write before the separator, and the name after it.
const KIND: &str = "function";

#[derive(Debug)]
enum State {
    /// At the mark of a call.
    Begin,
    /// Up to the separator.
    Head,
    /// A name on a line of its own.
    Name,
    Fence,
    Arguments(Arguments),
}

/// One call of a section, up to the end of its arguments.
#[derive(Debug)]
pub(super) struct SectionCall {
    marks: &'static Section,
    state: State,
    name: String,
    id: Option<String>,
}

impl SectionCall {
    pub(super) fn new(marks: &'static Section) -> Self {
        Self { marks, state: State::Begin, name: String::new(), id: None }
    }

    pub(super) fn feed(&mut self, input: &mut Input, out: &mut Out) -> Outcome {
        loop {
            match self.step(input, out) {
                Ok(Step::On) => {}
                Ok(Step::Wait) => return Outcome::Wait,
                Ok(Step::Done) => return Outcome::Done,
                Err(reason) => {
                    let is_named = matches!(self.state, State::Fence | State::Arguments(_));
                    return Outcome::Broken { name: Some(self.name.clone()).filter(|_| is_named), reason };
                }
            }
        }
    }

    fn step(&mut self, input: &mut Input, out: &mut Out) -> Result<Step, String> {
        match &mut self.state {
            State::Begin => match input.begins(self.marks.begin) {
                None => return Ok(Step::Wait),
                Some(false) => return Err("no call follows its mark".to_owned()),
                Some(true) => {
                    out.attempt += &input.take(self.marks.begin.len());
                    self.state = State::Head;
                }
            },
            State::Head => {
                let rest = input.rest();
                let end = rest.find(self.marks.separator);
                let head = input.take(end.unwrap_or(rest.len() - overlap(rest, self.marks.separator)));
                self.name += &head;
                out.attempt += &head;
                if self.name.len() > MAX_NAME_BYTES {
                    return Err("its name has no end".to_owned());
                }
                if end.is_none() {
                    return Ok(Step::Wait);
                }
                out.attempt += &input.take(self.marks.separator.len());
                self.head(out);
            }
            State::Name => {
                let Some(c) = input.rest().chars().next() else { return Ok(Step::Wait) };
                if c == '\n' || c == '{' {
                    self.name = self.name.trim().to_owned();
                    out.begin(&self.name, None);
                    self.state = State::Fence;
                } else if self.name.len() >= MAX_NAME_BYTES {
                    return Err("its name has no end".to_owned());
                } else {
                    self.name.push(c);
                    out.attempt.extend(input.next());
                }
            }
            State::Fence => {
                skip_space(input, out);
                match input.begins(FENCED_JSON) {
                    None => return Ok(Step::Wait),
                    Some(true) => out.attempt += &input.take(FENCED_JSON.len()),
                    Some(false) => {}
                }
                self.state = State::Arguments(Arguments::new());
            }
            State::Arguments(arguments) => {
                if arguments.is_empty() {
                    skip_space(input, out);
                }
                match arguments.feed(input, out)? {
                    None => return Ok(Step::Wait),
                    Some(value) => {
                        out.complete(&self.name, self.id.as_deref(), value);
                        return Ok(Step::Done);
                    }
                }
            }
        }
        Ok(Step::On)
    }

    /// Takes what stands before the separator apart.
    fn head(&mut self, out: &mut Out) {
        let head = std::mem::take(&mut self.name);
        let head = head.trim();
        if *self.marks == DEEPSEEK && head == KIND {
            self.state = State::Name;
            return;
        }
        let mut name = head;
        if *self.marks == KIMI {
            self.id = Some(head.to_owned());
            name = head.strip_prefix("functions.").unwrap_or(head);
            if let Some((before, number)) = name.rsplit_once(':')
                && !number.is_empty()
                && number.bytes().all(|byte| byte.is_ascii_digit())
            {
                name = before;
            }
        }
        self.name = name.to_owned();
        out.begin(&self.name, self.id.as_deref());
        self.state = State::Fence;
    }
}
