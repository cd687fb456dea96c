//! `tokenizer.model`: a SentencePiece model, as used by Llama 2, Gemma and Mistral up to v7.
//!
//! The file is a protocol buffer: fields with a number and a type, and messages nested in messages. Only the fields
//! that affect tokens are read; models that are not BPE, or that normalize text, are errors.

use super::configs::Configs;
use super::{HfFiles, TOKENIZER_MODEL, mistral};
use crate::error::TokenizerError;
use crate::tokenizer::Tokenizer;
use crate::vocabulary::{TokenKind, Vocabulary};

/// Value of `TrainerSpec.model_type` for BPE.
const BPE: u64 = 2;

fn bad(reason: &str) -> TokenizerError {
    TokenizerError::BadFile { file: TOKENIZER_MODEL, reason: reason.to_owned() }
}

/// One field of a message.
enum Field<'a> {
    Number(u64),
    /// Text, or a message.
    Bytes(&'a [u8]),
    Float(f32),
}

/// The fields of a message, in order.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn varint(&mut self) -> Result<u64, TokenizerError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or_else(|| bad("the file ends inside a number"))?;
            self.0 = rest;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(bad("a number has more than ten bytes"))
    }

    fn take(&mut self, n_bytes: u64) -> Result<&'a [u8], TokenizerError> {
        let taken = usize::try_from(n_bytes).ok().and_then(|n| self.0.split_at_checked(n));
        let (taken, rest) = taken.ok_or_else(|| bad("a field is longer than the file"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next field's number and value.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, TokenizerError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Number(0)
            }
            2 => {
                let n_bytes = self.varint()?;
                Field::Bytes(self.take(n_bytes)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Float(f32::from_le_bytes(bytes.try_into().unwrap_or_default()))
            }
            _ => return Err(bad("a field has a type that there is not")),
        };
        Ok(Some((tag >> 3, field)))
    }
}

/// The fields of a model that are used.
#[derive(Debug)]
struct Model {
    tokens: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<TokenKind>,
    is_bpe: bool,
    suffix_spaces: bool,
    unknown: i64,
    bos: i64,
    eos: i64,
    padding: i64,
    has_charsmap: bool,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

impl Model {
    fn parse(bytes: &[u8]) -> Result<Self, TokenizerError> {
        // The defaults of the format.
        let mut model = Self {
            tokens: Vec::new(),
            scores: Vec::new(),
            kinds: Vec::new(),
            is_bpe: false,
            suffix_spaces: false,
            unknown: 0,
            bos: 1,
            eos: 2,
            padding: -1,
            has_charsmap: false,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        let mut message = Message(bytes);
        while let Some((number, field)) = message.next()? {
            match (number, field) {
                (1, Field::Bytes(piece)) => model.piece(piece)?,
                (2, Field::Bytes(spec)) => model.trainer(spec)?,
                (3, Field::Bytes(spec)) => model.normalizer(spec)?,
                _ => {}
            }
        }
        if model.tokens.is_empty() {
            return Err(bad("no SentencePiece model: there are no pieces"));
        }
        Ok(model)
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<(), TokenizerError> {
        let (mut text, mut score, mut kind) = (None, 0.0, 1);
        let mut message = Message(bytes);
        while let Some(field) = message.next()? {
            match field {
                (1, Field::Bytes(bytes)) => text = std::str::from_utf8(bytes).ok(),
                (2, Field::Float(value)) => score = value,
                (3, Field::Number(value)) => kind = value,
                _ => {}
            }
        }
        self.tokens.push(text.ok_or_else(|| bad("a piece has no text"))?.to_owned());
        self.scores.push(score);
        // The numbers are the same in GGUF.
        let kind = i64::try_from(kind).ok().and_then(TokenKind::from_gguf);
        self.kinds.push(kind.ok_or_else(|| bad("a piece has a type that there is not"))?);
        Ok(())
    }

    fn trainer(&mut self, bytes: &[u8]) -> Result<(), TokenizerError> {
        let mut message = Message(bytes);
        while let Some((number, field)) = message.next()? {
            let Field::Number(value) = field else { continue };
            match number {
                3 => self.is_bpe = value == BPE,
                24 => self.suffix_spaces = value != 0,
                // Negative numbers are written as their two's complement.
                40 => self.unknown = value as i64,
                41 => self.bos = value as i64,
                42 => self.eos = value as i64,
                43 => self.padding = value as i64,
                _ => {}
            }
        }
        Ok(())
    }

    fn normalizer(&mut self, bytes: &[u8]) -> Result<(), TokenizerError> {
        let mut message = Message(bytes);
        while let Some(field) = message.next()? {
            match field {
                (2, Field::Bytes(charsmap)) => self.has_charsmap = !charsmap.is_empty(),
                (3, Field::Number(value)) => self.add_dummy_prefix = value != 0,
                (4, Field::Number(value)) => self.remove_extra_whitespaces = value != 0,
                (5, Field::Number(value)) => self.escape_whitespaces = value != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TokenizerError> {
        for (is_wrong, what) in [
            (!self.is_bpe, "a SentencePiece model that is not BPE"),
            (self.has_charsmap, "a SentencePiece model that normalizes characters"),
            (self.remove_extra_whitespaces, "a SentencePiece model that removes white space"),
            (!self.escape_whitespaces, "a SentencePiece model that does not escape spaces"),
            (self.suffix_spaces, "a SentencePiece model with spaces after words"),
        ] {
            if is_wrong {
                return Err(TokenizerError::Unsupported { file: TOKENIZER_MODEL, what: what.to_owned() });
            }
        }
        Ok(())
    }
}

/// Builds the tokenizer. `version` is that of a Mistral tokenizer, such as `v3`, if the file name contains one.
pub(super) fn tokenizer(bytes: &[u8], version: Option<&str>, files: &HfFiles) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::new(&vocabulary(bytes, version, files)?)
}

/// The contents of the files as a GGUF vocabulary.
pub(super) fn vocabulary(
    bytes: &[u8],
    version: Option<&str>,
    files: &HfFiles,
) -> Result<Vocabulary<'static>, TokenizerError> {
    let mut model = Model::parse(bytes)?;
    model.check()?;
    let configs = Configs::read(files)?;
    configs.add_to(&mut model.tokens, &mut model.kinds)?;
    model.scores.resize(model.tokens.len(), 0.0);
    let id = |id: i64| u32::try_from(id).ok();
    let templates = configs.chat_templates(files)?;
    Ok(Vocabulary {
        model: "llama".into(),
        pre: Some("default".into()),
        scores: model.scores.into(),
        unknown: id(model.unknown),
        bos: id(model.bos),
        eos: id(model.eos),
        padding: id(model.padding),
        end_of_generation: configs.ends.clone(),
        add_bos: configs.main.add_bos_token,
        add_eos: configs.main.add_eos_token,
        add_space_prefix: Some(model.add_dummy_prefix),
        tool_template: templates.tool_use,
        chat_template: templates.default.or_else(|| version.and_then(mistral::template)),
        kinds: model.kinds,
        tokens: model.tokens.into(),
        ..Vocabulary::default()
    })
}
