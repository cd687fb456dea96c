//! Encoders of the formats with blocks of 32 weights that share one scale.

use super::pack::{fifth_bits32, half, nibbles32, put_half};
use super::search::{
    Grid, LANES, Lanes, Linear, TINY, Tile, Trials, best_scale, best_scale_and_min, byte, clamp, inverse, tile,
};
use crate::TensorType;
use half::f16;

/// Number of elements in a group of blocks that are searched at once.
const GROUP: usize = 32 * LANES;

#[inline(always)]
pub(super) fn encode(ty: TensorType, x: &[f32], n_cols: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    let block_bytes = ty.block_bytes();
    if x.is_empty() {
        return;
    }
    // Without importance, all rows are treated alike, and groups may span them.
    let row = if importance.is_some() { n_cols } else { x.len() };
    let row_bytes = row / 32 * block_bytes;
    for (x, out) in x.chunks_exact(row).zip(out.chunks_exact_mut(row_bytes)) {
        let mean_square = if importance.is_some() { x.iter().map(|v| v * v).sum::<f32>() / n_cols as f32 } else { 0.0 };
        for (i, (x, out)) in x.chunks(GROUP).zip(out.chunks_mut(LANES * block_bytes)).enumerate() {
            let first = i * GROUP;
            group(ty, x, importance.map(|w| (&w[first..first + x.len()], mean_square)), out);
        }
    }
}

/// Encodes up to 16 blocks.
#[inline(always)]
fn group(ty: TensorType, x: &[f32], importance: Option<(&[f32], f32)>, out: &mut [u8]) {
    let blocks = x.as_chunks::<32>().0.iter().zip(out.chunks_exact_mut(ty.block_bytes()));
    if ty == TensorType::Q8_0 {
        blocks.for_each(|(x, out)| q8_0(x, out));
        return;
    }
    let t = tile::<32>(x);
    // Different error weights give the loss more local minima.
    let thorough = importance.is_some();
    let ones = [[1.0; LANES]; 32];
    let w = match importance {
        None if matches!(ty, TensorType::Q4_0 | TensorType::Q5_0 | TensorType::IQ4_NL) => {
            weights(&t, &ones, &mean_squares(&t))
        }
        None => ones,
        Some((importance, mean_square)) => weights(&t, &tile::<32>(importance), &[mean_square; LANES]),
    };
    match ty {
        TensorType::Q4_0 | TensorType::Q5_0 => {
            let lo = if ty == TensorType::Q4_0 { -8.0 } else { -16.0 };
            let grid = Linear { lo, hi: -lo - 1.0 };
            let ends = if thorough { ends_of(lo, 1.5, 16) } else { ends_of(lo, 1.2, 8) };
            let scales = best_scale(&t, &w, grid, ends, 2);
            for ((x, out), &scale) in blocks.zip(&scales) {
                let (d, codes) = codes_of(x, scale, grid);
                put_half(out, d);
                put_codes(ty, &codes, &mut out[2..]);
            }
        }
        TensorType::Q4_1 | TensorType::Q5_1 => {
            let levels = if ty == TensorType::Q4_1 { 15.0 } else { 31.0 };
            let stretches = Trials { first: -1.2, last: 0.8, n: if thorough { 20 } else { 10 } };
            let (scales, mins) = best_scale_and_min(&t, &w, levels, stretches, 2, false);
            for (((x, out), &scale), &min) in blocks.zip(&scales).zip(&mins) {
                let (d, m) = (half(scale), half(min));
                let (inv, m32) = (inverse(d.to_f32()), m.to_f32());
                let grid = Linear { lo: 0.0, hi: levels };
                let mut codes = [0u8; 32];
                for (code, &v) in codes.iter_mut().zip(x) {
                    *code = byte(grid.nearest((v - m32) * inv));
                }
                put_half(out, d);
                put_half(&mut out[2..], m);
                put_codes(ty, &codes, &mut out[4..]);
            }
        }
        TensorType::IQ4_NL => {
            let scales = best_scale(&t, &w, Curved, curved_ends(thorough), 2);
            for ((x, out), &scale) in blocks.zip(&scales) {
                let (d, codes) = codes_of(x, scale, Curved);
                put_half(out, d);
                nibbles32(&codes, &mut out[2..]);
            }
        }
        _ => {
            let exponents = best_exponents(&t, &w);
            for ((x, out), &exponent) in blocks.zip(&exponents) {
                mxfp4(x, exponent, out);
            }
        }
    }
}

