//! The input and the output of the formats of calls: the rest of an answer, and its parts.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;

use super::parser::{Part, Setup};
use super::types::{Types, property};
use super::{MalformedCall, Tool, ToolCall};

/// Text that has not been consumed, and a position in it.
#[derive(Debug, Default)]
pub(super) struct Input {
    pub(super) text: String,
    at: usize,
}

impl Input {
    pub(super) fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Consumes the next character.
    pub(super) fn next(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// Consumes the next `n` bytes, or the rest if there are fewer.
    pub(super) fn take(&mut self, n_bytes: usize) -> String {
        let taken = self.rest().get(..n_bytes).unwrap_or_else(|| self.rest()).to_owned();
        self.at += taken.len();
        taken
    }

    /// Whether the text continues with `mark`; `None` if more text is needed to decide.
    pub(super) fn begins(&self, mark: &str) -> Option<bool> {
        let rest = self.rest();
        if rest.starts_with(mark) {
            Some(true)
        } else if mark.starts_with(rest) {
            None
        } else {
            Some(false)
        }
    }

    pub(super) fn compact(&mut self) {
        self.text.drain(..self.at);
        self.at = 0;
    }
}

/// The output of the formats.
#[derive(Debug)]
pub(super) struct Out {
    pub(super) tools: Arc<[Tool]>,
    pub(super) parts: Vec<Part>,
    /// The source of what may become a call, beginning where the last part ended.
    pub(super) attempt: String,
    /// Number of complete calls.
    n_calls: usize,
    pub(super) has_late_ids: bool,
    taken_ids: Arc<HashSet<String>>,
    own_ids: HashSet<String>,
    n_earlier: usize,
    begun: Option<Begun>,
    /// Whether the last value was no call, so that the mark that closes it is text as well.
    pub(super) is_rejected: bool,
}

#[derive(Debug)]
struct Begun {
    name: String,
    /// The id that was emitted.
    id: Option<String>,
    has_arguments: bool,
}

impl Out {
    pub(super) fn new(setup: &Setup) -> Self {
        Self {
            tools: Arc::clone(&setup.tools),
            parts: Vec::new(),
            attempt: String::new(),
            n_calls: 0,
            has_late_ids: setup.style.has_late_ids(None),
            taken_ids: Arc::clone(&setup.taken_ids),
            own_ids: HashSet::new(),
            n_earlier: setup.n_earlier,
            begun: None,
            is_rejected: false,
        }
    }

    pub(super) fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// The types of a tool's argument; those of an argument that nothing is known of, if there is no such tool or argument.
    pub(super) fn types(&self, name: &str, key: &str) -> Types {
        let Some(tool) = self.tool(name) else { return Types::default() };
        property(&tool.parameters, key).map(|schema| Types::of(schema, &tool.parameters)).unwrap_or_default()
    }

    /// The model's id if it is valid and new; otherwise a generated one that the conversation does not have.
    fn id(&self, own: Option<&str>) -> String {
        let is_free = |id: &str| !self.taken_ids.contains(id) && !self.own_ids.contains(id);
        match own {
            Some(id) if !id.is_empty() && is_free(id) => id.to_owned(),
            _ => {
                let mut n = self.n_earlier + self.n_calls;
                loop {
                    let id = format!("call{n:05}");
                    if is_free(&id) {
                        return id;
                    }
                    n += 1;
                }
            }
        }
    }

    /// Emits the beginning of a call, whose name is a tool's.
    pub(super) fn begin(&mut self, name: &str, id: Option<&str>) {
        if self.begun.is_some() || self.tool(name).is_none() {
            return;
        }
        let id = (id.is_some() || !self.has_late_ids).then(|| self.id(id));
        self.begun = Some(Begun { name: name.to_owned(), id: id.clone(), has_arguments: false });
        self.parts.push(Part::Begin { index: self.n_calls, id, name: name.to_owned() });
    }

    /// Emits the next piece of the arguments.
    pub(super) fn arguments(&mut self, text: &str) {
        let index = self.n_calls;
        if let Some(begun) = &mut self.begun
            && !text.is_empty()
        {
            begun.has_arguments = true;
            self.parts.push(Part::Arguments { index, text: text.to_owned() });
        }
    }

