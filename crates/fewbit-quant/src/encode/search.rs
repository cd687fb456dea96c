//! The search for scales and minimums, for 16 blocks at once.
//!
//! A *tile* is 16 blocks next to each other, one per SIMD lane: `tile[element][block]`. Every sum over a block is then
//! a sum within one lane, in the order of the elements, and the compiler vectorizes plain loops.
//!
//! For codes `q`, the scale with the smallest loss, `sum w (x - s q)^2`, is `s = sum w x q / sum w q^2`. It reduces the
//! loss by `s * sum w x q`, the *gain* by which candidates are compared. With a minimum, `x ~ s q + m`, both come from
//! a linear system of two equations, and the gain is `s * sum w x q + m * sum w x`.

/// Number of blocks in a tile.
pub(super) const LANES: usize = 16;
/// One value per block.
pub(super) type Lanes = [f32; LANES];
/// `N` elements of each block.
pub(super) type Tile<const N: usize> = [Lanes; N];

/// Blocks whose largest magnitude (or whose range) is below this count as constant.
pub(super) const TINY: f32 = 1e-15;

/// Adding this to a number below 2^22 and subtracting it again rounds to an integer, ties to even. The low byte of the
/// sum's bits is the low byte of that integer.
const ROUNDER: f32 = 12_582_912.0;

#[inline(always)]
pub(super) fn round(v: f32) -> f32 {
    (v + ROUNDER) - ROUNDER
}

/// The low byte of an integer that is held as a float.
#[inline(always)]
pub(super) fn byte(v: f32) -> u8 {
    (v + ROUNDER).to_bits() as u8
}

#[inline(always)]
pub(super) fn clamp(v: f32, lo: f32, hi: f32) -> f32 {
    // Comparisons that become one vector instruction each, unlike `f32::clamp`.
    let v = if v > lo { v } else { lo };
    if v < hi { v } else { hi }
}

/// `1 / v`, or 0 if that would not be a usable number.
#[inline(always)]
pub(super) fn inverse(v: f32) -> f32 {
    if v.abs() > f32::MIN_POSITIVE { 1.0 / v } else { 0.0 }
}

/// The values that codes stand for.
pub(super) trait Grid: Copy {
    /// The value nearest to `v`.
    fn nearest(self, v: f32) -> f32;
    /// The code of the value nearest to `v`.
    fn code(self, v: f32) -> f32;
}

/// All integers from `lo` to `hi`; codes count from `lo`.
#[derive(Clone, Copy)]
pub(super) struct Linear {
    pub(super) lo: f32,
    pub(super) hi: f32,
}

impl Grid for Linear {
    #[inline(always)]
    fn nearest(self, v: f32) -> f32 {
        round(clamp(v, self.lo, self.hi))
    }

    #[inline(always)]
    fn code(self, v: f32) -> f32 {
        self.nearest(v) - self.lo
    }
}

/// Values to try: `n` of them from `first` to `last`.
#[derive(Clone, Copy)]
pub(super) struct Trials {
    pub(super) first: f32,
    pub(super) last: f32,
    pub(super) n: usize,
}

impl Trials {
    #[inline(always)]
    fn at(self, i: usize) -> f32 {
        self.first + (self.last - self.first) * (i as f32 / (self.n.max(2) - 1) as f32)
    }
}

/// Loads 16 blocks of `N` elements as a tile.
#[inline(always)]
pub(super) fn tile<const N: usize>(x: &[f32]) -> Tile<N> {
    let mut tile = [[0.0; LANES]; N];
    for (b, block) in x.as_chunks::<N>().0.iter().enumerate().take(LANES) {
        for e in 0..N {
            tile[e][b] = block[e];
        }
    }
    tile
}

/// The sums that determine a scale.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// `sum w x q`
    pub(super) xq: Lanes,
    /// `sum w q^2`
    pub(super) qq: Lanes,
    /// `sum w q`
    pub(super) q: Lanes,
}

/// The sums for the codes of `(x + add) * inv`.
#[inline(always)]
pub(super) fn sums<G: Grid, const N: usize>(x: &Tile<N>, w: &Tile<N>, grid: G, inv: &Lanes, add: &Lanes) -> Sums {
    let (mut xq, mut qq, mut q1) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for e in 0..N {
        for i in 0..LANES {
            let q = grid.nearest((x[e][i] + add[i]) * inv[i]);
            let wq = w[e][i] * q;
            xq[i] += wq * x[e][i];
            qq[i] += wq * q;
            q1[i] += wq;
        }
    }
    Sums { xq, qq, q: q1 }
}

