//! The placement of the parts of a loaded model.

use crate::{DeviceMemory, LayerPart};
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
    /// The attention of layers whose experts are elsewhere.
    Attention(Range<usize>),
    /// The feed-forward parts of layers, with their experts, whose attention is elsewhere.
    Experts(Range<usize>),
    /// The last norm and the output matrix.
    Head,
    /// The layer that predicts the token after the next one, for drafts.
    Mtp,
}

impl fmt::Display for ModelPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |layers: &Range<usize>| match layers.len() {
            1 => format!("layer {}", layers.start),
            _ => format!("layers {} to {}", layers.start, layers.end.saturating_sub(1)),
        };
        match self {
            Self::Embedding => f.pad("embedding"),
            Self::Layers(layers) => f.pad(&of(layers)),
            Self::Attention(layers) => f.pad(&format!("attention of {}", of(layers))),
            Self::Experts(layers) => f.pad(&format!("experts of {}", of(layers))),
            Self::Head => f.pad("output"),
            Self::Mtp => f.pad("draft layer"),
        }
    }
}

impl ModelPart {
    /// Number of layers that count as being where this part is. Layers whose experts are elsewhere are where their
    /// attention is.
    pub fn n_layers(&self) -> usize {
        match self {
            Self::Layers(layers) | Self::Attention(layers) => layers.len(),
            Self::Embedding | Self::Experts(_) | Self::Head | Self::Mtp => 0,
        }
    }

    /// The part of layers of which a segment has this half.
    pub(crate) fn of_layers(layers: Range<usize>, part: LayerPart) -> Self {
        match part {
            LayerPart::Whole => Self::Layers(layers),
            LayerPart::Attention => Self::Attention(layers),
            LayerPart::FeedForward => Self::Experts(layers),
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

/// A device other than the CPU that has parts of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceUse {
    /// The name that the device reports.
    pub device: String,
    /// Bytes of the model's weights on it.
    pub weight_bytes: u64,
    /// Bytes of its share of a page of a cache.
    pub page_bytes: u64,
    /// Its memory at this moment.
    pub memory: DeviceMemory,
}

/// The memory that parts of a model will take on a device other than the CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceEstimate {
    /// The name that the device reports.
    pub device: String,
    /// The parts on it.
    pub parts: Vec<ModelPart>,
    /// Bytes of weights, keys and values and the buffers of a step.
    pub needed_bytes: u64,
    /// Its memory at this moment.
    pub memory: DeviceMemory,
}

/// Parts of which those of one kind that follow each other are one.
pub(crate) fn merged(parts: Vec<ModelPart>) -> Vec<ModelPart> {
    let mut out: Vec<ModelPart> = Vec::new();
    for part in parts {
        let follows = |before: &mut ModelPart| match (before, &part) {
            (ModelPart::Layers(before), ModelPart::Layers(next))
            | (ModelPart::Attention(before), ModelPart::Attention(next))
            | (ModelPart::Experts(before), ModelPart::Experts(next))
                if before.end == next.start =>
            {
                before.end = next.end;
                true
            }
            _ => false,
        };
        if !out.iter_mut().any(follows) {
            out.push(part);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::ModelPart;

    #[test]
    fn each_layer_counts_once() {
        // As with the experts of the first layer on the CPU.
        let parts = [
            ModelPart::Embedding,
            ModelPart::Attention(0..1),
            ModelPart::Experts(0..1),
            ModelPart::Layers(1..5),
            ModelPart::Head,
        ];
        assert_eq!(parts.map(|part| part.n_layers()), [0, 1, 0, 4, 0]);
    }
}
