//! The safe entry point: an instruction set and a thread pool, with the operations of a decoder step.
//!
//! This file has the operations on rows of floats; the others are in `activate.rs` (building batches), `products.rs`,
//! `attention.rs` and `encode.rs`. Every method checks its shapes and panics on a mismatch, which is a bug in the
//! caller. Results do not depend on the number of threads, the instruction set or the size of the batch.

use crate::elementwise;
use crate::pack::Matrix;
use crate::shared::SharedMut;
use crate::{Isa, KernelError, ThreadPool};
use fewbit_quant::{GateFunction, RopeStyle, TensorType};
use std::sync::Arc;

/// An instruction set, and the threads that run its kernels. Between kernels, the threads may do other work.
#[derive(Clone, Debug)]
pub struct Cpu {
    isa: Isa,
    pool: Arc<ThreadPool>,
}

impl Cpu {
    /// Creates a CPU with `n_threads` threads of its own, including the calling thread.
    ///
    /// # Errors
    /// [`KernelError::IsaUnavailable`] if this CPU cannot run `isa`, [`KernelError::Thread`].
    pub fn new(isa: Isa, n_threads: usize) -> Result<Self, KernelError> {
        Self::on(isa, Arc::new(ThreadPool::new(n_threads)?))
    }

    /// Creates a CPU on a thread pool that others may use too.
    ///
    /// # Errors
    /// [`KernelError::IsaUnavailable`] if this CPU cannot run `isa`.
    pub fn on(isa: Isa, pool: Arc<ThreadPool>) -> Result<Self, KernelError> {
        Ok(Self { isa: isa.require()?, pool })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The thread pool.
    pub fn pool(&self) -> &Arc<ThreadPool> {
        &self.pool
    }

    /// Packs a matrix for this CPU; see [`Matrix::pack`].
    ///
    /// # Errors
    /// As [`Matrix::pack`].
    pub fn pack(&self, ty: TensorType, n_rows: usize, n_cols: usize, bytes: &[u8]) -> Result<Matrix, KernelError> {
        Matrix::pack(&self.pool, self.isa, ty, n_rows, n_cols, bytes)
    }

    /// Rotates every head of every row in place. `x`: `[n_rows, n_heads, head_dim]`; `cos` and `sin`:
    /// `[n_rows, n_rotated / 2]`, the angles of each row's position.
    pub fn rope(&self, style: RopeStyle, head_dim: usize, n_heads: usize, cos: &[f32], sin: &[f32], x: &mut [f32]) {
        let width = n_heads * head_dim;
        let n_rows = x.len() / width;
        let half = cos.len() / n_rows.max(1);
        assert!(x.len() == n_rows * width && cos.len() == n_rows * half && sin.len() == cos.len());
        assert!(2 * half <= head_dim, "{half} angles for heads of {head_dim}");
        self.each_row(width, x, |row, x| {
            let angles = row * half..(row + 1) * half;
            for head in x.chunks_exact_mut(head_dim) {
                elementwise::rope(self.isa, style, &cos[angles.clone()], &sin[angles.clone()], head);
            }
        });
    }

    /// Normalizes every head of every row in place. `x`: `[n_rows, n_heads, weight.len()]`.
    pub fn norm_heads(&self, weight: &[f32], eps: f32, n_heads: usize, x: &mut [f32]) {
        self.each_row(n_heads * weight.len(), x, |_, x| {
            x.chunks_exact_mut(weight.len()).for_each(|x| elementwise::rms_norm_in_place(self.isa, x, weight, eps));
        });
    }

    /// `x += factor * norm(y)` with the norm of [`rms_norm`](Self::rms_norm), or `x += factor * y` without one. Both
    /// are `[n_rows, n_cols]`; `y` is overwritten.
    pub fn add_normed(&self, norm: Option<(&[f32], f32)>, factor: f32, n_cols: usize, y: &mut [f32], x: &mut [f32]) {
        assert!(y.len() == x.len() && norm.is_none_or(|(weight, _)| weight.len() == n_cols), "rows of one length");
        let y = SharedMut::new(y);
        self.each_row(n_cols, x, |row, x| {
            // SAFETY: each row is handed out once.
            let y = unsafe { y.range(row * n_cols..(row + 1) * n_cols) };
            if let Some((weight, eps)) = norm {
                elementwise::rms_norm_in_place(self.isa, y, weight, eps);
            }
            elementwise::add_scaled(self.isa, x, y, factor);
        });
    }

    /// `x += factor * y` for one row, with one `mul_add` per element.
    ///
    /// # Panics
    /// If their lengths differ.
    pub fn add_scaled(&self, x: &mut [f32], y: &[f32], factor: f32) {
        assert_eq!(x.len(), y.len(), "rows of one length");
        elementwise::add_scaled(self.isa, x, y, factor);
    }

    /// Adds `bias` to every row. `x`: `[n_rows, bias.len()]`.
    pub fn add_bias(&self, bias: &[f32], x: &mut [f32]) {
        self.each_row(bias.len(), x, |_, x| elementwise::add(self.isa, x, bias));
    }

    /// `gate = f(gate) * up`, for products whose outputs have biases, which rules out
    /// [`matmul_gated`](Self::matmul_gated).
    pub fn gate(&self, function: GateFunction, n_cols: usize, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "gate and up");
        self.each_row(n_cols, gate, |row, gate| {
            elementwise::gate_mul(self.isa, function, gate, &up[row * n_cols..(row + 1) * n_cols]);
        });
    }

