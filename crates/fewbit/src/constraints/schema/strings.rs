//! Sets of strings, and the regular expressions of their JSON texts.

use std::rc::Rc;

use super::patterns::{CHARACTER, Pattern};

/// A set of strings: those that satisfy all of these conditions. Lengths are in characters.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Strings {
    pub(super) min: u64,
    pub(super) max: Option<u64>,
    /// Each with whether it must be found in the string, or must not.
    pub(super) patterns: Vec<(Rc<Pattern>, bool)>,
    /// If set, the only values.
    pub(super) values: Option<Vec<String>>,
    pub(super) excluded: Vec<String>,
}

/// The largest lengths that are compared exactly: the engine counts with 31 bits.
const MAX_LENGTH: u64 = 1 << 24;

impl Strings {
    pub(super) fn admits(&self, text: &str) -> bool {
        self.values.as_ref().is_none_or(|values| values.iter().any(|value| value == text)) && self.keeps(text)
    }

    /// Whether the text is allowed by the list of values, if there is one.
    fn keeps(&self, text: &str) -> bool {
        let length = text.chars().count() as u64;
        self.min <= length
            && self.max.is_none_or(|max| length <= max)
            && self.patterns.iter().all(|(pattern, is_found)| pattern.is_match(text) == *is_found)
            && !self.excluded.iter().any(|value| value == text)
    }

    /// The values, if they are listed.
    pub(super) fn listed(&self) -> Option<Vec<&str>> {
        let values = self.values.as_ref()?;
        Some(values.iter().map(String::as_str).filter(|value| self.keeps(value)).collect())
    }

    /// Whether the set is empty, as far as lengths and values show.
    pub(super) fn is_empty(&self) -> bool {
        self.max.is_some_and(|max| max < self.min) || self.listed().is_some_and(|values| values.is_empty())
    }

    /// Regular expressions of the JSON text that must all hold, each with whether it is negated; or the texts
    /// themselves.
    pub(super) fn write(&self) -> Result<Written, String> {
        if let Some(values) = self.listed() {
            return Ok(Written::Texts(values.into_iter().map(quoted).collect()));
        }
        let mut all = Vec::new();
        if self.min > MAX_LENGTH {
            return Err(format!("strings have more than {MAX_LENGTH} characters"));
        }
        let lengths = match (self.min, self.max.filter(|max| *max <= MAX_LENGTH)) {
            (0, None) => "*".to_owned(),
            (1, None) => "+".to_owned(),
            (min, None) => format!("{{{min},}}"),
            (min, Some(max)) => format!("{{{min},{max}}}"),
        };
        // A pattern that must be found already describes the characters.
        if lengths != "*" || !self.patterns.iter().any(|(_, is_found)| *is_found) {
            all.push((format!("\"{CHARACTER}{lengths}\""), false));
        }
        all.extend(self.patterns.iter().map(|(pattern, is_found)| (format!("\"{}\"", pattern.quoted), !is_found)));
        let excluded: Vec<String> = self.excluded.iter().map(|text| regex_syntax::escape(&quoted(text))).collect();
        if !excluded.is_empty() {
            all.push((excluded.join("|"), true));
        }
        Ok(Written::Regex(all))
    }
}

pub(super) enum Written {
    Texts(Vec<String>),
    Regex(Vec<(String, bool)>),
}

/// A string as JSON text.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
