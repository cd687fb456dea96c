//! Splitting text into the pieces that BPE merges stay within.
//!
//! A split is a list of steps, each a regular expression. Its matches and the text between them become pieces, and the
//! next step works inside those. The published expressions end in `\s+(?!\S)|\s+`: a run of white space leaves its last
//! character to the word that follows. This lookahead is the only one in them, and it is not passed to the regex
//! engine: `\s+` is matched as a second pattern with lower priority, and the splitter gives back the last character
//! itself. The rest is regular, so an automaton runs in time linear in the length of any text; there is no backtracking
//! and no step limit to exceed. (The preceding alternatives never leave a run that ends in a newline to `\s+`, and a
//! run that they did match must stay whole. This is why the id of the pattern decides.)

use regex_automata::meta::{BuildError, Regex};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input};

/// What happens to a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behavior {
    /// A piece of its own.
    Isolated,
    /// A piece of its own, together with the matches that follow it directly.
    Contiguous,
    /// Part of the preceding piece.
    MergedWithPrevious,
    /// Part of the following piece.
    MergedWithNext,
    /// Removed: it belongs to no piece. Vocabularies converted from tiktoken keep their words by removing, with
    /// `invert`, the text between them.
    Removed,
}

/// One compiled step.
#[derive(Debug)]
pub(crate) struct Cut {
    regex: Regex,
    behavior: Behavior,
    /// Whether the text between matches counts as the matches, and vice versa.
    invert: bool,
}

/// The id of the white space pattern, in steps that have one.
const WHITESPACE: usize = 1;

impl Cut {
    /// Compiles `pattern`, followed by `|\s+(?!\S)|\s+` if `whitespace`.
    pub(crate) fn new(pattern: &str, whitespace: bool) -> Result<Self, Box<BuildError>> {
        let mut patterns = vec![pattern];
        if whitespace {
            patterns.push(r"\s+");
        }
        let regex = Regex::builder()
            // The automata are built lazily. Text in many scripts needs more states than the default cache holds, and a
            // full cache is cleared and rebuilt.
            .configure(Regex::config().hybrid_cache_capacity(8 << 20))
            .syntax(syntax::Config::new())
            .build_many(&patterns)?;
        Ok(Self { regex, behavior: Behavior::Isolated, invert: false })
    }

    pub(crate) fn with_behavior(self, behavior: Behavior, invert: bool) -> Self {
        Self { behavior, invert, ..self }
    }

    /// Whether the expression matches the empty text.
    pub(crate) fn matches_nothing(&self) -> bool {
        self.regex.is_match("")
    }

    /// The next match in `text` from `at` on.
    fn find(&self, text: &str, at: usize) -> Option<(usize, usize)> {
        // Most expressions match directly where the last match ended, and then only the end has to be found.
        let here = Input::new(text).range(at..).anchored(Anchored::Yes);
        let (start, mut end, pattern) = match self.regex.search_half(&here) {
            Some(half) => (at, half.offset(), half.pattern()),
            None => {
                let span = self.regex.search(&Input::new(text).range(at..))?;
                (span.start(), span.end(), span.pattern())
            }
        };
        if pattern.as_usize() == WHITESPACE && end < text.len() {
            end = before_last_char(text, start, end);
        }
        (end > start).then_some((start, end))
    }

