//! The tokenizer: text to ids and back, one type for every family.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use fewbit_format::Metadata;

use crate::bpe::{Bpe, BpeBuilder, BpeOptions, Lookup, split_rule};
use crate::bytes;
use crate::decode::StreamDecoder;
use crate::encoder::Encoder;
use crate::error::TokenizerError;
use crate::normalizer::{Form, Normalization, Normalizer};
use crate::pretokenizer;
use crate::special::{self, Matcher, SpecialTokens};
use crate::splitter::Splitter;
use crate::spm::{SPACE, Spm};
use crate::tables::{TextIndex, TextTable};
use crate::vocabulary::{SUPPORTED_MODELS, TokenKind, Vocabulary};

/// Settings of a tokenizer that the file omits or has wrong.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TokenizerOptions {
    /// Overrides `tokenizer.ggml.pre`, the pre-tokenizer of a byte-level vocabulary.
    pub pre: Option<String>,
}

impl TokenizerOptions {
    /// Creates options with the name of the pre-tokenizer.
    pub fn with_pre(pre: impl Into<String>) -> Self {
        Self { pre: Some(pre.into()) }
    }
}

/// Turns text into token ids and ids into text.
///
/// Encoding and decoding take `&self` and never fail: share one tokenizer between threads.
#[derive(Debug)]
pub struct Tokenizer {
    /// Token texts as stored in the file.
    pub(crate) texts: TextTable,
    /// All tokens by their stored text; built on first use.
    pub(crate) by_text: OnceLock<TextIndex>,
    /// The decoded bytes of each token.
    pub(crate) decoded: TextTable,
    pub(crate) kinds: Vec<TokenKind>,
    pub(crate) family: Family,
    pub(crate) matcher: Arc<Matcher>,
    pub(crate) specials: Specials,
    /// Whether SentencePiece puts a space before text.
    pub(crate) add_space_prefix: bool,
    /// Whether the first space of a decoded text is one that the encoder added.
    pub(crate) drops_space: bool,
    pub(crate) end_of_generation: BTreeSet<u32>,
    pub(crate) strips_after: BTreeSet<u32>,
    pub(crate) chat_template: Option<String>,
    pub(crate) tool_template: Option<String>,
}

/// The part that depends on the kind of tokenizer.
#[derive(Debug)]
pub(crate) enum Family {
    /// Byte-level BPE, or BPE over characters.
    Bpe(Box<BpeFamily>),
    /// SentencePiece.
    Spm { spm: Spm, pieces: TextIndex },
    /// Any tokenizer that Hugging Face's library runs.
    #[cfg(feature = "tokenizers")]
    Library(Box<crate::hf::Library>),
}

/// The parts of a BPE tokenizer, in the order in which they process a text.
#[derive(Debug)]
pub(crate) struct BpeFamily {
    /// Applied to each text between special tokens.
    pub(crate) normalizer: Normalizer,
    /// Finds tokens that are searched for in normalized text.
    pub(crate) normalized: Option<Matcher>,
    /// Applied to the text between those tokens.
    pub(crate) prefix: Normalizer,
    pub(crate) splitter: Splitter,
    /// Finds the token of a whole piece: by decoded bytes if the vocabulary is byte-level, otherwise by stored text.
    pub(crate) whole: TextIndex,
    pub(crate) byte_level: bool,
    /// Whether pieces that consist of newlines only are looked up as a whole.
    pub(crate) whole_newlines: bool,
    pub(crate) bpe: Bpe,
}

