//! Why a file could not be quantized.

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
    /// The model's metadata, or the engine.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Reading or writing a file.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The importance matrix cannot be read.
    #[error(transparent)]
    Importance(#[from] ImportanceError),
    /// It was to stop ([`FileOptions::cancel`](super::FileOptions::cancel)).
    #[error("stopped before all was done: no file was written")]
    Cancelled,
    /// Output and input are one file.
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
    /// A tensor is stored in a type that cannot be read.
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
    /// A tensor was asked to have a type that does not fit its rows.
    #[error("tensor {name:?} has rows of {n_cols}, which {ty} cannot hold")]
    RowLength {
        /// The tensor.
        name: String,
        /// Elements of a row.
        n_cols: u64,
        /// The type.
        ty: TensorType,
    },
    /// The recipe gives bad results without importance.
    #[error("{recipe} needs an importance matrix, which has nothing for tensor {name:?}")]
    NeedsImportance {
        /// The recipe.
        recipe: Recipe,
        /// The first tensor that has none.
        name: String,
    },
    /// The importance matrix belongs to a model of other shapes.
    #[error(
        "the importance matrix has {found} values for tensor {name:?}, which needs {expected}; it belongs to another model"
    )]
    ImportanceSize {
        /// The tensor.
        name: String,
        /// Columns, times experts.
        expected: u64,
        /// Values there are.
        found: u64,
    },
}

impl From<CheckpointError> for QuantizeError {
    fn from(error: CheckpointError) -> Self {
        Self::Model(error.into())
    }
}
