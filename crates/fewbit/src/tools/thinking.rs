//! Handling of reasoning while generating: a constraint waits until it has ended, and a budget ends it.
//!
//! ```text
//!            start mark                     end mark                    anything but white space
//! Beginning ------------> Reasoning ----------------------------> Gap -----------------> Over
//!     | constrained text      | budget: the end mark is forced     | constrained text
//!     +-----------------------+------------------------------------+--------------------> Over
//! ```
//!
//! The parser of the answer decides where reasoning begins and ends, so that constraint, budget and reader never
//! disagree: the first end mark ends it, quoted or not. Reasoning is prose, whose quotes need not match, and models
//! write the mark for no other purpose.
//!
//! - Reasoning that the prompt has opened belongs to the model: a constraint begins after the end mark. Until then the
//!   text cannot end, because the constrained text would be missing. Between the mark and the constrained text, up to
//!   two tokens of white space may come, as models were trained to write them; they belong to neither.
//! - If calls are required, a model that reasons may open its reasoning with its start mark first.
//! - A budget counts the tokens of reasoning. When it is used up, and no character is half written, only the tokens of
//!   the end mark are possible. With a budget of 0 there is no reasoning.

use std::collections::VecDeque;
use std::sync::Arc;

use fewbit_tokenizer::{SpecialTokens, StreamDecoder, Tokenizer};

use super::parser::{Parser, Setup};
use crate::options::Options;

/// The most tokens of white space after reasoning.
const MAX_SPACES: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A constraint waits; reasoning may begin.
    Beginning,
    Reasoning,
    /// A constraint waits; white space may come.
    Gap,
    /// Nothing is constrained; reasoning may begin.
    Free,
    Over,
}

/// What restricts the next token.
#[cfg(feature = "constraints")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Say {
    /// No constraint.
    Free,
    /// The constraint, and in addition the [exceptions](Thinking::exceptions).
    Both,
    /// The constraint alone.
    Constraint,
}

/// Follows the reasoning of one answer.
// Without constraints only a budget acts, which needs no exceptions.
#[cfg_attr(not(feature = "constraints"), expect(dead_code))]
pub(crate) struct Thinking {
    tokenizer: Arc<Tokenizer>,
    parser: Parser,
    decoder: StreamDecoder,
    /// Control tokens that count as text.
    shown: Vec<u32>,
    phase: Phase,
    is_constrained: bool,
    budget: Option<usize>,
    n_tokens: usize,
    /// Tokens of the end mark that are still to be forced.
    forced: VecDeque<u32>,
    n_spaces: usize,
    /// The token of the start mark, if the answer may begin with it.
    start: Option<u32>,
    /// Tokens of white space, if they are needed.
    spaces: Vec<u32>,
    /// Tokens in which text follows the last character of an end mark, if they are needed.
    glued: Option<Vec<u32>>,
    /// For how many tokens the end mark has waited for the end of a character.
    n_waited: usize,
}

/// The settings of [`Thinking`].
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) setup: Setup,
    pub(crate) shown: Vec<u32>,
    pub(crate) budget: Option<usize>,
    /// Whether there is a constraint.
    pub(crate) is_constrained: bool,
    /// Whether the model may reason before the constrained text.
    pub(crate) may_think: bool,
}

impl Plan {
    pub(crate) fn new(setup: Setup, options: &Options, may_think: bool) -> Self {
        #[cfg(feature = "constraints")]
        let is_constrained = options.data.constraint.is_some();
        #[cfg(not(feature = "constraints"))]
        let is_constrained = false;
        let budget = options.data.reasoning_budget;
        Self { setup, shown: options.shown.clone(), budget, is_constrained, may_think }
    }
}

impl Thinking {
    /// `None` if there is nothing to do.
    pub(crate) fn new(plan: Plan, tokenizer: &Arc<Tokenizer>, prompt: &[u32]) -> Option<Self> {
        let Plan { setup, shown, budget, is_constrained, may_think } = plan;
        let own = setup.reasoning.and_then(super::ReasoningStyle::marks).map(|(start, _)| start);
        let start = own.filter(|_| may_think && is_constrained).and_then(|start| tokenizer.id_of(start));
        let phase = match (setup.opened.is_some(), is_constrained) {
            (true, _) => Phase::Reasoning,
            (false, true) if start.is_some() => Phase::Beginning,
            (false, true) => return None,
            (false, false) => Phase::Free,
        };
        if budget.is_none() && !is_constrained {
            return None;
        }
        Some(Self {
            parser: Parser::new(&setup),
            decoder: tokenizer.decoder_after(prompt),
            tokenizer: Arc::clone(tokenizer),
            shown,
            phase,
            is_constrained,
            budget,
            n_tokens: 0,
            forced: VecDeque::new(),
            n_spaces: 0,
            start,
            spaces: Vec::new(),
            glued: None,
            n_waited: 0,
        })
    }

