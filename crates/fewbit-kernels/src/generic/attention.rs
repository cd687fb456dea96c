//! The two inner products of attention over one page of keys and values, for a tile of `M` query rows.
//!
//! Scores: lanes are positions, the chain runs over the head's elements. Values: lanes are the head's
//! elements, the chain runs over positions. Both are the defined order of [`crate::attention`], so nothing
//! here depends on `M`.

use super::Simd;
use super::q32::{self, Group32};
use super::tile::{Ahead, TilePanel};
use crate::weights::{PANEL_ROWS as KEY_BLOCK, Unpacked};
use fewbit_quant::types::quantized::Q8_0;
use half::f16;

/// How keys and values are stored.
///
/// # Safety
/// `load` reads `S::LANES` elements; see [`Simd`].
#[allow(clippy::missing_safety_doc)]
pub(crate) trait KvLoad: Copy + Send + Sync + 'static {
    unsafe fn load<S: Simd>(p: *const Self) -> S::F;
}

impl KvLoad for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::F {
        // SAFETY: the caller's; f16 is a transparent u16.
        unsafe { S::load_f16(p.cast()) }
    }
}

impl KvLoad for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_f(p) }
    }
}

/// How far ahead of its loads a kernel prefetches keys and values, in bytes: in decode, a page is read only once.
const AHEAD: usize = 4096;

/// `scores[m][j] = sum_d q[m][d] * k[d][j]` for `n_blocks` blocks of 16 positions.
///
/// # Safety
/// `q` points at `M` rows of `head_dim` floats, `keys` at `n_blocks * head_dim * 16` elements, `scores` at `M`
/// rows of stride `stride` with `n_blocks * 16` floats each; `R * S::LANES == 16`; the CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn scores<S: Simd, T: KvLoad, const R: usize, const M: usize>(
    head_dim: usize,
    n_blocks: usize,
    q: *const f32,
    keys: *const T,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: every offset stays inside the ranges that the caller promises.
    unsafe {
        for b in 0..n_blocks {
            let block = keys.add(b * head_dim * KEY_BLOCK);
            let mut acc = [[S::f0(); R]; M];
            for d in 0..head_dim {
                if (d * KEY_BLOCK * size_of::<T>()).is_multiple_of(64) {
                    S::prefetch(block.add(d * KEY_BLOCK).cast::<u8>().wrapping_add(AHEAD));
                }
                let mut k = [S::f0(); R];
                for (r, k) in k.iter_mut().enumerate() {
                    *k = T::load::<S>(block.add(d * KEY_BLOCK + r * S::LANES));
                }
                for m in 0..M {
                    let qd = S::splat_f(*q.add(m * head_dim + d));
                    for r in 0..R {
                        acc[m][r] = S::fma(qd, k[r], acc[m][r]);
                    }
                }
            }
            for (m, acc) in acc.iter().enumerate() {
                for (r, acc) in acc.iter().enumerate() {
                    S::store_f(out.add(m * stride + b * KEY_BLOCK + r * S::LANES), *acc);
                }
            }
        }
    }
}

/// `o[m][d] += sum_j p[m][j] * v[j][d]` for `n` positions and the elements `d` below `n_elems`, a multiple of 16.
///
/// `C` times 16 elements are taken at once: a cache line of f16, so that each line is read once.
///
/// # Safety
/// `p` points at `M` rows of stride `p_stride` with `n` floats, `values` at `n` and `o` at `M` rows of stride `width`
/// with `n_elems` elements each; `R * S::LANES == 16`; the CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn values<S: Simd, T: KvLoad, const R: usize, const C: usize, const M: usize>(
    n_elems: usize,
    width: usize,
    n: usize,
    p: *const f32,
    p_stride: usize,
    values: *const T,
    o: *mut f32,
) {
    // SAFETY: every offset stays inside the ranges that the caller promises.
    unsafe {
        let mut d = 0;
        while C > 1 && d + 16 * C <= n_elems {
            values_chunk::<S, T, R, C, M>(width, n, p, p_stride, values.add(d), o.add(d));
            d += 16 * C;
        }
        while d < n_elems {
            values_chunk::<S, T, R, 1, M>(width, n, p, p_stride, values.add(d), o.add(d));
            d += 16;
        }
    }
}

