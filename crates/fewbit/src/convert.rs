//! Quantizing any model that can be opened into a GGUF file.

use std::path::Path;

use fewbit_format::Metadata;
use fewbit_model::quantize::{FileOptions, QuantizeProgress, Report, quantize_file, quantize_folder};
use fewbit_model::{HfModel, WeightSource};
use fewbit_tokenizer::{HfFiles, TokenizerOptions, Vocabulary};

use crate::error::Error;
use crate::file::ModelFile;

impl ModelFile {
    /// Quantizes the model to a new GGUF file at `out`. The file appears only when it is complete. From a Hugging Face
    /// folder, the vocabulary, the chat template and the sampling defaults are copied too; `tokenizer` may name a
    /// pre-tokenizer.
    ///
    /// # Errors
    /// [`ErrorKind::Quantize`](crate::ErrorKind::Quantize), and [`ErrorKind::File`](crate::ErrorKind::File) for a
    /// folder whose tokenizer cannot be expressed in GGUF.
    pub fn quantize(
        &self,
        out: &Path,
        options: &FileOptions<'_>,
        tokenizer: &TokenizerOptions,
        progress: QuantizeProgress<'_>,
    ) -> Result<Report, Error> {
        Ok(match self {
            Self::Gguf(file) => quantize_file(file, out, options, progress)?,
            Self::Hf(model) => quantize_folder(model, &about(model, tokenizer)?, out, options, progress)?,
        })
    }
}

/// The metadata of a folder's model for a GGUF file, without its configuration.
fn about(model: &HfModel, options: &TokenizerOptions) -> Result<Metadata, Error> {
    let path = model.path();
    let error = |error: fewbit_tokenizer::TokenizerError| Error::file(path, error);
    let files = HfFiles::read(path).map_err(error)?;
    let vocabulary = Vocabulary::from_hf(&files, options).map_err(error)?;
    let n_vocab = model.tensor("token_embd.weight").and_then(|tensor| tensor.shape.first()).copied().unwrap_or(0);
    let mut meta = Metadata::default();
    meta.set("general.type", "model");
    if let Some(name) = name(path) {
        meta.set("general.name", name);
    }
    let defaults = model.generation_defaults().map_err(|error| Error::file(path, error))?;
    let floats = [
        ("temp", defaults.temperature),
        ("top_p", defaults.top_p),
        ("min_p", defaults.min_p),
        ("penalty_repeat", defaults.repetition_penalty),
    ];
    for (key, value) in floats {
        if let Some(value) = value {
            meta.set(format!("general.sampling.{key}"), value);
        }
    }
    if let Some(k) = defaults.top_k.and_then(|k| i32::try_from(k).ok()) {
        meta.set("general.sampling.top_k", k);
    }
    for (key, value) in vocabulary.to_gguf(usize::try_from(n_vocab).unwrap_or(0)).iter() {
        meta.set(key, value.clone());
    }
    Ok(meta)
}

/// The folder's name.
fn name(path: &Path) -> Option<String> {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.file_name().map(|name| name.to_string_lossy().into_owned())
}
