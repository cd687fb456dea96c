//! Activations in the form that matrix products read.
//!
//! A product with quantized weights is an integer product: each row of activations is cut into blocks of 32
//! or 256, and each block becomes signed bytes under one `f32` scale. Codes lie in `-127..=127`, never -128,
//! so that products with unsigned weight codes stay inside the bounds that the SIMD kernels prove.
//!
//! The rule, for a block `x` (all steps in `f32`, so every implementation gives the same bits):
//!
//! ```text
//! amax  = max |x[i]|
//! codes = 0, d = NaN                                  if any x[i] is NaN or infinite
//! codes = 0, d = 0                                    if amax < 2^-100
//! d     = amax / 127,  inv = 127 / amax               otherwise
//! codes[i] = clamp(round_ties_even(x[i] * inv), -127, 127)
//! ```

use crate::TensorType;

/// Blocks whose largest magnitude is below this count as zero.
pub const MIN_AMAX: f32 = f32::from_bits((127 - 100) << 23);

/// The form of activations that products with a weight type need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationKind {
    /// Plain `f32` (weights F32, F16, BF16).
    F32,
    /// Signed bytes under one scale per 32 (weights in blocks of 32).
    Q8Block32,
    /// Signed bytes under one scale per 256 (weights in blocks of 256).
    Q8Block256,
}

impl ActivationKind {
    /// The kind of activations that weights of type `ty` are multiplied with; `None` for types that cannot be
    /// multiplied.
    pub fn of(ty: TensorType) -> Option<Self> {
        if !ty.is_supported() {
            return None;
        }
        Some(match ty.block_elems() {
            32 => Self::Q8Block32,
            256 => Self::Q8Block256,
            _ => Self::F32,
        })
    }

    /// Number of elements that share one scale.
    pub fn block_elems(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Q8Block32 => 32,
            Self::Q8Block256 => 256,
        }
    }

    /// Number of elements that share one integer sum: 32 for [`Q8Block32`](Self::Q8Block32), 16 for
    /// [`Q8Block256`](Self::Q8Block256) (the finest sub-block of the K formats).
    pub fn sum_elems(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Q8Block32 => 32,
            Self::Q8Block256 => 16,
        }
    }
}

/// One row of quantized activations.
#[derive(Clone, Copy, Debug)]
pub struct Q8Row<'a> {
    /// `[k]`
    pub codes: &'a [i8],
    /// `[k / block_elems]`
    pub scales: &'a [f32],
    /// `[k / sum_elems]`: exact sums of the codes.
    pub sums: &'a [i16],
}

/// Quantizes one row. `x`: `[k]`, `k` a whole number of blocks; the outputs have the lengths that
/// [`Q8Row`] states.
///
/// # Panics
/// If a length does not fit or `kind` is [`ActivationKind::F32`].
pub fn quantize_row(kind: ActivationKind, x: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [i16]) {
    let (block, sum) = (kind.block_elems(), kind.sum_elems());
    assert_ne!(kind, ActivationKind::F32, "plain activations are not quantized");
    assert!(x.len().is_multiple_of(block) && codes.len() == x.len());
    assert!(scales.len() == x.len() / block && sums.len() == x.len() / sum);
    for ((x, codes), scale) in x.chunks_exact(block).zip(codes.chunks_exact_mut(block)).zip(scales) {
        *scale = quantize_block(x, codes);
    }
    for (codes, s) in codes.chunks_exact(sum).zip(sums) {
        *s = codes.iter().map(|&c| i16::from(c)).sum();
    }
}

/// Quantizes one block and returns its scale.
fn quantize_block(x: &[f32], codes: &mut [i8]) -> f32 {
    // Compares the bits, because non-negative floats are ordered like their bits and NaN comes last.
    let amax = f32::from_bits(x.iter().map(|v| v.abs().to_bits()).max().unwrap_or(0));
    if !amax.is_finite() || amax < MIN_AMAX {
        codes.fill(0);
        return if amax.is_finite() { 0.0 } else { f32::NAN };
    }
    let inv = 127.0 / amax;
    for (code, &v) in codes.iter_mut().zip(x) {
        *code = (v * inv).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    amax / 127.0
}
