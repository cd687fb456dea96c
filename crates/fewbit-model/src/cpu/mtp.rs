//! The layer after the last one, which predicts the token after the next one (multi-token prediction: DeepSeek-AI, 2024,
//! <https://arxiv.org/abs/2412.19437>), for drafts.
//!
//! ```text
//! h[i]  = norm(x)                                        of the last layer's output for token i: see `head`
//! y     = [norm of embedding[token i], norm of h[i - 1]] Wprojection
//! y     = layer(y)                                       with keys and values of its own, from position 1 on
//! h'[i] = norm of y;  logits of token i + 1 = h'[i] Woutput
//! ```
//! At position 0 there is no `h` before it, and so nothing. Of the tokens of a step only keys and values are computed;
//! the rest for drafts. A draft that goes on has `h'` in place of `h`.
//!
//! `h` of the last token is a state of fixed size, and the log has it of the last rows: see `snapshots`.

use super::forward::{Batch, Buffers};
use super::head::CpuHead;
use super::recurrent::Order;
use super::state::{FixedLayer, elems, elems_mut, floats};
use super::weights::{Attention, Packer};
use super::{CpuDevice, CpuSegment};
use crate::ModelError;
use crate::cache::LastState;
use crate::loader::{LayerLoader, weight};
use crate::segment::{Head, Segment, Step};
use crate::snapshots::LOG_ROWS;
use crate::state::StateStore;
use fewbit_checkpoint::names::Part;
use fewbit_kernels::{ActivationKinds, Matrix};
use std::sync::Arc;

/// The layer, with what is before and after it.
pub(crate) struct MtpLayer {
    segment: CpuSegment,
    /// `[dim]`
    embedding_norm: Vec<f32>,
    /// `[dim]`
    hidden_norm: Vec<f32>,
    /// `[dim, 2 dim]`
    projection: Matrix,
    /// The output matrix of the model, with the norm of this layer.
    head: CpuHead,
    /// Where `h` is in a state and in the log.
    places: FixedLayer,
}

/// Buffers of the layer, for all tokens of a batch.
#[derive(Default)]
pub(super) struct MtpBuffers {
    /// `[n_tokens with replayed ones, dim]`: `h`.
    rows: Vec<f32>,
    /// `[n_tokens, dim]`: `h` of the token before each, and its norm.
    before: Vec<f32>,
    /// `[n_tokens, dim]`: the norms of the embeddings.
    embedded: Vec<f32>,
    /// `[n_tokens, 2 dim]`
    pairs: Vec<f32>,
    /// `[n_tokens, dim]`: the residual stream.
    x: Vec<f32>,
}

impl CpuDevice {
    /// Takes the norm and the output matrix after the last layer, and the layer that predicts a further token, which is the
    /// last one of the configuration.
    pub(crate) fn load_with_mtp(&self, loader: &mut LayerLoader<'_>) -> Result<(Box<dyn Head>, MtpLayer), ModelError> {
        let head = CpuHead::load(&self.shared, loader)?;
        let (layer, dim) = (loader.config().n_layers() - 1, loader.config().dim);
        let mut segment = self.segment(loader, layer..layer + 1)?;
        segment.is_mtp = true;
        let mut packer = Packer { loader, cpu: &self.shared.cpu };
        let projection = packer.matrix(&weight(Part::MtpProjection, layer), &[dim, 2 * dim], 0..dim)?;
        let mut norm = |part| loader.vector(&weight(part, layer), dim);
        let mtp = MtpLayer {
            embedding_norm: norm(Part::MtpEmbeddingNorm)?,
            hidden_norm: norm(Part::MtpHiddenNorm)?,
            head: head.with_norm(norm(Part::MtpOutputNorm)?),
            projection,
            segment,
            places: FixedLayer { convolution: 0..0, heads: 0..dim, log: 0..LOG_ROWS * dim },
        };
        Ok((Box::new(head), mtp))
    }
}

impl MtpLayer {
    /// Bytes of its weights.
    pub(crate) fn weight_bytes(&self) -> u64 {
        self.segment.weight_bytes() + self.projection.n_bytes() as u64
    }

    /// The store of its keys and values.
    pub(crate) fn states(&self) -> Arc<dyn StateStore> {
        self.segment.states()
    }

    /// The stores of `h` at a position, and of that of a few rows.
    pub(crate) fn fixed_states(&self) -> [Arc<dyn StateStore>; 2] {
        [floats(self.places.heads.len()), floats(self.places.log.len())]
    }

