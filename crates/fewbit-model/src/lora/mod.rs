//! Low-rank adapters (LoRA), which add to the products of some matrices without changing the matrices.
//!
//! ```text
//! y = W x [+ bias]                     as without adapters
//! t = A x                              one chain of fused multiply-adds per output, over the inputs in their order
//! y = y + B (s t)                      for one adapter after the other, in the order in which they were loaded;
//!                                      s = (alpha / rank) * the scale that is asked for
//! ```
//! A and B are f32, whatever their type in the file, and x is the input before it is quantized. Each row of a batch has
//! its own adapters. Rows are grouped by adapter only to read A and B once, so the result does not depend on the batch,
//! and a row without adapters has the same bits as in a model without adapters.
//!
//! A cache belongs to one set of adapters ([`LoraSet`]), as it belongs to one model: its keys and values depend on
//! both.

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
use std::sync::{Arc, PoisonError, RwLock, Weak};

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
    /// The matrix that the gate is multiplied with.
    Up,
    /// The output projection of the feed-forward part.
    Down,
    /// The output matrix. Its layer is 0.
    Output,
}

/// The part of an adapter for one matrix with `n_rows` outputs and `n_cols` inputs.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LowRank<'a> {
    /// The layer of the matrix.
    pub layer: usize,
    /// The matrix within the layer.
    pub target: LoraTarget,
    /// Number of outputs of the matrix.
    pub n_rows: usize,
    /// Number of inputs of the matrix.
    pub n_cols: usize,
    /// Number of rows of A.
    pub rank: usize,
    /// `[rank, n_cols]`
    pub a: &'a [f32],
    /// `[n_rows, rank]`
    pub b: &'a [f32],
}

/// A [`LowRank`] part in the memory of its matrix's device. Dropping it frees the memory.
pub struct AdapterPart {
    /// The data that the device needs to compute with it.
    pub data: Box<dyn Any + Send + Sync>,
    /// Bytes of device memory.
    pub n_bytes: u64,
}

/// A part of an adapter, with its scale: alpha / rank.
struct Scaled {
    part: AdapterPart,
    scale: f32,
}

/// An adapter that was loaded for a model. It is cheap to clone; its memory is freed with the last clone.
#[derive(Clone)]
pub struct Lora {
    inner: Arc<Inner>,
}

struct Inner {
    /// Ids follow the order of loading.
    id: u64,
    model: u64,
    path: PathBuf,
    /// Replaced when layers move to another device.
    parts: RwLock<Arc<Parts>>,
    fingerprint: u128,
}

/// The parts of an adapter, by layer and matrix.
type Parts = BTreeMap<(usize, LoraTarget), Scaled>;

/// An adapter that may have been dropped.
pub(crate) struct WeakLora(Weak<Inner>);

impl WeakLora {
    pub(crate) fn upgrade(&self) -> Option<Lora> {
        self.0.upgrade().map(|inner| Lora { inner })
    }
}

impl Lora {
    /// Bytes that the adapter at `path` takes in memory, computed from its headers.
    ///
    /// # Errors
    /// [`LoraError`] for a file that is damaged or is not an adapter.
    pub fn estimate(path: &Path) -> Result<u64, LoraError> {
        load::estimate(path)
    }

    /// The path that it was loaded from.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Bytes of its matrices in memory.
    pub fn n_bytes(&self) -> u64 {
        self.parts().values().map(|scaled| scaled.part.n_bytes).sum()
    }

    /// Number of matrices of the model that it changes.
    pub fn n_matrices(&self) -> usize {
        self.parts().len()
    }

    /// A hash of all its values: equal for equal adapters, whatever the file format.
    pub fn fingerprint(&self) -> u128 {
        self.inner.fingerprint
    }

    fn parts(&self) -> Arc<Parts> {
        Arc::clone(&self.inner.parts.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn downgrade(&self) -> WeakLora {
        WeakLora(Arc::downgrade(&self.inner))
    }

    /// Takes over the parts of `other`, which was loaded from the same file onto other devices.
    pub(crate) fn take_parts_of(&self, other: &Self) {
        *self.inner.parts.write().unwrap_or_else(PoisonError::into_inner) = other.parts();
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

/// Adapters of one model, each with a scale, in the order of loading. No adapter occurs twice, and no scale is 0.
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

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.loras.is_empty()
    }

    /// The adapters and their scales.
    pub fn iter(&self) -> impl Iterator<Item = (&Lora, f32)> {
        self.loras.iter().map(|(lora, scale)| (lora, *scale))
    }

    /// Whether all adapters belong to this model.
    pub(crate) fn is_of(&self, model: u64) -> bool {
        self.loras.iter().all(|(lora, _)| lora.inner.model == model)
    }

    /// A key that identifies the set, without keeping its adapters alive.
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

/// Ids of adapters, which are never reused, and the bits of their scales.
pub(crate) type LoraKey = Vec<(u64, u32)>;
