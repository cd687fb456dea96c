//! Taking the tensors of a model one by one: each request is checked, counted and remembered.

use crate::embedding::Embedding;
use crate::fingerprint::{Fingerprint, TensorHashes};
use crate::{KvType, ModelConfig, ModelError};
use fewbit_checkpoint::names::{self, Part};
use fewbit_checkpoint::source::{WeightSource, decode};
use fewbit_checkpoint::{CheckpointError, Workers};
use fewbit_format::TensorInfo;
use fewbit_quant::TensorType;
use std::collections::HashSet;
use std::ops::Range;

/// The source of a device's layers, which also tracks the progress of loading.
pub struct LayerLoader<'a> {
    source: &'a dyn WeightSource,
    config: &'a ModelConfig,
    kv_type: KvType,
    workers: &'a dyn Workers,
    progress: &'a (dyn Fn(u64, u64) + Send + Sync),
    total_bytes: u64,
    done_bytes: u64,
    /// Names of the tensors that are part of the model.
    known: HashSet<String>,
    fingerprint: Fingerprint,
    /// Which half of the layers is wanted.
    pub(crate) part: LayerPart,
    /// The embedding, if the output matrix is tied to it.
    pub(crate) tied: Option<Embedding>,
}

/// Which half of its layers a segment has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerPart {
    /// Both.
    #[default]
    Whole,
    /// The attention, which has all of the state.
    Attention,
    /// The feed-forward part, which has none.
    FeedForward,
}

impl LayerPart {
    /// Whether the attention is part of it.
    pub fn has_attention(self) -> bool {
        self != Self::FeedForward
    }

    /// Whether the feed-forward part is part of it.
    pub fn has_feed_forward(self) -> bool {
        self != Self::Attention
    }

    /// The layers whose state a segment of these layers has.
    pub fn with_state(self, layers: std::ops::Range<usize>) -> std::ops::Range<usize> {
        if self.has_attention() { layers } else { 0..0 }
    }

    /// Whether a tensor of the layer, by its name in GGUF files, belongs to it.
    pub(crate) fn has_tensor(self, name: &str) -> bool {
        match names::is_feed_forward_in_gguf(name) {
            true => self.has_feed_forward(),
            false => self.has_attention(),
        }
    }
}

/// The name of a part's matrix or norm.
pub(crate) fn weight(part: Part, layer: usize) -> String {
    format!("{}.weight", names::gguf(part, layer))
}

impl<'a> LayerLoader<'a> {
    pub(crate) fn new(
        source: &'a dyn WeightSource,
        config: &'a ModelConfig,
        kv_type: KvType,
        workers: &'a dyn Workers,
        progress: &'a (dyn Fn(u64, u64) + Send + Sync),
    ) -> Self {
        Self {
            source,
            config,
            kv_type,
            workers,
            progress,
            total_bytes: source.n_bytes(),
            done_bytes: 0,
            known: HashSet::new(),
            fingerprint: Fingerprint::new(),
            part: LayerPart::Whole,
            tied: None,
        }
    }

