//! Errors in the description of a tokenizer.
//!
//! A tokenizer that fewbit does not know exactly is an error: with wrong tokens, a model still answers, but badly, and
//! nobody finds out why. Encoding and decoding themselves cannot fail.

/// A hint for users of an unsupported tokenizer.
fn hint(file: &str) -> &'static str {
    if cfg!(feature = "tokenizers") || file != crate::hf::TOKENIZER_JSON {
        return ", and a guess would give wrong tokens";
    }
    "; build with the cargo feature `tokenizers`, which reads more kinds of tokenizer"
}

/// Why a tokenizer could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The metadata has no `tokenizer.ggml.model`: the file carries no tokenizer.
    #[error("the file has no tokenizer: metadata key tokenizer.ggml.model is missing")]
    MissingModel,
    /// This crate does not implement this kind of tokenizer.
    #[error(
        "tokenizer model {model:?} is not supported (supported: {})",
        crate::vocabulary::SUPPORTED_MODELS.join(", ")
    )]
    UnknownModel {
        /// `tokenizer.ggml.model` as found.
        model: String,
    },
    /// A byte-level BPE vocabulary does not specify how text is split before merging.
    #[error(
        "the file does not name its pre-tokenizer (tokenizer.ggml.pre), and guessing one would \
         give wrong tokens; if you know the model family, name it (TokenizerOptions::pre), one of: {}",
        crate::pretokenizer::names().join(", ")
    )]
    MissingPre,
    /// The file names a pre-tokenizer that this crate does not know.
    #[error(
        "unknown pre-tokenizer {pre:?} (tokenizer.ggml.pre); if the model splits text like one \
         of the known ones, name that one (TokenizerOptions::pre): {}",
        crate::pretokenizer::names().join(", ")
    )]
    UnknownPre {
        /// `tokenizer.ggml.pre`, or the override, as found.
        pre: String,
    },
    /// A required list is missing.
    #[error("tokenizer metadata {key} is missing; the file was not converted completely")]
    MissingField {
        /// The metadata key.
        key: &'static str,
    },
    /// A list with one entry per token does not have as many entries as there are tokens.
    #[error("tokenizer metadata {key} has {found} entries, expected {expected} (one per token)")]
    WrongLength {
        /// The metadata key.
        key: &'static str,
        /// Number of tokens.
        expected: usize,
        /// Number of entries.
        found: usize,
    },
    /// A token has a type other than the six that GGUF defines.
    #[error("token {id} has type {found}, expected 1 to 6 (tokenizer.ggml.token_type)")]
    UnknownTokenType {
        /// The token.
        id: u32,
        /// Its type as stored.
        found: i64,
    },
    /// A merge rule does not consist of two symbols with a space between them.
    #[error("merge rule {index} is {text:?}, expected two symbols with a space between them")]
    BadMerge {
        /// Index in `tokenizer.ggml.merges`.
        index: usize,
        /// The rule as stored.
        text: String,
    },
    /// The text of a byte token is not of the form `<0xAB>`.
    #[error("byte token {id} reads {text:?}, expected <0x00> to <0xFF>")]
    BadByteToken {
        /// The token.
        id: u32,
        /// Its text as stored.
        text: String,
    },
    /// A score is not a number, so that merges cannot be ordered.
    #[error("the score of token {id} is not a number (tokenizer.ggml.scores)")]
    BadScore {
        /// The token.
        id: u32,
    },
    /// The id of a special token is outside the vocabulary.
    #[error("{key} is {id}, but the vocabulary has {n_vocab} tokens")]
    SpecialOutOfRange {
        /// The metadata key.
        key: &'static str,
        /// The id it holds.
        id: u32,
        /// Number of tokens.
        n_vocab: usize,
    },
    /// The file requires a BOS or EOS token but does not specify which token that is.
    #[error("{flag} is true, but {key} is missing")]
    MissingSpecial {
        /// The flag that requires the token.
        flag: &'static str,
        /// The key that should name it.
        key: &'static str,
    },
    /// The vocabulary cannot express every text: it has no token for unknown text, and not all bytes have a token.
    #[error(
        "the vocabulary has neither an unknown token nor a token for byte 0x{byte:02X}: some text \
         would vanish"
    )]
    NoFallback {
        /// The first byte that has no token.
        byte: u8,
    },
    /// There are more tokens, or more text, than 32-bit indices can address.
    #[error("the vocabulary is too large: {what} exceeds 2^31")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
    },
    /// The matcher for the special tokens could not be built.
    #[error("the special tokens cannot be searched for: {reason}")]
    SpecialTokens {
        /// The reason.
        reason: String,
    },
    /// A metadata value has another type than the tokenizer needs.
    #[error(transparent)]
    Metadata(#[from] fewbit_format::FormatError),
    /// A folder contains none of the files that describe a tokenizer.
    #[error(
        "{}: no tokenizer.json, tekken.json or tokenizer.model, so the model has no tokenizer", folder.display()
    )]
    NoTokenizerFile {
        /// The folder.
        folder: std::path::PathBuf,
    },
    /// A file of a tokenizer cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The reason.
        #[source]
        error: std::io::Error,
    },
    /// The content of a tokenizer file is invalid.
    #[error("{file}: {reason}")]
    BadFile {
        /// The file's name.
        file: &'static str,
        /// What is wrong, and where.
        reason: String,
    },
    /// A tokenizer uses a feature that this crate does not implement.
    #[error("{file}: {what} is not supported{}", hint(file))]
    Unsupported {
        /// The file's name.
        file: &'static str,
        /// The feature.
        what: String,
    },
    /// A GGUF file cannot hold the tokenizer of a Hugging Face folder.
    #[error("{file}: GGUF cannot express {what}")]
    NoGgufForm {
        /// The file's name.
        file: &'static str,
        /// What cannot be expressed.
        what: String,
    },
    /// The ids have far more gaps than there are tokens.
    #[error("{file}: token {text:?} has id {id}, but there are only {n_tokens} tokens")]
    SparseIds {
        /// The file's name.
        file: &'static str,
        /// The text of a token.
        text: String,
        /// Its id.
        id: u32,
        /// The number of tokens.
        n_tokens: usize,
    },
    /// Two tokens have the same id.
    #[error("{file}: token {text:?} has id {id}, which is already the id of {other:?}")]
    DuplicateId {
        /// The file's name.
        file: &'static str,
        /// The second token.
        text: String,
        /// The id.
        id: u32,
        /// The first token.
        other: String,
    },
    /// A file names a token that is not in the vocabulary.
    #[error("{file}: {role} is {text:?}, which is not a token")]
    UnknownToken {
        /// The file's name.
        file: &'static str,
        /// The role of the token.
        role: &'static str,
        /// Its text.
        text: String,
    },
}
