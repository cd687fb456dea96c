//! Prevents special tokens in the text of a conversation from becoming special tokens.
//!
//! A user who writes `<|im_end|>` must not end their message. After the template has run, its tokens cannot be
//! distinguished from the user's. So before it runs, every such text in the conversation is broken up: a marker
//! character is inserted after its first character. The marker is a Unicode noncharacter that occurs neither in the
//! conversation nor in the template; it is not white space, so trimming does not remove it. Special tokens are then
//! searched for in the marked output, and the markers are removed from the text between them before it is encoded as
//! ordinary text. The user's text gets the ids that it would get anywhere else.
//!
//! A token could also be formed from two parts: `<|im_` at the end of one string and `end|>` at the start of what the
//! template puts after it. Strings that end with the beginning of a special token, or start with the end of one, get a
//! marker at that position too.
//!
//! Text without special tokens, which is nearly all text, is not changed: templates that compare, search or split it
//! see the original.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use serde_json::Value;

use super::TemplateError;
use crate::special::Matcher;
use crate::tokenizer::Tokenizer;

/// Finds the positions in a conversation that need a marker.
#[derive(Debug)]
pub(super) struct Guard {
    matcher: Arc<Matcher>,
    /// Characters that cannot be markers, because the template contains them.
    in_template: BTreeSet<char>,
    /// Proper prefixes of special tokens.
    beginnings: Parts,
    /// Proper suffixes of special tokens.
    ends: Parts,
}

/// Parts of special tokens, of which some vocabularies have thousands.
#[derive(Debug, Default)]
struct Parts {
    texts: HashSet<String>,
    /// The lengths that occur, so that a lookup tries each length instead of each text.
    lens_bytes: BTreeSet<usize>,
}

impl Parts {
    fn insert(&mut self, part: &str) {
        self.lens_bytes.insert(part.len());
        self.texts.insert(part.to_owned());
    }

    /// Offsets in `text` of the parts that it ends with.
    fn at_end_of(&self, text: &str) -> impl Iterator<Item = usize> {
        let starts = self.lens_bytes.iter().map_while(|&len| text.len().checked_sub(len));
        starts.filter(|&start| text.get(start..).is_some_and(|part| self.texts.contains(part)))
    }

    /// Whether `text` starts with one of the parts.
    fn start(&self, text: &str) -> bool {
        self.lens_bytes.iter().any(|&len| text.get(..len).is_some_and(|part| self.texts.contains(part)))
    }
}

/// Fields that templates compare with fixed names, such as `role == 'user'`.
const NAMES: [&str; 2] = ["role", "type"];

impl Guard {
    pub(super) fn new(template: &str, tokenizer: &Tokenizer) -> Self {
        let mut guard = Self {
            matcher: tokenizer.matcher(),
            in_template: template.chars().filter(|&c| is_noncharacter(c)).collect(),
            beginnings: Parts::default(),
            ends: Parts::default(),
        };
        for &id in tokenizer.matcher().control_ids() {
            let text = tokenizer.token_text(id).unwrap_or_default();
            for (cut, _) in text.char_indices().skip(1) {
                guard.beginnings.insert(&text[..cut]);
                guard.ends.insert(&text[cut..]);
            }
        }
        guard
    }

    /// Breaks up special tokens in every string of `value`. Returns the marker if one was needed.
    pub(super) fn apply(&self, value: &mut Value) -> Result<Option<char>, TemplateError> {
        let mut used = self.in_template.clone();
        let mut needed = false;
        visit(value, &mut |text| {
            used.extend(text.chars().filter(|&c| is_noncharacter(c)));
            needed = needed || !self.places(text).is_empty();
        });
        if !needed {
            return Ok(None);
        }
        let marker = noncharacters().find(|c| !used.contains(c)).ok_or(TemplateError::NoMarker)?;
        visit(value, &mut |text| {
            // From the back, so that earlier positions stay valid.
            for place in self.places(text).into_iter().rev() {
                text.insert(place, marker);
            }
        });
        Ok(Some(marker))
    }

    /// The offsets in `text` of the characters that need a marker before them.
    fn places(&self, text: &str) -> BTreeSet<usize> {
        let after_first = |start: usize| start + text[start..].chars().next().map_or(0, char::len_utf8);
        let mut places: BTreeSet<usize> = self.matcher.control_starts(text).into_iter().map(after_first).collect();
        // A template may or may not trim the text.
        for part in [text, text.trim()] {
            let offset = text.len() - text.trim_start().len();
            let offset = if part.len() == text.len() { 0 } else { offset };
            places.extend(self.beginnings.at_end_of(part).map(|start| after_first(offset + start)));
            if self.ends.start(part) {
                places.insert(offset);
            }
        }
        places
    }
}

/// Calls `change` with every string in `value`, including the keys of objects.
fn visit(value: &mut Value, change: &mut dyn FnMut(&mut String)) {
    match value {
        Value::String(text) => change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| visit(item, change)),
        Value::Object(fields) => {
            *fields = std::mem::take(fields)
                .into_iter()
                .map(|(mut key, mut field)| {
                    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                    let is_name =
                        NAMES.contains(&key.as_str()) && field.as_str().is_some_and(|name| name.chars().all(plain));
                    if !is_name {
                        visit(&mut field, change);
                    }
                    change(&mut key);
                    (key, field)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The 66 code points that Unicode reserves for internal use by programs.
fn noncharacters() -> impl Iterator<Item = char> {
    let ends_of_planes = (0..=0x10).flat_map(|plane| [0xFFFE, 0xFFFF].map(|low| plane << 16 | low));
    (0xFDD0..=0xFDEF).chain(ends_of_planes).filter_map(char::from_u32)
}

/// Whether `c` is a noncharacter.
pub(super) fn is_noncharacter(c: char) -> bool {
    let code = c as u32;
    (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_66_noncharacters() {
        assert_eq!(noncharacters().count(), 66);
        assert!(noncharacters().all(is_noncharacter));
        assert!(!is_noncharacter('\u{FFFD}') && !is_noncharacter('<'));
    }
}
