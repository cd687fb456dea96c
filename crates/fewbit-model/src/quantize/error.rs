//! Errors of quantizing files.

use std::path::PathBuf;

use fewbit_format::FormatError;
use fewbit_quant::{QuantError, TensorType};

use super::{ImportanceError, Recipe};
use crate::ModelError;
use fewbit_checkpoint::CheckpointError;

/// An error of quantizing a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// An error of the model's metadata or of the engine.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An error of reading or writing a file.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The importance matrix cannot be read.
    #[error(transparent)]
    Importance(#[from] ImportanceError),
    /// The work was cancelled ([`FileOptions::cancel`](super::FileOptions::cancel)).
    #[error("stopped before all was done: no file was written")]
    Cancelled,
    /// Output and input are the same file.
    #[error("{} would overwrite the file that it is made from; give another name", path.display())]
    SameFile {
        /// The path.
        path: PathBuf,
    },
    /// A tensor is quantized already.
    #[error(
        "tensor {name:?} is {ty} already, and quantizing it again loses more than quantizing the original; allow requantizing to do it nevertheless"
    )]
    Requantize {
        /// The tensor.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// A tensor has a type that cannot be decoded.
    #[error("tensor {name:?} is {ty}, which cannot be converted")]
    Unreadable {
        /// The tensor.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// A tensor's weights cannot be stored in its new type.
    #[error("tensor {name:?} cannot be converted")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        source: QuantError,
    },
    /// The requested type of a tensor does not fit its rows.
    #[error("tensor {name:?} has rows of {n_cols}, which {ty} cannot hold")]
    RowLength {
        /// The tensor.
        name: String,
        /// Number of elements in a row.
        n_cols: u64,
        /// The type.
        ty: TensorType,
    },
    /// The recipe gives poor results without an importance matrix.
    #[error("{recipe} needs an importance matrix with an entry for tensor {name:?}")]
    NeedsImportance {
        /// The recipe.
        recipe: Recipe,
        /// The first tensor without importance.
        name: String,
    },
    /// The importance matrix belongs to a model with other shapes.
    #[error(
        "the importance matrix has {found} values for tensor {name:?}, which needs {expected}; it belongs to another model"
    )]
    ImportanceSize {
        /// The tensor.
        name: String,
        /// Number of columns, times the number of experts.
        expected: u64,
        /// Number of values found.
        found: u64,
    },
}

impl From<CheckpointError> for QuantizeError {
    fn from(error: CheckpointError) -> Self {
        Self::Model(error.into())
    }
}
