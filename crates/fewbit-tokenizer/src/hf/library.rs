//! Encodes with Hugging Face's own library, for any kind of `tokenizer.json`: feature `tokenizers`.
//!
//! This covers what the tokenizer of this crate does not support: Unigram, WordPiece and WordLevel models, and BPE with
//! a normalizer or a pre-tokenizer that is not implemented here. The parts of the library are combined here rather than
//! by its `Tokenizer`, for two guarantees that it does not give:
//!
//! - Text that a user wrote never becomes a control token. In the library, the vocabulary of a Unigram or WordLevel
//!   model has `</s>` like any other piece, so `</s>` in a text becomes the token that ends the answer. Here, control
//!   tokens have another name in the vocabulary that the model sees, with a character that no text contains at that
//!   point. They are found only through the list of added tokens, and only if the caller asks for it.
//! - No text causes a panic or an error. If the library returns one, as its regex engine does when an expression takes
//!   too many steps, the text is encoded in halves.
//!
//! Decoding does not run the library: each token has a fixed text, which the library's decoder gave when the tokenizer
//! was built. A decoder whose text for a token depends on the neighbouring tokens is an error; see [`decoded`].

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{
    AddedVocabulary, Decoder, Encoding, Model, NormalizedString, Normalizer, OffsetType, PostProcessor, PreTokenizer,
    Token,
};

use super::build::{self, Tokens};
use super::configs::Configs;
use super::json::TokenizerJson;
use super::pipeline::{Frame, unsupported};
use super::{HfFiles, TOKENIZER_JSON, parse};
use crate::bytes;
use crate::error::TokenizerError;
use crate::special::SpecialTokens;
use crate::tables::TextTable;
use crate::tokenizer::{Family, Tokenizer, ends};
use crate::vocabulary::TokenKind;

/// First character of the name of a control token in the vocabulary that the model sees. It is a noncharacter, and is
/// removed from texts.
const HIDDEN: char = '\u{10FFFF}';

/// The parts of the library, in the order in which they process a text.
pub(crate) struct Library {
    /// Finds all added tokens, including control tokens.
    all: AddedVocabulary,
    /// Finds only those added tokens that are text.
    text_only: AddedVocabulary,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    model: ModelWrapper,
    unknown: Option<u32>,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library").field("normalizer", &self.normalizer).finish_non_exhaustive()
    }
}

impl Library {
    /// Appends the ids of `text`. With a marker, control tokens are only found where no marker is inside them, and
    /// markers are not part of the text.
    pub(crate) fn encode(&self, text: &str, special: SpecialTokens, marker: Option<char>, out: &mut Vec<u32>) {
        let text: Cow<'_, str> = match text.contains(HIDDEN) {
            true => text.replace(HIDDEN, "\u{FFFD}").into(),
            false => text.into(),
        };
        self.encode_parts(&text, special, marker, out);
    }

    fn encode_parts(&self, text: &str, special: SpecialTokens, marker: Option<char>, out: &mut Vec<u32>) {
        let result = catch_unwind(AssertUnwindSafe(|| self.try_encode(text, special, marker)));
        if let Ok(Ok(ids)) = result {
            out.extend(ids);
            return;
        }
        match text.floor_char_boundary(text.len() / 2) {
            0 if text.chars().nth(1).is_none() => out.extend(self.unknown),
            middle => {
                let first = text.chars().next().map_or(0, char::len_utf8);
                let (left, right) = text.split_at(middle.max(first));
                self.encode_parts(left, special, marker, out);
                self.encode_parts(right, special, marker, out);
            }
        }
    }

    fn try_encode(&self, text: &str, special: SpecialTokens, marker: Option<char>) -> tokenizers::Result<Vec<u32>> {
        let added = match special {
            SpecialTokens::Parse => &self.all,
            SpecialTokens::Plain => &self.text_only,
        };
        let normalizer = Unmarked { marker, then: self.normalizer.as_ref() };
        let mut parts = added.extract_and_normalize(Some(&normalizer), text);
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut parts)?;
        }
        parts.tokenize(|part| self.model.tokenize(part.get()))?;
        Ok(parts.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }
}

