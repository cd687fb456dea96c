//! Parses an answer into parts: see the module [`tools`](super) for the states and the rules.

use std::collections::HashSet;
use std::sync::Arc;

use super::calls::JsonCalls;
use super::gemma::Gemma;
use super::harmony::Harmony;
use super::named::Named;
pub(super) use super::out::{Input, Out, overlap, skip_space};
use super::pairs::Pairs;
use super::python::Python;
use super::section::{FENCE, SectionCall};
use super::style::{Mark, ReasoningStyle, ToolStyle};
use super::xml::Xml;
use super::{MalformedCall, Tool, ToolCall};

/// The mark of calls that have a line each.
const LINES: &str = "<function_calls>";

/// The most bytes of a name or an id; longer text is neither.
pub(super) const MAX_NAME_BYTES: usize = 256;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    /// Text of the answer.
    Text(String),
    /// Reasoning of the model.
    Reasoning(String),
    /// A call begins: its name is known, and its id unless that may come later.
    Begin { index: usize, id: Option<String>, name: String },
    /// The next piece of its arguments.
    Arguments { index: usize, text: String },
    /// The call is complete. `id` is there if it did not come with the name.
    End { index: usize, id: Option<String>, call: ToolCall, source: String },
    /// Text that looked like a call is none; it was emitted as text.
    Malformed(MalformedCall),
    /// Marks, and white space inside them.
    Dropped(String),
    /// White space around a call or reasoning; dropped, unless text comes both before and after it.
    Gap(String),
    /// A gap that turned out to be text, because text follows. Its source was emitted already.
    Regained(String),
    /// The separator between two blocks of reasoning. It has no source.
    Between(&'static str),
}

/// The properties of a conversation that a parser needs.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) style: ToolStyle,
    /// `None` if the style is not known: then all known marks are recognised at the beginning of an answer.
    pub(crate) reasoning: Option<ReasoningStyle>,
    /// The style of reasoning that the prompt ends inside of, if it does.
    pub(crate) opened: Option<ReasoningStyle>,
    /// Without tools, nothing is a call.
    pub(crate) tools: Arc<[Tool]>,
    /// Ids of earlier calls of the conversation.
    pub(crate) taken_ids: Arc<HashSet<String>>,
    /// Number of earlier calls.
    pub(crate) n_earlier: usize,
}

/// What a format decides about the text so far.
#[derive(Debug)]
pub(super) enum Outcome {
    /// More text is needed.
    Wait,
    /// Its value is complete.
    Done,
    /// It is ordinary text.
    Text,
    /// It began like a call, but is none.
    Broken { name: Option<String>, reason: String },
}

#[derive(Debug)]
pub(super) enum State {
    Text,
    /// All of an answer in messages with headers.
    Harmony(Harmony),
    Reasoning {
        end: &'static str,
        start: &'static str,
        has_begun: bool,
    },
    #[expect(private_interfaces, reason = "only this module has calls")]
    Call(Call),
    /// Text that began like a call continues as text, up to the end mark or the end of the line.
    Broken {
        end: Option<&'static str>,
        report: MalformedCall,
    },
}

/// Consecutive calls of one format.
#[derive(Debug)]
struct Call {
    mark: Option<&'static Mark>,
    /// The mark that may close it.
    end: Option<&'static str>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// After the mark.
    Opening,
    Json(Box<JsonCalls>),
    Named(Named),
    Python(Box<Python>),
    Xml(Box<Xml>),
    Pairs(Box<Pairs>),
    Section(Box<SectionCall>),
    Gemma(Box<Gemma>),
    /// After a value.
    After,
    /// After the end mark.
    Closing,
}

/// Reads one answer.
#[derive(Debug)]
pub(crate) struct Parser {
    style: ToolStyle,
    /// Start marks of reasoning that count anywhere, and those that count only at the beginning.
    anywhere: Vec<ReasoningStyle>,
    at_beginning: Vec<ReasoningStyle>,
    pub(super) input: Input,
    pub(super) state: State,
    /// Whether there was only white space and reasoning so far.
    is_beginning: bool,
    /// White space that is held back, and whether it follows a call or reasoning.
    pub(super) space: String,
    pub(super) is_after: bool,
    /// White space around calls and reasoning since the last text; `None` before the first.
    gap: Option<String>,
    /// Whether there was reasoning, and whether its block has ended.
    pub(super) has_reasoned: bool,
    pub(super) is_between: bool,
    line: Line,
    pub(super) out: Out,
    /// Of an answer in messages: whether reasoning is told from text, whether there was text, and whether the next text
    /// belongs to another message.
    pub(super) reads_reasoning: bool,
    pub(super) has_said: bool,
    pub(super) needs_break: bool,
}

