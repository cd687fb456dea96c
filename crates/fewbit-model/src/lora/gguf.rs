//! Adapters in llama.cpp's GGUF form: `general.type = adapter`, `adapter.type = lora`, one alpha for all, and tensors
//! `NAME.lora_a` and `NAME.lora_b` for the model's tensor `NAME`.

use super::{Half, LoraError, Pair, from_gguf};
use crate::ModelConfig;
use fewbit_format::{FormatError, GgufFile, TensorInfo};
use std::path::{Path, PathBuf};

/// Keys of adapters that need more than low-rank parts.
const REFUSED: [&str; 1] = ["adapter.alora.invocation_tokens"];

/// An opened file.
pub(super) struct Adapter {
    path: PathBuf,
    file: GgufFile,
}

impl Adapter {
    pub(super) fn open(path: &Path) -> Result<Self, LoraError> {
        let file = GgufFile::open(path)
            .map_err(|source| LoraError::Format { path: path.to_owned(), source: source.into() })?;
        let adapter = Self { path: path.to_owned(), file };
        for (key, expected) in [("general.type", "adapter"), ("adapter.type", "lora")] {
            let found = adapter.str(key)?.unwrap_or_default();
            if found != expected {
                let found = found.to_owned();
                return Err(LoraError::NotAnAdapter { path: path.to_owned(), key, expected, found });
            }
        }
        match REFUSED.iter().find(|key| adapter.file.metadata().contains(key)) {
            Some(key) => Err(LoraError::Unsupported {
                path: path.to_owned(),
                option: (*key).to_owned(),
                value: "set".to_owned(),
            }),
            None => Ok(adapter),
        }
    }

    fn format(&self, source: FormatError) -> LoraError {
        LoraError::Format { path: self.path.clone(), source: source.into() }
    }

    fn str(&self, key: &str) -> Result<Option<&str>, LoraError> {
        self.file.metadata().str(key).map_err(|source| self.format(source))
    }

    pub(super) fn shapes(&self) -> impl Iterator<Item = &[u64]> {
        self.file.tensors().iter().map(|tensor| &tensor.shape[..])
    }

    pub(super) fn pairs(&self, config: &ModelConfig) -> Result<Vec<Pair<'_>>, LoraError> {
        let path = || self.path.clone();
        let found = self.str("general.architecture")?.unwrap_or_default().to_owned();
        if found != config.architecture {
            return Err(LoraError::Architecture { path: path(), expected: config.architecture.clone(), found });
        }
        // An alpha of 0, or none at all, means a scale of 1.
        let alpha = self.file.metadata().f32("adapter.lora.alpha").map_err(|source| self.format(source))?;
        let alpha = alpha.filter(|&alpha| alpha != 0.0);
        if let Some(alpha) = alpha.filter(|alpha| !alpha.is_finite()) {
            let (key, found) = ("adapter.lora.alpha".to_owned(), alpha.to_string());
            return Err(LoraError::BadNumber { path: path(), key, found });
        }
        let mut pairs = Vec::new();
        for tensor in self.file.tensors() {
            let name = &tensor.name;
            let unknown = || LoraError::UnknownTarget {
                path: path(),
                tensor: name.clone(),
                architecture: config.architecture.clone(),
            };
            let (weight, half) = name.rsplit_once('.').ok_or_else(unknown)?;
            let other = match half {
                "lora_a" => format!("{weight}.lora_b"),
                "lora_b" => format!("{weight}.lora_a"),
                _ => return Err(unknown()),
            };
            let other = self.file.tensor(&other).ok_or_else(|| LoraError::MissingHalf {
                path: path(),
                tensor: name.clone(),
                missing: other.clone(),
            })?;
            if half == "lora_b" {
                continue;
            }
            let (part, layer) = weight.strip_suffix(".weight").and_then(from_gguf).ok_or_else(unknown)?;
            let (a, b) = (self.half(tensor)?, self.half(other)?);
            let rank = tensor.shape.first().copied().unwrap_or(1).max(1);
            let scale = alpha.map_or(1.0, |alpha| (f64::from(alpha) / rank as f64) as f32);
            pairs.push(Pair { part, layer, a, b, scale, rank: None, is_permuted: false });
        }
        Ok(pairs)
    }

    fn half<'a>(&'a self, tensor: &'a TensorInfo) -> Result<Half<'a>, LoraError> {
        if !tensor.ty.is_decodable() {
            let (path, tensor, ty) = (self.path.clone(), tensor.name.clone(), tensor.ty.to_string());
            return Err(LoraError::Type { path, tensor, ty });
        }
        let bytes = self.file.tensor_bytes(tensor);
        Ok(Half { name: &tensor.name, shape: &tensor.shape, ty: tensor.ty, bytes })
    }
}
