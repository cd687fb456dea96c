//! An opened model file or folder: its contents can be inspected before anything is loaded.

use std::path::Path;

use fewbit_format::{FormatError, GgufFile, Metadata, Value};
use fewbit_model::hf::GenerationDefaults;
use fewbit_model::{CheckpointError, HfModel, WeightSource};
use fewbit_tokenizer::{Tokenizer, TokenizerOptions};

use crate::error::{Error, ErrorKind};
use crate::hub::ChatDefaults;

/// An opened model: a GGUF file, or a Hugging Face folder with safetensors files.
#[derive(Debug)]
#[non_exhaustive]
pub enum ModelFile {
    /// A GGUF file.
    Gguf(Box<GgufFile>),
    /// A Hugging Face folder.
    Hf(Box<HfModel>),
}

/// Opens a GGUF file or a Hugging Face folder; every error names the file.
pub fn open(path: &Path) -> Result<ModelFile, Error> {
    if path.is_dir() {
        return match HfModel::open(path) {
            Ok(model) => Ok(ModelFile::Hf(Box::new(model))),
            Err(CheckpointError::Format(error)) => Err(format_error(path, error)),
            Err(error) => Err(Error::file(path, error)),
        };
    }
    GgufFile::open(path).map(|file| ModelFile::Gguf(Box::new(file))).map_err(|error| format_error(path, error))
}

/// Opens the tokenizer of a GGUF file or of a Hugging Face folder, which need not have any weights.
pub fn open_tokenizer(path: &Path, options: &TokenizerOptions) -> Result<Tokenizer, Error> {
    match path.is_dir() {
        true => folder_tokenizer(path),
        false => open(path)?.tokenizer(path, options),
    }
}

fn folder_tokenizer(path: &Path) -> Result<Tokenizer, Error> {
    Tokenizer::from_hf_folder(path).map_err(|error| Error::file(path, error))
}

/// Makes sure that the message names the file exactly once.
fn format_error(path: &Path, error: FormatError) -> Error {
    match error {
        FormatError::NotFound { path } => ErrorKind::NotFound { path }.into(),
        FormatError::Io { path, source } => Error::file(&path, source),
        error => Error::file(path, error),
    }
}

/// The sampling settings that a GGUF file recommends.
fn sampling_defaults(meta: &Metadata) -> GenerationDefaults {
    GenerationDefaults::collect("general.sampling", |setting| {
        let key = match setting {
            "temperature" => "temp",
            "repetition_penalty" => "penalty_repeat",
            setting => setting,
        };
        let value = meta.get(&format!("general.sampling.{key}"))?;
        let number = match value {
            Value::F32(x) => Some(f64::from(*x)),
            Value::F64(x) => Some(*x),
            _ => value.as_integer().map(|n| n as f64),
        };
        Some(number.ok_or_else(|| value.type_name().to_owned()))
    })
}

impl ModelFile {
    /// The tensors, under their GGUF names, and the configuration.
    pub fn weights(&self) -> &dyn WeightSource {
        match self {
            Self::Gguf(file) => file.as_ref(),
            Self::Hf(model) => model.as_ref(),
        }
    }

    /// The GGUF file, if it is one.
    pub fn gguf(&self) -> Option<&GgufFile> {
        match self {
            Self::Gguf(file) => Some(file),
            Self::Hf(_) => None,
        }
    }

    /// The size of the file, or of the folder's safetensors files together.
    pub fn file_bytes(&self) -> u64 {
        match self {
            Self::Gguf(file) => file.file_bytes(),
            Self::Hf(model) => model.files().file_bytes(),
        }
    }

    /// The tokenizer. `path` is where the model was opened; `options` are for GGUF files only.
    pub(crate) fn tokenizer(&self, path: &Path, options: &TokenizerOptions) -> Result<Tokenizer, Error> {
        match self {
            Self::Gguf(file) => {
                Tokenizer::from_gguf_with(file.metadata(), options).map_err(|error| Error::file(path, error))
            }
            Self::Hf(_) => folder_tokenizer(path),
        }
    }

    /// The recommended settings for chats, of the registry or else of the model's authors; and one sentence for each of
    /// the authors' settings that is invalid.
    pub(crate) fn chat_defaults(
        &self,
        path: &Path,
        registry: ChatDefaults,
    ) -> Result<(ChatDefaults, Vec<String>), Error> {
        let own = match self {
            Self::Gguf(file) => sampling_defaults(file.metadata()),
            Self::Hf(model) => model.generation_defaults().map_err(|error| Error::file(path, error))?,
        };
        let defaults = ChatDefaults {
            temperature: registry.temperature.or(own.temperature),
            top_k: registry.top_k.or(own.top_k),
            top_p: registry.top_p.or(own.top_p),
            min_p: registry.min_p.or(own.min_p),
            repeat_penalty: registry.repeat_penalty.or(own.repetition_penalty),
            system: registry.system,
        };
        Ok((defaults, own.warnings))
    }
}
