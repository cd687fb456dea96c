//! f16 and f32 as elements of the cache: each element is one value.

use super::kernels::{KvKernels, on_isa};
use super::{KEY_BLOCK, KvElement, PAGE, Queries, thread_buffer};
use crate::Isa;
use crate::elementwise::multiversion;
use crate::generic::attention::KvLoad;
use half::f16;
use std::ops::Range;

/// An element type that holds one value per element: f16 or f32.
#[allow(private_bounds)]
pub trait KvFloat: KvElement + KvLoad {
    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
    /// The exact value.
    fn to_f32(self) -> f32;
}

impl KvFloat for f16 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

impl KvFloat for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

multiversion! {
    /// Converts to the cache's type and writes every `stride`-th element.
    pub(crate) fn convert_strided<T: KvFloat>(x: &[f32], out: &mut [T], stride: usize) {
        for (y, &x) in out.iter_mut().step_by(stride).zip(x) {
            *y = T::from_f32(x);
        }
    }
}

macro_rules! float_elements {
    ($($t:ty),*) => {$(
        #[allow(private_interfaces)]
        impl KvElement for $t {
            fn supports(_head_dim: usize) -> bool {
                true
            }

            fn key_block_elems(head_dim: usize) -> usize {
                KEY_BLOCK * head_dim
            }

            fn head_value_elems(head_dim: usize) -> usize {
                PAGE * head_dim.next_multiple_of(16)
            }

            fn store_key(isa: Isa, k: &[f32], lane: usize, block: &mut [Self]) {
                convert_strided(isa, k, &mut block[lane..], KEY_BLOCK);
            }

            fn store_value(isa: Isa, v: &[f32], position: usize, values: &mut [Self]) {
                let at = position * v.len().next_multiple_of(16);
                convert_strided(isa, v, &mut values[at..at + v.len()], 1);
            }

            fn prepare(_isa: Isa, _head_dim: usize, _tile: usize, _queries: &mut Queries) {}

            fn scores(kernels: KvKernels, q: &Queries, rows: Range<usize>, head_dim: usize, keys: &[Self], out: &mut [f32]) {
                float_scores(kernels, &q.rows[rows.start * head_dim..rows.end * head_dim], keys, head_dim, out);
            }

            fn values(
                kernels: KvKernels,
                n: usize,
                p: &[f32],
                range: Range<usize>,
                values: &[Self],
                head_dim: usize,
                o: &mut [f32],
            ) {
                float_values(kernels, n, p, range, values, head_dim.next_multiple_of(16), o);
            }

            fn copy_values(keys: &[Self], head_dim: usize, offset: usize, positions: Range<usize>, values: &mut [Self]) {
                let n = head_dim - offset;
                let width = n.next_multiple_of(16);
                for j in positions.start / KEY_BLOCK..positions.end.div_ceil(KEY_BLOCK) {
                    let block = &keys[j * head_dim * KEY_BLOCK..(j + 1) * head_dim * KEY_BLOCK];
                    let rows = &mut values[j * KEY_BLOCK * width..(j + 1) * KEY_BLOCK * width];
                    // In squares of 16, which stay in the cache while they are turned.
                    for first in (0..n).step_by(KEY_BLOCK) {
                        let elements = first..n.min(first + KEY_BLOCK);
                        for lane in 0..KEY_BLOCK {
                            let row = &mut rows[lane * width..(lane + 1) * width];
                            for d in elements.clone() {
                                row[d] = block[(offset + d) * KEY_BLOCK + lane];
                            }
                            if elements.end == n {
                                row[n..].fill(Self::default());
                            }
                        }
                    }
                }
            }

            thread_buffer!($t);
        }
    )*};
}

float_elements!(f16, f32);

/// `out[m][j] = q[m] . k_j`; `q`: `[rows][head_dim]`, `out` of row stride [`PAGE`].
fn float_scores<T: KvFloat>(kernels: KvKernels, q: &[f32], keys: &[T], head_dim: usize, out: &mut [f32]) {
    let (n, n_blocks) = (q.len() / head_dim, keys.len() / (head_dim * KEY_BLOCK));
    assert!(n >= 1 && n <= kernels.rows && keys.len() == n_blocks * head_dim * KEY_BLOCK);
    assert!(out.len() >= (n - 1) * PAGE + n_blocks * KEY_BLOCK);
    on_isa!(kernels.isa, scores(n, head_dim, n_blocks, q, keys, out), {
        for (m, q) in q.chunks_exact(head_dim).enumerate() {
            for (b, block) in keys.chunks_exact(head_dim * KEY_BLOCK).enumerate() {
                for j in 0..KEY_BLOCK {
                    let chain = |s: f32, d: usize| q[d].mul_add(block[d * KEY_BLOCK + j].to_f32(), s);
                    out[m * PAGE + b * KEY_BLOCK + j] = (0..head_dim).fold(0.0, chain);
                }
            }
        }
    });
}

/// `o[m] += sum over j in range of p[m][j] * v_j`; `p` of row stride [`PAGE`], `o`: `[n][width]`.
fn float_values<T: KvFloat>(
    kernels: KvKernels,
    n: usize,
    p: &[f32],
    range: Range<usize>,
    values: &[T],
    width: usize,
    o: &mut [f32],
) {
    assert!(n >= 1 && n <= kernels.rows && range.start < range.end && range.end <= PAGE);
    assert!(p.len() >= (n - 1) * PAGE + range.end && values.len() >= range.end * width && o.len() >= n * width);
    assert!(width.is_multiple_of(16));
    let (p, values) = (&p[range.start..], &values[range.start * width..range.end * width]);
    let len = range.len();
    on_isa!(kernels.isa, values(n, width, width, len, p, values, o), {
        for m in 0..n {
            for (j, v) in values.chunks_exact(width).enumerate() {
                for (y, v) in o[m * width..(m + 1) * width].iter_mut().zip(v) {
                    *y = p[m * PAGE + j].mul_add(v.to_f32(), *y);
                }
            }
        }
    });
}