impl Tokenizer {
    /// Builds the tokenizer that GGUF metadata describes.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        Self::new(&Vocabulary::from_gguf(metadata)?)
    }

    /// As [`from_gguf`](Self::from_gguf), with settings of the caller.
    pub fn from_gguf_with(metadata: &Metadata, options: &TokenizerOptions) -> Result<Self, TokenizerError> {
        let mut vocabulary = Vocabulary::from_gguf(metadata)?;
        if let Some(pre) = &options.pre {
            vocabulary.pre = Some(pre.clone());
        }
        Self::new(&vocabulary)
    }

    /// Checks a vocabulary and builds the tokenizer that it describes.
    pub fn new(vocabulary: &Vocabulary<'_>) -> Result<Self, TokenizerError> {
        let model = vocabulary.model.as_str();
        if !SUPPORTED_MODELS.contains(&model) {
            return Err(TokenizerError::UnknownModel { model: model.to_owned() });
        }
        let (is_spm, byte_level) = (model == "llama", model == "gpt2");
        let row = match (model, vocabulary.pre.as_deref()) {
            ("llama", _) => None,
            ("gemma4", _) => pretokenizer::find("gemma4"),
            (_, None) => return Err(TokenizerError::MissingPre),
            (_, Some(pre)) => Some(
                pretokenizer::find(pre)
                    .filter(|row| !row.names.contains(&"gemma4"))
                    .ok_or_else(|| TokenizerError::UnknownPre { pre: pre.to_owned() })?,
            ),
        };
        let kinds = checked_kinds(vocabulary)?;
        let mut texts = TextTable::with_capacity(kinds.len());
        let mut decoded = TextTable::with_capacity(kinds.len());
        // Marks the tokens that byte-level text can be encoded to.
        let mut is_byte_level = vec![false; kinds.len()];
        for (id, (text, kind)) in (0u32..).zip(vocabulary.tokens.iter().zip(&kinds)) {
            texts.push(text.as_bytes())?;
            match kind {
                TokenKind::Byte => {
                    let byte = bytes::parse_byte_token(text)
                        .ok_or_else(|| TokenizerError::BadByteToken { id, text: text.clone() })?;
                    decoded.push(&[byte])?;
                }
                TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined => {
                    decoded.push(text.as_bytes())?;
                }
                _ if byte_level => match bytes::decode(text) {
                    Some(bytes) => {
                        is_byte_level[id as usize] = true;
                        decoded.push(&bytes)?;
                    }
                    None => decoded.push(text.as_bytes())?,
                },
                _ => decoded.push(text.replace(SPACE, " ").as_bytes())?,
            }
        }
        let kind = |id: u32| kinds.get(id as usize).copied().unwrap_or_default();
        let is_text = |id| !matches!(kind(id), TokenKind::Control | TokenKind::Unknown);
        let specials = Specials::new(vocabulary, row.is_some_and(|row| row.add_bos), is_spm)?;
        let add_space_prefix = vocabulary.add_space_prefix.unwrap_or(is_spm);
        let family = if let Some(row) = row {
            let stored = TextIndex::new(&texts, is_text);
            let options = BpeOptions {
                byte_level,
                byte_fallback: !byte_level,
                ignore_merges: row.ignore_merges,
                // Bytes that a byte-level vocabulary lacks are dropped, as in all other implementations.
                unknown: specials.unknown.filter(|_| !byte_level),
                ..BpeOptions::default()
            };
            let lookup = Lookup { texts: &texts, index: &stored };
            let mut builder = BpeBuilder::new(lookup, vocabulary.merges.len(), options);
            let rules = vocabulary.merges.iter().enumerate().map(|(index, rule)| split_rule(index, rule));
            builder.rules(&rules.collect::<Result<Vec<_>, _>>()?)?;
            let bpe = builder.build()?;
            let mut steps = Vec::new();
            if row.nfc {
                steps.push(Normalization::Form(Form::Nfc));
            }
            if !byte_level {
                steps.extend(add_space_prefix.then(|| Normalization::Prepend(SPACE.to_owned())));
                steps.push(Normalization::Replace { from: " ".into(), to: SPACE.to_owned() });
            }
            Family::Bpe(Box::new(BpeFamily {
                normalizer: Normalizer::new(steps),
                normalized: None,
                prefix: Normalizer::default(),
                splitter: pretokenizer::splitter(row),
                whole: if byte_level { TextIndex::new(&decoded, |id| is_byte_level[id as usize]) } else { stored },
                byte_level,
                whole_newlines: !byte_level,
                bpe,
            }))
        } else {
            if vocabulary.scores.len() != kinds.len() {
                return Err(TokenizerError::WrongLength {
                    key: "tokenizer.ggml.scores",
                    expected: kinds.len(),
                    found: vocabulary.scores.len(),
                });
            }
            let pieces = |id| is_text(id) && kind(id) != TokenKind::Byte;
            Family::Spm {
                spm: Spm::new(&vocabulary.scores, &texts, &kinds, specials.unknown)?,
                pieces: TextIndex::new(&texts, pieces),
            }
        };
        Ok(Self {
            by_text: OnceLock::new(),
            matcher: Arc::new(Matcher::new(&texts, &kinds, HashMap::new(), |_| true)?),
            drops_space: is_spm && add_space_prefix,
            end_of_generation: ends(&texts, &kinds, &vocabulary.end_of_generation, specials.eos),
            texts,
            decoded,
            family,
            specials,
            add_space_prefix,
            strips_after: vocabulary.strips_after.iter().copied().collect(),
            chat_template: vocabulary.chat_template.clone(),
            tool_template: vocabulary.tool_template.clone(),
            kinds,
        })
    }

    /// Encodes `text`. Adds neither BOS nor EOS: see [`with_bos`](Self::with_bos).
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Vec<u32> {
        let mut encoder = self.encoder();
        encoder.push(text, special);
        encoder.finish()
    }

    /// Puts BOS before `ids` if the model needs it and `ids` does not start with it.
    pub fn with_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.specials.bos.filter(|&bos| self.specials.add_bos && ids.first() != Some(&bos)) {
            ids.insert(0, bos);
        }
        ids
    }

    /// Decodes `ids` from the start of a text, without special tokens. Bytes that are not UTF-8 become U+FFFD; ids that
    /// do not exist are skipped.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_by(self.decoder(), ids)
    }

    /// As [`decode`](Self::decode), with special tokens shown by their texts.
    pub fn decode_with_special(&self, ids: &[u32]) -> String {
        self.decode_by(StreamDecoder::new(self.drops_space(), true), ids)
    }

    fn decode_by(&self, mut decoder: StreamDecoder, ids: &[u32]) -> String {
        let mut text = String::with_capacity(ids.len().saturating_mul(4));
        for &id in ids {
            decoder.push_to(self, id, &mut text);
        }
        text + &decoder.finish()
    }

    /// Creates a decoder for tokens at the start of a text: if the encoder adds a space before text, the first space is
    /// dropped.
    pub fn decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.drops_space(), false)
    }

    /// Creates a decoder for tokens that continue `ids`: a leading space is dropped only if `ids` has nothing but
    /// special tokens, so that the decoded text can be appended to that of `ids`.
    pub fn decoder_after(&self, ids: &[u32]) -> StreamDecoder {
        let at_start = ids.last().is_none_or(|&id| self.is_special(id));
        StreamDecoder::new(at_start && self.drops_space(), false)
    }

    fn drops_space(&self) -> bool {
        self.drops_space
    }

    /// Beginning of text.
    pub fn bos(&self) -> Option<u32> {
        self.specials.bos
    }

    /// End of text.
    pub fn eos(&self) -> Option<u32> {
        self.specials.eos
    }

    /// The token that pads batches.
    pub fn padding(&self) -> Option<u32> {
        self.specials.padding
    }

    /// The token for text that the vocabulary cannot express.
    pub fn unknown(&self) -> Option<u32> {
        self.specials.unknown
    }

    /// Whether a prompt starts with BOS. If this is true, the vocabulary has a BOS token.
    pub fn add_bos(&self) -> bool {
        self.specials.add_bos
    }

    /// Whether a complete text ends with EOS. If this is true, the vocabulary has an EOS token.
    pub fn add_eos(&self) -> bool {
        self.specials.add_eos
    }

    /// Whether the token `id` ends an answer.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.contains(&id)
    }

    /// The tokens that end an answer, in ascending order.
    pub fn end_of_generation(&self) -> impl Iterator<Item = u32> + '_ {
        self.end_of_generation.iter().copied()
    }

    /// The number of tokens.
    pub fn n_vocab(&self) -> usize {
        self.texts.len()
    }

    /// A token's text as stored in the file, in the spelling of its vocabulary for bytes and spaces.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        std::str::from_utf8(self.texts.get(id)?).ok()
    }

    /// The bytes that a token decodes to; empty for control tokens, the unknown token, and ids that do not exist.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        if self.is_special(id) { &[] } else { self.raw_bytes(id) }
    }

    /// As [`token_bytes`](Self::token_bytes), but special tokens give their text.
    pub(crate) fn raw_bytes(&self, id: u32) -> &[u8] {
        self.decoded.get(id).unwrap_or_default()
    }

    /// The kind of a token; `None` if there is no such token.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Whether `id` is a control token.
    pub fn is_control(&self, id: u32) -> bool {
        self.kind(id) == Some(TokenKind::Control)
    }

    /// Whether `id` is a control token or the unknown token, neither of which is text.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        matches!(self.kind(id), Some(TokenKind::Control | TokenKind::Unknown))
    }

    /// The token with this stored text.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.by_text.get_or_init(|| TextIndex::new(&self.texts, |_| true)).get(&self.texts, token.as_bytes())
    }

    /// The source of the chat template that comes with the vocabulary.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The source of the chat template for conversations with tools, if the vocabulary has a separate one (Hugging Face
    /// calls it `tool_use`).
    pub fn tool_template(&self) -> Option<&str> {
        self.tool_template.as_deref()
    }

    pub(crate) fn matcher(&self) -> Arc<Matcher> {
        Arc::clone(&self.matcher)
    }

    pub(crate) fn encoder(&self) -> Encoder<'_> {
        Encoder::new(self)
    }
}

