//! Converts the parts of an answer into the pieces of a stream, and collects them.

use super::parser::{Parser, Part, Setup};
use super::{MalformedCall, ReasoningStyle, ToolCall, ToolCallDelta};
use crate::completion::{Completion, FinishReason, Piece};
use crate::error::Error;
use crate::model::Model;
use crate::session::Run;

/// An answer, separated into text, reasoning and calls.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<ToolCall>,
    pub(crate) malformed: Vec<MalformedCall>,
}

impl Answer {
    pub(crate) fn put_into(self, completion: &mut Completion) {
        completion.text = self.text;
        completion.reasoning = self.reasoning;
        completion.tool_calls = self.calls;
        completion.malformed_calls = self.malformed;
        completion.finish_reason = reason(completion.finish_reason, !completion.tool_calls.is_empty());
    }
}

/// Why an answer ended, depending on whether it has calls.
pub(crate) fn reason(of_text: FinishReason, has_calls: bool) -> FinishReason {
    if has_calls && of_text == FinishReason::EndOfGeneration { FinishReason::ToolCalls } else { of_text }
}

impl Setup {
    /// For an answer that can have no calls.
    pub(crate) fn without_tools(model: &Model, opened: Option<ReasoningStyle>) -> Self {
        Self {
            style: model.tool_style(),
            reasoning: model.reasoning_style(),
            opened,
            tools: [].into(),
            taken_ids: std::sync::Arc::default(),
            n_earlier: 0,
        }
    }
}

/// Reads an answer as it is generated.
#[derive(Debug)]
pub(crate) struct Reader {
    parser: Parser,
    answer: Answer,
    /// Whether the answer ends after its first call.
    one_call: bool,
    is_finished: bool,
}

impl Reader {
    pub(crate) fn new(setup: &Setup, one_call: bool) -> Self {
        Self { parser: Parser::new(setup), answer: Answer::default(), one_call, is_finished: false }
    }

    pub(crate) fn answer(&self) -> &Answer {
        &self.answer
    }

    pub(crate) fn into_answer(self) -> Answer {
        self.answer
    }

    /// Whether there is a call, and no other is allowed.
    pub(crate) fn is_enough(&self) -> bool {
        self.one_call && !self.answer.calls.is_empty()
    }

    /// Converts an item of the run into one for the caller.
    pub(crate) fn read(&mut self, run: &mut Run, item: Option<Result<Piece, Error>>) -> Option<Result<Piece, Error>> {
        let mut piece = match item {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => {
                self.is_finished = true;
                return Some(Err(error));
            }
            None if self.is_finished => return None,
            None => Piece::default(),
        };
        self.push(&mut piece);
        if self.is_enough() {
            run.stop();
        }
        if let Some(reason) = run.finish_reason() {
            self.finish(reason, &mut piece);
        }
        (piece != Piece::default()).then_some(Ok(piece))
    }

    /// Replaces the raw text of a piece by its text, reasoning and calls.
    pub(crate) fn push(&mut self, piece: &mut Piece) {
        let text = std::mem::take(&mut piece.text);
        if !self.is_finished && !self.is_enough() {
            let parts = self.parser.push(&text);
            self.put(parts, piece);
        }
    }

    /// Ends the answer: adds the text that was held back to the last piece.
    pub(crate) fn finish(&mut self, reason: FinishReason, piece: &mut Piece) {
        if !std::mem::replace(&mut self.is_finished, true) && !self.is_enough() {
            let parts = self.parser.finish(reason.as_str());
            self.put(parts, piece);
        }
    }

    fn put(&mut self, parts: Vec<Part>, piece: &mut Piece) {
        let calls = &mut piece.tool_calls;
        for part in parts {
            match part {
                Part::Text(text) | Part::Regained(text) => {
                    piece.text += &text;
                    self.answer.text += &text;
                }
                Part::Reasoning(text) => {
                    piece.reasoning += &text;
                    self.answer.reasoning += &text;
                }
                Part::Begin { index, id, name } => {
                    calls.push(ToolCallDelta { index, id, name: Some(name), arguments: String::new() });
                }
                Part::Arguments { index, text } => match calls.last_mut().filter(|call| call.index == index) {
                    Some(call) => call.arguments += &text,
                    None => calls.push(ToolCallDelta { index, arguments: text, ..ToolCallDelta::default() }),
                },
                Part::End { index, id, call, .. } => {
                    if let Some(id) = id {
                        match calls.last_mut().filter(|call| call.index == index) {
                            Some(call) => call.id = Some(id),
                            None => calls.push(ToolCallDelta { index, id: Some(id), ..ToolCallDelta::default() }),
                        }
                    }
                    self.answer.calls.push(call);
                    if self.one_call {
                        return;
                    }
                }
                Part::Malformed(call) => {
                    piece.malformed_calls.push(call.clone());
                    self.answer.malformed.push(call);
                }
                Part::Between(text) => {
                    piece.reasoning += text;
                    self.answer.reasoning += text;
                }
                Part::Dropped(_) | Part::Gap(_) => {}
            }
        }
    }
}
