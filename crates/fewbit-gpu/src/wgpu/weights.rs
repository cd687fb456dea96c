//! Weights in device memory: the panels of the CPU, unchanged, split into tiles if a buffer would be too large.

use super::gpu::Gpu;
use crate::backend::Memory;
use crate::plan::Weights;
use fewbit_kernels::Matrix;
use fewbit_model::{DeviceError, ModelError};
use std::ops::Range;

/// A matrix, or the matrices of all experts.
pub(super) struct DeviceMatrix {
    pub(super) tiles: Vec<Tile>,
    /// 32-bit words of a panel, and of the metadata before its codes.
    pub(super) panel_words: u32,
    pub(super) meta_words: u32,
    /// 32-bit words of the matrix of one expert.
    pub(super) expert_words: u32,
}

/// A range of rows of a matrix, in a buffer of its own.
pub(super) struct Tile {
    pub(super) buffer: wgpu::Buffer,
    pub(super) rows: Range<usize>,
}

/// The weights that were uploaded so far.
pub(super) struct DeviceWeights<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) matrices: Vec<DeviceMatrix>,
    pub(super) vectors: Vec<wgpu::Buffer>,
    pub(super) n_bytes: u64,
}

/// Rows per panel.
const PANEL_ROWS: usize = 16;

impl<'a> DeviceWeights<'a> {
    pub(super) fn new(gpu: &'a Gpu) -> Self {
        Self { gpu, matrices: Vec::new(), vectors: Vec::new(), n_bytes: 0 }
    }

    fn add(&mut self, matrix: DeviceMatrix) -> usize {
        self.n_bytes += matrix.tiles.iter().map(|tile| tile.buffer.size()).sum::<u64>();
        self.matrices.push(matrix);
        self.matrices.len() - 1
    }
}

impl Weights for DeviceWeights<'_> {
    fn device(&self) -> &str {
        &self.gpu.name
    }

    fn matrix(&mut self, matrix: Matrix) -> Result<usize, ModelError> {
        let (layout, bytes) = matrix.panels().expect("packed for an instruction set with panels");
        let panels_per_tile = (self.gpu.largest_buffer() as usize / layout.panel.max(1)).max(1);
        let tiles = bytes.chunks(panels_per_tile * layout.panel.max(1)).enumerate().map(|(i, bytes)| {
            let first = i * panels_per_tile * PANEL_ROWS;
            let rows = first..matrix.n_rows().min(first + panels_per_tile * PANEL_ROWS);
            Ok(Tile { buffer: self.gpu.upload(bytes)?, rows })
        });
        let tiles = tiles.collect::<Result<_, ModelError>>()?;
        self.gpu.finish_uploads()?;
        let (panel_words, meta_words) = (layout.panel as u32 / 4, layout.meta as u32 / 4);
        Ok(self.add(DeviceMatrix { tiles, panel_words, meta_words, expert_words: 0 }))
    }

    fn experts(&mut self, matrices: Vec<Matrix>) -> Result<usize, ModelError> {
        let (layout, first) = matrices[0].panels().expect("packed for an instruction set with panels");
        let bytes = first.len() as u64 * matrices.len() as u64;
        if bytes > self.gpu.largest_buffer() {
            let free_bytes = Some(self.gpu.largest_buffer());
            return Err(self.gpu.error(DeviceError::OutOfMemory { needed_bytes: bytes, free_bytes }));
        }
        let buffer = self.gpu.buffer(bytes)?;
        let (expert_bytes, n_rows) = (first.len() as u64, matrices[0].n_rows());
        for (i, matrix) in matrices.iter().enumerate() {
            let (_, bytes) = matrix.panels().expect("packed for an instruction set with panels");
            self.gpu.queue.write_buffer(&buffer, i as u64 * expert_bytes, bytes);
        }
        self.gpu.finish_uploads()?;
        let (panel_words, meta_words) = (layout.panel as u32 / 4, layout.meta as u32 / 4);
        let tiles = vec![Tile { buffer, rows: 0..n_rows }];
        Ok(self.add(DeviceMatrix { tiles, panel_words, meta_words, expert_words: expert_bytes as u32 / 4 }))
    }

    fn vector(&mut self, vector: Vec<f32>) -> Result<usize, ModelError> {
        self.vectors.push(self.gpu.upload(bytemuck::cast_slice(&vector))?);
        Ok(self.vectors.len() - 1)
    }
}
