//! Matrices of multi-head latent attention that give the keys and values of all heads from the latent.
//!
//! Hugging Face's files have one matrix with a row for each element: of every head, those of its keys, then those of its
//! values. GGUF files have two tensors: `attn_k_b` is `[n_heads, kv_rank, plain_dim]`, which is turned, because it is
//! multiplied with queries instead of latents, and `attn_v_b` is `[n_heads, value_dim, kv_rank]`.

use super::modules::{Builder, Order, Stored};
use crate::CheckpointError;
use crate::config::LatentConfig;
use crate::source::decode;
use fewbit_quant::TensorType;
use std::borrow::Cow;
use std::ops::Range;

/// The first rows of every head of a matrix, with rows and columns exchanged.
#[derive(Clone)]
pub(super) struct Turned {
    pub(super) stored: Box<Stored>,
    /// The type that it is stored as. Blocks become F32.
    ty: TensorType,
    /// Rows of a head, and how many of them are taken.
    of: usize,
    n: usize,
    /// Columns of the matrix, the rows of a head here.
    n_columns: usize,
}

impl Turned {
    /// Bytes of a row of the matrix as it is stored.
    pub(super) fn row_bytes(&self) -> usize {
        self.ty.row_bytes(self.n_columns).expect("checked when it was added")
    }

    fn is_plain(&self) -> bool {
        self.ty.block_elems() == 1
    }

    /// The type of the turned matrices.
    fn turned_type(&self) -> TensorType {
        if self.is_plain() { self.ty } else { TensorType::F32 }
    }

    /// Appends some rows, counted over all heads. `stored` returns rows of the matrix.
    pub(super) fn write_rows<'a>(
        &self,
        rows: Range<usize>,
        stored: &dyn Fn(Range<usize>) -> Result<Cow<'a, [u8]>, CheckpointError>,
        out: &mut Vec<u8>,
    ) -> Result<(), CheckpointError> {
        let (size, n_columns) = (self.turned_type().block_bytes(), self.n_columns);
        let mut row = rows.start;
        while row < rows.end {
            let (head, first) = (row / n_columns, row % n_columns);
            let last = n_columns.min(first + rows.end - row);
            let bytes = stored(head * self.of..head * self.of + self.n)?;
            let bytes = if self.is_plain() { bytes } else { Cow::Owned(self.decoded(&bytes)?) };
            for column in first..last {
                for element in 0..self.n {
                    let at = (element * n_columns + column) * size;
                    out.extend_from_slice(&bytes[at..at + size]);
                }
            }
            row += last - first;
        }
        Ok(())
    }

    /// The rows of a head as F32.
    fn decoded(&self, bytes: &[u8]) -> Result<Vec<u8>, CheckpointError> {
        let name = self.stored.tensors().first().map_or("", |tensor| &tensor.name);
        let values = decode(name, self.ty, bytes, self.n * self.n_columns)?;
        Ok(values.into_iter().flat_map(f32::to_le_bytes).collect())
    }
}

impl Builder<'_> {
    /// Adds the two tensors of GGUF files for a matrix that gives keys and values.
    pub(super) fn latent(
        &mut self,
        latent: &LatentConfig,
        name: &str,
        shape: Vec<u64>,
        ty: TensorType,
        stored: Stored,
    ) -> Result<(), CheckpointError> {
        let n_heads = self.config.n_heads;
        let (of, n_columns) = (latent.plain_dim + latent.value_dim, latent.kv_rank);
        let expected = vec![(n_heads * of) as u64, n_columns as u64];
        if shape != expected || ty.row_bytes(n_columns).is_none() {
            let name = stored.file_name();
            return Err(CheckpointError::TensorShape { name, expected, found: shape });
        }
        let turned = Turned { stored: Box::new(stored.clone()), ty, of, n: latent.plain_dim, n_columns };
        let named = |part| name.replace("attn_kv_b", part);
        let shape = vec![n_heads as u64, n_columns as u64, latent.plain_dim as u64];
        let turned_type = turned.turned_type();
        self.add_in_order(named("attn_k_b"), shape, turned_type, Stored::Turned(turned), Order::Same)?;
        let order = Order::Some { of, skip: latent.plain_dim, n: latent.value_dim };
        let shape = vec![n_heads as u64, latent.value_dim as u64, n_columns as u64];
        self.add_in_order(named("attn_v_b"), shape, ty, stored, order)
    }
}
