//! The two inner products of attention over one page of keys and values, for a tile of `M` query rows.
//!
//! Scores: lanes are positions, the chain runs over the head's elements. Values: lanes are the head's
//! elements, the chain runs over positions. Both are the defined order of [`crate::attention`], so nothing
//! here depends on `M`.

use super::Simd;
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

/// Positions in one block of keys: `[head_dim][16]`.
pub(crate) const KEY_BLOCK: usize = 16;

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

/// `o[m][d] += sum_j p[m][j] * v[j][d]` for `n` positions; `width` is `head_dim` rounded up to 16.
///
/// # Safety
/// `p` points at `M` rows of stride `p_stride` with `n` floats, `values` at `n * width` elements, `o` at `M` rows
/// of `width` floats; `R * S::LANES == 16`; the CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn values<S: Simd, T: KvLoad, const R: usize, const M: usize>(
    width: usize,
    n: usize,
    p: *const f32,
    p_stride: usize,
    values: *const T,
    o: *mut f32,
) {
    // SAFETY: every offset stays inside the ranges that the caller promises.
    unsafe {
        for d in (0..width).step_by(16) {
            let mut acc = [[S::f0(); R]; M];
            for (m, acc) in acc.iter_mut().enumerate() {
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load_f(o.add(m * width + d + r * S::LANES));
                }
            }
            for j in 0..n {
                let mut v = [S::f0(); R];
                for (r, v) in v.iter_mut().enumerate() {
                    *v = T::load::<S>(values.add(j * width + d + r * S::LANES));
                }
                for m in 0..M {
                    let pj = S::splat_f(*p.add(m * p_stride + j));
                    for r in 0..R {
                        acc[m][r] = S::fma(pj, v[r], acc[m][r]);
                    }
                }
            }
            for (m, acc) in acc.iter().enumerate() {
                for (r, acc) in acc.iter().enumerate() {
                    S::store_f(o.add(m * width + d + r * S::LANES), *acc);
                }
            }
        }
    }
}
