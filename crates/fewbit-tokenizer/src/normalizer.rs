//! Changes to text before it is split: normalization forms, prefixes, replacements.
//!
//! The steps are those of Hugging Face's `tokenizer.json`, and each text between special tokens goes through them
//! separately. SentencePiece's escaping (spaces as U+2581) is simply one of the replacements.

use std::borrow::Cow;

use unicode_normalization_alignments::UnicodeNormalization;

/// A Unicode normalization form.
///
/// The tables are those of Hugging Face's library, from Unicode 9. Models were trained on their results, so newer
/// tables would be wrong for the characters that have changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Normalization {
    /// A Unicode normalization form.
    Form(Form),
    /// Adds a text before every text.
    Prepend(String),
    /// Adds a text before every text that does not start with it.
    Prefix {
        text: String,
        /// Only at the very start, where not even a special token comes before.
        first_only: bool,
    },
    /// Replaces every occurrence of a text by another.
    Replace { from: String, to: String },
    /// Removes white space at the ends.
    Strip { left: bool, right: bool },
}

/// Steps in the order in which they apply.
#[derive(Debug, Clone, Default)]
pub(crate) struct Normalizer {
    steps: Vec<Normalization>,
}

impl Normalizer {
    pub(crate) fn new(steps: Vec<Normalization>) -> Self {
        Self { steps }
    }

    pub(crate) fn steps(&self) -> &[Normalization] {
        &self.steps
    }

    /// The normalized form of `text`; `first` is true if nothing precedes it.
    pub(crate) fn apply<'t>(&self, text: &'t str, first: bool) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for step in &self.steps {
            if text.is_empty() {
                break;
            }
            match step {
                Normalization::Form(form) => normalize(*form, &mut text),
                Normalization::Prepend(prefix) => text.to_mut().insert_str(0, prefix),
                Normalization::Prefix { text: prefix, first_only } => {
                    if (first || !first_only) && !text.starts_with(prefix.as_str()) {
                        text.to_mut().insert_str(0, prefix);
                    }
                }
                Normalization::Replace { from, to } => {
                    if text.contains(from.as_str()) {
                        text = text.replace(from.as_str(), to).into();
                    }
                }
                Normalization::Strip { left, right } => {
                    let mut kept = &*text;
                    if *left {
                        kept = kept.trim_start();
                    }
                    if *right {
                        kept = kept.trim_end();
                    }
                    if kept.len() < text.len() {
                        text = kept.to_owned().into();
                    }
                }
            }
        }
        text
    }
}

fn normalize(form: Form, text: &mut Cow<'_, str>) {
    // Characters below this limit do not compose, decompose or change their order.
    let limit = if form == Form::Nfc { '\u{300}' } else { '\u{A0}' };
    if text.chars().all(|c| c < limit) {
        return;
    }
    let chars = |text: &str| -> String {
        match form {
            Form::Nfc => text.nfc().map(|(c, _)| c).collect(),
            Form::Nfd => text.nfd().map(|(c, _)| c).collect(),
            Form::Nfkc => text.nfkc().map(|(c, _)| c).collect(),
            Form::Nfkd => text.nfkd().map(|(c, _)| c).collect(),
        }
    };
    *text = chars(text).into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(steps: Vec<Normalization>, text: &str, first: bool) -> String {
        Normalizer::new(steps).apply(text, first).into_owned()
    }

    #[test]
    fn unicode_normalization_forms() {
        for (form, expected) in
            [(Form::Nfc, "é ﬁ"), (Form::Nfd, "e\u{301} ﬁ"), (Form::Nfkc, "é fi"), (Form::Nfkd, "e\u{301} fi")]
        {
            for text in ["e\u{301} ﬁ", "é ﬁ"] {
                assert_eq!(apply(vec![Normalization::Form(form)], text, false), expected, "{form:?}");
            }
            assert_eq!(apply(vec![Normalization::Form(form)], "plain", false), "plain");
        }
    }

    #[test]
    fn prefixes_replacements_and_stripping() {
        let replace = Normalization::Replace { from: " ".into(), to: "\u{2581}".into() };
        let llama = vec![Normalization::Prepend("\u{2581}".into()), replace.clone()];
        assert_eq!(apply(llama.clone(), " a b", true), "\u{2581}\u{2581}a\u{2581}b");
        assert_eq!(apply(llama, "", true), "");
        for (first_only, first, expected) in [(true, true, "_a"), (true, false, "a"), (false, false, "_a")] {
            let prefix = Normalization::Prefix { text: "_".into(), first_only };
            assert_eq!(apply(vec![prefix.clone()], "a", first), expected);
            assert_eq!(apply(vec![prefix], "_a", first), "_a");
        }
        let strip = |left, right| vec![Normalization::Strip { left, right }];
        assert_eq!(apply(strip(true, false), " a\u{3000}", false), "a\u{3000}");
        assert_eq!(apply(strip(false, true), " a\u{3000}", false), " a");
    }
}
