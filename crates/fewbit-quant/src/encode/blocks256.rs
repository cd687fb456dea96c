//! Encoders of the formats with blocks of 256 weights, in which sub-blocks have integer scales under one float scale.
//!
//! A tile is the 16 sub-blocks of one block (Q2_K, Q3_K, Q6_K), or the 8 of two blocks (Q4_K, Q5_K, IQ4_XS).

use super::blocks32::{Curved, curved_ends, ends_of, mean_squares, weights};
use super::pack::{
    bits256, half, nibbles_q6_k, nibbles32, nibbles256, pairs256, put_half, scales_and_mins, scales_q3_k,
};
use super::search::{
    Grid, LANES, Lanes, Linear, Tile, Trials, best_scale, best_scale_and_min, best_unit, byte, inverse, losses, sums,
    tile,
};
use crate::TensorType;
use half::f16;

#[inline(always)]
pub(super) fn encode(ty: TensorType, x: &[f32], n_cols: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    // Number of blocks in a tile.
    let n = if matches!(ty, TensorType::Q4_K | TensorType::Q5_K | TensorType::IQ4_XS) { 2 } else { 1 };
    let bytes = n * ty.block_bytes();
    if x.is_empty() {
        return;
    }
    // Without importance, all rows are treated alike, and tiles may span them.
    let row = if importance.is_some() { n_cols } else { x.len() };
    let row_bytes = row / 256 * ty.block_bytes();
    for (x, out) in x.chunks_exact(row).zip(out.chunks_exact_mut(row_bytes)) {
        for (i, (x, out)) in x.chunks(n * 256).zip(out.chunks_mut(bytes)).enumerate() {
            let first = i * n * 256;
            one_tile(ty, x, importance.map(|w| &w[first..first + x.len()]), out);
        }
    }
}

#[inline(always)]
fn one_tile(ty: TensorType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    // Different error weights give the loss more local minima.
    let thorough = importance.is_some();
    let trials = |n: usize| if thorough { 24 } else { n };
    match ty {
        TensorType::Q4_K => {
            let stretches = Trials { first: -1.1, last: 0.9, n: trials(11) };
            affine::<32>(x, importance, (15.0, 63.0), stretches, out, put_q4_k);
        }
        TensorType::Q5_K => {
            let stretches = Trials { first: -1.2, last: 0.8, n: trials(9) };
            affine::<32>(x, importance, (31.0, 63.0), stretches, out, put_q5_k);
        }
        TensorType::Q2_K => {
            let stretches = Trials { first: -0.9, last: 0.6, n: trials(12) };
            affine::<16>(x, importance, (3.0, 15.0), stretches, out, put_q2_k);
        }
        TensorType::Q3_K => {
            let (grid, units) = (Linear { lo: -4.0, hi: 3.0 }, Linear { lo: -32.0, hi: 31.0 });
            symmetric::<_, 16>(x, importance, grid, units, ends_of(grid.lo, 1.2, trials(8)), out, put_q3_k);
        }
        TensorType::Q6_K => {
            let (grid, units) = (Linear { lo: -32.0, hi: 31.0 }, Linear { lo: -128.0, hi: 127.0 });
            symmetric::<_, 16>(x, importance, grid, units, ends_of(grid.lo, 1.4, trials(6)), out, put_q6_k);
        }
        _ => {
            let units = Linear { lo: -32.0, hi: 31.0 };
            symmetric::<_, 32>(x, importance, Curved, units, curved_ends(thorough), out, put_iq4_xs);
        }
    }
}

/// One block, ready to be packed.
struct Packed {
    d: f16,
    dmin: f16,
    /// The first `256 / N` are used. Signed values are stored as their low bytes.
    scales: [u8; 16],
    mins: [u8; 16],
    codes: [u8; 256],
}

impl Packed {
    #[inline(always)]
    fn new(d: f32, dmin: f32) -> Self {
        Self { d: half(d), dmin: half(dmin), scales: [0; 16], mins: [0; 16], codes: [0; 256] }
    }
}

/// The weights of the squared errors.
#[inline(always)]
fn error_weights<const N: usize>(x: &[f32], t: &Tile<N>, importance: Option<&[f32]>) -> Tile<N> {
    match importance {
        None => [[1.0; LANES]; N],
        Some(importance) => {
            let mean_square = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
            weights(t, &tile::<N>(importance), &[mean_square; LANES])
        }
    }
}

#[inline(always)]
fn inverses(scale: &Lanes) -> Lanes {
    let mut inv = [0.0; LANES];
    for i in 0..LANES {
        inv[i] = inverse(scale[i]);
    }
    inv
}

