//! The element types that keys and values can have.

use fewbit_kernels::kv::Q8;
use fewbit_kernels::{AttentionShape, KvElement};
use half::f16;

/// The element type of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types)]
pub enum KvType {
    /// Half precision: 2 bytes.
    F16,
    /// Full precision: 4 bytes.
    F32,
    /// Blocks of 32 elements: a byte each, and a scale in half precision. For heads of a multiple of 32 elements.
    Q8_0,
}

impl KvType {
    /// All element types.
    pub const ALL: [Self; 3] = [Self::F16, Self::F32, Self::Q8_0];

    /// Whether heads of this size can be stored.
    pub fn supports(self, head_dim: usize) -> bool {
        match self {
            Self::F16 => f16::supports(head_dim),
            Self::F32 => f32::supports(head_dim),
            Self::Q8_0 => Q8::supports(head_dim),
        }
    }

    /// Whether the keys and values of a model can be stored.
    pub fn supports_shape(self, shape: &AttentionShape) -> bool {
        self.supports(shape.head_dim) && self.supports(shape.value_dim())
    }

    /// Number of elements of the keys and of the values in one page of one layer.
    pub fn page_elems(self, shape: &AttentionShape) -> (usize, usize) {
        match self {
            Self::F16 => (shape.key_elems::<f16>(), shape.value_elems::<f16>()),
            Self::F32 => (shape.key_elems::<f32>(), shape.value_elems::<f32>()),
            Self::Q8_0 => (shape.key_elems::<Q8>(), shape.value_elems::<Q8>()),
        }
    }

    /// Size of an element in bytes.
    pub fn elem_bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::Q8_0 => 1,
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Q8_0 => "q8_0",
        }
    }
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
