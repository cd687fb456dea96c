//! The source of a model's weights: one interface for all file formats.
//!
//! A source presents its tensors under the names, shapes and types that they have in a GGUF file, whatever the format
//! of its own file. So there is only one loader, and recipes, estimates and tools use one set of names. Rows that the
//! file already stores in this form are borrowed from it; others are converted on request. Nothing keeps a second copy.

use crate::{CheckpointError, ModelConfig};
use fewbit_format::{GgufFile, TensorInfo};
use fewbit_quant::{TensorType, Workers};
use std::borrow::Cow;
use std::ops::Range;

/// The tensors of a model, by their GGUF names.
pub trait WeightSource: Sync {
    /// Shape and constants of the model.
    ///
    /// # Errors
    /// As [`ModelConfig::from_gguf`], or as [`HfModel::open`](crate::HfModel::open).
    fn config(&self) -> Result<ModelConfig, CheckpointError>;

    /// All tensors. The meaning of [`TensorInfo::offset`] depends on the source.
    fn tensors(&self) -> &[TensorInfo];

    /// The tensor with this name.
    fn tensor(&self, name: &str) -> Option<&TensorInfo>;

    /// Some rows of a tensor of this source, in the layout of its type, converted on `workers` if the file stores them
    /// differently. Rows are counted over all dimensions except the last; a vector is one row.
    ///
    /// # Errors
    /// [`CheckpointError`] for bytes that the tensor's type cannot hold.
    ///
    /// # Panics
    /// If the tensor is not from this source, or has no such rows.
    fn rows(
        &self,
        workers: &dyn Workers,
        tensor: &TensorInfo,
        rows: Range<usize>,
    ) -> Result<Cow<'_, [u8]>, CheckpointError>;

    /// Releases the file's pages of a tensor after all of it has been read.
    fn release(&self, tensor: &TensorInfo);

    /// The name of a tensor in the file, for messages.
    fn name_in_file(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Total size of all tensors in bytes.
    fn n_bytes(&self) -> u64 {
        self.tensors().iter().fold(0, |n, tensor| n.saturating_add(tensor.n_bytes))
    }
}

impl WeightSource for GgufFile {
    fn config(&self) -> Result<ModelConfig, CheckpointError> {
        ModelConfig::from_gguf(self)
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.tensors()
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor(name)
    }

    fn rows(&self, _: &dyn Workers, tensor: &TensorInfo, rows: Range<usize>) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let row_bytes = row_bytes(tensor);
        Ok(Cow::Borrowed(&self.tensor_bytes(tensor)[rows.start * row_bytes..rows.end * row_bytes]))
    }

    fn release(&self, tensor: &TensorInfo) {
        self.release(tensor);
    }
}

/// The `n` values of a tensor; `name` is used in errors.
///
/// # Errors
/// [`CheckpointError::Decode`] for bytes that the type cannot hold.
pub fn decode(name: &str, ty: TensorType, bytes: &[u8], n: usize) -> Result<Vec<f32>, CheckpointError> {
    let mut out = vec![0.0; n];
    match fewbit_quant::decode(ty, bytes, &mut out) {
        Ok(()) => Ok(out),
        Err(source) => Err(CheckpointError::Decode { name: name.to_owned(), source }),
    }
}

/// Number of elements in a row.
pub fn n_cols(tensor: &TensorInfo) -> usize {
    tensor.shape.last().map_or(1, |&n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// Size of a row in bytes. Tensors of a source consist of whole rows.
pub fn row_bytes(tensor: &TensorInfo) -> usize {
    tensor.ty.row_bytes(n_cols(tensor)).unwrap_or(0)
}

/// Size of a tensor of this shape and type in bytes; `None` on overflow or if rows are not whole blocks.
pub fn tensor_bytes(shape: &[u64], ty: TensorType) -> Option<u64> {
    let n_cols = usize::try_from(shape.last().copied().unwrap_or(1)).ok()?;
    let row_bytes = ty.row_bytes(n_cols)? as u64;
    let n_dims = shape.len().saturating_sub(1);
    shape[..n_dims].iter().try_fold(row_bytes, |n, &dim| n.checked_mul(dim))
}
