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

use super::{Ahead, Codes, PANEL_ROWS, Simd, TilePanel, bytes, fit_16_bits, prefetch_group, steps_before_widen};
use crate::activations::{GROUP, OFFSET_SHIFTS_256};

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

/// A group of activation rows that lie interleaved, as [`super::q32::Group32`].
#[derive(Clone, Copy)]
pub(crate) struct Group256 {
    /// `[64 * n_blocks][W][4]`
    pub(crate) codes: *const i8,
    /// `[n_blocks][W]`
    pub(crate) scales: *const f32,
    /// `[16 * n_blocks][W]`: minus the offset of the weights times the sum of 16 codes.
    pub(crate) offsets: *const i32,
    /// `[8 * n_blocks][W][2]`: sums of 16 codes.
    pub(crate) pairs_16: *const i8,
    /// `[4 * n_blocks][W][2]`: sums of 32 codes.
    pub(crate) pairs_32: *const i8,
}

/// Multiplies `n_blocks` blocks of `P` panels with `N` rows of a group of `W`, adding to each panel's `y`: `[N][16]`.
///
/// # Safety
/// As [`super::q32::tile`], with 8 groups of 32 columns per block.
#[inline(always)]
pub(crate) unsafe fn tile<
    S: Simd,
    T: Weights256,
    const CODE_BITS: usize,
    const R: usize,
    const P: usize,
    const N: usize,
    const W: usize,
