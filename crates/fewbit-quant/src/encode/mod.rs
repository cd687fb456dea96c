//! From `f32` to stored bytes: the encoders of every type that a model is quantized to.
//!
//! A block's bytes decide how well its weights come back, and the format leaves the choice of scale and minimum
//! open. Each encoder searches for those that lose least (`search.rs`): it tries several ends of the range,
//! rounds, solves for the scale (and minimum) that fit the rounded codes best, and keeps the best. Formats with
//! integer scales below a float scale (`blocks256.rs`) then round the scales, round the codes once more under
//! the scales that will be read back, and solve for the float scales.
//!
//! With an *importance* per column (the mean square of the activations that meet it) the squared errors are
//! weighted by it, so that the products of the matrix suffer least.
//!
//! Everything is plain multiplications and additions in a fixed order, without fused operations, so that every
//! instruction set gives the same bytes: `fewbit-kernels` compiles [`encode_rows`] once for each.

// Loops over the lanes of a tile index several arrays at once, and read as the sums they are.
#![allow(clippy::needless_range_loop)]

mod blocks256;
mod blocks32;
mod pack;
mod search;

use crate::{QuantError, TensorType};
use half::{bf16, f16};

/// Weights beyond this magnitude cannot be stored: the scales of all quantized formats are `f16`, whose largest
/// number this is.
pub const MAX_MAGNITUDE: f32 = 65504.0;

/// Whether there is an encoder of this type.
pub fn is_encodable(ty: TensorType) -> bool {
    match ty.format() {
        Some(format) => format.is_encodable,
        None => ty.is_supported(),
    }
}

/// Encodes rows of `n_cols` weights as `ty`. `x`: `[n_rows, n_cols]`; `out` has the bytes of as many blocks.
/// `importance`, one value per column, says how much an error in that column matters; only ratios count.
///
/// # Errors
/// [`QuantError::NotEncodable`] for a type without encoder, [`QuantError::Size`] if the lengths do not fit each
/// other or a row is not a whole number of blocks, [`QuantError::NotFinite`] and [`QuantError::TooLarge`] for weights
/// that the type cannot hold, [`QuantError::Importance`] for importance that is negative or no number.
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

/// [`encode`], to be compiled into a caller that has vector instructions.
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

/// An error unless every weight is a number that `ty` can hold.
#[inline(always)]
fn check_values(ty: TensorType, x: &[f32]) -> Result<(), QuantError> {
    let limit = match ty {
        TensorType::F32 => f32::MAX,
        TensorType::BF16 => bf16::MAX.to_f32(),
        _ => MAX_MAGNITUDE,
    };
    // As bits, because the order of non-negative floats is that of their bits and NaN sorts last.
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
