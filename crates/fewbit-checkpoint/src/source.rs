//! Where the weights of a model come from: one interface for all file formats.
//!
//! A source shows its tensors under the names, shapes and types that they have in a GGUF file, whatever they are
//! in the file at hand, so that there is one loader, and recipes, estimates and tools know one set of names. Rows
//! are borrowed from the file where they lie there as they are needed, and made when they are asked for where they
//! do not; nothing keeps a second copy.

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

    /// All tensors. What [`TensorInfo::offset`] means is the source's own matter.
    fn tensors(&self) -> &[TensorInfo];

    /// The tensor with this name.
    fn tensor(&self, name: &str) -> Option<&TensorInfo>;

    /// Some rows of a tensor of this source, in its type's layout, made on `workers` where they are not in the file as
    /// they are here. Rows count through all dimensions but the last;
    /// a vector is one row.
    ///
    /// # Errors
    /// [`CheckpointError`] for bytes that the tensor's type cannot hold.
    ///
    /// # Panics
    /// If the tensor is not of this source, or has no such rows.
    fn rows(
        &self,
        workers: &dyn Workers,
        tensor: &TensorInfo,
        rows: Range<usize>,
    ) -> Result<Cow<'_, [u8]>, CheckpointError>;

    /// Gives the file's pages of a tensor back, when all of it has been read.
    fn release(&self, tensor: &TensorInfo);

    /// What a tensor is called in the file, for messages.
    fn name_in_file(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Bytes of all tensors.
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

/// The `n` numbers of a tensor, which an error calls `name`.
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

/// Elements of a row.
pub fn n_cols(tensor: &TensorInfo) -> usize {
    tensor.shape.last().map_or(1, |&n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// Bytes of a row. Tensors of a source are whole rows.
pub fn row_bytes(tensor: &TensorInfo) -> usize {
    tensor.ty.row_bytes(n_cols(tensor)).unwrap_or(0)
}

/// Bytes of a tensor of this shape and type, if they can be counted and rows are whole blocks.
pub fn tensor_bytes(shape: &[u64], ty: TensorType) -> Option<u64> {
    let n_cols = usize::try_from(shape.last().copied().unwrap_or(1)).ok()?;
    let row_bytes = ty.row_bytes(n_cols)? as u64;
    let n_dims = shape.len().saturating_sub(1);
    shape[..n_dims].iter().try_fold(row_bytes, |n, &dim| n.checked_mul(dim))
}
