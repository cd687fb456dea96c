//! Layers whose state has a fixed size: the causal convolution over a few tokens, and the gated delta rule ("Gated Delta
//! Networks", Yang et al., 2024; as in Qwen3-Next and Qwen3.5).
//!
//! Both go token by token, so their results do not depend on how a sequence is cut into chunks. With a kernel of `n`
//! taps, the convolution of a channel is
//!
//! ```text
//! y[t] = f(fma chain over j in 0..n: w[j] * x[t - (n - 1) + j])          x is 0 before the first token; f may be SiLU
//! ```
//! A value head has a matrix `S` `[k_dim, v_dim]`, which is 0 before the first token. For a token with the query, key and
//! value `q`, `k`, `v`, and the gates `decay` and `beta`:
//!
//! ```text
//! q    = q / sqrt(q . q + 1e-6) / sqrt(k_dim)       k = k / sqrt(k . k + 1e-6)      dots in 16 strided chains, then a tree
//! m[j] = fma chain over i: k[i] * (S[i][j] * decay)
//! d[j] = (v[j] - m[j]) * beta
//! S[i][j] = fma(k[i], d[j], S[i][j] * decay)
//! o[j] = fma chain over i: q[i] * S[i][j]
//! out  = rms_norm(o) * silu(z)
//! ```
//! State spaces ("Mamba-2", Dao and Gu, 2024) are the same with other names, and without the parts that make the delta
//! rule: `q` and `k` stay as they are, `m` is 0, `beta` is the time step, and
//!
//! ```text
//! out  = rms_norm(fma(d, v, o) * silu(z))            d of each head; a norm for each group of heads that share a key
//! ```
//!
//! Lanes are channels and elements of a value, never parts of one sum.

use crate::Isa;
use crate::cpu::Cpu;
use crate::elementwise::{add_scaled, gate_mul, multiversion, rms_norm_in_place};
use crate::math::{SUM_LANES, fma, sigmoid, silu_with, tree_sum};
use crate::shared::SharedMut;
use fewbit_quant::GateFunction;
use std::cell::RefCell;
use std::ops::Range;

/// Channels of a convolution that one unit of work covers.
const CHANNELS: usize = 512;

/// The most taps of a convolution.
pub const MOST_TAPS: usize = 16;

/// Columns of a head's state that are computed together.
const COLUMNS: usize = 32;

/// The epsilon of the norms of queries and keys.
const NORM_EPS: f32 = 1e-6;

/// The shape of a layer with gated delta rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaShape {
    /// Number of query and key heads.
    pub n_k_heads: usize,
    /// Number of value heads, a multiple of `n_k_heads`.
    pub n_v_heads: usize,
    /// Elements of a query or key.
    pub k_dim: usize,
    /// Elements of a value.
    pub v_dim: usize,
    /// Whether value head `h` has the key head `h % n_k_heads`; otherwise, as many value heads as share one follow each
    /// other.
    pub is_tiled: bool,
    /// Which rule the state follows.
    pub rule: StateRule,
}

/// How a state changes from token to token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateRule {
    /// The gated delta rule. Rows are queries, keys and values.
    Delta,
    /// A state space. Rows are values, keys and queries, which are called x, B and C there.
    Space,
}

impl DeltaShape {
    /// Elements of a token's queries, keys and values together, which are the channels of the convolution.
    pub fn n_channels(&self) -> usize {
        2 * self.n_k_heads * self.k_dim + self.value_dim()
    }

    /// Elements of a token's values.
    pub fn value_dim(&self) -> usize {
        self.n_v_heads * self.v_dim
    }

    /// Elements of the state: `[n_v_heads, k_dim, v_dim]`.
    pub fn state_elems(&self) -> usize {
        self.n_v_heads * self.k_dim * self.v_dim
    }

    /// The key head of a value head.
    fn k_head(&self, head: usize) -> usize {
        match self.is_tiled {
            true => head % self.n_k_heads,
            false => head / (self.n_v_heads / self.n_k_heads),
        }
    }

