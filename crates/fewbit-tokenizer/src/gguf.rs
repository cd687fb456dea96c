//! Reads a [`Vocabulary`] from GGUF metadata.

use std::borrow::Cow;

use fewbit_format::{Array, Metadata, Value};

use crate::error::TokenizerError;
use crate::vocabulary::{TokenKind, Vocabulary};

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";

/// Ids of further tokens besides EOS that end an answer, if present: end of turn and end of message.
const ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// A list of further such ids, which Ollama's converter writes.
const MORE_ENDS: &str = "tokenizer.ggml.eos_token_ids";

impl<'a> Vocabulary<'a> {
    /// Reads the description of the tokenizer from GGUF metadata. Only the types of values are checked.
    pub fn from_gguf(metadata: &'a Metadata) -> Result<Self, TokenizerError> {
        let model = metadata.str(MODEL)?.ok_or(TokenizerError::MissingModel)?.to_owned();
        let tokens = metadata.str_array(TOKENS)?.ok_or(TokenizerError::MissingField { key: TOKENS })?;
        let kinds = metadata.i32_array("tokenizer.ggml.token_type")?.unwrap_or_default();
        let kinds: Vec<TokenKind> = (0u32..)
            .zip(kinds.iter())
            .map(|(id, &found)| {
                let found = i64::from(found);
                TokenKind::from_gguf(found).ok_or(TokenizerError::UnknownTokenType { id, found })
            })
            .collect::<Result<_, _>>()?;
        // If there is no padding token, converters write its id as -1 or as an id past the end.
        let id = |key| -> Result<Option<u32>, TokenizerError> {
            match metadata.get(key).and_then(Value::as_integer) {
                Some(-1) => Ok(None),
                _ => Ok(metadata.u32(key)?.filter(|&id| id != u32::MAX)),
            }
        };
        let mut end_of_generation = Vec::new();
        for key in ENDS {
            end_of_generation.extend(id(key)?);
        }
        end_of_generation.extend(match metadata.get(MORE_ENDS) {
            Some(Value::Array(Array::U32(list))) => list.clone(),
            // Negative ids mean none, as above.
            Some(Value::Array(Array::I32(list))) => list.iter().filter_map(|&id| u32::try_from(id).ok()).collect(),
            _ => Vec::new(),
        });
        let mut vocabulary = Self {
            pre: metadata.str("tokenizer.ggml.pre")?.map(str::to_owned),
            tokens: Cow::Borrowed(tokens),
            kinds,
            scores: scores(metadata)?,
            merges: Cow::Borrowed(metadata.str_array("tokenizer.ggml.merges")?.unwrap_or_default()),
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos: id("tokenizer.ggml.eos_token_id")?,
            unknown: id("tokenizer.ggml.unknown_token_id")?,
            padding: id("tokenizer.ggml.padding_token_id")?,
            end_of_generation,
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
            strips_after: Vec::new(),
            chat_template: metadata.str("tokenizer.chat_template")?.map(str::to_owned),
            tool_template: metadata.str("tokenizer.chat_template.tool_use")?.map(str::to_owned),
            model,
        };
        if vocabulary.model == "llama" {
            // This name is only for humans: a value of the wrong type must not keep the vocabulary from loading.
            vocabulary.fill_in_llama(metadata.str("general.name").ok().flatten().unwrap_or_default());
        }
        Ok(vocabulary)
    }

    /// Fills in what `llama` vocabularies leave out: ids by their customary texts, and Phi-3's special tokens, which
    /// swallow the white space after them (GGUF has no field for that).
    fn fill_in_llama(&mut self, model_name: &str) {
        let special = |kind| matches!(kind, TokenKind::Control | TokenKind::Unknown);
        let find = |text: &str| {
            let id = self.tokens.iter().position(|token| token == text)?;
            let is_special = self.kinds.get(id).is_none_or(|&kind| special(kind));
            if is_special { u32::try_from(id).ok() } else { None }
        };
        let (bos, eos, unknown) = (find("<s>"), find("</s>"), find("<unk>"));
        self.bos = self.bos.or(bos);
        self.eos = self.eos.or(eos);
        self.unknown = self.unknown.or(unknown);

        let name = model_name.to_lowercase();
        if name.contains("phi-3") || name.contains("phi3") {
            let keeps = ["<unk>", "<s>", "<|endoftext|>"];
            self.strips_after = (0u32..)
                .zip(self.kinds.iter().zip(self.tokens.iter()))
                .filter(|(_, (kind, text))| {
                    (special(**kind) || **kind == TokenKind::UserDefined) && !keeps.contains(&text.as_str())
                })
                .map(|(id, _)| id)
                .collect();
        }
    }
}

/// Scores are floats; in some old files they are integers.
fn scores(metadata: &Metadata) -> Result<Cow<'_, [f32]>, TokenizerError> {
    let key = "tokenizer.ggml.scores";
    if let Some(Value::Array(Array::I32(list))) = metadata.get(key) {
        return Ok(list.iter().map(|&score| score as f32).collect());
    }
    Ok(Cow::Borrowed(metadata.f32_array(key)?.unwrap_or_default()))
}
