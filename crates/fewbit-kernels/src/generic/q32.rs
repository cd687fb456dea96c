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

use super::tile::{Ahead, Quads, Tile, TilePanel, apart, begin, dot_lane, dot_quads, each, halves, is_halved};
use super::{Simd, bytes, steps_before_widen};
use crate::weights::{PANEL_ROWS, Stored, Weights};

/// A group of interleaved activation rows: `width` of them, of which a tile takes `N` from some lane on.
#[derive(Clone, Copy)]
pub(crate) struct Group32 {
    /// Number of rows in the group; a constant wherever a tile is called.
    pub(crate) width: usize,
    /// `[8 * n_blocks][width][4]`
    pub(crate) codes: *const i8,
    /// `[n_blocks][width]`
    pub(crate) scales: *const f32,
    /// `[n_blocks][width]`: minus the offset of the weights times the sum of the codes.
    pub(crate) offsets: *const i32,
    /// `[n_blocks][width]`: scale times sum.
    pub(crate) scaled_sums: *const f32,
}

/// The number subtracted from a byte; for signed bytes, the bias of the instruction set.
pub(crate) const fn offset<S: Simd, T: Weights>() -> i32 {
    if T::SIGNED { S::I8_BIAS } else { T::OFFSET }
}

/// Multiplies `n_blocks` blocks of `P` panels with `N` rows of a group, adding to each panel's `y`: `[N][16]`.
///
/// # Safety
/// Of each panel, `codes` has `n_blocks * C::BITS * 64` bytes, `meta` `n_blocks * META`, and `y` `N * 16` floats;
/// `x` points at the first of its rows in buffers of the lengths that [`Group32`] states; `R * S::LANES == 16`; the CPU
/// has `S`.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, C: Stored, const R: usize, const P: usize, const N: usize>(
    n_blocks: usize,
    panels: [TilePanel; P],
    ahead: Ahead,
    x: Group32,
) {
    // SAFETY: the caller's; two vectors of four lanes are half of a panel's rows.
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
    x: Group32,
) {
    // SAFETY: all pointers stay inside the ranges that the caller promises: b < n_blocks, q < 8, r < R.
    unsafe {
        let mut out = [[[S::f0(); R]; P]; N];
        each!((n, p, r) in (N, P, R) => out[n][p][r] = S::load_f(panels[p].output::<S>(n, r)));
        for b in 0..n_blocks {
            ahead.prefetch::<S>(b);
            let quads = Quads::of::<S>(x.codes, x.width, b);
            let groups = panels.map(|panel| panel.codes(b * C::BITS * 64));
            let sums = block_sums::<S, C, R, P, N>(groups, quads, x.offsets.add(b * x.width));
            add_block::<S, C::Of, R, P, N>(&mut out, sums, &panels, b, x);
        }
        each!((n, p, r) in (N, P, R) => S::store_f(panels[p].output::<S>(n, r), out[n][p][r]));
    }
}

/// The integer sums of one block. `offsets`: `[N]`, with which they begin.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn block_sums<S: Simd, C: Stored, const R: usize, const P: usize, const N: usize>(
    groups: [*const u8; P],
    x: Quads,
    offsets: *const i32,
) -> Tile<S::I, R, P, N> {
    // SAFETY: the caller's.
    unsafe {
        let has_offset = offset::<S, C::Of>() != 0;
        let mut sums = [[[S::i0(); R]; P]; N];
        if has_offset {
            for (n, sums) in sums.iter_mut().enumerate() {
                *sums = [[begin::<S, N>(offsets, n); R]; P];
            }
        }
        if C::Of::SIGNED && !S::SIGNED_DOT {
            add_signed::<S, C, R, P, N>(&mut sums, groups, x);
        } else if N == 1 && !S::NARROW_SUMS {
            add_one_row::<S, C, R, P, N>(&mut sums, groups, x);
        } else {
            add_quads::<S, C, R, P, N>(&mut sums, has_offset, groups, x);
        }
        apart::<S, R, P, N>(&mut sums);
        sums
    }
}

