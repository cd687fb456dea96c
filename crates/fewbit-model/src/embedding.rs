//! Token embeddings, which are looked up on the host.

use crate::loader::{LayerLoader, weight};
use crate::{ModelError, cpu};
use fewbit_checkpoint::names::Part;
use fewbit_kernels::{Cpu, Isa, Matrix};
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