/// The best scale of each block, `x ~ scale * grid`. `below` and `above` are the values, negative and positive, that
/// the element of largest magnitude is mapped to in turn; then follow `rounds` of rounding under the best scale so far.
#[inline(always)]
pub(super) fn best_scale<G: Grid, const N: usize>(
    x: &Tile<N>,
    w: &Tile<N>,
    grid: G,
    (below, above): (Trials, Trials),
    rounds: usize,
) -> Lanes {
    let mut extreme = [0.0f32; LANES];
    for row in x {
        for i in 0..LANES {
            extreme[i] = if row[i].abs() > extreme[i].abs() { row[i] } else { extreme[i] };
        }
    }
    for v in &mut extreme {
        *v = if v.abs() < TINY { 0.0 } else { 1.0 / *v };
    }
    let (mut scale, mut gain) = ([0.0; LANES], [0.0; LANES]);
    let n_trials = below.n + above.n;
    for step in 0..n_trials + rounds {
        let end = if step < below.n { below.at(step) } else { above.at(step - below.n) };
        let mut inv = [0.0; LANES];
        for i in 0..LANES {
            inv[i] = if step < n_trials { end * extreme[i] } else { inverse(scale[i]) };
        }
        let s = scale_sums(x, w, grid, &inv);
        for i in 0..LANES {
            let this = s.0[i] / if s.1[i] > 0.0 { s.1[i] } else { 1.0 };
            let better = s.1[i] > 0.0 && this * s.0[i] > gain[i];
            gain[i] = if better { this * s.0[i] } else { gain[i] };
            scale[i] = if better { this } else { scale[i] };
        }
    }
    scale
}

/// `sum w x q` and `sum w q^2` for the codes of `x * inv`.
#[inline(always)]
fn scale_sums<G: Grid, const N: usize>(x: &Tile<N>, w: &Tile<N>, grid: G, inv: &Lanes) -> (Lanes, Lanes) {
    let (mut xq, mut qq) = ([0.0; LANES], [0.0; LANES]);
    for e in 0..N {
        for i in 0..LANES {
            let q = grid.nearest(x[e][i] * inv[i]);
            let wq = w[e][i] * q;
            xq[i] += wq * x[e][i];
            qq[i] += wq * q;
        }
    }
    (xq, qq)
}

