//! Products with F32, F16 and BF16 weights: one `fma` chain per output over the columns, in order.

use super::Simd;
use crate::weights::PANEL_ROWS;

/// How a weight is stored.
pub(crate) trait FloatWeights: 'static {
    /// Bytes of one weight.
    const BYTES: usize;
    /// Loads the weights of `LANES` rows in one column.
    ///
    /// # Safety
    /// `p` is valid for `LANES * BYTES` bytes and the CPU has `S`.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

/// Multiplies `n_cols` columns of a panel (`[n_cols][16]` weights) with `N` columns of activations, adding
/// to `y`: `[N][16]`, stride `y_stride`.
///
/// # Safety
/// `weights` has `n_cols * 16` weights, each `x` `n_cols` floats; `y`, `R` and the CPU as in
/// [`super::q32::tile`].
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, W: FloatWeights, const R: usize, const N: usize>(
    n_cols: usize,
    weights: *const u8,
    x: &[*const f32; N],
    y: *mut f32,
    y_stride: usize,
) {
    // SAFETY: k < n_cols and r * LANES < 16 keep every pointer inside the ranges that the caller promises.
    unsafe {
        let mut out = [[S::f0(); R]; N];
        for (n, out) in out.iter_mut().enumerate() {
            for (r, out) in out.iter_mut().enumerate() {
                *out = S::load_f(y.add(n * y_stride + r * S::LANES));
            }
        }
        for k in 0..n_cols {
            let row = weights.add(k * PANEL_ROWS * W::BYTES);
            let mut w = [S::f0(); R];
            for (r, w) in w.iter_mut().enumerate() {
                *w = W::load::<S>(row.add(r * S::LANES * W::BYTES));
            }
            for n in 0..N {
                let xk = S::splat_f(*x[n].add(k));
                for r in 0..R {
                    out[n][r] = S::fma(w[r], xk, out[n][r]);
                }
            }
        }
        for (n, out) in out.iter().enumerate() {
            for (r, out) in out.iter().enumerate() {
                S::store_f(y.add(n * y_stride + r * S::LANES), *out);
            }
        }
    }
}

/// The weight types that are plain floats.
pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct BF16;

impl FloatWeights for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_f(p.cast()) }
    }
}

impl FloatWeights for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_f16(p.cast()) }
    }
}

impl FloatWeights for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_bf16(p.cast()) }
    }
}