/// A normalizer that removes the marker first.
struct Unmarked<'a> {
    marker: Option<char>,
    then: Option<&'a NormalizerWrapper>,
}

impl Normalizer for Unmarked<'_> {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        if let Some(marker) = self.marker {
            text.replace(marker, "")?;
        }
        self.then.map_or(Ok(()), |normalizer| normalizer.normalize(text))
    }
}

/// The ids of added tokens, in the form that the list of added tokens asks for.
struct Ids(HashMap<String, u32>);

impl Model for Ids {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, _: &str) -> tokenizers::Result<Vec<Token>> {
        Ok(Vec::new())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.get(token).copied()
    }

    fn id_to_token(&self, _: u32) -> Option<String> {
        None
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.0.clone()
    }

    fn get_vocab_size(&self) -> usize {
        self.0.len()
    }

    fn save(&self, _: &Path, _: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }

    fn get_trainer(&self) -> TrainerWrapper {
        ModelWrapper::WordLevel(Default::default()).get_trainer()
    }
}

fn bad(what: &str, error: impl std::fmt::Display) -> TokenizerError {
    TokenizerError::BadFile { file: TOKENIZER_JSON, reason: format!("{what}: {error}") }
}

/// Runs a part of the library that reads the file, and turns its panics into errors.
fn guarded<T>(what: &str, run: impl FnOnce() -> Result<T, TokenizerError>) -> Result<T, TokenizerError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(bad(what, "the tokenizers library panicked")))
}

/// Parses a part that has a `type`.
fn step<T: for<'de> Deserialize<'de>>(what: &str, value: Option<&Value>) -> Result<Option<T>, TokenizerError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    guarded(what, || T::deserialize(value).map(Some).map_err(|error| bad(what, error)))
}

pub(super) fn tokenizer(bytes: &[u8], files: &HfFiles) -> Result<Tokenizer, TokenizerError> {
    #[derive(Deserialize)]
    struct Whole {
        model: Value,
    }
    let json: TokenizerJson<'_> = parse(TOKENIZER_JSON, bytes)?;
    if json.model.dropout.is_some_and(|rate| rate != 0.0) {
        return Err(unsupported("BPE with dropout"));
    }
    let configs = Configs::read(files)?;
    let normalizer: Option<NormalizerWrapper> = step("normalizer", json.normalizer.as_ref())?;
    let pre_tokenizer = step("pre_tokenizer", json.pre_tokenizer.as_ref())?;
    let decoder: Option<DecoderWrapper> = step("decoder", json.decoder.as_ref())?;
    let processor: Option<PostProcessorWrapper> = step("post_processor", json.post_processor.as_ref())?;
    let tokens = Tokens::new(&json, &configs)?;
    let frame = frame(processor.as_ref())?;
    let specials = build::specials(frame, &tokens, &configs)?;

    let mut model = parse::<Whole>(TOKENIZER_JSON, bytes)?.model;
    hide_control_tokens(&mut model, &tokens);
    let model: ModelWrapper = step("model", Some(&model))?.ok_or_else(|| bad("model", "there is none"))?;
    if tokens.unknown.is_none() && !matches!(model, ModelWrapper::BPE(_)) {
        return Err(bad("model", "no unknown token, so that some texts would have no tokens"));
    }

    let mut texts = TextTable::with_capacity(tokens.texts.len());
    for text in &tokens.texts {
        texts.push(text.as_bytes())?;
    }
    let (decoded, drops_space) = decoded(decoder.as_ref(), &tokens)?;
    let (matcher, _) = build::matchers(&tokens, &texts, &Default::default())?;
    let [all, text_only] = added_vocabularies(&tokens, normalizer.as_ref())?;
    let templates = configs.chat_templates(files)?;
    Ok(Tokenizer {
        by_text: OnceLock::new(),
        matcher: Arc::new(matcher),
        drops_space,
        end_of_generation: ends(&texts, &tokens.kinds, &configs.ends, specials.eos),
        texts,
        decoded,
        family: Family::Library(Box::new(Library {
            all,
            text_only,
            normalizer,
            pre_tokenizer,
            model,
            unknown: tokens.unknown,
        })),
        specials,
        add_space_prefix: false,
        strips_after: BTreeSet::new(),
        chat_template: templates.default,
        tool_template: templates.tool_use,
        kinds: tokens.kinds,
    })
}

