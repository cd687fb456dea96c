//! Layers with the gated delta rule: projections, the convolution and the gates, the rule itself, the output projection.
//! The definition is in `fewbit-kernels/src/delta.rs`.
//!
//! Rows of a sequence whose state is not known are replayed first: they come from the log, go through the convolution
//! and the rule, and have no output.

use super::CpuSegment;
use super::forward::{Batch, Buffers};
use super::recurrent::{Order, channels_of};
use super::state::log_row;
use super::weights::{DeltaGates, DeltaInputs, DeltaNet};
use crate::lora::LoraTarget;
use crate::{DeltaNetConfig, Recurrent};
use fewbit_checkpoint::names::Part;
use fewbit_kernels::{ActivationKinds, Convolution, DeltaShape, DeltaStep, Planes, StateRule, delta_gates};

/// Buffers of layers with gated delta rule.
#[derive(Default)]
pub(super) struct DeltaBuffers {
    /// `[n_tokens, 2 * key_dim + 2 * value_dim]`: inputs in the order of key heads.
    mixed: Vec<f32>,
    /// `[n_tokens, n_channels]`
    qkv: Vec<f32>,
    /// `[n_tokens, value_dim]`
    z: Vec<f32>,
    /// `[n_tokens, n_v_heads]`, or both in the order of key heads `[n_tokens, 2 * n_v_heads]`.
    beta: Vec<f32>,
    /// `[n_tokens, n_v_heads]`
    alpha: Vec<f32>,
    /// `[n_tokens and replayed ones, log_row]`: inputs of the convolution, betas, alphas.
    rows: Vec<f32>,
    /// `[n_tokens and replayed ones, n_channels]`: inputs of the convolution, and its outputs.
    convolution: [Vec<f32>; 2],
    /// `[n_tokens and replayed ones, 2 * n_v_heads]`
    gates: Vec<f32>,
    /// `[n_tokens, value_dim]`
    out: Vec<f32>,
}

fn shape(config: &DeltaNetConfig) -> DeltaShape {
    let DeltaNetConfig { n_k_heads, n_v_heads, k_dim, v_dim, is_tiled, .. } = *config;
    DeltaShape { n_k_heads, n_v_heads, k_dim, v_dim, is_tiled, rule: StateRule::Delta }
}

impl CpuSegment {
    pub(super) fn delta_net(&self, index: usize, w: &DeltaNet, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let (c, e) = (w.config, &self.shared.cpu);
        self.input(w.norm.as_deref(), w.input, b.x, &mut s.input);
        b.collect(&s.input, index, w.input_parts);
        let n = s.input.n_rows();
        let places = self.fixed.layer(index - self.layers.start);
        self.project(w, n, s);
        let d = &mut s.delta;
        let order = Order::of(n, &b.step.sequences);
        let (width, n_channels) = (log_row(&Recurrent::DeltaNet(c), self.config.dim), c.n_channels());
        order.gather(&places, width, &mut b.step.sequences, &mut d.rows, |i, row| {
            row[..n_channels].copy_from_slice(&d.qkv[i * n_channels..(i + 1) * n_channels]);
            let (beta, alpha) = row[n_channels..].split_at_mut(c.n_v_heads);
            scores(&c, i, &d.beta, &d.alpha, beta, alpha);
        });
        let [inputs, outputs] = &mut d.convolution;
        channels_of(&d.rows, width, n_channels, inputs);
        d.gates.resize(order.total() * 2 * c.n_v_heads, 0.0);
        let rows = &d.rows;
        e.each_row(2 * c.n_v_heads, &mut d.gates, |row, gates| {
            let scores = &rows[row * width + n_channels..(row + 1) * width];
            delta_gates(&scores[c.n_v_heads..], &scores[..c.n_v_heads], &w.dt, &w.decay, gates);
        });
        let convolution = Convolution { weight: &w.convolution, bias: None, n_taps: c.n_taps, has_silu: true };
        let output = Some((&d.z[..], &w.out_norm[..], self.config.rms_norm_eps));
        d.out.resize(n * c.value_dim(), 0.0);
        let (gates, shape) = (&d.gates, shape(&c));
        let step = |qkv| DeltaStep { shape, qkv, gates, output };
        order.recur(e, &places, &mut b.step.sequences, &convolution, [inputs, outputs, &mut d.out], step);
        let kinds = ActivationKinds::of([w.output.weight.ty()]);
        e.activate(&d.out, c.value_dim(), kinds, &mut s.input);
        b.collect(&s.input, index, &[Part::SsmOut]);
        self.add_product(index, LoraTarget::AttnOutput, &w.output, None, b, s);
    }

    /// Computes queries, keys, values, gates and scores of `n` rows.
    fn project(&self, w: &DeltaNet, n: usize, s: &mut Buffers) {
        let (c, e, d) = (w.config, &self.shared.cpu, &mut s.delta);
        d.qkv.resize(n * c.n_channels(), 0.0);
        d.z.resize(n * c.value_dim(), 0.0);
        d.alpha.resize(n * c.n_v_heads, 0.0);
        let mut parts = Vec::with_capacity(4);
        match &w.inputs {
            DeltaInputs::Apart { qkv, z } => {
                parts.push((qkv, &mut d.qkv[..], Planes::First));
                parts.push((z, &mut d.z[..], Planes::First));
            }
            DeltaInputs::Mixed(all) => {
                d.mixed.resize(n * (c.n_channels() + c.value_dim()), 0.0);
                parts.push((all, &mut d.mixed[..], Planes::First));
            }
        }
        match &w.gates {
            DeltaGates::Apart { beta, alpha } => {
                d.beta.resize(n * c.n_v_heads, 0.0);
                parts.push((beta, &mut d.beta[..], Planes::All));
                parts.push((alpha, &mut d.alpha[..], Planes::All));
            }
            DeltaGates::Mixed(both) => {
                d.beta.resize(n * 2 * c.n_v_heads, 0.0);
                parts.push((both, &mut d.beta[..], Planes::All));
            }
        }
        e.matmul_many(&mut parts, &s.input);
        if let DeltaInputs::Mixed(_) = w.inputs {
            let width = c.n_channels() + c.value_dim();
            for (i, mixed) in d.mixed.chunks_exact(width).enumerate() {
                let qkv = &mut d.qkv[i * c.n_channels()..(i + 1) * c.n_channels()];
                qkv.iter_mut().enumerate().for_each(|(j, x)| *x = mixed[c.mixed_row(j)]);
                let z = &mut d.z[i * c.value_dim()..(i + 1) * c.value_dim()];
                z.iter_mut().enumerate().for_each(|(j, x)| *x = mixed[c.mixed_row(c.n_channels() + j)]);
            }
        }
    }
}

/// Copies the scores of row `i`.
fn scores(c: &DeltaNetConfig, i: usize, both: &[f32], alphas: &[f32], beta: &mut [f32], alpha: &mut [f32]) {
    let n = c.n_v_heads;
    if both.len() == alphas.len() {
        beta.copy_from_slice(&both[i * n..(i + 1) * n]);
        alpha.copy_from_slice(&alphas[i * n..(i + 1) * n]);
        return;
    }
    // In the order of key heads, the betas of one come before its alphas.
    let per_key = c.heads_per_key();
    let groups = both[i * 2 * n..(i + 1) * 2 * n].chunks_exact(2 * per_key);
    for (both, (beta, alpha)) in groups.zip(beta.chunks_exact_mut(per_key).zip(alpha.chunks_exact_mut(per_key))) {
        beta.copy_from_slice(&both[..per_key]);
        alpha.copy_from_slice(&both[per_key..]);
    }
}
