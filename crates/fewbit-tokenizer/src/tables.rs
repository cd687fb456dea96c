//! The lookup tables of a vocabulary: texts by id, ids by text, merges by pair.
//!
//! They are built once when a model is loaded, and a vocabulary has up to half a million entries. So texts are stored
//! in one buffer, and merge rules are keyed by pairs of ids instead of pairs of strings.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hasher};

use foldhash::quality::RandomState;

use crate::error::TokenizerError;

/// Marks an empty slot, and a symbol that is not a token.
pub(crate) const NONE: u32 = u32::MAX;

/// Strings by id, in one buffer.
#[derive(Debug, Default)]
pub(crate) struct TextTable {
    data: Vec<u8>,
    /// End of each string in `data`; it starts where the previous one ends.
    ends: Vec<u32>,
}

impl TextTable {
    /// A table with room for `n` strings.
    pub(crate) fn with_capacity(n: usize) -> Self {
        Self { data: Vec::with_capacity(n.saturating_mul(8)), ends: Vec::with_capacity(n) }
    }

    /// Appends a string; its id is the number of strings already present.
    pub(crate) fn push(&mut self, text: &[u8]) -> Result<(), TokenizerError> {
        self.data.extend_from_slice(text);
        let end = u32::try_from(self.data.len())
            .ok()
            .filter(|&end| end < 1 << 31)
            .ok_or(TokenizerError::TooLarge { what: "the text of all tokens together" })?;
        self.ends.push(end);
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Where the string of `id` starts; 0 for the first string, and for an `id` that does not exist.
    fn start(&self, id: u32) -> u32 {
        (id as usize).checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0)
    }

    /// The bytes of a string at a known position.
    fn at(&self, start: u32, len_bytes: u32) -> Option<&[u8]> {
        self.data.get(start as usize..)?.get(..len_bytes as usize)
    }

    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = if id == 0 { 0 } else { *self.ends.get(id - 1)? as usize };
        self.data.get(start..end)
    }
}

/// Ids by text: open addressing over a [`TextTable`], which holds the texts themselves.
///
/// The hash is randomly keyed, because the texts come from a file. A slot holds part of the hash and the position of
/// the text, so a lookup reads one cache line of slots and one of texts.
#[derive(Debug)]
pub(crate) struct TextIndex {
    /// The length is a power of two and at least twice the number of texts.
    slots: Vec<Slot>,
    hasher: RandomState,
    max_len_bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// [`NONE`] if the slot is empty.
    id: u32,
    /// Bits of the hash that did not select the slot.
    tag: u32,
    start: u32,
    len_bytes: u32,
}

const EMPTY: Slot = Slot { id: NONE, tag: 0, start: 0, len_bytes: 0 };

impl TextIndex {
    /// Indexes the non-empty texts whose id `wanted` accepts. If a text occurs several times, the lowest id wins.
    pub(crate) fn new(texts: &TextTable, wanted: impl Fn(u32) -> bool) -> Self {
        let n_slots = (texts.len() * 2 + 1).next_power_of_two();
        let mut index = Self { slots: vec![EMPTY; n_slots], hasher: RandomState::default(), max_len_bytes: 0 };
        for id in 0..texts.len() as u32 {
            let Some(text) = texts.get(id).filter(|text| !text.is_empty() && wanted(id)) else {
                continue;
            };
            let (place, tag) = index.find(texts, text);
            let len_bytes = text.len() as u32;
            if let Some(slot) = index.slots.get_mut(place)
                && slot.id == NONE
            {
                *slot = Slot { id, tag, start: texts.start(id), len_bytes };
                index.max_len_bytes = index.max_len_bytes.max(text.len());
            }
        }
        index
    }

