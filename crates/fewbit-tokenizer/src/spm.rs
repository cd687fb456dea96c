//! SentencePiece's BPE: merges by score.
//!
//! The whole text is one sequence of characters, with spaces written as U+2581. Of all adjacent pairs that together are
//! a token, the one with the highest score merges first, and among equal scores the leftmost. Symbols that are not
//! tokens in the end are written as byte tokens, or as the unknown token.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::bpe::Lookup;
use crate::bytes;
use crate::error::TokenizerError;
use crate::tables::{NONE, TextTable};
use crate::vocabulary::TokenKind;

/// The character that SentencePiece writes for a space: U+2581.
pub(crate) const SPACE: &str = "\u{2581}";
const SPACE_CHAR: char = '\u{2581}';

/// A SentencePiece encoder for one vocabulary.
#[derive(Debug)]
pub(crate) struct Spm {
    scores: Vec<f32>,
    byte_tokens: Box<[u32; 256]>,
    unknown: Option<u32>,
    /// Whether words can be encoded separately: see [`Spm::encode`].
    by_words: bool,
}

/// Buffers that are reused for all words.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
}

/// One symbol: a character, or several that were merged.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: u32,
    /// Offset one past its last byte; equal to `start` after it was merged into the preceding symbol.
    end: u32,
    prev: u32,
    next: u32,
    /// The token of the symbol together with its successor, or [`NONE`].
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
        // Whether a token has a space after a character other than a space.
        let joins_words = |text: &str| text.trim_start_matches(SPACE_CHAR).contains(SPACE_CHAR);
        let by_words = (0u32..).zip(kinds).all(|(id, kind)| {
            matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::Byte)
                || !std::str::from_utf8(texts.get(id).unwrap_or_default()).is_ok_and(joins_words)
        });
        // Adding zero turns a negative zero into a positive one, so that equal scores compare equal.
        let scores = scores.iter().map(|score| score + 0.0).collect();
        Ok(Self { scores, byte_tokens, unknown, by_words })
    }

    /// Appends the tokens of `text`, whose spaces are written as [`SPACE`], to `out`.
    ///
    /// By definition, merging works on the whole text. But symbols only merge into tokens, and in most vocabularies no
    /// token has a space after another character. Then nothing ever merges across the start of a word, and words can be
    /// encoded separately, which is more than ten times as fast as one queue for all of them.
    pub(crate) fn encode(&self, text: &str, tokens: Lookup<'_>, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let mut rest = text;
        while self.by_words && !rest.is_empty() {
            let spaces = rest.len() - rest.trim_start_matches(SPACE_CHAR).len();
            let end = rest[spaces..].find(SPACE_CHAR).map_or(rest.len(), |at| spaces + at);
            self.encode_part(&rest[..end], tokens, scratch, out);
            rest = &rest[end..];
        }
        if !rest.is_empty() {
            self.encode_part(rest, tokens, scratch, out);
        }
    }

    fn encode_part(&self, text: &str, tokens: Lookup<'_>, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { symbols, queue } = scratch;
        symbols.clear();
        symbols.extend((0u32..).zip(text.char_indices()).map(|(i, (start, c))| Symbol {
            start: start as u32,
            end: (start + c.len_utf8()) as u32,
            prev: i.checked_sub(1).unwrap_or(NONE),
            next: i + 1,
            pair: NONE,
        }));
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let token_of = |start: u32, end: u32| tokens.get(text.as_bytes().get(start as usize..end as usize)?);
        queue.clear();
        for left in 0..symbols.len() {
            queue.extend(self.candidate(symbols, left as u32, &token_of));
        }
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
            queue.extend(self.candidate(symbols, at, &token_of));
            if left.prev != NONE {
                queue.extend(self.candidate(symbols, left.prev, &token_of));
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            match token_of(symbol.start, symbol.end) {
                Some(id) => out.push(id),
                None => self.fall_back(&text.as_bytes()[symbol.start as usize..symbol.end as usize], out),
            }
        }
    }

    /// Sets `pair` of a symbol and returns the possible merge with its successor.
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

    /// Writes a character that is not a token.
    fn fall_back(&self, character: &[u8], out: &mut Vec<u32>) {
        let id = |byte: &u8| self.byte_tokens[usize::from(*byte)];
        if character.iter().all(|byte| id(byte) != NONE) {
            out.extend(character.iter().map(id));
        } else {
            out.extend(self.unknown);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::TextIndex;

    /// An encoder with random pieces over three letters.
    fn spm(pieces: &[(String, i8)]) -> (TextTable, Spm) {
        let mut texts = TextTable::default();
        for text in ["a", "b", "c", SPACE].into_iter().chain(pieces.iter().map(|(text, _)| text.as_str())) {
            texts.push(text.as_bytes()).expect("small");
        }
        let scores: Vec<f32> = [-9.0; 4].into_iter().chain(pieces.iter().map(|(_, score)| f32::from(*score))).collect();
        let spm = Spm::new(&scores, &texts, &vec![TokenKind::Normal; scores.len()], Some(0)).expect("valid");
        (texts, spm)
    }

    /// The definition: find the best pair, merge it, start over.
    fn by_definition(spm: &Spm, tokens: Lookup<'_>, text: &str) -> Vec<u32> {
        let mut symbols: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let mut best: Option<(usize, f32)> = None;
            for (i, pair) in symbols.windows(2).enumerate() {
                if let Some(id) = tokens.get(pair.concat().as_bytes())
                    && best.is_none_or(|(_, score)| spm.scores[id as usize] > score)
                {
                    best = Some((i, spm.scores[id as usize]));
                }
            }
            let Some((i, _)) = best else { break };
            let right = symbols.remove(i + 1);
            symbols[i].push_str(&right);
        }
        symbols.iter().map(|symbol| tokens.get(symbol.as_bytes()).expect("a token")).collect()
    }

    proptest! {
        #[test]
        fn queue_and_definition_agree(
            pieces in prop::collection::vec(("[abc]{2,5}", -9i8..0), 0..60),
            text in "[abc\u{2581}]{0,40}",
        ) {
            let (texts, spm) = spm(&pieces);
            let tokens = Lookup { texts: &texts, index: &TextIndex::new(&texts, |_| true) };
            let mut ids = Vec::new();
            spm.encode(&text, tokens, &mut Scratch::default(), &mut ids);
            prop_assert_eq!(ids, by_definition(&spm, tokens, &text));
        }

        /// For vocabularies that allow it, encoding words separately gives the same as encoding the whole text.
        #[test]
        fn words_and_whole_text_agree(
            pieces in prop::collection::vec(("\u{2581}{0,2}[abc]{0,3}", -9i8..0), 0..40),
            text in "[abc\u{2581}]{0,60}",
        ) {
            let (texts, mut spm) = spm(&pieces);
            let tokens = Lookup { texts: &texts, index: &TextIndex::new(&texts, |_| true) };
            prop_assert!(spm.by_words);
            let mut encode = |by_words| {
                spm.by_words = by_words;
                let mut ids = Vec::new();
                spm.encode(&text, tokens, &mut Scratch::default(), &mut ids);
                ids
            };
            prop_assert_eq!(encode(true), encode(false));
        }
    }

    #[test]
    fn tokens_across_words_disable_encoding_by_words() {
        let mut texts = TextTable::default();
        for text in ["a", SPACE, "a\u{2581}a"] {
            texts.push(text.as_bytes()).expect("small");
        }
        let spm = Spm::new(&[0.0; 3], &texts, &[TokenKind::Normal; 3], Some(0)).expect("valid");
        assert!(!spm.by_words);
    }
}
