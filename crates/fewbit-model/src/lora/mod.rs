//! Low-rank adapters (LoRA): what is added to the products of some matrices, without changing these.
//!
//! ```text
//! y = W x [+ bias]                     as without adapters
//! t = A x                              one chain of fused multiply-adds per output, over the inputs in their order
//! y = y + B (s t)                      for one adapter after the other, in the order in which they were loaded;
//!                                      s = (alpha / rank) * the scale that is asked for
//! ```
//! A and B are f32, whatever they are in the file, and x is the input before it is quantized. Each row of a batch
//! has its own adapters: rows are put together by adapter only to read A and B once, so that nothing depends on
//! the batch, and a row without adapters has the bits of a model that knows none.
//!
//! A cache is of one set of adapters ([`LoraSet`]), as it is of one model: its keys and values depend on both.

mod error;
mod gguf;
mod load;
mod peft;
mod rows;

pub use error::LoraError;
pub(crate) use load::{Fused, LoraModel, load};
use load::{Half, Pair, from_gguf};
pub use rows::AdaptedRows;
pub(crate) use rows::adapted_rows;

use crate::ModelError;
use std::any::Any;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A matrix that an adapter can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LoraTarget {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The output projection of attention.
    AttnOutput,
    /// The gate of the feed-forward part.
    Gate,
    /// What the gate is multiplied with.
    Up,
    /// The output projection of the feed-forward part.
    Down,
    /// The output matrix. Its layer is 0.
    Output,
}

/// What an adapter has for one matrix of `n_rows` outputs and `n_cols` inputs.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LowRank<'a> {
    /// The layer of the matrix.
    pub layer: usize,
    /// Which of the layer's matrices.
    pub target: LoraTarget,
    /// Outputs of the matrix.
    pub n_rows: usize,
    /// Inputs of the matrix.
    pub n_cols: usize,
    /// Rows of A.
    pub rank: usize,
    /// `[rank, n_cols]`
    pub a: &'a [f32],
    /// `[n_rows, rank]`
    pub b: &'a [f32],
}

/// The same as the device of the matrix holds it. Dropping it gives the memory back.
pub struct AdapterPart {
    /// Whatever the device needs to compute with it.
    pub data: Box<dyn Any + Send + Sync>,
    /// Bytes of the device's memory.
    pub n_bytes: u64,
}

/// A part of an adapter, with its scale: alpha / rank.
struct Scaled {
    part: AdapterPart,
    scale: f32,
}

/// An adapter that was loaded for a model. Cheap to clone; its memory is free when the last clone is gone.
#[derive(Clone)]
pub struct Lora {
    inner: Arc<Inner>,
}

struct Inner {
    /// In the order of loading.
    id: u64,
    model: u64,
    path: PathBuf,
    parts: BTreeMap<(usize, LoraTarget), Scaled>,
    fingerprint: u128,
}

impl Lora {
    /// Bytes that the adapter at `path` takes once it is loaded, from its headers.
    ///
    /// # Errors
    /// [`LoraError`] for a file that is no adapter or is damaged.
    pub fn estimate(path: &Path) -> Result<u64, LoraError> {
        load::estimate(path)
    }

    /// Where it came from.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Bytes of its matrices in memory.
    pub fn n_bytes(&self) -> u64 {
        self.inner.parts.values().map(|scaled| scaled.part.n_bytes).sum()
    }

    /// How many matrices of the model it changes.
    pub fn n_matrices(&self) -> usize {
        self.inner.parts.len()
    }

    /// A hash of all its numbers: equal for equal adapters, from whatever kind of file.
    pub fn fingerprint(&self) -> u128 {
        self.inner.fingerprint
    }

    fn part(&self, layer: usize, target: LoraTarget) -> Option<&Scaled> {
        self.inner.parts.get(&(layer, target))
    }
}

impl PartialEq for Lora {
    fn eq(&self, other: &Self) -> bool {
        self.inner.id == other.inner.id
    }
}

impl Eq for Lora {}

impl std::fmt::Debug for Lora {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lora").field("path", &self.inner.path).field("matrices", &self.n_matrices()).finish()
    }
}

/// Adapters of one model, each with a scale, in the order of loading; none twice, and none with scale 0.
#[derive(Clone, Debug, Default)]
pub struct LoraSet {
    loras: Arc<[(Lora, f32)]>,
}

impl LoraSet {
    pub(crate) fn new(model: u64, loras: &[(Lora, f32)]) -> Result<Self, ModelError> {
        let mut set: Vec<(Lora, f32)> = Vec::with_capacity(loras.len());
        for (lora, scale) in loras {
            if lora.inner.model != model {
                return Err(ModelError::ForeignLora { path: lora.inner.path.clone() });
            }
            if !scale.is_finite() {
                return Err(ModelError::LoraScale { path: lora.inner.path.clone(), scale: *scale });
            }
            match set.iter_mut().find(|(known, _)| known == lora) {
                Some((_, known)) => *known = *scale,
                None => set.push((lora.clone(), *scale)),
            }
        }
        set.retain(|(_, scale)| *scale != 0.0);
        set.sort_by_key(|(lora, _)| lora.inner.id);
        Ok(Self { loras: set.into() })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.loras.is_empty()
    }

    /// The adapters and their scales.
    pub fn iter(&self) -> impl Iterator<Item = (&Lora, f32)> {
        self.loras.iter().map(|(lora, scale)| (lora, *scale))
    }

    /// Whether all are of this model.
    pub(crate) fn is_of(&self, model: u64) -> bool {
        self.loras.iter().all(|(lora, _)| lora.inner.model == model)
    }

    /// What tells sets apart, without keeping their adapters.
    pub(crate) fn key(&self) -> LoraKey {
        self.iter().map(|(lora, scale)| (lora.inner.id, scale.to_bits())).collect()
    }
}

impl PartialEq for LoraSet {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&(Lora, f32), &(Lora, f32))| a.0 == b.0 && a.1.to_bits() == b.1.to_bits();
        self.loras.len() == other.loras.len() && self.loras.iter().zip(other.loras.iter()).all(same)
    }
}

impl Eq for LoraSet {}

/// Ids of adapters, which are never used again, and the bits of their scales.
pub(crate) type LoraKey = Vec<(u64, u32)>;