/// The float scale and the scale of the minimums of one block.
#[derive(Clone, Copy, Default)]
struct Units {
    d: f32,
    dmin: f32,
}

impl Units {
    /// The values as they will be read back.
    #[inline(always)]
    fn stored(d: f32, dmin: f32) -> Self {
        Self { d: half(d).to_f32(), dmin: half(dmin).to_f32() }
    }
}

/// The float values of integer scales and minimums, lane by lane.
#[inline(always)]
fn scaled<const N: usize>(units: &[Units; 2], s: &Lanes, m: &Lanes) -> (Lanes, Lanes) {
    let (mut scale, mut min) = ([0.0; LANES], [0.0; LANES]);
    for i in 0..LANES {
        let unit = units[i * N / 256];
        scale[i] = unit.d * s[i];
        min[i] = -(unit.dmin * m[i]);
    }
    (scale, min)
}

/// Formats with minimums: `x ~ (d * scale) * code - dmin * min`. `levels` is the largest code, `units` the largest
/// integer scale.
#[inline(always)]
fn affine<const N: usize>(
    x: &[f32],
    importance: Option<&[f32]>,
    (levels, units): (f32, f32),
    stretches: Trials,
    out: &mut [u8],
    put: impl Fn(&Packed, &mut [u8]),
) {
    let t = tile::<N>(x);
    let w = error_weights(x, &t, importance);
    let (scale, min) = best_scale_and_min(&t, &w, levels, stretches, 2, true);
    let (mut wx, mut total) = ([0.0; LANES], [0.0; LANES]);
    for e in 0..N {
        for i in 0..LANES {
            total[i] += w[e][i];
            wx[i] += w[e][i] * t[e][i];
        }
    }
    let grid = Linear { lo: 0.0, hi: levels };
    let unit_grid = Linear { lo: 0.0, hi: units };
    let (mut float_scale, mut float_min, mut add) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for i in 0..LANES {
        float_scale[i] = if scale[i] > 0.0 { scale[i] } else { 0.0 };
        float_min[i] = -min[i];
        add[i] = -min[i];
    }
    // The cost of an error in a scale; an error in a minimum costs `total`.
    let costs = sums(&t, &w, grid, &inverses(&float_scale), &add).qq;

    // Integers for the scales and minimums, under the float units that fit them best.
    let n_blocks = x.len() / 256;
    let (mut s, mut m) = ([0.0; LANES], [0.0; LANES]);
    let mut fitted = [Units::default(); 2];
    for (block, unit) in fitted.iter_mut().enumerate().take(n_blocks) {
        let lanes = block * (256 / N)..(block + 1) * (256 / N);
        let (costs, total) = (&costs[lanes.clone()], &total[lanes.clone()]);
        let d = best_unit(&float_scale[lanes.clone()], costs, unit_grid, units + 0.4, 0.2 * units);
        let dmin = best_unit(&float_min[lanes.clone()], total, unit_grid, units + 0.4, 0.2 * units);
        *unit = Units::stored(d, dmin);
        let (per_d, per_dmin) = (inverse(unit.d), inverse(unit.dmin));
        for i in lanes {
            s[i] = unit_grid.nearest(float_scale[i] * per_d);
            m[i] = unit_grid.nearest(float_min[i] * per_dmin);
        }
    }
    refit_affine(&t, &w, grid, &total, &wx, &s, &m, &mut fitted);
    // Rounding each scale on its own does not give the best combination.
    let (scale, min) = scaled::<N>(&fitted, &s, &m);
    let mut best = losses(&t, &w, grid, &scale, &min);
    for (ds, dm) in [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (1.0, 1.0), (-1.0, -1.0)] {
        let (mut s2, mut m2) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..LANES {
            s2[i] = unit_grid.nearest(s[i] + ds);
            m2[i] = unit_grid.nearest(m[i] + dm);
        }
        let (scale, min) = scaled::<N>(&fitted, &s2, &m2);
        let loss = losses(&t, &w, grid, &scale, &min);
        for i in 0..LANES {
            let better = loss[i] < best[i];
            best[i] = if better { loss[i] } else { best[i] };
            s[i] = if better { s2[i] } else { s[i] };
            m[i] = if better { m2[i] } else { m[i] };
        }
    }
    refit_affine(&t, &w, grid, &total, &wx, &s, &m, &mut fitted);
    let out_bytes = out.len() / n_blocks;
    for (block, (x, out)) in x.as_chunks::<256>().0.iter().zip(out.chunks_exact_mut(out_bytes)).enumerate() {
        let Units { d, dmin } = fitted[block];
        let mut parts = Packed::new(d, dmin);
        for (j, (x, codes)) in x.as_chunks::<N>().0.iter().zip(parts.codes.as_chunks_mut::<N>().0).enumerate() {
            let i = block * (256 / N) + j;
            (parts.scales[j], parts.mins[j]) = (byte(s[i]), byte(m[i]));
            let (inv, add) = (inverse(d * s[i]), dmin * m[i]);
            for (code, &v) in codes.iter_mut().zip(x) {
                *code = byte(grid.nearest((v + add) * inv));
            }
        }
        put(&parts, out);
    }
}