    /// Of a row `[n_channels]`, the query, key and value of a value head.
    fn qkv(&self, head: usize) -> [Range<usize>; 3] {
        let (k_head, keys) = (self.k_head(head), self.n_k_heads * self.k_dim);
        let (first_q, first_k, first_v) = match self.rule {
            StateRule::Delta => (0, keys, 2 * keys),
            StateRule::Space => (self.value_dim() + keys, self.value_dim(), 0),
        };
        let of = |first: usize, head: usize, n: usize| first + head * n..first + (head + 1) * n;
        [of(first_q, k_head, self.k_dim), of(first_k, k_head, self.k_dim), of(first_v, head, self.v_dim)]
    }
}

/// A convolution over the rows of some sequences.
#[derive(Clone, Copy, Debug)]
pub struct Convolution<'a> {
    /// `[n_taps, n_channels]`
    pub weight: &'a [f32],
    /// `[n_channels]`
    pub bias: Option<&'a [f32]>,
    /// Number of taps, at least 2.
    pub n_taps: usize,
    /// Whether the result goes through SiLU.
    pub has_silu: bool,
}

/// The rows of one sequence in a convolution.
#[derive(Debug)]
pub struct ConvolutionRows<'a> {
    /// Its rows.
    pub rows: Range<usize>,
    /// `[n_taps - 1, n_channels]`: the rows before them, or zeros.
    pub from: Option<&'a [f32]>,
    /// Receives the last rows before these row numbers (counted from the first row of `rows`), in the form of `from`.
    pub to: Vec<(usize, &'a mut [f32])>,
}

/// The inputs of gated delta rules for all rows.
#[derive(Clone, Copy, Debug)]
pub struct DeltaStep<'a> {
    /// The shape.
    pub shape: DeltaShape,
    /// `[n_rows, n_channels]`: queries, keys and values.
    pub qkv: &'a [f32],
    /// `[n_rows, 2 * n_v_heads]`: the decays, then the betas; see [`delta_gates`].
    pub gates: &'a [f32],
    /// If outputs are normed and then gated: the gates `[n_outs, value_dim]`, the weights of the norm `[v_dim]`, its epsilon.
    pub output: Option<(&'a [f32], &'a [f32], f32)>,
}

/// The rows of one sequence in gated delta rules. The first `n_replayed` of them have no output.
#[derive(Debug)]
pub struct DeltaRows<'a> {
    /// Its rows.
    pub rows: Range<usize>,
    /// Number of rows without output.
    pub n_replayed: usize,
    /// The first row of its outputs.
    pub first_out: usize,
    /// `[n_v_heads, k_dim, v_dim]`: the state before the rows, or zeros.
    pub from: Option<&'a [f32]>,
    /// Receives the state after so many rows, in increasing order; the last one after all rows.
    pub to: Vec<(usize, &'a mut [f32])>,
}

/// The gates of a row: `decay = exp(a_coef * softplus(a + dt))` and `beta = sigmoid(b)`. All are `[n_v_heads]`, `out` is
/// `[2 * n_v_heads]`. In f64 with the pure-Rust `libm`, so that it is the same on every platform.
pub fn delta_gates(a: &[f32], b: &[f32], dt: &[f32], a_coef: &[f32], out: &mut [f32]) {
    let (decays, betas) = out.split_at_mut(a.len());
    for ((((decay, &a), &dt), &coef), (beta, &b)) in
        decays.iter_mut().zip(a).zip(dt).zip(a_coef).zip(betas.iter_mut().zip(b))
    {
        *decay = libm::exp(f64::from(coef) * softplus(a + dt)) as f32;
        *beta = sigmoid(b);
    }
}

