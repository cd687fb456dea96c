//! Products with weights in blocks of 256 (Q2_K to Q6_K, IQ1 to IQ4_XS, TQ1_0, TQ2_0).
//!
//! ```text
//! for each block of 256 columns:
//!     for each group of 32 columns, each sub-block in it:
//!         i[n][r] += scale[r] * sum of dot4 over the sub-block           integer, exact
//!         k[n][r] += min[r] or scale[r], times the sum of x there        integer, exact
//!     y = (i - offset * k) * (d[r] * dx[n]) + y                          types with an offset
//!     y = i * (d[r] * dx[n]) + y;  y = -k * (dmin[r] * dx[n]) + y        types with minimums
//! ```
//! The integer scales stay inside the integer sums, so there is one float step per 256 columns.
//!
//! The largest sums are those of IQ4_XS where signed bytes get a bias of 128: 256 * 32 * 255 * 127 < 2^28. Looked
//! up bytes are at most 126, with scales of at most 31; Q6_K has 63 and 128: 256 * 128 * 63 * 127 < 2^28.

use super::{Ahead, Codes, PANEL_ROWS, Simd, bytes, steps_before_widen};

/// A type of this family, as constants.
pub(crate) trait Weights256: Codes {
    /// The power of two that is subtracted from a byte, as its exponent. Of no meaning in types with minimums
    /// and where bytes are signed.
    const OFFSET_SHIFT: u32;
    /// What the stored scale is multiplied by.
    const FACTOR: f32 = 1.0;
    /// Columns of a sub-block: 16 or 32.
    const SUB: usize;
    /// How scales and minimums are stored.
    const SCALES: Scales;
    /// Bytes of scales and minimums of one block of a panel.
    const META: usize = PANEL_ROWS
        * match Self::SCALES {
            Scales::ScaleThenMin => 4 + 2 * (256 / Self::SUB),
            Scales::Nibbles => 4 + 256 / Self::SUB,
            Scales::Signed => 2 + 256 / Self::SUB,
            Scales::OddNibbles => 2 + 256 / Self::SUB / 2,
            Scales::One => 2,
        };
}

/// Storage of the integer scales, behind the f16 scales `d[16]` (and `dmin[16]`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// `[256 / SUB][16]` unsigned scales, then as many minimums.
    ScaleThenMin,
    /// `[256 / SUB][16]` bytes: scale in the low nibble, minimum in the high one.
    Nibbles,
    /// `[256 / SUB][16]` signed scales, no minimums.
    Signed,
    /// `[256 / SUB / 2][16]` bytes: scale `2 s + 1` of an even sub-block in the low nibble, of the odd one behind
    /// it in the high nibble. No minimums.
    OddNibbles,
    /// All scales are 1 and none are stored. No minimums.
    One,
}

impl Scales {
    const fn have_min(self) -> bool {
        matches!(self, Self::ScaleThenMin | Self::Nibbles)
    }
}

/// One column of activations.
#[derive(Clone, Copy)]
pub(crate) struct Col256 {
    /// `[256 * n_blocks]`
    pub(crate) codes: *const i8,
    /// `[n_blocks]`
    pub(crate) scales: *const f32,
    /// `[16 * n_blocks]`: sums of 16 codes each.
    pub(crate) sums: *const i16,
}