/// The float units that fit the codes best under the given integer scales: `x ~ d (s q) - dmin m`, a linear system of
/// two equations per block. `total` is `sum w`, `wx` is `sum w x`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn refit_affine<const N: usize>(
    t: &Tile<N>,
    w: &Tile<N>,
    grid: Linear,
    total: &Lanes,
    wx: &Lanes,
    s: &Lanes,
    m: &Lanes,
    fitted: &mut [Units; 2],
) {
    let (scale, min) = scaled::<N>(fitted, s, m);
    let mut add = [0.0; LANES];
    for i in 0..LANES {
        add[i] = -min[i];
    }
    let fit = sums(t, w, grid, &inverses(&scale), &add);
    for (block, unit) in fitted.iter_mut().enumerate() {
        let (mut a, mut b, mut c, mut u, mut v) = (0.0f32, 0.0f32, 0.0f32, 0.0f32, 0.0f32);
        for i in block * (256 / N)..((block + 1) * (256 / N)).min(LANES) {
            a += s[i] * s[i] * fit.qq[i];
            b += s[i] * m[i] * fit.q[i];
            c += m[i] * m[i] * total[i];
            u += s[i] * fit.xq[i];
            v += m[i] * wx[i];
        }
        // a d - b dmin = u;  b d - c dmin = v
        let det = a * c - b * b;
        if det > 1e-5 * a * c {
            *unit = Units::stored((u * c - v * b) / det, (u * b - v * a) / det);
        } else if a > 0.0 && c == 0.0 {
            *unit = Units::stored(u / a, 0.0);
        } else if a == 0.0 && c > 0.0 {
            *unit = Units::stored(0.0, -v / c);
        }
    }
}

/// Formats without minimums: `x ~ (d * scale) * grid`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn symmetric<G: Grid, const N: usize>(
    x: &[f32],
    importance: Option<&[f32]>,
    grid: G,
    units: Linear,
    ends: (Trials, Trials),
    out: &mut [u8],
    put: impl Fn(&Packed, &mut [u8]),
) {
    let t = tile::<N>(x);
    let w = match importance {
        None => {
            // Over whole blocks, because sub-blocks share a unit.
            let mut squares = mean_squares(&t);
            for block in squares.chunks_mut(256 / N) {
                block.fill(block.iter().sum::<f32>() / block.len() as f32);
            }
            weights(&t, &[[1.0; LANES]; N], &squares)
        }
        Some(_) => error_weights(x, &t, importance),
    };
    let scale = best_scale(&t, &w, grid, ends, 2);
    let n_blocks = x.len() / 256;
    let (mut s, zero) = ([0.0; LANES], [0.0; LANES]);
    // The cost of an error in a scale.
    let costs = sums(&t, &w, grid, &inverses(&scale), &zero).qq;
    let mut fitted = [Units::default(); 2];
    for (block, unit) in fitted.iter_mut().enumerate().take(n_blocks) {
        let lanes = block * (256 / N)..(block + 1) * (256 / N);
        let d = best_unit(&scale[lanes.clone()], &costs[lanes.clone()], units, units.lo - 0.4, 0.2 * units.lo);
        *unit = Units::stored(d, 0.0);
        let per_d = inverse(unit.d);
        for i in lanes {
            s[i] = units.nearest(scale[i] * per_d);
        }
    }
    refit_symmetric(&t, &w, grid, &s, &mut fitted);
    let mut best = losses(&t, &w, grid, &scaled::<N>(&fitted, &s, &zero).0, &zero);
    for ds in [1.0, -1.0] {
        let mut s2 = [0.0; LANES];
        for i in 0..LANES {
            s2[i] = units.nearest(s[i] + ds);
        }
        let loss = losses(&t, &w, grid, &scaled::<N>(&fitted, &s2, &zero).0, &zero);
        for i in 0..LANES {
            let better = loss[i] < best[i];
            best[i] = if better { loss[i] } else { best[i] };
            s[i] = if better { s2[i] } else { s[i] };
        }
    }
    refit_symmetric(&t, &w, grid, &s, &mut fitted);
    let out_bytes = out.len() / n_blocks;
    for (block, (x, out)) in x.as_chunks::<256>().0.iter().zip(out.chunks_exact_mut(out_bytes)).enumerate() {
        let d = fitted[block].d;
        let mut parts = Packed::new(d, 0.0);
        for (j, (x, codes)) in x.as_chunks::<N>().0.iter().zip(parts.codes.as_chunks_mut::<N>().0).enumerate() {
            let s = s[block * (256 / N) + j];
            parts.scales[j] = byte(s);
            let inv = inverse(d * s);
            for (code, &v) in codes.iter_mut().zip(x) {
                *code = byte(grid.code(v * inv));
            }
        }
        put(&parts, out);
    }
}

