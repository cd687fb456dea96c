//! LoRA adapters on the device: the two factors for each matrix, and their dispatches in a step.
//!
//! The assignment of adapters to rows changes from step to step, so these dispatches are created for each step. That
//! costs a few buffers per adapted matrix, and nothing if no row has an adapter.

use super::gpu::Gpu;
use super::run::{Dispatch, Rows, Run, Shape};
use super::shaders::Kernel;
use crate::backend::{Memory, Place};
use crate::plan::Buffer;
use fewbit_model::{AdaptedRows, AdapterPart, LowRank, ModelError};

/// The part of an adapter for one matrix.
struct DeviceAdapter {
    rank: u32,
    n_cols: u32,
    n_rows: u32,
    /// `[rank, n_cols]`
    a: wgpu::Buffer,
    /// `[n_rows, rank]`
    b: wgpu::Buffer,
}

/// Uploads the part of an adapter for one matrix.
pub(super) fn upload(gpu: &Gpu, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
    let (a, b) = (gpu.upload(bytemuck::cast_slice(adapter.a))?, gpu.upload(bytemuck::cast_slice(adapter.b))?);
    gpu.finish_uploads()?;
    let n_bytes = a.size() + b.size();
    let (rank, n_cols, n_rows) = (adapter.rank as u32, adapter.n_cols as u32, adapter.n_rows as u32);
    Ok(AdapterPart { data: Box::new(DeviceAdapter { rank, n_cols, n_rows, a, b }), n_bytes })
}

impl Run {
    /// The dispatches of a step's adapters at a place of the plan.
    pub(super) fn adapt(
        &self,
        place: Place,
        loras: &[AdaptedRows],
        buffer: impl Fn(Buffer) -> wgpu::Buffer,
    ) -> Result<Vec<Dispatch>, ModelError> {
        let mut dispatches = Vec::new();
        for group in loras {
            let Some((data, part_scale)) = group.part(place.layer, place.target) else { continue };
            let adapter: &DeviceAdapter = data.downcast_ref().expect("loaded by this device");
            let rows = group.rows().iter().zip(group.scales());
            let rows: Vec<[u32; 2]> = rows.map(|(&row, scale)| [row as u32, (part_scale * scale).to_bits()]).collect();
            let n_rows = rows.len() as u32;
            let rows = self.gpu.upload(bytemuck::cast_slice(&rows))?;
            let t = self.gpu.buffer(4 * u64::from(n_rows * adapter.rank))?;
            let mut add = |is_down, width: u32, part, buffers: [&wgpu::Buffer; 4]| {
                let shape = Shape { width, part, ..Shape::default() };
                let kernel = Kernel::LowRank { is_down };
                dispatches.push(self.dispatch(&kernel, shape, width.div_ceil(64), Rows::Fixed(n_rows), &buffers)?);
                Ok::<_, ModelError>(())
            };
            add(true, adapter.rank, adapter.n_cols, [&adapter.a, &buffer(place.from), &rows, &t])?;
            add(false, adapter.n_rows, adapter.rank, [&adapter.b, &t, &rows, &buffer(place.to)])?;
        }
        Ok(dispatches)
    }
}
