//! Q8_0 blocks as elements of the cache: bytes, each of which is a code or half of a scale.

use super::kernels::{KvKernels, MAX_TILE, on_isa};
use super::{KEY_BLOCK, KvElement, PAGE, Queries, thread_buffer};
use crate::Isa;
use crate::activations::{OFFSET_SHIFTS_32, quantize_block, sum_codes};
use crate::generic::Simd;
use crate::generic::attention::KvLoad;
use crate::generic::q32::Group32;
use half::f16;
use std::ops::Range;

/// A byte of Q8_0 blocks, a code or half of a scale; the [module](super) documents the layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Q8(u8);

impl Q8 {
    /// The byte itself.
    pub fn to_byte(self) -> u8 {
        self.0
    }

    /// The element for a byte.
    pub fn from_byte(byte: u8) -> Self {
        Self(byte)
    }
}

/// The codes of values, without their scale.
impl KvLoad for Q8 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::F {
        // SAFETY: the caller's; Q8 is a transparent u8.
        unsafe { S::to_f(S::load_i8_i(p.cast())) }
    }
}

/// One block of 32 elements: codes, and the scale as it is stored.
fn quantize(x: &[f32; 32]) -> ([i8; 32], f16) {
    let mut codes = [0; 32];
    let scale = quantize_block(x, &mut codes);
    (codes, f16::from_f32(scale))
}

/// Number of bytes that the scales take, before the codes of a block of keys.
fn key_scale_bytes(head_dim: usize) -> usize {
    head_dim / 32 * KEY_BLOCK * 2
}

#[allow(private_interfaces)]
impl KvElement for Q8 {
    fn supports(head_dim: usize) -> bool {
        head_dim.is_multiple_of(32)
    }

    fn key_block_elems(head_dim: usize) -> usize {
        key_scale_bytes(head_dim) + KEY_BLOCK * head_dim
    }

    fn head_value_elems(head_dim: usize) -> usize {
        PAGE * head_dim + head_dim / 32 * PAGE * 2
    }

    fn store_key(_isa: Isa, k: &[f32], lane: usize, block: &mut [Self]) {
        let (scales, codes) = block.split_at_mut(key_scale_bytes(k.len()));
        for (b, x) in k.as_chunks::<32>().0.iter().enumerate() {
            let (quantized, scale) = quantize(x);
            put_half(scales, b * KEY_BLOCK + lane, scale);
            for (q, quad) in quantized.as_chunks::<4>().0.iter().enumerate() {
                let at = ((b * 8 + q) * KEY_BLOCK + lane) * 4;
                codes[at..at + 4].copy_from_slice(&quad.map(|code| Self(code as u8)));
            }
        }
    }

    fn store_value(_isa: Isa, v: &[f32], position: usize, values: &mut [Self]) {
        let (codes, scales) = values.split_at_mut(PAGE * v.len());
        for (b, x) in v.as_chunks::<32>().0.iter().enumerate() {
            let (quantized, scale) = quantize(x);
            put_half(scales, b * PAGE + position, scale);
            let at = position * v.len() + b * 32;
            codes[at..at + 32].copy_from_slice(&quantized.map(|code| Self(code as u8)));
        }
    }

    fn prepare(_isa: Isa, head_dim: usize, tile: usize, queries: &mut Queries) {
        let Queries { rows, codes, scales, offsets } = queries;
        let n_rows = rows.len() / head_dim;
        codes.resize(n_rows * head_dim / 4, [0; 4]);
        scales.resize(n_rows * head_dim / 32, 0.0);
        offsets.resize(n_rows * head_dim / 32, 0);
        for (row, q) in rows.chunks_exact(head_dim).enumerate() {
            // Rows of a tile are interleaved.
            let first = row / tile * tile;
            let (width, lane) = (tile.min(n_rows - first), row - first);
            for (b, x) in q.as_chunks::<32>().0.iter().enumerate() {
                let mut quantized = [0; 32];
                let at = first * (head_dim / 32) + b * width + lane;
                scales[at] = quantize_block(x, &mut quantized);
                offsets[at] = -(i32::from(sum_codes(&quantized)) << OFFSET_SHIFTS_32[2]);
                for (i, quad) in quantized.as_chunks::<4>().0.iter().enumerate() {
                    codes[first * (head_dim / 4) + (b * 8 + i) * width + lane] = *quad;
                }
            }
        }
    }

