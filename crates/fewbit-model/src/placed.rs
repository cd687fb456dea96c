//! The placement of the parts of a loaded model.

use std::fmt;
use std::ops::Range;

/// A part of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelPart {
    /// The embedding. An output matrix that is tied to it on the same device is counted here.
    Embedding,
    /// Consecutive layers.
    Layers(Range<usize>),
    /// The last norm and the output matrix.
    Head,
}

impl fmt::Display for ModelPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.pad("embedding"),
            Self::Layers(layers) if layers.len() == 1 => f.pad(&format!("layer {}", layers.start)),
            Self::Layers(layers) => f.pad(&format!("layers {} to {}", layers.start, layers.end.saturating_sub(1))),
            Self::Head => f.pad("output"),
        }
    }
}

/// A part of a model, and its placement.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlacedPart {
    /// The part.
    pub part: ModelPart,
    /// The name that the device reports: `cpu (avx2)`, `vulkan:0 (..)`.
    pub device: String,
    /// Whether the device is the CPU.
    pub is_host: bool,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Bytes of its share of a page of a cache.
    pub page_bytes: u64,
}
