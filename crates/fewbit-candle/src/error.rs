//! Errors of this crate, which connects candle's tensors, GGUF files and the kernels.

use candle_core::{DType, DeviceLocation};
use fewbit_kernels::KernelError;

/// An error of this crate. `?` converts it to a [`candle_core::Error`] in functions that return one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file has no tensor of this name.
    #[error("the file has no tensor {name:?}")]
    NoTensor {
        /// The requested name.
        name: String,
    },
    /// The weights of a linear layer must be a matrix.
    #[error("the weights of a linear layer must be a matrix [n_rows, n_cols], but {what} has the shape {shape:?}")]
    NotMatrix {
        /// The tensor given.
        what: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A tensor is not on the CPU, where the kernels run.
    #[error("fewbit's products run on the CPU, but {what} is on {location:?}: move it with `to_device(&Device::Cpu)`")]
    NotOnCpu {
        /// The tensor given.
        what: &'static str,
        /// The location of the tensor.
        location: DeviceLocation,
    },
    /// The input is not a float tensor.
    #[error("the input of a quantized product must be f32, f16 or bf16, but is {found:?}")]
    InputType {
        /// The type of the input.
        found: DType,
    },
    /// The last dimension of the input is not the number of columns.
    #[error(
        "the input's last dimension must be {expected}, the number of columns of the weights, but its shape is {shape:?}"
    )]
    InputShape {
        /// Number of columns of the weights.
        expected: usize,
        /// The shape of the input.
        shape: Vec<usize>,
    },
    /// The bias does not have one value for each row of the weights.
    #[error("the bias has the shape {shape:?}, expected [{expected}]")]
    BiasShape {
        /// Number of rows of the weights.
        expected: usize,
        /// The shape of the bias.
        shape: Vec<usize>,
    },
    /// A looked-up row does not exist.
    #[error("there is no row {id}: the weights have {n_rows}")]
    NoRow {
        /// The requested id.
        id: i64,
        /// Number of rows of the weights.
        n_rows: usize,
    },
    /// The rows of a tensor have different lengths.
    #[error("row {row} has {found} values, but the rows before it have {expected}")]
    RowLength {
        /// Index of the row.
        row: usize,
        /// The length of the first row.
        expected: usize,
        /// The length of this row.
        found: usize,
    },
    /// The result does not fit into memory.
    #[error("{what} of {n_elems} values does not fit into memory")]
    OutOfMemory {
        /// What was to be created.
        what: &'static str,
        /// Number of elements; `usize::MAX` if it does not fit into a `usize`.
        n_elems: usize,
    },
    /// An error of the kernels: an instruction set that this CPU lacks, a type without kernels, no memory, no threads.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An error of candle.
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
