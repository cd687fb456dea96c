//! Errors of decoding and encoding.

use crate::TensorType;

/// An error of decoding or encoding blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// The type is known by name, but this version cannot compute with it.
    #[error("tensor type {ty} cannot be decoded by this version of fewbit; convert the model to another type")]
    Unsupported {
        /// The requested type.
        ty: TensorType,
    },
    /// The length of the input is not that of the blocks of as many elements as the output holds.
    #[error("{n_elems} elements of {ty} take {expected} bytes, but {found} were given")]
    Size {
        /// The type of the blocks.
        ty: TensorType,
        /// Number of elements requested.
        n_elems: usize,
        /// Bytes that they take; 0 if `n_elems` is not a whole number of blocks.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// There is no encoder for this type.
    #[error("weights cannot be quantized to {ty}")]
    NotEncodable {
        /// The requested type.
        ty: TensorType,
    },
    /// A weight is infinite or not a number.
    #[error("weight {index} is infinite or not a number")]
    NotFinite {
        /// Index of the weight in the input.
        index: usize,
    },
    /// A weight is larger than the type can hold.
    #[error("weight {index} is too large for {ty}")]
    TooLarge {
        /// The requested type.
        ty: TensorType,
        /// Index of the weight in the input.
        index: usize,
    },
    /// The importance of a column is negative, infinite or not a number.
    #[error("the importance of column {index} is not a positive number")]
    Importance {
        /// The column.
        index: usize,
    },
}

impl QuantError {
    /// Converts an error about a part into one about the whole, in which `n_elems` weights precede the part.
    pub fn after(self, n_elems: usize) -> Self {
        match self {
            Self::NotFinite { index } => Self::NotFinite { index: n_elems + index },
            Self::TooLarge { ty, index } => Self::TooLarge { ty, index: n_elems + index },
            other => other,
        }
    }
}