    /// Shape and constants of the model.
    pub fn config(&self) -> &'a ModelConfig {
        self.config
    }

    /// With a configuration that has more layers of the same model.
    pub(crate) fn configure(&mut self, config: &'a ModelConfig) {
        self.config = config;
    }

    /// Element type of keys and values.
    pub fn kv_type(&self) -> KvType {
        self.kv_type
    }

    /// Which half of its layers the segment that is loaded has: [`layer`](Self::layer) returns only that, and with
    /// [`LayerPart::FeedForward`] there is no state.
    pub fn layer_part(&self) -> LayerPart {
        self.part
    }

    pub(crate) fn has(&self, part: Part, layer: usize) -> bool {
        self.source.tensor(&weight(part, layer)).is_some()
    }

    pub(crate) fn find(&self, name: &str) -> Result<&'a TensorInfo, ModelError> {
        self.source
            .tensor(name)
            .ok_or_else(|| CheckpointError::MissingTensor { name: self.source.name_in_file(name) }.into())
    }

    /// The tensor, if its shape is `expected` and fewbit can compute with its type.
    fn checked(
        &self,
        name: &str,
        expected: &[usize],
        computes: impl Fn(TensorType) -> bool,
    ) -> Result<&'a TensorInfo, ModelError> {
        let tensor = self.find(name)?;
        let expected: Vec<u64> = expected.iter().map(|&n| n as u64).collect();
        if tensor.shape != expected {
            let name = self.source.name_in_file(name);
            return Err(CheckpointError::TensorShape { name, expected, found: tensor.shape.clone() }.into());
        }
        if !computes(tensor.ty) {
            return Err(ModelError::UnsupportedTensorType { name: self.source.name_in_file(name), ty: tensor.ty });
        }
        Ok(tensor)
    }

    /// Passes some rows of a tensor of this shape to `take`, and releases the tensor's pages of the file after the last
    /// row. Rows are counted over all dimensions except the last; a vector is one row. The rows of a tensor are taken
    /// in order.
    pub(crate) fn rows<T>(
        &mut self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        take: impl FnOnce(TensorType, &[u8]) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        let tensor = self.checked(name, shape, TensorType::is_supported)?;
        let n_rows: usize = shape[..shape.len() - 1].iter().product();
        let is_last = rows.end == n_rows;
        let bytes = self.source.rows(self.workers, tensor, rows)?;
        let taken = take(tensor.ty, &bytes)?;
        self.note(tensor, &bytes);
        drop(bytes);
        if is_last {
            self.source.release(tensor);
        }
        Ok(taken)
    }

    /// The values of a vector.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.checked(name, &[len], TensorType::is_decodable)?;
        let bytes = self.source.rows(self.workers, tensor, 0..1)?;
        let out = decode(&self.source.name_in_file(name), tensor.ty, &bytes, len)?;
        self.note(tensor, &bytes);
        Ok(out)
    }

    /// The norm after the last layer. Some files of an architecture with another name for it have the usual one.
    pub(crate) fn output_norm(&mut self) -> Result<Vec<f32>, ModelError> {
        let part = names::output_norm(&self.config.architecture);
        let part = if self.has(Part::OutputNorm, 0) { Part::OutputNorm } else { part };
        self.vector(&weight(part, 0), self.config.dim)
    }

    fn note(&mut self, tensor: &TensorInfo, bytes: &[u8]) {
        self.fingerprint.add(tensor, bytes);
        if !self.known.contains(&tensor.name) {
            self.known.insert(tensor.name.clone());
        }
        self.done_bytes += bytes.len() as u64;
        (self.progress)(self.done_bytes, self.total_bytes);
    }

    /// Returns an error if a tensor that was taken is not the one with this hash.
    ///
    /// # Errors
    /// [`ModelError::ChangedFile`].
    pub(crate) fn check_unchanged(&self, hashes: &TensorHashes) -> Result<(), ModelError> {
        let differs = |(name, hash): &(String, u128)| hashes.get(name) != Some(hash);
        match self.fingerprint.tensors().into_iter().find(differs) {
            Some((name, _)) => Err(ModelError::ChangedFile { tensor: self.source.name_in_file(&name) }),
            None => Ok(()),
        }
    }

    /// The hashes of the tensors that were taken.
    pub(crate) fn hashes(&self) -> TensorHashes {
        self.fingerprint.tensors()
    }

    /// The fingerprint of the model, after all of it has been taken.
    ///
    /// # Errors
    /// [`CheckpointError::UnexpectedTensor`] for a tensor that was never taken.
    pub(crate) fn finish(self) -> Result<u128, ModelError> {
        let is_unknown = |name: &str| {
            !self.known.contains(name) && !names::is_ignored_in_gguf(name) && !self.config.leaves_out(name)
        };
        match self.source.tensors().iter().find(|t| is_unknown(&t.name)) {
            Some(tensor) => Err(CheckpointError::UnexpectedTensor {
                name: self.source.name_in_file(&tensor.name),
                architecture: self.config.architecture.clone(),
            }
            .into()),
            None => Ok(self.fingerprint.finish(self.config, self.kv_type)),
        }
    }
}
