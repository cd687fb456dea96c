//! Convolutions and gated delta rules: the bits of the definition on every instruction set and number of threads, however
//! the tokens are cut; and the values of a float64 computation.

#[path = "support/floats.rs"]
mod floats;

use fewbit_kernels::math::{exp, silu, tree_sum};
use fewbit_kernels::{
    Convolution, ConvolutionRows, Cpu, DeltaRows, DeltaShape, DeltaStep, Isa, SpaceOutput, StateRule, delta_gates,
    space_gates,
};
use floats::{bits, random};

/// Every instruction set with one and with two threads.
fn cpus() -> impl Iterator<Item = Cpu> {
    Isa::available().into_iter().flat_map(|isa| [1, 2].map(|n| Cpu::new(isa, n).expect("available")))
}

const N_ROWS: usize = 19;

/// Shapes with heads that share keys in both orders, and values that are no multiple of a vector.
fn shapes() -> [DeltaShape; 4] {
    let shape =
        DeltaShape { n_k_heads: 2, n_v_heads: 6, k_dim: 13, v_dim: 37, is_tiled: false, rule: StateRule::Delta };
    [
        shape,
        DeltaShape { is_tiled: true, ..shape },
        DeltaShape { n_k_heads: 3, n_v_heads: 3, k_dim: 32, v_dim: 64, ..shape },
        DeltaShape { rule: StateRule::Space, ..shape },
    ]
}

/// Inputs of a layer.
struct Inputs {
    shape: DeltaShape,
    qkv: Vec<f32>,
    gates: Vec<f32>,
    z: Vec<f32>,
    norm: Vec<f32>,
}

const EPS: f32 = 1e-5;

impl Inputs {
    fn new(shape: DeltaShape) -> Self {
        let n = shape.n_v_heads;
        let (a, b) = (random(N_ROWS * n, 1), random(N_ROWS * n, 2));
        let (dt, coef) = (random(n, 3), random(n, 4).iter().map(|x| -x.abs()).collect::<Vec<_>>());
        let mut gates = vec![0.0; N_ROWS * 2 * n];
        for (i, out) in gates.chunks_exact_mut(2 * n).enumerate() {
            delta_gates(&a[i * n..(i + 1) * n], &b[i * n..(i + 1) * n], &dt, &coef, out);
        }
        let qkv = random(N_ROWS * shape.n_channels(), 5);
        Self { shape, qkv, gates, z: random(N_ROWS * shape.value_dim(), 6), norm: random(shape.v_dim, 7) }
    }

    fn output(&self, outs: std::ops::Range<usize>) -> Option<(&[f32], &[f32], f32)> {
        let n = self.shape.value_dim();
        (self.shape.rule == StateRule::Delta).then(|| (&self.z[outs.start * n..outs.end * n], &self.norm[..], EPS))
    }

    /// All outputs and the last state, with `norm` for queries and keys, and `fma` of the numbers' type.
    fn definition(&self) -> (Vec<f32>, Vec<f32>) {
        let s = &self.shape;
        let (mut outs, mut states) = (vec![0.0; N_ROWS * s.value_dim()], vec![0.0f32; s.state_elems()]);
        let is_delta = s.rule == StateRule::Delta;
        let keys = s.n_k_heads * s.k_dim;
        for row in 0..N_ROWS {
            let x = &self.qkv[row * s.n_channels()..(row + 1) * s.n_channels()];
            for head in 0..s.n_v_heads {
                let k_head = if s.is_tiled { head % s.n_k_heads } else { head / (s.n_v_heads / s.n_k_heads) };
                let (at_q, at_k, at_v) =
                    if is_delta { (0, keys, 2 * keys) } else { (s.value_dim() + keys, s.value_dim(), 0) };
                let of = |first: usize| x[first + k_head * s.k_dim..][..s.k_dim].to_vec();
                let (mut q, mut k) = (of(at_q), of(at_k));
                let v = &x[at_v + head * s.v_dim..][..s.v_dim];
                if is_delta {
                    let norm = |x: &mut [f32], factor: f32| {
                        let mut lanes = [0.0f32; 16];
                        x.iter().enumerate().for_each(|(i, x)| lanes[i % 16] = x.mul_add(*x, lanes[i % 16]));
                        let scale = 1.0 / (tree_sum(lanes) + 1e-6).sqrt();
                        x.iter_mut().for_each(|x| *x = *x * scale * factor);
                    };
                    norm(&mut q, 1.0 / (s.k_dim as f32).sqrt());
                    norm(&mut k, 1.0);
                }
                let gates = &self.gates[row * 2 * s.n_v_heads..][..2 * s.n_v_heads];
                let (decay, beta) = (gates[head], gates[s.n_v_heads + head]);
                let state = &mut states[head * s.k_dim * s.v_dim..][..s.k_dim * s.v_dim];
                let mut o = vec![0.0f32; s.v_dim];
                for (j, o) in o.iter_mut().enumerate() {
                    let memory = (0..s.k_dim).fold(0.0f32, |m, i| k[i].mul_add(state[i * s.v_dim + j] * decay, m));
                    let delta = (v[j] - if is_delta { memory } else { 0.0 }) * beta;
                    for i in 0..s.k_dim {
                        let at = &mut state[i * s.v_dim + j];
                        *at = k[i].mul_add(delta, *at * decay);
                        *o = q[i].mul_add(*at, *o);
                    }
                }
                let out = &mut outs[row * s.value_dim() + head * s.v_dim..][..s.v_dim];
                if is_delta {
                    let mut lanes = [0.0f32; 16];
                    o.iter().enumerate().for_each(|(i, x)| lanes[i % 16] = x.mul_add(*x, lanes[i % 16]));
                    let scale = 1.0 / (tree_sum(lanes) / s.v_dim as f32 + EPS).sqrt();
                    let z = &self.z[row * s.value_dim() + head * s.v_dim..][..s.v_dim];
                    for (((out, o), w), z) in out.iter_mut().zip(&o).zip(&self.norm).zip(z) {
                        *out = silu(*z) * (o * scale * w);
                    }
                } else {
                    out.copy_from_slice(&o);
                }
            }
        }
        (outs, states)
    }
}

