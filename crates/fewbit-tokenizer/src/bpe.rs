//! Byte-pair encoding of one piece of text.
//!
//! The piece starts as one symbol per byte (per character if the vocabulary is not byte-level). Then the leftmost of
//! the pairs with the lowest rank is merged into one symbol, again and again, until no rule applies. Short pieces,
//! which means nearly all, are scanned for the lowest rank each time: this is quadratic, but in a handful of symbols
//! that fit into one cache line. Long pieces keep their pairs in a heap, so that a megabyte of the same letter takes
//! `n log n` steps.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use crate::bytes;
use crate::error::TokenizerError;
use crate::tables::{Merge, MergeTable, NONE, TextIndex, TextTable};

/// With up to this many symbols, the scan is faster than the heap.
const SCAN_LIMIT: usize = 32;

/// With at least this many rules, threads share the work of resolving them.
const MIN_SHARED_RULES: usize = 1 << 14;

/// More threads than this make it no faster.
const MAX_THREADS: usize = 8;

/// A byte-pair encoder for one vocabulary.
#[derive(Debug)]
pub(crate) struct Bpe {
    alphabet: Alphabet,
    merges: MergeTable,
    n_vocab: u32,
    /// A token for each byte, for symbols that are not tokens; [`NONE`] if there is none.
    byte_tokens: Box<[u32; 256]>,
    options: BpeOptions,
    /// For each token, whether merging its own text gives the token. Computed on first use.
    reachable: Vec<AtomicU8>,
}

/// How a vocabulary is used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BpeOptions {
    /// Whether symbols are bytes rather than characters.
    pub(crate) byte_level: bool,
    /// Whether characters that are not tokens are written as the tokens of their bytes.
    pub(crate) byte_fallback: bool,
    /// Whether a piece that is itself a token becomes that token even if merges would not produce it.
    pub(crate) ignore_merges: bool,
    /// The token for text that the vocabulary cannot express.
    pub(crate) unknown: Option<u32>,
    /// Whether adjacent characters that the vocabulary cannot express become one unknown token.
    pub(crate) fuse_unknown: bool,
    /// Whether the last rule for a pair applies rather than the first.
    pub(crate) last_rule_wins: bool,
}

/// The symbols that a piece is split into before merging.
#[derive(Debug)]
enum Alphabet {
    /// One symbol per byte.
    Bytes(Box<[u32; 256]>),
    /// One symbol per character, looked up by its text.
    Chars(Junctions),
}

/// Which adjacent characters a rule can join.
///
/// Merging never crosses a position between two characters that no rule joins. Splitting a text there first turns one
/// long merge into many short ones and does not change the result.
#[derive(Debug)]
struct Junctions {
    /// For each ASCII character on the left, a bit for each character on the right.
    ascii: Box<[u128; 128]>,
    others: HashSet<(char, char), foldhash::fast::RandomState>,
}

impl Default for Junctions {
    fn default() -> Self {
        Self { ascii: Box::new([0; 128]), others: HashSet::default() }
    }
}

impl Junctions {
    fn insert(&mut self, left: char, right: char) {
        match (self.ascii.get_mut(left as usize), right.is_ascii()) {
            (Some(row), true) => *row |= 1 << (right as u32),
            _ => drop(self.others.insert((left, right))),
        }
    }

    fn joins(&self, left: char, right: char) -> bool {
        match (self.ascii.get(left as usize), right.is_ascii()) {
            (Some(row), true) => row >> (right as u32) & 1 != 0,
            _ => self.others.contains(&(left, right)),
        }
    }

    /// The end of the first part of `text` that merges cannot extend beyond.
    fn first_cut(&self, text: &str) -> usize {
        let mut chars = text.char_indices();
        let Some((_, mut before)) = chars.next() else { return text.len() };
        for (at, c) in chars {
            if !self.joins(before, c) {
                return at;
            }
            before = c;
        }
        text.len()
    }
}

/// Values of [`Bpe::reachable`].
const UNTRIED: u8 = 0;
const REACHABLE: u8 = 1;
const UNREACHABLE: u8 = 2;

