//! Encodes text to ids: special tokens are split off, and the rest goes through the steps of the tokenizer family.

use crate::bpe::{Lookup, Scratch};
use crate::special::{Fragment, SpecialTokens};
use crate::spm::{self, SPACE};
use crate::tokenizer::{BpeFamily, Family, Tokenizer};

/// Longer texts are encoded in parts of this size, so that positions fit 32 bits.
const MAX_TEXT_BYTES: usize = 1 << 29;

/// The state of an encoding that is built from several parts.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    out: Vec<u32>,
    /// Whether this is the start, or a special token came last: where SentencePiece adds a space.
    after_special: bool,
    /// Whether the last token swallows the white space after it.
    strips: bool,
    /// Which special tokens are recognised in the text that is being pushed.
    special: SpecialTokens,
    scratch: Scratch,
    spm_scratch: spm::Scratch,
    escaped: String,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            out: Vec::new(),
            after_special: true,
            strips: false,
            special: SpecialTokens::Plain,
            scratch: Scratch::default(),
            spm_scratch: spm::Scratch::default(),
            escaped: String::new(),
        }
    }

    /// Appends a text. Merges across the boundaries of parts are not found.
    pub(crate) fn push(&mut self, text: &str, special: SpecialTokens) {
        let tokenizer = self.tokenizer;
        #[cfg(feature = "tokenizers")]
        if let Family::Library(library) = &tokenizer.family {
            return library.encode(text, special, None, &mut self.out);
        }
        self.special = special;
        tokenizer.matcher.fragments(text, special, &mut |fragment| match fragment {
            Fragment::Text(text) => self.push_ordinary(text),
            Fragment::Token(id) => self.push_token(id),
        });
    }

    /// As [`push`](Self::push) with special tokens parsed, except where `marker` occurs inside their text. Markers are
    /// removed from the text between special tokens before it is encoded.
    pub(crate) fn push_marked(&mut self, text: &str, marker: char) {
        let tokenizer = self.tokenizer;
        #[cfg(feature = "tokenizers")]
        if let Family::Library(library) = &tokenizer.family {
            return library.encode(text, SpecialTokens::Parse, Some(marker), &mut self.out);
        }
        tokenizer.matcher.fragments(text, SpecialTokens::Parse, &mut |fragment| match fragment {
            Fragment::Text(text) => self.push(&text.replace(marker, ""), SpecialTokens::Plain),
            Fragment::Token(id) => self.push_token(id),
        });
    }

    /// Appends a special token.
    fn push_token(&mut self, id: u32) {
        self.out.push(id);
        self.after_special = true;
        self.strips = self.tokenizer.strips_after.contains(&id);
    }

    /// Appends text without special tokens.
    fn push_ordinary(&mut self, text: &str) {
        let mut text = if self.strips { text.trim_ascii_start() } else { text };
        while text.len() > MAX_TEXT_BYTES {
            let (part, rest) = text.split_at(text.floor_char_boundary(MAX_TEXT_BYTES));
            self.push_part(part);
            text = rest;
        }
        self.push_part(text);
    }

    fn push_part(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let Self { tokenizer, out, spm_scratch, escaped, .. } = self;
        match &tokenizer.family {
            Family::Bpe(family) => self.push_bpe(family, text),
            Family::Spm { spm, pieces } => {
                let pieces = Lookup { texts: &tokenizer.texts, index: pieces };
                escape(text, tokenizer.add_space_prefix && self.after_special, escaped);
                spm.encode(escaped, pieces, spm_scratch, out);
            }
            // `push` and `push_marked` pass whole texts to the library.
            #[cfg(feature = "tokenizers")]
            Family::Library(library) => library.encode(text, SpecialTokens::Plain, None, out),
        }
        self.after_special = false;
        self.strips = false;
    }

    fn push_bpe(&mut self, family: &BpeFamily, text: &str) {
        let first = self.out.is_empty();
        let text = family.normalizer.apply(text, first);
        let Some(matcher) = &family.normalized else {
            self.push_normalized(family, &text, first);
            return;
        };
        matcher.fragments(&text, self.special, &mut |fragment| match fragment {
            Fragment::Text(text) => self.push_normalized(family, text, self.out.is_empty()),
            Fragment::Token(id) => self.push_token(id),
        });
    }

    fn push_normalized(&mut self, family: &BpeFamily, text: &str, first: bool) {
        let Self { tokenizer, out, scratch, .. } = self;
        let text = family.prefix.apply(text, first);
        let texts = if family.byte_level { &tokenizer.decoded } else { &tokenizer.texts };
        let whole = Lookup { texts, index: &family.whole };
        family.splitter.split(&text, &mut |piece| {
            // Runs of newlines are tokens that no merge rule produces.
            let newlines = family.whole_newlines && piece.bytes().all(|b| b == b'\n');
            match whole.get(piece.as_bytes()).filter(|_| newlines) {
                Some(id) => out.push(id),
                None => family.bpe.encode(piece, whole, scratch, out),
            }
        });
    }

    /// The ids.
    pub(crate) fn finish(self) -> Vec<u32> {
        self.out
    }
}

/// Writes `text` to `out` as in SentencePiece vocabularies, with spaces as U+2581.
fn escape(text: &str, prefix: bool, out: &mut String) {
    out.clear();
    if prefix {
        out.push_str(SPACE);
    }
    for (i, part) in text.split(' ').enumerate() {
        if i > 0 {
            out.push_str(SPACE);
        }
        out.push_str(part);
    }
}
