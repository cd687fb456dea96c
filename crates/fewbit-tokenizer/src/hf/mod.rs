//! Tokenizers of Hugging Face repositories: `tokenizer.json`, Mistral's `tekken.json` or SentencePiece's
//! `tokenizer.model`, and the files next to them.
//!
//! `tokenizer.json` is read into the same tables and steps that GGUF vocabularies use, and is not run by Hugging Face's
//! own library. So there is only one encoder, which is exact, small and linear in the length of the text, and models
//! need only few of the possible parts. With the feature `tokenizers`, everything else goes to that library
//! (`library.rs`); without it, the error names the unsupported part.
//!
//! There is one difference from that library: a *special* token that is marked `normalized` is searched for in the
//! original text. (The library searches for its normalized form in normalized text, where a prefix hides it everywhere
//! except at the start.)

mod build;
mod configs;
mod json;
#[cfg(feature = "tokenizers")]
mod library;
mod mistral;
mod pattern;
mod pipeline;
mod sentencepiece;
mod tekken;
mod vocabulary;

use std::path::{Path, PathBuf};

use crate::error::TokenizerError;
use crate::tokenizer::Tokenizer;

#[cfg(feature = "tokenizers")]
pub(crate) use library::Library;
pub(crate) use vocabulary::filler;

pub(crate) const TOKENIZER_JSON: &str = "tokenizer.json";
const TEKKEN_JSON: &str = "tekken.json";
const TOKENIZER_MODEL: &str = "tokenizer.model";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
const TOOL_TEMPLATE: &str = "additional_chat_templates/tool_use.jinja";
const PROCESSOR_TEMPLATE: &str = "chat_template.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const CONFIG: &str = "config.json";

/// The files of a Hugging Face repository that describe its tokens. All are optional, but at least one of the first
/// three is needed.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct HfFiles {
    /// `tokenizer.json`, which is preferred over the other two.
    pub tokenizer_json: Option<Vec<u8>>,
    /// `tekken.json`, of Mistral's models since Nemo; preferred over `tokenizer.model`. If a folder has both this file
    /// and `tokenizer.json`, the latter is used, but with the word expression of this file if its own is that of Llama
    /// 3 by mistake.
    pub tekken_json: Option<Vec<u8>>,
    /// `tokenizer.model`, a SentencePiece model.
    pub tokenizer_model: Option<Vec<u8>>,
    /// The version of Mistral's tokenizer, from the suffix of the model's file name, as in `tokenizer.model.v3`.
    pub mistral_version: Option<String>,
    /// `tokenizer_config.json`: which tokens are BOS, EOS and so on, whether they are added, and the chat template.
    pub tokenizer_config: Option<Vec<u8>>,
    /// `special_tokens_map.json`: the same tokens, in older repositories.
    pub special_tokens_map: Option<Vec<u8>>,
    /// `added_tokens.json`: tokens in addition to those of `tokenizer.model`, in older repositories.
    pub added_tokens: Option<Vec<u8>>,
    /// `chat_template.jinja`, which replaces the template in `tokenizer_config.json`.
    pub chat_template: Option<Vec<u8>>,
    /// `additional_chat_templates/tool_use.jinja`: the template for conversations with tools.
    pub tool_template: Option<Vec<u8>>,
    /// `chat_template.json`, of vision models, used if no other file has the template.
    pub processor_template: Option<Vec<u8>>,
    /// `generation_config.json`: further tokens that end an answer.
    pub generation_config: Option<Vec<u8>>,
    /// `config.json`: the same, in older repositories.
    pub config: Option<Vec<u8>>,
}

impl HfFiles {
    /// Reads those of these files that are in `folder`.
    pub fn read(folder: &Path) -> Result<Self, TokenizerError> {
        let read = |name: &str| read_optional(folder.join(name));
        let mut files = Self {
            tokenizer_json: read(TOKENIZER_JSON)?,
            tokenizer_config: read(TOKENIZER_CONFIG)?,
            special_tokens_map: read(SPECIAL_TOKENS_MAP)?,
            added_tokens: read(ADDED_TOKENS)?,
            chat_template: read(CHAT_TEMPLATE)?,
            tool_template: read(TOOL_TEMPLATE)?,
            tekken_json: read(TEKKEN_JSON)?,
            processor_template: read(PROCESSOR_TEMPLATE)?,
            generation_config: read(GENERATION_CONFIG)?,
            config: read(CONFIG)?,
            ..Self::default()
        };
        if let (Some(json), Some(tekken)) = (&files.tokenizer_json, &files.tekken_json)
            && let Some(mended) = tekken::mended(json, tekken)?
        {
            files.tokenizer_json = Some(mended);
        }
        if files.tokenizer_json.is_none() && files.tekken_json.is_none() {
            files.tokenizer_model = read(TOKENIZER_MODEL)?;
            for version in MISTRAL_VERSIONS {
                if let Some(bytes) = read(&format!("{TOKENIZER_MODEL}.{version}"))? {
                    files.tokenizer_model = Some(bytes);
                    files.mistral_version = Some(version.to_owned());
                    break;
                }
            }
            if files.tokenizer_model.is_none() {
                return Err(TokenizerError::NoTokenizerFile { folder: folder.to_owned() });
            }
        }
        Ok(files)
    }
}

/// The possible suffixes of the name of Mistral's `tokenizer.model`.
const MISTRAL_VERSIONS: [&str; 5] = ["v7m1", "v7", "v3", "v2", "v1"];

fn read_optional(path: PathBuf) -> Result<Option<Vec<u8>>, TokenizerError> {
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TokenizerError::Io { path, error }),
    }
}

impl Tokenizer {
    /// Builds the tokenizer of a Hugging Face repository in a folder.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit_tokenizer::TokenizerError> {
    /// use fewbit_tokenizer::{SpecialTokens, Tokenizer};
    /// let tokenizer = Tokenizer::from_hf_folder("Llama-3.2-1B-Instruct".as_ref())?;
    /// let ids = tokenizer.encode("Hello", SpecialTokens::Plain);
    /// # Ok(()) }
    /// ```
    pub fn from_hf_folder(folder: &Path) -> Result<Self, TokenizerError> {
        Self::from_hf(&HfFiles::read(folder)?)
    }

    /// Builds the tokenizer that the files of a Hugging Face repository describe.
    pub fn from_hf(files: &HfFiles) -> Result<Self, TokenizerError> {
        if let Some(json) = &files.tokenizer_json {
            match build::tokenizer(json, files) {
                // The library may support what is unsupported here.
                #[cfg(feature = "tokenizers")]
                Err(TokenizerError::Unsupported { .. }) => library::tokenizer(json, files),
                result => result,
            }
        } else if let Some(json) = &files.tekken_json {
            tekken::tokenizer(json, files)
        } else if let Some(model) = &files.tokenizer_model {
            sentencepiece::tokenizer(model, files.mistral_version.as_deref(), files)
        } else {
            Err(TokenizerError::NoTokenizerFile { folder: PathBuf::new() })
        }
    }
}

/// Parses one of the files.
fn parse<'a, T: serde::Deserialize<'a>>(file: &'static str, bytes: &'a [u8]) -> Result<T, TokenizerError> {
    serde_json::from_slice(bytes).map_err(|error| TokenizerError::BadFile { file, reason: error.to_string() })
}