    /// What restricts the next token.
    #[cfg(feature = "constraints")]
    pub(crate) fn say(&self) -> Say {
        match self.phase {
            Phase::Reasoning | Phase::Free => Say::Free,
            Phase::Beginning | Phase::Gap => Say::Both,
            Phase::Over if self.is_constrained => Say::Constraint,
            Phase::Over => Say::Free,
        }
    }

    /// Without a constraint: rules out the tokens that must not come next.
    pub(crate) fn restrict(&mut self, logits: &mut [f32]) {
        if self.phase != Phase::Reasoning {
            return;
        }
        if self.forced.is_empty() && self.is_spent() {
            self.force();
        }
        if let Some(&token) = self.forced.front() {
            let logit = logits.get(token as usize).copied();
            logits.fill(f32::NEG_INFINITY);
            if let (Some(place), Some(logit)) = (logits.get_mut(token as usize), logit) {
                *place = logit;
            }
            return;
        }
        if !self.is_constrained {
            return;
        }
        let tokenizer = Arc::clone(&self.tokenizer);
        for end in tokenizer.end_of_generation() {
            if let Some(logit) = logits.get_mut(end as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        for token in self.beyond_the_end() {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    fn is_spent(&mut self) -> bool {
        if self.budget.is_none_or(|budget| self.n_tokens < budget) {
            return false;
        }
        // A character has at most four bytes, so three more tokens are always enough.
        let is_whole = !self.decoder.has_pending() || self.n_waited == 3;
        self.n_waited += usize::from(!is_whole);
        is_whole
    }

    /// Forces the tokens of the end mark.
    fn force(&mut self) {
        let Some(end) = self.parser.reasoning_end() else { return };
        match self.tokenizer.id_of(end) {
            Some(id) => self.forced.push_back(id),
            None => self.forced.extend(self.tokenizer.encode(end, SpecialTokens::Plain)),
        }
    }

    /// Tokens that would end the reasoning and continue with text that no constraint has checked.
    fn beyond_the_end(&mut self) -> Vec<u32> {
        let Some(end) = self.parser.reasoning_end() else { return Vec::new() };
        let tokenizer = &self.tokenizer;
        let glued = self.glued.get_or_insert_with(|| {
            let last = end.as_bytes().last().copied().unwrap_or_default();
            let follows = |id: u32| {
                let bytes = tokenizer.token_bytes(id);
                let at = bytes.iter().position(|byte| *byte == last);
                at.is_some_and(|at| bytes[at + 1..].iter().any(|byte| !byte.is_ascii_whitespace()))
            };
            (0..tokenizer.n_vocab() as u32).filter(|&id| follows(id)).collect()
        });
        let held = self.parser.held();
        let ends = |id: u32| {
            let mut text = held.as_bytes().to_vec();
            text.extend_from_slice(tokenizer.token_bytes(id));
            let at = text.windows(end.len()).position(|window| window == end.as_bytes());
            at.is_some_and(|at| text[at + end.len()..].iter().any(|byte| !byte.is_ascii_whitespace()))
        };
        glued.iter().copied().filter(|&id| ends(id)).collect()
    }

    /// Tokens that are allowed in addition to those of the constraint.
    #[cfg(feature = "constraints")]
    pub(crate) fn exceptions(&mut self) -> &[u32] {
        match self.phase {
            Phase::Beginning => self.start.as_slice(),
            Phase::Gap => {
                if self.spaces.is_empty() {
                    let is_space = |bytes: &[u8]| {
                        !bytes.is_empty() && bytes.len() <= 4 && bytes.iter().all(|byte| b" \n\r\t".contains(byte))
                    };
                    let all = 0..self.tokenizer.n_vocab() as u32;
                    self.spaces = all.filter(|&id| is_space(self.tokenizer.token_bytes(id))).collect();
                }
                &self.spaces
            }
            _ => &[],
        }
    }

    /// Takes the chosen token; `is_exception` if the constraint does not take it.
    pub(crate) fn accept(&mut self, token: u32, is_exception: bool) {
        match self.phase {
            Phase::Over => return,
            Phase::Beginning | Phase::Gap if !is_exception => {
                self.phase = Phase::Over;
                return;
            }
            _ => {}
        }
        let mut text = self.decoder.push(&self.tokenizer, token);
        if self.shown.contains(&token) {
            text += &self.decoder.finish();
            text += self.tokenizer.token_text(token).unwrap_or_default();
        }
        self.parser.push(&text);
        let is_reasoning = self.parser.reasoning_end().is_some();
        if self.phase == Phase::Reasoning {
            self.n_tokens += 1;
            self.forced.pop_front();
        }
        self.phase = match self.phase {
            _ if is_reasoning => Phase::Reasoning,
            Phase::Reasoning if self.is_constrained => Phase::Gap,
            Phase::Reasoning => Phase::Free,
            Phase::Gap => {
                self.n_spaces += 1;
                if self.n_spaces < MAX_SPACES { Phase::Gap } else { Phase::Over }
            }
            phase => phase,
        };
    }
}
