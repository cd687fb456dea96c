//! The plain description of a tokenizer, before anything is indexed.
//!
//! A [`Vocabulary`] holds exactly what a model file contains: [`crate::gguf`] fills it from GGUF metadata, tests write
//! it by hand, and [`crate::Tokenizer::new`] checks it and builds from it. Token lists are borrowed if the source
//! already holds them, because a vocabulary can have half a million merge rules.

use std::borrow::Cow;

/// The values of `tokenizer.ggml.model` that are implemented.
///
/// `gpt2` is byte-level BPE, `llama` is SentencePiece (merges by score), `gemma4` is BPE over
/// characters with spaces written as U+2581 and a byte fallback.
pub const SUPPORTED_MODELS: [&str; 3] = ["gpt2", "llama", "gemma4"];

/// The kind of a token, as numbered by GGUF's `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum TokenKind {
    /// 1: a piece of text.
    #[default]
    Normal,
    /// 2: stands for text that the vocabulary cannot express.
    Unknown,
    /// 3: controls the model. It is not text, and text becomes it only on request.
    Control,
    /// 4: a whole string that is always one token, wherever it occurs in text.
    UserDefined,
    /// 5: reserved.
    Unused,
    /// 6: one byte, written `<0xAB>`.
    Byte,
}

impl TokenKind {
    /// The kind for a value of `tokenizer.ggml.token_type`.
    pub fn from_gguf(value: i64) -> Option<Self> {
        Some(match value {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// The value of `tokenizer.ggml.token_type` for the kind.
    pub fn to_gguf(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }
}

/// A tokenizer as a model file describes it.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary<'a> {
    /// `tokenizer.ggml.model`: one of [`SUPPORTED_MODELS`].
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is split before BPE merges. Not used by `llama`.
    pub pre: Option<String>,
    /// Token texts, by id.
    pub tokens: Cow<'a, [String]>,
    /// Token kinds, by id; empty if all are [`TokenKind::Normal`].
    pub kinds: Vec<TokenKind>,
    /// Merge priorities of a `llama` vocabulary, by id: higher merges first.
    pub scores: Cow<'a, [f32]>,
    /// BPE merge rules in order of priority, each two symbols with a space between them.
    pub merges: Cow<'a, [String]>,
    /// Beginning of text.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// The token for text that cannot be expressed.
    pub unknown: Option<u32>,
    /// The token that pads batches; not text.
    pub padding: Option<u32>,
    /// Tokens that end an answer besides `eos`, as declared by the file: end of turn, end of message.
    pub end_of_generation: Vec<u32>,
    /// Whether a prompt starts with BOS; if absent, the tokenizer's family decides.
    pub add_bos: Option<bool>,
    /// Whether a text for scoring or embedding ends with EOS; absent means no.
    pub add_eos: Option<bool>,
    /// Whether a space is added before text; if absent, `llama` adds one and the others do not.
    pub add_space_prefix: Option<bool>,
    /// Special tokens that swallow the white space after them.
    pub strips_after: Vec<u32>,
    /// The chat template's source.
    pub chat_template: Option<String>,
    /// The source of the chat template for conversations with tools, if it is a separate one.
    pub tool_template: Option<String>,
}
