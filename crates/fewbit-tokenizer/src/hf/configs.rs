//! The JSON files next to `tokenizer.json`, `tekken.json` or `tokenizer.model`.

use std::collections::BTreeMap;

use super::json::{AddedToken, ConfigJson, EndsJson, Ids, Named, NamedTemplate, TemplatesJson};
use super::{
    ADDED_TOKENS, CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, HfFiles, PROCESSOR_TEMPLATE, SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG, TOOL_TEMPLATE, parse,
};
use crate::error::TokenizerError;
use crate::vocabulary::TokenKind;

/// The JSON files next to `tokenizer.json`.
pub(super) struct Configs {
    pub(super) main: ConfigJson,
    map: ConfigJson,
    /// Tokens added to a `tokenizer.model`, in older repositories.
    added: BTreeMap<String, u32>,
    /// Ids of tokens that end an answer.
    pub(super) ends: Vec<u32>,
}

/// The sources of the chat templates, by purpose.
#[derive(Default)]
pub(super) struct Templates {
    pub(super) default: Option<String>,
    /// For conversations with tools.
    pub(super) tool_use: Option<String>,
}

impl Configs {
    pub(super) fn read(files: &HfFiles) -> Result<Self, TokenizerError> {
        fn config<T: Default + for<'a> serde::Deserialize<'a>>(
            file: &'static str,
            bytes: Option<&Vec<u8>>,
        ) -> Result<T, TokenizerError> {
            bytes.map_or_else(|| Ok(T::default()), |bytes| parse(file, bytes))
        }
        let mut ends = Vec::new();
        for (file, bytes) in [(GENERATION_CONFIG, &files.generation_config), (CONFIG, &files.config)] {
            let whole = config::<EndsJson>(file, bytes.as_ref())?;
            let text = whole.text_config.and_then(|text| text.eos_token_id);
            for ids in [whole.eos_token_id, text].into_iter().flatten() {
                match ids {
                    Ids::One(id) => ends.extend(u32::try_from(id)),
                    Ids::Many(ids) => ends.extend(ids.into_iter().filter_map(|id| u32::try_from(id).ok())),
                }
            }
        }
        Ok(Self {
            main: config(TOKENIZER_CONFIG, files.tokenizer_config.as_ref())?,
            map: config(SPECIAL_TOKENS_MAP, files.special_tokens_map.as_ref())?,
            added: config(ADDED_TOKENS, files.added_tokens.as_ref())?,
            ends,
        })
    }

    /// The text of the token that a file assigns to a role.
    pub(super) fn named(&self, role: impl Fn(&ConfigJson) -> Option<&Named>) -> Option<&str> {
        role(&self.main).or(role(&self.map)).map(Named::text)
    }

    pub(super) fn chat_templates(&self, files: &HfFiles) -> Result<Templates, TokenizerError> {
        let text = |file: &'static str, bytes: &Option<Vec<u8>>| match bytes {
            None => Ok(None),
            Some(bytes) => String::from_utf8(bytes.clone())
                .map(Some)
                .map_err(|error| TokenizerError::BadFile { file, reason: error.to_string() }),
        };
        let tool_use = text(TOOL_TEMPLATE, &files.tool_template)?;
        if let Some(default) = text(CHAT_TEMPLATE, &files.chat_template)? {
            return Ok(Templates { default: Some(default), tool_use });
        }
        let processor: ConfigJson = match (&self.main.chat_template, &files.processor_template) {
            (None, Some(bytes)) => parse(PROCESSOR_TEMPLATE, bytes)?,
            _ => ConfigJson::default(),
        };
        let templates = self.main.chat_template.as_ref().or(processor.chat_template.as_ref());
        Ok(match templates {
            None => Templates::default(),
            Some(TemplatesJson::One(template)) => Templates { default: Some(template.clone()), tool_use: None },
            Some(TemplatesJson::Many(list)) => {
                let named = |name: &str| list.iter().find(|template| template.name == name);
                let source = |template: &NamedTemplate| template.template.clone();
                Templates {
                    default: named("default").or(list.first()).map(source),
                    tool_use: named("tool_use").map(source),
                }
            }
        })
    }

    /// The tokens that `tokenizer_config.json` adds or changes, with their ids.
    pub(super) fn added_tokens(&self) -> Result<Vec<(u32, AddedToken)>, TokenizerError> {
        let id = |key: &str| {
            key.parse().map_err(|_| TokenizerError::BadFile {
                file: TOKENIZER_CONFIG,
                reason: format!("added_tokens_decoder: {key:?} is no id"),
            })
        };
        self.main.added_tokens_decoder.iter().map(|(key, token)| Ok((id(key)?, token.clone()))).collect()
    }

    /// Appends the tokens that these files add to those of a `tokenizer.model`.
    pub(super) fn add_to(&self, tokens: &mut Vec<String>, kinds: &mut Vec<TokenKind>) -> Result<(), TokenizerError> {
        let configured = self.added_tokens()?.into_iter().map(|(id, token)| (id, token.content, token.special));
        // The older file does not say which tokens are special, because `add_tokens` added all of them.
        let added = self.added.iter().map(|(text, &id)| (id, text.clone(), false));
        let mut all: Vec<(u32, String, bool)> = configured.chain(added).collect();
        all.sort_by_key(|(id, ..)| *id);
        for (id, text, special) in all {
            let kind = if special { TokenKind::Control } else { TokenKind::UserDefined };
            match tokens.get(id as usize) {
                Some(known) if *known == text => {
                    // Byte and unknown tokens of the model keep their kind.
                    if let Some(place) = kinds.get_mut(id as usize).filter(|kind| **kind == TokenKind::Normal) {
                        *place = kind;
                    }
                }
                Some(known) => {
                    let other = known.clone();
                    return Err(TokenizerError::DuplicateId { file: TOKENIZER_CONFIG, text, id, other });
                }
                None if id as usize == tokens.len() => {
                    tokens.push(text);
                    kinds.push(kind);
                }
                None => {
                    let n_tokens = tokens.len();
                    return Err(TokenizerError::SparseIds { file: TOKENIZER_CONFIG, text, id, n_tokens });
                }
            }
        }
        Ok(())
    }
}