/// The gates of a row of a state space: `beta = softplus(time_step + dt)` and `decay = exp(a_coef * beta)`. All are
/// `[n_v_heads]`, `out` is `[2 * n_v_heads]`; as [`delta_gates`] in f64.
pub fn space_gates(time_steps: &[f32], dt: &[f32], a_coef: &[f32], out: &mut [f32]) {
    let (decays, betas) = out.split_at_mut(time_steps.len());
    for ((((decay, beta), &step), &dt), &coef) in decays.iter_mut().zip(betas).zip(time_steps).zip(dt).zip(a_coef) {
        let step = softplus(step + dt);
        *decay = libm::exp(f64::from(coef) * step) as f32;
        *beta = step as f32;
    }
}

/// What becomes of the outputs of a state space.
#[derive(Clone, Copy, Debug)]
pub struct SpaceOutput<'a> {
    /// The shape.
    pub shape: DeltaShape,
    /// `[n_rows, n_channels]`: values, keys and queries.
    pub qkv: &'a [f32],
    /// `[n_outs]`: the row of each output.
    pub rows: &'a [usize],
    /// `[n_v_heads]`: factors of the values.
    pub d: &'a [f32],
    /// `[n_outs, value_dim]`: the gates.
    pub z: &'a [f32],
    /// `[value_dim]`: the weights of the norm, and its epsilon.
    pub norm: &'a [f32],
    /// The epsilon of the norm.
    pub eps: f32,
}

/// `ln(1 + e^x)`, in f64 with the pure-Rust `libm`.
pub fn softplus(x: f32) -> f64 {
    let x = f64::from(x);
    if x > 20.0 { x } else { libm::log1p(libm::exp(x)) }
}

multiversion! {
    /// Some channels of one row of a convolution: `out = f(bias + sum over taps of weight * row)`. `rows` are the rows of
    /// the taps, oldest first; an empty one is a row of zeros.
    pub(crate) fn convolve(rows: &[&[f32]], weights: &[f32], n_channels: usize, first: usize, has_silu: bool, out: &mut [f32]) {
        for (row, weights) in rows.iter().zip(weights.chunks_exact(n_channels)) {
            if row.is_empty() {
                continue;
            }
            for ((y, &x), &w) in out.iter_mut().zip(&row[first..]).zip(&weights[first..]) {
                *y = fma::<FMA>(w, x, *y);
            }
        }
        if has_silu {
            for y in out {
                *y = silu_with::<FMA>(*y);
            }
        }
    }
}

multiversion! {
    /// `out = x / sqrt(x . x + eps) * factor`.
    pub(crate) fn normalize(x: &[f32], factor: f32, out: &mut [f32]) {
        let mut lanes = [0.0f32; SUM_LANES];
        for chunk in x.chunks(SUM_LANES) {
            for (lane, &v) in lanes.iter_mut().zip(chunk) {
                *lane = fma::<FMA>(v, v, *lane);
            }
        }
        let scale = 1.0 / (tree_sum(lanes) + NORM_EPS).sqrt();
        for (y, &x) in out.iter_mut().zip(x) {
            *y = (x * scale) * factor;
        }
    }
}

/// Some columns of a head's state: see [`delta_rule`].
#[inline(always)]
fn delta_columns<const FMA: bool, const N: usize>(
    state: &mut [f32],
    [q, k, v]: [&[f32]; 3],
    first: usize,
    [decay, beta]: [f32; 2],
    is_delta: bool,
    out: &mut [f32],
) {
    let (width, columns) = (v.len(), first..first + N);
    let mut sums = [0.0f32; N];
    if is_delta {
        for (row, &k) in state.chunks_exact(width).zip(k) {
            let (row, _) = row[columns.clone()].as_chunks::<N>();
            for (sum, &s) in sums.iter_mut().zip(&row[0]) {
                *sum = fma::<FMA>(k, s * decay, *sum);
            }
        }
    }
    let mut delta = [0.0f32; N];
    for ((delta, &v), &memory) in delta.iter_mut().zip(&v[columns.clone()]).zip(&sums) {
        *delta = (v - memory) * beta;
    }
    let mut sums = [0.0f32; N];
    for ((row, &k), &q) in state.chunks_exact_mut(width).zip(k).zip(q) {
        let (row, _) = row[columns.clone()].as_chunks_mut::<N>();
        for ((s, sum), &delta) in row[0].iter_mut().zip(&mut sums).zip(&delta) {
            *s = fma::<FMA>(k, delta, *s * decay);
            *sum = fma::<FMA>(q, *s, *sum);
        }
    }
    if let Some(out) = out.get_mut(columns) {
        out.copy_from_slice(&sums);
    }
}

