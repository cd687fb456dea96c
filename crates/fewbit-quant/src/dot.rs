//! The scalar definition of each dot product: one row of weights with one row of activations.
//!
//! Inside a block, all arithmetic is integer and exact, so its order does not matter. The float steps are one `mul_add`
//! chain over the blocks in the order of `k`; every SIMD kernel, tile shape and thread count keeps this order.
//!
//! ```text
//! blocks of 32    i = sum level(code) * x              acc = i * (d * dx) + acc
//!                 s = dx * sum x                       acc = m * s + acc              (types with a minimum)
//! blocks of 256   i = sum_j scale_j * sum level(code) * x
//!                                                      acc = i * (d * dx) + acc
//!                 n = sum_j min_j * sum_j x            acc = -n * (dmin * dx) + acc   (types with minimums)
//! floats                                               acc = w * x + acc
//! ```
//!
//! Bounds: with |x| <= 127, a block of 32 gives |i| <= 32 * 128 * 127 < 2^20, and one of 256 gives
//! |i| <= 256 * 128 * 32 * 127 < 2^28 (Q6_K, the largest; IQ4_XS stays below 256 * 32 * 127 * 127), so 32-bit
//! integers hold every sum.

use crate::TensorType;
use crate::activation::Q8Row;
use crate::block::{Levels, has_min, read_block32, read_block256};
use half::{bf16, f16};

/// The dot product of a row of F32, F16 or BF16 weights with plain activations.
///
/// # Panics
/// If `ty` is another type or `row` is not `x.len()` elements long.
pub fn dot_f32(ty: TensorType, row: &[u8], x: &[f32]) -> f32 {
    assert_eq!(Some(row.len()), ty.row_bytes(x.len()), "a row of {ty} as long as the activations");
    let mut acc = 0.0f32;
    for (w, &x) in row.chunks_exact(ty.block_bytes()).zip(x) {
        let w = match ty {
            TensorType::F32 => f32::from_le_bytes([w[0], w[1], w[2], w[3]]),
            TensorType::F16 => f16::from_le_bytes([w[0], w[1]]).to_f32(),
            TensorType::BF16 => bf16::from_le_bytes([w[0], w[1]]).to_f32(),
            other => panic!("{other} is no plain float type"),
        };
        acc = w.mul_add(x, acc);
    }
    acc
}

/// The dot product of a row of quantized weights with quantized activations of the matching kind.
///
/// # Panics
/// If `ty` is not quantized or `row` is not as long as the activations.
pub fn dot_q8(ty: TensorType, row: &[u8], x: Q8Row<'_>) -> f32 {
    assert_eq!(Some(row.len()), ty.row_bytes(x.codes.len()), "a row of {ty} as long as the activations");
    if ty.block_elems() == 32 { dot_32(ty, row, x) } else { dot_256(ty, row, x) }
}

fn dot_32(ty: TensorType, row: &[u8], x: Q8Row<'_>) -> f32 {
    let levels = Levels::of(ty).expect("a quantized type");
    let mut acc = 0.0f32;
    let blocks = row.chunks_exact(ty.block_bytes()).zip(x.codes.chunks_exact(32));
    for ((block, xq), (&dx, &sum)) in blocks.zip(x.scales.iter().zip(x.sums)) {
        let w = read_block32(ty, block);
        let i: i32 = w.codes.iter().zip(xq).map(|(&c, &q)| levels.at(c) * i32::from(q)).sum();
        acc = (i as f32).mul_add(w.d * dx, acc);
        if has_min(ty) {
            acc = w.m.mul_add(dx * f32::from(sum), acc);
        }
    }
    acc
}

fn dot_256(ty: TensorType, row: &[u8], x: Q8Row<'_>) -> f32 {
    let levels = Levels::of(ty).expect("a quantized type");
    let mut acc = 0.0f32;
    let blocks = row.chunks_exact(ty.block_bytes()).zip(x.codes.chunks_exact(256));
    for ((block, xq), (&dx, sums)) in blocks.zip(x.scales.iter().zip(x.sums.chunks_exact(16))) {
        let w = read_block256(ty, block);
        let mut i = 0i32;
        for j in 0..16 {
            let sub = 16 * j..16 * j + 16;
            let dot: i32 = w.codes[sub.clone()].iter().zip(&xq[sub]).map(|(&c, &q)| levels.at(c) * i32::from(q)).sum();
            i += i32::from(w.scales[j]) * dot;
        }
        acc = (i as f32).mul_add(w.d * dx, acc);
        if has_min(ty) {
            let n: i32 = w.mins.iter().zip(sums).map(|(&m, &s)| i32::from(m) * i32::from(s)).sum();
            acc = (-(n as f32)).mul_add(w.dmin * dx, acc);
        }
    }
    acc
}
