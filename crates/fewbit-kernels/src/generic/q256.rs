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
//! The largest sums are those of IQ4_XS if signed bytes get a bias of 128: 256 * 32 * 255 * 127 < 2^28. Bytes from
//! tables are at most 126, with scales of at most 31; Q6_K has 63 and 128: 256 * 128 * 63 * 127 < 2^28.
//!
//! The layout of the integer scales of a block, which follow its f16 scales `d[16]` (and `dmin[16]`):
//!
//! ```text
//! SixBits   [256 / SUB][16] unsigned scales, then as many minimums
//! Nibbles   [256 / SUB][16] bytes: scale in the low nibble, minimum in the high one
//! Signed    [256 / SUB][16] signed scales
//! Odd       [256 / SUB / 2][16] bytes: the `s` of an even sub-block's scale `2 s + 1` in the low nibble, that of the odd
//!           sub-block after it in the high nibble
//! One       none
//! ```

use super::tile::{
    Ahead, Quads, Tile, TilePanel, apart, begin, dot_quads, each, each_quad, halves, is_halved, is_paired,
};
use super::{Simd, bytes, fit_16_bits, steps_before_widen};
use crate::activations::OFFSET_SHIFTS_256;
use crate::weights::{PANEL_ROWS, Stored, Weights};
use fewbit_quant::format::IntegerScales;
use std::marker::PhantomData;

/// A group of interleaved activation rows, as [`super::q32::Group32`].
#[derive(Clone, Copy)]
pub(crate) struct Group256 {
    /// Number of rows in the group; a constant wherever a tile is called.
    pub(crate) width: usize,
    /// `[64 * n_blocks][width][4]`
    pub(crate) codes: *const i8,
    /// `[n_blocks][width]`
    pub(crate) scales: *const f32,
    /// `[16 * n_blocks][width]`: minus the offset of the weights times the sum of 16 codes.
    pub(crate) offsets: *const i32,
    /// `[8 * n_blocks][width][2]`: sums of 16 codes.
    pub(crate) pairs_16: *const i8,
    /// `[4 * n_blocks][width][2]`: sums of 32 codes.
    pub(crate) pairs_32: *const i8,
}

/// How sums are computed for a weight type on an instruction set.
struct Plan<S, T>(PhantomData<(S, T)>);

impl<S: Simd, T: Weights> Plan<S, T> {
    /// Number of quads in a sub-block.
    const QUADS: usize = T::SUB / 4;
    /// Number of sub-blocks in 32 columns.
    const SUBS: usize = 32 / T::SUB;
    /// Number of quads that are added up before sums are widened.
    const STEPS: usize = steps_before_widen(S::NARROW_SUMS, T::BYTE_MAX, Self::QUADS);
    /// Whether a number is subtracted from every byte.
    const HAS_OFFSET: bool = !T::HAS_MIN && (!T::SIGNED || S::I8_BIAS != 0);
    /// Whether sums start with the offset, which is the case for wide sums if the activations have it precomputed.
    /// Otherwise it goes into `k`, like minimums.
    const SUMS_BEGIN: bool = Self::HAS_OFFSET && !S::NARROW_SUMS && has_offsets(offset_shift::<T>());
    /// Whether `k` is needed.
    const HAS_K: bool = T::HAS_MIN || Self::HAS_OFFSET && !Self::SUMS_BEGIN;
    /// Number of pairs of sub-blocks; each pair gives one step of the sum `k`.
    const PAIRS: usize = 4 * Self::SUBS;
    /// Whether scaling may be done in 16 bits.
    const SMALL: bool = !S::NARROW_SUMS && !T::SIGNED && fit_16_bits(4 * Self::STEPS, T::BYTE_MAX);
}

/// Whether the activations have their sums precomputed times this power of two.
const fn has_offsets(shift: u32) -> bool {
    let [a, b, c] = OFFSET_SHIFTS_256;
    shift == a || shift == b || shift == c
}

/// Multiplies `n_blocks` blocks of `P` panels with `N` rows of a group, adding to each panel's `y`: `[N][16]`.
///
/// # Safety
/// As [`super::q32::tile`], with 8 groups of 32 columns per block.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, C: Stored, const R: usize, const P: usize, const N: usize>(
    n_blocks: usize,
    panels: [TilePanel; P],
    ahead: Ahead,
    x: Group256,
) {
    // SAFETY: as in `q32::tile`.
    unsafe {
        if is_halved::<S>(N) {
            for (panels, ahead) in halves(panels, ahead) {
                rows_of_tile::<S, C, 2, P, N>(n_blocks, panels, ahead, x);
            }
        } else {
            rows_of_tile::<S, C, R, P, N>(n_blocks, panels, ahead, x);
        }
    }
}

