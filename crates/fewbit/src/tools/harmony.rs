//! gpt-oss's answers, in the format that is called harmony: messages, each with a header that names its channel.
//!
//! ```text
//! <|channel|>analysis<|message|>REASONING<|end|><|start|>assistant<|channel|>final<|message|>TEXT<|return|>
//! <|channel|>commentary to=functions.f <|constrain|>json<|message|>{..}<|call|>
//! ```
//! The prompt ends with `<|start|>assistant`, so that an answer begins with the rest of a header. The channel `analysis`
//! is reasoning; a message to one of the `functions` is a call, whatever its channel; everything else is text for the
//! user. The recipient may also stand before the channel. The marks at the end of a message are part of the header that
//! follows. An answer without headers is text.

use super::named::Arguments;
use super::out::overlap;
use super::parser::{Parser, Part, State};
#[cfg(feature = "constraints")]
use fewbit_tokenizer::{SpecialTokens, Tokenizer};

/// The end of a header.
const MESSAGE: &str = "<|message|>";
const CHANNEL: &str = "<|channel|>";

/// Marks at which a message ends: its own end, or the header of the next.
const ENDS: [&str; 5] = ["<|end|>", "<|call|>", "<|return|>", "<|start|>", CHANNEL];

/// How a header can begin.
const BEGINNINGS: [&str; 2] = ["<|", "to="];

/// Longer text is no header.
const MAX_HEADER_BYTES: usize = 1024;

/// All marks that are tokens of the vocabulary.
pub(crate) const MARKS: [&str; 7] =
    ["<|start|>", "<|end|>", MESSAGE, CHANNEL, "<|constrain|>", "<|call|>", "<|return|>"];

/// The place in an answer.
#[derive(Debug)]
pub(super) enum Harmony {
    /// Before the text of a message.
    Header,
    Text,
    Reasoning,
    /// The arguments of a call of this tool.
    Call {
        name: String,
        arguments: Box<Arguments>,
    },
}

/// The tokens of the header of the final answer, for text that a constraint writes: it is no place for a header. `None`
/// if the vocabulary has no such marks.
#[cfg(feature = "constraints")]
pub(crate) fn final_header(tokenizer: &Tokenizer) -> Option<Vec<u32>> {
    let (channel, message) = (tokenizer.id_of(CHANNEL)?, tokenizer.id_of(MESSAGE)?);
    let word = tokenizer.encode("final", SpecialTokens::Plain);
    Some([&[channel][..], &word, &[message]].concat())
}

/// What a header says.
fn read_header(header: &str) -> (Option<&str>, Option<&str>) {
    let word = |after: &str| {
        let rest = &header[header.find(after)? + after.len()..];
        let word = rest.split(|c: char| c.is_whitespace() || c == '<').next()?;
        (!word.is_empty()).then_some(word)
    };
    (word(CHANNEL), word("to="))
}

impl Parser {
    /// Makes one step; returns `false` if it needs more text.
    pub(super) fn step_harmony(&mut self, state: Harmony) -> bool {
        match state {
            Harmony::Header => self.step_header(),
            Harmony::Text => self.step_message(false),
            Harmony::Reasoning => self.step_message(true),
            Harmony::Call { name, arguments } => self.step_arguments(name, arguments),
        }
    }

    fn step_header(&mut self) -> bool {
        let rest = self.input.rest();
        let header = rest.trim_start();
        let begins = |beginning: &&str| header.starts_with(*beginning);
        let (is_header, may_be) =
            (BEGINNINGS.iter().any(begins), BEGINNINGS.iter().any(|beginning| beginning.starts_with(header)));
        match rest.find(MESSAGE).filter(|_| is_header) {
            Some(at) => {
                let header = self.input.take(at + MESSAGE.len());
                self.begin_message(header);
                true
            }
            None if may_be || (is_header && rest.len() < MAX_HEADER_BYTES) => {
                self.state = State::Harmony(Harmony::Header);
                false
            }
            None => {
                // At least one character, so that a mark in the text cannot lead here again.
                let text = self.input.next().map(String::from).unwrap_or_default();
                self.say(&text);
                self.state = State::Harmony(Harmony::Text);
                true
            }
        }
    }