    /// Ends a value: it is a call of a tool, or no call after all.
    pub(super) fn complete(&mut self, name: &str, id: Option<&str>, arguments: Value) {
        if self.tool(name).is_none() {
            return self.reject(Some(name.to_owned()), format!("there is no tool {name:?}"));
        }
        if self.begun.as_ref().is_some_and(|begun| begun.name != name) {
            return self.reject(Some(name.to_owned()), "it has two names".to_owned());
        }
        self.begin(name, id);
        let Some(begun) = self.begun.take() else { return };
        if !begun.has_arguments {
            self.parts.push(Part::Arguments { index: self.n_calls, text: arguments.to_string() });
        }
        let new_id = begun.id.is_none().then(|| self.id(id));
        let id = begun.id.or_else(|| new_id.clone()).unwrap_or_default();
        self.own_ids.insert(id.clone());
        let call = ToolCall { id, name: name.to_owned(), arguments };
        let source = std::mem::take(&mut self.attempt);
        self.parts.push(Part::End { index: self.n_calls, id: new_id, call, source });
        self.n_calls += 1;
        self.is_rejected = false;
    }

    /// Turns the attempt into text, and reports a malformed call.
    pub(super) fn reject(&mut self, name: Option<String>, reason: String) {
        let malformed = self.give_up(name, reason);
        self.report(malformed);
        self.is_rejected = true;
    }

    /// Turns the attempt into text, and returns the report.
    pub(super) fn give_up(&mut self, name: Option<String>, reason: String) -> MalformedCall {
        let begun = self.begun.take();
        let index = begun.as_ref().map(|_| self.n_calls);
        let name = name.or_else(|| begun.map(|begun| begun.name));
        let source = std::mem::take(&mut self.attempt);
        self.parts.push(Part::Text(source.clone()));
        MalformedCall { index, name, text: source.trim_start().to_owned(), reason }
    }

    pub(super) fn report(&mut self, mut malformed: MalformedCall) {
        malformed.text.truncate(malformed.text.trim_end().len());
        self.parts.push(Part::Malformed(malformed));
    }

    /// Adds the rest of an attempt to the calls before it, except for white space at its end.
    pub(super) fn drop_attempt(&mut self) {
        let mut source = std::mem::take(&mut self.attempt);
        let space = source.split_off(source.trim_end().len());
        self.parts.extend([Part::Dropped(source), Part::Gap(space)]);
    }
}

/// Consumes white space.
pub(super) fn skip_space(input: &mut Input, out: &mut Out) {
    while input.rest().starts_with(|c: char| c.is_whitespace()) {
        out.attempt.extend(input.next());
    }
}

/// Moves the next text of a value without quotes to `value`, and its end mark out of the input; returns whether the value is
/// complete. It ends at the `end` that one of `next` follows, so that one inside it ends nothing.
pub(super) fn take_value(value: &mut String, end: &str, next: &[&str], input: &mut Input, out: &mut Out) -> bool {
    loop {
        let rest = input.rest();
        let (n, ends) = match rest.find(end) {
            Some(at) => {
                let after = rest[at + end.len()..].trim_start();
                if next.iter().any(|mark| after.starts_with(mark)) {
                    (at, Some(true))
                } else if next.iter().any(|mark| mark.starts_with(after)) {
                    (at, None)
                } else {
                    (at + end.len(), Some(false))
                }
            }
            None => (rest.len() - overlap(rest, end), None),
        };
        let new = input.take(n);
        *value += &new;
        out.attempt += &new;
        match ends {
            Some(true) => {
                out.attempt += &input.take(end.len());
                return true;
            }
            Some(false) => {}
            None => return false,
        }
    }
}

/// What a format makes of a piece of a call.
pub(super) enum Step {
    /// There may be more to read.
    On,
    /// More text is needed.
    Wait,
    /// The call is complete.
    Done,
}

/// How many bytes at the end of `text` may be the beginning of `mark`.
pub(super) fn overlap(text: &str, mark: &str) -> usize {
    (1..mark.len().min(text.len() + 1))
        .rev()
        .find(|&n| mark.is_char_boundary(n) && text.as_bytes().ends_with(&mark.as_bytes()[..n]))
        .unwrap_or(0)
}