#[test]
fn delta_rules_have_the_bits_of_the_definition_however_tokens_are_cut() {
    for shape in shapes() {
        let inputs = Inputs::new(shape);
        let (outs, state) = inputs.definition();
        assert!(outs.iter().all(|x| x.is_finite()) && outs.iter().any(|x| x.abs() > 0.01));
        let value_dim = shape.value_dim();
        for cpu in cpus() {
            for at in [0, 1, 7, N_ROWS] {
                // One sequence whose first part is computed, then replayed next to another with all tokens.
                let mut kept = vec![f32::NAN; shape.state_elems()];
                let mut last = [vec![f32::NAN; shape.state_elems()], vec![f32::NAN; shape.state_elems()]];
                let n_outs = 2 * N_ROWS - at;
                let mut z = inputs.z[at * value_dim..].to_vec();
                z.extend_from_slice(&inputs.z);
                let qkv = [&inputs.qkv[..], &inputs.qkv].concat();
                let gates = [&inputs.gates[..], &inputs.gates].concat();
                let output = inputs.output(0..N_ROWS).map(|(_, norm, eps)| (&z[..], norm, eps));
                let step = DeltaStep { shape, qkv: &qkv, gates: &gates, output };
                let mut out = vec![f32::NAN; n_outs * value_dim];
                let [first, second] = &mut last;
                let mut sequences = [
                    DeltaRows {
                        rows: 0..N_ROWS,
                        n_replayed: at,
                        first_out: 0,
                        from: None,
                        to: vec![(at, &mut kept), (N_ROWS, first)],
                    },
                    DeltaRows {
                        rows: N_ROWS..2 * N_ROWS,
                        n_replayed: 0,
                        first_out: N_ROWS - at,
                        from: None,
                        to: vec![(N_ROWS, second)],
                    },
                ];
                cpu.gated_delta(&step, &mut sequences, &mut out);
                let want = [&outs[at * value_dim..], &outs].concat();
                assert!(bits(&out) == bits(&want), "{shape:?}, {cpu:?}, replayed {at}");
                assert!(bits(&last[0]) == bits(&state) && bits(&last[1]) == bits(&state), "{shape:?}, {cpu:?}");
                // From the kept state on.
                let rest = DeltaStep {
                    qkv: &inputs.qkv[at * shape.n_channels()..],
                    gates: &inputs.gates[at * 2 * shape.n_v_heads..],
                    output: inputs.output(at..N_ROWS),
                    shape,
                };
                let mut out = vec![f32::NAN; (N_ROWS - at) * value_dim];
                let (n_replayed, first_out, from) = (0, 0, Some(&kept[..]));
                let to = vec![(N_ROWS - at, &mut last[0][..])];
                let rows = DeltaRows { rows: 0..N_ROWS - at, n_replayed, first_out, from, to };
                cpu.gated_delta(&rest, &mut [rows], &mut out);
                assert!(bits(&out) == bits(&outs[at * value_dim..]), "{shape:?}, {cpu:?}, from {at}");
                assert!(bits(&last[0]) == bits(&state), "{shape:?}, {cpu:?}, from {at}");
            }
        }
    }
}