/// The position of the text in its line, and in a fenced block.
#[derive(Debug, Clone, Default)]
struct Line {
    /// The beginning of the line, without the white space before it; only as much as a fence has.
    begin: String,
    is_fenced: bool,
}

impl Line {
    fn push(&mut self, text: &str) {
        for c in text.chars() {
            if c == '\n' {
                self.begin.clear();
            } else if self.begin.len() < FENCE.len() && !(self.begin.is_empty() && c.is_whitespace()) {
                self.begin.push(c);
                self.is_fenced ^= self.begin == FENCE;
            }
        }
    }

    /// Whether reasoning may begin here.
    fn is_free(&self) -> bool {
        self.begin.is_empty() && !self.is_fenced
    }
}

impl Parser {
    pub(crate) fn new(setup: &Setup) -> Self {
        let (anywhere, at_beginning) = match setup.reasoning {
            None => (Vec::new(), ReasoningStyle::ALL.to_vec()),
            Some(ReasoningStyle::None) => (Vec::new(), Vec::new()),
            Some(style) => (vec![style], Vec::new()),
        };
        let is_harmony = setup.style == ToolStyle::Harmony;
        let state = match setup.opened.and_then(ReasoningStyle::marks) {
            Some(_) if is_harmony && setup.opened == Some(ReasoningStyle::Harmony) => {
                State::Harmony(Harmony::Reasoning)
            }
            None if is_harmony => State::Harmony(Harmony::Header),
            Some((start, end)) => State::Reasoning { end, start, has_begun: false },
            None => State::Text,
        };
        Self {
            style: setup.style,
            anywhere,
            at_beginning,
            input: Input::default(),
            state,
            is_beginning: true,
            space: String::new(),
            is_after: false,
            gap: None,
            has_reasoned: false,
            is_between: false,
            line: Line::default(),
            out: Out::new(setup),
            reads_reasoning: setup.reasoning != Some(ReasoningStyle::None),
            has_said: false,
            needs_break: false,
        }
    }

