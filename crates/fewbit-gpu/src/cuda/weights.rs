//! Weights in device memory: the panels of the CPU, unchanged, one buffer for each matrix or for those of all experts.

use super::gpu::{DeviceBuffer, Gpu};
use crate::backend::{Memory, Part};
use crate::plan::Weights;
use fewbit_kernels::Matrix;
use fewbit_model::ModelError;

/// A matrix, or the matrices of all experts.
pub(super) struct DeviceMatrix {
    pub(super) buffer: DeviceBuffer,
    /// Bytes of a panel, and of the metadata before its codes.
    pub(super) panel_bytes: usize,
    pub(super) meta_bytes: usize,
    /// Bytes of the matrix of one expert.
    pub(super) expert_bytes: u64,
}

/// The weights that were uploaded so far.
pub(super) struct DeviceWeights<'a> {
    gpu: &'a Gpu,
    pub(super) matrices: Vec<DeviceMatrix>,
    pub(super) vectors: Vec<DeviceBuffer>,
    pub(super) n_bytes: u64,
}

impl<'a> DeviceWeights<'a> {
    pub(super) fn new(gpu: &'a Gpu) -> Self {
        Self { gpu, matrices: Vec::new(), vectors: Vec::new(), n_bytes: 0 }
    }
}

impl Weights for DeviceWeights<'_> {
    fn device(&self) -> &str {
        &self.gpu.name
    }

    fn matrix(&mut self, matrix: Matrix) -> Result<usize, ModelError> {
        self.experts(vec![matrix])
    }

    fn experts(&mut self, matrices: Vec<Matrix>) -> Result<usize, ModelError> {
        let panels = |matrix: &Matrix| {
            let (layout, bytes) = matrix.panels().expect("packed for an instruction set with panels");
            (layout.panel, layout.meta, bytes.len() as u64)
        };
        let (panel_bytes, meta_bytes, expert_bytes) = panels(&matrices[0]);
        let buffer = self.gpu.buffer(expert_bytes * matrices.len() as u64)?;
        for (i, matrix) in matrices.iter().enumerate() {
            let (_, bytes) = matrix.panels().expect("packed for an instruction set with panels");
            self.gpu.write(Part::of(&buffer, i as u64 * expert_bytes, expert_bytes), bytes)?;
        }
        self.gpu.wait()?;
        self.n_bytes += buffer.bytes();
        self.matrices.push(DeviceMatrix { buffer, panel_bytes, meta_bytes, expert_bytes });
        Ok(self.matrices.len() - 1)
    }

    fn vector(&mut self, vector: Vec<f32>) -> Result<usize, ModelError> {
        self.vectors.push(self.gpu.upload(bytemuck::cast_slice(&vector))?);
        Ok(self.vectors.len() - 1)
    }
}