/// The texts among which a piece is looked up.
#[derive(Clone, Copy)]
pub(crate) struct Lookup<'a> {
    pub(crate) texts: &'a TextTable,
    pub(crate) index: &'a TextIndex,
}

impl Lookup<'_> {
    pub(crate) fn get(self, text: &[u8]) -> Option<u32> {
        self.index.get(self.texts, text)
    }
}

/// Buffers that are reused for all pieces.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    symbols: Vec<Symbol>,
    pairs: Vec<Option<Merge>>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    /// Whether the last character was written as the unknown token.
    after_unknown: bool,
}

/// One symbol of a piece.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    /// Its token, a number past the vocabulary, or [`NONE`].
    id: u32,
    /// Offset of its first byte in the piece.
    start: u32,
    /// Its neighbours in the heap's linked list; [`NONE`] at the ends.
    prev: u32,
    next: u32,
}

/// Builds a [`Bpe`].
pub(crate) struct BpeBuilder<'a> {
    symbols: SymbolIds<'a>,
    merges: MergeTable,
    junctions: Junctions,
    options: BpeOptions,
    n_rules: u32,
}

impl<'a> BpeBuilder<'a> {
    /// Creates an encoder without rules. `stored` finds a token by its text as stored in the file.
    pub(crate) fn new(stored: Lookup<'a>, n_rules: usize, options: BpeOptions) -> Self {
        let n_vocab = stored.texts.len() as u32;
        Self {
            symbols: SymbolIds { stored, extra: HashMap::new(), n_vocab },
            merges: MergeTable::with_capacity(n_rules),
            junctions: Junctions::default(),
            options,
            n_rules: 0,
        }
    }

    /// Appends rules in order of priority; each merges two symbols into one.
    ///
    /// Nearly all of the work is looking up the tokens, and there can be half a million rules, so threads share it.
    pub(crate) fn rules(&mut self, rules: &[(&str, &str)]) -> Result<(), TokenizerError> {
        let stored = self.symbols.stored;
        let resolve = |rules: &[(&str, &str)]| -> Vec<[Option<u32>; 3]> {
            let mut joined = Vec::new();
            let ids = rules.iter().map(|(left, right)| {
                joined.clear();
                joined.extend_from_slice(left.as_bytes());
                joined.extend_from_slice(right.as_bytes());
                [left.as_bytes(), right.as_bytes(), &joined].map(|text| stored.get(text))
            });
            ids.collect()
        };
        let n_threads = match rules.len() {
            0..MIN_SHARED_RULES => 1,
            _ => thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS)),
        };
        let chunk = rules.len().div_ceil(n_threads).max(1);
        let ids = thread::scope(|scope| {
            let chunks: Vec<_> = rules.chunks(chunk).collect();
            let spawned = chunks
                .iter()
                .skip(1)
                .map(|chunk| (*chunk, thread::Builder::new().spawn_scoped(scope, || resolve(chunk))));
            let spawned: Vec<_> = spawned.collect();
            let mut ids = chunks.first().map_or_else(Vec::new, |chunk| resolve(chunk));
            for (chunk, thread) in spawned {
                let done = thread.ok().and_then(|thread| thread.join().ok());
                ids.extend(done.unwrap_or_else(|| resolve(chunk)));
            }
            ids
        });
        for ((left, right), ids) in rules.iter().zip(ids) {
            let [left_id, right_id, id] = ids;
            let rank = self.next_rank()?;
            let id = match id {
                Some(id) => id,
                None => self.symbols.id(&[*left, *right].concat())?,
            };
            let left_id = left_id.map_or_else(|| self.symbols.id(left), Ok)?;
            let right_id = right_id.map_or_else(|| self.symbols.id(right), Ok)?;
            if !self.options.byte_level
                && let (Some(left), Some(right)) = (left.chars().next_back(), right.chars().next())
            {
                self.junctions.insert(left, right);
            }
            self.merges.insert(left_id, right_id, Merge { rank, id }, self.options.last_rule_wins);
        }
        Ok(())
    }

    /// Adds a rule for two tokens of a byte-level vocabulary, with an explicit rank.
    pub(crate) fn ranked_rule(&mut self, left: u32, right: u32, merge: Merge) {
        self.merges.insert(left, right, merge, self.options.last_rule_wins);
    }

    fn next_rank(&mut self) -> Result<u32, TokenizerError> {
        let rank = self.n_rules;
        self.n_rules = rank.checked_add(1).ok_or(TokenizerError::TooLarge { what: "the number of merge rules" })?;
        Ok(rank)
    }

    pub(crate) fn build(mut self) -> Result<Bpe, TokenizerError> {
        let stored = self.symbols.stored;
        let mut byte_tokens = Box::new([NONE; 256]);
        let alphabet = if self.options.byte_level {
            let mut ids = Box::new([NONE; 256]);
            for byte in 0..=255u8 {
                let text = bytes::char_of(byte).to_string();
                ids[usize::from(byte)] = self.symbols.id(&text)?;
                byte_tokens[usize::from(byte)] = stored.get(text.as_bytes()).unwrap_or(NONE);
            }
            Alphabet::Bytes(ids)
        } else {
            if self.options.byte_fallback {
                for byte in 0..=255u8 {
                    let text = format!("<0x{byte:02X}>");
                    byte_tokens[usize::from(byte)] = stored.get(text.as_bytes()).unwrap_or(NONE);
                }
            }
            Alphabet::Chars(self.junctions)
        };
        let n_vocab = self.symbols.n_vocab;
        Ok(Bpe {
            alphabet,
            merges: self.merges,
            n_vocab,
            byte_tokens,
            options: self.options,
            reachable: (0..n_vocab).map(|_| AtomicU8::new(UNTRIED)).collect(),
        })
    }
}