/// The kind of every token, with the kinds that were lost in conversion restored.
pub(crate) fn checked_kinds(vocabulary: &Vocabulary<'_>) -> Result<Vec<TokenKind>, TokenizerError> {
    let n_vocab = vocabulary.tokens.len();
    if n_vocab >= 1 << 31 {
        return Err(TokenizerError::TooLarge { what: "the number of tokens" });
    }
    let mut kinds = vocabulary.kinds.clone();
    if kinds.is_empty() {
        kinds = vec![TokenKind::Normal; n_vocab];
    }
    if kinds.len() != n_vocab {
        return Err(TokenizerError::WrongLength {
            key: "tokenizer.ggml.token_type",
            expected: n_vocab,
            found: kinds.len(),
        });
    }
    for (text, kind) in vocabulary.tokens.iter().zip(&mut kinds) {
        let is_end = special::ENDS.contains(&text.as_str());
        let is_special = *kind == TokenKind::UserDefined && special::AMBIGUOUS_ENDS.contains(&text.as_str());
        // Gemma has tokens for HTML tags, and this is one of them.
        let is_tag = || text == "</s>" && vocabulary.tokens.iter().any(|token| token == "<eos>");
        if is_end || (is_special && !is_tag()) {
            *kind = TokenKind::Control;
        }
    }
    if several_messages(vocabulary.tokens.iter().map(|token| token.as_bytes()))
        && let Some(id) = vocabulary.tokens.iter().position(|t| t == special::MESSAGE_END)
    {
        kinds[id] = TokenKind::Control;
    }
    Ok(kinds)
}