/// Multiplies `n_blocks` blocks of one panel with `N` columns, adding to `y`: `[N][16]`, stride `y_stride`.
///
/// # Safety
/// As [`super::q32::tile`], with 8 groups of 32 columns per block.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, W: Weights256, const CODE_BITS: usize, const R: usize, const N: usize>(
    n_blocks: usize,
    codes: *const u8,
    meta: *const u8,
    ahead: Ahead,
    x: &[Col256; N],
    y: *mut f32,
    y_stride: usize,
) {
    // SAFETY: all pointers stay inside the ranges that the caller promises.
    unsafe {
        let per_sub = W::SUB / 4;
        let steps = steps_before_widen(S::NARROW_SUMS, W::BYTE_MAX, per_sub);
        let subs = 32 / W::SUB;
        let has_min = W::SCALES.have_min();
        let offset_shift = if W::SIGNED { 7 } else { W::OFFSET_SHIFT };
        let has_offset = !has_min && (!W::SIGNED || S::I8_BIAS != 0);
        let mut out = [[S::f0(); R]; N];
        for (n, out) in out.iter_mut().enumerate() {
            for (r, out) in out.iter_mut().enumerate() {
                *out = S::load_f(y.add(n * y_stride + r * S::LANES));
            }
        }
        for b in 0..n_blocks {
            let meta = meta.add(b * W::META);
            let ints = meta.add(if has_min { 4 } else { 2 } * PANEL_ROWS);
            let mut i = [[S::i0(); R]; N];
            let mut k = [[S::i0(); R]; N];
            for g in 0..8 {
                ahead.prefetch::<S>(b * 8 + g);
                let group = codes.add((b * 8 + g) * CODE_BITS * 64);
                // Factors of the activation sums, for the two halves of 16 columns.
                let mut factors = [[S::i0(); 2]; R];
                for s in 0..subs {
                    let mut scales = [S::scale(S::i0()); R];
                    for r in 0..R {
                        let (scale, factor) = scale_and_factor::<S, W>(ints.add(r * S::LANES), g * subs + s);
                        scales[r] = S::scale(scale);
                        factors[r][s] = factor;
                        if subs == 1 {
                            factors[r][1] = factor;
                        }
                    }
                    for first in (0..per_sub).step_by(steps) {
                        let mut acc = [[S::acc0(); R]; N];
                        for q in first..first + steps {
                            let q = s * per_sub + q;
                            if W::SIGNED {
                                for r in 0..R {
                                    let w = S::prepare_i8(bytes::<S, W, CODE_BITS>(group, q, r));
                                    for n in 0..N {
                                        let xq = S::splat4(x[n].codes.add(b * 256 + g * 32 + q * 4));
                                        acc[n][r] = S::dot4_signed(acc[n][r], w, xq);
                                    }
                                }
                                continue;
                            }
                            let mut w = [S::load_b(group); R];
                            for (r, w) in w.iter_mut().enumerate() {
                                *w = bytes::<S, W, CODE_BITS>(group, q, r);
                            }
                            for n in 0..N {
                                let xq = S::splat4(x[n].codes.add(b * 256 + g * 32 + q * 4));
                                for r in 0..R {
                                    acc[n][r] = S::dot4(acc[n][r], w[r], xq);
                                }
                            }
                        }
                        for n in 0..N {
                            for r in 0..R {
                                i[n][r] = S::add_i(i[n][r], S::widen_scaled(acc[n][r], scales[r]));
                            }
                        }
                    }
                }
                for r in 0..R {
                    if !has_min && !has_offset {
                        break;
                    }
                    let pair = S::pair16(factors[r][0], factors[r][1]);
                    for n in 0..N {
                        let sums = S::splat4(x[n].sums.add(b * 16 + g * 2).cast());
                        k[n][r] = S::dot2_i16(k[n][r], pair, sums);
                    }
                }
            }
            for r in 0..R {
                let mut d = S::load_f16(meta.add(r * 2 * S::LANES).cast());
                if W::FACTOR != 1.0 {
                    d = S::mul(d, S::splat_f(W::FACTOR));
                }
                for n in 0..N {
                    let dx = S::splat_f(*x[n].scales.add(b));
                    if has_min {
                        let dmin = S::load_f16(meta.add(2 * PANEL_ROWS + r * 2 * S::LANES).cast());
                        out[n][r] = S::fma(S::to_f(i[n][r]), S::mul(d, dx), out[n][r]);
                        out[n][r] = S::fnma(S::to_f(k[n][r]), S::mul(dmin, dx), out[n][r]);
                    } else {
                        let sum = if has_offset { S::sub_i(i[n][r], shl::<S>(k[n][r], offset_shift)) } else { i[n][r] };
                        out[n][r] = S::fma(S::to_f(sum), S::mul(d, dx), out[n][r]);
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

/// Shifts left; `by` is a constant after inlining.
#[inline(always)]
unsafe fn shl<S: Simd>(i: S::I, by: u32) -> S::I {
    // SAFETY: the caller's.
    unsafe {
        match by {
            0 => i,
            2 => S::shl_i::<2>(i),
            4 => S::shl_i::<4>(i),
            5 => S::shl_i::<5>(i),
            6 => S::shl_i::<6>(i),
            7 => S::shl_i::<7>(i),
            _ => unreachable!(),
        }
    }
}

/// The integer scale of sub-block `j` for `LANES` rows, and what multiplies the activation sum: the minimum, or
/// the scale itself in types with an offset.
#[inline(always)]
unsafe fn scale_and_factor<S: Simd, W: Weights256>(ints: *const u8, j: usize) -> (S::I, S::I) {
    // SAFETY: `ints` points at the first sub-block's scales of a panel, for these rows; minimums lie behind all
    // scales.
    unsafe {
        let at = ints.wrapping_add(j * PANEL_ROWS);
        match W::SCALES {
            Scales::ScaleThenMin => (S::load_u8_i(at), S::load_u8_i(at.add(256 / W::SUB * PANEL_ROWS))),
            Scales::Nibbles => {
                let both = S::load_u8_i(at);
                (S::and_low_nibble(both), S::shr_i::<4>(both))
            }
            Scales::Signed => {
                let scale = S::load_i8_i(at);
                (scale, scale)
            }
            Scales::OddNibbles => {
                let both = S::load_u8_i(ints.add(j / 2 * PANEL_ROWS));
                let half = if j.is_multiple_of(2) { S::and_low_nibble(both) } else { S::shr_i::<4>(both) };
                let scale = S::add_i(S::shl_i::<1>(half), S::splat_i(1));
                (scale, scale)
            }
            Scales::One => (S::splat_i(1), S::splat_i(1)),
        }
    }
}