    /// Splits rows of queries and their gates, head by head `[n_heads, 2, head_dim]`, into two buffers of rows
    /// `[n_heads, head_dim]`.
    pub fn split_gates(&self, head_dim: usize, n_heads: usize, both: &[f32], q: &mut [f32], gates: &mut [f32]) {
        assert!(both.len() == 2 * q.len() && q.len() == gates.len(), "queries and gates");
        let (width, gates) = (n_heads * head_dim, SharedMut::new(gates));
        self.each_row(width, q, |row, q| {
            // SAFETY: each row is handed out once.
            let gates = unsafe { gates.range(row * width..(row + 1) * width) };
            let both = both[2 * row * width..2 * (row + 1) * width].chunks_exact(2 * head_dim);
            for ((both, q), gate) in both.zip(q.chunks_exact_mut(head_dim)).zip(gates.chunks_exact_mut(head_dim)) {
                q.copy_from_slice(&both[..head_dim]);
                gate.copy_from_slice(&both[head_dim..]);
            }
        });
    }

    /// `x *= sigmoid(gates)`, in rows of `n_cols`.
    pub fn sigmoid_gate(&self, n_cols: usize, x: &mut [f32], gates: &[f32]) {
        assert_eq!(x.len(), gates.len(), "a gate of every element");
        self.each_row(n_cols, x, |row, x| {
            elementwise::sigmoid_mul(self.isa, x, &gates[row * n_cols..(row + 1) * n_cols]);
        });
    }

    /// `x = max(x, 0)^2`, in rows of `n_cols`.
    pub fn squared_relu(&self, n_cols: usize, x: &mut [f32]) {
        self.each_row(n_cols, x, |_, x| elementwise::squared_relu(self.isa, x));
    }

    /// `x = cap * tanh(x / cap)`, in rows of `n_cols`.
    pub fn softcap(&self, cap: f32, n_cols: usize, x: &mut [f32]) {
        self.each_row(n_cols, x, |_, x| elementwise::softcap(self.isa, x, cap, 1.0 / cap));
    }

    /// Calls `f` with the index of every row of `x` and the row.
    pub fn each_row(&self, n_cols: usize, x: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
        let n_rows = x.len() / n_cols;
        assert_eq!(x.len(), n_rows * n_cols, "whole rows");
        let x = SharedMut::new(x);
        self.pool.for_chunks(n_rows, 16, |rows, _| {
            for row in rows {
                // SAFETY: each row is handed out once.
                f(row, unsafe { x.range(row * n_cols..(row + 1) * n_cols) });
            }
        });
    }
}