    /// Takes the next text, and returns the parts that are certain now.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Part> {
        self.input.text.push_str(text);
        while self.step() {}
        self.input.compact();
        self.take_parts()
    }

    /// Ends the answer; `reason` is the reason of calls that were cut.
    pub(crate) fn finish(&mut self, reason: &str) -> Vec<Part> {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text => {
                let rest = self.take_rest();
                self.text(&rest);
            }
            State::Harmony(state) => self.finish_harmony(state, reason),
            State::Reasoning { .. } => {
                let rest = self.take_rest();
                self.reasoning(&rest);
            }
            State::Call(Call { body: Body::After | Body::Closing, .. }) => {
                self.out.drop_attempt();
                self.is_after = true;
                let rest = self.take_rest();
                self.text(&rest);
            }
            State::Call(Call { mark, body, .. }) => {
                let rest = self.take_rest();
                self.out.attempt += &rest;
                let is_call = match &body {
                    Body::Json(json) => mark.is_some() || json.has_name(&self.out),
                    _ => true,
                };
                if is_call {
                    self.out.reject(None, format!("the answer ended inside it, by `{reason}`"));
                } else {
                    let text = std::mem::take(&mut self.out.attempt);
                    self.out.parts.push(Part::Text(text));
                }
            }
            State::Broken { mut report, .. } => {
                let rest = self.take_rest();
                report.text += &rest;
                self.out.parts.push(Part::Text(rest));
                self.out.report(report);
            }
        }
        let space = std::mem::take(&mut self.space);
        self.put_space(space);
        self.take_parts()
    }

    /// The mark that ends the current reasoning, if there is any.
    pub(crate) fn reasoning_end(&self) -> Option<&'static str> {
        match self.state {
            State::Reasoning { end, .. } => Some(end),
            State::Harmony(Harmony::Reasoning) => ReasoningStyle::Harmony.marks().map(|(_, end)| end),
            _ => None,
        }
    }

    /// The text that is held back because it may be the beginning of a mark.
    pub(crate) fn held(&self) -> &str {
        self.input.rest()
    }

    fn take_parts(&mut self) -> Vec<Part> {
        let mut parts = Vec::with_capacity(self.out.parts.len());
        for part in std::mem::take(&mut self.out.parts) {
            match &part {
                Part::Text(text) | Part::Dropped(text) | Part::Gap(text) if text.is_empty() => continue,
                Part::Text(_) => {
                    let gap = self.gap.replace(String::new());
                    parts.extend(gap.filter(|gap| !gap.is_empty()).map(Part::Regained));
                }
                Part::Gap(space) => {
                    if let Some(gap) = &mut self.gap {
                        *gap += space;
                    }
                }
                Part::End { source, .. } => {
                    // White space before a call was held back until it was certain to be a call.
                    if let Some(gap) = &mut self.gap {
                        *gap += &source[..source.len() - source.trim_start().len()];
                    }
                }
                _ => {}
            }
            parts.push(part);
        }
        parts
    }

    fn take_rest(&mut self) -> String {
        self.input.take(usize::MAX)
    }

    /// Makes one step; returns `false` if it needs more text.
    fn step(&mut self) -> bool {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text => self.step_text(),
            State::Harmony(state) => self.step_harmony(state),
            State::Reasoning { end, start, has_begun } => self.step_reasoning(end, start, has_begun),
            State::Call(call) => self.step_call(call),
            State::Broken { end, report } => self.step_broken(end, report),
        }
    }

    /// Emits text, except for the white space at its end.
    pub(super) fn text(&mut self, text: &str) {
        self.line.push(text);
        let body = text.trim_end();
        if !body.is_empty() {
            let space = std::mem::take(&mut self.space);
            let n_leading = if self.is_after { body.len() - body.trim_start().len() } else { 0 };
            let (leading, body) = body.split_at(n_leading);
            self.put_space(space + leading);
            self.out.parts.push(Part::Text(body.to_owned()));
            (self.is_after, self.is_beginning) = (false, false);
        }
        self.space += &text[text.trim_end().len()..];
    }

    /// White space after text is text; after anything else it is a gap.
    fn put_space(&mut self, space: String) {
        if !space.is_empty() {
            self.out.parts.push(if self.is_after { Part::Gap(space) } else { Part::Text(space) });
        }
    }

    pub(super) fn reasoning(&mut self, text: &str) {
        let body = text.trim_end();
        if !body.is_empty() {
            let space = std::mem::take(&mut self.space);
            if std::mem::take(&mut self.is_between) {
                self.out.parts.push(Part::Between("\n\n"));
            }
            self.has_reasoned = true;
            self.out.parts.push(Part::Reasoning(space + body));
        }
        self.space += &text[body.len()..];
        // Whether more reasoning follows is known only when the block has ended.
        self.is_after = true;
    }

    fn step_text(&mut self) -> bool {
        if self.is_beginning {
            let rest = self.input.rest();
            let n_space = rest.len() - rest.trim_start().len();
            self.space += &self.input.take(n_space);
            if self.input.rest().is_empty() {
                return false;
            }
            match self.beginning() {
                Some(true) => return true,
                Some(false) => self.is_beginning = false,
                None => return false,
            }
        }
        let marks = if self.out.tools.is_empty() { &[][..] } else { self.style.marks() };
        let rest = self.input.rest();
        let call = marks.iter().filter_map(|mark| Some((rest.find(mark.text)?, Some(mark), mark.text)));
        let thoughts = self.anywhere.iter().filter_map(|style| style.marks());
        // A mark in the middle of a line, or in a fenced block, is text about marks.
        let first = |start: &'static str| {
            let (mut line, mut from) = (self.line.clone(), 0);
            rest.match_indices(start).map(|(at, _)| at).find(|&at| {
                line.push(&rest[from..at]);
                from = at;
                line.is_free()
            })
        };
        let thought = thoughts.clone().filter_map(|(start, _)| Some((first(start)?, None, start)));
        let Some((at, mark, text)) = call.chain(thought).min_by_key(|found| found.0) else {
            let all = marks.iter().map(|mark| mark.text).chain(thoughts.map(|(start, _)| start));
            let kept = all.map(|mark| overlap(rest, mark)).max().unwrap_or(0);
            let text = self.input.take(rest.len() - kept);
            self.text(&text);
            return false;
        };
        let before = self.input.take(at);
        self.text(&before);
        match mark {
            Some(mark) => self.begin_call(mark),
            None => self.begin_reasoning(text),
        }
        true
    }

    /// At the first character of an answer: whether something other than text begins; `None` if that is not certain
    /// yet.
    fn beginning(&mut self) -> Option<bool> {
        let mut is_open = false;
        for style in self.at_beginning.iter().chain(&self.anywhere) {
            let Some((start, _)) = style.marks() else { continue };
            match self.input.begins(start) {
                Some(true) => {
                    self.begin_reasoning(start);
                    return Some(true);
                }
                Some(false) => {}
                None => is_open = true,
            }
        }
        if self.out.tools.is_empty() {
            return if is_open { None } else { Some(false) };
        }
        for mark in self.style.marks() {
            match self.input.begins(mark.text) {
                Some(true) => {
                    self.begin_call(mark);
                    return Some(true);
                }
                Some(false) => {}
                None => is_open = true,
            }
        }
        if is_open {
            return None;
        }
        let rest = self.input.rest();
        let (end, body) = match rest.as_bytes().first() {
            Some(b'{') => (None, Body::Json(Box::new(JsonCalls::new(false)))),
            Some(b'[') => match rest[1..].trim_start().chars().next()? {
                '{' => (None, Body::Json(Box::new(JsonCalls::new(false)))),
                c if (c.is_alphabetic() || c == '_') && self.style.is_pythonic() => {
                    (None, Body::Python(Box::new(Python::list(false))))
                }
                _ => return Some(false),
            },
            Some(b'`') => {
                let fence = "```";
                if !self.input.begins(fence)? {
                    return Some(false);
                }
                let (language, body) = rest[fence.len()..].split_once('\n')?;
                if !["", "json"].contains(&language.trim()) {
                    return Some(false);
                }
                let n_space = body.len() - body.trim_start().len();
                if !matches!(body[n_space..].chars().next()?, '{' | '[') {
                    return Some(false);
                }
                let n_fence = fence.len() + language.len() + 1 + n_space;
                self.out.attempt = self.input.take(n_fence);
                (Some(fence), Body::Json(Box::new(JsonCalls::new(false))))
            }
            _ => return Some(false),
        };
        self.begin_attempt();
        self.state = State::Call(Call { mark: None, end, body });
        Some(true)
    }

    /// Makes the text that was held back the beginning of a possible call.
    fn begin_attempt(&mut self) {
        let space = std::mem::take(&mut self.space);
        if self.is_after {
            self.put_space(space);
        } else {
            self.out.attempt.insert_str(0, &space);
        }
    }

    fn begin_call(&mut self, mark: &'static Mark) {
        self.out.attempt = self.input.take(mark.text.len());
        self.out.has_late_ids = self.style.has_late_ids(Some(mark));
        self.begin_attempt();
        self.is_beginning = false;
        self.state = State::Call(Call { mark: Some(mark), end: mark.end, body: Body::Opening });
    }

    fn begin_reasoning(&mut self, mark: &str) {
        let space = std::mem::take(&mut self.space);
        let mark_taken = self.input.take(mark.len());
        self.out.parts.extend([Part::Gap(space), Part::Dropped(mark_taken)]);
        let marks = ReasoningStyle::ALL.into_iter().filter_map(ReasoningStyle::marks);
        if let Some((start, end)) = marks.into_iter().find(|(start, _)| *start == mark) {
            self.state = State::Reasoning { end, start, has_begun: false };
        }
    }

    fn step_reasoning(&mut self, end: &'static str, start: &'static str, mut has_begun: bool) -> bool {
        if !has_begun {
            // The model repeats the mark that ended the prompt.
            let rest = self.input.rest();
            let n_space = rest.len() - rest.trim_start().len();
            let dropped = self.input.take(n_space);
            self.out.parts.push(Part::Dropped(dropped));
            match self.input.begins(start) {
                Some(true) => {
                    let dropped = self.input.take(start.len());
                    self.out.parts.push(Part::Dropped(dropped));
                    self.state = State::Reasoning { end, start, has_begun };
                    return true;
                }
                Some(false) => has_begun = true,
                None => {
                    self.state = State::Reasoning { end, start, has_begun };
                    return false;
                }
            }
        }
        let rest = self.input.rest();
        let Some(at) = rest.find(end) else {
            let kept = overlap(rest, end);
            let text = self.input.take(rest.len() - kept);
            self.reasoning(&text);
            self.state = State::Reasoning { end, start, has_begun };
            return false;
        };
        let text = self.input.take(at);
        self.reasoning(&text);
        let dropped = std::mem::take(&mut self.space) + &self.input.take(end.len());
        self.out.parts.push(Part::Dropped(dropped));
        self.is_between = self.has_reasoned;
        self.end_block();
        true
    }

    fn step_call(&mut self, mut call: Call) -> bool {
        let (input, out) = (&mut self.input, &mut self.out);
        let outcome = match &mut call.body {
            Body::Opening => match Self::open(self.style, call.mark, input, out) {
                Ok(Some(body)) => {
                    call.body = body;
                    self.state = State::Call(call);
                    return true;
                }
                Ok(None) => Outcome::Wait,
                // No value has begun that an end mark could end.
                Err(reason) => {
                    call.end = None;
                    Outcome::Broken { name: None, reason }
                }
            },
            Body::Json(json) => json.feed(input, out),
            Body::Named(named) => named.feed(input, out),
            Body::Python(python) => python.feed(input, out),
            Body::Xml(xml) => xml.feed(input, out),
            Body::Pairs(pairs) => pairs.feed(input, out),
            Body::Section(section) => section.feed(input, out),
            Body::Gemma(gemma) => gemma.feed(input, out),
            Body::After => return self.step_after(call),
            Body::Closing => return self.step_closing(call),
        };
        match outcome {
            Outcome::Wait => {
                self.state = State::Call(call);
                false
            }
            Outcome::Done => {
                call.body = Body::After;
                self.is_beginning = false;
                self.state = State::Call(call);
                true
            }
            Outcome::Text => {
                let text = std::mem::take(&mut self.out.attempt);
                self.is_beginning = false;
                self.text(&text);
                true
            }
            Outcome::Broken { name, reason } => {
                self.is_beginning = false;
                let report = self.out.give_up(name, reason);
                self.line.push(&report.text);
                self.is_after = false;
                self.state = State::Broken { end: call.end, report };
                true
            }
        }
    }

    /// Chooses the format of the text that follows a mark.
    fn open(style: ToolStyle, mark: Option<&Mark>, input: &mut Input, out: &mut Out) -> Result<Option<Body>, String> {
        let section = mark.and_then(|mark| mark.section);
        let mark = mark.map_or("", |mark| mark.text);
        let json = || Ok(Some(Body::Json(Box::new(JsonCalls::new(true)))));
        if mark == "<function=" {
            return Ok(Some(Body::Xml(Box::new(Xml::named()))));
        }
        skip_space(input, out);
        let Some(first) = input.rest().chars().next() else { return Ok(None) };
        if let Some(marks) = section.filter(|_| first == '<') {
            return Ok(Some(Body::Section(Box::new(SectionCall::new(marks)))));
        }
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        match (mark, first) {
            ("<|python_tag|>" | "<|tool_call_start|>" | LINES, '[') => {
                match input.rest()[1..].trim_start().chars().next() {
                    None => Ok(None),
                    Some('{') => json(),
                    Some(_) => Ok(Some(Body::Python(Box::new(Python::list(true))))),
                }
            }
            (_, '{' | '[') => json(),
            ("<tool_call>" | "<seed:tool_call>", '<') => match input.begins("<function=") {
                Some(true) => Ok(Some(Body::Xml(Box::new(Xml::new())))),
                Some(false) => Err("neither JSON nor a function follows its mark".to_owned()),
                None => Ok(None),
            },
            ("<tool_call>", c) if is_name(c) && matches!(style, ToolStyle::Glm | ToolStyle::Generic) => {
                Ok(Some(Body::Pairs(Box::new(Pairs::new()))))
            }
            ("<|tool_call>", c) if is_name(c) => Ok(Some(Body::Gemma(Box::new(Gemma::new())))),
            ("<|python_tag|>" | LINES, c) if is_name(c) => Ok(Some(Body::Python(Box::new(Python::one())))),
            ("[TOOL_CALLS]", c) if is_name(c) => Ok(Some(Body::Named(Named::new()))),
            _ => Err("no call follows its mark".to_owned()),
        }
    }

    /// After a value: another value, the end mark, or something else.
    fn step_after(&mut self, mut call: Call) -> bool {
        skip_space(&mut self.input, &mut self.out);
        if let Some(marks) = call.mark.and_then(|mark| mark.section) {
            for mark in [FENCE, marks.end, marks.begin] {
                match self.input.begins(mark) {
                    Some(false) => continue,
                    Some(true) if mark == marks.begin => call.body = Body::Section(Box::new(SectionCall::new(marks))),
                    Some(true) => self.out.attempt += &self.input.take(mark.len()),
                    None => {
                        self.state = State::Call(call);
                        return false;
                    }
                }
                self.state = State::Call(call);
                return true;
            }
        }
        let ends = call.end.map_or(Some(false), |end| self.input.begins(end));
        let is_xml = call.mark.is_some_and(|mark| ["<tool_call>", "<seed:tool_call>"].contains(&mark.text));
        let is_line = call.mark.is_some_and(|mark| mark.text == LINES);
        let function = if is_xml { self.input.begins("<function=") } else { Some(false) };
        let next = self.input.rest().chars().next();
        let (Some(ends), Some(function), Some(next)) = (ends, function, next) else {
            self.state = State::Call(call);
            return false;
        };
        if ends {
            let end = call.end.map_or(0, str::len);
            self.out.attempt += &self.input.take(end);
            if std::mem::take(&mut self.out.is_rejected) {
                let text = std::mem::take(&mut self.out.attempt);
                self.out.parts.push(Part::Text(text));
                self.is_after = false;
                return true;
            }
            if let Some(outer) = call.mark.and_then(|mark| mark.outer) {
                (call.end, call.body) = (Some(outer), Body::Closing);
                self.state = State::Call(call);
                return true;
            }
        } else if is_line && (next.is_alphabetic() || ['_', '['].contains(&next)) {
            call.body = Body::Opening;
            self.state = State::Call(call);
            return true;
        } else if function {
            call.body = Body::Xml(Box::new(Xml::new()));
            self.state = State::Call(call);
            return true;
        } else if next == '{' || (next == '[' && call.mark.is_some_and(|mark| mark.end.is_some())) {
            call.body = Body::Json(Box::new(JsonCalls::new(call.mark.is_some())));
            self.state = State::Call(call);
            return true;
        } else if next == ';' {
            self.out.attempt.extend(self.input.next());
            self.state = State::Call(call);
            return true;
        }
        self.out.drop_attempt();
        self.end_block();
        true
    }

    /// After the end mark of calls that are in something else, whose end may follow.
    fn step_closing(&mut self, call: Call) -> bool {
        skip_space(&mut self.input, &mut self.out);
        let end = call.end.unwrap_or_default();
        match self.input.begins(end) {
            None => {
                self.state = State::Call(call);
                return false;
            }
            Some(true) => self.out.attempt += &self.input.take(end.len()),
            Some(false) => {}
        }
        self.out.drop_attempt();
        self.end_block();
        true
    }

    /// Ends a call or a block of reasoning; another may follow.
    fn end_block(&mut self) {
        self.is_after = true;
        self.line.begin.clear();
    }

    fn step_broken(&mut self, end: Option<&'static str>, mut report: MalformedCall) -> bool {
        let rest = self.input.rest();
        let (stop, n_taken) = match end {
            Some(end) => (rest.find(end), end.len()),
            None => (rest.find('\n'), 0),
        };
        let marks = self.style.marks().iter().map(|mark| mark.text);
        let next = marks.clone().filter_map(|mark| rest.find(mark)).min();
        let n = match (stop, next) {
            (Some(stop), next) if next.is_none_or(|next| stop < next) => stop + n_taken,
            (_, Some(next)) => next,
            _ => {
                let kept = marks.chain(end).map(|mark| overlap(rest, mark)).max().unwrap_or(0);
                let text = self.input.take(rest.len() - kept);
                report.text += &text;
                self.line.push(&text);
                self.out.parts.push(Part::Text(text));
                self.state = State::Broken { end, report };
                return false;
            }
        };
        let text = self.input.take(n);
        report.text += &text;
        self.line.push(&text);
        self.out.parts.push(Part::Text(text));
        self.out.report(report);
        true
    }
}