    /// Appends the keys and values of the rows of a batch. `embedded` are their embeddings and `hidden` their `h`,
    /// `[n_tokens, dim]` each.
    pub(crate) fn fill(&self, step: &mut Step<'_>, embedded: &[f32], hidden: &[f32]) {
        let (dim, places) = (self.dim(), &self.places);
        self.segment.shared.with_buffers(|s| {
            let MtpBuffers { rows, before, .. } = &mut s.mtp;
            let order = Order::of(hidden.len() / dim, &step.sequences);
            order.gather(places, dim, &mut step.sequences, rows, |i, row| {
                row.copy_from_slice(&hidden[i * dim..(i + 1) * dim]);
            });
            before.clear();
            before.resize(hidden.len(), 0.0);
            for (sequence, of) in step.sequences.iter_mut().zip(order.rows()).filter(|(_, of)| of.n_new > 0) {
                let (first_new, to) = (of.all.start + of.n_replayed, &mut before[of.first * dim..][..of.n_new * dim]);
                let mut fixed = sequence.fixed_states().expect("a store of the last hidden state");
                match (of.n_replayed, fixed.base) {
                    (0, None) => {}
                    (0, Some(base)) => to[..dim].copy_from_slice(&elems::<f32>(base)[places.heads.clone()]),
                    _ => to[..dim].copy_from_slice(&rows[(first_new - 1) * dim..first_new * dim]),
                }
                to[dim..].copy_from_slice(&rows[first_new * dim..(first_new + of.n_new - 1) * dim]);
                for (n, page) in &mut fixed.to {
                    let last = of.all.start + *n - 1;
                    elems_mut::<f32>(page)[places.heads.clone()].copy_from_slice(&rows[last * dim..(last + 1) * dim]);
                }
            }
            self.project(embedded, s);
            let mut x = std::mem::take(&mut s.mtp.x);
            self.segment.append(self.layer(), self.attention(), &mut Batch { step, x: &mut x }, s);
            s.mtp.x = x;
        });
    }

    /// `h` of the last token of a cache; `part` is the index of this layer in its pages.
    pub(crate) fn last_hidden(&self, state: &LastState<'_>, len: usize, part: usize) -> Vec<f32> {
        let dim = self.dim();
        match state {
            LastState::Known(page) => elems::<f32>(page.part(part))[self.places.heads.clone()].to_vec(),
            LastState::Logged(page) => {
                let first = self.places.log.start + (len - 1) % LOG_ROWS * dim;
                elems::<f32>(page.part(part))[first..first + dim].to_vec()
            }
        }
    }

    /// Runs the layer for one token: `hidden` is `h` before it, and becomes `h'` of it. Its logits go to `logits`, if they
    /// are wanted.
    pub(crate) fn draft(
        &self,
        step: &mut Step<'_>,
        embedded: &[f32],
        hidden: &mut [f32],
        logits: Option<&mut [f32]>,
    ) -> Result<(), ModelError> {
        let mut x = self.segment.shared.with_buffers(|s| {
            s.mtp.before.clear();
            s.mtp.before.extend_from_slice(hidden);
            self.project(embedded, s);
            let mut x = std::mem::take(&mut s.mtp.x);
            self.segment.compute(step, &mut x, s);
            x
        });
        if let Some(logits) = logits {
            self.head.logits(&x, &[], logits)?;
        }
        self.head.norm(&mut x)?;
        hidden.copy_from_slice(&x);
        self.segment.shared.with_buffers(|s| s.mtp.x = x);
        Ok(())
    }

    /// Projects the norms of `embedded` and of `s.mtp.before` to `s.mtp.x`.
    fn project(&self, embedded: &[f32], s: &mut Buffers) {
        let (c, e, dim) = (&self.segment.config, &self.segment.shared.cpu, self.dim());
        let m = &mut s.mtp;
        m.embedded.clear();
        m.embedded.extend_from_slice(embedded);
        e.norm_heads(&self.embedding_norm, c.rms_norm_eps, 1, &mut m.embedded);
        e.norm_heads(&self.hidden_norm, c.rms_norm_eps, 1, &mut m.before);
        m.pairs.resize(2 * embedded.len(), 0.0);
        let halves = m.embedded.chunks_exact(dim).zip(m.before.chunks_exact(dim));
        for (pair, (embedded, before)) in m.pairs.chunks_exact_mut(2 * dim).zip(halves) {
            pair[..dim].copy_from_slice(embedded);
            pair[dim..].copy_from_slice(before);
        }
        e.activate(&m.pairs, 2 * dim, ActivationKinds::of([self.projection.ty()]), &mut s.input);
        m.x.resize(embedded.len(), 0.0);
        e.matmul(&self.projection, &s.input, &mut m.x);
        s.resize(embedded.len() / dim, c);
    }

    fn dim(&self) -> usize {
        self.hidden_norm.len()
    }

    fn layer(&self) -> usize {
        self.segment.layers.start
    }

    fn attention(&self) -> &Attention {
        self.segment.weights[0].attention.as_ref().expect("its kind of layer has plain attention")
    }
}