/// The weight of each error. With importance alone, the errors of large weights would be left to chance, and these cost
/// most when the importance is inaccurate. Without importance, the part that depends on the size of the weights reduces
/// the KL divergence of SmolLM2 as Q4_0, Q3_K_M, IQ4_XS and IQ4_NL by 4 to 13 %.
#[inline(always)]
pub(super) fn weights<const N: usize>(x: &Tile<N>, importance: &Tile<N>, mean_square: &Lanes) -> Tile<N> {
    let mut w = [[0.0; LANES]; N];
    for e in 0..N {
        for i in 0..LANES {
            w[e][i] = importance[e][i] * (4.0 * mean_square[i] + x[e][i] * x[e][i]).sqrt();
        }
    }
    w
}

/// The mean square of each block.
#[inline(always)]
pub(super) fn mean_squares<const N: usize>(x: &Tile<N>) -> Lanes {
    let mut sums = [0.0; LANES];
    for row in x {
        for i in 0..LANES {
            sums[i] += row[i] * row[i];
        }
    }
    sums.map(|sum| sum / N as f32)
}

/// The positions to try for the largest weight of a block, on a grid of integers from `lo` to `-lo - 1`: up to `inside`
/// within either end, or as far outside as still rounds to it.
#[inline(always)]
pub(super) fn ends_of(lo: f32, inside: f32, n: usize) -> (Trials, Trials) {
    (Trials { first: lo + inside, last: lo - 0.6, n }, Trials { first: -lo - 1.0 - inside, last: -lo - 0.5, n })
}

/// The stored scale, and the codes nearest to the weights under that scale.
#[inline(always)]
fn codes_of<G: Grid>(x: &[f32; 32], scale: f32, grid: G) -> (f16, [u8; 32]) {
    let d = half(scale);
    let inv = inverse(d.to_f32());
    let mut codes = [0u8; 32];
    for (code, &v) in codes.iter_mut().zip(x) {
        *code = byte(grid.code(v * inv));
    }
    (d, codes)
}

/// High bits, if the type has them, then nibbles.
#[inline(always)]
fn put_codes(ty: TensorType, codes: &[u8; 32], out: &mut [u8]) {
    if matches!(ty, TensorType::Q5_0 | TensorType::Q5_1) {
        fifth_bits32(codes, out);
        nibbles32(codes, &mut out[4..]);
    } else {
        nibbles32(codes, out);
    }
}

#[inline(always)]
fn q8_0(x: &[f32; 32], out: &mut [u8]) {
    let mut largest = 0u32;
    for v in x {
        largest = largest.max(v.abs().to_bits());
    }
    let d = half(f32::from_bits(largest) / 127.0);
    let inv = inverse(d.to_f32());
    put_half(out, d);
    for (out, &v) in out[2..].iter_mut().zip(x) {
        *out = byte(Linear { lo: -127.0, hi: 127.0 }.nearest(v * inv));
    }
}

/// The levels of the codes of IQ4_NL and IQ4_XS: denser near zero, as weights are.
const CURVED: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// The positions to try for the largest weight of a block, on that grid.
#[inline(always)]
pub(super) fn curved_ends(thorough: bool) -> (Trials, Trials) {
    let n = if thorough { 10 } else { 7 };
    (Trials { first: -113.0, last: -138.0, n }, Trials { first: 101.0, last: 119.0, n })
}

