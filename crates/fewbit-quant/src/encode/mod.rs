//! Encoding `f32` weights: the encoders of every type that a model can be quantized to.
//!
//! A format leaves the choice of scale and minimum to the encoder, and this choice decides how accurately a block's
//! weights are reproduced. Each encoder searches for the values with the smallest error (`search.rs`): it tries several
//! ends of the range, rounds, solves for the scale (and minimum) that fit the rounded codes best, and keeps the best
//! result. Formats with integer scales under a float scale (`blocks256.rs`) then round the scales, round the codes
//! again under the scales that will be read back, and solve for the float scales.
//!
//! With an *importance* per column (the mean square of the activations that the column is multiplied with), the squared
//! errors are weighted by it, so that the error of the matrix product is smallest.
//!
//! All arithmetic is plain multiplications and additions in a fixed order, without fused operations, so that every
//! instruction set gives the same bytes: `fewbit-kernels` compiles [`encode_rows`] once for each.

// Loops over the lanes of a tile index several arrays at once; written this way they read like the sums.
#![allow(clippy::needless_range_loop)]

mod blocks256;
mod blocks32;
mod pack;
mod search;

use crate::{QuantError, TensorType};
use half::{bf16, f16};

/// The largest magnitude of a weight that can be stored: the scales of quantized formats are `f16`, whose largest
/// number this is.
pub const MAX_MAGNITUDE: f32 = 65504.0;

/// Whether there is an encoder of this type.
pub fn is_encodable(ty: TensorType) -> bool {
    match ty.format() {
        Some(format) => format.is_encodable,
        None => ty.is_supported(),
    }
}

/// Encodes rows of `n_cols` weights as `ty`. `x`: `[n_rows, n_cols]`; `out` has the size of the encoded rows.
/// `importance` weights the error in each column, with one value per column; only their ratios matter.
///
/// # Errors
/// [`QuantError::NotEncodable`] for a type without an encoder, [`QuantError::Size`] if the lengths do not match or a
/// row is not a whole number of blocks, [`QuantError::NotFinite`] and [`QuantError::TooLarge`] for weights that the
/// type cannot hold, [`QuantError::Importance`] for an importance that is negative or not a number.
///
/// ```
/// use fewbit_quant::{TensorType, decode, encode::encode};
/// let row: Vec<f32> = (0..64).map(|i| (i as f32 / 10.0).sin()).collect();
/// let mut bytes = vec![0; TensorType::Q8_0.row_bytes(64).unwrap()];
/// encode(TensorType::Q8_0, &row, 64, None, &mut bytes)?;
/// let mut back = vec![0.0; 64];
/// decode(TensorType::Q8_0, &bytes, &mut back)?;
/// assert!(row.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.005));
/// # Ok::<(), fewbit_quant::QuantError>(())
/// ```
pub fn encode(
    ty: TensorType,
    x: &[f32],
    n_cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), QuantError> {
    encode_rows(ty, x, n_cols, importance, out)
}

/// As [`encode`], for inlining into a caller that is compiled with vector instructions.
///
/// # Errors
/// As [`encode`].
#[inline(always)]
pub fn encode_rows(
    ty: TensorType,
    x: &[f32],
    n_cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), QuantError> {
    if !is_encodable(ty) {
        return Err(QuantError::NotEncodable { ty });
    }
    let row_bytes = ty.row_bytes(n_cols).unwrap_or(0);
    let n_rows = x.len().checked_div(n_cols).unwrap_or(0);
    let fits = n_rows * n_cols == x.len() && out.len() == n_rows * row_bytes && (row_bytes > 0 || x.is_empty());
    if !fits || importance.is_some_and(|w| w.len() != n_cols) {
        return Err(QuantError::Size { ty, n_elems: x.len(), expected: n_rows * row_bytes, found: out.len() });
    }
    check_values(ty, x)?;
    if let Some(index) = importance.and_then(|w| w.iter().position(|v| !(v.is_finite() && *v >= 0.0))) {
        return Err(QuantError::Importance { index });
    }
    match ty {
        TensorType::F32 => plain(x, out, |v| v.to_le_bytes()),
        TensorType::F16 => plain(x, out, |v| f16::from_f32(v).to_le_bytes()),
        TensorType::BF16 => plain(x, out, |v| bf16::from_f32(v).to_le_bytes()),
        _ if ty.block_elems() == 32 => blocks32::encode(ty, x, n_cols, importance, out),
        _ => blocks256::encode(ty, x, n_cols, importance, out),
    }
    Ok(())
}

/// Returns an error unless every weight is a number that `ty` can hold.
#[inline(always)]
fn check_values(ty: TensorType, x: &[f32]) -> Result<(), QuantError> {
    let limit = match ty {
        TensorType::F32 => f32::MAX,
        TensorType::BF16 => bf16::MAX.to_f32(),
        _ => MAX_MAGNITUDE,
    };
    // Compares the bits, because non-negative floats are ordered like their bits and NaN comes last.
    let mut largest = 0u32;
    for v in x {
        largest = largest.max(v.abs().to_bits());
    }
    if largest <= limit.to_bits() {
        return Ok(());
    }
    if let Some(index) = x.iter().position(|v| !v.is_finite()) {
        return Err(QuantError::NotFinite { index });
    }
    let index = x.iter().position(|v| v.abs() > limit).unwrap_or(0);
    Err(QuantError::TooLarge { ty, index })
}

#[inline(always)]
fn plain<const N: usize>(x: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
    for (out, &v) in out.as_chunks_mut::<N>().0.iter_mut().zip(x) {
        *out = bytes(v);
    }
}
