//! The steps that `tokenizer.json` describes: normalizer, pre-tokenizer, decoder, post-processor.
//!
//! Each is one part or a sequence of parts, and every part has a `type`. For unknown parts, the error names this type.

use serde::Deserialize;
use serde_json::Value;

use super::{TOKENIZER_JSON, pattern};
use crate::error::TokenizerError;
use crate::normalizer::{Form, Normalization};
use crate::splitter::{Behavior, Cut};

/// GPT-2's expression for words, which `ByteLevel` splits by if its `use_regex` is set.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Maximum nesting depth of sequences.
const MAX_DEPTH: usize = 8;

pub(super) fn unsupported(what: impl Into<String>) -> TokenizerError {
    TokenizerError::Unsupported { file: TOKENIZER_JSON, what: what.into() }
}

/// Parses one part, or returns an error that it cannot be read.
fn part<'de, T: Deserialize<'de>>(role: &str, value: &'de Value) -> Result<T, TokenizerError> {
    T::deserialize(value)
        .map_err(|error| TokenizerError::BadFile { file: TOKENIZER_JSON, reason: format!("{role}: {error}") })
}

/// The parts of `value`, with sequences flattened; `list` is the name of the field that holds a sequence's list.
fn parts<'v>(
    role: &str,
    list: &str,
    value: Option<&'v Value>,
    depth: usize,
    out: &mut Vec<(&'v str, &'v Value)>,
) -> Result<(), TokenizerError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(()) };
    if depth > MAX_DEPTH {
        return Err(unsupported(format!("a {role} of sequences nested this deep")));
    }
    let bad = |reason: &str| TokenizerError::BadFile { file: TOKENIZER_JSON, reason: format!("{role}: {reason}") };
    let kind = value.get("type").and_then(Value::as_str).ok_or_else(|| bad("no `type`"))?;
    if kind != "Sequence" {
        out.push((kind, value));
        return Ok(());
    }
    let items = value.get(list).and_then(Value::as_array).ok_or_else(|| bad("a sequence without its list"))?;
    items.iter().try_for_each(|item| parts(role, list, Some(item), depth + 1, out))
}

fn all_parts<'v>(
    role: &str,
    list: &str,
    value: Option<&'v Value>,
) -> Result<Vec<(&'v str, &'v Value)>, TokenizerError> {
    let mut out = Vec::new();
    parts(role, list, value, 0, &mut out)?;
    Ok(out)
}

/// The pattern that a part searches for.
#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(String),
}

/// The steps of a normalizer.
pub(super) fn normalizer(value: Option<&Value>) -> Result<Vec<Normalization>, TokenizerError> {
    const ROLE: &str = "normalizer";
    #[derive(Deserialize)]
    struct Prepend {
        prepend: String,
    }
    #[derive(Deserialize)]
    struct Replace {
        pattern: Pattern,
        content: String,
    }
    #[derive(Deserialize)]
    struct Strip {
        strip_left: bool,
        strip_right: bool,
    }
    let mut steps = Vec::new();
    for (kind, value) in all_parts(ROLE, "normalizers", value)? {
        steps.push(match kind {
            "NFC" => Normalization::Form(Form::Nfc),
            "NFD" => Normalization::Form(Form::Nfd),
            "NFKC" => Normalization::Form(Form::Nfkc),
            "NFKD" => Normalization::Form(Form::Nfkd),
            "Prepend" => Normalization::Prepend(part::<Prepend>(ROLE, value)?.prepend),
            "Replace" => match part::<Replace>(ROLE, value)? {
                Replace { pattern: Pattern::String(from), content: to } if !from.is_empty() => {
                    Normalization::Replace { from, to }
                }
                _ => return Err(unsupported("a normalizer that replaces by an expression")),
            },
            "Strip" => {
                let Strip { strip_left: left, strip_right: right } = part(ROLE, value)?;
                Normalization::Strip { left, right }
            }
            _ => return Err(unsupported(format!("normalizer {kind}"))),
        });
    }
    Ok(steps)
}

/// The steps of a pre-tokenizer.
#[derive(Debug, Default)]
pub(super) struct PreTokenization {
    /// Changes to each text before it is split.
    pub(super) prefix: Vec<Normalization>,
    pub(super) cuts: Vec<Cut>,
    /// Whether the pieces are written in the characters that stand for bytes.
    pub(super) byte_level: bool,
}

