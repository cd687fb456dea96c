//! What can go wrong between bytes and numbers.

use crate::TensorType;

/// An error of decoding or encoding blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// The type is known by name, but this version cannot compute with it.
    #[error("tensor type {ty} cannot be decoded by this version of fewbit; convert the model to another type")]
    Unsupported {
        /// The type that was asked for.
        ty: TensorType,
    },
    /// The bytes are not the blocks of as many elements as the output holds.
    #[error("{n_elems} elements of {ty} take {expected} bytes, but {found} were given")]
    Size {
        /// The type of the blocks.
        ty: TensorType,
        /// Elements asked for.
        n_elems: usize,
        /// Bytes that they take; 0 when `n_elems` is no whole number of blocks.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
}
