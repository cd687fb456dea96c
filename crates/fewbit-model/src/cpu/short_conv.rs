//! Layers with a short convolution between two gates, as LFM2 has:
//!
//! ```text
//! b, c, v = h Win          [dim] each
//! y = c * convolution(b * v)
//! x += y Wout
//! ```

use super::CpuSegment;
use super::forward::{Batch, Buffers};
use super::recurrent::Order;
use super::state::{elems, elems_mut};
use super::weights::ShortConv;
use crate::lora::LoraTarget;
use fewbit_checkpoint::names::Part;
use fewbit_kernels::{ActivationKinds, Convolution, ConvolutionRows, Planes};

/// Buffers of layers with a short convolution.
#[derive(Default)]
pub(super) struct ConvBuffers {
    /// `[n_tokens, 3 * dim]`: both gates and the values.
    gated: Vec<f32>,
    /// `[n_tokens and replayed ones, dim]`: inputs and outputs of the convolution.
    inputs: Vec<f32>,
    outputs: Vec<f32>,
    /// `[n_tokens, dim]`
    out: Vec<f32>,
}

impl CpuSegment {
    pub(super) fn short_conv(&self, index: usize, w: &ShortConv, b: &mut Batch<'_, '_>, s: &mut Buffers) {
        let (dim, e) = (self.config.dim, &self.shared.cpu);
        self.input(w.norm.as_deref(), w.input, b.x, &mut s.input);
        b.collect(&s.input, index, &[Part::ConvIn]);
        let n = s.input.n_rows();
        let (d, places) = (&mut s.conv, self.fixed.layer(index - self.layers.start));
        d.gated.resize(n * 3 * dim, 0.0);
        e.matmul_many(&mut [(&w.inputs, &mut d.gated[..], Planes::All)], &s.input);
        let order = Order::of(n, &b.step.sequences);
        order.gather(&places, dim, &mut b.step.sequences, &mut d.inputs, |i, row| {
            let gated = &d.gated[i * 3 * dim..(i + 1) * 3 * dim];
            row.iter_mut().zip(&gated[..dim]).zip(&gated[2 * dim..]).for_each(|((x, b), v)| *x = b * v);
        });
        d.outputs.resize(d.inputs.len(), 0.0);
        let mut fixed: Vec<_> =
            b.step.sequences.iter_mut().map(|s| s.fixed_states().expect("a model with recurrent layers")).collect();
        let mut sequences: Vec<_> = (fixed.iter_mut().zip(order.rows()).filter(|(_, rows)| rows.n_new > 0))
            .map(|(fixed, rows)| ConvolutionRows {
                rows: rows.all,
                from: fixed.base.map(|base| &elems::<f32>(base)[places.convolution.clone()]),
                to: (fixed.to.iter_mut())
                    .map(|(n, page)| (*n, &mut elems_mut::<f32>(page)[places.convolution.clone()]))
                    .collect(),
            })
            .collect();
        let convolution = Convolution { weight: &w.convolution, bias: None, n_taps: w.n_taps, has_silu: false };
        e.convolve(&convolution, &mut sequences, &d.inputs, &mut d.outputs);
        d.out.resize(n * dim, 0.0);
        for rows in order.rows() {
            for i in 0..rows.n_new {
                let from = (rows.all.start + rows.n_replayed + i) * dim;
                let (to, gates) = ((rows.first + i) * dim, (rows.first + i) * 3 * dim + dim);
                let convolved = d.outputs[from..from + dim].iter().zip(&d.gated[gates..gates + dim]);
                d.out[to..to + dim].iter_mut().zip(convolved).for_each(|(y, (x, c))| *y = x * c);
            }
        }
        e.activate(&d.out, dim, ActivationKinds::of([w.output.weight.ty()]), &mut s.input);
        b.collect(&s.input, index, &[Part::ConvOut]);
        self.add_product(index, LoraTarget::AttnOutput, &w.output, None, b, s);
    }
}