/// Renames control tokens, and pieces with the same text, in the vocabulary that the model sees, to names that no text
/// contains.
fn hide_control_tokens(model: &mut Value, tokens: &Tokens) {
    let control = tokens.texts.iter().zip(&tokens.kinds).filter(|(_, kind)| **kind == TokenKind::Control);
    let control: HashSet<&str> = control.map(|(text, _)| &**text).collect();
    match model.get_mut("vocab") {
        Some(Value::Object(vocab)) => {
            for (text, id) in std::mem::take(vocab) {
                let name = if control.contains(&*text) { format!("{HIDDEN}{id}") } else { text };
                vocab.insert(name, id);
            }
        }
        Some(Value::Array(vocab)) => {
            for (id, piece) in vocab.iter_mut().enumerate() {
                if control.contains(text_at(piece, 0))
                    && let Some(text) = piece.get_mut(0)
                {
                    *text = format!("{HIDDEN}{id}").into();
                }
            }
        }
        _ => {}
    }
    // Rules that use or produce a control token are removed.
    if let Some(Value::Array(rules)) = model.get_mut("merges") {
        rules.retain(|rule| {
            let (left, right) = match rule {
                Value::String(rule) => rule.split_once(' ').unwrap_or_default(),
                rule => (text_at(rule, 0), text_at(rule, 1)),
            };
            !(control.contains(left) || control.contains(right) || control.contains(&*format!("{left}{right}")))
        });
    }
}

fn text_at(list: &Value, place: usize) -> &str {
    list.get(place).and_then(Value::as_str).unwrap_or_default()
}

/// The added tokens: all of them, and those that are text.
fn added_vocabularies(
    tokens: &Tokens,
    normalizer: Option<&NormalizerWrapper>,
) -> Result<[AddedVocabulary; 2], TokenizerError> {
    let ids = Ids(tokens.added.iter().filter_map(|token| Some((token.content.clone(), token.id?))).collect());
    let is_special = |id: Option<u32>| {
        let kind = id.and_then(|id| tokens.kinds.get(id as usize));
        matches!(kind, Some(TokenKind::Control | TokenKind::Unknown))
    };
    let build = |special: bool| -> Result<AddedVocabulary, TokenizerError> {
        let wanted = tokens.added.iter().filter(|token| special || !is_special(token.id)).map(|token| {
            tokenizers::AddedToken {
                content: token.content.clone(),
                single_word: token.single_word,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
                // Markers are removed by normalization, so control tokens are searched for before it.
                normalized: token.is_normalized() && !is_special(token.id),
                special: token.special,
            }
        });
        let mut list = AddedVocabulary::new();
        list.add_tokens(wanted, &ids, normalizer).map_err(|error| bad("added_tokens", error))?;
        Ok(list)
    };
    guarded("added_tokens", || Ok([build(true)?, build(false)?]))
}

/// The tokens that the post-processor puts around a text.
fn frame(processor: Option<&PostProcessorWrapper>) -> Result<Frame, TokenizerError> {
    let Some(processor) = processor else { return Ok(Frame::default()) };
    let encoding = guarded("post_processor", || {
        let text = Encoding::from_tokens(vec![Token::new(0, "a".to_owned(), (0, 1))], 0);
        processor.process(text, None, true).map_err(|error| bad("post_processor", error))
    })?;
    let added: Vec<bool> = encoding.get_special_tokens_mask().iter().map(|&mask| mask != 0).collect();
    let ids = encoding.get_ids();
    let at = added.iter().position(|added| !added).unwrap_or(ids.len());
    match (ids.get(..at), ids.get(at + 1..)) {
        (Some(before), Some(after)) if before.len() <= 1 && after.len() <= 1 => {
            Ok(Frame { is_given: true, before: before.first().copied(), after: after.first().copied() })
        }
        _ => Err(unsupported("a post-processor that adds several tokens in one place")),
    }
}