impl PreTokenization {
    /// Whether texts are still unchanged at this point.
    fn is_first(&self) -> bool {
        self.cuts.is_empty() && self.prefix.is_empty()
    }
}

fn yes() -> bool {
    true
}

pub(super) fn pre_tokenizer(value: Option<&Value>) -> Result<PreTokenization, TokenizerError> {
    const ROLE: &str = "pre_tokenizer";
    #[derive(Deserialize)]
    struct ByteLevel {
        #[serde(default = "yes")]
        add_prefix_space: bool,
        #[serde(default = "yes")]
        use_regex: bool,
    }
    #[derive(Deserialize)]
    struct Split {
        pattern: Pattern,
        behavior: String,
        #[serde(default)]
        invert: bool,
    }
    #[derive(Deserialize)]
    struct Digits {
        #[serde(default)]
        individual_digits: bool,
    }
    #[derive(Deserialize)]
    struct Punctuation {
        #[serde(default)]
        behavior: Option<String>,
    }
    let compile = |pattern: &str| pattern::compile(pattern).map_err(unsupported);
    let mut this = PreTokenization::default();
    for (kind, value) in all_parts(ROLE, "pretokenizers", value)? {
        if this.byte_level {
            // Expressions would see the characters that stand for bytes instead of the text.
            return Err(unsupported(format!("pre-tokenizer {kind} after ByteLevel")));
        }
        match kind {
            "ByteLevel" => {
                let ByteLevel { add_prefix_space, use_regex } = part(ROLE, value)?;
                if add_prefix_space {
                    if !this.is_first() {
                        return Err(unsupported("ByteLevel with add_prefix_space after another pre-tokenizer"));
                    }
                    this.prefix.push(Normalization::Prefix { text: " ".into(), first_only: false });
                }
                if use_regex {
                    this.cuts.push(compile(GPT2)?);
                }
                this.byte_level = true;
            }
            "Split" => {
                let Split { pattern, behavior, invert } = part(ROLE, value)?;
                let cut = match pattern {
                    Pattern::Regex(pattern) => compile(&pattern)?,
                    Pattern::String(text) => compile(&escape(&text))?,
                };
                this.cuts.push(cut.with_behavior(self::behavior(&behavior)?, invert));
            }
            "Digits" => {
                let Digits { individual_digits } = part(ROLE, value)?;
                this.cuts.push(compile(if individual_digits { r"\p{N}" } else { r"\p{N}+" })?);
            }
            "Punctuation" => {
                let Punctuation { behavior } = part(ROLE, value)?;
                let behavior = self::behavior(behavior.as_deref().unwrap_or("Isolated"))?;
                this.cuts.push(compile(r"[!-/:-@\[-`{-~\p{P}]")?.with_behavior(behavior, false));
            }
            "Metaspace" => {
                let metaspace: Metaspace = part(ROLE, value)?;
                if !this.is_first() {
                    return Err(unsupported("Metaspace after another pre-tokenizer"));
                }
                let text = metaspace.replacement.clone();
                this.prefix.push(Normalization::Replace { from: " ".into(), to: text.clone() });
                match metaspace.scheme()? {
                    Scheme::Never => {}
                    scheme => {
                        let first_only = scheme == Scheme::First;
                        this.prefix.push(Normalization::Prefix { text: text.clone(), first_only });
                    }
                }
                if metaspace.split {
                    this.cuts.push(compile(&escape(&text))?.with_behavior(Behavior::MergedWithNext, false));
                }
            }
            _ => return Err(unsupported(format!("pre-tokenizer {kind}"))),
        }
    }
    Ok(this)
}

/// Where `Metaspace` adds a space of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    First,
    Never,
    Always,
}

#[derive(Deserialize)]
struct Metaspace {
    replacement: String,
    #[serde(default)]
    add_prefix_space: Option<bool>,
    #[serde(default)]
    prepend_scheme: Option<String>,
    #[serde(default = "yes")]
    split: bool,
}

impl Metaspace {
    fn scheme(&self) -> Result<Scheme, TokenizerError> {
        match (self.add_prefix_space, self.prepend_scheme.as_deref()) {
            (Some(false), _) | (_, Some("never")) => Ok(Scheme::Never),
            (_, None | Some("always")) => Ok(Scheme::Always),
            (_, Some("first")) => Ok(Scheme::First),
            (_, Some(scheme)) => Err(unsupported(format!("Metaspace with prepend_scheme {scheme:?}"))),
        }
    }
}

