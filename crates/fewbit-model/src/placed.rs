//! What of a loaded model lies where.

use std::ops::Range;

/// A part of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelPart {
    /// The rows of tokens. Where the output matrix is the same one, on the same device, it counts here.
    Embedding,
    /// Consecutive layers.
    Layers(Range<usize>),
    /// The last norm and the output matrix.
    Head,
}

/// A part of a model, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlacedPart {
    /// What it is.
    pub part: ModelPart,
    /// The device's name, as it gives it: `cpu (avx2)`, `vulkan:0 (..)`.
    pub device: String,
    /// Whether that is the CPU.
    pub is_host: bool,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Bytes of its share of a page of a cache.
    pub page_bytes: u64,
}