/// Signed bytes, whose products are added directly to wide sums.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn add_signed<S: Simd, C: Stored, const R: usize, const P: usize, const N: usize>(
    sums: &mut Tile<S::I, R, P, N>,
    groups: [*const u8; P],
    x: Quads,
) {
    // SAFETY: the caller's.
    unsafe {
        for q in 0..8 {
            // A closure here would be compiled without the features of the instruction set.
            let mut w = [[S::prepare_i8(S::load_b(groups[0])); R]; P];
            for p in 0..P {
                for r in 0..R {
                    w[p][r] = S::prepare_i8(bytes::<S, C>(groups[p], q, r));
                }
            }
            for n in 0..N {
                let xq = x.get::<S>(q, n);
                for p in 0..P {
                    for r in 0..R {
                        sums[n][p][r] = S::dot4_i8(sums[n][p][r], w[p][r], xq);
                    }
                }
            }
        }
    }
}

/// With a single row, each product would wait for the one before it. So there are two sums, which are added up exactly.
///
/// # Safety
/// As [`tile`], where `N` is 1.
#[inline(always)]
unsafe fn add_one_row<S: Simd, C: Stored, const R: usize, const P: usize, const N: usize>(
    sums: &mut Tile<S::I, R, P, N>,
    groups: [*const u8; P],
    x: Quads,
) {
    // SAFETY: the caller's.
    unsafe {
        for p in 0..P {
            for r in 0..R {
                let mut acc = [S::acc_from(sums[0][p][r]), S::acc0()];
                for q in 0..8 {
                    let w = bytes::<S, C>(groups[p], q, r);
                    acc[q % 2] = match S::HAS_LANES && x.width == 1 {
                        true => dot_lane::<S>(acc[q % 2], w, x.four::<S>(q / 4 * 4, 0), q % 4),
                        false => S::dot4(acc[q % 2], w, x.get::<S>(q, 0)),
                    };
                }
                sums[0][p][r] = S::add_i(S::widen(acc[0]), S::widen(acc[1]));
            }
        }
    }
}

/// Bytes as [`Simd::dot4`] takes them. Narrow sums are widened before they overflow.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn add_quads<S: Simd, C: Stored, const R: usize, const P: usize, const N: usize>(
    sums: &mut Tile<S::I, R, P, N>,
    has_offset: bool,
    groups: [*const u8; P],
    x: Quads,
) {
    let steps = steps_before_widen(S::NARROW_SUMS, C::Of::BYTE_MAX, 8);
    // SAFETY: the caller's.
    unsafe {
        for first in (0..8).step_by(steps) {
            let mut acc = [[[S::acc0(); R]; P]; N];
            if !S::NARROW_SUMS {
                each!((n, p, r) in (N, P, R) => acc[n][p][r] = S::acc_from(sums[n][p][r]));
            }
            dot_quads::<S, C, R, P, N>(&mut acc, first, steps, groups, x);
            each!((n, p, r) in (N, P, R) => {
                let wide = S::widen(acc[n][p][r]);
                sums[n][p][r] = match S::NARROW_SUMS && (first > 0 || has_offset) {
                    true => S::add_i(sums[n][p][r], wide),
                    false => wide,
                };
            });
        }
    }
}

/// The float step of block `b`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn add_block<S: Simd, T: Weights, const R: usize, const P: usize, const N: usize>(
    out: &mut Tile<S::F, R, P, N>,
    sums: Tile<S::I, R, P, N>,
    panels: &[TilePanel; P],
    b: usize,
    x: Group32,
) {
    // SAFETY: the caller's.
    unsafe {
        for (p, panel) in panels.iter().enumerate() {
            for r in 0..R {
                let scales = panel.floats(b * T::META + r * 2 * S::LANES);
                let d = if T::BF16_SCALES { S::load_bf16(scales.cast()) } else { S::load_f16(scales.cast()) };
                for n in 0..N {
                    let scale = S::mul(d, S::splat_f(*x.scales.add(b * x.width + n)));
                    out[n][p][r] = S::fma(S::to_f(sums[n][p][r]), scale, out[n][p][r]);
                }
                if T::HAS_MIN {
                    let m = S::load_f16(scales.add(2 * PANEL_ROWS).cast());
                    for n in 0..N {
                        out[n][p][r] = S::fma(m, S::splat_f(*x.scaled_sums.add(b * x.width + n)), out[n][p][r]);
                    }
                }
            }
        }
    }
}
