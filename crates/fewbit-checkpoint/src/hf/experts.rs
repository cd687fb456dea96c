//! Tensors that hold the matrices of all experts of a layer.
//!
//! GGUF files have a tensor for the gates, one for the matrices that these are multiplied with ("ups"), and one for the
//! output projections ("downs"): `[n_experts, n_outputs, n_inputs]`. Hugging Face's files have gates and ups in one
//! tensor, in one of the ways of [`ExpertLayout`], and most of them have a row for each input instead of each output.
//!
//! MXFP4 in Hugging Face's files: `blocks` is `[n_experts, n_rows, n_cols / 32, 16]` and `scales` is
//! `[n_experts, n_rows, n_cols / 32]`, all bytes. Byte `j` of a block has element `2 j` in its low half and `2 j + 1` in
//! its high half; in a block of a GGUF file, which begins with the scale, it has the elements `j` and `j + 16`.

use super::modules::{Builder, Order, Stored};
use super::part::plain_type;
use super::{FileTensor, HfError};
use crate::CheckpointError;
use crate::families::ExpertLayout;
use crate::names::Part;
use fewbit_format::safetensors::Dtype;
use fewbit_quant::TensorType;
use std::ops::Range;

/// Matrices whose rows are columns of a tensor of the file.
#[derive(Clone)]
pub(super) struct Columns {
    /// `[n_matrices, n_inputs, n_columns]`, of plain floats.
    pub(super) tensor: FileTensor,
    /// Inputs of a matrix, the length of its rows; 1 for vectors that hold every n-th element of a row of the file.
    n_inputs: usize,
    /// Columns of the file's matrix.
    n_columns: usize,
    /// The first column, the distance from one to the next, and their number.
    first: usize,
    step: usize,
    n_rows: usize,
    elem_bytes: usize,
}

impl Columns {
    /// Bytes of a row of the matrices.
    pub(super) fn row_bytes(&self) -> usize {
        self.n_inputs * self.elem_bytes
    }

    /// Writes some rows, counted over all matrices. `bytes` are those of the file's tensor.
    pub(super) fn write_rows(&self, bytes: &[u8], rows: Range<usize>, out: &mut [u8]) {
        let (size, row_bytes) = (self.elem_bytes, self.row_bytes());
        // Input by input: the columns of one input lie together in the file.
        for input in 0..self.n_inputs {
            for (row, out) in rows.clone().zip(out.chunks_exact_mut(row_bytes)) {
                let column = self.first + row % self.n_rows * self.step;
                let at = (row / self.n_rows * self.n_inputs + input) * self.n_columns + column;
                out[input * size..(input + 1) * size].copy_from_slice(&bytes[at * size..(at + 1) * size]);
            }
        }
    }
}

/// Matrices in blocks of MXFP4.
#[derive(Clone)]
pub(super) struct Mxfp4 {
    pub(super) blocks: FileTensor,
    pub(super) scales: FileTensor,
    /// Blocks of a row.
    n_blocks: usize,
}

/// Bytes of the codes of a block.
const CODE_BYTES: usize = 16;

impl Mxfp4 {
    /// Writes a row as blocks of a GGUF file.
    pub(super) fn write_row(&self, blocks: &[u8], scales: &[u8], row: usize, out: &mut [u8]) {
        let places = row * self.n_blocks..(row + 1) * self.n_blocks;
        for (place, out) in places.zip(out.chunks_exact_mut(1 + CODE_BYTES)) {
            let codes = &blocks[place * CODE_BYTES..(place + 1) * CODE_BYTES];
            let code = |element: usize| codes[element / 2] >> (element % 2 * 4) & 15;
            out[0] = scales[place];
            for (j, byte) in out[1..].iter_mut().enumerate() {
                *byte = code(j) | code(j + CODE_BYTES) << 4;
            }
        }
    }
}

