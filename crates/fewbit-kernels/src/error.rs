//! Errors of setting up a CPU. The operations themselves cannot fail: wrong shapes are bugs in the caller and panic in
//! the safe methods of `Cpu`.

use crate::Isa;
use fewbit_quant::TensorType;

/// Errors that can occur while kernels are chosen and weights are packed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// There is no instruction set of this name.
    #[error("unknown instruction set {name:?} in FEWBIT_ISA; known are {}", list(&Isa::ALL))]
    UnknownIsa {
        /// The name given.
        name: String,
    },
    /// This CPU does not have the instruction set.
    #[error("this CPU cannot run {isa}; it can run {}", list(available))]
    IsaUnavailable {
        /// The requested instruction set.
        isa: Isa,
        /// The instruction sets that this CPU can run.
        available: Vec<Isa>,
    },
    /// Products with this weight type are not implemented.
    #[error("weights of type {ty} cannot be multiplied by this version of fewbit; convert the model to another type")]
    UnsupportedType {
        /// The weight type.
        ty: TensorType,
    },
    /// The number of bytes does not match the shape.
    #[error("a {n_rows} x {n_cols} matrix of {ty} takes {expected} bytes, but {found} were given")]
    Size {
        /// The weight type.
        ty: TensorType,
        /// Rows of the matrix.
        n_rows: usize,
        /// Columns of the matrix.
        n_cols: usize,
        /// Bytes that such a matrix takes; 0 if the columns are not a whole number of blocks.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The operating system could not provide the memory.
    #[error("out of memory: {bytes} bytes for packed weights could not be allocated")]
    OutOfMemory {
        /// Bytes requested.
        bytes: usize,
    },
    /// The operating system could not start a thread.
    #[error("could not start worker thread {index}: {reason}")]
    Thread {
        /// Index of the thread, from 1.
        index: usize,
        /// The error message of the operating system.
        reason: String,
    },
}

fn list(isas: &[Isa]) -> String {
    isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}