multiversion! {
    /// One token of a value head: updates `state` `[k_dim, v_dim]` and writes `o`, unless `out` is empty.
    pub(crate) fn delta_rule(state: &mut [f32], qkv: [&[f32]; 3], gates: [f32; 2], is_delta: bool, out: &mut [f32]) {
        let width = qkv[2].len();
        let mut first = 0;
        while first + COLUMNS <= width {
            delta_columns::<FMA, COLUMNS>(state, qkv, first, gates, is_delta, out);
            first += COLUMNS;
        }
        while first < width {
            delta_columns::<FMA, 1>(state, qkv, first, gates, is_delta, out);
            first += 1;
        }
    }
}

/// The row of a sequence that comes `back` rows before its row `i`; an empty one before the first token.
fn row_before<'a>(
    sequence: &'a ConvolutionRows<'_>,
    x: &'a [f32],
    n_channels: usize,
    i: usize,
    back: usize,
) -> &'a [f32] {
    let (from, at) = match i.checked_sub(back) {
        Some(i) => (x, sequence.rows.start + i),
        None => match sequence.from {
            Some(from) => (from, from.len() / n_channels + i - back),
            None => return &[],
        },
    };
    &from[at * n_channels..(at + 1) * n_channels]
}

thread_local! {
    /// The normed query and key of a row, and `o`.
    static BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Cpu {
    /// Computes a convolution of rows `[n_rows, n_channels]` into `out`. See [`Convolution`].
    ///
    /// # Panics
    /// If lengths do not match, or rows overlap.
    pub fn convolve(&self, of: &Convolution<'_>, sequences: &mut [ConvolutionRows<'_>], x: &[f32], out: &mut [f32]) {
        let n_channels = of.weight.len() / of.n_taps;
        let n_before = of.n_taps - 1;
        assert!(
            of.weight.len() == of.n_taps * n_channels && (2..=MOST_TAPS).contains(&of.n_taps),
            "weights of every tap"
        );
        assert!(x.len() == out.len() && x.len().is_multiple_of(n_channels), "rows of {n_channels}");
        assert!(of.bias.is_none_or(|bias| bias.len() == n_channels), "a bias of every channel");
        for sequence in &*sequences {
            assert!(sequence.from.is_none_or(|from| from.len() == n_before * n_channels), "rows before the first");
        }
        let n_blocks = n_channels.div_ceil(CHANNELS);
        let mut end = 0;
        let shared = SharedMut::new(out);
        for sequence in &*sequences {
            assert!(sequence.rows.start >= end && sequence.rows.end * n_channels <= x.len(), "rows in order");
            end = sequence.rows.end;
            let n_units = sequence.rows.len() * n_blocks;
            self.pool().for_chunks(n_units, 4, |units, _| {
                for unit in units {
                    let (i, first) = (unit / n_blocks, unit % n_blocks * CHANNELS);
                    let last = n_channels.min(first + CHANNELS);
                    let at = (sequence.rows.start + i) * n_channels;
                    // SAFETY: each unit is handed out once, and rows of sequences do not overlap by the assertion above.
                    let out = unsafe { shared.range(at + first..at + last) };
                    match of.bias {
                        Some(bias) => out.copy_from_slice(&bias[first..last]),
                        None => out.fill(0.0),
                    }
                    let mut taps = [&[][..]; MOST_TAPS];
                    for (tap, back) in taps.iter_mut().zip((0..of.n_taps).rev()) {
                        *tap = row_before(sequence, x, n_channels, i, back);
                    }
                    convolve(self.isa(), &taps[..of.n_taps], of.weight, n_channels, first, of.has_silu, out);
                }
            });
        }
        for sequence in sequences {
            let mut to = std::mem::take(&mut sequence.to);
            for (n, to) in &mut to {
                assert!(*n <= sequence.rows.len() && to.len() == n_before * n_channels, "a state after {n} rows");
                for (j, to) in to.chunks_exact_mut(n_channels).enumerate() {
                    match row_before(sequence, x, n_channels, *n + j, n_before) {
                        [] => to.fill(0.0),
                        from => to.copy_from_slice(from),
                    }
                }
            }
            sequence.to = to;
        }
    }

    /// Adds the values of their rows to outputs of state spaces, gates and norms them. `out` is `[n_outs, value_dim]`. See
    /// [`SpaceOutput`].
    ///
    /// # Panics
    /// If lengths do not match.
    pub fn finish_spaces(&self, of: &SpaceOutput<'_>, out: &mut [f32]) {
        let (n_channels, value_dim) = (of.shape.n_channels(), of.shape.value_dim());
        let DeltaShape { n_k_heads, n_v_heads, v_dim, .. } = of.shape;
        assert!(n_k_heads > 0 && n_v_heads.is_multiple_of(n_k_heads), "as many value heads for each key head");
        assert!(out.len() == of.rows.len() * value_dim && of.z.len() == out.len(), "outputs and their gates");
        assert!(of.d.len() == n_v_heads && of.norm.len() == value_dim, "factors and norm of the values");
        assert!(of.rows.iter().all(|row| (row + 1) * n_channels <= of.qkv.len()), "rows of values");
        let isa = self.isa();
        self.each_row(value_dim, out, |i, out| {
            let values = &of.qkv[of.rows[i] * n_channels..][..value_dim];
            for ((out, v), &d) in out.chunks_exact_mut(v_dim).zip(values.chunks_exact(v_dim)).zip(of.d) {
                add_scaled(isa, out, v, d);
            }
            BUFFER.with_borrow_mut(|gated| {
                gated.clear();
                gated.extend_from_slice(&of.z[i * value_dim..(i + 1) * value_dim]);
                gate_mul(isa, GateFunction::Silu, gated, out);
                out.copy_from_slice(gated);
            });
            let group = value_dim / n_k_heads;
            for (out, norm) in out.chunks_exact_mut(group).zip(of.norm.chunks_exact(group)) {
                rms_norm_in_place(isa, out, norm, of.eps);
            }
        });
    }

    /// Computes gated delta rules. `out` is `[n_outs, value_dim]`. See [`DeltaStep`].
    ///
    /// # Panics
    /// If lengths do not match.
    pub fn gated_delta(&self, step: &DeltaStep<'_>, sequences: &mut [DeltaRows<'_>], out: &mut [f32]) {
        let DeltaShape { n_k_heads, n_v_heads, k_dim, v_dim, .. } = step.shape;
        let (n_channels, value_dim, head_elems) = (step.shape.n_channels(), step.shape.value_dim(), k_dim * v_dim);
        assert!(n_k_heads > 0 && n_v_heads.is_multiple_of(n_k_heads), "as many value heads for each key head");
        if let Some((z, norm, _)) = step.output {
            assert!(z.len() == out.len() && norm.len() == v_dim, "gates and norm of the outputs");
        }
        let is_delta = step.shape.rule == StateRule::Delta;
        let (mut n_outs, state_elems) = (0, step.shape.state_elems());
        for s in &*sequences {
            let n_rows = s.rows.len();
            assert!(s.rows.end * n_channels <= step.qkv.len() && s.rows.end * 2 * n_v_heads <= step.gates.len());
            assert!(s.n_replayed <= n_rows && s.first_out >= n_outs, "outputs in order");
            n_outs = s.first_out + n_rows - s.n_replayed;
            assert!(n_outs * value_dim <= out.len(), "outputs");
            assert!(s.from.is_none_or(|from| from.len() == state_elems), "the state before");
            assert!(s.to.iter().all(|(n, to)| *n <= n_rows && to.len() == state_elems), "states after rows");
            assert!(s.to.is_sorted_by_key(|(n, _)| *n) && s.to.last().is_some_and(|(n, _)| *n == n_rows));
        }
        let (isa, out) = (self.isa(), SharedMut::new(out));
        let scale = 1.0 / (k_dim as f32).sqrt();
        let sequences: Vec<_> = sequences
            .iter_mut()
            .map(|s| {
                let to: Vec<_> = s.to.iter_mut().map(|(n, to)| (*n, SharedMut::new(to))).collect();
                (s.rows.clone(), s.n_replayed, s.first_out, s.from, to)
            })
            .collect();
        self.pool().for_chunks(sequences.len() * n_v_heads, 1, |units, _| {
            BUFFER.with_borrow_mut(|buffer| {
                buffer.resize(2 * k_dim + v_dim, 0.0);
                let (q, rest) = buffer.split_at_mut(k_dim);
                let (k, o) = rest.split_at_mut(k_dim);
                for unit in units {
                    let (rows, n_replayed, first_out, from, to) = &sequences[unit / n_v_heads];
                    let head = unit % n_v_heads;
                    let elems = head * head_elems..(head + 1) * head_elems;
                    let (last, kept) = to.split_last().expect("checked above");
                    // SAFETY: each head of each sequence is handed out once.
                    let state = unsafe { last.1.range(elems.clone()) };
                    match from {
                        Some(from) => state.copy_from_slice(&from[elems.clone()]),
                        None => state.fill(0.0),
                    }
                    let mut kept = kept.iter().peekable();
                    for i in 0..=rows.len() {
                        while let Some((_, to)) = kept.next_if(|(n, _)| *n == i) {
                            // SAFETY: as above.
                            unsafe { to.range(elems.clone()) }.copy_from_slice(state);
                        }
                        if i == rows.len() {
                            break;
                        }
                        let row = rows.start + i;
                        let qkv = &step.qkv[row * n_channels..(row + 1) * n_channels];
                        let [at_q, at_k, at_v] = step.shape.qkv(head);
                        if is_delta {
                            normalize(isa, &qkv[at_q], scale, q);
                            normalize(isa, &qkv[at_k], 1.0, k);
                        } else {
                            q.copy_from_slice(&qkv[at_q]);
                            k.copy_from_slice(&qkv[at_k]);
                        }
                        let gates = &step.gates[row * 2 * n_v_heads..(row + 1) * 2 * n_v_heads];
                        let gates = [gates[head], gates[n_v_heads + head]];
                        if i < *n_replayed {
                            delta_rule(isa, state, [q, k, &qkv[at_v]], gates, is_delta, &mut []);
                            continue;
                        }
                        let at = (first_out + i - n_replayed) * value_dim + head * v_dim;
                        // SAFETY: as above, and outputs of sequences do not overlap by the assertions above.
                        let out = unsafe { out.range(at..at + v_dim) };
                        let Some((z, norm, eps)) = step.output else {
                            delta_rule(isa, state, [q, k, &qkv[at_v]], gates, is_delta, out);
                            continue;
                        };
                        delta_rule(isa, state, [q, k, &qkv[at_v]], gates, is_delta, o);
                        rms_norm_in_place(isa, o, norm, eps);
                        out.copy_from_slice(&z[at..at + v_dim]);
                        gate_mul(isa, GateFunction::Silu, out, o);
                    }
                }
            });
        });
    }
}
