//! Stop strings, found across token boundaries and never emitted in part; and stop conditions of the caller.
//!
//! Every stop string has a Knuth-Morris-Pratt automaton that reads the bytes of the text. Its state is the length of
//! the longest end of the text that could begin the string. So the largest state of all automata is exactly what must
//! be held back, and everything before it can be emitted. The work per byte is constant on average.
//!
//! The match that ends first wins; of those that end at the same byte, the longest. Later text cannot change an earlier
//! decision, so the result does not depend on how the text is cut into tokens.

use std::fmt;
use std::sync::Arc;

/// The state of a running generation, for a condition that may end it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct SoFar<'a> {
    /// The text emitted so far, including the marks that a model writes around reasoning and tool calls. A possible
    /// beginning of a stop string and an incomplete character are not in it yet.
    pub text: &'a str,
    /// The generated tokens.
    pub tokens: &'a [u32],
}

impl<'a> SoFar<'a> {
    pub(crate) fn new(text: &'a str, tokens: &'a [u32]) -> Self {
        Self { text, tokens }
    }
}

/// A stop condition of the caller.
#[derive(Clone)]
pub(crate) struct StopWhen(Arc<Condition>);

type Condition = dyn Fn(&SoFar<'_>) -> bool + Send + Sync;

impl StopWhen {
    pub(crate) fn new(is_enough: impl Fn(&SoFar<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_enough))
    }

    pub(crate) fn is_enough(&self, so_far: &SoFar<'_>) -> bool {
        (self.0)(so_far)
    }
}

impl fmt::Debug for StopWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StopWhen")
    }
}

/// Finds stop strings in a text that arrives in pieces.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// The end of the text so far that may begin a stop string. Starts at a character boundary, because a stop string
    /// does too.
    held: String,
    stopped: Option<usize>,
}

#[derive(Debug, Clone)]
struct Pattern {
    bytes: Box<[u8]>,
    /// For each prefix, the length of its longest proper suffix that is a prefix too.
    fallback: Box<[usize]>,
    state: usize,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes: Box<[u8]> = text.as_bytes().into();
        let mut fallback = vec![0; bytes.len()];
        let mut len = 0;
        for i in 1..bytes.len() {
            while len > 0 && bytes[i] != bytes[len] {
                len = fallback[len - 1];
            }
            if bytes[i] == bytes[len] {
                len += 1;
            }
            fallback[i] = len;
        }
        Self { bytes, fallback: fallback.into(), state: 0 }
    }

    /// Takes one byte; returns whether it completes the string.
    fn step(&mut self, byte: u8) -> bool {
        while self.state > 0 && self.bytes[self.state] != byte {
            self.state = self.fallback[self.state - 1];
        }
        if self.bytes[self.state] == byte {
            self.state += 1;
        }
        self.state == self.bytes.len()
    }
}

impl StopMatcher {
    /// A matcher for the given strings. Empty strings are ignored, because they would stop everything.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        Self {
            patterns: stops.iter().map(AsRef::as_ref).filter(|stop| !stop.is_empty()).map(Pattern::new).collect(),
            held: String::new(),
            stopped: None,
        }
    }

    /// Takes the next piece of text and returns what can be emitted: everything that is not part of a stop string and
    /// cannot become one. After a match, it returns nothing.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (i, byte) in text.bytes().enumerate() {
            let mut longest = 0;
            for pattern in &mut self.patterns {
                if pattern.step(byte) {
                    longest = longest.max(pattern.bytes.len());
                }
            }
            if longest > 0 {
                let end = before + i + 1;
                self.stopped = Some(longest);
                self.held.truncate(end - longest);
                return std::mem::take(&mut self.held);
            }
        }
        let keep = self.patterns.iter().map(|p| p.state).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string was found.
    pub fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// The stop string that was found.
    pub fn found(&self) -> Option<&str> {
        let len = self.stopped?;
        let is_found = |pattern: &&Pattern| pattern.state == len && pattern.bytes.len() == len;
        std::str::from_utf8(&self.patterns.iter().find(is_found)?.bytes).ok()
    }

    /// Whether text is held back that may begin a stop string.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Ends the text, and returns what was held back: it is not part of a stop string.
    pub fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.state = 0;
        }
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn found_stop_string_is_reported() {
        let mut stops = StopMatcher::new(&["b", "ab", "c"]);
        assert_eq!((stops.push("xa").as_str(), stops.found()), ("x", None));
        assert_eq!((stops.push("bc").as_str(), stops.found()), ("", Some("ab")));
    }

    /// The definition: try every end in turn, and at each the longest stop string first.
    fn naive(text: &str, stops: &[String]) -> (String, bool) {
        for end in 1..=text.len() {
            let longest = stops
                .iter()
                .filter(|stop| !stop.is_empty())
                .filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()))
                .map(String::len)
                .max();
            if let Some(len) = longest {
                return (text[..end - len].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    #[test]
    fn stop_string_across_three_pieces_is_removed() {
        let mut matcher = StopMatcher::new(&["\nUser:"]);
        assert_eq!(matcher.push("Hi.\nUs"), "Hi.");
        assert!(matcher.is_holding());
        assert_eq!(matcher.push("er"), "");
        assert_eq!(matcher.push(": what"), "");
        assert!(matcher.is_stopped());
        assert_eq!(matcher.push("more"), "");
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn text_held_for_a_partial_match_is_released() {
        let mut matcher = StopMatcher::new(&["abac"]);
        assert_eq!(matcher.push("xaba"), "x");
        assert_eq!(matcher.push("ba"), "ab");
        assert_eq!(matcher.push("d"), "abad");
        assert_eq!(matcher.push("ab"), "");
        assert_eq!(matcher.finish(), "ab");
    }

    #[test]
    fn empty_stop_strings_hold_nothing_back() {
        let mut matcher = StopMatcher::new::<&str>(&[""]);
        assert_eq!(matcher.push("text"), "text");
        assert!(!matcher.is_holding() && !matcher.is_stopped());
    }

    proptest! {
        #[test]
        fn matching_in_pieces_equals_a_search_of_the_whole_text(
            // A small alphabet with a two-byte letter, so that matches and near misses are common.
            pieces in proptest::collection::vec("[abé]{0,4}", 0..12),
            stops in proptest::collection::vec("[abé]{0,5}", 0..4),
        ) {
            let mut matcher = StopMatcher::new(&stops);
            let mut out = String::new();
            let mut fed = String::new();
            for piece in &pieces {
                out += &matcher.push(piece);
                fed += piece;
                let (expected, stopped) = naive(&fed, &stops);
                prop_assert_eq!(matcher.is_stopped(), stopped);
                // Nothing goes out that a later match would have to take back, and no more is held
                // than could still begin a stop string.
                prop_assert!(expected.starts_with(&out));
                if stopped {
                    prop_assert_eq!(&out, &expected);
                    break;
                }
                let held = &fed[out.len()..];
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)));
            }
            out += &matcher.finish();
            prop_assert_eq!(out, naive(&fed, &stops).0);
        }
    }
}