/// The best scale and minimum of each block, `x ~ scale * q + min` with `q` in `0..=levels`. `stretches` gives the
/// numbers of extra levels that the range is divided into; then follow `rounds` of rounding under the best result so
/// far. With `negative`, minimums are at most 0.
#[inline(always)]
pub(super) fn best_scale_and_min<const N: usize>(
    x: &Tile<N>,
    w: &Tile<N>,
    levels: f32,
    stretches: Trials,
    rounds: usize,
    negative: bool,
) -> (Lanes, Lanes) {
    let grid = Linear { lo: 0.0, hi: levels };
    let (mut lo, mut hi, mut w1, mut wx) = (x[0], x[0], [0.0; LANES], [0.0; LANES]);
    for e in 0..N {
        for i in 0..LANES {
            lo[i] = if x[e][i] < lo[i] { x[e][i] } else { lo[i] };
            hi[i] = if x[e][i] > hi[i] { x[e][i] } else { hi[i] };
            w1[i] += w[e][i];
            wx[i] += w[e][i] * x[e][i];
        }
    }
    // From here on, elements are relative to their weighted mean, and codes to the position of that mean among them.
    // One element may weigh more than all others together, and the gain of the others would be lost in the rounding of
    // larger sums.
    let (mut mean, mut y, mut wy) = ([0.0; LANES], [[0.0; LANES]; N], [0.0; LANES]);
    for i in 0..LANES {
        mean[i] = wx[i] / if w1[i] > 0.0 { w1[i] } else { 1.0 };
    }
    for e in 0..N {
        for i in 0..LANES {
            y[e][i] = x[e][i] - mean[i];
            wy[i] += w[e][i] * y[e][i];
        }
    }
    let (mut scale, mut min, mut gain) = ([0.0; LANES], lo, [f32::MIN; LANES]);
    let mut per_range = [0.0; LANES];
    for i in 0..LANES {
        lo[i] = if negative && lo[i] > 0.0 { 0.0 } else { lo[i] };
        min[i] = lo[i];
        let range = hi[i] - lo[i];
        per_range[i] = if range > TINY { 1.0 / range } else { 0.0 };
        scale[i] = if range > TINY { range / levels } else { 0.0 };
    }
    for step in 0..stretches.n + rounds {
        let searching = step < stretches.n;
        let stretched = levels + stretches.at(step);
        let (mut inv, mut at) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..LANES {
            inv[i] = if searching { stretched * per_range[i] } else { inverse(scale[i]) };
            at[i] = (mean[i] - if searching { lo[i] } else { min[i] }) * inv[i];
        }
        let (mut yq, mut qq, mut q1) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for e in 0..N {
            for i in 0..LANES {
                let q = grid.nearest(y[e][i] * inv[i] + at[i]) - at[i];
                let wq = w[e][i] * q;
                yq[i] += wq * y[e][i];
                qq[i] += wq * q;
                q1[i] += wq;
            }
        }
        for i in 0..LANES {
            let det = w1[i] * qq[i] - q1[i] * q1[i];
            // Codes that are all equal do not determine the scale; below this bound they may be equal.
            let valid = det > 1e-5 * w1[i] * qq[i];
            let per_det = 1.0 / if valid { det } else { 1.0 };
            let this_scale = (w1[i] * yq[i] - wy[i] * q1[i]) * per_det;
            let above_mean = (qq[i] * wy[i] - q1[i] * yq[i]) * per_det;
            let this_min = mean[i] + above_mean - this_scale * at[i];
            let this_gain = this_scale * yq[i] + above_mean * wy[i];
            // Without a minimum, the fit is relative to 0 again; gains stay relative to the mean.
            let capped = negative && this_min > 0.0;
            let xq = yq[i] + mean[i] * q1[i] + at[i] * (wy[i] + mean[i] * w1[i]);
            let zero_qq = qq[i] + at[i] * (2.0 * q1[i] + at[i] * w1[i]);
            let zero_scale = xq / if zero_qq > 0.0 { zero_qq } else { 1.0 };
            let zero_gain = zero_scale * xq - mean[i] * (mean[i] * w1[i] + 2.0 * wy[i]);
            let this_scale = if capped { zero_scale } else { this_scale };
            let this_min = if capped { 0.0 } else { this_min };
            let this_gain = if capped { zero_gain } else { this_gain };
            let better = valid && this_gain > gain[i];
            gain[i] = if better { this_gain } else { gain[i] };
            scale[i] = if better { this_scale } else { scale[i] };
            min[i] = if better { this_min } else { min[i] };
        }
    }
    (scale, min)
}

/// The loss of each block, `sum w (x - (scale * q + min))^2` under the nearest codes.
#[inline(always)]
pub(super) fn losses<G: Grid, const N: usize>(x: &Tile<N>, w: &Tile<N>, grid: G, scale: &Lanes, min: &Lanes) -> Lanes {
    let (mut inv, mut loss) = ([0.0; LANES], [0.0; LANES]);
    for i in 0..LANES {
        inv[i] = inverse(scale[i]);
    }
    for e in 0..N {
        for i in 0..LANES {
            let x = x[e][i] - min[i];
            let lost = x - scale[i] * grid.nearest(x * inv[i]);
            loss[i] += w[e][i] * (lost * lost);
        }
    }
    loss
}

/// Integer scales for float scales: `values ~ unit * integers`, weighted. Tries 16 lengths of the range, which map the
/// largest of `values` to integers from `end - span` to `end`; returns the unit.
#[inline(always)]
pub(super) fn best_unit(values: &[f32], weights: &[f32], grid: Linear, end: f32, span: f32) -> f32 {
    let mut extreme = 0.0f32;
    for &v in values {
        extreme = if v.abs() > extreme.abs() { v } else { extreme };
    }
    if extreme.abs() < TINY {
        return 0.0;
    }
    let mut inv = [0.0; LANES];
    for (i, inv) in inv.iter_mut().enumerate() {
        *inv = (end - span * (i as f32 / 15.0)) / extreme;
    }
    let (mut xq, mut qq) = ([0.0; LANES], [0.0; LANES]);
    for (&v, &w) in values.iter().zip(weights) {
        for i in 0..LANES {
            let q = grid.nearest(v * inv[i]);
            xq[i] += w * v * q;
            qq[i] += w * q * q;
        }
    }
    let (mut unit, mut gain) = (extreme / end, f32::MIN);
    for i in 0..LANES {
        if qq[i] > 0.0 && xq[i] * xq[i] / qq[i] > gain {
            (unit, gain) = (xq[i] / qq[i], xq[i] * xq[i] / qq[i]);
        }
    }
    unit
}