/// The float unit that fits the codes best under the given integer scales.
#[inline(always)]
fn refit_symmetric<G: Grid, const N: usize>(t: &Tile<N>, w: &Tile<N>, grid: G, s: &Lanes, fitted: &mut [Units; 2]) {
    let inv = inverses(&scaled::<N>(fitted, s, &[0.0; LANES]).0);
    let fit = sums(t, w, grid, &inv, &[0.0; LANES]);
    for (block, unit) in fitted.iter_mut().enumerate() {
        let (mut a, mut u) = (0.0f32, 0.0f32);
        for i in block * (256 / N)..((block + 1) * (256 / N)).min(LANES) {
            a += s[i] * s[i] * fit.qq[i];
            u += s[i] * fit.xq[i];
        }
        if a > 0.0 {
            *unit = Units::stored(u / a, 0.0);
        }
    }
}

#[inline(always)]
fn put_q2_k(p: &Packed, out: &mut [u8]) {
    for j in 0..16 {
        out[j] = p.scales[j] | p.mins[j] << 4;
    }
    pairs256(&p.codes, 0, &mut out[16..80]);
    put_half(&mut out[80..], p.d);
    put_half(&mut out[82..], p.dmin);
}

#[inline(always)]
fn put_q3_k(p: &Packed, out: &mut [u8]) {
    bits256(&p.codes, 2, &mut out[..32]);
    pairs256(&p.codes, 0, &mut out[32..96]);
    scales_q3_k(&p.scales.map(|s| s.wrapping_add(32)), &mut out[96..108]);
    put_half(&mut out[108..], p.d);
}

#[inline(always)]
fn put_q4_k(p: &Packed, out: &mut [u8]) {
    put_half(out, p.d);
    put_half(&mut out[2..], p.dmin);
    scales_and_mins(&p.scales, &p.mins, &mut out[4..16]);
    nibbles256(&p.codes, &mut out[16..144]);
}

#[inline(always)]
fn put_q5_k(p: &Packed, out: &mut [u8]) {
    put_half(out, p.d);
    put_half(&mut out[2..], p.dmin);
    scales_and_mins(&p.scales, &p.mins, &mut out[4..16]);
    bits256(&p.codes, 4, &mut out[16..48]);
    nibbles256(&p.codes, &mut out[48..176]);
}

#[inline(always)]
fn put_q6_k(p: &Packed, out: &mut [u8]) {
    nibbles_q6_k(&p.codes, &mut out[..128]);
    pairs256(&p.codes, 4, &mut out[128..192]);
    out[192..208].copy_from_slice(&p.scales);
    put_half(&mut out[208..], p.d);
}

/// `d: f16[0..2]   upper pairs of scales: u16[2..4]   low nibbles: byte[4..8]   codes: 8 * 16 bytes`, with 32 added to
/// the scales.
#[inline(always)]
fn put_iq4_xs(p: &Packed, out: &mut [u8]) {
    put_half(out, p.d);
    let scales = p.scales.map(|s| s.wrapping_add(32));
    let mut upper = 0u16;
    for j in 0..8 {
        upper |= u16::from(scales[j] >> 4) << (2 * j);
    }
    out[2..4].copy_from_slice(&upper.to_le_bytes());
    for j in 0..4 {
        out[4 + j] = scales[2 * j] & 15 | scales[2 * j + 1] << 4;
    }
    for (codes, out) in p.codes.as_chunks::<32>().0.iter().zip(out[8..].chunks_exact_mut(16)) {
        nibbles32(codes, out);
    }
}
