//! What can go wrong between candle's tensors, GGUF files and the kernels.

use candle_core::{DType, DeviceLocation};
use fewbit_kernels::KernelError;

/// An error of this crate. `?` turns it into a [`candle_core::Error`] where a candle function wants one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file has no tensor of this name.
    #[error("the file has no tensor {name:?}")]
    NoTensor {
        /// The name asked for.
        name: String,
    },
    /// Weights of a linear layer are a matrix.
    #[error("the weights of a linear layer are a matrix [n_rows, n_cols], and {what} has the shape {shape:?}")]
    NotMatrix {
        /// What was given.
        what: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The kernels run on the CPU.
    #[error("fewbit's products run on the CPU, and {what} is on {location:?}: move it with `to_device(&Device::Cpu)`")]
    NotOnCpu {
        /// What was given.
        what: &'static str,
        /// Where it is.
        location: DeviceLocation,
    },
    /// Inputs are floats.
    #[error("the input of a quantized product is f32, f16 or bf16, and this one is {found:?}")]
    InputType {
        /// The type of the input.
        found: DType,
    },
    /// The last dimension of an input is the number of columns.
    #[error("the input's last dimension has to be {expected}, the columns of the weights, and its shape is {shape:?}")]
    InputShape {
        /// Columns of the weights.
        expected: usize,
        /// The shape of the input.
        shape: Vec<usize>,
    },
    /// A bias has one value for each row of the weights.
    #[error("a bias of these weights has the shape [{expected}], and this one has {shape:?}")]
    BiasShape {
        /// Rows of the weights.
        expected: usize,
        /// The shape of the bias.
        shape: Vec<usize>,
    },
    /// Looking up a row that is not there.
    #[error("there is no row {id}: the weights have {n_rows}")]
    NoRow {
        /// The id asked for.
        id: i64,
        /// Rows of the weights.
        n_rows: usize,
    },
    /// Rows of a tensor have one length.
    #[error("row {row} has {found} values, and the rows before it have {expected}")]
    RowLength {
        /// Which row.
        row: usize,
        /// The length of the first row.
        expected: usize,
        /// The length of this one.
        found: usize,
    },
    /// The result would not fit.
    #[error("{what} of {n_elems} values does not fit into memory")]
    OutOfMemory {
        /// What was to be made.
        what: &'static str,
        /// Its elements; `usize::MAX` if their number does not fit either.
        n_elems: usize,
    },
    /// The kernels refused: an instruction set that this CPU lacks, a type without kernels, no memory, no threads.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            other => Self::wrap(other),
        }
    }
}