#[test]
fn outputs_of_state_spaces_have_the_bits_of_the_definition() {
    for shape in shapes().into_iter().filter(|shape| shape.rule == StateRule::Space) {
        let (n_channels, value_dim) = (shape.n_channels(), shape.value_dim());
        let (qkv, o) = (random(N_ROWS * n_channels, 1), random(5 * value_dim, 2));
        let (z, norm, d) = (random(5 * value_dim, 3), random(value_dim, 4), random(shape.n_v_heads, 5));
        let rows = [0, 3, 4, 9, N_ROWS - 1];
        let group = value_dim / shape.n_k_heads;
        let mut want = o.clone();
        for (i, want) in want.chunks_exact_mut(value_dim).enumerate() {
            for (j, y) in want.iter_mut().enumerate() {
                let skipped = d[j / shape.v_dim].mul_add(qkv[rows[i] * n_channels + j], *y);
                *y = silu(z[i * value_dim + j]) * skipped;
            }
            for (want, norm) in want.chunks_exact_mut(group).zip(norm.chunks_exact(group)) {
                let mut lanes = [0.0f32; 16];
                want.iter().enumerate().for_each(|(i, x)| lanes[i % 16] = x.mul_add(*x, lanes[i % 16]));
                let scale = 1.0 / (tree_sum(lanes) / group as f32 + EPS).sqrt();
                want.iter_mut().zip(norm).for_each(|(y, w)| *y = *y * scale * w);
            }
        }
        for cpu in cpus() {
            let mut got = o.clone();
            let of = SpaceOutput { shape, qkv: &qkv, rows: &rows, d: &d, z: &z, norm: &norm, eps: EPS };
            cpu.finish_spaces(&of, &mut got);
            assert!(bits(&got) == bits(&want), "{cpu:?}");
        }
    }
}

#[test]
fn squared_relus_have_the_bits_of_the_definition() {
    let x: Vec<f32> = random(3 * 37, 1).into_iter().chain([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY]).collect();
    let want: Vec<f32> = x.iter().map(|x| x.max(0.0) * x.max(0.0)).collect();
    for cpu in cpus() {
        let mut got = x.clone();
        cpu.squared_relu(23, &mut got);
        assert!(bits(&got) == bits(&want) && got.iter().any(|&y| y > 0.0), "{cpu:?}");
    }
}

#[test]
fn convolutions_have_the_bits_of_the_definition_however_tokens_are_cut() {
    for (n_channels, n_taps, has_silu, has_bias) in [(1100, 4, true, false), (37, 3, false, true), (8, 2, true, true)] {
        let (x, weight) = (random(N_ROWS * n_channels, 1), random(n_taps * n_channels, 2));
        let bias = has_bias.then(|| random(n_channels, 3));
        let at = |t: isize, c: usize| if t < 0 { 0.0 } else { x[t as usize * n_channels + c] };
        let value = |t: usize, c: usize| {
            let first = bias.as_ref().map_or(0.0, |bias| bias[c]);
            let tap = |j: usize| at(t as isize - (n_taps - 1 - j) as isize, c);
            // Before the first token there is nothing to add.
            let taps = (0..n_taps).filter(|j| t + j + 1 >= n_taps);
            let y = taps.fold(first, |y, j| weight[j * n_channels + c].mul_add(tap(j), y));
            if has_silu { y / (1.0 + exp(-y)) } else { y }
        };
        let want: Vec<f32> = (0..N_ROWS * n_channels).map(|i| value(i / n_channels, i % n_channels)).collect();
        let of = Convolution { weight: &weight, bias: bias.as_deref(), n_taps, has_silu };
        for cpu in cpus() {
            for cut in [1, 2, 7, N_ROWS] {
                let (mut from, mut got) = (None, Vec::new());
                for x in x.chunks(cut * n_channels) {
                    let n = x.len() / n_channels;
                    let (mut to, mut out) = (vec![f32::NAN; (n_taps - 1) * n_channels], vec![f32::NAN; x.len()]);
                    let rows = ConvolutionRows { rows: 0..n, from: from.as_deref(), to: vec![(n, &mut to)] };
                    cpu.convolve(&of, &mut [rows], x, &mut out);
                    (from, got) = (Some(to), [got, out].concat());
                }
                assert!(bits(&got) == bits(&want), "{n_channels} channels, {cpu:?}, chunks of {cut}");
            }
        }
    }
}

#[test]
fn gates_are_those_of_float64() {
    let (a, b) = (random(50, 1), random(50, 2));
    let (dt, coef) = (random(50, 3), random(50, 4));
    let mut out = vec![0.0; 100];
    delta_gates(&a, &b, &dt, &coef, &mut out);
    for i in 0..50 {
        let softplus = f64::from(a[i] + dt[i]).exp().ln_1p();
        let decay = (f64::from(coef[i]) * softplus).exp();
        assert!((f64::from(out[i]) - decay).abs() < 1e-6 * decay);
        assert!((f64::from(out[50 + i]) - 1.0 / (1.0 + f64::from(-b[i]).exp())).abs() < 1e-6);
    }
    space_gates(&a, &dt, &coef, &mut out);
    for i in 0..50 {
        let step = f64::from(a[i] + dt[i]).exp().ln_1p();
        let decay = (f64::from(coef[i]) * step).exp();
        assert!((f64::from(out[i]) - decay).abs() < 1e-6 * decay);
        assert!((f64::from(out[50 + i]) - step).abs() < 1e-6 * step);
    }
}