impl Builder<'_> {
    /// Experts, their inner width, and the width of the model.
    fn sizes(&self) -> [usize; 3] {
        let (n, ffn_dim) = self.config.experts.map_or((0, 0), |experts| (experts.n_experts, experts.ffn_dim));
        [n, ffn_dim, self.config.dim]
    }

    fn check_shape(tensor: &FileTensor, expected: &[usize]) -> Result<(), CheckpointError> {
        let expected: Vec<u64> = expected.iter().map(|&n| n as u64).collect();
        match tensor.shape == expected {
            true => Ok(()),
            false => {
                Err(CheckpointError::TensorShape { name: tensor.name.clone(), expected, found: tensor.shape.clone() })
            }
        }
    }

    /// Adds the gates and the ups of all experts, which are one tensor, or the downs.
    pub(super) fn experts(
        &mut self,
        part: Part,
        gguf: &str,
        tensor: &FileTensor,
        layout: ExpertLayout,
    ) -> Result<(), CheckpointError> {
        let ty = plain_type(tensor)?;
        let [n, ffn_dim, dim] = self.sizes();
        if layout == ExpertLayout::Rows {
            if part == Part::ExpertDowns {
                let stored = Stored::Plain(tensor.clone());
                return self.add_in_order(format!("{gguf}.weight"), tensor.shape.clone(), ty, stored, Order::Same);
            }
            Self::check_shape(tensor, &[n, 2 * ffn_dim, dim])?;
            for (name, order) in [(gates(gguf), Order::First(ffn_dim)), (gguf.to_owned(), Order::Second(ffn_dim))] {
                let shape = vec![n as u64, ffn_dim as u64, dim as u64];
                self.add_in_order(format!("{name}.weight"), shape, ty, Stored::Plain(tensor.clone()), order)?;
            }
            return Ok(());
        }
        let (n_inputs, n_rows) = if part == Part::ExpertDowns { (ffn_dim, dim) } else { (dim, ffn_dim) };
        let parts = match part {
            Part::ExpertDowns => vec![(gguf.to_owned(), 0, 1)],
            _ => halves(gguf, ffn_dim, layout),
        };
        let n_columns = n_rows * parts.len();
        Self::check_shape(tensor, &[n, n_inputs, n_columns])?;
        for (name, first, step) in parts {
            let (tensor, elem_bytes) = (tensor.clone(), ty.block_bytes());
            let columns = Columns { tensor, n_inputs, n_columns, first, step, n_rows, elem_bytes };
            let shape = vec![n as u64, n_rows as u64, n_inputs as u64];
            self.add_in_order(format!("{name}.weight"), shape, ty, Stored::Columns(columns), Order::Same)?;
        }
        Ok(())
    }

    /// Adds the biases of the gates and of the ups, which are one tensor.
    pub(super) fn expert_biases(
        &mut self,
        gguf: &str,
        tensor: &FileTensor,
        layout: ExpertLayout,
    ) -> Result<(), CheckpointError> {
        let ty = plain_type(tensor)?;
        let [n, ffn_dim, _] = self.sizes();
        Self::check_shape(tensor, &[n, 2 * ffn_dim])?;
        for (name, first, step) in halves(gguf, ffn_dim, layout) {
            let (tensor, elem_bytes) = (tensor.clone(), ty.block_bytes());
            let columns =
                Columns { tensor, n_inputs: 1, n_columns: 2 * ffn_dim, first, step, n_rows: ffn_dim, elem_bytes };
            let shape = vec![n as u64, ffn_dim as u64];
            self.add_in_order(format!("{name}.bias"), shape, ty, Stored::Columns(columns), Order::Same)?;
        }
        Ok(())
    }

    /// Adds the gates and the ups of all experts, or the downs, in blocks of MXFP4.
    pub(super) fn mxfp4(
        &mut self,
        part: Part,
        gguf: &str,
        blocks: &FileTensor,
        scales: &FileTensor,
    ) -> Result<(), CheckpointError> {
        for tensor in [blocks, scales] {
            if tensor.dtype != Dtype::U8 {
                let (name, found) = (tensor.name.clone(), tensor.dtype);
                return Err(HfError::TensorDtype { name, expected: Dtype::U8.name(), found }.into());
            }
        }
        let [n, ffn_dim, dim] = self.sizes();
        let (n_inputs, n_rows, parts) = match part {
            Part::ExpertDowns => (ffn_dim, dim, vec![(gguf.to_owned(), Order::Same)]),
            _ => (dim, ffn_dim, vec![(gates(gguf), Order::Even), (gguf.to_owned(), Order::Odd)]),
        };
        let n_blocks = n_inputs.div_ceil(2 * CODE_BYTES);
        Self::check_shape(blocks, &[n, n_rows * parts.len(), n_blocks, CODE_BYTES])?;
        Self::check_shape(scales, &[n, n_rows * parts.len(), n_blocks])?;
        for (name, order) in parts {
            let stored = Stored::Mxfp4(Mxfp4 { blocks: blocks.clone(), scales: scales.clone(), n_blocks });
            let shape = vec![n as u64, n_rows as u64, n_inputs as u64];
            self.add_in_order(format!("{name}.weight"), shape, TensorType::MXFP4, stored, order)?;
        }
        Ok(())
    }
}

/// The GGUF name of the gates, from that of the ups.
fn gates(ups: &str) -> String {
    ups.replace("ffn_up_exps", "ffn_gate_exps")
}

/// Names of gates and ups, with the first column of each and the distance from one column to the next.
fn halves(ups: &str, ffn_dim: usize, layout: ExpertLayout) -> Vec<(String, usize, usize)> {
    let (second, step) = if layout == ExpertLayout::Interleaved { (1, 2) } else { (ffn_dim, 1) };
    vec![(gates(ups), 0, step), (ups.to_owned(), second, step)]
}