    /// The slot that holds `text`, or the empty slot where it would be inserted, and the tag.
    fn find(&self, texts: &TextTable, text: &[u8]) -> (usize, u32) {
        let hash = self.hasher.hash_one(text);
        let (mask, tag) = (self.slots.len() - 1, (hash >> 32) as u32);
        let mut place = hash as usize & mask;
        // The loop ends, because at most half of the slots are used.
        while let Some(slot) = self.slots.get(place)
            && slot.id != NONE
            && !(slot.tag == tag && texts.at(slot.start, slot.len_bytes) == Some(text))
        {
            place = (place + 1) & mask;
        }
        (place, tag)
    }

    /// The id of `text`.
    pub(crate) fn get(&self, texts: &TextTable, text: &[u8]) -> Option<u32> {
        if text.len() > self.max_len_bytes {
            return None;
        }
        let (place, _) = self.find(texts, text);
        self.slots.get(place).map(|slot| slot.id).filter(|&id| id != NONE)
    }
}

/// The result of merging a pair of symbols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Merge {
    /// Position in the list of rules: lower merges first.
    pub(crate) rank: u32,
    /// The merged symbol.
    pub(crate) id: u32,
}

/// Merge rules by pair of symbols.
#[derive(Debug, Default)]
pub(crate) struct MergeTable {
    map: HashMap<u64, Merge, PairHash>,
}

impl MergeTable {
    pub(crate) fn with_capacity(n: usize) -> Self {
        Self { map: HashMap::with_capacity_and_hasher(n, PairHash::default()) }
    }

    /// Adds a rule. The first rule for a pair stays, unless `replace` is set.
    pub(crate) fn insert(&mut self, left: u32, right: u32, merge: Merge, replace: bool) {
        match self.map.entry(pair(left, right)) {
            Entry::Occupied(mut entry) if replace => *entry.get_mut() = merge,
            Entry::Occupied(_) => {}
            Entry::Vacant(entry) => drop(entry.insert(merge)),
        }
    }

    #[inline]
    pub(crate) fn get(&self, left: u32, right: u32) -> Option<Merge> {
        self.map.get(&pair(left, right)).copied()
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// A cheap keyed hash for pairs of ids: this lookup is the inner loop of BPE.
#[derive(Debug, Clone)]
struct PairHash {
    key: u64,
}

impl Default for PairHash {
    fn default() -> Self {
        Self { key: RandomState::default().hash_one(0u64) }
    }
}

impl BuildHasher for PairHash {
    type Hasher = PairHasher;

    fn build_hasher(&self) -> PairHasher {
        PairHasher { state: self.key }
    }
}

struct PairHasher {
    state: u64,
}

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        // Both halves of a 128-bit product depend on all bits of the input.
        let product = u128::from(self.state ^ value) * 0x9E37_79B9_7F4A_7C15;
        self.state = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_by_id_and_ids_by_text() {
        let mut texts = TextTable::default();
        for text in ["a", "", "bc", "a", "\u{2581}x"] {
            texts.push(text.as_bytes()).expect("small");
        }
        let index = TextIndex::new(&texts, |id| id != 2);
        assert_eq!(index.get(&texts, b"a"), Some(0), "the lowest id wins");
        assert_eq!(index.get(&texts, b""), None);
        assert_eq!(index.get(&texts, b"bc"), None, "not wanted");
        assert_eq!(index.get(&texts, "\u{2581}x".as_bytes()), Some(4));
        assert_eq!(texts.get(2), Some(&b"bc"[..]));
        assert_eq!(texts.get(5), None);
    }

    #[test]
    fn first_rule_for_a_pair_stays_unless_replaced() {
        let mut merges = MergeTable::with_capacity(2);
        merges.insert(1, 2, Merge { rank: 0, id: 7 }, false);
        merges.insert(1, 2, Merge { rank: 1, id: 8 }, false);
        assert_eq!(merges.get(1, 2), Some(Merge { rank: 0, id: 7 }));
        assert_eq!(merges.get(2, 1), None);
        merges.insert(1, 2, Merge { rank: 1, id: 8 }, true);
        assert_eq!(merges.get(1, 2), Some(Merge { rank: 1, id: 8 }));
    }
}