    fn begin_message(&mut self, header: String) {
        let (channel, recipient) = read_header(&header);
        let is_reasoning = channel == Some("analysis") && self.reads_reasoning;
        let source = std::mem::take(&mut self.space) + &header;
        let name = recipient.map(|to| to.strip_prefix("functions.").unwrap_or(to)).filter(|to| *to != "assistant");
        match name.filter(|_| !self.out.tools.is_empty()) {
            Some(name) => {
                self.out.attempt = source;
                self.out.begin(name, None);
                let name = name.to_owned();
                self.state = State::Harmony(Harmony::Call { name, arguments: Box::new(Arguments::new()) });
            }
            None => {
                self.out.parts.push(Part::Dropped(source));
                self.is_after = true;
                self.needs_break = self.has_said;
                self.state = State::Harmony(if is_reasoning { Harmony::Reasoning } else { Harmony::Text });
            }
        }
    }

    /// Emits text of a message.
    fn say(&mut self, text: &str) {
        if !text.trim().is_empty() {
            if std::mem::take(&mut self.needs_break) {
                self.out.parts.push(Part::Regained("\n\n".to_owned()));
            }
            self.has_said = true;
        }
        self.text(text);
    }

    fn step_message(&mut self, is_reasoning: bool) -> bool {
        let rest = self.input.rest();
        let end = ENDS.iter().filter_map(|mark| rest.find(mark)).min();
        let n = match end {
            Some(at) => at,
            None => rest.len() - ENDS.iter().map(|mark| overlap(rest, mark)).max().unwrap_or(0),
        };
        let text = self.input.take(n);
        match is_reasoning {
            true => self.reasoning(&text),
            false => self.say(&text),
        }
        if end.is_some() {
            self.is_between |= is_reasoning && self.has_reasoned;
            self.state = State::Harmony(Harmony::Header);
            return true;
        }
        self.state = State::Harmony(if is_reasoning { Harmony::Reasoning } else { Harmony::Text });
        false
    }

    fn step_arguments(&mut self, name: String, mut arguments: Box<Arguments>) -> bool {
        while arguments.is_empty() && self.input.rest().starts_with(|c: char| c.is_whitespace()) {
            self.out.attempt.extend(self.input.next());
        }
        match arguments.feed(&mut self.input, &mut self.out) {
            Ok(None) => {
                self.state = State::Harmony(Harmony::Call { name, arguments });
                false
            }
            Ok(Some(value)) => {
                self.out.complete(&name, None, value);
                self.is_after = true;
                self.state = State::Harmony(Harmony::Header);
                true
            }
            Err(reason) => {
                let report = self.out.give_up(Some(name), reason);
                self.out.report(report);
                self.is_after = false;
                self.state = State::Harmony(Harmony::Text);
                true
            }
        }
    }

    /// Ends an answer; `reason` is the reason of a call that was cut.
    pub(super) fn finish_harmony(&mut self, state: Harmony, reason: &str) {
        let rest = self.input.take(usize::MAX);
        match state {
            Harmony::Header if BEGINNINGS.iter().any(|beginning| rest.trim_start().starts_with(beginning)) => {
                let source = std::mem::take(&mut self.space) + &rest;
                self.out.parts.push(Part::Dropped(source));
            }
            Harmony::Header | Harmony::Text => self.say(&rest),
            Harmony::Reasoning => self.reasoning(&rest),
            Harmony::Call { name, .. } => {
                self.out.attempt += &rest;
                self.out.reject(Some(name), format!("the answer ended inside it, by `{reason}`"));
            }
        }
    }
}