/// Splits a rule that is written as one text with a space between its two symbols.
pub(crate) fn split_rule(index: usize, rule: &str) -> Result<(&str, &str), TokenizerError> {
    // The first symbol has at least one character, which may itself be a space.
    let space = rule.bytes().skip(1).position(|b| b == b' ').map(|at| at + 1);
    space
        .and_then(|space| Some((rule.get(..space)?, rule.get(space + 1..)?)))
        .filter(|(_, right)| !right.is_empty())
        .ok_or_else(|| TokenizerError::BadMerge { index, text: rule.to_owned() })
}

impl Bpe {
    /// Whether a piece that is itself a token becomes that token even if merges would not produce it.
    pub(crate) fn ignores_merges(&self) -> bool {
        self.options.ignore_merges
    }

    /// Appends the tokens of `piece` to `out`; `whole` finds the token of a whole piece.
    pub(crate) fn encode(&self, piece: &str, whole: Lookup<'_>, scratch: &mut Scratch, out: &mut Vec<u32>) {
        if self.options.ignore_merges
            && let Some(id) = whole.get(piece.as_bytes())
        {
            out.push(id);
            return;
        }
        let Alphabet::Chars(junctions) = &self.alphabet else {
            self.encode_part(piece, whole, scratch, out);
            return;
        };
        scratch.after_unknown = false;
        let mut rest = piece;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(junctions.first_cut(rest));
            self.encode_part(part, whole, scratch, out);
            rest = after;
        }
    }

    fn encode_part(&self, piece: &str, whole: Lookup<'_>, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let token = whole.get(piece.as_bytes());
        let state = token.and_then(|id| self.reachable.get(id as usize));
        if let (Some(id), Some(state)) = (token, state)
            && state.load(Ordering::Relaxed) == REACHABLE
        {
            scratch.after_unknown = false;
            out.push(id);
            return;
        }
        let before = out.len();
        self.merge(piece, whole, scratch, out);
        if let (Some(id), Some(state)) = (token, state) {
            let same = out.get(before..) == Some(&[id]);
            state.store(if same { REACHABLE } else { UNREACHABLE }, Ordering::Relaxed);
        }
    }

    fn merge(&self, piece: &str, whole: Lookup<'_>, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let symbols = &mut scratch.symbols;
        symbols.clear();
        let symbol = |start: usize, id| Symbol { id, start: start as u32, prev: NONE, next: NONE };
        match &self.alphabet {
            Alphabet::Bytes(ids) => {
                symbols.extend(piece.bytes().enumerate().map(|(i, b)| symbol(i, ids[usize::from(b)])))
            }
            Alphabet::Chars(_) => symbols.extend(piece.char_indices().map(|(i, c)| {
                let text = &piece.as_bytes()[i..i + c.len_utf8()];
                symbol(i, whole.get(text).unwrap_or(NONE))
            })),
        }
        if symbols.len() <= SCAN_LIMIT {
            self.merge_by_scan(symbols, &mut scratch.pairs);
        } else {
            self.merge_by_heap(symbols, &mut scratch.pairs, &mut scratch.heap);
        }
        for (i, symbol) in symbols.iter().enumerate() {
            if symbol.id < self.n_vocab {
                scratch.after_unknown = false;
                out.push(symbol.id);
                continue;
            }
            let end = symbols.get(i + 1).map_or(piece.len(), |next| next.start as usize);
            let text = symbol.start as usize..end;
            match &self.alphabet {
                Alphabet::Bytes(_) => {
                    for &byte in &piece.as_bytes()[text] {
                        match self.byte_tokens[usize::from(byte)] {
                            NONE => out.extend(self.options.unknown),
                            id => out.push(id),
                        }
                    }
                }
                Alphabet::Chars(_) => {
                    for c in piece[text].chars() {
                        self.fall_back(c, &mut scratch.after_unknown, out);
                    }
                }
            }
        }
    }

    /// Writes a character that is not a token: as its bytes, or as the unknown token.
    fn fall_back(&self, c: char, after_unknown: &mut bool, out: &mut Vec<u32>) {
        let mut buffer = [0; 4];
        let bytes = c.encode_utf8(&mut buffer).as_bytes();
        let id = |byte: &u8| self.byte_tokens[usize::from(*byte)];
        if bytes.iter().all(|byte| id(byte) != NONE) {
            out.extend(bytes.iter().map(id));
            *after_unknown = false;
        } else {
            if !(*after_unknown && self.options.fuse_unknown) {
                out.extend(self.options.unknown);
            }
            *after_unknown = true;
        }
    }

    /// The rule for two adjacent symbols.
    fn rule(&self, left: u32, right: u32) -> Option<Merge> {
        if left == NONE || right == NONE { None } else { self.merges.get(left, right) }
    }

    fn merge_by_scan(&self, symbols: &mut Vec<Symbol>, pairs: &mut Vec<Option<Merge>>) {
        pairs.clear();
        pairs.extend(symbols.windows(2).map(|pair| self.rule(pair[0].id, pair[1].id)));
        loop {
            let mut best: Option<(usize, Merge)> = None;
            for (at, merge) in pairs.iter().enumerate() {
                if let Some(merge) = merge
                    && best.is_none_or(|(_, best)| merge.rank < best.rank)
                {
                    best = Some((at, *merge));
                }
            }
            let Some((at, merge)) = best else { return };
            symbols[at].id = merge.id;
            symbols.remove(at + 1);
            pairs.remove(at);
            if at < pairs.len() {
                pairs[at] = self.rule(symbols[at].id, symbols[at + 1].id);
            }
            if at > 0 {
                pairs[at - 1] = self.rule(symbols[at - 1].id, symbols[at].id);
            }
        }
    }

    /// As [`Self::merge_by_scan`], with the candidate pairs in a heap by (rank, position).
    ///
    /// `pairs[i]` is the rule for symbol `i` and its successor. A heap entry is stale if its rank differs from that of
    /// `pairs[i]`; otherwise it still stands for the same merge.
    fn merge_by_heap(
        &self,
        symbols: &mut Vec<Symbol>,
        pairs: &mut Vec<Option<Merge>>,
        heap: &mut BinaryHeap<Reverse<(u32, u32)>>,
    ) {
        let n = symbols.len();
        for (i, symbol) in symbols.iter_mut().enumerate() {
            symbol.prev = if i == 0 { NONE } else { i as u32 - 1 };
            symbol.next = if i + 1 == n { NONE } else { i as u32 + 1 };
        }
        pairs.clear();
        pairs.extend(symbols.windows(2).map(|pair| self.rule(pair[0].id, pair[1].id)));
        pairs.push(None);
        heap.clear();
        heap.extend(pairs.iter().enumerate().filter_map(|(i, m)| m.map(|m| Reverse((m.rank, i as u32)))));
        while let Some(Reverse((rank, at))) = heap.pop() {
            let left = at as usize;
            let Some(merge) = pairs[left].filter(|merge| merge.rank == rank) else { continue };
            let right = symbols[left].next as usize;
            let after = symbols[right].next;
            symbols[left].id = merge.id;
            symbols[left].next = after;
            // The right symbol no longer exists, and neither does its own pair.
            symbols[right].start = NONE;
            pairs[right] = None;
            pairs[left] = None;
            if after != NONE {
                symbols[after as usize].prev = at;
                pairs[left] = self.rule(merge.id, symbols[after as usize].id);
                heap.extend(pairs[left].map(|m| Reverse((m.rank, at))));
            }
            let before = symbols[left].prev;
            if before != NONE {
                let before_at = before as usize;
                pairs[before_at] = self.rule(symbols[before_at].id, merge.id);
                heap.extend(pairs[before_at].map(|m| Reverse((m.rank, before))));
            }
        }
        symbols.retain(|symbol| symbol.start != NONE);
    }
}

