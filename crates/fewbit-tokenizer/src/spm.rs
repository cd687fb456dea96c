//! SentencePiece's BPE: merges by score.
//!
//! The whole text is one sequence of characters, with spaces written as U+2581. Of all neighbours
//! that together are a token, those with the highest score merge first, the leftmost first among
//! equals. What is no token in the end is written as byte tokens, or as the unknown token.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::bpe::Lookup;
use crate::bytes;
use crate::error::TokenizerError;
use crate::tables::{NONE, TextTable};
use crate::vocabulary::TokenKind;

/// What SentencePiece writes for a space: U+2581.
pub(crate) const SPACE: &str = "\u{2581}";

/// A SentencePiece encoder for one vocabulary.
#[derive(Debug)]
pub(crate) struct Spm {
    scores: Vec<f32>,
    byte_tokens: Box<[u32; 256]>,
    unknown: Option<u32>,
}

/// One symbol: a character, or characters that merged.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: u32,
    /// One past its last byte; equal to `start` once it has merged into the one before.
    end: u32,
    prev: u32,
    next: u32,
    /// The token that it forms with its successor, or [`NONE`].
    pair: u32,
}

/// A pair that could merge.
#[derive(Debug, PartialEq)]
struct Candidate {
    score: f32,
    left: u32,
    token: u32,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Spm {
    pub(crate) fn new(
        scores: &[f32],
        texts: &TextTable,
        kinds: &[TokenKind],
        unknown: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(TokenizerError::BadScore { id: id as u32 });
        }
        let mut byte_tokens = Box::new([NONE; 256]);
        for (id, _) in (0u32..).zip(kinds).filter(|(_, kind)| **kind == TokenKind::Byte) {
            let text = String::from_utf8_lossy(texts.get(id).unwrap_or_default());
            let byte = bytes::parse_byte_token(&text)
                .ok_or_else(|| TokenizerError::BadByteToken { id, text: text.clone().into() })?;
            byte_tokens[usize::from(byte)] = id;
        }
        if unknown.is_none()
            && let Some(byte) = (0..=255u8).find(|&b| byte_tokens[usize::from(b)] == NONE)
        {
            return Err(TokenizerError::NoFallback { byte });
        }
        // Adding zero turns a negative zero into a positive one, so that equal scores compare equal.
        let scores = scores.iter().map(|score| score + 0.0).collect();
        Ok(Self { scores, byte_tokens, unknown })
    }

    /// Appends the tokens of `text`, whose spaces are written as [`SPACE`], to `out`.
    pub(crate) fn encode(&self, text: &str, tokens: Lookup<'_>, out: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = (0u32..)
            .zip(text.char_indices())
            .map(|(i, (start, c))| Symbol {
                start: start as u32,
                end: (start + c.len_utf8()) as u32,
                prev: i.checked_sub(1).unwrap_or(NONE),
                next: i + 1,
                pair: NONE,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let token_of = |start: u32, end: u32| tokens.get(text.as_bytes().get(start as usize..end as usize)?);
        let mut first = Vec::with_capacity(symbols.len());
        for left in 0..symbols.len() {
            first.extend(self.candidate(&mut symbols, left as u32, &token_of));
        }
        let mut queue = BinaryHeap::from(first);
        while let Some(candidate) = queue.pop() {
            let at = candidate.left;
            let left = symbols[at as usize];
            if left.pair != candidate.token {
                continue;
            }
            let right = symbols[left.next as usize];
            symbols[left.next as usize] = Symbol { end: right.start, pair: NONE, ..right };
            symbols[at as usize] = Symbol { end: right.end, next: right.next, ..left };
            if right.next != NONE {
                symbols[right.next as usize].prev = at;
            }
            queue.extend(self.candidate(&mut symbols, at, &token_of));
            if left.prev != NONE {
                queue.extend(self.candidate(&mut symbols, left.prev, &token_of));
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            match token_of(symbol.start, symbol.end) {
                Some(id) => out.push(id),
                None => self.fall_back(&text.as_bytes()[symbol.start as usize..symbol.end as usize], out),
            }
        }
    }

    /// Sets `pair` of a symbol and returns the merge that it offers.
    fn candidate(
        &self,
        symbols: &mut [Symbol],
        left: u32,
        token_of: &impl Fn(u32, u32) -> Option<u32>,
    ) -> Option<Candidate> {
        let symbol = symbols[left as usize];
        let end = symbols.get(symbol.next as usize).map(|right| right.end);
        let token = end.and_then(|end| token_of(symbol.start, end)).unwrap_or(NONE);
        symbols[left as usize].pair = token;
        let score = *self.scores.get(token as usize)?;
        Some(Candidate { score, left, token })
    }

    /// Writes a character that is no token.
    fn fall_back(&self, character: &[u8], out: &mut Vec<u32>) {
        let id = |byte: &u8| self.byte_tokens[usize::from(*byte)];
        if character.iter().all(|byte| id(byte) != NONE) {
            out.extend(character.iter().map(id));
        } else {
            out.extend(self.unknown);
        }
    }
}