    /// The pieces of `text` under the behaviors other than [`Behavior::Isolated`].
    fn pieces<'t>(&self, text: &'t str) -> Vec<&'t str> {
        // Spans, and whether they match; together they are the text.
        let mut spans: Vec<(usize, usize, bool)> = Vec::new();
        let mut at = 0;
        while let Some((start, end)) = self.find(text, at) {
            if at < start {
                spans.push((at, start, self.invert));
            }
            spans.push((start, end, !self.invert));
            at = end;
        }
        if at < text.len() {
            spans.push((at, text.len(), self.invert));
        }
        let mut pieces: Vec<(usize, usize)> = Vec::with_capacity(spans.len());
        let mut before = false;
        let backwards = self.behavior == Behavior::MergedWithNext;
        if backwards {
            spans.reverse();
        }
        for (start, end, is_match) in spans {
            if is_match && self.behavior == Behavior::Removed {
                continue;
            }
            let joins = match self.behavior {
                Behavior::Isolated | Behavior::Removed => false,
                Behavior::Contiguous => is_match == before,
                Behavior::MergedWithPrevious | Behavior::MergedWithNext => is_match && !before,
            };
            match pieces.last_mut().filter(|_| joins) {
                Some(piece) if backwards => piece.0 = start,
                Some(piece) => piece.1 = end,
                None => pieces.push((start, end)),
            }
            before = is_match;
        }
        if backwards {
            pieces.reverse();
        }
        pieces.into_iter().filter_map(|(start, end)| text.get(start..end)).collect()
    }
}

/// The steps of a split.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    cuts: Vec<Cut>,
}

impl Splitter {
    pub(crate) fn new(cuts: Vec<Cut>) -> Self {
        Self { cuts }
    }

    /// Calls `found` with each piece of `text`, in order. Concatenated, the pieces are the text, except for what
    /// [`Behavior::Removed`] removes.
    pub(crate) fn split<'t>(&self, text: &'t str, found: &mut dyn FnMut(&'t str)) {
        split_by(&self.cuts, text, found);
    }
}

fn split_by<'t>(cuts: &[Cut], text: &'t str, found: &mut dyn FnMut(&'t str)) {
    let Some((cut, rest)) = cuts.split_first() else {
        if !text.is_empty() {
            found(text);
        }
        return;
    };
    if cut.behavior != Behavior::Isolated {
        cut.pieces(text).into_iter().for_each(|piece| split_by(rest, piece, found));
        return;
    }
    let mut at = 0;
    while at < text.len() {
        let Some((start, end)) = cut.find(text, at) else { break };
        split_by(rest, &text[at..start], found);
        split_by(rest, &text[start..end], found);
        at = end;
    }
    split_by(rest, &text[at..], found);
}

/// Offset of the last character of `text[start..end]`; `end` if it is the only one.
fn before_last_char(text: &str, start: usize, end: usize) -> usize {
    match text[start..end].char_indices().next_back() {
        Some((last, _)) if last > 0 => start + last,
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_behavior_gives_the_expected_pieces() {
        let cases: [(Behavior, bool, &str, &[&str]); 9] = [
            (Behavior::Isolated, false, "The-final--countdown", &["The", "-", "final", "-", "-", "countdown"]),
            (Behavior::Contiguous, false, "The-final--countdown", &["The", "-", "final", "--", "countdown"]),
            (Behavior::MergedWithPrevious, false, "The-final--countdown", &["The-", "final-", "-", "countdown"]),
            (Behavior::MergedWithNext, false, "The-final--countdown", &["The", "-final", "-", "-countdown"]),
            (Behavior::MergedWithPrevious, false, "--a", &["-", "-", "a"]),
            (Behavior::MergedWithNext, false, "a--", &["a", "-", "-"]),
            (Behavior::Contiguous, true, "a--b", &["a", "--", "b"]),
            (Behavior::Removed, false, "-a--b-", &["a", "b"]),
            (Behavior::Removed, true, "-a--b-", &["-", "-", "-", "-"]),
        ];
        for (behavior, invert, text, expected) in cases {
            let cut = Cut::new("-", false).expect("valid").with_behavior(behavior, invert);
            let mut pieces = Vec::new();
            Splitter::new(vec![cut]).split(text, &mut |piece| pieces.push(piece));
            assert_eq!(pieces, expected, "{behavior:?} {invert}");
        }
    }

    #[test]
    fn expressions_that_match_the_empty_string_are_detected() {
        assert!(Cut::new("a*", false).expect("valid").matches_nothing());
        assert!(!Cut::new("a+", true).expect("valid").matches_nothing());
    }
}
