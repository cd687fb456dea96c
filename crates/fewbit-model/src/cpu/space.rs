//! Layers with a state space ("Mamba-2", Dao and Gu, 2024):
//!
//! ```text
//! z, xbc, t = h Win                    [value_dim], [n_channels], [n_heads]
//! x, b, c = silu(convolution(xbc))     b and c of each group of heads
//! step = softplus(t + dt)              of each head, as its decay exp(a step)
//! S = decay S + step b x               [state_dim, head_dim] for each head
//! x += norm((c S + d x) * silu(z)) Wout
//! ```
//! The definition is in `fewbit-kernels/src/delta.rs`. Rows of a sequence whose state is not known are replayed, as those
//! of `delta`.

use super::CpuSegment;
use super::forward::{Batch, Buffers};
use super::recurrent::{Order, channels_of};
use super::state::log_row;
use super::weights::StateSpace;
use crate::lora::LoraTarget;
use crate::{Recurrent, StateSpaceConfig};
use fewbit_checkpoint::names::Part;
use fewbit_kernels::{
    ActivationKinds, Convolution, DeltaShape, DeltaStep, Planes, SpaceOutput, StateRule, space_gates,
};

/// Buffers of layers with a state space.
#[derive(Default)]
pub(super) struct SpaceBuffers {
    /// `[n_tokens, value_dim]`
    z: Vec<f32>,
    /// `[n_tokens, n_channels]`
    channels: Vec<f32>,
    /// `[n_tokens, n_heads]`
    time_steps: Vec<f32>,
    /// `[n_tokens and replayed ones, log_row]`: inputs of the convolution, time steps.
    rows: Vec<f32>,
    /// `[n_tokens and replayed ones, n_channels]`: inputs of the convolution, and its outputs.
    convolution: [Vec<f32>; 2],
    /// `[n_tokens and replayed ones, 2 * n_heads]`
    gates: Vec<f32>,
    /// `[n_tokens]`: the row of each token among those with replayed ones.
    places: Vec<usize>,
    /// `[n_tokens, value_dim]`
    out: Vec<f32>,
}

/// The shape of the same rule with the names of attention: values, keys (B) and queries (C).
fn shape(config: &StateSpaceConfig) -> DeltaShape {
    DeltaShape {
        n_k_heads: config.n_groups,
        n_v_heads: config.n_heads,
        k_dim: config.state_dim,
        v_dim: config.head_dim,
        is_tiled: false,
        rule: StateRule::Space,
    }
}

impl CpuSegment {
    pub(super) fn state_space(&self, index: usize, w: &StateSpace, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let (c, e) = (w.config, &self.shared.cpu);
        self.input(w.norm.as_deref(), w.input, b.x, &mut s.input);
        b.collect(&s.input, index, &[Part::SsmIn]);
        let n = s.input.n_rows();
        let (d, places) = (&mut s.space, self.fixed.layer(index - self.layers.start));
        d.z.resize(n * c.value_dim(), 0.0);
        d.channels.resize(n * c.n_channels(), 0.0);
        d.time_steps.resize(n * c.n_heads, 0.0);
        let parts = &mut [
            (&w.z, &mut d.z[..], Planes::First),
            (&w.channels, &mut d.channels[..], Planes::First),
            (&w.time_steps, &mut d.time_steps[..], Planes::All),
        ];
        e.matmul_many(parts, &s.input);
        let order = Order::of(n, &b.step.sequences);
        let (width, n_channels) = (log_row(&Recurrent::StateSpace(c), self.config.dim), c.n_channels());
        order.gather(&places, width, &mut b.step.sequences, &mut d.rows, |i, row| {
            let (channels, time_steps) = row.split_at_mut(n_channels);
            channels.copy_from_slice(&d.channels[i * n_channels..(i + 1) * n_channels]);
            time_steps.copy_from_slice(&d.time_steps[i * c.n_heads..(i + 1) * c.n_heads]);
        });
        let [inputs, outputs] = &mut d.convolution;
        channels_of(&d.rows, width, n_channels, inputs);
        d.gates.resize(order.total() * 2 * c.n_heads, 0.0);
        let rows = &d.rows;
        e.each_row(2 * c.n_heads, &mut d.gates, |row, gates| {
            space_gates(&rows[row * width + n_channels..(row + 1) * width], &w.dt, &w.decay, gates);
        });
        let (weight, bias) = (&w.convolution[..], w.convolution_bias.as_deref());
        let convolution = Convolution { weight, bias, n_taps: c.n_taps, has_silu: true };
        d.out.resize(n * c.value_dim(), 0.0);
        let (gates, shape) = (&d.gates, shape(&c));
        let step = |qkv| DeltaStep { shape, qkv, gates, output: None };
        order.recur(e, &places, &mut b.step.sequences, &convolution, [inputs, &mut *outputs, &mut d.out], step);
        d.places.resize(n, 0);
        for rows in order.rows() {
            let first = rows.all.start + rows.n_replayed;
            d.places[rows.first..rows.first + rows.n_new].iter_mut().zip(first..).for_each(|(to, row)| *to = row);
        }
        let eps = self.config.rms_norm_eps;
        let of = SpaceOutput { shape, qkv: outputs, rows: &d.places, d: &w.d, z: &d.z, norm: &w.out_norm, eps };
        e.finish_spaces(&of, &mut d.out);
        let kinds = ActivationKinds::of([w.output.weight.ty()]);
        e.activate(&d.out, c.value_dim(), kinds, &mut s.input);
        b.collect(&s.input, index, &[Part::SsmOut]);
        self.add_product(index, LoraTarget::AttnOutput, &w.output, None, b, s);
    }
}