/// The text of every token when it follows another one, and whether the first token of a text loses its space.
///
/// The library decodes lists of tokens, and its decoders may do anything. So the text of a token is defined as what it
/// adds to an ordinary token, and then all tokens, some at a time, must decode to the concatenation of their texts.
fn decoded(decoder: Option<&DecoderWrapper>, tokens: &Tokens) -> Result<(TextTable, bool), TokenizerError> {
    let join = |list: &[&str]| -> Result<String, TokenizerError> {
        let list: Vec<String> = list.iter().map(|text| (*text).to_owned()).collect();
        match decoder {
            Some(decoder) => guarded("decoder", || decoder.decode(list).map_err(|error| bad("decoder", error))),
            None => Ok(list.join(" ")),
        }
    };
    let name = match decoder {
        None => "none".to_owned(),
        Some(decoder) => {
            serde_json::to_value(decoder).map(|json| text_of_type(&json)).unwrap_or_else(|_| "unknown".into())
        }
    };
    let depends = || unsupported(format!("decoder {name}, whose text for a token depends on its neighbours"));
    // Decoders that mark the end of a word, or drop repetitions, need the next token to decode the current one.
    if name.split(", ").any(|part| matches!(part, "BPEDecoder" | "CTC")) {
        return Err(depends());
    }
    let is_byte_level = name.split(", ").any(|part| part == "ByteLevel");
    let words = || tokens.texts.iter().zip(&tokens.kinds).filter(|(_, kind)| **kind == TokenKind::Normal);
    // Letters only, which decoders do not treat specially.
    let is_word = |text: &str| text.len() > 1 && text.bytes().all(|b| b.is_ascii_lowercase());
    let Some(anchor) =
        words().map(|(text, _)| &**text).find(|text| is_word(text)).or(words().map(|(t, _)| &**t).next())
    else {
        return Err(bad("model", "no tokens that are text"));
    };
    let before = join(&[anchor])?;
    let mut texts = TextTable::with_capacity(tokens.texts.len());
    for (text, kind) in tokens.texts.iter().zip(&tokens.kinds) {
        match kind {
            TokenKind::Byte => texts.push(&[bytes::parse_byte_token(text).unwrap_or_default()])?,
            TokenKind::Control | TokenKind::Unknown | TokenKind::Unused => texts.push(text.as_bytes())?,
            _ if is_byte_level => match bytes::decode(text) {
                Some(bytes) => texts.push(&bytes)?,
                None => texts.push(text.as_bytes())?,
            },
            _ => {
                let both = join(&[anchor, text])?;
                texts.push(both.strip_prefix(&*before).ok_or_else(depends)?.as_bytes())?;
            }
        }
    }
    // Whether all first tokens keep their space, and whether all lose it.
    let [mut keeps, mut drops] = [true; 2];
    let mut chain: Vec<&str> = vec![anchor];
    let mut expected = before.clone();
    for (id, (text, kind)) in (0u32..).zip(tokens.texts.iter().zip(&tokens.kinds)) {
        let is_text = matches!(kind, TokenKind::Normal | TokenKind::UserDefined);
        let Some(own) = texts.get(id).and_then(|bytes| std::str::from_utf8(bytes).ok()).filter(|_| is_text) else {
            continue;
        };
        if *kind == TokenKind::Normal && is_word(text.trim_start_matches(|c: char| !c.is_ascii())) {
            let alone = join(&[text])?;
            keeps &= alone == own;
            drops &= alone == own.strip_prefix(' ').unwrap_or(own);
        }
        chain.push(text);
        expected.push_str(own);
        if chain.len() == 64 {
            if join(&chain)? != expected {
                return Err(depends());
            }
            chain.truncate(1);
            expected.truncate(before.len());
        }
    }
    if join(&chain)? != expected || !(keeps || drops) {
        return Err(depends());
    }
    Ok((texts, drops && !keeps))
}

/// The type of a part, or the types of a sequence's parts.
fn text_of_type(json: &Value) -> String {
    match json.get("decoders").and_then(Value::as_array) {
        Some(parts) => parts.iter().map(text_of_type).collect::<Vec<_>>().join(", "),
        None => json.get("type").and_then(Value::as_str).unwrap_or("unknown").to_owned(),
    }
}
