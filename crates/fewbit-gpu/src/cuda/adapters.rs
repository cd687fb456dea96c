//! LoRA adapters on the device: the two factors for each matrix, and their launches in a step.
//!
//! Which rows have which adapters changes from step to step, so these launches are made for each step, and such steps are
//! not captured. Nothing is done if no row has an adapter.

use super::gpu::{DeviceBuffer, Gpu};
use super::kernels::{AdaptParams, AdaptedRow, Address};
use super::run::{Dispatch, grown};
use crate::backend::{Memory, Part, Place};
use crate::plan::Buffer;
use fewbit_model::{AdaptedRows, AdapterPart, LowRank, ModelError};

/// The part of an adapter for one matrix.
struct DeviceAdapter {
    rank: u32,
    n_cols: u32,
    n_rows: u32,
    /// `[rank, n_cols]`
    a: DeviceBuffer,
    /// `[n_rows, rank]`
    b: DeviceBuffer,
}

/// Uploads the part of an adapter for one matrix.
pub(super) fn upload(gpu: &Gpu, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
    let (a, b) = (gpu.upload(bytemuck::cast_slice(adapter.a))?, gpu.upload(bytemuck::cast_slice(adapter.b))?);
    gpu.wait()?;
    let n_bytes = a.bytes() + b.bytes();
    let (rank, n_cols, n_rows) = (adapter.rank as u32, adapter.n_cols as u32, adapter.n_rows as u32);
    Ok(AdapterPart { data: Box::new(DeviceAdapter { rank, n_cols, n_rows, a, b }), n_bytes })
}

/// Memory for the adapted rows of a step, and for what the first factors make of them.
#[derive(Default)]
pub(super) struct AdapterScratch {
    rows: Option<DeviceBuffer>,
    inner: Option<DeviceBuffer>,
}

impl AdapterScratch {
    /// The launches of a step's adapters at the places of a plan, each with the index of the launch before which it comes.
    pub(super) fn dispatches(
        &mut self,
        gpu: &Gpu,
        places: &[(usize, Place)],
        loras: &[AdaptedRows],
        buffer: impl Fn(Buffer) -> Address,
    ) -> Result<Vec<(usize, Dispatch)>, ModelError> {
        let mut all: Vec<AdaptedRow> = Vec::new();
        let mut parts: Vec<(usize, Place, &DeviceAdapter, usize, u32)> = Vec::new();
        let mut inner = 0;
        for (at, place) in places {
            for group in loras {
                let Some((data, part_scale)) = group.part(place.layer, place.target) else { continue };
                let adapter: &DeviceAdapter = data.downcast_ref().expect("loaded by this device");
                let rows = group.rows().iter().zip(group.scales());
                let rows = rows.map(|(&row, scale)| AdaptedRow { row: row as u32, scale: part_scale * scale });
                let first = all.len();
                all.extend(rows);
                let n_rows = (all.len() - first) as u32;
                inner = inner.max(u64::from(n_rows * adapter.rank));
                parts.push((*at, *place, adapter, first, n_rows));
            }
        }
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let bytes: &[u8] = bytemuck::cast_slice(&all);
        let table = grown(gpu, &mut self.rows, bytes.len() as u64)?;
        gpu.write(Part::of(&table, 0, bytes.len() as u64), bytes)?;
        // Launches are done in order, so that all of them can use the same memory.
        let inner = grown(gpu, &mut self.inner, 4 * inner)?.address();
        let mut dispatches = Vec::new();
        for (at, place, adapter, first, n_rows) in parts {
            let rows = table.address() + (first * size_of::<AdaptedRow>()) as u64;
            let (w, x) = (adapter.a.address(), buffer(place.from));
            let (n_in, n_out) = (adapter.n_cols, adapter.rank);
            let down = AdaptParams { w, x, rows, to: inner, n_rows, n_in, n_out, unused: 0 };
            let (w, to) = (adapter.b.address(), buffer(place.to));
            let (n_in, n_out) = (adapter.rank, adapter.n_rows);
            let up = AdaptParams { w, x: inner, rows, to, n_rows, n_in, n_out, unused: 0 };
            dispatches.push((at, Dispatch::new(gpu, &down, down.launch(true))?));
            dispatches.push((at, Dispatch::new(gpu, &up, up.launch(false))?));
        }
        Ok(dispatches)
    }
}