fn behavior(name: &str) -> Result<Behavior, TokenizerError> {
    Ok(match name {
        "Isolated" => Behavior::Isolated,
        "Contiguous" => Behavior::Contiguous,
        "MergedWithPrevious" => Behavior::MergedWithPrevious,
        "MergedWithNext" => Behavior::MergedWithNext,
        "Removed" => Behavior::Removed,
        _ => return Err(unsupported(format!("a split with behavior {name}"))),
    })
}

/// An expression that matches this text only.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        if c.is_ascii_punctuation() && !matches!(c, '<' | '>') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Whether decoding drops a space at the start of a text.
pub(super) fn drops_space(decoder: Option<&Value>) -> Result<bool, TokenizerError> {
    const ROLE: &str = "decoder";
    #[derive(Deserialize)]
    struct Strip {
        content: String,
        start: usize,
        stop: usize,
    }
    #[derive(Deserialize)]
    struct Replace {
        pattern: Pattern,
        content: String,
    }
    let mut drops = false;
    for (kind, value) in all_parts(ROLE, "decoders", decoder)? {
        match kind {
            "ByteLevel" | "ByteFallback" | "Fuse" => {}
            "Replace" => {
                let Replace { pattern, content } = part(ROLE, value)?;
                if !matches!(pattern, Pattern::String(text) if text == crate::spm::SPACE) || content != " " {
                    return Err(unsupported("a decoder that replaces anything but U+2581 by a space"));
                }
            }
            "Strip" => {
                let Strip { content, start, stop } = part(ROLE, value)?;
                if content != " " || stop > 0 || start > 1 {
                    return Err(unsupported("a decoder that strips anything but one space at the start"));
                }
                drops = start == 1;
            }
            "Metaspace" => drops = part::<Metaspace>(ROLE, value)?.scheme()? != Scheme::Never,
            _ => return Err(unsupported(format!("decoder {kind}"))),
        }
    }
    Ok(drops)
}

/// The special tokens that a post-processor puts around a text, by id.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Whether a post-processor specifies the special tokens at all.
    pub(super) is_given: bool,
    pub(super) before: Option<u32>,
    pub(super) after: Option<u32>,
}

pub(super) fn post_processor(value: Option<&Value>) -> Result<Frame, TokenizerError> {
    const ROLE: &str = "post_processor";
    #[derive(Deserialize)]
    enum Piece {
        Sequence { id: String },
        SpecialToken { id: String },
    }
    #[derive(Deserialize)]
    struct Special {
        ids: Vec<u32>,
    }
    #[derive(Deserialize)]
    struct Template {
        single: Vec<Piece>,
        #[serde(default)]
        special_tokens: std::collections::BTreeMap<String, Special>,
    }
    let mut frame = Frame::default();
    for (kind, value) in all_parts(ROLE, "processors", value)? {
        match kind {
            // It only corrects offsets.
            "ByteLevel" => {}
            "TemplateProcessing" if !frame.is_given => {
                let Template { single, special_tokens } = part(ROLE, value)?;
                frame.is_given = true;
                let mut seen_text = false;
                for piece in single {
                    let id = match piece {
                        Piece::Sequence { id } if id == "A" && !seen_text => {
                            seen_text = true;
                            continue;
                        }
                        Piece::Sequence { .. } => return Err(unsupported("a post-processor with several texts")),
                        Piece::SpecialToken { id } => id,
                    };
                    let ids = special_tokens.get(&id).map(|special| special.ids.as_slice());
                    let place = if seen_text { &mut frame.after } else { &mut frame.before };
                    match (ids, place.is_none()) {
                        (Some(&[id]), true) => *place = Some(id),
                        (None, _) => {
                            return Err(TokenizerError::UnknownToken {
                                file: TOKENIZER_JSON,
                                role: "a token of the post-processor",
                                text: id,
                            });
                        }
                        _ => return Err(unsupported("a post-processor that adds several tokens in one place")),
                    }
                }
            }
            _ => return Err(unsupported(format!("post-processor {kind}"))),
        }
    }
    Ok(frame)
}
