//! Finds special tokens in text, and lists the texts by which some of them are recognised.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};
use regex_automata::meta::Regex;

use crate::error::TokenizerError;
use crate::tables::TextTable;
use crate::vocabulary::TokenKind;

/// Whether an encoder turns the text of special tokens into those tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpecialTokens {
    /// Recognizes control tokens, the unknown token and user-defined tokens. For text that the program or a chat
    /// template wrote.
    Parse,
    /// Recognizes only user-defined tokens, which are text; `<|im_end|>` is ten characters like any others. For text
    /// that comes from a user.
    Plain,
}

/// Texts of tokens that end an answer, for models that do not declare them in their metadata.
///
/// If a file lists one of these as a normal token, its type was lost in conversion, except for the [`AMBIGUOUS_ENDS`].
pub(crate) const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
];

/// Texts that end an answer if they are special tokens, but that also occur as plain text.
pub(crate) const AMBIGUOUS_ENDS: &[&str] = &[
    "</s>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|tool_response>",
    "[e~[",
    // The separator between files in the training text of code models: another document follows it.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<reponame>",
    "<|file_sep|>",
];

/// `<|end|>` ends a message, but not the answer if an answer consists of several messages.
pub(crate) const MESSAGE_END: &str = "<|end|>";

/// The tokens that identify such vocabularies: both tokens of one of these pairs.
pub(crate) const SEVERAL_MESSAGES: [[&str; 2]; 3] =
    [["<|return|>", "<|call|>"], ["<|call|>", "<|flush|>"], ["<|calls|>", "<|flush|>"]];

/// How a special token treats the text around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Edges {
    /// White space before it belongs to it.
    pub(crate) lstrip: bool,
    /// White space after it belongs to it.
    pub(crate) rstrip: bool,
    /// It is only recognised if the characters around it are not part of a word.
    pub(crate) single_word: bool,
}

/// Finds special tokens in text; the longest one at each position wins.
#[derive(Debug)]
pub(crate) struct Matcher {
    /// For [`SpecialTokens::Parse`].
    all: Patterns,
    /// For [`SpecialTokens::Plain`].
    user_defined: Patterns,
    /// Every token of `all` that is not in `user_defined`, overlaps included.
    control: Patterns,
    /// Tokens that depend on the text around them.
    edges: HashMap<u32, Edges>,
    /// Matches a character of a word; `None` if no token needs it.
    word: Option<Regex>,
}

/// The texts of some tokens, as one automaton.
#[derive(Debug)]
struct Patterns {
    /// `None` if there are no tokens.
    automaton: Option<AhoCorasick>,
    /// The token of each pattern.
    ids: Vec<u32>,
}

impl Patterns {
    fn new(
        texts: &TextTable,
        kinds: &[TokenKind],
        match_kind: MatchKind,
        wanted: impl Fn(u32, TokenKind) -> bool,
    ) -> Result<Self, TokenizerError> {
        let ids: Vec<u32> = (0u32..)
            .zip(kinds)
            .filter(|(id, kind)| wanted(*id, **kind) && texts.get(*id).is_some_and(|t| !t.is_empty()))
            .map(|(id, _)| id)
            .collect();
        let automaton = if ids.is_empty() {
            None
        } else {
            let patterns = ids.iter().map(|&id| texts.get(id).unwrap_or_default());
            let built = AhoCorasick::builder().match_kind(match_kind).build(patterns);
            Some(built.map_err(|error| TokenizerError::SpecialTokens { reason: error.to_string() })?)
        };
        Ok(Self { automaton, ids })
    }
}

/// A part of a text, as [`Matcher::fragments`] cuts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment<'t> {
    /// Text between special tokens; never empty.
    Text(&'t str),
    /// A special token.
    Token(u32),
}