/// Whether an answer of the model consists of several messages.
fn several_messages<'a>(tokens: impl Iterator<Item = &'a [u8]> + Clone) -> bool {
    let has = |text: &str| tokens.clone().any(|token| token == text.as_bytes());
    has(special::MESSAGE_END) && special::SEVERAL_MESSAGES.iter().any(|set| set.iter().all(|text| has(text)))
}

/// The tokens that end an answer: those known by their text, those in `declared`, and `eos`.
pub(crate) fn ends(texts: &TextTable, kinds: &[TokenKind], declared: &[u32], eos: Option<u32>) -> BTreeSet<u32> {
    let special = (0u32..).zip(kinds).filter(|(_, kind)| **kind == TokenKind::Control).map(|(id, _)| id);
    let text = |id| texts.get(id).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
    let ends: Vec<u32> = special
        .filter(|&id| special::ENDS.contains(&text(id)) || special::AMBIGUOUS_ENDS.contains(&text(id)))
        .collect();
    let several = ends.iter().any(|&id| text(id) == special::MESSAGE_END)
        && several_messages((0..texts.len() as u32).filter_map(|id| texts.get(id)));
    let ends = ends.into_iter().filter(|&id| text(id) != special::MESSAGE_END || !several);
    ends.chain(declared.iter().copied().filter(|&id| (id as usize) < kinds.len())).chain(eos).collect()
}

/// The special ids and flags of a vocabulary, checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Specials {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) padding: Option<u32>,
    pub(crate) unknown: Option<u32>,
    pub(crate) add_bos: bool,
    pub(crate) add_eos: bool,
}

impl Specials {
    fn new(vocabulary: &Vocabulary<'_>, pre_adds_bos: bool, is_spm: bool) -> Result<Self, TokenizerError> {
        let n_vocab = vocabulary.tokens.len();
        let check = |key, id: Option<u32>| match id {
            Some(id) if id as usize >= n_vocab => Err(TokenizerError::SpecialOutOfRange { key, id, n_vocab }),
            id => Ok(id),
        };
        let (bos_key, eos_key) = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id");
        let this = Self {
            bos: check(bos_key, vocabulary.bos)?,
            eos: check(eos_key, vocabulary.eos)?,
            // Some files name a padding token that was never added to the vocabulary; it is not needed.
            padding: vocabulary.padding.filter(|&id| (id as usize) < n_vocab),
            unknown: check("tokenizer.ggml.unknown_token_id", vocabulary.unknown)?,
            add_bos: vocabulary.add_bos.unwrap_or(is_spm || pre_adds_bos),
            add_eos: vocabulary.add_eos.unwrap_or(false),
        };
        if this.add_bos && this.bos.is_none() {
            let flag = "tokenizer.ggml.add_bos_token";
            return Err(TokenizerError::MissingSpecial { flag, key: bos_key });
        }
        if this.add_eos && this.eos.is_none() {
            let flag = "tokenizer.ggml.add_eos_token";
            return Err(TokenizerError::MissingSpecial { flag, key: eos_key });
        }
        Ok(this)
    }
}