    fn scores(kernels: KvKernels, q: &Queries, rows: Range<usize>, head_dim: usize, keys: &[Self], out: &mut [f32]) {
        let (n, block) = (rows.len(), Self::key_block_elems(head_dim));
        let (n_keys, n_scales) = (keys.len() / block, head_dim / 32);
        assert!(n >= 1 && n <= kernels.rows && keys.len() == n_keys * block && Self::supports(head_dim));
        assert!(out.len() >= (n - 1) * PAGE + n_keys * KEY_BLOCK && rows.start.is_multiple_of(kernels.rows));
        let codes = &q.codes[rows.start * (head_dim / 4)..rows.end * (head_dim / 4)];
        let scales = &q.scales[rows.start * n_scales..rows.end * n_scales];
        let offsets = &q.offsets[rows.start * n_scales..rows.end * n_scales];
        let group = Group32 {
            width: n,
            codes: codes.as_ptr().cast(),
            scales: scales.as_ptr(),
            offsets: offsets.as_ptr(),
            scaled_sums: scales.as_ptr(),
        };
        on_isa!(kernels.isa, scores_q8(n, head_dim, n_keys, group, keys, out), {
            for (i, block) in keys.chunks_exact(block).enumerate() {
                let (key_scales, key_codes) = block.split_at(key_scale_bytes(head_dim));
                for (m, j) in (0..n).flat_map(|m| (0..KEY_BLOCK).map(move |j| (m, j))) {
                    let chain = |s: f32, b: usize| {
                        let of_quad = |quad: usize| {
                            let k = &key_codes[(quad * KEY_BLOCK + j) * 4..][..4];
                            let product = |(k, &q): (&Self, &i8)| i32::from(k.0 as i8) * i32::from(q);
                            k.iter().zip(&codes[quad * n + m]).map(product).sum::<i32>()
                        };
                        let sum: i32 = (b * 8..b * 8 + 8).map(of_quad).sum();
                        let scale = half_at(key_scales, b * KEY_BLOCK + j).to_f32() * scales[b * n + m];
                        (sum as f32).mul_add(scale, s)
                    };
                    out[m * PAGE + i * KEY_BLOCK + j] = (0..n_scales).fold(0.0, chain);
                }
            }
        });
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
        assert!(n >= 1 && n <= kernels.rows && range.start < range.end && range.end <= PAGE);
        assert!(values.len() == Self::head_value_elems(head_dim) && Self::supports(head_dim));
        assert!(p.len() >= (n - 1) * PAGE + range.end && o.len() >= n * head_dim);
        let (codes, scales) = values.split_at(PAGE * head_dim);
        let (p, first) = (&p[range.start..], range.start);
        let codes = &codes[first * head_dim..range.end * head_dim];
        // `w_jb` of one block of 32 elements.
        let w = &mut [0.0f32; MAX_TILE * PAGE];
        let len = range.len();
        for b in 0..head_dim / 32 {
            let scales = &scales[(b * PAGE + first) * 2..(b * PAGE + range.end) * 2];
            let (codes, o) = (&codes[b * 32..], &mut o[b * 32..]);
            // Row j < len of `codes` and row m < n of `o` have 32 elements from here on, at distance head_dim, and
            // `scales` an f16 for each j.
            on_isa!(kernels.isa, values_q8(n, head_dim, len, p, scales, w, codes, o), {
                for (m, j) in (0..n).flat_map(|m| (0..len).map(move |j| (m, j))) {
                    let w = p[m * PAGE + j] * half_at(scales, j).to_f32();
                    let codes = &codes[j * head_dim..j * head_dim + 32];
                    for (y, code) in o[m * head_dim..m * head_dim + 32].iter_mut().zip(codes) {
                        *y = w.mul_add(f32::from(code.0 as i8), *y);
                    }
                }
            });
        }
    }

    fn copy_values(keys: &[Self], head_dim: usize, offset: usize, positions: Range<usize>, values: &mut [Self]) {
        let n = head_dim - offset;
        assert!(Self::supports(head_dim) && Self::supports(n));
        let (codes, scales) = values.split_at_mut(PAGE * n);
        for j in positions.start / KEY_BLOCK..positions.end.div_ceil(KEY_BLOCK) {
            let block = &keys[j * Self::key_block_elems(head_dim)..(j + 1) * Self::key_block_elems(head_dim)];
            let (key_scales, key_codes) = block.split_at(key_scale_bytes(head_dim));
            let positions = j * KEY_BLOCK..(j + 1) * KEY_BLOCK;
            for b in 0..n / 32 {
                let from = (offset / 32 + b) * KEY_BLOCK * 2;
                let to = (b * PAGE + positions.start) * 2;
                scales[to..to + KEY_BLOCK * 2].copy_from_slice(&key_scales[from..from + KEY_BLOCK * 2]);
            }
            for (quad, quads) in key_codes.chunks_exact(KEY_BLOCK * 4).skip(offset / 4).enumerate() {
                for (position, quad_codes) in positions.clone().zip(quads.as_chunks::<4>().0) {
                    codes[position * n + quad * 4..][..4].copy_from_slice(quad_codes);
                }
            }
        }
    }

    thread_buffer!(Q8);
}

#[inline(always)]
fn half_of(bytes: [Q8; 2]) -> f16 {
    f16::from_le_bytes(bytes.map(|byte| byte.0))
}

/// The `i`-th f16 of some scales.
fn half_at(scales: &[Q8], i: usize) -> f16 {
    half_of([scales[2 * i], scales[2 * i + 1]])
}

fn put_half(scales: &mut [Q8], i: usize, value: f16) {
    scales[2 * i..2 * i + 2].copy_from_slice(&value.to_le_bytes().map(Q8));
}
