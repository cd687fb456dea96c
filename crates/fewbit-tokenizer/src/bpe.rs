//! Byte-pair encoding of one piece of text.
//!
//! The piece starts as one symbol per byte (per character where the vocabulary is not byte-level);
//! then, again and again, the leftmost of the pairs with the lowest rank becomes one symbol, until
//! no rule applies. Short pieces, which is nearly all, are scanned for the lowest rank each time:
//! quadratic, but in a handful of symbols that lie in one cache line. Long ones keep their pairs
//! in a heap, so that a megabyte of one letter takes `n log n` steps.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bytes;
use crate::error::TokenizerError;
use crate::tables::{Merge, MergeTable, NONE, TextIndex, TextTable};

/// Up to this many symbols the scan is faster than the heap.
const SCAN_LIMIT: usize = 32;

/// A byte-pair encoder for one vocabulary.
#[derive(Debug)]
pub(crate) struct Bpe {
    alphabet: Alphabet,
    merges: MergeTable,
    n_vocab: u32,
    /// A token for each byte, for symbols that are no token; [`NONE`] where there is none.
    byte_tokens: Box<[u32; 256]>,
    unknown: Option<u32>,
    ignore_merges: bool,
    /// For each token, whether merging its own text gives the token. Found out when first met.
    reachable: Vec<AtomicU8>,
}

/// What a piece is cut into before merging.
#[derive(Debug)]
enum Alphabet {
    /// One symbol per byte.
    Bytes(Box<[u32; 256]>),
    /// One symbol per character, looked up by its text.
    Chars,
}

/// Values of [`Bpe::reachable`].
const UNTRIED: u8 = 0;
const REACHABLE: u8 = 1;
const UNREACHABLE: u8 = 2;

/// The texts that a piece is looked up in.
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

/// Buffers that pieces share.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    symbols: Vec<Symbol>,
    pairs: Vec<Option<Merge>>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

/// One symbol of a piece.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    /// Its token, a number past the vocabulary, or [`NONE`].
    id: u32,
    /// Its first byte in the piece.
    start: u32,
    /// Neighbours in the heap's list; [`NONE`] at the ends.
    prev: u32,
    next: u32,
}

impl Bpe {
    /// Resolves the merge rules. `stored` finds a token by its text as stored in the file.
    pub(crate) fn new(
        merges: &[String],
        stored: Lookup<'_>,
        byte_level: bool,
        ignore_merges: bool,
        unknown: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        let n_vocab = stored.texts.len() as u32;
        let mut symbols = SymbolIds { stored, extra: HashMap::new(), n_vocab };
        let mut byte_tokens = Box::new([NONE; 256]);
        let alphabet = if byte_level {
            let mut ids = Box::new([NONE; 256]);
            for byte in 0..=255u8 {
                let text = bytes::char_of(byte).to_string();
                ids[usize::from(byte)] = symbols.id(&text)?;
                byte_tokens[usize::from(byte)] = stored.get(text.as_bytes()).unwrap_or(NONE);
            }
            Alphabet::Bytes(ids)
        } else {
            for byte in 0..=255u8 {
                let text = format!("<0x{byte:02X}>");
                byte_tokens[usize::from(byte)] = stored.get(text.as_bytes()).unwrap_or(NONE);
            }
            Alphabet::Chars
        };
        let mut table = MergeTable::with_capacity(merges.len());
        for (index, rule) in merges.iter().enumerate() {
            let bad = || TokenizerError::BadMerge { index, text: rule.clone() };
            // The first symbol has at least one character, which may itself be a space.
            let space = rule.bytes().skip(1).position(|b| b == b' ').ok_or_else(bad)? + 1;
            let (left, right) = (&rule[..space], &rule[space + 1..]);
            if right.is_empty() {
                return Err(bad());
            }
            let merge = Merge {
                rank: u32::try_from(index)
                    .map_err(|_| TokenizerError::TooLarge { what: "the number of merge rules" })?,
                id: symbols.id(&[left, right].concat())?,
            };
            table.insert(symbols.id(left)?, symbols.id(right)?, merge);
        }
        Ok(Self {
            alphabet,
            merges: table,
            n_vocab,
            byte_tokens,
            unknown,
            ignore_merges,
            reachable: (0..n_vocab).map(|_| AtomicU8::new(UNTRIED)).collect(),
        })
    }

    /// Appends the tokens of `piece` to `out`; `whole` finds the token that a piece is as a whole.
    pub(crate) fn encode(&self, piece: &str, whole: Lookup<'_>, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let token = whole.get(piece.as_bytes());
        let state = token.and_then(|id| self.reachable.get(id as usize));
        if let (Some(id), Some(state)) = (token, state)
            && (self.ignore_merges || state.load(Ordering::Relaxed) == REACHABLE)
        {
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
            Alphabet::Chars => symbols.extend(piece.char_indices().map(|(i, c)| {
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
                out.push(symbol.id);
                continue;
            }
            let end = symbols.get(i + 1).map_or(piece.len(), |next| next.start as usize);
            for &byte in &piece.as_bytes()[symbol.start as usize..end] {
                match self.byte_tokens[usize::from(byte)] {
                    NONE => out.extend(self.unknown),
                    id => out.push(id),
                }
            }
        }
    }

    /// The rule for two neighbours.
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
    /// `pairs[i]` is the rule for symbol `i` and its successor. An entry of the heap whose rank is
    /// no longer that of `pairs[i]` is out of date: a rank belongs to exactly one pair of symbols.
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
            // The right symbol is gone; its own pair with it.
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

/// Numbers for symbols: token ids, and numbers past the vocabulary for symbols that are no tokens.
///
/// A merge list may pass through symbols that the vocabulary leaves out; they must still merge.
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
        /// Random rule lists, including rules through symbols that are no tokens.
        #[test]
        fn heap_and_scan_agree(
            rules in prop::collection::vec(("[abc]{1,3}", "[abc]{1,3}"), 0..30),
            piece in "[abcd]{1,60}",
        ) {
            let tokens: Vec<String> = ["a", "b", "c", "ab", "bc", "abc"].map(String::from).into();
            let (texts, index) = table(&tokens);
            let lookup = Lookup { texts: &texts, index: &index };
            let rules: Vec<String> = rules.iter().map(|(l, r)| format!("{l} {r}")).collect();
            let bpe = Bpe::new(&rules, lookup, true, false, None).expect("valid");
            prop_assert_eq!(merged(&bpe, &piece, true), merged(&bpe, &piece, false));
        }
    }

    #[test]
    fn a_rule_without_two_symbols_is_refused() {
        let (texts, index) = table(&["a".to_owned()]);
        let lookup = Lookup { texts: &texts, index: &index };
        for bad in ["", "a", "ab", "a ", " a"] {
            let error = Bpe::new(&[bad.to_owned()], lookup, true, false, None).expect_err(bad);
            assert!(matches!(error, TokenizerError::BadMerge { index: 0, .. }), "{bad:?}: {error}");
        }
    }
}