/// [`tile`] for `R` vectors of weight rows.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn rows_of_tile<S: Simd, C: Stored, const R: usize, const P: usize, const N: usize>(
    n_blocks: usize,
    panels: [TilePanel; P],
    ahead: Ahead,
    x: Group256,
) {
    // SAFETY: all pointers stay inside the ranges that the caller promises.
    unsafe {
        for b in 0..n_blocks {
            let metas = panels.map(|panel| panel.floats(b * C::Of::META));
            let ints = panels.map(|panel| panel.ints(b * C::Of::META + C::Of::FLOATS));
            let mut i = [[[S::i0(); R]; P]; N];
            for g in 0..8 {
                ahead.prefetch::<S>(b * 8 + g);
                let quads = Quads::of::<S>(x.codes, x.width, b * 8 + g);
                let groups = panels.map(|panel| panel.codes((b * 8 + g) * C::BITS * 64));
                // Not a loop: where the compiler does not unroll it, the shifts that take codes apart become branches.
                add_sub_block::<S, C, R, P, N>(&mut i, (b, g, 0), groups, ints, quads, x);
                if Plan::<S, C::Of>::SUBS == 2 {
                    add_sub_block::<S, C, R, P, N>(&mut i, (b, g, 1), groups, ints, quads, x);
                }
            }
            apart::<S, R, P, N>(&mut i);
            add_block::<S, C::Of, R, P, N>(i, b, panels, metas, ints, x);
        }
    }
}

/// Adds the scaled sums of sub-block `s` of group `g` of block `b`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn add_sub_block<S: Simd, C: Stored, const R: usize, const P: usize, const N: usize>(
    i: &mut Tile<S::I, R, P, N>,
    (b, g, s): (usize, usize, usize),
    groups: [*const u8; P],
    ints: [*const u8; P],
    quads: Quads,
    x: Group256,
) {
    let (per_sub, steps) = (Plan::<S, C::Of>::QUADS, Plan::<S, C::Of>::STEPS);
    // SAFETY: the caller's.
    unsafe {
        let mut scales = [[S::scale(S::i0()); R]; P];
        for p in 0..P {
            for r in 0..R {
                let at = ints[p].add(r * S::LANES);
                let sub = g * Plan::<S, C::Of>::SUBS + s;
                scales[p][r] = S::scale(scale_and_factor::<S, C::Of>(at, sub).0);
            }
        }
        for first in (0..per_sub).step_by(steps) {
            let mut acc = [[[S::acc0(); R]; P]; N];
            if Plan::<S, C::Of>::SUMS_BEGIN {
                for n in 0..N {
                    let at = |half: usize| x.offsets.add((b * 16 + g * 2 + half) * x.width);
                    let mut offset = begin::<S, N>(at(s), n);
                    if Plan::<S, C::Of>::SUBS == 1 {
                        offset = S::add_i(offset, begin::<S, N>(at(1), n));
                    }
                    acc[n] = [[S::acc_from(offset); R]; P];
                }
            }
            let first = s * per_sub + first;
            if C::Of::SIGNED && !S::SIGNED_DOT {
                each_quad!(q in first, steps => dot_signed::<S, C, R, P, N>(&mut acc, q, groups, quads));
            } else {
                dot_quads::<S, C, R, P, N>(&mut acc, first, steps, groups, quads);
            }
            each!((n, p, r) in (N, P, R) => {
                let sums = acc[n][p][r];
                let scale = match is_paired::<S>(N) {
                    true => S::double(scales[p][r])[n % 2],
                    false => scales[p][r],
                };
                i[n][p][r] = match Plan::<S, C::Of>::SMALL {
                    true => S::add_small_scaled(i[n][p][r], sums, scale),
                    false => S::add_i(i[n][p][r], S::widen_scaled(sums, scale)),
                };
            });
        }
    }
}

/// Adds the products of one quad, with signed weights.
///
/// # Safety
/// As [`dot_quads`].
#[inline(always)]
unsafe fn dot_signed<S: Simd, C: Stored, const R: usize, const P: usize, const N: usize>(
    acc: &mut Tile<S::Acc, R, P, N>,
    q: usize,
    groups: [*const u8; P],
    x: Quads,
) {
    // SAFETY: the caller's.
    unsafe {
        for p in 0..P {
            for r in 0..R {
                let w = S::prepare_i8(bytes::<S, C>(groups[p], q, r));
                for n in 0..N {
                    acc[n][p][r] = S::dot4_signed(acc[n][p][r], w, x.get::<S>(q, n));
                }
            }
        }
    }
}