>(
    n_blocks: usize,
    panels: [TilePanel; P],
    ahead: Ahead,
    x: Group256,
) {
    // SAFETY: all pointers stay inside the ranges that the caller promises.
    unsafe {
        let per_sub = T::SUB / 4;
        let steps = steps_before_widen(S::NARROW_SUMS, T::BYTE_MAX, per_sub);
        let subs = 32 / T::SUB;
        let (n_pairs, pair_sums) = if subs == 2 { (8, x.pairs_16) } else { (4, x.pairs_32) };
        let has_min = T::SCALES.have_min();
        let offset_shift = offset_shift::<T>();
        let has_offset = !has_min && (!T::SIGNED || S::I8_BIAS != 0);
        // Sums begin with the offset where activations hold it ready and sums are wide. Else it is `k`, as minimums.
        let sums_begin = has_offset && !S::NARROW_SUMS && OFFSET_SHIFTS_256.contains(&offset_shift);
        let has_sums = has_min || has_offset && !sums_begin;
        let small = !S::NARROW_SUMS && !T::SIGNED && fit_16_bits(4 * steps, T::BYTE_MAX);
        for b in 0..n_blocks {
            let metas = panels.map(|panel| panel.meta.add(b * T::META));
            let ints = metas.map(|meta| meta.add(if has_min { 4 } else { 2 } * PANEL_ROWS));
            let mut i = [[[S::i0(); R]; P]; N];
            for g in 0..8 {
                ahead.prefetch::<S>(b * 8 + g);
                if W == GROUP {
                    prefetch_group::<S>(x.codes.cast::<u8>().wrapping_add((b * 8 + g) * 32 * GROUP));
                }
                let groups = panels.map(|panel| panel.codes.add((b * 8 + g) * CODE_BITS * 64));
                for s in 0..subs {
                    let mut scales = [[S::scale(S::i0()); R]; P];
                    for p in 0..P {
                        for r in 0..R {
                            let at = ints[p].add(r * S::LANES);
                            scales[p][r] = S::scale(scale_and_factor::<S, T>(at, g * subs + s).0);
                        }
                    }
                    for first in (0..per_sub).step_by(steps) {
                        let mut acc = [[[S::acc0(); R]; P]; N];
                        if sums_begin {
                            for n in 0..N {
                                let at = |half: usize| x.offsets.add((b * 16 + g * 2 + half) * W + n);
                                let mut offset = S::splat_i(*at(s));
                                if subs == 1 {
                                    offset = S::add_i(offset, S::splat_i(*at(1)));
                                }
                                acc[n] = [[S::acc_from(offset); R]; P];
                            }
                        }
                        for q in first..first + steps {
                            let q = s * per_sub + q;
                            let quad_of = |n: usize| S::splat4(x.codes.add((((b * 8 + g) * 8 + q) * W + n) * 4));
                            if T::SIGNED {
                                for p in 0..P {
                                    for r in 0..R {
                                        let w = S::prepare_i8(bytes::<S, T, CODE_BITS>(groups[p], q, r));
                                        for n in 0..N {
                                            acc[n][p][r] = S::dot4_signed(acc[n][p][r], w, quad_of(n));
                                        }
                                    }
                                }
                                continue;
                            }
                            let mut w = [[S::load_b(groups[0]); R]; P];
                            for (group, w) in groups.iter().zip(&mut w) {
                                for (r, w) in w.iter_mut().enumerate() {
                                    *w = bytes::<S, T, CODE_BITS>(*group, q, r);
                                }
                            }
                            for n in 0..N {
                                let xq = quad_of(n);
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
                                    let (sums, scale) = (acc[n][p][r], scales[p][r]);
                                    i[n][p][r] = match small {
                                        true => S::add_small_scaled(i[n][p][r], sums, scale),
                                        false => S::add_i(i[n][p][r], S::widen_scaled(sums, scale)),
                                    };
                                }
                            }
                        }
                    }
                }
            }
            for (p, panel) in panels.iter().enumerate() {
                for r in 0..R {
                    let mut d = S::load_f16(metas[p].add(r * 2 * S::LANES).cast());
                    if T::FACTOR != 1.0 {
                        d = S::mul(d, S::splat_f(T::FACTOR));
                    }
                    // Factors of the activation sums of two sub-blocks; multiplied only now, as `i` and `acc` of a
                    // tile leave no registers for `k`.
                    let mut pairs = [S::pair16(S::i0(), S::i0()); 8];
                    if has_sums {
                        for (j, pair) in pairs.iter_mut().enumerate().take(n_pairs) {
                            let factor = |j| scale_and_factor::<S, T>(ints[p].add(r * S::LANES), j).1;
                            *pair = S::pair16(factor(2 * j), factor(2 * j + 1));
                        }
                    }
                    for n in 0..N {
                        let i = i[n][p][r];
                        let mut k = S::i0();
                        if has_sums {
                            for (j, pair) in pairs.into_iter().enumerate().take(n_pairs) {
                                k = S::dot2_i16(k, pair, S::splat4(pair_sums.add(((b * n_pairs + j) * W + n) * 4)));
                            }
                        }
                        let y = panel.y.add(n * PANEL_ROWS + r * S::LANES);
                        let dx = S::splat_f(*x.scales.add(b * W + n));
                        let mut out = S::load_f(y);
                        if has_min {
                            let dmin = S::load_f16(metas[p].add(2 * PANEL_ROWS + r * 2 * S::LANES).cast());
                            out = S::fma(S::to_f(i), S::mul(d, dx), out);
                            out = S::fnma(S::to_f(k), S::mul(dmin, dx), out);
                        } else {
                            let sum = match has_offset && !sums_begin {
                                true => S::sub_i(i, shl::<S>(k, offset_shift)),
                                false => i,
                            };
                            out = S::fma(S::to_f(sum), S::mul(d, dx), out);
                        }
                        S::store_f(y, out);
                    }
                }
            }
        }
    }
}

/// The exponent of what is subtracted from a byte: where bytes are signed, the bias of the instruction set.
pub(crate) const fn offset_shift<T: Weights256>() -> u32 {
    if T::SIGNED { 7 } else { T::OFFSET_SHIFT }
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
unsafe fn scale_and_factor<S: Simd, T: Weights256>(ints: *const u8, j: usize) -> (S::I, S::I) {
    // SAFETY: `ints` points at the first sub-block's scales of a panel, for these rows; minimums lie behind all
    // scales.
    unsafe {
        let at = ints.wrapping_add(j * PANEL_ROWS);
        match T::SCALES {
            Scales::ScaleThenMin => (S::load_u8_i(at), S::load_u8_i(at.add(256 / T::SUB * PANEL_ROWS))),
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
