//! Token embeddings, which are looked up on the host, and per-layer embeddings, which are computed there.
//!
//! ```text
//! for layer = (norm(x P / sqrt(dim)) + sqrt(per_layer_dim) * table[token]) / sqrt(2)      [per_layer_dim]
//! ```
//! where `x` is the scaled embedding of the token, and every layer has its own rows of `P` and its own part of the rows of
//! `table`.

use crate::loader::{LayerLoader, weight};
use crate::{ModelError, cpu};
use fewbit_checkpoint::names::Part;
use fewbit_kernels::{ActivationKinds, Activations, Cpu, Isa, Matrix};
use std::f32::consts::FRAC_1_SQRT_2;
use std::sync::Arc;

/// `[n_vocab, dim]`
#[derive(Clone)]
pub(crate) struct Embedding {
    pub(crate) matrix: Arc<Matrix>,
}

impl Embedding {
    /// Takes the embedding. If the output matrix is tied to it and runs on this CPU, it is packed for products.
    pub(crate) fn load(loader: &mut LayerLoader<'_>, cpu: &Cpu, has_head: bool) -> Result<Self, ModelError> {
        let name = weight(Part::TokenEmbedding, 0);
        let n_vocab = *loader.find(&name)?.shape.first().unwrap_or(&0);
        let n_vocab = usize::try_from(n_vocab).unwrap_or(usize::MAX);
        let is_tied = !loader.has(Part::Output, 0);
        let isa = if is_tied && has_head { cpu.isa() } else { Isa::Scalar };
        let shape = [n_vocab, loader.config().dim];
        let matrix = Arc::new(cpu::pack(loader, cpu, isa, &name, &shape, 0..n_vocab)?);
        let embedding = Self { matrix };
        loader.tied = (is_tied && has_head).then(|| embedding.clone());
        Ok(embedding)
    }

    /// Size of the vocabulary.
    pub(crate) fn n_vocab(&self) -> usize {
        self.matrix.n_rows()
    }

    /// Writes the embedding of a token to `out`: `[dim]`.
    pub(crate) fn look_up(&self, token: u32, out: &mut [f32]) {
        self.matrix.decode_row(token as usize, out);
    }
}

/// Per-layer embeddings.
pub(crate) struct LayerEmbedding {
    /// `[n_vocab, n_layers * per_layer_dim]`
    table: Matrix,
    /// `[n_layers * per_layer_dim, dim]`
    projection: Matrix,
    /// `[per_layer_dim]`
    norm: Vec<f32>,
    eps: f32,
    table_scale: f32,
    projection_scale: f32,
}

impl LayerEmbedding {
    /// Takes the per-layer embeddings, in models that have them.
    pub(crate) fn load(loader: &mut LayerLoader<'_>, cpu: &Cpu, n_vocab: usize) -> Result<Option<Self>, ModelError> {
        let config = loader.config();
        let Some(width) = config.per_layer_dim else { return Ok(None) };
        let (dim, row) = (config.dim, config.n_layers() * width);
        let table = [n_vocab, row];
        let [name, projection] = [Part::LayerEmbedding, Part::LayerEmbeddingProjection].map(|part| weight(part, 0));
        Ok(Some(Self {
            table: cpu::pack(loader, cpu, Isa::Scalar, &name, &table, 0..n_vocab)?,
            projection: cpu::pack(loader, cpu, cpu.isa(), &projection, &[row, dim], 0..row)?,
            norm: loader.vector(&weight(Part::LayerEmbeddingNorm, 0), width)?,
            eps: config.rms_norm_eps,
            table_scale: config.per_layer_scale(),
            projection_scale: (1.0 / (dim as f64).sqrt()) as f32,
        }))
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.table.n_bytes() + self.projection.n_bytes()
    }

    /// Writes what each layer gets of each token to `out`, `[n_tokens, n_layers, per_layer_dim]`. `x` is
    /// `[n_tokens, dim]`.
    pub(crate) fn compute(&self, cpu: &Cpu, tokens: &[u32], x: &[f32], input: &mut Activations, out: &mut Vec<f32>) {
        let (row, width) = (self.projection.n_rows(), self.norm.len());
        out.resize(tokens.len() * row, 0.0);
        if tokens.is_empty() {
            return;
        }
        cpu.activate(x, self.projection.n_cols(), ActivationKinds::of([self.projection.ty()]), input);
        cpu.matmul(&self.projection, input, out);
        cpu.each_row(row, out, |_, y| y.iter_mut().for_each(|y| *y *= self.projection_scale));
        cpu.norm_heads(&self.norm, self.eps, row / width, out);
        cpu.each_row(row, out, |token, y| {
            let mut looked_up = vec![0.0; row];
            self.table.decode_row(tokens[token] as usize, &mut looked_up);
            for (y, t) in y.iter_mut().zip(looked_up) {
                *y = (*y + self.table_scale * t) * FRAC_1_SQRT_2;
            }
        });
    }
}
