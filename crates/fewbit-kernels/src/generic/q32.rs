//! Products with weights in blocks of 32 (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4).
//!
//! ```text
//! for each block of 32 columns:
//!     sums[n][r] = -offset * sum(x)                   integer, exact
//!     for each quad of 4 columns:                     R vectors of weights, N broadcasts of activations
//!         sums[n][r] += dot4(w[r], x[n])
//!     for each n, r:
//!         y   = sums[n][r] * (d[r] * dx[n]) + y       the defined float chain, one lane per output
//!         y   = m[r] * (dx[n] * sum(x)) + y           types with a minimum
//! ```

use super::{Ahead, Codes, PANEL_ROWS, Simd, TilePanel, bytes, prefetch_group, steps_before_widen};
use crate::activations::GROUP;

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

/// A group of activation rows that lie interleaved: `W` of them, of which a tile takes `N` from some lane on.
#[derive(Clone, Copy)]
pub(crate) struct Group32 {
    /// `[8 * n_blocks][W][4]`
    pub(crate) codes: *const i8,
    /// `[n_blocks][W]`
    pub(crate) scales: *const f32,
    /// `[n_blocks][W]`: minus the offset of the weights times the sum of the codes.
    pub(crate) offsets: *const i32,
    /// `[n_blocks][W]`: scale times sum.
    pub(crate) scaled_sums: *const f32,
}

/// Multiplies `n_blocks` blocks of `P` panels with `N` rows of a group of `W`, adding to each panel's `y`: `[N][16]`.
///
/// `CODE_BITS` is how codes are stored: `T::BITS` (packed) or 8 (unpacked).
///
/// # Safety
/// Of each panel, `codes` has `n_blocks * CODE_BITS * 64` bytes, `meta` `n_blocks * T::META`, and `y` `N * 16` floats;
/// `x` points at the first of its rows in buffers of the lengths that [`Group32`] states; `R * S::LANES == 16`; the CPU
/// has `S`.
#[inline(always)]
pub(crate) unsafe fn tile<
    S: Simd,
    T: Weights32,
    const CODE_BITS: usize,
    const R: usize,
    const P: usize,
    const N: usize,
    const W: usize,
>(
    n_blocks: usize,
    panels: [TilePanel; P],
    ahead: Ahead,
    x: Group32,
) {
    // SAFETY: all pointers stay inside the ranges that the caller promises: b < n_blocks, q < 8, r < R.
    unsafe {
        let steps = steps_before_widen(S::NARROW_SUMS, T::BYTE_MAX, 8);
        let offset = if T::SIGNED { S::I8_BIAS } else { T::OFFSET };
        let mut out = [[[S::f0(); R]; P]; N];
        for (n, out) in out.iter_mut().enumerate() {
            for (panel, out) in panels.iter().zip(out) {
                for (r, out) in out.iter_mut().enumerate() {
                    *out = S::load_f(panel.y.add(n * PANEL_ROWS + r * S::LANES));
                }
            }
        }
        for b in 0..n_blocks {
            ahead.prefetch::<S>(b);
            if W == GROUP {
                prefetch_group::<S>(x.codes.cast::<u8>().wrapping_add(b * 32 * GROUP));
            }
            let blocks = panels.map(|panel| panel.codes.add(b * CODE_BITS * 64));
            let quad_of = |q: usize, n: usize| S::splat4(x.codes.add(((b * 8 + q) * W + n) * 4));
            // Sums begin with what the offset makes of the activations.
            let mut sums = [[[S::i0(); R]; P]; N];
            if offset != 0 {
                for (n, sums) in sums.iter_mut().enumerate() {
                    *sums = [[S::splat_i(*x.offsets.add(b * W + n)); R]; P];
                }
            }
            if T::SIGNED {
                for q in 0..8 {
                    let mut w = [[S::prepare_i8(S::load_b(blocks[0])); R]; P];
                    for (block, w) in blocks.iter().zip(&mut w) {
                        for (r, w) in w.iter_mut().enumerate() {
                            *w = S::prepare_i8(bytes::<S, T, CODE_BITS>(*block, q, r));
                        }
                    }
                    for n in 0..N {
                        let xq = quad_of(q, n);
                        for p in 0..P {
                            for r in 0..R {
                                sums[n][p][r] = S::dot4_i8(sums[n][p][r], w[p][r], xq);
                            }
                        }
                    }
                }
            } else if N == 1 && !S::NARROW_SUMS {
                // One row alone would wait for each product: two sums, which add up exactly.
                for p in 0..P {
                    for r in 0..R {
                        let mut acc = [S::acc_from(sums[0][p][r]), S::acc0()];
                        for q in 0..8 {
                            let w = bytes::<S, T, CODE_BITS>(blocks[p], q, r);
                            acc[q % 2] = S::dot4(acc[q % 2], w, quad_of(q, 0));
                        }
                        sums[0][p][r] = S::add_i(S::widen(acc[0]), S::widen(acc[1]));
                    }
                }
            } else {
                for first in (0..8).step_by(steps) {
                    let mut acc = [[[S::acc0(); R]; P]; N];
                    if !S::NARROW_SUMS {
                        for n in 0..N {
                            for p in 0..P {
                                for r in 0..R {
                                    acc[n][p][r] = S::acc_from(sums[n][p][r]);
                                }
                            }
                        }
                    }
                    for q in first..first + steps {
                        let mut w = [[S::load_b(blocks[0]); R]; P];
                        for (block, w) in blocks.iter().zip(&mut w) {
                            for (r, w) in w.iter_mut().enumerate() {
                                *w = bytes::<S, T, CODE_BITS>(*block, q, r);
                            }
                        }
                        for n in 0..N {
                            let xq = quad_of(q, n);
                            for p in 0..P {
                                for r in 0..R {
                                    acc[n][p][r] = S::dot4(acc[n][p][r], w[p][r], xq);
                                }
                            }
                        }
                    }
                    for n in 0..N {
                        for p in 0..P {
                            for r in 0..R {
                                let wide = S::widen(acc[n][p][r]);
                                sums[n][p][r] = match S::NARROW_SUMS && (first > 0 || offset != 0) {
                                    true => S::add_i(sums[n][p][r], wide),
                                    false => wide,
                                };
                            }
                        }
                    }
                }
            }
            for (p, panel) in panels.iter().enumerate() {
                for r in 0..R {
                    let scales = panel.meta.add(b * T::META + r * 2 * S::LANES);
                    let d = if T::BF16_SCALES { S::load_bf16(scales.cast()) } else { S::load_f16(scales.cast()) };
                    for n in 0..N {
                        let scale = S::mul(d, S::splat_f(*x.scales.add(b * W + n)));
                        out[n][p][r] = S::fma(S::to_f(sums[n][p][r]), scale, out[n][p][r]);
                    }
                    if T::MIN {
                        let m = S::load_f16(scales.add(2 * PANEL_ROWS).cast());
                        for n in 0..N {
                            out[n][p][r] = S::fma(m, S::splat_f(*x.scaled_sums.add(b * W + n)), out[n][p][r]);
                        }
                    }
                }
            }
        }
        for (n, out) in out.iter().enumerate() {
            for (panel, out) in panels.iter().zip(out) {
                for (r, out) in out.iter().enumerate() {
                    S::store_f(panel.y.add(n * PANEL_ROWS + r * S::LANES), *out);
                }
            }
        }
    }
}
