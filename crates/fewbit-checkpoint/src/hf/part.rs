//! Checks that tensors of several kinds share: shapes, types, and scales of quantized matrices.

use super::HfError;
use crate::CheckpointError;
use crate::source::decode;
use fewbit_format::SafetensorsModel;
use fewbit_format::safetensors::{Dtype, TensorInfo};
use fewbit_quant::TensorType;

/// Larger than the number of rows or columns of any model, and small enough that products with small numbers do not
/// overflow.
pub(super) const MAX_SIDE: usize = 1 << 28;

/// The shape of a tensor that must be a matrix; a vector counts as one row.
pub(super) fn matrix_shape(tensor: &TensorInfo) -> Result<[usize; 2], HfError> {
    let side = |n: u64| usize::try_from(n).ok().filter(|&n| n <= MAX_SIDE);
    let shape = match tensor.shape[..] {
        [rows, cols] => side(rows).zip(side(cols)).map(|(rows, cols)| [rows, cols]),
        [cols] => side(cols).map(|cols| [1, cols]),
        _ => None,
    };
    shape.ok_or_else(|| HfError::PartShape {
        name: tensor.name.clone(),
        expected: vec![1, 1],
        found: tensor.shape.clone(),
    })
}

/// Returns an error unless the tensor has this shape.
pub(super) fn check_shape(tensor: &TensorInfo, expected: [usize; 2]) -> Result<(), HfError> {
    let expected = expected.map(|n| n as u64);
    match tensor.shape[..] == expected {
        true => Ok(()),
        false => Err(HfError::PartShape {
            name: tensor.name.clone(),
            expected: expected.to_vec(),
            found: tensor.shape.clone(),
        }),
    }
}

/// Returns an error unless the elements of the tensor have this type.
pub(super) fn check_dtype(tensor: &TensorInfo, dtype: Dtype) -> Result<(), HfError> {
    match tensor.dtype == dtype {
        true => Ok(()),
        false => Err(HfError::TensorDtype { name: tensor.name.clone(), expected: dtype.name(), found: tensor.dtype }),
    }
}

/// The type of a tensor of plain floats, or an error for any other type.
///
/// # Errors
/// [`HfError::TensorDtype`].
pub fn plain_type(tensor: &TensorInfo) -> Result<TensorType, HfError> {
    match tensor.dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => tensor.dtype.tensor_type(),
        _ => None,
    }
    .ok_or_else(|| HfError::TensorDtype {
        name: tensor.name.clone(),
        expected: "F32, F16 or BF16",
        found: tensor.dtype,
    })
}

/// The values of a tensor of scales; an error if one is not a number or larger than `limit`.
pub(super) fn scales_of(
    files: &SafetensorsModel,
    tensor: &TensorInfo,
    limit: f32,
) -> Result<Vec<f32>, CheckpointError> {
    let ty = plain_type(tensor)?;
    let bytes = files.tensor_bytes(tensor);
    let scales = decode(&tensor.name, ty, bytes, bytes.len() / ty.block_bytes())?;
    match scales.iter().find(|s| s.is_nan() || s.abs() > limit) {
        Some(&value) => Err(HfError::Scale { name: tensor.name.clone(), value }.into()),
        None => Ok(scales),
    }
}