/// Elements `0..16 * C` of [`values`].
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn values_chunk<S: Simd, T: KvLoad, const R: usize, const C: usize, const M: usize>(
    width: usize,
    n: usize,
    p: *const f32,
    p_stride: usize,
    values: *const T,
    o: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        let at = |m: usize, c: usize, r: usize| o.add(m * width + c * 16 + r * S::LANES);
        let mut acc = [[[S::f0(); R]; C]; M];
        for m in 0..M {
            for c in 0..C {
                for r in 0..R {
                    acc[m][c][r] = S::load_f(at(m, c, r));
                }
            }
        }
        for j in 0..n {
            let row = values.add(j * width);
            S::prefetch(row.cast::<u8>().wrapping_add(AHEAD));
            let mut v = [[S::f0(); R]; C];
            for c in 0..C {
                for r in 0..R {
                    v[c][r] = T::load::<S>(row.add(c * 16 + r * S::LANES));
                }
            }
            for m in 0..M {
                let pj = S::splat_f(*p.add(m * p_stride + j));
                for c in 0..C {
                    for r in 0..R {
                        acc[m][c][r] = S::fma(pj, v[c][r], acc[m][c][r]);
                    }
                }
            }
        }
        for m in 0..M {
            for c in 0..C {
                for r in 0..R {
                    S::store_f(at(m, c, r), acc[m][c][r]);
                }
            }
        }
    }
}

/// Scores with Q8_0 keys: a block of 16 positions is a panel of 16 weight rows. See [`crate::kv`].
///
/// # Safety
/// `q` is a group of `M` rows of `head_dim` elements; `keys` points at `n_blocks` blocks, `out` at `M` rows of stride
/// `stride` with `n_blocks * 16` floats each; `R * S::LANES == 16`; the CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn scores_q8<S: Simd, const R: usize, const M: usize>(
    head_dim: usize,
    n_blocks: usize,
    q: Group32,
    keys: *const u8,
    out: *mut f32,
    stride: usize,
) {
    let scale_bytes = head_dim / 32 * KEY_BLOCK * 2;
    let block_bytes = scale_bytes + head_dim * KEY_BLOCK;
    // SAFETY: every offset stays inside the ranges that the caller promises.
    unsafe {
        for b in 0..n_blocks {
            let block = keys.add(b * block_bytes);
            for line in 0..block_bytes.div_ceil(64) {
                S::prefetch(block.wrapping_add(AHEAD + line * 64));
            }
            let mut y = [[0.0f32; KEY_BLOCK]; M];
            let codes = block.add(scale_bytes);
            let panel = TilePanel::new(codes, block, y.as_mut_ptr().cast());
            q32::tile::<S, Unpacked<Q8_0>, R, 1, M>(head_dim / 32, [panel], Ahead::NONE, q);
            for (m, y) in y.iter().enumerate() {
                out.add(m * stride + b * KEY_BLOCK).cast::<[f32; KEY_BLOCK]>().write_unaligned(*y);
            }
        }
    }
}

/// `w[j] = p[j] * scales[j]` for `n` positions.
///
/// # Safety
/// `p` and `w` point at `n` floats, `scales` at `n` f16; `R * S::LANES == 16`; the CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn weigh<S: Simd, const R: usize>(n: usize, p: *const f32, scales: *const u16, w: *mut f32) {
    // SAFETY: all reads and writes lie inside the `n` elements that the caller promises, or in the local copies.
    unsafe {
        let sixteen = |p: *const f32, scales: *const u16, w: *mut f32| {
            for r in 0..R {
                let at = r * S::LANES;
                S::store_f(w.add(at), S::mul(S::load_f(p.add(at)), S::load_f16(scales.add(at))));
            }
        };
        for j in (0..n / 16 * 16).step_by(16) {
            sixteen(p.add(j), scales.add(j), w.add(j));
        }
        let (done, rest) = (n / 16 * 16, n % 16);
        if rest > 0 {
            let (mut last, mut last_scales, mut out) = ([0.0f32; 16], [0u16; 16], [0.0f32; 16]);
            std::ptr::copy_nonoverlapping(p.add(done), last.as_mut_ptr(), rest);
            // Scales may be unaligned.
            std::ptr::copy_nonoverlapping(scales.add(done).cast::<u8>(), last_scales.as_mut_ptr().cast(), 2 * rest);
            sixteen(last.as_ptr(), last_scales.as_ptr(), out.as_mut_ptr());
            std::ptr::copy_nonoverlapping(out.as_ptr(), w.add(done), rest);
        }
    }
}