impl Matcher {
    /// Creates a matcher of those control, unknown and user-defined tokens that `wanted` accepts.
    pub(crate) fn new(
        texts: &TextTable,
        kinds: &[TokenKind],
        edges: HashMap<u32, Edges>,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<Self, TokenizerError> {
        use TokenKind::{Control, Unknown, UserDefined};
        let leftmost = MatchKind::LeftmostLongest;
        let patterns = |match_kind, is_kind: fn(TokenKind) -> bool| {
            Patterns::new(texts, kinds, match_kind, |id, kind| is_kind(kind) && wanted(id))
        };
        let word = edges.values().any(|edges| edges.single_word).then(|| Regex::new(r"\w").expect("a constant"));
        Ok(Self {
            all: patterns(leftmost, |kind| matches!(kind, Control | Unknown | UserDefined))?,
            user_defined: patterns(leftmost, |kind| kind == UserDefined)?,
            control: patterns(MatchKind::Standard, |kind| matches!(kind, Control | Unknown))?,
            edges,
            word,
        })
    }

    /// Cuts `text` at its special tokens.
    pub(crate) fn fragments<'t>(&self, text: &'t str, special: SpecialTokens, found: &mut dyn FnMut(Fragment<'t>)) {
        let patterns = match special {
            SpecialTokens::Parse => &self.all,
            SpecialTokens::Plain => &self.user_defined,
        };
        let mut at = 0;
        if let Some(automaton) = &patterns.automaton {
            for hit in automaton.find_iter(text) {
                let Some(&id) = patterns.ids.get(hit.pattern().as_usize()) else { continue };
                let Some((start, end)) = self.span(text, hit.start(), hit.end(), id, at) else { continue };
                if at < start {
                    found(Fragment::Text(&text[at..start]));
                }
                found(Fragment::Token(id));
                at = end;
            }
        }
        if at < text.len() {
            found(Fragment::Text(&text[at..]));
        }
    }

    /// The part of the text, from `at` on, that a token takes if it may occur there.
    fn span(&self, text: &str, start: usize, end: usize, id: u32, at: usize) -> Option<(usize, usize)> {
        let Some(edges) = self.edges.get(&id) else { return Some((start, end)) };
        let (before, after) = (&text[..start], &text[end..]);
        if edges.single_word {
            let is_word =
                |c: Option<char>| c.zip(self.word.as_ref()).is_some_and(|(c, word)| word.is_match(&*c.to_string()));
            if is_word(before.chars().next_back()) || is_word(after.chars().next()) {
                return None;
            }
        }
        let start = if edges.lstrip { before.trim_end().len().max(at) } else { start };
        let end = if edges.rstrip { text.len() - after.trim_start().len() } else { end };
        Some((start, end))
    }

    /// Offsets of all control tokens in `text`, overlapping ones included, in no particular order.
    pub(crate) fn control_starts(&self, text: &str) -> Vec<usize> {
        match &self.control.automaton {
            Some(automaton) => automaton.find_overlapping_iter(text).map(|hit| hit.start()).collect(),
            None => Vec::new(),
        }
    }

    /// The tokens that [`Self::control_starts`] searches for.
    pub(crate) fn control_ids(&self) -> &[u32] {
        &self.control.ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(tokens: &[(&str, TokenKind)]) -> Matcher {
        with_edges(tokens, HashMap::new())
    }

    fn with_edges(tokens: &[(&str, TokenKind)], edges: HashMap<u32, Edges>) -> Matcher {
        let mut texts = TextTable::default();
        let mut kinds = Vec::new();
        for (text, kind) in tokens {
            texts.push(text.as_bytes()).expect("small");
            kinds.push(*kind);
        }
        Matcher::new(&texts, &kinds, edges, |_| true).expect("valid")
    }

    fn cut(matcher: &Matcher, text: &str, special: SpecialTokens) -> Vec<String> {
        let mut out = Vec::new();
        matcher.fragments(text, special, &mut |fragment| {
            out.push(match fragment {
                Fragment::Text(text) => text.to_owned(),
                Fragment::Token(id) => format!("#{id}"),
            });
        });
        out
    }

    #[test]
    fn longest_token_wins_and_plain_mode_ignores_control_tokens() {
        use TokenKind::{Control, UserDefined};
        let m = matcher(&[("<s>", Control), ("  ", UserDefined), ("    ", UserDefined)]);
        assert_eq!(cut(&m, "<s>a     b", SpecialTokens::Parse), ["#0", "a", "#2", " b"]);
        assert_eq!(cut(&m, "<s>a      ", SpecialTokens::Plain), ["<s>a", "#2", "#1"]);
        assert_eq!(m.control_starts("x<s><s>"), [1, 4]);
        assert!(cut(&m, "", SpecialTokens::Parse).is_empty());
    }

    #[test]
    fn vocabulary_without_special_tokens_does_not_split() {
        let m = matcher(&[("a", TokenKind::Normal)]);
        assert_eq!(cut(&m, "aa", SpecialTokens::Parse), ["aa"]);
    }

    #[test]
    fn lstrip_rstrip_and_single_word_are_respected() {
        let tokens = [("<l>", TokenKind::Control), ("<r>", TokenKind::Control), ("the", TokenKind::UserDefined)];
        let edges = HashMap::from([
            (0, Edges { lstrip: true, ..Edges::default() }),
            (1, Edges { rstrip: true, ..Edges::default() }),
            (2, Edges { single_word: true, ..Edges::default() }),
        ]);
        let m = with_edges(&tokens, edges);
        assert_eq!(cut(&m, "a \u{3000}\n<l> b", SpecialTokens::Parse), ["a", "#0", " b"]);
        assert_eq!(cut(&m, "a <r>\n\u{3000}b", SpecialTokens::Parse), ["a ", "#1", "b"]);
        // Text that one token took is not available to the next.
        assert_eq!(cut(&m, "<r>  <l>  <l>", SpecialTokens::Parse), ["#1", "#0", "#0"]);
        assert_eq!(cut(&m, "the other, the_x (the)", SpecialTokens::Plain), ["#2", " other, the_x (", "#2", ")"]);
    }
}