/// The float step of block `b`. `k` is computed only here, because `i` and the sums of a tile leave no registers for
/// it.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn add_block<S: Simd, T: Weights, const R: usize, const P: usize, const N: usize>(
    i: Tile<S::I, R, P, N>,
    b: usize,
    panels: [TilePanel; P],
    metas: [*const u8; P],
    ints: [*const u8; P],
    x: Group256,
) {
    // SAFETY: the caller's.
    unsafe {
        for p in 0..P {
            for r in 0..R {
                let mut d = S::load_f16(metas[p].add(r * 2 * S::LANES).cast());
                if T::FACTOR != 1.0 {
                    d = S::mul(d, S::splat_f(T::FACTOR));
                }
                let pairs = pairs_of_factors::<S, T>(ints[p].add(r * S::LANES));
                for n in 0..N {
                    let i = i[n][p][r];
                    let k = sum_of_factors::<S, T>(pairs, b, n, x);
                    let y = panels[p].output::<S>(n, r);
                    let dx = S::splat_f(*x.scales.add(b * x.width + n));
                    let mut out = S::load_f(y);
                    if T::HAS_MIN {
                        let dmin = S::load_f16(metas[p].add(2 * PANEL_ROWS + r * 2 * S::LANES).cast());
                        out = S::fma(S::to_f(i), S::mul(d, dx), out);
                        out = S::fnma(S::to_f(k), S::mul(dmin, dx), out);
                    } else {
                        let sum = match Plan::<S, T>::HAS_K {
                            true => S::sub_i(i, shl::<S>(k, offset_shift::<T>())),
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

/// The factors of the activation sums, for two sub-blocks at a time.
///
/// # Safety
/// As [`scale_and_factor`].
#[inline(always)]
unsafe fn pairs_of_factors<S: Simd, T: Weights>(ints: *const u8) -> [S::B; 8] {
    // SAFETY: the caller's.
    unsafe {
        let mut pairs = [S::pair16(S::i0(), S::i0()); 8];
        if Plan::<S, T>::HAS_K {
            for (j, pair) in pairs.iter_mut().enumerate().take(Plan::<S, T>::PAIRS) {
                let factor = |j| scale_and_factor::<S, T>(ints, j).1;
                *pair = S::pair16(factor(2 * j), factor(2 * j + 1));
            }
        }
        pairs
    }
}

/// `k` of row `n` of the group: the activation sums of block `b`, times their factors.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn sum_of_factors<S: Simd, T: Weights>(pairs: [S::B; 8], b: usize, n: usize, x: Group256) -> S::I {
    let n_pairs = Plan::<S, T>::PAIRS;
    let sums = if Plan::<S, T>::SUBS == 2 { x.pairs_16 } else { x.pairs_32 };
    // SAFETY: the caller's.
    unsafe {
        let mut k = S::i0();
        if Plan::<S, T>::HAS_K {
            for (j, pair) in pairs.into_iter().enumerate().take(n_pairs) {
                k = S::dot2_i16(k, pair, S::splat4(sums.add(((b * n_pairs + j) * x.width + n) * 4)));
            }
        }
        k
    }
}

/// The exponent of the number that is subtracted from a byte; for signed bytes, that of the instruction set's bias. Has
/// no meaning for types with minimums.
pub(crate) const fn offset_shift<T: Weights>() -> u32 {
    if T::SIGNED { 7 } else { T::OFFSET.trailing_zeros() }
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

/// The integer scale of sub-block `j` for `LANES` rows, and the factor of the activation sum: the minimum, or the scale
/// itself in types with an offset.
#[inline(always)]
unsafe fn scale_and_factor<S: Simd, T: Weights>(ints: *const u8, j: usize) -> (S::I, S::I) {
    // SAFETY: `ints` points at the first sub-block's scales of a panel, for these rows; minimums lie after all
    // scales.
    unsafe {
        let at = ints.wrapping_add(j * PANEL_ROWS);
        match T::SCALES {
            IntegerScales::SixBits(_) => (S::load_u8_i(at), S::load_u8_i(at.add(256 / T::SUB * PANEL_ROWS))),
            IntegerScales::Nibbles(_) => {
                let both = S::load_u8_i(at);
                (S::and_low_nibble(both), S::shr_i::<4>(both))
            }
            IntegerScales::Signed(_) => {
                let scale = S::load_i8_i(at);
                (scale, scale)
            }
            IntegerScales::Odd(_) => {
                let both = S::load_u8_i(ints.add(j / 2 * PANEL_ROWS));
                let half = if j.is_multiple_of(2) { S::and_low_nibble(both) } else { S::shr_i::<4>(both) };
                let scale = S::add_i(S::shl_i::<1>(half), S::splat_i(1));
                (scale, scale)
            }
            IntegerScales::One => (S::splat_i(1), S::splat_i(1)),
        }
    }
}
