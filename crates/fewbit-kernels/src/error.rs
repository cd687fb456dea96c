//! Errors of setting up the CPU. The operations themselves cannot fail: wrong shapes are bugs of the caller
//! and panic at the safe entry.

use crate::Isa;
use fewbit_quant::TensorType;

/// What can go wrong while kernels are chosen and weights are packed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// No such instruction set.
    #[error("unknown instruction set {name:?} in FEWBIT_ISA; known are scalar, portable, sse2, neon, avx2 and avx512")]
    UnknownIsa {
        /// The name given.
        name: String,
    },
    /// This CPU lacks the instruction set.
    #[error("this CPU cannot run {isa}; it can run {}", list(available))]
    IsaUnavailable {
        /// The one asked for.
        isa: Isa,
        /// Those that would work.
        available: Vec<Isa>,
    },
    /// Products with this weight type are not implemented.
    #[error("weights of type {ty} cannot be multiplied by this version of fewbit; convert the model to another type")]
    UnsupportedType {
        /// The weight type.
        ty: TensorType,
    },
    /// Bytes and shape disagree.
    #[error("a {n_rows} x {n_cols} matrix of {ty} takes {expected} bytes, but {found} were given")]
    Size {
        /// The weight type.
        ty: TensorType,
        /// Rows of the matrix.
        n_rows: usize,
        /// Columns of the matrix.
        n_cols: usize,
        /// Bytes that it takes; 0 if the columns are not a whole number of blocks.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The operating system gave no memory.
    #[error("out of memory: {bytes} bytes for packed weights could not be allocated")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The operating system gave no thread.
    #[error("could not start worker thread {index}: {reason}")]
    Thread {
        /// Index of the thread, from 1.
        index: usize,
        /// The operating system's words.
        reason: String,
    },
}

fn list(isas: &[Isa]) -> String {
    isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}
