//! The head on the CPU: the norm and the output matrix after the last layer.

use super::weights::Packer;
use super::{Shared, adapters};
use crate::ModelError;
use crate::loader::LayerLoader;
use crate::lora::{AdaptedRows, AdapterPart, LoraTarget, LowRank};
use crate::segment::Head;
use fewbit_checkpoint::NormKind;
use fewbit_checkpoint::names::Part;
use fewbit_kernels::{ActivationKinds, Activations, Matrix};
use std::sync::Arc;

/// A norm and the output matrix.
pub(super) struct CpuHead {
    shared: Arc<Shared>,
    /// `[dim]`
    norm: Vec<f32>,
    /// `[n_vocab, dim]`: the embedding, if the two are tied.
    output: Arc<Matrix>,
    is_tied: bool,
    /// `[n_vocab]`
    bias: Option<Vec<f32>>,
    norm_kind: NormKind,
    rms_norm_eps: f32,
    logit_scale: f32,
    logit_softcap: Option<f32>,
}

impl CpuHead {
    pub(super) fn load(shared: &Arc<Shared>, loader: &mut LayerLoader<'_>) -> Result<Self, ModelError> {
        let config = loader.config();
        let tied = loader.tied.as_ref().map(|embedding| Arc::clone(&embedding.matrix));
        let is_tied = tied.is_some();
        let mut packer = Packer { loader, cpu: &shared.cpu };
        let (output, bias) = match tied {
            Some(matrix) => {
                let bias = packer.bias(Part::Output, 0, matrix.n_rows())?;
                (matrix, bias)
            }
            None => {
                let output = packer.output(config.dim)?;
                (Arc::new(output.weight), output.bias)
            }
        };
        Ok(Self {
            shared: Arc::clone(shared),
            norm: loader.output_norm()?,
            output,
            is_tied,
            bias,
            norm_kind: config.norm,
            rms_norm_eps: config.rms_norm_eps,
            logit_scale: config.logit_scale,
            logit_softcap: config.logit_softcap,
        })
    }
}

impl CpuHead {
    /// The same with another norm.
    pub(super) fn with_norm(&self, norm: Vec<f32>) -> Self {
        let (shared, output, bias) = (Arc::clone(&self.shared), Arc::clone(&self.output), self.bias.clone());
        Self { shared, norm, output, bias, is_tied: true, ..*self }
    }

    fn normed(&self, rows: &[f32], kinds: ActivationKinds, out: &mut Activations) {
        let cpu = &self.shared.cpu;
        match self.norm_kind {
            NormKind::Layer => cpu.layer_norm(rows, &self.norm, self.rms_norm_eps, kinds, out),
            _ => cpu.rms_norm(rows, &self.norm, self.rms_norm_eps, kinds, out),
        }
    }
}

impl Head for CpuHead {
    fn n_vocab(&self) -> usize {
        self.output.n_rows()
    }

    fn weight_bytes(&self) -> u64 {
        if self.is_tied { 0 } else { self.output.n_bytes() as u64 }
    }

    fn norm(&self, rows: &mut [f32]) -> Result<(), ModelError> {
        self.shared.with_buffers(|s| {
            self.normed(rows, ActivationKinds::default(), &mut s.input);
            rows.copy_from_slice(s.input.values());
        });
        Ok(())
    }

    fn logits(&self, rows: &[f32], loras: &[AdaptedRows], out: &mut [f32]) -> Result<(), ModelError> {
        let (e, n_vocab) = (&self.shared.cpu, self.n_vocab());
        // Two planes, because the error of a logit is not averaged out by later layers, and only few rows get here.
        let kinds = ActivationKinds::of([self.output.ty()]).two_planes();
        self.shared.with_buffers(|s| {
            self.normed(rows, kinds, &mut s.input);
            e.matmul(&self.output, &s.input, out);
            if let Some(bias) = &self.bias {
                e.add_bias(bias, out);
            }
            adapters::add_low_rank(e, loras, 0, &mut [(LoraTarget::Output, &mut *out)], &s.input, &mut s.adapters);
        });
        if self.logit_scale != 1.0 {
            e.each_row(n_vocab, out, |_, row| row.iter_mut().for_each(|y| *y *= self.logit_scale));
        }
        if let Some(cap) = self.logit_softcap {
            e.softcap(cap, n_vocab, out);
        }
        Ok(())
    }

    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        Ok(adapters::pack(&self.shared.cpu, adapter)?)
    }
}