/// Numbers for symbols: token ids, and numbers past the vocabulary for symbols that are not tokens.
///
/// A merge list may produce intermediate symbols that the vocabulary leaves out; they must still merge.
struct SymbolIds<'a> {
    stored: Lookup<'a>,
    extra: HashMap<String, u32>,
    n_vocab: u32,
}

impl SymbolIds<'_> {
    fn id(&mut self, text: &str) -> Result<u32, TokenizerError> {
        if let Some(id) = self.stored.get(text.as_bytes()) {
            return Ok(id);
        }
        if let Some(&id) = self.extra.get(text) {
            return Ok(id);
        }
        let id = u32::try_from(self.extra.len())
            .ok()
            .and_then(|n| self.n_vocab.checked_add(n))
            .filter(|&id| id < NONE)
            .ok_or(TokenizerError::TooLarge { what: "the number of symbols" })?;
        self.extra.insert(text.to_owned(), id);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(tokens: &[String]) -> (TextTable, TextIndex) {
        let mut texts = TextTable::default();
        for token in tokens {
            texts.push(token.as_bytes()).expect("small");
        }
        let index = TextIndex::new(&texts, |_| true);
        (texts, index)
    }

    fn build(rules: &[String], stored: Lookup<'_>, options: BpeOptions) -> Result<Bpe, TokenizerError> {
        let mut builder = BpeBuilder::new(stored, rules.len(), options);
        let split = rules.iter().enumerate().map(|(index, rule)| split_rule(index, rule));
        builder.rules(&split.collect::<Result<Vec<_>, _>>()?)?;
        builder.build()
    }

    fn merged(bpe: &Bpe, piece: &str, by_heap: bool) -> Vec<(u32, u32)> {
        let Alphabet::Bytes(ids) = &bpe.alphabet else { panic!("byte level") };
        let mut symbols: Vec<Symbol> = piece
            .bytes()
            .enumerate()
            .map(|(i, b)| Symbol { id: ids[b as usize], start: i as u32, prev: NONE, next: NONE })
            .collect();
        let mut pairs = Vec::new();
        if by_heap {
            bpe.merge_by_heap(&mut symbols, &mut pairs, &mut BinaryHeap::new());
        } else {
            bpe.merge_by_scan(&mut symbols, &mut pairs);
        }
        symbols.iter().map(|s| (s.id, s.start)).collect()
    }

    proptest! {
        /// Random rule lists, including rules through symbols that are not tokens.
        #[test]
        fn heap_and_scan_agree(
            rules in prop::collection::vec(("[abc]{1,3}", "[abc]{1,3}"), 0..30),
            piece in "[abcd]{1,60}",
        ) {
            let tokens: Vec<String> = ["a", "b", "c", "ab", "bc", "abc"].map(String::from).into();
            let (texts, index) = table(&tokens);
            let lookup = Lookup { texts: &texts, index: &index };
            let rules: Vec<String> = rules.iter().map(|(l, r)| format!("{l} {r}")).collect();
            let options = BpeOptions { byte_level: true, ..BpeOptions::default() };
            let bpe = build(&rules, lookup, options).expect("valid");
            prop_assert_eq!(merged(&bpe, &piece, true), merged(&bpe, &piece, false));
        }
    }

    proptest! {
        /// Splitting where no rule joins does not change the result: merging the whole text at once gives the same.
        #[test]
        fn parts_and_whole_text_agree(
            rules in prop::collection::vec(("_?[abc]{1,2}", "[abc]{0,2}[_a]"), 0..30),
            text in "[abcd_é]{1,40}",
        ) {
            let mut tokens: Vec<String> = ["a", "b", "c", "_"].map(String::from).into();
            tokens.extend(rules.iter().map(|(left, right)| [left.as_str(), right].concat()));
            let (texts, index) = table(&tokens);
            let lookup = Lookup { texts: &texts, index: &index };
            let rules: Vec<String> = rules.iter().map(|(l, r)| format!("{l} {r}")).collect();
            let options = BpeOptions { unknown: Some(0), fuse_unknown: true, ..BpeOptions::default() };
            let mut bpe = build(&rules, lookup, options).expect("valid");
            let encode = |bpe: &Bpe| {
                let mut ids = Vec::new();
                bpe.encode(&text, lookup, &mut Scratch::default(), &mut ids);
                ids
            };
            let by_parts = encode(&bpe);
            // If everything joins, there is one part.
            let mut all = Junctions::default();
            for left in text.chars() {
                text.chars().for_each(|right| all.insert(left, right));
            }
            bpe.alphabet = Alphabet::Chars(all);
            prop_assert_eq!(by_parts, encode(&bpe));
        }
    }

    #[test]
    fn merge_rules_without_two_symbols_are_rejected() {
        for bad in ["", "a", "ab", "a ", " a"] {
            let error = split_rule(0, bad).expect_err(bad);
            assert!(matches!(error, TokenizerError::BadMerge { index: 0, .. }), "{bad:?}: {error}");
        }
        assert_eq!(split_rule(0, "  a").expect("a space and a letter"), (" ", "a"));
    }

    #[test]
    fn adjacent_unknown_characters_are_fused_if_set() {
        let (texts, index) = table(&["?".to_owned(), "a".to_owned()]);
        let lookup = Lookup { texts: &texts, index: &index };
        for (fuse_unknown, expected) in [(true, &[0, 1, 0][..]), (false, &[0, 0, 1, 0])] {
            let options = BpeOptions { unknown: Some(0), fuse_unknown, ..BpeOptions::default() };
            let bpe = build(&[], lookup, options).expect("valid");
            let mut ids = Vec::new();
            bpe.encode("éüaé", lookup, &mut Scratch::default(), &mut ids);
            assert_eq!(ids, expected);
        }
    }

    #[test]
    fn first_or_last_rule_for_a_pair_wins() {
        let tokens = ["a", "b", "c", "ab", "bc"].map(String::from);
        let (texts, index) = table(&tokens);
        let lookup = Lookup { texts: &texts, index: &index };
        for (last_rule_wins, expected) in [(false, &[3, 2][..]), (true, &[0, 4])] {
            let rules = ["a b", "b c", "a b"].map(String::from);
            let bpe = build(&rules, lookup, BpeOptions { last_rule_wins, ..BpeOptions::default() }).expect("valid");
            let mut ids = Vec::new();
            bpe.encode("abc", lookup, &mut Scratch::default(), &mut ids);
            assert_eq!(ids, expected);
        }
    }
}
