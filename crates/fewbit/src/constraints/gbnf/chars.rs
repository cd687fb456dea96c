//! Sets of characters, stored as ranges.

use std::fmt::Write;

/// A set of characters: sorted ranges that do not touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CharSet(Vec<(char, char)>);

impl CharSet {
    pub(super) fn new(mut ranges: Vec<(char, char)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(char, char)> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges {
            match merged.last_mut() {
                Some((_, last)) if from <= *last || after(*last) == Some(from) => *last = to.max(*last),
                _ => merged.push((from, to)),
            }
        }
        Self(merged)
    }

    pub(super) fn any() -> Self {
        Self(vec![('\0', char::MAX)])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn complement(&self) -> Self {
        let mut ranges = Vec::new();
        let mut from = Some('\0');
        for &(first, last) in &self.0 {
            if let (Some(from), Some(to)) = (from, before(first))
                && from <= to
            {
                ranges.push((from, to));
            }
            from = after(last);
        }
        ranges.extend(from.map(|from| (from, char::MAX)));
        Self(ranges)
    }

    pub(super) fn intersects(&self, other: &Self) -> bool {
        self.0.iter().any(|(from, to)| other.0.iter().any(|(a, b)| from <= b && a <= to))
    }

    /// The bytes that its characters begin with in UTF-8.
    pub(super) fn first_bytes(&self) -> Bytes {
        let mut bytes = Bytes::default();
        for &(from, to) in &self.0 {
            let lead = |c: char| {
                let mut buffer = [0; 4];
                c.encode_utf8(&mut buffer).as_bytes()[0]
            };
            (lead(from)..=lead(to)).for_each(|byte| bytes.insert(byte));
        }
        bytes
    }

    /// A regular expression for one of the characters.
    pub(super) fn regex(&self) -> String {
        let mut regex = String::from("[");
        for &(from, to) in &self.0 {
            let _ = write!(regex, "\\x{{{:X}}}-\\x{{{:X}}}", u32::from(from), u32::from(to));
        }
        regex.push(']');
        regex
    }
}

fn after(c: char) -> Option<char> {
    ('\0'..=char::MAX).nth(rank(c) + 1)
}

fn before(c: char) -> Option<char> {
    rank(c).checked_sub(1).and_then(|n| ('\0'..=char::MAX).nth(n))
}

/// How many characters come before it; surrogates do not count.
fn rank(c: char) -> usize {
    let code = u32::from(c);
    (if code >= 0xE000 { code - 0x800 } else { code }) as usize
}

/// A set of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bytes([u64; 4]);

impl Bytes {
    pub(super) fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte / 64)] |= 1 << (byte % 64);
    }

    /// Adds the bytes of `other`; returns whether that changed the set.
    pub(super) fn extend(&mut self, other: Self) -> bool {
        let before = *self;
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a |= b);
        before != *self
    }

    pub(super) fn intersects(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).any(|(a, b)| a & b != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complement_has_all_other_characters() {
        let set = CharSet::new(vec![('b', 'd'), ('a', 'a'), ('x', 'x'), ('\u{D7FF}', '\u{D7FF}')]);
        assert_eq!(set, CharSet(vec![('a', 'd'), ('x', 'x'), ('\u{D7FF}', '\u{D7FF}')]));
        let rest = set.complement();
        let expected = vec![('\0', '`'), ('e', 'w'), ('y', '\u{D7FE}'), ('\u{E000}', char::MAX)];
        assert_eq!(rest, CharSet(expected));
        assert_eq!(rest.complement(), set);
        assert!(!rest.intersects(&set));
        assert!(CharSet::any().complement().is_empty());
    }

    #[test]
    fn first_bytes_follow_utf8() {
        let bytes = CharSet::new(vec![('y', 'é'), ('€', '€')]).first_bytes();
        let mut expected = Bytes::default();
        (b'y'..=0x7F).for_each(|byte| expected.insert(byte));
        [0xC2, 0xC3, 0xE2].into_iter().for_each(|byte| expected.insert(byte));
        // No character begins with 0x80 to 0xC1, and none of them matters.
        (0x80..=0xC1).for_each(|byte| expected.insert(byte));
        assert_eq!(bytes, expected);
    }
}
