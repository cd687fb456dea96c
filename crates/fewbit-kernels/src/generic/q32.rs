//! Products with weights in blocks of 32 (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4).
//!
//! ```text
//! for each block of 32 columns:
//!     for each quad of 4 columns:                     R vectors of weights, N broadcasts of activations
//!         sums[n][r] += dot4(w[r], x[n])
//!     for each n, r:
//!         i   = sums[n][r] - offset * sum(x)          integer, exact
//!         y   = i * (d[r] * dx[n]) + y                the defined float chain, one lane per output
//!         y   = m[r] * (dx[n] * sum(x)) + y           types with a minimum
//! ```

use super::{Ahead, Codes, PANEL_ROWS, Simd, bytes, steps_before_widen};

/// A type of this family, as constants.
pub(crate) trait Weights32: Codes {
    /// What is subtracted from a byte; 0 where bytes are signed.
    const OFFSET: i32;
    /// Whether blocks have a minimum.
    const MIN: bool;
    /// Whether scales are bf16 instead of f16.
    const BF16_SCALES: bool = false;
    /// Bytes of scales and minimums of one block of a panel.
    const META: usize = if Self::MIN { 4 * PANEL_ROWS } else { 2 * PANEL_ROWS };
}

/// One column of activations.
#[derive(Clone, Copy)]
pub(crate) struct Col32 {
    /// `[32 * n_blocks]`
    pub(crate) codes: *const i8,
    /// `[n_blocks]`
    pub(crate) scales: *const f32,
    /// `[n_blocks]`: sums of the codes.
    pub(crate) sums: *const i32,
    /// `[n_blocks]`: scale times sum.
    pub(crate) scaled_sums: *const f32,
}

/// Multiplies `n_blocks` blocks of one panel with `N` columns, adding to `y`: `[N][16]`, stride `y_stride`.
///
/// `CODE_BITS` is how `codes` is stored: `W::BITS` (packed) or 8 (unpacked).
///
/// # Safety
/// `codes` has `n_blocks * CODE_BITS * 64` bytes, `meta` `n_blocks * W::META`, each column the lengths that
/// [`Col32`] states, `y` 16 floats at each of N strides; `R * S::LANES == 16`; the CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, W: Weights32, const CODE_BITS: usize, const R: usize, const N: usize>(
    n_blocks: usize,
    codes: *const u8,
    meta: *const u8,
    ahead: Ahead,
    x: &[Col32; N],
    y: *mut f32,
    y_stride: usize,
) {
    // SAFETY: all pointers stay inside the ranges that the caller promises: b < n_blocks, q < 8, r < R.
    unsafe {
        let steps = steps_before_widen(S::NARROW_SUMS, W::BYTE_MAX, 8);
        let mut out = [[S::f0(); R]; N];
        for (n, out) in out.iter_mut().enumerate() {
            for (r, out) in out.iter_mut().enumerate() {
                *out = S::load_f(y.add(n * y_stride + r * S::LANES));
            }
        }
        for b in 0..n_blocks {
            ahead.prefetch::<S>(b);
            let block = codes.add(b * CODE_BITS * 64);
            let mut sums = [[S::i0(); R]; N];
            if W::SIGNED {
                for q in 0..8 {
                    let mut w = [S::prepare_i8(S::load_b(block)); R];
                    for (r, w) in w.iter_mut().enumerate() {
                        *w = S::prepare_i8(bytes::<S, W, CODE_BITS>(block, q, r));
                    }
                    for n in 0..N {
                        let xq = S::splat4(x[n].codes.add(b * 32 + q * 4));
                        for r in 0..R {
                            sums[n][r] = S::dot4_i8(sums[n][r], w[r], xq);
                        }
                    }
                }
            } else if N == 1 && !S::NARROW_SUMS {
                // One column alone would wait for each product: two sums per row, which add up exactly.
                for r in 0..R {
                    let mut acc = [S::acc0(); 2];
                    for q in 0..8 {
                        let xq = S::splat4(x[0].codes.add(b * 32 + q * 4));
                        acc[q % 2] = S::dot4(acc[q % 2], bytes::<S, W, CODE_BITS>(block, q, r), xq);
                    }
                    sums[0][r] = S::add_i(S::widen(acc[0]), S::widen(acc[1]));
                }
            } else {
                for first in (0..8).step_by(steps) {
                    let mut acc = [[S::acc0(); R]; N];
                    for q in first..first + steps {
                        let mut w = [S::load_b(block); R];
                        for (r, w) in w.iter_mut().enumerate() {
                            *w = bytes::<S, W, CODE_BITS>(block, q, r);
                        }
                        for n in 0..N {
                            let xq = S::splat4(x[n].codes.add(b * 32 + q * 4));
                            for r in 0..R {
                                acc[n][r] = S::dot4(acc[n][r], w[r], xq);
                            }
                        }
                    }
                    for n in 0..N {
                        for r in 0..R {
                            let wide = S::widen(acc[n][r]);
                            sums[n][r] = if first == 0 { wide } else { S::add_i(sums[n][r], wide) };
                        }
                    }
                }
            }
            let offset = if W::SIGNED { S::I8_BIAS } else { W::OFFSET };
            for r in 0..R {
                let scales = meta.add(b * W::META + r * 2 * S::LANES);
                let d = if W::BF16_SCALES { S::load_bf16(scales.cast()) } else { S::load_f16(scales.cast()) };
                for n in 0..N {
                    let mut i = sums[n][r];
                    if offset != 0 {
                        i = S::sub_i(i, S::splat_i(offset * *x[n].sums.add(b)));
                    }
                    let scale = S::mul(d, S::splat_f(*x[n].scales.add(b)));
                    out[n][r] = S::fma(S::to_f(i), scale, out[n][r]);
                }
                if W::MIN {
                    let m = S::load_f16(scales.add(2 * PANEL_ROWS).cast());
                    for n in 0..N {
                        out[n][r] = S::fma(m, S::splat_f(*x[n].scaled_sums.add(b)), out[n][r]);
                    }
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