/// The grid of [`CURVED`].
#[derive(Clone, Copy)]
pub(super) struct Curved;

impl Grid for Curved {
    #[inline(always)]
    fn nearest(self, v: f32) -> f32 {
        let mut nearest = CURVED[0];
        for k in 1..16 {
            nearest = if v > 0.5 * (CURVED[k - 1] + CURVED[k]) { CURVED[k] } else { nearest };
        }
        nearest
    }

    #[inline(always)]
    fn code(self, v: f32) -> f32 {
        let mut code = 0.0;
        for k in 1..16 {
            code = if v > 0.5 * (CURVED[k - 1] + CURVED[k]) { k as f32 } else { code };
        }
        code
    }
}

/// The grid of MXFP4: a sign and one of eight magnitudes, here doubled to integers.
#[derive(Clone, Copy)]
struct Fp4;

const FP4: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

impl Grid for Fp4 {
    #[inline(always)]
    fn nearest(self, v: f32) -> f32 {
        let mut nearest = 0.0;
        for k in 1..8 {
            nearest = if v.abs() > 0.5 * (FP4[k - 1] + FP4[k]) { FP4[k] } else { nearest };
        }
        if v < 0.0 { -nearest } else { nearest }
    }

    #[inline(always)]
    fn code(self, v: f32) -> f32 {
        let mut code = 0.0;
        for k in 1..8 {
            code = if v.abs() > 0.5 * (FP4[k - 1] + FP4[k]) { k as f32 } else { code };
        }
        if v < 0.0 { code + 8.0 } else { code }
    }
}

/// `2^(exponent - 128)`, the unit of the doubled grid, for stored exponents from 2.
#[inline(always)]
fn power(exponent: u32) -> f32 {
    f32::from_bits((exponent - 1) << 23)
}

/// The stored exponent of each block: the one whose range just holds the largest weight, or a neighbour of it,
/// whichever gives the smallest error.
#[inline(always)]
fn best_exponents(x: &Tile<32>, w: &Tile<32>) -> [u8; LANES] {
    let mut largest: Lanes = [0.0; LANES];
    for row in x {
        for i in 0..LANES {
            largest[i] = if row[i].abs() > largest[i] { row[i].abs() } else { largest[i] };
        }
    }
    let (mut best, mut error) = ([0u8; LANES], [f32::MAX; LANES]);
    for offset in [1i32, 2, 3] {
        let (mut unit, mut inv, mut loss) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        let mut exponents = [0u8; LANES];
        for i in 0..LANES {
            // The exponent of the largest weight, minus 2 for the grid's largest power of two, 4.
            let top = (largest[i].to_bits() >> 23) as i32;
            let exponent = (top - offset).clamp(2, 254);
            exponents[i] = if largest[i] < TINY { 0 } else { exponent as u8 };
            unit[i] = power(exponent as u32);
            inv[i] = 1.0 / unit[i];
        }
        for e in 0..32 {
            for i in 0..LANES {
                let lost = x[e][i] - unit[i] * Fp4.nearest(clamp(x[e][i] * inv[i], -16.0, 16.0));
                loss[i] += w[e][i] * (lost * lost);
            }
        }
        for i in 0..LANES {
            let better = loss[i] < error[i];
            error[i] = if better { loss[i] } else { error[i] };
            best[i] = if better { exponents[i] } else { best[i] };
        }
    }
    best
}

#[inline(always)]
fn mxfp4(x: &[f32; 32], exponent: u8, out: &mut [u8]) {
    let mut codes = [0u8; 32];
    if exponent >= 2 {
        let inv = 1.0 / power(u32::from(exponent));
        for (code, &v) in codes.iter_mut().zip(x) {
            *code = byte(Fp4.code(clamp(v * inv, -16.0, 16.0)));
        }
    }
    out[0] = exponent;
    nibbles32(&codes, &mut out[1..]);
}
